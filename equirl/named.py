"""Symmetries that are written by the names of entries, so that a person can read and review them.

>>> observation = ("x", "y", "angle", "left leg contact", "right leg contact")
>>> engines = choices("nothing", "left engine", "main engine", "right engine")
>>> lander = symmetry(
...     observation,
...     engines,
...     mirror([negate("x", "angle"), swap("left leg", "right leg")], [swap("left", "right")]),
... )
>>> print(lander.describe())
cyclic(2), of order 2
element 1 on observations
  x -> -x
  angle -> -angle
  left leg contact <-> right leg contact
  unchanged: y
element 1 on actions
  left engine <-> right engine
  unchanged: nothing, main engine

Entries are named in the order of the environment's vectors. What stands for several, such as
``"left leg"``, stands for all entries whose names begin so; a name that an entry has is that alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equicore import Group, Matrix, Permutation, Representation, cyclic
from equirl.described import CLOSE, said
from equirl.symmetry import Names, Symmetry

Block = tuple[list[int], Any]
"""Places of entries, and the matrix that acts on them."""


class Choices(tuple[str, ...]):
    """The names of discrete actions, in the order of their ids; see `choices`."""


def choices(*names: str) -> Choices:
    """The names of discrete actions, in the order of their ids."""
    return Choices(names)


@dataclass(frozen=True)
class Change:
    """What a generator does to some named entries; of `negate`, `swap`, `move` and `turn`."""

    text: str
    blocks: Callable[[Sequence[str]], Iterator[Block]]


@dataclass(frozen=True)
class Generator:
    """One element of a group, by what it does to entries, and how often it gives the identity."""

    order: int
    observation: Sequence[Change]
    action: Sequence[Change]


def mirror(observation: Sequence[Change], action: Sequence[Change]) -> Generator:
    """An element that undoes itself."""
    return Generator(2, observation, action)


def power(order: int, observation: Sequence[Change], action: Sequence[Change]) -> Generator:
    """An element that gives the identity after ``order`` times, such as a quarter turn after 4."""
    return Generator(order, observation, action)


def negate(*entries: str) -> Change:
    """Change the sign of entries."""
    text = f"negate({', '.join(map(repr, entries))})"

    def blocks(names: Sequence[str]) -> Iterator[Block]:
        for entry in entries:
            for place in _find(names, entry, text):
                yield [place], -np.eye(1)

    return Change(text, blocks)


def swap(one: str, other: str, negate: Sequence[str] = ()) -> Change:
    """Exchange two entries, or all entries of two sides.

    Args:
        one: A name, or what the names of a side begin with.
        other: The same of the other side.
        negate: What also changes its sign as it is exchanged, by words in the rest of its name:
            ``"roll"`` is in ``"left hip roll"`` and ``"left hip roll velocity"``; both sides do.
    """
    more = f", negate={tuple(negate)}" if negate else ""
    text = f"swap({one!r}, {other!r}{more})"

    def blocks(names: Sequence[str]) -> Iterator[Block]:
        used = set()
        for rest, places in _matched(names, (one, other), text):
            signs = [words for words in negate if f" {words} " in f" {rest} "]
            used.update(signs)
            yield places, np.array([[0, 1], [1, 0]]) * (-1 if signs else 1)
        if unused := [n for n in negate if n not in used]:
            raise ValueError(f"{text}: no exchanged entry is called {unused[0]!r}")

    return Change(text, blocks)


def move(places: Mapping[str, str]) -> Change:
    """Move entries to other places, with a changed sign where that has a ``-``.

    >>> quarter = move({"x": "y", "y": "-x"})

    takes the vector (x, y) to (-y, x): what was x stands at y, what was y stands at x, negated.
    """
    text = f"move({dict(places)})"

    def blocks(names: Sequence[str]) -> Iterator[Block]:
        pairs = {}
        for source, target in places.items():
            (start,) = _one(names, source, text)
            (end,) = _one(names, target.removeprefix("-"), text)
            pairs[start] = end, -1 if target.startswith("-") else 1
        ends = [end for end, _ in pairs.values()]
        for lacking, of in ((set(ends) - set(pairs), "where does"), (set(pairs) - set(ends), "")):
            if lacking:
                name = names[min(lacking)]
                raise ValueError(
                    f"{text} moves something to {name!r} and does not say where that moves"
                    if of
                    else f"{text} moves {name!r} away and nothing there; one side is missing"
                )
        order = sorted(pairs)
        matrix = np.zeros((len(order),) * 2)
        for start, (end, sign) in pairs.items():
            matrix[order.index(end), order.index(start)] = sign
        yield order, matrix

    return Change(text, blocks)


def turn(x: str, y: str, by: int = 4) -> Change:
    """Turn vectors (x, y) by one of ``by`` equal parts of a whole turn, from x towards y.

    Args:
        x: A name, or what names begin with.
        y: The same for the other component.
        by: 4 for quarter turns.
    """
    text = f"turn({x!r}, {y!r}, by={by})"
    if by < 2:
        raise ValueError(f"{text}: a turn is by one of 2 or more parts of a whole turn")
    angle = 2 * math.pi / by
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    whole = matrix.round()
    matrix = whole if abs(matrix - whole).max() < CLOSE else matrix

    def blocks(names: Sequence[str]) -> Iterator[Block]:
        for _, places in _matched(names, (x, y), text):
            yield places, matrix

    return Change(text, blocks)


def symmetry(
    observation: Sequence[str] | Representation, action: Sequence[str], *generators: Generator
) -> Symmetry:
    """The symmetry that generators make, of named entries.

    Args:
        observation: Names of the entries of observation vectors; or how the group acts on
            observations that are no vectors, such as `equicore.image_flips` on images, whose
            generators are those below, in their order.
        action: Names of the entries of action vectors, or the `choices` of discrete actions.
        generators: Of `mirror` or `power`; the group is what they generate together.

    Raises:
        ValueError: If there is no generator, an entry is not there (the message says which is
            near), is named twice, has no counterpart, or a generator is not of its order; the
            message names the entries.
    """
    if not generators:
        raise ValueError("a symmetry has generators: mirror(...) or power(order, ...)")
    if isinstance(observation, Representation):
        return _of_images(observation, action, generators)
    acting = []
    for names, what in ((observation, "observation"), (action, "action")):
        if len({*names}) < len(names) or not names:
            twice = next((name for name in names if list(names).count(name) > 1), None)
            raise ValueError(
                f"the {what} has the name {twice!r} twice" if twice else f"the {what} has no names"
            )
        acting.append([_matrix(names, g, getattr(g, what), what) for g in generators])
    if isinstance(action, Choices):
        acting[1] = [_whole(matrix, action) for matrix in acting[1]]
    orders = [g.order for g in generators]
    together = [_beside(*pair) for pair in zip(*acting, strict=True)]
    if len(generators) == 1:
        (order,) = orders
        exact = min(k for k in range(1, order + 1) if order % k == 0 and _is_one(together[0], k))
        if exact < order:
            raise ValueError(
                f"the generator gives the identity after {exact} times already, not after {order}"
            )
        group = cyclic(order)
    else:
        group = Group.from_matrices(together)
    seen = Matrix.from_generators(group, acting[0])
    told: Representation = Matrix.from_generators(group, acting[1])
    if isinstance(action, Choices):
        moved = [matrix.argmax(0) for matrix in acting[1]]
        told = Permutation.from_generators(group, moved)
    return Symmetry(seen, told, Names(tuple(observation), tuple(action)))


def _of_images(
    seen: Representation, action: Sequence[str], generators: Sequence[Generator]
) -> Symmetry:
    group = seen.group
    if len(group.generators) != len(generators) or any(g.observation for g in generators):
        raise ValueError(
            f"the observations' group has {len(group.generators)} generators, and {len(generators)}"
            " are given; each says what it does to actions, power(order, [], [...])"
        )
    moved = [_matrix(action, g, g.action, "action") for g in generators]
    names = Names((), tuple(action))
    if isinstance(action, Choices):
        places = [_whole(matrix, action).argmax(0) for matrix in moved]
        return Symmetry(seen, Permutation.from_generators(group, places), names)
    return Symmetry(seen, Matrix.from_generators(group, moved), names)


def repeat(of: Symmetry, frames: int) -> Symmetry:
    """The symmetry of so many observations one after the other in one vector.

    As Stable-Baselines3's ``VecFrameStack`` stacks vectors. Stacks of shape (frames, entries), as
    of Gymnasium's ``FrameStackObservation``, take the symmetry of one frame as it is.
    """
    if not isinstance(of.observation, Matrix) or frames < 1:
        raise ValueError(
            f"repeat takes a symmetry of vectors, by a Matrix, and frames from 1 on; got "
            f"{type(of.observation).__name__} and {frames}"
        )
    matrices = np.stack([np.kron(np.eye(frames), m) for m in of.observation.matrices.numpy()])
    names = of.names
    if names is not None:
        every = [f"{name}, frame {k}" for k in range(frames) for name in names.observation]
        names = Names(tuple(every), names.action)
    return Symmetry(Matrix(of.group, matrices), of.action, names)


def with_invariant(of: Symmetry, *extras: str) -> Symmetry:
    """The symmetry of observations with further entries at their end, which do not change.

    Such as the time left, or a command.
    """
    if not isinstance(of.observation, Matrix) or not extras:
        raise ValueError("with_invariant takes a symmetry of vectors, by a Matrix, and names")
    one = np.eye(len(extras))
    matrices = np.stack([_beside(m, one) for m in of.observation.matrices.numpy()])
    names = of.names and Names((*of.names.observation, *extras), of.names.action)
    return Symmetry(Matrix(of.group, matrices), of.action, names)


def _matrix(
    names: Sequence[str], generator: Generator, changes: Sequence[Change], what: str
) -> NDArray[np.float64]:
    """The matrix of a generator on all entries; ValueError if it is not of its order."""
    matrix = np.eye(len(names))
    by: dict[int, str] = {}
    for change in changes:
        for places, block in change.blocks(names):
            for place in places:
                if place in by:
                    raise ValueError(
                        f"{names[place]!r} is changed twice, by {by[place]} and {change.text}; "
                        "write it as one change, such as swap(..., negate=...)"
                    )
                by[place] = change.text
            matrix[np.ix_(places, places)] = block
    after = np.linalg.matrix_power(matrix, generator.order)
    wrong = np.flatnonzero(abs(after - np.eye(len(names))).max(0) > CLOSE)
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"after {generator.order} times the {what} entry {names[place]!r} is not what it was, "
            f"but {said(after[:, place], names)}; see {by[place]}"
        )
    return matrix


def _whole(matrix: NDArray[Any], names: Sequence[str]) -> NDArray[Any]:
    """The matrix, or ValueError unless it permutes discrete actions."""
    if not np.isin(matrix, (0, 1)).all():
        place = int(np.flatnonzero(~np.isin(matrix, (0, 1)).all(0))[0])
        raise ValueError(
            f"discrete actions change places and have no sign: {names[place]!r} would become "
            f"{said(matrix[:, place], names)}"
        )
    return matrix


def _is_one(matrix: NDArray[Any], power: int) -> bool:
    return bool(abs(np.linalg.matrix_power(matrix, power) - np.eye(len(matrix))).max() < CLOSE)


def _beside(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Two matrices on the diagonal of one."""
    first, second = len(one), len(other)
    made = np.zeros((first + second,) * 2)
    made[:first, :first], made[first:, first:] = one, other
    return made


