"""Agents that see dicts: goal-conditioned ones, also under VecNormalize and from files."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import equirl
from equicore import Matrix, Permutation, Tree, Trivial, cyclic
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy, Symmetry
from equirl.agents.evaluation import RandomActions
from equirl.experience import Experience
from equirl.normalization import Statistics

TURNS = cyclic(4)
QUARTER = np.array([[0, -1], [1, 0]])
PLANE = Matrix.from_generators(TURNS, [QUARTER])
PLACES = Tree(
    {
        "achieved_goal": PLANE,
        "desired_goal": PLANE,
        "observation": Matrix.from_generators(TURNS, [np.kron(np.eye(2), QUARTER)]),
    }
)
FORCES = Symmetry(PLACES, PLANE)
MOVES = Symmetry(PLACES, Permutation.from_generators(TURNS, [[1, 2, 3, 0]]))
STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


class Reach(gym.Env):
    """A point is pushed towards a goal in the plane; turned, it is the same task."""

    def __init__(self, discrete=False):
        self.observation_space = spaces.Dict(
            {
                "achieved_goal": spaces.Box(-np.inf, np.inf, (2,)),
                "desired_goal": spaces.Box(-np.inf, np.inf, (2,)),
                "observation": spaces.Box(-np.inf, np.inf, (4,)),
            }
        )
        self.action_space = spaces.Discrete(4) if discrete else spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed, self.goal = self.np_random.normal(size=(3, 2))
        self.left = 8
        return self.seen(), {}

    def step(self, action):
        push = STEPS[action] if np.ndim(action) == 0 else np.asarray(action)
        self.speed = 0.9 * self.speed + 0.1 * push
        self.place = self.place + 0.1 * self.speed
        self.left -= 1
        off = float(np.sum((self.place - self.goal) ** 2))
        return self.seen(), -off, False, self.left == 0, {}

    def seen(self):
        parts = self.place, self.goal, np.concatenate([self.place, self.speed])
        return dict(zip(self.observation_space, (p.astype(np.float32) for p in parts), strict=True))


def samples(count=6):
    generator = np.random.default_rng(0)
    sizes = {"achieved_goal": 2, "desired_goal": 2, "observation": 4}
    return {n: generator.normal(size=(count, s)).astype(np.float32) for n, s in sizes.items()}


def sac(env=None):
    kwargs = {"net_arch": [16]}
    return SAC("MultiInputPolicy", env or Reach(), seed=0, buffer_size=100, learning_starts=10,
               batch_size=8, policy_kwargs=kwargs, device="cpu")  # fmt: skip


def ppo(env=None):
    return PPO("MultiInputPolicy", env or Reach(), n_steps=32, batch_size=16, seed=0, device="cpu")


def dqn():
    return DQN("MultiInputPolicy", Reach(discrete=True), seed=0, buffer_size=100, device="cpu")


@pytest.mark.filterwarnings("ignore:equitune averages actions")
@pytest.mark.parametrize("kind", [EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy])
@pytest.mark.parametrize(("make", "symmetry"), [(sac, FORCES), (ppo, FORCES), (dqn, MOVES)])
def test_policies_are_equivariant(make, symmetry, kind):
    policy = kind(make(), symmetry)
    if kind is LambdaEquitunePolicy:
        with torch.no_grad():
            policy.weight.network[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    seen = samples()
    plain, _ = policy.predict(seen, deterministic=True)
    for g in range(4):
        moved, _ = policy.predict(symmetry.act_on_observations(g, seen), deterministic=True)
        wanted = symmetry.act_on_actions(g, plain)
        np.testing.assert_allclose(moved, wanted, atol=1e-5)
    one, _ = policy.predict({name: rows[0] for name, rows in seen.items()}, deterministic=True)
    np.testing.assert_allclose(one, plain[0], atol=1e-6)
    assert "Dict(achieved_goal, desired_goal, observation)" in repr(policy)


def normalized():
    env = VecNormalize(DummyVecEnv([Reach, Reach]), norm_obs_keys=["observation", "desired_goal"])
    agent = ppo(env)
    agent.learn(128)
    env.training = False
    return agent, env


def test_statistics_of_dicts_are_conjugated():
    agent, env = normalized()
    policy = EquizeroPolicy(agent, FORCES)
    seen = samples()
    shown = [env.normalize_obs(FORCES.act_on_observations(g, seen)) for g in range(4)]
    actions = [policy.predict(one, deterministic=True)[0] for one in shown]
    for g in range(4):
        np.testing.assert_allclose(actions[g], FORCES.act_on_actions(g, actions[0]), atol=1e-4)


def test_an_agent_from_a_file_has_them_beside_it(tmp_path):
    agent, env = normalized()
    agent.save(tmp_path / "agent.zip")
    env.save(tmp_path / "vecnormalize.pkl")
    loaded = equirl.load_agent(tmp_path / "agent.zip", "cpu")
    assert loaded.observation_space == agent.observation_space
    seen = samples()
    wanted, _ = agent.predict(env.normalize_obs(seen), deterministic=True)
    got, _ = loaded.predict(seen, deterministic=True)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    live, kept = EquizeroPolicy(agent, FORCES), EquizeroPolicy(loaded, FORCES)
    wanted, _ = live.predict(env.normalize_obs(seen), deterministic=True)
    got, _ = kept.predict(seen, deterministic=True)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    statistics = Statistics.load(tmp_path / "vecnormalize.pkl")
    statistics.save(tmp_path / "new.safetensors")
    again = Statistics.load(tmp_path / "new.safetensors")
    assert again.mean.keys() == {"observation", "desired_goal"}
    assert all(np.array_equal(again.mean[n], statistics.mean[n]) for n in again.mean)
    kept.save(tmp_path / "policy.safetensors")
    same = EquizeroPolicy.load(tmp_path / "policy.safetensors")
    assert np.array_equal(same.predict(seen, deterministic=True)[0], got)


def test_lambda_learns_from_replayed_and_played_dicts(tmp_path):
    agent = sac()
    agent.learn(80)
    replayed = equirl.replay_experience(agent, 60)
    gym.register("test/Reach-v0", Reach)
    played = equirl.rollout_experience(agent, "test/Reach-v0", 64, seed=0)
    for experience in (replayed, played):
        assert experience.observations["observation"].shape[1:] == (4,)
        np.testing.assert_array_equal(  # within an episode one follows from the other
            experience.next_observations["achieved_goal"][:-1][~experience.ended[:-1]],
            experience.observations["achieved_goal"][1:][~experience.ended[:-1]],
        )
        experience.save(tmp_path / "experience.safetensors")
        again = Experience.load(tmp_path / "experience.safetensors")
        for name, array in experience.observations.items():
            assert np.array_equal(again.observations[name], array)
    both = replayed.and_then(played)
    assert len(both) == 60 + len(played) == len(both.observations["observation"])
    policy = LambdaEquitunePolicy(agent, FORCES)
    equirl.fit_familiarity(policy, both.observations, steps=20)
    assert policy.fitted
    returns = evaluate_policy(policy, Reach(), 2, return_episode_rewards=True, warn=False)[0]
    assert np.isfinite(returns).all()


def test_wrapped_environments_step_as_the_original():
    env = equirl.SymmetryWrapper(Reach(), FORCES, element=1)
    plain = Reach()
    first, _ = env.reset(seed=0)
    original, _ = plain.reset(seed=0)
    batch = {name: part[None] for name, part in original.items()}
    image = FORCES.act_on_observations(1, batch)
    for name in first:
        np.testing.assert_allclose(first[name], image[name][0], atol=1e-6)
    action = np.array([0.5, -0.25], np.float32)
    turned = FORCES.act_on_actions(1, action[None])[0]
    assert env.step(turned)[1] == pytest.approx(plain.step(action)[1])
    envs = equirl.VectorSymmetryWrapper(gym.vector.SyncVectorEnv([Reach, Reach]), FORCES, element=1)
    seen, _ = envs.reset(seed=[0, 1])
    np.testing.assert_allclose(seen["observation"][0], first["observation"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda seen: seen["observation"], "got a ndarray"),
        (lambda seen: {"observation": seen["observation"]}, "have the entries achieved_goal"),
        (lambda seen: {**seen, "observation": seen["observation"] * np.nan}, "NaN in the obs"),
    ],
)
def test_observations_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EquizeroPolicy(sac(), FORCES).predict(change(samples()), deterministic=True)


def test_entries_without_a_representation_are_refused():
    parts = {name: PLACES.by_name()[name] for name in ("achieved_goal", "observation")}
    with pytest.raises(ValueError, match=r"no representation for observation\['desired_goal'\]"):
        EquizeroPolicy(sac(), Symmetry(Tree(parts), PLANE))
    still = {**parts, "desired_goal": Trivial(TURNS)}
    EquizeroPolicy(sac(), Symmetry(Tree(still), PLANE))  # which is another symmetry, not a mistake


def test_statistics_of_other_entries_are_refused(tmp_path):
    agent, env = normalized()
    agent.save(tmp_path / "agent.zip")
    wrong = Statistics({"elbow": np.zeros(2)}, {"elbow": np.ones(2)})
    with pytest.raises(ValueError, match="sees observations of shape"):
        equirl.load_agent(tmp_path / "agent.zip", statistics=wrong)
    env.save(tmp_path / "vecnormalize.pkl")
    assert pickle.loads((tmp_path / "vecnormalize.pkl").read_bytes()).norm_obs_keys


def test_exploring_gives_each_observation_an_action():
    agent = dqn()
    agent.exploration_rate = 1.0
    actions, _ = EquizeroPolicy(agent, MOVES).predict(samples(7))
    assert actions.shape == (7,)


def test_random_actions_are_as_many_as_observations():
    assert RandomActions(spaces.Discrete(4), 0).predict(samples(5))[0].shape == (5,)


class Turned(Reach):
    """Builds its dicts in another order than that of its space."""

    def seen(self):
        parts = super().seen()
        return {name: parts[name] for name in ("observation", "desired_goal", "achieved_goal")}


def test_entries_are_known_by_name_and_not_by_place():
    agent = ppo()
    gym.register("test/Reach-v0", Reach)
    gym.register("test/Turned-v0", Turned)
    straight, turned = (
        equirl.rollout_experience(agent, name, 128, seed=0)
        for name in ("test/Reach-v0", "test/Turned-v0")
    )
    assert straight.ended.sum() > 8  # the last of an episode is told beside the others
    for part in ("observations", "next_observations"):
        for name, array in getattr(straight, part).items():
            np.testing.assert_array_equal(getattr(turned, part)[name], array)
    envs = [
        gym.make_vec(name, 3, vectorization_mode="sync")
        for name in ("test/Reach-v0", "test/Turned-v0")
    ]
    wrapped = [equirl.VectorSymmetryWrapper(env, FORCES, 1) for env in envs]
    (one, _), (other, _) = (env.reset(seed=0) for env in wrapped)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
