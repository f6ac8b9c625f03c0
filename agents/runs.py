"""Run folders: where a training keeps its files, in the layout of rl-baselines3-zoo.

results/runs/dqn/CartPole-v1_0/        the environment and the seed
    CartPole-v1.zip                    the finished agent
    best_model.zip                     the agent that was best in evaluation
    rl_model_5000_steps.zip            a checkpoint
    rl_model_5000_steps.safetensors    the newest of its replay buffer, if asked for
    rl_model_vecnormalize_5000_steps.pkl   what normalises its observations, if something does
    evaluations.npz                    returns at each checkpoint
    0.monitor.csv, progress.csv        episodes and training statistics; also for TensorBoard
    CartPole-v1/config.yml             hyperparameters
    CartPole-v1/args.yml               environment, seed, steps
    CartPole-v1/vecnormalize.pkl       what normalises the finished agent's observations
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equicore.lab.store import read_settings
from equicore.lab.values import read_yaml


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training in an environment."""

    path: Path
    env_id: str

    @classmethod
    def of(cls, output: Path, algo: str, env_id: str, seed: int) -> RunFolder:
        """The folder for an algorithm, an environment and a seed."""
        return cls(output / algo / f"{_file_name(env_id)}_{seed}", env_id)

    @classmethod
    def find(cls, path: Path) -> RunFolder | None:
        """The run that a path points into, its folder or a file in it, if there is one.

        Runs of rl-baselines3-zoo are found too.
        """
        folder = path if path.is_dir() else path.parent
        for file in sorted(folder.glob("*/args.yml")):
            env_id = read_settings(file).get("env")
            if isinstance(env_id, str) and _file_name(env_id) == file.parent.name:
                return cls(folder, env_id)
        return None

    @property
    def final_agent(self) -> Path:
        """The finished agent; its presence says that the training is finished."""
        return self.path / f"{_file_name(self.env_id)}.zip"

    @property
    def resume_file(self) -> Path:
        """What an unfinished training goes on from."""
        return self.path / "resume.safetensors"

    def checkpoint(self, steps: int) -> Path:
        """The checkpoint after a number of environment steps."""
        return self.path / f"rl_model_{steps}_steps.zip"

    def experience(self, steps: int) -> Path:
        """The newest transitions of the replay buffer at a checkpoint."""
        return self.checkpoint(steps).with_suffix(".safetensors")

    def statistics(self, steps: int) -> Path:
        """What ``VecNormalize`` has learned at a checkpoint, as Stable-Baselines3 names it."""
        return self.path / f"rl_model_vecnormalize_{steps}_steps.pkl"

    @property
    def final_statistics(self) -> Path:
        """What ``VecNormalize`` has learned in all the training."""
        return self.path / _file_name(self.env_id) / "vecnormalize.pkl"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """All checkpoints as (environment steps, file), in that order."""
        return sorted(
            (int(match[1]), path)
            for path in self.path.glob("rl_model_*_steps.zip")
            if (match := re.fullmatch(r"rl_model_(\d+)_steps\.zip", path.name))
        )

    def arguments(self) -> dict[str, Any]:
        """What the run was started with: environment, its arguments, seed and steps."""
        return read_settings(self.path / _file_name(self.env_id) / "args.yml")

    def hyperparameters(self) -> dict[str, Any]:
        """What the run was trained with; in the zoo's also what its environment was wrapped in.

        Raises:
            ValueError: If the file is there and cannot be read.
        """
        name = _file_name(self.env_id)
        for file in (self.path / name / "config.yml", self.path / "config.yml"):
            if file.is_file() and isinstance(found := read_yaml(file), dict):
                return found
        return {}

    def description(
        self, arguments: dict[str, Any], hyperparameters: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """What the folder says of the run, by the names of files, as the store claims it."""
        name = _file_name(self.env_id)
        return {f"{name}/args.yml": arguments, f"{name}/config.yml": hyperparameters}

    def clear_leftovers(self) -> None:
        """Remove what a kill left half-written; for whoever holds the folder's lock."""
        for leftover in self.path.rglob(".unfinished-*"):
            leftover.unlink(missing_ok=True)
        if self.final_agent.exists():
            self.resume_file.unlink(missing_ok=True)


def _file_name(env_id: str) -> str:
    return env_id.rpartition(":")[2].replace("/", "-")
