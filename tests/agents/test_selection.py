from collections import Counter

import numpy as np
import pytest

from equicore.lab.statistics import Estimate
from equirl.agents.policies import CANDIDATES
from equirl.agents.selection import ALIKE, Choice, Race

NAMES = ["plain", "equitune", "equizero", "lambda"]


class Games:
    """Made-up returns of policies, and how often each was asked for.

    What a policy gets above the others in every episode stands in ``gains``; ``common`` is the
    deviation of what all have in common in an episode, ``own`` of what is each one's own.
    """

    def __init__(self, gains, seed=0, own=1.0, common=0.0, episodes=20, rounds=5):
        rng = np.random.default_rng(seed)
        shared = common * rng.normal(size=(rounds, episodes))
        self.returns = {
            name: shared + gain + own * rng.normal(size=(rounds, episodes))
            for name, gain in gains.items()
        }
        self.calls = Counter()

    def __call__(self, name, number):
        assert number == self.calls[name]  # rounds follow each other, and none is played twice
        self.calls[name] += 1
        return self.returns[name][number]


def nothing_gained(names=NAMES):
    return dict.fromkeys(names, 0.0)


def test_plain_is_kept_when_none_is_better():
    """In about 5 % of races only is another chosen; 12 % is 3.2 deviations more."""
    false = 0
    for seed in range(100):
        games = Games(nothing_gained(CANDIDATES), seed, episodes=10, rounds=2, common=3)
        choice = Race(rounds=2, episodes=10, error=0.05).run(CANDIDATES, games)
        false += choice.policy != "plain"
    assert false <= 12


def test_plain_is_kept_when_all_others_are_worse():
    games = Games({"plain": 0.0, "equitune": -3.0, "equizero": -3.0})
    choice = Race().run(["equitune", "plain", "equizero"], games)
    assert choice.policy == "plain"
    assert choice.difference == Estimate(0.0, 0.0, 0.0)
    assert choice.episodes == {"equitune": 20, "plain": 20, "equizero": 20}
    assert choice.spent == 60
    assert str(choice) == "plain, as no other is clearly better, after 60 episodes"


def test_a_clearly_better_one_is_found_at_once():
    games = Games(nothing_gained() | {"equizero": 3.0})
    choice = Race().run(NAMES, games)
    assert choice.policy == "equizero"
    assert choice.episodes == dict.fromkeys(NAMES, 20)
    assert games.calls == dict.fromkeys(NAMES, 1)
    assert choice.difference.low > 2
    assert str(choice).startswith("equizero, better than plain by ")
    assert str(choice).endswith(", after 80 episodes")


def test_a_clearly_worse_one_gets_no_more_episodes():
    games = Games({"plain": 0.0, "equitune": -3.0, "lambda": 0.05})
    choice = Race().run(["plain", "equitune", "lambda"], games)
    assert games.calls == {"plain": 5, "equitune": 1, "lambda": 5}
    assert choice.episodes == {"plain": 100, "equitune": 20, "lambda": 100}


def test_the_race_goes_on_between_two_that_are_better():
    """Plain leaves it; the difference is that in the episodes that plain has played."""
    games = Games({"plain": 0.0, "equitune": 3.0, "equizero": 3.1}, own=0.5)
    choice = Race().run(["plain", "equitune", "equizero"], games)
    assert choice.policy in ("equitune", "equizero")
    assert choice.episodes["plain"] == 20 < choice.episodes[choice.policy]
    gain = games.returns[choice.policy][0] - games.returns["plain"][0]
    assert choice.difference.value == pytest.approx(gain.mean())


def test_of_two_that_are_better_the_best_is_chosen():
    games = Games({"equizero": 4.0, "plain": 0.0, "equitune": 2.0})
    assert Race().run(["plain", "equitune", "equizero"], games).policy == "equizero"


@pytest.mark.parametrize(
    "names", [["plain", "equitune", "lambda"], ["equitune", "lambda", "plain"]]
)
def test_plain_is_preferred_among_equals(names):
    games = Games(nothing_gained(names))
    for name in names:
        games.returns[name] = games.returns["plain"]
    choice = Race().run(names, games)
    assert choice.policy == "plain"
    assert games.calls == dict.fromkeys(names, 1)  # nobody is left to race against


