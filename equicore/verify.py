"""Verification: is a group a group, a representation one, and a model equivariant?

These are the checks that the package's own tests use, shipped for everybody's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from equicore.batch import BatchAxes, BatchDim, check_batch
from equicore.groups import Group
from equicore.representations.base import (
    Action,
    Elements,
    Representation,
    check_one_group,
    orbit_size,
)
from equicore.symmetrize import equitune
from equicore.trees import leaves, tree_map

MASKED = 100.0
"""How much larger than all entries with an error those of a mask are."""

PAIRED = 64
"""Elements of which every pair is multiplied."""

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class EquivarianceError:
    """How far a model is from f(g x) = g f(x).

    Attributes:
        absolute: Largest |f(g x) - g f(x)| for each g, shape (|G|,).
        relative: The same, divided by the largest |f(g x)| over the whole orbit and batch, but for
            entries of a mask (exact, and more than ``MASKED`` times as large as all others); for
            a model that returns a tree, the largest of its tensors' relative errors.
        worst_element: The g of the largest relative error.
        worst_sample: The sample, 0..B-1, of the largest relative error.
        elements: The g that were checked, in the order of the errors.
    """

    absolute: Tensor
    relative: Tensor
    worst_element: int
    worst_sample: int
    elements: tuple[int, ...]

    def of(self, element: int) -> tuple[float, float]:
        """The absolute and the relative error of an element."""
        place = self.elements.index(element)
        return float(self.absolute[place]), float(self.relative[place])


def equivariance_error(
    model: Callable[[Any], Any],
    input_rep: Action,
    output_rep: Action,
    x: Any,
    *,
    batch_dim: BatchDim = 0,
    elements: Elements | None = None,
) -> EquivarianceError:
    """Measure |f(g x) - g f(x)| for every element.

    Args:
        model: The model f, called once on the whole orbit, |G| B samples.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        x: Batch of shape (B, ...), B >= 1, or a tree of batches.
        batch_dim: The axis of the batch, as in `Symmetrized`.
        elements: Some to check, all when omitted: of a large group for instance
            ``group.sample(64)``; of a continuous one, where they are needed, the identity first,
            see `equicore.continuous.random_motions`.

    Raises:
        ValueError: If the batch is empty, or the model returns another number of samples than it
            was given.
        TypeError: If the model's outputs are not floating-point or complex tensors.

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
    group = check_one_group((input_rep, output_rep), "input and output representation")
    if group is None:
        order = orbit_size(group, elements)
        numbers = list(range(order))
    else:
        numbers = _checked(group, elements)
        order = len(numbers)
        elements = None if elements is None else numbers
    axes = BatchAxes(batch_dim)
    x = axes.input_first(x)
    batch = check_batch(x)

    def by_element(output: Tensor) -> Tensor:
        if output.shape[0] != order * batch:
            raise ValueError(
                f"the model was given {order} x {batch} = {order * batch} samples and returned "
                f"{output.shape[0]}, shape {tuple(output.shape)} with samples first"
            )
        return output.unflatten(0, (order, batch))

    with torch.no_grad():
        orbit = input_rep.orbit(x, elements)
        samples = axes.input_back(tree_map(lambda t: t.flatten(0, 1), orbit))
        outputs = axes.output_first(output_rep.select(model(samples)), order * batch)
        transformed = tree_map(by_element, outputs)
        expected = output_rep.orbit(tree_map(lambda t: t[0], transformed), elements)
        pairs = list(zip(leaves(transformed), leaves(expected), strict=True))
        differences = [_difference_of(actual, wanted) for actual, wanted in pairs]
        absolute = torch.stack([d.flatten(2).amax(2) if d.ndim > 2 else d for d in differences])
        scales = torch.stack(
            [_scale(actual, d) for (actual, _), d in zip(pairs, differences, strict=True)]
        )
        relative = (absolute / scales[:, None, None]).amax(0)
    # NaN counts as the worst
    worst = int(relative.nan_to_num(nan=torch.inf).argmax())
    place, sample = divmod(worst, relative.shape[1])
    errors = absolute.amax((0, 2)), relative.amax(1)
    return EquivarianceError(*errors, numbers[place], sample, tuple(numbers))


