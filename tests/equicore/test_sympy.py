"""Groups against sympy, an independent library: explicit isomorphisms, and invariants."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.combinatorics import (
    AlternatingGroup,
    CyclicGroup,
    DihedralGroup,
    PermutationGroup,
    SymmetricGroup,
)
from sympy.combinatorics import Permutation as SympyPermutation
from sympy.combinatorics.fp_groups import FpGroup
from sympy.combinatorics.free_groups import free_group
from sympy.combinatorics.group_constructs import DirectProduct

from equicore import (
    Group,
    cyclic,
    dihedral,
    image_dihedral,
    image_rotations,
    product,
    symmetric,
    trivial,
)
from equicore.groups import semidirect
from equicore.representations import image_wallpaper


def multiplied(after, before):
    """First ``before``, then ``after``: sympy's product has the one that acts first on the left."""
    return before * after


def powers(n, k, m):
    """Automorphisms of C_n: element h of C_m takes r to r^(k^h)."""
    return [[i * k**h % n for i in range(n)] for h in range(m)]


def quaternions():
    i = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]
    j = [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]]
    return Group.from_matrices([i, j], name="quaternions")


def affine():
    """C7 : C3, the maps x -> 2^h x + n of the numbers modulo 7."""
    return semidirect(cyclic(7), cyclic(3), powers(7, 2, 3))


def tetrahedral():
    """(C2 x C2) : C3, whose C3 carries the three elements of order 2 around."""
    rotation = [0, 2, 3, 1]
    twice = [rotation[i] for i in rotation]
    klein = product(cyclic(2), cyclic(2))
    return semidirect(klein, cyclic(3), [[0, 1, 2, 3], rotation, twice])


def order_of(group, g):
    power, order = g, 1
    while power != 0:
        power, order = group.compose(power, g), order + 1
    return order


def regular_action(group):
    """Cayley's theorem: h is moved to g h, which no two elements do alike."""
    return [SympyPermutation(row.tolist()) for row in group.table]


def as_sympy(group):
    permutations = regular_action(group)
    return PermutationGroup([permutations[g] for g in group.generators] or [permutations[0]])


def invariants(group):
    """What sympy says of a permutation group, none of which depends on how it is written."""
    classes = group.conjugacy_classes()
    return {
        "order": group.order(),
        "abelian": group.is_abelian,
        "nilpotent": group.is_nilpotent,
        "orders": Counter(element.order() for element in group.elements),
        "classes": Counter((len(c), next(iter(c)).order()) for c in classes),
        "centre": group.center().order(),
        "derived": group.derived_subgroup().order(),
        "abelianization": sorted(group.abelian_invariants()),
    }


def own_invariants(group):
    """The same from the multiplication table."""
    n, table = len(group), group.table
    conjugates = table[table, group.inverses[:, None]]  # [g, h] -> g h g^-1
    commutators = table[conjugates, group.inverses[None, :]]
    classes = {frozenset(conjugates[:, h].tolist()) for h in range(n)}
    return {
        "order": n,
        "abelian": bool((table == table.T).all()),
        "orders": Counter(order_of(group, g) for g in range(n)),
        "classes": Counter((len(c), order_of(group, min(c))) for c in classes),
        "centre": int((table == table.T).all(axis=1).sum()),
        "derived": len(group.subgroup(np.unique(commutators).tolist())),
    }


def isomorphism(group, expected):
    """The image of each element in a group of sympy, found by trial; None if there is none."""
    identity = SympyPermutation(range(expected.degree))
    fitting = [
        [p for p in expected.elements if p.order() == order_of(group, g)] for g in group.generators
    ]
    for images in itertools.product(*fitting):
        rho = group.extend(list(images), identity, multiplied)
        if len(set(rho)) == expected.order() == len(group) and all(
            multiplied(rho[g], p) == rho[group.compose(g, h)]
            for g in range(len(group))
            for h, p in zip(group.generators, images, strict=True)
        ):
            return rho
    return None


