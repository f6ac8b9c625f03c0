"""Agents of pictures as Gymnasium emits them, rows x columns x channels."""

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from stable_baselines3 import DQN

import equirl
from equicore import Image, Permutation, cyclic, image_flips, image_rotations
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy, Symmetry
from equirl.agents import compare, train
from equirl.agents.arguments import Compare, Train
from equirl.agents.policies import Subject
from equirl.agents.saved import find_agents


class Corridor(gym.Env):
    """A bright square in a picture with a margin; 0 and 1 move it left and right to an end."""

    def __init__(self, rows=36, columns=40):
        self.observation_space = gym.spaces.Box(0, 255, (rows, columns, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, self.observation_space.shape[1] - 1))
        self.height = int(self.np_random.integers(self.observation_space.shape[0]))
        return self.picture(), {}

    def picture(self):
        image = np.zeros(self.observation_space.shape, np.uint8)
        image[:, self.place] = (20, 100, 200)  # not alike in its channels
        image[self.height] += 40  # nor in its rows
        return image

    def step(self, action):
        self.place += 2 * int(action) - 1
        over = self.place in (0, self.observation_space.shape[1] - 1)
        return self.picture(), -1.0, over, False, {}


def mirror(spec=None):
    flip = cyclic(2)
    return Symmetry(image_flips(axes=(-3, -2)), Permutation.from_generators(flip, [[1, 0]]))


YAML = """
test/Corridor-v0:
  n_timesteps: 60
  policy: {policy}
  buffer_size: 60
  learning_starts: 20
  batch_size: 8
"""


@pytest.fixture
def corridor():
    def register(**kwargs):
        gym.register("test/Corridor-v0", Corridor, max_episode_steps=30, kwargs=kwargs)
        equirl.register_symmetry("test/Corridor-v0", mirror)
        return gym.make("test/Corridor-v0")

    return register


@pytest.mark.parametrize(
    ("policy", "kwargs"),
    [("CnnPolicy", {}), ("MlpPolicy", {"rows": 7, "columns": 7})],  # MiniGrid's pictures are 7x7x3
)
def test_an_agent_of_pictures_is_trained_and_compared(corridor, fits, tmp_path, policy, kwargs):
    """One symmetry, of what the environment emits, serves the wrapper and the policies."""
    env = corridor(**kwargs)
    (tmp_path / "dqn.yaml").write_text(YAML.format(policy=policy))
    arguments = Train(
        "test/Corridor-v0",
        hyperparameters=tmp_path / "dqn.yaml",
        output=tmp_path / "runs",
        checkpoints=1,
        eval_episodes=1,
        experience=40,
        device="cpu",
        jobs=1,
    )
    train.main(arguments)
    folder = tmp_path / "runs" / "dqn" / "test-Corridor-v0_0"
    compared = Compare((folder,), episodes=5, transitions=40, jobs=1, output=tmp_path / "out")
    compare.main(compared)
    returns = pd.read_csv(tmp_path / "out" / "returns.csv")
    pivot = returns.pivot(index="episode", columns=["policy", "condition"], values="episode_return")
    for name in ("equitune", "equizero", "lambda"):  # which are equivariant
        assert (pivot[name]["original"] == pivot[name]["transformed"]).all()

    (agent,) = find_agents(folder)
    subject = Subject(agent, 40, "cpu")
    pictures, _ = env.reset(seed=3)
    pictures = np.random.default_rng(0).integers(256, size=(30, *pictures.shape), dtype=np.uint8)
    for source in ("replay", "rollouts"):
        policies = [
            EquitunePolicy(subject.model, subject.symmetry),
            EquizeroPolicy(subject.model, env),
            LambdaEquitunePolicy(subject.model, "test/Corridor-v0", subject.familiarity(source)),
        ]
        for policy in policies:
            actions, _ = policy.predict(pictures, deterministic=True)
            moved, _ = policy.predict(pictures[:, :, ::-1].copy(), deterministic=True)
            first, _ = policy.predict(pictures.transpose(0, 3, 1, 2), deterministic=True)
            single, _ = policy.predict(pictures[4], deterministic=True)
            assert (moved == 1 - actions).all() and (first == actions).all()
            assert single == actions[4]
    plain, _ = subject.model.predict(pictures, deterministic=True)
    moved, _ = subject.model.predict(pictures[:, :, ::-1].copy(), deterministic=True)
    assert (moved != 1 - plain).any()