def _checked(group: Group, elements: Elements | None) -> list[int]:
    """The elements to check, the identity first."""
    if elements is None:
        return list(range(len(group)))
    try:
        given = [group.check_element(operator.index(g)) for g in elements]
    except TypeError as error:
        raise ValueError(
            f"elements of {group} are integers, as those of group.sample(16), and of a continuous "
            f"group, and of no other, Motions or Reorderings; got {elements!r}"
        ) from error
    return [0, *(g for g in dict.fromkeys(given) if g != 0)]


def _difference_of(actual: Tensor, wanted: Tensor) -> Tensor:
    """The sizes of differences; minus infinity, as of masks, differs from itself by nothing."""
    if not (actual.is_floating_point() or actual.is_complex()):
        raise TypeError(f"errors are measured of floating-point outputs; got {actual.dtype}")
    difference = (actual - wanted).abs()
    if actual.is_complex():
        return difference
    return difference.masked_fill((actual == -torch.inf) & (wanted == -torch.inf), 0)


def _scale(outputs: Tensor, difference: Tensor) -> Tensor:
    """The largest magnitude, to divide by.

    Not of entries that are exact and far larger than all that are not: they are a mask's, beside
    which every error would be small.
    """
    sizes = outputs.abs()
    sizes = sizes.masked_fill(~sizes.isfinite(), 0)
    inexact = sizes.masked_fill(difference == 0, 0).amax()
    masks = (difference == 0) & (sizes > MASKED * inexact) & (inexact > 0)
    return sizes.masked_fill(masks, 0).amax().clamp(min=torch.finfo(outputs.dtype).tiny)


def assert_equivariant(
    model: Callable[[Any], Any],
    input_rep: Action,
    output_rep: Action,
    x: Any,
    tolerance: float | None = None,
    *,
    batch_dim: BatchDim = 0,
    elements: Elements | None = None,
) -> None:
    """Raise AssertionError unless f(g x) = g f(x) for every element and sample.

    It names the worst element, sample and magnitude. Arguments are those of `equivariance_error`,
    and ``tolerance``, the largest relative error allowed: 1e-5 when omitted, 1e-12 in float64.
    """
    error = equivariance_error(
        model, input_rep, output_rep, x, batch_dim=batch_dim, elements=elements
    )
    double = error.relative.dtype == torch.float64
    if tolerance is None:
        tolerance = 1e-12 if double else 1e-5
    g = error.worst_element
    absolute, relative = error.of(g)
    if relative <= tolerance:  # false for NaN
        return
    name = "" if input_rep.group is None else f" ({input_rep.group.names[g]})"
    message = (
        f"not equivariant: |f(g x) - g f(x)| = {absolute:.3g} (relative "
        f"{relative:.3g}, allowed {tolerance:.3g}) at element {g}{name}, sample "
        f"{error.worst_sample}"
    )
    if not double and relative < 1e-3:
        message += "; an error this small may be rounding: repeat in float64 to tell"
    raise AssertionError(message)


LISTED = 40
"""Elements that are listed one by one."""

NAMED = 24
"""Elements that have their names in a figure."""


