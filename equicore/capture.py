"""Looking into a model while it runs, without changing it."""

from __future__ import annotations

import difflib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn


def run_and_capture(
    submodule: nn.Module, name: str, run: Callable[[], Any], copy: bool = False
) -> tuple[Any, Any]:
    """The result of ``run()``, and what a submodule returned in it, at last if called repeatedly.

    A copy stays as it was returned, also where later layers change it in place.

    Raises:
        ValueError: If the submodule was not called.
    """
    captured: list[Any] = []
    hooks = submodule._forward_hooks
    # a hook for the time of the run, in a dict of its own: a handle of register_forward_hook cannot
    # be traced by torch.compile, and its dict is shared by the replicas of DataParallel
    place = -1 - len(hooks)  # handles count from 0; nested runs add one each
    submodule._forward_hooks = OrderedDict(hooks)
    submodule._forward_hooks[place] = lambda _module, _inputs, y: captured.append(
        y.clone() if copy and isinstance(y, Tensor) else y
    )
    try:
        result = run()
    finally:
        submodule._forward_hooks = hooks
    if not captured:
        raise ValueError(f"the submodule {name!r} was not called in the model's forward")
    return result, captured[-1]


class Observed(nn.Module):
    """A model that also returns what some of its submodules returned.

    Args:
        model: Any model.
        features: Names of its submodules.

    Raises:
        TypeError: If the names are one string, and no sequence of them.
        ValueError: If there is no such submodule; one of a similar name is proposed. Or, when it
            runs, if one was not called.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> seen = Observed(model, ["0"])(torch.rand(5, 1, 3, 3))
    >>> {name: tuple(value.shape) for name, value in seen.items()}
    {'output': (5, 2), '0': (5, 4, 1, 1)}
    """

    OUTPUT = "output"

    def __init__(self, model: nn.Module, features: Sequence[str]) -> None:
        super().__init__()
        if isinstance(features, str):
            raise TypeError(f"features are names of submodules; got the one string {features!r}")
        for name in features:
            check_submodule(model, name)
        if self.OUTPUT in features:
            raise ValueError(
                f"a submodule that is observed cannot be called {self.OUTPUT!r}, as the model's "
                "output is"
            )
        self.model = model
        self.features = tuple(features)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run the model once: its ``output``, and the submodules' by their names."""
        captured: dict[str, Any] = {}

        def looking(run: Callable[[], Any], name: str) -> Any:
            output, captured[name] = run_and_capture(
                self.model.get_submodule(name), name, run, copy=True
            )
            return output

        run = functools.partial(self.model, *args, **kwargs)
        for name in self.features:
            run = functools.partial(looking, run, name)
        output = run()
        return {self.OUTPUT: output, **{name: captured[name] for name in self.features}}


def check_submodule(model: Any, name: str) -> None:
    """Raise ValueError, which proposes similar names, if a model has no submodule of a name."""
    names = [n for n, _ in model.named_modules() if n] if isinstance(model, nn.Module) else []
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.5)
        # the last part may be right, and the way to it not
        near += [n for n in names if n.endswith("." + name) and n not in near][:3]
        raise ValueError(
            f"features names a submodule of the model; {name!r} is none of {names[:20]}"
            + (" ..." if len(names) > 20 else "")
            + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
        )


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Whatever happens, all submodules are in the mode that they were in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def frozen_statistics(
    model: nn.Module,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for a checkpoint's forward and recomputation: the second spares BatchNorm.

    Without it, running statistics would be updated twice by every training step.
    """
    return nullcontext(), _Spared(model)


class _Spared(AbstractContextManager[None]):
    """Lends the norms copies of their running statistics, which are thrown away on leaving.

    They still normalise by the batch and save the same tensors, as checkpoints demand. It can be
    entered again, as a graph that is kept is computed again in every backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.kept = [
            (module, module._buffers)
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        ]
        for module, buffers in self.kept:
            module._buffers = {
                name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()
            }

    def __exit__(self, *_: object) -> None:
        for module, buffers in self.kept:
            module._buffers = buffers
