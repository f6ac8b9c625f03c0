"""Returns of a table as an array of agents and episodes."""

import numpy as np
import pandas as pd
import pytest

from equirl.agents.plot import as_array


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
