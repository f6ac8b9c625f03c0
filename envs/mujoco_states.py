"""How the state of a MuJoCo environment is set to what an observation shows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from equirl.simulators import Placed, Vector

CLIPPED = 10.0
"""Hopper, Walker2d and InvertedDoublePendulum show no larger velocities."""
ELBOW = 2.9
"""The Reacher's second joint stops at 3, and its sine and cosine do not tell angles beyond pi."""


def _mujoco(env: gym.Env, observation: Vector) -> Vector | None:
    """By joint positions and velocities, which observations begin with, but for where a body is."""
    inner: Any = env.unwrapped
    positions, velocities, absent = _joints(inner)
    place = np.concatenate([np.zeros(absent), observation[: positions - absent]])
    speeds = observation[positions - absent :][:velocities].astype(float)
    if (abs(speeds) == CLIPPED).any():
        return None
    inner.set_state(place, speeds)
    return np.array(inner._get_obs())


def _joints(inner: Any) -> tuple[int, int, int]:
    """How many positions and velocities a body has, and how many of the positions are not seen."""
    positions, velocities = inner.model.nq, inner.model.nv
    structure = getattr(inner, "observation_structure", None) or {}
    entries = inner.observation_space.shape[0]
    absent = structure.get("skipped_qpos", max(0, positions + velocities - entries))
    return positions, velocities, absent


def _seen_joints(env: gym.Env) -> int:
    positions, velocities, absent = _joints(env.unwrapped)
    return positions + velocities - absent


def _reacher(env: gym.Env, observation: Vector) -> Vector | None:
    """The sines and cosines, and the target, are joint positions."""
    inner: Any = env.unwrapped
    angles = np.arctan2(observation[2:4], observation[:2])
    if abs(angles[1]) > ELBOW:
        return None
    inner.set_state(
        np.concatenate([angles, observation[4:6]]), np.concatenate([observation[6:8], [0, 0]])
    )
    return np.array(inner._get_obs())


def _double_pendulum(env: gym.Env, observation: Vector) -> Vector | None:
    inner: Any = env.unwrapped
    angles, speeds = np.arctan2(observation[1:3], observation[3:5]), observation[5:8].astype(float)
    if (abs(speeds) == CLIPPED).any():
        return None
    inner.set_state(np.concatenate([observation[:1], angles]), speeds)
    return np.array(inner._get_obs())


STATE = Placed(_mujoco, _seen_joints)
REACHER_STATE = Placed(_reacher, lambda env: 8)
DOUBLE_PENDULUM_STATE = Placed(_double_pendulum, lambda env: 8)
