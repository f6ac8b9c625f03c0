"""Token ids that a permutation of the vocabulary maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equicore.representations.base import Elements, check_elements, is_integer, some_rows
from equicore.representations.linear import Permutation, PermutationTable


class Tokens(PermutationTable):
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

    def logits(self, dim: int = -1) -> Permutation:
        """How the group acts on scores of the vocabulary along an axis."""
        return Permutation(self.group, self.permutations.cpu(), dim)

    def act(self, g: int, x: Tensor) -> Tensor:
        """Map every id."""
        return self.permutations[self.group.check_element(g)][self._ids(x)].to(x.dtype)

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, x.shape[0])
        return self.permutations[_along(elements, x), self._ids(x)].to(x.dtype)

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        return some_rows(self.permutations, elements)[:, self._ids(x)].to(x.dtype)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        table = some_rows(self.inverses, elements)
        self._check_slices(y.shape, table.shape[0])
        slices = torch.arange(table.shape[0], device=y.device)
        return table[_along(slices, y), self._ids(y)].to(y.dtype)

    def arguments(self) -> dict[str, Any]:
        return {"permutations": self.permutations.tolist()}

    def _ids(self, x: Tensor) -> Tensor:
        """Ids to index with."""
        if is_integer(x) and torch.iinfo(x.dtype).max < self.size - 1:
            raise TypeError(
                f"{x.dtype} has no room for the ids 0..{self.size - 1} to which the group may "
                "map; use a longer type"
            )
        return self.check_labels(x)


def _along(rows: Tensor, x: Tensor) -> Tensor:
    """One number for each slice of x along its first axis."""
    return rows.view(-1, *(1,) * (x.ndim - 1))
