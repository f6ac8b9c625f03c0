"""The penalty on a model's deviation from equivariance, and augmentation, its baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equicore.batch import BatchAxes, BatchDim, check_batch
from equicore.representations.base import Action, Elements, check_one_group, orbit_size
from equicore.trees import leaves, tree_map

Divergence = Callable[[Any, Any], Tensor]


def squared_error(actual: Any, wanted: Any) -> Tensor:
    """The squared norm of the difference, averaged over the batch; summed over a tree's tensors."""
    pairs = zip(leaves(actual), leaves(wanted), strict=True)
    differences = [a - w for a, w in pairs]
    real = [torch.view_as_real(d) if d.is_complex() else d for d in differences]
    return torch.stack([d.square().sum() / d.shape[0] for d in real]).sum()


def relative_error(actual: Any, wanted: Any) -> Tensor:
    """The squared norm of the difference, in parts of that of the two; the mean over a tree.

    Norms are over the batch. Feature maps and dense outputs of any size give numbers of one order:
    0 if they agree, 1 if they are unrelated and of mean 0 (less if their means agree), 2 if they
    are opposite. It has no unit: neither larger nor smaller outputs lower it.
    """
    terms = []
    for a, w in zip(leaves(actual), leaves(wanted), strict=True):
        scale = a.abs().square().sum() + w.abs().square().sum()
        terms.append((a - w).abs().square().sum() / scale.clamp(min=torch.finfo(a.dtype).tiny))
    return torch.stack(terms).mean()


def by_part(divergences: Mapping[Any, Divergence]) -> Divergence:
    """A divergence of dicts: the sum over their parts, each by a divergence of its own.

    >>> both = by_part({"logits": kl_divergence, "map": relative_error})
    >>> same = {"logits": torch.ones(2, 3), "map": torch.ones(2, 4, 5, 5)}
    >>> float(both(same, same))
    0.0
    """

    def divergence(actual: Any, wanted: Any) -> Tensor:
        return torch.stack([d(actual[n], wanted[n]) for n, d in divergences.items()]).sum()

    return divergence


def kl_divergence(actual: Any, wanted: Any, dim: int | None = None) -> Tensor:
    """KL(softmax(wanted) || softmax(actual)) over the classes, in nats, averaged over the rest.

    Args:
        actual: Logits, or a tree of them.
        wanted: The same.
        dim: The axis of the classes; the last of (B, classes) and (B, words, classes) when omitted.

    Raises:
        ValueError: If a tensor has one number for each sample and no axis of logits, or it has
            four axes or more, and which is that of the classes is not said.
    """
    pairs = zip(leaves(actual), leaves(wanted), strict=True)
    terms = []
    for a, w in pairs:
        if a.ndim < 2:
            raise ValueError(f"logits have the shape (B, ..., classes); got {tuple(a.shape)}")
        if a.ndim > 3 and dim is None:
            raise ValueError(
                f"logits have the shape {tuple(a.shape)}; say which axis is that of the classes, "
                "as in functools.partial(kl_divergence, dim=1)"
            )
        axis = -1 if dim is None else dim
        log_actual, log_wanted = a.log_softmax(axis), w.log_softmax(axis)
        terms.append((log_wanted.exp() * (log_wanted - log_actual)).sum(axis).mean())
    return torch.stack(terms).sum()


