"""How a model is called: which of its arguments the group acts on.

A representation of several arguments, a `Tree`, names them: by keyword, which an argument given by
its place has too if the model's signature tells it, or by place, 0 for the first. All other
arguments reach the model as they are.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equicore.trees import entries

Model = nn.Module | Callable[..., Any]

DEPTH = 6
"""How far a tensor inside an argument is looked for."""


class Call(NamedTuple):
    """A model with all arguments but its input.

    Attributes:
        x: The input, a batch (B, ...) or a tree of batches.
        run: The model as a function of the input alone.
        others: The arguments that the group does not act on, by name or place.
    """

    x: Any
    run: Callable[[Any], Any]
    others: dict[Any, Any]


class Binding:
    """Finds the input of a model among the arguments of a call.

    Args:
        model: What is called.
        names: The arguments that the input's representation names; none if it is one tensor's.
    """

    def __init__(self, model: Model, names: tuple[Any, ...]) -> None:
        self.names = names
        inner = getattr(model, "_binding", None)
        self.parameters: tuple[str | None, ...]
        if isinstance(inner, Binding):  # a symmetrised model takes what its model takes
            self.parameters = inner.parameters
        else:
            self.parameters = _parameters(model)

    def __call__(self, model: Model, x: Any, args: Any, kwargs: dict[str, Any]) -> Call:
        """The input and the model as a function of it, for a call model(x, *args, **kwargs).

        Raises:
            TypeError: If there is no input among the arguments, or it cannot be told which of
                them it is.
        """
        alone = len(args) == len(kwargs) == 0
        if alone and isinstance(x, Tensor) and not self.names:
            return Call(x, model, {})
        given: dict[Any, Any] = dict(enumerate((x, *args) if x is not None or args else ()))
        given |= kwargs
        named = {key: self._name(key, value) for key, value in given.items()}
        named = {key: name for key, name in named.items() if name is not None}
        if x is not None and self._is_whole(x, named):
            if alone:
                return Call(x, model, {})
            others = {key: value for key, value in given.items() if key != 0}
            return Call(x, lambda inputs: model(inputs, *args, **kwargs), others)
        self._check(given, named)

        def run(inputs: Any) -> Any:
            found = entries(inputs)
            values = {k: found[named[k]] if k in named else value for k, value in given.items()}
            return model(
                *(value for key, value in values.items() if isinstance(key, int)),
                **{key: value for key, value in values.items() if isinstance(key, str)},
            )

        # an argument that is not given is None for the representation, and not given to the model
        x = dict.fromkeys(self.names) | {name: given[key] for key, name in named.items()}
        return Call(x, run, {key: value for key, value in given.items() if key not in named})

    def _name(self, key: int | str, value: Any) -> Any:
        """What the representation calls an argument, of a place or keyword; None if nothing."""
        if key in self.names:
            return key
        other: Any = None
        if isinstance(key, int):
            other = self.parameters[key] if key < len(self.parameters) else None
        elif key in self.parameters and isinstance(value, Tensor):
            other = self.parameters.index(key)
        return other if other is not None and other in self.names else None

    def _is_whole(self, x: Any, named: dict[Any, Any]) -> bool:
        """Whether the first argument is the input itself, and not one of several."""
        if not self.names:
            return True
        if isinstance(x, Tensor) or any(
            key != 0 and (isinstance(key, int) or key in self.names) for key in named
        ):
            return False
        try:
            found = entries(x)
        except TypeError:
            return not named
        return not named or all(name in found for name in self.names)

    def _check(self, given: dict[Any, Any], named: dict[Any, Any]) -> None:
        """Raise TypeError if no argument is named, or one may be but it cannot be told."""
        if not self.names:
            raise TypeError(
                "no input: give it as the first argument, or make input_rep a Tree of the "
                f"keywords that the group acts on; got the keywords {list(given)}"
            )
        unknown = [
            key
            for key, value in given.items()
            if isinstance(key, int) and key not in named and isinstance(value, Tensor)
            if key >= len(self.parameters) or self.parameters[key] is None
        ]
        if unknown and {*self.names} - {*named.values()}:
            raise TypeError(
                f"input_rep is a Tree of {list(self.names)}, and argument {unknown[0]} is a "
                "tensor of which it cannot be told whether it is one of them; give it by keyword, "
                f"or name it by its place, {unknown[0]}"
            )
        if not named:
            raise TypeError(
                f"no input: none of the arguments {list(self.names)} of input_rep is given; got "
                f"{list(given)}"
            )


class Keywords(nn.Module):
    """A model that takes its inputs by keywords, as one that takes a dict of them.

    Checks, penalties and `fit_familiarity` call a model with one argument; with this around it,
    they serve models of Hugging Face.

    Args:
        model: Called as ``model(**batch)``.

    >>> from equicore import Tree, Trivial, cyclic, equitune
    >>> same = Trivial(cyclic(2))
    >>> total = equitune(Keywords(lambda a, b: a + b), Tree({"a": same, "b": same}), same)
    >>> total({"a": torch.ones(3), "b": torch.ones(3)})
    tensor([2., 2., 2.])
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, **kwargs: Any) -> Any:
        """The model's output for a dict of inputs."""
        return self.model(**batch, **kwargs)


