import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import equicore
import equirl
from equirl import RandomSymmetry, SymmetryWrapper, VectorRandomSymmetry, VectorSymmetryWrapper

VECTOR_ENTRY = {"num_envs": 3, "vectorization_mode": "vector_entry_point"}


def short(case, steps=6):
    """An environment whose episodes end soon, in several ways."""
    kwargs = case.env_kwargs | ({"n": 3} if "Gridworld" in case.env_id else {})
    return gym.make(case.env_id, max_episode_steps=steps, **kwargs)


def test_shows_the_original_run_through_every_element(case):
    for element in range(case.order):
        original, wrapped = short(case, 9), SymmetryWrapper(short(case, 9), element=element)
        rng = np.random.default_rng(element)
        seen, info = wrapped.reset(seed=7)
        expected, expected_info = original.reset(seed=7)
        np.testing.assert_array_equal(seen, case.act(element, expected))
        assert info == expected_info
        for _ in range(40):
            action = int(rng.integers(len(case.permutations[0])))
            expected, *outcome, _ = original.step(action)
            seen, *found, _ = wrapped.step(case.permutations[element][action])
            np.testing.assert_array_equal(seen, case.act(element, expected))
            assert seen.dtype == expected.dtype
            assert found == outcome
            if outcome[1] or outcome[2]:
                np.testing.assert_array_equal(
                    wrapped.reset()[0], case.act(element, original.reset()[0])
                )


def test_options_reach_the_environment():
    env = SymmetryWrapper(gym.make("equirl/Gridworld-v0", n=3), element=1)
    observation, _ = env.reset(options={"agent": (2, 1), "goal": (0, 0)})
    assert observation.tolist() == [0, 1, 1, -1]


def test_spaces_contain_what_is_shown(case):
    for element in range(case.order):
        env = SymmetryWrapper(short(case), element=element)
        assert env.reset(seed=0)[0] in env.observation_space


@pytest.mark.parametrize("element", [2, -1, 99])
def test_element_must_be_of_the_group(element):
    with pytest.raises(IndexError):
        SymmetryWrapper(gym.make("CartPole-v1"), element=element)
    with pytest.raises(IndexError):
        VectorSymmetryWrapper(gym.make_vec("CartPole-v1", num_envs=2), element=element)


@pytest.mark.parametrize("wrapper", [SymmetryWrapper, RandomSymmetry])
def test_unknown_environment_is_refused(wrapper):
    with pytest.raises(ValueError, match="no symmetry is registered for 'MountainCar-v0'"):
        wrapper(gym.make("MountainCar-v0"))


@pytest.mark.parametrize("wrapper", [VectorSymmetryWrapper, VectorRandomSymmetry])
def test_unknown_vector_environment_is_refused(wrapper):
    with pytest.raises(ValueError, match="no symmetry is registered for 'MountainCar-v0'"):
        wrapper(gym.make_vec("MountainCar-v0", num_envs=2))


@pytest.mark.parametrize("wrapper", [SymmetryWrapper, RandomSymmetry])
def test_symmetry_of_another_environment_is_refused(wrapper):
    with pytest.raises(ValueError, match="does not fit the observation space"):
        wrapper(gym.make("CartPole-v1"), equirl.symmetry_of("Acrobot-v1"))


@pytest.mark.parametrize("action", [-1, 2])
@pytest.mark.parametrize("element", [0, 1])
def test_invalid_actions_are_refused_as_by_the_environment(element, action):
    env = SymmetryWrapper(gym.make("CartPole-v1"), element=element)
    env.reset(seed=0)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        env.step(action)


@pytest.mark.parametrize("action", [-1, 2])
def test_invalid_actions_are_refused_in_vectors(action):
    envs = VectorSymmetryWrapper(gym.make_vec("CartPole-v1", **VECTOR_ENTRY), element=1)
    envs.reset(seed=0)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        envs.step(np.array([0, action, 0]))


