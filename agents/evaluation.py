"""Playing: the policies of an agent under a condition, maybe as a race. For all scripts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import equirl
from equicore.lab.statistics import Returns
from equirl.agents.policies import CANDIDATES, POLICIES, Subject
from equirl.agents.saved import SavedAgent
from equirl.agents.selection import Choice, Race
from equirl.arrays import rows_of
from equirl.experience import takes_masks
from equirl.seeds import FIRST_SEED, SELECTION_SEED
from equirl.symmetry import Symmetry

Condition = str | int
CONDITIONS = ("original", "transformed")
"""The environment as it is, or each episode seen through a random group element."""

SIDE_BY_SIDE = 20
"""Environments that an evaluation steps together."""

RULES = 2
"""How episodes are played; results of other rules are not paired with these. Since 2 each episode
is seeded by its number, before only the first of each environment."""

LEAST = 5
"""Fewer episodes have no interval worth the name."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is played.

    Attributes:
        policies: Names of those that the agents have, see `equirl.agents.policies.MAKERS`.
        episodes: For each policy and condition.
        seed: Of the first episode; the others follow.
        transitions: How many of an agent's lambda's weights learn from.
        race: How one of the candidates is chosen, if one is.
        candidates: What the race chooses from.
        rules: See `RULES`.
    """

    policies: tuple[str, ...] = POLICIES
    episodes: int = 100
    seed: int = FIRST_SEED
    transitions: int = 20_000
    race: Race | None = None
    candidates: tuple[str, ...] = CANDIDATES
    rules: int = RULES


class RandomActions:
    """Draws actions, each as likely as any other: what an agent must beat to have learned."""

    def __init__(self, space: gym.Space, seed: int) -> None:
        self.space = copy.deepcopy(space)
        self.space.seed(seed)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """An action for each observation of a batch."""
        return np.array([self.space.sample() for _ in range(rows_of(observation))]), state


def play_at_random(agent: SavedAgent, protocol: Protocol) -> Returns:
    """The returns of random actions in the environment of an agent, shape (episodes,)."""
    env = agent.make()
    env.close()
    policy = RandomActions(env.action_space, protocol.seed)
    return episode_returns(policy, agent, "original", protocol.episodes, protocol.seed)


def play(
    subject: Subject, condition: Condition, protocol: Protocol
) -> tuple[dict[str, Returns], Choice | None]:
    """Let the policies of an agent play under a condition, and race if one is to be chosen.

    The policies, and what their weights have learned, are made once for all episodes.

    Returns:
        The returns of each policy, shape (episodes,); and what the race has found, on other
        episodes.
    """
    candidates = subject.fitting(protocol.candidates) if protocol.race else []
    names = dict.fromkeys([*protocol.policies, *candidates])
    policies = {name: subject.policy(name) for name in names}

    def returns(name: str, episodes: int, seed: int) -> Returns:
        return episode_returns(policies[name], subject.agent, condition, episodes, seed)

    choice = None
    if (race := protocol.race) is not None:
        choice = race.run(
            candidates,
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
    if text in names:
        return names.index(text)
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


def evaluate(policy: PolicyPredictor, envs: VecEnv, episodes: int) -> tuple[list[float], list[int]]:
    """Returns and lengths of episodes, as ``evaluate_policy`` gives them, in the order they end.

    A policy that takes masks of actions is given those of the environment, where it has any.
    """
    if takes_masks(policy) and envs.has_attr("action_masks"):
        from sb3_contrib.common.maskable.evaluation import evaluate_policy as with_masks

        found = with_masks(policy, envs, episodes, return_episode_rewards=True)  # type: ignore[arg-type]
    else:
        found = evaluate_policy(policy, envs, episodes, return_episode_rewards=True)
    return found  # type: ignore[return-value]


class _Episodes(gym.Wrapper):
    """An environment whose episodes begin with seeds of their own, and that then stands still.

    ``evaluate_policy`` steps all environments until the last has finished.
    """

    def __init__(self, env: gym.Env, seeds: Iterable[int]) -> None:
        super().__init__(env)
        self.seeds = iter(seeds)
        self.over = False
        self.last: Any = None

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode, if one is left to play."""
        seed = next(self.seeds, None)
        self.over = seed is None
        if not self.over:
            self.last = self.env.reset(**{**options, "seed": seed})
        return self.last

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, or show the last observation for ever."""
        if self.over:
            return self.last[0], 0.0, False, False, {}
        return self.env.step(action)


def episode_returns(
    policy: PolicyPredictor,
    agent: SavedAgent,
    condition: Condition,
    episodes: int,
    seed: int = FIRST_SEED,
) -> Returns:
    """Play episodes with Stable-Baselines3's ``evaluate_policy`` and return their returns.

    Episode k begins with the seed ``seed + k``, whatever the policy and however many episodes there
    are. So all that the environment draws, when it begins and in its steps, is the same for two
    policies as long as they act alike, and their returns are paired.

    Returns:
        Undiscounted returns, shape (episodes,), in the order of the seeds.
    """
    count = min(SIDE_BY_SIDE, episodes)
    # evaluate_policy waits for (episodes + i) // count episodes of environment i
    numbers = [range(episodes)[first::count] for first in reversed(range(count))]

    def make(own: range) -> gym.Env:
        return _Episodes(Monitor(under(agent.make(), condition)), [seed + number for number in own])

    envs = DummyVecEnv([partial(make, own) for own in numbers])
    evaluate(policy, envs, episodes)
    # it lists episodes as they end, the monitors list them as they begin
    played = envs.env_method("get_episode_rewards")
    envs.close()
    returns = np.zeros(episodes)
    for own, found in zip(numbers, played, strict=True):
        returns[own] = found[: len(own)]
    return returns
