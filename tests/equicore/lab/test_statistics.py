"""Means, their intervals, and verdicts."""

import re

import numpy as np
import pytest
from scipy import stats

from equicore.lab import statistics
from equicore.lab.statistics import (
    Estimate,
    interquartile_mean,
    iqm_difference,
    mean,
    mean_difference,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    stratified_iqm,
    stratified_mean,
    t_interval,
    verdict,
)


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    returns = np.arange(40.0).reshape(2, 20) ** 2
    middle = np.sort(returns.ravel())[10:30]
    assert interquartile_mean(returns).value == pytest.approx(middle.mean())
    assert interquartile_mean(returns).value == stats.trim_mean(returns.ravel(), 0.25)


def test_one_agent_gives_the_interval_of_the_usual_bootstrap():
    returns = np.random.default_rng(1).normal(size=(1, 80))
    ours = mean(returns)
    library = stats.bootstrap(
        (returns[0],), np.mean, method="percentile", rng=2, n_resamples=4000
    ).confidence_interval
    assert ours.low == pytest.approx(library.low, abs=0.03)
    assert ours.high == pytest.approx(library.high, abs=0.03)


def test_interval_widens_with_the_difference_between_agents():
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(5, 50))
    unlike = alike + np.array([-30, -10, 0, 10, 30])[:, None]
    assert mean(unlike).high - mean(unlike).low > 5 * (mean(alike).high - mean(alike).low)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        estimate = mean(rng.normal(size=(1, 40)))
        hits += estimate.low <= 0 <= estimate.high
    assert 88 <= hits <= 100


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    baseline = rng.normal(scale=100, size=(3, 20))
    difference = mean_difference(baseline + 1, baseline)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1, 1, 1))


def test_differences_of_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        mean_difference(np.zeros((1, 2)), np.zeros((1, 3)))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 0)])
def test_returns_of_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="agents, episodes"):
        mean(np.zeros(shape))


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Estimate(11.2, 6.3, 15.9), "equizero is better than plain by 11.2 [6.3, 15.9]"),
        (Estimate(-11.2, -15.9, -6.3), "equizero is worse than plain by 11.2 [6.3, 15.9]"),
        (
            Estimate(1.0, -2.0, 4.0),
            "equizero does not clearly differ from plain: 1.00 [-2.00, 4.00]",
        ),
        (Estimate(0.0, 0.0, 0.0), "equizero does exactly as well as plain"),
    ],
)
def test_verdict_says_it_in_words(difference, words):
    assert verdict("equizero", difference) == words


def test_estimates_in_a_format_of_ones_own():
    assert f"{Estimate(0.5, 0.25, -0.0001):z.2f}" == "0.50 [0.25, 0.00]"
    assert f"{Estimate(0.5, 0.25, 0.75)}" == "0.50 [0.25, 0.75]"


def test_few_numbers_have_the_interval_of_students_t():
    numbers = [0.2, 0.5, 0.9, 0.4]
    found = t_interval(numbers)
    low, high = stats.t.interval(0.95, 3, np.mean(numbers), stats.sem(numbers))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, low, high))
    assert t_interval([3, 3, 3]) == Estimate(3.0, 3.0, 3.0)
    assert str(t_interval(np.array([3.0]))) == "3.00 [one run]"


def simulated(seed, shape=(3, 10, 4), spread=1.0):
    """Scores of 3 tasks, 10 runs each, 4 measurements that share the luck of their run."""
    rng = np.random.default_rng(seed)
    luck = rng.normal(scale=spread, size=(*shape[:2], 1))
    return list(luck + rng.normal(scale=0.1, size=shape))


def test_stratified_estimates_pool_all_runs():
    scores = simulated(0)
    assert stratified_mean(scores).value == pytest.approx(np.mean(scores))
    assert stratified_iqm(scores).value == stats.trim_mean(np.ravel(scores), 0.25)
    flat = [task[:, 0] for task in scores]
    assert stratified_mean(flat).value == pytest.approx(np.mean(flat))


def test_tasks_may_have_different_numbers_of_runs_and_measurements():
    scores = [np.zeros((2, 3)), np.ones(4)]
    assert stratified_mean(scores).value == pytest.approx(0.4)


def test_stratified_iqm_does_not_mind_outliers():
    scores = [np.full(10, 0.5), np.array([0.5] * 8 + [-1000.0, 1000.0])]
    estimate = stratified_iqm(scores)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.5, 0.5))
    assert stratified_mean(scores).high > 10


def test_runs_are_drawn_within_each_task():
    apart = [np.full(5, 0.0), np.full(5, 100.0)]  # chance decides nothing
    estimate = stratified_mean(apart)
    assert (estimate.low, estimate.high) == pytest.approx((50, 50))


def test_measurements_of_one_run_do_not_count_as_runs():
    once = [task[:, 0] for task in simulated(0)]
    estimate, repeated = (
        stratified_mean(tasks) for tasks in (once, [np.tile(t[:, None], 20) for t in once])
    )
    assert (repeated.low, repeated.high) == pytest.approx((estimate.low, estimate.high))


