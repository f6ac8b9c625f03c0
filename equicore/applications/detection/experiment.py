"""Detectors under turns and mirrors, zero-shot: plain, and made equivariant in every way."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from equicore.applications.detection.data import Scenes
from equicore.applications.detection.detector import Detector, head_rep, of_head_map
from equicore.applications.detection.finetune import detected, known
from equicore.applications.detection.metrics import (
    average_precision,
    check_boxes,
    deviation,
    judged,
)  # fmt: skip
from equicore.boxes import Detections, Fused, Fusion, detections_rep, joined, surest
from equicore.capture import Observed
from equicore.lab.statistics import t_interval
from equicore.lab.store import digest, remembered
from equicore.reduce import Best, WeightedMean
from equicore.representations import Image, image_dihedral, image_flips, image_rotations
from equicore.symmetrize import Symmetrized, equitune
from equicore.weights import MLPWeight, fit_familiarity

GROUPS: dict[str, Callable[[], Image]] = {
    "turns": image_rotations,
    "mirror": image_flips,
    "flip": lambda: image_flips(-2),
    "turns+mirror": image_dihedral,
}
KEYS = {
    "zero_shot": ["dataset", "model", "group", "method", "part"],
    "shifts": ["dataset", "model", "shift"],
}
"""The columns by which rows of the tables are told apart."""
PLAIN, UPRIGHT, MAPS = "plain", "plain, upright images", "equitune: mean of head maps"
PARTS = ("known", "test", "all")
RESAMPLES, LEAST = 200, 10
PROBES = 16
"""Images of each set that deviations are measured on."""
SHIFTS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Of images, in cells of the head map."""
VERSION = 3
"""Of what is measured: to be raised with every change."""


def methods(
    detector: Detector, grid: Image, size: Sequence[int], familiar: WeightedMean
) -> dict[str, nn.Module]:
    """The detector, plain and equivariant in every way, by name; ``familiar`` weighs views."""
    nms, rep = Fusion(), detections_rep(grid, size)
    sure = WeightedMean(familiar.weight, score=surest, features=familiar.features)
    ways = {
        "equitune: union, NMS": Fused(nms, size),
        "equitune: weighted boxes fusion": Fused(Fusion("weighted", 0.55), size),
        "equizero: the surest view": Fused(nms, size, Best(surest), heaviest=True),
        "views weighed by how sure": Fused(nms, size, Best(surest)),
        "lambda: the most familiar view": Fused(nms, size, familiar, heaviest=True),
        "lambda: views weighed": Fused(nms, size, familiar),
        "lambda: views weighed, also by how sure": Fused(nms, size, sure),
    }
    made: dict[str, nn.Module] = {PLAIN: detector}
    made |= {name: Symmetrized(detector, grid, rep, way) for name, way in ways.items()}
    if detector.outputs is of_head_map:
        mean = equitune(detector.network, grid, head_rep(grid, len(detector.classes)))
        made[MAPS] = Detector(mean, of_head_map, detector.classes, detector.suppress)
    return made


