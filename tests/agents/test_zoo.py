"""The real agents of rl-baselines3-zoo under `equirl compare`: what the README says of them."""

import pytest

from equicore.lab.jobs import Workers
from equirl.agents.compare import compare, summarize
from equirl.agents.evaluation import Protocol
from equirl.agents.policies import CANDIDATES
from equirl.agents.saved import find_agents
from equirl.agents.selection import Race
from equirl.agents.verdicts import verdicts


@pytest.fixture(scope="module")
def compared(shared_agents):
    def compared(env_id, file=None, episodes=200):
        agents = find_agents(shared_agents / f"dqn-{file or env_id}.zip", env_id)
        protocol = Protocol(CANDIDATES, episodes=episodes, race=Race())
        returns, _ = compare(agents, protocol, Workers(1), "cpu")
        summary = summarize(returns[returns.condition == "original"])
        return {row["policy"]: row for row in summary.to_dict("records")}, verdicts(summary)

    return compared


@pytest.mark.slow
def test_symmetrising_helps_the_acrobot_agent(compared):
    rows, words = compared("Acrobot-v1")
    assert abs(rows["plain"]["mean return"].value + 76.6) < 3
    assert rows["equizero"]["minus plain"].value >= 5
    assert rows["equizero"]["minus plain"].low > 0
    assert rows["lambda"]["mean return"].value >= -72
    assert rows["selected"]["mean return"].value >= -72
    assert any("original: equizero is better than plain by" in line for line in words)


@pytest.mark.slow
def test_symmetrising_hurts_the_finished_cartpole_agent_and_lambda_does_not(compared):
    rows, words = compared("CartPole-v1")
    means = {name: row["mean return"].value for name, row in rows.items()}
    assert means["plain"] == means["lambda"] == means["selected"] == 500
    assert means["equizero"] == means["equitune"] < 400
    assert words[-1].endswith(
        "equitune and equizero hurt this agent, or the symmetry is wrong (see its check above); "
        "learned weights (lambda) do not"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of swig
def test_means_over_the_mirror_help_the_lander(compared):
    """Published: 154.4 plain."""
    pytest.importorskip("Box2D")
    rows, _ = compared("LunarLander-v3", "LunarLander-v2", episodes=100)
    assert abs(rows["plain"]["mean return"].value - 154.4) < 25
    for name in ("equitune", "equitune_raw", "selected"):
        assert rows[name]["mean return"].value > 230
        assert rows[name]["minus plain"].low > 50
    assert rows["lambda"]["minus plain"].low > 0
    assert rows["equizero"]["minus plain"].high < 30
