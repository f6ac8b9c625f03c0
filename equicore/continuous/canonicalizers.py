"""Canonicalizers: maps h from inputs to group elements with h(g x) = g h(x).

Each says what it does at degenerate inputs, where no such map exists: an input that some g leaves
as it is has g h(x) = h(x), which holds for no element of the group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equicore.continuous.actions import Motion, Reordering
from equicore.representations.base import exact_product

Kind = Literal["O", "SO"]
Pick = Callable[[Any], Tensor]


class _OfVectors(nn.Module):
    """A canonicalizer by vectors, of O(n) or SO(n)."""

    def __init__(self, kind: Kind, vectors: Pick | None = None) -> None:
        super().__init__()
        if kind not in ("O", "SO"):
            raise ValueError(f'kind is "SO" (rotations) or "O" (with reflections); got {kind!r}')
        self.kind = kind
        self.vectors = vectors


class GramSchmidt(_OfVectors):
    """Orthonormalised vectors: SO(n) from n - 1 vectors, O(n) from n.

    The columns of h(x) are the input's first vectors after Gram-Schmidt; for SO(n) the last
    column completes them to a right-handed frame.

    **Degenerate inputs**: where a vector is zero or depends linearly on those before it (up to
    100 machine epsilons of the size of all), the coordinate axis that is farthest from those
    before it takes its place. The output and its gradient are then finite, and depend on the
    coordinates: it is not equivariant there. Vectors that are zero for many inputs need another
    pick, for instance a `VectorMix` that learns.

    Args:
        kind: ``"SO"`` for rotations, ``"O"`` for rotations and reflections.
        vectors: Picks vectors (B, k, n), k >= n - 1 or n, from the input, equivariantly; the
            input itself when omitted.

    Raises:
        ValueError: If the kind is neither, or, when called, there are too few vectors.
    """

    def forward(self, x: Any) -> Motion:
        """One rotation, or rotation and reflection, for each sample."""
        vectors = _picked(self.vectors, x)
        dimension = vectors.shape[-1]
        needed = dimension - (self.kind == "SO")
        if vectors.shape[1] < needed:
            raise ValueError(
                f"a frame of {self.kind}({dimension}) needs {needed} vectors; got shape "
                f"{tuple(vectors.shape)}, (B, k, n)"
            )
        columns = orthonormal_columns(vectors[:, :needed])
        if self.kind == "SO":
            columns = torch.cat([columns, _completing(columns).unsqueeze(-1)], dim=-1)
        return _about_origin(columns)


class VectorSum(GramSchmidt):
    """SO(2) from the direction of the sum of all vectors.

    **Degenerate inputs**: where the sum is zero, h(x) is the identity, which is not equivariant.
    """

    def __init__(self, vectors: Pick | None = None) -> None:
        super().__init__("SO", vectors)

    def forward(self, x: Any) -> Motion:
        """The rotation that turns the first axis to the sum of the vectors."""
        vectors = _picked(self.vectors, x)
        if vectors.shape[-1] != 2:
            raise ValueError(
                f"VectorSum is for the plane, vectors (B, k, 2); got shape {tuple(vectors.shape)}"
            )
        columns = orthonormal_columns(vectors.sum(1, keepdim=True), beside=vectors)
        return _about_origin(torch.cat([columns, _completing(columns).unsqueeze(-1)], dim=-1))


class VectorMix(nn.Module):
    """Learned linear combinations of vectors, (B, k, n) to (B, m, n): equivariant under O(n).

    Args:
        k: Vectors in.
        m: Vectors out.
        seed: Of the initial coefficients; the global random state is left alone.
    """

    def __init__(self, k: int, m: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.coefficients = nn.Parameter(torch.randn(m, k, generator=generator) / k**0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        """Mix."""
        return exact_product(self.coefficients, vectors)


class PrincipalAxes(_OfVectors):
    """O(n) or SO(n) up to signs: the principal axes of a set of vectors, largest first.

    Axes have no sign, so h(g x) is g h(x) only up to a diagonal matrix of signs: use it in
    `canonical_lambda_equitune` with the samples `sign_frames`, which makes the whole exactly
    equivariant (frame averaging: Puny et al., ICLR 2022).

    **Degenerate inputs**: where two of the second moments are equal, as for a square in the
    plane, the axes are not determined, the output is finite but not equivariant, and gradients
    through h(x) are infinite. ``gap`` tells.

    For ``"SO"`` the last axis is flipped where needed for determinant 1. Arguments are those of
    `GramSchmidt`.
    """

    def forward(self, x: Any) -> Motion:
        """The axes as columns."""
        moments, finite = self._moments(x)
        _, axes = torch.linalg.eigh(moments)
        axes = axes.flip(-1).where(finite, torch.nan)
        if self.kind == "SO":
            sign = torch.linalg.det(axes.detach()).sign()
            axes = torch.cat([axes[..., :-1], axes[..., -1:] * sign.view(-1, 1, 1)], dim=-1)
        return _about_origin(axes)

    def gap(self, x: Any) -> Tensor:
        """The smallest relative difference of two second moments, shape (B,); 0 is degenerate."""
        matrices, finite = self._moments(x)
        moments = torch.linalg.eigvalsh(matrices)
        largest = moments[..., -1]
        gap = moments.diff(dim=-1).amin(-1) / largest.where(largest > 0, 1)
        return gap.where(finite.view(-1), torch.nan)

    def _moments(self, x: Any) -> tuple[Tensor, Tensor]:
        """Second moments (B, n, n), and where they are finite (B, 1, 1); zero where they are not.

        One sample that is not finite would make an error of the whole batch.
        """
        vectors = _picked(self.vectors, x)
        moments = exact_product(vectors.mT, vectors)
        finite = moments.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        return moments.where(finite, 0), finite


class Centred(nn.Module):
    """SE(n) or E(n): the centre of mass, and a canonicalizer of the points about it.

    Args:
        inner: Canonicalizer of the centred points (B, k, n); only the centre, which makes the
            group that of shifts, when omitted.
        points: Picks points (B, k, n) from the input; the input itself when omitted.
    """

    def __init__(self, inner: nn.Module | None = None, points: Pick | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.points = points

    def forward(self, x: Any) -> Motion:
        """The motion from the canonical form's frame to the input's."""
        points = _picked(self.points, x)
        centre = points.mean(1)
        if self.inner is None:
            size = points.shape[-1]
            return Motion(torch.eye(size).to(points).expand(points.shape[0], size, size), centre)
        return Motion(self.inner(points - centre.unsqueeze(1)).rotation, centre)


class Sorting(nn.Module):
    """Permutations of rows: the canonical form has them sorted by a key.

    **Degenerate inputs**: rows of equal keys keep their order, so outputs for each row are not
    equivariant there; outputs for the whole input are, if the rows themselves are equal.

    Args:
        key: Maps the input to one number for each row, shape (B, rows); the first column of an
            input (B, rows, d) when omitted.
    """

    def __init__(self, key: Pick | None = None) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: Any) -> Reordering:
        """The permutation from sorted rows to the input's."""
        if self.key is None and not isinstance(x, Tensor):
            raise TypeError(f"give a key, to sort rows from an input that is a {type(x).__name__}")
        keys = x[..., 0] if self.key is None else self.key(x)
        if keys.ndim != 2:
            raise ValueError(
                f"sorting needs one key for each row, shape (B, rows); got {tuple(keys.shape)}"
            )
        # ONNX has no stable sort by name; that of its runtime is stable, and so is torch's on CPUs
        if torch.compiler.is_exporting():
            return Reordering(keys.argsort(dim=-1))
        return Reordering(keys.argsort(dim=-1, stable=True))


