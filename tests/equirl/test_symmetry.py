import importlib.metadata
import json
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

import equicore
import equirl
from equicore import (
    DirectSum,
    Image,
    Matrix,
    Permutation,
    Trivial,
    cyclic,
    dihedral,
    image_dihedral,
    image_rotations,
)
from equirl import Symmetry, register_symmetry, registered_symmetries, symmetry_of
from equirl.choices import Choices

FLIP = cyclic(2)
SWAP = Permutation.from_generators(FLIP, [[1, 0]])
NEGATE = Matrix.from_generators(FLIP, [-np.eye(4)])
PLANE = spaces.Box(-1, 1, (4,), np.float32)


def test_observation_and_action_must_be_of_one_group():
    with pytest.raises(ValueError, match=r"one group.*cyclic\(2\).*cyclic\(4\)"):
        Symmetry(NEGATE, Permutation.from_generators(cyclic(4), [[1, 2, 3, 0]]))


def test_group_is_that_of_both(case):
    symmetry = case.symmetry()
    assert symmetry.group == symmetry.observation.group == symmetry.action.group
    assert len(symmetry.group) == case.order


def test_symmetries_of_environments_are_those_written_by_hand(case):
    symmetry = case.symmetry()
    observations = case.observations(20)
    labels = np.arange(len(case.permutations[0]))
    for g in range(case.order):
        np.testing.assert_array_equal(
            symmetry.act_on_observations(g, observations), case.act(g, observations)
        )
        assert tuple(symmetry.act_on_actions(g, labels)) == case.permutations[g]


def test_inverse_undoes(case):
    symmetry = case.symmetry()
    observations, actions = case.observations(20), np.arange(symmetry.action.size)
    for g in range(case.order):
        back = symmetry.group.inverse(g)
        there = symmetry.act_on_observations(g, observations)
        np.testing.assert_array_equal(symmetry.act_on_observations(back, there), observations)
        there = symmetry.act_on_actions(g, actions)
        np.testing.assert_array_equal(symmetry.act_on_actions(back, there), actions)


@pytest.mark.parametrize("g", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_observations_come_back_new_and_in_their_type(g, dtype):
    symmetry = Symmetry(NEGATE, SWAP)
    observations = np.ones((3, 4), dtype)
    observations.flags.writeable = False
    acted = symmetry.act_on_observations(g, observations)
    assert acted.dtype == dtype
    acted[:] = 7
    assert (observations == 1).all()


@pytest.mark.parametrize("g", [0, 1])
def test_trivial_representation_returns_new_arrays_too(g):
    symmetry = Symmetry(Trivial(FLIP), Trivial(FLIP))
    observations = np.ones((3, 4), np.float32)
    symmetry.act_on_observations(g, observations)[:] = 7
    symmetry.act_on_actions(g, observations)[:] = 7
    assert (observations == 1).all()


@pytest.mark.parametrize("g", [0, 1])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_action_ids_come_back_new_and_in_their_type(g, dtype):
    actions = np.array([0, 1, 1], dtype)
    acted = Symmetry(NEGATE, SWAP).act_on_actions(g, actions)
    assert acted.dtype == dtype
    assert acted.tolist() == ([1, 0, 0] if g else [0, 1, 1])
    acted[:] = 7
    assert actions.tolist() == [0, 1, 1]


def test_action_vectors_are_multiplied():
    symmetry = Symmetry(NEGATE, Matrix.from_generators(FLIP, [-np.eye(2)]))
    actions = np.array([[0.5, -1], [0, 1]], np.float32)
    acted = symmetry.act_on_actions(1, actions)
    assert acted.tolist() == [[-0.5, 1], [0, -1]]
    assert acted.dtype == np.float32


def test_action_vectors_may_be_permuted():
    actions = np.array([[0.5, -1]], np.float32)
    assert Symmetry(NEGATE, SWAP).act_on_actions(1, actions).tolist() == [[-1, 0.5]]


def test_arrays_with_negative_strides_are_accepted():
    observations = np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::-1]
    acted = Symmetry(NEGATE, SWAP).act_on_observations(1, observations)
    np.testing.assert_array_equal(acted, -observations)


