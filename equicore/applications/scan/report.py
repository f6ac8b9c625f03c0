"""Tables and figures of what was measured, beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from equicore.applications.scan.data import load_split
from equicore.applications.scan.vocabulary import symmetry
from equicore.applications.scan.zero_shot import COLUMNS, GROUPS, SCORES, ceiling
from equicore.files import replacing

PAPER = {
    ("add_jump", "lstm", "plain"): 0.0,
    ("add_jump", "lstm", "equitune_log"): 7.1,
    ("add_jump", "lstm", "equizero"): 75.2,
    ("around_right", "lstm", "plain"): 0.4,
    ("around_right", "lstm", "equitune_log"): 28.2,
    ("around_right", "lstm", "equizero"): 81.7,
}
"""Test accuracies, %, zero-shot, of Basu et al. (NeurIPS 2023, table 2), as far as we know them."""
PAPER_FINETUNED = {("add_jump", "G-LSTM"): 98.3}
"""Test accuracies, %, of trained networks; those of tables 10 to 12 but this one we do not know."""
SCORE_NAMES = {
    "equizero": "mean max-probability",
    "equizero_padded": "padded score as published",
    "equizero_likelihood": "likelihood",
    "equizero_entropy": "entropy",
}
LABELS = {
    "plain": "plain",
    "equitune": "equitune",
    "equitune_log": "equitune, log-probabilities",
    **{method: f"equizero, {name}" for method, name in SCORE_NAMES.items()},
    "lambda_sequence": "λ-equitune, per sequence",
    "equitune_in_step": "equitune, in step",
    "posterior_in_step": "posterior, in step, no training",
    "lambda_sequence_in_step": "λ-equitune, per sequence, in step",
    "lambda_token": "λ-equitune, per token",
    "oracle_token": "oracle: the best branch for each token",
}
NUMBERS = ("validation", "test", "95 %")
"""Columns that every table has."""
MAIN = ("plain", "equitune", "equitune_log", "equizero", "lambda_sequence", "lambda_token")
TITLES = {
    "add_jump": "Add Jump",
    "around_right": "Around Right",
    "opposite_right": "Opposite Right (ours, to choose methods on)",
}
COLOURS = {"equitune": "#e69f00", "equizero": "#0072b2", "lambda_token": "#111111"}
MARKERS = {"equitune": "s", "equizero": "^", "lambda_token": "D"}

ZERO_SHOT = """\
# SCAN, zero-shot

Made by `equicore scan table` from zero_shot.csv, which `equicore scan evaluate` wrote. Exact match
in %, mean (standard deviation) over the seeds {seeds}, and the 95 % interval of the mean on the
test set by Student's t. A seed is that of the held-out pairs, of the initial parameters and of the
training. Validation pairs are 20 % of the training split; equizero's score is the one that is best
on them. λ is fitted on the other 80 %. The paper's numbers are those of its LSTM; those of its RNN
and GRU we do not have.
"""
FINETUNED = """\
# SCAN, fine-tuned

Made by `equicore scan table` from finetune.csv, which `equicore scan finetune` wrote: exact match
in %, mean (standard deviation) over seeds, after so many steps of 16 pairs. Step 0 is zero-shot.
The permutation-equivariant networks (G-) are trained from scratch on the same pairs, for the given
number of steps of 64 pairs. Of the paper's tables 10 to 12 we know but one number.
"""


def read(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Accuracies, in %, as `equicore scan evaluate` or `finetune` wrote them.

    Raises:
        ValueError: If it lacks columns or rows, or has a measurement twice.
    """
    table = pd.read_csv(file)
    if missing := set(columns) - set(table.columns):
        raise ValueError(f"{file} lacks the columns {', '.join(sorted(missing))}")
    if table.empty:
        raise ValueError(f"{file} has no rows")
    if (twice := table.duplicated([c for c in columns if c != "accuracy"])).any():
        raise ValueError(f"{file} has more than one row for {table[twice].iloc[0].to_dict()}")
    return table.assign(accuracy=100 * table.accuracy)


def _splits(table: pd.DataFrame) -> list[str]:
    return [split for split in GROUPS if split in set(table.split)]


def mean_std(values: pd.Series) -> str:
    """As in ``75.2 (1.5)``."""
    spread = "" if len(values) < 2 else f" ({values.std():.1f})"
    return f"{values.mean():.1f}{spread}"


def interval(values: pd.Series) -> str:
    """The 95 % interval of the mean over seeds, by Student's t; as in ``[73.1, 77.3]``."""
    if len(values) < 2:
        return "one seed"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values))
    low, high = max(0.0, values.mean() - half), min(100.0, values.mean() + half)
    return f"[{low:.1f}, {high:.1f}]"


