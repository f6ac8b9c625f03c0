"""What a representation is: the verbs `act`, `act_each`, `orbit` and `align`."""

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

    A subclass defines `act`; it may replace the other verbs by faster ones.

    Args:
        group: The group that acts.

    Attributes:
        axes: The axes that it mixes, counted from the end; 0 stands for the values themselves,
            which one that is not linear changes.
    """

    axes: tuple[int, ...] = ()

    def __init__(self, group: Group) -> None:
        super().__init__()
        if not isinstance(group, Group):
            raise TypeError(f"{type(self).__name__} needs a Group to represent; got {group!r}")
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

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments after ``group``: plain JSON values and representations.

        Only what writes representations to files needs them.

        Raises:
            NotImplementedError: If the kind of representation has no plain description.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it is written to a file: define arguments()"
        )

    @classmethod
    def from_arguments(cls, group: Group, arguments: dict[str, Any]) -> Representation:
        """The representation whose `arguments` were these."""
        return cls(group, **arguments)

    def act_each(self, elements: Tensor, x: Any) -> Any:
        """Each sample transformed by an element of its own: ``elements[i] . x[i]``.

        Args:
            elements: Elements of the group, integers of shape (B,).
            x: Batch of shape (B, ...).

        Raises:
            ValueError: If they are not one integer for each sample.
            IndexError: If one is no element of the group.
        """
        elements = check_elements(self.group, elements, x.shape[0])
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
        return self.act_each(inverses[check_elements(self.group, elements)], y)

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
        check_elements(self.group, elements, x.shape[0])
        return x

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        """The batch once for each element."""
        # copies, as a model may change its input in place
        copies = x.expand(len(self._listed(elements)), *x.shape)
        return copies.clone(memory_format=torch.contiguous_format)

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


def check_one_group(first: Representation, second: Representation, what: str) -> None:
    """Raise ValueError unless two representations are of the same group."""
    if first.group != second.group:
        raise ValueError(f"{what} must be of one group; got {first.group} and {second.group}")


def check_elements(group: Group, elements: Tensor, samples: int | None = None) -> Tensor:
    """Return one element for each sample, to index with, or raise ValueError or IndexError.

    Args:
        group: The group.
        elements: What should be integers of shape (B,).
        samples: B; left to a later check when omitted.
    """
    wrong = elements.ndim != 1 if samples is None else elements.shape != (samples,)
    if wrong or not is_integer(elements):
        size = "B" if samples is None else samples
        raise ValueError(
            f"expected one element for each of {size} samples, integers of shape ({size},); "
            f"got shape {tuple(elements.shape)} of {elements.dtype}"
        )
    # negative ones would count from the end
    if not is_traced() and elements.numel():
        for extreme in elements.aminmax():
            group.check_element(int(extreme))
    return elements.long()  # torch takes uint8 for a mask


def is_traced() -> bool:
    """Whether nothing can depend on the values of tensors: in a graph, and in `torch.func`."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_integer(x: Tensor) -> bool:
    """Whether a tensor holds integers; bool does not count."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def some_rows(table: Tensor, elements: Elements | None) -> Tensor:
    """The rows of a table (|G|, ...) that belong to some elements."""
    if elements is None:
        return table
    if isinstance(elements, range) and elements.step == 1:
        return table[elements.start : elements.stop]
    return table[list(elements)]
