"""Gymnasium-Robotics, seen through ``gymnasium.wrappers.FlattenObservation``.

Its observations are dicts of vectors, which that puts one after the other by the order of their
names: where something is, where it should be, and the rest.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from equirl.named import mirror, negate, symmetry
from equirl.simulators import Placed, Vector
from equirl.symmetry import Symmetry

POINT = ("achieved x", "achieved y", "desired x", "desired y", "x", "y", "x velocity", "y velocity")
FORCES = ("x force", "y force")


def point_maze_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of PointMaze_UMaze: the maze is mirrored along y."""
    seen = negate("achieved y", "desired y", "y", "y velocity")
    return symmetry(POINT, FORCES, mirror([seen], [negate("y force")]))


def open_maze_symmetry(spec: EnvSpec) -> Symmetry:
    """Both mirror images of PointMaze_Open, along x and along y."""
    across = negate("achieved x", "desired x", "x", "x velocity")
    along = negate("achieved y", "desired y", "y", "y velocity")
    return symmetry(
        POINT,
        FORCES,
        mirror([across], [negate("x force")]),
        mirror([along], [negate("y force")]),
    )


def _maze(env: gym.Env, observation: Vector) -> Vector:
    """Of a PointMaze, flattened: where the goal is, and where the point is and goes."""
    inner: Any = env.unwrapped
    inner.goal = np.array(observation[2:4], float)
    inner.update_target_site_pos()
    inner.point_env.set_state(*np.array(observation[4:8], float).reshape(2, 2))
    return observation


MAZE_STATE = Placed(_maze)
