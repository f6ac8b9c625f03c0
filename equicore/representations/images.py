"""Images, fields of vectors on a grid, and boxes: what turns, mirrors and shifts with a picture."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equicore.groups import Group, cyclic, dihedral, product, semidirect
from equicore.representations.base import Elements, Representation, check_elements, some_rows
from equicore.representations.combine import TensorProduct
from equicore.representations.linear import Matrix

Move = tuple[int, bool, tuple[int, int]]


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

        identity: Move = (0, False, (0, 0))
        group.check_homomorphism(self.moves, identity, compose, operator.eq, "image moves")

    def act(self, g: int, x: Tensor) -> Tensor:
        """Mirror, turn and shift the rows and columns."""
        turns, mirror, shift = self.moves[self.group.check_element(g)]
        row, column = self.axes
        if x.ndim <= -min(self.axes) or (turns % 2 and x.shape[row] != x.shape[column]):
            raise ValueError(
                f"Image acts on the axes {row} and {column} of a batch (B, ...), its rows and "
                "columns, which must be equally long for quarter turns; got shape "
                f"{tuple(x.shape)}"
            )
        if self.size is not None and (x.shape[row], x.shape[column]) != self.size:
            raise ValueError(
                f"the shifts of {self.group.name} are those of a grid (rows, columns) = "
                f"{self.size}; got shape {tuple(x.shape)}"
            )
        if mirror:
            x = x.flip(column)
        if turns:
            x = x.rot90(turns, self.axes)
        return x.roll(shift, self.axes) if shift != (0, 0) else x

    def linear_part(self, g: int) -> np.ndarray:
        """The matrix (2, 2) by which g moves a displacement of (rows, columns)."""
        move = self.moves[self.group.check_element(g)]
        return np.array([_carry(move, (1, 0)), _carry(move, (0, 1))]).T

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

    >>> shifts = image_shifts(2, 2)
    >>> shifts.act(1, torch.tensor([[[1, 2], [3, 4]]]))
    tensor([[[2, 1],
             [4, 3]]])
    """
    _check_step(step, rows, columns)
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


def vector_field(grid: Image) -> TensorProduct:
    """Fields of vectors on a grid, (B, ..., 2, rows, columns): the grid moves, the vectors turn.

    The vectors stand along the one of the last three axes that is none of the grid's.

    Component 0 of a vector points along the rows' axis, downwards, component 1 along the
    columns' axis, to the right.

    >>> field = vector_field(image_rotations())
    >>> to_the_right = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    >>> field.act(1, to_the_right).flatten().tolist()  # up, after a quarter turn
    [-1.0, 0.0]
    """
    matrices = [grid.linear_part(g) for g in range(len(grid.group))]
    (vectors,) = {-3, -2, -1} - {*grid.axes}
    return TensorProduct(Matrix(grid.group, matrices, dim=vectors), grid)


class Boxes(Representation):
    """Boxes in an image, along the last axis, in coordinates relative to the image's sides.

    The origin is the upper left corner, x runs to the right and y downwards, both from 0 to 1.

    Args:
        grid: How the image moves: turns and mirrors.
        form: ``"center"`` for (x, y, width, height) of the centre and the sides, ``"corners"``
            for (x, y, x, y) of the upper left and lower right corner.

    Raises:
        ValueError: If the form is neither, or the image has shifts (a box at the edge would
            fall apart).

    >>> Boxes(image_rotations()).act(1, torch.tensor([[0.75, 0.5, 0.25, 0.125]]))
    tensor([[0.5000, 0.2500, 0.1250, 0.2500]])
    >>> Boxes(image_rotations(), "corners").act(1, torch.tensor([[0.5, 0.25, 1.0, 0.5]]))
    tensor([[0.2500, 0.0000, 0.5000, 0.5000]])
    """

    axes = (-1, 0)
    offsets: Tensor

    def __init__(self, grid: Image, form: str = "center") -> None:
        super().__init__(grid.group)
        if form not in ("center", "corners"):
            raise ValueError(f'form is "center" or "corners"; got {form!r}')
        if grid.size is not None:
            raise ValueError("boxes turn and mirror with an image; cyclic shifts cut them")
        self.grid = grid
        self.form = form
        # from (rows, columns) to (x, y)
        axes = [grid.linear_part(g)[::-1, ::-1] for g in range(len(grid.group))]
        middle = np.array([0.5, 0.5, 0, 0]) if form == "center" else np.full(4, 0.5)
        matrices = np.stack(
            [_center_matrix(a) if form == "center" else _corner_matrix(a) for a in axes]
        )
        self.linear = Matrix(grid.group, matrices)
        offsets = torch.from_numpy(middle - matrices @ middle).float()  # 0 or 1, exactly
        self.register_buffer("offsets", offsets, persistent=False)

    def act(self, g: int, x: Tensor) -> Tensor:
        """Move each box with its image."""
        return self.linear.act(g, x) + self.offsets[g].to(x.dtype)

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, x.shape[0])
        return self.linear.act_each(elements, x) + self._laid(self.offsets[elements], x)

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        moved = self.linear.orbit(x, elements)
        return moved + self._laid(some_rows(self.offsets, elements), moved)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        inverses = [self.group.inverse(g) for g in self._listed(elements)]
        return self.linear.align(y, elements) + self._laid(self.offsets[inverses], y)

    def arguments(self) -> dict[str, Any]:
        return {"grid": self.grid, "form": self.form}

    @staticmethod
    def _laid(offsets: Tensor, x: Tensor) -> Tensor:
        """Offsets (n, 4) along the first and the last axis of x."""
        return offsets.to(x.dtype).view(-1, *(1,) * (x.ndim - 2), 4)


def _carry(move: Move, displacement: tuple[int, int]) -> tuple[int, int]:
    """A displacement of (rows, columns) after the mirror and the turns of a move."""
    row, column = displacement
    if move[1]:
        column = -column
    for _ in range(move[0]):
        row, column = -column, row
    return row, column


def _center_matrix(axes: np.ndarray) -> np.ndarray:
    """How (x, y, width, height) moves about the middle; sides have no sign."""
    return np.block([[axes, np.zeros((2, 2))], [np.zeros((2, 2)), abs(axes)]])


def _corner_matrix(axes: np.ndarray) -> np.ndarray:
    """How (left, top, right, bottom) moves about the middle: a mirror exchanges the corners."""
    kept, exchanged = axes.clip(min=0), axes.clip(max=0)
    return np.block([[kept, exchanged], [exchanged, kept]])


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
