"""Linear representations: permutations and matrices that act on one axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from equicore.groups import Group, check_permutation
from equicore.representations.base import (
    Elements,
    Representation,
    check_dim,
    check_elements,
    exact_product,
    is_integer,
    is_traced,
    some_rows,
)

Cycles = Sequence[Sequence[Sequence[int]]]


class PermutationTable(Representation):
    """What `Permutation` and `Tokens` share: a permutation of 0..d-1 for each element.

    Attributes:
        permutations: Shape (|G|, d).
        inverses: Those of the inverse elements, shape (|G|, d).
        size: d.
    """

    permutations: Tensor
    inverses: Tensor

    def __init__(self, group: Group, permutations: ArrayLike) -> None:
        super().__init__(group)
        rows = np.asarray(permutations)
        if rows.ndim != 2:
            raise ValueError(
                f"permutations have the shape ({len(group)}, d), one row for each element of "
                f"{group.name}; got {rows.shape}"
            )
        self.size = rows.shape[1]
        rows = np.stack([check_permutation(row, self.size) for row in rows])
        group.check_homomorphism(
            list(rows),
            np.arange(self.size),
            compose_permutations,
            np.array_equal,
            "permutations",
        )
        self.keep("permutations", rows)
        self.keep("inverses", rows[group.inverses])

    @classmethod
    def from_generators(
        cls, group: Group, permutations: Sequence[ArrayLike], dim: int | None = None
    ) -> Self:
        """The representation with the given permutation for each element of ``group.generators``.

        ``dim`` is that of a `Permutation`.

        Raises:
            ValueError: If they do not extend to all of the group.
        """
        size = np.size(np.asarray(permutations[0])) if len(permutations) else 1
        images = [check_permutation(p, size) for p in permutations]
        extended = group.extend(images, np.arange(size), compose_permutations, np.array_equal)
        return cls(group, np.stack(extended), **({} if dim is None else {"dim": dim}))

    @classmethod
    def from_cycles(cls, group: Group, cycles: Cycles, size: int, dim: int | None = None) -> Self:
        """The representation with the given disjoint cycles for each of ``group.generators``.

        Args:
            cycles: For each generator, its cycles: ``[[0, 2, 5]]`` moves 0 to 2, 2 to 5, 5 to 0.
            size: Number of entries; those in no cycle stay.
            dim: That of a `Permutation`.

        Raises:
            ValueError: If the cycles are not disjoint, leave 0..size-1, or do not extend to all
                of the group.

        >>> from equicore import cyclic
        >>> left_right = Permutation.from_cycles(cyclic(2), [[[3, 7]]], size=10)
        >>> left_right.permutations[1].tolist()
        [0, 1, 2, 7, 4, 5, 6, 3, 8, 9]
        """
        if not cycles:  # of the trivial group
            return cls(group, [range(size)], **({} if dim is None else {"dim": dim}))
        return cls.from_generators(group, [permutation_of(c, size) for c in cycles], dim)

    def check_labels(self, labels: Tensor) -> Tensor:
        """Return labels, to index with, or raise TypeError or ValueError if they are not 0..d-1."""
        if not is_integer(labels):
            raise TypeError(f"labels are integers; got {labels.dtype}")
        labels = labels.long()  # torch takes uint8 for a mask, and 256 for its 0
        if not is_traced() and labels.numel():
            low, high = labels.aminmax()
            what = f"labels are 0..{self.size - 1}"
            if labels.device.type == "cpu":
                if wrong := [n for n in (int(low), int(high)) if not 0 <= n < self.size]:
                    raise ValueError(f"{what}; got {wrong[0]}")
            else:  # does not wait for the device
                torch._assert_async((low >= 0) & (high < self.size), what)
        return labels


class Permutation(PermutationTable):
    """Elements permute the entries of one axis: discrete actions, class logits, joints, words.

    Args:
        group: The group that acts.
        permutations: Integers of shape (|G|, d): under g, entry i moves to place
            ``permutations[g][i]``. Equally, the label i becomes the label ``permutations[g][i]``.
        dim: The axis, counted from the end, so that it is the same with and without batch axes.

    Raises:
        ValueError: If a row is no permutation, the rows do not follow the group's
            multiplication, or ``dim`` is not negative.

    >>> from equicore import cyclic
    >>> turn = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
    >>> turn.act(1, torch.tensor([[10, 20, 30]]))
    tensor([[30, 10, 20]])
    >>> turn.act_on_labels(1, torch.tensor([0, 2]))
    tensor([1, 0])
    """

    def __init__(self, group: Group, permutations: ArrayLike, dim: int = -1) -> None:
        super().__init__(group, permutations)
        self.dim = check_dim(dim)
        self.axes = (dim,)

    def act(self, g: int, x: Tensor) -> Tensor:
        """Move entry i of the axis to place ``permutations[g][i]``."""
        self._check_axis(x.shape, self.dim, self.size)
        return x.index_select(self.dim, self.inverses[self.group.check_element(g)])

    def act_on_labels(self, g: int, labels: Tensor) -> Tensor:
        """Map labels 0..d-1, of any shape: i becomes ``permutations[g][i]``.

        Raises:
            ValueError: If a label is none of 0..d-1.
        """
        return self.permutations[self.group.check_element(g)][self.check_labels(labels)]

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, x.shape[0])
        self._check_axis(x.shape, self.dim, self.size)
        return self._gathered(x, self.inverses[elements])

    def align_each(self, elements: Tensor, y: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, y.shape[0])
        self._check_axis(y.shape, self.dim, self.size)
        return self._gathered(y, self.permutations[elements])

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        self._check_axis(x.shape, self.dim, self.size)
        table = some_rows(self.inverses, elements)
        return self._gathered(x.expand(table.shape[0], *x.shape), table)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        """Undo each slice's permutation, in one gather: ``y[g][..., permutations[g]]``."""
        table: Any = self._buffers["permutations"]  # faster than as an attribute
        if elements is not None:
            table = some_rows(table, elements)
        self._check_slices(y.shape, table.shape[0])
        self._check_axis(y.shape, self.dim, self.size, stacked=True)
        return self._gathered(y, table)

    def arguments(self) -> dict[str, Any]:
        return {"permutations": self._tables["permutations"].tolist(), "dim": self.dim}

    def _gathered(self, y: Tensor, table: Tensor) -> Tensor:
        """Slice i of y, along its first axis, with its entries taken from the places table[i]."""
        if y.ndim == 3 and self.dim == -1:  # the usual case, by fewer steps
            index = table.unsqueeze(1)
        else:
            axes = [1] * y.ndim
            axes[0], axes[self.dim] = table.shape
            index = table.view(axes)
        # not take_along_dim, which has constant sizes in an exported graph, and is slower
        return y.gather(self.dim, index.expand(y.shape))


