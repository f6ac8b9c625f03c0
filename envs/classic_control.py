"""Gymnasium's classic control: the mirror image of each, and how a state is set.

MountainCar has none: its slopes are mirrored about x = -pi / 6, where its wall, its goal and its
first positions are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from equirl.named import choices, mirror, negate, swap, symmetry
from equirl.simulators import Place, Placed, Vector
from equirl.symmetry import Symmetry

CARTPOLE = ("position", "velocity", "angle", "angular velocity")
ACROBOT = ("cos first", "sin first", "cos second", "sin second", "velocity first",
           "velocity second")  # fmt: skip
PENDULUM = ("cos", "sin", "angular velocity")


def cartpole_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of CartPole: every entry changes sign, left and right change places."""
    return symmetry(
        CARTPOLE, choices("left", "right"), mirror([negate(*CARTPOLE)], [swap("left", "right")])
    )


def acrobot_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Acrobot: sines and velocities of both joints change sign, so does the torque."""
    torques = choices("torque -1", "torque 0", "torque +1")
    turned = negate("sin first", "sin second", "velocity first", "velocity second")
    return symmetry(ACROBOT, torques, mirror([turned], [swap("torque -1", "torque +1")]))


def pendulum_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Pendulum: the sine, the velocity and the torque change sign."""
    return symmetry(
        PENDULUM, ("torque",), mirror([negate("sin", "angular velocity")], [negate("torque")])
    )


def _set(entries: Callable[[Vector], Any]) -> Place:
    """By the attribute ``state``, as of classic control."""

    def place(env: gym.Env, observation: Vector) -> Vector:
        inner: Any = env.unwrapped
        inner.state = np.array(entries(np.asarray(observation, float)))
        for name, value in (("steps_beyond_terminated", None), ("last_u", None)):
            if hasattr(inner, name):
                setattr(inner, name, value)
        return observation

    return place


STATE = Placed(_set(lambda o: o))
ACROBOT_STATE = Placed(_set(lambda o: (np.arctan2(o[1], o[0]), np.arctan2(o[3], o[2]), o[4], o[5])))
PENDULUM_STATE = Placed(_set(lambda o: (np.arctan2(o[1], o[0]), o[2])))
