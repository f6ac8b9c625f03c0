"""Hyperparameters from YAML, in the convention of rl-baselines3-zoo, without evaluating code."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import noise
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY
from torch.nn.modules import activation

from equicore.lab.values import from_yaml, read_yaml, whole
from equirl.agents.layers import LAYERS, names_of

ALGORITHMS = {
    **dict.fromkeys(("a2c", "ddpg", "dqn", "ppo", "sac", "td3"), "stable_baselines3"),
    **dict.fromkeys(("ars", "crossq", "maskable_ppo", "qrdqn", "tqc", "trpo"), "sb3_contrib"),
}
"""What can be trained, and its package; each has a YAML file of its name beside this one."""

_NAMES = {"crossq": "CrossQ", "maskable_ppo": "MaskablePPO"}
"""Of classes that are not called as their algorithm in capitals."""

LINEAR = "lin_"
"""What a value begins with that falls linearly to 0, as in the zoo."""
_SCHEDULES = ("learning_rate", "clip_range", "delta_std")

_NOISE = {
    "normal": noise.NormalActionNoise,
    "ornstein-uhlenbeck": noise.OrnsteinUhlenbeckActionNoise,
}

_BUFFERS = {"HerReplayBuffer": HerReplayBuffer}
_OF_BUFFER = {"n_sampled_goal", "goal_selection_strategy", "handle_timeout_termination"}
_STRATEGIES = tuple(KEY_TO_GOAL_STRATEGY)

# Of the run, not of the environment: given on the command line.
_NOT_IN_YAML = {"self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}
# Of the training, not of the algorithm's class: keys of the zoo.
_NOT_OF_CLASS = {
    *("n_timesteps", "n_envs", "normalize", "noise_type", "noise_std"),
    *("env_wrapper", "frame_stack"),
}
# Classes are written by name, and looked up where torch keeps them.
_CLASSES = {"activation_fn": activation, "optimizer_class": torch.optim}
# Arguments of policies that are given by Stable-Baselines3, or are classes of a user's own.
_NOT_OF_POLICY = {"self", "observation_space", "action_space", "lr_schedule", "use_sde"}


def algorithm_class(algo: str) -> type[BaseAlgorithm]:
    """The class of one of `ALGORITHMS`.

    Raises:
        ValueError: If there is none of this name.
        ImportError: If its package is not installed.
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"--algo is one of {', '.join(sorted(ALGORITHMS))}; got {algo!r}")
    try:
        package = importlib.import_module(ALGORITHMS[algo])
    except ImportError as error:
        raise ImportError(
            f"{algo} is of sb3-contrib, which is not installed: pip install 'equirl[contrib]'"
        ) from error
    return getattr(package, _NAMES.get(algo, algo.upper()))


def default_file(algo: str) -> Path:
    """The hyperparameters of an algorithm that come with equirl."""
    return Path(__file__).with_name(f"{algo}.yaml")


def setting_name(env_id: str, env_kwargs: dict[str, Any]) -> str:
    """An environment and its arguments as tables and files name them: ``id name=value``."""
    return " ".join([env_id, *(f"{name}={value}" for name, value in env_kwargs.items())])


