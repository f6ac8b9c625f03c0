"""A symmetrised head as an agent acts by it: the same numbers, by fewer calls of torch.

The network of a usual agent takes 15 microseconds for an observation, as much as five calls of
torch around it. Most groups only move the entries of observations and actions and change signs. So
the orbit of a vector is one gather, and so is the way back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from equicore import Representation, Symmetrized, Tree

Table = tuple[Tensor, Tensor | None]
"""Where all entries of an orbit are taken from, and their signs, or None if none changes."""


class Compiled:
    """A `Symmetrized` that takes fewer steps where its input is vectors; else it as it is.

    Model, reducer and representations are its own: nothing is copied but where entries go.

    Args:
        symmetrized: What is computed, of all elements at once.
    """

    def __init__(self, symmetrized: Symmetrized) -> None:
        self.symmetrized = symmetrized
        self.order = symmetrized.order
        self.inputs = _gathers(symmetrized.input_rep)
        self.outputs = _gathers(symmetrized.output_rep)
        # plain attributes, which are looked up faster than submodules
        self.model: Any = symmetrized.model
        self.reduce = symmetrized.reduce
        self.at_once = symmetrized.top_k is None and "features" not in symmetrized.reduce.needs

    def __call__(self, inputs: Any) -> Any:
        """The output (B, ...) for inputs (B, ...), each a tensor or a dict of tensors."""
        orbit = None
        if self.at_once:
            single = isinstance(inputs, Tensor)
            orbit = self.inputs[None].orbit(inputs) if single else self._views(inputs)
        if orbit is None:
            return self.symmetrized(inputs)
        raw = self.model.forward(orbit)
        if isinstance(raw, Tensor):
            stack: Any = self.outputs[None].align(raw)
        else:
            stack = {name: gather.align(raw[name]) for name, gather in self.outputs.items()}
        scores = None
        if self.reduce.needs:
            scores = self.reduce.scores(self._stacked(orbit), self._stacked(raw))
        return self.reduce.whole(stack, scores)

    def _views(self, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The orbit of each entry, None if one is no gather."""
        views: Any = {name: gather.orbit(inputs[name]) for name, gather in self.inputs.items()}
        return None if any(found is None for found in views.values()) else views

    def _stacked(self, tree: Any) -> Any:
        """Rows (B |G|, ...) as (|G|, B, ...), as reducers take them."""
        if isinstance(tree, dict):
            return {name: _stacked(rows, self.order) for name, rows in tree.items()}
        return _stacked(tree, self.order)


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
            self.orbits[key] = self._found("orbit", size, x)
        if (table := self.orbits[key]) is None:
            return None
        moved = x.index_select(1, table[0])
        return (moved if table[1] is None else moved.mul_(table[1])).view(-1, size)

    def align(self, y: Tensor) -> Tensor:
        """Each g^-1 . y of rows (B |G|, ...), shape (|G|, B, ...)."""
        if y.ndim != 2:
            return self.representation.align(_stacked(y, self.order))
        size = y.shape[1]
        key = size, y.dtype, y.device
        if key not in self.aligned:
            self.aligned[key] = self._found("align", size, y)
        if (table := self.aligned[key]) is None:
            return self.representation.align(_stacked(y, self.order))
        moved = y.view(-1, self.order * size).index_select(1, table[0])
        moved = moved if table[1] is None else moved.mul_(table[1])
        return moved.view(-1, self.order, size).transpose(0, 1)

    def _found(self, verb: str, size: int, like: Tensor) -> Table | None:
        """Read off what the representation makes of numbers of which no two are alike."""
        if 0 in self.representation.axes:  # it is not linear
            return None
        count = size if verb == "orbit" else self.order * size
        numbers = np.random.default_rng(0).normal(size=count)
        given = torch.from_numpy(numbers).to(like.device).view(-1, 1, size)
        if verb == "orbit":
            given = given[0]
        with torch.inference_mode(False):  # what is kept serves outside of it, too
            moved = getattr(self.representation, verb)(given).cpu().numpy().ravel()
            ordered = abs(numbers).argsort()
            places = ordered[abs(numbers[ordered]).searchsorted(abs(moved)).clip(max=count - 1)]
            signs = np.sign(moved) * np.sign(numbers[places])
            changes = bool((signs < 0).any())
            if not np.array_equal(signs * numbers[places], moved) or (
                changes and not like.is_floating_point()
            ):
                return None
            sign = torch.from_numpy(signs).to(like.device, like.dtype) if changes else None
            return torch.from_numpy(places).to(like.device), sign


def _stacked(rows: Tensor, order: int) -> Tensor:
    return rows.view(-1, order, *rows.shape[1:]).transpose(0, 1)


def _gathers(representation: Any) -> dict[Any, Gather]:
    """One for each entry of a tree; for a single tensor one of no name."""
    if not isinstance(representation, Tree):
        return {None: Gather(representation)}
    return {name: Gather(part) for name, part in representation.by_name().items()}