@pytest.mark.parametrize(
    ("symmetry", "observation_space", "action_space", "message"),
    [
        (
            Symmetry(NEGATE, SWAP),
            spaces.Box(-1, 1, (5,), np.float32),
            spaces.Discrete(2),
            "does not fit the observation space",
        ),
        (Symmetry(NEGATE, SWAP), PLANE, spaces.Discrete(3), r"actions 0\.\.1, but .*Discrete\(3\)"),
        (Symmetry(NEGATE, SWAP), PLANE, spaces.Discrete(2, start=1), "start=1"),
        (Symmetry(NEGATE, NEGATE), PLANE, spaces.Discrete(4), "ids, on which a Permutation acts"),
        (
            Symmetry(NEGATE, SWAP),
            spaces.Dict({"position": PLANE}),
            spaces.Discrete(2),
            "observations are dicts with position; a symmetry of them has",
        ),
        (Symmetry(NEGATE, SWAP), spaces.Discrete(4), spaces.Discrete(2), "acts on Box observa"),
        (
            Symmetry(NEGATE, SWAP),
            spaces.Box(0, 1, (4,), np.float32),
            spaces.Discrete(2),
            "observation space .* is not invariant: element 1",
        ),
        (
            Symmetry(NEGATE, NEGATE),
            PLANE,
            spaces.Box(0, 1, (4,), np.float32),
            "action space .* is not invariant",
        ),
        (
            Symmetry(NEGATE, NEGATE),
            PLANE,
            spaces.Box(-1, 1, (3,), np.float32),
            "does not fit the action space",
        ),
        (Symmetry(NEGATE, SWAP), PLANE, spaces.MultiDiscrete([2, 3]), "cannot change places"),
        (Symmetry(NEGATE, SWAP), PLANE, spaces.MultiBinary(3), "of 3 choices or of 6 options"),
        (Symmetry(NEGATE, SWAP), PLANE, spaces.Tuple([]), "MultiBinary or Box actions"),
        (
            Symmetry(NEGATE, SWAP),
            spaces.Box(-3, 3, (4,), np.int64),
            spaces.Discrete(2),
            "does not fit the observation space",
        ),
        (
            Symmetry(image_rotations(), Permutation.from_generators(cyclic(4), [[1, 2, 3, 0]])),
            spaces.Box(0, 1, (2, 3, 4), np.float32),
            spaces.Discrete(4),
            "does not fit the observation space.*quarter turns",
        ),
    ],
)
def test_check_spaces_refuses(symmetry, observation_space, action_space, message):
    with pytest.raises(ValueError, match=message):
        symmetry.check_spaces(observation_space, action_space)


@pytest.mark.parametrize("seed", range(5))
def test_check_spaces_sees_an_interval_that_is_off_centre_in_one_entry(seed):
    high = np.ones(4, np.float32)
    high[seed % 4] = 3
    with pytest.raises(ValueError, match="not invariant"):
        Symmetry(NEGATE, SWAP).check_spaces(spaces.Box(-1, high), spaces.Discrete(2))


@pytest.mark.parametrize(
    "action_space", [spaces.Box(-1, 1, (4,), np.float32), spaces.Box(-2, 2, (4,), np.float64)]
)
def test_check_spaces_accepts_box_actions(action_space):
    Symmetry(NEGATE, NEGATE).check_spaces(PLANE, action_space)


EIGHTH = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)


