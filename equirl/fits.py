"""Whether a group acts on a space: that its observations and actions stay in it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import (
    is_image_space,
    is_image_space_channels_first,
)

from equicore import DirectSum, Image, Matrix, Representation, Trivial
from equirl.described import entries_of


def channels_first(space: spaces.Box) -> bool:
    """Where Stable-Baselines3 takes the channels of images to be, by their sizes."""
    with warnings.catch_warnings():  # of which it warns where that is not plain
        warnings.simplefilter("ignore")
        return is_image_space_channels_first(space)


def _mixed(representation: Representation, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which entries of vectors of a shape become sums of several, by a matrix."""
    mixed = np.zeros(shape, dtype=bool)
    if isinstance(representation, Matrix):
        rows = ((representation.matrices != 0).sum(-1) > 1).any(0).numpy()
        np.moveaxis(mixed, representation.dim, -1)[...] = rows
    elif isinstance(representation, DirectSum):
        pieces = np.split(mixed, np.cumsum(representation.sizes)[:-1], representation.dim)
        parts: Any = representation.parts
        for part, piece in zip(parts, pieces, strict=True):
            piece[...] = _mixed(part, piece.shape)
    return mixed


def check_observation(what: str, space: spaces.Space, representation: Representation) -> None:
    """Raise ValueError unless a group acts on observations, or one entry of them."""
    if what != "observation" and isinstance(representation, Trivial):
        return  # also ids, which nothing permutes
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"a symmetry acts on Box observations, and dicts of them; {what} is {space}. Flatten "
            "it first, for instance with gymnasium.wrappers.FlattenObservation, and see "
            "equirl.composed.flattened"
        )
    if (
        isinstance(representation, Image)
        and -1 in representation.axes
        and is_image_space(space, check_channels=True)
        and not channels_first(space)
    ):
        raise ValueError(
            f"the images {space.shape} have their channels last, where this symmetry has the "
            "columns; make it with axes=(-3, -2)"
        )

    def act(g: int, samples: NDArray[Any]) -> NDArray[Any]:
        return representation.act(g, torch.from_numpy(samples)).numpy()

    check_space(what, space, representation, act)


def _in_turn(space: spaces.Box, representation: Representation) -> spaces.Box | None:
    """A box of stacked frames with its bounds in order, if they are in that of ``VecFrameStack``.

    It repeats each bound of a vector, where it should repeat all of them in turn. That counts only
    where the group acts on each of as many frames in the same way, see `equirl.composed.stacked`.
    """
    matrices = entries_of(representation)
    if matrices is None or matrices.shape[1:] != space.shape * 2:
        return None
    size = space.shape[0]
    bounds = np.stack([space.low, space.high])
    for frames in (n for n in range(2, size + 1) if size % n == 0):
        block = matrices[:, : size // frames, : size // frames]
        each = bounds.reshape(2, -1, frames)
        if (
            np.array_equal(matrices, np.kron(np.eye(frames), block))
            and (each == each[..., :1]).all()
        ):
            return spaces.Box(*np.tile(each[..., 0], (1, frames)), dtype=space.dtype.type)
    return None


def check_space(
    what: str,
    space: spaces.Box,
    representation: Representation,
    act: Callable[[int, NDArray[Any]], NDArray[Any]],
) -> None:
    """Raise ValueError unless samples of a space stay in it under every generator."""
    group = representation.group
    space = copy.deepcopy(space)
    space.seed(0)
    samples = np.stack([space.sample() for _ in range(8)])
    for g in group.generators:
        try:
            moved = act(g, samples)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"the symmetry does not fit the {what} space {space}: {error}") from (
                error
            )
        if moved.shape != samples.shape:
            raise ValueError(
                f"the symmetry does not fit the {what} space {space}, which is not invariant: "
                f"element {g} ({group.names[g]}) makes shapes {moved.shape[1:]} of it; quarter "
                "turns need squares"
            )
        # a rotation by another angle than quarter turns takes corners out of any box
        mixed = _mixed(representation, space.shape)
        if not all(np.where(mixed, s, m) in space for s, m in zip(samples, moved, strict=True)):
            in_turn = _in_turn(space, representation)
            if in_turn is not None and in_turn != space:
                return check_space(what, in_turn, representation, act)
            raise ValueError(
                f"the {what} space {space} is not invariant: element {g} "
                f"({group.names[g]}) takes {what}s out of it"
            )
