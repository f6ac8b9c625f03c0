"""The policies that are compared: a name for each, and how it is made around a saved agent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor

import equirl
from equicore import MLPWeight, WeightedMean
from equirl.agents.arguments import PolicyName
from equirl.agents.saved import SavedAgent
from equirl.algorithms import head_of
from equirl.experience import Experience, rollout_experience
from equirl.heads import DiscreteHead
from equirl.seeds import ROLLOUT_SEED
from equirl.symmetrized import SymmetrizedPolicy
from equirl.symmetry import Symmetry

CANDIDATES: tuple[PolicyName, ...] = get_args(PolicyName)
"""What `equirl compare --select` chooses from."""

POLICIES: tuple[PolicyName, ...] = ("plain", "equitune", "equizero", "lambda")
"""What `equirl compare` compares: the methods of the papers."""


@dataclass
class Subject:
    """An agent, its symmetry, and what lambda's weights may learn from; each opened when needed.

    Attributes:
        agent: Where it is saved, and for which environment.
        transitions: How many of its transitions lambda's weights learn from.
        device: Of its networks.
        weights: Those that are fitted, by what they learned from; each is fitted when first needed.
    """

    agent: SavedAgent
    transitions: int = 20_000
    device: str = "auto"
    weights: dict[str, MLPWeight] = field(default_factory=dict)

    @cached_property
    def model(self) -> BaseAlgorithm:
        """The agent itself."""
        return self.agent.load(self.device)

    @property
    def budget(self) -> int:
        """Environment steps that it was trained for."""
        return self.agent.budget or self.model.num_timesteps

    @cached_property
    def symmetry(self) -> Symmetry:
        """The symmetry of its environment."""
        return self.agent.symmetry()

    @cached_property
    def replay(self) -> Experience:
        """The newest transitions of its replay buffer; of rollouts where it was not kept."""
        file = self.agent.experience(self.budget)
        if not file.exists():
            return self.rollouts
        return Experience.load(file).newest(self.transitions)

    @cached_property
    def rollouts(self) -> Experience:
        """Transitions of the plain agent, acting greedily."""
        return rollout_experience(self.model, self.agent.make, self.transitions, seed=ROLLOUT_SEED)

    def policy(self, name: str) -> PolicyPredictor:
        """The agent under a policy of `MAKERS`.

        Raises:
            ValueError: If there is no such policy of this agent.
        """
        try:
            return MAKERS[name](self)
        except TypeError as error:
            raise ValueError(f"{name} of {self.agent.name}: {error}") from error

    def fitting(self, names: Iterable[str]) -> list[str]:
        """Those of some policies that this agent has, without those that are others over again.

        An agent that does not value views (ARS) has no equizero. What is left unnormalised
        (``_raw``) differs for discrete actions only.
        """
        head = head_of(self.model)
        without = set() if head.values_views else {"equizero", "equizero_raw"}
        without |= set() if isinstance(head, DiscreteHead) else {"equitune_raw", "equizero_raw"}
        return [name for name in names if name not in without]

    def familiarity(self, source: Literal["replay", "rollouts"]) -> MLPWeight:
        """A weight network that knows the states of the replay buffer, or of rollouts."""
        if source not in self.weights:
            policy = equirl.LambdaEquitunePolicy(self.model, self.symmetry)
            equirl.fit_familiarity(policy, getattr(self, source).observations)
            self.weights[source] = policy.weight
        return self.weights[source]


def _by_familiarity(subject: Subject, source: Literal["replay", "rollouts"]) -> PolicyPredictor:
    weight = subject.familiarity(source)
    return equirl.LambdaEquitunePolicy(subject.model, subject.symmetry, weight, sharpness=0)


def _by_temporal_difference(subject: Subject) -> PolicyPredictor:
    weight = subject.weights.get("td")
    policy = equirl.LambdaEquitunePolicy(
        subject.model, subject.symmetry, weight, normalize=None, sharpness=0
    )
    if weight is None:
        equirl.fit_temporal_difference(policy, subject.replay)
        subject.weights["td"] = policy.weight
    return policy


def _blended(subject: Subject) -> PolicyPredictor:
    """The mean of continuous actions, weighted by familiarity, in place of the heaviest one."""
    chosen = equirl.LambdaEquitunePolicy(
        subject.model, subject.symmetry, subject.familiarity("replay")
    )
    reduce = WeightedMean(chosen.weight)
    return SymmetrizedPolicy(subject.model, subject.symmetry, head_of(subject.model), reduce)


def _averaged(subject: Subject) -> PolicyPredictor:
    with warnings.catch_warnings():  # that it averages actions: tables show what comes of it
        warnings.filterwarnings("ignore", "equitune averages actions")
        return equirl.EquitunePolicy(subject.model, subject.symmetry)


MAKERS: dict[str, Callable[[Subject], PolicyPredictor]] = {
    "plain": lambda s: s.model,
    "equitune": lambda s: _averaged(s),
    "equizero": lambda s: equirl.EquizeroPolicy(s.model, s.symmetry),
    "equitune_raw": lambda s: equirl.EquitunePolicy(s.model, s.symmetry, normalize=None),
    "equizero_raw": lambda s: equirl.EquizeroPolicy(s.model, s.symmetry, normalize=None),
    "lambda": lambda s: equirl.LambdaEquitunePolicy(s.model, s.symmetry, s.familiarity("replay")),
    "lambda_blend": _blended,
    "lambda_rollouts": lambda s: _by_familiarity(s, "rollouts"),
    "lambda_replay": lambda s: _by_familiarity(s, "replay"),
    "lambda_td": _by_temporal_difference,
}
"""Every policy by its name; what the names mean stands in docs/study.md."""