def chosen_score(table: pd.DataFrame) -> str:
    """Equizero's score of the best mean accuracy on validation, among `SCORES`; "" without any."""
    validation = table[(table.part == "validation") & table.method.isin(SCORES)]
    if validation.empty:
        return ""
    return str(validation.groupby("method", sort=False).accuracy.mean().idxmax())


def zero_shot_page(table: pd.DataFrame) -> str:
    """The tables of a zero-shot evaluation, as Markdown."""
    seeds = ", ".join(map(str, sorted(table.seed.unique())))
    lines = [ZERO_SHOT.format(seeds=seeds)]
    for split in _splits(table):
        some = table[table.split == split]
        lines += [f"## {TITLES[split]}, {GROUPS[split][0]}", ""]
        lines += [*_paper_table(some), ""]
        larger = some[(some.cell == "lstm") & (some.group != "none")]
        if not larger.empty:
            lines += [f"## {TITLES[split]}, LSTM, all groups and methods", ""]
            lines += [*_group_table(larger), ""]
        pairs = load_split(split)
        for group in [group for group in GROUPS[split] if group in set(some.group)]:
            part = 100 * ceiling(*pairs, symmetry(group))
            lines += [
                f"- {part:.1f} % of the test commands map to a training command under {group}."
            ]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _paper_table(table: pd.DataFrame) -> list[str]:
    """Each cell under the paper's group, with one row for equizero."""
    table = table[table.group.isin(["none", GROUPS[table.split.iloc[0]][0]])]
    rows = []
    for cell, some in table.groupby("cell", sort=False):
        score = chosen_score(some)
        for method in MAIN:
            values = some[some.method == (score if method == "equizero" else method)]
            if values.empty:
                continue
            label = f"equizero ({SCORE_NAMES[score]})" if method == "equizero" else LABELS[method]
            paper = PAPER.get((values.split.iloc[0], str(cell), method))
            numbers = _numbers(values)
            rows.append((str(cell), label, *numbers, "" if paper is None else str(paper)))
    return markdown(["cell", "method", *NUMBERS, "paper, test"], rows)


def _group_table(table: pd.DataFrame) -> list[str]:
    """All methods under each group."""
    rows = []
    for group, some in table.groupby("group", sort=False):
        score = chosen_score(some)
        for method, values in some.groupby("method", sort=False):
            chosen = " (chosen)" if method == score else ""
            rows.append((str(group), LABELS[str(method)] + chosen, *_numbers(values)))
    return markdown(["group", "method", *NUMBERS], rows)


def _numbers(values: pd.DataFrame) -> tuple[str, str, str]:
    """What stands in the columns `NUMBERS`."""
    validation, test = (values[values.part == part].accuracy for part in ("validation", "test"))
    return mean_std(validation), mean_std(test), interval(test)