def test_exact_duplicates_are_not_played_again():
    """CartPole's equitune and equizero, for instance, are one policy."""
    games = Games({"plain": 0.0, "equitune": 0.1, "equizero": 0.1})
    games.returns["equizero"] = games.returns["equitune"]
    choice = Race().run(["plain", "equitune", "equizero"], games)
    assert games.calls == {"plain": 5, "equitune": 5, "equizero": 1}
    assert choice.policy != "equizero"


def test_differences_are_paired():
    """What is common to all is a thousand times what is gained."""
    games = Games({"plain": 0.0, "lambda": 1.0}, own=0.1, common=1000.0)
    choice = Race().run(["plain", "lambda"], games)
    assert choice.policy == "lambda"
    assert choice.spent == 40
    assert choice.difference.value == pytest.approx(1, abs=0.2)
    assert choice.difference.high - choice.difference.low < 0.5


@pytest.mark.parametrize(("gain", "chosen"), [(2.0, "lambda"), (-2.0, "plain")])
def test_differences_that_are_all_alike(gain, chosen):
    def play(name, number):
        return np.arange(20.0) + (gain if name == "lambda" else 0)

    choice = Race().run(["plain", "lambda"], play)
    assert choice.policy == chosen
    assert choice.spent == 2 * ALIKE
    if chosen == "lambda":
        assert choice.difference == Estimate(2.0, 2.0, 2.0)


def test_few_differences_that_are_all_alike_decide_nothing():
    """What happens in one episode of twenty may not have been seen yet."""
    race = Race(rounds=1, episodes=ALIKE - 1)
    gains = {"plain": 0.0, "lambda": 2.0}
    choice = race.run(["plain", "lambda"], lambda name, n: np.arange(ALIKE - 1.0) + gains[name])
    assert choice.policy == "plain"


def test_returns_that_are_all_alike():
    choice = Race().run(NAMES, lambda name, number: np.full(20, 500.0))
    assert (choice.policy, choice.spent) == ("plain", 80)


def test_the_interval_holds_the_true_gain():
    """As often as 95 % of 100 times, loosely: the race may have stopped at a lucky moment."""
    true, held, chosen = 1.0, 0, 0
    for seed in range(100):
        games = Games({"plain": 0.0, "equizero": true}, seed, common=5)
        choice = Race().run(["plain", "equizero"], games)
        chosen += choice.policy == "equizero"
        held += choice.difference.low <= true <= choice.difference.high
    assert chosen >= 98
    assert held >= 88


def test_the_interval_is_that_of_the_t_test():
    games = Games({"plain": 0.0, "equizero": 1.0})
    choice = Race(rounds=1).run(["plain", "equizero"], games)
    gain = (games.returns["equizero"] - games.returns["plain"])[0]
    half = 2.0930 * gain.std(ddof=1) / np.sqrt(20)  # Student's t, 19 degrees, 97.5 %
    assert choice.difference.value == pytest.approx(gain.mean())
    assert choice.difference.low == pytest.approx(gain.mean() - half, rel=1e-4)
    assert choice.difference.high == pytest.approx(gain.mean() + half, rel=1e-4)


def test_equal_games_give_equal_choices():
    choices = [
        Race().run(NAMES, Games({"plain": 0, "equitune": -1, "equizero": 0.3, "lambda": 0.4}, seed))
        for seed in (5, 5)
    ]
    assert choices[0] == choices[1]
    assert isinstance(choices[0], Choice)


def test_no_more_rounds_than_allowed():
    games = Games(nothing_gained(), seed=1)
    choice = Race(rounds=2).run(NAMES, games)
    assert max(games.calls.values()) == 2
    assert choice.episodes["plain"] == 40


def test_plain_alone_wins_its_race():
    games = Games(nothing_gained(["plain"]))
    choice = Race().run(["plain"], games)
    assert choice == Choice("plain", Estimate(0.0, 0.0, 0.0), {"plain": 20})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"rounds": 0}, "at least one round of at least 5 episodes; got 0 of 20"),
        ({"episodes": 4}, "got 5 of 4"),
        ({"error": 0.0}, "between 0 and 1; got 0.0"),
        ({"error": 1.0}, "between 0 and 1; got 1.0"),
    ],
)
def test_rules_that_make_no_sense(rules, message):
    with pytest.raises(ValueError, match=message):
        Race(**rules)


@pytest.mark.parametrize("names", [[], ["equitune", "equizero"], ["plain", "lambda", "lambda"]])
def test_policies_that_make_no_race(names):
    with pytest.raises(ValueError, match="distinct, plain among them"):
        Race().run(names, lambda *_: pytest.fail("played"))