@dataclasses.dataclass(frozen=True)
class Study:
    """A detector on two sets of images, under a group; raises ValueError if they do not fit."""

    detector: Detector  # in eval mode
    name: str  # of the detector
    known: Scenes  # to choose methods by
    test: Scenes  # to report
    group: str  # one of GROUPS
    features: str  # submodule of the detector whose maps the weights of lambda-equitune see
    folder: Path  # keeps what was computed
    fit_steps: int = 300  # in which weights are fitted

    def __post_init__(self) -> None:
        """Check them."""
        for scenes in (self.known, self.test):
            if scenes.classes != self.detector.classes or scenes.side != self.known.side:
                raise ValueError(
                    f"{scenes.name} has {len(scenes.classes)} classes and sides of {scenes.side}; "
                    f"the detector has {len(self.detector.classes)} classes, known images have "
                    f"sides of {self.known.side}"
                )
            check_boxes(scenes)
            if len(scenes) < LEAST:
                raise ValueError(
                    f"from fewer than {LEAST} images nothing familiar is learned; {scenes.name} "
                    f"has {len(scenes)}"
                )

    @functools.cached_property
    def grid(self) -> Image:
        """How the group acts on images."""
        return GROUPS[self.group]()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Plain values that tell it from all others, but for names."""
        sets = {"known": self.known.digest, "test": self.test.digest}
        of = {"detector": known(self.detector), **sets, "version": VERSION}
        return {**of, "group": self.group, "features": self.features}

    @property
    def made_with(self) -> str:
        """Sixteen characters that are others for other settings, but for the group and seeds."""
        shared = {name: value for name, value in self.settings.items() if name != "group"}
        return digest({**shared, "fit_steps": self.fit_steps})

    def familiar(self, scenes: Scenes, seed: int) -> WeightedMean:
        """Weights of views by how familiar they look, learned from images without their boxes."""
        images, size = scenes.pixels / 255, (scenes.side, scenes.side)
        with torch.no_grad():
            width = Observed(self.detector, [self.features])(images[:1])[self.features].shape[1]
        weight = MLPWeight((width, 2, 2), (100,), nn.AdaptiveAvgPool2d(2), seed)
        weigh = WeightedMean(weight, features=self.features)
        rep, fused = detections_rep(self.grid, size), Fused(Fusion(), size, weigh)
        learner = Symmetrized(self.detector, self.grid, rep, fused)
        fit_familiarity(learner, images, steps=self.fit_steps, batch_size=16, seed=seed)
        return weigh

    def measure(self, seed: int) -> pd.DataFrame:
        """AP, AP50 in all resamples, and deviations, under random elements of a seed; kept."""
        more = {"seed": seed, "fit_steps": self.fit_steps}
        file = self._file("zero_shot", more)
        return remembered(file, {**self.settings, **more}, lambda: self._measured(seed))

    def table(self, seeds: Sequence[int]) -> pd.DataFrame:
        """What was measured, as means over seeds, with 95 % intervals by resampling images."""
        every = pd.concat([self.measure(seed) for seed in seeds])
        mean = every.groupby(["method", "part", "draw"], sort=False).mean().reset_index()
        upright, rows = mean[mean.method == UPRIGHT], []
        for (method, part), some in mean.groupby(["method", "part"], sort=False):
            row = {"method": method, "part": part, "ap": some.ap.iloc[0]}
            values, best = some.ap50.to_numpy(), upright[upright.part == part].ap50
            shares = values / best.replace(0.0, np.nan).to_numpy()  # there is no share of nothing
            for what, numbers in (("ap50", values), ("share", shares)):
                low, high = np.nanquantile(numbers[1:], [0.025, 0.975])
                row |= {what: numbers[0], f"{what}_low": low, f"{what}_high": high}
            forwards = 1 if method in (PLAIN, UPRIGHT) else len(self.grid.group)
            rows.append({**row, "deviation": some.deviation.iloc[0], "forwards": forwards})
        of = {"dataset": self.test.name, "model": self.name, "group": self.group}
        return pd.DataFrame(rows).assign(**of, seeds=len(seeds), digest=self.made_with)

    def shifts(self) -> pd.DataFrame:
        """How far boxes in shifted test images are from shifted boxes, by the shift in pixels.

        Down and to the right; what comes in repeats the edge. Boxes whose middle is less than a
        cell from it, or leaves, do not count, and images without others neither.
        """
        side, cell = self.test.side, self.test.cell

        def inner(found: Detections, shift: int) -> Detections:
            middle = (found["boxes"][..., :2] + found["boxes"][..., 2:]) / 2
            near = ((middle < shift + cell) | (middle > side - cell)).any(-1)
            return {**found, "labels": found["labels"].masked_fill(near, -1)}

        def made() -> pd.DataFrame:
            still, rows = detected(self.detector, self.test), []
            steps = sorted({max(1, round(cell * part)) for part in SHIFTS})
            for shift in tqdm(steps, "shifts", disable=None):
                wide = functional.pad(self.test.pixels.float(), (shift, 0, shift, 0), "replicate")
                moved = dataclasses.replace(self.test, pixels=wide[..., :side, :side])
                # boxes are cut off at the image's edge
                wanted = {**still, "boxes": (still["boxes"] + shift).clamp(max=side)}
                off = deviation(inner(detected(self.detector, moved), shift), inner(wanted, shift))
                found = dataclasses.asdict(t_interval(off[~np.isnan(off)]))
                rows.append({"shift": shift, "cells": shift / cell, **found})
            return pd.DataFrame(rows)

        found = remembered(self._file("shifts", {}), self.settings, made)
        return found.assign(dataset=self.test.name, model=self.name, digest=self.made_with)

    def _measured(self, seed: int) -> pd.DataFrame:
        """Each set of images is seen by weights that have learned from the other one."""
        generator, size = torch.Generator().manual_seed(seed), (self.test.side, self.test.side)
        rep, both = detections_rep(self.grid, size), []
        found, apart = collections.defaultdict(list), collections.defaultdict(list)
        for own, other in ((self.known, self.test), (self.test, self.known)):
            elements = torch.randint(len(self.grid.group), (len(own),), generator=generator)
            both.append(moved := own.moved(self.grid, elements))
            models = methods(self.detector, self.grid, size, self.familiar(other, seed))
            for name, model in models.items():
                found[name].append(boxes := detected(model, moved))
                some, by = {n: t[:PROBES] for n, t in boxes.items()}, elements[:PROBES]
                off = deviation(some, rep.act_each(by, detected(model, own[:PROBES])))
                apart[name].append(off[(by != 0).numpy()])  # under the identity nothing would be
            found[UPRIGHT].append(detected(self.detector, own))
            apart[UPRIGHT].append(np.zeros(1))
        upright, moved = self.known + self.test, both[0] + both[1]
        split, count, rows = len(self.known), len(moved), []
        parts = dict(zip(PARTS, (np.arange(split), np.arange(split, count), np.arange(count)),
                         strict=True))  # fmt: skip
        for name, sets in found.items():
            judge = judged(joined(sets), upright if name == UPRIGHT else moved)
            off = np.nanmean(np.concatenate(apart[name]))
            for part, images in parts.items():
                draws = np.random.default_rng(0).choice(images, (RESAMPLES, len(images)))
                for draw, some in enumerate([images, *draws]):
                    rows.append((name, part, draw, off, *average_precision(judge, some)))
        return pd.DataFrame(rows, columns=["method", "part", "draw", "deviation", "ap", "ap50"])

    def _file(self, name: str, more: dict[str, Any]) -> Path:
        return Path(self.folder) / f"{name}-{digest({**self.settings, **more})}.csv"