def orthonormal_columns(vectors: Tensor, beside: Tensor | None = None) -> Tensor:
    """Gram-Schmidt of vectors (B, m, n), m <= n, as columns (B, n, m).

    A vector counts as zero where it is tiny beside all of ``beside`` (B, k, n), by default the
    vectors themselves.
    """
    beside = (vectors if beside is None else beside).detach()
    scale = beside.abs().sum((1, 2)).view(-1, 1, 1)
    scale = scale.where(scale > 0, 1)  # squares of entries are then neither infinite nor zero
    tiny = 100 * torch.finfo(vectors.dtype).eps * (beside / scale).norm(dim=(1, 2))
    done = vectors.new_zeros(vectors.shape[0], vectors.shape[-1], 0)
    for vector in (vectors / scale).unbind(1):
        # twice, as the first projection leaves a rest where vectors are nearly parallel
        rest = _outside(done, _outside(done, vector))
        lost = rest.detach().norm(dim=-1) <= tiny
        # chosen before the norm, whose gradient at 0 is NaN
        chosen = torch.where(lost.unsqueeze(-1), _farthest_axis(done), rest)
        unit = chosen / chosen.norm(dim=-1, keepdim=True)
        done = torch.cat([done, unit.unsqueeze(-1)], dim=-1)
    return done


def _outside(columns: Tensor, vector: Tensor) -> Tensor:
    """A vector without its part in the span of orthonormal columns."""
    parts = exact_product(columns.mT, vector.unsqueeze(-1))
    return vector - exact_product(columns, parts).squeeze(-1)


def _farthest_axis(columns: Tensor) -> Tensor:
    """The longest of what the coordinate axes have outside the span of orthonormal columns."""
    outside = torch.eye(columns.shape[-2]).to(columns) - exact_product(columns, columns.mT)
    longest = outside.detach().norm(dim=-1).argmax(-1)
    return outside[torch.arange(outside.shape[0], device=outside.device), longest]


def _completing(columns: Tensor) -> Tensor:
    """The unit vector that completes n - 1 orthonormal columns (B, n, n - 1) to determinant 1."""
    # no determinants of minors: where these are singular, torch's gradient of them is wrong
    last = _farthest_axis(columns)
    last = last / last.norm(dim=-1, keepdim=True)
    whole = torch.cat([columns, last.unsqueeze(-1)], dim=-1)
    return last * torch.linalg.det(whole.detach()).sign().unsqueeze(-1)


def _about_origin(rotation: Tensor) -> Motion:
    return Motion(rotation, rotation.new_zeros(rotation.shape[:2]))


def _picked(pick: Pick | None, x: Any) -> Tensor:
    """The vectors (B, k, n) of an input, at least in float32."""
    vectors = x if pick is None else pick(x)
    if not isinstance(vectors, Tensor):
        raise TypeError(
            f"pick the vectors (B, k, n) from an input that is a {type(vectors).__name__}"
        )
    if vectors.ndim != 3 or 0 in vectors.shape:
        raise ValueError(
            f"a canonicalizer takes vectors (B, k, n), none of them 0; got {tuple(vectors.shape)}"
        )
    if not vectors.is_floating_point():
        raise TypeError(f"a canonicalizer takes floating-point vectors; got {vectors.dtype}")
    # 100 epsilons of a shorter type are not small, and it has no eigenvectors or determinants
    return vectors.float() if torch.finfo(vectors.dtype).bits < 32 else vectors