@pytest.mark.parametrize(
    "matrix",
    [
        EIGHTH,
        [[1, 1], [0, -1]],  # one entry is mixed, the other is not
        [[1, 0, 0], [0, 0.6, 0.8], [0, 0.8, -0.6]],
    ],
    ids=str,
)
def test_check_spaces_accepts_matrices_that_mix_entries(matrix):
    """They take corners out of any box, so this tells nothing."""
    group = cyclic(8 if matrix is EIGHTH else 2)
    mixing = Matrix.from_generators(group, [matrix])
    box = spaces.Box(-1, 1, (len(matrix),), np.float32)
    Symmetry(mixing, Trivial(group)).check_spaces(box, box)


@pytest.mark.parametrize(
    "representation",
    [
        Matrix.from_generators(FLIP, [[[0, 2], [0.5, 0]]]),  # moves entries, and makes one larger
        Matrix.from_generators(FLIP, [[[0, -2], [-0.5, 0]]]),
        Matrix.from_generators(FLIP, [[[0, 1], [1, 0]]]),
        Permutation.from_generators(FLIP, [[1, 0]]),
    ],
)
def test_check_spaces_sees_entries_that_move_to_a_narrower_interval(representation):
    with pytest.raises(ValueError, match=r"element 1 \(.*\) takes observations out of it"):
        Symmetry(representation, SWAP).check_spaces(
            spaces.Box(np.float32([-1, -1.5]), np.float32([1, 1.5])), spaces.Discrete(2)
        )


class Doubled(Trivial):
    """Returns another shape, which no representation may."""

    def act(self, g, x):
        return torch.cat([x, x], 1)


def test_check_spaces_sees_another_shape():
    with pytest.raises(ValueError, match="is not invariant"):
        Symmetry(Doubled(FLIP), SWAP).check_spaces(
            spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)
        )


def test_check_spaces_leaves_the_random_state_of_the_spaces_alone():
    first, second = spaces.Box(-1, 1, (4,), seed=5), spaces.Box(-1, 1, (4,), seed=5)
    Symmetry(NEGATE, SWAP).check_spaces(first, spaces.Discrete(2))
    assert first.sample().tolist() == second.sample().tolist()


@pytest.mark.parametrize(
    ("symmetry", "shape"),
    [
        (Symmetry(NEGATE, SWAP), (4,)),
        (Symmetry(Matrix.from_generators(FLIP, [-np.eye(3)], dim=-2), Trivial(FLIP)), (3, 2)),
        (
            Symmetry(
                Matrix.from_generators(cyclic(3), [[[-0.5, -(0.75**0.5)], [0.75**0.5, -0.5]]]),
                Permutation.from_generators(cyclic(3), [[1, 2, 0]]),
            ),
            (2,),
        ),
        (Symmetry(image_dihedral(), Trivial(dihedral(4))), (2, 3, 3)),
        (Symmetry(Image(FLIP, [0, 2], [False, True]), SWAP), (2, 3, 5)),
    ],
)
def test_json_round_trip(symmetry, shape):
    again = Symmetry.from_dict(json.loads(json.dumps(symmetry.to_dict())))
    group = symmetry.group
    assert again.group == group
    assert (again.group.name, again.group.names) == (group.name, group.names)
    assert again.group.generators == group.generators
    assert type(again.observation) is type(symmetry.observation)
    assert type(again.action) is type(symmetry.action)
    x = torch.rand(4, *shape, dtype=torch.float64)
    assert torch.equal(again.observation.orbit(x), symmetry.observation.orbit(x))
    y = torch.rand(4, getattr(symmetry.action, "size", 3), dtype=torch.float64)
    assert torch.equal(again.action.orbit(y), symmetry.action.orbit(y))


@pytest.mark.parametrize(
    "kind", ["Group", "os.system", "Representation.__init__", "cyclic", "nn", "", None, "__doc__"]
)
def test_from_dict_refuses_what_is_no_representation(kind):
    data = Symmetry(NEGATE, SWAP).to_dict()
    data["action"]["kind"] = kind
    with pytest.raises(ValueError, match="no representation of equicore"):
        Symmetry.from_dict(data)


