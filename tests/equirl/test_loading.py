import base64
import copy
import io
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib as contrib
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

import equirl
from equirl import load_agent


class Spaces(gym.Env):
    """An environment that has nothing but spaces."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def small_images(**kwargs):
    return FakeImageEnv(screen_height=36, screen_width=40, n_channels=3, **kwargs)


ENVIRONMENTS = {
    "cartpole": (lambda: gym.make("CartPole-v1"), "MlpPolicy"),
    "acrobot": (lambda: gym.make("Acrobot-v1"), "MlpPolicy"),
    "gridworld": (lambda: gym.make("equirl/Gridworld-v0"), "MlpPolicy"),
    "gridworld-image": (
        lambda: gym.make("equirl/Gridworld-v0", observation="image"),
        "MlpPolicy",
    ),
    "pixels": (small_images, "CnnPolicy"),
    "pixels-channel-first": (lambda: small_images(channel_first=True), "CnnPolicy"),
    "pixels-flat": (small_images, "MlpPolicy"),
    "many": (lambda: Spaces(spaces.Box(-2, 3, (5000,), np.float32)), "MlpPolicy"),
    "many-unequal": (
        lambda: Spaces(spaces.Box(-1, np.arange(1, 41, dtype=np.float32))),
        "MlpPolicy",
    ),
    "matrix": (lambda: Spaces(spaces.Box(-1e-9, 1e20, (3, 4), np.float64)), "MlpPolicy"),
    "start": (
        lambda: Spaces(spaces.Box(-1, 1, (2,)), spaces.Discrete(3, start=0)),
        "MlpPolicy",
    ),
}


def random_observations(agent, count=50):
    space = agent.observation_space
    space.seed(0)
    if space.dtype == np.uint8:
        return np.stack([space.sample() for _ in range(count)])
    shape = (count, *space.shape)
    return np.random.default_rng(0).normal(size=shape).astype(space.dtype)


def saved(folder, **kwargs):
    """An agent of CartPole and its archive."""
    arguments = {"buffer_size": 1, "seed": 0, "policy_kwargs": {"net_arch": [16]}} | kwargs
    agent = DQN("MlpPolicy", gym.make("CartPole-v1"), **arguments)
    agent.save(folder / "agent.zip")
    return agent, folder / "agent.zip"


def rewritten(path, compression=zipfile.ZIP_STORED, **members):
    """The archive with members replaced, or removed where None."""
    names = {"policy": "policy.pth", "data": "data"}
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        contents[names[name]] = content
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return path


def with_data(path, **fields):
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    data.update(fields)
    return rewritten(path, data=json.dumps(data))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_agents_of_today_are_the_same_again(name, tmp_path):
    make, kind = ENVIRONMENTS[name]
    agent = DQN(kind, make(), buffer_size=1, seed=0)
    agent.save(tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent.zip")
    assert loaded.observation_space == agent.observation_space
    assert loaded.action_space == agent.action_space
    observations = random_observations(agent)
    actions, _ = loaded.predict(observations, deterministic=True)
    assert (actions == agent.predict(observations, deterministic=True)[0]).all()
    for key, tensor in agent.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[key], tensor)


def test_agents_that_learned_with_hindsight(tmp_path):
    """Their replay buffer wants an environment, and an opened agent has none."""
    env = BitFlippingEnv(n_bits=3, continuous=False)
    kwargs = {"n_sampled_goal": 2}
    agent = DQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs=kwargs,
        buffer_size=10, device="cpu",
    )  # fmt: skip
    agent.save(tmp_path / "goals.zip")
    loaded = load_agent(tmp_path / "goals.zip")
    observation, _ = env.reset(seed=0)
    assert loaded.predict(observation, deterministic=True) == agent.predict(
        observation, deterministic=True
    )


@pytest.mark.parametrize(
    ("net_arch", "activation"),
    [([], torch.nn.ReLU), ([7], torch.nn.Tanh), ([16, 8, 4], torch.nn.ELU)],
)
def test_layers_and_activation_are_those_of_the_file(net_arch, activation, tmp_path):
    policy_kwargs = {"net_arch": net_arch, "activation_fn": activation}
    agent, path = saved(tmp_path, policy_kwargs=policy_kwargs)
    loaded = load_agent(path)
    assert [type(layer) for layer in loaded.q_net.q_net] == [
        type(layer) for layer in agent.q_net.q_net
    ]
    observations = torch.from_numpy(random_observations(agent))
    assert torch.equal(loaded.q_net(observations), agent.q_net(observations))


def test_pixels_that_were_not_scaled_are_not(tmp_path):
    policy_kwargs = {"normalize_images": False, "net_arch": [8]}
    agent = DQN("MlpPolicy", small_images(), buffer_size=1, policy_kwargs=policy_kwargs)
    agent.save(tmp_path / "agent.zip")
    observations = torch.from_numpy(random_observations(agent, 5))
    expected = agent.q_net(observations)
    torch.testing.assert_close(load_agent(tmp_path / "agent.zip").q_net(observations), expected)


def test_numbers_of_the_file_are_kept(tmp_path):
    agent, path = saved(tmp_path, gamma=0.5, buffer_size=100)
    agent.learn(50)
    agent.exploration_rate = 0.125
    agent.save(path)
    loaded = load_agent(path)
    assert (loaded.gamma, loaded.exploration_rate) == (0.5, 0.125)
    assert loaded.num_timesteps == agent.num_timesteps >= 50


def test_loaded_agents_are_ready_to_evaluate(tmp_path):
    _, path = saved(tmp_path)
    loaded = load_agent(str(path))
    assert not loaded.policy.training
    assert loaded.replay_buffer.size() == 0
    mean, _ = evaluate_policy(loaded, gym.make("CartPole-v1"), n_eval_episodes=2)
    assert mean >= 5


def test_loaded_agents_are_symmetrised_saved_and_loaded(tmp_path):
    agent, path = saved(tmp_path)
    policy = equirl.EquizeroPolicy(load_agent(path), "CartPole-v1")
    policy.save(tmp_path / "policy")
    observations = random_observations(agent)
    np.testing.assert_array_equal(
        equirl.EquizeroPolicy.load(tmp_path / "policy").action_values(observations),
        equirl.EquizeroPolicy(agent, "CartPole-v1").action_values(observations),
    )


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_payload_works(tmp_path):
    """If it did not, the two tests below would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_pickles_in_the_data_are_not_executed(tmp_path):
    agent, path = saved(tmp_path)
    executed = tmp_path / "executed"
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    text = base64.b64encode(pickle.dumps(Payload(executed))).decode()
    pickled = [value for value in data.values() if isinstance(value, dict)]
    assert len(pickled) > 5
    for value in pickled:
        value[":serialized:"] = text
    loaded = load_agent(rewritten(path, data=json.dumps(data)))
    assert not executed.exists()
    observations = random_observations(agent)
    actions, _ = loaded.predict(observations, deterministic=True)
    assert (actions == agent.predict(observations, deterministic=True)[0]).all()