def finetune_page(table: pd.DataFrame) -> str:
    """The tables of a fine-tuning, as Markdown."""
    lines = [FINETUNED]
    for split in _splits(table):
        part = table[table.split == split]
        rows = []
        for (cell, method, steps), values in part.groupby(["cell", "method", "steps"], sort=False):
            label = LABELS.get(str(method), str(method))
            paper = str(PAPER_FINETUNED.get((split, str(method)), ""))
            rows.append((str(cell), label, f"{steps:,}", *_numbers(values), paper))
        head = ["cell", "method", "steps", *NUMBERS, "paper, test"]
        lines += [f"## {TITLES[split]}", "", *markdown(head, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def zero_shot_figure(table: pd.DataFrame) -> Figure:
    """A panel for each split: test accuracies of one cell for each method and group."""
    table, label = _drawn(table)
    splits = _splits(table)
    figure, axes = plt.subplots(
        1,
        len(splits),
        figsize=(1.6 + 4 * len(splits), 4.4),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, split in zip(axes[0], splits, strict=True):
        some = table[table.split == split]
        groups = [group for group in GROUPS[split] if group in set(some.group)]
        height = 0.8 / max(1, len(groups))
        for i, group in enumerate(groups):
            colour = plt.get_cmap("viridis")(0.15 + 0.7 * i / len(groups))
            axis.barh(0, 0, color=colour, label=group)
            for place, method in enumerate(MAIN):
                y = place + (i - (len(groups) - 1) / 2) * height
                of_group = "none" if method == "plain" else group
                values = some[(some.group == of_group) & (some.method == method)].accuracy
                axis.barh(y, values.mean() if len(values) else 0, height, color=colour)
                axis.plot(values, [y] * len(values), "o", color="white", mec="black", ms=3)
        for place, method in enumerate(MAIN):
            if (paper := PAPER.get((split, some.cell.iloc[0], method))) is not None:
                axis.plot(paper, place, "D", color="#d55e00", zorder=3)
        axis.plot([], [], "o", color="white", mec="black", ms=3, label="seeds")
        axis.plot([], [], "D", color="#d55e00", label="paper")
        bound = 100 * ceiling(*load_split(split), symmetry(GROUPS[split][0]))
        axis.axvline(bound, color="#d55e00", linestyle=":", label=f"ceiling of {GROUPS[split][0]}")
        axis.set_xlim(-1, 101)
        axis.set_xlabel(label)
        axis.set_title(TITLES[split])
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
            ncols=2,
            fontsize=8,
            frameon=False,
        )
    labels = [LABELS[method].replace(", ", ",\n") for method in MAIN]
    axes[0, 0].set_yticks(range(len(MAIN)), labels)
    axes[0, 0].invert_yaxis()
    return figure


def finetune_figure(table: pd.DataFrame) -> Figure:
    """A panel for each split: test accuracy of one cell against the steps of fine-tuning."""
    table, label = _drawn(table)
    splits = _splits(table)
    figure, axes = plt.subplots(
        1, len(splits), figsize=(4.8 * len(splits), 4), squeeze=False, layout="constrained"
    )
    for axis, split in zip(axes[0], splits, strict=True):
        for method, values in table[table.split == split].groupby("method", sort=False):
            by_step = values.groupby("steps").accuracy
            mean, low, high = by_step.mean(), by_step.min(), by_step.max()
            if method not in COLOURS:  # a network that is equivariant by its weights
                axis.axhline(mean.iloc[-1], color="#8c8c8c", linestyle="--", label=str(method))
                axis.axhspan(low.iloc[-1], high.iloc[-1], color="#8c8c8c", alpha=0.2, linewidth=0)
                continue
            style = {"color": COLOURS[str(method)], "marker": MARKERS[str(method)]}
            axis.plot(mean.index, mean, label=LABELS[str(method)], **style)
            axis.fill_between(mean.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
        steps = sorted(table.steps[table.method.isin(COLOURS)].unique())
        axis.set_xscale("symlog", linthresh=100)
        axis.set_xticks(steps, [f"{step:,}" for step in steps], rotation=45)
        axis.set_xticks([], minor=True)
        axis.set_xlim(left=-10)
        axis.set_xlabel("steps of fine-tuning")
        axis.set_ylabel(label)
        axis.set_ylim(-2, 102)
        axis.set_title(TITLES[split])
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _drawn(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What figures show: the LSTM on the test set, another cell where there is none."""
    cell = "lstm" if "lstm" in set(table.cell) else str(table.cell.iloc[0])
    label = f"{cell.upper()}, exact match on the test set, %"
    return table[(table.cell == cell) & (table.part == "test")], label


PAGES = {"zero_shot": zero_shot_page, "finetune": finetune_page}
COLUMNS_OF = {"zero_shot": COLUMNS, "finetune": (*COLUMNS, "steps")}
FIGURES = {"zero_shot": zero_shot_figure, "finetune": finetune_figure}


def write_tables(folder: Path) -> list[Path]:
    """Write zero_shot.md and finetune.md beside what was measured.

    Raises:
        FileNotFoundError: If nothing was.
    """
    files = []
    for name, table in _measured(folder).items():
        files.append(folder / f"{name}.md")
        with replacing(files[-1]) as temporary:
            temporary.write_text(PAGES[name](table))
    return files


def write_figures(folder: Path) -> list[Path]:
    """Draw zero_shot and finetune, as PNG and SVG, beside what was measured.

    Raises:
        FileNotFoundError: If nothing was.
    """
    files = []
    for name, table in _measured(folder).items():
        figure = FIGURES[name](table)
        with plt.rc_context({"svg.hashsalt": "equicore"}):  # the same bytes each time
            for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
                files.append((folder / name).with_suffix(suffix))
                with replacing(files[-1]) as temporary:
                    figure.savefig(temporary, metadata=metadata, dpi=110)
        plt.close(figure)
    return files


def _measured(folder: Path) -> dict[str, pd.DataFrame]:
    files = {name: folder / f"{name}.csv" for name in PAGES}
    tables = {name: read(file, COLUMNS_OF[name]) for name, file in files.items() if file.is_file()}
    if not tables:
        raise FileNotFoundError(
            f"no zero_shot.csv and no finetune.csv in {folder}; run: equicore scan evaluate"
        )
    return tables
