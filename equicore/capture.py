"""Looking into a model while it runs, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn


def run_and_capture(submodule: nn.Module, name: str, run: Callable[[], Any]) -> tuple[Any, Any]:
    """The result of ``run()``, and what a submodule returned while it ran.

    Args:
        submodule: Whose output to keep; the last one if it is called several times.
        name: What the message calls it.
        run: Runs the model.

    Raises:
        ValueError: If the submodule was not called.
    """
    captured: list[Any] = []
    # a hook that stays would be copied by deepcopy, bound to this model's list
    handle = submodule.register_forward_hook(lambda _module, _inputs, y: captured.append(y))
    try:
        result = run()
    finally:
        handle.remove()
    if not captured:
        raise ValueError(f"the submodule {name!r} was not called in the model's forward")
    return result, captured[-1]


def frozen_statistics(
    model: nn.Module,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for a checkpoint's forward and recomputation: the second spares BatchNorm.

    Without it, running statistics would be updated twice by every training step.
    """
    return nullcontext(), _spared(model)


@contextmanager
def _spared(model: nn.Module) -> Iterator[None]:
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    # without tracking, a norm in training mode still normalises by the batch's own statistics
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
