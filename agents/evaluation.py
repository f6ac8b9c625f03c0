"""Playing: the policies of an agent under a condition, maybe as a race. For all scripts."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv

import equirl
from equicore.lab.statistics import Returns
from equirl.agents.policies import CANDIDATES, POLICIES, Subject
from equirl.agents.saved import SavedAgent
from equirl.agents.selection import Choice, Race
from equirl.symmetry import Symmetry

Condition = str | int
CONDITIONS = ("original", "transformed")
"""The environment as it is, or each episode seen through a random group element."""

SIDE_BY_SIDE = 20
"""Environments that an evaluation steps together."""

FIRST_SEED = 2_000_000
"""Evaluations use this seed and the following; training and its evaluations stay below."""

SELECTION_SEED = 5_000_000
"""Episodes of a race have this seed and the following; those that are reported stay below."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is played.

    Attributes:
        policies: Names, see `equirl.agents.policies.MAKERS`.
        episodes: For each policy and condition.
        seed: Of the first environment; the others follow.
        transitions: How many of an agent's lambda's weights learn from.
        race: How one of the candidates is chosen, if one is.
        candidates: What the race chooses from.
    """

    policies: tuple[str, ...] = POLICIES
    episodes: int = 100
    seed: int = FIRST_SEED
    transitions: int = 20_000
    race: Race | None = None
    candidates: tuple[str, ...] = CANDIDATES


def play(
    subject: Subject, condition: Condition, protocol: Protocol
) -> tuple[dict[str, Returns], Choice | None]:
    """Let the policies of an agent play under a condition, and race if one is to be chosen.

    The policies, and what their weights have learned, are made once for all episodes.

    Returns:
        The returns of each policy, shape (episodes,); and what the race has found, on other
        episodes.
    """
    names = dict.fromkeys([*protocol.policies, *(protocol.candidates if protocol.race else ())])
    policies = {name: subject.policy(name) for name in names}

    def returns(name: str, episodes: int, seed: int) -> Returns:
        return episode_returns(policies[name], subject.agent, condition, episodes, seed)

    choice = None
    if (race := protocol.race) is not None:
        choice = race.run(
            protocol.candidates,
            lambda name, i: returns(name, race.episodes, SELECTION_SEED + i * race.episodes),
        )
    names = dict.fromkeys([*protocol.policies, *([choice.policy] if choice else ())])
    return {name: returns(name, protocol.episodes, protocol.seed) for name in names}, choice


def check_seed(seed: int) -> None:
    """Raise ValueError unless a seed is one that environments take."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed must be 0..{2**31 - 1}; got {seed}")


def parse_condition(text: str, symmetry: Symmetry) -> Condition:
    """``original``, ``transformed``, or a group element.

    Raises:
        ValueError: If the text is none of them.
    """
    if text in CONDITIONS:
        return text
    names = symmetry.group.names
    if text.isdigit() and int(text) < len(names):
        return int(text)
    elements = ", ".join(f"{g} ({name})" for g, name in enumerate(names))
    raise ValueError(
        f"a condition is original, transformed (a random element for each episode), or one "
        f"element of the group: {elements}; got {text!r}"
    )


def under(env: gym.Env, condition: Condition) -> gym.Env:
    """An environment under a condition."""
    if condition == "transformed":
        return equirl.RandomSymmetry(env)
    return env if condition == "original" else equirl.SymmetryWrapper(env, element=int(condition))


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
    condition: Condition,
    episodes: int,
    seed: int = FIRST_SEED,
) -> Returns:
    """Play episodes with Stable-Baselines3's ``evaluate_policy`` and return their returns.

    Equal seeds give equal starting states in equal order, whatever the policy, so that returns
    of two policies are paired. Up to ``SIDE_BY_SIDE`` consecutive seeds are used.

    Returns:
        Undiscounted returns, shape (episodes,).
    """
    count = min(SIDE_BY_SIDE, episodes)
    quotas = [(episodes + i) // count for i in range(count)]

    def make(quota: int) -> gym.Env:
        env = gym.make(agent.env_id, **agent.env_kwargs)
        return _AtRest(Monitor(under(env, condition)), quota)

    envs = DummyVecEnv([partial(make, quota) for quota in quotas])
    envs.seed(seed)
    evaluate_policy(policy, envs, episodes)
    # evaluate_policy lists episodes as they end, the monitors list them as they begin
    played = envs.env_method("get_episode_rewards")
    envs.close()
    return np.concatenate([returns[:n] for returns, n in zip(played, quotas, strict=True)])
