"""Token ids that a permutation of the vocabulary maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from equicore.groups import Group
from equicore.representations.base import (
    Elements,
    Representation,
    check_elements,
    is_integer,
    some_rows,
)
from equicore.representations.linear import Permutation


class Tokens(Representation):
    """Elements map integer ids 0..d-1, in tensors of any shape (B, ...), by permutations.

    The logits or probabilities over the same vocabulary are acted on by `logits`.

    Args:
        group: The group that acts.
        permutations: Integers of shape (|G|, d): under g, the id i becomes
            ``permutations[g][i]``.

    Raises:
        ValueError: If a row is no permutation, or the rows do not follow the group's
            multiplication.

    >>> from equicore import cyclic
    >>> exchange = Tokens.from_cycles(cyclic(2), [[[1, 4]]], size=6)
    >>> exchange.act(1, torch.tensor([[0, 1, 5, 4]]))
    tensor([[0, 4, 5, 1]])
    """

    axes = (0,)

    def __init__(self, group: Group, permutations: ArrayLike) -> None:
        super().__init__(group)
        self.vocabulary = Permutation(group, permutations)

    @classmethod
    def from_generators(cls, group: Group, permutations: Sequence[ArrayLike]) -> Tokens:
        """The representation with the given permutation for each element of ``group.generators``.

        Raises:
            ValueError: If they do not extend to all of the group.
        """
        return cls(group, Permutation.from_generators(group, permutations).permutations)

    @classmethod
    def from_cycles(
        cls, group: Group, cycles: Sequence[Sequence[Sequence[int]]], size: int
    ) -> Tokens:
        """The representation with the given cycles of ids for each of ``group.generators``.

        Args:
            group: The group that acts.
            cycles: As in `Permutation.from_cycles`.
            size: Size of the vocabulary.

        Raises:
            ValueError: If the cycles are not disjoint, leave the vocabulary, or do not extend
                to all of the group.
        """
        return cls(group, Permutation.from_cycles(group, cycles, size).permutations)

    def logits(self, dim: int = -1) -> Permutation:
        """How the group acts on scores of the vocabulary along an axis."""
        return Permutation(self.group, self.vocabulary.permutations.cpu(), dim)

    def act(self, g: int, x: Tensor) -> Tensor:
        """Map every id."""
        self._check_room(x)
        return self.vocabulary.act_on_labels(g, x).to(x.dtype)

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        """Map the ids of each sample by an element of its own."""
        elements = check_elements(self.group, elements, x.shape[0])
        self._check_room(x)
        rows = elements.view(-1, *(1,) * (x.ndim - 1))
        return self.vocabulary.permutations[rows, self.vocabulary.check_labels(x)].to(x.dtype)

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        """All mapped batches, in one look-up."""
        self._check_room(x)
        labels = self.vocabulary.check_labels(x)
        return some_rows(self.vocabulary.permutations, elements)[:, labels].to(x.dtype)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        """Map each slice back."""
        table = some_rows(self.vocabulary.inverses, elements)
        self._check_slices(y.shape, table.shape[0])
        self._check_room(y)
        slices = torch.arange(table.shape[0], device=y.device).view(-1, *(1,) * (y.ndim - 1))
        return table[slices, self.vocabulary.check_labels(y)].to(y.dtype)

    def arguments(self) -> dict[str, Any]:
        """The permutations."""
        return {"permutations": self.vocabulary.permutations.tolist()}

    def _check_room(self, x: Tensor) -> None:
        if is_integer(x) and torch.iinfo(x.dtype).max < self.vocabulary.size - 1:
            raise TypeError(
                f"{x.dtype} has no room for the ids 0..{self.vocabulary.size - 1} to which the "
                "group may map; use a longer type"
            )
