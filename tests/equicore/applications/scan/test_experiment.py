"""Trainings learn, can be repeated, and go on after a kill; networks are kept."""

import pytest
import torch

from equicore.applications.scan import Recipe, Seq2Seq, experiment, train
from equicore.applications.scan.experiment import RESUME, Run, train_all
from equicore.applications.scan.vocabulary import token_loss
from equicore.applications.scan.zero_shot import accuracies, plain

RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=1e-2, warmup=5)


def parameters(network):
    return torch.nn.utils.parameters_to_vector(network.parameters())


def trained_now(pairs, folder=None, recipe=RECIPE, seed=5):
    network = Seq2Seq("gru", hidden=6, seed=2)
    train(network, pairs, recipe, seed, folder, progress=False)
    assert not network.training
    return network


def test_it_learns(pairs):
    some = [pair for pair in pairs if "jump" not in pair[0]][:20]
    network = Seq2Seq("gru", hidden=16, dropout=0.0)
    recipe = Recipe(epochs=60, learning_rate=2e-2, warmup=10)
    train(network, some, recipe, 0, progress=False)
    assert accuracies({"plain": plain(network)}, some)["plain"] > 0.5


def test_same_seed_same_network(pairs):
    torch.manual_seed(0)
    first = trained_now(pairs[:100])
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(parameters(first), parameters(trained_now(pairs[:100])))
    assert not torch.equal(parameters(first), parameters(trained_now(pairs[:100], seed=6)))
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)  # which it left alone


def test_learning_rate_by_hand():
    rates = [Recipe(epochs=1, learning_rate=1.0, warmup=4).rate(step, 24) for step in range(25)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates[14] == pytest.approx(0.02 + 0.98 / 2)
    assert rates[24] == pytest.approx(0.02)


def test_killed_training_ends_with_the_same_network(pairs, tmp_path, monkeypatch):
    undisturbed = trained_now(pairs[:100])
    done = []

    def killed(*arguments):
        done.append(arguments)
        if len(done) == 6:  # in the second epoch
            raise KeyboardInterrupt
        return token_loss(*arguments)

    monkeypatch.setattr(experiment, "token_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        trained_now(pairs[:100], tmp_path)
    assert (tmp_path / RESUME).is_file()
    again = trained_now(pairs[:100], tmp_path)
    assert len(done) == 6 + 8  # two epochs of four batches
    assert torch.equal(parameters(again), parameters(undisturbed))


def test_state_of_another_training_is_refused(pairs, tmp_path):
    trained_now(pairs[:50], tmp_path)
    with pytest.raises(FileExistsError, match="was made with seed 5, not 6"):
        trained_now(pairs[:50], tmp_path, seed=6)
    with pytest.raises(FileExistsError, match="was made with epochs 3, not 4"):
        trained_now(pairs[:50], tmp_path, Recipe(epochs=4))
    with pytest.raises(FileExistsError, match="was made with pairs"):
        trained_now(pairs[50:100], tmp_path)


def test_loss_that_is_not_finite(pairs):
    with pytest.raises(ValueError, match="not finite; a smaller learning rate"):
        trained_now(pairs[:200], recipe=Recipe(epochs=3, learning_rate=1e30, clip=1e30, warmup=1))


def test_parts_of_a_split():
    run = Run("unused", "add_jump", "gru", 0)
    parts, others = run.parts(), Run("unused", "add_jump", "gru", 1).parts()
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [11736, 2934, 7706]
    assert parts == run.parts()
    assert sorted(parts["train"] + parts["validation"]) == sorted(
        others["train"] + others["validation"]
    )
    assert parts["validation"] != others["validation"]


def test_every_network_is_trained_once(small_scan, tmp_path, monkeypatch):
    runs = [Run(tmp_path, "add_jump", "gru", seed, epochs=1) for seed in (0, 1)]
    train_all(runs[:1], jobs=1)
    first = parameters(runs[0].network())
    train_all(runs, jobs=1)
    assert torch.equal(parameters(runs[0].network()), first)
    assert [sorted(file.name for file in run.folder.iterdir()) for run in runs] == [
        ["network.safetensors"]
    ] * 2
    monkeypatch.setattr(experiment, "train", lambda *_, **__: pytest.fail("trained again"))
    train_all(runs, jobs=1)


def test_networks_that_were_trained_otherwise(small_scan, tmp_path, monkeypatch):
    Run(tmp_path, "add_jump", "gru", 0, epochs=1).train()
    monkeypatch.setattr(experiment, "train", lambda *_, **__: pytest.fail("began"))
    new = Run(tmp_path, "add_jump", "gru", 1)
    other = Run(tmp_path, "add_jump", "gru", 0, epochs=2)
    with pytest.raises(FileExistsError, match=r"made with epochs 1, not 2"):
        train_all([new, other], jobs=1)
    other.folder.rename(other.folder.with_name("lstm_0"))
    with pytest.raises(FileExistsError, match="made with cell 'gru', not 'lstm'"):
        train_all([new, Run(tmp_path, "add_jump", "lstm", 0, epochs=1)], jobs=1)
    (tmp_path / "add_jump" / "none" / "lstm_0" / "network.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        train_all([new, Run(tmp_path, "add_jump", "lstm", 0, epochs=1)], jobs=1)
