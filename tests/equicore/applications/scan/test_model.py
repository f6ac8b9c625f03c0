"""The encoder-decoder is torch's over the trivial group, equivariant over others; it is saved."""

import pytest
import torch

from equicore import trivial
from equicore.applications.scan import Seq2Seq, encode_actions, encode_commands, symmetry
from equicore.applications.scan.model import CELLS, GroupRecurrent
from equicore.applications.scan.vocabulary import END, LONGEST_OUTPUT, shifted
from equicore.lab.store import read_tensors, write_tensors

COMMANDS = ["jump twice", "run around left and walk", "look opposite right after turn left thrice"]
TORCH = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def pair_of_layers(cell, bidirectional):
    """Ours and torch's, with the same parameters."""
    ours = GroupRecurrent(trivial(), cell, 5, bidirectional).double()
    theirs = TORCH[cell](5, 5, batch_first=True, bidirectional=bidirectional).double()
    pairs = zip(ours.linear[::2], ours.linear[1::2], strict=True)
    values = [t for a, b in pairs for t in (a.weight, b.weight, a.bias, b.bias)]
    with torch.no_grad():
        for weight, value in zip(theirs.parameters(), values, strict=True):
            weight.copy_(value)
    return ours, theirs


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layer_is_torch_s(cell):
    ours, theirs = pair_of_layers(cell, bidirectional=False)
    x = torch.randn(3, 4, 5, dtype=torch.double)
    state = tuple(torch.randn(2 if cell == "lstm" else 1, 3, 5, dtype=torch.double))
    before = tuple(part[None] for part in state)
    expected, after = theirs(x, before if cell == "lstm" else before[0])
    outputs, last = ours(x, state)
    torch.testing.assert_close(outputs, expected)
    after = after if cell == "lstm" else (after,)
    torch.testing.assert_close(last, tuple(part[0] for part in after))


@pytest.mark.parametrize("cell", CELLS)
def test_reading_is_torch_s(cell):
    """Of both directions, whatever else is in the batch."""
    ours, theirs = pair_of_layers(cell, bidirectional=True)
    x, lengths = torch.randn(3, 4, 5, dtype=torch.double), torch.tensor([2, 4, 3])
    outputs, last = ours.read(x, lengths)
    for i, length in enumerate(lengths):
        expected, after = theirs(x[i : i + 1, :length])
        torch.testing.assert_close(torch.cat([*outputs[:, i, :length]], -1), expected[0])
        hidden = after[0] if cell == "lstm" else after
        torch.testing.assert_close(last[0, :, i], hidden[:, 0])


@pytest.mark.parametrize(
    ("name", "cell"),
    [("jump-run", "gru"), ("verb-cycle", "lstm"), ("all-verbs", "rnn"), ("left-right", "lstm")],
)
def test_network_over_a_group_is_equivariant(name, cell):
    words = symmetry(name)
    network = Seq2Seq(cell, hidden=4, over=name, seed=3).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases that start from zero too
            parameter.add_(torch.randn_like(parameter) / 10)
    commands = encode_commands(COMMANDS)
    before = shifted(encode_actions(["I_JUMP I_JUMP", "I_TURN_LEFT I_RUN I_WALK", "I_LOOK"]))
    expected = words.next_token().orbit(network(commands, before))
    for g in range(len(words.group)):
        moved = network(words.source.act(g, commands), words.target.act(g, before))
        torch.testing.assert_close(moved, expected[g], rtol=1e-12, atol=1e-12)


def test_plain_network_is_not(trained):
    words, network = symmetry("jump-run"), trained("lstm")
    moved = network.write(words.source.act(1, encode_commands(COMMANDS)))
    assert not torch.allclose(
        moved[:, 0], words.next_token().act(1, network.write(encode_commands(COMMANDS))[:, 0])
    )


@pytest.mark.parametrize("cell", CELLS)
def test_writes_the_most_likely_tokens(trained, cell):
    network = trained(cell)
    commands = encode_commands(COMMANDS)
    scores = network.write(commands)
    torch.testing.assert_close(network(commands, shifted(scores.argmax(-1))), scores)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(scores.shape[:2]).double())


@pytest.mark.parametrize("cell", CELLS)
def test_no_command_depends_on_its_batch(trained, cell):
    """Neither on others, nor on the filling that they make necessary."""
    network = trained(cell)
    together = network.write(encode_commands(COMMANDS))
    for i, command in enumerate(COMMANDS):
        alone = network.write(encode_commands([command]))[0]
        both = min(len(alone), together.shape[1])
        torch.testing.assert_close(together[i, :both], alone[:both], rtol=1e-12, atol=1e-12)


def test_stops_when_all_have_ended_or_at_the_limit():
    network = Seq2Seq(hidden=4).eval()
    commands = encode_commands(COMMANDS)
    bias = network.decoder.classify.parametrizations.bias.original
    with torch.no_grad():
        bias[END] = 100
        assert network.write(commands).shape == (3, 1, END + 1)
        bias[END] = -100
        assert network.write(commands).shape == (3, LONGEST_OUTPUT, END + 1)
        assert network.write(commands, 5).shape == (3, 5, END + 1)


def test_initial_parameters_are_those_of_the_seed():
    before = torch.random.get_rng_state()
    first, second, other = (Seq2Seq(hidden=4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("over", ["none", "verb-cycle"])
def test_saved_and_loaded(tmp_path, over):
    network = Seq2Seq("gru", hidden=5, over=over, seed=4).eval()
    network.save(tmp_path / "network.safetensors", split="add_jump")
    loaded = Seq2Seq.load(tmp_path / "network.safetensors", cell="gru", split="add_jump")
    assert not loaded.training
    commands = encode_commands(COMMANDS)
    before = shifted(encode_actions(["I_RUN", "I_JUMP I_LOOK", "I_WALK"]))
    assert torch.equal(loaded(commands, before), network(commands, before))


def test_file_of_another_network(tmp_path):
    file = tmp_path / "network.safetensors"
    Seq2Seq("gru", hidden=5).save(file)
    with pytest.raises(FileExistsError, match="made with cell 'gru', not 'lstm'"):
        Seq2Seq.load(file, cell="lstm")
    with pytest.raises(FileNotFoundError, match="no file at"):
        Seq2Seq.load(tmp_path / "none.safetensors")
    tensors, header = read_tensors(file)
    header.pop("format")
    write_tensors(file, tensors, header | {"words": [*header["words"][:-1], "before"]})
    with pytest.raises(FileExistsError, match="made with words .*'before'"):
        Seq2Seq.load(file)
    write_tensors(file, {}, {"kind": "agent"})
    with pytest.raises(FileExistsError, match="does not say with which words"):
        Seq2Seq.load(file)


def test_unknown_cell():
    with pytest.raises(ValueError, match=r"rnn, gru, lstm; got 'transformer'"):
        Seq2Seq("transformer")


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"hidden is at least 1 and dropout in \[0, 1\); got"):
        Seq2Seq(**wrong)
