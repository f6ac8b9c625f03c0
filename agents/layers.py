"""What an environment is wrapped in for an agent, by the keys of rl-baselines3-zoo.

``env_wrapper`` names wrappers of single environments, by class or by module and class, and
``frame_stack`` tells how many observations an agent sees at once. Only the names here are known:
nothing is imported that a file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym

from equirl.preprocessing import WATCHING


def _time_feature(env: gym.Env) -> gym.Env:
    from sb3_contrib.common.wrappers import TimeFeatureWrapper

    return TimeFeatureWrapper(env)


LAYERS: dict[str, Callable[[gym.Env], gym.Env]] = {
    "FlattenObservation": gym.wrappers.FlattenObservation,
    "TimeFeatureWrapper": _time_feature,
}
"""What ``env_wrapper`` may name."""


def names_of(config: dict[str, Any], key: str) -> list[str]:
    """The wrappers that a key names, the innermost first, without those that change nothing."""
    given = config.get(key) or []
    names = [
        str(name).rpartition(".")[2] for name in (given if isinstance(given, list) else [given])
    ]
    return [name for name in names if name not in WATCHING]


def layered(env: gym.Env, layers: Iterable[str]) -> gym.Env:
    """An environment in some of `LAYERS`."""
    for layer in layers:
        env = LAYERS[layer](env)
    return env


def stacked(env: gym.Env, frames: int) -> gym.Env:
    """An environment that shows vectors one after the other, as a ``VecFrameStack`` does."""
    if frames == 1:
        return env
    shown = gym.wrappers.FrameStackObservation(env, frames, padding_type="zero")
    return gym.wrappers.FlattenObservation(shown)


def shows_vectors(space: gym.Space) -> bool:
    """Whether observations are vectors, of which several can stand one after the other."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1
