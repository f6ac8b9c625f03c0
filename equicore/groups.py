"""Finite groups as Cayley tables.

A group of order n has the elements 0..n-1, of which 0 is the identity. Everything that a
representation needs of a group is its multiplication table, so that is all that is stored;
the axioms are verified once, at construction.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equicore import _cayley
from equicore._cayley import MAX_ORDER as MAX_ORDER

Image = TypeVar("Image")


class Element(int):
    """An element of a group: an integer index that also multiplies, ``g @ h``, and inverts, ``~g``.

    >>> r = dihedral(4)[1]
    >>> s = dihedral(4)[4]
    >>> s @ r == ~r @ s
    True
    """

    group: Group

    def __new__(cls, group: Group, index: int) -> Element:
        element = super().__new__(cls, index)
        element.group = group
        return element

    def __getnewargs__(self) -> tuple[Group, int]:  # type: ignore[override]
        return self.group, int(self)

    def __matmul__(self, other: int) -> Element:
        """The product: first ``other``, then ``self``."""
        if isinstance(other, Element) and other.group != self.group:
            raise ValueError(f"elements of {self.group} and {other.group} do not multiply")
        return self.group[self.group.compose(self, other)]

    def __invert__(self) -> Element:
        return self.group[self.group.inverse(self)]

    def __repr__(self) -> str:
        return self.group.names[self]


class Group:
    """A finite group.

    Args:
        table: Cayley table, integers of shape (n, n): ``table[g, h]`` is the product g h, which
            acts as first h, then g. Element 0 is the identity. At most ``MAX_ORDER`` elements.
        name: What messages call the group.
        names: A name for each element; ``g0, g1, ...`` when omitted.
        generators: Elements that generate the group; found when omitted.

    Attributes:
        table: The Cayley table, read-only, shape (n, n), in a small type of integers.
        inverses: ``inverses[g]`` is the inverse of g, read-only, shape (n,).
        generators: Indices of elements that generate the group.

    Raises:
        ValueError: If the table is not that of a group, with the failing elements, or too large.

    >>> G = cyclic(4)
    >>> len(G), G.compose(3, 2), G.inverse(1), G.elements
    (4, 1, 3, (e, r, r^2, r^3))
    """

    identity = 0

    def __init__(
        self,
        table: ArrayLike,
        *,
        name: str = "group",
        names: Sequence[str] | None = None,
        generators: Sequence[int] | None = None,
    ) -> None:
        self.table = _cayley.square_table(table, name)
        self.name = name
        order = len(self.table)
        self.names = tuple(names) if names is not None else tuple(f"g{g}" for g in range(order))
        if len(self.names) != order:
            raise ValueError(f"{name} has {order} elements but {len(self.names)} element names")
        self.inverses = _cayley.verified_inverses(self.table)
        # a compiled graph takes an array's size and values for unknown, but not a tuple's
        self._inverse: tuple[int, ...] = tuple(self.inverses.tolist())
        self.generators = (
            tuple(self.check_element(g) for g in generators)
            if generators is not None
            else _cayley.find_generators(self.table)
        )
        self._factors = _cayley.factorize(self.table, self.generators, name)
        _cayley.verify_associativity(self.table, self.generators)
        self.table.flags.writeable = False
        self.inverses.flags.writeable = False

    @classmethod
    def from_permutations(cls, generators: Sequence[ArrayLike], name: str = "group") -> Group:
        """The group that permutations generate.

        Args:
            generators: Permutations of 0..d-1: entry i is the place to which i moves. The
                elements they become are listed, in their order, in ``group.generators``.
            name: What messages call the group.

        Raises:
            ValueError: If one is no permutation, or they generate more than ``MAX_ORDER`` elements.

        >>> len(Group.from_permutations([[1, 0, 2], [1, 2, 0]]))
        6
        """
        points = np.size(_some(generators)[0])
        permutations = [check_permutation(p, points) for p in generators]
        return cls._generate(
            np.arange(points),
            permutations,
            multiply=lambda p, q: p[q],
            key=lambda p: p.tobytes(),
            name=name,
        )

    @classmethod
    def from_matrices(cls, generators: Sequence[ArrayLike], name: str = "group") -> Group:
        """The group that invertible square matrices generate.

        Args:
            generators: Matrices of shape (d, d), as those of `from_permutations`.
            name: What messages call the group.

        Raises:
            ValueError: If one is not square, not finite or singular, or they generate more than
                ``MAX_ORDER`` elements.

        >>> len(Group.from_matrices([[[0, -1], [1, 0]], [[1, 0], [0, -1]]]))
        8
        """
        kind = np.complex128 if any(map(np.iscomplexobj, _some(generators))) else np.float64
        matrices = [np.asarray(m, dtype=kind) for m in generators]
        shape = (len(matrices[0]), len(matrices[0]))
        for i, matrix in enumerate(matrices):
            if matrix.shape != shape:
                raise ValueError(f"generator {i} has shape {matrix.shape}, expected {shape}")
            if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
                raise ValueError(f"generator {i} is not an invertible matrix: {matrix.tolist()}")
            if abs(abs(np.linalg.det(matrix)) - 1) > 1e-6:
                raise ValueError(
                    f"generator {i} has determinant {np.linalg.det(matrix):.6g}, so its powers are "
                    "infinitely many; matrices of a finite group have determinant 1 or -1"
                )
        return cls._generate(
            np.eye(shape[0], dtype=kind),
            matrices,
            multiply=operator.matmul,
            # adding 0 turns -0.0 into 0.0, which has other bytes
            key=lambda m: (np.round(m, 6) + kind(0)).tobytes(),
            name=name,
        )

    @classmethod
    def _generate(
        cls,
        identity: Image,
        generators: Sequence[Image],
        multiply: Callable[[Image, Image], Image],
        key: Callable[[Image], Hashable],
        name: str,
    ) -> Group:
        """Enumerate by breadth-first search over the Cayley graph."""
        elements = [identity]
        index = {key(identity): 0}
        parents: list[tuple[int, int]] = [(0, 0)]
        right: list[list[int]] = []  # right[x][s] is the index of x times generator s
        for x, element in enumerate(elements):  # the list grows while it is read
            right.append([])
            for s, generator in enumerate(generators):
                product = multiply(element, generator)
                if key(product) not in index:
                    if len(elements) == MAX_ORDER:
                        raise ValueError(
                            f"the generators give a group of more than {MAX_ORDER} elements, "
                            "perhaps an infinite one; give generators of a smaller group"
                        )
                    index[key(product)] = len(elements)
                    elements.append(product)
                    parents.append((x, s))
                right[x].append(index[key(product)])
        steps = np.array(right)
        table = np.empty((len(elements), len(elements)), dtype=_cayley.integers(len(elements)))
        table[:, 0] = np.arange(len(elements))
        for g, (parent, s) in enumerate(parents[1:], start=1):
            table[:, g] = steps[table[:, parent], s]  # x (p s) = (x p) s
        return cls(table, name=name, generators=[int(g) for g in steps[0]])

    def __len__(self) -> int:
        return len(self._inverse)

    def __getitem__(self, index: int) -> Element:
        """Element ``index``, which multiplies and inverts by operators."""
        return Element(self, self.check_element(index))

    def __eq__(self, other: object) -> bool:
        """Whether the Cayley tables are the same."""
        return isinstance(other, Group) and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(self.table.tobytes())

    def __repr__(self) -> str:
        return f"Group({self.name!r}, order {len(self)})"

    @property
    def elements(self) -> tuple[Element, ...]:
        """All elements, the identity first."""
        return tuple(Element(self, g) for g in range(len(self)))

    def compose(self, g: int, h: int) -> int:
        """The product g h: first h, then g."""
        return int(self.table[g, h])

    def inverse(self, g: int) -> int:
        """The element that undoes g."""
        return self._inverse[g]

    def check_element(self, g: int) -> int:
        """Return ``g`` if it is an element of the group, else raise IndexError."""
        if not 0 <= g < len(self) or g != int(g):
            raise IndexError(f"{self.name} has the elements 0..{len(self) - 1}; got {g}")
        return int(g)

    def sample(self, count: int, seed: int = 0) -> list[int]:
        """The identity and other elements drawn at random, ``count`` in all, without repetition.

        For the checks of `equicore.verify`, whose ``elements`` they are where the group is large.

        >>> symmetric(5).sample(4)
        [0, 101, 67, 37]
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"{self.name} has {len(self)} elements; a sample of {count} is none")
        drawn = np.random.default_rng(seed).permutation(np.arange(1, len(self)))
        return [0, *drawn[: count - 1].tolist()]

    def subgroup(self, generators: Sequence[int]) -> Subgroup:
        """The subgroup that elements generate.

        >>> rotations = dihedral(4).subgroup([1])
        >>> len(rotations), rotations.embedding.tolist()
        (4, [0, 1, 2, 3])
        """
        return Subgroup(self, generators)

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        """The group itself: it never changes."""
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled group; its tables would be writable."""
        self.__dict__.update(state)
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def extend(
        self,
        images: Sequence[Image],
        identity: Image,
        multiply: Callable[[Image, Image], Image],
        same: Callable[[Image, Image], bool] = operator.eq,
    ) -> list[Image]:
        """Extend images of the generators, in their order, to images of all elements.

        They are products along words in the generators; whether they form a homomorphism is for
        `check_homomorphism` to say, which has the same arguments.

        Raises:
            ValueError: If the number of images is not the number of generators, or two
                generators that are the same element are given different images.
        """
        if len(images) != len(self.generators):
            raise ValueError(
                f"{self.name} is generated by {len(self.generators)} elements "
                f"{[self.names[g] for g in self.generators]}; got {len(images)} images"
            )
        extended: list[Any] = [identity] * len(self)
        for g, parent, position in self._factors:
            extended[g] = multiply(extended[parent], images[position])
        for position, g in enumerate(self.generators):
            if not same(extended[g], images[position]):
                raise ValueError(
                    f"generator {position} of {self.name} is element {g} ({self.names[g]}), which "
                    "is the identity or an earlier generator, but it is given another image"
                )
        return extended

    def check_homomorphism(
        self,
        images: Sequence[Image],
        identity: Image,
        multiply: Callable[[Image, Image], Image],
        same: Callable[[Image, Image], bool],
        what: str,
    ) -> None:
        """Raise ValueError unless rho(0) = 1 and rho(g h) = rho(g) rho(h) for the images rho.

        Args:
            images: rho(g) for each g.
            identity: The image 1 that changes nothing.
            multiply: Product of two images, ``multiply(rho(g), rho(h)) = rho(g h)``.
            same: Whether two images are equal.
            what: What the message calls the images, for instance ``"permutations"``.
        """
        # every g against every generator h is enough
        if len(images) != len(self):
            raise ValueError(f"{self.name} has {len(self)} elements; got {len(images)} {what}")
        if not same(images[0], identity):
            raise ValueError(
                f"the {what} do not follow {self.name}: element 0 must act as identity"
            )
        for g in range(len(self)):
            for h in self.generators:
                if not same(multiply(images[g], images[h]), images[self.compose(g, h)]):
                    raise ValueError(
                        f"the {what} do not follow {self.name}: those of elements {g} "
                        f"({self.names[g]}) and {h} ({self.names[h]}) multiply to something "
                        f"else than that of their product {self.compose(g, h)} "
                        f"({self.names[self.compose(g, h)]})"
                    )


class Subgroup(Group):
    """A subgroup as a group of its own, numbered in the order of its parent.

    Args:
        parent: The group.
        generators: Elements of the parent that generate the subgroup.

    Attributes:
        parent: The group.
        embedding: ``embedding[h]`` is the parent's number of element h, read-only, shape (n,).
    """

    def __init__(self, parent: Group, generators: Sequence[int]) -> None:
        checked = [parent.check_element(g) for g in generators]
        reached = _cayley.reached(parent.table, checked)
        self.parent = parent
        self.embedding = np.array(sorted({0} | {g for g, _, _ in reached}))
        place = np.full(len(parent), -1)
        place[self.embedding] = np.arange(len(self.embedding))
        names = [parent.names[g] for g in self.embedding]
        super().__init__(
            place[parent.table[np.ix_(self.embedding, self.embedding)]],
            name=f"<{', '.join(parent.names[g] for g in checked)}> in {parent.name}",
            names=names,
            generators=[int(place[g]) for g in checked],
        )
        self.embedding.flags.writeable = False


def trivial() -> Group:
    """The group of the identity alone."""
    return Group([[0]], name="trivial", names=["e"], generators=[])


def cyclic(n: int) -> Group:
    """The cyclic group C_n; element k is r^k.

    Raises:
        ValueError: If n < 1.
    """
    _check_positive("cyclic", n)
    _cayley.check_order(n, f"cyclic({n})", "use one of fewer elements")
    k = np.arange(n, dtype=_cayley.integers(n))
    return Group(
        (k[:, None] + k) % n,
        name=f"cyclic({n})",
        names=[_power("r", i) for i in range(n)],
        generators=[1] if n > 1 else [],
    )


def dihedral(n: int) -> Group:
    """The dihedral group D_n of order 2n, the symmetries of a regular n-gon.

    Element k < n is the rotation r^k, element n + k the reflection r^k s (first s, then r^k),
    with s r = r^-1 s.

    Raises:
        ValueError: If n < 1.
    """
    _check_positive("dihedral", n)
    _cayley.check_order(2 * n, f"dihedral({n})", "use one of fewer elements")
    flip, turn = np.divmod(np.arange(2 * n, dtype=_cayley.integers(2 * n)), n)
    sign = 1 - 2 * flip
    turns = (turn[:, None] + sign[:, None] * turn) % n
    rotations = [_power("r", i) for i in range(n)]
    return Group(
        turns + n * (flip[:, None] ^ flip),
        name=f"dihedral({n})",
        names=rotations + ["s"] + [f"{r} s" for r in rotations[1:]],
        generators=[1, n] if n > 1 else [1],
    )


def symmetric(n: int) -> Group:
    """The symmetric group S_n of all permutations of n points.

    Its generators are the exchange of 0 and 1 and, for n > 2, the cycle 0 -> 1 -> ... -> 0, so
    ``Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])`` is its action on points.

    Raises:
        ValueError: If n < 1, or the group has more than ``MAX_ORDER`` elements (n > 7).
    """
    _check_positive("symmetric", n)
    _cayley.check_order(math.factorial(min(n, 20)), f"symmetric({n})", "use one of fewer points")
    if n == 1:
        return Group([[0]], name="symmetric(1)", names=["e"], generators=[])
    exchange = [1, 0, *range(2, n)]
    cycle = [*range(1, n), 0]
    return Group.from_permutations(
        [exchange] if n == 2 else [exchange, cycle], name=f"symmetric({n})"
    )


def product(first: Group, second: Group) -> Group:
    """The direct product; element ``g * len(second) + h`` is the pair (g, h).

    Raises:
        ValueError: If it has more than ``MAX_ORDER`` elements.
    """
    return _of_pairs(first, second, np.tile(np.arange(len(first)), (len(second), 1)), "x")


def semidirect(normal: Group, acting: Group, automorphisms: ArrayLike) -> Group:
    """The semidirect product; element ``n * len(acting) + h`` is the pair (n, h).

    Pairs multiply as motions do, (n, h) (m, k) = (n h(m), h k): first k and m, then h and n.

    Args:
        normal: The normal subgroup N, for instance of shifts.
        acting: The group H that acts on it, for instance of rotations.
        automorphisms: Integers of shape (|H|, |N|): ``automorphisms[h][m]`` is h(m).

    Raises:
        ValueError: If a row is no automorphism of N, or the rows do not follow H's
            multiplication.

    >>> len(semidirect(cyclic(3), cyclic(2), [[0, 1, 2], [0, 2, 1]]))
    6
    """
    _cayley.check_order(
        len(normal) * len(acting), f"{normal.name} : {acting.name}", "use subgroups of its factors"
    )
    rows = [check_permutation(row, len(normal)) for row in np.asarray(automorphisms)]
    for h, row in enumerate(rows):
        wrong = np.argwhere(row[normal.table] != normal.table[np.ix_(row, row)])
        if len(wrong):
            n, m = wrong[0]
            raise ValueError(
                f"row {h} is no automorphism of {normal.name}: the image of {n} {m} is not the "
                "product of their images"
            )
    acting.check_homomorphism(
        rows, np.arange(len(normal)), lambda p, q: p[q], np.array_equal, "automorphisms"
    )
    return _of_pairs(normal, acting, np.stack(rows), ":")


def _of_pairs(normal: Group, acting: Group, images: NDArray[np.int64], sign: str) -> Group:
    """The group of pairs with (n, h) (m, k) = (n images[h][m], h k)."""
    name = f"{normal.name} {sign} {acting.name}"
    order = len(normal) * len(acting)
    _cayley.check_order(order, name, "use subgroups of its factors")
    n = np.arange(len(normal))[:, None, None, None]
    table = normal.table[n, images[None, :, :, None]].astype(_cayley.integers(order))
    table *= len(acting)
    table = table + acting.table[:, None, :].astype(table.dtype)
    return Group(
        table.reshape(order, order),
        name=name,
        names=[f"({n}, {h})" for n in normal.names for h in acting.names],
        generators=[n * len(acting) for n in normal.generators] + list(acting.generators),
    )


def check_permutation(permutation: ArrayLike, points: int) -> NDArray[np.int64]:
    """Return the permutation as an array of shape (points,), or raise ValueError."""
    array = np.asarray(permutation)
    if array.shape != (points,) or not np.array_equal(np.sort(array), np.arange(points)):
        raise ValueError(
            f"not a permutation of 0..{points - 1}: {array.tolist()} "
            "(each number must stand exactly once)"
        )
    return array.astype(np.int64)


def _some(generators: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    if len(generators) == 0:
        raise ValueError("no generators given: use trivial() for the group of one element")
    return generators


def _check_positive(name: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"{name}(n) needs n >= 1; got {n}")


def _power(base: str, exponent: int) -> str:
    return {0: "e", 1: base}.get(exponent, f"{base}^{exponent}")