def elements_of(env, episodes, seed):
    env.reset(seed=seed)
    elements = [env.element]
    for _ in range(episodes - 1):
        env.reset()
        elements.append(env.element)
    return elements


def test_the_environment_draws_as_without_the_wrapper():
    env, plain = RandomSymmetry(gym.make("equirl/Gridworld-v0")), gym.make("equirl/Gridworld-v0")
    elements = set()
    for episode in range(20):
        seed = 3 if episode in (0, 10) else None
        env.reset(seed=seed)
        plain.reset(seed=seed)
        elements.add(env.element)
        for one, other in ((env, plain), (plain, env)):
            assert (one.unwrapped.agent == other.unwrapped.agent).all()
            assert (one.unwrapped.goal == other.unwrapped.goal).all()
    assert elements == {0, 1, 2, 3}


def test_equal_seeds_give_equal_elements():
    first, second, other = (RandomSymmetry(gym.make("equirl/Gridworld-v0")) for _ in range(3))
    assert elements_of(first, 20, seed=3) == elements_of(second, 20, seed=3)
    assert elements_of(first, 20, seed=3) != elements_of(other, 20, seed=4)


def test_random_elements_are_uniform():
    counts = np.bincount(elements_of(RandomSymmetry(gym.make("equirl/Gridworld-v0")), 200, seed=0))
    # 50 each, standard deviation 6
    assert len(counts) == 4
    assert (np.abs(counts - 50) < 25).all()


def test_random_element_stays_for_the_episode():
    env = RandomSymmetry(gym.make("CartPole-v1"))
    original = gym.make("CartPole-v1")
    for seed in range(6):
        seen, expected = env.reset(seed=seed)[0], original.reset(seed=seed)[0]
        element = env.element
        assert (seen == (-expected if element else expected)).all()
        for _ in range(5):
            seen = env.step(1 - element)[0]
            expected = original.step(1)[0]
            assert (seen == (-expected if element else expected)).all()
            assert env.element == element


@pytest.mark.parametrize(
    ("wrapper", "kwargs"), [(SymmetryWrapper, {"element": 3}), (RandomSymmetry, {})]
)
def test_stack_is_rebuilt_from_its_spec(wrapper, kwargs):
    env = wrapper(gym.make("equirl/Gridworld-v0", n=3, observation="image"), **kwargs)
    restored = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    for spec in (env.spec, restored):
        again = gym.make(spec)
        assert type(again) is wrapper
        assert again.unwrapped.n == 3
        for seed in range(3):
            np.testing.assert_array_equal(env.reset(seed=seed)[0], again.reset(seed=seed)[0])
            assert env.element == again.element


def test_stack_with_a_symmetry_is_rebuilt_from_its_spec():
    symmetry = equirl.symmetry_of("CartPole-v1")
    env = gym.make(SymmetryWrapper(gym.make("CartPole-v1"), symmetry, element=1).spec)
    assert (env.reset(seed=0)[0] == -gym.make("CartPole-v1").reset(seed=0)[0]).all()


@pytest.mark.filterwarnings("ignore")  # the checkers say a lot
def test_checkers_pass(case):
    for make in (lambda env: SymmetryWrapper(env, element=1), RandomSymmetry):
        check_env(make(case.make()), skip_render_check=True)
        sb3_check_env(make(case.make()))


