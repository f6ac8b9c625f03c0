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

from equicore import Best, Symmetrized, Tree
from equicore.reduce import rounding
from equicore.scores import Score
from equirl.gathers import Gather, rows_by_element


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
        self.reduce: Any = symmetrized.reduce
        self.at_once = symmetrized.top_k is None and "features" not in symmetrized.reduce.needs
        # actions and the agent's values of them, of which one view is taken
        self.picks = (
            type(self.reduce) is Best
            and not isinstance(self.reduce.score, Score)
            and None not in self.outputs
        )

    def __call__(self, inputs: Any) -> Any:
        """The output (B, ...) for inputs (B, ...), each a tensor or a dict of tensors."""
        orbit = None
        if self.at_once:
            single = isinstance(inputs, Tensor)
            orbit = self.inputs[None].orbit(inputs) if single else self._views(inputs)
        if orbit is None:
            return self.symmetrized(inputs)
        raw = self.model.forward(orbit)
        if self.picks and (picked := self._picked(raw)) is not None:
            return picked
        if isinstance(raw, Tensor):
            stack: Any = self.outputs[None].align(raw)
        else:
            stack = {name: gather.align(raw[name]) for name, gather in self.outputs.items()}
        scores = None
        if self.reduce.needs:
            scores = self.reduce.scores(self._stacked(orbit), self._stacked(raw))
        return self.reduce.whole(stack, scores)

    def _picked(self, raw: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The action of each sample's best view; None if views are alike, or it is no gather."""
        scores = self.reduce.score(self._stacked(raw))
        if scores.dtype not in (torch.float32, torch.float64) or not scores.is_cpu:
            return None
        numbers = scores.numpy()
        best = numbers.max(0)
        tolerance = self.reduce.tolerance
        if tolerance is None:
            tolerance = rounding(scores.dtype)
        if not np.isfinite(best).all():
            return None
        good = numbers >= best - tolerance * (abs(best) + 1)
        if (good.sum(0) != 1).any():
            return None
        action = self.outputs["action"].align_one(raw["action"], numbers.argmax(0))
        return None if action is None else {"action": action}

    def _views(self, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The orbit of each entry, None if one is no gather."""
        views: Any = {name: gather.orbit(inputs[name]) for name, gather in self.inputs.items()}
        return None if any(found is None for found in views.values()) else views

    def _stacked(self, tree: Any) -> Any:
        """Rows (B |G|, ...) as (|G|, B, ...), as reducers take them."""
        if isinstance(tree, dict):
            return {name: rows_by_element(rows, self.order) for name, rows in tree.items()}
        return rows_by_element(tree, self.order)


def _gathers(representation: Any) -> dict[Any, Gather]:
    """One for each entry of a tree; for a single tensor one of no name."""
    if not isinstance(representation, Tree):
        return {None: Gather(representation)}
    return {name: Gather(part) for name, part in representation.by_name().items()}
