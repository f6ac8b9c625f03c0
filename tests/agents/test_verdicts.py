import numpy as np
import pandas as pd
import pytest

from equicore.lab.statistics import Estimate
from equirl.agents.compare import conclusions, summarize
from equirl.agents.verdicts import Chosen, advice, cautions, verdicts

ENV = "CartPole-v1"


def summary_of(original, transformed=None, agents=1):
    """A summary in which each policy differs from plain as given: (value, low, high)."""
    transformed = original if transformed is None else transformed
    rows = []
    for condition, differences in (("original", original), ("transformed", transformed)):
        for policy, difference in {"plain": None, **differences}.items():
            estimate = None if difference is None else Estimate(*difference)
            rows.append((ENV, 1000, condition, policy, agents, estimate))
    columns = ["environment", "steps", "condition", "policy", "agents", "minus plain"]
    return pd.DataFrame(rows, columns=columns)


UP, DOWN, SAME, UNCLEAR = (5, 2, 8), (-5, -8, -2), (0, 0, 0), (-1.5, -107.5, 104.3)


def together(**differences):
    names = ("equitune", "equizero", "lambda")
    lines = verdicts(summary_of(dict(zip(names, differences.values(), strict=True))))
    return lines[3] if len(lines) > 6 else ""


def test_what_learned_weights_may_cost_is_said():
    wrong = "equitune and equizero hurt this agent, or the symmetry is wrong (see its check above)"
    where = f"{ENV}, 1,000 steps, original: "
    assert together(a=DOWN, b=DOWN, c=DOWN) == where + wrong
    assert together(a=DOWN, b=DOWN, c=SAME) == where + wrong + "; learned weights (lambda) do not"
    assert together(a=DOWN, b=DOWN, c=UNCLEAR) == (
        where + wrong + "; of learned weights (lambda) that is not known: they may cost 108"
    )
    assert together(a=UP, b=UP, c=UNCLEAR) == where + "symmetrising helps this agent"
    for a, b in ((UP, DOWN), (UP, UNCLEAR), (DOWN, UNCLEAR), (SAME, SAME)):
        assert together(a=a, b=b, c=UP) == ""


@pytest.mark.parametrize(
    ("original", "transformed", "expected"),
    [
        (
            {"equitune": UP, "equizero": (9, 1, 20)},
            None,
            "use equizero for this agent, provided that",
        ),
        (
            {"equitune": UP, "equizero": (9, -1, 20)},
            None,
            "use equitune for this agent, provided that",
        ),
        (
            {"equitune": SAME, "lambda": SAME},
            {"equitune": DOWN, "lambda": UP},
            "use lambda for ",
        ),
        (
            {"equitune": DOWN, "equizero": SAME},
            None,
            "use plain, as nothing is better for ",
        ),
        ({"equitune": DOWN, "equizero": UNCLEAR}, None, "nothing is known yet, play more"),
        (
            {"equitune": DOWN},
            {"equitune": UP},
            "original, use plain, as nothing is better; transformed, use equitune",
        ),
        (
            {"equitune": UNCLEAR},
            {"equitune": DOWN},
            "original, nothing is known yet, play more episodes; until then use plain; transformed"
            ", use plain",
        ),
    ],
)
def test_advice(original, transformed, expected):
    (line,) = advice(summary_of(original, transformed))
    assert line.startswith(f"{ENV}, 1,000 steps: {expected}")


def test_advice_where_policies_were_selected():
    summary = summary_of({"equitune": UP, "selected": UP}, agents=2)

    def words(*chosen):
        elsewhere = [Chosen("Acrobot-v1", 1000, "original", "lambda", "")]
        here = [Chosen(ENV, 1000, condition, policy, "") for condition, policy in chosen]
        (line,) = advice(summary, elsewhere + here)
        return line.removeprefix(f"{ENV}, 1,000 steps: ")

    one, two = ("original", "equitune"), ("transformed", "equitune")
    own = ", by episodes of the race's own"
    assert words(one, two, one, two) == f"use equitune{own}"
    assert words(one, ("transformed", "plain")) == (
        f"original, use equitune; transformed, use plain{own}"
    )
    assert words(one, two, ("original", "plain"), two) == (
        f"use for each agent the policy that was chosen for it, see above{own}"
    )
    assert words().startswith("use equitune for these 2 agents")  # nothing was selected here


@pytest.fixture
def returns():
    """Two agents, of which the second plays as random actions do."""

    def of(agent, policy, condition, mean):
        rng = np.random.default_rng(len(agent + policy))
        return pd.DataFrame(
            {
                "env": ENV,
                "agent": agent,
                "seed": 0,
                "budget": 1000,
                "policy": policy,
                "condition": condition,
                "episode": range(20),
                "episode_return": mean + rng.normal(size=20),
            }
        )

    tables = []
    for agent, mean in (("good", 100), ("poor", 22)):
        for condition in ("original", "transformed"):
            tables.append(of(agent, "plain", condition, mean))
            tables.append(of(agent, "equitune", condition, 500))
        tables.append(of(agent, "random", "original", 22))
    return pd.concat(tables, ignore_index=True)


def test_an_agent_that_is_as_good_as_random_actions_is_warned_of(returns):
    (line,) = cautions(returns)
    assert line.startswith(f"{ENV}, 1,000 steps: WARNING: plain is not clearly better than random")
    assert "poor (2" in line and "good" not in line
    for word in ("VecNormalize", "stacked frames", "wrappers", "another version"):
        assert word in line
    worse = returns.copy()
    worse.loc[(worse.agent == "poor") & (worse.policy == "plain"), "episode_return"] -= 12
    assert "poor (1" in cautions(worse)[0]  # worse than random is no better
    assert cautions(returns[returns.agent == "good"]) == []
    assert cautions(returns[returns.policy != "random"]) == []  # of before they were played


def test_conclusions_end_with_advice(returns):
    lines = conclusions(returns, summarize(returns))
    assert "WARNING" in lines[-2]
    unless = "unless the warning of random actions applies, "
    assert lines[-1].startswith(f"{ENV}, 1,000 steps: {unless}use equitune for these 2 agents")
    good = returns[returns.agent == "good"]
    *_, last = conclusions(good, summarize(good))
    assert last.startswith(f"{ENV}, 1,000 steps: use equitune for this agent")
    assert not any("random is" in line or ": random" in line for line in lines)
