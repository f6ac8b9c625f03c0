"""Agents and environments between which something stands are recognised and refused."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

import equirl
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy
from equirl.composed import FOLLOWED
from equirl.preprocessing import changes, normalizer_of

KINDS = (EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy)


def cartpole():
    return gym.make("CartPole-v1")


def normalized_cartpole():
    return wrappers.NormalizeObservation(cartpole())


class Shifted(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A wrapper of a user's own."""

    def __init__(self, env):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)

    def observation(self, observation):
        return observation + 1


def vectors(*, norm_obs=True, make=cartpole):
    return VecNormalize(DummyVecEnv([make]), norm_obs=norm_obs)


def dqn(env, **options):
    return DQN("MlpPolicy", env, buffer_size=100, learning_starts=10, device="cpu", **options)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (cartpole, []),
        (lambda: wrappers.RecordEpisodeStatistics(cartpole()), []),
        (lambda: wrappers.FlattenObservation(cartpole()), []),
        (normalized_cartpole, ["NormalizeObservation"]),
        (lambda: wrappers.TimeLimit(normalized_cartpole(), 5), ["NormalizeObservation"]),
        (lambda: wrappers.FrameStackObservation(cartpole(), 2), ["FrameStackObservation"]),
        (lambda: wrappers.TimeAwareObservation(cartpole()), ["TimeAwareObservation"]),
        (
            lambda: wrappers.TransformObservation(cartpole(), lambda x: 2 * x, None),
            ["TransformObservation"],
        ),
        (lambda: Shifted(normalized_cartpole()), ["Shifted", "NormalizeObservation"]),
        (lambda: gym.make_vec("CartPole-v1", 2, "sync", wrappers=[Shifted]), ["Shifted"]),
        (
            lambda: wrappers.vector.NormalizeObservation(gym.make_vec("CartPole-v1", 2)),
            ["NormalizeObservation"],
        ),
        (vectors, ["VecNormalize"]),
        (lambda: VecMonitor(vectors()), ["VecNormalize"]),
        (lambda: vectors(norm_obs=False), []),
        (lambda: VecFrameStack(DummyVecEnv([cartpole]), 2), ["VecFrameStack"]),
        (lambda: DummyVecEnv([normalized_cartpole]), ["NormalizeObservation"]),
    ],
)
def test_what_stands_before_an_environment_is_named(make, expected):
    env = make()
    assert changes(env) == expected
    if set(expected) <= set(FOLLOWED):
        assert equirl.symmetry_of(env).group == equirl.symmetry_of("CartPole-v1").group
    else:
        with pytest.raises(ValueError, match=f"is seen through {', '.join(expected)} here"):
            equirl.symmetry_of(env)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads
def test_environments_of_other_processes_tell_of_normalisation():
    env = SubprocVecEnv([normalized_cartpole])
    agent = dqn(env)
    assert changes(env) == ["NormalizeObservation"]
    with pytest.raises(ValueError, match="observations that NormalizeObservation shifts"):
        EquizeroPolicy(agent, equirl.symmetry_of("CartPole-v1"))
    env.close()
    assert changes(env) == []  # cannot be asked any more
    plain = SubprocVecEnv([CartPoleEnv])  # which has no spec
    assert changes(plain) == []
    EquizeroPolicy(dqn(plain), equirl.symmetry_of("CartPole-v1"))
    assert plain.reset().shape == (1, 4)  # and is as alive as before
    plain.close()
    EquizeroPolicy(dqn(cartpole()), equirl.symmetry_of("CartPole-v1"))


class SubclassOfNormalize(VecNormalize):
    """A user's own."""


def test_subclasses_normalise_too():
    agent = dqn(SubclassOfNormalize(DummyVecEnv([cartpole])))
    assert normalizer_of(agent) == "SubclassOfNormalize"


def test_what_an_id_itself_wraps_belongs_to_it():
    gym.register("test/Shifted-v0", lambda: Shifted(gym.make("CartPole-v1")))
    gym.register(
        "test/Added-v0",
        "gymnasium.envs.classic_control.cartpole:CartPoleEnv",
        additional_wrappers=(Shifted.wrapper_spec(),),
    )
    for name in ("test/Shifted-v0", "test/Added-v0"):
        equirl.register_symmetry(name, "equirl.envs.classic_control:cartpole_symmetry")
        for env in (name, gym.make(name)):
            assert len(equirl.symmetry_of(env).group) == 2
        with pytest.raises(ValueError, match="is seen through DelayObservation here"):
            equirl.symmetry_of(wrappers.DelayObservation(gym.make(name), 2))


def test_statistics_beside_a_file_are_known_to_the_agent(tmp_path):
    dqn(cartpole()).save(tmp_path / "agent.zip")
    (tmp_path / "vec_normalize.pkl").touch()
    with pytest.raises(ValueError, match=r"vec_normalize.pkl cannot be read as statistics"):
        equirl.load_agent(tmp_path / "agent.zip")
    envs = vectors()
    envs.reset()
    envs.save(str(tmp_path / "vec_normalize.pkl"))
    loaded = equirl.load_agent(tmp_path / "agent.zip")
    np.testing.assert_array_equal(loaded.statistics.mean, envs.obs_rms.mean)


