"""Token ids that a permutation of the vocabulary maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from equicore.groups import Group
from equicore.representations.base import (
    Elements,
    check_elements,
    is_integer,
    is_traced,
    some_rows,
)
from equicore.representations.linear import Permutation, PermutationTable

IGNORED = -100
"""The label that losses of PyTorch and Hugging Face leave out."""


class Tokens(PermutationTable):
    """Elements map integer ids 0..d-1, in tensors of any shape (B, ...), by permutations.

    The logits or probabilities over the same vocabulary are acted on by `logits`.

    Args:
        group: The group that acts.
        permutations: Integers of shape (|G|, d): under g, the id i becomes
            ``permutations[g][i]``.
        ignore_index: What stands in labels where there is none, and stays; None for nothing.

    Raises:
        ValueError: If a row is no permutation, the rows do not follow the group's
            multiplication, or ``ignore_index`` is one of the ids.

    >>> from equicore import cyclic
    >>> exchange = Tokens.from_cycles(cyclic(2), [[[1, 4]]], size=6)
    >>> exchange.act(1, torch.tensor([[0, 1, 5, 4, -100]]))
    tensor([[   0,    4,    5,    1, -100]])
    """

    axes = (0,)

    def __init__(
        self, group: Group, permutations: ArrayLike, ignore_index: int | None = IGNORED
    ) -> None:
        super().__init__(group, permutations)
        if ignore_index is not None and 0 <= ignore_index < self.size:
            raise ValueError(
                f"ignore_index stands for no id, but {ignore_index} is one of 0..{self.size - 1}"
            )
        self.ignore_index = ignore_index

    def logits(self, dim: int = -1) -> Permutation:
        """How the group acts on scores of the vocabulary along an axis."""
        return Permutation(self.group, self._tables["permutations"], dim)

    def act(self, g: int, x: Tensor) -> Tensor:
        """Map every id."""
        table = self.permutations[self.group.check_element(g)]
        return self._mapped(x, lambda ids: table[ids])

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, x.shape[0])
        return self._mapped(x, lambda ids: self.permutations[_along(elements, x), ids])

    def align_each(self, elements: Tensor, y: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, y.shape[0])
        return self._mapped(y, lambda ids: self.inverses[_along(elements, y), ids])

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        table = some_rows(self.permutations, elements)
        return self._mapped(x, lambda ids: table[:, ids])

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        table = some_rows(self.inverses, elements)
        self._check_slices(y.shape, table.shape[0])
        slices = torch.arange(table.shape[0], device=y.device)
        return self._mapped(y, lambda ids: table[_along(slices, y), ids])

    def arguments(self) -> dict[str, Any]:
        other = {} if self.ignore_index == IGNORED else {"ignore_index": self.ignore_index}
        return {"permutations": self._tables["permutations"].tolist(), **other}

    def _mapped(self, x: Tensor, look_up: Callable[[Tensor], Tensor]) -> Tensor:
        """The ids that a table has for those of x, in the type of x."""
        if is_integer(x) and torch.iinfo(x.dtype).max < self.size - 1:
            raise TypeError(
                f"{x.dtype} has no room for the ids 0..{self.size - 1} to which the group may "
                "map; use a longer type"
            )
        if self.ignore_index is None or not is_integer(x):
            return look_up(self.check_labels(x)).to(x.dtype)
        ids = x.long()  # as uint8 takes 156 for -100
        ignored = ids == self.ignore_index
        if x.device.type == "cpu" and not is_traced() and not ignored.any():
            return look_up(self.check_labels(ids)).to(x.dtype)
        moved = look_up(self.check_labels(ids.masked_fill(ignored, 0)))
        return moved.masked_fill(ignored, self.ignore_index).to(x.dtype)


def _along(rows: Tensor, x: Tensor) -> Tensor:
    """One number for each slice of x along its first axis."""
    return rows.view(-1, *(1,) * (x.ndim - 1))