def test_a_policy_of_pictures_is_saved_with_the_symmetry_that_was_declared(corridor, tmp_path):
    agent = DQN("MlpPolicy", corridor(rows=7, columns=9), buffer_size=1, device="cpu")
    policy = EquizeroPolicy(agent, mirror())
    policy.save(tmp_path / "policy")
    loaded = EquizeroPolicy.load(tmp_path / "policy")
    pictures = np.random.default_rng(0).integers(256, size=(20, 7, 9, 3), dtype=np.uint8)
    assert loaded.symmetry.observation.axes == (-3, -2)
    np.testing.assert_array_equal(loaded.action_values(pictures), policy.action_values(pictures))


def test_a_symmetry_of_what_the_agent_sees_is_taken_as_such(corridor):
    agent = DQN("MlpPolicy", corridor(rows=9, columns=9), buffer_size=1, device="cpu")
    actions = Permutation(cyclic(4), [[0, 1], [1, 0]] * 2)
    pictures = np.random.default_rng(0).integers(256, size=(20, 9, 9, 3), dtype=np.uint8)
    values = [
        EquitunePolicy(agent, Symmetry(image_rotations(axes), actions)).action_values(pictures)
        for axes in ((-3, -2), (-2, -1))  # as emitted, and as seen
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Treating image space as channels-last")
@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 9), (3, 5), (5, 4), (9, 2)])
def test_pictures_so_small_that_their_layout_is_not_plain(corridor, tmp_path, rows, columns):
    """Stable-Baselines3 leaves some as they are; the agent's environment tells."""
    agent = DQN("MlpPolicy", corridor(rows=rows, columns=columns), buffer_size=1, device="cpu")
    pictures = np.random.default_rng(0).integers(256, size=(40, rows, columns, 3), dtype=np.uint8)
    policy = EquizeroPolicy(agent, mirror())
    actions, _ = policy.predict(pictures, deterministic=True)
    moved, _ = policy.predict(pictures[:, :, ::-1].copy(), deterministic=True)
    assert (moved == 1 - actions).all()


@pytest.mark.filterwarnings("ignore:Treating image space as channels-last")
def test_pictures_whose_layout_nothing_tells_are_refused(corridor, tmp_path):
    env = corridor(rows=5, columns=3)
    DQN("MlpPolicy", env, buffer_size=1, device="cpu").save(tmp_path / "agent.zip")
    agent = equirl.load_agent(tmp_path / "agent.zip")
    assert agent.observation_space.shape == (3, 5, 3)
    with pytest.raises(ValueError, match=r"may have their channels first or last; .*set_env"):
        EquizeroPolicy(agent, mirror())
    agent.set_env(env)
    EquizeroPolicy(agent, mirror())


def test_pictures_turned_along_their_channels_are_refused(corridor):
    env = corridor()
    flip = Image(cyclic(2), [0, 0], [False, True])  # of the last axis, which fits any shape
    wrong = Symmetry(flip, Permutation.from_generators(cyclic(2), [[1, 0]]))
    with pytest.raises(ValueError, match=r"channels last, .* make it with axes=\(-3, -2\)"):
        equirl.SymmetryWrapper(env, wrong, element=1)
    seen, _ = equirl.SymmetryWrapper(env, element=1).reset(seed=0)
    original, _ = env.reset(seed=0)
    assert (seen == original[:, ::-1]).all() and (seen != original).any()


def test_a_symmetry_that_fits_both_layouts_is_refused(corridor):
    agent = DQN("MlpPolicy", corridor(rows=7, columns=9), buffer_size=1, device="cpu")
    group = cyclic(2)
    still = equirl.Symmetry(
        Image(group, [0, 0], [False, True], axes=(-3, -1)),
        Permutation.from_generators(group, [[1, 0]]),
    )
    with pytest.raises(
        ValueError, match=r"images \(7, 9, 3\) are seen by the agent as \(3, 7, 9\)"
    ):
        EquizeroPolicy(agent, still)
