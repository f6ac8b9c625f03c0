"""Tables and figures of what was measured, beside the numbers of Basu et al. (NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pandas.api.types import is_numeric_dtype

from equicore.applications.so2.experiment import KEYS, MEASURED
from equicore.applications.so2.names import MODELS, SAMPLED, TASK_NAMES
from equicore.applications.so2.tasks import TASKS
from equicore.lab import figures
from equicore.lab.statistics import Estimate, t_interval, verdict
from equicore.lab.store import write_text
from equicore.lab.tables import markdown, read_csv

PAPER = {
    ("mlp", 1): ".91 (.82)",
    ("canonical", 1): ".41 (.34)",
    ("canonical_lambda", 2): ".26 (.22)",
    ("canonical_lambda", 4): ".24 (.13)",
    ("canonical_lambda", 8): ".11 (.04)",
    ("canonical_lambda", 16): ".37 (.57)",
}
"""Its test errors under SO(2), mean (standard deviation), by model and samples."""
STYLES: dict[str, tuple[str, str, str]] = {
    "mlp": ("plain", "#7f7f7f", "v"),
    "augmented": ("plain, random poses", "#56b4e9", "X"),
    "canonical": ("canonical", "#111111", "^"),
    "canonical_uniform": ("canonical, equal weights", "#e69f00", "s"),
    "canonical_lambda": ("canonical-λ", "#0072b2", "o"),
    "frames": ("frame averaging", "#d55e00", "D"),
}
"""Of each model the label, the colour and the marker."""
COLUMNS = ["model", "samples", "parameters", "forwards", "ms a step", "loss", "median of seeds",
           "median input"]  # fmt: skip
SETTING = ["task", "batch_size", "epochs", "train_size"]
HEAD = """\
# Continuous groups: canonical forms, samples and frames

