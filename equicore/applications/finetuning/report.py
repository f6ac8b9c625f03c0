"""Tables and figures of what fine-tuning towards a symmetry brought, beside the seed's claims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from pandas.api.types import is_numeric_dtype

from equicore.applications.finetuning.experiment import COLUMNS, DEVIATION, KEYS
from equicore.applications.finetuning.names import Method
from equicore.lab import figures
from equicore.lab.statistics import Estimate, t_interval
from equicore.lab.store import write_text
from equicore.lab.tables import markdown, read_csv

LABELS: dict[str, str] = {
    "plain": "plain",
    "augmentation": "augmentation",
    "penalty": "penalty on outputs",
    "penalty_features": "penalty on feature maps",
    "penalty_both": "penalty on both",
    "equitune": "equitune",
    "lambda_equitune": "λ-equitune",
    "canonicalization": "canonicalization, prior",
}
STYLES: dict[str, tuple[str, Any]] = dict(
    zip(
        get_args(Method),
        [("#000000", "-"), ("#1b6ca8", "-"), ("#d1495b", "-"), ("#d1495b", "--"),
         ("#d1495b", ":"), ("#2e8540", "-"), ("#8e5ea2", "-"), ("#c98b00", "--")],
        strict=True,
    )
)  # fmt: skip
"""Colours and lines of methods."""
BASELINES: tuple[Method, ...] = ("plain", "augmentation")
MADE_BY = "equicore images adapt, detection finetune or fluids finetune"
PAGE = """\
# Fine-tuning towards a symmetry