def test_an_environment_that_the_file_names_is_not_made(tmp_path, monkeypatch):
    """Gymnasium would import the module before the colon."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    _, path = saved(tmp_path)
    assert load_agent(with_data(path, env="evil_module:CartPole-v1")).env is None


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickles_in_the_weights_are_not_executed(legacy, tmp_path):
    _, path = saved(tmp_path)
    executed = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save({"q_net.x": Payload(executed)}, buffer, _use_new_zipfile_serialization=not legacy)
    rewritten(path, policy=buffer.getvalue())
    with pytest.raises(ValueError, match="plain data"):
        load_agent(path)
    assert not executed.exists()


def test_bare_pickles_for_weights_are_not_executed(tmp_path):
    _, path = saved(tmp_path)
    executed = tmp_path / "executed"
    rewritten(path, policy=pickle.dumps(Payload(executed)))
    with pytest.raises(ValueError, match="plain data"):
        load_agent(path)
    assert not executed.exists()


@pytest.mark.parametrize(
    "activation",
    [
        "<class '__main__.Swish'>",
        "<class 'torch.nn.modules.activation.NoSuch'>",
        "<class 'os.system'>",
        "os.system",
    ],
)
def test_unknown_activations_are_refused(activation, tmp_path):
    """As they stand in the text beside a pickle that nobody reads."""
    _, path = saved(tmp_path)
    with_data(path, policy_kwargs={":serialized:": "AA==", "activation_fn": activation})
    with pytest.raises(ValueError, match="activation_fn = .*cannot be known from plain data"):
        load_agent(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no agent at .*nowhere\.zip"):
        load_agent(tmp_path / "nowhere.zip")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no agent at"):
        load_agent(tmp_path)


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_truncated_archives_are_refused(part, tmp_path):
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="not a whole zip archive.*Copy it again"):
        load_agent(path)


@pytest.mark.parametrize(
    ("member", "compression"), [("data", zipfile.ZIP_STORED), ("policy.pth", zipfile.ZIP_DEFLATED)]
)
def test_corrupt_bytes_are_refused(member, compression, tmp_path):
    _, path = saved(tmp_path)
    rewritten(path, compression)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(member).header_offset + 100
    content = bytearray(path.read_bytes())
    for offset in range(start, start + 300):
        content[offset] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole zip archive"):
        load_agent(path)


def test_encrypted_archives_are_refused(tmp_path):
    _, path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    # the flags of the last entry of the central directory, in which bit 0 says encrypted
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"agent\.zip"):
        load_agent(path)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04", b"\x00" * 1000])
def test_files_that_are_no_archive_are_refused(content, tmp_path):
    path = tmp_path / "agent.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole zip archive"):
        load_agent(path)


@pytest.mark.parametrize(("member", "name"), [("data", "data"), ("policy", r"policy\.pth")])
def test_archives_without_a_member_are_refused(member, name, tmp_path):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match=f"no agent saved by Stable-Baselines3: it has no {name}"):
        load_agent(rewritten(path, **{member: None}))


@pytest.mark.parametrize(
    "data",
    [b"{", b"", b"\xff\xfe", b"[]", b"1", b"null"],
    ids=["brace", "", "bytes", "[]", "1", "null"],
)
def test_broken_json_is_refused(data, tmp_path):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError):
        load_agent(rewritten(path, data=data))


@pytest.mark.parametrize("weights", [[1, 2], torch.zeros(3), None, {1: torch.zeros(1)}, {}])
def test_weights_of_another_kind_are_refused(weights, tmp_path):
    _, path = saved(tmp_path)
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with pytest.raises(ValueError):
        load_agent(rewritten(path, policy=buffer.getvalue()))


@pytest.mark.parametrize(
    "fields",
    [
        {"policy_kwargs": "net_arch"},
        {"policy_class": "DQNPolicy"},
        {"observation_space": None},
        {"observation_space": "Box"},
        {"observation_space": {":type:": "<class 'gymnasium.spaces.box.Box'>"}},
        {"action_space": {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_fields_of_another_shape_are_refused(fields, tmp_path):
    _, path = saved(tmp_path)
    with_data(path, **fields)
    with pytest.raises(ValueError, match=r"agent\.zip"):
        load_agent(path)


ALGORITHMS = {
    "a2c": lambda: A2C("MlpPolicy", gym.make("CartPole-v1"), use_rms_prop=True),
    "ppo": lambda: PPO("MlpPolicy", gym.make("CartPole-v1"), learning_rate=lambda left: left),
    "ppo, pixels": lambda: PPO("CnnPolicy", small_images(), n_steps=8, batch_size=8),
    "sac": lambda: SAC("MlpPolicy", gym.make("Pendulum-v1"), buffer_size=1, use_sde=True),
    "td3": lambda: TD3("MlpPolicy", gym.make("Pendulum-v1"), buffer_size=1),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_agents_of_other_algorithms_are_the_same_again(name, tmp_path):
    agent = ALGORITHMS[name]()
    agent.save(tmp_path / "agent.zip")
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    loaded = load_agent(tmp_path / "agent.zip")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert isinstance(loaded, type(agent))
    assert loaded.observation_space == agent.observation_space
    assert loaded.action_space == agent.action_space
    for key, tensor in agent.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[key], tensor)
    observations = random_observations(agent, 5)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        agent.predict(observations, deterministic=True)[0],
    )


def test_convolutional_archives_whose_layers_have_other_names_are_refused(tmp_path):
    """Stable-Baselines3 takes what fits, and leaves the other layers as they were made."""
    PPO("CnnPolicy", small_images(), n_steps=8, batch_size=8).save(tmp_path / "agent")
    path = tmp_path / "agent.zip"
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    old = {
        name.replace("action_net", "shared_net"): tensor
        for name, tensor in weights.items()
        if not name.startswith(("pi_features_extractor", "vf_features_extractor"))
    }
    buffer = io.BytesIO()
    torch.save(old, buffer)
    rewritten(path, policy=buffer.getvalue())
    with pytest.raises(ValueError, match="only one of file and network has action_net"):
        load_agent(path)


def test_archives_that_name_shared_extractors_once_load(tmp_path):
    """As those from before Stable-Baselines3 1.7."""
    agent = PPO("CnnPolicy", small_images(), n_steps=8, batch_size=8, seed=0)
    agent.save(tmp_path / "agent")
    path = tmp_path / "agent.zip"
    old = {
        name: tensor
        for name, tensor in agent.policy.state_dict().items()
        if not name.startswith(("pi_features_extractor", "vf_features_extractor"))
    }
    buffer = io.BytesIO()
    torch.save(old, buffer)
    loaded = load_agent(rewritten(path, policy=buffer.getvalue()))
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor)


def test_an_optimiser_of_its_own_does_not_matter(tmp_path):
    class Own(torch.optim.Adam):
        pass

    kwargs = {"optimizer_class": Own, "optimizer_kwargs": {"amsgrad": True}, "net_arch": [8]}
    agent, path = saved(tmp_path, policy_kwargs=kwargs)
    loaded = load_agent(path)
    assert loaded.policy_kwargs["net_arch"] == [8]
    for name, tensor in agent.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor)


def test_algorithms_of_others_are_refused_by_name(tmp_path):
    _, path = saved(tmp_path)
    name = "sb3_contrib.common.recurrent.policies"
    with_data(path, policy_class={"__module__": name, "__init__": ""})
    with pytest.raises(ValueError, match="of recurrent, .* remembers .*; load_agent opens A2C, AR"):
        load_agent(path)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    _, path = saved(tmp_path)
    with_data(path, policy_class={"__module__": "sb3_contrib.qrdqn.policies", "__init__": ""})
    monkeypatch.setitem(sys.modules, "sb3_contrib.qrdqn.policies", None)
    with pytest.raises(ImportError, match=r"pip install 'equirl\[contrib\]'"):
        load_agent(path)


class Doubling(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.scale = torch.nn.Linear(4, 4)

    def forward(self, observations):
        return self.scale(super().forward(observations))


def test_networks_of_their_own_are_refused(tmp_path):
    _, path = saved(tmp_path, policy_kwargs={"features_extractor_class": Doubling})
    with pytest.raises(
        ValueError, match=r"features_extractor_class = .*cannot be known from plain"
    ):
        load_agent(path)


class Squaring(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations) ** 2


def test_extractors_of_their_own_without_weights_are_refused_too(tmp_path):
    """Nothing in the weights gives it away; opened as another network it would act otherwise."""
    _, path = saved(tmp_path, policy_kwargs={"features_extractor_class": Squaring})
    with pytest.raises(ValueError):
        load_agent(path)


class SquaringNetwork(QNetwork):
    def forward(self, obs):
        return super().forward(obs) ** 2


class SquaringPolicy(DQNPolicy):
    def make_q_net(self):
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return SquaringNetwork(**arguments)


def test_policies_of_their_own_are_refused_too(tmp_path):
    agent = DQN(SquaringPolicy, gym.make("CartPole-v1"), buffer_size=1)
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="policy class of its own"):
        load_agent(tmp_path / "agent.zip")


def test_extractor_with_fewer_features_is_refused_or_right(tmp_path):
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 64}}
    agent = DQN("CnnPolicy", small_images(), buffer_size=1, policy_kwargs=policy_kwargs)
    agent.save(tmp_path / "agent.zip")
    try:
        loaded = load_agent(tmp_path / "agent.zip")
    except ValueError as error:
        assert "agent.zip" in str(error)
    else:
        observations = torch.from_numpy(random_observations(agent, 5))
        torch.testing.assert_close(loaded.q_net(observations), agent.q_net(observations))


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1"])
def test_agents_of_2021_load(name, shared_agents):
    loaded = load_agent(shared_agents / f"dqn-{name}.zip")
    env = gym.make(name)
    assert loaded.action_space == env.action_space
    assert loaded.observation_space.shape == env.observation_space.shape
    # infinity was written as the largest number then
    np.testing.assert_allclose(
        np.minimum(loaded.observation_space.high, 1e30),
        np.minimum(env.observation_space.high, 1e30),
        rtol=1e-6,
    )
    assert [layer.out_features for layer in loaded.q_net.q_net[::2]] == [
        256,
        256,
        env.action_space.n,
    ]
    equirl.EquizeroPolicy(loaded, name).predict(env.reset(seed=0)[0], deterministic=True)


def test_every_real_agent_loads_or_is_refused_by_name(shared_agents):
    """As they are: saved by five versions, some under the old gym."""
    for path in sorted(shared_agents.glob("*.zip")):
        algorithm = path.name.partition("-")[0].upper()
        loaded = load_agent(path)
        beside = path.with_name(f"{path.stem}.vecnormalize.pkl").exists()
        assert (loaded.statistics is not None) == beside
        assert type(loaded).__name__ == f"Loaded{algorithm}"
        observation = np.zeros(loaded.observation_space.shape, loaded.observation_space.dtype)
        action, _ = loaded.predict(observation, deterministic=True)
        assert action in loaded.action_space


PUBLISHED = {
    "dqn-CartPole-v1": ("CartPole-v1", 500.0, None),
    "dqn-Acrobot-v1": ("Acrobot-v1", -76.6, None),
    "dqn-LunarLander-v2": ("LunarLander-v3", 154.4, None),
    "ppo-CartPole-v1": ("CartPole-v1", 500.0, None),
    "sac-Pendulum-v1": ("Pendulum-v1", -157.0, None),
    "qrdqn-CartPole-v1": ("CartPole-v1", 500.0, None),
    "ppo-LunarLander-v2": ("LunarLander-v3", 242.1, None),
    "a2c-LunarLanderContinuous-v2": ("LunarLanderContinuous-v3", 84.2, None),
    "a2c-Pendulum-v1": ("Pendulum-v1", -163.0, None),
    "ppo-BipedalWalker-v3": ("BipedalWalker-v3", 213.3, None),
    "sac-Swimmer-v3": ("Swimmer-v5", 337.0, 1.0),
    "sac-Walker2d-v3": ("Walker2d-v5", 3821.0, 117.0),
}
"""Environment and published return, whose standard error is not; of the last two what was measured
on version 5, and its standard error."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore:builtin type [sS]wig")  # of Box2D
def test_real_agents_reach_their_published_returns(shared_agents, name):
    env, published, error = PUBLISHED[name]
    agent = load_agent(shared_agents / f"{name}.zip", "cpu")
    count = 25 if env in ("Swimmer-v5", "Walker2d-v5") else 100
    envs = DummyVecEnv([lambda: Monitor(gym.make(env))] * count)
    envs.seed(0)
    returns, _ = evaluate_policy(agent, envs, count, return_episode_rewards=True)
    own = np.std(returns) / np.sqrt(count)
    other = own if error is None else error  # as if they had played as many episodes
    # three standard errors, as twelve are compared
    assert abs(np.mean(returns) - published) <= 3 * np.hypot(own, other) + 0.1