def test_an_environment_that_does_not_normalise_hides_nothing(tmp_path):
    agent = PPO("MlpPolicy", vectors(), n_steps=8, batch_size=8, device="cpu").learn(8)
    agent.save(tmp_path / "agent.zip")
    loaded = equirl.load_agent(tmp_path / "agent.zip")
    loaded.set_env(DummyVecEnv([cartpole]))
    for found in (loaded, PPO.load(tmp_path / "agent.zip", env=cartpole())):
        assert normalizer_of(found) == "VecNormalize"


def test_wrappers_that_belong_to_an_id():
    gym.register(
        "test/Normalized-v0",
        "gymnasium.envs.classic_control.cartpole:CartPoleEnv",
        additional_wrappers=(wrappers.NormalizeObservation.wrapper_spec(),),
    )
    equirl.register_symmetry("test/Normalized-v0", "equirl.envs.classic_control:cartpole_symmetry")
    for env in ("test/Normalized-v0", gym.make("test/Normalized-v0")):
        with pytest.raises(ValueError, match="is seen through NormalizeObservation here"):
            equirl.symmetry_of(env)
    agent = dqn(cartpole())
    with pytest.raises(ValueError, match="is seen through NormalizeObservation here"):
        EquizeroPolicy(agent, "test/Normalized-v0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (normalized_cartpole, "NormalizeObservation"),
        (lambda: DummyVecEnv([normalized_cartpole] * 2), "NormalizeObservation"),
    ],
)
def test_an_agent_of_normalised_observations_is_refused(kind, make, name):
    agent = dqn(make())
    assert normalizer_of(agent) == name
    for symmetry in ("CartPole-v1", equirl.symmetry_of("CartPole-v1")):
        with pytest.raises(ValueError, match=f"observations that {name} shifts and scales"):
            kind(agent, symmetry)


def test_normalised_rewards_do_no_harm(tmp_path):
    for kind in (DQN, PPO):
        options = {"n_steps": 8, "batch_size": 8} if kind is PPO else {"buffer_size": 100}
        agent = kind("MlpPolicy", vectors(norm_obs=False), device="cpu", **options).learn(20)
        EquizeroPolicy(agent, "CartPole-v1")
        agent.save(tmp_path / "agent.zip")
        loaded = equirl.load_agent(tmp_path / "agent.zip")
        if kind is PPO:  # its file does not tell what was normalised
            with pytest.raises(ValueError, match="or, if it normalised rewards only"):
                EquizeroPolicy(loaded, "CartPole-v1")
        loaded.set_env(vectors(norm_obs=False))
        EquizeroPolicy(loaded, "CartPole-v1")


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_a_saved_on_policy_agent_tells_that_it_was_normalised(tmp_path, kind):
    options = {"batch_size": 8} if kind is PPO else {}
    agent = kind("MlpPolicy", vectors(), n_steps=8, device="cpu", **options).learn(20)
    agent.save(tmp_path / "agent.zip")
    for found in (
        equirl.load_agent(tmp_path / "agent.zip", "cpu"),
        kind.load(tmp_path / "agent.zip", device="cpu"),
    ):
        assert normalizer_of(found) == "VecNormalize"
        with pytest.raises(ValueError, match="observations that VecNormalize shifts and scales"):
            EquizeroPolicy(found, "CartPole-v1")


def test_the_registered_symmetry_is_not_that_of_stacked_frames():
    agent = dqn(VecFrameStack(DummyVecEnv([cartpole]), 2))
    with pytest.raises(ValueError, match="sees its environment through VecFrameStack"):
        EquizeroPolicy(agent, "CartPole-v1")
    one = equirl.symmetry_of("CartPole-v1")
    two = equirl.Symmetry(
        type(one.observation).from_generators(one.group, [-np.eye(8)]), one.action
    )
    policy = EquizeroPolicy(agent, two)  # who gives it, knows what the agent sees
    frames = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    here, mirrored = (policy.predict(x, deterministic=True)[0] for x in (frames, -frames))
    assert (here == 1 - mirrored).all()


def test_real_agents_of_normalised_observations_are_recognised(shared_agents):
    names = ("a2c-Pendulum-v1", "a2c-LunarLanderContinuous-v2", "ppo-BipedalWalker-v3")
    for name in names:
        agent = equirl.load_agent(shared_agents / f"{name}.zip", "cpu")
        assert agent.statistics is not None
    for name in ("ppo-CartPole-v1", "ppo-LunarLander-v2", "dqn-CartPole-v1", "sac-Pendulum-v1"):
        assert normalizer_of(equirl.load_agent(shared_agents / f"{name}.zip", "cpu")) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads
def test_environments_of_other_processes_tell_of_their_wrappers():
    envs = SubprocVecEnv([lambda: Shifted(cartpole())])
    try:
        assert changes(envs) == ["Shifted"]
        with pytest.raises(ValueError, match="is seen through Shifted"):
            equirl.symmetry_of(envs)
    finally:
        envs.close()
    plain = SubprocVecEnv([lambda: Monitor(cartpole())])
    try:
        assert changes(plain) == []
        assert equirl.symmetry_of(plain).group == equirl.symmetry_of("CartPole-v1").group
    finally:
        plain.close()
