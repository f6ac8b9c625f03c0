"""Sets of boxes: how a group acts on what detectors find, and how the sets of all views become one.

The convention is torchvision's: corners (x, y, x, y) in pixels, the origin in the upper left corner
of the image, a score from 0 to 1, a label. As images have several numbers of boxes, a batch of
`Detections` is padded with boxes of score 0 and label -1.

What the mean of equitune is to tensors, `Fusion` is to sets of boxes. Equizero and lambda-equitune
weigh the views first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from equicore.reduce import NOTHING, Best, Reducer, WeightedMean, near
from equicore.representations import Boxes, Elements, Image, Tree, Trivial
from equicore.trees import tree_map

EMPTY = {"boxes": 0.0, "scores": 0.0, "labels": -1}
"""What batches of detections are padded with."""
Detections = dict[str, Tensor]
"""``boxes`` (B, N, 4), ``scores`` (B, N) and ``labels`` (B, N)."""
Parts = Sequence[NDArray[Any]]
"""Boxes, scores and labels of a list."""
TIED = 1e-6
"""Scores that differ by this part of the larger one are the same, up to rounding."""


def detections_rep(grid: Image, size: Sequence[int]) -> Tree:
    """How turns and mirrors act on `Detections` in images of a size (rows, columns).

    Raises ValueError if there are quarter turns and images are not square, or there are shifts.

    >>> from equicore import image_rotations
    >>> found = {"boxes": torch.tensor([[[10.0, 20, 40, 30]]]), "scores": torch.ones(1, 1),
    ...          "labels": torch.zeros(1, 1)}
    >>> detections_rep(image_rotations(), (100, 100)).act(1, found)["boxes"]
    tensor([[[20., 60., 30., 90.]]])
    """
    same = Trivial(grid.group)
    return Tree({"boxes": Boxes(grid, "corners", size), "scores": same, "labels": same})


@dataclasses.dataclass(frozen=True)
class Fusion:
    """How boxes of one class that overlap become one.

    Attributes:
        kind: ``"nms"``, the best score suppresses others; ``"weighted"``, they become their mean,
            weighed by scores, whose score is theirs times the part of views that have one
            (weighted boxes fusion, Solovyev et al., 2021).
        overlap: From this intersection over union on.
        least: Boxes whose scores are not larger are left out.
        most: So many boxes of an image are left, the best.
    """

    kind: Literal["nms", "weighted"] = "nms"
    overlap: float = 0.45
    least: float = 0.01
    most: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError for values that cannot be."""
        if self.kind not in ("nms", "weighted"):
            raise ValueError(f"a fusion is of the kind 'nms' or 'weighted'; got {self.kind!r}")
        if not 0 < self.overlap < 1 or not 0 <= self.least < 1 or self.most < 1:
            raise ValueError(
                "overlaps lie between 0 and 1, scores to leave out from 0 to 1, and one box or "
                f"more is left; got {self.overlap}, {self.least} and {self.most}"
            )

    def __call__(self, views: Detections, size: Sequence[int]) -> Detections:
        """One set for each image, (B, most, ...), best first, on the CPU and without gradients.

        Boxes of one class whose scores tie, as they do in images that some element leaves as they
        are, first get the mean of those that overlap: else whichever comes first would decide.

        Args:
            views: The boxes of all views of the images, aligned: (n, B, N, ...).
            size: Rows and columns of the images.

        Raises:
            ValueError: If boxes or scores are not finite, or a box lies outside of such images.
        """
        from ensemble_boxes import nms, weighted_boxes_fusion

        scale = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
        corners = views["boxes"].detach().cpu().double() / scale
        scores, labels = views["scores"].detach().cpu().double(), views["labels"].cpu().long()
        if not (corners.isfinite().all() and scores.isfinite().all()):
            raise ValueError("boxes or scores are not finite; a detector is broken, or overflows")
        middle = (corners[..., :2] + corners[..., 2:]) / 2
        there = (labels >= 0) & (scores > self.least)
        if (outside := there & ((middle < 0) | (middle > 1)).any(-1)).any():
            first = views["boxes"].cpu()[outside][0].tolist()
            raise ValueError(
                f"a box with the corners {[round(end, 2) for end in first]} lies outside of images "
                f"of {size[0]} x {size[1]} pixels: is size that of the images?"
            )
        corners = corners.clamp(0, 1)
        solid = (corners[..., 2:] > corners[..., :2]).all(-1) & (labels >= 0)
        place = (solid & (scores > self.least)).nonzero(as_tuple=True)
        # the library treats each label by itself, so that all images are given to it at once
        count = int(labels[place].max()) + 1 if len(place[0]) else 1
        flat = corners[place], scores[place], place[1] * count + labels[place], place[0]
        boxes, sure, kinds, view = (part.numpy() for part in flat)
        boxes = _untied(boxes, sure, kinds, self.overlap if self.kind == "nms" else 0.0)
        fused: Parts = (boxes, sure, kinds)
        if self.kind == "nms" and len(boxes):
            fused = nms(*([part] for part in fused), iou_thr=self.overlap)
        elif len(boxes):
            each = [[part[view == number] for part in fused] for number in range(len(scores))]
            options = {"iou_thr": self.overlap, "skip_box_thr": self.least}
            fused = weighted_boxes_fusion(*zip(*each, strict=True), **options)
        image, kinds = np.divmod(fused[2].astype(int), count)
        order = np.lexsort((-fused[1], image))
        sizes = np.bincount(image, minlength=scores.shape[1])
        rank = np.arange(len(image)) - (np.cumsum(sizes) - sizes)[image[order]]
        order, rank = order[rank < self.most], rank[rank < self.most]
        made = {}
        parts = {"boxes": fused[0] * scale.numpy(), "scores": fused[1], "labels": kinds}
        for name, part in parts.items():
            shape = scores.shape[1], self.most, *part.shape[1:]
            kind = torch.long if name == "labels" else views[name].dtype
            room = torch.full(shape, EMPTY[name], dtype=kind)
            room[image[order], rank] = torch.from_numpy(part[order]).to(room.dtype)
            made[name] = room
        return made