@dataclass(frozen=True)
class Report:
    """Errors of equivariance per element, by name: of a model, then of what was made of it."""

    group: Group
    errors: dict[str, EquivarianceError]

    @property
    def elements(self) -> tuple[int, ...]:
        """Those that were checked."""
        return next(iter(self.errors.values())).elements

    def __str__(self) -> str:
        """A table: one row for each element, the relative error of each model.

        Of more than ``LISTED`` elements, those of the largest errors of the first model, and a row
        for all others.
        """
        relative = np.stack([e.relative.double().cpu().numpy() for e in self.errors.values()])
        shown = list(range(len(self.elements)))
        if len(shown) > LISTED:
            first = np.where(np.isnan(relative[0]), np.inf, relative[0])
            shown = sorted(np.argsort(-first, kind="stable")[: LISTED // 2].tolist())
        rest = [i for i in range(len(self.elements)) if i not in shown]
        names = [f"{self.elements[i]} ({self.group.names[self.elements[i]]})" for i in shown]
        rows = [relative[:, i] for i in shown]
        if rest:
            names.append(f"{len(rest)} others, at most")
            rows.append(relative[:, rest].max(1))
        width = max(len(name) for name in [*names, "element"])
        columns = [max(len(name), 8) for name in self.errors]
        lines = ["  ".join(n.rjust(w) for n, w in zip(self.errors, columns, strict=True))]
        for row in rows:
            cells = [f"{value:.1e}" for value in row]
            lines.append("  ".join(v.rjust(w) for v, w in zip(cells, columns, strict=True)))
        heads = ["element", *names]
        table = [f"{head.ljust(width)}  {line}" for head, line in zip(heads, lines, strict=True)]
        return "\n".join(["relative error |f(g x) - g f(x)|", *table])

    def plot(self) -> Figure:
        """The same as a figure, on a logarithmic axis; save it with ``.savefig(path)``."""
        from matplotlib.figure import Figure

        elements = np.arange(len(self.elements))
        width = min(max(4.0, 1.5 + 0.45 * len(elements)), 1.5 + 0.45 * NAMED)
        figure = Figure(figsize=(width, 3.2), layout="constrained")
        axes = figure.subplots()
        for i, (name, error) in enumerate(self.errors.items()):
            relative = error.relative.double().cpu().numpy()
            floor = torch.finfo(error.relative.dtype).eps
            shown = np.maximum(relative, floor / 4)  # a zero has no place on the axis
            offset = 0.8 * ((i + 0.5) / len(self.errors) - 0.5)
            size = 6 if len(elements) <= NAMED else 3
            axes.plot(elements + offset, shown, "os^Dv"[i % 5], markersize=size, label=name)
        axes.set(yscale="log", xlabel=f"element g of {self.group.name}")
        named = elements[:: -(-len(elements) // NAMED)]
        names = [self.group.names[self.elements[i]] for i in named]
        axes.set_xticks(named, names, rotation=90 if len(elements) > 8 else 0)
        axes.set_ylabel("|f(g x) − g f(x)|, relative")
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
        return figure


def report(
    model: Callable[[Any], Any],
    input_rep: Representation,
    output_rep: Representation,
    x: Any,
    symmetrized: Mapping[str, nn.Module] | None = None,
    *,
    batch_dim: BatchDim = 0,
    elements: Elements | None = None,
) -> Report:
    """Errors of equivariance per element before and after symmetrization.

    Arguments are those of `equivariance_error`, and ``symmetrized``: what was made of the model,
    by name; `equitune` of it when omitted.

    >>> from equicore import Trivial, image_flips
    >>> flip = image_flips()
    >>> corner = lambda x: x[..., 0, 0]
    >>> print(report(corner, flip, Trivial(flip.group), torch.arange(9.0).view(1, 3, 3)))
    relative error |f(g x) - g f(x)|
    element     model  equitune
    0 (e)     0.0e+00   0.0e+00
    1 (r)     1.0e+00   0.0e+00
    """
    if symmetrized is None:
        symmetrized = {"equitune": equitune(model, input_rep, output_rep, batch_dim=batch_dim)}
    models: dict[str, Callable[[Any], Any]] = {"model": model, **symmetrized}
    return Report(
        input_rep.group,
        {
            name: equivariance_error(
                f, input_rep, output_rep, x, batch_dim=batch_dim, elements=elements
            )
            for name, f in models.items()
        },
    )


def check_group(group: Group | ArrayLike) -> Group:
    """Verify the axioms of a group or of a Cayley table, shape (n, n); return it as a group.

    Raises:
        ValueError: Names the elements at which an axiom fails.

    >>> check_group([[0, 1], [1, 1]])
    Traceback (most recent call last):
        ...
    ValueError: element 1 has no inverse: no h gives 1 h = h 1 = 0
    """
    return Group(group.table if isinstance(group, Group) else np.asarray(group))


def check_representation(
    representation: Representation,
    x: Any,
    tolerance: float | None = None,
    *,
    elements: Elements | None = None,
) -> None:
    """Verify on a batch that a representation is one, and that its verbs agree.

    Checks act(0, x) = x, act(g, act(h, x)) = act(g h, x) for all g and h, orbit = all acts,
    act_each = each sample's act, which align_each undoes, align(orbit(x)) = x in every slice, and
    that orbit and align do the same where they are asked for some elements only. Of a group of
    more than ``PAIRED`` elements, h is one of its generators, from which the rest follows.

    Args:
        representation: What is checked.
        x: Batch of shape (B, ...), or a tree of batches.
        tolerance: The largest error allowed, relative to the largest |x|: 1e-5 when omitted,
            1e-12 in float64. Integers must agree exactly.
        elements: Some to check, for instance ``group.sample(64)``; all when omitted.

    Raises:
        ValueError: Names the elements at which it fails.
    """
    group = representation.group
    chosen = _checked(group, elements)
    others = chosen if len(chosen) <= PAIRED else list(group.generators)

    def require(actual: Any, expected: Any, law: str) -> None:
        for a, e, t in zip(leaves(actual), leaves(expected), leaves(x), strict=True):
            found = _difference(a, e, t, tolerance)
            if found is not None:
                raise ValueError(f"not a representation of {group.name}: {law} fails, {found}")

    def at(stack: Any, i: int | slice) -> Any:
        return tree_map(lambda t: t[i], stack)

    acted = {g: representation.act(g, x) for g in {*chosen, *others}}
    require(acted[0], x, "act(0, x) = x")
    for g in chosen:
        for h in others:
            gh = group.compose(g, h)
            expected = acted[gh] if gh in acted else representation.act(gh, x)
            law = f"act({g}, act({h}, x)) = act({gh}, x)"
            require(representation.act(g, acted[h]), expected, law)
    if elements is None:
        orbit = representation.orbit(x)
        aligned = representation.align(orbit)
        for g in chosen:
            require(at(orbit, g), acted[g], f"orbit(x)[{g}] = act({g}, x)")
            require(at(aligned, g), x, f"align(orbit(x))[{g}] = x")
    some = [*reversed(chosen), chosen[-1]]
    orbit = representation.orbit(x, some)
    aligned = representation.align(orbit, some)
    for i, g in enumerate(some):
        require(at(orbit, i), acted[g], f"orbit(x, {some})[{i}] = act({g}, x)")
        require(at(aligned, i), x, f"align(orbit(x, {some}), {some})[{i}] = x")
    batch = leaves(x)[0].shape[0]
    each_g = torch.tensor(chosen, device=leaves(x)[0].device).repeat_interleave(batch)
    copies = tree_map(lambda t: t.repeat(len(chosen), *(1,) * (t.ndim - 1)), x)
    each = representation.act_each(each_g, copies)
    undone = representation.align_each(each_g, each)
    for i, g in enumerate(chosen):
        rows = slice(i * batch, (i + 1) * batch)
        require(at(each, rows), acted[g], f"act_each({g}, x) = act({g}, x)")
        require(at(undone, rows), x, f"align_each({g}, act_each({g}, x)) = x")


def _difference(actual: Tensor, expected: Tensor, x: Tensor, tolerance: float | None) -> str | None:
    """How two tensors differ, relative to the size of x; None if they do not."""
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return (
            f"{tuple(actual.shape)} of {actual.dtype} instead of "
            f"{tuple(expected.shape)} of {expected.dtype}"
        )
    if not (x.is_floating_point() or x.is_complex()):
        return None if torch.equal(actual, expected) else "they differ"
    if tolerance is None:
        tolerance = 1e-12 if x.dtype in (torch.float64, torch.complex128) else 1e-5
    difference = (actual - expected).abs().amax()
    if difference <= tolerance * x.abs().amax():  # false for NaN
        return None
    return f"they differ by {float(difference):.3g}"
