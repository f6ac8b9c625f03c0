"""Fine-tuning towards equivariance: a penalty, how much of it, and augmentation to compare with.

Instead of making a model equivariant by construction, equivariance-regularised fine-tuning adds a
penalty to the task's loss that is zero for an equivariant model. Nothing is added to the cost of
the model afterwards, and nothing is exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equicore.representations import Representation, Tree
from equicore.representations.base import check_one_group
from equicore.trees import leaves, tree_map

Divergence = Callable[[Any, Any], Tensor]


def squared_error(actual: Any, wanted: Any) -> Tensor:
    """The squared norm of the difference, averaged over the batch; summed over a tree's tensors."""
    pairs = zip(leaves(actual), leaves(wanted), strict=True)
    return torch.stack([(a - w).square().sum() / a.shape[0] for a, w in pairs]).sum()


def kl_divergence(actual: Any, wanted: Any) -> Tensor:
    """KL(softmax(wanted) || softmax(actual)) of the last axis, in nats, averaged over the rest.

    Raises:
        ValueError: If a tensor has one number for each sample, and no axis of logits.
    """
    pairs = zip(leaves(actual), leaves(wanted), strict=True)
    terms = []
    for a, w in pairs:
        if a.ndim < 2:
            raise ValueError(f"logits have the shape (B, ..., classes); got {tuple(a.shape)}")
        log_actual, log_wanted = a.log_softmax(-1), w.log_softmax(-1)
        terms.append((log_wanted.exp() * (log_wanted - log_actual)).sum(-1).mean())
    return torch.stack(terms).sum()


class EquivarianceLoss(nn.Module):
    """The mean over g of the divergence between f(g x) and g f(x).

    The identity is left out, as it costs a forward and adds nothing. Gradients flow through both
    sides.

    Args:
        model: The model f.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        samples: So many elements, drawn for each sample of the batch from torch's random state: an
            unbiased estimate. None for all elements.
        divergence: `squared_error`, the penalty ``||f(g x) - g f(x)||^2``, or `kl_divergence` for
            logits; or any function of two batches (or trees).

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
        input_rep: Representation,
        output_rep: Representation,
        samples: int | None = 1,
        divergence: Divergence = squared_error,
    ) -> None:
        super().__init__()
        check_one_group(input_rep, output_rep, "input and output representation")
        if len(input_rep.group) == 1:
            raise ValueError("every model is equivariant under the trivial group")
        if samples is not None and samples < 1:
            raise ValueError(f"samples is a number of elements, at least 1; got {samples}")
        self.model = model
        self.input_rep = input_rep
        self.output_rep = output_rep
        self.samples = samples
        self.divergence = divergence

    def forward(self, x: Any, output: Any | None = None) -> Tensor:
        """The penalty for a batch, a number.

        Args:
            x: Batch of shape (B, ...), or a tree of batches.
            output: What the model returned for it, if that is known, so that it is not computed
                again.
        """
        order, batch = len(self.input_rep.group), leaves(x)[0].shape[0]
        if batch == 0:
            raise ValueError(f"empty batch: got an input of shape {tuple(leaves(x)[0].shape)}")
        device = leaves(x)[0].device
        if self.samples is None:
            elements = torch.arange(1, order, device=device).repeat_interleave(batch)
        else:
            elements = torch.randint(1, order, (self.samples * batch,), device=device)
        if output is None:
            output = self.model(x)
        copies = len(elements) // batch
        moved = self._select(self.model(self.input_rep.act_each(elements, _repeat(x, copies))))
        output = self._select(output)
        for a, b in zip(leaves(moved), leaves(output), strict=True):
            if a.shape != (len(elements), *b.shape[1:]) or b.shape[:1] != (batch,):
                raise ValueError(
                    f"for {len(elements)} transformed samples the model returned shape "
                    f"{tuple(a.shape)}, but the output of the {batch} samples has "
                    f"{tuple(b.shape)}"
                )
        wanted = self.output_rep.act_each(elements, _repeat(output, copies))
        return self.divergence(moved, wanted)

    def _select(self, output: Any) -> Any:
        return self.output_rep.select(output) if isinstance(self.output_rep, Tree) else output


class GroupAugmentation(nn.Module):
    """A random element for each sample, on inputs and targets alike: the baseline.

    Args:
        input_rep: How the group acts on inputs.
        target_rep: How it acts on targets; for class labels that it permutes, `Tokens`.

    Raises:
        ValueError: If the representations are of different groups.

    >>> from equicore import Trivial, image_rotations
    >>> turns = image_rotations()
    >>> augment = GroupAugmentation(turns, Trivial(turns.group))
    >>> images, labels = augment(torch.rand(5, 3, 3), torch.arange(5))
    """

    def __init__(self, input_rep: Representation, target_rep: Representation) -> None:
        super().__init__()
        check_one_group(input_rep, target_rep, "input and target representation")
        self.input_rep = input_rep
        self.target_rep = target_rep

    def forward(self, x: Any, target: Any) -> tuple[Any, Any]:
        """The transformed batch and its targets; elements come from torch's random state."""
        first = leaves(x)[0]
        elements = torch.randint(len(self.input_rep.group), (first.shape[0],), device=first.device)
        return self.input_rep.act_each(elements, x), self.target_rep.act_each(elements, target)


