"""What an interrupted training goes on from: networks, optimiser, replay buffer and counters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy

from equicore.files import read_tensors, write_tensors

BUFFER_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")


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

    def after(self, model: DQN, env: gym.Env) -> Evaluations:
        """These and an evaluation of the model as it is now, in an environment that is seeded."""
        returns, lengths = evaluate_policy(
            model, env, self.results.shape[1], return_episode_rewards=True
        )
        return Evaluations(
            np.append(self.timesteps, model.num_timesteps),
            np.vstack([self.results, returns]),
            np.vstack([self.ep_lengths, lengths]),
        )


def write_resume(model: DQN, path: Path, leg: int, evaluations: Evaluations) -> None:
    """Everything that the next leg starts from, in one file that holds no code."""
    buffer = model.replay_buffer
    assert buffer is not None and model.policy.optimizer is not None
    tensors = {f"policy.{k}": v for k, v in model.policy.state_dict().items()}
    for parameter, state in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{parameter}.{k}": v for k, v in state.items()}
    size = buffer.size()
    for field in BUFFER_FIELDS:
        tensors[f"buffer.{field}"] = torch.from_numpy(getattr(buffer, field)[:size])
    header = {
        "leg": leg,
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "buffer": {"pos": buffer.pos, "full": buffer.full},
        "evaluations": {k: v.tolist() for k, v in dataclasses.asdict(evaluations).items()},
    }
    write_tensors(path, tensors, header)


def restore(model: DQN, path: Path) -> tuple[int, Evaluations]:
    """Put a new agent into the state that `write_resume` wrote."""
    tensors, header = read_tensors(path)
    parts: dict[str, dict[str, torch.Tensor]] = {"policy": {}, "optimizer": {}, "buffer": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    model.policy.load_state_dict(parts["policy"])
    optimizer = model.policy.optimizer.state_dict()
    for name, tensor in parts["optimizer"].items():
        parameter, _, key = name.partition(".")
        optimizer["state"].setdefault(int(parameter), {})[key] = tensor
    model.policy.optimizer.load_state_dict(optimizer)
    buffer = model.replay_buffer
    assert buffer is not None
    for field, tensor in parts["buffer"].items():
        getattr(buffer, field)[: len(tensor)] = tensor.numpy()
    buffer.pos, buffer.full = header["buffer"]["pos"], header["buffer"]["full"]
    for name, value in header["counters"].items():
        setattr(model, name, value)
    evaluations = {k: np.array(v) for k, v in header["evaluations"].items()}
    return header["leg"], Evaluations(**evaluations)
