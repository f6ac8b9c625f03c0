import functools

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

import equirl
from equirl import LambdaEquitunePolicy


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    fit = functools.partial(equirl.fit_familiarity, steps=50)
    monkeypatch.setattr("equirl.safe.fit_familiarity", fit)
    monkeypatch.setattr("equirl.safe.FEW", 100)


def ppo(env="Pendulum-v1"):
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu")


def check(policy):
    """It is fitted and equivariant."""
    assert isinstance(policy, LambdaEquitunePolicy) and policy.fitted
    space = policy.observation_space
    seen = np.random.default_rng(0).normal(size=(5, *space.shape)).astype(space.dtype)
    actions, _ = policy.predict(seen, deterministic=True)
    moved, _ = policy.predict(policy.symmetry.act_on_observations(1, seen), deterministic=True)
    np.testing.assert_allclose(moved, policy.symmetry.act_on_actions(1, actions), atol=1e-5)


def test_it_says_which_policy_and_why(capsys):
    check(equirl.symmetrize(ppo(), "Pendulum-v1", transitions=200))
    assert "LambdaEquitunePolicy(ActorCriticPolicy" in (said := capsys.readouterr().out)
    assert "most familiar view" in said
    check(equirl.symmetrize(ppo("CartPole-v1"), "CartPole-v1", transitions=200))
    assert "how sure the agent is" in capsys.readouterr().out
    equirl.symmetrize(ppo(), "Pendulum-v1", transitions=200, verbose=0)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.make("Pendulum-v1"),
        lambda: DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2),
        lambda: make_vec_env("Pendulum-v1", 2),
        lambda: gym.make_vec("Pendulum-v1", 2),
        lambda: ppo().get_env(),
    ],
)
def test_an_environment_serves_as_well_as_its_id(make):
    check(equirl.symmetrize(ppo(), make(), transitions=200, verbose=0))


def test_too_few_states_are_told_of():
    with pytest.warns(UserWarning, match="64 states may be too few"):
        equirl.symmetrize(ppo(), "Pendulum-v1", transitions=64, verbose=0)
    equirl.symmetrize(ppo("CartPole-v1"), "CartPole-v1", transitions=64, verbose=0)


def test_an_agent_behind_wrappers_asks_for_experience():
    agent = ppo(VecFrameStack(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), 2))
    with pytest.raises(ValueError, match="wrapped in VecFrameStack, .* give experience="):
        equirl.symmetrize(agent, agent.get_env())


class Elsewhere(gym.Wrapper):
    """Another task, of which neither observations nor actions tell."""


def test_an_environment_in_a_wrapper_of_ones_own_is_not_played_without_it():
    env = Elsewhere(gym.make("Pendulum-v1"))
    for given in (env, DummyVecEnv([lambda: env])):
        with pytest.raises(ValueError, match="wrapped in Elsewhere, .* give experience="):
            equirl.symmetrize(ppo(), given)


def test_an_agent_of_masks_is_told_that_it_plays_without():
    agent = MaskablePPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu")
    with pytest.warns(UserWarning, match=r"takes masks of actions, .* no action_masks\(\)"):
        equirl.symmetrize(agent, "CartPole-v1", transitions=64, verbose=0)


def test_it_learns_from_the_replay_buffer_if_there_is_enough_in_it(monkeypatch):
    agent = DQN("MlpPolicy", "CartPole-v1", learning_starts=10, seed=0, device="cpu").learn(150)
    monkeypatch.setattr("equirl.safe.rollout_experience", None)  # it need not play
    check(equirl.symmetrize(agent, "CartPole-v1", transitions=100, verbose=0))


def test_it_learns_from_what_it_is_given():
    symmetry = equirl.symmetry_of("Pendulum-v1")
    experience = equirl.rollout_experience(ppo(), "Pendulum-v1", 200, seed=0)
    check(equirl.symmetrize(ppo(), symmetry, experience, verbose=0))
    check(equirl.symmetrize(ppo(), symmetry, experience.observations, verbose=0))
    with pytest.raises(ValueError, match="give experience="):
        equirl.symmetrize(ppo(), symmetry)


def test_normalised_agents_are_shown_normalised_observations():
    agent = ppo(VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")])))
    agent.learn(64)
    policy = equirl.symmetrize(agent, "Pendulum-v1", transitions=200, verbose=0)
    assert policy.fitted and policy.shown_normalized


def test_what_cannot_be_symmetrised_is_refused():
    with pytest.raises(TypeError, match="equirl symmetrises agents"):
        equirl.symmetrize(object(), "Pendulum-v1")
    with pytest.raises(ValueError, match="no symmetry is registered"):
        equirl.symmetrize(ppo("MountainCarContinuous-v0"), "MountainCarContinuous-v0")
