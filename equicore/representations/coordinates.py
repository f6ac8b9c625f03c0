"""Places in a picture, which move with it: boxes and keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equicore.representations.base import Elements, Representation, check_elements, some_rows
from equicore.representations.images import Image, check_grid
from equicore.representations.linear import Matrix

Form = Literal["center", "corners", "corner"]


class _Coordinates(Representation):
    """Numbers along the last axis that an affine map moves about the middle of the picture.

    Args:
        grid: How the picture moves: turns and mirrors.
        middle: The numbers of the picture's middle, shape (d,).
        matrices: How each element moves numbers about the middle, shape (|G|, d, d).
        size: Rows and columns of the picture in the unit of the numbers; None for parts of its
            sides.
    """

    axes = (-1, 0)
    offsets: Tensor

    def __init__(
        self,
        grid: Image,
        middle: NDArray[Any],
        matrices: NDArray[Any],
        size: Sequence[float] | None,
    ) -> None:
        super().__init__(grid.group)
        what = type(self).__name__
        if grid.size is not None:
            raise ValueError(f"{what} turn and mirror with a picture; cyclic shifts cut it")
        if size is not None and (len(size) != 2 or min(size) <= 0):
            raise ValueError(f"size is (rows, columns) of the picture, in its unit; got {size}")
        turned = [g for g in range(len(grid.group)) if grid.linear_part(g)[0, 0] == 0]
        if size is not None and size[0] != size[1] and turned:
            raise ValueError(
                f"quarter turns, as of element {turned[0]} ({grid.group.names[turned[0]]}), "
                f"exchange the sides of a picture; in its unit they must be equal, got {size}. "
                "In parts of the sides (size=None) they may differ"
            )
        self.grid = grid
        self.size = None if size is None else (float(size[0]), float(size[1]))
        self.linear = Matrix(grid.group, matrices)
        offsets = middle - matrices @ middle  # 0 or a side, exactly
        self.keep("offsets", offsets.astype(np.float64 if size is not None else np.float32))

    def act(self, g: int, x: Tensor) -> Tensor:
        """Move with the picture."""
        return self.linear.act(g, x) + self.offsets[g].to(x.dtype)

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, x.shape[0])
        return self.linear.act_each(elements, x) + self._laid(self.offsets[elements], x)

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        moved = self.linear.orbit(x, elements)
        return moved + self._laid(some_rows(self.offsets, elements), moved)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        inverses = some_rows(self.inverse_elements, elements)
        return self.linear.align(y, elements) + self._laid(self.offsets[inverses], y)

    def _laid(self, offsets: Tensor, x: Tensor) -> Tensor:
        """Offsets (n, d) along the first and the last axis of x."""
        return offsets.to(x.dtype).view(-1, *(1,) * (x.ndim - 2), offsets.shape[-1])


class Boxes(_Coordinates):
    """Boxes in a picture, along the last axis.

    The origin is the upper left corner, x runs to the right and y downwards.

    Args:
        grid: How the picture moves: turns and mirrors.
        form: ``"center"`` for (x, y, width, height) of the centre and the sides, ``"corners"``
            for (x, y, x, y) of the upper left and lower right corner, ``"corner"`` for
            (x, y, width, height) of the upper left corner and the sides, as in COCO.
        size: Rows and columns of the picture, where boxes are in pixels; when omitted they are in
            parts of its sides, from 0 to 1.

    Raises:
        ValueError: If the form is none of these, the picture has shifts (a box at the edge would
            fall apart), or quarter turns and a size that is not square.

    >>> from equicore import image_flips, image_rotations
    >>> import torch
    >>> Boxes(image_rotations()).act(1, torch.tensor([[0.75, 0.5, 0.25, 0.125]]))
    tensor([[0.5000, 0.2500, 0.1250, 0.2500]])
    >>> Boxes(image_flips(), "corner", size=(480, 640)).act(1, torch.tensor([[600.0, 0, 30, 9]]))
    tensor([[10.,  0., 30.,  9.]])
    """

    def __init__(
        self, grid: Image, form: Form = "center", size: Sequence[float] | None = None
    ) -> None:
        if form not in _FORMS:
            raise ValueError(f"form is one of {list(_FORMS)}; got {form!r}")
        x, y = _middle(size)
        axes, to_form = _axes(grid), _FORMS[form]
        # a box is first described by its centre and its sides, which have no sign
        zero = np.zeros((2, 2))
        centred = np.stack([np.block([[a, zero], [zero, abs(a)]]) for a in axes])
        matrices = to_form @ centred @ np.linalg.inv(to_form)
        super().__init__(grid, to_form @ np.array([x, y, 0, 0]), np.round(matrices), size)
        self.form = form

    def arguments(self) -> dict[str, Any]:
        size = {} if self.size is None else {"size": list(self.size)}
        return {"grid": self.grid, "form": self.form, **size}


class Keypoints(_Coordinates):
    """Points (x, y) in a picture, along the last axis, x to the right and y downwards.

    Points that a mirror exchanges, such as a left and a right eye, are permuted as well, see the
    example. Where a third number tells whether a point is visible, this is a part of a `DirectSum`.

    Args:
        grid: How the picture moves: turns and mirrors.
        size: Rows and columns of the picture, where points are in pixels, 0 at its left and upper
            edge. Where whole numbers are the centres of pixels, from 0 to columns - 1, the size is
            (rows - 1, columns - 1). When omitted, points are in parts of its sides, from 0 to 1.

    Raises:
        ValueError: If the picture has shifts, or quarter turns and a size that is not square.

    >>> import torch
    >>> from equicore import Permutation, image_flips
    >>> from equicore.representations import TensorProduct
    >>> mirror = image_flips()
    >>> eyes = Permutation.from_generators(mirror.group, [[1, 0]], dim=-2)  # (B, points, 2)
    >>> face = TensorProduct(eyes, Keypoints(mirror, size=(480, 640)))
    >>> face.act(1, torch.tensor([[[200.0, 100.0], [400.0, 110.0]]]))
    tensor([[[240., 110.],
             [440., 100.]]])
    """

    def __init__(self, grid: Image, size: Sequence[float] | None = None) -> None:
        super().__init__(grid, np.array(_middle(size)), _axes(grid), size)

    def arguments(self) -> dict[str, Any]:
        return {"grid": self.grid, **({} if self.size is None else {"size": list(self.size)})}


def _axes(grid: Image) -> NDArray[Any]:
    """How each element moves a displacement (x, y)."""
    return np.stack([check_grid(grid).linear_part(g)[::-1, ::-1] for g in range(len(grid.group))])


def _middle(size: Sequence[float] | None) -> tuple[float, float]:
    """The middle (x, y) of a picture."""
    rows, columns = (1.0, 1.0) if size is None or len(size) != 2 else size
    return columns / 2, rows / 2


_HALF, _ONE, _ZERO = np.eye(2) / 2, np.eye(2), np.zeros((2, 2))
_FORMS = {
    "center": np.eye(4),
    "corners": np.block([[_ONE, -_HALF], [_ONE, _HALF]]),
    "corner": np.block([[_ONE, -_HALF], [_ZERO, _ONE]]),
}
"""For each form, how a box is described by it, from its centre and its sides."""