def warn_of_rows(others: Mapping[Any, Any], batch: int, axes: set[int], order: int) -> None:
    """Warn, at the caller's line, of arguments that look like a part of the input."""
    suspects = [
        path
        for path, t in values_in(others)
        if isinstance(t, (Tensor, np.ndarray))
        if any(-t.ndim <= dim < t.ndim and t.shape[dim] == batch for dim in {0, *axes})
    ]
    if suspects and order > 1:
        warnings.warn(
            f"{', '.join(suspects)}: a row for each of {batch} samples, but passed as it is to the "
            f"model, which is given |G| = {order} times as many samples. What belongs to the "
            "samples must be named: make input_rep a Tree of all such arguments (Trivial(group) "
            "for those that no element changes). What all samples share, as texts that each image "
            "is compared with, is better bound to the model beforehand, as in "
            "functools.partial(model, name=tensor), which is not warned of",
            stacklevel=_callers_level(),
        )


def values_in(others: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Tensors, arrays and numbers inside arguments, in trees and attributes, by their paths."""
    seen: set[int] = set()

    def look(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (Tensor, np.ndarray, int, float)):
            yield path, value
            return
        if depth == 0 or id(value) in seen or isinstance(value, (str, bytes, type, nn.Module)):
            return
        seen.add(id(value))
        if isinstance(value, Mapping):
            children = {f"{path}[{name!r}]": child for name, child in value.items()}
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            if value and isinstance(next(iter(value)), (str, int, float)):
                return  # long, and no state
            children = {f"{path}[{i}]": child for i, child in enumerate(value)}
        else:
            slots = getattr(type(value), "__slots__", ())
            names = [*getattr(value, "__dict__", {}), *((slots,) if type(slots) is str else slots)]
            found = {name: getattr(value, name, None) for name in names}
            children = {f"{path}.{name}": child for name, child in found.items()}
        for inner, child in children.items():
            yield from look(child, inner, depth - 1)

    for name, value in others.items():
        yield from look(value, name if isinstance(name, str) else f"argument {name}", DEPTH)


class Unchanged:
    """The time in which a model must not change its arguments.

    Args:
        others: The arguments that the group does not act on.
        option: Of `Symmetrized`, by which the model runs on a part of the group at a time.

    Raises:
        ValueError: On leaving, if the model has changed one.
    """

    def __init__(self, others: Mapping[Any, Any], option: str) -> None:
        self.others, self.option = others, option

    def __enter__(self) -> None:
        self.watched = bool(self.others) and not torch.compiler.is_compiling()
        found = values_in(self.others) if self.watched else ()
        self.before = {path: (value, _kept(value)) for path, value in found}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.watched or kind is not None:
            return
        after = dict(values_in(self.others))
        if changed := [p for p in self.before | after if not self._same(p, after)]:
            raise ValueError(
                f"the model changes an argument while it runs, {changed[0]}, and with "
                f"{self.option} it runs on a part of the group at a time, each of which would go "
                f"on from what the others left; leave {self.option} out, or pass no state (such "
                "as past_key_values)"
            )

    def _same(self, path: str, after: dict[str, Any]) -> bool:
        """Whether what is at a path is what was there."""
        if path not in self.before or path not in after:
            return False
        (value, known), now = self.before[path], after[path]
        if isinstance(value, Tensor) and isinstance(known, int):
            return value is now and value._version == known
        if isinstance(value, (Tensor, np.ndarray)):
            both_nan = (value != value) & (known != known)
            return value is now and bool(((value == known) | both_nan).all())
        return value is now or bool(value == now)


def _kept(value: Any) -> Any:
    """What tells later whether a value has changed: its version, or what it holds."""
    if isinstance(value, Tensor):
        # of tensors of the inference mode there are no versions
        return value.clone() if value.is_inference() else value._version
    return value.copy() if isinstance(value, np.ndarray) else value


def unbound(model: Model) -> tuple[Model, Callable[[Model], Model]]:
    """A model that is a module, and what calls it: of a `functools.partial` the module inside.

    Else a module's parameters, its state and its mode would be out of reach.
    """
    if isinstance(model, functools.partial) and isinstance(model.func, nn.Module):
        args, keywords = model.args, model.keywords
        return model.func, lambda module: functools.partial(module, *args, **keywords)
    return model, _itself


def _itself(model: Model) -> Model:
    return model


def _parameters(model: Model) -> tuple[str | None, ...]:
    """The names of the parameters that may be given by place, in order; None if not by keyword."""
    if isinstance(model, functools.partial):
        inner = _parameters(model.func)[len(model.args) :]
        # what is bound by keyword, and what comes after it, cannot be given by place
        return tuple(itertools.takewhile(lambda name: name not in model.keywords, inner))
    if isinstance(model, nn.Module):
        for name in ("_orig_mod", "module"):  # what torch.compile and parallel models wrap
            if isinstance(inner_model := getattr(model, name, None), nn.Module):
                return Binding(inner_model, ()).parameters
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in
        return ()
    return tuple(
        None if p.kind is p.POSITIONAL_ONLY else p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )


def _callers_level() -> int:
    """How many frames are between `warn_of_rows` and the first outside of torch and equicore."""
    inside = tuple(os.path.dirname(m.__file__ or "") + os.sep for m in (torch, sys.modules[_HERE]))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    return level


_HERE = __name__.partition(".")[0]