@dataclass(frozen=True)
class Selection:
    """What `select_weight` found.

    Attributes:
        weight: The weight of the smallest validation loss; 0 if no penalty was best.
        model: The model fine-tuned with it.
        trials: All (weight, validation loss), in the order they were tried.
    """

    weight: float
    model: Any
    trials: list[tuple[float, float]]


def select_weight(
    fine_tune: Callable[[float], Any],
    validate: Callable[[Any], float],
    *,
    low: float = 1e-3,
    high: float = 1e2,
    trials: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Choose the weight of the penalty on a validation split, by optuna.

    The first trial is without a penalty; the others are proposed by the tree-structured Parzen
    estimator on a logarithmic scale.

    Args:
        fine_tune: Makes and fine-tunes a model with a given weight of the penalty.
        validate: The loss of a model on the validation split, lower is better. Not the test
            split: what is chosen here has seen it.
        low: Smallest positive weight.
        high: Largest weight.
        trials: Models to fine-tune, at least 2.
        seed: Of the proposals.
        progress: Show a progress bar.

    Raises:
        ImportError: If optuna is not installed (``pip install "equirl[tune]"``).
        ValueError: If the range or the number of trials is not usable, or every validation loss
            is NaN or infinite.
    """
    if not 0 < low < high < math.inf or trials < 2:
        raise ValueError(
            f"expected 0 < low < high and trials >= 2; got low {low}, high {high}, trials {trials}"
        )
    try:
        import optuna
    except ImportError as error:
        raise ImportError('select_weight needs optuna: pip install "equirl[tune]"') from error
    from tqdm import tqdm

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tried: list[tuple[float, float]] = []
    best: tuple[float, float, Any] | None = None
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        for number in tqdm(range(trials), unit="trial", disable=not progress):
            trial = study.ask() if number else None
            weight = trial.suggest_float("weight", low, high, log=True) if trial else 0.0
            model = fine_tune(weight)
            measured = validate(model)
            loss = float(measured.detach() if isinstance(measured, Tensor) else measured)
            tried.append((weight, loss))
            if trial:
                # a diverged model is a bad one, not a missing one
                study.tell(trial, loss if math.isfinite(loss) else sys.float_info.max)
            if math.isfinite(loss) and (best is None or loss < best[1]):
                best = (weight, loss, model)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if best is None:
        raise ValueError(f"no trial has a finite validation loss: {tried}")
    return Selection(best[0], best[2], tried)


def _repeat(tree: Any, copies: int) -> Any:
    """The batch so many times, one after the other."""
    return tree_map(lambda t: t.repeat(copies, *(1,) * (t.ndim - 1)), tree)
