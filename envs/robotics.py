"""Gymnasium-Robotics: point mazes, whose observations are dicts.

They say where something is, where it should be, and the rest.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from equicore import Group, Matrix, Tree, cyclic, product
from equirl.simulators import Placed, Vector
from equirl.symmetry import Symmetry


def point_maze_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of PointMaze_UMaze: the maze is mirrored along y."""
    return _mirrored(cyclic(2), [[1, -1]])


def open_maze_symmetry(spec: EnvSpec) -> Symmetry:
    """Both mirror images of PointMaze_Open, along x and along y."""
    return _mirrored(product(cyclic(2), cyclic(2)), [[-1, 1], [1, -1]])


def _mirrored(group: Group, signs: list[list[int]]) -> Symmetry:
    """Each generator changes signs of x and y, of all places, velocities and forces."""
    plane = Matrix.from_generators(group, [np.diag(pair) for pair in signs])
    moving = Matrix.from_generators(group, [np.diag([*pair, *pair]) for pair in signs])
    seen = {"achieved_goal": plane, "desired_goal": plane, "observation": moving}
    return Symmetry(Tree(seen), plane)


def _maze(env: gym.Env, observation: Vector) -> Vector:
    """Of a PointMaze, flattened: where the goal is, and where the point is and goes."""
    inner: Any = env.unwrapped
    inner.goal = np.array(observation[2:4], float)
    inner.update_target_site_pos()
    inner.point_env.set_state(*np.array(observation[4:8], float).reshape(2, 2))
    return observation


MAZE_STATE = Placed(_maze)
