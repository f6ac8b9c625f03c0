"""The real agents of rl-baselines3-zoo under `equirl compare`: what the README says of them."""

import pytest

from equirl.agents.compare import play, summarize, verdicts
from equirl.agents.evaluation import find_agents


@pytest.fixture(scope="module")
def compared(shared_agents):
    def compare(env_id):
        agents = find_agents(shared_agents / f"dqn-{env_id}.zip", env_id)
        rows = summarize(play(agents, episodes=200, jobs=2))
        return {row.policy: row for row in rows if row.condition == "original"}, verdicts(rows)

    return compare


@pytest.mark.slow
def test_symmetrising_helps_the_acrobot_agent(compared):
    rows, words = compared("Acrobot-v1")
    assert abs(rows["plain"].mean.value + 76.6) < 3
    assert rows["equizero"].difference.value >= 5
    assert rows["equizero"].difference.low > 0
    assert any("original: equizero is better than plain by" in line for line in words)


@pytest.mark.slow
def test_symmetrising_hurts_the_finished_cartpole_agent_and_lambda_does_not(compared):
    rows, words = compared("CartPole-v1")
    assert rows["plain"].mean.value == 500
    assert rows["lambda"].mean.value == 500
    assert rows["equizero"].mean.value == rows["equitune"].mean.value < 400
    assert words[-1].endswith("symmetrising hurts this agent; learned weights (lambda) do not")