Made by `equicore finetuning table` from finetuning.csv, to which `equicore images adapt`,
`equicore detection finetune` and `equicore fluids finetune` added. Means over seeds, [95 % interval
by Student's t over seeds]: where all of the data are taken, seeds differ in new layers and in the
order of samples alone. Differences are paired: methods of a seed see the same samples, start from
the same model, and run the model equally often in each of equally many steps. In bold what is
better, by its interval alone: of twenty comparisons of equals one is expected to look so. "moved":
test inputs under random elements of the task's group.

The deviation from equivariance is the root of ||f(g x) - g f(x)||² / (||f(g x)||² + ||g f(x)||²),
over some test inputs and all g but the identity, under large groups a few for each input: 0 for an
equivariant model, 1 where both are unrelated. Of logits their mean over classes is taken away.

The weight of a penalty is the one of those tried with the best validation metric, on moved inputs,
by cross-validation on the training data of seed 0 with half of the steps; test data are not
looked at. Penalties alone are given such a search; all else is the same for all methods. One at
the end of those tried is marked by *: a smaller or larger one may be better. Views: how often the
model runs on an input afterwards.

The seed, *Equivariant Fine-Tuning of Large Pretrained Models*, gives no code and one formula in
words, and its tables do not agree: for CIFAR-10 accuracies of 90.5 in one and 94.8 in another, for
its physics task .72 and .75. So nothing here is a reproduction: tasks, networks and budgets are
others, and only the direction can be compared: whether a penalty lowers the deviation, and whether
that helps. ImageNet, ResNet-50 and EfficientNet-B7, COCO and Faster R-CNN are out of reach of two
cores. With a GPU the networks of ImageNet are two commands; Faster R-CNN has no dense head, so that
`equicore detection` takes it zero-shot alone:

    equicore images adapt --model microsoft/resnet-50 --data imagenet --size 224 --device cuda \\
        --steps 20000 --views 256 --learning-rate 1e-4 --tested 50000
    equicore images adapt --model google/efficientnet-b7 --data imagenet --size 600 --device cuda \\
        --steps 20000 --views 64 --learning-rate 1e-4 --tested 50000
"""
NOTE = "Bands: 95 % intervals by Student's t over seeds."


def write_table(folder: Path) -> list[Path]:
    """Write finetuning.md beside finetuning.csv.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it lacks columns, or has methods that this version does not know.
    """
    page = [PAGE]
    for title, some in _each(_read(folder)):
        page += [f"## {title}\n", _values(some), ""]
        for baseline in BASELINES:
            if (table := _differences(some, baseline)) is not None:
                page += [f"Difference to {LABELS[baseline]}, of the same seed:\n", table, ""]
    write_text(folder / "finetuning.md", "\n".join(page))
    return [folder / "finetuning.md"]


def write_figures(folder: Path) -> list[Path]:
    """Draw finetuning and deviation, as PNG and SVG; errors as of `write_table`."""
    table = _read(folder)
    return [*_draw_metrics(table, folder), *_draw_deviations(table, folder)]


def _read(folder: Path) -> pd.DataFrame:
    table = read_csv(folder / "finetuning.csv", COLUMNS, MADE_BY)
    for name in ("fraction", "samples", "seed", "steps", "value", "deviation", "views"):
        if not is_numeric_dtype(table[name]) or table[name].isna().any():
            raise ValueError(
                f"{folder / 'finetuning.csv'} has no number somewhere in its column {name}; write "
                f"it with {MADE_BY}"
            )
    if unknown := sorted({*table.method} - {*LABELS}):
        raise ValueError(
            f"{folder / 'finetuning.csv'} has the method {unknown[0]!r}, which this version does "
            "not know"
        )
    if (twice := table.duplicated(KEYS)).any():
        row = " ".join(map(str, table[twice].iloc[0][KEYS]))
        raise ValueError(f"{folder / 'finetuning.csv'} has duplicate rows, such as {row}")
    return table


def _each(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """What was measured on each part of each task's data, with a title."""
    for _, some in table.groupby(["task", "fraction"]):
        task, fraction, count = some.iloc[0][["task", "fraction", "samples"]]
        yield f"{task}, {100 * fraction:g} % of the data ({count:,} samples)", some


def _methods(table: pd.DataFrame) -> list[str]:
    """Those that were measured, in their order."""
    return [name for name in LABELS if name in {*table.method}]


def _metrics(table: pd.DataFrame) -> list[str]:
    """Of the end of training, in their order; deviations under other symmetries are the last."""
    names = [name for name in table.metric.unique() if name != DEVIATION]
    return sorted(names, key=lambda name: name.startswith(DEVIATION))


def _last(table: pd.DataFrame, method: str, metric: str) -> pd.Series:
    """Of a method after its last step, by seed."""
    own = table[(table.method == method) & (table.metric == metric)]
    own = own[own.steps == own.steps.max()]
    return own.set_index("seed").value


def _values(some: pd.DataFrame) -> str:
    metrics = [*_metrics(some), DEVIATION]
    rows = []
    for method in _methods(some):
        own = some[some.method == method]
        first = own[(own.steps == 0) & (own.metric == DEVIATION)].value.mean()
        weights = {_weight(*pair) for pair in zip(own.weight, own.tried, strict=True)} - {""}
        rows.append(
            [
                LABELS[method],
                *(t_interval(_last(some, method, metric)) for metric in metrics),
                f"{first:.3f}",
                ", ".join(sorted(weights)),
                str(own.views.iloc[0]),
                str(own.seed.nunique()),
            ]
        )
    head = ["method", *map(_said, metrics), "deviation before", "weight", "views", "seeds"]
    return markdown(head, rows, ".3f")


def _weight(weight: float, tried: str) -> str:
    """A weight among those tried, marked where it is at their end."""
    if np.isnan(weight):
        return ""
    others = [float(other) for other in str(tried).split()]
    edge = len(others) > 1 and weight in (min(others), max(others))
    return f"{weight:g}{'*' if edge else ''} of {', '.join(str(tried).split())}"


def _differences(some: pd.DataFrame, baseline: str) -> str | None:
    """Paired with a baseline; in bold where the interval says which is better."""
    others = [method for method in _methods(some) if method != baseline]
    if baseline not in {*some.method} or not others:
        return None
    metrics = [name for name in _metrics(some) if not name.startswith(DEVIATION)]
    rows = []
    for method in others:
        cells = []
        for metric in metrics:
            gap = (_last(some, method, metric) - _last(some, baseline, metric)).dropna()
            higher = some[some.metric == metric].better.iloc[0] == "higher"
            cells.append(_judged(t_interval(gap), higher) if len(gap) else None)
        rows.append([LABELS[method], *cells])
    return markdown(["method", *map(_said, metrics)], rows)


def _judged(gap: Estimate, higher: bool) -> str:
    if not (gap.low > 0 or gap.high < 0):
        return f"{gap:+.3f}"
    better = (gap.value > 0) == higher
    return f"**{gap:+.3f}**" if better else f"{gap:+.3f} (worse)"


def _said(metric: str) -> str:
    return metric.replace("_", ", ", 1).replace("_", " ")


def _draw_metrics(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Metrics against data, a row for each task."""
    tasks = [(str(task), some) for task, some in table.groupby("task")]
    columns = max(len(_shown(some)) for _, some in tasks)
    figure, axes = figures.grid(len(tasks), columns, (3.2 * columns, 2.7 * len(tasks) + 0.9))
    for row, (task, some) in zip(axes, tasks, strict=True):
        for axis in row[len(_shown(some)) :]:
            axis.set_axis_off()
        for axis, metric in zip(row, _shown(some), strict=False):
            for number, method in enumerate(_methods(some)):
                own = some[some.method == method]
                counts = sorted({int(count) for count in own.samples})
                estimates = [
                    t_interval(_last(own[own.samples == count], method, metric)) for count in counts
                ]
                colour, line = STYLES[method]
                shift = 1.03 ** (number - len(LABELS) / 2)  # so that error bars stand side by side
                places = [count * shift for count in counts]
                axis.errorbar(
                    places,
                    [e.value for e in estimates],
                    yerr=np.nan_to_num(figures.error_bars(estimates)),
                    color=colour,
                    linestyle=line,
                    marker="o",
                    markersize=3,
                    linewidth=1.2,
                    elinewidth=0.9,
                )
            _label(axis, some, task if axis is row[0] else "", metric)
    handles = [_handle(method) for method in _methods(table)]
    note = "Error bars: 95 % intervals by Student's t over seeds; methods are set side by side."
    figures.legend_below(figure, handles, note)
    return figures.save(figure, folder / "finetuning", dpi=100, colours=256)


def _shown(some: pd.DataFrame) -> list[str]:
    return [name for name in _metrics(some) if not name.startswith(DEVIATION)][:4]


def _label(axis: Axes, some: pd.DataFrame, task: str, metric: str) -> None:
    figures.tidy(axis)
    counts = sorted({int(count) for count in some.samples})
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    better = some[some.metric == metric].better.iloc[0]
    axis.set_xlabel("training samples", fontsize=8)
    axis.set_title(f"{task}\n{_said(metric)} ({better} is better)".strip(), fontsize=8)


def _draw_deviations(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Deviations over training, for each part of each task's data."""
    parts = list(_each(table))
    figure, axes = figures.panels(len(parts), (3.6, 2.9))
    for axis, (title, some) in zip(axes, parts, strict=True):
        off = some[some.metric == DEVIATION]
        for method in _methods(off):
            own = off[off.method == method].pivot_table("value", "steps", "seed")
            estimates = [t_interval(values) for _, values in own.iterrows()]
            colour, line = STYLES[method]
            figures.band(axis, list(own.index), estimates, colour, linestyle=line, linewidth=1.2)
        figures.tidy(axis)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("steps", fontsize=8)
        axis.set_title(title.replace(", ", "\n", 1), fontsize=8)
    axes[0].set_ylabel("deviation from equivariance", fontsize=8)
    handles = [_handle(method) for method in _methods(table)]
    figures.legend_below(figure, handles, NOTE)
    return figures.save(figure, folder / "deviation", dpi=100, colours=256)


def _handle(method: str) -> Line2D:
    colour, line = STYLES[method]
    return Line2D([], [], color=colour, linestyle=line, label=LABELS[method])
