"""Images with boxes: annotations of COCO and Pascal VOC, and small scenes that are drawn here."""

from __future__ import annotations

import dataclasses
import functools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from equicore.applications.detection.detector import to_head_map
from equicore.lab import pictures
from equicore.lab.store import digest, read_lines
from equicore.representations import Boxes
from equicore.representations import Image as Grid

SLACK = 1.0
"""Pixels by which boxes may stand out of an image; they are cut off."""
MOST = 100
"""Boxes of an image."""
ROOF, STEM = [(0, 0.55), (0.5, 0), (1, 0.55)], [(0.4, 0.55), (0.6, 0.55), (0.6, 1), (0.4, 1)]
WALLS, CAP = [(0, 0.55), (1, 0.55), (1, 1), (0, 1)], [(0, 0.55), (0.2, 0), (0.8, 0), (1, 0.55)]
DRAWN: dict[str, Any] = {"house": (WALLS, ROOF), "tree": (ROOF, STEM), "mushroom": (STEM, CAP)}
"""What is drawn: a light and a dark polygon each, in parts of the box."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Square images of one size, with boxes."""

    pixels: Tensor  # uint8 (N, 3, side, side), RGB
    boxes: Tensor  # (N, 100, 4), corners (x, y, x, y) in pixels; 0 where there is no box
    labels: Tensor  # (N, 100), places among the classes; -1 where there is no box
    crowds: Tensor  # (N, 100), whether a box counts neither as found nor as missed
    classes: tuple[str, ...]
    name: str  # what tables call them
    cell: int = 16  # side, in pixels, of the cells of head maps that are learned

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Any) -> Scenes:
        """Some of the images."""
        return self._with([tensor[rows] for tensor in self._tensors])

    def __add__(self, other: Scenes) -> Scenes:
        """The images of both, which have the same classes and size."""
        return self._with([torch.cat(p) for p in zip(self._tensors, other._tensors, strict=True)])

    @property
    def side(self) -> int:
        """Rows and columns of the images."""
        return self.pixels.shape[-1]

    @property
    def empty(self) -> int:
        """How many images have no box."""
        return int((self.labels < 0).all(1).sum())

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen characters that are others for other images, boxes, classes or cells."""
        parts = [digest(tensor.numpy().tobytes()) for tensor in self._tensors]
        return digest({"parts": parts, "classes": self.classes, "cell": self.cell})

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images from 0 to 1 and the head maps to learn, in the order of a seed, if any."""
        order = torch.arange(len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        labels = self.labels.masked_fill(self.crowds, -1)
        shape = len(self.classes), self.side, self.side // self.cell
        for rows in order.split(size):
            yield self.pixels[rows] / 255, to_head_map(self.boxes[rows], labels[rows], *shape)

    def moved(self, grid: Grid, elements: Tensor) -> Scenes:
        """Each image, and its boxes, under an element of its own."""
        boxes = Boxes(grid, "corners", (self.side, self.side)).act_each(elements, self.boxes)
        boxes = boxes * (self.labels >= 0).unsqueeze(-1)
        return dataclasses.replace(self, pixels=grid.act_each(elements, self.pixels), boxes=boxes)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.pixels, self.boxes, self.labels, self.crowds

    def _with(self, tensors: Sequence[Tensor]) -> Scenes:
        pixels, boxes, labels, crowds = tensors
        return Scenes(pixels, boxes, labels, crowds, self.classes, self.name, self.cell)


def read(
    images: str | Path,
    annotations: str | Path,
    side: int,
    split: str | None = None,
    classes: Sequence[str] | None = None,
) -> Scenes:
    """Images with their annotations, resized to squares whatever their sides were.

    Args:
        images: The folder of the image files.
        annotations: A JSON file of COCO, or a folder of XML files of Pascal VOC.
        side: Rows and columns to which images are resized; a pixel is the mean of what it covers.
        split: Of Pascal VOC, the list of names ``ImageSets/Main/SPLIT.txt`` beside the folder; all
            annotations when omitted.
        classes: Their names, if others are not allowed; those of the annotations when omitted, in
            the order of COCO's ids, or of the alphabet.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an annotation is damaged, or does not fit its image; the message names both.
    """
    images, annotations = Path(images), Path(annotations)
    if missing := [path for path in (images, annotations) if not path.exists()]:
        raise FileNotFoundError(f"there is no {missing[0]}")
    if split is not None and not annotations.is_dir():
        raise ValueError(f"a split names a list of Pascal VOC; {annotations} is a file of COCO")
    try:
        if annotations.is_dir():
            content: Any = _voc(annotations, split)
        else:
            content = json.loads(annotations.read_text(encoding="utf-8"))
        kinds = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        known = {i["id"]: (i["file_name"], int(i["width"]), int(i["height"]))
                 for i in content["images"]}  # fmt: skip
        boxes: dict[Any, list[tuple[list[float], str, bool]]] = {number: [] for number in known}
        for one in content["annotations"]:
            if one["image_id"] not in known:
                raise ValueError(f"an annotation is of the image {one['image_id']}, not there")
            x, y, wide, tall = map(float, one["bbox"])
            name, crowd = kinds[one["category_id"]], bool(one.get("iscrowd", 0))
            boxes[one["image_id"]].append(([x, y, x + wide, y + tall], name, crowd))
    except KeyError as error:
        raise ValueError(
            f"{annotations} has no {error}; it needs images, categories, and annotations of these"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{annotations} is not usable: {error}") from error
    if not known or side < 1:
        raise ValueError(f"{annotations} has no images, or side is below 1: {side}")
    if max((end for some in boxes.values() for box, *_ in some for end in box), default=2) <= 1:
        raise ValueError(
            f"all boxes of {annotations} end within the first pixel: they are to be in pixels, not "
            "in parts of the image's sides"
        )
    for what, values in (
        ("one image's id", [image["id"] for image in content["images"]]),
        ("one image file", [file for file, *_ in known.values()]),
        ("one category's id", [c["id"] for c in content["categories"]]),
        ("one category's name", [c["name"] for c in content["categories"]]),
    ):
        if len({*values}) < len(values):
            raise ValueError(f"{annotations} has {what} twice; each is to stand once")
    names = tuple(kinds[number] for number in sorted(kinds)) if classes is None else tuple(classes)
    whole = annotations.parent.name if annotations.is_dir() else annotations.stem
    made = _empty(len(known), side, names, f"{whole}-{split}" if split else whole)
    for place, number in enumerate(tqdm(known, "images", disable=None)):
        file, *size = known[number]
        made.pixels[place] = _pixels(images / file, size, side)
        if len(boxes[number]) > MOST:
            raise ValueError(f"{file} has {len(boxes[number])} boxes; at most {MOST} can be read")
        for k, (box, name, crowd) in enumerate(boxes[number]):
            if name not in names:
                raise ValueError(f"{file} shows {name!r}, which is none of the classes {names[:9]}")
            corners, ends = np.array(box), np.array(size * 2)
            cut = corners.clip(0, ends)
            if not (abs(cut - corners) <= SLACK).all() or (cut[2:] <= cut[:2]).any():  # also NaN
                raise ValueError(
                    f"the box with the corners {box} of {file} is empty, or outside of its image "
                    f"of {size[0]} x {size[1]} pixels"
                )
            made.boxes[place, k] = torch.from_numpy(cut * side / ends)
            made.labels[place, k], made.crowds[place, k] = names.index(name), crowd
    return made


def _empty(count: int, side: int, classes: tuple[str, ...], name: str, cell: int = 16) -> Scenes:
    """Black images without boxes."""
    shape = count, MOST
    pixels, boxes = torch.zeros(count, 3, side, side, dtype=torch.uint8), torch.zeros(*shape, 4)
    labels, crowds = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    return Scenes(pixels, boxes, labels, crowds, classes, name, cell)


def _pixels(file: Path, size: Sequence[int], side: int) -> Tensor:
    if not file.is_file():
        raise FileNotFoundError(f"there is no image {file}, which the annotations name")
    try:
        image = Image.open(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    # boxes are those of the pixels as they are stored, however a camera was held
    image.getexif().pop(ExifTags.Base.Orientation, None)
    array = pictures.read(image, str(file), mode="RGB").transpose(1, 2, 0)
    if array.shape[1::-1] != tuple(size):
        raise ValueError(
            f"{file} is {array.shape[1]} x {array.shape[0]} pixels, and its annotation says "
            f"{size[0]} x {size[1]}"
        )
    resized = Image.fromarray(array).resize((side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(resized)).movedim(-1, 0)


def _voc(folder: Path, split: str | None) -> dict[str, Any]:
    """Annotations of Pascal VOC as those of COCO."""
    images, boxes = {}, []
    for file in sorted(folder.glob("*.xml")):
        text = file.read_text(encoding="utf-8")
        try:
            if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can be made to grow
                raise ValueError("it declares a document type")
            root = ElementTree.fromstring(text)
            size = {name: int(root.findtext(f"size/{name}", "")) for name in ("width", "height")}
            name = root.findtext("filename", "")
            images[file.stem] = {"id": file.stem, "file_name": name, **size}
            for shown in root.findall("object"):
                ends = ("xmin", "ymin", "xmax", "ymax")
                x0, y0, x1, y1 = (float(shown.findtext(f"bndbox/{end}", "")) for end in ends)
                # pixels count from 1, and the last is inside
                box: dict[str, Any] = {"bbox": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]}
                box["iscrowd"] = shown.findtext("difficult", "0").strip() == "1"
                boxes.append({**box, "image_id": file.stem, "kind": shown.findtext("name", "")})
        except (ValueError, ElementTree.ParseError) as error:
            raise ValueError(f"{file.name} is no annotation of Pascal VOC: {error}") from error
    kinds = sorted({one["kind"] for one in boxes})
    if split is not None:
        listed = folder.parent / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            there = sorted(path.stem for path in listed.parent.glob("*.txt"))
            raise FileNotFoundError(f"there is no {listed}; there are {', '.join(there) or 'none'}")
        rows = [line.split() for line in read_lines(listed) if line.strip()]
        stems = [stem for stem, *shown in rows if shown != ["-1"]]  # which does not show the class
        if missing := [stem for stem in stems if stem not in images]:
            raise ValueError(f"{listed} names {missing[0]}, of which there is no XML file")
        images = {stem: images[stem] for stem in stems}
    own = [{**one, "category_id": kinds.index(one["kind"])} for one in boxes
           if one["image_id"] in images]  # fmt: skip
    categories = [{"id": number, "name": kind} for number, kind in enumerate(kinds)]
    return {"images": list(images.values()), "categories": categories, "annotations": own}


def drawn(count: int, seed: int, side: int = 64) -> Scenes:
    """Scenes of houses, trees and mushrooms that stand upright, on a ground under a sky."""
    generator = np.random.default_rng(seed)
    made = _empty(count, side, tuple(DRAWN), f"drawn-{side}", 8)
    for place in range(count):
        sky, ground = generator.uniform(90, 255, 3), generator.uniform(0, 140, 3)
        noise = np.kron(generator.normal(0, 14, (side // 4, side // 4, 3)), np.ones((4, 4, 1)))
        colour = sky + (ground - sky) * np.linspace(0, 1, side)[:, None, None] + noise
        picture = Image.fromarray(colour.clip(0, 255).astype(np.uint8))
        taken: list[list[float]] = []
        for _ in range(generator.integers(1, 9)):  # tries, of which those that overlap are left out
            wide, tall = generator.uniform(0.18, 0.4, 2) * side
            x, y = generator.uniform(0, side - 1 - wide), generator.uniform(0, side - 1 - tall)
            beside = (x > b[2] or x + wide < b[0] or y > b[3] or y + tall < b[1] for b in taken)
            if all(beside):
                kind, box = int(generator.integers(len(DRAWN))), [x, y, x + wide, y + tall]
                light, dark = generator.uniform(130, 255, 3), generator.uniform(0, 110, 3)
                polygons = [*DRAWN.values()][kind]
                for polygon, fill in zip(polygons, (light, dark), strict=True):
                    corners = [(x + a * wide, y + b * tall) for a, b in polygon]
                    ImageDraw.Draw(picture).polygon(corners, fill=tuple(fill.astype(int)))
                made.boxes[place, len(taken)] = torch.tensor(box)
                made.labels[place, len(taken)] = kind
                taken.append(box)
        made.pixels[place] = torch.from_numpy(np.array(picture)).movedim(-1, 0)
    return made
