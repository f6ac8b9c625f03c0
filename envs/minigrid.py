"""MiniGrid, which needs the extra `minigrid`; it brings pygame-ce in place of pygame.

Its observations are dicts with a text; `minigrid.wrappers.ImgObsWrapper` leaves the agent's view,
an image. `check_symmetry` takes a function that makes that:

    check_symmetry(lambda: ImgObsWrapper(gym.make("MiniGrid-Empty-8x8-v0")), view_symmetry())
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from equicore import Permutation, cyclic
from equirl.named import choices, mirror, swap, symmetry
from equirl.preprocessing import layers_of
from equirl.simulators import Episodes, Vector
from equirl.symmetry import Symmetry

ACTIONS = choices("turn left", "turn right", "forward", "pick up", "drop", "toggle", "done")


def view_symmetry(width: int = 7) -> Symmetry:
    """C2 of MiniGrid: what the agent sees in front of it is mirrored, turns change sides.

    Args:
        width: Of the view, the first axis of the images.
    """
    columns = Permutation.from_generators(cyclic(2), [np.arange(width)[::-1]], dim=-3)
    return symmetry(columns, ACTIONS, mirror([], [swap("turn left", "turn right")]))


def _mirrored_grid(env: gym.Env, seed: int) -> Vector:
    """A MiniGrid with left and right exchanged, as the agent sees them first."""
    env.reset(seed=seed)
    inner: Any = env.unwrapped
    grid, width = inner.grid.grid, inner.grid.width
    rows = [grid[i : i + width] for i in range(0, len(grid), width)]
    inner.grid.grid = [cell for row in rows for cell in reversed(row)]
    for holder in (inner, *filter(None, inner.grid.grid)):  # tasks and things remember places
        for name, place in vars(holder).items():
            where = name.endswith("_pos") and not name.endswith(("_start_pos", "_default_pos"))
            if where and place is not None and np.shape(place) == (2,):
                setattr(holder, name, (width - 1 - place[0], place[1]))
    inner.agent_dir = (2 - inner.agent_dir) % 4  # right, down, left, up
    shown = inner.gen_obs()
    for layer in reversed(list(layers_of(env))):
        shown = layer.observation(shown) if isinstance(layer, gym.ObservationWrapper) else shown
    return shown


MIRRORED = Episodes(_mirrored_grid, through_wrappers=True, draws=False, exact="exact")
