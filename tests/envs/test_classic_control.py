"""The declared symmetries against the real simulators, from mirrored internal states."""

import gymnasium as gym
import numpy as np
import pytest

import equirl
from equicore import Matrix, Permutation, cyclic

TRANSITIONS = 400
WIDEST = {
    # wide enough that poles fall and carts leave; see the assertion on terminated below
    "CartPole-v1": [2.6, 3.0, 0.23, 3.0],
    "Acrobot-v1": [np.pi, np.pi, 4 * np.pi, 9 * np.pi],
}


def observe(env):
    state = env.state
    return env._get_ob() if hasattr(env, "_get_ob") else np.array(state, dtype=np.float32)


def transitions(env_id, states, actions):
    """Observation, next observation, reward, terminated for each internal state and action."""
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    before, after, rewards, ends = [], [], [], []
    for state, action in zip(states, actions, strict=True):
        env.state = state.copy()
        env.steps_beyond_terminated = None  # CartPole counts them, and warns
        before.append(observe(env))
        observation, reward, terminated, _, _ = env.step(action)
        after.append(observation)
        rewards.append(reward)
        ends.append(terminated)
    return np.array(before), np.array(after), np.array(rewards), np.array(ends)


def violations(env_id, symmetry):
    """Largest differences of observation, next observation, reward, terminated under element 1."""
    rng = np.random.default_rng(0)
    widest = np.array(WIDEST[env_id])
    states = rng.uniform(-widest, widest, size=(TRANSITIONS, 4))
    actions = rng.integers(gym.make(env_id).action_space.n, size=TRANSITIONS)
    before, after, rewards, ends = transitions(env_id, states, actions)
    assert 10 < ends.sum() < TRANSITIONS - 10
    mirrored = transitions(env_id, -states, symmetry.act_on_actions(1, actions))
    expected = (
        symmetry.act_on_observations(1, before),
        symmetry.act_on_observations(1, after),
        rewards,
        ends,
    )
    return [
        float(np.abs(found.astype(float) - wanted.astype(float)).max())
        for found, wanted in zip(mirrored, expected, strict=True)
    ]


def test_cartpole_mirrors_bit_for_bit():
    assert violations("CartPole-v1", equirl.symmetry_of("CartPole-v1")) == [0, 0, 0, 0]


def test_acrobot_mirrors():
    # not bit for bit: its gravity is cos(angle - pi / 2), and pi / 2 is rounded
    before, after, reward, terminated = violations("Acrobot-v1", equirl.symmetry_of("Acrobot-v1"))
    assert before < 1e-6
    assert after < 1e-5  # velocities go up to 28, where a float32 has steps of 2e-6
    assert (reward, terminated) == (0, 0)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_actions_left_as_they_are_are_no_symmetry(env_id):
    true = equirl.symmetry_of(env_id)
    actions = true.action.size
    wrong = equirl.Symmetry(true.observation, Permutation(cyclic(2), [list(range(actions))] * 2))
    assert violations(env_id, wrong)[1] > 0.1


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_observations_left_as_they_are_are_no_symmetry(env_id):
    true = equirl.symmetry_of(env_id)
    wrong = equirl.Symmetry(Matrix(cyclic(2), [np.eye(true.observation.size)] * 2), true.action)
    assert violations(env_id, wrong)[0] > 0.1


def test_cosines_of_acrobot_keep_their_sign():
    true = equirl.symmetry_of("Acrobot-v1")
    wrong = equirl.Symmetry(Matrix.from_generators(cyclic(2), [-np.eye(6)]), true.action)
    assert violations("Acrobot-v1", wrong)[0] > 0.1


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_symmetry_fits_the_spaces(env_id):
    env = gym.make(env_id)
    equirl.symmetry_of(env).check_spaces(env.observation_space, env.action_space)