def _find(names: Sequence[str], wanted: str, text: str) -> list[int]:
    """The place of an entry, or those of all whose names begin so."""
    if wanted in names:
        return [list(names).index(wanted)]
    found = [place for place, name in enumerate(names) if name.startswith(f"{wanted} ")]
    if not found:
        words = [" ".join(name.split()[:k]) for name in names for k in range(1, 9)]
        near = difflib.get_close_matches(wanted, words, n=1)
        raise ValueError(
            f"{text}: no entry is called {wanted!r}, or begins so"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" There are {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
        )
    return found


def _one(names: Sequence[str], wanted: str, text: str) -> list[int]:
    found = _find(names, wanted, text)
    if len(found) > 1:
        raise ValueError(
            f"{text}: {wanted!r} stands for {len(found)} entries, such as {names[found[0]]!r}; "
            "name one"
        )
    return found


def _matched(
    names: Sequence[str], sides: tuple[str, str], text: str
) -> Iterator[tuple[str, list[int]]]:
    """Entries of two sides whose names end alike: the end of the name, and both places."""
    by_rest: list[dict[str, int]] = []
    for side in sides:
        places = _find(names, side, text)
        by_rest.append({names[place].removeprefix(side).strip(): place for place in places})
    for own, other, opposite in ((0, 1, sides[1]), (1, 0, sides[0])):
        if missing := [rest for rest in by_rest[own] if rest not in by_rest[other]]:
            name, lacking = names[by_rest[own][missing[0]]], f"{opposite} {missing[0]}".strip()
            raise ValueError(f"{text}: {name!r} has no counterpart {lacking!r}")
    for rest, place in by_rest[0].items():
        yield rest, [place, by_rest[1][rest]]
