"""Rotations of images by any part of a turn, which pixels follow only approximately."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from equicore.groups import cyclic
from equicore.representations.base import Representation
from equicore.representations.images import image_rotations


class Rotations(Representation):
    """Element k turns images counter-clockwise by k of n equal parts of a turn.

    Quarter turns are exact. Others are bilinear interpolations, and corners that come from outside
    of the image are filled with its nearest pixels: what is equivariant under them by construction
    is so up to that. `equicore.report` and `equicore.equivariance_error` say how far it is.

    Args:
        parts: How many elements, a multiple of 4.

    Raises:
        ValueError: If it is no multiple of 4, or images are not square.

    >>> import torch
    >>> Rotations(8).act(2, torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """

    axes = (-2, -1)

    def __init__(self, parts: int) -> None:
        if parts < 4 or parts % 4:
            raise ValueError(
                f"a grid is turned by quarters, and by equal parts of them: parts is a multiple "
                f"of 4; got {parts}"
            )
        super().__init__(cyclic(parts))
        self.parts = parts
        self.quarters = image_rotations()

    def act(self, g: int, x: Tensor) -> Tensor:
        """Turn images (B, ..., rows, columns); pixels that are integers are rounded."""
        quarters, rest = divmod(self.group.check_element(g), self.parts // 4)
        x = self.quarters.act(quarters, x)
        if rest == 0:
            return x
        if x.shape[-2] != x.shape[-1]:
            raise ValueError(f"images that are turned must be square; got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            return self._finely(rest, x.float()).round().to(x.dtype)
        return self._finely(rest, x)

    def _finely(self, rest: int, x: Tensor) -> Tensor:
        """By less than a quarter."""
        angle = 2 * math.pi * rest / self.parts
        cos, sin = math.cos(angle), math.sin(angle)
        flat = x.reshape(x.shape[0], -1, *x.shape[-2:])
        back = x.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(flat), 2, 3)
        grid = functional.affine_grid(back, list(flat.shape), align_corners=False)
        return functional.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(
            x.shape
        )

    def arguments(self) -> dict[str, Any]:
        return {"parts": self.parts}
