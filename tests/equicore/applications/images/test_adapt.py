"""A classifier fine-tuned towards a symmetry: the task, and the command."""

import dataclasses
import sys

import pandas as pd
import pytest
import torch

from equicore.applications import cli
from equicore.applications.finetuning.experiment import Trial, Tuning, check
from equicore.applications.images import adapt, commands
from equicore.applications.images.adapt import Adaptation, maps_of
from equicore.finetuning import Penalty, deviation

TINY = Tuning(steps=4, views=24, learning_rate=1e-3)


@pytest.fixture
def task(model, digits):
    train, test = digits
    return Adaptation(model, "small", train, test, features=("network.0.4",), tested=100)


def test_all_methods_fit(task, tmp_path):
    from equicore.applications.finetuning.names import METHODS

    check(task, METHODS, (0.1, 1.0), TINY, tmp_path / "finetuning.csv")
    turns, shifts = task.problem.symmetries
    assert (turns.order, turns.name, shifts.order, shifts.name) == (4, "turns", 16, "shifts")


def test_what_is_measured(task, tmp_path):
    table = Trial(task, "equitune", 0.1, 0, TINY, tmp_path).measure()
    end = table[table.steps == 4].set_index("metric").value
    assert end.accuracy == end.accuracy_moved
    assert end.deviation < 1e-5 < 1e-2 < end.deviation_shifts
    assert 0 < end.accuracy_shifted < 1
    plain = Trial(task, "plain", 0.1, 0, TINY, tmp_path).measure()
    end = plain[plain.steps == 4].set_index("metric").value
    assert end.accuracy != end.accuracy_moved and end.deviation > 0.1


def test_penalties_are_on_turns_and_on_shifts(task):
    tuned = Penalty(1.0, ("features",)).of(task.model(0), task.problem)
    assert [len(p.input_rep.group) for p in tuned.penalty.penalties] == [4, 16]
    x = next(iter(task.training.batches(4, 0)))[0]
    assert deviation(task.model(0).eval(), task.problem.symmetries[1], [x]) > 1e-3
    # the map of 4 x 4 cells is shifted by half as many cells as the image of 8 x 8 pixels
    shifts = task.problem.symmetries[1]
    moved = torch.nn.functional.avg_pool2d(shifts.input.act(5, x), 2)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    assert torch.equal(moved, shifts.features["network.0.4"].act(5, pooled))


def test_new_layers_depend_on_the_seed_alone(task):
    first, again, other = (task.model(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(first["network.0.0.weight"], other["network.0.0.weight"])
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_new_layers_are_fitted_to_features(task):
    data = task.training[torch.arange(700)]
    drawn, fitted = task.model(3), task.model(3, data)
    states = drawn.state_dict(), fitted.state_dict()
    changed = {name for name, t in states[0].items() if not torch.equal(t, states[1][name])}
    assert changed and all(name.startswith("network.2.") for name in changed)
    right = [task.evaluate(model.eval())["accuracy"] for model in (drawn, fitted)]
    assert right[0] < 0.4 < 0.8 < right[1]
    again = task.model(3, data).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in states[1].items())


def test_some_images_are_of_all_classes(model, digits, monkeypatch):
    """Folders list images class by class."""
    train, test = digits
    sorted_by_class = test[test.labels.argsort()]
    task = Adaptation(model, "small", train, sorted_by_class, tested=100)
    assert len(task.test) == 100 and len(task.test.labels.unique()) == 10
    monkeypatch.setattr(adapt, "VALIDATED", 100)
    seen = []
    monkeypatch.setattr(adapt, "_right", lambda _, images: seen.append(images.labels) or 0.5)
    task.validate(task.model(0), sorted_by_class)
    assert len(seen[0]) == 100 and len(seen[0].unique()) == 10


def test_fractions_of_a_whole_that_is_larger(model, digits, tmp_path):
    task = Adaptation(model, "small", *digits, features=("network.0.4",), whole=14_000, tested=20)
    table = Trial(task, "plain", 0.02, 0, TINY, tmp_path).measure()
    assert {*table.samples} == {280} and {*table.fraction} == {0.02}
    with pytest.raises(ValueError, match="fraction 0.2 of 14000 .* are 2800, and there are 1400"):
        check(task, ("plain",), (0.2,), TINY, tmp_path / "finetuning.csv")


def test_models_without_maps(model, digits):
    """Transformers: all methods but a penalty on maps."""
    train, test = digits
    assert maps_of(model, ("network.0.4", "network.1"), test) == ("network.0.4",)
    task = Adaptation(model, "small", train, test)
    assert [len(s.features) for s in task.problem.symmetries] == [0, 0]
    assert task.problem.symmetries[1].order == 4  # shifts by 4 pixels
    with pytest.raises(ValueError, match="leave this method out"):
        Penalty(1.0, ("features",)).of(task.model(0), task.problem)


def test_groups_are_told_apart(model, digits):
    names = [Adaptation(model, "small", *digits, group=group).name for group in ("turns", "mirror")]
    assert names == ["digits from small", "digits from small, mirror"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("network.1",), r"network.1 returns the shape \(2, 128\)"),
        (("network.7",), "'network.7' is none of"),
    ],
)
def test_features_that_are_no_maps(model, digits, features, message):
    with pytest.raises(ValueError, match=message):
        Adaptation(model, "small", *digits, features=features)


