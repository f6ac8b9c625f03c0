"""What stands between an environment and an agent, as far as that can be recognised.

A symmetry says how a group acts on what an environment itself emits. Where an agent sees something
else, such as observations that were normalised, the same group acts on that in another way, or in
none, and a symmetrised policy would be wrong without a sign of it.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorWrapper
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import (
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

NORMALIZERS = (
    VecNormalize,
    wrappers.NormalizeObservation,
    wrappers.vector.NormalizeObservation,
)
"""What shifts and scales observations by statistics of the training."""

CHANGING = (
    gym.ObservationWrapper,
    gym.ActionWrapper,
    gym.vector.VectorObservationWrapper,
    gym.vector.VectorActionWrapper,
    VecFrameStack,
    wrappers.AtariPreprocessing,
    wrappers.DelayObservation,
    wrappers.FrameStackObservation,
    wrappers.MaxAndSkipObservation,
    wrappers.TimeAwareObservation,
)
"""What derives from these changes observations or actions."""

BY_NAME = ("FrameStack", "HistoryWrapper", "TimeFeatureWrapper")
"""The same, of packages that need not be here."""

HARMLESS = (wrappers.ClipAction, wrappers.DtypeObservation)
"""The same group acts through these: they change types or bounds."""

WATCHING = (
    *("Monitor", "RecordEpisodeStatistics", "RecordVideo", "TimeLimit"),
    *("VecCheckNan", "VecMonitor", "VecVideoRecorder"),
)
"""Wrappers that an agent does not notice."""

MADE = (wrappers.OrderEnforcing, wrappers.PassiveEnvChecker)
"""``gymnasium.make`` puts these around an environment: what is inside belongs to its id."""


def changes(env: Any) -> list[str]:
    """The names of what changes observations or actions on their way, from outside to inside.

    What an id itself puts around an environment belongs to what the id emits, unless it normalises.

    Args:
        env: An environment of Gymnasium, single or vectorised, a ``VecEnv`` of Stable-Baselines3,
            or an ``EnvSpec``. Wrappers of a user's own are recognised if they derive from
            ``ObservationWrapper`` or ``ActionWrapper``; a ``SubprocVecEnv`` tells of normalisation
            only, an ``AsyncVectorEnv`` of nothing.
    """
    if isinstance(env, EnvSpec):
        normalizing = {kind.__name__ for kind in NORMALIZERS}
        return [w.name for w in env.additional_wrappers if w.name in normalizing]
    layers = list(layers_of(env))
    names = [type(layer).__name__ for layer in changing(env)]
    return list(dict.fromkeys([*names, *_normalizes_elsewhere(layers[-1]), *elsewhere(env)]))


def changing(env: Any) -> list[Any]:
    """What changes observations or actions on their way, see `changes`; not in other processes."""
    layers = list(layers_of(env))
    outside = list(itertools.takewhile(lambda layer: not isinstance(layer, MADE), layers))
    of_id = _of_its_id(layers)
    found = [x for x in outside if _changes(x) and type(x).__name__ not in of_id]
    return [x for x in layers if _normalizes(x) or any(x is y for y in found)]


def added(env: Any) -> list[str]:
    """The names of wrappers that ``gymnasium.make`` of the environment's id would not make.

    Those apart that change nothing, and ``VecNormalize``, whose statistics an agent has.
    """
    layers = list(layers_of(env))
    outside = itertools.takewhile(lambda layer: not isinstance(layer, MADE), layers)
    kinds = gym.Wrapper | VectorWrapper | VecEnvWrapper
    without = {*WATCHING, *_of_its_id(layers)}
    return [
        type(layer).__name__
        for layer in outside
        if isinstance(layer, kinds)
        and not isinstance(layer, (*HARMLESS, VecNormalize, VecTransposeImage))
        and type(layer).__name__ not in without
    ] + elsewhere(env)


def normalizer_of(model: Any) -> str | None:
    """What normalises the observations of an agent of Stable-Baselines3, if that is known.

    Its environment tells. On-policy algorithms also keep an observation as it was before
    ``VecNormalize``; whether that normalised observations, or rewards only, they do not tell, but
    an environment does that holds a ``VecNormalize``.
    """
    layers = list(layers_of(getattr(model, "env", None)))
    names = [type(layer).__name__ for layer in layers if _normalizes(layer)]
    if names or layers and (names := _normalizes_elsewhere(layers[-1])):
        return names[0]
    if any(isinstance(layer, VecNormalize) for layer in layers):
        return None
    if isinstance(model, OnPolicyAlgorithm) and model._last_original_obs is not None:
        return "VecNormalize"
    return None


def statistics_beside(path: Path) -> Path | None:
    """The file of ``VecNormalize`` that stands beside an agent's file, if its name says so.

    As in ``vecnormalize.pkl``, ``vecnormalize.safetensors`` (see ``equirl convert``) and
    ``vec_normalize.pkl``, also with the name of the agent, and in the folder that rl-baselines3-zoo
    calls as the agent.
    """
    own = _letters(path.stem)
    places = [(path.parent, own), (path.parent, ""), (path.with_suffix(""), "")]
    for folder, wanted in places:  # those that bear its name before others
        for file in [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.pkl"))]:
            name = _letters(file.stem)
            if "vecnormalize" in name and name.replace("vecnormalize", "") == wanted:
                return file
    return None


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def moves_channels(model: Any) -> bool | None:
    """Whether pictures reach an agent with their channels moved to the front; None if unknown."""
    layers = list(layers_of(getattr(model, "env", None)))
    if not layers:
        return None
    return any(isinstance(layer, VecTransposeImage) for layer in layers)


def _normalizes(layer: Any) -> bool:
    if isinstance(layer, VecNormalize):
        return layer.norm_obs
    return isinstance(layer, NORMALIZERS)


def _changes(layer: Any) -> bool:
    if isinstance(layer, wrappers.FlattenObservation):  # of vectors it changes nothing
        inner = layer.env.observation_space
        return not isinstance(inner, gym.spaces.Box) or len(inner.shape) != 1
    if isinstance(layer, HARMLESS):
        return False
    return isinstance(layer, CHANGING) or type(layer).__name__ in BY_NAME


def _of_its_id(layers: list[Any]) -> set[str]:
    """The names of the wrappers that the id of an environment itself asks for."""
    for layer in layers:
        spec = getattr(layer, "spec", None) if isinstance(layer, gym.Env) else None
        if spec is not None and spec.id in gym.registry:
            return _asked_for(spec)
    return set()


def _asked_for(spec: EnvSpec) -> set[str]:
    """The names of the wrappers that an id asks for, if it is registered."""
    known = gym.registry.get(spec.id)
    return {wrapper.name for wrapper in known.additional_wrappers} if known else set()


def elsewhere(env: Any) -> list[str]:
    """What changes observations or actions in other processes, by the names that they tell."""
    inner = [*layers_of(env)][-1]
    if not isinstance(inner, SubprocVecEnv) or inner.closed:
        return []
    try:
        spec = inner.get_attr("spec", 0)[0]
    except (OSError, EOFError):  # its processes have ended
        return []
    if spec is None:
        return []
    own = _asked_for(spec)
    return [
        wrapper.name
        for wrapper in spec.additional_wrappers
        if wrapper.name not in own and _is_changing(wrapper.name, wrapper.entry_point)
    ]


def _is_changing(name: str, entry_point: str) -> bool:
    """Whether a wrapper that another process tells of changes something; True if unknown."""
    if name in BY_NAME:
        return True
    module, _, attribute = entry_point.partition(":")
    kind: Any = sys.modules.get(module)
    for part in attribute.split("."):
        kind = getattr(kind, part, None)
    if not isinstance(kind, type):
        return True
    return issubclass(kind, CHANGING) and not issubclass(kind, HARMLESS)


def _normalizes_elsewhere(env: Any) -> list[str]:
    """What normalises environments in other processes, as far as they can be asked."""
    if not isinstance(env, SubprocVecEnv) or env.closed:
        return []
    kind = wrappers.NormalizeObservation
    try:
        return [kind.__name__] if any(env.env_is_wrapped(kind)) else []
    except (OSError, EOFError):  # its processes have ended
        return []


def layers_of(env: Any) -> Iterator[Any]:
    """An environment and what it is wrapped around; of several side by side, the first."""
    while env is not None:
        yield env
        if isinstance(env, gym.Wrapper | VectorWrapper):
            env = env.env
        elif isinstance(env, VecEnvWrapper):
            env = env.venv
        else:
            vector = isinstance(env, VecEnv | gym.vector.VectorEnv)
            env = next(iter(getattr(env, "envs", []) if vector else []), None)
