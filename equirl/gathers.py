"""What only moves numbers and changes their signs, done by one gather.

Most symmetries of environments do no more to observations and actions. One gather takes less time
than the calls of torch that a representation needs, and numpy does it without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equicore import Representation

Moves = tuple[NDArray[np.int64], NDArray[np.float64] | None]
"""Where each number is taken from, and its sign; None in place of signs if none changes."""

Table = tuple[Tensor, Tensor | None]
"""The same as tensors."""


def moves_of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Moves | None:
    """What a linear function does to tensors of a shape, read off numbers that all differ.

    Args:
        function: Linear; of tensors of float64 on the CPU.
        shape: Of what it is given.

    Returns:
        For each number of the result, flat, the place that it has in the flat input, and its sign;
        None if the function does more than to move numbers and to change signs.
    """
    numbers = np.random.default_rng(0).normal(size=shape)
    flat = numbers.ravel()
    with torch.inference_mode(False):
        moved = function(torch.from_numpy(numbers)).numpy(force=True).ravel()
    ordered = abs(flat).argsort()
    nearest = abs(flat[ordered]).searchsorted(abs(moved)).clip(max=len(flat) - 1)
    places = ordered[nearest]
    signs = np.sign(moved) * np.sign(flat[places])
    if not np.array_equal(signs * flat[places], moved):
        return None
    return places, signs if (signs < 0).any() else None


class Gather:
    """What a representation does to rows of numbers, by one gather where that is possible.

    Possible it is where all elements only move entries and change their signs. The views of a
    sample stand in rows one after the other, so that they are one row of a gather.

    Args:
        representation: Of vectors, or of single numbers that no element changes.
    """

    def __init__(self, representation: Representation) -> None:
        self.representation = representation
        self.order = len(representation.group)
        # for each size, type and device that was met
        self.orbits: dict[Any, Table | None] = {}
        self.aligned: dict[Any, Table | None] = {}

    def orbit(self, x: Any) -> Tensor | None:
        """All g . x of vectors (B, d), shape (B |G|, d); None where it is no gather."""
        if not isinstance(x, Tensor) or x.ndim != 2:  # pictures, ids, or a dict within a dict
            return None
        size = x.shape[1]
        key = size, x.dtype, x.device
        if key not in self.orbits:
            self.orbits[key] = self._table(self.representation.orbit, (1, size), x)
        if (table := self.orbits[key]) is None:
            return None
        moved = x.index_select(1, table[0])
        return (moved if table[1] is None else moved.mul_(table[1])).view(-1, size)

    def align(self, y: Tensor) -> Tensor:
        """Each g^-1 . y of rows (B |G|, ...), shape (|G|, B, ...)."""
        if y.ndim != 2:
            return self.representation.align(rows_by_element(y, self.order))
        size = y.shape[1]
        if (table := self._back(y)) is None:
            return self.representation.align(rows_by_element(y, self.order))
        moved = y.view(-1, self.order * size).index_select(1, table[0])
        moved = moved if table[1] is None else moved.mul_(table[1])
        return moved.view(-1, self.order, size).transpose(0, 1)

    def align_one(self, y: Tensor, views: NDArray[np.int64]) -> Tensor | None:
        """g^-1 . y of rows (B |G|, d), on the CPU, for one view g of each sample, shape (B, d).

        None where it is no gather.
        """
        table = self._back(y) if y.ndim == 2 else None
        if table is None:
            return None
        numbers, samples, size = y.numpy().ravel(), len(views), y.shape[1]
        places = table[0].numpy().reshape(self.order, size)[views]
        if samples > 1:
            places = places + (self.order * size * np.arange(samples))[:, None]
        moved = numbers.take(places)
        if table[1] is not None:
            moved *= table[1].numpy().reshape(self.order, size)[views]
        return torch.from_numpy(moved)

    def _back(self, y: Tensor) -> Table | None:
        """How rows are aligned, found when it is first asked for."""
        size = y.shape[1]
        key = size, y.dtype, y.device
        if key not in self.aligned:
            self.aligned[key] = self._table(self.representation.align, (self.order, 1, size), y)
        return self.aligned[key]

    def _table(
        self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], like: Tensor
    ) -> Table | None:
        """What a function of the representation does, for tensors of one type and device."""
        if 0 in self.representation.axes:  # it is not linear
            return None
        moves = moves_of(lambda x: function(x.to(like.device)), shape)
        if moves is None:
            return None
        places, signs = moves
        if signs is not None and not like.is_floating_point():
            return None
        with torch.inference_mode(False):  # what is kept serves outside of it, too
            sign = None if signs is None else torch.from_numpy(signs).to(like.device, like.dtype)
            return torch.from_numpy(places).to(like.device), sign


def rows_by_element(rows: Tensor, order: int) -> Tensor:
    """Rows (B |G|, ...), the views of a sample together, as (|G|, B, ...)."""
    return rows.view(-1, order, *rows.shape[1:]).transpose(0, 1)
