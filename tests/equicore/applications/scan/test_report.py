"""Tables and figures say what was measured."""

import pandas as pd
import pytest

from equicore.applications.scan import report
from equicore.applications.scan.zero_shot import COLUMNS

VALUES = {  # method: (validation, test), for two seeds
    "plain": [(0.99, 0.0), (1.0, 0.02)],
    "equitune": [(0.7, 0.1), (0.72, 0.14)],
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
        *rows("add_jump", "lstm", "jump-run", list(VALUES)[2:]),
        *rows("add_jump", "lstm", "verb-cycle", ["equitune_log", "equizero", "lambda_sequence"]),
        *rows("add_jump", "gru", "none", ["plain"]),
        *rows("opposite_right", "gru", "left-right", ["lambda_token"]),
    ]
    pd.DataFrame(measured, columns=COLUMNS).to_csv(tmp_path / "zero_shot.csv", index=False)
    tuned = [
        (*row, steps)
        for steps in (0, 10_000)
        for row in rows("add_jump", "lstm", "jump-run", ["equitune", "lambda_token"])
    ]
    tuned += [("add_jump", "lstm", "jump-run", "G-LSTM", 0, "test", 0.983, 5520)]
    tuned += [("add_jump", "lstm", "jump-run", "G-LSTM", 0, "validation", 0.99, 5520)]
    table = pd.DataFrame(tuned, columns=[*COLUMNS, "steps"])
    table.to_csv(tmp_path / "finetune.csv", index=False)
    return tmp_path


def test_pages(folder):
    assert [file.name for file in report.write_tables(folder)] == ["zero_shot.md", "finetune.md"]
    text = (folder / "zero_shot.md").read_text()
    assert "over the seeds 0, 1" in text
    for line in (
        "| lstm | plain | 99.5 (0.7) | 1.0 (1.4) | [0.0, 13.7] | 99.1 (0.3) / 0.0 (0.0) |",
        "| lstm | equitune, log-probabilities | 71.0 (1.4) | 12.0 (2.8) | [0.0, 37.4] "
        "| 62.5 (1.5) / 7.1 (1.3) |",
        "| lstm | equizero (padded score as published) | 96.0 (1.4) | 50.0 (0.0) | [50.0, 50.0] "
        "| 98.4 (0.9) / 75.2 (1.5) |",
        "| lstm | λ-equitune, per token | 99.0 (0.0) | 85.0 (1.4) | [72.3, 97.7] |  |",
        "| gru | plain | 99.5 (0.7) | 1.0 (1.4) | [0.0, 13.7] | 96.9 (1.2) / 0.0 (0.0) |",
        "| gru | λ-equitune, per token | 99.0 (0.0) | 85.0 (1.4) | [72.3, 97.7] |  |",
        "- 77.1 % of the test commands map to a training command under jump-run.",
        "- 100.0 % of the test commands map to a training command under verb-cycle.",
    ):
        assert line in text.splitlines()
    assert "| verb-cycle | equizero, mean max-probability (chosen) |" in text
    assert "| jump-run | equizero, mean max-probability |" in text
    lines = (folder / "finetune.md").read_text().splitlines()
    tuned = "71.0 (1.4) | 12.0 (2.8) | [0.0, 37.4]"
    for line in (
        f"| lstm | equitune | 0 | {tuned} |  |",
        f"| lstm | equitune | 10,000 | {tuned} | 98.9 (0.7) / 97.9 (1.0) |",
        "| lstm | G-LSTM | 5,520 | 99.0 | 98.3 | one seed | 99.4 (0.8) / 98.3 (1.4) |",
    ):
        assert line in lines


def test_paper_has_six_pairs_of_numbers_for_each_network():
    assert set(report.PAPER.groupby(["split", "cell"]).size()) == {6}
    assert len(report.PAPER) == 36
    for row in report.PAPER.itertuples():
        validation, test = (float(part.split()[0]) for part in (row.validation, row.test))
        assert 0 <= test <= 100 and 50 < validation <= 100


def test_tables_that_are_not_whole(folder):
    file = folder / "finetune.csv"
    table = pd.read_csv(file)
    for other, message in (
        (table.drop(columns="steps"), "has no columns steps; write it with equicore scan finetune"),
        (table.iloc[:0], "has no rows"),
        (pd.concat([table, table.iloc[:1]]), "more than one row for {'split': 'add_jump'"),
    ):
        other.to_csv(file, index=False)
        with pytest.raises(ValueError, match=message):
            report.write_tables(folder)


def test_figures_are_the_same_each_time(folder):
    files = report.write_figures(folder)
    assert [file.name for file in files] == [
        "zero_shot.png",
        "zero_shot.svg",
        "finetune.png",
        "finetune.svg",
    ]
    before = [file.read_bytes() for file in files]
    (folder / "finetune.csv").unlink()
    again = report.write_figures(folder)
    assert again == files[:2]
    assert [file.read_bytes() for file in again] == before[:2]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_figures_show_the_means_of_one_cell(folder, cell):
    table = pd.read_csv(folder / "zero_shot.csv")
    table = table[table.split == "add_jump"].assign(accuracy=100 * table.accuracy)
    table = table[table.cell == "lstm"].assign(cell=cell)
    (axis,) = report.FIGURES["zero_shot"](table).axes
    widths = {round(bar.get_width(), 6) for bar in axis.patches}
    assert {1.0, 12.0, 77.0, 85.0} <= widths
    assert axis.get_title() == "Add Jump"
    assert axis.get_xlabel() == f"{cell.upper()}, exact match on the test set, %"
    paper = {
        line.get_xdata()[0]
        for line in axis.lines
        if line.get_marker() == "D" and len(line.get_xdata())
    }
    assert paper == ({0.0, 7.1, 75.2} if cell == "lstm" else {0.0, 20.7, 73.9})


def test_nothing_measured(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no zero_shot.csv .* run: equicore scan evaluate"):
        report.write_tables(tmp_path)
    (tmp_path / "zero_shot.csv").write_text("split,cell\nadd_jump,lstm\n")
    with pytest.raises(ValueError, match="has no columns group, method"):
        report.write_figures(tmp_path)
