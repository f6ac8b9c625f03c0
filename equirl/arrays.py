"""Observations as environments emit them: an array, or a dict of arrays by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium import spaces
from numpy.typing import NDArray

Observations = NDArray[Any] | dict[str, NDArray[Any]]


def each(function: Callable[..., Any], observations: Any, *others: Any) -> Any:
    """Apply a function to an array, or to each of a dict, with those of others at its place."""
    if isinstance(observations, dict):
        return {
            name: function(own, *(other[name] for other in others))
            for name, own in observations.items()
        }
    return function(observations, *others)


def shape_of(space: spaces.Space) -> Any:
    """The shape of observations in a space, or of each entry of dicts."""
    if isinstance(space, spaces.Dict):
        return {name: part.shape for name, part in space.items()}
    return space.shape


def rows_of(observations: Any) -> int:
    """How many observations there are in a batch."""
    return len(arrays_of(observations)[0])


def pairs_of(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """Each array of an observation beside that of another, by name: dicts have no order."""
    if isinstance(one, dict):
        return [(own, other[name]) for name, own in one.items()]
    return [(one, other)]


def arrays_of(observations: Any) -> list[Any]:
    """All arrays of an observation."""
    return [*observations.values()] if isinstance(observations, dict) else [observations]
