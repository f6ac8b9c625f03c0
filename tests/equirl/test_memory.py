"""Lambda of continuous actions holds its view from step to step."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import equirl
from equirl import LambdaEquitunePolicy


class Sine(torch.nn.Module):
    """The view of the positive sine is the more familiar one."""

    fitted = True

    def forward(self, x):
        return 10 * x[:, 1]


@pytest.fixture
def agent():
    return PPO("MlpPolicy", gym.make("Pendulum-v1"), seed=0, device="cpu")


def policy_of(agent, **options):
    return LambdaEquitunePolicy(agent, "Pendulum-v1", Sine(), **options)


def at(*angles):
    angles = np.array(angles, np.float32)
    return np.stack([np.cos(angles), np.sin(angles), 0.1 * angles], 1)


def test_a_view_is_held_until_another_is_far_more_familiar(agent):
    policy = policy_of(agent, hold=float(np.exp(5)))
    state = None
    places = []
    for angle in (0.3, -0.1, -0.2, -0.5, -0.1, 0.1, 0.5):  # 20 sin: log-odds of the two views
        _, state = policy.predict(at(angle), state, np.zeros(1, bool), deterministic=True)
        places.append(int(state[0][0]))
    assert places == [0, 0, 0, 1, 1, 1, 0]


def test_episodes_begin_without_memory(agent):
    policy = policy_of(agent)
    _, state = policy.predict(at(0.3, 0.3), deterministic=True)
    assert state[0].tolist() == [0, 0]
    _, state = policy.predict(at(-0.1, -0.1), state, np.array([False, True]), deterministic=True)
    assert state[0].tolist() == [0, 1]


def test_without_state_each_step_stands_alone(agent):
    held, free = policy_of(agent), policy_of(agent, hold=1)
    observations = at(*np.linspace(-3, 3, 50))
    actions, state = held.predict(observations, deterministic=True)
    others, _ = free.predict(observations, deterministic=True)
    assert np.array_equal(actions, others)
    assert state[0].tolist() == (observations[:, 1] < 0).astype(int).tolist()


@pytest.mark.parametrize("hold", [1.0, 50.0, 1e9])
def test_the_policy_is_equivariant_on_histories(agent, hold):
    policy = policy_of(agent, hold=hold)
    generator = np.random.default_rng(0)
    states = [None, None]
    for _ in range(60):
        seen = at(*generator.normal(size=5))
        both = seen, policy.symmetry.act_on_observations(1, seen)
        starts = generator.random(5) < 0.1
        actions = []
        for i, observations in enumerate(both):
            action, states[i] = policy.predict(observations, states[i], starts, deterministic=True)
            actions.append(action)
        assert np.allclose(actions[1], -actions[0], atol=1e-6)
        assert (states[0][0] == 1 - states[1][0]).all()


def test_evaluate_policy_gives_the_memory_back(agent, monkeypatch):
    policy = policy_of(agent)
    given = []
    own = policy.predict

    def noted(observation, state=None, episode_start=None, deterministic=False):
        given.append(state)
        return own(observation, state, episode_start, deterministic)

    monkeypatch.setattr(policy, "predict", noted)
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(gym.make("Pendulum-v1"), 5)] * 2)
    evaluate_policy(policy, env, 2, warn=False)
    assert len(given) == 5
    assert given[0] is None and all(state[0].shape == (2,) for state in given[1:])


def test_it_is_saved_with_the_policy(agent, tmp_path):
    policy = LambdaEquitunePolicy(agent, "Pendulum-v1", hold=7)
    policy.save(tmp_path / "policy.safetensors")
    assert LambdaEquitunePolicy.load(tmp_path / "policy.safetensors").hold == 7


@pytest.mark.parametrize(
    "state", [(np.zeros(2, int),), (np.full(1, 2),), (np.zeros(1),), np.zeros(1, int), ()]
)
def test_what_is_no_memory_is_refused(agent, state):
    with pytest.raises(ValueError, match="state is what predict returned for the same 1 env"):
        policy_of(agent).predict(at(0.3), state, deterministic=True)


@pytest.mark.parametrize("starts", [np.zeros(2, bool), [True] * 4, np.array([0.5, 1, 0])])
def test_what_tells_no_starts_is_refused(agent, starts):
    policy = policy_of(agent)
    _, state = policy.predict(at(0.3, 0.1, 0.2), deterministic=True)
    with pytest.raises(ValueError, match="episode_start tells of each of the 3 observations"):
        policy.predict(at(0.3, 0.1, 0.2), state, starts, deterministic=True)


def test_hold_is_checked(agent):
    with pytest.raises(ValueError, match="hold is a number from 1; got 0"):
        policy_of(agent, hold=0)


def test_choices_have_no_memory():
    agent = PPO("MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cpu")
    policy = LambdaEquitunePolicy(agent, "CartPole-v1", Cart())
    _, state = policy.predict(np.zeros((1, 4), np.float32), None, deterministic=True)
    assert state is None
    assert isinstance(policy, equirl.LambdaEquitunePolicy)


class Cart(torch.nn.Module):
    fitted = True

    def forward(self, x):
        return x[:, 0]
