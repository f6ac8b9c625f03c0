import pickle

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import equirl
from equirl.agents.arguments import Convert
from equirl.agents.convert import main
from equirl.normalization import Statistics


@pytest.fixture
def saved(tmp_path):
    """An agent, and beside it what normalised its observations."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=3)
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    agent.learn(16)
    agent.save(tmp_path / "agent.zip")
    env.save(tmp_path / "vecnormalize.pkl")
    return tmp_path


def test_statistics_are_the_same_in_the_new_file(saved, capsys):
    main(Convert(saved / "vecnormalize.pkl"))
    assert "vecnormalize.safetensors" in capsys.readouterr().out
    old, new = (Statistics.load(saved / f"vecnormalize.{s}") for s in ("pkl", "safetensors"))
    assert np.array_equal(old.mean, new.mean) and np.array_equal(old.variance, new.variance)
    assert (old.clip, old.epsilon) == (new.clip, new.epsilon) == (3, 1e-8)


def test_the_agent_finds_the_new_file_beside_itself(saved):
    main(Convert(saved / "vecnormalize.pkl"))
    (saved / "vecnormalize.pkl").unlink()
    assert np.array_equal(
        equirl.load_agent(saved / "agent.zip").statistics.mean,
        Statistics.load(saved / "vecnormalize.safetensors").mean,
    )


def test_what_is_there_is_not_written_over(saved):
    main(Convert(saved / "vecnormalize.pkl"))
    with pytest.raises(ValueError, match="exists; delete it"):
        main(Convert(saved / "vecnormalize.pkl"))
    with pytest.raises(ValueError, match=r"a \.safetensors file; name .*other\.pkl so"):
        main(Convert(saved / "vecnormalize.pkl", saved / "other.pkl"))


def test_a_planted_pickle_is_refused(tmp_path):
    class Planted:
        def __reduce__(self):
            return (open, (str(tmp_path / "planted"), "w"))

    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match="which no statistics need: refused"):
        main(Convert(tmp_path / "vecnormalize.pkl"))
    assert [file.name for file in tmp_path.iterdir()] == ["vecnormalize.pkl"]


def test_statistics_of_rewards_only_are_told(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), norm_obs=False)
    env.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(ValueError, match="normalised rewards only"):
        main(Convert(tmp_path / "vecnormalize.pkl"))
