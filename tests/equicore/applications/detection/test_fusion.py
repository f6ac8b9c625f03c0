"""The fused boxes of a moved image are the moved fused boxes."""

import pytest
import torch

from equicore import MLPWeight, Symmetrized, image_dihedral, image_flips, image_rotations
from equicore.applications.detection import detector as d
from equicore.applications.detection import fastestdet
from equicore.applications.detection.data import read
from equicore.applications.detection.experiment import PLAIN, methods
from equicore.boxes import Fused, Fusion, detections_rep, listed, overlaps, surest
from equicore.reduce import Best, WeightedMean

D4 = image_dihedral()
SIDE = 192
CLASSES = tuple(map(str, range(80)))


@pytest.fixture(scope="module")
def photo(weights):
    """A photograph with many boxes, and FastestDet."""
    coco = weights.parents[1] / "detection" / "tiny_coco"
    if not coco.is_dir():
        pytest.skip("shared/detection is not here")
    scenes = read(coco / "val2017", coco / "annotations" / "instances_val2017.json", SIDE)
    rows = (scenes.labels >= 0).sum(1).argsort(descending=True)[:1]
    model = d.Detector(fastestdet.load(weights), d.of_head_map, CLASSES, Fusion()).eval()
    return scenes[rows].pixels / 255, model


def test_on_a_real_image_under_all_elements(photo, apart):
    image, model = photo
    moved, rep = D4.orbit(image)[:, 0], detections_rep(D4, (SIDE, SIDE))  # one batch of all eight
    weight = MLPWeight((96, 2, 2), pool=torch.nn.AdaptiveAvgPool2d(2))
    torch.nn.init.normal_(weight.network[-1].weight, std=0.3)
    familiar = WeightedMean(weight, features="network.SPP")
    for name, way in methods(model, D4, (SIDE, SIDE), familiar).items():
        with torch.no_grad():
            fused = way(moved)
        first = {entry: t[:1].expand(8, *t.shape[1:]) for entry, t in fused.items()}
        far = apart(fused, rep.act_each(torch.arange(8), first), SIDE)
        if name == PLAIN:
            assert far > 0.1
        else:
            assert far < 1e-5, name
            assert (fused["labels"][0] >= 0).sum() > 10


@pytest.mark.parametrize("grid", [image_rotations(), image_flips(), image_flips(-2), D4])
@pytest.mark.parametrize("kind", ["nms", "weighted"])
def test_symmetrized_detectors(small, scenes, grid, kind, apart):
    images = scenes[1].pixels[:3] / 255
    rep = detections_rep(grid, (64, 64))
    model = Symmetrized(small, grid, rep, Fused(Fusion(kind), (64, 64), Best(surest)))
    elements = torch.arange(3) % len(grid.group)
    with torch.no_grad():
        fused, moved = model(images), model(grid.act_each(elements, images))
        alone = model(images[:1])
    assert apart(moved, rep.act_each(elements, fused), 64) < 1e-5
    assert apart(alone, {name: t[:1] for name, t in fused.items()}, 64) < 1e-5


def test_weights_from_features_and_chunks(small, scenes, apart):
    grid, images = image_rotations(), scenes[1].pixels[:2] / 255
    weight = MLPWeight((64, 2, 2), pool=torch.nn.AdaptiveAvgPool2d(2))
    torch.nn.init.normal_(weight.network[-1].weight, std=0.3)
    weigh = WeightedMean(weight, features="network.body")
    rep, reduce = detections_rep(grid, (64, 64)), Fused(Fusion(), (64, 64), weigh)
    whole = Symmetrized(small, grid, rep, reduce)
    parts = Symmetrized(small, grid, rep, reduce, chunk=3)
    with torch.no_grad():
        found = whole(images)
        assert apart(found, parts(images), 64) < 1e-6
        assert apart(whole(grid.act(1, images)), rep.act(1, found), 64) < 1e-5
        union = Symmetrized(small, grid, rep, Fused(Fusion(), (64, 64)))(images)
    assert apart(found, union, 64) > 0.01


@pytest.mark.parametrize("kind", ["nms", "weighted"])
def test_ties_do_not_depend_on_an_order(kind, apart):
    """In an image that is its own mirror image, boxes tie with their mirror images."""
    mirror = image_flips()
    rep = detections_rep(mirror, (100, 100))
    boxes = torch.tensor([[20.0, 10, 70, 50], [24, 12, 72, 55], [5, 60, 30, 90]])
    scores, labels = torch.tensor([0.9, 0.7, 0.4]), torch.tensor([1, 1, 0])
    one = {"boxes": boxes[None], "scores": scores[None], "labels": labels[None]}
    views = {n: torch.stack([t, rep.act(1, one)[n]]) for n, t in one.items()}
    fused = Fusion(kind)(views, (100, 100))
    other = Fusion(kind)({name: t.flip(0) for name, t in views.items()}, (100, 100))
    assert apart(fused, other, 100) < 1e-6 and apart(fused, rep.act(1, fused), 100) < 1e-6
    if kind == "nms":  # the mean of a box and its mirror image
        best = fused["boxes"][0, fused["scores"][0].argmax()]
        torch.testing.assert_close(best, torch.tensor([25.0, 10, 75, 50]))


def test_views_that_agree_are_as_sure_as_one():
    one = boxes_of((0, 0, 40, 40, 0.9, 0), (60, 60, 90, 90, 0.3, 1))
    four = {name: t.expand(4, *t.shape[1:]) for name, t in one.items()}
    for kind in ("nms", "weighted"):
        found = listed(Fusion(kind)(four, (100, 100)))[0]
        torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.3]).double())
        torch.testing.assert_close(found["boxes"], one["boxes"][0, 0])


