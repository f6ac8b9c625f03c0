"""Groups and representations as plain JSON values, to keep in files that hold no code."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from equicore.groups import Group
from equicore.representations.base import Representation, Trivial
from equicore.representations.combine import DirectSum, Pullback, TensorProduct
from equicore.representations.coordinates import Boxes, Keypoints
from equicore.representations.entries import Exchange, Tree
from equicore.representations.images import Flip, Image
from equicore.representations.linear import Matrix, Permutation
from equicore.representations.rotations import Rotations
from equicore.representations.tokens import Tokens

KINDS: dict[str, type[Representation]] = {
    kind.__name__: kind
    for kind in (
        *(Boxes, DirectSum, Exchange, Flip, Image, Keypoints, Matrix, Permutation),
        *(Pullback, Rotations, TensorProduct, Tokens, Tree, Trivial),
    )
}
"""What a file may name."""


def group_to_dict(group: Group) -> dict[str, Any]:
    """The arguments that make the group again."""
    return {
        "table": group.table.tolist(),
        "name": group.name,
        "names": list(group.names),
        "generators": list(group.generators),
    }


def to_dict(representation: Representation) -> dict[str, Any]:
    """The kind of a representation and its arguments, but for its group.

    Raises:
        NotImplementedError: If it, or a part of it, does not say how it is written, or is a tree
            of some places of a sequence only: entries have names in JSON.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Representation):
            inner = to_dict(value)
            if value.group != representation.group:  # a pullback's
                inner["group"] = group_to_dict(value.group)
            return inner
        if isinstance(value, dict):
            if others := [name for name in value if not isinstance(name, str)]:
                raise NotImplementedError(f"JSON has names for entries, not {others}")
            return {name: plain(v) for name, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    arguments = {name: plain(value) for name, value in representation.arguments().items()}
    return {"kind": type(representation).__name__, **arguments}


def from_dict(
    group: Group, data: dict[str, Any], kinds: Sequence[type[Representation]] = ()
) -> Representation:
    """The representation of a group that `to_dict` described.

    Args:
        group: The group.
        data: What was described.
        kinds: Kinds of your own that it may name, besides those of equicore.

    Raises:
        ValueError: If it is not one.
    """
    known = KINDS | {kind.__name__: kind for kind in kinds}

    def made(value: Any) -> Any:
        if isinstance(value, dict) and not isinstance(value.get("kind", {}), dict):
            own = value.get("group")
            inner = {name: v for name, v in value.items() if name != "group"}
            return from_dict(group if own is None else Group(**own), inner, kinds)
        if isinstance(value, dict):
            return {name: made(v) for name, v in value.items()}
        return [made(v) for v in value] if isinstance(value, list) else value

    arguments = {name: made(value) for name, value in data.items() if name != "kind"}
    kind = known.get(str(data.get("kind")))
    if kind is None:
        raise ValueError(
            f"no representation of equicore: {data.get('kind')!r}; if it is one of your own, give "
            "its class in kinds"
        )
    if "group" in inspect.signature(kind).parameters:
        arguments["group"] = group
    return kind(**arguments)
