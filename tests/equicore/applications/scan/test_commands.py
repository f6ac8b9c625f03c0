"""The command `equicore scan`, from its options to its files."""

import functools
import math
import sys

import pandas as pd
import pytest

from equicore.applications import cli
from equicore.applications.scan import Seq2Seq, commands, experiment, symmetry
from equicore.applications.scan.commands import Evaluate, Finetune, Networks, Table, Train
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.zero_shot import COLUMNS, answers


def call(monkeypatch, *arguments):
    """The exit status of ``equicore ...``."""
    monkeypatch.setattr(sys, "argv", ["equicore", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


def test_help_names_the_commands(monkeypatch, capsys):
    assert call(monkeypatch, "scan", "--help") == 0
    shown = capsys.readouterr().out
    for command in ("train", "evaluate", "finetune", "table", "plot"):
        assert f"• {command}" in shown
    assert call(monkeypatch, "scan", "finetune", "--help") == 0
    shown = capsys.readouterr().out
    assert "--learning-rate" in shown
    assert "Example: equicore scan finetune" in shown


def test_wrong_input_is_a_message(monkeypatch, capsys, tmp_path):
    for command in ("table", "plot"):
        assert call(monkeypatch, "scan", command, tmp_path) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: no ")
        assert "run: equicore scan evaluate" in message


@pytest.fixture
def nothing_begins(monkeypatch):
    monkeypatch.setattr(commands, "train_all", lambda *_: pytest.fail("began"))


@pytest.mark.usefixtures("nothing_begins")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Train(Networks(seeds=())), "no seeds given"),
        (Train(Networks(jobs=0)), "--jobs must be at least 1; got 0"),
        (Train(Networks(epochs=0)), "--epochs must be at least 1; got 0"),
        (Train(Networks(seeds=(-1,))), "--seeds are whole numbers from 0 to 2147483647; got -1"),
        (Train(Networks(seeds=(0, 1, 0))), "--seeds has 0 more than once"),
        (Train(over="left-jump"), "there are the symmetries none, .*; got 'left-jump'"),
        (Evaluate(groups=("verbs",)), "there are the symmetries none, .*; got 'verbs'"),
        (Evaluate(groups=("jump-run", "jump-run")), "--groups has jump-run more than once"),
        (Evaluate(groups=("none",)), "--groups has 'none': the network alone is always measured"),
        (Finetune(steps=(100, 10)), "--steps rise, from 0 on; got 100 10"),
        (Finetune(methods=()), "no methods given"),
        (Finetune(methods=("equitune", "equitune")), "--methods has equitune more than once"),
        (Finetune(batch_size=0), "--batch-size must be at least 1; got 0"),
        (Finetune(learning_rate=math.nan), "--learning-rate must be positive; got nan"),
    ],
)
def test_checked_before_any_work(command, message):
    with pytest.raises(ValueError, match=message):
        commands.run(command)


@pytest.mark.usefixtures("nothing_begins")
def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        commands.run(Evaluate(Networks(runs=tmp_path / "runs"), output=tmp_path / "file"))


@pytest.mark.usefixtures("nothing_begins")
@pytest.mark.parametrize(
    ("command", "row"),
    [
        (Evaluate, ("add_jump", "lstm", "jump-run", "equizero", 3, "test", 0.5)),
        (Evaluate, ("add_jump", "lstm", "left-right", "equizero", 0, "test", 0.5)),
        (Finetune, ("add_jump", "gru", "jump-run", "equizero", 0, "test", 0.5)),
        (Finetune, ("add_jump", "lstm", "jump-run", "G-GRU", 0, "test", 0.5)),
    ],
)
def test_rows_that_would_be_lost(command, row, tmp_path):
    for name in ("zero_shot", "finetune"):
        pd.DataFrame([row], columns=COLUMNS).to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match="also holds add_jump .* name another --output"):
        commands.run(command(Networks(runs=tmp_path / "runs"), output=tmp_path))


@pytest.mark.usefixtures("nothing_begins")
def test_another_table_is_not_written_over(tmp_path):
    (tmp_path / "zero_shot.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="is another table, without cell, group, seed, split"):
        commands.run(Evaluate(Networks(runs=tmp_path / "runs"), output=tmp_path))


def test_from_nothing_to_figures(small_scan, tmp_path, monkeypatch, capsys):
    """Train, evaluate, fine-tune, tables and figures; what was done is not done again."""
    monkeypatch.setattr(commands, "Run", functools.partial(Run, fit_steps=2))
    runs, output = tmp_path / "runs", tmp_path / "scan"
    options = {"splits": ("add_jump",), "cells": ("gru",), "epochs": 1, "runs": runs, "jobs": 1}
    networks = Networks(seeds=(0,), **options)
    commands.run(Train(networks))
    files = capsys.readouterr().out.split()
    assert len(files) == 1
    assert all(file.endswith("network.safetensors") for file in files)
    commands.run(Evaluate(networks, output=output))
    table = pd.read_csv(output / "zero_shot.csv")
    assert list(table.columns) == COLUMNS
    methods = answers(Seq2Seq("gru"), symmetry("jump-run"), None, None)
    assert set(table[table.group == "jump-run"].method) == {*methods, "oracle_token"}
    assert set(table[table.group == "none"].method) == {"plain"}
    assert len(table) == 2 * (1 + 12)  # validation and test
    assert table.accuracy.between(0, 1).all()
    written = (output / "zero_shot.csv").read_bytes()
    with monkeypatch.context() as context:
        context.setattr(experiment, "train", lambda *_: pytest.fail("trained again"))
        commands.run(Evaluate(networks, output=output))
    assert (output / "zero_shot.csv").read_bytes() == written
    commands.run(Finetune(networks, ("equitune",), (0, 2), output=output))
    table = pd.read_csv(output / "finetune.csv")
    assert list(table.columns) == [*COLUMNS, "steps"]
    assert set(table.method) == {"equitune", "G-GRU"}
    commands.run(Table(output))
    assert call(monkeypatch, "scan", "plot", output) == 0
    suffixes = (".csv", ".md", ".png", ".svg")
    names = {f"{name}{suffix}" for name in ("zero_shot", "finetune") for suffix in suffixes}
    assert {file.name for file in output.iterdir()} == names
