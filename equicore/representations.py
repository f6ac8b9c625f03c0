"""Representations: how the elements of a group act on a batch of tensors.

A representation acts on ``x`` of shape (B, ...), where B is the batch. Its tables are buffers, so
it moves with ``.to``. Three verbs serve all methods of the package:

- ``act(g, x)``: g . x, the same shape;
- ``orbit(x)``: every g . x, shape (|G|, B, ...), the identity first;
- ``align(y)``: for y of shape (|G|, B, ...), slice g becomes g^-1 . y[g].

All three agree with g . (h . x) = (g h) . x, which is verified at construction.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from equicore.groups import Group, check_permutation, cyclic, dihedral


class Representation(nn.Module, ABC):
    """How each element of a group acts on a batch of tensors.

    A subclass defines `act` and `arguments`; it may replace `orbit` and `align` by faster ones.

    Args:
        group: The group that acts.
    """

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    @abstractmethod
    def act(self, g: int, x: Tensor) -> Tensor:
        """The transformed batch g . x.

        Args:
            g: An element of the group.
            x: Batch of shape (B, ...).

        Returns:
            A tensor of the same shape and type.
        """

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments after ``group``, as plain JSON values."""

    def orbit(self, x: Tensor) -> Tensor:
        """All transformed batches g . x, shape (|G|, B, ...), the identity first."""
        return torch.stack([self.act(g, x) for g in range(len(self.group))])

    def align(self, y: Tensor) -> Tensor:
        """Undo each slice's element: slice g of the result is g^-1 . y[g].

        Args:
            y: One batch for each element, shape (|G|, B, ...).
        """
        self._check_slices(y)
        return torch.stack([self.act(self.group.inverse(g), y[g]) for g in range(len(self.group))])

    def extra_repr(self) -> str:
        """The group, for ``repr``."""
        return self.group.name

    def _check_slices(self, y: Tensor) -> None:
        if y.ndim < 2 or y.shape[0] != len(self.group):
            raise ValueError(
                f"align needs one slice for each of the {len(self.group)} elements of "
                f"{self.group.name}, shape ({len(self.group)}, B, ...); got {tuple(y.shape)}"
            )

    def _check_axis(self, shape: Sequence[int], dim: int, size: int) -> None:
        if len(shape) < 1 - dim or shape[dim] != size:
            raise ValueError(
                f"{type(self).__name__} of {self.group.name} acts on axis {dim} of size {size} "
                f"of a batch (B, ...); got shape {tuple(shape)}"
            )


class Trivial(Representation):
    """Every element leaves every tensor as it is: the representation of invariant outputs."""

    def act(self, g: int, x: Tensor) -> Tensor:
        """The batch itself."""
        self.group.check_element(g)
        return x

    def orbit(self, x: Tensor) -> Tensor:
        """The batch |G| times, as a view."""
        return x.expand(len(self.group), *x.shape)

    def align(self, y: Tensor) -> Tensor:
        """The slices themselves."""
        self._check_slices(y)
        return y

    def arguments(self) -> dict[str, Any]:
        """None."""
        return {}