class EquivarianceLoss(nn.Module):
    """The mean over g of the divergence between f(g x) and g f(x).

    The identity is left out, as it costs a forward and adds nothing. Gradients flow through both
    sides. In training, BatchNorm's statistics are of f(g x) too, and dropout of both is drawn
    apart.

    Args:
        model: The model f.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        samples: So many random elements for each sample of the batch: an unbiased estimate. None
            for all elements.
        divergence: `squared_error`, the penalty ``||f(g x) - g f(x)||^2``, or `kl_divergence` for
            logits; or any function of two batches (or trees).
        elements: Of a continuous group, those to draw from, the identity first.
        batch_dim: The axis of the batch, as in `equicore.Symmetrized`.

    Raises:
        ValueError: If the representations are of different groups, or the group is trivial.

    >>> from equicore import Trivial, image_rotations
    >>> turns = image_rotations()
    >>> f = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    >>> penalty = EquivarianceLoss(f, turns, Trivial(turns.group), samples=1)
    >>> x = torch.rand(5, 3, 3)
    >>> loss = f(x).sum() + 0.1 * penalty(x)
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        input_rep: Action,
        output_rep: Action,
        samples: int | None = 1,
        divergence: Divergence = squared_error,
        elements: Elements | None = None,
        *,
        batch_dim: BatchDim = 0,
    ) -> None:
        super().__init__()
        group = check_one_group((input_rep, output_rep), "input and output representation")
        self.order = orbit_size(group, elements)
        if self.order == 1:
            raise ValueError("every model is equivariant under the trivial group")
        if samples is not None and samples < 1:
            raise ValueError(f"samples is a number of elements, at least 1; got {samples}")
        self.model = model
        self.input_rep = input_rep
        self.output_rep = output_rep
        self.samples = samples
        self.divergence = divergence
        self.elements = elements
        self._axes = BatchAxes(batch_dim)

    def forward(self, x: Any, output: Any | None = None) -> Tensor:
        """The penalty for a batch, a number.

        Args:
            x: Batch of shape (B, ...), or a tree of batches.
            output: What the model returned for it, if that is known.
        """
        if output is None:
            output = self.model(x)
        x = self._axes.input_first(x)
        order, batch = self.order, check_batch(x)
        device = leaves(x)[0].device
        if self.samples is None:
            elements = torch.arange(1, order, device=device).repeat_interleave(batch)
        else:
            elements = torch.randint(1, order, (self.samples * batch,), device=device)
        elements = elements if self.elements is None else self.elements[elements]
        copies = len(elements) // batch
        samples = self.input_rep.act_each(elements, _repeat(x, copies))
        moved = self.output_rep.select(self.model(self._axes.input_back(samples)))
        moved = self._axes.output_first(moved, len(elements))
        output = self._axes.output_first(self.output_rep.select(output), batch)
        for a, b in zip(leaves(moved), leaves(output), strict=True):
            if a.shape != (len(elements), *b.shape[1:]) or b.shape[:1] != (batch,):
                raise ValueError(
                    f"for {len(elements)} transformed samples the model returned, with its batch "
                    f"first, shape {tuple(a.shape)}, and for the {batch} samples {tuple(b.shape)}; "
                    "where input and output have their batch on other axes batch_dim is a pair"
                )
        wanted = self.output_rep.act_each(elements, _repeat(output, copies))
        return self.divergence(moved, wanted)


class GroupAugmentation(nn.Module):
    """A random element for each sample, on inputs and targets alike: the baseline.

    Class labels that the group permutes are targets of `Tokens`.

    Args:
        input_rep: How the group acts on inputs.
        target_rep: How the group acts on targets.
        elements: Of a continuous group, those to draw from.
        batch_dim: The axis of the batch in inputs and targets, or a pair of them, as in
            `equicore.Symmetrized`.

    Raises:
        ValueError: If the representations are of different groups.

    >>> from equicore import Trivial, image_rotations
    >>> turns = image_rotations()
    >>> augment = GroupAugmentation(turns, Trivial(turns.group))
    >>> images, labels = augment(torch.rand(5, 3, 3), torch.arange(5))
    """

    def __init__(
        self,
        input_rep: Action,
        target_rep: Action,
        elements: Elements | None = None,
        *,
        batch_dim: BatchDim = 0,
    ) -> None:
        super().__init__()
        group = check_one_group((input_rep, target_rep), "input and target representation")
        self.order = orbit_size(group, elements)
        self.input_rep = input_rep
        self.target_rep = target_rep
        self.elements = elements
        self._axes = BatchAxes(batch_dim)

    def forward(self, x: Any, target: Any) -> tuple[Any, Any]:
        """The transformed batch and its targets; elements come from torch's random state."""
        x = self._axes.input_first(x)
        batch = check_batch(x)
        for what, rep, given in (("input", self.input_rep, x), ("target", self.target_rep, target)):
            if rep.one_tensor and not isinstance(given, Tensor):
                raise TypeError(
                    f"the {what}'s representation acts on one tensor; got {type(given).__name__}"
                )
        target = self._axes.output_first(target, batch, "the target has the")
        elements = torch.randint(self.order, (batch,), device=leaves(x)[0].device)
        elements = elements if self.elements is None else self.elements[elements]
        moved = self.input_rep.act_each(elements, x), self.target_rep.act_each(elements, target)
        return self._axes.input_back(moved[0]), self._axes.output_back(moved[1])


def _repeat(tree: Any, copies: int) -> Any:
    """The batch so many times, one after the other."""
    return tree_map(lambda t: t.repeat(copies, *(1,) * (t.ndim - 1)), tree)
