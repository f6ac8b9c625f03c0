"""Fine-tuning: part of a model or all of it, and towards equivariance.

`fit` trains with any optimiser on any iterable of batches. Instead of making a model equivariant by
construction, equivariance-regularised fine-tuning adds a penalty to the task's loss that is zero
for an equivariant model: it adds nothing to the model's cost afterwards, and nothing is exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equicore.batch import BatchAxes, BatchDim, check_batch
from equicore.representations.base import Action, Elements, check_one_group, orbit_size
from equicore.trees import leaves, tree_map

Divergence = Callable[[Any, Any], Tensor]


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    progress: bool = True,
) -> list[float]:
    """Train the parameters that the optimiser holds; all others are frozen meanwhile.

    Lambda-equitune learns with the model frozen (Basu et al., NeurIPS 2023, section 4) when the
    optimiser holds the weight network's parameters, jointly when it holds all. Submodules whose
    parameters are all frozen run in ``eval`` mode. Afterwards, also after Ctrl-C, modes and
    ``requires_grad`` are as before.

    Args:
        model: What is trained, for instance of `lambda_equitune`.
        batches: Pairs (input, target); iterated over again until ``steps`` are done.
        loss: Of an output and a target.
        optimizer: Holds the parameters to train.
        steps: Optimiser steps; one pass over the batches when omitted.
        schedule: Of the learning rate, stepped after each step.
        progress: Show a progress bar.

    Returns:
        The loss of each step, before it.

    Raises:
        ValueError: If the optimiser holds none of the model's parameters, there is no batch,
            ``steps`` is negative, or the loss is not finite; the message names the step.

    >>> import equicore
    >>> flip = equicore.Permutation(equicore.cyclic(2), [[0, 1], [1, 0]])
    >>> weight = equicore.MLPWeight((2,))
    >>> model = equicore.lambda_equitune(nn.Linear(2, 2), flip, flip, weight)
    >>> batches = [(torch.randn(8, 2), torch.randn(8, 2))]
    >>> adam = torch.optim.Adam(weight.parameters())
    >>> losses = fit(model, batches, nn.functional.mse_loss, adam, steps=5, progress=False)
    """
    from tqdm import tqdm

    if steps is not None and steps < 0:
        raise ValueError(f"steps is a number of optimiser steps; got {steps}")
    losses: list[float] = []
    with (
        _training_only(model, optimizer),
        tqdm(total=_length(batches, steps), unit="step", disable=not progress) as bar,
    ):
        for x, target in _repeated(batches, steps):
            losses.append(_step(model, x, target, loss, optimizer, len(losses)))
            if schedule is not None:
                schedule.step()
            bar.set_postfix(loss=f"{losses[-1]:.3g}", refresh=False)
            bar.update()
    return losses


def squared_error(actual: Any, wanted: Any) -> Tensor:
    """The squared norm of the difference, averaged over the batch; summed over a tree's tensors."""
    pairs = zip(leaves(actual), leaves(wanted), strict=True)
    differences = [a - w for a, w in pairs]
    real = [torch.view_as_real(d) if d.is_complex() else d for d in differences]
    return torch.stack([d.square().sum() / d.shape[0] for d in real]).sum()


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


@dataclass(frozen=True)
class Selection:
    """The weight of the smallest validation loss, its model, and all (weight, loss) tried."""

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
        ValueError: If the range or the number of trials is not usable, or no loss is finite.
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


def _step(
    model: nn.Module,
    x: Any,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    number: int,
) -> float:
    """One step of the optimiser; the loss before it."""
    values: list[float] = []

    def evaluate() -> float:
        optimizer.zero_grad()
        value = loss(model(x), target)
        if not value.isfinite():
            raise ValueError(f"the loss is {float(value.detach())} in step {number}")
        value.backward()
        values.append(float(value.detach()))
        return values[-1]

    optimizer.step(evaluate)
    return values[0]


def _repeated(batches: Iterable[Any], steps: int | None) -> Iterator[Any]:
    done = 0
    while steps is None or done < steps:
        before = done
        for batch in batches:
            yield batch
            done += 1
            if done == steps:  # now, as asking for another batch would use it up
                return
        if done == before:
            raise ValueError(
                f"there is no batch after {done} steps: batches must be an iterable that can be "
                "started again, such as a DataLoader or a list"
            )
        if steps is None:
            return


def _length(batches: Iterable[Any], steps: int | None) -> int | None:
    if steps is not None:
        return steps
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset has a __len__ that raises
        return None


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Whatever happens, all submodules are in the mode that they were in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _training_only(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Train mode and gradients where the optimiser works, eval mode and none elsewhere."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = list(model.parameters())
    if not any(id(p) in trained for p in parameters):
        raise ValueError("the optimiser holds none of the model's parameters")
    required = [p.requires_grad for p in parameters]
    try:
        with kept_modes(model):
            model.train()
            for module in model.modules():
                own = list(module.parameters())
                if own and not any(id(p) in trained for p in own):
                    module.eval()
            for p in parameters:
                p.requires_grad_(id(p) in trained)
            yield
    finally:
        for p, needed in zip(parameters, required, strict=True):
            p.requires_grad_(needed)
