"""Subgroups, semidirect products, and copies of groups."""

import copy
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import Group, cyclic, dihedral, product, symmetric, trivial
from equicore.groups import Subgroup, semidirect

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
COPIES = [copy.deepcopy, copy.copy, lambda g: pickle.loads(pickle.dumps(g))]
INVERSION = [[0, 1, 2, 3], [0, 3, 2, 1]]


def closure(group, elements):
    """The smallest set with 0 that holds the elements and all products."""
    found = {0, *elements}
    while True:
        more = {group.compose(g, h) for g in found for h in found} | found
        if more == found:
            return found
        found = more


@PROPERTY
@given(data=st.data())
def test_a_subgroup_is_the_closure_with_the_parents_products(groups, data):
    group = data.draw(groups)
    generators = data.draw(st.lists(st.integers(0, len(group) - 1), max_size=3))
    subgroup = group.subgroup(generators)
    embedding = subgroup.embedding.tolist()
    assert embedding == sorted(closure(group, generators))
    assert subgroup.parent is group
    assert len(subgroup) == len(embedding)
    assert len(group) % len(subgroup) == 0  # Lagrange
    for g in range(len(subgroup)):
        assert embedding[subgroup.inverse(g)] == group.inverse(embedding[g])
        assert subgroup.names[g] == group.names[embedding[g]]
        for h in range(len(subgroup)):
            inside = embedding[subgroup.compose(g, h)]
            assert inside == group.compose(embedding[g], embedding[h])
    assert [embedding[g] for g in subgroup.generators] == generators


def test_subgroups_by_hand():
    group = dihedral(4)
    assert group.subgroup([1]) == cyclic(4)
    assert group.subgroup([2]).embedding.tolist() == [0, 2]
    assert group.subgroup([2, 5]).embedding.tolist() == [0, 2, 5, 7]
    assert group.subgroup([2, 5]) == product(cyclic(2), cyclic(2))
    assert group.subgroup([6]).names == ("e", "r^2 s")
    assert group.subgroup([]).embedding.tolist() == [0]
    assert group.subgroup([]) == trivial()
    assert group.subgroup([1, 4]) == group
    assert repr(group.subgroup([1, 4])) == "Group('<r, s> in dihedral(4)', order 8)"


def test_elements_of_the_parent_serve_as_generators():
    group = symmetric(3)
    g = group[1] @ group[2]
    assert group.subgroup([g]) == group.subgroup([int(g)])
    assert isinstance(group.subgroup([g]), Subgroup)


def test_subgroups_of_subgroups():
    rotations = dihedral(6).subgroup([1])
    halves = rotations.subgroup([3])
    assert halves.parent is rotations
    assert rotations.embedding[halves.embedding].tolist() == [0, 3]


@pytest.mark.parametrize("g", [6, -1])
def test_generators_of_a_subgroup_must_be_elements(g):
    with pytest.raises(IndexError, match=rf"dihedral\(3\) has the elements 0..5; got {g}"):
        dihedral(3).subgroup([1, g])


def test_pairs_of_a_semidirect_product_multiply_as_motions():
    normal, acting = cyclic(4), cyclic(2)
    group = semidirect(normal, acting, INVERSION)
    assert len(group) == 8
    for g in range(8):
        for h in range(8):
            (n, a), (m, b) = divmod(g, 2), divmod(h, 2)
            moved = normal.compose(n, INVERSION[a][m])
            assert group.compose(g, h) == moved * 2 + acting.compose(a, b)


