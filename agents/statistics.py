"""Interquartile means, bootstrap intervals and verdicts for returns of several agents.

Returns come as arrays (agents, episodes). Intervals are those of a two-level percentile bootstrap:
agents are drawn with replacement, then episodes of each drawn agent, so that both sources of
chance count; with one agent only the episodes are drawn. Differences are paired: the same agents
and the same episodes (equal starting states) are drawn for both policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Returns = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As in ``11.2 [6.3, 15.9]``."""
        digits = 1 if max(abs(self.value), abs(self.low), abs(self.high)) >= 10 else 2
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def as_array(rows: pd.DataFrame) -> Returns:
    """Returns of one policy under one condition as an array (agents, episodes).

    Args:
        rows: With the columns ``agent``, ``episode`` and ``episode_return``.

    Raises:
        ValueError: If an agent has played an episode twice, or fewer than others.
    """
    twice = rows[rows.duplicated(["agent", "episode"])]
    if len(twice):
        raise ValueError(f"there are two sets of returns of {twice.agent.iloc[0]} in one setting")
    array = rows.pivot(index="agent", columns="episode", values="episode_return")
    if array.isna().any(axis=None):
        counts = rows.groupby("agent").size()
        raise ValueError(f"agents have played different episodes: {counts.to_dict()}")
    return array.to_numpy()


def mean(returns: Returns) -> Estimate:
    """The mean over all episodes of all agents."""
    return _estimate(returns, lambda pooled: pooled.mean(axis=-1))


def interquartile_mean(returns: Returns) -> Estimate:
    """The mean of the middle half of all episodes of all agents (Agarwal et al., 2021).

    >>> interquartile_mean(np.array([[0.0, 10.0, 10.0, 500.0]])).value
    10.0
    """
    return _estimate(returns, lambda pooled: stats.trim_mean(pooled, 0.25, axis=-1))


def mean_difference(returns: Returns, baseline: Returns) -> Estimate:
    """The mean of ``returns - baseline``, paired by agent and episode.

    Raises:
        ValueError: If the two have different shapes.
    """
    if returns.shape != baseline.shape:
        raise ValueError(f"cannot pair returns of shapes {returns.shape} and {baseline.shape}")
    return mean(returns - baseline)


def verdict(name: str, difference: Estimate, baseline: str = "plain") -> str:
    """The difference to a baseline in words.

    >>> verdict("equizero", Estimate(11.2, 6.3, 15.9))
    'equizero is better than plain by 11.2 [6.3, 15.9]'
    """
    if difference.low > 0:
        return f"{name} is better than {baseline} by {difference}"
    if difference.high < 0:
        turned = Estimate(-difference.value, -difference.high, -difference.low)
        return f"{name} is worse than {baseline} by {turned}"
    if difference.low == difference.high == 0:
        return f"{name} does exactly as well as {baseline}"
    return f"{name} does not clearly differ from {baseline}: {difference}"


def _estimate(returns: Returns, statistic: Callable[[Returns], Returns]) -> Estimate:
    if returns.ndim != 2 or returns.size == 0:
        raise ValueError(f"returns have the shape (agents, episodes); got {returns.shape}")
    agents, episodes = returns.shape
    generator = np.random.default_rng(0)
    drawn = generator.integers(agents, size=(RESAMPLES, agents, 1))
    within = generator.integers(episodes, size=(RESAMPLES, agents, episodes))
    resampled = statistic(returns[drawn, within].reshape(RESAMPLES, -1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(float(statistic(returns.ravel())), float(low), float(high))
