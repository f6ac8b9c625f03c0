"""Symmetries that are found from interaction alone."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import equirl
from equirl import Names
from equirl.discover import find_symmetries, search
from equirl.named import choices, mirror, move, negate, power, swap, symmetry


def same(found, known):
    """Whether both are one group of actions on observations and actions."""
    tables = [
        {(s.observation.matrices[g].numpy().tobytes(), _actions(s, g)) for g in range(len(s.group))}
        for s in (found, known)
    ]
    return tables[0] == tables[1]


def _actions(s, g):
    of = s.action
    table = of.permutations[g] if hasattr(of, "permutations") else of.matrices[g]
    return (table.numpy() + 0.0).tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Acrobot-v1", "Pendulum-v1")),
    ],
)
def test_known_groups_are_found(name):
    found = search(name)
    assert same(found.symmetry, equirl.symmetry_of(name))
    assert all(check.holds for check in found.checks) and found.transitions >= 19_000


@pytest.mark.slow
def test_a_larger_group_that_also_holds_is_found():
    """A gridworld whose goal is anywhere also has mirrors."""
    found = find_symmetries("equirl/Gridworld-v0")
    assert len(found.group) == 8
    known = equirl.symmetry_of("equirl/Gridworld-v0")
    matrices = {m.numpy().tobytes() for m in found.observation.matrices}
    assert {m.numpy().tobytes() for m in known.observation.matrices} <= matrices


@pytest.mark.slow
def test_nothing_is_found_where_there_is_nothing():
    found = search("MountainCar-v0")
    assert len(found.symmetry.group) == 1 and found.code == "" and found.checks == ()
    found.symmetry.check_spaces(
        gym.make("MountainCar-v0").observation_space, gym.make("MountainCar-v0").action_space
    )


def test_found_symmetries_have_the_users_names_and_can_be_registered():
    names = Names(("cos", "sin", "speed"), ("torque",))
    found = search("Pendulum-v1", names=names)
    assert "sin -> -sin" in found.symmetry.describe()
    scope = {f.__name__: f for f in (choices, mirror, move, negate, power, swap, symmetry)}
    again = eval(found.code, scope)
    assert again.to_dict() == found.symmetry.to_dict()
    equirl.register_symmetry("Pendulum-v1", lambda spec: again)
    assert equirl.check_symmetry("Pendulum-v1").holds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LunarLander-v3", "BipedalWalker-v3"])
def test_known_groups_of_box2d_are_found(name):
    assert same(find_symmetries(name), equirl.symmetry_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Swimmer-v5", "Walker2d-v5", "Reacher-v5"])
def test_known_groups_of_mujoco_are_found(name):
    pytest.importorskip("mujoco")
    assert same(find_symmetries(name), equirl.symmetry_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Hopper-v5"])
def test_bodies_without_symmetry_have_none(name):
    pytest.importorskip("mujoco")
    assert len(find_symmetries(name).group) == 1


class Still(gym.Env):
    """Nothing happens, whatever is done."""

    observation_space = spaces.Box(-1, 1, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action):
        return np.zeros(2), 0.0, False, False, {}


@pytest.mark.slow
def test_where_nothing_happens_nothing_is_claimed_of_entries():
    found = search(Still)
    assert not any(
        "entry" in line and "->" in line for line in found.symmetry.describe().splitlines()
    )


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        ("FrozenLake-v1", None, "FlattenObservation"),
        ("CartPole-v1", Names(("a",), ("b", "c")), "4 entries and 2 actions"),
        (
            lambda: gym.wrappers.ReshapeObservation(gym.make("CartPole-v1"), (2, 2)),
            None,
            "entries of vectors",
        ),
    ],
)
def test_what_has_no_entries_is_refused(make, names, message):
    with pytest.raises(ValueError, match=message):
        find_symmetries(make, names=names)
