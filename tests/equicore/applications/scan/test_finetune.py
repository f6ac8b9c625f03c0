"""Fine-tuning changes the network as it should, and goes on after a kill."""

import copy

import pandas as pd
import pytest
import torch

from equicore.applications.scan import finetune, symmetry
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.finetune import METHODS, Tuning, measure, tunable
from equicore.applications.scan.training import Batches, token_loss, written_loss
from equicore.applications.scan.vocabulary import shifted
from equicore.applications.scan.weights import NextToken
from equicore.applications.scan.zero_shot import COLUMNS
from equicore.training import fit


def tuning(method, *steps, learning_rate=1e-3):
    return Tuning("jump-run", method, steps, batch_size=8, learning_rate=learning_rate)


@pytest.fixture
def quick(small_scan, monkeypatch):
    fit_per_token = finetune.fit_per_token
    monkeypatch.setattr(
        finetune, "fit_per_token", lambda *a, **k: fit_per_token(*a, **k, steps=2, batch_size=8)
    )


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_through_the_group(trained, pairs, method):
    """What is learned of "run" is learned of "jump": its loss falls though no pair holds it."""
    network, words = copy.deepcopy(trained["lstm"]).float(), symmetry("jump-run")
    model, _ = tunable(method, network, words, NextToken(network))
    known = [pair for pair in pairs if "run" in pair[0] and "jump" not in pair[0]]
    unseen = [
        tuple(text.replace("run", "jump").replace("RUN", "JUMP") for text in p) for p in known
    ]

    def loss(some):
        commands, actions = next(Batches(some, len(some)).epoch(0))
        with torch.no_grad():
            return written_loss(model({"commands": commands, "before": shifted(actions)}), actions)

    before = loss(unseen)
    torch.testing.assert_close(before, loss(known))
    batches = [
        ({"commands": commands, "before": shifted(actions)}, actions)
        for commands, actions in Batches(known, 32).first(30, 0)
    ]
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    fit(model, batches, written_loss, adam, steps=30, progress=False)
    assert loss(unseen) < 0.95 * before
    torch.testing.assert_close(loss(unseen), loss(known))


def test_equizero_learns_what_the_network_would_from_all_exchanged_pairs(trained, pairs):
    network, words = copy.deepcopy(trained["lstm"]).double(), symmetry("verb-cycle")
    model, _ = tunable("equizero", network, words)
    commands, actions = next(Batches(pairs, 20).epoch(0))

    def gradients(loss):
        return torch.autograd.grad(loss, list(network.parameters()))

    chosen = written_loss(model({"commands": commands, "before": shifted(actions)}), actions)
    losses = []
    for g in range(len(words.group)):
        moved = words.target.act(g, actions)
        losses.append(token_loss(network(words.source.act(g, commands), shifted(moved)), moved))
    exchanged = torch.stack(losses).mean()
    assert abs(chosen - exchanged) > 1e-3
    torch.testing.assert_close(gradients(chosen), gradients(exchanged), rtol=1e-9, atol=1e-12)


def test_unknown_method(trained):
    with pytest.raises(ValueError, match="lambda_token with weights; got 'mean'"):
        tunable("mean", trained["gru"], symmetry("jump-run"))
    with pytest.raises(ValueError, match="with weights; got 'lambda_token'"):
        tunable("lambda_token", trained["gru"], symmetry("jump-run"))


@pytest.mark.parametrize("method", METHODS)
def test_measured_after_so_many_steps(quick, tmp_path, method):
    run = Run(tmp_path, "add_jump", "gru", 0, epochs=1)
    table = measure(run, tuning(method, 0, 2, 5))
    assert list(table.columns) == [*COLUMNS, "steps"]
    assert sorted(set(table.steps)) == [0, 2, 5]
    assert len(table) == 6
    assert not list(run.folder.glob("finetune*.safetensors"))
    with pytest.raises(ValueError, match=r"was measured with .* delete it"):
        measure(run, tuning(method, 0, 2, 5, learning_rate=1e-2))


def test_killed_fine_tuning_ends_with_the_same_numbers(quick, tmp_path, monkeypatch):
    runs = [Run(tmp_path / name, "add_jump", "gru", 0, epochs=1) for name in ("one", "two")]
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
    with pytest.raises(ValueError, match="its method is"):
        resume = next(runs[1].folder.glob("finetune*.safetensors"))
        resume.rename(resume.with_name("finetune_jump-run_equitune.safetensors"))
        measure(runs[1], tuning("equitune", 3, 6))
    resume.with_name("finetune_jump-run_equitune.safetensors").rename(resume)
    monkeypatch.setattr(finetune, "fit", recording(1, killed=False))
    again = measure(runs[1], tuning("lambda_token", 3, 6))
    pd.testing.assert_frame_equal(again, undisturbed)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_equivariant_network_is_measured(small_scan, tmp_path):
    run = Run(tmp_path, "add_jump", "gru", 0, over="jump-run", epochs=1)
    table = finetune.measure_equivariant(run)
    assert set(table.method) == {"G-GRU"}
    assert set(table.group) == {"jump-run"}
    assert set(table.steps) == {3}  # 160 pairs, 64 at a time
