"""Composed observations: dicts, their flat form, stacks of frames, a time feature."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

import equirl
from equicore import Image, Matrix, Permutation, Tree, Trivial, cyclic
from equirl.composed import flattened, stacked, with_time
from equirl.symmetry import Symmetry

FLIP = cyclic(2)
SIGN = Permutation.from_generators(FLIP, [[1, 0]])
PLANE = Matrix.from_generators(FLIP, [np.diag([1, -1])])
TREE = Tree({"seen": PLANE, "goal": PLANE, "kind": Trivial(FLIP), "turn": SIGN})
SPACE = spaces.Dict(
    {
        "seen": spaces.Box(-1, 1, (2,)),
        "goal": spaces.Box(-1, 1, (2,)),
        "kind": spaces.Discrete(3),
        "turn": spaces.Discrete(2),
    }
)


def pendulum(*layers):
    env = gym.make("Pendulum-v1")
    for layer in layers:
        env = layer(env)
    return env


def stack(env):
    return wrappers.FrameStackObservation(env, 3)


def vec_stack(env):
    return VecFrameStack(DummyVecEnv([lambda: env]), 3)


@pytest.mark.parametrize(
    "layers",
    [
        (stack,),
        (stack, wrappers.FlattenObservation),
        (wrappers.TimeAwareObservation,),
        (lambda env: wrappers.TimeAwareObservation(env, flatten=False),),
        (
            lambda env: wrappers.TimeAwareObservation(env, flatten=False),
            wrappers.FlattenObservation,
        ),
        (TimeFeatureWrapper,),
        (vec_stack,),
    ],
)
def test_symmetry_of_follows_wrappers(layers):
    """An environment seen through wrappers steps as its image under the group does."""
    one, other = pendulum(*layers), pendulum(*layers)
    symmetry = equirl.symmetry_of(one)
    symmetry.check_spaces(one.observation_space, one.action_space)
    vectorized = hasattr(one, "venv")
    inner = [
        (env.get_attr("unwrapped")[0] if vectorized else env.unwrapped) for env in (one, other)
    ]
    firsts = []
    for env in (one, other):
        env.seed(0) if vectorized else None
        firsts.append(env.reset() if vectorized else env.reset(seed=0)[0])
    inner[1].state = -inner[0].state
    for step in range(4):
        action = np.full((1, 1) if vectorized else (1,), 0.3 * step, np.float32)
        seen, mirrored = (env.step(a)[0] for env, a in ((one, action), (other, -action)))
        if step < 2:  # frames of before the states were set are still seen
            continue
        batch = seen if vectorized else equirl.arrays.each(lambda x: x[None], seen)
        image = symmetry.act_on_observations(1, batch)
        image = image if vectorized else equirl.arrays.each(lambda x: x[0], image)
        for got, wanted in zip(
            equirl.arrays.arrays_of(mirrored), equirl.arrays.arrays_of(image), strict=True
        ):
            np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_flat_form_of_a_dict():
    symmetry = Symmetry(TREE, SIGN)
    flat = flattened(symmetry, SPACE)
    SPACE.seed(0)
    for _ in range(5):
        sample = SPACE.sample()
        moved = {
            "seen": sample["seen"] * np.float32([1, -1]),
            "goal": sample["goal"] * np.float32([1, -1]),
            "kind": sample["kind"],
            "turn": 1 - sample["turn"],
        }
        wanted = spaces.flatten(SPACE, moved)
        got = flat.act_on_observations(1, spaces.flatten(SPACE, sample)[None])[0]
        assert np.array_equal(got, wanted)
    assert flat.names.observation[:3] == ("goal 0", "goal 1", "kind 0")


def test_flat_form_of_a_picture():
    picture = spaces.Box(0, 1, (2, 3, 3))
    turns = Image(cyclic(4), range(4), [False] * 4)
    symmetry = Symmetry(turns, Permutation.from_generators(cyclic(4), [[1, 2, 3, 0]]))
    flat = flattened(symmetry, picture)
    x = np.random.default_rng(0).random((2, 2, 3, 3)).astype(np.float32)
    for g in range(4):
        wanted = symmetry.act_on_observations(g, x).reshape(2, -1)
        assert np.allclose(flat.act_on_observations(g, x.reshape(2, -1)), wanted)


def test_names_are_kept():
    symmetry = equirl.symmetry_of("Pendulum-v1")
    assert stacked(symmetry, 2).names.observation == (
        *("cos, 1 before", "sin, 1 before", "angular velocity, 1 before"),
        *("cos", "sin", "angular velocity"),
    )
    assert with_time(symmetry).names.observation[-1] == "time"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"seen": PLANE}, r"no representation for observation\['goal'\].*equicore.Trivial"),
        (
            {"seen": PLANE, "goal": PLANE, "hand": PLANE},
            r"for observation\['hand'\], which observations lack: they have goal, seen",
        ),
        (
            {"seen": PLANE, "goal": Matrix.from_generators(FLIP, [-np.eye(3)])},
            r"does not fit the observation\['goal'\] space",
        ),
    ],
)
def test_dicts_that_do_not_fit_are_refused(parts, message):
    space = spaces.Dict({name: SPACE[name] for name in ("seen", "goal")})
    with pytest.raises(ValueError, match=message):
        Symmetry(Tree(parts), SIGN).check_spaces(space, spaces.Discrete(2))


def test_a_dict_and_an_array_are_told_apart():
    space = spaces.Dict({"seen": SPACE["seen"]})
    with pytest.raises(ValueError, match=r"observations are dicts with seen; .*equicore\.Tree"):
        Symmetry(PLANE, SIGN).check_spaces(space, spaces.Discrete(2))
    with pytest.raises(ValueError, match="this symmetry acts on dicts"):
        Symmetry(Tree({"seen": PLANE}), SIGN).check_spaces(SPACE["seen"], spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"observation\['turn'\] is Discrete\(2\)"):
        Symmetry(Tree({"turn": SIGN}), SIGN).check_spaces(
            spaces.Dict({"turn": SPACE["turn"]}), spaces.Discrete(2)
        )


def test_unknown_wrappers_are_refused():
    env = wrappers.RescaleObservation(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))
    with pytest.raises(ValueError, match=r"seen through RescaleObservation.*pass the Symmetry"):
        equirl.symmetry_of(env)
    with pytest.raises(ValueError, match="this is for vectors"):
        stacked(Symmetry(Image(cyclic(4), range(4), [False] * 4), Trivial(cyclic(4))), 2)


@pytest.mark.parametrize("layer", [stack, TimeFeatureWrapper, wrappers.TimeAwareObservation])
def test_an_agent_that_sees_through_wrappers_is_given_its_environment(layer):
    agent = PPO("MlpPolicy", layer(gym.make("Pendulum-v1")), seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"sees its environment through .*model\.get_env\(\)"):
        equirl.EquizeroPolicy(agent, "Pendulum-v1")
    policy = equirl.EquizeroPolicy(agent, agent.get_env())
    seen = np.random.default_rng(0).normal(size=(5, *agent.observation_space.shape))
    seen = seen.astype(np.float32)
    plain, _ = policy.predict(seen, deterministic=True)
    mirrored, _ = policy.predict(policy.symmetry.act_on_observations(1, seen), deterministic=True)
    np.testing.assert_allclose(mirrored, -plain, atol=1e-6)
