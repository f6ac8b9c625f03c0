"""What a representation is: three verbs, `act`, `orbit` and `align`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equicore.groups import Group

Elements = Sequence[int]
"""Some elements of a group, each as an integer."""


class Representation(nn.Module, ABC):
    """How each element of a group acts on a batch of tensors.

    A subclass defines `act` and `arguments`; it may replace the other verbs by faster ones.

    Args:
        group: The group that acts.

    Attributes:
        axes: The axes that it mixes, counted from the end; 0 stands for the values themselves.
    """

    axes: tuple[int, ...] = ()

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    @abstractmethod
    def act(self, g: int, x: Any) -> Any:
        """The transformed batch g . x.

        Args:
            g: An element of the group.
            x: Batch of shape (B, ...).

        Returns:
            A tensor of the same shape and type.
        """

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments after ``group``: plain JSON values and representations."""

    @classmethod
    def from_arguments(cls, group: Group, arguments: dict[str, Any]) -> Representation:
        """The representation whose `arguments` were these."""
        return cls(group, **arguments)

    def act_each(self, elements: Tensor, x: Any) -> Any:
        """Each sample transformed by an element of its own: ``elements[i] . x[i]``.

        Args:
            elements: Elements of the group, integers of shape (B,).
            x: Batch of shape (B, ...).
        """
        check_elements(self.group, elements, x.shape[0])
        order = elements.argsort()
        counts = torch.bincount(elements, minlength=len(self.group)).tolist()
        pieces = x[order].split(counts)
        acted = [self.act(g, piece) for g, piece in enumerate(pieces) if counts[g]]
        return torch.cat(acted)[order.argsort()] if acted else x

    def align_each(self, elements: Tensor, y: Any) -> Any:
        """Undo an element of each sample's own: ``elements[i]^-1 . y[i]``.

        Args:
            elements: Elements of the group, integers of shape (B,).
            y: Batch of shape (B, ...).
        """
        inverses = torch.from_numpy(self.group.inverses.copy()).to(elements.device)
        return self.act_each(inverses[elements], y)

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        """All transformed batches g . x, the identity first.

        Args:
            x: Batch of shape (B, ...).
            elements: The elements g to use; all of them when omitted.

        Returns:
            Shape (n, B, ...) for n elements.
        """
        return torch.stack([self.act(g, x) for g in self._listed(elements)])

    def align(self, y: Any, elements: Elements | None = None) -> Any:
        """Undo each slice's element: slice i of the result is g^-1 . y[i] for the i-th element g.

        Args:
            y: One batch for each element, shape (n, B, ...).
            elements: The elements g; all of them when omitted.
        """
        listed = self._listed(elements)
        self._check_slices(y.shape, len(listed))
        inverse = self.group.inverse
        return torch.stack([self.act(inverse(g), y[i]) for i, g in enumerate(listed)])

    def extra_repr(self) -> str:
        """The group, for ``repr``."""
        return self.group.name

    def _listed(self, elements: Elements | None) -> Elements:
        return range(len(self.group)) if elements is None else elements

    def _check_slices(self, shape: Sequence[int], expected: int) -> None:
        if len(shape) < 2 or shape[0] != expected:
            raise ValueError(
                f"align needs one slice for each of {expected} elements of {self.group.name}, "
                f"shape ({expected}, B, ...); got {tuple(shape)}"
            )

    def _check_axis(self, shape: Sequence[int], dim: int, size: int, stacked: bool = False) -> None:
        """Whether axis ``dim`` of a batch, or of a stack of batches, has a size."""
        if len(shape) - stacked < 1 - dim or shape[dim] != size:
            layout = f"a stack ({len(self.group)}, B, ...)" if stacked else "a batch (B, ...)"
            raise ValueError(
                f"{type(self).__name__} of {self.group.name} acts on axis {dim} of size {size} "
                f"of {layout}; got shape {tuple(shape)}"
            )


class Trivial(Representation):
    """Every element leaves every tensor as it is: the representation of invariant outputs."""

    def act(self, g: int, x: Tensor) -> Tensor:
        """The batch itself."""
        self.group.check_element(g)
        return x

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        """The batch itself."""
        return x

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        """The batch once for each element, as a view."""
        return x.expand(len(self._listed(elements)), *x.shape)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        """The slices themselves."""
        self._check_slices(y.shape, len(self._listed(elements)))
        return y

    def arguments(self) -> dict[str, Any]:
        """None."""
        return {}


def check_dim(dim: int) -> int:
    """Return an axis counted from the end, or raise ValueError."""
    if dim >= 0:
        raise ValueError(
            f"dim is counted from the end (-1 is the last axis), so that it is the same with "
            f"and without batch axes; got {dim}"
        )
    return dim


def check_elements(group: Group, elements: Tensor, samples: int) -> None:
    """Raise ValueError unless there is one element of the group for each sample."""
    if elements.shape != (samples,) or elements.is_floating_point():
        raise ValueError(
            f"expected one element for each of {samples} samples, integers of shape ({samples},); "
            f"got shape {tuple(elements.shape)} of {elements.dtype}"
        )


def some_rows(table: Tensor, elements: Elements | None) -> Tensor:
    """The rows of a table (|G|, ...) that belong to some elements."""
    if elements is None:
        return table
    if isinstance(elements, range) and elements.step == 1:
        return table[elements.start : elements.stop]
    return table[list(elements)]
