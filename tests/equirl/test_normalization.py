"""Agents whose observations were normalised: the group acts on what the environment emits."""

import dataclasses
import pickle
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

import equirl
from equicore import Matrix, cyclic
from equirl import EquizeroPolicy, LambdaEquitunePolicy, SymmetrizedPolicy, Symmetry
from equirl.normalization import Statistics, statistics_of
from equirl.symmetrized import equituned


def pendulum_envs(**settings):
    return VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), **settings)


@pytest.fixture
def trained(tmp_path):
    """An agent, its normalised environments, and both as files."""
    envs = pendulum_envs(clip_obs=2.0)
    agent = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, seed=0, device="cpu").learn(256)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    agent.save(tmp_path / "agent.zip")
    envs.save(str(tmp_path / "agent.vecnormalize.pkl"))
    return agent, envs, tmp_path / "agent.zip"


def emitted(number=60):
    space = gym.make("Pendulum-v1").observation_space
    space.seed(0)
    return np.stack([space.sample() for _ in range(number)])


def test_views_are_normalised_each_by_itself(trained):
    """By plain loops: what the agent does in each of the environment's two images."""
    agent, envs, path = trained
    symmetry = equirl.symmetry_of("Pendulum-v1")
    seen = emitted()
    views, values = [], []
    for g in (0, 1):
        normalized = envs.normalize_obs(symmetry.act_on_observations(g, seen))
        assert (abs(normalized) == 2).any()  # some are cut off
        actions, _ = agent.predict(normalized, deterministic=True)
        views.append(symmetry.act_on_actions(g, actions))
        with torch.no_grad():
            values.append(agent.policy.predict_values(torch.from_numpy(normalized)).numpy())
    better = values[1] > values[0]
    assert 0 < better.mean() < 1
    expected = np.where(better, views[1], views[0])
    opened = equirl.load_agent(path)  # takes what the environment emits
    found, _ = EquizeroPolicy(opened, symmetry).predict(seen, deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    mirrored = symmetry.act_on_observations(1, seen)
    again, _ = EquizeroPolicy(opened, symmetry).predict(mirrored, deterministic=True)
    np.testing.assert_allclose(again, -found, rtol=1e-4, atol=1e-5)


def test_a_live_agent_is_shown_what_its_environment_emits(trained):
    agent, envs, path = trained
    near = emitted() * [1, 1, 0.2]  # none is cut off
    policy = EquizeroPolicy(agent, agent.get_env())
    assert statistics_of(agent) is envs
    live, _ = policy.predict(envs.normalize_obs(near), deterministic=True)
    opened, _ = EquizeroPolicy(equirl.load_agent(path), "Pendulum-v1").predict(
        near.astype(np.float32), deterministic=True
    )
    np.testing.assert_allclose(live, opened, rtol=1e-3, atol=1e-4)
    envs.obs_rms.mean = envs.obs_rms.mean + 0.3  # statistics that have learned since
    later, _ = policy.predict(envs.normalize_obs(near), deterministic=True)
    mirrored = near * [1, -1, -1]
    other, _ = policy.predict(envs.normalize_obs(mirrored), deterministic=True)
    assert np.abs(later - live).max() > 1e-3
    np.testing.assert_allclose(other, -later, rtol=1e-3, atol=1e-4)


def test_plain_and_wrapped_agents_play_the_same_environment(trained):
    agent, envs, path = trained
    envs.training, envs.norm_reward = False, False
    opened = equirl.load_agent(path)
    returns = []
    for policy, env in ((agent, envs), (opened, DummyVecEnv([lambda: gym.make("Pendulum-v1")]))):
        env.seed(3)
        returns.append(evaluate_policy(policy, env, 2, warn=False)[0])
    assert returns[0] == pytest.approx(returns[1], rel=1e-4)
    opened.set_env(pendulum_envs())  # which normalises, so that the agent need not
    np.testing.assert_array_equal(
        opened.predict(np.ones((1, 3), np.float32), deterministic=True)[0],
        agent.predict(np.ones((1, 3), np.float32), deterministic=True)[0],
    )


@pytest.mark.parametrize("live", [True, False])
def test_saved_policies_keep_their_statistics(trained, tmp_path, live):
    """Whatever they were given before, they take what the environment emits once loaded."""
    agent, envs, path = trained
    model = agent if live else equirl.load_agent(path)
    policy = EquizeroPolicy(model, "Pendulum-v1")
    policy.save(tmp_path / "policy")
    loaded = SymmetrizedPolicy.load(tmp_path / "policy")
    shown = envs.normalize_obs(emitted()) if live else emitted()
    expected, _ = policy.predict(shown, deterministic=True)
    found, _ = loaded.predict(emitted(), deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_normalising_twice_is_refused(trained):
    _, envs, path = trained
    with pytest.raises(ValueError, match="a VecNormalize would do it once more"):
        EquizeroPolicy(equirl.load_agent(path), envs)


@pytest.mark.parametrize("shape", [(3, 1), (1,), (4,), ()])
def test_a_loaded_agent_refuses_observations_of_another_shape(trained, shape):
    with pytest.raises(ValueError, match="observation shape"):
        equirl.load_agent(trained[2]).predict(np.zeros(shape, np.float32))


def test_the_more_specific_file_is_taken(trained, tmp_path):
    shutil.copy(trained[2], tmp_path / "mine.zip")
    for name, mean in (("vecnormalize", 1), ("vecnormalize_mine", 2)):
        array = np.full(3, float(mean))
        Statistics(array, array).save(tmp_path / f"{name}.safetensors")
    assert equirl.load_agent(tmp_path / "mine.zip").statistics.mean.tolist() == [2] * 3


def test_experience_is_what_the_agent_sees():
    envs = pendulum_envs()
    agent = SAC("MlpPolicy", envs, learning_starts=50, seed=0, device="cpu").learn(120)
    replay = equirl.replay_experience(agent)
    assert abs(replay.observations).max() < 10 and replay.observations.std() > 0.3
    lived = equirl.rollout_experience(agent, "Pendulum-v1", 64, seed=0)
    raw = envs.unnormalize_obs(lived.observations)
    np.testing.assert_allclose(np.hypot(raw[:, 0], raw[:, 1]), 1, rtol=1e-3)


def test_temporal_differences_are_those_of_normalised_observations(tmp_path):
    """The values of the agent itself, as it sees observations; live and from a file alike."""
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    agent = DQN("MlpPolicy", envs, learning_starts=50, seed=0, device="cpu").learn(300)
    agent.save(tmp_path / "agent.zip")
    envs.save(str(tmp_path / "vecnormalize.pkl"))
    replay = equirl.replay_experience(agent)
    emitted = dataclasses.replace(
        replay,
        observations=envs.unnormalize_obs(replay.observations),
        next_observations=envs.unnormalize_obs(replay.next_observations),
    )
    opened = equirl.load_agent(tmp_path / "agent.zip", "cpu")
    losses = []
    for model, lived in ((agent, replay), (opened, emitted)):
        policy = LambdaEquitunePolicy(model, "CartPole-v1", normalize=None, sharpness=0)
        losses.append(equirl.fit_temporal_difference(policy, lived, gamma=0.99, steps=5))
        seen = lived.observations[:9].astype(np.float32)
        with torch.no_grad():
            plain = agent.q_net(torch.from_numpy(replay.observations[:9])).numpy()
            aligned = equituned(policy, None).aligned(policy.inputs(policy.obs_to_tensor(seen)[0]))
        np.testing.assert_allclose(aligned[0], plain, rtol=1e-3, atol=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_was_stacked_after_it_was_normalised_is_refused():
    envs = VecFrameStack(VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")])), 2)
    agent = DQN("MlpPolicy", envs, buffer_size=1, device="cpu")
    one = equirl.symmetry_of("CartPole-v1")
    two = equirl.Symmetry(
        type(one.observation).from_generators(one.group, [-np.eye(8)]), one.action
    )
    with pytest.raises(ValueError, match=r"shape \(8,\), and its statistics are of \(4,\)"):
        EquizeroPolicy(agent, two)


def test_a_plain_format_without_pickles(trained, tmp_path):
    *_, path = trained
    statistics = Statistics.load(path.with_name("agent.vecnormalize.pkl"))
    statistics.save(tmp_path / "statistics.safetensors")
    path.with_name("agent.vecnormalize.pkl").unlink()
    opened = equirl.load_agent(path, statistics=tmp_path / "statistics.safetensors")
    np.testing.assert_array_equal(opened.statistics.variance, statistics.variance)
    assert (opened.statistics.clip, opened.statistics.epsilon) == (2.0, 1e-8)


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.parametrize("content", [Planted(), {"obs_rms": Planted()}, 3, print])
def test_a_planted_pickle_creates_no_file(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="refused|cannot be read|no VecNormalize"):
        Statistics.load(tmp_path / "vecnormalize.pkl")
    assert [file.name for file in tmp_path.iterdir()] == ["vecnormalize.pkl"]


def test_what_does_not_fit_is_refused(trained, tmp_path):
    *_, path = trained
    other = Statistics(np.zeros(4), np.ones(4))
    with pytest.raises(ValueError, match=r"shape \(3,\); the statistics are of \(4,\)"):
        equirl.load_agent(path, statistics=other)
    with pytest.raises(ValueError, match="one shape"):
        Statistics(np.zeros(4), np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        Statistics(np.zeros(1), np.array([np.nan]))
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        Statistics.load(tmp_path / "missing.pkl")
    envs = pendulum_envs(norm_obs=False)
    envs.save(str(tmp_path / "rewards.pkl"))
    assert Statistics.load(tmp_path / "rewards.pkl") is None


class Car(gym.Env):
    """A place and a velocity in the plane."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.append(self.np_random.uniform(-1, 1, 2), [0, 0])
        return self.state.astype(np.float32), {}

    def step(self, action):
        self.state[2:] = 0.8 * self.state[2:] + 0.1 * action
        self.state[:2] += self.state[2:]
        return self.state.astype(np.float32), 0.0, False, bool(self.np_random.random() < 0.1), {}


def test_what_rounding_leaves_of_0_is_0():
    """Else its signs would tell the views apart, and familiarity would learn them."""
    envs = VecNormalize(DummyVecEnv([Car]))
    agent = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, seed=0, device="cpu").learn(256)
    envs.training = False
    turn = np.array([[0, -1], [1, 0]])
    group = cyclic(4)
    symmetry = Symmetry(
        Matrix.from_generators(group, [np.kron(np.eye(2), turn)]),
        Matrix.from_generators(group, [turn]),
    )
    still = np.stack([Car().reset(seed=i)[0] for i in range(200)])
    policy = LambdaEquitunePolicy(agent, symmetry)
    equirl.fit_familiarity(policy, envs.normalize_obs(still), steps=100)
    actions, _ = policy.predict(envs.normalize_obs(still), deterministic=True)
    turned = envs.normalize_obs(symmetry.act_on_observations(1, still))
    moved, _ = policy.predict(turned, deterministic=True)
    np.testing.assert_allclose(moved, symmetry.act_on_actions(1, actions), atol=1e-5)
