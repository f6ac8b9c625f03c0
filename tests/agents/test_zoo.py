"""The real agents of rl-baselines3-zoo under `equirl compare`: what the README says of them."""

import pytest

from equirl.agents.compare import add_selected, play, summarize, verdicts
from equirl.agents.evaluation import find_agents
from equirl.agents.policies import CANDIDATES
from equirl.agents.selection import Race, select


@pytest.fixture(scope="module")
def compared(shared_agents):
    def compare(env_id):
        agents = find_agents(shared_agents / f"dqn-{env_id}.zip", env_id)
        selections = select(agents, Race(), 20_000, "cpu", jobs=2)
        returns = play(agents, episodes=200, jobs=2, policies=CANDIDATES)
        rows = summarize(add_selected(returns, selections))
        return {row.policy: row for row in rows if row.condition == "original"}, verdicts(rows)

    return compare


@pytest.mark.slow
def test_symmetrising_helps_the_acrobot_agent(compared):
    rows, words = compared("Acrobot-v1")
    assert abs(rows["plain"].mean.value + 76.6) < 3
    assert rows["equizero"].difference.value >= 5
    assert rows["equizero"].difference.low > 0
    assert rows["lambda"].mean.value >= -72
    assert rows["selected"].mean.value >= -72
    assert any("original: equizero is better than plain by" in line for line in words)


@pytest.mark.slow
def test_symmetrising_hurts_the_finished_cartpole_agent_and_lambda_does_not(compared):
    rows, words = compared("CartPole-v1")
    assert rows["plain"].mean.value == 500
    assert rows["lambda"].mean.value == rows["selected"].mean.value == 500
    assert rows["equizero"].mean.value == rows["equitune"].mean.value < 400
    assert words[-1].endswith("symmetrising hurts this agent; learned weights (lambda) do not")
