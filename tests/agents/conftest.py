import numpy as np
import pandas as pd
import pytest

from equirl.agents.train import Train, plan, train_all

TINY = """
equirl/Gridworld-v0:
  n_timesteps: 240
  policy: MlpPolicy
  buffer_size: 200
  learning_starts: 50
  batch_size: 16
  target_update_interval: 60
  train_freq: 4
  policy_kwargs: {net_arch: [16]}
"""


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory):
    path = tmp_path_factory.mktemp("hyperparameters") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny_train(tiny_yaml, tmp_path):
    """Arguments of a training of a second."""
    return Train(
        env="equirl/Gridworld-v0",
        env_kwargs=("goals=corner", "n=4"),
        hyperparameters=tiny_yaml,
        output=tmp_path / "runs",
        checkpoints=3,
        eval_episodes=2,
        device="cpu",
        jobs=1,
    )


@pytest.fixture(scope="session")
def tiny_runs(tiny_yaml, tmp_path_factory):
    """Folders of two finished trainings."""
    trainings = plan(
        Train(
            env="equirl/Gridworld-v0",
            env_kwargs=("goals=corner", "n=4"),
            seeds=(0, 1),
            hyperparameters=tiny_yaml,
            output=tmp_path_factory.mktemp("runs"),
            checkpoints=3,
            eval_episodes=2,
        )
    )
    train_all(trainings, jobs=1)
    return [training.folder.path for training in trainings]


@pytest.fixture
def make_returns():
    """Made-up returns in the form of `equirl compare`, equizero better than plain."""

    def make(envs=("CartPole-v1", "Acrobot-v1"), budgets=(100, 200), agents=3, episodes=10):
        rng = np.random.default_rng(0)
        bonus = {"plain": 0, "equitune": 5, "equizero": 8, "lambda": 10}
        return pd.DataFrame(
            {
                "env": env,
                "agent": f"agent{agent}",
                "seed": agent,
                "budget": budget,
                "policy": policy,
                "condition": condition,
                "episode": episode,
                "episode_return": 20 + bonus[policy] + budget / 50 + rng.normal(),
            }
            for env in envs
            for budget in budgets
            for policy in bonus
            for condition in ("original", "transformed")
            for agent in range(agents)
            for episode in range(episodes)
        )

    return make