def mean_return(policy, env_id):
    envs = DummyVecEnv([lambda: gym.make(env_id)] * 20)
    envs.seed(1000)
    mean, _ = evaluate_policy(policy, envs, n_eval_episodes=200, deterministic=True)
    return mean


@pytest.mark.slow
def test_the_real_cartpole_agent_reaches_its_published_return(shared_agents):
    agent = load_agent(shared_agents / "dqn-CartPole-v1.zip")
    assert mean_return(agent, "CartPole-v1") == 500


@pytest.mark.slow
def test_a_lopsided_agent_is_made_worse_by_equizero_and_kept_by_lambda(shared_agents):
    agent = load_agent(shared_agents / "dqn-CartPole-v1.zip")
    assert mean_return(equirl.EquizeroPolicy(agent, "CartPole-v1"), "CartPole-v1") < 450
    policy = equirl.LambdaEquitunePolicy(agent, "CartPole-v1")
    visited = equirl.rollout_experience(agent, "CartPole-v1", seed=5000)
    equirl.fit_familiarity(policy, visited.observations)
    assert mean_return(policy, "CartPole-v1") == 500


@pytest.mark.slow
def test_the_real_acrobot_agent_is_made_better_by_equizero(shared_agents):
    agent = load_agent(shared_agents / "dqn-Acrobot-v1.zip")
    plain = mean_return(agent, "Acrobot-v1")
    assert abs(plain + 76.6) < 3
    assert mean_return(equirl.EquizeroPolicy(agent, "Acrobot-v1"), "Acrobot-v1") > plain + 5


