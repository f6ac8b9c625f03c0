"""Methods on a task: what is measured, goes on after a kill, and is refused."""

import copy
import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from equicore.applications.finetuning import experiment, report
from equicore.applications.finetuning.experiment import COLUMNS, Trial, choose, fine_tuned
from equicore.applications.finetuning.names import METHODS, WEIGHTED
from equicore.applications.finetuning.responses import write_responses
from equicore.finetuning import deviation

EXACT = ("equitune", "lambda_equitune", "canonicalization")


def run(task, tuning, folder, methods=("plain", "equitune"), fractions=(0.5,), seeds=(0,)):
    file = folder / "finetuning.csv"
    experiment.run(task, methods, fractions, seeds, tuning, file, folder / "runs")
    return pd.read_csv(file)


def test_all_methods(task, tuning, tmp_path):
    table = run(task, tuning, tmp_path, METHODS, (0.2,), (0, 1))
    assert list(table.columns) == COLUMNS
    assert len(table) == 8 * 2 * (5 + 3)
    kinds = table.groupby(["method", "fraction", "seed"])
    assert all(sorted(some.steps.unique()) == [0, 1, 2, 5, 10] for _, some in kinds)
    assert {*table[table.fraction == 0.2].samples} == {20}
    ends = table[table.metric != "deviation"]
    assert {*ends.steps} == {10} and {*ends.metric} == {*task.metrics}
    assert {*ends[ends.metric == "loss"].better} == {"lower"}
    assert {*ends[ends.metric == "accuracy"].better} == {"higher"}
    off = table[table.metric == "deviation"]
    assert (off.value == off.deviation).all()
    exact = off.method.isin(EXACT)
    assert off[exact].value.max() < 1e-5 and off[~exact].value.min() > 1e-3
    # all begin with the same model
    begin = off[(off.steps == 0) & ~exact].pivot_table("value", "method", "seed")
    assert (begin.nunique() == 1).all()
    assert {*table[table.method.isin(WEIGHTED)].weight} <= {0.1, 1.0}
    assert table[~table.method.isin(WEIGHTED)].weight.isna().all()
    assert {*table[table.method == "equitune"].views} == {8}
    assert {*table[table.method == "canonicalization"].views} == {1}
    moved = ends[ends.method.isin(EXACT)].pivot_table(
        "value", ["method", "fraction", "seed"], "metric"
    )
    assert (moved.accuracy == moved.accuracy_moved).all()
    for write in (report.write_table, report.write_figures):
        for path in write(tmp_path):
            assert path.stat().st_size > 1000
    page = (tmp_path / "finetuning.md").read_text()
    assert "bars, 20 % of the data (20 samples)" in page and "Difference to plain" in page


def test_what_was_measured_is_not_measured_again(task, tuning, tmp_path, monkeypatch):
    run(task, tuning, tmp_path)
    monkeypatch.setattr(experiment, "_train", None)
    again = run(task, tuning, tmp_path)
    (tmp_path / "finetuning.csv").unlink()
    # from what runs keep, to the bytes of the table
    pd.testing.assert_frame_equal(run(task, tuning, tmp_path), again)


