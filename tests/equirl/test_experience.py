import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import save_file
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

import equirl
from equirl import EquizeroPolicy, Experience, replay_experience, rollout_experience

PARTS = [field.name for field in dataclasses.fields(Experience)]


def agent_with_buffer(size, added, n_envs=1):
    """An agent whose replay buffer was given the observations 0, 1, 2, ...

    Environment j adds j / 10 to them; the next observation of i is i + 1, the reward i + 0.5.
    """
    envs = DummyVecEnv([lambda: gym.make("CartPole-v1")] * n_envs)
    agent = DQN("MlpPolicy", envs, buffer_size=size * n_envs, seed=0, device="cpu")
    for i in range(added):
        observations = np.full((n_envs, 4), i) + np.arange(n_envs)[:, None] / 10
        agent.replay_buffer.add(
            observations,
            observations + 1,
            np.full((n_envs, 1), i % 2),
            np.full(n_envs, i + 0.5),
            np.zeros(n_envs),
            [{}] * n_envs,
        )
    return agent


@pytest.mark.parametrize(
    ("size", "added", "limit", "expected"),
    [
        (10, 4, 100, [0, 1, 2, 3]),
        (10, 4, 2, [2, 3]),
        (10, 4, 1, [3]),
        (10, 1, 100, [0]),
        (10, 10, 100, list(range(10))),  # just full: the next would overwrite 0
        (10, 13, 100, list(range(3, 13))),
        (10, 13, 4, [9, 10, 11, 12]),
        (10, 20, 3, [17, 18, 19]),
        (10, 25, 100, list(range(15, 25))),
    ],
)
def test_replay_is_the_last_transitions_oldest_first(size, added, limit, expected):
    experience = replay_experience(agent_with_buffer(size, added), limit)
    assert len(experience) == len(expected)
    assert experience.observations.shape == experience.next_observations.shape
    assert experience.observations.shape == (len(expected), 4)
    assert experience.observations[:, 0].tolist() == expected
    assert experience.next_observations[:, 3].tolist() == [i + 1 for i in expected]
    assert experience.rewards.tolist() == [i + 0.5 for i in expected]
    assert experience.actions.tolist() == [i % 2 for i in expected]
    assert not experience.terminated.any()
    assert experience.ended.tolist() == [False] * (len(expected) - 1) + [True]


def test_the_types_of_a_replay():
    experience = replay_experience(agent_with_buffer(10, 4))
    assert experience.observations.dtype == experience.rewards.dtype == np.float32
    assert np.issubdtype(experience.actions.dtype, np.integer)
    assert experience.terminated.dtype == experience.ended.dtype == bool


def test_replay_of_several_environments_is_that_of_each_in_turn():
    experience = replay_experience(agent_with_buffer(10, 12, n_envs=2))
    assert experience.observations.shape == (20, 4)
    expected = [*np.arange(2, 12), *np.arange(2.1, 12)]
    np.testing.assert_allclose(experience.observations[:, 0], expected, rtol=1e-6)
    assert np.flatnonzero(experience.ended).tolist() == [9, 19]


@pytest.mark.parametrize("limit", [5, 6])
def test_replay_limit_counts_the_transitions_of_all_environments(limit):
    experience = replay_experience(agent_with_buffer(10, 12, n_envs=2), limit)
    expected = [9, 10, 11, 9.1, 10.1, 11.1][-limit:]
    np.testing.assert_allclose(experience.observations[:, 0], expected, rtol=1e-6)
    assert np.flatnonzero(experience.ended).tolist() == [limit - 4, limit - 1]


class Told(gym.Wrapper):
    """Keeps the actions that it was told."""

    def __init__(self, env):
        super().__init__(env)
        self.actions = []

    def step(self, action):
        self.actions.append(action)
        return super().step(action)


def test_actions_of_a_replay_are_those_of_the_environment():
    """Stable-Baselines3 keeps continuous ones scaled to -1..1."""
    env = Told(gym.make("Pendulum-v1"))
    agent = SAC("MlpPolicy", env, learning_starts=100, buffer_size=50, seed=0, device="cpu")
    agent.learn(20)
    experience = replay_experience(agent, 15)
    assert experience.actions.shape == (15, 1) and experience.actions.dtype == np.float32
    np.testing.assert_allclose(experience.actions, env.actions[5:], rtol=1e-6)
    assert np.abs(experience.actions).max() > 1


def test_what_cannot_be_read_from_a_replay_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        replay_experience(agent_with_buffer(10, 4), 0)
    with pytest.raises(TypeError, match="PPO has no replay buffer; use rollout_experience"):
        replay_experience(PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu"))
    agent = agent_with_buffer(10, 4)
    agent.replay_buffer.optimize_memory_usage = True
    with pytest.raises(ValueError, match="keeps no next observations; use rollout_experience"):
        replay_experience(agent)


@pytest.mark.parametrize("numbers", [{"steps": 0}, {"n_envs": 0}])
def test_rollouts_of_nothing_are_refused(numbers):
    with pytest.raises(ValueError, match="steps and n_envs are at least 1"):
        rollout_experience(Right(), "CartPole-v1", seed=0, **numbers)


def test_replay_is_a_copy():
    agent = agent_with_buffer(10, 4)
    for name in PARTS:
        getattr(replay_experience(agent), name)[:] = 0
    assert replay_experience(agent).observations[:, 0].tolist() == [0, 1, 2, 3]
    assert replay_experience(agent).rewards.tolist() == [0.5, 1.5, 2.5, 3.5]


def test_an_empty_buffer_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="empty.*rollout_experience"):
        replay_experience(agent_with_buffer(10, 0))