@pytest.mark.parametrize(
    "kind",
    [DQN, PPO, A2C, SAC, TD3, contrib.ARS, contrib.CrossQ, contrib.MaskablePPO, contrib.QRDQN,
     contrib.TQC, contrib.TRPO],
)  # fmt: skip
def test_a_loaded_agent_refuses_to_learn(tmp_path, kind):
    discrete = kind in (DQN, contrib.QRDQN, contrib.MaskablePPO)
    env = "CartPole-v1" if discrete else "Pendulum-v1"
    kind("MlpPolicy", env, device="cpu").save(tmp_path / "agent.zip")
    agent = load_agent(tmp_path / "agent.zip")
    assert isinstance(agent, kind)
    agent.set_env(DummyVecEnv([lambda: gym.make(env)]))
    with pytest.raises(TypeError, match="not to train them further.*equirl train"):
        agent.learn(10)
    with pytest.raises(TypeError, match="lacks what was pickled in its file; copy that file"):
        agent.save(tmp_path / "again.zip")
    again = pickle.loads(pickle.dumps(agent))
    observation = np.zeros((1, *agent.observation_space.shape), np.float32)
    for policy in (again, copy.deepcopy(agent)):
        np.testing.assert_array_equal(
            policy.predict(observation, deterministic=True)[0],
            agent.predict(observation, deterministic=True)[0],
        )


