"""The command `equicore scan`, from its options to its files."""

import math
import subprocess
import sys

import pandas as pd
import pytest

from equicore.applications.scan import commands, experiment, finetune, zero_shot
from equicore.applications.scan.commands import Evaluate, Finetune, Networks, Plot, Table, Train


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "equicore.applications.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_the_commands():
    result = call("scan", "--help")
    assert result.returncode == 0
    for command in ("train", "evaluate", "finetune", "table", "plot"):
        assert f"• {command}" in result.stdout
    result = call("scan", "finetune", "--help")
    assert "--learning-rate" in result.stdout
    assert "Example: equicore scan finetune" in result.stdout


def test_wrong_input_is_a_message(tmp_path):
    result = call("scan", "table", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: no ")
    assert "run: equicore scan evaluate" in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Train(Networks(seeds=())), "no seeds given"),
        (Train(Networks(jobs=0)), "--jobs must be at least 1; got 0"),
        (Train(Networks(epochs=0)), "--epochs must be at least 1; got 0"),
        (Train(Networks(seeds=(-1,))), "seeds are not negative; got -1"),
        (Train(over="left-jump"), "there are the symmetries none, .*; got 'left-jump'"),
        (Evaluate(groups=("verbs",)), "there are the symmetries none, .*; got 'verbs'"),
        (Finetune(steps=(100, 10)), "--steps rise, from 0 on; got 100 10"),
        (Finetune(methods=()), "no methods given; there are equitune"),
        (Finetune(batch_size=0), "must be positive; got 0 and"),
        (Finetune(learning_rate=math.nan), "must be positive; got 16 and nan"),
        (Finetune(methods=("equitune", "equitune")), "--methods has equitune more than once"),
        (Train(Networks(seeds=(0, 1, 0))), "--seeds has 0 more than once"),
        (Evaluate(groups=("jump-run", "jump-run")), "--groups has jump-run more than once"),
        (Evaluate(groups=("none",)), "--groups has 'none': the network alone is always measured"),
    ],
)
def test_checked_before_any_work(command, message, monkeypatch):
    monkeypatch.setattr(commands, "train_all", lambda *_: pytest.fail("began"))
    with pytest.raises(ValueError, match=message):
        commands.run(command)


def test_results_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "train_all", lambda *_: pytest.fail("began"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        commands.run(Evaluate(Networks(runs=tmp_path / "runs"), output=tmp_path / "file"))


@pytest.mark.parametrize(
    ("command", "row"),
    [
        (Evaluate, ("add_jump", "lstm", "jump-run", "equizero", 3, "test", 0.5)),
        (Evaluate, ("add_jump", "lstm", "left-right", "equizero", 0, "test", 0.5)),
        (Finetune, ("add_jump", "gru", "jump-run", "equizero", 0, "test", 0.5)),
        (Finetune, ("add_jump", "lstm", "jump-run", "G-GRU", 0, "test", 0.5)),
    ],
)
def test_rows_that_would_be_lost(command, row, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "train_all", lambda *_: pytest.fail("began"))
    for name in ("zero_shot", "finetune"):
        table = pd.DataFrame([row], columns=list(zero_shot.COLUMNS))
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match="also holds add_jump .* name another --output"):
        commands.run(command(Networks(runs=tmp_path / "runs"), output=tmp_path))


def test_another_table_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "train_all", lambda *_: pytest.fail("began"))
    (tmp_path / "zero_shot.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="is another table, without cell, group, seed, split"):
        commands.run(Evaluate(Networks(runs=tmp_path / "runs"), output=tmp_path))


def test_networks_that_were_trained_otherwise(small_scan, tmp_path, monkeypatch):
    def networks(cell, epochs):
        return Networks(("add_jump",), (cell,), seeds=(0,), epochs=epochs, runs=tmp_path, jobs=1)

    commands.run(Train(networks("gru", 1)))
    monkeypatch.setattr(experiment, "in_parallel", lambda *_: pytest.fail("began"))
    with pytest.raises(ValueError, match=r"has recipe .*'epochs': 1.* expected .*'epochs': 2"):
        commands.run(Train(networks("gru", 2)))
    folder = tmp_path / "add_jump" / "none"
    (folder / "gru_0").rename(folder / "lstm_0")
    with pytest.raises(ValueError, match="has cell 'gru', expected 'lstm'"):
        commands.run(Train(networks("lstm", 1)))
    (folder / "lstm_0" / "network.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        commands.run(Train(networks("lstm", 1)))


def test_from_nothing_to_figures(small_scan, tmp_path, monkeypatch, capsys):
    for module in (zero_shot, finetune):
        fit = module.fit_per_token
        monkeypatch.setattr(
            module, "fit_per_token", lambda *a, fit=fit, **k: fit(*a, **{**k, "steps": 2})
        )
    fit_per_command = zero_shot.fit_per_command
    monkeypatch.setattr(
        zero_shot, "fit_per_command", lambda *a, **k: fit_per_command(*a, **{**k, "steps": 2})
    )
    networks = Networks(
        ("add_jump",), ("gru",), seeds=(0, 1), epochs=1, runs=tmp_path / "runs", jobs=1
    )
    output = tmp_path / "scan"
    commands.run(Train(networks))
    files = capsys.readouterr().out.split()
    assert len(files) == 2
    assert all(file.endswith("network.safetensors") for file in files)
    commands.run(Evaluate(networks, output=output))
    table = pd.read_csv(output / "zero_shot.csv")
    assert list(table.columns) == list(zero_shot.COLUMNS)
    assert len(table) == 2 * 2 * (1 + 12)  # seeds, parts, methods and the oracle
    written = (output / "zero_shot.csv").read_bytes()
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("trained again"))
    commands.run(Evaluate(networks, output=output))
    assert (output / "zero_shot.csv").read_bytes() == written
    monkeypatch.undo()


def test_fine_tuned_beside_equivariant_networks(small_scan, tmp_path, monkeypatch):
    fit_per_token = finetune.fit_per_token
    monkeypatch.setattr(finetune, "fit_per_token", lambda *a, **k: fit_per_token(*a, **k, steps=2))
    networks = Networks(("add_jump",), ("lstm",), seeds=(0,), epochs=1, runs=tmp_path, jobs=1)
    output = tmp_path / "scan"
    commands.run(Finetune(networks, ("equitune",), (0, 2), output=output))
    table = pd.read_csv(output / "finetune.csv")
    assert set(table.method) == {"equitune", "G-LSTM"}
    zero_shot_rows = table[(table.method == "equitune") & (table.steps == 0)]
    zero_shot_rows.drop(columns="steps").to_csv(output / "zero_shot.csv", index=False)
    commands.run(Table(output))
    commands.run(Plot(output))
    assert {file.name for file in output.iterdir()} == {
        "finetune.csv",
        "finetune.md",
        "finetune.png",
        "finetune.svg",
        "zero_shot.csv",
        "zero_shot.md",
        "zero_shot.png",
        "zero_shot.svg",
    }