Made by `equicore so2 table` from so2.csv, which `equicore so2 evaluate` wrote. Loss on 10,000 test
inputs: mean over seeds [95 % by Student's t] of the mean over inputs; the median over seeds of the
same; and the mean over seeds [95 %] of the median over inputs, as a few inputs with large targets
decide the mean. All models of a seed are trained on the same inputs, in the same order, with the
same steps: Adam, 2e-3, along a cosine to 0. A model runs so many forwards for an input in training
as in use. Time: of the processor for a step, on one core beside other work.

What the gain of canonical-λ is of: its mean over samples (canonical minus equal weights) and its
weights (equal weights minus canonical-λ), paired by seed, [95 %], then the median over seeds.
Positive is better. The part of the weights is given where the whole gain is above 0.
"""
BANDS = "means over seeds; bands: 95 % intervals (Student's t)"
Paired = dict[tuple[str, int], pd.Series]
"""A measure by seed, for each model and number of samples."""


def write_tables(folder: Path) -> list[Path]:
    """Write so2.md beside what was measured.

    Raises:
        FileNotFoundError: If nothing was.
        ValueError: If the table lacks columns or rows, has a measurement twice, or one that is not
            known.
    """
    page = [HEAD]
    for title, some in _settings(_measured(folder)):
        page += [f"## {title}", "", _losses(some), "", *_gains(some), *_verdicts(some), ""]
    write_text(folder / "so2.md", "\n".join(page).rstrip() + "\n")
    return [folder / "so2.md"]


def write_figures(folder: Path) -> list[Path]:
    """Draw losses, shares of the gain, and training sizes, where there are; errors as above."""
    table, files = _measured(folder), []
    for name, draw in FIGURES.items():
        if (figure := draw(table)) is not None:
            files += figures.save(figure, folder / name, dpi=100, colours=256)
    return files


def _measured(folder: Path) -> pd.DataFrame:
    file, made_by = folder / "so2.csv", "equicore so2 evaluate"
    table = read_csv(file, [*KEYS, *MEASURED], made_by)
    for column, known in (("task", TASK_NAMES), ("model", MODELS)):
        if unknown := sorted(set(table[column].astype(str)) - set(known)):
            raise ValueError(f"{file} has the {column} {unknown[0]}; there are {', '.join(known)}")
    for column in ("samples", "seed", "test_loss", "median_loss"):
        if not is_numeric_dtype(table[column]) or table[column].isna().any():
            raise ValueError(f"{file} has a {column} that is no number; write it with {made_by}")
    twice = table[table.duplicated(KEYS)]
    if len(twice):
        raise ValueError(f"{file} has more than one row for {twice.iloc[0][KEYS].to_dict()}")
    ranks = {name: rank for rank, name in enumerate((*TASK_NAMES, *MODELS))}
    by = [*SETTING, "model", "samples", "seed"]
    return table.sort_values(
        by, key=lambda column: column.map(ranks) if column.name in ("task", "model") else column
    )


def _each(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Its parts by the values in some columns, in the order in which these appear."""
    return iter(table.groupby(list(columns), sort=False))


def _settings(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """What was measured in one way, with a title."""
    for (task, batch, epochs, size), some in _each(table, *SETTING):
        trained = f"{epochs * -(-size // batch):,} steps of {min(size, batch):,}"
        yield f"{TASKS[task].title}; {size:,} training inputs, {trained}", some


def _paired(some: pd.DataFrame, measure: str) -> Paired:
    return {
        (model, int(samples)): own.set_index("seed")[measure]
        for (model, samples), own in _each(some, "model", "samples")
    }


def _label(model: str, samples: int) -> str:
    return f"{STYLES[model][0]} of {samples}" if model in SAMPLED else STYLES[model][0]


def _losses(some: pd.DataFrame) -> str:
    task, rows = TASKS[some.task.iloc[0]], []
    for (model, samples), own in _each(some, "model", "samples"):
        cells = [
            STYLES[model][0], samples if model in SAMPLED else None, own.parameters.iloc[0],
            own.forwards.iloc[0], f"{1e3 * own.seconds.mean():.1f}",
            f"{t_interval(own.test_loss):.3g}", f"{own.test_loss.median():.3g}",
            f"{t_interval(own.median_loss):.3g}",
        ]  # fmt: skip
        if task.classes:
            cells.append(f"{t_interval(100 * own.accuracy):.1f}")
        if task.group == "SO(2)":
            cells.append(PAPER.get((model, samples), ""))
        rows.append(cells)
    head = [*COLUMNS, *["accuracy, %"] * task.classes, *["paper"] * (task.group == "SO(2)")]
    table = f"Seeds: {', '.join(map(str, sorted(some.seed.unique())))}.\n\n{markdown(head, rows)}"
    near = some[some.model == "frames"].degenerate.mean()
    note = f"""

Frame averaging is not equivariant where two second moments are equal; they differ by less than 5 %
for {100 * near:.2f} % of the test inputs."""
    return table if np.isnan(near) else table + note


def _split(paired: Paired) -> Iterator[tuple[int, list[pd.Series]]]:
    """For each number of samples the gain of canonical-lambda, of the mean, and of the weights."""
    for (model, samples), own in paired.items():
        uniform, base = paired.get(("canonical_uniform", samples)), paired.get(("canonical", 1))
        if model == "canonical_lambda" and uniform is not None and base is not None:
            seeds = own.index.intersection(base.index).intersection(uniform.index)
            own, base, uniform = own[seeds], base[seeds], uniform[seeds]
            yield samples, [base - own, base - uniform, uniform - own]


def _gains(some: pd.DataFrame) -> list[str]:
    rows = []
    for measure, name in (("test_loss", "mean"), ("median_loss", "median")):
        for samples, gains in _split(_paired(some, measure)):
            found = [t_interval(gain) for gain in gains]
            cells = [f"{e:+.2g}; {g.median():+.2g}" for e, g in zip(found, gains, strict=True)]
            known = found[0].low > 0
            part = f"{100 * found[2].value / found[0].value:.0f} %" if known else ""
            rows.append([samples, name, *cells, part])
    head = ["samples", "over inputs", "gain of canonical-λ", "of the mean over samples",
            "of the weights", "part of the weights"]  # fmt: skip
    return [markdown(head, rows), ""] if rows else []


def _verdicts(some: pd.DataFrame) -> list[str]:
    """Which of two models is better on the mean over inputs, in words."""
    paired = _paired(some, "test_loss")
    frames = some[some.model == "frames"].forwards.max()
    canonical = "canonical", 1
    pairs = [(("augmented", 1), ("mlp", 1)), (canonical, ("mlp", 1)), (canonical, ("augmented", 1))]
    pairs += [(key, canonical) for key in paired if key[0] in ("canonical_lambda", "frames")]
    pairs += [(("canonical_lambda", frames), ("frames", 1))]  # with as many forwards
    lines = []
    for one, other in pairs:
        gain = (paired[other] - paired[one]).dropna() if {one, other} <= set(paired) else ()
        if len(gain):
            lines.append(f"- {verdict(_label(*one), t_interval(gain), _label(*other), '.3g')}.")
    return lines


def _richest(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Of each task the settings with most numbers of samples."""
    counts = table.groupby(SETTING).samples.nunique()
    most, each = counts.groupby("task").max(), _settings(table)
    return [(title, some) for title, some in each
            if some.samples.nunique() == most[some.task.iloc[0]]]  # fmt: skip


def _draw(axis: Axes, x: Sequence[float], found: Sequence[Estimate], model: str) -> None:
    label, colour, marker = STYLES[model]
    figures.band(axis, x, found, colour, marker=marker, ms=4, lw=1.3, label=label)


def _name(axis: Axes, title: str, xlabel: str) -> None:
    axis.set_xlabel(xlabel)
    axis.set_title(title.replace("; ", "\n"), fontsize=8)
    figures.tidy(axis)


def _loss_axis(axis: Axes) -> None:
    """Logarithmic where losses differ much."""
    axis.set_ylabel("test loss")
    drawn = np.concatenate([np.asarray(line.get_ydata()) for line in axis.get_lines()])
    if drawn.max() > 3 * drawn.min() > 0:
        axis.set_yscale("log")
        axis.set_ylim(drawn.min() / 2, drawn.max() * 2)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")


def _legend(figure: Figure, axes: Sequence[Axes], note: str) -> Figure:
    """With the legend of the axes that have most labels."""
    full = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    figures.legend_below(figure, full, note)
    return figure


def _samples_figure(table: pd.DataFrame) -> Figure:
    """The loss against samples; models without several numbers of them are level lines."""
    each = _richest(table)
    figure, axes = figures.panels(len(each), size=(4.4, 3.4), columns=2)
    for axis, (title, some) in zip(axes, each, strict=True):
        paired = _paired(some, "test_loss")
        counts = sorted({samples for _, samples in paired} - {1}) or [2]
        for model in STYLES:
            own = {k: t_interval(v) for (name, k), v in paired.items() if name == model}
            found = list(own.values())
            if len(own) > 1:
                _draw(axis, list(own), found, model)
            elif own:
                _draw(axis, [min(counts) / 1.2, max(counts) * 1.2], found * 2, model)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(k) for k in counts])
        _loss_axis(axis)
        _name(axis, title, "samples around the canonical form")
    return _legend(figure, axes, BANDS)


def _share_figure(table: pd.DataFrame) -> Figure | None:
    """What the gain is of, in % of the canonical model's loss."""
    each = []
    for title, some in _richest(table):
        paired = _paired(some, "test_loss")
        if split := list(_split(paired)):
            each.append((title, paired["canonical", 1].mean(), split))
    if not each:
        return None
    figure, axes = figures.panels(len(each), size=(4.4, 3), columns=2)
    styles = {
        "of the mean over samples": {"color": STYLES["canonical_uniform"][1]},
        "of the weights": {"color": STYLES["canonical_lambda"][1], "hatch": "//"},
    }
    for axis, (title, loss, split) in zip(axes, each, strict=True):
        for place, (label, style) in enumerate(styles.items(), 1):
            found = [t_interval(100 * gains[place] / loss) for _, gains in split]
            places = [i + 0.36 * (place - 1.5) for i in range(len(split))]
            figures.bars(axis, places, 0.36, found, label=label, **style)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(split)), [str(samples) for samples, _ in split])
        axis.set_ylabel("gain, % of canonical's loss")
        _name(axis, title, "samples")
    note = "above 0 is better; means of paired differences; error bars: 95 % intervals over seeds"
    return _legend(figure, axes, note)


def _sizes_figure(table: pd.DataFrame) -> Figure | None:
    """The loss against the number of training inputs, with one number of samples."""
    drawn = []
    for (task, batch, _), some in _each(table, *SETTING[:3]):
        sampled = some[some.model.isin(SAMPLED)]
        sizes = sampled.groupby("samples").train_size.nunique()
        if some.train_size.nunique() > 1 and len(sizes):
            drawn.append((task, batch, some, sizes.idxmax()))
    if not drawn:
        return None
    figure, axes = figures.panels(len(drawn), size=(4.8, 3.4), columns=2)
    for axis, (task, batch, some, samples) in zip(axes, drawn, strict=True):
        for model in STYLES:
            own = some[(some.model == model) & some.samples.isin([1, samples])]
            found = {size: t_interval(of.test_loss) for (size,), of in _each(own, "train_size")}
            if found:
                _draw(axis, list(found), list(found.values()), model)
        axis.set_xscale("log")
        ticks = sorted(some.train_size.unique())
        axis.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axis.set_xticks([], minor=True)
        title = f"{TASKS[task].title}; {samples} samples, batches of {batch}"
        _loss_axis(axis)
        _name(axis, title, "training inputs")
    return _legend(figure, axes, BANDS)


FIGURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "so2": _samples_figure, "share": _share_figure, "sizes": _sizes_figure,
}  # fmt: skip
