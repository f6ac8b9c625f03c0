"""Interquartile means, bootstrap intervals and verdicts for returns of several agents.

For a comparison, returns come as arrays (agents, episodes). Intervals are those of a two-level
percentile bootstrap: agents are drawn with replacement, then episodes of each drawn agent, so that
both sources of chance count; with one agent only the episodes are drawn. Differences are paired:
the same agents and the same episodes (equal starting states) are drawn for both policies.

For a panel of many agents, scores come as tasks: for each, an array (runs,) or, where each run was
measured k times (its budgets, its conditions), (runs, k). Intervals are those of
`scipy.stats.bootstrap`, stratified: whole runs are drawn within each task, as in Agarwal et al.,
*Deep RL at the Edge of the Statistical Precipice* (NeurIPS 2021); the measurements of a run are
not independent, and stay together. What policies make of the same runs is paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Returns = NDArray[np.float64]
Draws = list[NDArray[np.int64]]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, whose ends are NaN where one run tells of no other."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As in ``11.2 [6.3, 15.9]``."""
        digits = 1 if max(map(abs, (self.value, self.low, self.high))) >= 10 else 2
        return format(self, f".{digits}f")

    def __format__(self, spec: str) -> str:
        """All three numbers in one format: ``f"{estimate:.3f}"`` is ``0.912 [0.887, 0.934]``."""
        if not spec:
            return str(self)
        interval = "one run" if math.isnan(self.low) else f"{self.low:{spec}}, {self.high:{spec}}"
        return f"{self.value:{spec}} [{interval}]"


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


def stratified_mean(tasks: Sequence[Returns]) -> Estimate:
    """The mean over all measurements of all runs.

    Args:
        tasks: Scores of each task, shape (runs,) or (runs, k).

    Raises:
        ValueError: If there is no task, or one has no scores.
    """
    return _of_pooled(_strata(tasks), lambda pooled: pooled.mean(axis=-1))


def stratified_iqm(tasks: Sequence[Returns]) -> Estimate:
    """The mean of the middle half of all measurements of all runs (Agarwal et al., 2021).

    Args:
        tasks: Scores of each task, shape (runs,) or (runs, k).

    Raises:
        ValueError: If there is no task, or one has no scores.

    >>> stratified_iqm([np.array([0.0, 10.0]), np.array([10.0, 500.0])]).value
    10.0
    """
    return _of_pooled(_strata(tasks), lambda pooled: stats.trim_mean(pooled, 0.25, axis=-1))


def paired_difference(tasks: Sequence[Returns], baseline: Sequence[Returns]) -> Estimate:
    """The mean of ``tasks - baseline``, paired by run and measurement.

    Args:
        tasks: Scores of each task, shape (runs,) or (runs, k).
        baseline: Those of another policy, from the same runs.

    Raises:
        ValueError: If the two have different shapes.
    """
    pairs = _pairs(tasks, baseline)
    return _of_pooled([own - other for own, other in pairs], lambda pooled: pooled.mean(axis=-1))


def probability_of_improvement(tasks: Sequence[Returns], baseline: Sequence[Returns]) -> Estimate:
    """How probably a run beats one of the baseline: the mean over tasks of P(X > Y) + P(X = Y) / 2.

    As in Agarwal et al. (2021), over all pairs of runs of a task; each of k measurements is a task
    of its own here. As there, the runs of both are drawn independently, also where they are the
    same runs: drawn together, a run would meet itself more often than it does in the data. The
    interval is then too wide rather than too narrow.

    Args:
        tasks: Scores of each task, shape (runs,) or (runs, k).
        baseline: Those of another policy, of the same shapes.

    Raises:
        ValueError: If the two have different shapes.
    """
    pairs = _pairs(tasks, baseline)
    count = sum(own.shape[1] for own, _ in pairs)
    wins = []  # of each stratum: in how many of its k tasks run i beats run j, shape (runs, runs)
    for own, other in pairs:
        x, y = own[:, None], other[None]
        wins.append(((x > y) + 0.5 * (x == y)).sum(axis=-1))

    def statistic(draws: Draws) -> Returns:
        own, other = draws[: len(wins)], draws[len(wins) :]
        won = [
            w[i[:, :, None], j[:, None, :]].mean(axis=(-2, -1))
            for w, i, j in zip(wins, own, other, strict=True)
        ]
        return sum(won) / count

    value, low, high = _stratified([len(own) for own, _ in pairs] * 2, statistic)
    return Estimate(float(value), float(low), float(high))


