"""Symmetries by the names of entries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equicore import Permutation, cyclic, image_flips
from equirl import Names, Symmetry
from equirl.named import (
    choices,
    mirror,
    move,
    negate,
    power,
    repeat,
    swap,
    symmetry,
    turn,
    with_invariant,
)

ROBOT = ("height", "y", "roll", "left hip roll", "left hip pitch", "left hip roll velocity",
         "right hip roll", "right hip pitch", "right hip roll velocity")  # fmt: skip
MOTORS = ("left roll", "left pitch", "right roll", "right pitch")


def robot():
    seen = [negate("y", "roll"), swap("left hip", "right hip", negate=("roll",))]
    return symmetry(ROBOT, MOTORS, mirror(seen, [swap("left", "right", negate=("roll",))]))


def test_a_mirror_image():
    found, row = robot(), np.arange(1.0, 10)
    assert found.group == cyclic(2)
    expected = [1, -2, -3, -7, 8, -9, -4, 5, -6]
    assert found.act_on_observations(1, row[None])[0].tolist() == expected
    assert found.act_on_actions(1, np.array([[1.0, 2, 3, 4]]))[0].tolist() == [-3, 4, -1, 2]


def test_it_is_described():
    assert robot().describe().splitlines() == [
        "cyclic(2), of order 2",
        "element 1 on observations",
        "  y -> -y",
        "  roll -> -roll",
        "  left hip roll <-> -right hip roll",
        "  left hip pitch <-> right hip pitch",
        "  left hip roll velocity <-> -right hip roll velocity",
        "  unchanged: height",
        "element 1 on actions",
        "  left roll <-> -right roll",
        "  left pitch <-> right pitch",
    ]
    bare = Symmetry(robot().observation, robot().action)
    assert "  entry 1 -> -entry 1" in bare.describe()
    image = Symmetry(image_flips(), Permutation.from_generators(cyclic(2), [[1, 0]]))
    assert "Image" in image.describe()


def test_turns():
    names, wheels = ("x", "y", "speed x", "speed y"), ("push x", "push y")
    for parts in (3, 4, 8):
        turned = [turn("x", "y", by=parts), turn("speed x", "speed y", by=parts)]
        found = symmetry(names, wheels, power(parts, turned, [turn("push x", "push y", by=parts)]))
        assert found.group == cyclic(parts)
        moved = found.act_on_observations(1, np.array([[1.0, 0, 0, 1]]))[0]
        angle = 2 * np.pi / parts
        expected = [np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)]
        np.testing.assert_allclose(moved, expected, atol=1e-12)
    flipped = mirror([negate("y", "speed y")], [negate("push y")])
    quarter = power(4, [turn("x", "y"), turn("speed x", "speed y")], [turn("push x", "push y")])
    both = symmetry(names, wheels, quarter, flipped)
    assert len(both.group) == 8 and len(both.group.generators) == 2
    assert "speed x -> speed y" in both.describe() and "push y -> -push y" in both.describe()


def test_moves_are_general():
    quarter = move({"x": "y", "y": "-x"})
    by_move = symmetry(("x", "y"), ("u",), power(4, [quarter], []))
    by_turn = symmetry(("x", "y"), ("u",), power(4, [turn("x", "y")], []))
    assert by_move.observation.matrices.equal(by_turn.observation.matrices)


def test_discrete_actions():
    engines = choices("nothing", "left engine", "main engine", "right engine")
    found = symmetry(("x",), engines, mirror([negate("x")], [swap("left", "right")]))
    assert found.action.permutations[1].tolist() == [0, 3, 2, 1]
    legs = choices("north", "east", "south", "west")
    ring = move({"north": "east", "east": "south", "south": "west", "west": "north"})
    found = symmetry(("x", "y"), legs, power(4, [turn("x", "y")], [ring]))
    assert found.action.permutations[1].tolist() == [1, 2, 3, 0]


def test_stacked_frames_and_extras():
    one = robot()
    stacked = repeat(one, 3)
    rows = np.random.default_rng(0).normal(size=(5, 9))
    moved = one.act_on_observations(1, rows)
    found = stacked.act_on_observations(1, np.concatenate([rows[:-2], rows[1:-1], rows[2:]], 1))
    np.testing.assert_array_equal(found, np.concatenate([moved[:-2], moved[1:-1], moved[2:]], 1))
    assert stacked.names.observation[9] == "height, frame 1"
    timed = with_invariant(one, "time left")
    assert timed.act_on_observations(1, np.arange(10.0)[None])[0][-1] == 9
    assert timed.names.observation[-1] == "time left" and timed.names.action == MOTORS
    with pytest.raises(ValueError, match="a symmetry of vectors"):
        repeat(Symmetry(image_flips(), one.action), 2)
    with pytest.raises(ValueError, match="frames from 1 on"):
        repeat(one, 0)


def test_names_go_through_plain_values():
    assert Symmetry.from_dict(robot().to_dict()).names == robot().names
    bare = Symmetry(robot().observation, robot().action)
    assert Symmetry.from_dict(bare.to_dict()).names is None


def test_names_are_as_many_as_entries():
    with pytest.raises(ValueError, match="the observation has 9 entries, and 2 names"):
        Symmetry(robot().observation, robot().action, Names(("a", "b"), MOTORS))


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([negate("rol")], r"no entry is called 'rol', .* did you mean 'roll'\?"),
        ([swap("left hip", "right hp")], "did you mean 'right hip'"),
        ([swap("left hip", "right hip", negate=("yaw",))], "no exchanged entry is called 'yaw'"),
        ([swap("left hip roll", "right hip pitch"), negate("left hip")],
         "'left hip roll' is changed twice, by swap.* and negate"),
        ([move({"left hip roll": "right hip roll"})],
         "moves something to 'right hip roll' and does not say where that moves"),
        ([move({"left hip roll": "-right hip roll", "right hip roll": "left hip roll"})],
         "after 2 times the observation entry 'left hip roll' is not what it was, but -left hip"),
        ([move({"left hip": "y"})], "'left hip' stands for 3 entries"),
        ([turn("y", "roll")], "after 2 times the observation entry 'y' is not what it was, but -y"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_by_name(seen, message):
    with pytest.raises(ValueError, match=message):
        symmetry(ROBOT, MOTORS, mirror(seen, []))


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="'left foot' has no counterpart 'right foot'"):
        symmetry(
            ("left foot", "left knee", "right knee"), ("u",), mirror([swap("left", "right")], [])
        )
    with pytest.raises(ValueError, match="the observation has the name 'x' twice"):
        symmetry(("x", "x"), ("u",), mirror([negate("x")], []))
    with pytest.raises(ValueError, match="the action has no names"):
        symmetry(("x",), (), mirror([negate("x")], []))
    with pytest.raises(ValueError, match="'go' would become -go"):
        symmetry(("x",), choices("go", "stay"), mirror([negate("x")], [negate("go")]))
    with pytest.raises(ValueError, match="identity after 2 times already, not after 4"):
        symmetry(("x",), ("u",), power(4, [negate("x")], [negate("u")]))
    with pytest.raises(ValueError, match="has generators"):
        symmetry(("x",), ("u",))
    with pytest.raises(ValueError, match="2 or more parts"):
        turn("x", "y", by=1)


@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_any_signed_involution_is_written_by_moves(order, signs):
    """Pairs that are exchanged, and entries that stay, each with a sign."""
    names, places = [f"entry-{i}" for i in range(6)], {}
    for i, j in (order[:2], order[2:4]):
        sign = "-" if signs[i] else ""
        places |= {names[i]: f"{sign}{names[j]}", names[j]: f"{sign}{names[i]}"}
    places |= {names[i]: f"{'-' if signs[i] else ''}{names[i]}" for i in order[4:]}
    found = symmetry(names, ("u",), mirror([move(places)], [negate("u")]))
    row = np.arange(1.0, 7)
    moved = found.act_on_observations(1, row[None])[0]
    for source, target in places.items():
        value = moved[names.index(target.removeprefix("-"))]
        assert value == (-1 if target.startswith("-") else 1) * row[names.index(source)]
    np.testing.assert_array_equal(found.act_on_observations(1, moved[None])[0], row)
