"""Figures: one look, readable in greyscale, and one way to save them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from equicore.lab.statistics import Estimate
from equicore.lab.store import replacing

SALT = "equirl"
Share = bool | Literal["all", "row", "col"]
LARGEST_SVG = 150_000  # bytes; the files are committed


def grid(
    rows: int,
    columns: int,
    figsize: tuple[float, float] | None = None,
    sharex: Share = False,
    sharey: Share = False,
) -> tuple[Figure, Any]:
    """A figure and its axes, an array of shape (rows, columns)."""
    options: dict[str, Any] = {"figsize": figsize, "sharex": sharex, "sharey": sharey}
    return plt.subplots(rows, columns, squeeze=False, layout="constrained", **options)


def panels(
    count: int, size: tuple[float, float] = (3.2, 2.7), columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples, few enough side by side to be read on a page, and their axes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    width = max(2 * size[0], columns * size[0])  # the legend needs some
    figure, axes = grid(rows, columns, figsize=(width, rows * size[1] + 0.6))
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def tidy(axis: Axes) -> None:
    """The common look of axes."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def error_bars(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above the values."""
    below = [max(0.0, e.value - e.low) for e in estimates]
    return below, [max(0.0, e.high - e.value) for e in estimates]


def bars(
    axis: Axes, places: Sequence[float], width: float, estimates: Sequence[Estimate], **style: Any
) -> None:
    """Bars with their intervals; `stand` lets them begin at one floor."""
    axis.bar(
        places,
        [e.value for e in estimates],
        width,
        yerr=error_bars(estimates),
        edgecolor="black",
        linewidth=0.8,
        error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#7f7f7f"},
        **style,
    )


def stand(axis: Axes, estimates: Sequence[Estimate]) -> float:
    """Let all bars of an axis begin at one floor, so that higher is better also below 0.

    Returns:
        The floor: 0, or, if an interval reaches below it, somewhat below the lowest.
    """
    ends = np.array([(e.value, e.low, e.high) for e in estimates])
    lowest, highest = np.nanmin(ends), np.nanmax(ends)
    floor = 0.0 if lowest >= 0 else lowest - 0.08 * max(highest - lowest, 1e-9)
    for patch in axis.patches:
        assert isinstance(patch, Rectangle)
        top = patch.get_height()
        patch.set_y(floor)
        patch.set_height(top - floor)
    axis.set_ylim(floor, max(highest, floor) + 0.05 * max(highest - floor, 1e-9))
    if floor < 0 < highest:
        axis.axhline(0, color="black", linewidth=0.8)
    return floor


def band(
    axis: Axes, x: Sequence[float], estimates: Sequence[Estimate], colour: str, **style: Any
) -> None:
    """A line through estimates, and their intervals as a pale band."""
    values, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
    axis.plot(x, values, color=colour, **style)
    axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def legend_below(
    figure: Figure, labelled: Axes | Sequence[Any], note: str = "", columns: int | None = None
) -> None:
    """One legend for all axes, below them, under a note such as what the error bars are.

    Args:
        figure: The figure.
        labelled: Axes with labels, or what has labels itself: lines, patches.
        note: In small letters, broken into lines as wide as the figure.
        columns: Of the legend, at most; fewer where labels are too long for the figure's width.
    """
    width = figure.get_figwidth()
    if isinstance(labelled, Axes):
        labelled = labelled.get_legend_handles_labels()[0]
    handles: list[Any] = list(labelled)
    columns = min(len(handles), columns or max(1, int(width / 1.5)))
    for count in range(columns, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=count)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    if note:
        legend.set_title(textwrap.fill(note, int(15 * width)), prop=FontProperties(size=8))


def save(figure: Figure, stem: Path, dpi: int = 150, colours: int | None = None) -> list[Path]:
    """Save a figure as PNG and, unless that is large, as SVG, and close it.

    The same data give the same bytes. Overlapping bands have very many ``colours``, and 64 of them
    look the same in a quarter of the bytes.
    """
    png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
    drawn = {png: io.BytesIO(), svg: io.BytesIO()}
    # a fixed salt and no date: the same data give the same file
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "path"}):
        figure.savefig(drawn[png], format="png", dpi=dpi)
        figure.savefig(drawn[svg], format="svg", metadata={"Date": None})
    plt.close(figure)
    if colours is not None:
        image = Image.open(drawn[png]).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        drawn[png] = io.BytesIO()
        image.save(drawn[png], format="png", optimize=True)
    if drawn[svg].getbuffer().nbytes > LARGEST_SVG:
        del drawn[svg]
        svg.unlink(missing_ok=True)  # a small one of before
    for file, content in drawn.items():
        with replacing(file) as temporary:
            temporary.write_bytes(content.getvalue())
    return list(drawn)
