"""Tables and figures of what was measured, beside the numbers of Basu et al. (NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from equicore.applications.scan.data import DEVELOPMENT_SPLIT, load_split
from equicore.applications.scan.vocabulary import symmetry
from equicore.applications.scan.zero_shot import COLUMNS, GROUPS, PARTS, SCORES, ceiling
from equicore.lab import figures
from equicore.lab.statistics import t_interval
from equicore.lab.store import write_text
from equicore.lab.tables import markdown, measured

PAPER = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype=str, keep_default_na=False)
"""The paper's accuracies after so many steps of fine-tuning; G are G-networks."""
LABELS = {
    "plain": "plain",
    "equitune": "equitune",
    "equitune_log": "equitune, log-probabilities",
    "equizero": "equizero, mean max-probability",
    "equizero_padded": "equizero, padded score as published",
    "equizero_likelihood": "equizero, likelihood",
    "equizero_entropy": "equizero, entropy",
    "lambda_sequence": "λ-equitune, per sequence",
    "equitune_in_step": "equitune, in step",
    "posterior_in_step": "posterior, in step, no training",
    "lambda_sequence_in_step": "λ-equitune, per sequence, in step",
    "lambda_token": "λ-equitune, per token",
    "oracle_token": "oracle: the best branch for each token",
}
MAIN = ("plain", "equitune", "equitune_log", "equizero", "lambda_sequence", "lambda_token")
NUMBERS = ("validation", "test", "95 %")
BESIDE = "paper, validation / test"
TITLES = {split: split.replace("_", " ").title() for split in GROUPS}
TITLES[DEVELOPMENT_SPLIT] += " (ours, to choose methods on)"
STYLES = {
    "equitune": {"color": "#e69f00", "marker": "s"},
    "equizero": {"color": "#0072b2", "marker": "^"},
    "lambda_token": {"color": "#111111", "marker": "D"},
}
RED, GREY = "#d55e00", "#8c8c8c"

ZERO_SHOT = """\
# SCAN, zero-shot

Made by `equicore scan table` from zero_shot.csv, which `equicore scan evaluate` wrote. Exact match
in %, mean (standard deviation) over the seeds {seeds}, and the 95 % interval of the mean on the
test set by Student's t. A seed is that of the held-out pairs, of the initial parameters and of the
training. Validation pairs are 20 % of the training split; equizero's score is the one that is best
on them. λ is fitted on the other 80 %.

The paper's numbers are those of the same cell. Its networks took 200,000 steps of one pair; ours
see each pair 30 times (an RNN 40 times), 64 in a step. Its equitune averages log-probabilities, and
its equizero has the padded score.
"""
FINETUNED = """\
# SCAN, fine-tuned

Made by `equicore scan table` from finetune.csv, which `equicore scan finetune` wrote: exact match
in %, mean (standard deviation) over seeds, after so many steps of 16 pairs. Step 0 is zero-shot.
The permutation-equivariant networks (G-) are trained from scratch on the same pairs, for the given
number of steps of 64 pairs.

The paper's numbers are those of the same cell: of its G-networks when trained, of the others after
as many steps. Its equitune averages log-probabilities, ours averages probabilities in step.
"""


def write_tables(folder: Path) -> list[Path]:
    """Write zero_shot.md and finetune.md beside what was measured.

    Raises:
        FileNotFoundError: If nothing was.
        ValueError: If a table lacks columns or rows, or has a measurement twice.
    """
    tables = _measured(folder)
    for name, table in tables.items():
        write_text(folder / f"{name}.md", PAGES[name](table))
    return [folder / f"{name}.md" for name in tables]


def write_figures(folder: Path) -> list[Path]:
    """Draw zero_shot and finetune, as PNG and SVG; errors as of `write_tables`."""
    files = []
    for name, table in _measured(folder).items():
        files += figures.save(FIGURES[name](table), folder / name, dpi=110)
    return files


def _measured(folder: Path) -> dict[str, pd.DataFrame]:
    """Accuracies, in %, of which none is there twice."""
    tables = measured(folder, TABLES)
    for name, table in tables.items():
        twice = table[table.drop(columns="accuracy").duplicated()]
        if len(twice):
            raise ValueError(
                f"{folder / name}.csv has more than one row for {twice.iloc[0].to_dict()}"
            )
    return tables


