"""Trees: nested dicts, sequences, dataclasses and model outputs whose leaves are tensors.

``None`` stands for a leaf that is absent and stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def entries(tree: Any) -> dict[Any, Any]:
    """The children of a node by name: keys, fields, or places of a sequence.

    Raises:
        TypeError: If it is neither of these.
    """
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree) if field.init]
        return {name: getattr(tree, name) for name in names}
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree, strict=True))
    if isinstance(tree, (tuple, list)):
        return dict(enumerate(tree))
    if isinstance(tree, Tensor):
        raise TypeError(
            "expected a dict, sequence, dataclass or model output, whose entries are tensors; got "
            f"one tensor of shape {tuple(tree.shape)}"
        )
    raise TypeError(
        "expected a tensor, or a dict, sequence, dataclass or model output of tensors; "
        f"got {type(tree).__name__}"
    )


def rebuild(tree: Any, children: Mapping[Any, Any]) -> Any:
    """A node of the same kind with other children.

    Fields without one become None, and so do places of a sequence before the last child's.
    """
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = [field.name for field in dataclasses.fields(tree) if field.init]
        return type(tree)(**{name: children.get(name) for name in fields})
    if type(tree) is dict:
        return dict(children)
    if isinstance(tree, defaultdict):  # which is not made of its entries alone
        return type(tree)(tree.default_factory, children)
    if isinstance(tree, Mapping):
        return type(tree)(children)  # type: ignore[call-arg]
    if hasattr(tree, "_fields"):
        return type(tree)(**{name: children.get(name) for name in tree._fields})
    size = max(children) + 1 if children else 0
    return type(tree)([children.get(place) for place in range(size)])


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply a function to each leaf, with the leaves of other trees at the same places."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if tree is None:
        return None
    columns = [entries(other) for other in others]
    return rebuild(
        tree,
        {
            name: tree_map(function, child, *(column[name] for column in columns))
            for name, child in entries(tree).items()
        },
    )


def tree_map_along(function: Callable[[Tensor, Any], Any], tree: Any, values: Any) -> Any:
    """Apply a function to each leaf and to what a shallower tree of integers has for it.

    An integer in the place of a subtree counts for all of it.

    Raises:
        ValueError: If an entry has no value.
    """
    if isinstance(values, int):
        return tree_map(lambda t: function(t, values), tree)
    if tree is None:
        return None
    named, found = entries(values), entries(tree)
    if missing := [
        name for name, child in found.items() if name not in named and child is not None
    ]:
        raise ValueError(f"no axis is given for the entries {missing}; got {values}")
    return rebuild(
        tree,
        {
            name: None if child is None else tree_map_along(function, child, named[name])
            for name, child in found.items()
        },
    )


def leaves(tree: Any) -> list[Tensor]:
    """All tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if tree is None:
        return []
    return [leaf for child in entries(tree).values() for leaf in leaves(child)]
