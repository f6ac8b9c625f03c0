"""How good detections are, by pycocotools, and how far sets of boxes are from each other."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from equicore.applications.detection.data import Scenes
from equicore.boxes import Detections, listed, overlaps

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval


def judged(found: Detections, scenes: Scenes) -> COCOeval:
    """Which detections are right, for each image and class, by COCO's rules.

    Raises ValueError if there is not one set of boxes for each image, they are not finite, or no
    image has boxes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(found["scores"]) != len(scenes):
        raise ValueError(f"{len(found['scores'])} sets of boxes for {len(scenes)} images")
    check_boxes(scenes)
    if not (found["boxes"].isfinite().all() and found["scores"].isfinite().all()):
        raise ValueError("boxes or scores are not finite, of which none could be right")
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
        judge.params.maxDets = judge.params.maxDets[-1:]
        judge.evaluate()
    return judge


def check_boxes(scenes: Scenes) -> None:
    """Raise ValueError if no image has boxes that could be found."""
    if not ((scenes.labels >= 0) & ~scenes.crowds).any():
        raise ValueError(
            f"none of these {len(scenes)} images of {scenes.name} has boxes that could be found"
        )


def average_precision(
    judge: COCOeval, images: Sequence[int] | NDArray[Any] | None = None
) -> tuple[float, float]:
    """COCO's AP, from .5 to .95, and AP50: means over the classes that images show.

    Args:
        judge: Of `judged`.
        images: Places of those that count, in which some may repeat; all when omitted.
    """
    count, some = len(judge.params.imgIds), copy.copy(judge)
    images = range(count) if images is None else images
    starts = range(0, len(judge.evalImgs), count)  # of each class
    some.evalImgs = [judge.evalImgs[start + image] for start in starts for image in images]
    some.params = copy.copy(judge.params)
    some.params.imgIds, some._paramsEval = range(len(images)), some.params
    with contextlib.redirect_stdout(io.StringIO()):
        some.accumulate()
    precision = some.eval["precision"].squeeze((-2, -1))  # (thresholds, recalls, classes)
    shown = precision[:, :, (precision > -1).all((0, 1))]
    return float(shown.mean()), float(shown[0].mean())


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
