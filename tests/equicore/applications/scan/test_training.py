"""Trainings learn, can be repeated, and go on after a kill."""

import pytest
import torch

from equicore.applications.scan import Seq2Seq, training
from equicore.applications.scan.training import RESUME, Batches, Recipe, hold_out, token_loss, train
from equicore.applications.scan.vocabulary import (
    END,
    decode_actions,
    encode_actions,
    encode_commands,
)
from equicore.applications.scan.zero_shot import accuracies, plain

RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=1e-2, warmup=5)


def parameters(network):
    return torch.nn.utils.parameters_to_vector(network.parameters())


def trained_now(pairs, folder=None, recipe=RECIPE, seed=5):
    network = Seq2Seq("gru", hidden=6, seed=2)
    train(network, pairs, recipe, seed, folder, progress=False)
    return network


def test_it_learns(trained, pairs):
    methods = {cell: plain(network) for cell, network in trained.items()}
    assert min(accuracies(methods, pairs[:200]).values()) > 0.1


def test_same_seed_same_network(pairs):
    torch.manual_seed(0)
    first = trained_now(pairs[:100])
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(parameters(first), parameters(trained_now(pairs[:100])))
    assert not torch.equal(parameters(first), parameters(trained_now(pairs[:100], seed=6)))
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)  # which it left alone


def test_killed_training_ends_with_the_same_network(pairs, tmp_path, monkeypatch):
    undisturbed = trained_now(pairs[:100])
    step, done = training._step, []

    def killed(*arguments):
        done.append(arguments)
        if len(done) == 6:  # in the second epoch
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained_now(pairs[:100], tmp_path)
    assert (tmp_path / RESUME).is_file()
    again = trained_now(pairs[:100], tmp_path)
    assert len(done) == 6 + 8  # two epochs of four batches
    assert torch.equal(parameters(again), parameters(undisturbed))


def test_state_of_another_training_is_refused(pairs, tmp_path):
    trained_now(pairs[:50], tmp_path)
    with pytest.raises(ValueError, match="of another training: its seed is 5, not 6"):
        trained_now(pairs[:50], tmp_path, seed=6)
    with pytest.raises(ValueError, match="its recipe is"):
        trained_now(pairs[:50], tmp_path, Recipe(epochs=4))
    with pytest.raises(ValueError, match="its pairs is"):
        trained_now(pairs[50:100], tmp_path)


def test_loss_that_is_not_finite(pairs):
    with pytest.raises(ValueError, match="not finite; a smaller learning rate"):
        trained_now(pairs[:200], recipe=Recipe(epochs=3, learning_rate=1e30, clip=1e30, warmup=1))


def test_held_out_pairs():
    pairs = [(str(i), "") for i in range(10)]
    rest, held_out = hold_out(pairs, 0.2, 0)
    assert len(held_out) == 2
    assert sorted(rest + held_out) == sorted(pairs)
    assert hold_out(pairs, 0.2, 0) == (rest, held_out) != hold_out(pairs, 0.2, 1)


def test_batches_hold_every_pair_once_and_outputs_of_similar_length(pairs):
    batches = Batches(pairs, 32)
    epoch = list(batches.epoch(3))
    assert len(epoch) == len(batches) == 25
    written = [text for _, actions in epoch for text in decode_actions(actions)]
    assert sorted(written) == sorted(actions for _, actions in pairs)
    for commands, actions in epoch:
        lengths = (actions != END).sum(1) + 1
        assert actions.shape[1] == lengths.max() <= lengths.min() + 2
        assert torch.equal(commands, encode_commands([" ".join(c) for c in _words(commands)]))


def _words(commands):
    from equicore.applications.scan import WORDS

    return [[WORDS[i] for i in row if i < len(WORDS)] for row in commands.tolist()]


def test_first_batches_go_on_into_further_epochs(pairs):
    batches = Batches(pairs[:40], 32)
    some = [actions for _, actions in batches.first(5, 7)]
    more = [actions for _, actions in batches.first(9, 7)]
    assert len(some) == 5
    assert all(torch.equal(a, b) for a, b in zip(some, more, strict=False))
    assert not torch.equal(some[0], some[2])  # another order


def test_loss_is_of_real_tokens_by_hand():
    actions = encode_actions(["I_WALK", "I_WALK I_LOOK"])
    scores = torch.zeros(2, 3, END + 1)
    scores[0, 2] = torch.nan  # after the end
    scores[0, 2, END] = 5.0
    scores[:, 0, 0], scores[0, 1, END], scores[1, 1, 1], scores[1, 2, END] = -1, -2, -3, -4
    expected = (1 + 1 + 2 + 3 + 4) / 5
    scores = scores.nan_to_num()
    assert token_loss(scores, actions) == pytest.approx(expected)
    assert token_loss(scores[:, :1], actions) == pytest.approx(1)  # stopped early
