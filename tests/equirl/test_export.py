"""Exported policies act as the policies: everywhere but where two views are valued alike."""

import builtins
import warnings

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib as contrib
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

import equirl
import equirl.export
from equicore import (
    Matrix,
    MLPWeight,
    Permutation,
    Tree,
    Trivial,
    cyclic,
    image_flips,
    image_rotations,
)
from equirl import EquitunePolicy, EquizeroPolicy, LambdaEquitunePolicy, Symmetry

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SUFFIXES = [".onnx", ".pt2"]
each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)
some_suffix = pytest.mark.parametrize(
    "suffix", [".onnx", pytest.param(".pt2", marks=pytest.mark.slow)]
)
MIRROR = cyclic(2)


class Space(gym.Env):
    """Nothing but its spaces: four numbers, and actions."""

    def __init__(self, actions, observations=None):
        self.observation_space = observations or gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = actions

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def swapped(*actions):
    """The first two numbers change places with the last two, and actions as told."""
    return Symmetry(
        Permutation.from_generators(MIRROR, [[2, 3, 0, 1]]),
        Permutation.from_generators(MIRROR, [list(actions)]),
    )


def made(algorithm, env, symmetry, kind, policy="MlpPolicy", **settings):
    """A policy of a random agent; with random weights, where it has some."""
    if hasattr(algorithm, "_store_transition") and algorithm is not PPO:
        settings = {"buffer_size": 1, **settings}
    agent = algorithm(policy, env, seed=0, device="cpu", **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():  # that continuous actions have no useful mean
        warnings.simplefilter("ignore")
        made = kind(agent, symmetry)
    if kind is LambdaEquitunePolicy:
        nn.init.normal_(made.weight.network[-1].weight)
    return made


def run(path, **inputs):
    """What a file makes of inputs."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        with torch.no_grad():
            found = module(*map(torch.from_numpy, inputs.values()))
        return [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(inputs)
    return session.run(None, inputs)


def draw(space, count):
    space.seed(0)
    return np.stack([space.sample() for _ in range(count)])


def compare(policy, path, observations, masks=None, shown=None, view=None):
    """Both on all observations; returns where the actions differ by more than rounding."""
    shown = observations if shown is None else shown
    given = dict(observations) if isinstance(observations, dict) else {"observation": observations}
    given |= {} if masks is None else {"action_masks": masks}
    given |= {} if view is None else {"view": view}
    memory = (None, None) if view is None else ((view.clip(min=0),), view == -1)
    expected, state = policy.predict(shown, *memory, True, masks)
    found, *views = run(path, **given)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    differ = ~np.isclose(found, expected, rtol=1e-4, atol=1e-5).reshape(len(found), -1).all(1)
    if view is not None:
        differ |= views[0] != state[0]
    return found, expected, differ.nonzero()[0]


@each_suffix
def test_a_dqn(suffix, tmp_path):
    policy = made(DQN, gym.make("equirl/Gridworld-v0"), "equirl/Gridworld-v0", EquizeroPolicy)
    path = tmp_path / f"policy{suffix}"
    report = policy.export(path)
    assert report == equirl.export.Exported(path, ("observation",), ("action",), 65, 0)
    observations = draw(policy.observation_space, 10_000)
    found, _, differ = compare(policy, path, observations)
    values = policy.action_values(observations[differ])
    best = np.sort(values, axis=1)[:, -2:]
    # only where two actions are valued alike up to rounding
    assert len(differ) < 5 and np.all(best[:, 1] - best[:, 0] < 1e-5 * (1 + abs(best[:, 1])))
    (one,) = run(path, observation=observations[:1])
    assert one.shape == (1,) and one.dtype == np.int64 and one[0] == found[0]


@some_suffix
def test_a_sac_with_statistics(suffix, tmp_path):
    """What is exported takes observations as the environment emits them."""
    envs = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    envs.obs_rms.mean, envs.obs_rms.var = np.array([0.3, -0.1, 1.0]), np.array([0.5, 0.2, 9.0])
    policy = made(SAC, envs, "Pendulum-v1", EquizeroPolicy)
    path = tmp_path / f"policy{suffix}"
    policy.export(path)
    observations = draw(envs.observation_space, 10_000)
    shown = envs.normalize_obs(observations).astype(np.float32)
    found, expected, differ = compare(policy, path, observations, shown=shown)
    assert found.dtype == np.float32 and abs(found).max() <= 2
    assert len(differ) < 10
    if len(differ):  # the critics value both views alike, up to rounding
        scores = policy.symmetrized.scores(policy.inputs(torch.from_numpy(shown[differ]))).detach()
        assert (scores[0] - scores[1]).abs().max() < 1e-4
    envs.obs_rms.mean += 5  # of what it learns now, the file does not know
    later, _ = policy.predict(envs.normalize_obs(observations).astype(np.float32), None, None, True)
    assert abs(later - expected).max() > 0.1


@some_suffix
def test_the_weights_of_lambda(suffix, tmp_path):
    policy = made(PPO, gym.make("CartPole-v1"), "CartPole-v1", LambdaEquitunePolicy)
    path = tmp_path / f"policy{suffix}"
    policy.export(path)
    observations = np.random.default_rng(0).normal(size=(10_000, 4)).astype(np.float32)
    *_, differ = compare(policy, path, observations)
    values = policy.action_values(observations[differ])
    assert len(differ) < 5 and np.all(abs(values[:, 0] - values[:, 1]) < 1e-5)


@some_suffix
def test_images_as_the_environment_emits_them(suffix, tmp_path):
    """Rows, columns and channels, in bytes."""
    space = gym.spaces.Discrete(4)
    env = Space(space, gym.spaces.Box(0, 255, (36, 36, 3), np.uint8))
    symmetry = Symmetry(
        image_rotations(axes=(-3, -2)),
        Permutation.from_generators(cyclic(4), [[1, 2, 3, 0]]),
    )
    policy = made(DQN, env, symmetry, EquizeroPolicy, "CnnPolicy")
    path = tmp_path / f"policy{suffix}"
    policy.export(path)
    images = draw(env.observation_space, 200)
    familiar = made(DQN, env, symmetry, LambdaEquitunePolicy, "CnnPolicy")
    familiar.export(tmp_path / f"familiar{suffix}")
    *_, differ = compare(familiar, tmp_path / f"familiar{suffix}", images)
    assert len(differ) < 3
    assert images.shape == (200, 36, 36, 3) and images.dtype == np.uint8
    *_, differ = compare(policy, path, images)
    values = policy.action_values(images[differ])
    best = np.sort(values, axis=1)[:, -2:]
    assert len(differ) < 3 and np.all(best[:, 1] - best[:, 0] < 1e-4 * (1 + abs(best[:, 1])))


@some_suffix
def test_the_memory_of_lambda(suffix, tmp_path):
    """Played step by step, the file holds its view as the policy does."""
    policy = made(PPO, gym.make("Pendulum-v1"), "Pendulum-v1", LambdaEquitunePolicy)
    policy.hold = 2.0
    path = tmp_path / f"policy{suffix}"
    assert policy.export(path) == equirl.export.Exported(
        path, ("observation", "view"), ("action", "next_view"), 65, 0
    )
    generator = np.random.default_rng(0)
    observations = draw(policy.observation_space, 10_000)
    view = generator.integers(-1, 2, 10_000)
    *_, differ = compare(policy, path, observations, view=view)
    assert len(differ) < 10
    one = observations[:1]
    views = [run(path, observation=one, view=np.array([n]))[1] for n in (-1, -7)]
    assert views[0] == views[1]  # any number below 0 begins an episode
    view, state, places = np.full(5, -1), None, []
    for observations in draw(policy.observation_space, 100).reshape(20, 5, 3):
        starts = generator.random(5) < 0.1
        found, view = run(path, observation=observations, view=np.where(starts, -1, view))
        expected, state = policy.predict(observations, state, starts, deterministic=True)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)
        places.append(view)
    assert 0 < np.mean(places) < 1


@some_suffix
@pytest.mark.parametrize("normalized", [False, True])
def test_dicts(suffix, normalized, tmp_path):
    """Vectors, images whose channels are last, and ids; ONNX has values called view of its own."""
    space = gym.spaces.Dict(
        camera=gym.spaces.Box(0, 255, (40, 36, 3), np.uint8),
        view=gym.spaces.Box(-1, 1, (2,), np.float32),
        task=gym.spaces.Discrete(3),
    )
    symmetry = Symmetry(
        Tree(
            {
                "camera": image_flips(axis=-2),
                "view": Matrix.from_generators(MIRROR, [-np.eye(2)]),
                "task": Trivial(MIRROR),
            }
        ),
        Permutation.from_generators(MIRROR, [[1, 0]]),
    )
    envs = DummyVecEnv([lambda: Space(gym.spaces.Discrete(2), space)])
    if normalized:
        envs = VecNormalize(envs, norm_obs_keys=["view"])
        envs.obs_rms["view"].mean = np.array([0.3, -0.2])
    policy = made(PPO, envs, symmetry, EquizeroPolicy, "MultiInputPolicy")
    path = tmp_path / f"policy{suffix}"
    assert policy.export(path).inputs == ("camera", "view", "task")
    samples = [space.sample() for _ in range(200)]
    observations = {name: np.stack([one[name] for one in samples]) for name in space}
    shown = envs.normalize_obs(observations) if normalized else observations
    *_, differ = compare(policy, path, observations, shown=shown)
    values = policy.action_values(shown)[differ]
    assert len(differ) < 3 and np.all(abs(values[:, 0] - values[:, 1]) < 1e-4)


def test_an_entry_that_is_called_as_something_else_is_refused(tmp_path):
    space = gym.spaces.Dict(view=gym.spaces.Box(-1, 1, (2,), np.float32))
    symmetry = Symmetry(
        Tree({"view": Matrix.from_generators(MIRROR, [-np.eye(2)])}),
        Matrix.from_generators(MIRROR, [-np.eye(1)]),
    )
    env = Space(gym.spaces.Box(-1, 1, (1,), np.float32), space)
    policy = made(PPO, env, symmetry, LambdaEquitunePolicy, "MultiInputPolicy")
    with pytest.raises(ValueError, match="observations have an entry 'view'"):
        policy.export(tmp_path / "policy.pt2")


BOX = gym.spaces.Box(np.array([-1, 0, -1, 0], np.float32), np.array([1, 3, 1, 3], np.float32))
CHOICES, BITS = gym.spaces.MultiDiscrete([3, 3, 2]), gym.spaces.MultiBinary(4)
OTHERS = {
    "masks": (contrib.MaskablePPO, CHOICES, (1, 0, 2)),
    "masks, bits": (contrib.MaskablePPO, BITS, (2, 3, 0, 1)),
    "choices": (A2C, CHOICES, (1, 0, 2)),
    "bits": (PPO, BITS, (2, 3, 0, 1)),
    "quantiles": (contrib.QRDQN, gym.spaces.Discrete(2), (1, 0)),
    "mean action": (PPO, BOX, (2, 3, 0, 1)),
    "gSDE": (lambda *a, **k: A2C(*a, use_sde=True, **k), BOX, (2, 3, 0, 1)),
    "deterministic": (TD3, BOX, (2, 3, 0, 1)),
    "quantile critics": (contrib.TQC, BOX, (2, 3, 0, 1)),
    "no critic": (contrib.ARS, BOX, (2, 3, 0, 1)),
    "batch norm": (contrib.CrossQ, BOX, (2, 3, 0, 1)),
}
KINDS = [EquizeroPolicy, EquitunePolicy, LambdaEquitunePolicy]
FAST = [("masks", EquizeroPolicy), ("mean action", LambdaEquitunePolicy)]


@pytest.mark.parametrize(
    "name, kind",
    [
        pytest.param(name, kind, marks=() if (name, kind) in FAST else pytest.mark.slow)
        for name in OTHERS
        for kind in KINDS
        if (name, kind) != ("no critic", EquizeroPolicy)  # which it refuses
    ],
)
def test_every_head(name, kind, tmp_path):
    """`export` compares the actions itself; here, also those of masks that forbid all but one."""
    algorithm, actions, permutation = OTHERS[name]
    policy = made(algorithm, Space(actions), swapped(*permutation), kind)
    for suffix in SUFFIXES if kind is EquizeroPolicy else [".onnx"]:
        path = tmp_path / f"policy{suffix}"
        assert policy.export(path).alike == 0
        observations = np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32)
        given = {}
        if policy.head.masked:
            given["masks"] = np.zeros((300, sum(policy.head.options)), bool)
            first = np.cumsum([0, *policy.head.options[:-1]])
            given["masks"][:, first] = True
            found, *_ = compare(policy, path, observations, **given)
            assert not found.any()
        if policy.remembers:
            given["view"] = np.random.default_rng(3).integers(-1, 2, 300)
        *_, differ = compare(policy, path, observations, **given)
        assert len(differ) < 3


def test_what_is_known_of_a_file(tmp_path):
    policy = made(DQN, gym.make("CartPole-v1"), "CartPole-v1", EquizeroPolicy)
    policy.export(tmp_path / "policy.onnx")
    model = onnx.load(tmp_path / "policy.onnx")
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert known["policy"] == repr(policy)
    assert known["symmetry"] == repr(policy.symmetry.group)
    assert known["action_space"] == "Discrete(2)" and known["equirl"]
    assert "Box" in known["observation_space"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert not shape[0].dim_value and shape[1].dim_value == 4


def test_weights_that_are_not_fitted_are_told_of(tmp_path):
    agent = DQN("MlpPolicy", "CartPole-v1", buffer_size=1, device="cpu")
    policy = LambdaEquitunePolicy(agent, "CartPole-v1", MLPWeight((4,)))
    with pytest.warns(UserWarning, match="not fitted"):
        policy.export(tmp_path / "policy.pt2")


def test_a_file_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    policy = made(DQN, gym.make("CartPole-v1"), "CartPole-v1", EquizeroPolicy)
    with pytest.raises(ValueError, match=r"\.onnx and \.pt2 files; got .*policy.zip"):
        policy.export(tmp_path / "policy.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        policy.export(tmp_path / "file" / "policy.pt2")
    given = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return given(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"needs onnxruntime: .*equirl\[export\]"):
        policy.export(tmp_path / "policy.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("algorithm, env_id", [(SAC, "Pendulum-v1"), (DQN, "CartPole-v1")])
def test_a_file_that_acts_otherwise_is_not_left(algorithm, env_id, tmp_path):
    """As of a policy that changes its actions afterwards, of which the file does not know."""

    class Late(EquizeroPolicy):
        def predict(self, *args, **kwargs):
            actions, state = super().predict(*args, **kwargs)
            return (-actions if algorithm is SAC else 1 - actions), state

    policy = made(algorithm, gym.make(env_id), env_id, Late)
    with pytest.raises(ValueError, match="takes other actions than the policy"):
        policy.export(tmp_path / "policy.pt2")
    assert not list(tmp_path.iterdir())
