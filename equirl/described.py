"""What linear representations do to entries, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equicore import Matrix, Permutation, Representation

CLOSE = 1e-9


def entries_of(representation: Representation) -> NDArray[np.float64] | None:
    """The matrix of each element, (|G|, n, n), on vectors or on ids; None of other kinds."""
    if isinstance(representation, Matrix) and representation.dim == -1:
        return representation.matrices.double().numpy()
    if isinstance(representation, Permutation) and representation.dim == -1:
        places = representation.permutations.numpy()
        return np.eye(places.shape[1])[places].transpose(0, 2, 1)
    return None


def moves(matrix: NDArray[Any], names: Sequence[str]) -> Iterator[str]:
    """Lines such as ``x -> -x``, ``left leg <-> right leg`` and what is unchanged."""
    changed = np.flatnonzero(abs(matrix - np.eye(len(matrix))).max(0) > CLOSE)
    told = set()
    for place in changed.tolist():
        ends = np.flatnonzero(abs(matrix[:, place]) > CLOSE).tolist()
        other = ends[0]
        if len(ends) > 1 or other == place or matrix[place, other] != matrix[other, place]:
            yield f"{names[place]} -> {said(matrix[:, place], names)}"
        elif place not in told:
            yield f"{names[place]} <-> {said(matrix[:, place], names)}"
            told.add(other)
    if len(changed) < len(matrix):
        still = [name for place, name in enumerate(names) if place not in changed]
        yield f"unchanged: {', '.join(still)}"


def said(column: NDArray[Any], names: Sequence[str]) -> str:
    """Where an entry goes, by a column of a matrix: ``-left hip``, ``0.5 x + 0.87 y``."""
    text = ""
    for place in np.flatnonzero(abs(column) > CLOSE).tolist():
        number = float(column[place])
        size = "" if abs(abs(number) - 1) < CLOSE else f"{abs(number):.3g} "
        if text:
            text += " - " if number < 0 else " + "
        elif number < 0:
            text = "-"
        text += size + names[place]
    return text or "0"
