"""Fields of vectors on a grid: the grid moves, and the vectors turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from equicore.representations.combine import TensorProduct
from equicore.representations.entries import Exchange
from equicore.representations.images import Image, check_grid
from equicore.representations.linear import Matrix


def vector_field(grid: Image) -> TensorProduct:
    """Fields of vectors on a grid, (B, ..., 2, rows, columns): the grid moves, the vectors turn.

    The vectors stand along the one of the last three axes that is none of the grid's.

    Component 0 of a vector points along the rows' axis, downwards, component 1 along the
    columns' axis, to the right.

    >>> import torch
    >>> from equicore import image_rotations
    >>> field = vector_field(image_rotations())
    >>> to_the_right = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    >>> field.act(1, to_the_right).flatten().tolist()  # up, after a quarter turn
    [-1.0, 0.0]
    """
    matrices = [check_grid(grid).linear_part(g) for g in range(len(grid.group))]
    (vectors,) = {-3, -2, -1} - {*grid.axes}
    return TensorProduct(Matrix(grid.group, matrices, dim=vectors), grid)


def staggered_field(grid: Image, right: Any, down: Any) -> Exchange:
    """Fields of vectors whose components stand on the edges between cells, as two named entries.

    Args:
        grid: How the grid of cells, (B, ..., rows, columns), moves; it has no shifts.
        right: Name of the component along the columns' axis, to the right, which stands between
            columns: (B, ..., rows, columns + 1).
        down: Name of the component along the rows' axis, downwards: (B, ..., rows + 1, columns).

    >>> import torch
    >>> from equicore import image_rotations
    >>> field = staggered_field(image_rotations(), "u", "v")
    >>> still = torch.zeros(1, 2, 1)
    >>> turned = field.act(1, {"u": torch.ones(1, 1, 2), "v": still})
    >>> turned["u"].flatten().tolist(), turned["v"].flatten().tolist()  # upwards
    ([0.0, 0.0], [-1.0, -1.0])
    """
    if check_grid(grid).size is not None:
        raise ValueError("cyclic shifts have no edges; staggered_field takes turns and mirrors")
    names = (down, right)
    moves: list[dict[Any, Any]] = []
    signs: list[list[Any]] = []
    for g in grid.group.generators:
        matrix = grid.linear_part(g)  # column j is where a unit along component j goes
        places = np.abs(matrix).argmax(0)
        moves.append({names[j]: names[places[j]] for j in range(2)})
        signs.append([names[j] for j in range(2) if matrix[places[j], j] < 0])
    return Exchange({right: grid, down: grid}, moves, signs)