def test_the_buffer_of_a_loaded_agent_is_empty(tmp_path):
    agent_with_buffer(10, 4).save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="empty"):
        replay_experience(equirl.load_agent(tmp_path / "agent.zip"))


class Counting(gym.Env):
    """Shows (episode, step); episodes last 3 steps and terminate if even, are truncated if odd."""

    observation_space = gym.spaces.Box(0, 1000, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, first=-1):
        self.episode = first
        self.step_ = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.step_ = self.episode + 1, 0
        return self._show(), {}

    def step(self, action):
        self.step_ += 1
        over = self.step_ == 3
        even = self.episode % 2 == 0
        return self._show(), float(self.step_), over and even, over and not even, {}

    def _show(self):
        return np.array([self.episode, self.step_], np.float32)


def counted(observations):
    """Observations of Counting as pairs (episode, step)."""
    return [(int(episode), int(step)) for episode, step in observations]


def trained_on_counting(steps, buffer_size=100, n_envs=1):
    envs = DummyVecEnv([Counting] * n_envs)
    agent = DQN(
        "MlpPolicy",
        envs,
        buffer_size=buffer_size,
        learning_starts=1000,
        train_freq=1,
        device="cpu",
    )
    for more in steps:
        agent.learn(more, reset_num_timesteps=False)
        agent.set_env(envs, force_reset=True)
    return agent


def test_episodes_that_terminate_or_are_truncated_in_a_replay():
    experience = replay_experience(trained_on_counting([8]))
    assert counted(experience.observations) == [
        *[(0, 0), (0, 1), (0, 2)],
        *[(1, 0), (1, 1), (1, 2)],
        *[(2, 0), (2, 1)],
    ]
    assert counted(experience.next_observations) == [
        *[(0, 1), (0, 2), (0, 3)],
        *[(1, 1), (1, 2), (1, 3)],
        *[(2, 1), (2, 2)],
    ]
    assert experience.rewards.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert np.flatnonzero(experience.terminated).tolist() == [2]
    assert np.flatnonzero(experience.ended).tolist() == [2, 5, 7]


def test_a_training_that_resets_in_mid_episode():
    experience = replay_experience(trained_on_counting([2, 4]))
    assert counted(experience.observations) == [
        *[(0, 0), (0, 1)],
        *[(1, 0), (1, 1), (1, 2)],
        *[(2, 0)],
    ]
    assert not experience.terminated.any()
    assert np.flatnonzero(experience.ended).tolist() == [1, 4, 5]


@pytest.mark.parametrize(("limit", "ends"), [(100, [1, 4]), (4, [0, 3]), (3, [2])])
def test_the_ends_of_a_buffer_that_was_overwritten(limit, ends):
    """Five are kept of the ten: (2, 1), (2, 2) | (3, 0), (3, 1), (3, 2) ended by truncation."""
    agent = trained_on_counting([12], buffer_size=5)
    assert agent.replay_buffer.full and agent.replay_buffer.pos == 2
    experience = replay_experience(agent, limit)
    expected = [(2, 1), (2, 2), (3, 0), (3, 1), (3, 2)][-limit:]
    assert counted(experience.observations) == expected
    assert np.flatnonzero(experience.ended).tolist() == ends
    assert experience.terminated.tolist() == [row == (2, 2) for row in expected]


