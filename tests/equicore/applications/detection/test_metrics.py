"""Average precision beside pycocotools, and the deviation of sets of boxes."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
import torch

from equicore.applications.detection import metrics
from equicore.applications.detection.data import drawn
from equicore.applications.detection.finetune import detected


@pytest.fixture(scope="module")
def found(small, scenes):
    return detected(small, scenes[1])


def pycocotools(found, scenes):
    """AP and AP50, by its own summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    shown = {name: getattr(scenes, name) for name in ("boxes", "labels", "crowds")}
    truth, given = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, boxes in ((truth, shown), (given, found)):
            coco.dataset = {
                "images": [{"id": i} for i in range(len(scenes))],
                "categories": [{"id": k} for k in range(3)],
                "annotations": metrics._coco(boxes),
            }
            coco.createIndex()
        judge = COCOeval(truth, given, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[:2]


def test_it_is_what_pycocotools_says(found, scenes, capsys):
    crowds = scenes[1].crowds.clone()
    crowds[::3, 0] = True
    for some in (
        scenes[1],
        dataclasses.replace(scenes[1], crowds=crowds),
    ):
        ap, ap50 = metrics.average_precision(metrics.judged(found, some))
        assert np.allclose([ap, ap50], pycocotools(found, some), atol=1e-12)
        assert 0.1 < ap < ap50 < 1
    assert capsys.readouterr().out == ""


def test_some_images_that_repeat(small, scenes):
    some = scenes[1][:10]
    rows = torch.tensor([0, 0, 1, 4, 4, 4, 7, 8, 9, 9])
    judge = metrics.judged(detected(small, some), some)
    again = metrics.judged(detected(small, some[rows]), some[rows])
    found = metrics.average_precision(judge, rows.numpy())
    assert found == pytest.approx(metrics.average_precision(again), abs=1e-12)
    assert found != pytest.approx(metrics.average_precision(judge), abs=1e-3)
    assert metrics.average_precision(judge, range(10)) == metrics.average_precision(judge)


def test_perfect_and_no_boxes(scenes):
    some = scenes[1]
    perfect = {"boxes": some.boxes, "labels": some.labels, "scores": (some.labels >= 0).float()}
    judge = metrics.judged(perfect, some)
    assert metrics.average_precision(judge) == (1, 1)
    assert metrics.average_precision(judge, [3, 3, 5]) == (1, 1)  # of the classes that they show
    nothing = {**perfect, "labels": perfect["labels"] * 0 - 1}
    assert metrics.average_precision(metrics.judged(nothing, some)) == (0, 0)
    bare = drawn(2, 0)
    bare.labels.fill_(-1)
    with pytest.raises(ValueError, match="none of these 2 images of drawn-64 has boxes"):
        metrics.judged(nothing_of(bare), bare)
    broken = {**perfect, "boxes": perfect["boxes"] * float("nan")}
    with pytest.raises(ValueError, match="not finite"):
        metrics.judged(broken, some)
    with pytest.raises(ValueError, match="sets of boxes for 3 images"):
        metrics.judged(perfect, some[:3])


def nothing_of(scenes):
    return {"boxes": scenes.boxes, "labels": scenes.labels, "scores": scenes.labels * 0.0}


def test_deviation():
    one = {"boxes": torch.tensor([[[0.0, 0, 2, 2], [5, 5, 6, 6]]]), "scores": torch.ones(1, 2) / 2,
           "labels": torch.tensor([[0, 1]])}  # fmt: skip
    other = {**one, "boxes": one["boxes"].flip(1), "labels": one["labels"].flip(1)}
    assert metrics.deviation(one, other) == pytest.approx(0)  # the order does not count
    third = {**one, "boxes": one["boxes"] + torch.tensor([1.0, 0, 1, 0])}
    assert metrics.deviation(one, third) == pytest.approx(1 - (1 / 3 + 0) / 2)
    assert metrics.deviation(one, {**one, "labels": one["labels"] + 2}) == 1
    absent = {**one, "labels": one["labels"] * 0 - 1}
    assert metrics.deviation(one, absent) == 1 and np.isnan(metrics.deviation(absent, absent))