def test_equizero_joins_views_that_tie():
    grid = image_flips()
    rep = detections_rep(grid, (100, 100))
    one = {"boxes": torch.tensor([[[0.0, 0, 20, 20]]]), "scores": torch.tensor([[0.5]]),
           "labels": torch.tensor([[2]])}  # fmt: skip
    stack = {name: torch.stack([t, rep.act(1, one)[name]]) for name, t in one.items()}
    reduce = Fused(Fusion(), (100, 100), Best(surest), heaviest=True)
    fused = reduce.whole(stack, reduce.scores(None, stack))
    assert sorted(listed(fused)[0]["boxes"].tolist()) == [[0, 0, 20, 20], [80, 0, 100, 20]]
    surer = {**stack, "scores": torch.tensor([[[0.5]], [[0.6]]])}
    fused = reduce.whole(surer, reduce.scores(None, surer))
    assert listed(fused)[0]["boxes"].tolist() == [[80, 0, 100, 20]]


def boxes_of(*rows):
    """Of one image and one view: x, y, x, y, score, label."""
    table = torch.tensor(rows, dtype=torch.float64).view(1, 1, -1, 6)
    return {"boxes": table[..., :4], "scores": table[..., 4], "labels": table[..., 5].long()}


def test_suppression():
    found = boxes_of(
        (0, 0, 40, 40, 0.9, 0), (0, 0, 40, 38, 0.8, 0), (0, 0, 40, 39, 0.7, 1),
        (50, 50, 90, 90, 0.6, 0), (5, 5, 5, 40, 0.9, 0), (0, 0, 9, 9, 0.001, 0),
        (0, 0, 9, 9, 0, -1),
    )  # fmt: skip
    kept = listed(Fusion()(found, (100, 100)))[0]
    assert kept["scores"].tolist() == [0.9, 0.7, 0.6] and kept["labels"].tolist() == [0, 1, 0]
    assert len(listed(Fusion(most=2)(found, (100, 100)))[0]["scores"]) == 2
    wide = Fusion()(boxes_of((0, 0, 300, 40, 0.9, 0)), (100, 200))
    assert wide["boxes"][0, 0].tolist() == [0, 0, 200, 40]  # cut off at the edge


def test_weighted_boxes():
    views = boxes_of((0, 0, 40, 40, 0.9, 0))
    other = boxes_of((0, 0, 40, 20, 0.3, 0))
    both = {name: torch.cat([t, other[name]]) for name, t in views.items()}
    fused = listed(Fusion("weighted", overlap=0.4)(both, (100, 100)))[0]
    torch.testing.assert_close(fused["boxes"], torch.tensor([[0, 0, 40, 35.0]]).double())
    torch.testing.assert_close(fused["scores"], torch.tensor([0.6]).double())


@pytest.mark.parametrize("kind", ["nms", "weighted"])
def test_nothing_found(kind):
    nothing = Fusion(kind)(boxes_of((0, 0, 9, 9, 0, -1)), (10, 10))
    assert listed(nothing)[0]["boxes"].shape == (0, 4) and nothing["labels"].shape == (1, 100)
    none_given = {"boxes": torch.zeros(2, 3, 0, 4), "scores": torch.zeros(2, 3, 0)}
    found = Fusion(kind)({**none_given, "labels": torch.zeros(2, 3, 0).long()}, (10, 10))
    assert [len(one["scores"]) for one in listed(found)] == [0, 0, 0]


def test_images_of_a_batch_do_not_mix():
    one, two = boxes_of((0, 0, 40, 40, 0.9, 3)), boxes_of((0, 0, 40, 41, 0.8, 3))
    both = {name: torch.cat([t, two[name]], 1) for name, t in one.items()}
    found = listed(Fusion()(both, (100, 100)))
    assert [image["scores"].tolist() for image in found] == [[0.9], [0.8]]
    assert [image["labels"].tolist() for image in found] == [[3], [3]]


def test_overlaps():
    one, other = torch.tensor([[0.0, 0, 2, 2]]).numpy(), torch.tensor([[1.0, 0, 3, 2]]).numpy()
    assert overlaps(one, other).tolist() == [[pytest.approx(1 / 3)]]


def test_what_cannot_be_fused_is_refused():
    for options in ({"kind": "NMS"}, {"overlap": 45}, {"least": -1.0}, {"most": 0}):
        with pytest.raises(ValueError, match="a fusion is of the kind|overlaps lie between"):
            Fusion(**options)
    with pytest.raises(ValueError, match="without weigh no view is the heaviest"):
        Fused(Fusion(), (64, 64), heaviest=True)
    found = {"boxes": torch.tensor([[[[40.0, 40, 60, 60]]]]), "scores": torch.ones(1, 1, 1),
             "labels": torch.zeros(1, 1, 1, dtype=torch.uint8)}  # fmt: skip
    fused = Fusion()(found, (64, 64))
    assert [len(one["scores"]) for one in listed(fused)] == [1]  # uint8 has no -1
    with pytest.raises(ValueError, match="outside of images of 32 x 32 pixels: is size that"):
        Fusion()(found, (32, 32))
    with pytest.raises(ValueError, match="not finite"):
        Fusion()({**found, "boxes": found["boxes"] * float("nan")}, (64, 64))
