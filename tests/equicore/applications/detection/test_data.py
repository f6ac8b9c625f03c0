"""Annotations of COCO and Pascal VOC, of others and made here, and drawn scenes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from equicore import image_dihedral
from equicore.applications.detection import data
from equicore.boxes import detections_rep

VOC = """<annotation><filename>{name}.png</filename>
<size><width>40</width><height>20</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x0}</xmin>
<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        pixels = np.arange(40 * 20 * 3, dtype=np.uint8).reshape(20, 40, 3)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def coco(**changes):
    """Two images, of which the second has no box."""
    box = {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 10], "iscrowd": 0}
    image = {"id": 7, "file_name": "a.png", "width": 40, "height": 20}
    other = {**image, "id": 8, "file_name": "b.png"}
    kinds = [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": [image, other], "annotations": [box], "categories": kinds}
    for name, change in changes.items():
        where, _, key = name.partition("__")
        content[where][0][key] = change
    return content


def read(pictures, content, side=20, **options):
    file = pictures.parent / "instances.json"
    file.write_text(json.dumps(content))
    return data.read(pictures, file, side, **options)


def test_coco(pictures):
    scenes = read(pictures, coco(annotations__iscrowd=1))
    assert scenes.classes == ("dog", "cat") and scenes.name == "instances" and scenes.empty == 1
    assert scenes.pixels.shape == (2, 3, 20, 20) and scenes.side == 20
    assert scenes.boxes[0, 0].tolist() == [5, 5, 15, 15]  # columns are halved
    assert scenes.labels[:, 0].tolist() == [1, -1] and scenes.crowds[:, 0].tolist() == [True, False]
    exact = np.array(Image.open(pictures / "a.png")).reshape(20, 20, 2, 3).mean(2)
    assert abs(scenes.pixels[0].movedim(0, -1).numpy() - exact).max() <= 0.51
    assert scenes.digest != read(pictures, coco()).digest
    assert read(pictures, coco(annotations__bbox=[-0.5, 5, 20, 10])).boxes[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations__bbox": [30, 5, 20, 10]}, r"corners \[30.0, 5.0, 50.0, 15.0\] of a.png.*40"),
        ({"annotations__bbox": [10, 5, 0, 10]}, "of a.png is empty"),
        ({"annotations__bbox": [10, 5, float("nan"), 10]}, "is empty, or outside"),
        ({"annotations__bbox": [10, 5]}, "is not usable"),
        ({"annotations__category_id": 3}, "has no 3; it needs images, categories"),
        ({"annotations__image_id": 3}, "an annotation is of the image 3, not there"),
        ({"annotations__bbox": [0.1, 0.2, 0.5, 0.3]}, "end within the first pixel: .* in pixels"),
        ({"images__width": 41}, "a.png is 40 x 20 pixels, and its annotation says 41 x 20"),
        ({"images__id": 8, "annotations__image_id": 8}, "has one image's id twice"),
        ({"images__file_name": "b.png"}, "has one image file twice"),
        ({"categories__id": 2, "annotations__category_id": 2}, "has one category's id twice"),
        ({"categories__name": "dog"}, "has one category's name twice"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(pictures, changes, message):
    with pytest.raises(ValueError, match=message):
        read(pictures, coco(**changes))


def test_how_a_camera_was_held_does_not_matter(pictures):
    """Boxes are of the pixels as they are stored."""
    expected = read(pictures, coco()).pixels
    with Image.open(pictures / "a.png") as image:
        exif = image.getexif()
        exif[274] = 3  # upside down
        image.save(pictures / "a.png", exif=exif)
    assert torch.equal(read(pictures, coco()).pixels, expected)


def test_other_mistakes_are_refused(pictures):
    with pytest.raises(FileNotFoundError, match=r"no image .*lost.png, which the annotations name"):
        read(pictures, coco(images__file_name="lost.png"))
    with pytest.raises(FileNotFoundError, match="there is no"):
        data.read(pictures / "none", pictures, 20)
    with pytest.raises(ValueError, match="shows 'cat', which is none of the classes"):
        read(pictures, coco(), classes=["dog", "cow"])
    with pytest.raises(ValueError, match="has no 'annotations'"):
        read(pictures, {"images": [], "categories": []})
    with pytest.raises(ValueError, match="is not usable"):
        read(pictures, [1])
    with pytest.raises(ValueError, match="has no images"):
        read(pictures, {**coco(), "images": [], "annotations": []})
    with pytest.raises(ValueError, match="a split names a list of Pascal VOC"):
        read(pictures, coco(), split="val")
    many = {**coco(), "annotations": coco()["annotations"] * 101}
    with pytest.raises(ValueError, match="a.png has 101 boxes"):
        read(pictures, many)
    (pictures / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        read(pictures, coco())


@pytest.fixture
def voc(pictures):
    folder = pictures.parent / "voc" / "Annotations"
    folder.mkdir(parents=True)
    cat = OBJECT.format(name="cat", hard=0, x0=1, y0=1, x1=40, y1=10)
    dog = OBJECT.format(name="dog", hard=1, x0=5, y0=5, x1=5, y1=5)
    (folder / "a.xml").write_text(VOC.format(name="a", objects=cat + dog))
    (folder / "b.xml").write_text(VOC.format(name="b", objects=""))
    lists = pictures.parent / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("b  1\n")
    (lists / "lost.txt").write_text("c\n")
    return folder


def test_voc(pictures, voc):
    scenes = data.read(pictures, voc, 20)
    assert scenes.classes == ("cat", "dog") and scenes.name == "voc"
    # corners of VOC are pixels, counted from 1: a box of one pixel is none that is empty
    assert scenes.boxes[0, :2].tolist() == [[0, 0, 20, 10], [2, 4, 2.5, 5]]
    assert scenes.crowds[0, :2].tolist() == [False, True]
    val = data.read(pictures, voc, 20, "val")
    assert len(val) == val.empty == 1 and val.name == "voc-val" and val.classes == scenes.classes


def test_voc_that_does_not_fit_is_refused(pictures, voc):
    with pytest.raises(FileNotFoundError, match=r"none.txt"):
        data.read(pictures, voc, 20, "none")
    with pytest.raises(ValueError, match="names c, of which there is no XML file"):
        data.read(pictures, voc, 20, "lost")
    good = (voc / "a.xml").read_text()
    entity = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    for text, message in (
        (entity + good, "a.xml is no annotation of Pascal VOC: it declares a document type"),
        (good[:-5], "a.xml is no annotation"),
        (good.replace("<width>40</width>", ""), "a.xml is no annotation"),
    ):
        (voc / "a.xml").write_text(text)
        with pytest.raises(ValueError, match=message):
            data.read(pictures, voc, 20)


def test_drawn_scenes_are_repeatable_and_hold_their_boxes():
    one, two = data.drawn(20, 0), data.drawn(20, 0)
    assert one.digest == two.digest != data.drawn(20, 1).digest and one.empty == 0
    shown = one.boxes[one.labels >= 0]
    assert len(shown) > 30 and (shown[:, 2:] > shown[:, :2] + 5).all() and shown.max() < 64
    assert {*one.labels[one.labels >= 0].tolist()} == {0, 1, 2}


def test_moved_scenes(scenes):
    some, grid = scenes[1][:8], image_dihedral()
    moved = some.moved(grid, torch.arange(8))
    assert torch.equal(moved.pixels[1], some.pixels[1].rot90(1, (-2, -1)))
    rep, absent = detections_rep(grid, (64, 64)).parts[0], some.labels < 0
    expected = rep.act_each(torch.arange(8), some.boxes).masked_fill(absent.unsqueeze(-1), 0)
    torch.testing.assert_close(moved.boxes, expected)
    both = some + moved
    assert len(both) == 16 and torch.equal(both[8:].boxes, moved.boxes)


def test_batches_do_not_show_crowds(scenes):
    some = scenes[1][:3]
    (x, head), (_, last) = some.batches(2)
    assert x.max() <= 1 and head.shape == (2, 8, 8, 8) and len(last) == 1
    crowds = dataclasses.replace(some, crowds=some.labels >= 0)
    assert not next(crowds.batches(2))[1].any()
    first, again = (torch.cat([x for x, _ in some.batches(2, seed)]) for seed in (1, 1))
    assert torch.equal(first, again)
