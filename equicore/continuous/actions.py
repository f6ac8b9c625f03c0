"""Continuous groups: batches of their elements, and how these act on tensors.

A finite group is a table and a representation acts by an element's number. Elements of a continuous
group are tensors themselves, one for each sample: motions of space (`Motion`) and, for the many
permutations of the rows of a set, `Reordering`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from equicore.representations.base import Action, check_dim, exact_product

ORTHOGONAL = 1e-5
"""How much R R^T of a rotation R may differ from 1."""


class _Batch:
    """A batch of elements, as a dataclass of tensors whose first axis is the samples."""

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(tensor[index] for tensor in vars(self).values()))

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    @property
    def samples(self) -> int:
        """How many elements: as `len`, which in a graph would be a constant."""
        return next(iter(vars(self).values())).shape[0]


@dataclass(frozen=True)
class Motion(_Batch):
    """Elements of E(n), one for each sample: p becomes R p + t.

    Attributes:
        rotation: Orthogonal matrices R, shape (B, n, n).
        translation: Vectors t, shape (B, n).
    """

    rotation: Tensor
    translation: Tensor

    @classmethod
    def from_matrices(cls, matrices: ArrayLike | Tensor) -> Motion:
        """Rotations and reflections about the origin, by orthogonal matrices (B, n, n).

        Raises:
            ValueError: If they have another shape or are not orthogonal (to 1e-5).
        """
        # a copy, as the array may be changed later
        stack = matrices if isinstance(matrices, Tensor) else torch.from_numpy(np.array(matrices))
        if not stack.is_floating_point():
            stack = stack.double()
        if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or stack.shape[1] == 0:
            raise ValueError(f"matrices have the shape (B, n, n); got {tuple(stack.shape)}")
        off = (stack @ stack.mT - torch.eye(stack.shape[1]).to(stack)).abs().amax((1, 2))
        if not bool((off < ORTHOGONAL).all()):  # true for NaN
            worst = int(off.nan_to_num(nan=torch.inf).argmax())
            raise ValueError(
                f"matrix {worst} is not orthogonal, R R^T differs from 1 by "
                f"{float(off[worst]):.3g} and may by {ORTHOGONAL:g}; nearest to it is U V^T of its "
                "singular value decomposition U S V^T"
            )
        return cls(stack, stack.new_zeros(stack.shape[:2]))

    def inverse(self) -> Motion:
        """The motions that undo these."""
        back = self.rotation.mT
        return Motion(back, -_rotate(back, self.translation))

    def __matmul__(self, other: Motion) -> Motion:
        """First ``other``, then ``self``."""
        return Motion(
            exact_product(self.rotation, other.rotation),
            _rotate(self.rotation, other.translation) + self.translation,
        )


@dataclass(frozen=True)
class Reordering(_Batch):
    """Elements of the symmetric group, one for each sample: row i moves to place ``places[i]``.

    Attributes:
        places: Permutations of 0..n-1, shape (B, n).
    """

    places: Tensor

    def inverse(self) -> Reordering:
        """The permutations that undo these."""
        return Reordering(self.places.argsort(-1))

    def __matmul__(self, other: Reordering) -> Reordering:
        """First ``other``, then ``self``."""
        return Reordering(self.places.gather(-1, other.places))


class Vectors(Action):
    """Vectors along one axis, which turn and do not shift: velocities, forces, normals.

    Args:
        dim: The axis, counted from the end.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = check_dim(dim)

    def act_each(self, elements: Motion, x: Tensor) -> Tensor:
        """Turn each vector; raise TypeError if x does not hold floating-point numbers."""
        name, size = type(self).__name__, elements.rotation.shape[-1]
        _check_batch(name, x, self.dim, elements.samples, size, "dimensions")
        if not x.is_floating_point():
            raise TypeError(f"{name} acts on floating-point tensors; got {x.dtype}")
        rotation = elements.rotation.to(x)
        vectors = x.movedim(self.dim, -1)
        flat = vectors.reshape(x.shape[0], math.prod(vectors.shape[1:-1]), size)
        return exact_product(flat, rotation.mT).view(vectors.shape).movedim(-1, self.dim)


class Points(Vectors):
    """Positions along one axis, which turn and shift.

    Args:
        dim: The axis, counted from the end.
    """

    def act_each(self, elements: Motion, x: Tensor) -> Tensor:
        """Move each point; raise TypeError if x does not hold floating-point numbers."""
        turned = super().act_each(elements, x).movedim(self.dim, -1)
        shift = elements.translation.to(x)
        shift = shift.view(shift.shape[0], *(1,) * (x.ndim - 2), shift.shape[-1])
        return (turned + shift).movedim(-1, self.dim)


class Rows(Action):
    """Rows that are permuted: points of a cloud, nodes of a graph.

    Args:
        dim: Their axis, counted from the end.
    """

    def __init__(self, dim: int = -2) -> None:
        super().__init__()
        self.dim = check_dim(dim)

    def act_each(self, elements: Reordering, x: Tensor) -> Tensor:
        origin = elements.inverse().places.to(x.device)
        _check_batch("Rows", x, self.dim, elements.samples, origin.shape[-1], "rows")
        shape = [1] * x.ndim
        shape[0], shape[self.dim] = origin.shape
        # not take_along_dim, which has constant sizes in an exported graph
        return x.gather(self.dim, origin.view(shape).expand(x.shape))


def rotations_2d(count: int) -> Motion:
    """Rotations of the plane by multiples of a turn / count, the identity first."""
    _check_count(count)
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([cos, -sin, sin, cos], dim=-1).view(count, 2, 2)
    return Motion(matrices, torch.zeros(count, 2, dtype=torch.float64))


def sign_frames(dimension: int, *, reflections: bool = True) -> Motion:
    """All 2^n diagonal matrices of signs, the identity first: the frames of principal axes.

    Without reflections only those of determinant 1, which is half of them: for SO(n).
    """
    signs = itertools.product((1.0, -1.0), repeat=dimension)
    kept = [np.diag(s) for s in signs if reflections or math.prod(s) > 0]
    return Motion.from_matrices(np.stack(kept))


def random_motions(
    count: int,
    dimension: int,
    *,
    reflections: bool = False,
    shift: float = 0.0,
    seed: int,
) -> Motion:
    """The identity and random motions: rotations uniform by Haar measure, normal shifts.

    ``shift`` is the shifts' standard deviation; with reflections, about half have determinant -1.
    """
    _check_count(count)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, dimension, dimension, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes it uniform
    if not reflections:
        q[:, :, 0] *= torch.linalg.det(q).sign().unsqueeze(-1)
    shifts = shift * torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    q[0], shifts[0] = torch.eye(dimension), 0
    return Motion(q, shifts)


def _rotate(rotation: Tensor, vectors: Tensor) -> Tensor:
    return exact_product(rotation, vectors.unsqueeze(-1)).squeeze(-1)


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is at least 1, for the identity; got {count}")


def _check_batch(what: str, x: Tensor, dim: int, samples: int, size: int, unit: str) -> None:
    if x.ndim < 1 - dim or x.shape[dim] != size:
        raise ValueError(
            f"{what} of {size} {unit} act on axis {dim} of a batch (B, ...) of that size; "
            f"got shape {tuple(x.shape)}"
        )
    if x.shape[0] != samples:
        raise ValueError(
            f"{samples} elements act on {samples} samples, one on each; got a batch of shape "
            f"{tuple(x.shape)}"
        )