def test_the_ends_of_several_environments():
    experience = replay_experience(trained_on_counting([8], n_envs=2))
    assert counted(experience.observations) == 2 * [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert np.flatnonzero(experience.terminated).tolist() == [2, 6]
    assert np.flatnonzero(experience.ended).tolist() == [2, 3, 6, 7]


@pytest.fixture
def counting_id():
    gym.register("test/Counting-v0", Counting)
    return "test/Counting-v0"


class Right:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert deterministic
        return np.ones(len(observation), int), None


def test_episodes_that_terminate_or_are_truncated_in_a_rollout(counting_id):
    experience = rollout_experience(Right(), counting_id, 16, seed=0, n_envs=2)
    # stable_baselines3 resets each environment once more than it plays
    first = int(experience.observations[0, 0])
    one = [(first + i // 3, i % 3) for i in range(8)]
    assert counted(experience.observations) == 2 * one
    assert counted(experience.next_observations) == 2 * [(e, s + 1) for e, s in one]
    over = [s == 2 for _, s in one]
    even = [e % 2 == 0 for e, _ in one]
    assert experience.rewards.tolist() == 2 * [s + 1 for _, s in one]
    assert experience.terminated.tolist() == 2 * [o and e for o, e in zip(over, even, strict=True)]
    assert experience.ended.tolist() == 2 * [*over[:-1], True]
    assert (experience.actions == 1).all()


def test_a_time_limit_does_not_terminate():
    gym.register("test/Short-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=5)
    experience = rollout_experience(Right(), "test/Short-v0", 20, seed=0, n_envs=2)
    assert np.flatnonzero(experience.ended).tolist() == [4, 9, 14, 19]
    assert not experience.terminated.any()
    assert not (experience.next_observations[4] == experience.observations[5]).any()


@pytest.mark.parametrize(("steps", "n_envs", "count"), [(20, 8, 24), (5, 3, 6), (4, 4, 4)])
def test_rollout_has_at_least_as_many_transitions_as_asked(steps, n_envs, count):
    agent = agent_with_buffer(1, 0)
    experience = rollout_experience(agent, "CartPole-v1", steps, seed=0, n_envs=n_envs)
    assert len(experience) == count
    assert experience.observations.shape == (count, 4)
    assert experience.observations.dtype == np.float32
    assert experience.terminated.dtype == experience.ended.dtype == bool


def test_rollout_is_reproducible():
    agent = agent_with_buffer(1, 0)
    agent.exploration_rate = 1.0  # greedy all the same
    first, again, other = (
        rollout_experience(agent, "CartPole-v1", 60, seed=seed) for seed in (3, 3, 4)
    )
    for name in PARTS:
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.observations != other.observations).any()


def test_rollout_follows_the_agent():
    experience = rollout_experience(Right(), "CartPole-v1", 9, seed=3, n_envs=1)
    env = gym.make("CartPole-v1")
    expected = [env.reset(seed=3)[0]] + [env.step(1)[0] for _ in range(9)]
    assert (experience.observations == expected[:9]).all()
    assert (experience.next_observations == expected[1:]).all()


def test_within_an_episode_rows_follow_each_other():
    experience = rollout_experience(agent_with_buffer(1, 0), "CartPole-v1", 150, seed=0, n_envs=3)
    follows = (experience.next_observations[:-1] == experience.observations[1:]).all(axis=1)
    assert (follows == ~experience.ended[:-1]).all()
    assert 3 < experience.terminated.sum() <= experience.ended.sum()


def test_rollout_passes_keywords_to_the_environment(cases):
    case = cases["gridworld-image"]
    experience = rollout_experience(
        case.agent(), case.env_id, 40, seed=0, env_kwargs=case.env_kwargs
    )
    assert experience.observations.shape == experience.next_observations.shape
    assert experience.observations.shape == (40, *case.shape)
    assert (experience.observations.sum((1, 2, 3)) == 2).all()


@pytest.mark.parametrize("make", ["replay", "rollout"])
def test_a_saved_experience_is_the_same_byte_for_byte(tmp_path, make):
    experience = (
        replay_experience(agent_with_buffer(10, 13))
        if make == "replay"
        else rollout_experience(Right(), "CartPole-v1", 30, seed=0)
    )
    experience.save(tmp_path / "experience.safetensors")
    again = Experience.load(tmp_path / "experience.safetensors")
    for name in PARTS:
        ours, theirs = getattr(again, name), getattr(experience, name)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
    again.save(tmp_path / "again.safetensors")
    first, second = (tmp_path / f"{n}.safetensors" for n in ("experience", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_part_of_an_experience_is_saved_too(tmp_path):
    replay_experience(agent_with_buffer(10, 13)).newest(3).save(tmp_path / "part")
    assert Experience.load(tmp_path / "part").observations[:, 0].tolist() == [10, 11, 12]


def test_files_that_hold_no_experience(tmp_path, cases):
    with pytest.raises(FileNotFoundError, match="none"):
        Experience.load(tmp_path / "none")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Experience.load(tmp_path / "text")
    save_file({"observations": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not written by equirl"):
        Experience.load(tmp_path / "foreign")
    case = cases["cartpole"]
    EquizeroPolicy(case.agent(), case.symmetry()).save(tmp_path / "policy")
    with pytest.raises(ValueError, match="policy holds no experience, but agent"):
        Experience.load(tmp_path / "policy")
    replay_experience(agent_with_buffer(10, 4)).save(tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Experience.load(tmp_path / "half")


def test_parts_of_unequal_length_are_refused():
    parts = {name: getattr(replay_experience(agent_with_buffer(10, 4)), name) for name in PARTS}
    with pytest.raises(ValueError, match="needs all its parts.*'rewards': 3"):
        Experience(**parts | {"rewards": parts["rewards"][:3]})


@pytest.mark.parametrize(("limit", "expected"), [(2, [2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_the_newest(limit, expected):
    newest = replay_experience(agent_with_buffer(10, 4)).newest(limit)
    assert len(newest) == len(expected)
    assert newest.observations[:, 0].tolist() == expected
    assert newest.rewards.tolist() == [i + 0.5 for i in expected]
    assert newest.ended.tolist() == [False] * (len(expected) - 1) + [True]


def test_the_newest_none():
    assert len(replay_experience(agent_with_buffer(10, 4)).newest(0)) == 0