def test_images_that_do_not_fit(model, digits):
    train, test = digits
    tall = dataclasses.replace(train, pixels=train.pixels[..., :6])
    with pytest.raises(ValueError, match="not square"):
        Adaptation(model, "small", tall, test)
    odd = dataclasses.replace(train, pixels=torch.nn.functional.pad(train.pixels, (0, 1, 0, 1)))
    with pytest.raises(ValueError, match="do not divide images of 9 x 9"):
        Adaptation(model, "small", odd, test, features=("network.0.4",))
    with pytest.raises(ValueError, match="none to test on"):
        Adaptation(model, "small", train, test[slice(0, 0)])


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["equicore", "images", "adapt", *map(str, words)])
    cli.main()


def test_the_command(monkeypatch, capsys, tmp_path, file):
    monkeypatch.setattr(commands, "_source", lambda *_: str(file))
    words = ("--methods", "plain", "penalty_features", "--seeds", "0", "--fractions", "0.1",
             "--steps", "4", "--views", "8", "--weights", "1", "--tested", "50", "--jobs", "1",
             "--output", tmp_path, "--runs", tmp_path / "runs")  # fmt: skip
    run(monkeypatch, *words)
    out = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "finetuning.csv")
    assert {*table.method} == {"plain", "penalty_features"}
    assert {*table.metric} >= {"accuracy", "accuracy_moved", "accuracy_shifted", "deviation"}
    assert "responses_digits-from" in out
    run(monkeypatch, *words)  # finds all of it again
    assert pd.read_csv(tmp_path / "finetuning.csv").equals(table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--group", "eighths"), "approximate"),
        (("--fractions", "0"), "--fractions are parts of the data, above 0 and up to 1; got 0"),
        (("--features", "network.9"), "'network.9' is none of"),
        (("--tested", "0"), "--tested must be at least 1"),
        (("--methods",), "no methods given"),
        (("--seeds", "1", "1"), "1 more than once"),
    ],
)
def test_what_the_command_refuses(monkeypatch, capsys, tmp_path, file, words, message):
    monkeypatch.setattr(commands, "_source", lambda *_: str(file))
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--output", tmp_path, "--runs", tmp_path)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "finetuning.csv").exists()


def test_images_to_train_on_are_no_test_images(model, digits):
    with pytest.raises(ValueError, match="100 of 100 test images are among those to fine-tune on"):
        Adaptation(model, "small", digits[0], digits[0], tested=100)