class Permutation(Representation):
    """Elements permute the entries of one axis: discrete actions, class logits, joints, words.

    Args:
        group: The group that acts.
        permutations: Integers of shape (|G|, d): under g, entry i moves to place
            ``permutations[g][i]``. Equally, the label i becomes the label ``permutations[g][i]``.
        dim: The axis, counted from the end, so that it is the same with and without batch axes.

    Raises:
        ValueError: If a row is no permutation, the rows do not follow the group's
            multiplication, or ``dim`` is not negative.

    >>> turn = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
    >>> turn.act(1, torch.tensor([[10, 20, 30]]))
    tensor([[30, 10, 20]])
    >>> turn.act_on_labels(1, torch.tensor([0, 2]))
    tensor([1, 0])
    """

    permutations: Tensor
    inverses: Tensor

    def __init__(self, group: Group, permutations: ArrayLike, dim: int = -1) -> None:
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
            _compose_permutations,
            np.array_equal,
            "permutations",
        )
        self.dim = _check_dim(dim)
        self.register_buffer("permutations", torch.from_numpy(rows), persistent=False)
        self.register_buffer("inverses", torch.from_numpy(rows[group.inverses]), persistent=False)

    @classmethod
    def from_generators(
        cls, group: Group, permutations: Sequence[ArrayLike], dim: int = -1
    ) -> Permutation:
        """The representation with the given permutation for each element of ``group.generators``.

        Raises:
            ValueError: If they do not extend to all of the group.
        """
        size = np.size(np.asarray(permutations[0])) if len(permutations) else 1
        images = [check_permutation(p, size) for p in permutations]
        extended = group.extend(images, np.arange(size), _compose_permutations, np.array_equal)
        return cls(group, np.stack(extended), dim)

    def act(self, g: int, x: Tensor) -> Tensor:
        """Move entry i of the axis to place ``permutations[g][i]``."""
        self._check_axis(x.shape, self.dim, self.size)
        return x.index_select(self.dim, self.inverses[self.group.check_element(g)])

    def act_on_labels(self, g: int, labels: Tensor) -> Tensor:
        """Map labels 0..d-1, of any shape: i becomes ``permutations[g][i]``.

        Raises:
            ValueError: If a label is none of 0..d-1.
        """
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.size:
            raise ValueError(f"labels are 0..{self.size - 1}; got {labels.tolist()}")
        return self.permutations[self.group.check_element(g)][labels]

    def orbit(self, x: Tensor) -> Tensor:
        """All permuted batches, in one gather."""
        self._check_axis(x.shape, self.dim, self.size)
        return x.unsqueeze(0).take_along_dim(self._index(self.inverses, x.ndim + 1), self.dim)

    def align(self, y: Tensor) -> Tensor:
        """Undo each slice's permutation, in one gather: ``y[g][..., permutations[g]]``."""
        self._check_slices(y)
        self._check_axis(y.shape[1:], self.dim, self.size)
        return y.take_along_dim(self._index(self.permutations, y.ndim), self.dim)

    def arguments(self) -> dict[str, Any]:
        """The permutations and the axis."""
        return {"permutations": self.permutations.tolist(), "dim": self.dim}

    def _index(self, table: Tensor, ndim: int) -> Tensor:
        """The table (|G|, d), laid along axes 0 and ``dim`` of ``ndim`` axes."""
        if ndim == 3 and self.dim == -1:
            return table.unsqueeze(1)
        axes = [1] * ndim
        axes[0], axes[self.dim] = table.shape
        return table.view(axes)


class Matrix(Representation):
    """Elements act linearly on one axis: sign flips, rotations of vectors.

    Args:
        group: The group that acts.
        matrices: Real numbers of shape (|G|, d, d): under g, a vector v along the axis becomes
            ``matrices[g] @ v``. They are kept in float32 where that holds them exactly, else in
            float64, and used in the type of the input.
        dim: The axis, counted from the end.

    Raises:
        ValueError: If the matrices are not finite, not square, do not follow the group's
            multiplication (to 1e-6), or ``dim`` is not negative.

    >>> flip = Matrix.from_generators(cyclic(2), [[[1, 0], [0, -1]]])
    >>> flip.act(1, torch.tensor([[3.0, 4.0]]))
    tensor([[ 3., -4.]])
    """

    matrices: Tensor
    side_by_side: Tensor

    def __init__(self, group: Group, matrices: ArrayLike, dim: int = -1) -> None:
        super().__init__(group)
        stack = np.asarray(matrices, dtype=np.float64)
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
        if (stack.astype(np.float32) == stack).all():
            stack = stack.astype(np.float32)
        self.dim = _check_dim(dim)
        self.size = stack.shape[1]
        # [M_0^T | M_1^T | ...]: a row vector times it is the whole orbit of the vector
        side_by_side = stack.transpose(2, 0, 1).reshape(self.size, -1)
        self.register_buffer("matrices", torch.from_numpy(stack), persistent=False)
        self.register_buffer("side_by_side", torch.from_numpy(side_by_side), persistent=False)

    @classmethod
    def from_generators(cls, group: Group, matrices: Sequence[ArrayLike], dim: int = -1) -> Matrix:
        """The representation with the given matrix for each element of ``group.generators``.

        Raises:
            ValueError: If they do not extend to all of the group.
        """
        images: list[NDArray[Any]] = [np.asarray(m, dtype=np.float64) for m in matrices]
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
        """Multiply each vector along the axis by ``matrices[g]``."""
        self._check_axis(x.shape, self.dim, self.size)
        matrix = self._matched(self.matrices, x)[self.group.check_element(g)]
        return (x.movedim(self.dim, -1) @ matrix.mT).movedim(-1, self.dim)

    def orbit(self, x: Tensor) -> Tensor:
        """All transformed batches, in one product with the matrices side by side."""
        self._check_axis(x.shape, self.dim, self.size)
        if self.dim != -1:
            x = x.movedim(self.dim, -1)
        moved = x @ self._matched(self.side_by_side, x)
        if x.ndim == 2:  # the usual case, by fewer steps
            return moved.view(x.shape[0], -1, self.size).transpose(0, 1)
        moved = moved.view(*x.shape[:-1], -1, self.size).movedim(-2, 0)
        return moved if self.dim == -1 else moved.movedim(-1, self.dim)

    def align(self, y: Tensor) -> Tensor:
        """Multiply slice g by the inverse of ``matrices[g]``."""
        self._check_slices(y)
        self._check_axis(y.shape[1:], self.dim, self.size)
        inverses = self._matched(self.matrices, y)[self.group.inverses.tolist()]
        vectors = y.movedim(self.dim, -1)
        aligned = vectors.reshape(len(y), -1, self.size) @ inverses.mT
        return aligned.view(vectors.shape).movedim(-1, self.dim)

    def arguments(self) -> dict[str, Any]:
        """The matrices and the axis."""
        return {"matrices": self.matrices.tolist(), "dim": self.dim}

    def _matched(self, matrices: Tensor, x: Tensor) -> Tensor:
        """The matrices in the type of x."""
        if matrices.dtype == x.dtype:
            return matrices
        if not x.is_floating_point():
            raise TypeError(f"Matrix acts on floating-point tensors; got {x.dtype}")
        return matrices.to(x.dtype)


