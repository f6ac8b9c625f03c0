"""Hyperparameters from YAML, in the convention of rl-baselines3-zoo, without evaluating code."""

from __future__ import annotations

import difflib
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from torch.nn.modules import activation

from equicore.lab.values import from_yaml, read_yaml, whole

ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"dqn": DQN}
"""What can be trained; each has a YAML file of its name beside this one."""

LINEAR = "lin_"
"""What a learning rate begins with that falls linearly to 0, as in the zoo."""

# Of the run, not of the environment: given on the command line.
_NOT_IN_YAML = {"self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}
# Classes are written by name, and looked up where torch keeps them.
_CLASSES = {"activation_fn": activation, "optimizer_class": torch.optim}
_KNOWN_POLICY_KWARGS = {"net_arch", "normalize_images", "optimizer_kwargs", *_CLASSES}


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
        path: YAML file: environment ids, each with ``n_timesteps``, ``policy`` and arguments of
            the algorithm's class. A ``learning_rate`` of ``lin_0.001`` falls linearly to 0.
        env_kwargs: Its arguments; an entry for just these goes before that of the environment.
        algo: One of `ALGORITHMS`.

    Returns:
        Plain values, numbers as numbers; `algorithm_arguments` turns them into arguments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no YAML mapping, does not know the environment, or holds an
            unknown or missing key (a near miss is suggested), or what is no number where one is
            needed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no hyperparameters at {path}")
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} must map environment ids to hyperparameters")
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
    arguments = inspect.signature(ALGORITHMS[algo].__init__).parameters
    _check_keys(values, {"n_timesteps", *arguments} - _NOT_IN_YAML, where)
    for key in ("n_timesteps", "policy"):
        if key not in values:
            raise ValueError(f"{where}: {key} is missing")
    policy_kwargs = values.get("policy_kwargs", {})
    if not isinstance(policy_kwargs, dict):
        raise ValueError(
            f"{where}: policy_kwargs must be a mapping such as {{net_arch: [64, 64]}}; got "
            f"{policy_kwargs!r} (text is not evaluated)"
        )
    _check_keys(policy_kwargs, _KNOWN_POLICY_KWARGS, f"{where}, policy_kwargs")
    for key, module in _CLASSES.items():
        if key in policy_kwargs and policy_kwargs[key] not in module.__all__:
            name = policy_kwargs[key]
            raise ValueError(
                f"{where}: {module.__name__} has no {name!r}{_suggest(str(name), module.__all__)}"
            )
    typed = {}
    for key, value in values.items():
        kind = int if key == "n_timesteps" else _kind(arguments[key])
        what = f"{where}: {key}"
        typed[key] = _rate(value, what) if key == "learning_rate" else _typed(value, kind, what)
    if isinstance(net_arch := policy_kwargs.get("net_arch"), list):
        sizes = [whole(size, f"{where}: each entry of net_arch") for size in net_arch]
        typed["policy_kwargs"] = {**policy_kwargs, "net_arch": sizes}
    return typed


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
    """A learning rate, or the text of a schedule of one."""
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


def algorithm_arguments(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an algorithm's class for hyperparameters of `load_hyperparameters`."""
    arguments = {key: value for key, value in hyperparameters.items() if key != "n_timesteps"}
    rate = arguments.get("learning_rate")
    if isinstance(rate, str):
        start = float(rate.removeprefix(LINEAR))
        arguments["learning_rate"] = LinearSchedule(start, 0.0, 1.0)
    policy_kwargs = dict(arguments.get("policy_kwargs", {}))
    for key in policy_kwargs.keys() & _CLASSES.keys():
        policy_kwargs[key] = getattr(_CLASSES[key], policy_kwargs[key])
    arguments["policy_kwargs"] = policy_kwargs
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
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