def load_hyperparameters(
    env_id: str, path: Path, env_kwargs: dict[str, Any] | None = None, algo: str = "dqn"
) -> dict[str, Any]:
    """The hyperparameters of one environment.

    Args:
        env_id: The environment.
        path: YAML file: environment ids, each with ``n_timesteps``, ``policy``, arguments of the
            algorithm's class and, as in the zoo, ``n_envs``, ``normalize`` (true, or arguments of
            ``VecNormalize``), ``noise_type`` (normal or ornstein-uhlenbeck) and ``noise_std``,
            ``replay_buffer_class`` (HerReplayBuffer, for environments with goals),
            ``frame_stack`` (of vectors, which are normalised after they are stacked) and
            ``env_wrapper`` (see `equirl.agents.layers`).
            A ``learning_rate`` or ``clip_range`` of ``lin_0.001`` falls linearly to 0.
        env_kwargs: Its arguments; an entry for just these goes before that of the environment.
        algo: One of `ALGORITHMS`.

    Returns:
        Plain values, numbers as numbers; `algorithm_arguments` turns them into arguments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no YAML mapping, does not know the environment, or holds an
            unknown or missing key (a near miss is suggested), or what is no number where one is
            needed.
        ImportError: If the algorithm's package is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no hyperparameters at {path}")
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} must map environment ids to hyperparameters")
    document = {str(key).rpartition(":")[2]: value for key, value in document.items()}
    if env_id not in document:
        raise ValueError(
            f"{path.name} has no hyperparameters for {env_id!r}{_suggest(env_id, document)}; "
            f"it has {', '.join(map(str, document))}. Add an entry, or name another file with "
            "--hyperparameters"
        )
    setting = setting_name(env_id, env_kwargs or {})
    values = document[setting if setting in document else env_id]
    if not isinstance(values, dict):
        raise ValueError(f"{path.name}: the entry of {env_id} must be a mapping; got {values!r}")
    where = f"{path.name}, {env_id}"
    kind = algorithm_class(algo)
    arguments = inspect.signature(kind.__init__).parameters
    known = {*_NOT_OF_CLASS, *arguments} - _NOT_IN_YAML - {"action_noise"}
    if "action_noise" not in arguments:
        known -= {"noise_type", "noise_std"}
    _check_keys(values, known, where)
    for key in ("n_timesteps", "policy"):
        if key not in values:
            raise ValueError(f"{where}: {key} is missing")
    policies = kind.policy_aliases
    if values["policy"] not in policies:
        raise ValueError(
            f"{where}: policy is one of {', '.join(policies)}; got {values['policy']!r}"
        )
    typed = {key: _value(key, value, arguments, where) for key, value in values.items()}
    if "replay_buffer_kwargs" in typed and "replay_buffer_class" not in typed:
        raise ValueError(f"{where}: replay_buffer_kwargs are of a replay_buffer_class; add that")
    if ("noise_type" in typed) != ("noise_std" in typed):
        raise ValueError(f"{where}: noise_type and noise_std belong together; one is missing")
    if "policy_kwargs" in values:
        policy_class = policies[values["policy"]]
        typed["policy_kwargs"] = _policy_kwargs(values["policy_kwargs"], policy_class, where)
    return typed


def _value(key: str, value: Any, arguments: Any, where: str) -> Any:
    """The value of a key, checked and typed."""
    what = f"{where}: {key}"
    if key in ("n_timesteps", "n_envs", "frame_stack"):
        number = whole(value, what)
        if number < 1:
            raise ValueError(f"{what} is at least 1; got {number}")
        return number
    if key == "normalize":
        if isinstance(value, dict):
            return _arguments_of(VecNormalize, value, {"venv", "training"}, what)
        if not isinstance(value, bool):
            raise ValueError(
                f"{what} must be true, false, or a mapping such as {{norm_reward: false}}; got "
                f"{value!r} (text is not evaluated)"
            )
        return value
    if key == "env_wrapper":
        if any(isinstance(one, dict) for one in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{what} takes names only, no arguments of wrappers; got {value!r}")
        names = names_of({key: value}, key)
        if unknown := [name for name in names if name not in LAYERS]:
            raise ValueError(f"{what} names some of {', '.join(LAYERS)}; got {unknown[0]!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"{what} names a wrapper twice: {', '.join(names)}")
        return names
    if key == "replay_buffer_class":
        name = str(value).rpartition(".")[2]
        if name not in _BUFFERS:
            raise ValueError(f"{what} is one of {', '.join(_BUFFERS)}; got {value!r}")
        return name
    if key == "replay_buffer_kwargs":
        if not isinstance(value, dict):
            raise ValueError(
                f"{what} must be a mapping such as {{n_sampled_goal: 4}}; got {value!r} (text is "
                "not evaluated)"
            )
        _check_keys(value, _OF_BUFFER, what)
        goals = {"n_sampled_goal": value.get("n_sampled_goal", 4)}
        if whole(goals["n_sampled_goal"], f"{what}, n_sampled_goal") < 0:
            raise ValueError(f"{what}, n_sampled_goal is a number from 0; got {goals}")
        if (strategy := value.get("goal_selection_strategy", "future")) not in _STRATEGIES:
            raise ValueError(
                f"{what}, goal_selection_strategy is one of {', '.join(_STRATEGIES)}; got "
                f"{strategy!r}"
            )
        return value
    if key == "noise_type":
        if value not in _NOISE:
            raise ValueError(f"{what} is one of {', '.join(_NOISE)}; got {value!r}")
        return value
    if key == "noise_std":
        return _typed(value, float, what)
    return _rate(value, what) if key in _SCHEDULES else _typed(value, _kind(arguments[key]), what)


def _arguments_of(kind: Any, given: dict[str, Any], without: set[str], what: str) -> dict[str, Any]:
    """Arguments of a class, each of the kind of its default."""
    known = inspect.signature(kind).parameters
    _check_keys(given, {*known} - without, what)
    return {key: _typed(value, _kind(known[key]), f"{what}, {key}") for key, value in given.items()}


def _policy_kwargs(given: Any, policy_class: Any, where: str) -> dict[str, Any]:
    """The arguments of a policy's class, checked."""
    if not isinstance(given, dict):
        raise ValueError(
            f"{where}: policy_kwargs must be a mapping such as {{net_arch: [64, 64]}}; got "
            f"{given!r} (text is not evaluated)"
        )
    known = set(inspect.signature(policy_class).parameters) - _NOT_OF_POLICY
    known = {name for name in known if "features_extractor" not in name}
    _check_keys(given, known, f"{where}, policy_kwargs")
    for key, module in _CLASSES.items():
        if key in given and given[key] not in module.__all__:
            name = given[key]
            raise ValueError(
                f"{where}: {module.__name__} has no {name!r}{_suggest(str(name), module.__all__)}"
            )
    sizes = f"{where}: each entry of net_arch"
    layers = given.get("net_arch")
    if isinstance(layers, list):
        return {**given, "net_arch": [whole(size, sizes) for size in layers]}
    if isinstance(layers, dict):
        own = {name: [whole(size, sizes) for size in part] for name, part in layers.items()}
        return {**given, "net_arch": own}
    return dict(given)


