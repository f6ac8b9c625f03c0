"""What the benchmarks share: timing in rounds, peak memory, models, and one page for each.

All calls that are compared are timed in turn within every round, and a ratio is the median over
rounds of ratios within a round, so it holds although the machine's speed drifts.

The environments of peers.py have torch, transformers, tqdm and numpy only: whatever else a function
needs, it imports when it is called.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler tells when it starts

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#111111", "#999999")
MARKERS = ("o", "s", "^", "D")
BAR_STYLE = {"color": "#d55e00", "label": "bar"}
"""How a bar is drawn: what a number should not exceed."""

LEAST_SECONDS = 0.02
"""Shorter times are not measured."""

Row = dict[str, Any]
"""A row of a table; a `Ratio` in it becomes three columns."""


class Ratio(NamedTuple):
    """Median over rounds, and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """For tables."""
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def time_rounds(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    progress: tqdm,
    repeats: int | None = None,
) -> dict[str, np.ndarray]:
    """Seconds that each call takes in each round.

    Args:
        calls: What is timed. Every second round goes through them in reverse.
        rounds: How often.
        progress: Updated after each round.
        repeats: How often each is called in a round; when omitted, so often that the slowest takes
            ``LEAST_SECONDS``.

    Returns:
        An array of shape (rounds,) for each call.
    """
    for call in calls.values():
        call()  # the first call also allocates and plans
    if repeats is None:
        slowest = max(seconds(call, 1) for call in calls.values())
        repeats = max(1, math.ceil(LEAST_SECONDS / slowest))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: -1 if i % 2 else 1]:
            times[name].append(seconds(calls[name], repeats))
        progress.update()
    return {name: np.array(values) for name, values in times.items()}


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Ratio:
    """The ratio within rounds, summarised."""
    low, median, high = np.quantile(np.asarray(numerator) / denominator, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high))


def peak_memory(call: Callable[[], Any]) -> int:
    """The most bytes that are allocated at once during a call, beyond those at its start.

    torch's profiler reports every allocation of torch's CPU allocator, workspaces within
    operators included, so the number is exact and the same in every run. The resident size of
    the process is neither: the C library keeps and reuses pages.
    """
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    del result
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


class Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.model(x).logits


def resnet() -> Logits:
    """ResNet-18 for 100 classes, with random parameters."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=100
    )
    return Logits(ResNetForImageClassification(config)).eval()


def vit() -> Logits:
    """A small ViT for 100 classes and images of 64 x 64 in patches of 8 x 8, random parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=100,
    )
    return Logits(ViTForImageClassification(config)).eval()


def machine() -> str:
    """The machine, as far as it matters to timings."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )


def verdict(number: float, bar: float | None, at_least: bool = False) -> str:
    """A bar, and whether a number is at most that, or at least; empty if there is no bar."""
    if bar is None:
        return ""
    met = number >= bar if at_least else number <= bar
    return f"{'≥' if at_least else '≤'} {bar:g}: {'met' if met else '**missed**'}"


def ratio_figure(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Ratio | float]],
    xlabel: str,
    bars: Sequence[float | None] | None = None,
) -> Figure:
    """Ratios as points with quartiles, a line for each label; a red tick stands for the bar."""
    from equicore.lab import figures
    from equicore.lab.statistics import Estimate

    figure, ((axis,),) = figures.grid(1, 1, figsize=(7, 1.2 + 0.3 * len(labels)))
    places = np.arange(len(labels))
    for i, (name, ratios) in enumerate(series.items()):
        points = [Estimate(*np.broadcast_to(r, 3)) for r in ratios]
        middle, spread = [point.value for point in points], figures.error_bars(points)
        heights = places + 0.12 * (i - (len(series) - 1) / 2)
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 5, "linestyle": "none"}
        axis.errorbar(middle, heights, xerr=spread, label=name, **style)
    if bars is not None:
        xs = np.array(bars, dtype=float)  # NaN where there is none
        axis.plot(xs, places, "|", markersize=16, markeredgewidth=2, **BAR_STYLE)
    axis.axvline(1, color="#999999", linewidth=0.8, zorder=0)
    axis.set_yticks(places, labels)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    figures.tidy(axis)
    figures.legend_below(figure, axis, columns=5)
    return figure


def write(
    folder: Path | None,
    name: str,
    rows: Sequence[Row],
    digits: int,
    *parts: str,
    figure: Figure | None = None,
) -> None:
    """Print a table; write it with its page and figure, if there is a folder.

    Args:
        folder: Where to.
        name: The files' name, without suffix.
        rows: Of the table.
        digits: After the point, in the table.
        *parts: The page's title and paragraphs.
        figure: Shown at the end of the page.
    """
    import pandas as pd

    from equicore.lab import figures, store, tables

    table = pd.DataFrame([_columns(row) for row in rows]).round(digits)
    print(table.to_string(index=False))
    if folder is None:
        return
    if figure is not None:
        figures.save(figure, folder / name)
        parts = (*parts, f"![The table as a figure]({name}.png)")
    tables.write_csv(folder / f"{name}.csv", table)
    store.write_text(folder / f"{name}.md", page(*parts))
    print(f"written to {folder}")


def page(title: str, *paragraphs: str) -> str:
    """A page in Markdown, with the command line that runs below its title."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return "\n\n".join([f"# {title}", f"`{command}`", *paragraphs]) + "\n"


def _columns(row: Row) -> Row:
    """A row with three columns in place of each ratio."""
    columns: Row = {}
    for name, value in row.items():
        if isinstance(value, Ratio):
            columns |= {name: value.median, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            columns[name] = value
    return columns
