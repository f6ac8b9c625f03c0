"""Choosing a policy by validation episodes, allotted by racing.

In each round every policy that is still in the race plays the same episodes; whoever is clearly
behind the leader then leaves it (Maron and Moore, 1993). Differences are paired by episode and
tested with the t-test; half the error is shared out over the tests that drop a policy, half over
those of the policies that may replace plain at the end. Plain is kept unless another is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from equicore.lab.statistics import Estimate, Returns, t_interval

ALIKE = 60
"""Differences that are all alike count from so many: what happens in one episode of twenty has then
been seen, with 95 %."""


@dataclass(frozen=True)
class Choice:
    """The policy that a race has found, and how many episodes each has played.

    The difference is that of its mean return to plain's, in the episodes that both have played. As
    it was chosen by these very episodes it flatters; other episodes tell its true gain.
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
                    return Choice(name, t_interval(gain), played)
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
