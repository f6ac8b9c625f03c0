"""Symmetries of MiniGrid, which needs the extra `minigrid`; it brings pygame-ce in place of pygame.

Its observations are dicts with a text; `minigrid.wrappers.ImgObsWrapper` leaves the agent's view,
an image. `check_symmetry` takes a function that makes that:

    check_symmetry(lambda: ImgObsWrapper(gym.make("MiniGrid-Empty-8x8-v0")), view_symmetry())
"""

from __future__ import annotations

import numpy as np

from equicore import Permutation, cyclic
from equirl.named import choices, mirror, swap, symmetry
from equirl.symmetry import Symmetry

ACTIONS = choices("turn left", "turn right", "forward", "pick up", "drop", "toggle", "done")


def view_symmetry(width: int = 7) -> Symmetry:
    """C2 of MiniGrid: what the agent sees in front of it is mirrored, turns change sides.

    Args:
        width: Of the view, the first axis of the images.
    """
    columns = Permutation.from_generators(cyclic(2), [np.arange(width)[::-1]], dim=-3)
    return symmetry(columns, ACTIONS, mirror([], [swap("turn left", "turn right")]))
