"""Training of a part of a model or all of it, with any optimiser on any iterable of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from equicore.capture import kept_modes


class Diverged(ValueError):
    """A loss is not finite."""


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    penalty: Callable[[Any, Any], Tensor] | None = None,
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
        penalty: Of an input and the model's output for it, added to the loss; for instance a
            multiple of an `EquivarianceLoss`.
        steps: Optimiser steps; one pass over the batches when omitted.
        schedule: Of the learning rate, stepped after each step.
        progress: Show a progress bar.

    Returns:
        The loss of each step, with its penalty, before it.

    Raises:
        ValueError: If the optimiser holds none of the model's parameters, there is no batch, or
            ``steps`` is negative.
        Diverged: If the loss is not finite; the message names the step.

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
            losses.append(_step(model, x, target, loss, penalty, optimizer, len(losses)))
            if schedule is not None:
                schedule.step()
            bar.set_postfix(loss=f"{losses[-1]:.3g}", refresh=False)
            bar.update()
    return losses


def _step(
    model: nn.Module,
    x: Any,
    target: Any,
    loss: Callable[[Any, Any], Tensor],
    penalty: Callable[[Any, Any], Tensor] | None,
    optimizer: torch.optim.Optimizer,
    number: int,
) -> float:
    """One step of the optimiser; the loss before it."""
    values: list[float] = []

    def evaluate() -> float:
        optimizer.zero_grad()
        output = model(x)
        value = loss(output, target)
        if penalty is not None:
            value = value + penalty(x, output)
        if not value.isfinite():
            raise Diverged(f"the loss is {float(value.detach())} in step {number}")
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
