"""Features over a group: the trivial one gives torch's own layers, others are equivariant."""

import pytest
import torch

from equicore import trivial
from equicore.applications.scan import SYMMETRIES, Seq2Seq, symmetry
from equicore.applications.scan.layers import CELLS, GroupRecurrent
from equicore.applications.scan.vocabulary import START, encode_actions, encode_commands, shifted

COMMANDS = ["jump twice", "run around left and walk", "look opposite right after turn left thrice"]
TORCH = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layer_is_torch_s(cell):
    ours = GroupRecurrent(trivial(), cell, 5).double()
    theirs = TORCH[cell](5, 5, batch_first=True).double()
    with torch.no_grad():
        for weight, value in zip(theirs.parameters(), ours._weights(), strict=True):
            weight.copy_(value)
    x = torch.randn(3, 4, 5, dtype=torch.double)
    state = tuple(torch.randn(3, 5, dtype=torch.double) for _ in range(ours.parts))
    before = tuple(part[None] for part in state)
    expected, after = theirs(x, before if cell == "lstm" else before[0])
    outputs, last = ours(x, state)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(
        last, tuple(part[0] for part in (after if cell == "lstm" else [after]))
    )


@pytest.mark.parametrize("cell", CELLS)
def test_reading_is_torch_s(cell):
    """Of both directions, whatever else is in the batch."""
    ours = GroupRecurrent(trivial(), cell, 5, bidirectional=True).double()
    theirs = TORCH[cell](5, 5, batch_first=True, bidirectional=True).double()
    with torch.no_grad():
        for weight, value in zip(theirs.parameters(), ours._weights(), strict=True):
            weight.copy_(value)
    x, lengths = torch.randn(3, 4, 5, dtype=torch.double), torch.tensor([2, 4, 3])
    outputs, last = ours.read(x, lengths)
    for i, length in enumerate(lengths):
        expected, after = theirs(x[i : i + 1, :length])
        torch.testing.assert_close(torch.cat([*outputs[:, i, :length]], -1), expected[0])
        hidden = after[0] if cell == "lstm" else after
        torch.testing.assert_close(last[0, :, i], hidden[:, 0])


@pytest.mark.parametrize("name", SYMMETRIES)
@pytest.mark.parametrize("cell", CELLS)
def test_network_over_a_group_is_equivariant(name, cell):
    words = symmetry(name)
    network = Seq2Seq(cell, hidden=6, over=name, seed=3).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases that start from zero too
            parameter.add_(torch.randn_like(parameter) / 10)
    commands = encode_commands(COMMANDS)
    before = shifted(encode_actions(["I_JUMP I_JUMP", "I_TURN_LEFT I_RUN I_WALK", "I_LOOK"]))
    assert (before[:, 0] == START).all()
    expected = words.next_token().orbit(network(commands, before))
    for g in range(len(words.group)):
        moved = network(words.source.act(g, commands), words.target.act(g, before))
        torch.testing.assert_close(moved, expected[g], rtol=1e-12, atol=1e-12)


def test_plain_network_is_not():
    words = symmetry("jump-run")
    network = Seq2Seq(hidden=6).double().eval()
    commands, before = encode_commands(COMMANDS), torch.full((3, 1), START)
    moved = network(words.source.act(1, commands), before)
    assert not torch.allclose(moved, words.next_token().act(1, network(commands, before)))


def test_unknown_cell():
    with pytest.raises(ValueError, match=r"rnn, gru, lstm; got 'transformer'"):
        Seq2Seq("transformer")
