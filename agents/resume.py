"""What an interrupted training goes on from: networks, optimisers, replay buffer and counters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from equicore.lab.store import load_state_tensors, read_tensors, state_tensors, write_tensors
from equirl.agents.evaluation import evaluate

BUFFER_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
MOMENTS = ("mean", "var", "count")


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """The returns at each checkpoint so far, as in the zoo's ``evaluations.npz``."""

    timesteps: np.ndarray  # (checkpoints,)
    results: np.ndarray  # (checkpoints, episodes)
    ep_lengths: np.ndarray  # (checkpoints, episodes)

    @classmethod
    def empty(cls, episodes: int) -> Evaluations:
        """No evaluation yet."""
        return cls(np.zeros(0, int), np.zeros((0, episodes)), np.zeros((0, episodes), int))

    def after(self, model: BaseAlgorithm, env: VecEnv) -> Evaluations:
        """These and an evaluation of the model as it is now, in an environment that is seeded."""
        returns, lengths = evaluate(model, env, self.results.shape[1])
        return Evaluations(
            np.append(self.timesteps, model.num_timesteps),
            np.vstack([self.results, returns]),
            np.vstack([self.ep_lengths, lengths]),
        )


def write_resume(model: BaseAlgorithm, path: Path, leg: int, evaluations: Evaluations) -> None:
    """Everything that the next leg starts from, in one file that holds no code."""
    header = {
        "leg": leg,
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "evaluations": {k: v.tolist() for k, v in dataclasses.asdict(evaluations).items()},
    }
    stateful, variables = _learned(model)
    tensors = state_tensors(**stateful) | {f"variable.{k}": v.data for k, v in variables.items()}
    for name, moments in _statistics(model).items():
        for field in MOMENTS:
            tensors[f"{name}.{field}"] = torch.from_numpy(np.array(getattr(moments, field)))
    if (buffer := getattr(model, "replay_buffer", None)) is not None:
        size = buffer.size()
        for name, array in _arrays(buffer).items():
            tensors[f"buffer.{name}"] = torch.from_numpy(array[:size])
        header["buffer"] = {"pos": buffer.pos, "full": buffer.full}
        if isinstance(buffer, HerReplayBuffer):
            header["episodes"] = buffer._current_ep_start.tolist()
    write_tensors(path, tensors, header)


def restore(model: BaseAlgorithm, path: Path) -> tuple[int, Evaluations]:
    """Put a new agent into the state that `write_resume` wrote."""
    tensors, header = read_tensors(path)
    stateful, variables = _learned(model)
    load_state_tensors(tensors, **stateful)
    for name, variable in variables.items():
        variable.data.copy_(tensors[f"variable.{name}"])
    for name, moments in _statistics(model).items():
        for field in MOMENTS:
            value = tensors[f"{name}.{field}"].numpy()
            setattr(moments, field, value if value.ndim else value.item())
    if hasattr(model, "weights"):  # of ARS, which keeps them beside its policy
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    if (buffer := getattr(model, "replay_buffer", None)) is not None:
        for name, array in _arrays(buffer).items():
            saved = tensors[f"buffer.{name}"]
            array[: len(saved)] = saved.numpy()
        buffer.pos, buffer.full = header["buffer"]["pos"], header["buffer"]["full"]
        if isinstance(buffer, HerReplayBuffer):
            buffer._current_ep_start[:] = header["episodes"]
    for name, value in header["counters"].items():
        setattr(model, name, value)
    evaluations = {k: np.array(v) for k, v in header["evaluations"].items()}
    return header["leg"], Evaluations(**evaluations)


def _learned(model: BaseAlgorithm) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Modules and optimisers, and single variables, by the names that Stable-Baselines3 tells."""
    stateful, variables = model._get_torch_save_params()
    return (
        {name.replace(".", "_"): recursive_getattr(model, name) for name in stateful},
        {name: recursive_getattr(model, name) for name in variables},
    )


def _statistics(model: BaseAlgorithm) -> dict[str, RunningMeanStd]:
    """What a ``VecNormalize`` around the agent's environment has learned."""
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return {}
    found = {"returns": normalize.ret_rms}
    if isinstance(moments := getattr(normalize, "obs_rms", None), dict):
        found |= {f"observations.{name}": own for name, own in moments.items()}
    elif moments is not None:
        found["observations"] = moments
    return found


def _arrays(buffer: Any) -> dict[str, np.ndarray]:
    """The arrays of a replay buffer, those of dicts by the names of their entries too."""
    fields: tuple[str, ...] = BUFFER_FIELDS
    if isinstance(buffer, HerReplayBuffer):
        fields = *fields, "ep_start", "ep_length"
    arrays = {field: getattr(buffer, field) for field in fields}
    if not isinstance(buffer, DictReplayBuffer):
        return arrays
    return {
        f"{field}.{name}" if name else field: part
        for field, array in arrays.items()
        for name, part in (array if isinstance(array, dict) else {"": array}).items()
    }
