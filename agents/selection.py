"""Choosing a policy by validation episodes, allotted by racing.

In each round every policy that is still in the race plays the same episodes; whoever is clearly
behind the leader then leaves it (Maron and Moore, 1993). Differences are paired by episode and
tested with the t-test; half the error is shared out over the tests that drop a policy, half over
those of the policies that may replace plain at the end. Plain is kept unless another is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
from scipy import stats
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

from equicore.processes import one_thread
from equirl.agents.evaluation import CONDITIONS, SavedAgent, episode_returns
from equirl.agents.policies import CANDIDATES, MAKERS, Subject
from equirl.agents.statistics import Estimate, Returns

ALIKE = 60
"""Differences that are all alike count from so many: what happens in one episode of twenty has then
been seen, with 95 %."""

SELECTION_SEED = 5_000_000
"""Validation episodes have this seed and the following; those that are reported stay below."""


@dataclass(frozen=True)
class Choice:
    """What a race has found.

    Attributes:
        policy: The one to use.
        difference: Its mean return minus plain's in the episodes that both have played, with the
            95 % interval of the t-test; zero for plain itself. As it was chosen by these very
            episodes it flatters; other episodes tell its true gain.
        episodes: How many each policy has played.
    """

    policy: str
    difference: Estimate
    episodes: dict[str, int]

    @property
    def spent(self) -> int:
        """Episodes of all policies together."""
        return sum(self.episodes.values())

    def __str__(self) -> str:
        """As in ``equizero, better than plain by 8.1 [5.2, 11.0], after 130 episodes``."""
        if self.policy == "plain":
            return f"plain, as no other is clearly better, after {self.spent} episodes"
        return f"{self.policy}, better than plain by {self.difference}, after {self.spent} episodes"


@dataclass(frozen=True)
class Race:
    """The rules.

    Args:
        rounds: At most so many.
        episodes: In each round, for each policy that is still in the race.
        error: Probability, at most, of choosing another policy where none is better than plain;
            approximately, and for differences whose tails are not very heavy.
    """

    rounds: int = 5
    episodes: int = 20
    error: float = 0.05

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rounds < 1 or self.episodes < 5:
            raise ValueError(
                "a race needs at least one round of at least 5 episodes; got "
                f"{self.rounds} of {self.episodes}"
            )
        if not 0 < self.error < 1:
            raise ValueError(f"the error is a probability between 0 and 1; got {self.error}")

    def run(self, policies: Sequence[str], play: Callable[[str, int], Returns]) -> Choice:
        """Race, and choose.

        Args:
            policies: Names, ``"plain"`` among them.
            play: Returns of a policy in the episodes of a round, shape (episodes,); those of
                equal rounds must be paired.
        """
        if "plain" not in policies or len(set(policies)) < len(policies):
            raise ValueError(f"the policies of a race are distinct, plain among them: {policies}")
        others = max(1, len(policies) - 1)
        level = self.error / (2 * self.rounds * others)
        returns: dict[str, Returns] = {name: np.zeros(0) for name in policies}
        racing = list(policies)
        for number in range(self.rounds):
            for name in racing:
                returns[name] = np.append(returns[name], play(name, number))
            racing = _distinct(racing, returns)
            leader = max(racing, key=lambda name: returns[name].mean())
            racing = [
                name
                for name in racing
                if name == leader or not _behind(returns[name] - returns[leader], level)
            ]
            if len(racing) == 1:
                break
        played = {name: len(r) for name, r in returns.items()}
        ranked = sorted(racing, key=lambda name: -returns[name].mean())
        for name in ranked:
            if name != "plain":
                common = min(played[name], played["plain"])
                gain = returns[name][:common] - returns["plain"][:common]
                if _behind(-gain, self.error / (2 * others)):
                    return Choice(name, _interval(gain), played)
        return Choice("plain", Estimate(0.0, 0.0, 0.0), played)


def _distinct(racing: list[str], returns: dict[str, Returns]) -> list[str]:
    """One of those that have had exactly the same returns so far: plain, or the first."""
    kept: list[str] = []
    for name in sorted(racing, key=lambda name: name != "plain"):
        if not any(np.array_equal(returns[name], returns[other]) for other in kept):
            kept.append(name)
    return kept


def _behind(differences: Returns, level: float) -> bool:
    """Whether the mean of the differences is below zero, by the one-sided t-test."""
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():  # all alike, but for rounding
        return bool(differences[0] < 0) and len(differences) >= ALIKE
    test = stats.ttest_1samp(differences, 0, alternative="less")
    return bool(test.pvalue < level)


def _interval(differences: Returns) -> Estimate:
    mean = float(differences.mean())
    half = float(stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1))
    return Estimate(mean, mean - half, mean + half)


def choose(
    race: Race, policies: Mapping[str, PolicyPredictor], agent: SavedAgent, condition: str
) -> Choice:
    """Race an agent's policies in its environment, on episodes that nothing else uses."""

    def play(name: str, number: int) -> Returns:
        seed = SELECTION_SEED + number * race.episodes
        return episode_returns(policies[name], agent, condition, race.episodes, seed)

    return race.run(list(policies), play)


@dataclass(frozen=True)
class Selection:
    """What was chosen for an agent under a condition."""

    agent: SavedAgent
    condition: str
    choice: Choice

    def __str__(self) -> str:
        """A line for people."""
        where = f"{self.agent.name}, {self.agent.setting}"
        if self.agent.budget is not None:
            where += f", {self.agent.budget:,} steps"
        return f"{where}, {self.condition}: use {self.choice}"


def select(
    agents: list[SavedAgent], race: Race, transitions: int, device: str = "auto", jobs: int = 1
) -> list[Selection]:
    """Choose a policy for each agent and condition, by a race of the candidates."""
    units = [(agent, condition) for agent in agents for condition in CONDITIONS]
    jobs = max(1, min(jobs, len(units)))
    results = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(_select_unit)(agent, condition, race, transitions, device)
        for agent, condition in units
    )
    return list(tqdm(results, total=len(units), desc="racing", unit="race", disable=None))


def _select_unit(
    agent: SavedAgent, condition: str, race: Race, transitions: int, device: str
) -> Selection:
    with one_thread():
        subject = Subject(agent, agent.load(device), transitions)
        policies = {str(name): MAKERS[name](subject) for name in CANDIDATES}
        return Selection(agent, condition, choose(race, policies, agent, condition))
