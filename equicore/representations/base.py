"""What acts: the verbs `act`, `act_each`, `orbit` and `align`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equicore.groups import Group
from equicore.trees import leaves, tree_map

Elements = Any
"""Some elements: of a finite group integers, of a continuous one see `equicore.continuous`."""


class Tables(nn.Module):
    """A module that keeps tables of constants, as buffers that are made again wherever it moves.

    They have their types whatever the module is moved to, and their values after ``to_empty`` and
    on leaving the device ``meta``. They are not part of the ``state_dict``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tables: dict[str, NDArray[Any]] = {}

    def keep(self, name: str, table: NDArray[Any]) -> None:
        """Keep a copy of a table under a name."""
        table = np.array(table)
        if np.issubdtype(table.dtype, np.integer):  # the buffer has 8 bytes for each entry
            smallest = np.min_scalar_type(int(table.max(initial=0)))
            table = table.astype(smallest) if table.min(initial=0) >= 0 else table
        self._tables[name] = table
        self._place(torch.device("cpu"))

    def reset_parameters(self) -> None:
        """Make the tables again; FSDP calls this after it has made room for them."""
        self._place(self._device())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device = self._device()
        for name in self._tables:  # else .half().double() would leave them rounded
            self._buffers.pop(name)
        super()._apply(fn, recurse)
        self._place(fn(torch.zeros(1, device=device)).device)
        return self

    def _device(self) -> torch.device:
        name = next(iter(self._tables), None)
        buffer = None if name is None else self._buffers[name]
        return torch.device("cpu") if buffer is None else buffer.device

    def _place(self, device: torch.device) -> None:
        for name, table in self._tables.items():
            dtype: Any = None
            if np.issubdtype(table.dtype, np.integer):
                table, dtype = table.astype(np.int64), torch.int64
            elif table.dtype == np.float64 and device.type == "mps":  # which has no float64
                dtype = torch.float32
            self.register_buffer(name, torch.tensor(table, dtype=dtype, device=device), False)


class Action(Tables, ABC):
    """How the elements of a group act on a batch, each on a sample of its own.

    Base of the representations of finite groups, and of the actions of continuous ones
    (`equicore.continuous`). The latter define `act_each` alone; their elements are tensors, which
    have ``inverse()``, ``[]`` and ``len()``.

    Attributes:
        group: The finite group that acts; None where a continuous one does.
        axes: The axes that it mixes, counted from the end; 0 stands for the values themselves,
            which one that is not linear changes.
        names: Of the entries that it acts on, if it acts on trees.
    """

    group: Group | None = None
    axes: tuple[int, ...] = ()
    names: tuple[Any, ...] = ()

    @abstractmethod
    def act_each(self, elements: Elements, x: Any) -> Any:
        """Each sample transformed by an element of its own: ``elements[i] . x[i]``.

        Args:
            elements: One for each sample; of a finite group integers of shape (B,).
            x: Batch of shape (B, ...).

        Raises:
            ValueError: If they are not one for each sample, or an axis of x has another size.
            IndexError: If one is no element of the group.
        """

    def align_each(self, elements: Elements, y: Any) -> Any:
        """Undo an element of each sample's own: ``elements[i]^-1 . y[i]``, see `act_each`."""
        return self.act_each(elements.inverse(), y)

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        """All transformed batches g . x, the identity first.

        Args:
            x: Batch of shape (B, ...).
            elements: The elements g to use; all of them when omitted, if they are finitely many.

        Returns:
            Shape (n, B, ...) for n elements.
        """
        assert elements is not None
        return self.act_each(elements, tree_map(lambda t: t.expand(len(elements), *t.shape), x))

    def align(self, y: Any, elements: Elements | None = None) -> Any:
        """Undo each slice's element: slice i of the result is g^-1 . y[i] for the i-th element g.

        Args:
            y: One batch for each element, shape (n, B, ...).
            elements: The elements g; all of them when omitted, if they are finitely many.
        """
        assert elements is not None
        return self.act_each(elements.inverse(), y)

    def select(self, y: Any) -> Any:
        """What a model returned without what is not acted on, see `Tree`.

        Raises:
            TypeError: If it is a tree, and this acts on one tensor.
        """
        if self.one_tensor and not isinstance(y, Tensor):
            raise TypeError(
                f"the model returned {type(y).__name__}; make output_rep a Tree that names the "
                "entries to keep"
            )
        return y

    @property
    def one_tensor(self) -> bool:
        """Whether it acts on one tensor, and not on a tree."""
        return bool(self.axes) and not self.names