def test_from_dict_refuses_the_abstract_representation():
    data = Symmetry(NEGATE, SWAP).to_dict()
    data["action"] = {"kind": "Representation"}
    with pytest.raises((ValueError, TypeError)):
        Symmetry.from_dict(data)


def test_from_dict_refuses_a_table_that_is_no_group():
    data = Symmetry(NEGATE, SWAP).to_dict()
    data["group"]["table"] = [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="inverse"):
        Symmetry.from_dict(data)


def test_unknown_id_lists_the_known_ones_and_a_near_miss():
    with pytest.raises(ValueError) as error:
        symmetry_of("CartPole-v0")
    message = str(error.value)
    assert "did you mean 'CartPole-v1'?" in message
    for known in ("Acrobot-v1", "CartPole-v1", "equirl/Gridworld-v0"):
        assert known in message
    assert "register_symmetry('CartPole-v0'" in message


def test_unknown_id_without_a_near_miss_suggests_nothing():
    with pytest.raises(ValueError, match="no symmetry is registered for 'Zzz-v9'") as error:
        symmetry_of("Zzz-v9")
    assert "did you mean" not in str(error.value)


def test_register_a_function():
    seen = []

    def factory(spec):
        seen.append(spec)
        return Symmetry(NEGATE, SWAP)

    register_symmetry("my/Env-v3", factory)
    assert "my/Env-v3" in registered_symmetries()
    assert symmetry_of("my/Env-v3").observation is NEGATE
    assert seen[0].id == "my/Env-v3"


def test_register_a_string_that_is_imported_at_first_use(monkeypatch):
    module = types.ModuleType("a_module_of_this_test")
    register_symmetry("my/Env-v3", "a_module_of_this_test:factory")
    with pytest.raises(ValueError, match="cannot import a_module_of_this_test"):
        symmetry_of("my/Env-v3")
    module.factory = lambda spec: Symmetry(NEGATE, SWAP)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert symmetry_of("my/Env-v3").action is SWAP


def test_register_again_replaces():
    register_symmetry("CartPole-v1", lambda spec: Symmetry(Trivial(FLIP), SWAP))
    assert isinstance(symmetry_of("CartPole-v1").observation, Trivial)


def test_the_factory_sees_the_keywords_of_the_environment():
    seen = []
    register_symmetry(
        "CartPole-v1", lambda spec: seen.append(spec.kwargs) or Symmetry(NEGATE, SWAP)
    )
    symmetry_of(gym.make("CartPole-v1", sutton_barto_reward=True))
    assert seen[0]["sutton_barto_reward"] is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: "CartPole-v1",
        lambda: gym.make("CartPole-v1"),
        lambda: gym.make("CartPole-v1").unwrapped,
        lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1")),
        lambda: gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"),
        lambda: gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point"),
        lambda: gym.wrappers.vector.RecordEpisodeStatistics(
            gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        ),
        lambda: gym.wrappers.vector.RecordEpisodeStatistics(
            gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
        ),
        lambda: gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2),
        lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2),
    ],
    ids=[
        "id",
        "env",
        "unwrapped",
        "wrapped",
        "sync",
        "vector",
        "wrapped-sync",
        "wrapped-vector",
        "sync-by-hand",
        "sb3",
    ],
)
def test_symmetry_of_accepts(make):
    symmetry = symmetry_of(make())
    assert symmetry.act_on_observations(1, np.ones((1, 4), np.float32)).tolist() == [[-1] * 4]


def test_environment_without_an_id_is_refused():
    class Nameless(gym.Env):
        observation_space = PLANE
        action_space = spaces.Discrete(2)

    with pytest.raises(ValueError, match="not made from an environment id.*pass a Symmetry"):
        symmetry_of(Nameless())


