"""Gymnasium's Box2D environments (extra `box2d`): symmetries, and mirrored episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from equirl.named import choices, mirror, negate, swap, symmetry
from equirl.simulators import Episodes, Vector
from equirl.symmetry import Symmetry

LANDER = ("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg contact",
          "right leg contact")  # fmt: skip
ENGINES = choices("nothing", "left engine", "main engine", "right engine")
LEG = ("hip angle", "hip speed", "knee angle", "knee speed", "contact")
WALKER = ("hull angle", "hull angular velocity", "x velocity", "y velocity",
          *(f"{leg} leg {entry}" for leg in ("first", "second") for entry in LEG),
          *(f"lidar {ray}" for ray in range(10)))  # fmt: skip
MOTORS = tuple(f"{leg} leg {joint}" for leg in ("first", "second") for joint in ("hip", "knee"))


def lunarlander_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of LunarLander: the mirror image.

    What points sideways changes sign, the legs change places, and so do the engines at the sides.
    The ground, the first push, the wind and the scatter of the engines are drawn from distributions
    that the mirror leaves alone: single episodes have no mirror image, but all of them together.
    """
    seen = [negate("x", "x velocity", "angle", "angular velocity"), swap("left leg", "right leg")]
    if spec.kwargs.get("continuous"):
        return symmetry(LANDER, ("main engine", "side engine"),
                        mirror(seen, [negate("side engine")]))  # fmt: skip
    return symmetry(LANDER, ENGINES, mirror(seen, [swap("left", "right")]))


def bipedalwalker_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of BipedalWalker: its two legs, which are alike, change places.

    An episode starts with one leg in front, always the same: an agent that has learned to walk
    need never have seen the other one there.
    """
    return symmetry(
        WALKER,
        MOTORS,
        mirror([swap("first leg", "second leg")], [swap("first leg", "second leg")]),
    )


class _MirroredDraws:
    """LunarLander's random numbers as its mirror image would draw them.

    The heights of the ground in reverse, the first push sideways negated, and of both numbers by
    which the engines scatter in each step the one along the side.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator, self.drawn = generator, 0

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        drawn = self.generator.uniform(low, high, size)
        if size is not None:
            return np.concatenate([drawn[:-1][::-1], drawn[-1:]])
        self.drawn += 1
        sideways = self.drawn == 1 or (self.drawn > 2 and self.drawn % 2 == 0)
        return -drawn if sideways else drawn


def _mirrored_lander(env: gym.Env, seed: int) -> Vector:
    inner: Any = env.unwrapped
    inner.np_random = _MirroredDraws(gym.utils.seeding.np_random(seed)[0])
    return np.array(env.reset()[0])


def _wind(env: gym.Env) -> str:
    inner: Any = env.unwrapped
    return "its wind has no mirror image in single episodes" if inner.enable_wind else ""


def _other_leg_first(env: gym.Env, seed: int) -> Vector:
    """BipedalWalker's legs under each other's names."""
    observation = np.array(env.reset(seed=seed)[0])
    inner: Any = env.unwrapped
    inner.legs = [*inner.legs[2:], *inner.legs[:2]]
    inner.joints = [*inner.joints[2:], *inner.joints[:2]]
    first, second = observation[4:9].copy(), observation[9:14].copy()
    observation[4:9], observation[9:14] = second, first
    return observation


# its legs come to their stops once in each episode, and at the end it touches the ground
MIRRORED_LANDER = Episodes(_mirrored_lander, apart=0.014, refuses=_wind)
OTHER_LEG_FIRST = Episodes(_other_leg_first, apart=0.009)