def _kind(parameter: inspect.Parameter) -> Any:
    """Whether an argument is a bool, a whole number or a number; else what its default is."""
    if parameter.annotation in (bool, int, float):
        return parameter.annotation
    return type(parameter.default)


def _typed(value: Any, kind: Any, what: str) -> Any:
    """A value as one of a kind; text that holds a number counts as it."""
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{what} must be true or false; got {value!r}")
    if kind is int:
        if isinstance(value, list):  # as in train_freq: [1, episode]
            return [whole(value[0], f"{what}'s frequency"), *value[1:]] if value else value
        return whole(value, what)
    if kind is float:
        if not _is_number(value):
            raise ValueError(f"{what} must be a number; got {value!r}")
        return from_yaml(value) if isinstance(value, str) else value
    return value


def _rate(value: Any, what: str) -> Any:
    """A number, or the text of a schedule of one."""
    if isinstance(value, str) and value.startswith(LINEAR) and _is_number(value[len(LINEAR) :]):
        return value
    if not _is_number(value):
        raise ValueError(f"{what} must be a number or {LINEAR}<number>; got {value!r}")
    return from_yaml(value) if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        value = from_yaml(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def algorithm_arguments(
    hyperparameters: dict[str, Any], action_space: spaces.Space | None = None
) -> dict[str, Any]:
    """The arguments of an algorithm's class for hyperparameters of `load_hyperparameters`.

    Args:
        hyperparameters: See there.
        action_space: For the shape of noise, where there is noise.
    """
    arguments = {k: value for k, value in hyperparameters.items() if k not in _NOT_OF_CLASS}
    for key in _SCHEDULES:
        if isinstance(rate := arguments.get(key), str):
            arguments[key] = LinearSchedule(float(rate.removeprefix(LINEAR)), 0.0, 1.0)
    policy_kwargs = dict(arguments.get("policy_kwargs", {}))
    for key in policy_kwargs.keys() & _CLASSES.keys():
        policy_kwargs[key] = getattr(_CLASSES[key], policy_kwargs[key])
    arguments["policy_kwargs"] = policy_kwargs
    if "replay_buffer_class" in arguments:
        arguments["replay_buffer_class"] = _BUFFERS[arguments["replay_buffer_class"]]
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    if "noise_type" in hyperparameters:
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"noise is added to actions in a Box; these are in {action_space}")
        deviation = np.full(action_space.shape, hyperparameters["noise_std"])
        kind: Any = _NOISE[hyperparameters["noise_type"]]
        arguments["action_noise"] = kind(np.zeros_like(deviation), deviation)
    return arguments


def parse_env_kwargs(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("goals=corner", "n=6")`` as keyword arguments of ``gymnasium.make``.

    Raises:
        ValueError: If an item is not of the form ``name=value``.

    >>> parse_env_kwargs(("goals=corner", "n=6"))
    {'goals': 'corner', 'n': 6}
    """
    kwargs = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ValueError(f"environment arguments have the form name=value; got {pair!r}")
        try:
            kwargs[name] = from_yaml(value)
        except ValueError as error:
            raise ValueError(f"the value in {pair!r} is {error}") from error
    return kwargs


def _check_keys(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}{_suggest(str(key), known)}; "
                f"known: {', '.join(sorted(known))}"
            )


def _suggest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, map(str, known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
