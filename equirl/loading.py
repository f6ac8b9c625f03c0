"""Agents from files, without executing what is in them.

The zip archives of Stable-Baselines3 hold pickled objects, and unpickling executes whatever the
file says. Here nothing is unpickled: weights are read with ``weights_only=True``, and every pickled
field is replaced, unread, by what the plain text beside it says, or by Stable-Baselines3's default.
Archives of any version can be read, from the time of the old ``gym`` too.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import io
import json
import warnings
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.sb2_compat import rmsprop_tf_like
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn, optim

from equicore.lab.devices import check_device
from equirl.arrays import shape_of
from equirl.normalization import Statistics, statistics_of
from equirl.preprocessing import statistics_beside
from equirl.texts import space_from_dict, space_of, space_to_dict

ALGORITHMS = {
    "stable_baselines3.dqn.policies": "DQN",
    "stable_baselines3.sac.policies": "SAC",
    "stable_baselines3.td3.policies": "TD3",
    "stable_baselines3.common.policies": "A2C",
    "sb3_contrib.ars.policies": "ARS",
    "sb3_contrib.common.maskable.policies": "MaskablePPO",
    "sb3_contrib.crossq.policies": "CrossQ",
    "sb3_contrib.qrdqn.policies": "QRDQN",
    "sb3_contrib.tqc.policies": "TQC",
}
"""The algorithm that is opened, by the module of the policy; see also `TOLD_APART`."""

TOLD_APART = {"clip_range": "PPO", "cg_damping": "TRPO"}
"""Those with the policies of A2C, by a field that only they have. A DDPG is opened as a TD3, which
it is but for its training."""

KNOWN: tuple[Any, ...] = (nn, optim, torch_layers, rmsprop_tf_like)
"""Where the classes stand that a policy may be made of."""

NOT_RESTORED: dict[str, Any] = {
    "env": None,  # of an environment's name, gymnasium imports the module that stands before it
    "seed": None,
    "verbose": 0,
    "tensorboard_log": None,
    "buffer_size": 1,
    "replay_buffer_class": None,  # hindsight wants the environment
    "replay_buffer_kwargs": {},
}
"""Fields that concern a training: the agent must not seed the global generators, say."""

SHARED = ("pi_features_extractor.", "vf_features_extractor.")
"""Parameters that archives from before Stable-Baselines3 1.7 name once, not once for each use."""


class Loaded(BaseAlgorithm):
    """An agent that predicts only: what training it further needs was not read from its file.

    Attributes:
        statistics: What its observations were normalised by, if they were. ``predict`` takes what
            the environment emits, and normalises that itself, unless the agent was given an
            environment with a ``VecNormalize``, by ``set_env``.
    """

    statistics: Statistics | None = None

    def predict(self, observation: Any, *arguments: Any, **options: Any) -> Any:
        """As the agent's own, of what its environment emits."""
        own = self.statistics
        # what does not fit is refused by Stable-Baselines3's own message
        if own is not None and statistics_of(self) is own and own.are_of(observation):
            observation = own.normalize(observation)
        return super().predict(observation, *arguments, **options)

    def learn(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse, with TypeError."""
        raise TypeError(
            "load_agent opens agents to use them, not to train them further: their replay buffer, "
            "schedules and some settings are pickled in the file and were not read. Train one "
            "with equirl train, or, if you trust the file, open it with Stable-Baselines3's own "
            "load"
        )

    def save(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse, with TypeError."""
        raise TypeError(
            "an agent that load_agent opened lacks what was pickled in its file; copy that file, "
            "or save a symmetrised policy around the agent"
        )


@functools.cache
def _loaded(algorithm: type[BaseAlgorithm]) -> Any:
    """An algorithm that is `Loaded`."""
    return type(f"Loaded{algorithm.__name__}", (Loaded, algorithm), {"__module__": __name__})


KEPT = ("gamma", "exploration_rate")
"""What a policy is told of its agent, where the agent itself is not kept."""


def load_agent(
    path: str | Path,
    device: str | torch.device = "auto",
    *,
    statistics: str | Path | Statistics | None = None,
) -> BaseAlgorithm:
    """Open an agent that Stable-Baselines3 or sb3-contrib saved, without executing anything.

    Args:
        path: The ``.zip`` file, of an A2C, DDPG, DQN, PPO, SAC or TD3, or of sb3-contrib's ARS,
            CrossQ, MaskablePPO, QRDQN, TQC or TRPO; the suffix may be left out.
        device: For the networks.
        statistics: What its observations were normalised by (see `Statistics.load`); when omitted,
            the file that stands beside it, as ``vecnormalize.pkl`` does in rl-baselines3-zoo. The
            agent then takes what its environment emits (see `Loaded`).

    Returns:
        The agent, for prediction and evaluation (see `Loaded`: ``learn`` and ``save`` raise). Its
        spaces, networks and plain fields, such as ``gamma`` and ``num_timesteps``, are those of the
        file; what the file holds only as pickles (schedules) has Stable-Baselines3's defaults, and
        the replay buffer is empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, no archive of Stable-Baselines3, of another algorithm,
            or has spaces or networks that its plain part does not describe; if statistics are of
            another shape; or if there is no such device.
        ImportError: If it is of sb3-contrib, which is not installed.
    """
    check_device(device)
    path = archive_at(Path(path))
    content, data, weights = _read(path)
    algorithm, policy_class = _kinds(data, path)
    fields: dict[str, Any] = {
        **{name: value for name, value in NOT_RESTORED.items() if name in data},
        "policy_class": policy_class,
        "policy_kwargs": _policy_kwargs(data, path),
        "observation_space": space_of(data, "observation_space", path),
        "action_space": space_of(data, "action_space", path),
    }
    defaults = vars(algorithm(policy_class, env=None, _init_setup_model=False))
    # without an environment SAC cannot work out its default
    defaults["target_entropy"] = -float(np.prod(fields["action_space"].shape or 1))
    if issubclass(algorithm, OnPolicyAlgorithm) and data.get("_last_original_obs") is not None:
        # these keep it under VecNormalize only, by which `normalizer_of` knows
        fields["_last_original_obs"] = np.nan
    for name, value in data.items():
        if isinstance(value, dict) and ":serialized:" in value:
            fields.setdefault(name, defaults.get(name))
    try:
        # new networks draw their parameters, which are replaced
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # that of an old agent only the networks, and not the optimisers, are as they were
            warnings.filterwarnings("ignore", "You are probably loading a")
            model = algorithm.load(io.BytesIO(content), device=device, custom_objects=fields)
        own = model.policy.state_dict().keys()
        missing = [name for name in own - weights.keys() if not name.startswith(SHARED)]
        if wrong := sorted([*missing, *(weights.keys() - own)]):  # then SB3 takes what fits
            raise ValueError(f"only one of file and network has {wrong[0]}")
        dtype = next(iter(weights.values())).dtype
        if dtype != next(model.policy.parameters()).dtype:
            model.policy.to(dtype).load_state_dict(weights)
    except Exception as error:  # whatever Stable-Baselines3 and torch raise for what does not fit
        raise ValueError(
            f"{path}: the weights are not those of a {policy_class.__name__} for "
            f"{fields['observation_space']} and {fields['action_space']}; agents with layers of "
            f"their own cannot be loaded from plain data. {error}"
        ) from error
    model.policy.set_training_mode(False)
    if statistics is None:
        statistics = statistics_beside(path)
    if statistics is not None:
        if not isinstance(statistics, Statistics):
            statistics = Statistics.load(statistics)
        space = fields["observation_space"]
        if statistics is not None and not statistics.fits(space):
            raise ValueError(
                f"{path} sees observations of shape {shape_of(space)}; the statistics are of "
                f"{statistics.shape}"
            )
        model.statistics = statistics
        model._last_original_obs = None  # by which it would tell that they are not known
    return model


def archive_at(path: Path) -> Path:
    """The file that a path means whose suffix may have been left out."""
    zipped = path.with_name(f"{path.name}.zip")
    return zipped if zipped.is_file() and not path.is_file() else path


def policy_to_dict(model: BaseAlgorithm | BasePolicy) -> dict[str, Any]:
    """What `policy_from_dict` needs beside the weights, as plain JSON values.

    Raises:
        TypeError: If the policy is made of parts other than those of Stable-Baselines3 and torch.
    """
    policy: Any = getattr(model, "policy", model)
    if type(policy).__module__ not in ALGORITHMS:
        raise TypeError(f"a policy of its own cannot be described as plain data: {type(policy)}")
    arguments = policy._get_constructor_parameters()
    arguments.pop("lr_schedule", None)  # the optimiser is not used again
    if hasattr(policy, "share_features_extractor"):  # which Stable-Baselines3 leaves out
        arguments["share_features_extractor"] = policy.share_features_extractor
    return {
        "class": _name(type(policy)),
        "arguments": {name: _described(value) for name, value in arguments.items()},
        "kept": {name: getattr(model, name) for name in KEPT if hasattr(model, name)},
    }


def policy_from_dict(
    description: dict[str, Any], weights: dict[str, Tensor], device: str | torch.device = "auto"
) -> BasePolicy:
    """The policy that `policy_to_dict` described, with weights.

    Raises:
        ValueError: If the description is not one, or the weights do not fit.
    """
    check_device(device)
    module = description["class"].rpartition(".")[0]
    if module not in ALGORITHMS:
        raise ValueError(f"no policy of Stable-Baselines3: {description['class']}")
    policy_class = _class_named(description["class"], (_imported(module),))
    arguments = {name: _made(value) for name, value in description["arguments"].items()}
    with torch.random.fork_rng(devices=[]):
        if "lr_schedule" in inspect.signature(policy_class).parameters:
            arguments["lr_schedule"] = lambda _: 0.0
        policy = policy_class(**arguments)
    policy.to(next(iter(weights.values())).dtype).load_state_dict(weights)
    for name, value in description["kept"].items():
        if name in KEPT:
            setattr(policy, name, value)
    policy.set_training_mode(False)
    return policy.to(get_device(device))


def _read(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Tensor]]:
    """The bytes of an archive, its JSON fields and its policy's weights."""
    if not path.is_file():
        raise FileNotFoundError(f"no agent at {path}")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.infolist() and min(m.header_offset for m in archive.infolist()) > 0:
                # what is left of an archive that was cut is the last zip within it
                raise zipfile.BadZipFile("its end is missing")
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged!r} fails its checksum")
            names = ("data", "policy.pth")
            found = {n: archive.read(n) for n in names if n in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} is not a whole zip archive: {error}. Copy it again") from error
    if missing := sorted(set(names) - found.keys()):
        raise ValueError(
            f"{path} is no agent saved by Stable-Baselines3: it has no {', '.join(missing)}"
        )
    try:
        data = json.loads(found["data"])
        weights = torch.load(io.BytesIO(found["policy.pth"]), "cpu", weights_only=True)
    except Exception as error:  # json, pickle, zip and torch each raise their own
        raise ValueError(f"{path} cannot be read as plain data: {error}") from error
    tensors = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    )
    if not isinstance(data, dict) or not tensors or not weights:
        raise ValueError(f"{path} cannot be read as plain data: it has not the form of an agent")
    return content, data, weights