class Representation(Action):
    """How each element of a finite group acts on a batch of tensors.

    A subclass defines `act`, on a batch or a tree of batches; it may replace the other verbs by
    faster ones. One that acts on a tensor says which ``axes`` it mixes.

    Args:
        group: The group that acts.
    """

    group: Group
    inverse_elements: Tensor

    def __init__(self, group: Group) -> None:
        super().__init__()
        if not isinstance(group, Group):
            raise TypeError(f"{type(self).__name__} needs a Group to represent; got {group!r}")
        self.group = group
        self.keep("inverse_elements", group.inverses)

    @abstractmethod
    def act(self, g: int, x: Any) -> Any:
        """The transformed batch g . x.

        Args:
            g: An element of the group.
            x: Batch of shape (B, ...).

        Returns:
            A tensor of the same type, and the same shape if elements are to be stacked: a grid
            that is not square may be turned.
        """

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, but ``group``: plain JSON values and representations.

        Only what writes representations to files needs them, see `equicore.representations.plain`.

        Raises:
            NotImplementedError: If the kind of representation has no plain description.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it is written to a file: define arguments()"
        )

    def act_each(self, elements: Tensor, x: Any) -> Any:
        elements = check_elements(self.group, elements, leaves(x)[0].shape[0])
        order = elements.argsort()
        counts = torch.bincount(elements, minlength=len(self.group)).tolist()
        ends = np.cumsum([0, *counts])
        sorted_x = tree_map(lambda t: t[order], x)
        acted = [
            self.act(g, tree_map(lambda t, g=g: t[ends[g] : ends[g + 1]], sorted_x))
            for g in range(len(self.group))
            if counts[g]
        ]
        back = order.argsort()
        return tree_map(lambda t: t[back], self._together(torch.cat, acted, x)) if acted else x

    def align_each(self, elements: Tensor, y: Any) -> Any:
        return self.act_each(self.inverse_elements[check_elements(self.group, elements)], y)

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        return self._together(torch.stack, [self.act(g, x) for g in self._listed(elements)], x)

    def align(self, y: Any, elements: Elements | None = None) -> Any:
        listed = self._listed(elements)
        for leaf in leaves(y):
            self._check_slices(leaf.shape, len(listed))
        inverse = self.group.inverse
        slices = [tree_map(lambda t, i=i: t[i], y) for i in range(len(listed))]
        acted = [self.act(inverse(g), slices[i]) for i, g in enumerate(listed)]
        return self._together(torch.stack, acted, slices[0])

    def _together(self, join: Callable[[list[Tensor]], Tensor], acted: list[Any], x: Any) -> Any:
        """Batches that were acted on as one, or ValueError if some have another shape than x."""
        if isinstance(x, Tensor) and all(moved.shape == x.shape for moved in acted):
            return join(acted)  # the usual case, by fewer steps
        shapes = [[t.shape[1:] for t in leaves(moved)] for moved in acted]
        expected = [t.shape[1:] for t in leaves(x)]
        if wrong := [s for s in shapes if s != expected]:
            raise ValueError(
                f"{type(self).__name__} of {self.group.name} makes {_listed(wrong[0])} of samples "
                f"of shape {_listed(expected)}, so that they cannot be in one batch; a grid of "
                "which there are quarter turns must be square"
            )
        return tree_map(lambda *parts: join(list(parts)), acted[0], *acted[1:])

    def extra_repr(self) -> str:
        return "" if self.group is None else self.group.name

    def _listed(self, elements: Elements | None) -> Any:
        return range(len(self.group)) if elements is None else elements

    def _check_slices(self, shape: Sequence[int], expected: int) -> None:
        if len(shape) < 2 or shape[0] != expected:
            raise ValueError(
                f"align needs one slice for each of {expected} elements of {self.group}, "
                f"shape ({expected}, B, ...); got {tuple(shape)}"
            )

    def _check_axis(self, shape: Sequence[int], dim: int, size: int, stacked: bool = False) -> None:
        """Whether axis ``dim`` of a batch, or of a stack of batches, has a size."""
        if len(shape) - stacked < 1 - dim or shape[dim] != size:
            layout = f"a stack ({len(self.group)}, B, ...)" if stacked else "a batch (B, ...)"
            raise ValueError(
                f"{type(self).__name__} of {self.group.name} acts on axis {dim} of size {size} "
                f"of {layout}; got shape {tuple(shape)}"
            )


