"""Cayley tables: the checks that make one a group, and words in generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_ORDER = 5040
"""The largest group, that of all permutations of 7 points: its table has 25 million entries."""


def check_order(order: int, name: str, hint: str = "use a subgroup of it") -> None:
    """Raise ValueError where a group would be too large for a table."""
    if order > MAX_ORDER:
        raise ValueError(
            f"{name} has {order} elements; groups are tables of at most {MAX_ORDER} elements: "
            f"{hint}"
        )


def integers(order: int) -> np.dtype[Any]:
    """The smallest type for the numbers of so many elements, and for sums of two of them."""
    return np.min_scalar_type(-2 * order)


def square_table(table: ArrayLike, name: str) -> NDArray[Any]:
    """The table as integers, or ValueError where it is not square or not closed."""
    array = np.asarray(table)
    check_order(len(array) if array.ndim else 1, name)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or len(array) == 0:
        raise ValueError(f"a Cayley table is square, shape (n, n) with n >= 1; got {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"a Cayley table holds integers; got {array.dtype}")
    outside = np.argwhere((array < 0) | (array >= len(array)))
    if len(outside):
        g, h = outside[0]
        raise ValueError(
            f"not closed: the product of {g} and {h} is {array[g, h]}, "
            f"which is none of the elements 0..{len(array) - 1}"
        )
    return array.astype(integers(len(array)))  # a copy


def verified_inverses(table: NDArray[Any]) -> NDArray[np.int64]:
    """The inverse of each element, or ValueError where 0 is no identity or one has none."""
    elements = np.arange(len(table))
    for side, products in (("0 g", table[0]), ("g 0", table[:, 0])):
        wrong = np.flatnonzero(products != elements)
        if len(wrong):
            g = wrong[0]
            raise ValueError(f"0 is not the identity: {side} = {products[g]} for g = {g}")
    two_sided = (table == 0) & (table.T == 0)
    inverses = np.argmax(two_sided, axis=1)
    wrong = np.flatnonzero(~two_sided.any(axis=1))
    if len(wrong):
        raise ValueError(
            f"element {wrong[0]} has no inverse: no h gives {wrong[0]} h = h {wrong[0]} = 0"
        )
    return inverses


def reached(table: NDArray[Any], generators: Sequence[int]) -> list[tuple[int, int, int]]:
    """Breadth-first (g, parent, position) with g = parent times generators[position]."""
    seen = {0}
    factors: list[tuple[int, int, int]] = []
    queue = [0]
    for parent in queue:  # the list grows while it is read
        for position, generator in enumerate(generators):
            g = int(table[parent, generator])
            if g not in seen:
                seen.add(g)
                queue.append(g)
                factors.append((g, parent, position))
    return factors


def find_generators(table: NDArray[Any]) -> tuple[int, ...]:
    """Elements that generate the group, each outside what those before it generate."""
    generators: list[int] = []
    found = {0}
    for g in range(len(table)):
        if g not in found:
            generators.append(g)
            found = {0} | {element for element, _, _ in reached(table, generators)}
    return tuple(generators)


def factorize(
    table: NDArray[Any], generators: Sequence[int], name: str
) -> list[tuple[int, int, int]]:
    """A word in the generators for each element but 0, or ValueError if one has none."""
    factors = reached(table, generators)
    missing = set(range(len(table))) - {0} - {g for g, _, _ in factors}
    if missing:
        raise ValueError(f"{list(generators)} do not generate {name}: {min(missing)} is missed")
    return factors


def verify_associativity(table: NDArray[Any], generators: Sequence[int]) -> None:
    """Light's test: (x s) y = x (s y) for all x, y and all generators s."""
    for s in generators:
        left = table[table[:, s]]  # [x, y] -> (x s) y
        right = table[:, table[s]]  # [x, y] -> x (s y)
        wrong = np.argwhere(left != right)
        if len(wrong):
            x, y = wrong[0]
            raise ValueError(
                f"not associative: ({x} {s}) {y} = {left[x, y]} but {x} ({s} {y}) = {right[x, y]}"
            )