def _kinds(data: dict[str, Any], path: Path) -> tuple[Any, type[BasePolicy]]:
    """The algorithm and the policy of an archive, by the text beside the policy's pickle."""
    described = data.get("policy_class")
    if not isinstance(described, dict):
        raise ValueError(f"{path}: its policy_class cannot be read from plain data")
    name = str(described.get("__module__"))
    # as in "<function CnnPolicy.__init__ at 0x7f5c0b370620>"
    _, _, init = str(described.get("__init__")).partition("<function ")
    module = _imported(name) if name in ALGORITHMS else None
    policy_class = getattr(module, init.partition(".")[0], None)
    if not (isinstance(policy_class, type) and issubclass(policy_class, BasePolicy)):
        package, _, rest = name.partition(".")
        if package in ("stable_baselines3", "sb3_contrib"):
            algorithm = rest.removeprefix("common.").partition(".")[0]
            known = ", ".join(sorted({*ALGORITHMS.values(), *TOLD_APART.values()}))
            memory = ": it remembers what it has seen" if "recurrent" in rest else ""
            raise ValueError(
                f"{path} holds an agent of {algorithm}, which cannot be symmetrised{memory}; "
                f"load_agent opens {known}"
            )
        raise ValueError(
            f"{path} has a policy class of its own, from {name}; what it computes cannot be known "
            "from plain data"
        )
    algorithm = ALGORITHMS[name]
    if algorithm == "A2C":
        algorithm = next((TOLD_APART[field] for field in TOLD_APART if field in data), algorithm)
    return _loaded(_algorithm(algorithm)), policy_class


