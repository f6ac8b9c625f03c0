"""Representations of the entries of trees: each in its own way, or changing places."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from equicore.representations.base import Action, Elements, Representation, check_one_group
from equicore.trees import entries, rebuild, tree_map

Moves = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
"""Where entries go, by name, as a dict or as pairs; others stay."""

Signed = tuple[Any, bool]
"""Where an entry goes, and whether its sign changes on the way."""


class _Entries(Representation):
    """A representation for each named entry.

    Args:
        parts: A representation for each key, field or place; nested dicts, sequences and
            dataclasses of representations stand for nested trees.
        what: What messages call it.
    """

    def __init__(self, parts: Any, what: str) -> None:
        try:
            named = entries(parts)
        except TypeError as error:
            raise TypeError(
                f"{what} is made of representations, and of dicts, sequences or dataclasses of "
                f"them; got {parts!r}"
            ) from error
        made = [p if isinstance(p, Action) else Tree(p) for p in named.values()]
        if not made:
            raise ValueError(f"{what} needs at least one representation")
        if (group := check_one_group(made, f"the parts of {what}")) is None:
            Action.__init__(self)
        else:
            super().__init__(group)
        self.names = tuple(named)
        self.parts = nn.ModuleList(made)
        self.axes = tuple({axis for part in made for axis in part.axes})

    def by_name(self) -> dict[Any, Any]:
        """The representation of each entry, by its key, field or place."""
        return dict(zip(self.names, self.parts, strict=True))

    def select(self, y: Any) -> Any:
        """The entries that are acted on.

        Of the others, keys of a dict are left out, and fields of a model output and places of a
        sequence before the last that is acted on become None.

        Raises:
            ValueError: If an entry is missing.
        """
        found = entries(y)
        self._check_names(found)

        def kept(part: Any, entry: Any) -> Any:
            return None if entry is None else part.select(entry)

        parts = zip(self.names, self.parts, strict=True)
        return rebuild(y, {name: kept(part, found[name]) for name, part in parts})

    def _found(self, x: Any) -> dict[Any, Any]:
        """The entries of a tree, or ValueError if they are not those that are acted on."""
        found = entries(x)
        self._check_names(found)
        unknown = [n for n, entry in found.items() if n not in self.names and entry is not None]
        if unknown:
            raise ValueError(
                f"no representation is given for the entries {unknown}; the tree has "
                f"{list(self.names)}. Entries that no element changes are Trivial(group)"
            )
        return found

    def _check_names(self, found: dict[Any, Any]) -> None:
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ValueError(
                f"the tree has representations for the entries {list(self.names)}, of which "
                f"{missing} are missing; got {list(found)}"
            )

    def _arguments(self) -> Any:
        """The parts: a list where they are the places of a sequence, else by name."""
        places = self.names == tuple(range(len(self.names)))
        return list(self.parts) if places else self.by_name()


class Tree(_Entries):
    """Representations for the entries of dicts, sequences, dataclasses and model outputs.

    An entry that is None stays None.

    Args:
        parts: A representation for each key, field or place; nested dicts, sequences and
            dataclasses of representations stand for nested trees.

    Raises:
        TypeError: If a part is neither a representation nor a tree of them.
        ValueError: If there is no part, or the parts are of different groups.

    >>> import torch
    >>> from equicore import Tokens, Trivial, cyclic
    >>> tokens = Tokens.from_cycles(cyclic(2), [[[1, 4]]], size=6)
    >>> batch = Tree({"ids": tokens, "mask": Trivial(tokens.group)})
    >>> batch.act(1, {"ids": torch.tensor([[0, 1]]), "mask": torch.tensor([[1, 1]])})
    {'ids': tensor([[0, 4]]), 'mask': tensor([[1, 1]])}
    """

    def __init__(self, parts: Any) -> None:
        super().__init__(parts, "a tree")

    def act(self, g: int, x: Any) -> Any:
        return self._each(x, lambda part, entry: part.act(g, entry))

    def act_each(self, elements: Elements, x: Any) -> Any:
        return self._each(x, lambda part, entry: part.act_each(elements, entry))

    def align_each(self, elements: Elements, y: Any) -> Any:
        return self._each(y, lambda part, entry: part.align_each(elements, entry))

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        return self._each(x, lambda part, entry: part.orbit(entry, elements))

    def align(self, y: Any, elements: Elements | None = None) -> Any:
        return self._each(y, lambda part, entry: part.align(entry, elements))

    def arguments(self) -> dict[str, Any]:
        return {"parts": self._arguments()}

    def _each(self, x: Any, verb: Callable[[Any, Any], Any]) -> Any:
        found = self._found(x)
        changed = {
            name: None if found[name] is None else verb(part, found[name])
            for name, part in zip(self.names, self.parts, strict=True)
        }
        return rebuild(x, {name: changed.get(name) for name in found})


class Exchange(_Entries):
    """Entries of a tree that change places: stereo pairs, left and right arms, staggered grids.

    Under g the value of an entry is acted on as its part says, changes its sign where that is
    said, and becomes the value of another entry.

    Args:
        parts: As of a `Tree`. Entries that change places are acted on alike.
        moves: For each of ``group.generators`` where entries go: ``{"left": "right", "right":
            "left"}``. Entries that are not named stay.
        signs: For each of the generators the entries whose values change their sign on the way;
            none when omitted.

    Raises:
        TypeError: If a part is neither a representation nor a tree of them.
        ValueError: If the moves are no permutation of the entries, do not extend to all of the
            group, or exchange entries that are acted on differently.

    >>> import torch
    >>> from equicore import image_flips
    >>> mirror = image_flips()
    >>> stereo = Exchange(
    ...     {"left": mirror, "right": mirror}, [{"left": "right", "right": "left"}]
    ... )
    >>> stereo.act(1, {"left": torch.tensor([[[1, 2]]]), "right": torch.tensor([[[3, 4]]])})
    {'left': tensor([[[4, 3]]]), 'right': tensor([[[2, 1]]])}
    """

    def __init__(
        self,
        parts: Any,
        moves: Sequence[Moves],
        signs: Sequence[Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(parts, "an exchange")
        if self.group is None:
            raise TypeError("an exchange is of a finite group; its parts act by a continuous one")
        if isinstance(moves, Mapping):
            raise TypeError(f"moves has a dict for each of the generators; got one dict, {moves}")
        signs = [()] * len(moves) if signs is None else signs
        if len(signs) != len(moves):
            raise ValueError(f"signs are for each of {len(moves)} generators; got {len(signs)}")
        pairs = zip(moves, signs, strict=True)
        images = [self._image(move, sign) for move, sign in pairs]
        identity = {name: (name, False) for name in self.names}
        self._images = self.group.extend(images, identity, _after)
        self.group.check_homomorphism(
            self._images, identity, _after, operator.eq, "moves of the entries"
        )
        self.moves = [list(map(list, dict(move).items())) for move in moves]
        self.signs = [list(sign) for sign in signs]
        named = dict(zip(self.names, self.parts, strict=True))
        for image in images:
            for name, (place, _) in image.items():
                if not _alike(named[name], named[place]):
                    raise ValueError(
                        f"the entries {name!r} and {place!r} change places, but are acted on "
                        f"differently, as {named[name]} and {named[place]}"
                    )

    def act(self, g: int, x: Any) -> Any:
        """Act on each entry and move it to its place."""
        found = self._found(x)
        moved = {}
        image = self._images[self.group.check_element(g)]
        parts: Any = self.parts
        for name, part in zip(self.names, parts, strict=True):
            (place, negative), value = image[name], found[name]
            if (value is None) != (found[place] is None):
                raise ValueError(f"{name!r} and {place!r} change places; one of them is None")
            acted = None if value is None else part.act(g, value)
            moved[place] = tree_map(_negative, acted) if negative else acted
        return rebuild(x, {name: moved.get(name) for name in found})

    def arguments(self) -> dict[str, Any]:
        return {"parts": self._arguments(), "moves": self.moves, "signs": self.signs}

    def _image(self, move: Moves, signs: Sequence[Any]) -> dict[Any, Signed]:
        """Where each entry goes under a generator."""
        move = dict(move)
        image = {name: (move.get(name, name), name in signs) for name in self.names}
        unknown = [name for name in (*move, *signs) if name not in self.names]
        if unknown or {place for place, _ in image.values()} != {*self.names}:
            raise ValueError(
                f"moves and signs are of the entries {list(self.names)}, each of which goes to a "
                f"place of its own; got the moves {dict(move)} and the signs {list(signs)}"
            )
        return image


def _negative(x: Tensor) -> Tensor:
    if not (x.is_floating_point() or x.is_complex() or x.dtype.is_signed):
        raise TypeError(f"entries that change their sign need a type with signs; got {x.dtype}")
    return -x


def _after(after: dict[Any, Signed], before: dict[Any, Signed]) -> dict[Any, Signed]:
    """First ``before``, then ``after``."""
    return {
        name: (after[place][0], after[place][1] != sign) for name, (place, sign) in before.items()
    }


def _alike(one: Any, other: Any) -> bool:
    """Whether two representations are the same, as far as their arguments tell."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Representation):
        try:
            same = _alike(one.arguments(), other.arguments())
        except NotImplementedError:
            return False
        return same and one.group == other.group
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
