"""Saved agents: where they are, which environment they are for, and how they are opened."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro
from stable_baselines3.common.base_class import BaseAlgorithm

import equirl
from equicore.lab.jobs import check_device
from equirl.agents.hyperparameters import parse_env_kwargs, setting_name
from equirl.agents.runs import RunFolder
from equirl.symmetry import Symmetry


@dataclasses.dataclass(frozen=True)
class SavedAgent:
    """A saved agent and the environment it is for.

    Attributes:
        name: What tables call it: its run folder's or file's name.
        path: The zip file.
        seed: Training seed, if known.
        budget: Environment steps it was trained for, if its run folder or name tells.
    """

    name: str
    path: Path
    env_id: str
    env_kwargs: dict[str, Any]
    seed: int | None = None
    budget: int | None = None

    @property
    def setting(self) -> str:
        """The environment and its arguments, as tables show them."""
        return setting_name(self.env_id, self.env_kwargs)

    def experience(self, steps: int) -> Path:
        """Where its run folder keeps the replay buffer's newest transitions after so many steps."""
        return RunFolder(self.path.parent, self.env_id).experience(steps)

    def load(self, device: str = "auto") -> BaseAlgorithm:
        """Open it, and check that it is one for its environment.

        Raises:
            ValueError: If the file is no agent, or its spaces are not those of the environment.
        """
        model = equirl.load_agent(self.path, device)
        env = gym.make(self.env_id, **self.env_kwargs)
        for what in ("observation_space", "action_space"):
            of_agent, of_env = getattr(model, what), getattr(env, what)
            # bounds are not compared: those of old archives are written otherwise
            same = type(of_agent) is type(of_env) and of_agent.shape == of_env.shape
            if not same or getattr(of_agent, "n", None) != getattr(of_env, "n", None):
                raise ValueError(
                    f"{self.path} is for another environment than {self.env_id}: its {what} is "
                    f"{of_agent}, the environment's {of_env}"
                )
        env.close()
        return model

    def symmetry(self) -> Symmetry:
        """The symmetry of its environment.

        Raises:
            ValueError: If none is registered.
        """
        env = gym.make(self.env_id, **self.env_kwargs)
        env.close()
        return equirl.symmetry_of(env)


@dataclasses.dataclass
class OneAgent:
    """Arguments of the commands that are about one agent."""

    agent: tyro.conf.Positional[Path]
    """A zip file that Stable-Baselines3 saved, or a run folder. Nothing in it is executed."""
    env: str | None = None
    """Environment id; known from the run folder when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value; known from the run folder when omitted."""
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""

    def find(self) -> SavedAgent:
        """The agent.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If its environment is not known, or there is no such device.
        """
        check_device(self.device)
        (agent,) = find_agents(self.agent, self.env, parse_env_kwargs(self.env_kwargs))
        return agent


def find_agents(
    path: Path,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    checkpoints: Literal["final", "all"] = "final",
) -> list[SavedAgent]:
    """The agents that a path names.

    Args:
        path: A zip file, or a run folder.
        env_id: The environment, and its arguments; known from the run folder when omitted.
        env_kwargs: See there.
        checkpoints: What a run folder stands for.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no agent in it.
        ValueError: If the environment is not known.
    """
    if not path.exists():
        raise FileNotFoundError(f"no agent at {path}")
    run = RunFolder.find(path)
    if path.is_dir() and run is None:
        raise FileNotFoundError(f"{path} is no run folder: it has no */args.yml")
    known = run.arguments() if run is not None else {}
    env_id = env_id or known.get("env")
    if env_id is None:
        raise ValueError(f"for which environment is {path}? Name it, as in --env CartPole-v1")
    equirl.symmetry_of(env_id)  # its message lists the known environments
    env_kwargs = {**(known.get("env_kwargs") or {}), **(env_kwargs or {})}
    steps = known.get("n_timesteps", 0)
    total = steps if steps > 0 else None  # the zoo writes -1 for what its hyperparameters say
    if run is None or not path.is_dir():
        match = re.fullmatch(r"rl_model_(\d+)_steps", path.stem)
        budget = int(match[1]) if match else total
        name = f"{path.parent.name}/{path.stem}" if run is not None else path.stem
        return [SavedAgent(name, path, env_id, env_kwargs, known.get("seed"), budget)]
    if checkpoints == "final":
        if not run.final_agent.exists():
            raise FileNotFoundError(
                f"the training in {path} is not finished: it has no {run.final_agent.name}. "
                "Finish it by the command that began it, or use --checkpoints all"
            )
        files: list[tuple[int | None, Path]] = [(total, run.final_agent)]
    else:
        files = [*run.checkpoints()]
        if not files:
            raise FileNotFoundError(f"no checkpoints in {path}")
    return [
        SavedAgent(path.resolve().name, file, env_id, env_kwargs, known.get("seed"), budget)
        for budget, file in files
    ]
