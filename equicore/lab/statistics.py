"""Means, interquartile means, 95 % intervals and verdicts.

- A few models, each measured often: an array (agents, episodes). The bootstrap draws agents, then
  episodes of each, so that both sources of chance count. Of one model the episodes are independent,
  and the interval of their mean is Student's.
- Many models in several tasks: for each task an array (runs,) or, where each run was measured k
  times, (runs, k). The bootstrap draws whole runs within each task, as in Agarwal et al., *Deep RL
  at the Edge of the Statistical Precipice* (NeurIPS 2021): the measurements of a run are not
  independent.
- A few numbers: `t_interval`; successes among trials: `proportion`, and their differences.

Differences are paired: both come from the same models and episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
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


def t_interval(values: ArrayLike) -> Estimate:
    """The mean of independent numbers, and its interval by Student's t."""
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.sem(numbers) * stats.t.ppf(0.975, len(numbers) - 1))
    return Estimate(mean, mean - half, mean + half)


def proportion(count: float, total: int) -> Estimate:
    """The part of ``total`` independent trials that succeeded, and its interval by Wilson.

    >>> f"{proportion(90, 100):.3f}"
    '0.900 [0.826, 0.945]'
    """
    z, part = float(stats.norm.ppf(0.975)), count / total
    centre, spread = (
        part + z**2 / (2 * total),
        z * math.sqrt(part * (1 - part) / total + (z / (2 * total)) ** 2),
    )
    whole = 1 + z**2 / total
    return Estimate(part, max(0.0, (centre - spread) / whole), min(1.0, (centre + spread) / whole))


def difference_of_proportions(
    count: float, total: int, other_count: float, other_total: int
) -> Estimate:
    """The difference of two independent parts, and its interval by Newcombe (1998), from Wilson's.

    >>> f"{difference_of_proportions(56, 70, 48, 80):.4f}"
    '0.2000 [0.0524, 0.3339]'
    """
    one, two = proportion(count, total), proportion(other_count, other_total)
    gap = one.value - two.value
    below = math.hypot(one.value - one.low, two.high - two.value)
    above = math.hypot(one.high - one.value, two.value - two.low)
    return Estimate(gap, gap - below, gap + above)


def mean(returns: Returns) -> Estimate:
    """The mean over all episodes of all agents.

    Of one agent the interval is Student's: that of a bootstrap of few episodes is too narrow.
    """
    if returns.ndim == 2 and len(returns) == 1:
        return t_interval(returns[0])
    return _estimate(returns, lambda pooled: pooled.mean(axis=-1))


def interquartile_mean(returns: Returns) -> Estimate:
    """The mean of the middle half of all episodes of all agents (Agarwal et al., 2021)."""
    return _estimate(returns, lambda pooled: stats.trim_mean(pooled, 0.25, axis=-1))


def mean_difference(returns: Returns, baseline: Returns) -> Estimate:
    """The mean of ``returns - baseline``, paired by agent and episode, of equal shapes."""
    if returns.shape != baseline.shape:
        raise ValueError(f"cannot pair returns of shapes {returns.shape} and {baseline.shape}")
    return mean(returns - baseline)


def stratified_mean(tasks: Sequence[Returns]) -> Estimate:
    """The mean over all measurements of all runs."""
    return _of_pooled(_strata(tasks), lambda pooled: pooled.mean(axis=-1))


def stratified_iqm(tasks: Sequence[Returns]) -> Estimate:
    """The mean of the middle half of all measurements of all runs (Agarwal et al., 2021)."""
    return _of_pooled(_strata(tasks), lambda pooled: stats.trim_mean(pooled, 0.25, axis=-1))


def iqm_difference(tasks: Sequence[Returns], baseline: Sequence[Returns]) -> Estimate:
    """`stratified_iqm` of ``tasks`` minus that of the baseline; both of the same runs."""
    own, other = zip(*_pairs(tasks, baseline), strict=True)

    def statistic(draws: Draws) -> Returns:
        middles = (stats.trim_mean(_pooled(side, draws), 0.25, axis=-1) for side in (own, other))
        return next(middles) - next(middles)

    value, low, high = _stratified([len(scores) for scores in own], statistic)
    return Estimate(float(value), float(low), float(high))


def paired_difference(tasks: Sequence[Returns], baseline: Sequence[Returns]) -> Estimate:
    """The mean of ``tasks - baseline``, paired by run and measurement, of equal shapes."""
    pairs = _pairs(tasks, baseline)
    return _of_pooled([own - other for own, other in pairs], lambda pooled: pooled.mean(axis=-1))


def probability_of_improvement(tasks: Sequence[Returns], baseline: Sequence[Returns]) -> Estimate:
    """How probably a run beats one of the baseline: the mean over tasks of P(X > Y) + P(X = Y) / 2.

    As in Agarwal et al. (2021), over all pairs of runs of a task; each of k measurements is a task
    of its own here. As there, the runs of both are drawn independently, also where they are the
    same, which makes the interval too wide rather than too narrow.
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


def performance_profile(tasks: Sequence[Returns], thresholds: Returns) -> list[Estimate]:
    """The fraction of runs that score more than each threshold, with its pointwise interval.

    As in Agarwal et al. (2021).
    """
    strata = _strata(tasks)
    total = sum(scores.size for scores in strata)
    above = [(scores[..., None] > thresholds).sum(axis=1) for scores in strata]

    def statistic(draws: Draws) -> Returns:
        drawn = sum(a[runs].sum(axis=1) for a, runs in zip(above, draws, strict=True))
        return np.moveaxis(drawn / total, 0, -1)

    profile = np.stack(_stratified([len(scores) for scores in strata], statistic), axis=1)
    return [Estimate(*map(float, point)) for point in profile]


def verdict(name: str, difference: Estimate, baseline: str = "plain", spec: str = "") -> str:
    """The difference to a baseline in words, with numbers as in ``f"{difference:{spec}}"``.

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
    if returns.size == 1:
        return Estimate(float(returns.item()), math.nan, math.nan)
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
        return statistic(_pooled(strata, draws))

    value, low, high = _stratified([len(scores) for scores in strata], of_draws)
    return Estimate(float(value), float(low), float(high))


def _pooled(strata: Sequence[Returns], draws: Draws) -> Returns:
    """All measurements of the runs that each resample drew, (resamples, measurements)."""
    drawn = [scores[runs] for scores, runs in zip(strata, draws, strict=True)]
    return np.concatenate([d.reshape(len(d), -1) for d in drawn], axis=-1)


def _stratified(
    runs: list[int], statistic: Callable[[Draws], Returns]
) -> tuple[Returns, Returns, Returns]:
    """Value and interval of a statistic when runs are drawn with replacement within each task.

    The statistic maps indices of drawn runs, (resamples, runs) for each task, to values
    (..., resamples). The ends of its interval are NaN if no task has more than one run, which tells
    nothing about others.
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
    options: dict[str, Any] = {"vectorized": True, "method": "percentile", "rng": 0}
    found = stats.bootstrap(indices, of_draws, n_resamples=RESAMPLES, axis=-1, **options)
    return value, *found.confidence_interval