def _algorithm(name: str) -> type[BaseAlgorithm]:
    own = hasattr(stable_baselines3, name)
    return getattr(stable_baselines3 if own else _imported("sb3_contrib"), name)


def __getattr__(name: str) -> Any:
    """Classes such as ``LoadedPPO``, which pickles of agents name."""
    algorithm = name.removeprefix("Loaded")
    if algorithm != name and algorithm in {*ALGORITHMS.values(), *TOLD_APART.values()}:
        return _loaded(_algorithm(algorithm))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _imported(module: str) -> ModuleType:
    """A module of Stable-Baselines3 or sb3-contrib."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"agents of {module.partition('.')[0]} need it: pip install 'equirl[contrib]'"
        ) from error


def _policy_kwargs(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """A policy's arguments; where they are pickled, from the text beside."""
    described = data.get("policy_kwargs") or {}
    if not isinstance(described, dict):
        raise ValueError(f"{path}: its policy_kwargs cannot be read from plain data")
    kwargs = {}
    for name, value in described.items():
        if name.startswith(":") or name == "device":
            continue
        try:
            kwargs[name] = _value(value) if ":serialized:" in described else value
        except (ValueError, SyntaxError) as error:
            if name in ("optimizer_class", "optimizer_kwargs"):  # it acts the same with another
                continue
            raise ValueError(
                f"{path} has {name} = {value}; what it computes cannot be known from plain data"
            ) from error
    if "optimizer_class" in described.keys() - kwargs:  # its arguments are not the default's
        kwargs.pop("optimizer_kwargs", None)
    return kwargs


