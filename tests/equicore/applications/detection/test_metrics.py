"""Average precision beside pycocotools, and the deviation of sets of boxes."""

import contextlib
import io

import numpy as np
import pytest
import torch

from equicore.applications.detection import metrics
from equicore.applications.detection.data import DRAWN, drawn
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
    for some in (scenes[1], scenes[1].__class__(*_parts(scenes[1], crowds), DRAWN, "crowds")):
        matches = metrics.matched(found, some)
        ap = metrics.average_precision(matches)
        ap50 = metrics.average_precision(matches, None, metrics.FIFTY)
        assert np.allclose([ap[0], ap50[0]], pycocotools(found, some), atol=1e-12)
        assert 0.1 < ap[0] < ap50[0] < 1
    assert capsys.readouterr().out == ""


def _parts(scenes, crowds):
    return scenes.pixels, scenes.boxes, scenes.labels, crowds


def test_counts_are_those_of_repeated_images(small, scenes):
    some = scenes[1][:10]
    rows = torch.tensor([0, 0, 1, 4, 4, 4, 7, 8, 9, 9])
    counts = np.bincount(rows.numpy(), minlength=10)[None].astype(float)
    matches = metrics.matched(detected(small, some), some)
    again = metrics.matched(detected(small, some[rows]), some[rows])
    one, all_once = metrics.average_precision(matches, np.concatenate([counts, counts * 0 + 1]))
    assert one == pytest.approx(metrics.average_precision(again)[0], abs=1e-9)
    assert all_once == pytest.approx(metrics.average_precision(matches)[0])


def test_perfect_and_no_boxes(scenes):
    some = scenes[1]
    perfect = {"boxes": some.boxes, "labels": some.labels, "scores": (some.labels >= 0).float()}
    assert metrics.average_precision(metrics.matched(perfect, some)) == pytest.approx(1.0)
    nothing = {**perfect, "labels": perfect["labels"] * 0 - 1}
    assert metrics.average_precision(metrics.matched(nothing, some)) == 0
    generator = np.random.default_rng(0)  # in whatever order sums are rounded
    counts = generator.exponential(size=(300, len(some)))
    perfect_in = metrics.average_precision(metrics.matched(perfect, some), counts)
    assert perfect_in == pytest.approx(np.ones(300), abs=1e-12)
    bare = drawn(2, 0)
    bare.labels.fill_(-1)
    with pytest.raises(ValueError, match="no boxes that could be found"):
        metrics.matched(nothing_of(bare), bare)
    with pytest.raises(ValueError, match="sets of boxes for 3 images"):
        metrics.matched(perfect, some[:3])


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
