"""Tables and figures say what was measured."""

import pandas as pd
import pytest

from equicore.applications.scan import report
from equicore.applications.scan.zero_shot import COLUMNS

VALUES = {  # method: (validation, test), for two seeds
    "plain": [(0.99, 0.0), (1.0, 0.02)],
    "equitune_log": [(0.7, 0.1), (0.72, 0.14)],
    "equizero": [(0.9, 0.7), (0.9, 0.72)],
    "equizero_padded": [(0.95, 0.5), (0.97, 0.5)],
    "lambda_sequence": [(0.99, 0.76), (0.99, 0.78)],
    "lambda_token": [(0.99, 0.84), (0.99, 0.86)],
}


def rows(split, cell, group, methods):
    return [
        (split, cell, group, method, seed, part, value)
        for method in methods
        for seed, values in enumerate(VALUES[method])
        for part, value in zip(("validation", "test"), values, strict=True)
    ]


@pytest.fixture
def folder(tmp_path):
    measured = [
        *rows("add_jump", "lstm", "none", ["plain"]),
        *rows("add_jump", "lstm", "jump-run", list(VALUES)[1:]),
        *rows("add_jump", "lstm", "verb-cycle", ["equitune_log", "equizero", "lambda_sequence"]),
        *rows("add_jump", "gru", "none", ["plain"]),
    ]
    pd.DataFrame(measured, columns=list(COLUMNS)).to_csv(tmp_path / "zero_shot.csv", index=False)
    tuned = [
        (*row, steps)
        for steps in (0, 1000)
        for row in rows("add_jump", "lstm", "jump-run", ["equitune_log", "lambda_token"])
    ]
    tuned += [("add_jump", "lstm", "jump-run", "G-LSTM", 0, "test", 0.983, 5520)]
    columns = [*COLUMNS, "steps"]
    pd.DataFrame(tuned, columns=columns).to_csv(tmp_path / "finetune.csv", index=False)
    return tmp_path


def test_zero_shot_page(folder):
    report.write_tables(folder)
    text = (folder / "zero_shot.md").read_text()
    lines = text.splitlines()
    assert "over the seeds 0, 1" in text
    assert "| lstm | plain | 99.5 (0.7) | 1.0 (1.4) | [0.0, 13.7] | 0.0 |" in lines
    assert (
        "| lstm | equitune, log-probabilities | 71.0 (1.4) | 12.0 (2.8) | [0.0, 37.4] | 7.1 |"
        in lines
    )
    chosen = "| lstm | equizero (padded score as published) | 96.0 (1.4) | 50.0 (0.0) |"
    assert any(line.startswith(chosen) and line.endswith("| 75.2 |") for line in lines)
    assert "| gru | plain | 99.5 (0.7) | 1.0 (1.4) | [0.0, 13.7] |  |" in lines
    assert "- 77.1 % of the test commands map to a training command under jump-run." in lines
    assert "- 100.0 % of the test commands map to a training command under verb-cycle." in lines
    assert any("| verb-cycle | equizero, mean max-probability (chosen) |" in x for x in lines)
    assert any("| jump-run | equizero, mean max-probability |" in x for x in lines)


def test_finetune_page(folder):
    report.write_tables(folder)
    lines = (folder / "finetune.md").read_text().splitlines()
    assert any(
        x.startswith("| lstm | equitune, log-probabilities | 1,000 | 71.0 (1.4) | 12.0 (2.8)")
        for x in lines
    )
    assert any(x.startswith("| lstm | G-LSTM | 5,520 |") for x in lines)


def test_tables_that_are_not_whole(folder):
    file = folder / "finetune.csv"
    table = pd.read_csv(file)
    for other, message in (
        (table.drop(columns="steps"), "lacks the columns steps"),
        (table.iloc[:0], "has no rows"),
        (pd.concat([table, table.iloc[:1]]), "more than one row for {'split': 'add_jump'"),
    ):
        other.to_csv(file, index=False)
        with pytest.raises(ValueError, match=message):
            report.write_tables(folder)


def test_figures_without_an_lstm(folder):
    for name in ("zero_shot.csv", "finetune.csv"):
        table = pd.read_csv(folder / name)
        table[table.cell == "lstm"].assign(cell="gru").to_csv(folder / name, index=False)
    assert len(report.write_figures(folder)) == 4


def test_figures_are_the_same_each_time(folder):
    files = report.write_figures(folder)
    assert [file.name for file in files] == [
        "zero_shot.png",
        "zero_shot.svg",
        "finetune.png",
        "finetune.svg",
    ]
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in report.write_figures(folder)] == before


def test_bars_are_the_means(folder):
    (axis,) = report.zero_shot_figure(report.read(folder / "zero_shot.csv", COLUMNS)).axes
    widths = {round(bar.get_width(), 6) for bar in axis.patches}
    assert {1.0, 12.0, 77.0, 85.0} <= widths
    assert axis.get_title() == "Add Jump"


def test_without_fine_tuning(folder):
    (folder / "finetune.csv").unlink()
    assert [file.name for file in report.write_tables(folder)] == ["zero_shot.md"]
    assert len(report.write_figures(folder)) == 2


def test_nothing_measured(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no zero_shot.csv .* run: equicore scan evaluate"):
        report.write_tables(tmp_path)
    (tmp_path / "zero_shot.csv").write_text("split,cell\nadd_jump,lstm\n")
    with pytest.raises(ValueError, match="lacks the columns accuracy, group"):
        report.write_figures(tmp_path)


def test_one_seed_has_no_interval():
    assert report.interval(pd.Series([70.0])) == "one seed"
    assert report.mean_std(pd.Series([70.0])) == "70.0"