class Fused(Reducer):
    """The reducer that fuses the boxes of all views, for `equicore.Symmetrized`.

    Args:
        fusion: How.
        size: Rows and columns of the images.
        weigh: Which views count, and how much: all alike when omitted (equitune); `Best` of a
            score, or `WeightedMean` (lambda-equitune), multiply the scores of a view's boxes by its
            weight, in parts of the largest.
        heaviest: Only the view of the largest weight counts, or those that tie (equizero).

    Raises:
        ValueError: If the heaviest view is wanted and nothing weighs them.
    """

    averages = False

    def __init__(
        self,
        fusion: Fusion,
        size: Sequence[int],
        weigh: Best | WeightedMean | None = None,
        heaviest: bool = False,
    ) -> None:
        super().__init__()
        if heaviest and weigh is None:
            raise ValueError("without weigh no view is the heaviest: give Best or WeightedMean")
        self.fusion, self.size, self.weigh, self.heaviest = fusion, size, weigh, heaviest
        self.needs = NOTHING if weigh is None else weigh.needs
        self.features = None if weigh is None else weigh.features

    def scores(self, seen: Any, raw: Any) -> Tensor | None:
        return None if self.weigh is None else self.weigh.scores(seen, raw)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        """All boxes, and the scores."""
        return stack, scores

    def merge(self, first: Any, second: Any) -> Any:
        return tree_map(lambda *parts: torch.cat(parts), first, second)

    def finish(self, state: Any) -> Detections:
        stack, scores = state
        if scores is not None:
            best = scores.max(0).values
            weights = near(scores, best).to(scores) if self.heaviest else (scores - best).exp()
            stack = {**stack, "scores": stack["scores"] * weights.unsqueeze(-1)}
        return self.fusion(stack, self.size)


def joined(parts: Sequence[Detections]) -> Detections:
    """Detections of several batches as one, padded to the largest number of boxes."""
    most = max(part["scores"].shape[1] for part in parts)

    def padded(tensor: Tensor, value: float) -> Tensor:
        room = [0, 0] * (tensor.ndim - 2) + [0, most - tensor.shape[1]]
        return functional.pad(tensor, room, value=value)

    return {name: torch.cat([padded(part[name], value) for part in parts])
            for name, value in EMPTY.items()}  # fmt: skip


def listed(found: Detections) -> list[Detections]:
    """For each image its own boxes, scores and labels, without the padding."""
    kept = found["labels"] >= 0
    return [{name: t[i][kept[i]] for name, t in found.items()} for i in range(len(kept))]


def surest(found: Detections) -> Tensor:
    """The logarithm of the sum of an image's five best scores: how sure the detector is."""
    scores = found["scores"]
    return scores.topk(min(5, scores.shape[-1]), -1).values.sum(-1).clamp(min=1e-9).log()


def overlaps(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union of all pairs of boxes (N, 4) and (M, 4), corners; shape (N, M)."""
    low = np.maximum(one[:, None, :2], other[:, :2])
    shared = (np.minimum(one[:, None, 2:], other[:, 2:]) - low).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)


def _untied(
    boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], overlap: float
) -> NDArray[Any]:
    """The boxes; those of one label that tie and overlap have become their mean."""
    from scipy.sparse.csgraph import connected_components

    order, group = np.lexsort((scores, labels)), np.zeros(len(scores), int)
    kinds, rising = labels[order], scores[order]
    group[order[1:]] = np.cumsum((np.diff(kinds) != 0) | (np.diff(rising) > TIED * rising[1:]))
    many = np.flatnonzero(np.bincount(group, minlength=1)[group] > 1)
    if len(many):
        alike = (group[many, None] == group[many]) & (overlaps(boxes[many], boxes[many]) > overlap)
        count, of = connected_components(alike, directed=False)
        for own in (many[of == number] for number in range(count)):
            boxes[own] = boxes[own].mean(0)
    return boxes
