"""What the benchmarks share: timing in rounds, peak memory, models, and writing results.

All calls that are compared are timed in turn within every round, and a ratio is the median over
rounds of ratios within a round, so it holds although the machine's speed drifts.
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

if TYPE_CHECKING:  # environments of peers have neither; functions import them when called
    import pandas as pd
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#111111", "#999999")
MARKERS = ("o", "s", "^", "D")


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
    least: float = 0.02,
) -> dict[str, np.ndarray]:
    """Seconds that each call takes in each round.

    Args:
        calls: What is timed. Every second round goes through them in reverse.
        rounds: How often.
        progress: Updated after each round.
        repeats: How often each is called in a round.
        least: When ``repeats`` is omitted, so often that each takes this many seconds.

    Returns:
        An array of shape (rounds,) for each call.
    """
    for call in calls.values():
        call()  # the first call also allocates and plans
    if repeats is None:
        slowest = max(seconds(call, 1) for call in calls.values())
        repeats = max(1, math.ceil(least / slowest))
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


def vit(layers: int = 6) -> Logits:
    """A small ViT for 100 classes and images of 64 x 64 in patches of 8 x 8, random parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=layers,
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


def command() -> str:
    """The command line that runs."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def verdict(number: float, bar: float | None) -> str:
    """A bar, and whether a number is at most that."""
    if bar is None:
        return ""
    return f"≤ {bar:g}: {'met' if number <= bar else '**missed**'}"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def ratio_figure(
    labels: Sequence[str],
    series: Mapping[str, Sequence[Ratio | None]],
    xlabel: str,
    bars: Sequence[float | None] | None = None,
) -> Figure:
    """Ratios as points with quartiles, a line for each label; a red tick stands for the bar."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.3 * len(labels)), layout="constrained")
    places = np.arange(len(labels))
    for i, (name, ratios) in enumerate(series.items()):
        known = [(y, r) for y, r in zip(places, ratios, strict=True) if r is not None]
        middle = np.array([r.median for _, r in known])
        spread = [[r.median - r.low for _, r in known], [r.high - r.median for _, r in known]]
        heights = [y + 0.12 * (i - (len(series) - 1) / 2) for y, _ in known]
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 5, "linestyle": "none"}
        axis.errorbar(middle, heights, xerr=spread, label=name, **style)
    if bars is not None:
        marked = [(y, bar) for y, bar in zip(places, bars, strict=True) if bar is not None]
        ys, xs = zip(*marked, strict=True)
        axis.plot(xs, ys, "|", color="#d55e00", markersize=16, markeredgewidth=2, label="bar")
    axis.axvline(1, color="#999999", linewidth=0.8, zorder=0)
    axis.set_yticks(places, labels)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize="small")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def write(
    folder: Path | None,
    name: str,
    table: pd.DataFrame,
    lines: Sequence[str],
    figure: Figure | None = None,
) -> None:
    """Print a table; write it as csv, the lines as md and the figure as png, if there is a folder.

    Args:
        folder: Where to.
        name: The files' name, without suffix.
        table: Printed, and written as it is.
        lines: What the md holds, without the line that shows the figure.
        figure: What the png shows.
    """
    from equicore.files import replacing

    print(table.to_string(index=False))
    if folder is None:
        return
    with replacing(folder / f"{name}.csv") as path:
        table.to_csv(path, index=False)
    shown = [] if figure is None else ["", f"![The table as a figure]({name}.png)"]
    with replacing(folder / f"{name}.md") as path:
        path.write_text("\n".join([*lines, *shown, ""]))
    if figure is not None:
        with replacing(folder / f"{name}.png") as path:
            figure.savefig(path, dpi=150)
    print(f"written to {folder}")