@pytest.mark.parametrize("statistic", [stratified_mean, stratified_iqm])
def test_stratified_intervals_cover_the_truth_about_as_often_as_they_say(statistic, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    hits = 0
    for seed in range(100):
        estimate = statistic(simulated(seed, (8, 10, 2)))
        hits += estimate.low <= 0 <= estimate.high
    assert 88 <= hits <= 99


def test_differences_of_tasks_are_paired_by_run():
    baseline = simulated(0, spread=100)
    better = [task + 10 for task in baseline]
    difference = paired_difference(better, baseline)
    assert (difference.value, difference.low, difference.high) == pytest.approx((10, 10, 10))
    shuffled = [task[::-1] for task in better]
    unpaired = paired_difference(shuffled, baseline)
    assert unpaired.value == pytest.approx(10)
    assert unpaired.high - unpaired.low > 20


def test_iqms_are_of_the_same_runs():
    baseline = simulated(0, spread=100)
    better = [task + 10 for task in baseline]
    difference = iqm_difference(better, baseline)
    assert (difference.value, difference.low, difference.high) == pytest.approx((10, 10, 10))
    outliers = [np.where(task > np.quantile(task, 0.9), task + 1e6, task) for task in baseline]
    assert iqm_difference(outliers, baseline).value == pytest.approx(0)
    shuffled = [task[::-1] for task in better]
    unpaired = iqm_difference(shuffled, baseline)
    assert unpaired.high - unpaired.low > 20


def test_probability_of_improvement():
    tasks = [np.arange(4.0), np.arange(6.0)]
    above = probability_of_improvement([task + 10 for task in tasks], tasks)
    assert (above.value, above.low, above.high) == pytest.approx((1, 1, 1))
    assert probability_of_improvement(tasks, tasks).value == pytest.approx(0.5)
    equal = probability_of_improvement([np.ones(4)], [np.ones(4)])
    assert (equal.value, equal.low, equal.high) == (0.5, 0.5, 0.5)
    # 2 beats 1, 0 loses to 1 and equals 0, 2 beats 0: (1 + 1 + 0 + 0.5) / 4
    assert probability_of_improvement([np.array([2.0, 0])], [np.array([1.0, 0])]).value == 0.625


def test_probability_of_improvement_is_within_its_interval_for_runs_in_common():
    baseline = simulated(0)
    estimate = probability_of_improvement([task + 0.3 for task in baseline], baseline)
    assert estimate.low < estimate.value < estimate.high
    assert abs(estimate.low + estimate.high - 2 * estimate.value) < 0.05


def test_each_measurement_is_a_task_of_the_probability_of_improvement():
    ours, theirs = simulated(1), simulated(2)
    apart = [
        probability_of_improvement([a[:, i]], [b[:, i]]).value
        for a, b in zip(ours, theirs, strict=True)
        for i in range(4)
    ]
    assert probability_of_improvement(ours, theirs).value == pytest.approx(np.mean(apart))


def test_performance_profile_is_the_fraction_above_each_threshold():
    scores = simulated(0)
    thresholds = np.array([-10.0, 0.0, 10.0])
    all_of_them, some, none = performance_profile(scores, thresholds)
    assert some.value == pytest.approx((np.array(scores) > 0).mean())
    assert some.low < some.value < some.high
    assert (all_of_them, none) == (Estimate(1, 1, 1), Estimate(0, 0, 0))
    (at_threshold,) = performance_profile([np.array([1.0, 2.0])], np.array([1.0]))
    assert at_threshold.value == 0.5  # more than, not at least


def test_one_run_gives_no_interval():
    tasks = [np.array([3.0]), np.full((1, 2), 4.0)]
    for estimate, value in (
        (stratified_mean(tasks), 11 / 3),
        (stratified_iqm(tasks), 11 / 3),
        (paired_difference(tasks, [task - 3 for task in tasks]), 3),
        (iqm_difference(tasks, [task - 3 for task in tasks]), 3),
    ):
        assert estimate.value == pytest.approx(value)
        assert np.isnan([estimate.low, estimate.high]).all()
        assert re.search(r"does not clearly differ .*\d \[one run\]$", verdict("mine", estimate))
    profile = performance_profile(tasks, np.array([2.0, 3.5]))
    assert [point.value for point in profile] == pytest.approx([1, 2 / 3])
    assert np.isnan([(point.low, point.high) for point in profile]).all()


@pytest.mark.parametrize("tasks", [[np.full(5, 3.0)], [np.full(5, 3.0), np.full((1, 2), 3.0)]])
def test_equal_runs_give_a_point(tasks):
    zero = [task - 3 for task in tasks]
    for estimate, value in (
        (stratified_mean(tasks), 3),
        (stratified_iqm(tasks), 3),
        (paired_difference(tasks, zero), 3),
        (iqm_difference(tasks, zero), 3),
        (probability_of_improvement(tasks, zero), 1),
    ):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value,) * 3)
    profile = performance_profile(tasks, np.array([2.0, 4.0]))
    assert profile == [Estimate(1, 1, 1), Estimate(0, 0, 0)]


def test_an_only_run_adds_no_chance_to_other_tasks():
    scores = simulated(0)[:1]
    alone, beside = stratified_mean(scores), stratified_mean([*scores, np.zeros((1, 40))])
    assert beside.high - beside.low == pytest.approx((alone.high - alone.low) / 2, rel=0.15)


def test_wrong_tasks_are_refused():
    with pytest.raises(ValueError, match="no tasks to summarise"):
        stratified_iqm([])
    with pytest.raises(ValueError, match=r"\(runs,\) or \(runs, k\); got \(0,\)"):
        stratified_mean([np.zeros(3), np.zeros(0)])
    with pytest.raises(ValueError, match="cannot pair tasks of shapes"):
        paired_difference([np.zeros(3)], [np.zeros(4)])
    with pytest.raises(ValueError, match="cannot pair tasks of shapes"):
        probability_of_improvement([np.zeros(3)], [np.zeros(3), np.zeros(3)])
