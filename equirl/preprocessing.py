"""What stands between an environment and an agent, as far as that can be recognised.

A symmetry says how a group acts on what an environment itself emits. Where an agent sees something
else, such as observations that were normalised, the same group acts on that in another way, or in
none, and a symmetrised policy would be wrong without a sign of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, VectorWrapper
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import (
    SubprocVecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
)

NORMALIZERS = ("NormalizeObservation", "VecNormalize")
"""What shifts and scales observations by statistics of the training."""

STACKERS = (
    *("FrameStackObservation", "FrameStack", "VecFrameStack", "TimeAwareObservation"),
    *("DelayObservation", "MaxAndSkipObservation", "AtariPreprocessing"),
)
"""What else changes observations and is no `gymnasium.ObservationWrapper`."""

CHANGING = (
    *(gym.ObservationWrapper, gym.ActionWrapper, VecFrameStack),
    *(gym.vector.VectorObservationWrapper, gym.vector.VectorActionWrapper),
)
"""What derives from these changes observations or actions by its very kind."""

HARMLESS = ("ClipAction", "DtypeObservation", "FlattenObservation", "VecTransposeImage")
"""What a group acts through: it changes types, or bounds, or the order of axes."""


def changes(env: Any) -> list[str]:
    """The names of what changes observations or actions on their way, from outside to inside.

    Args:
        env: An environment of Gymnasium, single or vectorised, a ``VecEnv`` of Stable-Baselines3,
            or an ``EnvSpec``. Wrappers that derive from ``gymnasium.Wrapper`` alone and are not
            Gymnasium's cannot be recognised.
    """
    if isinstance(env, EnvSpec):
        return [w.name for w in env.additional_wrappers if _by_name(w.name)]
    layers = list(_layers(env))
    names = [type(layer).__name__ for layer in layers if _changes(layer)]
    if isinstance(layers[-1], AsyncVectorEnv | SubprocVecEnv):  # the others are elsewhere
        names += changes(layers[-1].get_attr("spec")[0])
    return list(dict.fromkeys(names))


def normalizer_of(model: Any) -> str | None:
    """What normalises the observations of an agent of Stable-Baselines3, if that is known.

    It is from its environment. Of those that have none, such as loaded ones, on-policy algorithms
    tell: they keep an observation as it was before ``VecNormalize``. Whether that normalised
    observations, or rewards only, they do not tell.
    """
    env = getattr(model, "env", None)
    if env is not None:
        return next((name for name in changes(env) if name in NORMALIZERS), None)
    if isinstance(model, OnPolicyAlgorithm) and model._last_original_obs is not None:
        return "VecNormalize"
    return None


def _changes(layer: Any) -> bool:
    """Whether one layer changes observations or actions."""
    name = type(layer).__name__
    if isinstance(layer, VecNormalize):
        return layer.norm_obs
    if name in HARMLESS:
        return False
    return isinstance(layer, CHANGING) or _by_name(name)


def _by_name(name: str) -> bool:
    """Whether what has this name changes observations or actions."""
    if name in HARMLESS:
        return False
    kind = vars(gym.wrappers).get(name)
    known = isinstance(kind, type) and issubclass(kind, gym.ObservationWrapper | gym.ActionWrapper)
    return known or name in NORMALIZERS + STACKERS


def _layers(env: Any) -> Iterator[Any]:
    """An environment and what it is wrapped around; of several side by side, the first."""
    while env is not None:
        yield env
        if isinstance(env, gym.Wrapper | VectorWrapper):
            env = env.env
        elif isinstance(env, VecEnvWrapper):
            env = env.venv
        else:  # of vectors the first, of others nothing
            env = next(iter(getattr(env, "envs", [])), None)