def _value(text: Any) -> Any:
    """A value as it was printed: a class of torch or Stable-Baselines3, or a plain one."""
    if not isinstance(text, str):
        return text
    if text.startswith("<class '"):
        return _class_named(text[len("<class '") : -len("'>")], KNOWN)
    return ast.literal_eval(text)


def _described(value: Any) -> Any:
    """A policy's argument as plain JSON values."""
    if isinstance(value, type):
        try:
            _class_named(_name(value), KNOWN)
        except ValueError as error:
            raise TypeError(f"plain data cannot describe what {value} computes") from error
        return {"class": _name(value)}
    if isinstance(value, spaces.Space):
        return space_to_dict(value)
    json.dumps(value)  # TypeError for what is not plain
    return value


def _made(value: Any) -> Any:
    """The argument that `_described` described."""
    if not isinstance(value, dict):
        return value
    if "class" in value:
        return _class_named(value["class"], KNOWN)
    if "space" in value:
        return space_from_dict(value)
    return value


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _class_named(name: str, modules: tuple[Any, ...]) -> Any:
    """The class of that full name, if one of the modules has it."""
    for module in modules:
        found = getattr(module, name.rpartition(".")[2], None)
        if isinstance(found, type) and _name(found) == name:
            return found
    raise ValueError(f"no class of torch or Stable-Baselines3: {name}")
