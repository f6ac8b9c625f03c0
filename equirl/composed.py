"""The symmetry of composed observations: dicts, their flat form, frame stacks, a time feature.

`equirl.symmetry_of` applies these for the wrappers that it finds around an environment. For others,
such as those of a package of your own, call them yourself and pass the `Symmetry` that results.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces, wrappers
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecFrameStack

from equicore import DirectSum, Matrix, Permutation, Representation, Tree, Trivial
from equirl.described import entries_of
from equirl.symmetry import Names, Symmetry

FOLLOWED = (
    *("FlattenObservation", "FrameStackObservation", "TimeAwareObservation"),
    *("TimeFeatureWrapper", "VecFrameStack"),
)
"""The wrappers that `seen_through` knows."""


def flattened(symmetry: Symmetry, space: spaces.Space) -> Symmetry:
    """The symmetry of what ``gymnasium.spaces.flatten`` makes of observations.

    Args:
        symmetry: Of the observations as they are: arrays, or dicts of them.
        space: Their space. Entries of a dict follow each other in its order, and ids become
            vectors with a single 1, as Gymnasium does.

    Raises:
        ValueError: If the symmetry does not fit the space, or acts on something that is no vector
            when it is flat, such as angles or boxes.
    """
    if not isinstance(space, spaces.Dict):
        matrix = _flat(symmetry.observation, space, "the observation")
        names = symmetry.names if len(space.shape or ()) == 1 else None
        return Symmetry(matrix, symmetry.action, names)
    tree: Any = symmetry.observation
    found = tree.by_name() if isinstance(tree, Tree) else {}
    if found.keys() != set(space.spaces):
        raise ValueError(
            f"the symmetry acts on {', '.join(found) or 'no dicts'}, and observations are dicts "
            f"with {', '.join(space.spaces)}"
        )
    each = {
        name: (_flat(found[name], own, name), spaces.flatdim(own)) for name, own in space.items()
    }
    told = tuple(
        name if size == 1 else f"{name} {i}"
        for name, (_, size) in each.items()
        for i in range(size)
    )
    names = symmetry.names or Names(told, symmetry.names_of("action", (_size(symmetry.action),)))
    return Symmetry(_joined(list(each.values())), symmetry.action, names)


def stacked(symmetry: Symmetry, number: int) -> Symmetry:
    """The symmetry of several vectors one after the other, as ``VecFrameStack`` makes of vectors.

    Pictures, whose frames become channels, and the stacks of ``FrameStackObservation``, which have
    an axis of their own, need none: the same group acts on them in the same way.

    Args:
        symmetry: Of one of the vectors.
        number: How many there are.

    Raises:
        ValueError: If it does not act on vectors.
    """
    size = _size(symmetry.observation)
    names = symmetry.names and Names(
        tuple(f"{n}, {ago} before" if ago else n for ago in reversed(range(number))
              for n in symmetry.names.observation),
        symmetry.names.action,
    )  # fmt: skip
    return Symmetry(_joined([(symmetry.observation, size)] * number), symmetry.action, names)


def with_time(symmetry: Symmetry) -> Symmetry:
    """The symmetry of vectors after which one entry tells the time, which no element changes."""
    size = _size(symmetry.observation)
    names = symmetry.names and Names((*symmetry.names.observation, "time"), symmetry.names.action)
    parts = [(symmetry.observation, size), (Trivial(symmetry.group), 1)]
    return Symmetry(_joined(parts), symmetry.action, names)


def seen_through(layer: Any, symmetry: Symmetry) -> Symmetry:
    """The symmetry of what a wrapper emits, by that of what is inside it.

    The wrappers are those of `FOLLOWED`: of Gymnasium, ``VecFrameStack`` of Stable-Baselines3 and
    ``TimeFeatureWrapper`` of sb3-contrib.

    Raises:
        ValueError: If the wrapper is another, or the symmetry does not fit.
    """
    if isinstance(layer, wrappers.FlattenObservation):
        return flattened(symmetry, layer.env.observation_space)
    if isinstance(layer, wrappers.FrameStackObservation):
        return symmetry  # frames have an axis of their own, before those that the group acts on
    if isinstance(layer, wrappers.TimeAwareObservation):
        inner, outer = layer.env.observation_space, layer.observation_space
        parts = {"obs": symmetry.observation, "time": Trivial(symmetry.group)}
        if isinstance(outer, spaces.Dict):
            return Symmetry(Tree(parts), symmetry.action)
        flat = flattened(dataclasses.replace(symmetry, names=None), inner)
        return with_time(dataclasses.replace(flat, names=symmetry.names))
    if isinstance(layer, VecFrameStack):
        space = layer.venv.observation_space
        if isinstance(space, spaces.Box) and len(space.shape) == 1:
            return stacked(symmetry, layer.stacked_obs.n_stack)
        if is_image_space(space):
            return symmetry
    if type(layer).__name__ == "TimeFeatureWrapper":
        tree: Any = symmetry.observation
        if not isinstance(tree, Tree):
            return with_time(symmetry)
        parts = tree.by_name()
        own = Symmetry(parts["observation"], symmetry.action)
        parts["observation"] = with_time(own).observation
        return Symmetry(Tree(parts), symmetry.action)
    raise ValueError(f"how a group acts through {type(layer).__name__} is not known here")


def _flat(representation: Representation, space: spaces.Space, name: str) -> Representation:
    """How a group acts on the flat form of what it acts on."""
    if isinstance(representation, Trivial):
        return representation
    if isinstance(space, spaces.Discrete) and isinstance(representation, Permutation):
        return representation  # of the places of the single 1
    if not isinstance(space, spaces.Box) or 0 in representation.axes:
        raise ValueError(f"{representation} of {name}, {space}, is not linear when it is flat")
    if len(space.shape) == 1:
        return representation
    return _matrix(representation, space.shape)


def _joined(parts: list[tuple[Representation, int]]) -> Representation:
    """How a group acts on vectors one after the other, as one matrix for each element."""
    return _matrix(DirectSum(parts), (sum(size for _, size in parts),))


def _matrix(representation: Representation, shape: tuple[int, ...]) -> Matrix:
    """How a group acts on arrays of a shape when they are flat."""
    group, size = representation.group, math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    images = [representation.act(g, basis).reshape(size, size).T for g in range(len(group))]
    return Matrix(group, np.stack([image.numpy() for image in images]))


def _size(representation: Representation) -> int:
    """The number of entries of the vectors, or of the ids, that a group acts on."""
    matrices = entries_of(representation)
    if matrices is None:
        raise ValueError(
            f"this is for vectors, acted on by a Matrix or Permutation; got {representation}"
        )
    return matrices.shape[-1]
