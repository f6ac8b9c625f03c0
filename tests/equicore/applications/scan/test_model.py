"""The encoder-decoder writes, is saved, and says what is wrong with a file."""

import pytest
import torch

from equicore.applications.scan import Seq2Seq
from equicore.applications.scan.vocabulary import (
    END,
    LONGEST_OUTPUT,
    encode_actions,
    encode_commands,
    shifted,
)
from equicore.files import read_tensors, write_tensors

COMMANDS = ["jump twice", "run around left and walk", "look opposite right after turn left thrice"]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_writes_the_most_likely_tokens(trained, cell):
    network = trained[cell]
    commands = encode_commands(COMMANDS)
    scores = network.write(commands)
    tokens = scores.argmax(-1)
    torch.testing.assert_close(network(commands, shifted(tokens)), scores)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(scores.shape[:2]))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_no_command_depends_on_its_batch(trained, cell):
    """Neither on others, nor on the filling that they make necessary."""
    network = trained[cell].double()
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
    first, second, other = (Seq2Seq(seed=seed).state_dict() for seed in (1, 1, 2))
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
    with pytest.raises(ValueError, match="has cell 'gru', expected 'lstm'"):
        Seq2Seq.load(file, cell="lstm")
    with pytest.raises(FileNotFoundError, match="no file at"):
        Seq2Seq.load(tmp_path / "none.safetensors")
    tensors, header = read_tensors(file)
    header.pop("format")
    write_tensors(file, tensors, header | {"words": [*header["words"][:-1], "before"]})
    with pytest.raises(ValueError, match="of another vocabulary: its words are .*'before'"):
        Seq2Seq.load(file)
    write_tensors(file, {}, {"kind": "agent"})
    with pytest.raises(ValueError, match="holds no network of SCAN"):
        Seq2Seq.load(file)
    write_tensors(file, {}, header)
    with pytest.raises(ValueError, match=r"holds other parameters than .*gru"):
        Seq2Seq.load(file)
    write_tensors(file, tensors, header | {"arguments": {"cell": "gru", "layers": 2}})
    with pytest.raises(ValueError, match=r"layers"):
        Seq2Seq.load(file)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"hidden is at least 1 and dropout in \[0, 1\); got"):
        Seq2Seq(**wrong)
