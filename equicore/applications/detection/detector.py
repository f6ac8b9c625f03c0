"""Detectors as functions from images to boxes, scores and labels, and how a group acts on these.

What they find are `equicore.boxes.Detections`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from equicore.boxes import EMPTY, Detections
from equicore.representations import DirectSum, Image, Matrix, TensorProduct
from equicore.representations import vector_field as vectors

Outputs = Callable[[Any, Sequence[int]], Detections]
"""From what a network returned, and the size (rows, columns) of the images, to detections."""


class Detector(nn.Module):
    """A network, and how its outputs are read: maps images (B, 3, rows, columns) to `Detections`.

    Args:
        network: Takes images with values from 0 to 1; a normalisation can stand in front of it.
        outputs: `of_torchvision`, `of_queries`, `of_head_map`, or a function of your own.
        classes: The names of the labels.
        suppress: Leaves one box of several that overlap, where the network does not do so itself:
            `equicore.boxes.Fusion`.
    """

    def __init__(
        self,
        network: nn.Module,
        outputs: Outputs,
        classes: Sequence[str],
        suppress: Outputs | None = None,
    ) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs
        self.classes, self.suppress = tuple(classes), suppress

    def forward(self, images: Tensor) -> Detections:
        """Detect; raise ValueError for what is no batch of images, and for labels of no class."""
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"images have the shape (B, 3, rows, columns); got {images.shape}")
        raw = self.network(images)
        if self.outputs is of_queries and raw.logits.shape[-1] != len(self.classes) + 1:
            raise ValueError(
                f"of_queries takes logits of {len(self.classes)} classes and of no object; got "
                f"{raw.logits.shape[-1]}: for heads without it, outputs is a function of your own"
            )
        found = self.outputs(raw, images.shape[-2:])
        if not (found["boxes"].isfinite().all() and found["scores"].isfinite().all()):
            raise ValueError("the network's boxes or scores are not finite")
        shape, count = tuple(found["labels"].shape), len(self.classes)
        if shape[0] != len(images) or (found["labels"] >= count).any():
            raise ValueError(
                f"for {len(images)} images and {count} classes, {', '.join(self.classes[:5])} ..., "
                f"the network gives labels of shape {shape}, or larger ones"
            )
        if self.suppress is None:
            return found
        return self.suppress({name: t[None] for name, t in found.items()}, images.shape[-2:])


def head_rep(grid: Image, classes: int) -> DirectSum:
    """How turns, mirrors and cyclic shifts act on head maps (B, 5 + classes, rows, columns).

    The channels of a cell: objectness from 0 to 1, and, multiplied by it, how far the box's middle
    is, in cells, down and to the right of the cell's, a vector that turns; the height and the width
    of the box in parts of the image's sides, which change places under quarter turns; probabilities
    of the classes. As they are multiplied, a mean of maps is weighed by how sure each is.
    """
    swaps = np.stack([abs(grid.linear_part(g)) for g in range(len(grid.group))])
    sides = TensorProduct(Matrix(grid.group, swaps, dim=-3), grid)
    return DirectSum([(grid, 1), (vectors(grid), 2), (sides, 2), (grid, classes)], dim=-3)


def weighed(cells: Tensor) -> Tensor:
    """The head map of what cells say: objectness, and what it multiplies."""
    return torch.cat([cells[:, :1], cells[:, :1] * cells[:, 1:]], 1)


def unweighed(head: Tensor) -> Tensor:
    """What the cells of a head map say; 0 where there is no objectness."""
    return torch.cat([head[:, :1], head[:, 1:] / head[:, :1].clamp(min=1e-6)], 1)


def corners(head: Tensor) -> Tensor:
    """The box of each cell of a head map, (B, rows, columns, 4), in parts of the image's sides."""
    (rows, columns), head = head.shape[-2:], unweighed(head)
    place = torch.arange(max(rows, columns), device=head.device, dtype=head.dtype) + 0.5
    y, x = (head[:, 1] + place[:rows, None]) / rows, (head[:, 2] + place[:columns]) / columns
    tall, wide = head[:, 3] / 2, head[:, 4] / 2
    return torch.stack([x - wide, y - tall, x + wide, y + tall], -1)


def of_head_map(head: Tensor, size: Sequence[int]) -> Detections:
    """One box for each cell of a head map, see `head_rep`, cut off at the image's edges.

    The score is FastestDet's: objectness to the 0.6 times the class's probability to the 0.4.
    """
    best, labels = unweighed(head)[:, 5:].max(1)
    boxes = corners(head).clamp(0, 1) * head.new_tensor([size[1], size[0]] * 2)
    scores = head[:, 0].clamp(min=0) ** 0.6 * best.clamp(min=0) ** 0.4
    return {"boxes": boxes.flatten(1, 2), "scores": scores.flatten(1), "labels": labels.flatten(1)}


def to_head_map(boxes: Tensor, labels: Tensor, classes: int, side: int, cells: int) -> Tensor:
    """The head map that shows boxes (B, M, 4) with labels (B, M), -1 for none: what is learned.

    A box stands in the cells whose middle is less than a cell away from its own, up and down and
    sideways, of several boxes the nearest; so turned boxes have the turned map.
    """
    low, high = (boxes.mT / side)[..., None, None].split(2, 1)  # x and y, (B, 2, M, 1, 1)
    place = torch.arange(cells) + 0.5
    middle, sides = (low + high) / 2 * cells, high - low
    down, right = middle[:, 1] - place[:, None], middle[:, 0] - place
    far = torch.maximum(down.abs(), right.abs()).masked_fill((labels < 0)[..., None, None], 2)
    distance, nearest = far.min(1)
    kinds = nn.functional.one_hot(labels.clamp(min=0), classes).mT[..., None, None]
    parts = [torch.ones_like(far), down, right, sides[:, 1], sides[:, 0], *kinds.unbind(1)]
    every = torch.stack([part.expand_as(far) for part in parts], 2)
    own = every.gather(1, nearest[:, None, None].expand(-1, 1, len(parts), -1, -1))
    return own.squeeze(1) * (distance < 1).unsqueeze(1)


def of_torchvision(found: Sequence[Mapping[str, Tensor]], size: Sequence[int]) -> Detections:
    """What torchvision's detectors return: for each image a dict of boxes, scores and labels."""
    every = [{**one, "labels": one["labels"].long()} for one in found]
    return {name: pad_sequence([one[name] for one in every], True, e) for name, e in EMPTY.items()}


def of_queries(found: Any, size: Sequence[int]) -> Detections:
    """What DETR, YOLOS and their like return in transformers: ``logits`` and ``pred_boxes``.

    Boxes are centres and sides in parts of the image's; the last class is "no object".
    """
    scores, labels = found.logits.softmax(-1)[..., :-1].max(-1)
    middle, sides = found.pred_boxes.split(2, -1)
    ends = torch.cat([middle - sides / 2, middle + sides / 2], -1).clamp(0, 1)
    boxes = ends * ends.new_tensor([size[1], size[0]] * 2)
    return {"boxes": boxes, "scores": scores, "labels": labels}