class Image(Representation):
    """Elements turn and mirror the last two axes, which index the rows and columns of a grid.

    Under g, the grid is first mirrored left to right if ``mirrors[g]``, then turned
    counter-clockwise by ``turns[g]`` quarter turns. `image_rotations`, `image_flips` and
    `image_dihedral` make the usual ones.

    Args:
        group: The group that acts.
        turns: Quarter turns for each element.
        mirrors: Whether each element mirrors.

    Raises:
        ValueError: If the moves do not follow the group's multiplication.
    """

    def __init__(self, group: Group, turns: Sequence[int], mirrors: Sequence[bool]) -> None:
        super().__init__(group)
        moves = [(int(t) % 4, bool(m)) for t, m in zip(turns, mirrors, strict=True)]
        group.check_homomorphism(moves, (0, False), _compose_moves, operator.eq, "image moves")
        self.moves = moves

    def act(self, g: int, x: Tensor) -> Tensor:
        """Mirror and turn the last two axes."""
        turns, mirror = self.moves[self.group.check_element(g)]
        if x.ndim < 3 or (turns % 2 and x.shape[-1] != x.shape[-2]):
            raise ValueError(
                "Image acts on the last two axes of a batch (B, ..., rows, columns), which must "
                f"be equally long for quarter turns; got shape {tuple(x.shape)}"
            )
        if mirror:
            x = x.flip(-1)
        return x.rot90(turns, (-2, -1)) if turns else x

    def arguments(self) -> dict[str, Any]:
        """The moves."""
        return {"turns": [t for t, _ in self.moves], "mirrors": [m for _, m in self.moves]}


def image_rotations() -> Image:
    """C4 on images: element k turns counter-clockwise by k quarter turns."""
    return Image(cyclic(4), range(4), [False] * 4)


def image_flips(axis: int = -1) -> Image:
    """C2 on images: element 1 mirrors along ``axis``, -1 (left to right) or -2 (top to bottom).

    Raises:
        ValueError: If the axis is neither -1 nor -2.
    """
    if axis not in (-1, -2):
        raise ValueError(f"axis must be -1 (left to right) or -2 (top to bottom); got {axis}")
    # top to bottom is left to right followed by half a turn
    return Image(cyclic(2), [0, 0 if axis == -1 else 2], [False, True])


def image_dihedral() -> Image:
    """D4 on images: element 4 m + k mirrors left to right if m = 1, then makes k quarter turns."""
    return Image(dihedral(4), [0, 1, 2, 3] * 2, [False] * 4 + [True] * 4)


def _compose_permutations(after: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
    return after[before]


def _close(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return np.allclose(a, b, atol=1e-6)


def _compose_moves(after: tuple[int, bool], before: tuple[int, bool]) -> tuple[int, bool]:
    """The one move that equals ``before``, then ``after``: a mirror turns turns around."""
    turns, mirror = after
    return (turns + (-before[0] if mirror else before[0])) % 4, mirror != before[1]


def _check_dim(dim: int) -> int:
    if dim >= 0:
        raise ValueError(
            f"dim is counted from the end (-1 is the last axis), so that it is the same with "
            f"and without batch axes; got {dim}"
        )
    return dim