def test_vector_wrapper_equals_the_scalar_one(case):
    for element in range(case.order):
        vector = VectorSymmetryWrapper(SyncVectorEnv([lambda: short(case)] * 2), element=element)
        scalar = SyncVectorEnv(
            [lambda element=element: SymmetryWrapper(short(case), element=element)] * 2
        )
        rng = np.random.default_rng(0)
        np.testing.assert_array_equal(vector.reset(seed=1)[0], scalar.reset(seed=1)[0])
        for _ in range(30):
            actions = rng.integers(len(case.permutations[0]), size=2)
            for found, expected in zip(
                vector.step(actions)[:4], scalar.step(actions)[:4], strict=True
            ):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("cartpole", AutoresetMode.SAME_STEP),
        ("acrobot", AutoresetMode.DISABLED),
        ("gridworld", AutoresetMode.SAME_STEP),
        ("gridworld-image", AutoresetMode.NEXT_STEP),
    ],
)
def test_random_vectors_equal_vectors_of_random_environments(cases, name, mode):
    case = cases[name]
    twin = VectorRandomSymmetry(SyncVectorEnv([lambda: short(case)] * 3, autoreset_mode=mode))
    each = SyncVectorEnv([lambda: RandomSymmetry(short(case))] * 3, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    found, expected = twin.reset(seed=[4, 5, 60]), each.reset(seed=[4, 5, 60])
    np.testing.assert_array_equal(found[0], expected[0])
    ends, elements = 0, set()
    for step in range(60):
        if step == 40:
            # in the midst of episodes, without a seed
            found, expected = twin.reset(), each.reset()
            np.testing.assert_array_equal(found[0], expected[0])
        assert twin.elements.tolist() == [env.element for env in each.envs]
        elements.add(tuple(twin.elements.tolist()))
        actions = rng.integers(len(case.permutations[0]), size=3)
        sent = actions.copy()
        found, expected = twin.step(actions), each.step(actions)
        assert (actions == sent).all()
        for one, other in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        done = found[2] | found[3]
        ends += done.sum()
        assert ("final_obs" in found[4]) == ("final_obs" in expected[4])
        if "final_obs" in expected[4]:
            for i in range(3):
                np.testing.assert_array_equal(found[4]["final_obs"][i], expected[4]["final_obs"][i])
        if mode == AutoresetMode.DISABLED and done.any():
            # gymnasium takes the mask out of the options it is given, so each gets its own
            found = twin.reset(options={"reset_mask": done.copy()})
            expected = each.reset(options={"reset_mask": done.copy()})
            np.testing.assert_array_equal(found[0], expected[0])
    assert ends > 15
    assert len(elements) > 3


def test_same_step_shows_final_observations_through_the_element_that_ended(cases):
    case = cases["cartpole"]
    plain, twin = (
        SyncVectorEnv([lambda: short(case)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
        for _ in range(2)
    )
    twin = VectorRandomSymmetry(twin)
    plain.reset(seed=[4, 5, 60])
    twin.reset(seed=[4, 5, 60])
    elements = twin.elements.copy()
    assert set(elements) == {0, 1}
    for _ in range(6):
        expected = plain.step(np.zeros(3, int))[4]
        found = twin.step(elements)[4]  # the action 0, seen through the element
    for i in range(3):
        sign = -1 if elements[i] else 1
        np.testing.assert_array_equal(found["final_obs"][i], sign * expected["final_obs"][i])


def test_cartpoles_own_vector_environment_is_mirrored():
    plain = gym.make_vec("CartPole-v1", **VECTOR_ENTRY)
    seen = VectorSymmetryWrapper(gym.make_vec("CartPole-v1", **VECTOR_ENTRY), element=1)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(seen.reset(seed=0)[0], -plain.reset(seed=0)[0])
    for _ in range(100):
        actions = rng.integers(2, size=3)
        found, expected = seen.step(1 - actions), plain.step(actions)
        np.testing.assert_array_equal(found[0], -expected[0])
        for one, other in zip(found[1:4], expected[1:4], strict=True):
            np.testing.assert_array_equal(one, other)


def test_cartpoles_own_vector_environment_draws_an_element_per_episode():
    envs = VectorRandomSymmetry(gym.make_vec("CartPole-v1", **VECTOR_ENTRY))
    envs.reset(seed=0)
    ended = np.zeros(3, bool)
    changes, ends = 0, 0
    for _ in range(300):
        before = envs.elements.copy()
        _, _, terminated, truncated, _ = envs.step(np.ones(3, int))
        changed = envs.elements != before
        assert not changed[~ended].any()  # only where an episode has just begun
        changes += changed.sum()
        ended = terminated | truncated
        ends += ended.sum()
    assert ends > 40
    assert 0.25 * ends < changes < 0.75 * ends


def test_cartpoles_own_vector_environment_is_reproducible():
    runs = []
    for _ in range(2):
        envs = VectorRandomSymmetry(gym.make_vec("CartPole-v1", **VECTOR_ENTRY))
        record = [envs.reset(seed=3)[0]]
        record += [envs.step(np.ones(3, int))[0] for _ in range(50)]
        runs.append(np.array(record))
    np.testing.assert_array_equal(*runs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads
def test_vectors_in_other_processes_are_seen_through_the_same_elements():
    found = []
    for mode in ("async", "sync"):
        envs = VectorRandomSymmetry(gym.make_vec("CartPole-v1", 3, vectorization_mode=mode))
        first, _ = envs.reset(seed=[7, None, 9])
        assert len(first) == 3
        observations = [envs.reset(seed=3)[0]]
        observations += [envs.step(np.ones(3, int))[0] for _ in range(30)]
        found.append((np.array(observations), envs.elements.copy()))
        envs.close()
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_unknown_autoreset_mode_is_refused():
    envs = gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")
    envs.metadata = {k: v for k, v in envs.metadata.items() if k != "autoreset_mode"}
    with pytest.raises(ValueError, match="autoreset_mode"):
        VectorRandomSymmetry(envs)


class Echo(gym.Env):
    """Shows random observations, and keeps what it is told."""

    def __init__(self, shape, dtype=np.float64):
        bounds = (0, 9) if np.issubdtype(dtype, np.integer) else (-np.inf, np.inf)
        self.observation_space = gym.spaces.Box(*bounds, shape, dtype)
        self.action_space = self.observation_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.told = action
        return self.observation_space.sample(), 0.0, False, False, {}


QUARTER, MIRROR = [[0.0, -1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, -1.0]]
EIGHTH = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
CORNERS = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # order 3, moves and signs together
flip, turns = equicore.cyclic(2), equicore.cyclic(4)
square = equicore.dihedral(4)

MOVES = {  # entries move and change signs, or do nothing
    "rows": (equicore.Matrix.from_generators(turns, [QUARTER]), (3, 2), np.float32),
    "columns": (equicore.Matrix.from_generators(turns, [QUARTER], dim=-2), (2, 3), np.float64),
    "dihedral": (equicore.Matrix.from_generators(square, [QUARTER, MIRROR]), (2,), np.float32),
    "rotation": (equicore.Matrix.from_generators(equicore.cyclic(3), [CORNERS]), (3,), np.float64),
    "some signs": (equicore.Matrix.from_generators(flip, [np.diag([1, -1, 1])]), (3,), np.float32),
    "symmetric": (
        equicore.Permutation.from_generators(equicore.symmetric(3), [[1, 0, 2], [1, 2, 0]]),
        (2, 3),
        np.float32,
    ),
    "images": (equicore.image_dihedral(), (2, 3, 3), np.uint8),
    "vectors on a grid": (equicore.vector_field(equicore.image_dihedral()), (2, 3, 3), np.float32),
    "trivial": (equicore.Trivial(flip), (3,), np.float64),
}
OTHERS = {  # something else happens, to some entries or to the values
    "mixed": (equicore.Matrix.from_generators(equicore.cyclic(8), [EIGHTH]), (2,), np.float64),
    "one is mixed": (equicore.Matrix.from_generators(flip, [[[1, 1], [0, -1]]]), (2,), np.float32),
    "doubled": (equicore.Matrix.from_generators(flip, [[[0, 2], [0.5, 0]]]), (2,), np.float64),
    "one is doubled": (
        equicore.Matrix.from_generators(flip, [[[0, -2, 0], [-0.5, 0, 0], [0, 0, 1]]]),
        (3,),
        np.float32,
    ),
    "boxes": (equicore.Boxes(equicore.image_rotations(), "corners"), (4,), np.float32),
    "tokens": (
        equicore.Tokens.from_generators(equicore.cyclic(3), [[1, 2, 0, *range(3, 10)]]),
        (4,),
        np.int64,
    ),
}


def check_wrapped(representation, shape, dtype):
    """A wrapper shows and tells what the symmetry does on batches, in the space's type."""
    symmetry = equirl.Symmetry(representation, representation)
    group = representation.group
    for element in range(len(group)):
        env = SymmetryWrapper(Echo(shape, dtype), symmetry, element)
        env.observation_space.seed(element)
        action = env.observation_space.sample()
        sent = action.copy()
        seen = [env.reset()[0], env.step(action)[0]]
        assert (action == sent).all()
        env.observation_space.seed(element)
        _, first, second = (env.observation_space.sample() for _ in range(3))
        shown = symmetry.act_on_observations(element, np.stack([first, second]))
        told = symmetry.act_on_actions(group.inverse(element), action[None])[0]
        for found, expected in zip([*seen, env.unwrapped.told], [*shown, told], strict=True):
            np.testing.assert_array_equal(found, expected)
            assert (found.dtype, found.shape) == (dtype, shape)


@pytest.mark.parametrize("name", {**MOVES, **OTHERS})
def test_every_kind_of_representation_acts_as_on_batches(name):
    check_wrapped(*{**MOVES, **OTHERS}[name])


@pytest.mark.parametrize("name", MOVES)
def test_entries_that_only_move_and_change_signs_need_no_torch(name, monkeypatch):
    representation, shape, dtype = MOVES[name]
    symmetry = equirl.Symmetry(representation, representation)
    env = SymmetryWrapper(Echo(shape, dtype), symmetry, 1)
    monkeypatch.setattr(type(representation), "act", lambda *_: pytest.fail("torch was called"))
    env.reset()
    env.step(env.action_space.sample())


def test_action_ids_need_no_torch(monkeypatch):
    env = SymmetryWrapper(gym.make("CartPole-v1"), element=1)
    for name in ("act", "act_on_labels"):
        monkeypatch.setattr(equicore.Permutation, name, lambda *_: pytest.fail("torch was called"))
    env.reset(seed=0)
    env.step(1)


@pytest.mark.parametrize("shape", [(2,), (3, 2)])
def test_observations_that_the_environment_uses_again_are_not_changed(shape):
    """Neither those that it has shown, nor those that it was told."""
    for representation in (MOVES["rows"][0], OTHERS["mixed"][0], equicore.Trivial(flip)):
        env = SymmetryWrapper(
            Echo(shape), equirl.Symmetry(representation, representation), element=1
        )
        kept = np.ones(shape)
        env.unwrapped.observation_space.sample = lambda kept=kept: kept
        env.reset()[0][:] = 7
        env.step(np.ones(shape))[0][:] = 7
        assert (kept == 1).all()


def test_the_element_is_the_identity_unless_another_is_given():
    vector = VectorSymmetryWrapper(gym.make_vec("CartPole-v1", **VECTOR_ENTRY))
    assert SymmetryWrapper(gym.make("CartPole-v1")).element == 0
    assert vector.elements.tolist() == [0, 0, 0]


def test_action_of_another_shape_is_refused():
    flip = equicore.Matrix.from_generators(equicore.cyclic(2), [-np.eye(2)])
    env = SymmetryWrapper(Echo((2,)), equirl.Symmetry(flip, flip), 1)
    with pytest.raises(ValueError, match=r"expected the shape of Box.*; got \(3,\)"):
        env.step(np.zeros(3))