def natural(group, count=None):
    """A group of sympy by its permutations of points."""
    generators = group.generators if count is None else group.generators[:count]
    return [SympyPermutation(g.array_form, size=group.degree) for g in generators]


def direct(first, second):
    return DirectProduct(first, second)


# our group, images of its generators in one of sympy's, and that group
ISOMORPHISMS = [
    (trivial(), [], CyclicGroup(1)),
    *((cyclic(n), natural(CyclicGroup(n)) if n > 1 else [], CyclicGroup(n)) for n in range(1, 9)),
    (dihedral(1), natural(DihedralGroup(1)), DihedralGroup(1)),
    *((dihedral(n), natural(DihedralGroup(n), 2), DihedralGroup(n)) for n in range(2, 9)),
    (symmetric(1), [], SymmetricGroup(1)),
    (symmetric(2), natural(SymmetricGroup(2)), SymmetricGroup(2)),
    # ours is generated by the exchange and the cycle, sympy's by the cycle and the exchange
    *((symmetric(n), natural(SymmetricGroup(n))[::-1], SymmetricGroup(n)) for n in (3, 4, 5)),
    *(
        (Group.from_permutations([g.array_form for g in natural(a)]), natural(a), a)
        for a in (AlternatingGroup(4), AlternatingGroup(5))
    ),
    *(
        (product(ours_a, ours_b), natural(direct(a, b)), direct(a, b))
        for ours_a, a, ours_b, b in [
            (cyclic(2), CyclicGroup(2), cyclic(2), CyclicGroup(2)),
            (cyclic(3), CyclicGroup(3), cyclic(4), CyclicGroup(4)),
            (dihedral(4), DihedralGroup(4), cyclic(3), CyclicGroup(3)),
            (dihedral(3), DihedralGroup(3), dihedral(5), DihedralGroup(5)),
        ]
    ),
]


@pytest.mark.parametrize(
    "group, images, expected", ISOMORPHISMS, ids=lambda v: getattr(v, "name", None)
)
def test_explicit_isomorphism(group, images, expected):
    identity = SympyPermutation(range(expected.degree))
    rho = group.extend(images, identity, multiplied)
    assert len(group) == expected.order()
    assert set(rho) == set(expected.elements)  # one to one and onto
    for g in range(len(group)):
        for h in range(len(group)):
            assert multiplied(rho[g], rho[h]) == rho[group.compose(g, h)]
        assert rho[group.inverse(g)] == ~rho[g]


def test_dihedral_elements_are_the_named_permutations():
    # element k is r^k, element n + k is r^k s, on the corners of sympy's polygon
    for n in range(3, 9):
        turn, mirror = natural(DihedralGroup(n), 2)
        rho = dihedral(n).extend([turn, mirror], SympyPermutation(range(n)), multiplied)
        for k in range(n):
            assert rho[k] == turn**k
            assert rho[n + k] == multiplied(turn**k, mirror)


EXCEPTIONAL = [
    (quaternions(), None),
    (semidirect(cyclic(3), cyclic(2), powers(3, 2, 2)), SymmetricGroup(3)),
    (semidirect(cyclic(4), cyclic(2), powers(4, 3, 2)), DihedralGroup(4)),
    (semidirect(cyclic(6), cyclic(2), powers(6, 5, 2)), DihedralGroup(6)),
    (tetrahedral(), AlternatingGroup(4)),
    (semidirect(cyclic(5), cyclic(2), powers(5, 1, 2)), direct(CyclicGroup(5), CyclicGroup(2))),
    (affine(), None),
    (semidirect(cyclic(3), cyclic(4), powers(3, 2, 4)), None),
    # p4 and p4m of 2 x 2 cells
    (image_wallpaper(image_rotations(), 2).group, None),
    (image_wallpaper(image_dihedral(), 2).group, None),
]


@pytest.mark.parametrize("group, expected", EXCEPTIONAL, ids=lambda v: getattr(v, "name", None))
def test_invariants(group, expected):
    found = invariants(as_sympy(group))
    if expected is not None:
        assert found == invariants(expected)
    own = own_invariants(group)
    assert own == {name: found[name] for name in own}