def _splits(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
    """Each split, its measurements, and those of its groups that were measured."""
    for split, groups in GROUPS.items():
        some = table[table.split == split]
        if not some.empty:
            yield split, some, [group for group in groups if group in set(some.group)]


def _each(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Its parts by the values in some columns, in the order in which these appear."""
    return iter(table.groupby(list(columns), sort=False))


def _zero_shot_page(table: pd.DataFrame) -> str:
    page = [ZERO_SHOT.format(seeds=", ".join(map(str, sorted(table.seed.unique()))))]
    for split, some, groups in _splits(table):
        rows = []
        first = some[some.group.isin(["none", GROUPS[split][0]])]
        for (cell,), values in _each(first, "cell"):
            score = _chosen(values)
            for method in MAIN:
                own = values[values.method == (score if method == "equizero" else method)]
                if len(own):
                    label = LABELS[str(own.method.iloc[0])]
                    if method == "equizero":
                        label = label.replace(", ", " (") + ")"
                    rows.append([cell, label, *_numbers(own), _paper(split, cell, method, 0)])
        head = ["cell", "method", *NUMBERS, BESIDE]
        page += [f"## {TITLES[split]}, {GROUPS[split][0]}", "", markdown(head, rows), ""]
        rows = []
        larger = some[(some.cell == "lstm") & (some.group != "none")]
        for (group, method), own in _each(larger, "group", "method"):
            chosen = " (chosen)" if method == _chosen(larger[larger.group == group]) else ""
            rows.append([group, LABELS[method] + chosen, *_numbers(own)])
        if rows:
            page += [f"## {TITLES[split]}, LSTM, all groups and methods", ""]
            page += [markdown(["group", "method", *NUMBERS], rows), ""]
        for group in groups:
            part = f"{100 * ceiling(*load_split(split), symmetry(group)):.1f}"
            page += [f"- {part} % of the test commands map to a training command under {group}."]
        page += [""]
    return "\n".join(page).rstrip() + "\n"


def _finetune_page(table: pd.DataFrame) -> str:
    page = [FINETUNED]
    for split, some, _ in _splits(table):
        rows = []
        for (cell, method, steps), own in _each(some, "cell", "method", "steps"):
            paper = _paper(split, cell, method, steps)
            rows.append([cell, LABELS.get(method, method), steps, *_numbers(own), paper])
        head = ["cell", "method", "steps", *NUMBERS, BESIDE]
        page += [f"## {TITLES[split]}", "", markdown(head, rows), ""]
    return "\n".join(page).rstrip() + "\n"


def _chosen(table: pd.DataFrame) -> str | None:
    """Equizero's score of the best mean accuracy on validation; None if there is none."""
    validation = table[(table.part == "validation") & table.method.isin(SCORES)]
    mean = validation.groupby("method", sort=False).accuracy.mean()
    return None if mean.empty else str(mean.idxmax())


def _numbers(values: pd.DataFrame) -> list[str]:
    """What stands in the columns `NUMBERS`, as in ``75.2 (1.5)`` and ``[73.1, 77.3]``."""
    cells = []
    for part in PARTS:
        accuracy = values[values.part == part].accuracy
        spread = f" ({accuracy.std():.1f})" if len(accuracy) > 1 else ""
        cells.append(f"{accuracy.mean():.1f}{spread}")
    test = t_interval(accuracy)
    interval = f"[{max(0.0, test.low):.1f}, {min(100.0, test.high):.1f}]"
    return [*cells, "one seed" if math.isnan(test.low) else interval]


def _paper(split: str, cell: str, method: str, steps: int) -> str:
    """The paper's accuracies after so many steps of fine-tuning; empty where it has none."""
    named = ("G", "") if method.startswith("G-") else (method, str(steps))
    rows = PAPER[(PAPER.split == split) & (PAPER.cell == cell)]
    rows = rows[(rows.method == named[0]) & (rows.steps == named[1])]
    return " / ".join(rows[["validation", "test"]].to_numpy().ravel())


def _test(paper: str) -> float:
    """The mean on the test set."""
    return float(paper.split(" / ")[1].split()[0])


def _drawn(table: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """What figures show: the LSTM on the test set, or another cell; the cell, and a label."""
    cell = "lstm" if "lstm" in set(table.cell) else str(table.cell.iloc[0])
    label = f"{cell.upper()}, exact match on the test set, %"
    return table[(table.cell == cell) & (table.part == "test")], cell, label


def _zero_shot_figure(table: pd.DataFrame) -> Figure:
    """A panel for each split: test accuracies of one cell for each method and group."""
    table, cell, label = _drawn(table)
    splits = list(_splits(table))
    figure, axes = figures.grid(1, len(splits), figsize=(1.6 + 4 * len(splits), 4.4), sharey=True)
    for axis, (split, some, groups) in zip(axes[0], splits, strict=True):
        height = 0.8 / max(1, len(groups))
        for i, group in enumerate(groups):
            colour = matplotlib.colormaps["viridis"](0.15 + 0.7 * i / len(groups))
            axis.barh(0, 0, color=colour, label=group)
            for place, method in enumerate(MAIN):
                y = place + (i - (len(groups) - 1) / 2) * height
                of_group = "none" if method == "plain" else group
                values = some[(some.group == of_group) & (some.method == method)].accuracy
                axis.barh(y, values.mean() if len(values) else 0, height, color=colour)
                axis.plot(values, [y] * len(values), "o", color="white", mec="black", ms=3)
        for place, method in enumerate(MAIN):
            if paper := _paper(split, cell, method, 0):
                axis.plot(_test(paper), place, "D", color=RED, zorder=3)
        axis.plot([], [], "o", color="white", mec="black", ms=3, label="seeds")
        axis.plot([], [], "D", color=RED, label="paper")
        bound = 100 * ceiling(*load_split(split), symmetry(GROUPS[split][0]))
        axis.axvline(bound, color=RED, linestyle=":", label=f"ceiling of {GROUPS[split][0]}")
        axis.set(xlim=(-1, 101), xlabel=label, title=TITLES[split])
        axis.spines[["top", "right"]].set_visible(False)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        axis.legend(ncols=2, fontsize=8, frameon=False, **below)
    axes[0, 0].set_yticks(range(len(MAIN)), [LABELS[m].replace(", ", ",\n") for m in MAIN])
    axes[0, 0].invert_yaxis()
    return figure


def _finetune_figure(table: pd.DataFrame) -> Figure:
    """A panel for each split: test accuracy of one cell against the steps of fine-tuning."""
    table, cell, label = _drawn(table)
    splits = list(_splits(table))
    figure, axes = figures.grid(1, len(splits), figsize=(4.8 * len(splits), 4))
    steps = sorted(table.steps[table.method.isin(STYLES)].unique())
    for axis, (split, some, _) in zip(axes[0], splits, strict=True):
        for (method,), values in _each(some, "method"):
            by_step = values.groupby("steps").accuracy
            mean, low, high = by_step.mean(), by_step.min(), by_step.max()
            if method not in STYLES:  # a network that is equivariant by its weights
                axis.axhline(mean.iloc[-1], color=GREY, linestyle="--", label=method)
                axis.axhspan(low.iloc[-1], high.iloc[-1], color=GREY, alpha=0.2, linewidth=0)
                continue
            style = STYLES[method]
            axis.plot(mean.index, mean, label=LABELS[method], **style)
            axis.fill_between(mean.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
            if paper := _paper(split, cell, method, 10_000):
                axis.plot(10_000, _test(paper), mfc="white", ms=9, **style)
        axis.plot([], [], "o", color="black", mfc="white", ms=9, label="paper")
        axis.set_xscale("symlog", linthresh=100)
        axis.set_xticks(steps, [f"{step:,}" for step in steps], rotation=45)
        axis.set_xticks([], minor=True)
        axis.set_xlim(left=-10)
        axis.set(xlabel="steps of fine-tuning", ylabel=label, ylim=(-2, 102), title=TITLES[split])
        axis.spines[["top", "right"]].set_visible(False)
    figures.legend_below(figure, axes[0, 0])
    return figure


TABLES = {
    "zero_shot": ("equicore scan evaluate", COLUMNS),
    "finetune": ("equicore scan finetune", [*COLUMNS, "steps"]),
}
PAGES = {"zero_shot": _zero_shot_page, "finetune": _finetune_page}
FIGURES = {"zero_shot": _zero_shot_figure, "finetune": _finetune_figure}
