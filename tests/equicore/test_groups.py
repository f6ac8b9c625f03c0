import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import Group, cyclic, dihedral, product, symmetric, trivial

CONSTRUCTED = [
    (trivial(), 1),
    (cyclic(1), 1),
    (cyclic(2), 2),
    (cyclic(7), 7),
    (dihedral(1), 2),
    (dihedral(2), 4),
    (dihedral(3), 6),
    (dihedral(4), 8),
    (dihedral(6), 12),
    (symmetric(1), 1),
    (symmetric(2), 2),
    (symmetric(3), 6),
    (symmetric(4), 24),
    (product(dihedral(4), cyclic(3)), 24),
    (product(symmetric(3), dihedral(3)), 36),
    (product(trivial(), symmetric(3)), 6),
    (Group.from_permutations([[1, 0, 3, 2], [1, 2, 0, 3]]), 12),
    (Group.from_matrices([[[0, -1], [1, 0]], [[1, 0], [0, -1]]]), 8),
]

# a Latin square with an identity in which every element is its own inverse: a loop, but elements
# of order 2 do not fit into a group of order 5
LOOP = [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]

QUARTER = np.array([[0.0, -1.0], [1.0, 0.0]])
MIRROR = np.diag([1.0, -1.0])


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def order_of(group, g):
    power, order = g, 1
    while power != 0:
        power, order = group.compose(power, g), order + 1
    return order


def orders(group):
    return dict(Counter(order_of(group, g) for g in range(len(group))))


def assert_axioms(group):
    table, elements = group.table, np.arange(len(group))
    assert np.array_equal(table[table], table[:, table])  # (x y) z = x (y z)
    assert np.array_equal(table[0], elements)
    assert np.array_equal(table[:, 0], elements)
    assert not table[elements, group.inverses].any()
    assert not table[group.inverses, elements].any()


def assert_isomorphic_by_generators(first, second):
    images = np.array(first.extend(list(second.generators), 0, second.compose))
    assert sorted(images) == list(range(len(second)))
    assert np.array_equal(images[first.table], second.table[np.ix_(images, images)])


@pytest.mark.parametrize("group, order", CONSTRUCTED, ids=lambda v: getattr(v, "name", str(v)))
def test_constructors_give_groups_of_the_right_order(group, order):
    assert len(group) == order
    assert_axioms(group)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_generators_reach_every_element_of_random_groups(groups, data):
    group = data.draw(groups)
    assert_axioms(group)
    words = group.extend([(g,) for g in group.generators], (), lambda a, b: a + b)
    for g, word in enumerate(words):
        product_of_word = 0
        for s in word:
            product_of_word = group.compose(product_of_word, s)
        assert product_of_word == g


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_dihedral_relation(n):
    group = dihedral(n)
    r, s = (group[g] for g in (1 % n, n))
    assert s @ r == ~r @ s
    assert s @ s == 0
    assert [group[1 % n * k] @ s for k in range(n)] == [n + k for k in range(n)]


def test_inverses_of_elements_of_order_above_two():
    assert cyclic(5).inverses.tolist() == [0, 4, 3, 2, 1]
    assert dihedral(3).inverses.tolist() == [0, 2, 1, 3, 4, 5]


def test_product_is_componentwise():
    first, second = dihedral(3), cyclic(4)
    both = product(first, second)
    for g in range(len(both)):
        for h in range(len(both)):
            (a, b), (c, d) = divmod(g, 4), divmod(h, 4)
            assert both.compose(g, h) == first.compose(a, c) * 4 + second.compose(b, d)