class Matrix(Representation):
    """Elements act linearly on one axis: sign flips, rotations of vectors.

    Args:
        group: The group that acts.
        matrices: Numbers of shape (|G|, d, d), real or complex: under g, a vector v along the axis
            becomes ``matrices[g] @ v``. Whatever type the module is moved to, they are kept in
            float32 (complex64) where that holds them exactly, else in float64 (complex128), and
            used in the type of the input, also under autocast.
        dim: The axis, counted from the end.

    Raises:
        ValueError: If the matrices are not finite, not square, do not follow the group's
            multiplication (to 1e-6), or ``dim`` is not negative.

    >>> from equicore import cyclic
    >>> flip = Matrix.from_generators(cyclic(2), [[[1, 0], [0, -1]]])
    >>> flip.act(1, torch.tensor([[3.0, 4.0]]))
    tensor([[ 3., -4.]])
    """

    matrices: Tensor
    side_by_side: Tensor

    def __init__(self, group: Group, matrices: ArrayLike, dim: int = -1) -> None:
        super().__init__(group)
        stack = _numbers(matrices)
        if stack.ndim != 3 or stack.shape[1] != stack.shape[2]:
            raise ValueError(
                f"matrices have the shape ({len(group)}, d, d), one square matrix for each "
                f"element of {group.name}; got {stack.shape}"
            )
        if not np.isfinite(stack).all():
            raise ValueError("matrices hold NaN or infinity")
        group.check_homomorphism(
            list(stack), np.eye(len(stack[0])), operator.matmul, _close, "matrices"
        )
        self.dim = check_dim(dim)
        self.axes = (dim,)
        self.size = stack.shape[1]
        single = stack.astype(np.complex64 if np.iscomplexobj(stack) else np.float32)
        stack = single if (single == stack).all() else stack
        self.keep("matrices", stack)
        # [M_0^T | M_1^T | ...]: a row vector times it is the whole orbit of the vector
        self.keep("side_by_side", stack.transpose(2, 0, 1).reshape(self.size, -1))

    @classmethod
    def from_generators(cls, group: Group, matrices: Sequence[ArrayLike], dim: int = -1) -> Matrix:
        """The representation with the given matrix for each element of ``group.generators``.

        Raises:
            ValueError: If they do not extend to all of the group.
        """
        images: list[NDArray[Any]] = [_numbers(m) for m in matrices]
        for i, image in enumerate(images):
            if image.ndim != 2 or image.shape != (len(images[0]), len(images[0])):
                raise ValueError(
                    f"the generators' matrices are square and of one size; that of generator {i} "
                    f"has shape {image.shape}"
                )
        identity: NDArray[Any] = np.eye(len(images[0]) if images else 1)
        extended = group.extend(images, identity, operator.matmul, _close)
        return cls(group, np.stack(extended), dim)

    def act(self, g: int, x: Tensor) -> Tensor:
        self._check_axis(x.shape, self.dim, self.size)
        matrix = self._matched(self.matrices[self.group.check_element(g)], x)
        return exact_product(x.movedim(self.dim, -1), matrix.mT).movedim(-1, self.dim)

    def act_each(self, elements: Tensor, x: Tensor) -> Tensor:
        elements = check_elements(self.group, elements, x.shape[0])
        self._check_axis(x.shape, self.dim, self.size)
        return self._multiply(x, self.matrices[elements])

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        """All transformed batches; for the whole group one product, the matrices side by side."""
        self._check_axis(x.shape, self.dim, self.size)
        if elements is not None:
            stack = x.expand(len(elements), *x.shape)
            return self._multiply(stack, some_rows(self.matrices, elements))
        if self.dim != -1:
            x = x.movedim(self.dim, -1)
        order = self.matrices.shape[0]
        moved = exact_product(x, self._matched(self.side_by_side, x))
        if x.ndim == 2:  # the usual case, by fewer steps
            return moved.view(x.shape[0], order, self.size).transpose(0, 1)
        moved = moved.view(*x.shape[:-1], order, self.size).movedim(-2, 0)
        return moved if self.dim == -1 else moved.movedim(-1, self.dim)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        inverses = some_rows(self.inverse_elements, elements)
        self._check_slices(y.shape, inverses.shape[0])
        self._check_axis(y.shape, self.dim, self.size, stacked=True)
        return self._multiply(y, self.matrices[inverses])

    def arguments(self) -> dict[str, Any]:
        if self.matrices.is_complex():
            raise NotImplementedError("complex matrices have no plain JSON values")
        return {"matrices": self._tables["matrices"].tolist(), "dim": self.dim}

    def _multiply(self, y: Tensor, matrices: Tensor) -> Tensor:
        """Slice i of y, along its first axis, times matrix i."""
        vectors = y.movedim(self.dim, -1)
        flat = vectors.unsqueeze(1).flatten(1, -2)  # reshape to -1 fails where y is empty
        moved = exact_product(flat, self._matched(matrices, y).mT)
        return moved.view(vectors.shape).movedim(-1, self.dim)

    def _matched(self, matrices: Tensor, x: Tensor) -> Tensor:
        """The matrices in the type of x."""
        if matrices.dtype == x.dtype:
            return matrices
        if not (x.is_complex() or (x.is_floating_point() and not matrices.is_complex())):
            kind = "complex" if matrices.is_complex() else "floating-point"
            raise TypeError(f"this Matrix acts on {kind} tensors; got {x.dtype}")
        return matrices.to(x.dtype)


