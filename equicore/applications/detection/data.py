"""Images with boxes: photographs with their annotations, and small scenes that are drawn here."""

from __future__ import annotations

import dataclasses
import functools
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
from equicore.lab.annotations import read as drawn_by_others
from equicore.lab.store import digest
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
    if not Path(images).is_dir() or side < 1:
        raise FileNotFoundError(f"there is no folder {images}, or the side is below 1: {side}")
    found = drawn_by_others(annotations, split)
    names = found.classes if classes is None else tuple(classes)
    made = _empty(len(found.pictures), side, names, found.name)
    for place, (file, size, boxes) in enumerate(tqdm(found.pictures, "images", disable=None)):
        made.pixels[place] = _pixels(Path(images) / file, size, side)
        if len(boxes) > MOST:
            raise ValueError(f"{file} has {len(boxes)} boxes; at most {MOST} can be read")
        for k, (box, name, crowd) in enumerate(boxes):
            if name not in names:
                raise ValueError(f"{file} shows {name!r}, which is none of the classes {names[:9]}")
            corners, ends = np.array(box), np.array([*size, *size])
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