def test_a_semidirect_product_acts_by_affine_maps():
    # (n, h) is x -> 2^h x + n modulo 7, and the product is: first the second map, then the first
    group = semidirect(cyclic(7), cyclic(3), [[2**h * m % 7 for m in range(7)] for h in range(3)])
    maps = [[(2 ** (g % 3) * x + g // 3) % 7 for x in range(7)] for g in range(21)]
    assert len({tuple(m) for m in maps}) == 21
    for g in range(21):
        for h in range(21):
            assert [maps[g][maps[h][x]] for x in range(7)] == maps[group.compose(g, h)]


def test_semidirect_by_the_identity_is_the_direct_product():
    for normal, acting in [(dihedral(3), cyclic(2)), (cyclic(4), cyclic(3))]:
        same = np.tile(np.arange(len(normal)), (len(acting), 1))
        group, direct = semidirect(normal, acting, same), product(normal, acting)
        assert group == direct
        assert group.names == direct.names
        assert group.generators == direct.generators
    assert group.name == "cyclic(4) : cyclic(3)"


@PROPERTY
@given(data=st.data())
def test_the_holomorph_of_conjugation_holds_both_factors(groups, data):
    # a group acts on itself by conjugation; (n, h) -> n h maps the product onto the group
    group = data.draw(groups.filter(lambda group: len(group) <= 12))
    order = len(group)
    inner = [[group[h] @ m @ ~group[h] for m in group.elements] for h in range(order)]
    both = semidirect(group, group, inner)
    assert both.subgroup([n * order for n in group.generators]) == group
    assert both.subgroup(list(group.generators)) == group
    onto = np.array([group.compose(g // order, g % order) for g in range(order**2)])
    assert np.array_equal(onto[both.table], group.table[np.ix_(onto, onto)])


@pytest.mark.parametrize(
    "automorphisms, message",
    [
        (
            [[0, 1, 2, 3], [0, 2, 1, 3]],
            r"row 1 is no automorphism of cyclic\(4\): the image of 1 1",
        ),
        (
            [[0, 1, 2, 3], [1, 2, 3, 0]],
            r"row 1 is no automorphism of cyclic\(4\): the image of 0 0",
        ),
        ([[0, 1, 2, 3], [0, 0, 2, 2]], r"not a permutation of 0..3: \[0, 0, 2, 2\]"),
        ([[0, 1, 2, 3], [0, 3, 2, 4]], r"not a permutation of 0..3: \[0, 3, 2, 4\]"),
        ([[0, 1, 2], [0, 2, 1]], r"not a permutation of 0..3: \[0, 1, 2\]"),
        ([0, 1, 2, 3], r"not a permutation of 0..3: 0"),
        ([[0, 1, 2, 3]], r"cyclic\(2\) has 2 elements; got 1 automorphisms"),
        ([*INVERSION, INVERSION[0]], r"cyclic\(2\) has 2 elements; got 3 automorphisms"),
        (INVERSION[::-1], r"follow cyclic\(2\): element 0 must act as identity"),
    ],
)
def test_semidirect_wants_automorphisms(automorphisms, message):
    with pytest.raises(ValueError, match=message):
        semidirect(cyclic(4), cyclic(2), automorphisms)


def test_semidirect_wants_a_homomorphism():
    with pytest.raises(ValueError, match=r"automorphisms do not follow cyclic\(3\): those of"):
        semidirect(cyclic(4), cyclic(3), [*INVERSION, INVERSION[0]])
    # an anti-homomorphism, which only an acting group that is not abelian tells apart
    six = symmetric(3)
    inner = [[six[h] @ m @ ~six[h] for m in six.elements] for h in range(6)]
    assert len(semidirect(six, six, inner)) == 36
    with pytest.raises(ValueError, match=r"automorphisms do not follow symmetric\(3\): those of"):
        semidirect(six, six, [inner[six.inverse(h)] for h in range(6)])


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "copy", "pickle"])
@pytest.mark.parametrize(
    "group",
    [dihedral(3), dihedral(3).subgroup([1]), semidirect(cyclic(4), cyclic(2), INVERSION)],
    ids=lambda group: group.name,
)
def test_copies_are_equal_and_read_only(group, copied):
    other = copied(group)
    assert other == group
    assert hash(other) == hash(group)
    assert type(other) is type(group)
    assert (other.name, other.names, other.generators) == (
        group.name,
        group.names,
        group.generators,
    )
    for name in ("table", "inverses"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(other, name)[0] = 1
    assert other.extend(list(group.generators), 0, group.compose) == list(range(len(group)))


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "copy", "pickle"])
def test_copies_of_subgroups_know_their_parent(copied):
    subgroup = dihedral(3).subgroup([4])
    other = copied(subgroup)
    assert other.parent == subgroup.parent
    assert other.embedding.tolist() == [0, 4]
    for table in (other.embedding, other.parent.table):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


def test_a_group_is_its_own_deepcopy():
    group = symmetric(3)
    assert copy.deepcopy(group) is group
    assert copy.deepcopy([group, group[2]])[1].group is group
    subgroup = group.subgroup([1])
    assert copy.deepcopy(subgroup) is subgroup
    with pytest.raises(ValueError, match="read-only"):
        group.table[0, 0] = 1


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "copy", "pickle"])
def test_copies_of_elements_of_a_subgroup_multiply(copied):
    rotations = dihedral(5).subgroup([1])
    g = copied(rotations[3])
    assert repr(g) == "r^3"
    assert g @ rotations[4] == 2
    assert ~g == 2
    with pytest.raises(ValueError, match=re.escape("<r> in dihedral(5)")):
        g @ dihedral(5)[1]


def test_the_parents_table_is_not_taken_away():
    group = Group(cyclic(6).table)
    before = group.table.copy()
    subgroup = group.subgroup([2])
    assert subgroup.table.tolist() == cyclic(3).table.tolist()
    assert np.array_equal(group.table, before)
