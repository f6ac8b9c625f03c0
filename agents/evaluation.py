"""Finding saved agents, and playing episodes with them: for all scripts."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv

import equirl
from equirl.agents.hyperparameters import setting_name
from equirl.agents.runs import RunFolder
from equirl.symmetry import Symmetry

CONDITIONS = ("original", "transformed")
"""The environment as it is, or each episode seen through a random group element."""

SIDE_BY_SIDE = 20
"""Environments that an evaluation steps together."""

FIRST_SEED = 2_000_000
"""Evaluations use this seed and the following; training and its evaluations stay below."""


@dataclasses.dataclass(frozen=True)
class SavedAgent:
    """A saved agent and the environment it is for.

    Attributes:
        name: What tables call it: its run folder's or file's name.
        path: The zip file.
        env_id: Its environment.
        env_kwargs: Arguments of the environment.
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

    def load(self, device: str = "auto") -> DQN:
        """Open it, and check that it is one for its environment.

        Raises:
            ValueError: If the file is no DQN, or its spaces are not those of the environment.
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


def find_agents(
    path: Path,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    checkpoints: Literal["final", "all"] = "final",
) -> list[SavedAgent]:
    """The agents that a path names.

    Args:
        path: A zip file, or a run folder, which stands for its finished agent or all checkpoints.
        env_id: The environment; known from the run folder when omitted.
        env_kwargs: Its arguments; likewise.
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


def check_seed(seed: int) -> None:
    """Raise ValueError unless a seed is one that environments take."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed must be 0..{2**31 - 1}; got {seed}")


def check_device(device: str) -> None:
    """Raise ValueError unless a device is auto, or one that torch knows and this machine has."""
    try:
        if device != "auto":
            torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error


def parse_condition(text: str, symmetry: Symmetry) -> str | int:
    """``original``, ``transformed``, or a group element.

    Raises:
        ValueError: If the text is none of them.
    """
    if text in ("original", "transformed"):
        return text
    names = symmetry.group.names
    if text.isdigit() and int(text) < len(names):
        return int(text)
    elements = ", ".join(f"{g} ({name})" for g, name in enumerate(names))
    raise ValueError(
        f"a condition is original, transformed (a random element for each episode), or one "
        f"element of the group: {elements}; got {text!r}"
    )


class _AtRest(gym.Wrapper):
    """An environment that stands still when it has played its share of episodes.

    ``evaluate_policy`` steps all environments until the last has finished.
    """

    def __init__(self, env: gym.Env, quota: int) -> None:
        super().__init__(env)
        self.left = quota
        self.last: Any = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, if one is left to play."""
        if self.left:
            self.last = self.env.reset(**options)
        return self.last

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, or show the last observation for ever."""
        if not self.left:
            return self.last[0], 0.0, False, False, {}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.left -= terminated or truncated
        return observation, reward, terminated, truncated, info


def episode_returns(
    policy: PolicyPredictor,
    agent: SavedAgent,
    condition: str | int,
    episodes: int,
    seed: int = FIRST_SEED,
) -> NDArray[np.float64]:
    """Play episodes with Stable-Baselines3's ``evaluate_policy`` and return their returns.

    Equal seeds give equal starting states in equal order, whatever the policy, so that returns
    of two policies are paired.

    Args:
        policy: Anything with ``predict``.
        agent: Tells the environment.
        condition: ``"original"``, ``"transformed"`` (a random element for each episode), or an
            element of the symmetry group.
        episodes: How many.
        seed: The first of up to ``SIDE_BY_SIDE`` consecutive seeds.

    Returns:
        Undiscounted returns, shape (episodes,).
    """
    count = min(SIDE_BY_SIDE, episodes)
    quotas = [(episodes + i) // count for i in range(count)]

    def make(quota: int) -> gym.Env:
        env = gym.make(agent.env_id, **agent.env_kwargs)
        if condition == "transformed":
            env = equirl.RandomSymmetry(env)
        elif condition != "original":
            env = equirl.SymmetryWrapper(env, element=int(condition))
        return _AtRest(Monitor(env), quota)

    envs = DummyVecEnv([partial(make, quota) for quota in quotas])
    envs.seed(seed)
    evaluate_policy(policy, envs, episodes)
    # evaluate_policy lists episodes as they end, the monitors list them as they begin
    played = envs.env_method("get_episode_rewards")
    envs.close()
    return np.concatenate([returns[:n] for returns, n in zip(played, quotas, strict=True)])