@pytest.mark.parametrize(
    "group, expected",
    [
        (cyclic(6), {1: 1, 2: 1, 3: 2, 6: 2}),
        (dihedral(4), {1: 1, 2: 5, 4: 2}),
        (dihedral(6), {1: 1, 2: 7, 3: 2, 6: 2}),
        (symmetric(3), {1: 1, 2: 3, 3: 2}),
        (symmetric(4), {1: 1, 2: 9, 3: 8, 4: 6}),
        (product(cyclic(2), cyclic(2)), {1: 1, 2: 3}),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_number_of_elements_of_each_order(group, expected):
    assert orders(group) == expected


@pytest.mark.parametrize(
    "group, permutations",
    [
        (cyclic(5), [[1, 2, 3, 4, 0]]),
        (dihedral(3), [[1, 2, 0], [0, 2, 1]]),
        (dihedral(4), [[1, 2, 3, 0], [0, 3, 2, 1]]),
        (dihedral(6), [[1, 2, 3, 4, 5, 0], [0, 5, 4, 3, 2, 1]]),
        (symmetric(4), [[1, 0, 2, 3], [1, 2, 3, 0]]),
        (
            product(symmetric(3), cyclic(2)),
            [[1, 0, 2, 3, 4], [1, 2, 0, 3, 4], [0, 1, 2, 4, 3]],
        ),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_named_groups_are_isomorphic_to_their_permutations(group, permutations):
    assert_isomorphic_by_generators(group, Group.from_permutations(permutations))


@pytest.mark.parametrize("n", [3, 5, 7, 12])
def test_rotation_and_mirror_matrices_generate_the_dihedral_group(n):
    group = Group.from_matrices([rotation(2 * np.pi / n), MIRROR])
    assert_isomorphic_by_generators(dihedral(n), group)


def test_generators_keep_their_order_from_permutations():
    exchange, cycle = [1, 0, 2], [1, 2, 0]
    both = [exchange[i] for i in cycle]  # first the cycle, then the exchange
    group = Group.from_permutations([cycle, exchange, both, [0, 1, 2], cycle])
    c, e, b, identity, again = group.generators
    assert group.compose(e, c) == b != group.compose(c, e)
    assert identity == 0
    assert again == c


def test_generators_keep_their_order_from_matrices():
    group = Group.from_matrices([MIRROR, QUARTER, QUARTER @ MIRROR])
    m, q, both = group.generators
    assert group.compose(q, m) == both != group.compose(m, q)
    assert (order_of(group, m), order_of(group, q)) == (2, 4)


def test_matrices_that_are_not_orthogonal_generate_a_group():
    basis = np.array([[1.0, 0.7], [0.0, 1.0]])
    conjugated = [basis @ m @ np.linalg.inv(basis) for m in (QUARTER, MIRROR)]
    assert orders(Group.from_matrices(conjugated)) == orders(dihedral(4))


def test_names():
    assert cyclic(4).names == ("e", "r", "r^2", "r^3")
    assert dihedral(3).names == ("e", "r", "r^2", "s", "r s", "r^2 s")
    assert product(cyclic(2), cyclic(2)).names == ("(e, e)", "(e, r)", "(r, e)", "(r, r)")
    assert Group([[0, 1], [1, 0]]).names == ("g0", "g1")
    assert product(cyclic(2), dihedral(3)).name == "cyclic(2) x dihedral(3)"
    assert repr(symmetric(3)) == "Group('symmetric(3)', order 6)"


def test_element_notation_agrees_with_the_tables():
    group = dihedral(4)
    for g in group.elements:
        assert repr(g) == group.names[g]
        assert ~g == group.inverse(g)
        assert g @ ~g == group.identity
        for h in range(len(group)):
            assert g @ h == group.compose(g, h)
    assert repr(group[1] @ group[4]) == "r s"
    assert list(group) == list(group.elements)


def test_equality_and_hash_follow_the_table():
    assert cyclic(2) == symmetric(2)
    assert hash(cyclic(2)) == hash(symmetric(2))
    assert cyclic(4) != product(cyclic(2), cyclic(2))
    assert cyclic(6) != dihedral(3)
    assert cyclic(1) != [[0]]
    assert len({cyclic(2), symmetric(2), cyclic(3)}) == 2
    # the memory layout of the table makes no difference
    transposed = Group(np.asfortranarray(dihedral(3).table))
    assert transposed == dihedral(3)
    assert hash(transposed) == hash(dihedral(3))


def test_tables_are_read_only():
    group = cyclic(3)
    with pytest.raises(ValueError, match="read-only"):
        group.table[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        group.inverses[0] = 1


def test_the_callers_table_stays_writable():
    table = np.array([[0, 1], [1, 0]])
    group = Group(table)
    table[0, 0] = 1
    assert group.table[0, 0] == 0


@pytest.mark.parametrize("table", [[[0, 1, 2], [1, 2, 0]], [0, 1], np.zeros((0, 0), dtype=int)])
def test_table_must_be_square(table):
    with pytest.raises(ValueError, match=re.escape(f"got {np.shape(table)}")):
        Group(table)


@pytest.mark.parametrize(
    "table, dtype", [([[0.0, 1.0], [1.0, 0.0]], "float64"), ([[False]], "bool")]
)
def test_table_must_hold_integers(table, dtype):
    with pytest.raises(ValueError, match=f"holds integers; got {dtype}"):
        Group(table)


@pytest.mark.parametrize("entry", [2, -1])
def test_table_must_be_closed(entry):
    with pytest.raises(ValueError, match=f"product of 1 and 0 is {entry}, .* 0..1"):
        Group([[0, 1], [entry, 0]])


def test_zero_must_be_the_identity_on_both_sides():
    with pytest.raises(ValueError, match="0 g = 1 for g = 0"):
        Group([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="g 0 = 0 for g = 1"):
        Group([[0, 1], [0, 1]])


def test_every_element_needs_an_inverse():
    with pytest.raises(ValueError, match="element 1 has no inverse: no h gives 1 h = h 1 = 0"):
        Group([[0, 1], [1, 1]])


def test_an_inverse_must_hold_on_both_sides():
    # 1 2 = 0 but 2 1 = 1: what undoes 1 from the right does not from the left
    with pytest.raises(ValueError, match="element 1 has no inverse"):
        Group([[0, 1, 2], [1, 2, 0], [2, 1, 0]])


def test_an_element_with_an_inverse_is_not_said_to_have_none():
    # 2 1 = 2 2 = 0: the second is a two-sided inverse of 2, although the first is none
    with pytest.raises(ValueError) as error:
        Group([[0, 1, 2], [1, 0, 2], [2, 0, 0]])
    assert "element 2 has no inverse" not in str(error.value)


def test_a_loop_is_no_group():
    with pytest.raises(ValueError, match="not associative") as error:
        Group(LOOP)
    x, s, y, left, x2, s2, y2, right = map(int, re.findall(r"\d+", str(error.value)))
    assert (x, s, y) == (x2, s2, y2)
    assert left == LOOP[LOOP[x][s]][y] != LOOP[x][LOOP[s][y]] == right


def test_a_loop_is_no_group_whichever_generators_are_given():
    for s in range(1, 5):
        for t in range(s + 1, 5):
            with pytest.raises(ValueError, match="not associative|do not generate"):
                Group(LOOP, generators=[s, t])


def test_generators_must_generate():
    with pytest.raises(ValueError, match=r"\[2\] do not generate C: 1 is missed"):
        Group(cyclic(4).table, name="C", generators=[2])


def test_names_must_be_as_many_as_elements():
    with pytest.raises(ValueError, match="C has 2 elements but 3 element names"):
        Group([[0, 1], [1, 0]], name="C", names=["a", "b", "c"])


@pytest.mark.parametrize("generators", [[[0, 0, 1]], [[1, 2, 3]], [[1, 0], [0, 1, 2]]])
def test_permutation_generators_must_be_permutations(generators):
    bad = re.escape(str(generators[-1]))
    with pytest.raises(ValueError, match=rf"not a permutation of 0\.\..: {bad}"):
        Group.from_permutations(generators)


@pytest.mark.parametrize(
    "generators, message",
    [
        ([np.ones((2, 3))], r"generator 0 has shape \(2, 3\)"),
        ([np.eye(2), np.eye(3)], r"generator 1 has shape \(3, 3\), expected \(2, 2\)"),
        ([np.eye(2), np.ones((2, 2))], r"generator 1 is not an invertible matrix: \[\[1.0, 1.0\]"),
        ([[[np.nan]]], r"generator 0 is not an invertible matrix: \[\[nan\]\]"),
        ([[[np.inf]]], r"generator 0 is not an invertible matrix: \[\[inf\]\]"),
    ],
)
def test_matrix_generators_must_be_invertible_square_matrices(generators, message):
    with pytest.raises(ValueError, match=message):
        Group.from_matrices(generators)


def test_infinite_and_very_large_groups_are_refused():
    with pytest.raises(ValueError, match="more than 5040 elements, perhaps an infinite one"):
        Group.from_matrices([rotation(1.0)])
    eight = [[1, 0, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 0]]
    with pytest.raises(ValueError, match="more than 5040 elements, perhaps an infinite one"):
        Group.from_permutations(eight)


@pytest.mark.parametrize("entry", [2.0, 0.5, -1.001])
def test_matrices_of_another_determinant_than_1_or_minus_1_are_refused(entry):
    with pytest.raises(ValueError, match=f"generator 1 has determinant {entry:.6g}, so its powers"):
        Group.from_matrices([[[-1.0]], [[entry]]])


@pytest.mark.parametrize("matrix", [rotation(np.pi / 2), QUARTER + 1e-8])
def test_rounding_of_matrices_makes_no_new_elements(matrix):
    assert len(Group.from_matrices([matrix, MIRROR])) == 8


@pytest.mark.slow
def test_the_largest_group_that_is_enumerated():
    assert len(symmetric(7)) == 5040


@pytest.mark.parametrize("construct", [Group.from_permutations, Group.from_matrices])
def test_no_generators_point_to_the_trivial_group(construct):
    with pytest.raises(ValueError, match=r"use trivial\(\)"):
        construct([])


@pytest.mark.parametrize("construct", [cyclic, dihedral, symmetric])
@pytest.mark.parametrize("n", [0, -1])
def test_order_must_be_positive(construct, n):
    with pytest.raises(ValueError, match=rf"{construct.__name__}\(n\) needs n >= 1; got {n}"):
        construct(n)


@pytest.mark.parametrize("g", [4, -1])
def test_unknown_elements_are_named(g):
    with pytest.raises(IndexError, match=rf"cyclic\(4\) has the elements 0..3; got {g}"):
        cyclic(4)[g]


def test_extend_needs_an_image_for_each_generator():
    with pytest.raises(ValueError, match=r"generated by 2 elements \['r', 's'\]; got 1 images"):
        dihedral(3).extend([1], 0, lambda a, b: a + b)


def test_check_homomorphism_names_the_elements():
    with pytest.raises(ValueError, match=r"1 \(r\) and 1 \(r\) .* product 2 \(r\^2\)"):
        cyclic(3).check_homomorphism([0, 1, 1], 0, lambda a, b: (a + b) % 3, int.__eq__, "numbers")
    with pytest.raises(ValueError, match="has 3 elements; got 2 numbers"):
        cyclic(3).check_homomorphism([0, 1], 0, lambda a, b: (a + b) % 3, int.__eq__, "numbers")


def test_check_homomorphism_wants_the_identity_to_change_nothing():
    with pytest.raises(ValueError, match="element 0 must act as identity"):
        cyclic(2).check_homomorphism([5, 5], 0, max, int.__eq__, "numbers")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_check_homomorphism_catches_any_wrong_image(groups, data):
    group = data.draw(groups.filter(lambda group: len(group) > 2))
    images = list(range(len(group)))
    g = data.draw(st.integers(1, len(group) - 1))
    images[g] = data.draw(st.integers(0, len(group) - 1).filter(lambda h: h != g))
    # of all maps that differ from the identity in one place, only those of order 2 may be others
    table = np.array(images)
    right = np.array_equal(table[group.table], group.table[np.ix_(table, table)])
    if right:
        group.check_homomorphism(images, 0, group.compose, int.__eq__, "elements")
    else:
        with pytest.raises(ValueError, match="the elements do not follow"):
            group.check_homomorphism(images, 0, group.compose, int.__eq__, "elements")
