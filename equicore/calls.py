"""How a model is called: which arguments the group acts on, and where their samples are.

A representation of several arguments, a `Tree`, names them: by keyword, which an argument given by
its place has too if the model's signature tells it, or by place, 0 for the first. All other
arguments reach the model as they are.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equicore.trees import entries, leaves, tree_map, tree_map_along

Model = nn.Module | Callable[..., Any]

BatchDim = int | tuple[Any, Any]
"""The axis of the batch in all tensors that a model takes and returns; or a pair, of the input and
of the output, each an axis, or a tree of axes as the input's or the output's."""

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
        wrapped = isinstance(inner, Binding)  # a symmetrised model takes what its model takes
        self.parameters = inner.parameters if wrapped else _parameters(model)

    def __call__(self, model: Model, x: Any, args: Any, kwargs: dict[str, Any]) -> Call:
        """The input and the model as a function of it, for a call model(x, *args, **kwargs).

        Raises:
            TypeError: If there is no input among the arguments.
        """
        alone = not (args or kwargs)
        if alone and isinstance(x, Tensor) and not self.names:
            return Call(x, model, {})
        given = (x, *args) if x is not None or args else ()
        named = {i: self._name(i) for i in range(len(given))}
        places = {i: name for i, name in named.items() if name is not None}
        keywords = [name for name in self.names if name in kwargs]
        whole = not (isinstance(x, Tensor) and self.names) and not keywords and {*places} <= {0}
        if x is not None and whole:  # the first argument, which may be a tree itself
            if alone:
                return Call(x, model, {})
            others = dict(enumerate(args, start=1)) | kwargs
            return Call(x, lambda inputs: model(inputs, *args, **kwargs), others)
        if not places and not keywords:
            raise TypeError(self._no_input(x, kwargs))

        def run(inputs: Any) -> Any:
            found = entries(inputs)
            positional = [
                found[places[i]] if i in places else value for i, value in enumerate(given)
            ]
            others = {name: found[name] if name in keywords else v for name, v in kwargs.items()}
            return model(*positional, **others)

        values = {name: kwargs[name] for name in keywords}
        values |= {name: given[i] for i, name in places.items()}
        others = {i: value for i, value in enumerate(given) if i not in places}
        others |= {name: value for name, value in kwargs.items() if name not in keywords}
        # an argument that is not given is None for the representation, and not given to the model
        return Call({name: values.get(name) for name in self.names}, run, others)

    def _name(self, place: int) -> Any:
        """What the representation calls the argument at a place, None if it does not name it."""
        if place in self.names:
            return place
        named = place < len(self.parameters) and self.parameters[place] in self.names
        return self.parameters[place] if named else None

    def _no_input(self, x: Any, kwargs: dict[str, Any]) -> str:
        if isinstance(x, Tensor):
            return (
                f"input_rep is a Tree of {list(self.names)}, and the first argument is one tensor, "
                "which none of these names; give it by keyword, or name it by its place, 0"
            )
        if self.names:
            return (
                f"no input: none of the keywords {list(self.names)} of input_rep is given; got "
                f"{list(kwargs)}"
            )
        return (
            "no input: give it as the first argument, or make input_rep a Tree of the "
            f"keywords that the group acts on; got the keywords {list(kwargs)}"
        )


class BatchAxes:
    """Moves the batch to axis 0 and back.

    Args:
        batch_dim: Where it is.

    Raises:
        TypeError: If that is neither an axis nor a pair, of the input and of the output.
    """

    def __init__(self, batch_dim: BatchDim) -> None:
        self.pair = isinstance(batch_dim, tuple)
        if isinstance(batch_dim, tuple):
            if len(batch_dim) != 2:
                raise TypeError(_wrong_axes(batch_dim))
            self.of_input, self.of_output = batch_dim
        else:
            self.of_input = self.of_output = batch_dim
        self.inputs, self.outputs = _axes(self.of_input), _axes(self.of_output)
        self.plain = self.inputs == self.outputs == {0}

    def input_first(self, x: Any) -> Any:
        """An input with its batch on axis 0."""
        return x if self.plain else tree_map_along(lambda t, d: t.movedim(d, 0), x, self.of_input)

    def input_back(self, x: Any) -> Any:
        """An input, whose batch is on axis 0, as the model takes it."""
        return x if self.plain else tree_map_along(lambda t, d: t.movedim(0, d), x, self.of_input)

    def output_first(self, y: Any, samples: int) -> Any:
        """What a model returned for so many samples, with its batch on axis 0.

        Raises:
            ValueError: If one axis is said for all tensors, and in one of them axis 0 is as long.
        """
        if self.plain:
            return y

        def move(t: Tensor, dim: int) -> Tensor:
            if not self.pair and 0 < dim < t.ndim and t.shape[0] == t.shape[dim] == samples:
                raise ValueError(
                    f"for {samples} samples the model returned shape {tuple(t.shape)}, which may "
                    f"have them on axis 0 or {dim}: say where they are in the input and in the "
                    f"output, as in batch_dim=({dim}, 0) or batch_dim=({dim}, {dim})"
                )
            return t.movedim(dim, 0) if -t.ndim <= dim < t.ndim else t  # refused by its shape

        return tree_map_along(move, y, self.of_output)

    def output_back(self, y: Any) -> Any:
        """An output, whose batch is on axis 0, as the model returns it."""
        return y if self.plain else tree_map_along(lambda t, d: t.movedim(0, d), y, self.of_output)

    def features_first(self, features: Any, samples: int) -> Any:
        """What a submodule returned, with its batch on axis 0: where the input or output has it."""
        if self.plain:
            return features

        def move(t: Tensor) -> Tensor:
            axes = [d for d in self.inputs | self.outputs if -t.ndim <= d < t.ndim]
            found = {d % t.ndim for d in axes if t.shape[d] == samples}
            if len(found) > 1:
                raise ValueError(
                    f"for {samples} samples the features have the shape {tuple(t.shape)}, of which "
                    f"each of the axes {sorted(found)} may be that of the samples; change the "
                    "size of the batch, or take the features of another submodule"
                )
            return t.movedim(found.pop(), 0) if found else t  # refused by its shape

        return tree_map(move, features)


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
        for path, t in tensors_in(others)
        if any(t.ndim > abs(dim) and t.shape[dim] == batch for dim in axes)
    ]
    if suspects and order > 1:
        warnings.warn(
            f"{', '.join(suspects)}: a row for each of {batch} samples, but passed as it is to the "
            f"model, which is given |G| = {order} times as many samples. What belongs to the "
            "samples must be named: make input_rep a Tree of all such arguments (Trivial(group) "
            "for those that no element changes). What all samples share is better bound to the "
            "model beforehand, as in functools.partial(model, name=tensor), which is not warned of",
            stacklevel=_callers_level(),
        )


def tensors_in(others: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors inside arguments, in trees and in the attributes of objects, by their paths."""
    seen: set[int] = set()

    def look(value: Any, path: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield path, value
            return
        if depth == 0 or id(value) in seen or isinstance(value, (str, bytes, type, nn.Module)):
            return
        seen.add(id(value))
        if isinstance(value, Mapping):
            children = {f"{path}[{name!r}]": child for name, child in value.items()}
        elif isinstance(value, (list, tuple, set)):
            children = {f"{path}[{i}]": child for i, child in enumerate(value)}
        else:
            attributes = getattr(value, "__dict__", {})
            children = {f"{path}.{name}": child for name, child in attributes.items()}
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
        self.before = self._contents() if self.watched else {}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.watched or kind is not None:
            return
        after = self._contents()
        if changed := [p for p in self.before | after if self.before.get(p) != after.get(p)]:
            raise ValueError(
                f"the model changes an argument while it runs, {changed[0]}, and with "
                f"{self.option} it runs on a part of the group at a time, each of which would go "
                f"on from what the others left; leave {self.option} out, or pass no state (such "
                "as past_key_values)"
            )

    def _contents(self) -> dict[str, Any]:
        """Which tensors the arguments hold, and in which versions."""
        return {
            path: (id(t), None if t.is_inference() else t._version)
            for path, t in tensors_in(self.others)
        }


def check_batch(x: Any) -> int:
    """The number of samples of an input with its batch on axis 0, or ValueError."""
    if isinstance(x, Tensor):
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(f"empty batch: got an input of shape {tuple(x.shape)}")
        return x.shape[0]
    shapes = [tuple(leaf.shape) for leaf in leaves(x)]
    if not shapes:
        raise ValueError(f"the input holds no tensor: {x!r}")
    if () in shapes or any(shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"the tensors of the input have different batches: shapes {shapes}")
    if shapes[0][0] == 0:
        raise ValueError(f"empty batch: got an input of shapes {shapes}")
    return shapes[0][0]


def _parameters(model: Model) -> tuple[str, ...]:
    """The names of the parameters of a model that may be given by place, in order."""
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in
        return ()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _axes(dims: Any) -> set[int]:
    """All axes of a tree of them."""
    if isinstance(dims, int) and not isinstance(dims, bool):
        return {dims}
    try:
        found = entries(dims)
    except TypeError as error:
        raise TypeError(_wrong_axes(dims)) from error
    return {dim for child in found.values() for dim in _axes(child)}


def _wrong_axes(given: Any) -> str:
    return (
        "batch_dim is the axis of the batch, or a pair: that of the input and that of the output, "
        f"each an integer or a tree of them; got {given!r}"
    )


def _callers_level() -> int:
    """How many frames are between `warn_of_rows` and the first outside of torch and equicore."""
    inside = tuple(os.path.dirname(m.__file__ or "") + os.sep for m in (torch, sys.modules[_HERE]))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    return level


_HERE = __name__.partition(".")[0]
