"""The symmetry of an environment: one group that acts on its observations and its actions.

An environment has a symmetry when its dynamics, reward and termination commute with the group:
what follows from (g s, g a) is g applied to what follows from (s, a). `equirl.named` writes one by
the names of entries, `equirl.registry` knows those of environments.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import (
    is_image_space,
    is_image_space_channels_first,
)

from equicore import DirectSum, Group, Image, Matrix, Permutation, Representation
from equicore.representations import plain
from equirl.choices import Choices, options_of
from equirl.described import entries_of, moves


@dataclass(frozen=True)
class Names:
    """What the entries of observations and of actions are called, in their order."""

    observation: tuple[str, ...]
    action: tuple[str, ...]


@dataclass(frozen=True)
class Symmetry:
    """How one group acts on what an environment shows and on what it is told.

    `equirl.named.symmetry` makes one by the names of entries.

    Args:
        observation: Acts on batches of observations as the environment emits them.
        action: Acts on actions: a `Permutation` of the ids of a ``Discrete`` action space, of the
            choices of a ``MultiDiscrete`` or ``MultiBinary`` one, or `equirl.choices.Choices` also
            of their options; any representation on the vectors of a ``Box``.
        names: Of the entries, for messages; numbers when omitted.

    Raises:
        ValueError: If the two are of different groups, or names are more or fewer than entries.

    >>> from equicore import Matrix, Permutation, cyclic
    >>> flip = cyclic(2)
    >>> cartpole = Symmetry(
    ...     observation=Matrix.from_generators(flip, [-np.eye(4)]),
    ...     action=Permutation.from_generators(flip, [[1, 0]]),
    ... )
    >>> cartpole.act_on_actions(1, np.array([0, 1]))
    array([1, 0])
    """

    observation: Representation
    action: Representation
    names: Names | None = None

    def __post_init__(self) -> None:
        """Check that there is one group, and a name for each entry."""
        if self.observation.group != self.action.group:
            raise ValueError(
                "observation and action must be acted on by one group; got "
                f"{self.observation.group} and {self.action.group}"
            )
        for what in ("observation", "action") if self.names else ():
            matrices, names = entries_of(getattr(self, what)), getattr(self.names, what)
            if matrices is not None and len(matrices[0]) != len(names):
                raise ValueError(
                    f"the {what} has {len(matrices[0])} entries, and {len(names)} names"
                )

    @property
    def group(self) -> Group:
        """The group."""
        return self.observation.group

    def names_of(self, what: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the entries of an ``observation`` or ``action``, or their numbers."""
        named = getattr(self.names, what, ())
        if (len(named),) == shape:
            return tuple(named)
        return tuple(
            f"entry {place[0] if len(place) == 1 else list(place)}" for place in np.ndindex(shape)
        )

    def act_on_observations(self, g: int, observations: NDArray[Any]) -> NDArray[Any]:
        """Apply element g to a batch of observations (B, ...); returns a new array."""
        return self.observation.act(g, torch.from_numpy(np.array(observations))).numpy()

    def act_on_actions(self, g: int, actions: NDArray[Any]) -> NDArray[Any]:
        """Apply element g to a batch of actions, ids (B,) or vectors (B, d); a new array."""
        tensor = torch.from_numpy(np.array(actions))
        labels = tensor.ndim == 1 and not tensor.is_floating_point()
        if labels and isinstance(self.action, Permutation):
            return self.action.act_on_labels(g, tensor.long()).numpy().astype(actions.dtype)
        return self.action.act(g, tensor).numpy()

    def describe(self) -> str:
        """What each generator does, entry by entry, by their names."""
        lines = [f"{self.group.name}, of order {len(self.group)}"]
        for g, what in itertools.product(self.group.generators, ("observation", "action")):
            lines.append(f"element {g} on {what}s")
            matrices = entries_of(getattr(self, what))
            if matrices is None:
                lines.append(f"  {getattr(self, what)}")
            else:
                names = self.names_of(what, (len(matrices[0]),))
                lines += [f"  {line}" for line in moves(matrices[g], names)]
        return "\n".join(lines)

    def check_spaces(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Raise ValueError unless the group acts on these spaces.

        Sampled observations and actions must stay in their space under every generator, unless
        that mixes entries, as a rotation by 45 degrees does, which no box survives.
        """
        if not isinstance(observation_space, spaces.Box):
            raise ValueError(
                f"a symmetry acts on Box observations; got {observation_space}. Flatten them "
                "first, for instance with gymnasium.wrappers.FlattenObservation"
            )
        if (
            isinstance(self.observation, Image)
            and -1 in self.observation.axes
            and is_image_space(observation_space, check_channels=True)
            and not _channels_first(observation_space)
        ):
            raise ValueError(
                f"the images {observation_space.shape} have their channels last, where this "
                "symmetry has the columns; make it with axes=(-3, -2)"
            )
        _check_space("observation", observation_space, self.observation, self.act_on_observations)
        if isinstance(action_space, spaces.Discrete):
            if not isinstance(self.action, Permutation):
                raise ValueError(
                    f"the actions {action_space} are ids, on which a Permutation acts; "
                    f"this symmetry has a {type(self.action).__name__}"
                )
            size = self.action.permutations.shape[1]
            if size != action_space.n or action_space.start != 0:
                raise ValueError(
                    f"the symmetry permutes the actions 0..{size - 1}, but the action space is "
                    f"{action_space}"
                )
        elif isinstance(action_space, spaces.Box):
            _check_space("action", action_space, self.action, self.act_on_actions)
        elif (options := options_of(action_space)) is not None:
            try:
                Choices.of(self.action, options)
            except ValueError as error:
                raise ValueError(
                    f"the symmetry does not fit the actions {action_space}: {error}"
                ) from error
        else:
            raise ValueError(
                "a symmetry acts on Discrete, MultiDiscrete, MultiBinary or Box actions; got "
                f"{action_space}"
            )

    def seen_by_agent(self, observation_space: spaces.Space, moved: bool | None = None) -> Symmetry:
        """The symmetry of what an agent sees, if this is that of what its environment emits.

        They differ where Stable-Baselines3 has moved the channels of images to the front.

        Args:
            observation_space: The agent's.
            moved: Whether it has; None if that is not known.

        Raises:
            ValueError: If it cannot be told whether it has, or which of the two this one is of.
        """
        if not isinstance(observation_space, spaces.Box) or not is_image_space(observation_space):
            return self
        channels, *grid = observation_space.shape
        emitted = spaces.Box(0, 255, (*grid, channels), np.uint8)
        # Stable-Baselines3 moves the channels of all images that have them last, and of no others
        still = not moved if moved is not None else _channels_first(observation_space)
        if still and (moved is False or _channels_first(emitted)):
            return self
        if moved is None and still and channels in (1, 3, 4) and grid[-1] in (1, 3, 4):
            raise ValueError(
                f"images {observation_space.shape} may have their channels first or last; give an "
                "agent that has its environment, as by model.set_env, which tells"
            )
        fits = [self._keeps_shape(observation_space), self._keeps_shape(emitted)]
        axes = {-3, -2, -1} & {*self.observation.axes}
        if fits == [True, True] and axes:  # a mirror fits both; its axes say which is meant
            fits = [-3 not in axes, -1 not in axes]
            if fits[0] == fits[1]:
                raise ValueError(
                    f"images {emitted.shape} are seen by the agent as {observation_space.shape}, "
                    "and the symmetry fits both; act on all axes of one of them, or on an Image"
                )
        if fits != [False, True]:
            return self
        return Symmetry(ChannelsFirst(self.observation), self.action)

    def _keeps_shape(self, space: spaces.Box) -> bool:
        """Whether the group acts on observations of this shape, and leaves it."""
        samples = np.zeros((2, *space.shape), space.dtype)
        try:
            moved = [self.act_on_observations(g, samples) for g in self.group.generators]
        except (ValueError, TypeError, RuntimeError, IndexError):
            return False
        return all(m.shape == samples.shape for m in moved)

    def to_dict(self) -> dict[str, Any]:
        """The symmetry as plain JSON values."""
        return {
            "group": plain.group_to_dict(self.group),
            "observation": plain.to_dict(self.observation),
            "action": plain.to_dict(self.action),
            **({"names": dataclasses.asdict(self.names)} if self.names else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Symmetry:
        """The symmetry that `to_dict` described.

        Raises:
            ValueError: If it is not one.
        """
        group = Group(**data["group"])
        named = {what: tuple(of) for what, of in data.get("names", {}).items()}
        return cls(
            plain.from_dict(group, data["observation"]),
            plain.from_dict(group, data["action"], [Choices]),
            Names(**named) if named else None,
        )


class ChannelsFirst(Representation):
    """Acts on images with their channels first as another acts on those with channels last.

    Args:
        emitted: The other: how the group acts on images as an environment emits them.
    """

    def __init__(self, emitted: Representation) -> None:
        super().__init__(emitted.group)
        self.emitted = emitted
        places = {-3: -2, -2: -1, -1: -3}
        self.axes = tuple(places.get(axis, axis) for axis in emitted.axes)

    def act(self, g: int, x: torch.Tensor) -> torch.Tensor:
        """Move the channels to the end, act, and move them back."""
        return self.emitted.act(g, x.movedim(-3, -1)).movedim(-1, -3)


def _channels_first(space: spaces.Box) -> bool:
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


def _check_space(
    what: str,
    space: spaces.Box,
    representation: Representation,
    act: Callable[[int, NDArray[Any]], NDArray[Any]],
) -> None:
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
            raise ValueError(
                f"the {what} space {space} is not invariant: element {g} "
                f"({group.names[g]}) takes {what}s out of it"
            )
