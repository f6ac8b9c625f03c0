"""Agents from files, without executing what is in them.

The zip archives of Stable-Baselines3 hold pickled objects, and unpickling executes whatever the
file says. Here nothing is unpickled: weights are read with ``weights_only=True``, the rest from the
plain JSON that stands beside the pickles. Archives of any version can be read, from the time of
the old ``gym`` too.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn
from torch.nn.modules import activation

EXTRACTORS = (FlattenExtractor, NatureCNN)
PLAIN_FIELDS = ("gamma", "exploration_rate", "num_timesteps")


def load_agent(path: str | Path, device: str | torch.device = "auto") -> DQN:
    """Open a DQN that Stable-Baselines3 saved, without unpickling anything.

    Args:
        path: The ``.zip`` file.
        device: For the networks.

    Returns:
        The agent, for prediction and evaluation. Its spaces, networks, ``gamma``,
        ``exploration_rate`` and ``num_timesteps`` are those of the file; what the file holds only
        as pickles (schedules, the optimiser's class) has Stable-Baselines3's defaults, and the
        replay buffer is empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, no archive of Stable-Baselines3, of another algorithm
            than DQN, or has spaces or networks that its plain part does not describe.
    """
    data, weights = read_archive(path)
    policy_kwargs = data.get("policy_kwargs") or {}
    if not isinstance(policy_kwargs, dict):
        raise ValueError(f"{path}: its policy_kwargs cannot be read from plain data")
    extractor = str(policy_kwargs.get("features_extractor_class", FlattenExtractor))
    if extractor not in map(str, EXTRACTORS):
        raise ValueError(
            f"{path} has a features extractor of its own, {extractor}; what it computes cannot be "
            "known from plain data"
        )
    description = {
        "observation_space": _described_space(data, "observation_space", path),
        "action_space": _described_space(data, "action_space", path),
        "activation": _activation_name(policy_kwargs.get("activation_fn")),
        "normalize_images": policy_kwargs.get("normalize_images", True),
        **{field: data[field] for field in PLAIN_FIELDS if field in data},
    }
    return agent_from_dict(description, weights, device, source=path)


def read_archive(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON fields and the policy's weights of a DQN that Stable-Baselines3 saved.

    Pickled fields are returned as they stand in the JSON: base64 text that nobody decodes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or does not hold a DQN.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no agent at {path}")
    members = _zip_members(path, ("data", "policy.pth"))
    try:
        data = json.loads(members["data"])
        weights = torch.load(io.BytesIO(members["policy.pth"]), "cpu", weights_only=True)
    except Exception as error:  # json, pickle, zip and torch each raise their own
        raise ValueError(f"{path} cannot be read as plain data: {error}") from error
    if not isinstance(data, dict) or not _is_state(weights):
        raise ValueError(f"{path} cannot be read as plain data: it has not the form of an agent")
    policy_class = data.get("policy_class")
    module = str(policy_class.get("__module__")) if isinstance(policy_class, dict) else ""
    if not any(name.startswith("q_net.") for name in weights):
        known = re.search(r"(?:stable_baselines3|sb3_contrib)\.(?!common)(\w+)", module)
        algorithm = known[1].upper() if known else "an actor-critic algorithm such as PPO or A2C"
        raise ValueError(f"{path} holds {algorithm}; load_agent opens DQN only")
    if module not in ("stable_baselines3.dqn.policies", ""):
        raise ValueError(
            f"{path} has a policy class of its own, from {module}; what it computes cannot be "
            "known from plain data"
        )
    return data, weights


def _zip_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.infolist() and min(m.header_offset for m in archive.infolist()) > 0:
                # what is left of an archive that was cut is the last zip within it
                raise zipfile.BadZipFile("its end is missing")
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged!r} fails its checksum")
            found = {n: archive.read(n) for n in names if n in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} is not a whole zip archive: {error}. Copy it again") from error
    missing = sorted(set(names) - found.keys())
    if missing:
        raise ValueError(
            f"{path} is no agent saved by Stable-Baselines3: it has no {', '.join(missing)}"
        )
    return found


def _is_state(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    )


def agent_to_dict(model: DQN | DQNPolicy) -> dict[str, Any]:
    """What `agent_from_dict` needs beside the weights, as plain JSON values.

    Raises:
        TypeError: If the networks are other than those of Stable-Baselines3.
    """
    policy = model.policy if isinstance(model, DQN) else model
    if policy.features_extractor_class not in EXTRACTORS:
        raise TypeError(
            "an agent with a features extractor of its own cannot be described as plain data: "
            f"{policy.features_extractor_class}"
        )
    if getattr(activation, policy.activation_fn.__name__, None) is not policy.activation_fn:
        raise TypeError(
            "an agent with an activation function of its own cannot be described as plain data: "
            f"{policy.activation_fn}"
        )
    return {
        "observation_space": _space_to_dict(policy.observation_space),
        "action_space": _space_to_dict(policy.action_space),
        "activation": policy.activation_fn.__name__,
        "normalize_images": policy.normalize_images,
        **{field: getattr(model, field) for field in PLAIN_FIELDS if hasattr(model, field)},
    }


def agent_from_dict(
    description: dict[str, Any],
    weights: dict[str, Tensor],
    device: str | torch.device = "auto",
    *,
    source: str | Path = "the agent",
) -> DQN:
    """Build a DQN from its plain description and its weights.

    The widths of the layers, and whether there is a convolutional features extractor, are read
    off the weights.

    Args:
        description: As `agent_to_dict` makes it.
        weights: State of the `DQNPolicy`.
        device: For the networks.
        source: What error messages call the agent.

    Raises:
        ValueError: If weights and description do not fit.
    """
    layers = sorted(
        (int(match[1]), len(tensor))
        for name, tensor in weights.items()
        if (match := re.fullmatch(r"q_net\.q_net\.(\d+)\.weight", name))
    )
    # there is a NatureCNN if its last layer is there
    features = weights.get("q_net.features_extractor.linear.0.weight")
    extractor_kwargs = {} if features is None else {"features_dim": len(features)}
    model = DQN(
        "MlpPolicy" if features is None else "CnnPolicy",
        env=None,  # type: ignore[arg-type]
        policy_kwargs={
            "net_arch": [width for _, width in layers[:-1]],
            "activation_fn": _activation(description["activation"], source),
            "normalize_images": description["normalize_images"],
            "features_extractor_kwargs": extractor_kwargs,
        },
        buffer_size=1,
        device=device,
        _init_setup_model=False,
    )
    model.observation_space = _space_from_dict(description["observation_space"])
    model.action_space = _space_from_dict(description["action_space"])
    model.n_envs = 1
    try:
        model._setup_model()
        model.policy.load_state_dict(weights)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{source}: the weights are not those of a {model.policy_class.__name__} for "
            f"{model.observation_space} and {model.action_space}; agents with layers of their own "
            f"cannot be loaded from plain data. {error}"
        ) from error
    dtype = next(iter(weights.values())).dtype
    model.policy.to(dtype).set_training_mode(False)
    for field in PLAIN_FIELDS:
        if field in description:
            setattr(model, field, description[field])
    return model


def _described_space(data: dict[str, Any], key: str, path: str | Path) -> dict[str, Any]:
    """A space from the plain text that stands beside its pickle."""
    described = data.get(key)
    if not isinstance(described, dict):
        raise ValueError(f"{path}: its {key} cannot be read from plain data")
    kind = str(described.get(":type:", "")).rstrip("'>").rpartition(".")[2]
    try:
        if kind == "Discrete":
            return {"kind": kind, "n": int(described["n"]), "start": int(described.get("start", 0))}
        if kind == "Box":
            shape = [
                int(n)
                for n in re.findall(r"\d+", str(described.get("_shape") or described["shape"]))
            ]
            return {
                "kind": kind,
                "shape": shape,
                "dtype": str(np.dtype(described["dtype"])),
                "low": _described_bound(described, "low", shape),
                "high": _described_bound(described, "high", shape),
            }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its {key} cannot be read from plain data: {error}") from error
    raise ValueError(f"{path}: its {key} is {kind or 'missing'}; load_agent reads Box and Discrete")


def _described_bound(described: dict[str, Any], side: str, shape: list[int]) -> list[float]:
    """A bound as numpy printed it: every number, or one for all where it was too long to print."""
    numbers = [
        float(text) for text in re.findall(r"[^\s\[\],]+", str(described[side])) if text != "..."
    ]
    size = int(np.prod(shape))
    if len(numbers) != size and len(set(numbers)) == 1:
        numbers = numbers[:1] * size
    if len(numbers) != size:
        raise ValueError(f"{side} is not written out: {described[side]}")
    return numbers


def _space_to_dict(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    assert isinstance(space, spaces.Box)  # Symmetry.check_spaces has seen to it
    return {
        "kind": "Box",
        "shape": list(space.shape),
        "dtype": str(space.dtype),
        "low": space.low.ravel().tolist(),
        "high": space.high.ravel().tolist(),
    }


def _space_from_dict(data: dict[str, Any]) -> spaces.Space:
    if data["kind"] == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    low, high = (
        np.array(data[side]).reshape(data["shape"]).astype(data["dtype"])
        for side in ("low", "high")
    )
    return spaces.Box(low, high, dtype=np.dtype(data["dtype"]).type)


def _activation_name(text: Any) -> str:
    """The name in ``<class 'torch.nn.modules.activation.Tanh'>``; ReLU is SB3's default."""
    if text is None:
        return "ReLU"
    match = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(text))
    return match[1] if match else str(text)


def _activation(name: Any, source: str | Path) -> type[nn.Module]:
    """The activation function of torch that has the given name."""
    if name not in activation.__all__:
        raise ValueError(f"{source}: unknown activation function {name!r}, not one of torch's own")
    return getattr(activation, name)
