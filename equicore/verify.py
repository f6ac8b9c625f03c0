"""Verification: is a group a group, a representation one, and a model equivariant?

These are the checks that the package's own tests use, shipped for everybody's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from equicore.groups import Group
from equicore.representations import Representation


@dataclass(frozen=True)
class EquivarianceError:
    """How far a model is from f(g x) = g f(x).

    Attributes:
        absolute: Largest |f(g x) - g f(x)| for each g, shape (|G|,).
        relative: The same, divided by the largest |f(g x)| over the whole orbit and batch.
        worst_element: The g of the largest absolute error.
        worst_sample: The sample, 0..B-1, of the largest absolute error.
    """

    absolute: Tensor
    relative: Tensor
    worst_element: int
    worst_sample: int


def equivariance_error(
    model: Callable[[Tensor], Tensor],
    input_rep: Representation,
    output_rep: Representation,
    x: Tensor,
) -> EquivarianceError:
    """Measure |f(g x) - g f(x)| for every element.

    Args:
        model: The model f, called once on the whole orbit, |G| B samples.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        x: Batch of shape (B, ...), B >= 1.

    >>> from equicore import Trivial, image_rotations
    >>> rotations = image_rotations()
    >>> total = lambda x: x.sum((-2, -1))
    >>> corner = lambda x: x[..., 0, 0]
    >>> x = torch.arange(9.0).view(1, 3, 3)
    >>> equivariance_error(total, rotations, Trivial(rotations.group), x).absolute
    tensor([0., 0., 0., 0.])
    >>> equivariance_error(corner, rotations, Trivial(rotations.group), x).absolute
    tensor([0., 2., 8., 6.])
    """
    if len(x) == 0:
        raise ValueError(f"empty batch: got an input of shape {tuple(x.shape)}")
    with torch.no_grad():
        orbit = input_rep.orbit(x)
        transformed = model(orbit.flatten(0, 1)).unflatten(0, orbit.shape[:2])
        if not transformed.is_floating_point():
            raise TypeError(
                f"errors are measured of floating-point outputs; got {transformed.dtype}"
            )
        expected = output_rep.orbit(transformed[0])
        difference = (transformed - expected).abs().flatten(2 if transformed.ndim > 2 else 1)
        if transformed.ndim > 2:
            difference = difference.amax(2)
        scale = transformed.abs().amax().clamp(min=torch.finfo(transformed.dtype).tiny)
    absolute = difference.amax(1)
    # NaN counts as the worst
    worst = int(difference.nan_to_num(nan=torch.inf).argmax())
    element, sample = divmod(worst, len(x))
    return EquivarianceError(absolute, absolute / scale, element, sample)


def assert_equivariant(
    model: Callable[[Tensor], Tensor],
    input_rep: Representation,
    output_rep: Representation,
    x: Tensor,
    tolerance: float | None = None,
) -> None:
    """Raise AssertionError unless f(g x) = g f(x) for every element and sample.

    Args:
        model: The model f.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        x: Batch of shape (B, ...).
        tolerance: Largest relative error allowed; 1e-5 when omitted, 1e-12 in float64.

    Raises:
        AssertionError: Names the worst element, sample and magnitude.
    """
    error = equivariance_error(model, input_rep, output_rep, x)
    double = error.relative.dtype == torch.float64
    if tolerance is None:
        tolerance = 1e-12 if double else 1e-5
    g = error.worst_element
    relative = float(error.relative[g])
    if relative <= tolerance:  # false for NaN
        return
    message = (
        f"not equivariant: |f(g x) - g f(x)| = {float(error.absolute[g]):.3g} (relative "
        f"{relative:.3g}, allowed {tolerance:.3g}) at element {g} "
        f"({input_rep.group.names[g]}), sample {error.worst_sample}"
    )
    if not double and relative < 1e-3:
        message += "; an error this small may be rounding: repeat in float64 to tell"
    raise AssertionError(message)


def check_group(group: Group | ArrayLike) -> Group:
    """Verify the axioms of a group or of a Cayley table.

    Args:
        group: A group, or integers of shape (n, n) where ``[g, h]`` is the product g h.

    Returns:
        The group.

    Raises:
        ValueError: Names the elements at which an axiom fails.

    >>> check_group([[0, 1], [1, 1]])
    Traceback (most recent call last):
        ...
    ValueError: element 1 has no inverse: no h gives 1 h = h 1 = 0
    """
    return Group(group.table if isinstance(group, Group) else np.asarray(group))


def check_representation(
    representation: Representation, x: Tensor, tolerance: float | None = None
) -> None:
    """Verify on a batch that a representation is one, and that its three verbs agree.

    Checks act(0, x) = x, act(g, act(h, x)) = act(g h, x) for all g and h, orbit = all acts, and
    align(orbit(x)) = x in every slice.

    Args:
        representation: The representation.
        x: Batch of shape (B, ...).
        tolerance: Largest error allowed, relative to the largest |x|; 1e-5 when omitted, 1e-12
            in float64. Integers must agree exactly.

    Raises:
        ValueError: Names the elements at which it fails.
    """
    if tolerance is None:
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
    group = representation.group
    scale = x.abs().amax() if x.is_floating_point() else None

    def require(actual: Tensor, expected: Tensor, law: str) -> None:
        if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            found = (
                f"{tuple(actual.shape)} of {actual.dtype} instead of "
                f"{tuple(expected.shape)} of {expected.dtype}"
            )
        elif scale is None:
            if torch.equal(actual, expected):
                return
            found = "they differ"
        else:
            difference = (actual - expected).abs().amax()
            if difference <= tolerance * scale:
                return
            found = f"they differ by {float(difference):.3g}"
        raise ValueError(f"not a representation of {group.name}: {law} fails, {found}")

    acted = [representation.act(g, x) for g in range(len(group))]
    require(acted[0], x, "act(0, x) = x")
    for g in range(len(group)):
        for h in range(len(group)):
            require(
                representation.act(g, acted[h]),
                acted[group.compose(g, h)],
                f"act({g}, act({h}, x)) = act({group.compose(g, h)}, x)",
            )
    orbit = representation.orbit(x)
    aligned = representation.align(orbit)
    for g in range(len(group)):
        require(orbit[g], acted[g], f"orbit(x)[{g}] = act({g}, x)")
        require(aligned[g], x, f"align(orbit(x))[{g}] = x")