def test_gridworld_images_are_turned_as_images():
    as_image = gym.make("equirl/Gridworld-v0", observation="image")
    assert isinstance(symmetry_of(as_image).observation, Image)
    assert isinstance(symmetry_of(gym.make("equirl/Gridworld-v0")).observation, Matrix)
    assert isinstance(symmetry_of("equirl/Gridworld-v0").observation, Matrix)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.make_vec("equirl/Gridworld-v0", num_envs=2, observation="image"),
        lambda: DummyVecEnv([lambda: gym.make("equirl/Gridworld-v0", observation="image")]),
    ],
    ids=["gymnasium", "sb3"],
)
def test_gridworld_images_of_a_vector_environment_too(make):
    assert isinstance(symmetry_of(make()).observation, Image)


def test_a_function_that_returns_no_symmetry_is_named():
    register_symmetry("CartPole-v1", lambda spec: None)
    with pytest.raises(TypeError, match="registered for CartPole-v1 returned None, not a Symmetry"):
        symmetry_of("CartPole-v1")


def test_a_sum_of_rotations_is_taken_where_the_rotation_is():
    """A rotation by 45 degrees takes corners out of any box, alone or as a part."""
    angle = np.pi / 4
    turn = Matrix.from_generators(
        cyclic(8), [[[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]]
    )
    twice = DirectSum([(turn, 2), (turn, 2)])
    plane = spaces.Box(-1, 1, (2,), np.float32)
    Symmetry(turn, turn).check_spaces(plane, plane)
    Symmetry(twice, turn).check_spaces(spaces.Box(-1, 1, (4,), np.float32), plane)
    sign = Matrix.from_generators(cyclic(8), [[[-1]]])
    with pytest.raises(ValueError, match="action space .* is not invariant"):  # by the sign
        Symmetry(turn, DirectSum([(turn, 2), (sign, 1)])).check_spaces(
            plane, spaces.Box(np.float32([-1, -1, 0]), np.float32([1, 1, 1]))
        )
    quarter = Matrix.from_generators(cyclic(4), [[[0, -1], [1, 0]]])  # which mixes no entries
    lopsided = spaces.Box(np.array([-1, -1, -1, -2]), np.array([1, 1, 1, 2]), dtype=np.float32)
    with pytest.raises(ValueError, match="observation space .* is not invariant"):
        Symmetry(DirectSum([(quarter, 2), (quarter, 2)]), quarter).check_spaces(lopsided, plane)


def test_one_version():
    assert equirl.__version__ == equicore.__version__ == importlib.metadata.version("equirl")


def test_bounds_in_the_order_of_stacked_frames_count_only_for_stacked_frames():
    """``VecFrameStack`` repeats each bound, and not all in turn."""
    flip = cyclic(2)
    space = spaces.Box(np.float32([0, 0, -1, -1]), np.ones(4, np.float32))
    action = Matrix.from_generators(flip, [[[-1]]])
    frames = Matrix.from_generators(flip, [np.diag([1, -1, 1, -1])])
    Symmetry(frames, action).check_spaces(space, spaces.Box(-1, 1, (1,)))
    others = Matrix.from_generators(flip, [np.diag([1, -1, -1, 1])])
    with pytest.raises(ValueError, match="is not invariant"):
        Symmetry(others, action).check_spaces(space, spaces.Box(-1, 1, (1,)))


@pytest.mark.parametrize("choices", [[3, 0], [0, 2], [-1, 0]])
def test_options_that_a_choice_lacks_are_refused(choices):
    flip = Choices(cyclic(2), [[0, 1, 2, 3, 4], [2, 1, 0, 3, 4]], [3, 2])
    with pytest.raises(ValueError, match=r"numbers of their \[3, 2\] options, from 0; got"):
        flip.act(1, torch.tensor([[0, 1], choices]))


def test_what_is_no_function_makes_no_environments():
    with pytest.raises(TypeError, match="or a function that makes it"):
        equirl.rollout_experience(None, gym.make("CartPole-v1"), seed=0)
