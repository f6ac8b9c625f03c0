"""Figures: one look, readable in greyscale, and one way to save them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    """Bars with their intervals."""
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


def band(
    axis: Axes, x: Sequence[float], estimates: Sequence[Estimate], colour: str, **style: Any
) -> None:
    """A line through estimates, and their intervals as a pale band."""
    values, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
    axis.plot(x, values, color=colour, **style)
    axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def legend_below(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend for all axes, from the labels of one of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def save(figure: Figure, stem: Path, dpi: int = 150, colours: int | None = None) -> list[Path]:
    """Save a figure as PNG and, unless that is large, as SVG, and close it.

    The same data give the same bytes. Overlapping bands have very many ``colours``, and 64 of them
    look the same in a quarter of the bytes.
    """
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
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
