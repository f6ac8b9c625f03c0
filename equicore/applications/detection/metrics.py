"""How good detections are, by pycocotools, and how far sets of boxes are from each other."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from equicore.applications.detection.data import Scenes
from equicore.applications.detection.detector import Detections, listed
from equicore.applications.detection.fusion import overlaps

LEVELS = np.linspace(0, 1, 101)
"""Recalls at which precision is averaged, as in COCO."""
FIFTY = slice(1)
"""The first of the thresholds .5, .55, ... .95: that of AP50."""


class Matches(NamedTuple):
    """Which of D detections of one class, best first, are right, by COCO's rules."""

    right: NDArray[np.bool_]  # (thresholds, D)
    counted: NDArray[np.bool_]  # (thresholds, D)
    image: NDArray[np.int64]  # of which image each is, (D,)
    wanted: NDArray[np.int64]  # how many boxes are to be found in each image, (images,)


def matched(found: Detections, scenes: Scenes) -> list[Matches]:
    """What is right of detections, for each class that some image shows.

    Raises ValueError if there is not one set of boxes for each image, or no image has boxes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(found["scores"]) != len(scenes):
        raise ValueError(f"{len(found['scores'])} sets of boxes for {len(scenes)} images")
    shown = {name: getattr(scenes, name) for name in ("boxes", "labels", "crowds")}
    truth, given = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, boxes in ((truth, shown), (given, found)):
            images = [{"id": i} for i in range(len(scenes))]
            kinds = [{"id": k} for k in range(len(scenes.classes))]
            coco.dataset = {"images": images, "categories": kinds, "annotations": _coco(boxes)}
            coco.createIndex()
        judge = COCOeval(truth, given, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
        judge.evaluate()
    made = []
    for start in range(0, len(judge.evalImgs), len(scenes)):
        own = [(i, one) for i, one in enumerate(judge.evalImgs[start : start + len(scenes)]) if one]
        wanted = np.zeros(len(scenes), np.int64)
        for i, one in own:
            wanted[i] = np.count_nonzero(one["gtIgnore"] == 0)
        if wanted.any():
            order = np.argsort(-np.concatenate([o["dtScores"] for _, o in own]), kind="mergesort")
            image = np.repeat([i for i, _ in own], [len(o["dtScores"]) for _, o in own])[order]
            right, ignored = (
                np.concatenate([o[name] for _, o in own], 1)[:, order] > 0
                for name in ("dtMatches", "dtIgnore")
            )
            made.append(Matches(right & ~ignored, ~ignored, image, wanted))
    if not made:
        raise ValueError(f"{scenes.name} has no boxes that could be found")
    return made


def _coco(boxes: Detections) -> list[dict[str, Any]]:
    """As annotations of COCO."""
    image, place = (boxes["labels"] >= 0).nonzero(as_tuple=True)
    ends = boxes["boxes"][image, place].double()
    sides = ends[:, 2:] - ends[:, :2]
    nothing = boxes["labels"] * 0
    columns = {
        "image_id": image,
        "category_id": boxes["labels"][image, place],
        "score": boxes.get("scores", nothing)[image, place],
        "iscrowd": boxes.get("crowds", nothing)[image, place].int(),
        "area": sides.prod(-1),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    corner = zip(ends[:, :2].tolist(), sides.tolist(), strict=True)
    return [{"id": n, "bbox": [*at, *wide], **dict(zip(columns, row, strict=True))}
            for n, (row, (at, wide)) in enumerate(zip(rows, corner, strict=True), 1)]  # fmt: skip


def average_precision(
    matches: Sequence[Matches], counts: NDArray[Any] | None = None, thresholds: slice = slice(None)
) -> NDArray[np.float64]:
    """The mean over classes and thresholds of the average precision, as COCO defines it.

    Args:
        matches: Of `matched`, for each class.
        counts: How much each image counts, (R, images), in each of R cases; 1 when omitted.
        thresholds: Which of .5, .55, ... .95.

    Returns:
        Shape (R,). Classes of which a case has no image are left out of its mean.
    """
    if counts is None:
        counts = np.ones((1, len(matches[0].wanted) if matches else 0))
    total, classes = np.zeros(len(counts)), np.zeros(len(counts))
    for one in matches:
        wanted, weights = counts @ one.wanted, counts[:, None, one.image]
        # only where something is right can a level of recall be reached, or precision be best
        places = one.right[thresholds].any(0)
        right = (weights[..., places] * one.right[thresholds][:, places]).cumsum(-1)
        every = (weights * one.counted[thresholds]).cumsum(-1)[..., places]
        precision = right / np.maximum(every, 1e-12)
        precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
        recall = right / np.maximum(wanted, 1e-12)[:, None, None]
        recall[recall > 1 - 1e-9] = 1  # both are sums of the same numbers, in other orders
        # each level counts with the precision of the detection that reaches it first
        reached = np.searchsorted(LEVELS, recall.ravel(), "right").reshape(recall.shape)
        precisions = (np.diff(reached, axis=-1, prepend=0) * precision).sum(-1) / len(LEVELS)
        total += (wanted > 0) * precisions.mean(-1)
        classes += wanted > 0
    return total / np.maximum(classes, 1)


def deviation(one: Detections, other: Detections) -> NDArray[np.float64]:
    """How far sets of boxes are apart, image by image: 0 if they are equal, 1 if none overlap.

    NaN where both sets are empty, which tells nothing.

    Boxes of one class are paired so that the sum of the overlap (intersection over union) times the
    smaller score is largest; the deviation is 1 minus this sum's part of the mean sum of scores.
    """
    found = []
    for a, b in zip(listed(one), listed(other), strict=True):
        x, y = a["scores"].double().numpy(), b["scores"].double().numpy()
        alike = (a["labels"][:, None] == b["labels"]).numpy() * np.minimum(x[:, None], y)
        alike = alike * overlaps(a["boxes"].double().numpy(), b["boxes"].double().numpy())
        shared, whole = alike[linear_sum_assignment(-alike)].sum(), (x.sum() + y.sum()) / 2
        found.append(1 - shared / whole if whole else np.nan)
    return np.array(found)
