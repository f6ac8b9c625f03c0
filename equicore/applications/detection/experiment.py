"""Detectors under turns and mirrors, zero-shot: plain, and made equivariant in every way."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from equicore.applications.detection.data import Scenes
from equicore.applications.detection.detector import (
    Detections,
    Detector,
    detections_rep,
    head_rep,
    joined,
    of_head_map,
)  # fmt: skip
from equicore.applications.detection.finetune import detected, known
from equicore.applications.detection.fusion import Fused, Fusion, surest
from equicore.applications.detection.metrics import FIFTY, average_precision, deviation, matched
from equicore.capture import Observed
from equicore.lab.statistics import t_interval
from equicore.lab.store import digest, remembered, remembered_tensors
from equicore.reduce import Best, Identity, Reducer, WeightedMean
from equicore.representations import (
    Image,
    Trivial,
    image_dihedral,
    image_flips,
    image_rotations,
    regular,
)  # fmt: skip
from equicore.symmetrize import equitune, lambda_equitune
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
RESAMPLES = 300
FOLDS = 5
"""Parts of the known images, each weighed by a network that is fitted to the others."""
SHIFTS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Of images, in cells of the head map."""
VERSION = 2
"""Of what is measured: to be raised with every change."""


def methods(size: Sequence[int]) -> dict[str, Reducer]:
    """What reduces the aligned detections of all views, by name.

    Those of lambda-equitune take log-weights (n, B, 1) for what they see.
    """
    nms, given = Fusion(), WeightedMean(nn.Flatten(0))
    both = WeightedMean(nn.Flatten(0), score=surest)
    return {
        PLAIN: Identity(),
        "equitune: union, NMS": Fused(nms, size),
        "equitune: weighted boxes fusion": Fused(Fusion("weighted", 0.55), size),
        "equizero: the surest view": Fused(nms, size, Best(surest), heaviest=True),
        "views weighed by how sure": Fused(nms, size, Best(surest)),
        "lambda: the most familiar view": Fused(nms, size, given, heaviest=True),
        "lambda: views weighed": Fused(nms, size, given),
        "lambda: views weighed, also by how sure": Fused(nms, size, both),
    }


