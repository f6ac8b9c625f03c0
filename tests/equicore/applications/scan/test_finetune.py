"""Fine-tuning changes the network as it should, and goes on after a kill."""

import copy

import pandas as pd
import pytest
import torch

from equicore.applications.scan import finetune, symmetry
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.finetune import METHODS, Tuning, measure, tunable
from equicore.applications.scan.symmetrize import BranchWeight
from equicore.applications.scan.vocabulary import Batches, shifted, token_loss
from equicore.applications.scan.zero_shot import COLUMNS
from equicore.finetuning import fit


def tuning(method, *steps, learning_rate=1e-3):
    return Tuning("jump-run", method, steps, batch_size=8, learning_rate=learning_rate)


def small_run(folder, **options):
    return Run(folder, "add_jump", "gru", 0, epochs=1, fit_steps=2, **options)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_through_the_group(trained, pairs, method):
    """What is learned of "run" is learned of "jump": its loss falls though no pair holds it."""
    network, words = copy.deepcopy(trained("lstm")), symmetry("jump-run")
    model, _ = tunable(method, network, words, BranchWeight(network, "features").double())
    known = [pair for pair in pairs if "run" in pair[0] and "jump" not in pair[0]]
    unseen = [
        tuple(text.replace("run", "jump").replace("RUN", "JUMP") for text in p) for p in known
    ]

    def loss(some):
        inputs, actions = next(Batches(some, len(some)).epoch(0))
        with torch.no_grad():
            return token_loss(model.eval()(inputs), actions)

    before = loss(unseen)
    torch.testing.assert_close(before, loss(known))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    fit(model, list(Batches(known, 32).first(15, 0)), token_loss, adam, progress=False)
    assert loss(unseen) < 0.95 * before
    torch.testing.assert_close(loss(unseen), loss(known))


def test_equizero_learns_what_the_network_would_from_all_exchanged_pairs(trained, pairs):
    network, words = copy.deepcopy(trained("lstm")), symmetry("verb-cycle")
    model, _ = tunable("equizero", network, words)
    inputs, actions = next(Batches(pairs, 20).epoch(0))

    def gradients(loss):
        return torch.autograd.grad(loss, list(network.parameters()))

    chosen = token_loss(model(inputs), actions)
    losses = []
    for g in range(len(words.group)):
        moved = words.target.act(g, actions)
        scores = network(words.source.act(g, inputs["commands"]), shifted(moved))
        losses.append(token_loss({"log_probabilities": scores}, moved))
    exchanged = torch.stack(losses).mean()
    assert abs(chosen - exchanged) > 1e-3
    torch.testing.assert_close(gradients(chosen), gradients(exchanged), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["mean", "lambda_token"])
def test_method_that_cannot_be(trained, method):
    with pytest.raises(ValueError, match=f"lambda_token with weights; got '{method}'"):
        tunable(method, trained("gru"), symmetry("jump-run"))


@pytest.mark.parametrize("method", METHODS)
def test_measured_after_so_many_steps(small_scan, tmp_path, method):
    run = small_run(tmp_path)
    table = measure(run, tuning(method, 0, 2))
    assert list(table.columns) == [*COLUMNS, "steps"]
    assert table.steps.tolist() == [0, 0, 2, 2]
    assert table.part.tolist() == ["validation", "test"] * 2
    assert not list(run.folder.glob("finetune*.safetensors"))
    with pytest.raises(FileExistsError, match="was made with learning_rate 0.001, not 0.01"):
        measure(run, tuning(method, 0, 2, learning_rate=1e-2))


def test_killed_fine_tuning_ends_with_the_same_numbers(small_scan, tmp_path, monkeypatch):
    runs = [small_run(tmp_path / name) for name in ("one", "two")]
    losses = {0: [], 1: []}

    def recording(which, killed):
        def fit_recorded(*arguments, **options):
            if killed and losses[which]:
                raise KeyboardInterrupt
            losses[which] += fit(*arguments, **options)

        return fit_recorded

    monkeypatch.setattr(finetune, "fit", recording(0, killed=False))
    undisturbed = measure(runs[0], tuning("lambda_token", 3, 6))
    monkeypatch.setattr(finetune, "fit", recording(1, killed=True))
    with pytest.raises(KeyboardInterrupt):
        measure(runs[1], tuning("lambda_token", 3, 6))
    (resume,) = runs[1].folder.glob("finetune*.safetensors")
    with pytest.raises(FileExistsError, match="was made with steps"):
        measure(runs[1], tuning("lambda_token", 3, 7))
    monkeypatch.setattr(finetune, "fit", recording(1, killed=False))
    again = measure(runs[1], tuning("lambda_token", 3, 6))
    assert not resume.exists()
    pd.testing.assert_frame_equal(again, undisturbed)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_equivariant_network_is_measured(small_scan, tmp_path):
    table = finetune.measure_equivariant(small_run(tmp_path, over="jump-run"))
    assert set(table.method) == {"G-GRU"}
    assert set(table.group) == {"jump-run"}
    assert set(table.steps) == {2}  # 80 pairs, 64 at a time
