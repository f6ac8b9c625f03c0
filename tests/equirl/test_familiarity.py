import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv

import equirl
from equirl import (
    EquizeroPolicy,
    LambdaEquitunePolicy,
    fit_familiarity,
    replay_observations,
    rollout_observations,
)


def agent_with_buffer(size, added, n_envs=1):
    """An agent whose replay buffer was given the observations 0, 1, 2, ..."""
    envs = DummyVecEnv([lambda: gym.make("CartPole-v1")] * n_envs)
    agent = DQN("MlpPolicy", envs, buffer_size=size * n_envs, seed=0)
    for i in range(added):
        observations = np.full((n_envs, 4), i) + np.arange(n_envs)[:, None] / 10
        none = np.zeros(n_envs)
        agent.replay_buffer.add(
            observations, observations, none[:, None], none, none, [{}] * n_envs
        )
    return agent


@pytest.mark.parametrize(
    ("size", "added", "limit", "expected"),
    [
        (10, 4, 100, [0, 1, 2, 3]),
        (10, 4, 2, [2, 3]),
        (10, 10, 100, list(range(10))),  # just full: the next would overwrite 0
        (10, 13, 100, list(range(3, 13))),
        (10, 13, 4, [9, 10, 11, 12]),
        (10, 20, 3, [17, 18, 19]),
        (10, 25, 100, list(range(15, 25))),
    ],
)
def test_replay_observations_are_the_last_oldest_first(size, added, limit, expected):
    observations = replay_observations(agent_with_buffer(size, added), limit)
    assert observations.shape == (len(expected), 4)
    assert observations[:, 0].tolist() == expected


def test_replay_observations_of_several_environments():
    observations = replay_observations(agent_with_buffer(10, 12, n_envs=2))
    assert observations.shape == (20, 4)
    np.testing.assert_allclose(observations[:4, 0], [2, 2.1, 3, 3.1], rtol=1e-6)


def test_replay_limit_counts_the_observations_of_all_environments():
    observations = replay_observations(agent_with_buffer(10, 12, n_envs=2), limit=6)
    assert observations.shape == (6, 4)
    np.testing.assert_allclose(observations[-2:, 0], [11, 11.1], rtol=1e-6)


def test_replay_observations_are_a_copy():
    agent = agent_with_buffer(10, 4)
    replay_observations(agent)[:] = -1
    assert replay_observations(agent)[:, 0].tolist() == [0, 1, 2, 3]


def test_an_empty_buffer_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="empty.*rollout_observations"):
        replay_observations(agent_with_buffer(10, 0))


def test_the_buffer_of_a_loaded_agent_is_empty(tmp_path):
    agent_with_buffer(10, 4).save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="empty"):
        replay_observations(equirl.load_agent(tmp_path / "agent.zip"))


@pytest.mark.parametrize(("steps", "n_envs", "count"), [(100, 8, 104), (5, 3, 6), (4, 4, 4)])
def test_rollout_has_at_least_as_many_observations_as_asked(steps, n_envs, count):
    agent = agent_with_buffer(1, 0)
    observations = rollout_observations(agent, "CartPole-v1", steps, seed=0, n_envs=n_envs)
    assert observations.shape == (count, 4)
    assert observations.dtype == np.float32


def test_rollout_is_reproducible():
    agent = agent_with_buffer(1, 0)
    agent.exploration_rate = 1.0  # greedy all the same
    first, again, other = (
        rollout_observations(agent, "CartPole-v1", 300, seed=seed) for seed in (3, 3, 4)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_rollout_follows_the_agent():
    class Right:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            assert deterministic
            return np.ones(len(observation), int), None

    observations = rollout_observations(Right(), "CartPole-v1", 9, seed=3, n_envs=1)
    env = gym.make("CartPole-v1")
    expected = [env.reset(seed=3)[0]] + [env.step(1)[0] for _ in range(8)]
    assert (observations == expected).all()


def test_rollout_passes_keywords_to_the_environment(cases):
    case = cases["gridworld-image"]
    observations = rollout_observations(
        case.agent(), case.env_id, 40, seed=0, env_kwargs=case.env_kwargs
    )
    assert observations.shape == (40, *case.shape)
    assert (observations.sum((1, 2, 3)) == 2).all()


def lopsided(count=600):
    """Visited states of CartPole in which the cart always stands right of the centre."""
    observations = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    observations[:, 0] = np.abs(observations[:, 0]) + 0.5
    return observations


def test_fitting_gives_the_weight_to_what_was_visited(cases):
    case = cases["cartpole"]
    policy = LambdaEquitunePolicy(case.agent(), case.symmetry())
    loss = fit_familiarity(policy, lopsided(), steps=200)
    assert loss < 0.1
    # where it was, the policy now acts as the agent does; at mirrored states by mirroring
    observations = lopsided(50)
    expected, _ = policy.model.predict(observations, deterministic=True)
    values = np.sort(
        np.exp(case.q_values(policy.model, observations)), axis=1
    )  # leave out states where the agent itself hardly prefers an action
    clear = values[:, 1] / values[:, 0] > 1.02
    assert clear.sum() > 20
    actions, _ = policy.predict(observations, deterministic=True)
    assert (actions == expected)[clear].all()
    mirrored, _ = policy.predict(-observations, deterministic=True)
    assert (mirrored == 1 - expected)[clear].all()


def test_what_was_visited_alike_cannot_be_told_apart(cases):
    case = cases["cartpole"]
    policy = LambdaEquitunePolicy(case.agent(), case.symmetry())
    observations = np.concatenate([lopsided(), -lopsided()])
    assert fit_familiarity(policy, observations, steps=100) == pytest.approx(np.log(2), abs=0.1)


def test_options_reach_the_optimiser(cases):
    case = cases["cartpole"]
    losses = [
        fit_familiarity(
            LambdaEquitunePolicy(case.agent(), case.symmetry()), lopsided(), steps=steps
        )
        for steps in (1, 1, 100)
    ]
    assert losses[0] == losses[1] > losses[2]


def test_the_agent_is_not_trained(cases):
    case = cases["cartpole"]
    policy = LambdaEquitunePolicy(case.agent(), case.symmetry())
    before = [p.clone() for p in policy.model.q_net.parameters()]
    fit_familiarity(policy, lopsided(), steps=5)
    after = list(policy.model.q_net.parameters())
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("make", [EquizeroPolicy, lambda agent, symmetry: agent])
def test_what_has_no_weights_is_refused_by_name(cases, make):
    case = cases["cartpole"]
    thing = make(case.agent(), case.symmetry())
    with pytest.raises(TypeError, match=f"weights to fit; got {type(thing).__name__}"):
        fit_familiarity(thing, lopsided())


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (np.zeros((9, 4)), "at least 10"),
        (np.zeros((20, 3)), "shape"),
        (np.full((20, 4), np.nan), "NaN"),
    ],
)
def test_unfit_observations_are_refused(cases, observations, message):
    case = cases["cartpole"]
    policy = LambdaEquitunePolicy(case.agent(), case.symmetry())
    with pytest.raises(ValueError, match=message):
        fit_familiarity(policy, observations)
