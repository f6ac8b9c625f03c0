"""The page and the figures of what `equicore detection evaluate` measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from equicore.applications.detection.experiment import KEYS, PARTS, UPRIGHT, Study
from equicore.applications.detection.finetune import detected
from equicore.boxes import Detections, Fused, Fusion, detections_rep, surest
from equicore.lab import figures
from equicore.lab.statistics import Estimate
from equicore.lab.store import write_text
from equicore.lab.tables import markdown, read_csv
from equicore.reduce import Best
from equicore.symmetrize import Symmetrized

PAGE = """\
# Detection, zero-shot

Made by `equicore detection table` from zero_shot.csv, which `equicore detection evaluate` wrote.
AP50 and AP (COCO's, from .5 to .95) in %, by pycocotools, of images that are each under a random
element of the group: mean over seeds, of the elements and of what is fitted, [95 % interval over
images, by paired bootstrap; a resample shows fewer classes, and has a higher AP50 on average, so
that most of an interval is above its value]. Share: in % of the AP50 of the plain detector on
upright images. The **method** is chosen by its AP50 on the known images; the detector itself may
have been trained on them, as the small one of drawn scenes was. What is familiar is learned without
boxes: for test images from the known ones, for known images from those to test on. Deviation: how
far the boxes in an image that a turn or a mirror moved are from the moved boxes, from 0 to 1.
Forwards: of the detector, for one image. The deviations under shifts are in shifts.csv and
shifts.png.
"""
SHOWN = 0.4
"""Boxes of at least this score are drawn."""


def write_table(folder: Path) -> list[Path]:
    """Write zero_shot.md; raise FileNotFoundError or ValueError if there is nothing to show."""
    page = [PAGE]
    for title, some in _each(folder):
        choice = some[(some.part == PARTS[0]) & (some.method != UPRIGHT)]
        best, rows = choice.method.iloc[choice.ap50.argmax()], []
        for method in dict.fromkeys(some.method.astype(str)):
            own, row = some[some.method == method], [f"**{method}**" if method == best else method]
            for _, part in own.iterrows():
                row += [f"{_percent(part, 'ap50'):.1f}", f"{_percent(part, 'share'):.0f}"]
            rows.append([*row, f"{100 * part.ap:.1f}", f"{part.deviation:.3f}", part.forwards])
        head = [f"{part}: {what}" for part in PARTS for what in ("AP50", "share")]
        head = ["method", *head, "AP", "deviation", "forwards"]
        page += [f"## {title}", "", markdown(head, rows), ""]
    write_text(folder / "zero_shot.md", "\n".join(page))
    return [folder / "zero_shot.md"]


def write_figures(folder: Path) -> list[Path]:
    """Draw zero_shot and shifts, as PNG and SVG; errors as of `write_table`."""
    each = list(_each(folder))
    figure, axes = figures.panels(len(each), size=(4.4, 2.8), columns=2)
    for axis, (title, some) in zip(axes, each, strict=True):
        test = some[some.part == PARTS[1]]
        found = [_percent(row, "ap50") for _, row in test.iterrows()]
        bars = figures.error_bars(found)
        axis.barh(test.method, [e.value for e in found], xerr=bars, color="#9ecae1", ec="black")
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
        axis.set_xlabel("AP50, %")
        axis.set_title(title, fontsize=9)
    moved = Patch(facecolor="#9ecae1", ec="black", label="moved test images")
    note = "error bars: 95 % intervals over images, by bootstrap"
    figures.legend_below(figure, [moved], note)
    files = figures.save(figure, folder / "zero_shot", dpi=110, colours=64)
    figure, (axis,) = figures.panels(1, size=(4.5, 2.8))
    for place, (names, some) in enumerate(_read(folder, "shifts").groupby(["dataset", "model"])):
        found = [Estimate(*row) for row in some[["value", "low", "high"]].to_numpy()]
        style = {"marker": "osD^"[place % 4], "label": ", ".join(map(str, names))}
        figures.band(axis, some.cells.tolist(), found, f"C{place}", **style)
    axis.set(xlabel="shift, in cells", ylabel="deviation of boxes", ylim=0)
    figures.tidy(axis)
    figures.legend_below(figure, axis, "bands: 95 % intervals over images (Student's t)", 1)
    return files + figures.save(figure, folder / "shifts", dpi=110, colours=64)


def write_boxes(study: Study, folder: Path, images: int = 4) -> list[Path]:
    """Draw what is found in some test images: upright, moved, and moved with weighed views."""
    many = (study.test.labels >= 0).sum(1)
    shown = (many > 0).nonzero()[:, 0]
    shown = shown[(many[shown] > 4).int().argsort(stable=True)][:images]  # those with few first
    scenes, size = study.test[shown], (study.test.side, study.test.side)
    moved = scenes.moved(study.grid, torch.arange(len(shown)) % (len(study.grid.group) - 1) + 1)
    rep = detections_rep(study.grid, size)
    fused = Symmetrized(study.detector, study.grid, rep, Fused(Fusion(), size, Best(surest)))
    columns = {"upright": (scenes, study.detector), "moved": (moved, study.detector),
               "moved, views weighed by how sure": (moved, fused)}  # fmt: skip
    figure, axes = figures.grid(len(shown), 3, figsize=(7.2, 2.4 * len(shown)))
    for place, (title, (some, model)) in enumerate(columns.items()):
        found = detected(model, some)
        for row, axis in enumerate(axes[:, place]):
            axis.imshow(some.pixels[row].permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            _draw({name: t[row] for name, t in found.items()}, study.test.classes, axis)
        axes[0, place].set_title(title, fontsize=8)
    stem = folder / f"boxes_{study.test.name}_{study.name}_{study.group}"
    return figures.save(figure, stem, dpi=90, colours=256)


def _draw(found: Detections, classes: tuple[str, ...], axis: Axes) -> None:
    """Draw the boxes of one image."""
    for k in (found["scores"] >= SHOWN).nonzero()[:, 0].tolist():
        (x0, y0, x1, y1), label = found["boxes"][k].tolist(), int(found["labels"][k])
        colour = f"C{label % 10}"
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=1.5))
        axis.text(x0 + 2, y0 + 2, classes[label], va="top", color="white", backgroundcolor=colour,
                  fontsize=5, clip_on=True)  # fmt: skip


def _read(folder: Path, name: str) -> pd.DataFrame:
    return read_csv(folder / f"{name}.csv", KEYS[name], "equicore detection evaluate")


def _each(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    table = _read(folder, "zero_shot")
    for names, some in table.groupby(["dataset", "model", "group"], sort=False):
        yield ", ".join(map(str, names)), some


def _percent(row: pd.Series, name: str) -> Estimate:
    return Estimate(*(100 * row[f"{name}{end}"] for end in ("", "_low", "_high")))