@pytest.mark.parametrize(
    "group, expected",
    [pair for pair in EXCEPTIONAL if pair[1] is not None],
    ids=lambda v: getattr(v, "name", None),
)
def test_semidirect_products_are_isomorphic_to_known_groups(group, expected):
    rho = isomorphism(group, expected)
    assert set(rho) == set(expected.elements)
    for g in range(len(group)):
        for h in range(len(group)):
            assert multiplied(rho[g], rho[h]) == rho[group.compose(g, h)]


def presented(relations):
    """A group of sympy from words that are 1, on the generators a and b."""
    free, a, b = free_group("a, b")
    return FpGroup(free, relations(a, b))


@pytest.mark.parametrize(
    "group, relations",
    [
        (quaternions(), lambda a, b: [a**4, a**2 * b**-2, b**-1 * a * b * a]),
        (affine(), lambda a, b: [a**7, b**3, b**-1 * a * b * a**-2]),
        (
            semidirect(cyclic(3), cyclic(4), powers(3, 2, 4)),
            lambda a, b: [a**3, b**4, b**-1 * a * b * a],
        ),
        (dihedral(7), lambda a, b: [a**7, b**2, (a * b) ** 2]),
    ],
    ids=["quaternions", "C7 : C3", "C3 : C4", "dihedral"],
)
def test_presentations(group, relations):
    # the relations hold for our generators, which generate, and define a group of our order
    permutations = regular_action(group)
    a, b = (permutations[g] for g in group.generators)
    assert all(word(a, b).is_Identity for word in _words(relations))
    assert presented(relations).order() == len(group)


def _words(relations):
    count = len(presented(relations).relators)
    return [lambda a, b, i=i: relations(a, b)[i] for i in range(count)]


def test_groups_of_one_order_are_told_apart():
    pairs = [
        (quaternions(), dihedral(4)),
        (cyclic(4), product(cyclic(2), cyclic(2))),
        (tetrahedral(), dihedral(6)),
        (affine(), cyclic(21)),
        (semidirect(cyclic(3), cyclic(4), powers(3, 2, 4)), dihedral(6)),
    ]
    for first, second in pairs:
        assert len(first) == len(second)
        assert invariants(as_sympy(first)) != invariants(as_sympy(second))
        assert isomorphism(first, as_sympy(second)) is None
        assert isomorphism(first, as_sympy(first)) is not None


@pytest.mark.parametrize("degree", [3, 4, 5])
def test_permutations_multiply_as_those_of_sympy_do_from_left_to_right(degree):
    rng = np.random.default_rng(degree)
    first, second = (rng.permutation(degree) for _ in range(2))
    group = Group.from_permutations([first, second])
    p, q = (SympyPermutation(s.tolist()) for s in (first, second))
    expected = PermutationGroup([p, q])
    assert len(group) == expected.order()
    rho = group.extend([p, q], SympyPermutation(range(degree)), multiplied)
    assert set(rho) == set(expected.elements)
    g, h = group.generators
    assert rho[group.compose(g, h)] == q * p
    assert [(q * p)(i) for i in range(degree)] == first[second].tolist()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_groups_are_the_sympy_groups_of_their_regular_action(groups, data):
    group = data.draw(groups)
    permutations = regular_action(group)
    expected = as_sympy(group)
    assert expected.order() == len(group)
    assert set(expected.elements) == set(permutations)
    for g in range(len(group)):
        for h in range(len(group)):
            product = multiplied(permutations[g], permutations[h])
            assert product == permutations[group.compose(g, h)]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_subgroups(groups, data):
    group = data.draw(groups)
    generators = data.draw(st.lists(st.integers(0, len(group) - 1), max_size=2))
    subgroup = group.subgroup(generators)
    permutations = regular_action(group)
    expected = PermutationGroup([permutations[g] for g in generators] or [permutations[0]])
    assert {permutations[g] for g in subgroup.embedding} == set(expected.elements)
    assert expected.is_subgroup(as_sympy(group))
    # the same as an abstract group
    assert invariants(as_sympy(subgroup)) == invariants(expected)
