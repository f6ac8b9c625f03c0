"""Spaces as plain data: from the text in an agent's file, and to JSON values and back."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

ENTRY = re.compile(r"""['"]([^'"]+)['"][:,] (Box|Discrete|MultiDiscrete|MultiBinary)\(""")
"""What an entry of a dict begins with, as Gymnasium and the old gym print them."""
BOX = re.compile(r"(\[.*\]|[^,]+), (\[.*\]|[^,]+), (\([^)]*\)), (\w+)", re.DOTALL)


def space_of(data: dict[str, Any], key: str, path: Path) -> spaces.Space:
    """A space from the plain text that stands beside its pickle.

    Args:
        data: Of a file of Stable-Baselines3.
        key: The name of the space in it.
        path: The file, for messages.

    Raises:
        ValueError: If the text does not tell, or tells of a space that no agent here has.
    """
    described = data.get(key)
    if not isinstance(described, dict):
        raise ValueError(f"{path}: its {key} cannot be read from plain data")
    kind = str(described.get(":type:", "")).rstrip("'>").rpartition(".")[2]
    try:
        if kind == "Dict":
            return _dict(str(described["spaces"]))
        if (found := _simple(kind, described)) is not None:
            return found
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path}: its {key} cannot be read from plain data: {error}") from error
    raise ValueError(
        f"{path}: its {key} is {kind or 'missing'}; load_agent reads Box, Dict, Discrete, "
        "MultiDiscrete and MultiBinary"
    )


def space_to_dict(space: spaces.Space) -> dict[str, Any]:
    """A space as plain JSON values.

    Raises:
        TypeError: If it is of another kind than those that agents here have.
    """
    if isinstance(space, spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "n": int(np.prod(space.shape))}
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"space": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Dict):
        entries = {name: space_to_dict(part) for name, part in space.items()}
        return {"space": "Dict", "entries": entries}
    raise TypeError(f"plain data cannot describe {space}")


def space_from_dict(told: dict[str, Any]) -> spaces.Space:
    """The space that `space_to_dict` described.

    Raises:
        KeyError: If it is none.
    """
    kind = told["space"]
    if kind == "Discrete":
        return spaces.Discrete(told["n"], start=told["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(told["nvec"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(told["n"])
    if kind == "Dict":
        return spaces.Dict({n: space_from_dict(part) for n, part in told["entries"].items()})
    dtype = np.dtype(told["dtype"])
    low, high = (
        np.array(told[side]).reshape(told["shape"]).astype(dtype) for side in ("low", "high")
    )
    return spaces.Box(low, high, dtype=dtype.type)


def _dict(text: str) -> spaces.Dict:
    """A dict of spaces as it was printed: the text of each entry ends where the next begins."""
    found = list(ENTRY.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    entries: dict[str, Any] = {}
    for match, end in zip(found, ends, strict=True):
        name, kind = match.groups()
        inside = text[match.end() : text.rindex(")", match.end(), end)].rstrip(")")
        if kind == "Box":
            inside = text[match.end() : end]
            parts = BOX.match(inside)
            if parts is None:
                raise ValueError(f"the entry {name} is {kind}({inside}")
            told: dict[str, Any] = dict(
                zip(("low", "high", "shape", "dtype"), parts.groups(), strict=True)
            )
        else:
            number, _, start = inside.partition(", start=")
            told = {"n": number, "nvec": number, "start": start or 0}
        entries[name] = _simple(kind, told)
    if not entries:
        raise ValueError(f"no entries are known in {text}")
    return spaces.Dict(entries)


def _simple(kind: str, told: dict[str, Any]) -> spaces.Space | None:
    """A space that is no dict; None of other kinds."""
    if kind == "Discrete":
        return spaces.Discrete(int(told["n"]), start=int(told.get("start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(_numbers(told["nvec"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(int(told["n"]))
    if kind == "Box":
        shape = told.get("_shape") or told["shape"]
        shape = tuple(ast.literal_eval(shape) if isinstance(shape, str) else shape)
        dtype = np.dtype(told["dtype"])
        low, high = (_bound(told[side], shape, dtype) for side in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    return None


def _numbers(text: Any) -> list[int]:
    return [int(word) for word in str(text).replace("[", " ").replace("]", " ").split()]


def _bound(text: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A bound as numpy printed it: every number, or one for all where it was too long to print."""
    words = str(text).replace("[", " ").replace("]", " ").replace(",", " ").split()
    numbers = [float(word) for word in words if word != "..."]
    if len(set(numbers)) == 1:
        numbers = numbers[:1] * int(np.prod(shape))
    return np.array(numbers).reshape(shape).astype(dtype)  # ValueError if it is not written out
