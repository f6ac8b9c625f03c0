"""Run folders: where a training keeps its files, in the layout of rl-baselines3-zoo.

results/runs/dqn/CartPole-v1_0/        the environment and the seed
    CartPole-v1.zip                    the finished agent
    best_model.zip                     the agent that was best in evaluation
    rl_model_5000_steps.zip            a checkpoint
    rl_model_5000_steps.safetensors    the newest of its replay buffer, if asked for
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

from equicore.files import replacing


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
        """The run that a path points into, its folder or a file in it, if there is one.

        Runs of rl-baselines3-zoo are found too.
        """
        folder = path if path.is_dir() else path.parent
        for file in sorted(folder.glob("*/args.yml")):
            arguments = _read_yaml(file)
            if "env" in arguments:
                return cls(folder, arguments["env"])
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

    def checkpoints(self) -> list[tuple[int, Path]]:
        """All checkpoints as (environment steps, file), in that order."""
        return sorted(
            (int(match[1]), path)
            for path in self.path.glob("rl_model_*_steps.zip")
            if (match := re.fullmatch(r"rl_model_(\d+)_steps\.zip", path.name))
        )

    def arguments(self) -> dict[str, Any]:
        """What the run was started with: environment, its arguments, seed and steps."""
        return _read_yaml(self._described / "args.yml")

    def check_claim(self, arguments: dict[str, Any], hyperparameters: dict[str, Any]) -> None:
        """Raise FileExistsError if the folder holds another run, or other files."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; name another folder with --output")
        described = {self._described / "args.yml", self._described / "config.yml"}
        files = {
            file
            for file in self.path.rglob("*")
            if file.is_file() and not file.name.startswith((".", "error.log", "seconds.txt"))
        }
        if not files - described:  # nothing that could be lost
            return
        wanted = {"args.yml": arguments, "config.yml": hyperparameters}
        for name, expected in wanted.items():
            found = _read_yaml(self._described / name)
            if found != expected:
                raise FileExistsError(
                    f"{self.path} holds another run: {_difference(name, found, expected)}. "
                    "Name another folder with --output, or delete this one"
                )

    def claim(self, arguments: dict[str, Any], hyperparameters: dict[str, Any]) -> None:
        """Describe the run in its folder.

        Raises:
            FileExistsError: If the folder holds another run.
        """
        self.check_claim(arguments, hyperparameters)
        for name, content in {"config.yml": hyperparameters, "args.yml": arguments}.items():
            if _read_yaml(self._described / name) == content:
                continue
            with replacing(self._described / name) as temporary:
                temporary.write_text(yaml.safe_dump(content, sort_keys=False))

    def clear_leftovers(self) -> None:
        """Remove what a kill left half-written; for whoever holds the folder's lock."""
        for leftover in self.path.rglob(".unfinished-*"):
            leftover.unlink(missing_ok=True)
        if self.final_agent.exists():
            self.resume_file.unlink(missing_ok=True)

    @property
    def _described(self) -> Path:
        return self.path / _file_name(self.env_id)


class _PlainLoader(yaml.SafeLoader):
    """Reads the ordered mappings of rl-baselines3-zoo as plain ones; executes nothing."""


_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: dict(loader.construct_sequence(node, deep=True)[0]),  # type: ignore[arg-type]
)


def _read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty if there is none, or it holds more than plain data."""
    try:
        content = yaml.load(file.read_text(), _PlainLoader)
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _file_name(env_id: str) -> str:
    return env_id.rpartition(":")[2].replace("/", "-")


def _difference(name: str, found: dict[str, Any], expected: dict[str, Any]) -> str:
    if not found:
        return f"it has files, but no {name} of ours"
    for key in {**found, **expected}:
        if found.get(key) != expected.get(key):
            return f"its {name} has {key} = {found.get(key)!r}, this one {expected.get(key)!r}"
    return f"its {name} differs"
