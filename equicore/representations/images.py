"""Grids that turn, mirror and shift: pictures, and series in reverse."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from equicore._cayley import MAX_ORDER, check_order
from equicore.groups import Group, cyclic, dihedral, product, semidirect
from equicore.representations.base import Representation, check_dim

Move = tuple[int, bool, tuple[int, int]]


_STEPS: dict[tuple[int, bool], tuple[bool, tuple[int, ...]]] = {
    (0, False): (False, ()),
    (1, False): (True, (0,)),
    (2, False): (False, (0, 1)),
    (3, False): (True, (1,)),
    (0, True): (False, (1,)),
    (1, True): (True, ()),
    (2, True): (False, (0,)),
    (3, True): (True, (0, 1)),
}
"""For turns and a mirror: whether rows and columns change places, and which are then reversed."""

ROWS_AND_COLUMNS = (-2, -1)
"""Where the rows and columns of images stand by default: channels first, (..., rows, columns)."""


class Image(Representation):
    """Elements mirror, turn and shift two axes, the rows and columns of a grid.

    Under g, the grid is first mirrored left to right if ``mirrors[g]``, then turned
    counter-clockwise by ``turns[g]`` quarter turns, then shifted cyclically, down and to the
    right, by ``shifts[g]`` cells. `image_rotations`, `image_flips`, `image_dihedral`,
    `image_shifts` and `image_wallpaper` make the usual ones.

    Args:
        group: The group that acts.
        turns: Quarter turns for each element.
        mirrors: Whether each element mirrors.
        shifts: Rows and columns by which each element shifts; none when omitted.
        size: Rows and columns of the grid, needed where there are shifts.
        axes: Where the rows and the columns stand, counted from the end: the last two, or
            ``(-3, -2)`` where the channels come last, as in pictures of Gymnasium.

    Raises:
        ValueError: If the moves do not follow the group's multiplication, or there are shifts
            without a size, quarter turns of a grid that is not square, or not two axes.
    """

    def __init__(
        self,
        group: Group,
        turns: Sequence[int],
        mirrors: Sequence[bool],
        shifts: Sequence[Sequence[int]] | None = None,
        size: Sequence[int] | None = None,
        axes: Sequence[int] = ROWS_AND_COLUMNS,
    ) -> None:
        super().__init__(group)
        if len(axes) != 2 or axes[0] == axes[1] or max(axes) >= 0:
            raise ValueError(
                "axes are those of the rows and of the columns, counted from the end, as in "
                f"(-2, -1); got {axes}"
            )
        self.axes: tuple[int, int] = (int(axes[0]), int(axes[1]))
        if (shifts is None) != (size is None):
            raise ValueError("shifts need the size (rows, columns) of the grid, and it needs them")
        rows, columns = _checked_size((1, 1) if size is None else size)
        if rows != columns and any(t % 2 for t in turns):
            raise ValueError(f"quarter turns need a square grid; got size {(rows, columns)}")
        if shifts is None:
            shifts = [(0, 0)] * len(turns)
        counts = {"turns": len(turns), "mirrors": len(mirrors), "shifts": len(shifts)}
        if len({*counts.values()}) > 1:
            raise ValueError(f"each of the {len(group)} elements has its move; got {counts}")
        self.size = None if size is None else (rows, columns)
        self.moves: list[Move] = [
            (int(t) % 4, bool(m), (int(s[0]) % rows, int(s[1]) % columns))
            for t, m, s in zip(turns, mirrors, shifts, strict=True)
        ]

        def compose(after: Move, before: Move) -> Move:
            turns, mirror, (down, right) = after
            row, column = _carry(after, before[2])
            return (
                (turns + (-before[0] if mirror else before[0])) % 4,
                mirror != before[1],
                ((down + row) % rows, (right + column) % columns),
            )

        self._steps = []
        for turn, mirror, shift in self.moves:
            transposed, reversed_ = _STEPS[turn, mirror]
            self._steps.append((transposed, tuple(self.axes[i] for i in reversed_), shift))
        identity: Move = (0, False, (0, 0))
        group.check_homomorphism(self.moves, identity, compose, operator.eq, "image moves")

    def act(self, g: int, x: Tensor) -> Tensor:
        """Mirror, turn and shift the rows and columns.

        A quarter turn exchanges how many there are; see `orbit` and `act_each`, which need
        squares for it.
        """
        transposed, flipped, shift = self._steps[self.group.check_element(g)]
        row, column = self.axes
        if x.ndim <= -min(self.axes):
            raise ValueError(
                f"Image acts on the axes {row} and {column} of a batch (B, ...), its rows and "
                f"columns; got shape {tuple(x.shape)}"
            )
        if self.size is not None and (x.shape[row], x.shape[column]) != self.size:
            raise ValueError(
                f"the shifts of {self.group.name} are those of a grid (rows, columns) = "
                f"{self.size}; got shape {tuple(x.shape)}"
            )
        if transposed:
            x = x.transpose(row, column)
        if flipped:
            x = x.flip(flipped)
        return x.roll(shift, self.axes) if shift != (0, 0) else x

    def linear_part(self, g: int) -> np.ndarray:
        """The matrix (2, 2) by which g moves a displacement of (rows, columns)."""
        move = self.moves[self.group.check_element(g)]
        return np.array([_carry(move, (1, 0)), _carry(move, (0, 1))]).T

    def pulled_back(self, group: Group, images: Sequence[int]) -> Image:
        """The images as another group acts on them, by the element of this for each of its own."""
        turns, mirrors, shifts = zip(*(self.moves[g] for g in images), strict=True)
        still = self.size is None
        return Image(group, turns, mirrors, None if still else shifts, self.size, self.axes)

    def arguments(self) -> dict[str, Any]:
        turns, mirrors, shifts = zip(*self.moves, strict=True)
        arguments: dict[str, Any] = {"turns": list(turns), "mirrors": list(mirrors)}
        if self.size is not None:
            arguments |= {"shifts": [list(s) for s in shifts], "size": list(self.size)}
        if self.axes != ROWS_AND_COLUMNS:
            arguments["axes"] = list(self.axes)
        return arguments


def image_rotations(axes: Sequence[int] = ROWS_AND_COLUMNS) -> Image:
    """C4 on images: element k turns counter-clockwise by k quarter turns; axes as in `Image`."""
    return Image(cyclic(4), range(4), [False] * 4, axes=axes)


def image_flips(axis: int | None = None, axes: Sequence[int] = ROWS_AND_COLUMNS) -> Image:
    """C2 on images: element 1 mirrors along ``axis``, one of the ``axes`` of `Image`.

    The axis of the columns, which is the default, is mirrored left to right, that of the rows top
    to bottom.

    Raises:
        ValueError: If the axis is none of the two.
    """
    row, column = axes
    axis = column if axis is None else axis
    if axis not in axes:
        raise ValueError(
            f"axis must be {column} (left to right) or {row} (top to bottom); got {axis}"
        )
    # top to bottom is left to right followed by half a turn
    return Image(cyclic(2), [0, 0 if axis == column else 2], [False, True], axes=axes)


def image_dihedral(axes: Sequence[int] = ROWS_AND_COLUMNS) -> Image:
    """D4 on images: element 4 m + k mirrors left to right if m = 1, then makes k quarter turns.

    Axes as in `Image`.
    """
    return Image(dihedral(4), [0, 1, 2, 3] * 2, [False] * 4 + [True] * 4, axes=axes)


def image_shifts(rows: int, columns: int, step: int = 1) -> Image:
    """Cyclic shifts of a grid by multiples of ``step`` cells down and to the right.

    Element ``a * (columns // step) + b`` shifts by a steps down and b steps to the right.

    Raises:
        ValueError: If the step does not divide rows and columns.

    >>> import torch
    >>> shifts = image_shifts(2, 2)
    >>> shifts.act(1, torch.tensor([[[1, 2], [3, 4]]]))
    tensor([[[2, 1],
             [4, 3]]])
    """
    _check_step(step, rows, columns)
    order = (rows // step) * (columns // step)
    larger = next(
        (k for k in range(step, max(rows, columns) + 1, step)
         if rows % k == columns % k == 0 and 1 < rows * columns // k**2 <= MAX_ORDER),
        None,
    )  # fmt: skip
    hint = "use shifts along one axis" if larger is None else f"use step={larger}"
    check_order(order, f"the group of shifts of {rows} x {columns} cells by {step}", hint)
    down, right = cyclic(rows // step), cyclic(columns // step)
    group = product(down, right)
    shifts = [(step * a, step * b) for a in range(len(down)) for b in range(len(right))]
    still = [0] * len(group)
    return Image(group, still, [False] * len(group), shifts, (rows, columns))


def image_wallpaper(point: Image, side: int, step: int = 1) -> Image:
    """The semidirect product of shifts with turns and mirrors, of a square grid with glued edges.

    Element ``n * len(point.group) + h`` makes move h of ``point``, then shift n of
    ``image_shifts(side, side, step)``. With `image_rotations` this is the wallpaper group p4,
    with `image_dihedral` p4m.

    Raises:
        ValueError: If the step does not divide the side, or ``point`` has shifts.
    """
    check_grid(point)
    if point.size is not None:
        raise ValueError("point holds turns and mirrors; this one already has shifts")
    shifts = image_shifts(side, side, step)
    steps = side // step
    displacements = [move[2] for move in shifts.moves]

    def place(row: int, column: int) -> int:
        return row % side // step * steps + column % side // step

    automorphisms = [
        [place(*_carry(move, displacement)) for displacement in displacements]
        for move in point.moves
    ]
    group = semidirect(shifts.group, point.group, automorphisms)
    pairs = [(shift, move) for shift in displacements for move in point.moves]
    return Image(
        group,
        [move[0] for _, move in pairs],
        [move[1] for _, move in pairs],
        [shift for shift, _ in pairs],
        (side, side),
        point.axes,
    )


class Flip(Representation):
    """Elements reverse the order of axes: time in a series, any sides of a volume.

    Args:
        group: The group that acts.
        flips: Whether each element reverses.
        dims: The axes that are reversed together, counted from the end.

    Raises:
        ValueError: If the flips do not follow the group's multiplication, or an axis is not
            counted from the end.

    >>> import torch
    >>> backwards = flip()
    >>> backwards.act(1, torch.tensor([[1, 2, 3]]))
    tensor([[3, 2, 1]])
    """

    def __init__(self, group: Group, flips: Sequence[bool], dims: int | Sequence[int] = -1) -> None:
        super().__init__(group)
        self.flips = [bool(f) for f in flips]
        group.check_homomorphism(self.flips, False, operator.xor, operator.eq, "flips")
        self.axes = tuple(check_dim(d) for d in ((dims,) if isinstance(dims, int) else dims))
        if not self.axes:
            raise ValueError("Flip reverses one axis at least; dims is empty")

    def act(self, g: int, x: Tensor) -> Tensor:
        """Reverse the axes, or not."""
        if x.ndim <= -min(self.axes):
            raise ValueError(
                f"Flip reverses the axes {self.axes} of a batch (B, ...); got shape "
                f"{tuple(x.shape)}"
            )
        return x.flip(self.axes) if self.flips[self.group.check_element(g)] else x

    def arguments(self) -> dict[str, Any]:
        return {"flips": self.flips, "dims": list(self.axes)}


def flip(dims: int | Sequence[int] = -1) -> Flip:
    """C2 whose element 1 reverses axes, counted from the end: -1 for time in series (B, T).

    Several axes are reversed together; for each by itself, make a `Flip` of a product of groups
    for each and join them by `TensorProduct`.
    """
    return Flip(cyclic(2), [False, True], dims)


def check_grid(grid: Any) -> Image:
    """Return how a grid moves, or raise TypeError if it is no `Image`."""
    if not isinstance(grid, Image):
        raise TypeError(
            "a grid moves as an Image does, such as image_rotations() or a restriction of it; got "
            f"{grid!r}"
        )
    return grid


def _carry(move: Move, displacement: tuple[int, int]) -> tuple[int, int]:
    """A displacement of (rows, columns) after the mirror and the turns of a move."""
    row, column = displacement
    if move[1]:
        column = -column
    for _ in range(move[0]):
        row, column = -column, row
    return row, column


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is (rows, columns) of the grid, each at least 1; got {size}")
    return int(size[0]), int(size[1])


def _check_step(step: int, rows: int, columns: int) -> None:
    if step < 1 or rows % step or columns % step:
        raise ValueError(
            f"the step of the shifts must divide the grid's sides; got step {step} and a grid of "
            f"{rows} x {columns}"
        )