def regular(group: Group, dim: int = -1) -> Permutation:
    """The regular representation: entries are indexed by the elements, and g moves h to g h.

    >>> from equicore import cyclic
    >>> regular(cyclic(3)).act(1, torch.tensor([[10, 20, 30]]))
    tensor([[30, 10, 20]])
    """
    return Permutation(group, group.table, dim)


def permutation_of(cycles: Sequence[Sequence[int]], size: int) -> NDArray[np.int64]:
    """The permutation of 0..size-1 with the given disjoint cycles, or ValueError."""
    moved = [point for cycle in cycles for point in cycle]
    if len(set(moved)) != len(moved) or not all(0 <= point < size for point in moved):
        raise ValueError(
            f"not disjoint cycles of numbers 0..{size - 1}: {[list(cycle) for cycle in cycles]}"
        )
    permutation = np.arange(size)
    for cycle in cycles:
        permutation[list(cycle)] = np.roll(np.asarray(cycle, dtype=np.int64), -1)
    return permutation


def compose_permutations(after: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
    """First ``before``, then ``after``."""
    return after[before]


def _numbers(matrices: ArrayLike) -> NDArray[Any]:
    """Real or complex numbers."""
    array = np.asarray(matrices)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _close(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return np.allclose(a, b, atol=1e-6)
