"""What an interrupted training goes on from: networks, optimiser, replay buffer and counters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from equicore.lab.store import load_state_tensors, read_tensors, state_tensors, write_tensors

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

    def after(self, model: OffPolicyAlgorithm, env: gym.Env) -> Evaluations:
        """These and an evaluation of the model as it is now, in an environment that is seeded."""
        returns, lengths = evaluate_policy(
            model, env, self.results.shape[1], return_episode_rewards=True
        )
        return Evaluations(
            np.append(self.timesteps, model.num_timesteps),
            np.vstack([self.results, returns]),
            np.vstack([self.ep_lengths, lengths]),
        )


def write_resume(model: OffPolicyAlgorithm, path: Path, leg: int, evaluations: Evaluations) -> None:
    """Everything that the next leg starts from, in one file that holds no code."""
    buffer = model.replay_buffer
    assert buffer is not None and model.policy.optimizer is not None
    tensors = state_tensors(policy=model.policy, optimizer=model.policy.optimizer)
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


def restore(model: OffPolicyAlgorithm, path: Path) -> tuple[int, Evaluations]:
    """Put a new agent into the state that `write_resume` wrote."""
    tensors, header = read_tensors(path)
    buffer = model.replay_buffer
    assert buffer is not None and model.policy.optimizer is not None
    load_state_tensors(tensors, policy=model.policy, optimizer=model.policy.optimizer)
    for field in BUFFER_FIELDS:
        saved = tensors[f"buffer.{field}"]
        getattr(buffer, field)[: len(saved)] = saved.numpy()
    buffer.pos, buffer.full = header["buffer"]["pos"], header["buffer"]["full"]
    for name, value in header["counters"].items():
        setattr(model, name, value)
    evaluations = {k: np.array(v) for k, v in header["evaluations"].items()}
    return header["leg"], Evaluations(**evaluations)
