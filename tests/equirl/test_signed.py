"""Signed permutations, and what is written of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equirl import Names
from equirl.named import choices, mirror, move, negate, power, swap, symmetry
from equirl.signed import Signed, generated, likely_mistakes, named_of, signed_of, written


@st.composite
def elements(draw, size=6):
    source = draw(st.permutations(range(size)))
    sign = draw(st.lists(st.sampled_from((1, -1)), min_size=size, max_size=size))
    return Signed(tuple(source), tuple(sign))


@given(elements(), elements())
def test_products_are_those_of_matrices(one, other):
    np.testing.assert_array_equal((one @ other).matrix(), one.matrix() @ other.matrix())
    assert Signed.of(one.matrix()) == one


@given(elements())
def test_order_is_how_often_it_gives_the_identity(element):
    power_of = np.linalg.matrix_power(element.matrix(), element.order())
    np.testing.assert_array_equal(power_of, np.eye(6))
    for k in range(1, element.order()):
        assert (np.linalg.matrix_power(element.matrix(), k) != np.eye(6)).any()


@pytest.mark.parametrize("matrix", [np.ones((2, 2)), np.diag([1, 0.5]), np.array([[1, 0], [1, 0]])])
def test_what_is_no_signed_permutation(matrix):
    assert Signed.of(np.asarray(matrix, float)) is None


def test_generated_groups_are_closed_and_limited():
    quarter = Signed((1, 0), (-1, 1))
    group = generated([quarter, Signed((0, 1), (1, -1))], 64)
    assert len(group) == 8
    assert {a @ b for a in group for b in group} == group
    assert generated([quarter], 3) is None


@given(elements())
def test_written_code_is_the_symmetry(element):
    if element == Signed.identity(6) or set(element.source[:4]) != {0, 1, 2, 3}:
        return
    names = Names(("a", "b", "c", "d"), ("left", "right"))
    made = named_of([element], names, discrete=False)
    assert signed_of(made, 1) == element
    scope = {f.__name__: f for f in (choices, move, negate, power, swap, symmetry)}
    again = eval(written([element], names, discrete=False), scope)  # what users paste
    assert again.to_dict() == made.to_dict()


def test_discrete_actions_are_written_as_choices():
    element = Signed((0, 2, 1), (-1, 1, 1))
    code = written([element], Names(("x",), ("left", "right")), discrete=True)
    assert "choices('left', 'right')" in code and "swap('left', 'right')" in code
    assert "negate('x')" in code


def test_one_likely_mistake_leads_back():
    """Each mistake of a mistake includes the truth: what a lie resembles can be found."""
    truth = symmetry(
        ("x", "y", "left", "right"),
        choices("nothing", "to the left", "to the right"),
        mirror([negate("x"), swap("left", "right")], [swap("to the left", "to the right")]),
    )
    wrongs = dict(likely_mistakes(truth))
    assert "observation: another sign of 'x'" in wrongs
    assert "observation: 'left' and 'right' not exchanged" in wrongs
    assert "action: 'to the left' and 'to the right' not exchanged" in wrongs
    for text, wrong in wrongs.items():
        if text.endswith("with other signs"):
            continue  # two changes away
        back = [other.to_dict() for _, other in likely_mistakes(wrong)]
        assert truth.to_dict() in back, text


def test_larger_groups_have_no_list_of_mistakes():
    turn = symmetry(
        ("x", "y"),
        ("a", "b"),
        power(4, [move({"x": "y", "y": "-x"})], [move({"a": "b", "b": "-a"})]),
    )
    assert list(likely_mistakes(turn)) == []