class Trivial(Representation):
    """Every element leaves every tensor as it is: the representation of invariant outputs.

    Args:
        group: The group; omitted where a continuous one acts.
    """

    def __init__(self, group: Group | None = None) -> None:
        if group is None:
            Action.__init__(self)
        else:
            super().__init__(group)

    @property
    def one_tensor(self) -> bool:
        return True

    def act(self, g: int, x: Tensor) -> Tensor:
        self.group.check_element(g)
        return x

    def act_each(self, elements: Elements, x: Tensor) -> Tensor:
        if self.group is not None:
            check_elements(self.group, elements, x.shape[0])
        return x

    def align_each(self, elements: Elements, y: Tensor) -> Tensor:
        return self.act_each(elements, y)

    def orbit(self, x: Tensor, elements: Elements | None = None) -> Tensor:
        """The batch once for each element."""
        # copies, as a model may change its input in place
        copies = x.expand(len(self._listed(elements)), *x.shape)
        return copies.clone(memory_format=torch.contiguous_format)

    def align(self, y: Tensor, elements: Elements | None = None) -> Tensor:
        self._check_slices(y.shape, len(self._listed(elements)))
        return y

    def arguments(self) -> dict[str, Any]:
        return {}


def _listed(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def check_dim(dim: int) -> int:
    """Return an axis counted from the end, or raise ValueError."""
    if dim >= 0:
        raise ValueError(
            f"dim is counted from the end (-1 is the last axis), so that it is the same with "
            f"and without batch axes; got {dim}"
        )
    return dim


def check_one_group(parts: Sequence[Action], what: str) -> Group | None:
    """The group of all parts, None for a continuous one; raise ValueError if they have several."""
    for part in parts:
        if part.group != parts[0].group:
            raise ValueError(f"{what} must be of one group; got {parts[0].group} and {part.group}")
    return parts[0].group


def orbit_size(group: Group | None, elements: Any | None) -> int:
    """How many elements an orbit has: all of a finite group, or those given of a continuous one.

    Raises:
        ValueError: If elements are given of a finite group, or none of a continuous one.
    """
    if group is not None and elements is None:
        return len(group)
    if group is not None:
        raise ValueError(f"elements are of a continuous group; {group} is finite, and has its own")
    if elements is None or len(elements) == 0:
        raise ValueError(
            "these representations are of a continuous group, of which finitely many elements are "
            "given, one at least, as random_motions(20, 3, seed=0) for checks; to make a model "
            "equivariant under it, use equicore.continuous.Canonicalized"
        )
    return len(elements)


def check_elements(group: Group, elements: Tensor, samples: int | None = None) -> Tensor:
    """Return an element for each sample, to index with, or raise ValueError or IndexError."""
    wrong = elements.ndim != 1 if samples is None else elements.shape != (samples,)
    if wrong or not is_integer(elements):
        size = "B" if samples is None else samples
        raise ValueError(
            f"expected one element for each of {size} samples, integers of shape ({size},); "
            f"got shape {tuple(elements.shape)} of {elements.dtype}"
        )
    elements = elements.long()  # torch takes uint8 for a mask, and 256 for its 0
    # negative ones would count from the end
    if not is_traced() and elements.numel():
        extremes = elements.aminmax()
        if elements.device.type == "cpu":
            for extreme in extremes:
                group.check_element(int(extreme))
        else:  # does not wait for the device
            inside = (extremes[0] >= 0) & (extremes[1] < len(group))
            torch._assert_async(inside, f"elements are 0..{len(group) - 1}")
    return elements


def is_traced() -> bool:
    """Whether nothing can depend on the values of tensors: in a graph, and in `torch.func`."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_integer(x: Tensor) -> bool:
    """Whether a tensor holds integers; bool does not count."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def some_rows(table: Tensor, elements: Elements | None) -> Tensor:
    """The rows of a table (|G|, ...) that belong to some elements."""
    if elements is None:
        return table
    if isinstance(elements, range) and elements.step == 1:
        return table[elements.start : elements.stop]
    listed = list(elements)
    if listed and not 0 <= min(listed) <= max(listed) < len(table):
        raise IndexError(f"the elements are 0..{len(table) - 1}; got {listed}")
    return table[listed]


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, which autocast would round to a shorter type."""
    if torch._C._is_any_autocast_enabled():
        with torch.autocast(a.device.type, enabled=False):
            return a @ b
    return a @ b