def test_the_suffix_may_be_left_out(tmp_path):
    DQN("MlpPolicy", "CartPole-v1", buffer_size=1, device="cpu").save(tmp_path / "agent.v2.zip")
    assert load_agent(tmp_path / "agent.v2").num_timesteps == 0
    with pytest.raises(FileNotFoundError, match="no agent at .*other"):
        load_agent(tmp_path / "other")
    (tmp_path / "agent.v2").mkdir()  # as the zoo's run folders have one of the agent's name
    assert load_agent(tmp_path / "agent.v2").num_timesteps == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    """Stable-Baselines3 would take the CPU without a word."""
    agent = DQN("MlpPolicy", "CartPole-v1", buffer_size=1, device="cpu")
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="there is no device cuda here"):
        load_agent(tmp_path / "agent.zip", "cuda")
    policy = equirl.EquizeroPolicy(agent, "CartPole-v1")
    policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match="there is no device cuda here"):
        equirl.EquizeroPolicy.load(tmp_path / "policy", device="cuda")


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.parametrize("read", [equirl.Experience.load, equirl.EquizeroPolicy.load])
@pytest.mark.parametrize("name", ["file.safetensors", "file.pkl", "file"])
def test_a_planted_pickle_creates_no_file(tmp_path, monkeypatch, read, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ValueError, match=re.escape(name)):
        read(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_planted_pickle_in_an_agent_creates_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "whole.zip")
    planted = pickle.dumps(Planted())
    text = base64.b64encode(planted).decode()
    with zipfile.ZipFile("whole.zip") as whole, zipfile.ZipFile("planted.zip", "w") as other:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "data":
                data = json.loads(content)
                for value in data.values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        value[":serialized:"] = text
                content = json.dumps(data).encode()
            other.writestr(name, content)
    equirl.EquizeroPolicy(equirl.load_agent("planted.zip"), "CartPole-v1")
    with zipfile.ZipFile("planted.zip", "a") as other:
        with pytest.warns(UserWarning, match="Duplicate name"):
            other.writestr("policy.pth", planted)
    with pytest.raises(ValueError, match="cannot be read as plain data"):
        equirl.load_agent("planted.zip")
    assert not (tmp_path / "planted").exists()
