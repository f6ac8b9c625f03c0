"""Representations made of others: sums, products and restrictions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equicore.groups import Group, Subgroup
from equicore.representations.base import (
    Action,
    Elements,
    Representation,
    check_dim,
    check_elements,
    check_one_group,
)
from equicore.representations.images import Image
from equicore.representations.linear import Matrix


class DirectSum(Representation):
    """One axis cut into pieces, each acted on by a representation of its own.

    Args:
        parts: Pairs of a representation and the size of its piece, in order. Each acts on a
            tensor that holds only its piece.
        dim: The axis that is cut, counted from the end.

    Raises:
        ValueError: If there is no part, or the parts are of different groups.

    >>> from equicore import Matrix, Trivial, cyclic
    >>> flip = Matrix.from_generators(cyclic(2), [[[0, 1], [1, 0]]])
    >>> DirectSum([(flip, 2), (Trivial(flip.group), 1)]).act(1, torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[2., 1., 3.]])
    """

    def __init__(self, parts: Sequence[tuple[Representation, int]], dim: int = -1) -> None:
        super().__init__(_one_group([part for part, _ in parts], "a direct sum"))
        self.parts = nn.ModuleList([part for part, _ in parts])
        self.sizes = [int(size) for _, size in parts]
        self.dim = check_dim(dim)
        self.axes = tuple({dim, *(axis for part, _ in parts for axis in part.axes)})

    def act(self, g: int, x: Tensor) -> Tensor:
        return self._joined(x, lambda part, piece: part.act(g, piece))

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        return self._joined(x, lambda part, piece: part.act_each(elements, piece))

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        return self._joined(x, lambda part, piece: part.orbit(piece, elements))

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        self._check_slices(y.shape, len(self._listed(elements)))
        return self._joined(y, lambda part, piece: part.align(piece, elements), stacked=True)

    def arguments(self) -> dict[str, Any]:
        return {"parts": list(zip(self.parts, self.sizes, strict=True)), "dim": self.dim}

    def _joined(
        self, x: Tensor, verb: Callable[[Any, Tensor], Tensor], stacked: bool = False
    ) -> Tensor:
        self._check_axis(x.shape, self.dim, sum(self.sizes), stacked)
        pieces = x.split(self.sizes, self.dim)
        return torch.cat(
            [verb(part, piece) for part, piece in zip(self.parts, pieces, strict=True)], self.dim
        )


class TensorProduct(Representation):
    """Two representations that act on different axes of the same tensor.

    A field of vectors on a grid is the product of one that turns the vectors and one that moves
    the grid, see `vector_field`.

    Args:
        first: Acts on some axes.
        second: Acts on others.

    Raises:
        ValueError: If they are of different groups, share an axis, or would not commute: beside
            one that is not linear, such as `Boxes`, the other may only move entries.
    """

    def __init__(self, first: Representation, second: Representation) -> None:
        super().__init__(_one_group([first, second], "a tensor product"))
        shared = sorted({*first.axes} & {*second.axes})
        if shared:
            raise ValueError(
                f"the factors of a tensor product act on different axes; {type(first).__name__} "
                f"and {type(second).__name__} both act on {shared}"
            )
        for one, other in ((first, second), (second, first)):
            if 0 in one.axes and any(isinstance(part, Matrix) for part in other.modules()):
                raise ValueError(
                    f"{type(one).__name__} is not linear, so the factor beside it may only move "
                    f"entries; {type(other).__name__} mixes them by a Matrix"
                )
        self.first = first
        self.second = second
        self.axes = (*first.axes, *second.axes)

    def act(self, g: int, x: Tensor) -> Tensor:
        return self.first.act(g, self.second.act(g, x))

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        return self.first.act_each(elements, self.second.act_each(elements, x))

    def arguments(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second}


class Pullback(Representation):
    """A representation of another group, reached through a homomorphism.

    Restrictions to subgroups are pullbacks (see `restrict`), and so is the action of a product
    through one of its factors.

    Args:
        group: The group that acts.
        representation: Of another group.
        images: The element of the other group by which each element of ``group`` acts.

    Raises:
        ValueError: If the images are no homomorphism.
    """

    image_elements: Tensor

    def __init__(self, group: Group, representation: Representation, images: Sequence[int]) -> None:
        super().__init__(group)
        self.representation = representation
        self.images = [representation.group.check_element(g) for g in images]
        group.check_homomorphism(
            self.images, 0, representation.group.compose, operator.eq, "images of the elements"
        )
        self.keep("image_elements", np.array(self.images))
        self.axes = representation.axes
        self.names = representation.names

    def act(self, g: int, x: Any) -> Any:
        return self.representation.act(self.images[self.group.check_element(g)], x)

    def act_each(self, elements: Tensor, x: Any) -> Any:
        images = self.image_elements[check_elements(self.group, elements)]
        return self.representation.act_each(images, x)

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        return self.representation.orbit(x, [self.images[g] for g in self._listed(elements)])

    def align(self, y: Any, elements: Elements | None = None) -> Any:
        return self.representation.align(y, [self.images[g] for g in self._listed(elements)])

    def select(self, output: Any) -> Any:
        return self.representation.select(output)

    def arguments(self) -> dict[str, Any]:
        return {"representation": self.representation, "images": list(self.images)}


def restrict(representation: Representation, subgroup: Subgroup) -> Representation:
    """The restriction of a representation to a subgroup, of an `Image` an `Image`.

    Raises:
        TypeError: If it is no `Subgroup`.
        ValueError: If it is no subgroup of the representation's group.

    >>> from equicore import image_dihedral
    >>> square = image_dihedral()
    >>> rotations = restrict(square, square.group.subgroup([1]))
    >>> len(rotations.group)
    4
    """
    if not isinstance(subgroup, Subgroup):
        raise TypeError(f"expected a Subgroup, as group.subgroup(...) makes it; got {subgroup!r}")
    if subgroup.parent != representation.group:
        raise ValueError(f"{subgroup} is no subgroup of {representation.group}")
    elements = subgroup.embedding.tolist()
    if isinstance(representation, Image):
        return representation.pulled_back(subgroup, elements)
    return Pullback(subgroup, representation, elements)


def _one_group(parts: Sequence[Action], what: str) -> Any:
    if not parts:
        raise ValueError(f"{what} needs at least one representation")
    return check_one_group(parts, f"the parts of {what}")
