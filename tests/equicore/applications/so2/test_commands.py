"""The commands of `equicore so2`, from their options to their files."""

import re

import pandas as pd
import pytest

from equicore.applications.so2 import Run, commands, experiment
from equicore.applications.so2.experiment import KEYS, MEASURED
from equicore.applications.so2.names import MODELS
from equicore.lab import command

COLUMNS = [*KEYS, *MEASURED]


def call(*words):
    """The exit status of ``equicore so2 ...``."""
    mains = dict.fromkeys((commands.Evaluate, commands.Table, commands.Plot), commands.run)
    try:
        command.run(mains, args=[str(word) for word in words], prog="equicore so2")
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("so2")


@pytest.fixture(scope="module")
def quick(folder):
    """Options for seconds."""
    return ["--epochs", 1, "--train-sizes", 20, "--samples", 2, "--seeds", 0, "--jobs", 1,
            "--runs", folder / "runs", "--output", folder / "out"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small():
    """Tests on fewer inputs."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(experiment, "TEST_SIZE", 200)
        yield


@pytest.fixture(scope="module")
def evaluated(folder, quick):
    assert call("evaluate", *quick) == 0
    assert call("evaluate", *quick, "--tasks", "so2", "--train-sizes", 40) == 0
    return folder / "out"


def test_help_teaches(capsys):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"• {name}" in shown for name in ("evaluate", "table", "plot"))
    assert call("evaluate", "--help") == 0
    assert "Example: equicore so2 evaluate" in capsys.readouterr().out


def test_evaluate(evaluated):
    table = pd.read_csv(evaluated / "so2.csv")
    assert list(table.columns) == COLUMNS
    assert len(table) == 6 * (4 + 1) and not table.duplicated(KEYS).any()
    assert set(table.model) == set(MODELS) and set(table.task) == {"so2", "o2", "inertia", "points"}
    groups = dict(zip(table.task, table.group, strict=True))
    assert groups == {"so2": "SO(2)", "o2": "O(2)", "inertia": "SO(3)", "points": "SO(3)"}
    assert (table.seconds > 0).all() and table.test_loss.between(0.5, 100).all()
    assert table.accuracy.notna().eq(table.task == "points").all()
    assert table.degenerate.notna().eq(table.model == "frames").all()
    frames = table[table.model == "frames"].groupby("task").forwards.max().to_dict()
    assert frames == {"so2": 2, "o2": 4, "inertia": 4, "points": 4}
    sampled = table[table.model.isin(["canonical_lambda", "canonical_uniform"])]
    assert (sampled.forwards == sampled.samples).all() and set(sampled.samples) == {2}
    plain = table[(table.model == "mlp") & (table.task == "so2")]
    assert set(plain.parameters) == {162_001}


def test_what_was_measured_is_found_again(evaluated, quick, monkeypatch, capsys):
    before = (evaluated / "so2.csv").read_text().splitlines()
    monkeypatch.setattr(experiment, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert call("evaluate", *quick, "--tasks", "so2") == 0
    assert sorted((evaluated / "so2.csv").read_text().splitlines()) == sorted(before)  # rows move
    assert str(evaluated / "so2.csv") in capsys.readouterr().out


def test_a_killed_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "ROUND", 1)
    options = ("so2", "augmented", 1, 0, 60, 20, 3)
    whole, killed = (Run(tmp_path / name, *options) for name in ("whole", "killed"))
    found = whole.measure()
    fit, steps = experiment.fit, []

    def counted(*args, **kwargs):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(fit(*args, **kwargs))
        return steps[-1]

    with monkeypatch.context() as context:
        context.setattr(experiment, "fit", counted)
        with pytest.raises(KeyboardInterrupt):
            killed.measure()
    assert len(list((tmp_path / "killed").iterdir())) == 1  # the state after two epochs
    again = killed.measure()
    assert again.test_loss.item() == found.test_loss.item()
    assert [file.suffix for file in (tmp_path / "killed").iterdir()] == [".csv"]


def test_models_learn(tmp_path):
    losses = {
        model: Run(tmp_path, "so2", model, 1, 0, 100, 20, 20).measure().test_loss.item()
        for model in ("canonical", "mlp")
    }
    early = Run(tmp_path, "so2", "canonical", 1, 0, 100, 20, 1).measure().test_loss.item()
    assert losses["canonical"] < losses["mlp"] < early


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "so4"], "so4"),
        (["--models"], "models"),
        (["--models", "mlp", "mlp"], "--models has mlp more than once"),
        (["--samples", "1"], "--samples are 2 or more; got 1"),
        (["--train-sizes", "0"], "--train-sizes are 1 or more; got 0"),
        (["--seeds", "-1"], "--seeds are whole numbers from 0"),
        (["--epochs", "0"], "--epochs must be at least 1; got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["--jobs", "0"], "--jobs must be at least 1; got 0"),
    ],
)
def test_refused_before_any_work(options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(experiment.Run, "measure", lambda _: pytest.fail("began"))
    assert call("evaluate", *options, "--output", tmp_path, "--runs", tmp_path) == 2
    shown = capsys.readouterr()
    assert message in shown.out + shown.err


def test_another_table_is_not_written_over(tmp_path, capsys):
    (tmp_path / "so2.csv").write_text("step,loss\n1,2\n")
    assert call("evaluate", "--output", tmp_path, "--runs", tmp_path) == 2
    assert "is another table, without batch_size" in capsys.readouterr().err


def test_table(evaluated):
    assert call("table", evaluated) == 0
    page = (evaluated / "so2.md").read_text()
    assert page.count("\n## ") == 5 and page.count("\n## SO(2)") == 2
    for number in (".91 (.82)", ".41 (.34)", ".26 (.22)"):
        assert page.count(number) == 2  # beside SO(2) alone
    assert page.count("accuracy, %") == 1


def rows(**losses):
    """A table with losses of seeds, by model."""
    table = pd.DataFrame([
        {"task": "so2", "model": model, "group": "SO(2)", "seed": seed, "test_loss": loss,
         "samples": 2 if model in ("canonical_lambda", "canonical_uniform") else 1}
        for model, values in losses.items()
        for seed, loss in enumerate(values)
    ])  # fmt: skip
    known = {"train_size": 10, "batch_size": 5, "epochs": 2, "parameters": 1, "forwards": 2,
             "seconds": 0.5, "degenerate": 0.25}  # fmt: skip
    return table.assign(median_loss=table.test_loss / 10, accuracy=float("nan"), **known)[COLUMNS]


def test_the_parts_of_the_gain(tmp_path):
    table = rows(mlp=[9, 10, 11], canonical=[3, 4, 5], canonical_uniform=[2.5, 3.5, 4.5],
                 canonical_lambda=[1.0, 2.0, 3.0], frames=[1.0, 2.0, 3.0])  # fmt: skip
    table.to_csv(tmp_path / "so2.csv", index=False)
    assert call("table", tmp_path) == 0
    page = (tmp_path / "so2.md").read_text()
    assert "10 training inputs, 4 steps of 5" in page and "Seeds: 0, 1, 2." in page
    assert (
        "| 2 | mean | +2 [+2, +2]; +2 | +0.5 [+0.5, +0.5]; +0.5 | +1.5 [+1.5, +1.5]; +1.5 |" in page
    )
    assert page.count("| 75 % |") == 2  # of the mean and of the median
    assert "canonical is better than plain by 6 [6, 6]." in page
    assert "canonical-λ of 2 is better than canonical by 2 [2, 2]." in page
    assert "canonical-λ of 2 does exactly as well as frame averaging." in page
    assert "for 25.00 % of the test inputs" in page
    assert re.search(r"\| plain \|.*\| 500\.0 \| 10 \[7\.52, 12\.5\] \| 10 \| 1 \[", page)


def test_no_part_of_a_gain_that_there_is_not(tmp_path):
    table = rows(canonical=[3, 4], canonical_uniform=[4, 4], canonical_lambda=[3.0, 5.0])
    table.to_csv(tmp_path / "so2.csv", index=False)
    assert call("table", tmp_path) == 0 and call("plot", tmp_path) == 0
    page = (tmp_path / "so2.md").read_text()
    assert "does not clearly differ from canonical" in page
    assert re.search(r"\| 2 \| mean \|.*\|  \|\n", page)
    assert not (tmp_path / "sizes.png").exists()


def test_plot(tmp_path):
    losses = {"mlp": [9, 10], "canonical": [3, 4], "canonical_uniform": [2, 3.5],
              "canonical_lambda": [1, 2.0], "frames": [1, 3.0]}  # fmt: skip
    tables = [rows(**losses), rows(**losses).assign(train_size=20)]
    pd.concat(tables).to_csv(tmp_path / "so2.csv", index=False)
    assert call("plot", tmp_path) == 0
    names = {f"{name}{suffix}" for name in ("so2", "share", "sizes") for suffix in (".png", ".svg")}
    pictures = {file.name for file in tmp_path.iterdir()} - {"so2.csv"}
    assert pictures == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "emlp"}, "has the model emlp; there are mlp, augmented"),
        ({"task": "so4"}, "has the task so4; there are so2"),
        ({"test_loss": "much"}, "has a test_loss that is no number"),
        ({"seed": 0}, "has more than one row for"),
    ],
)
def test_tables_that_are_not_ours(change, message, tmp_path, capsys):
    rows(mlp=[1, 2]).assign(**change).to_csv(tmp_path / "so2.csv", index=False)
    for word in ("table", "plot"):
        assert call(word, tmp_path) == 2
        assert message in capsys.readouterr().err


def test_no_table(tmp_path, capsys):
    assert call("table", tmp_path) == 2
    assert "make it with equicore so2 evaluate" in capsys.readouterr().err