def performance_profile(
    tasks: Sequence[Returns], thresholds: Returns
) -> tuple[Returns, Returns, Returns]:
    """The fraction of runs that score more than each threshold (Agarwal et al., 2021).

    Args:
        tasks: Scores of each task, shape (runs,) or (runs, k).
        thresholds: Shape (t,).

    Returns:
        The fractions, and the lower and upper ends of their pointwise intervals, each (t,).

    Raises:
        ValueError: If there is no task, or one has no scores.
    """
    strata = _strata(tasks)
    total = sum(scores.size for scores in strata)
    above = [(scores[..., None] > thresholds).sum(axis=1) for scores in strata]

    def statistic(draws: Draws) -> Returns:
        drawn = sum(a[runs].sum(axis=1) for a, runs in zip(above, draws, strict=True))
        return np.moveaxis(drawn / total, 0, -1)

    return _stratified([len(scores) for scores in strata], statistic)


def verdict(name: str, difference: Estimate, baseline: str = "plain", spec: str = "") -> str:
    """The difference to a baseline in words.

    Args:
        name: Whose difference.
        difference: To the baseline; higher is better.
        baseline: What the baseline is called.
        spec: How numbers are written, as in ``f"{difference:.3f}"``; up to two digits when empty.

    >>> verdict("equizero", Estimate(11.2, 6.3, 15.9))
    'equizero is better than plain by 11.2 [6.3, 15.9]'
    """
    if difference.low > 0:
        return f"{name} is better than {baseline} by {difference:{spec}}"
    if difference.high < 0:
        turned = Estimate(-difference.value, -difference.high, -difference.low)
        return f"{name} is worse than {baseline} by {turned:{spec}}"
    if difference.low == difference.high == 0:
        return f"{name} does exactly as well as {baseline}"
    return f"{name} does not clearly differ from {baseline}: {difference:{spec}}"


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


def _strata(tasks: Sequence[Returns]) -> list[Returns]:
    arrays = [np.asarray(scores, dtype=np.float64) for scores in tasks]
    if not arrays:
        raise ValueError("there are no tasks to summarise; give one array of scores at least")
    for scores in arrays:
        if scores.ndim not in (1, 2) or scores.size == 0:
            raise ValueError(f"a task's scores have shape (runs,) or (runs, k); got {scores.shape}")
    return [scores.reshape(len(scores), -1) for scores in arrays]


def _pairs(tasks: Sequence[Returns], baseline: Sequence[Returns]) -> list[tuple[Returns, Returns]]:
    own, other = _strata(tasks), _strata(baseline)
    shapes = [[scores.shape for scores in strata] for strata in (own, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"cannot pair tasks of shapes {shapes[0]} and {shapes[1]}: both must come from the "
            "same runs"
        )
    return list(zip(own, other, strict=True))


def _of_pooled(strata: list[Returns], statistic: Callable[[Returns], Returns]) -> Estimate:
    def of_draws(draws: Draws) -> Returns:
        drawn = [scores[runs] for scores, runs in zip(strata, draws, strict=True)]
        return statistic(np.concatenate([d.reshape(len(d), -1) for d in drawn], axis=-1))

    value, low, high = _stratified([len(scores) for scores in strata], of_draws)
    return Estimate(float(value), float(low), float(high))


def _stratified(
    runs: list[int], statistic: Callable[[Draws], Returns]
) -> tuple[Returns, Returns, Returns]:
    """Value and interval of a statistic when runs are drawn with replacement within each task.

    Args:
        runs: How many each task has.
        statistic: From indices of drawn runs, (resamples, runs) for each task, to values
            (..., resamples).

    Returns:
        Value, and lower and upper end of its 95 % interval, each (...); NaN if no task has more
        than one run, which tells nothing about others.
    """
    value = statistic([np.arange(n)[None] for n in runs])[..., 0]
    if max(runs) == 1:
        unknown = np.full_like(value, np.nan)
        return value, unknown, unknown

    def of_draws(*draws: NDArray[np.int64], axis: int) -> Returns:
        return statistic([drawn[..., :n] for drawn, n in zip(draws, runs, strict=True)])

    # indices are drawn, so that all measurements of a run come along; scipy refuses a single one,
    # therefore an only run is drawn from two copies of it
    indices = [np.arange(max(n, 2)) % n for n in runs]
    low, high = stats.bootstrap(
        indices,
        of_draws,
        n_resamples=RESAMPLES,
        vectorized=True,
        paired=False,
        axis=-1,
        method="percentile",
        rng=0,
    ).confidence_interval
    return value, low, high
