"""The most familiar view, held from step to step: how lambda acts by vectors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from equicore import Symmetrized
from equicore.trees import tree_map

NO_VIEW = -1
"""In place of the view before, where an episode begins; any number below 0 serves."""


def held_view(
    symmetrized: Symmetrized, inputs: Any, before: Tensor, hold: float
) -> tuple[Any, Tensor]:
    """What one view makes of each sample: that of the step before, or a far more familiar one.

    Args:
        symmetrized: Weighs views by a `WeightedMean`.
        inputs: Of shape (B, ...), or a dict of such.
        before: The views of the step before, (B,), `NO_VIEW` where an episode begins.
        hold: How many times as familiar another view must be to be taken.

    Returns:
        The output (B, ...), as a tensor or by name, and the views, (B,).
    """
    reduce: Any = symmetrized.reduce
    views = symmetrized.views(inputs)
    familiar = reduce.log_weights(views)  # (|G|, B)
    best, places = familiar.max(0)
    own = familiar.gather(0, before.clamp(min=0)[None])[0]
    stays = (before >= 0) & (best - own < math.log(hold))
    places = torch.where(stays, before, places)
    rows = torch.arange(places.shape[0], device=places.device)
    raw = symmetrized.model(tree_map(lambda view: view[places, rows], views))
    return symmetrized.output_rep.align_each(places, raw), places
