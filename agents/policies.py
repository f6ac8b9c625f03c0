"""The policies that are compared: a name for each, and how it is made around a saved agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import PolicyPredictor

import equirl
from equicore import MLPWeight
from equirl.agents.evaluation import SavedAgent
from equirl.agents.runs import RunFolder
from equirl.experience import Experience, rollout_experience
from equirl.symmetry import Symmetry

PolicyName = Literal["plain", "equitune", "equizero", "equizero_raw", "lambda"]
CANDIDATES: tuple[PolicyName, ...] = get_args(PolicyName)
"""What `equirl compare --select` chooses from."""

POLICIES: tuple[PolicyName, ...] = ("plain", "equitune", "equizero", "lambda")
"""What `equirl compare` compares: the methods of the papers."""

ROLLOUT_SEED = 3_000_000
"""First seed of the rollouts that lambda's weights learn from."""


@dataclass
class Subject:
    """An agent, its symmetry, and what lambda's weights may learn from.

    Attributes:
        agent: Where it is saved, and for which environment.
        model: The agent itself.
        transitions: How many of its transitions lambda's weights learn from.
    """

    agent: SavedAgent
    model: DQN
    transitions: int = 20_000

    @cached_property
    def symmetry(self) -> Symmetry:
        """The symmetry of its environment."""
        return self.agent.symmetry()

    @cached_property
    def replay(self) -> Experience:
        """The newest transitions of its replay buffer; of rollouts where it was not kept."""
        budget = self.agent.budget or self.model.num_timesteps
        file = RunFolder(self.agent.path.parent, self.agent.env_id).experience(budget)
        if not file.exists():
            return self.rollouts
        return Experience.load(file).newest(self.transitions)

    @cached_property
    def rollouts(self) -> Experience:
        """Transitions of the plain agent, acting greedily."""
        return rollout_experience(
            self.model,
            self.agent.env_id,
            self.transitions,
            seed=ROLLOUT_SEED,
            env_kwargs=self.agent.env_kwargs,
        )

    @cached_property
    def replay_familiarity(self) -> MLPWeight:
        """A weight network that knows the states of the replay buffer."""
        return self._familiarity(self.replay)

    @cached_property
    def rollout_familiarity(self) -> MLPWeight:
        """A weight network that knows the states of the rollouts."""
        return self._familiarity(self.rollouts)

    def _familiarity(self, experience: Experience) -> MLPWeight:
        policy = equirl.LambdaEquitunePolicy(self.model, self.symmetry)
        equirl.fit_familiarity(policy, experience.observations)
        return policy.weight


def _by_familiarity(subject: Subject, weight: MLPWeight) -> PolicyPredictor:
    return equirl.LambdaEquitunePolicy(subject.model, subject.symmetry, weight, sharpness=0)


def _by_temporal_difference(subject: Subject) -> PolicyPredictor:
    policy = equirl.LambdaEquitunePolicy(
        subject.model, subject.symmetry, normalize=None, sharpness=0
    )
    equirl.fit_temporal_difference(policy, subject.replay)
    return policy


MAKERS: dict[str, Callable[[Subject], PolicyPredictor]] = {
    "plain": lambda s: s.model,
    "equitune": lambda s: equirl.EquitunePolicy(s.model, s.symmetry),
    "equizero": lambda s: equirl.EquizeroPolicy(s.model, s.symmetry),
    "equizero_raw": lambda s: equirl.EquizeroPolicy(s.model, s.symmetry, normalize=None),
    "lambda": lambda s: equirl.LambdaEquitunePolicy(s.model, s.symmetry, s.replay_familiarity),
    "lambda_rollouts": lambda s: _by_familiarity(s, s.rollout_familiarity),
    "lambda_replay": lambda s: _by_familiarity(s, s.replay_familiarity),
    "lambda_td": _by_temporal_difference,
}
"""Every policy of a study, by its name; what the names mean stands in docs/study.md."""


def make_policy(
    name: PolicyName, model: DQN, agent: SavedAgent, transitions: int = 20_000
) -> PolicyPredictor:
    """A saved agent, opened, under a policy."""
    return MAKERS[name](Subject(agent, model, transitions))
