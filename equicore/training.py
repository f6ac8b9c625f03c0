"""Training with any optimiser and any iterable of batches, part of a model or all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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

    Lambda-equitune learns on a task's loss with the model frozen (Basu et al., NeurIPS 2023,
    section 4) when the optimiser holds the weight network's parameters, jointly when it holds all.
    Submodules without a trained parameter run in ``eval`` mode. Modes and ``requires_grad`` are as
    before afterwards, also after Ctrl-C, when what was learned so far is kept.

    Args:
        model: What is trained, for instance of `lambda_equitune`.
        batches: Pairs (input, target); iterated over again until ``steps`` are done.
        loss: Of an output and a target.
        optimizer: Holds the parameters to train.
        steps: Optimiser steps; one pass over the batches when omitted.
        schedule: Of the learning rate, stepped after each step.
        progress: Show a progress bar.

    Returns:
        The loss of each step.

    Raises:
        ValueError: If the optimiser holds none of the model's parameters, there is no batch, or
            the loss is not finite; the message names the step.

    >>> import equicore
    >>> flip = equicore.Permutation(equicore.cyclic(2), [[0, 1], [1, 0]])
    >>> weight = equicore.MLPWeight((2,))
    >>> model = equicore.lambda_equitune(nn.Linear(2, 2), flip, flip, weight)
    >>> batches = [(torch.randn(8, 2), torch.randn(8, 2))]
    >>> adam = torch.optim.Adam(weight.parameters())
    >>> losses = fit(model, batches, nn.functional.mse_loss, adam, steps=5, progress=False)
    """
    from tqdm import tqdm

    losses: list[float] = []
    with (
        _training_only(model, optimizer),
        tqdm(total=_length(batches, steps), unit="step", disable=not progress) as bar,
    ):
        for x, target in _repeated(batches, steps):
            optimizer.zero_grad()
            value = loss(model(x), target)
            if not value.isfinite():
                raise ValueError(f"the loss is {float(value)} in step {len(losses)}")
            value.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            losses.append(float(value.detach()))
            bar.set_postfix(loss=f"{losses[-1]:.3g}", refresh=False)
            bar.update()
    return losses


def _repeated(batches: Iterable[Any], steps: int | None) -> Iterator[Any]:
    done = 0
    while steps is None or done < steps:
        before = done
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1
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
    return len(batches) if isinstance(batches, Sized) else None


@contextmanager
def _training_only(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Train mode and gradients where the optimiser works, eval mode and none elsewhere."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = list(model.parameters())
    if not any(id(p) in trained for p in parameters):
        raise ValueError("the optimiser holds none of the model's parameters")
    modes = {module: module.training for module in model.modules()}
    required = [p.requires_grad for p in parameters]
    try:
        model.train()
        for module in model.modules():
            own = list(module.parameters())
            if own and not any(id(p) in trained for p in own):
                module.eval()
        for p in parameters:
            p.requires_grad_(id(p) in trained)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p, needed in zip(parameters, required, strict=True):
            p.requires_grad_(needed)
