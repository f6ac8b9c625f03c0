"""Signed permutations: what most symmetries of environments do to entries and to actions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equicore import Matrix, Permutation, Representation
from equirl.described import CLOSE, entries_of
from equirl.named import Change, Generator, choices, move, negate, power, swap, symmetry
from equirl.symmetry import Names, Symmetry

SIDES = ("left", "right"), ("first", "second"), ("front", "back"), ("north", "south")
"""Words of names that tell two sides."""


@dataclass(frozen=True)
class Signed:
    """A signed permutation: what it makes of x has ``sign[k] * x[source[k]]`` at place k."""

    source: tuple[int, ...]
    sign: tuple[int, ...]

    @classmethod
    def identity(cls, size: int) -> Signed:
        """The one that changes nothing."""
        return cls(tuple(range(size)), (1,) * size)

    @classmethod
    def of(cls, matrix: NDArray[Any]) -> Signed | None:
        """The signed permutation that a matrix is; None if it is none."""
        size = abs(matrix)
        if not np.all((size < CLOSE) | (abs(size - 1) < CLOSE)) or any(
            (size.sum(axis) > 1 + CLOSE).any() for axis in (0, 1)
        ):
            return None
        source = size.argmax(1)
        signs = np.sign(matrix[np.arange(len(matrix)), source]).astype(int)
        return cls(tuple(source.tolist()), tuple(signs.tolist()))

    def __matmul__(self, other: Signed) -> Signed:
        """First ``other``, then this one."""
        source = tuple(other.source[k] for k in self.source)
        signs = (s * other.sign[k] for s, k in zip(self.sign, self.source, strict=True))
        return Signed(source, tuple(signs))

    def matrix(self) -> NDArray[np.float64]:
        """As a matrix."""
        made = np.zeros((len(self.source),) * 2)
        made[range(len(made)), self.source] = self.sign
        return made

    def part(self, start: int, stop: int) -> Signed:
        """Of places that it keeps together."""
        source = tuple(k - start for k in self.source[start:stop])
        return Signed(source, self.sign[start:stop])

    def order(self) -> int:
        """How often it gives the identity."""
        one, product, times = Signed.identity(len(self.source)), self, 1
        while product != one:
            product, times = product @ self, times + 1
        return times

    def changed(self, places: dict[int, int], signs: dict[int, int]) -> Signed:
        """With other sources and signs of some places."""
        source, sign = list(self.source), list(self.sign)
        for k, value in places.items():
            source[k] = value
        for k, value in signs.items():
            sign[k] = value
        return Signed(tuple(source), tuple(sign))


def signed_of(symmetry: Symmetry, g: int) -> Signed | None:
    """What an element does to entries and then to actions; None if that is something else."""
    parts = []
    for representation in (symmetry.observation, symmetry.action):
        matrices = entries_of(representation)
        part = None if matrices is None else Signed.of(matrices[g])
        if part is None:
            return None
        parts.append(part)
    count = len(parts[0].source)
    source = (*parts[0].source, *(count + k for k in parts[1].source))
    return Signed(source, (*parts[0].sign, *parts[1].sign))


def generated(elements: Iterable[Signed], most: int) -> set[Signed] | None:
    """The group of some elements; None if it has more than ``most``."""
    elements = list(elements)
    group = {Signed.identity(len(elements[0].source))}
    new = set(group)
    while new:
        new = {a @ b for a in new for b in elements} - group
        group |= new
        if len(group) > most:
            return None
    return group


def named_of(elements: Sequence[Signed], names: Names, discrete: bool) -> Symmetry:
    """The symmetry that signed permutations of entries and then actions generate."""
    count = len(names.observation)
    actions = choices(*names.action) if discrete else names.action
    return symmetry(names.observation, actions, *(_generator(e, count, names) for e in elements))


def written(elements: Sequence[Signed], names: Names, discrete: bool) -> str:
    """Python code of `named_of`, to read, to correct and to register."""
    count = len(names.observation)
    action = ", ".join(map(repr, names.action))
    lines = [
        "symmetry(",
        f"    ({', '.join(map(repr, names.observation))},),",
        f"    choices({action})," if discrete else f"    ({action},),",
    ]
    for element in elements:
        made = _generator(element, count, names)
        of = [
            f"[{', '.join(c.text for c in change)}]" for change in (made.observation, made.action)
        ]
        lines.append(f"    power({made.order}, {of[0]}, {of[1]}),")
    return "\n".join([*lines, ")"])


def _generator(element: Signed, count: int, names: Names) -> Generator:
    parts = element.part(0, count), element.part(count, len(element.source))
    seen, told = (
        list(_changes(part, of))
        for part, of in zip(parts, (names.observation, names.action), strict=True)
    )
    return power(element.order(), seen, told)


def _changes(part: Signed, names: Sequence[str]) -> Iterator[Change]:
    """What a signed permutation does, by names."""
    negated, rest = [], {}
    for k, (source, sign) in enumerate(zip(part.source, part.sign, strict=True)):
        if source == k:
            negated += [names[k]] if sign < 0 else []
        elif part.source[source] == k and part.sign[source] == sign == 1:
            if source < k:
                yield swap(names[source], names[k])
        else:
            rest[names[source]] = ("-" if sign < 0 else "") + names[k]
    if negated:
        yield negate(*negated)
    if rest:
        yield move(rest)


def likely_mistakes(of: Symmetry) -> Iterator[tuple[str, Symmetry]]:
    """Mirror images that differ in one sign, one exchange, or all exchanges, and how."""
    if len(of.group) != 2:
        return
    for what in ("action", "observation"):
        representation: Representation = getattr(of, what)
        matrices = entries_of(representation)
        signed = None if matrices is None else Signed.of(matrices[1])
        if signed is None:
            continue
        idle = _still(of, "action" if what == "observation" else "observation")
        names = of.names_of(what, (len(signed.source),))
        ids = isinstance(representation, Permutation)
        for text, other in [*_by_names(of, what, signed, names), *_mistakes(signed, names, ids)]:
            if idle and other == Signed.identity(len(names)):
                continue  # what changes nothing is true of everything
            made: Any = Matrix.from_generators(of.group, [other.matrix()])
            if ids:
                made = Permutation.from_generators(of.group, [list(other.source)])
            yield f"{what}: {text}", dataclasses.replace(of, **{what: made})


def _by_names(
    of: Symmetry, what: str, signed: Signed, names: Sequence[str]
) -> Iterator[tuple[str, Signed]]:
    """Sides exchanged that by their names are two, and are not now.

    Actions change their sign if entries of observations do that are called so.
    """
    matrices = entries_of(of.observation)
    seen = Signed.of(matrices[1]) if what == "action" and matrices is not None else None
    entries = of.names.observation if of.names else ()
    for one, other in SIDES:
        places: dict[int, int] = {}
        signs: dict[int, int] = {}
        first = ""
        for i, name in enumerate(names):
            words = [other if word == one else word for word in name.split()]
            if one not in name.split() or " ".join(words) not in names or signed.source[i] != i:
                continue
            j = list(names).index(" ".join(words))
            alike = [k for k, entry in enumerate(entries) if f"{entry} ".startswith(f"{name} ")]
            sign = (
                seen.sign[alike[0]]
                if seen and alike and not isinstance(of.action, Permutation)
                else 1
            )
            places |= {i: j, j: i}
            signs |= {i: sign, j: sign}
            first = first or f"{name!r} and {names[j]!r}"
        if len(places) > 2:
            yield f"{first}, and others, exchanged", signed.changed(places, signs)


def _still(of: Symmetry, what: str) -> bool:
    """Whether element 1 changes no observation, or no action."""
    matrices = entries_of(getattr(of, what))
    return matrices is not None and bool(np.array_equal(matrices[1], np.eye(len(matrices[1]))))


def _mistakes(signed: Signed, names: Sequence[str], ids: bool) -> Iterator[tuple[str, Signed]]:
    """Other signs and other exchanges, of an element that undoes itself."""
    count = len(names)
    pairs = [(i, j) for i, j in enumerate(signed.source) if j > i]
    alone = [i for i, j in enumerate(signed.source) if i == j]
    for i, j in [] if ids else [*((i, i) for i in alone), *pairs]:
        both = f" and {names[j]!r}" if i != j else ""
        yield (
            f"another sign of {names[i]!r}{both}",
            signed.changed({}, {k: -signed.sign[k] for k in (i, j)}),
        )
    straight = [(1, 1)] if ids else [(1, 1), (-1, -1), (1, -1), (-1, 1)]
    for (i, j), (a, b) in itertools.product(pairs, straight):
        how = "" if (a, b) == (1, 1) else ", with other signs"
        yield (
            f"{names[i]!r} and {names[j]!r} not exchanged{how}",
            signed.changed({i: i, j: j}, {i: a, j: b}),
        )
    if len(pairs) > 1:
        places = {k: k for pair in pairs for k in pair}
        yield "nothing exchanged", signed.changed(places, dict.fromkeys(places, 1))
    for i, j in itertools.combinations(alone, 2):
        for sign in (1,) if ids else (1, -1):
            minus = "" if sign > 0 else ", with another sign"
            yield (
                f"{names[i]!r} and {names[j]!r} exchanged{minus}",
                signed.changed({i: j, j: i}, {i: sign, j: sign}),
            )
    if len(alone) == count and not ids:
        yield "all signs changed", Signed(signed.source, tuple(-s for s in signed.sign))
        yield "no sign changed", Signed.identity(count)