@dataclasses.dataclass(frozen=True)
class Study:
    """A detector on two sets of images, under a group; raises ValueError if they do not fit."""

    detector: Detector  # in eval mode
    name: str  # of the detector
    known: Scenes  # to choose methods by, and to learn from, without labels, what is familiar
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
        if len(self.known) < 2 * FOLDS:
            raise ValueError(f"known images are at least {2 * FOLDS}; got {len(self.known)}")

    @functools.cached_property
    def scenes(self) -> Scenes:
        """All images, the known ones first."""
        return self.known + self.test

    @functools.cached_property
    def grid(self) -> Image:
        """How the group acts on images."""
        return GROUPS[self.group]()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Plain values that tell it from all others, but for names."""
        of = {"detector": known(self.detector), "scenes": self.scenes.digest, "version": VERSION}
        return {**of, "known": len(self.known), "group": self.group, "features": self.features}

    @functools.cached_property
    def views(self) -> Detections:
        """What the detector finds in all views g x of all images, (|G|, B, ...), and features."""

        @torch.no_grad()
        def made() -> dict[str, Tensor]:
            seen, parts = Observed(self.detector, [self.features]), []
            for x, _ in tqdm(self.scenes.batches(8), "views", len(self.scenes) // 8, disable=None):
                orbit = self.grid.orbit(x)
                found = seen(orbit.flatten(0, 1))
                maps = functional.adaptive_avg_pool2d(found[self.features], 2).flatten(1)
                part = {**found[Observed.OUTPUT], "features": maps}
                parts.append({name: t.unflatten(0, orbit.shape[:2]) for name, t in part.items()})
            return joined(parts, 1)

        return remembered_tensors(self._file("views", {}, "safetensors"), self.settings, made)

    def measure(self, seed: int) -> pd.DataFrame:
        """AP50, in all resamples, AP and the deviation, under random elements of a seed; kept."""
        more = {"seed": seed, "fit_steps": self.fit_steps}
        file = self._file("zero_shot", more)
        return remembered(file, {**self.settings, **more}, lambda: self._measured(seed))

    def table(self, seeds: Sequence[int]) -> pd.DataFrame:
        """What was measured, as means over seeds, with 95 % intervals by resampling images."""
        every, rows = pd.concat([self.measure(seed) for seed in seeds]), []
        mean = every.groupby(["method", "part", "draw"], sort=False).mean()
        for method, part in dict.fromkeys(zip(every.method, every.part, strict=True)):
            some, best = mean.loc[method, part], mean.loc[UPRIGHT, part].ap50.to_numpy()
            row: dict[str, Any] = {"method": method, "part": part, "ap": some.ap.iloc[0]}
            values = some.ap50.to_numpy()
            for what, numbers in (("ap50", values), ("share", values / best)):
                low, high = np.quantile(numbers[1:], [0.025, 0.975])
                row |= {what: numbers[0], f"{what}_low": low, f"{what}_high": high}
            forwards = 1 if method in (PLAIN, UPRIGHT) else len(self.grid.group)
            rows.append({**row, "deviation": some.deviation.iloc[0], "forwards": forwards})
        of = {"dataset": self.test.name, "model": self.name, "group": self.group}
        return pd.DataFrame(rows).assign(**of, seeds=len(seeds), digest=digest(self.settings))

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
        return found.assign(dataset=self.test.name, model=self.name)

    def _measured(self, seed: int) -> pd.DataFrame:
        scenes, group, rows = self.scenes, self.grid.group, []
        generator = torch.Generator().manual_seed(seed)
        elements = torch.randint(len(group), (len(scenes),), generator=generator)
        moved, log_weights = scenes.moved(self.grid, elements), self._log_weights(seed)
        upright = self._found(scenes, elements * 0, log_weights)
        found = self._found(moved, elements, log_weights)
        shown = {name: (boxes, moved) for name, boxes in found.items()}
        shown[UPRIGHT], upright[UPRIGHT] = (upright[PLAIN], scenes), upright[PLAIN]
        # a Bayesian bootstrap (Rubin, 1981): if images were left out, so would be whole classes
        counts = np.random.default_rng(0).exponential(size=(1 + RESAMPLES, len(scenes)))
        counts[0], first = 1, np.arange(len(scenes)) < len(self.known)
        rep = detections_rep(self.grid, (scenes.side, scenes.side))
        for method, (boxes, some) in shown.items():
            by = elements * (some is moved)
            apart = deviation(boxes, rep.act_each(by, upright[method]))
            off = np.nanmean(apart[(elements != 0).numpy()])  # the identity tells nothing
            matches = matched(boxes, some)
            for part, chosen in zip(PARTS, (first, ~first, first | True), strict=True):
                (ap,) = average_precision(matches, counts[:1] * chosen)
                draws = average_precision(matches, counts * chosen, FIFTY)
                rows += [(method, part, off, ap, draw, ap50) for draw, ap50 in enumerate(draws)]
        return pd.DataFrame(rows, columns=["method", "part", "deviation", "ap", "draw", "ap50"])

    def _found(self, scenes: Scenes, elements: Tensor, weights: Tensor) -> dict[str, Detections]:
        """What each method finds in images that are moved by elements."""
        # the view g (h x) of a moved image is the view (g h) x of the upright one
        place = torch.tensor(self.grid.group.table).long()[:, elements], torch.arange(len(scenes))
        raw = {name: self.views[name][place] for name in ("boxes", "scores", "labels")}
        size, seen = (scenes.side, scenes.side), weights[place].unsqueeze(-1)
        stack, ways = detections_rep(self.grid, size).align(raw), methods(size)
        found = {name: way.whole(stack, way.scores(seen, raw)) for name, way in ways.items()}
        if self.detector.outputs is of_head_map:
            heads = head_rep(self.grid, len(scenes.classes))
            mean = equitune(self.detector.network, self.grid, heads)
            whole = Detector(mean, of_head_map, scenes.classes, self.detector.suppress)
            found[MAPS] = detected(whole, scenes)
        return found

    def _log_weights(self, seed: int) -> Tensor:
        """How familiar each view is, (|G|, B), learned without labels from known images.

        The networks that weigh a known image have not learned from it.
        """
        features, group = self.views["features"], self.grid.group
        place, found = torch.arange(features.shape[1]), torch.empty(features.shape[:2])
        fold = torch.where(place < len(self.known), place % FOLDS, FOLDS)
        # row h of an image's table is of the view h^-1 x, so that the group exchanges the rows
        tables = features[torch.tensor(group.inverses).long()].transpose(0, 1)
        options: dict[str, Any] = {"steps": self.fit_steps, "batch_size": 64, "seed": seed}
        for own in range(FOLDS + 1):
            weight = MLPWeight(features.shape[2:], (100,), _First(), seed)
            model = lambda_equitune(_First(), regular(group, -2), Trivial(group), weight)
            fit_familiarity(model, tables[(fold != own) & (fold < FOLDS)], **options)
            with torch.no_grad():
                asked = features[:, fold == own]
                found[:, fold == own] = weight(asked.flatten(0, 1)[:, None]).view(asked.shape[:2])
        return found

    def _file(self, name: str, more: dict[str, Any], suffix: str = "csv") -> Path:
        return Path(self.folder) / f"{name}-{digest({**self.settings, **more})}.{suffix}"


class _First(nn.Module):
    """The first row of tables (B, |G|, F)."""

    def forward(self, table: Tensor) -> Tensor:
        """Shape (B, F)."""
        return table[:, 0]
