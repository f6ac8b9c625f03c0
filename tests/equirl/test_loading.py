import base64
import io
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
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


@pytest.mark.parametrize("net_arch", [[], [7], [16, 8, 4]])
@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU, torch.nn.ELU])
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
        "<class 'torch.nn.modules.container.Sequential'>",
        "<class 'torch.nn.modules.activation.NoSuch'>",
        "os.system",
    ],
)
def test_unknown_activations_are_refused(activation, tmp_path):
    _, path = saved(tmp_path)
    with_data(path, policy_kwargs={"activation_fn": activation})
    with pytest.raises(ValueError, match="unknown activation function"):
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


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("member", ["data", "policy.pth"])
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
def test_fields_of_another_shape_are_refused_or_do_not_matter(fields, tmp_path):
    _, path = saved(tmp_path)
    with_data(path, **fields)
    if "policy_class" in fields:  # the weights tell
        load_agent(path)
    else:
        with pytest.raises(ValueError):
            load_agent(path)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_other_algorithms_are_refused_by_name(algorithm, tmp_path):
    model = algorithm("MlpPolicy", gym.make("CartPole-v1"), device="cpu")
    model.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="PPO or A2C; load_agent opens DQN only"):
        load_agent(tmp_path / "agent.zip")


class Doubling(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.scale = torch.nn.Linear(4, 4)

    def forward(self, observations):
        return self.scale(super().forward(observations))


def test_networks_of_their_own_are_refused(tmp_path):
    _, path = saved(tmp_path, policy_kwargs={"features_extractor_class": Doubling})
    with pytest.raises(ValueError, match=r"agent\.zip has a features extractor of its own"):
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
    with pytest.raises(ValueError):
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


@pytest.mark.parametrize(
    ("name", "algorithm"), [("ppo-CartPole-v1", "PPO"), ("sac-Pendulum-v1", "SAC")]
)
def test_real_agents_of_other_algorithms_are_refused_by_name(name, algorithm, shared_agents):
    with pytest.raises(ValueError, match=f"{algorithm}.*; load_agent opens DQN only"):
        load_agent(shared_agents / f"{name}.zip")


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
    visited = equirl.rollout_observations(agent, "CartPole-v1", seed=5000)
    equirl.fit_familiarity(policy, visited)
    assert mean_return(policy, "CartPole-v1") == 500


@pytest.mark.slow
def test_the_real_acrobot_agent_is_made_better_by_equizero(shared_agents):
    agent = load_agent(shared_agents / "dqn-Acrobot-v1.zip")
    plain = mean_return(agent, "Acrobot-v1")
    assert abs(plain + 76.6) < 3
    assert mean_return(equirl.EquizeroPolicy(agent, "Acrobot-v1"), "Acrobot-v1") > plain + 5
