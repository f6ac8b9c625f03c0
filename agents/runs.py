"""Run folders: where a training keeps its files, in the layout of rl-baselines3-zoo.

results/runs/dqn/CartPole-v1_0/        the environment and the seed
    CartPole-v1.zip                    the finished agent
    best_model.zip                     the agent that was best in evaluation
    rl_model_5000_steps.zip            a checkpoint
    evaluations.npz                    returns at each checkpoint
    0.monitor.csv, progress.csv        episodes and training statistics; also for TensorBoard
    CartPole-v1/config.yml             hyperparameters
    CartPole-v1/args.yml               environment, seed, steps
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from equirl.files import replacing


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training.

    Args:
        path: The folder.
        env_id: The environment.
    """

    path: Path
    env_id: str

    @classmethod
    def of(cls, output: Path, env_id: str, seed: int) -> RunFolder:
        """The folder for an environment and a seed."""
        return cls(output / "dqn" / f"{_file_name(env_id)}_{seed}", env_id)

    @classmethod
    def find(cls, path: Path) -> RunFolder | None:
        """The run that a path points into, its folder or a file in it, if there is one."""
        folder = path if path.is_dir() else path.parent
        found = sorted(folder.glob("*/args.yml"))
        return cls(folder, yaml.safe_load(found[0].read_text())["env"]) if found else None

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

    def checkpoints(self) -> list[tuple[int, Path]]:
        """All checkpoints as (environment steps, file), in that order."""
        return sorted(
            (int(match[1]), path)
            for path in self.path.glob("rl_model_*_steps.zip")
            if (match := re.fullmatch(r"rl_model_(\d+)_steps\.zip", path.name))
        )

    def arguments(self) -> dict[str, Any]:
        """What the run was started with: environment, its arguments, seed and steps."""
        return yaml.safe_load((self._described / "args.yml").read_text())

    def claim(self, arguments: dict[str, Any], hyperparameters: dict[str, Any]) -> None:
        """Describe the run in its folder, or check that it is already this run's.

        Raises:
            FileExistsError: If the folder holds another run.
        """
        wanted = {"args.yml": arguments, "config.yml": hyperparameters}
        if self.path.is_dir() and any(self.path.iterdir()):
            for name, expected in wanted.items():
                file = self._described / name
                found = yaml.safe_load(file.read_text()) if file.is_file() else None
                if found != expected:
                    raise FileExistsError(
                        f"{self.path} holds another run: {_difference(name, found, expected)}. "
                        "Name another folder with --output, or delete this one"
                    )
        for name, content in wanted.items():
            with replacing(self._described / name) as temporary:
                temporary.write_text(yaml.safe_dump(content, sort_keys=False))

    @property
    def _described(self) -> Path:
        return self.path / _file_name(self.env_id)


def _file_name(env_id: str) -> str:
    return env_id.replace("/", "-")


def _difference(name: str, found: dict[str, Any] | None, expected: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return f"it has files, but no {name}"
    for key in {**found, **expected}:
        if found.get(key) != expected.get(key):
            return f"its {name} has {key} = {found.get(key)!r}, this one {expected.get(key)!r}"
    return f"its {name} differs"
