import numpy as np
import pandas as pd
import pytest
from scipy import stats

from equirl.agents.statistics import (
    Estimate,
    as_array,
    interquartile_mean,
    mean,
    mean_difference,
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


def test_as_array_sorts_agents_and_episodes(make_returns):
    rows = make_returns(envs=("A",), budgets=(1,), agents=2, episodes=3)
    plain = rows[(rows.policy == "plain") & (rows.condition == "original")]
    expected = plain.episode_return.to_numpy().reshape(2, 3)
    shuffled = plain.sample(frac=1, random_state=0)
    assert np.array_equal(as_array(shuffled), expected)


def test_as_array_refuses_two_sets_and_missing_episodes(make_returns):
    rows = make_returns(envs=("A",), budgets=(1,), agents=2, episodes=3)
    plain = rows[(rows.policy == "plain") & (rows.condition == "original")]
    with pytest.raises(ValueError, match="two sets of returns of agent0"):
        as_array(pd.concat([plain, plain]))
    with pytest.raises(ValueError, match="different episodes"):
        as_array(plain.iloc[:-1])