@pytest.mark.parametrize("method", ["penalty_both", "lambda_equitune", "augmentation"])
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_fine_tuning_goes_on(task, tuning, tmp_path, monkeypatch, method, killed_after):
    whole = Trial(task, method, 0.5, 0, tuning, tmp_path / "whole", 0.3).measure()
    train, count = experiment._train, itertools.count()
    stages = []

    def killed(*args):
        if next(count) == killed_after:
            raise KeyboardInterrupt
        stages.append(args[5])
        train(*args)

    monkeypatch.setattr(experiment, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        Trial(task, method, 0.5, 0, tuning, tmp_path / "killed", 0.3).measure()
    part = Trial(task, method, 0.5, 0, tuning, tmp_path / "killed", 0.3).measure()
    pd.testing.assert_frame_equal(part, whole)
    assert len(stages) == len({*stages}) == 5  # none is done twice


def test_seeds_are_paired(task, tuning, tmp_path, monkeypatch):
    """Methods of one seed see the same samples in the same order, and start from one model."""
    seen, begun = {}, {}
    train = experiment._train

    def watched(tuned, data, method, *args):
        name = type(method).__name__
        begun.setdefault(name, copy.deepcopy([p for p in tuned.model.parameters()]))
        fit = tuned.fit

        def noted(batches, *more, **options):
            batches = list(batches)
            seen.setdefault(name, []).extend(labels for _, labels in batches)
            return fit(batches, *more, **options)

        tuned.fit = noted
        train(tuned, data, method, *args)
        tuned.fit = fit

    monkeypatch.setattr(experiment, "_train", watched)
    run(task, tuning, tmp_path, ("plain", "equitune", "augmentation"))
    drawn = [torch.cat(labels) for labels in seen.values()]
    shortest = min(map(len, drawn))
    assert all(torch.equal(drawn[0][:shortest], other[:shortest]) for other in drawn)
    first, *others = begun.values()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    rows = [experiment._rows(task, fraction, 3) for fraction in (0.1, 0.5, 1.0)]
    assert {*rows[0].tolist()} < {*rows[1].tolist()} < {*rows[2].tolist()}


def test_the_weight_is_the_best_one_on_held_out_data(task, tuning, tmp_path):
    values = {0.1: (0.5, 0.7), 1.0: (0.9, 0.4), 10.0: (0.6, 0.65)}
    called = []

    def validate(tuned, data):
        weight = tuned.penalty.weight
        called.append((weight, {row.numpy().tobytes() for row in data.x}))
        return values[weight][sum(w == weight for w, _ in called) - 1]

    task.validate = validate
    tuning = dataclasses.replace(tuning, weights=tuple(values))
    assert choose(task, "penalty", 0.5, tuning, tmp_path) == 1.0  # .65; the others .6 and .625
    assert len(called) == 6
    train = {row.numpy().tobytes() for row in task.training[experiment._rows(task, 0.5, 0)].x}
    assert called[0][1] | called[1][1] == train and not called[0][1] & called[1][1]
    assert choose(task, "penalty", 0.5, tuning, tmp_path) == 1.0
    assert len(called) == 6  # it is kept
    called.clear()
    task.metrics = {**task.metrics, "accuracy_moved": False}  # as if lower was better
    assert choose(task, "penalty", 0.5, tuning, tmp_path) == 0.1


def test_a_weight_that_diverges_is_not_taken(task, tuning, tmp_path):
    tuning = dataclasses.replace(tuning, weights=(0.1, 1e39))
    assert choose(task, "penalty", 0.5, tuning, tmp_path) == 0.1
    with pytest.raises(ValueError, match="no weight has a finite"):
        choose(task, "penalty", 0.5, dataclasses.replace(tuning, weights=(1e39, 2e39)), tmp_path)


def test_of_one_weight_nothing_is_chosen(task, tuning, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_train", None)
    one = dataclasses.replace(tuning, weights=(0.3,))
    assert choose(task, "penalty", 0.5, one, tmp_path) == 0.3


def test_the_fine_tuned_model_is_that_of_the_table(task, tuning, tmp_path):
    table = run(task, tuning, tmp_path, ("penalty", "lambda_equitune"))
    for method in ("penalty", "lambda_equitune"):
        tuned = fine_tuned(task, method, 0.5, 0, tuning, tmp_path / "runs")
        own = table[(table.method == method) & (table.steps == 10)].set_index("metric").value
        with torch.no_grad():
            found = task.evaluate(tuned)
        assert found == pytest.approx({name: own[name] for name in found}, abs=1e-5)
        off = deviation(tuned, task.problem.symmetries[0], task.probes())
        assert off == pytest.approx(own.deviation, abs=1e-5)


@pytest.mark.parametrize("fraction", [0.07, 0.5])
def test_equal_budgets(task, tuning, tmp_path, monkeypatch, fraction):
    """All methods run the model equally often in all steps, also with fewer samples than views."""
    counts = []
    make = task.model

    def counted(seed, data=None):
        model = make(seed, data)
        model[0].register_forward_hook(
            lambda layer, x, _: counts.append(len(x[0]) if layer.training else 0)
        )
        return model

    task.model = counted
    found = {}
    for name in METHODS:
        counts.clear()
        Trial(task, name, fraction, 0, tuning, tmp_path, 1.0).measure()
        found[name] = sum(counts)
    assert set(found.values()) == {16 * 10}, found


def test_batches_of_one_size(task):
    """Seven samples in batches of three: what is left of a pass opens the next."""
    data = task.training[torch.arange(7)]
    drawn = list(itertools.islice(experiment._whole(data, 3, seed=2), 7))
    assert {len(labels) for _, labels in drawn} == {3}
    x = torch.cat([images for images, _ in drawn])
    for part in x.split(7):
        assert {one.numpy().tobytes() for one in part} == {i.numpy().tobytes() for i in data.x}
    whole = list(itertools.islice(experiment._whole(data, 20, seed=2), 2))
    assert [len(labels) for _, labels in whole] == [20, 20]
    data.batches = lambda size, seed: iter(())
    with pytest.raises(ValueError, match="7 samples gave no batch"):
        next(experiment._whole(data, 3, seed=2))


@pytest.mark.parametrize("fraction", [1 / 3, 0.1234567])
def test_fractions_with_many_digits(task, tuning, tmp_path, fraction):
    first = run(task, tuning, tmp_path, fractions=(fraction,))
    assert run(task, tuning, tmp_path, fractions=(fraction,)).equals(first)
    assert not first.duplicated(experiment.KEYS).any()
    twice = pd.concat([first, first])
    twice.to_csv(tmp_path / "finetuning.csv", index=False)
    with pytest.raises(ValueError, match="duplicate"):
        report.write_table(tmp_path)


def test_settings_of_a_task_do_not_hide_those_of_the_tuning(task, tuning):
    made_with = experiment.made_with
    task.settings = {"steps": 5, "version": 1, "method": "plain"}
    first = made_with(task, "plain", tuning)
    assert first != made_with(task, "plain", dataclasses.replace(tuning, steps=11))
    assert first == made_with(task, "plain", dataclasses.replace(tuning, weights=(3.0,)))
    assert made_with(task, "penalty", tuning) != made_with(
        task, "penalty", dataclasses.replace(tuning, weights=(3.0,))
    )
    task.metrics = {**task.metrics, "loss": True}
    assert first != made_with(task, "plain", tuning)


def test_the_caller_s_random_state_is_left_alone(task, tuning, tmp_path):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    run(task, tuning, tmp_path, ("penalty", "lambda_equitune"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_responses_are_drawn_of_the_first_seed(task, tuning, tmp_path):
    methods = ("plain", "penalty", "equitune")
    run(task, tuning, tmp_path, methods, seeds=(5,))
    kept = {path.name for path in (tmp_path / "runs").iterdir()}
    places = tmp_path / "finetuning.csv", tmp_path / "runs"
    trials = experiment.run(task, methods, (0.5,), (5,), tuning, *places)
    drawn = write_responses(trials, tmp_path)
    assert drawn and all(path.is_file() for path in drawn)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == kept  # nothing is trained
    assert write_responses(trials[2:], tmp_path / "none") == []
    for trial in trials:
        trial.kept.unlink()
    assert write_responses(trials, tmp_path / "none") == []
    assert not any(trial.kept.is_file() for trial in trials)  # they were not trained again


def test_a_constant_in_all_logits_is_no_equivariance(task, tuning, tmp_path):
    """Deviations are of what the task compares."""
    task.compared = lambda logits: logits - logits.mean(-1, keepdim=True)
    plain = Trial(task, "plain", 0.5, 0, tuning, tmp_path / "plain", None).measure().deviation
    make = task.model

    def moved(seed, data=None):
        model = make(seed, data)
        model[3].bias.data += 1000
        return model

    task.model = moved
    far = Trial(task, "plain", 0.5, 0, tuning, tmp_path / "far", None).measure().deviation
    assert plain.to_numpy() == pytest.approx(far.to_numpy(), rel=1e-2)


def test_rows_of_other_settings_are_refused(task, tuning, tmp_path):
    run(task, tuning, tmp_path)
    with pytest.raises(ValueError, match="rows of bars and plain that were made with another"):
        run(task, dataclasses.replace(tuning, steps=11), tmp_path)
    task.settings = {"images": "others"}
    with pytest.raises(ValueError, match="other data"):
        run(task, tuning, tmp_path)
    task.name = "other bars"
    assert {*run(task, tuning, tmp_path).task} == {"bars", "other bars"}


def test_methods_of_one_table_are_made_alike(task, tuning, tmp_path):
    """Rows of another method say nothing beside ours if the model, data or budget were others."""
    run(task, tuning, tmp_path, ("plain", "penalty"))
    other = dataclasses.replace(tuning, learning_rate=0.01)
    with pytest.raises(ValueError, match="rows of bars and p.* methods are compared where all of"):
        run(task, other, tmp_path, ("equitune",))
    # the search for a weight is a penalty's own
    run(task, dataclasses.replace(tuning, weights=(0.5,)), tmp_path, ("equitune",))
    with pytest.raises(ValueError, match="rows of bars and penalty"):
        run(task, dataclasses.replace(tuning, weights=(0.5,)), tmp_path, ("penalty",))


def test_weights_with_many_digits_are_known_again(task, tuning, tmp_path):
    many = dataclasses.replace(tuning, weights=(0.1, 1.234567))
    run(task, many, tmp_path, ("penalty",))
    table = run(task, tuning, tmp_path, ("penalty_features",))  # whose search is another
    assert {*table.tried} == {"0.1 1.234567", "0.1 1"}


def test_what_diverges_is_named(task, tuning, tmp_path):
    wild = dataclasses.replace(tuning, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"bars, plain, fraction 0.5, seed 0, after step \d+: the"):
        run(task, wild, tmp_path, ("plain",))


@pytest.mark.parametrize("fraction", [0.0, -0.5, 0.001, 1.01])
def test_parts_that_cannot_be(task, tuning, tmp_path, fraction):
    with pytest.raises(ValueError, match="fraction .* of 100 samples of bars"):
        run(task, tuning, tmp_path, fractions=(fraction,))
    assert not (tmp_path / "finetuning.csv").exists()


def test_a_search_without_validation_data(task, tuning, tmp_path):
    with pytest.raises(ValueError, match="2 folds of 1 samples"):
        run(task, tuning, tmp_path, ("penalty",), (0.01,))


def test_a_budget_that_is_too_small(task, tuning, tmp_path):
    small = dataclasses.replace(tuning, views=7)
    with pytest.raises(ValueError, match=r"equitune runs the model 8 times .* has 7 views"):
        run(task, small, tmp_path)


def test_a_submodule_that_is_not_there_is_refused_before_training(task, tuning, tmp_path):
    turns = task.problem.symmetries[0]
    for name, message in (("5", "'5' is none of"), ("3", r"'3' returns the shape \(2, 2\)")):
        symmetry = dataclasses.replace(turns, features={name: turns.input})
        task.problem = dataclasses.replace(task.problem, symmetries=(symmetry,))
        with pytest.raises(ValueError, match=message):
            run(task, tuning, tmp_path, ("plain", "penalty_features"))
    assert not (tmp_path / "runs").exists()


def test_a_task_that_measures_something_else(task, tuning, tmp_path):
    task.metrics = {"accuracy_moved": True}
    with pytest.raises(ValueError, match="bars measures"):
        run(task, tuning, tmp_path)


@pytest.mark.parametrize(
    "numbers",
    [{"weights": (1e-8,)}, {"steps": 0}, {"views": 0}, {"learning_rate": 0.0},
     {"learning_rate": float("nan")},
     {"weights": ()}, {"weights": (0.0, 1.0)}, {"weights": (1.0, 1.0)}, {"weights": (1.0, np.nan)},
     {"weights": (1.0, np.inf)}, {"folds": 1}, {"chosen_in": 0.0}, {"chosen_in": 9.0}],
)  # fmt: skip
def test_numbers_that_cannot_be(tuning, numbers):
    with pytest.raises(ValueError):
        dataclasses.replace(tuning, **numbers)


def test_a_table_of_other_methods(task, tuning, tmp_path):
    table = run(task, tuning, tmp_path)
    table.assign(method="magic").to_csv(tmp_path / "finetuning.csv", index=False)
    with pytest.raises(ValueError, match="'magic'"):
        report.write_table(tmp_path)
    with pytest.raises(FileNotFoundError, match="equicore images adapt"):
        report.write_figures(tmp_path / "nowhere")


def test_the_table_says_what_is_worse():
    """Higher and lower are better, as the columns say."""
    rows = []
    for method, shift in (("plain", 0.0), ("augmentation", 0.1)):
        for seed in range(3):
            for metric, better in (
                ("rmse", "lower"),
                ("accuracy", "higher"),
                ("deviation", "lower"),
            ):
                value = 0.5 + 0.01 * seed + shift + 0.001 * (seed == 1) * (method == "plain")
                rows.append(
                    dict(task="a", method=method, fraction=1.0, samples=9, seed=seed, steps=5,
                         metric=metric, value=value, better=better, deviation=0.1, weight=None,
                         tried="", folds=None, views=1, digest="x")
                )  # fmt: skip
    table = pd.DataFrame(rows)
    line = report._differences(table, "plain").splitlines()[-1]
    assert "(worse) | **+0.100" in line
