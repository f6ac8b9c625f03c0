"""Where the batch is: on which axes of the tensors that a model takes and returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equicore.representations.base import Action, is_traced
from equicore.trees import entries, leaves, tree_map, tree_map_along

BatchDim = int | tuple[Any, Any]
"""The axis of the batch in all tensors that a model takes and returns; or a pair, of the input and
of the output, each an axis, or a tree of axes as the input's or the output's."""


class BatchAxes:
    """Moves the batch to axis 0 and back.

    Args:
        batch_dim: Where it is.

    Raises:
        TypeError: If that is neither an axis nor a pair, of the input and of the output.
    """

    def __init__(self, batch_dim: BatchDim) -> None:
        self.given = batch_dim
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

    def output_first(self, y: Any, samples: int, who: str = "the model returned") -> Any:
        """What a model returned for so many samples, with its batch on axis 0.

        Raises:
            ValueError: If one axis is said for all tensors, and in one of them axis 0 is as long.
        """
        if self.plain:
            return y

        def move(t: Tensor, dim: int) -> Tensor:
            if not -t.ndim <= dim < t.ndim:
                raise ValueError(
                    f"{who} shape {tuple(t.shape)}, which has no axis {dim}; where "
                    "input and output differ batch_dim is a pair, of the input and of the output, "
                    f"as in batch_dim=({dim}, 0)"
                )
            # a graph of any size cannot ask for sizes
            elsewhere = not self.pair and dim % t.ndim != 0 and not is_traced()
            if elsewhere and t.shape[0] == t.shape[dim] == samples:
                raise ValueError(
                    f"for {samples} samples {who} shape {tuple(t.shape)}, which may "
                    f"have them on axis 0 or {dim}: say where they are in the input and in the "
                    f"output, as in batch_dim=({dim}, 0) or batch_dim=({dim}, {dim})"
                )
            return t.movedim(dim, 0)

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


def check_batch(x: Any) -> int:
    """The number of samples of an input with its batch on axis 0, or ValueError."""
    if isinstance(x, Tensor):
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(f"empty batch: got an input of shape {tuple(x.shape)}")
        return x.shape[0]
    shapes: list[tuple[int, ...]] = []
    for name, entry in entries(x).items():
        try:
            shapes += [tuple(leaf.shape) for leaf in leaves(entry)]
        except TypeError as error:
            raise TypeError(
                f"the entry {name!r} of the input holds more than tensors: {error}. Leave it out"
            ) from error
    if not shapes:
        raise ValueError(f"the input holds no tensor: {x!r}")
    if () in shapes or any(shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"the tensors of the input have different batches: shapes {shapes}")
    if shapes[0][0] == 0:
        raise ValueError(f"empty batch: got an input of shapes {shapes}")
    return shapes[0][0]


def check_recurrent(model: Any, output_rep: Action, axes: BatchAxes) -> None:
    """Raise ValueError if a recurrent network of torch has its batch elsewhere than is said."""
    if not isinstance(model, nn.RNNBase) or not axes.plain:
        return
    kind = type(model).__name__
    if not model.batch_first:
        raise ValueError(
            f"this {kind} takes (time, batch, features), or is made with batch_first: give "
            "batch_dim=1"
        )
    if 1 in output_rep.names:
        state = "[1, 1]" if isinstance(model, nn.LSTM) else "1"
        raise ValueError(
            f"the state of this {kind} is (layers, batch, hidden), also with batch_first: give "
            f"batch_dim=(0, [0, {state}])"
        )


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
