"""The symmetry of an environment: one group that acts on its observations and its actions.

An environment has a symmetry when its dynamics, reward and termination commute with the group:
what follows from (g s, g a) is g applied to what follows from (s, a). `equirl.named` writes one by
the names of entries, `equirl.registry` knows those of environments.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import (
    is_image_space,
)

from equicore import (
    Group,
    Permutation,
    Representation,
    Tree,
)
from equicore.representations import plain
from equirl.arrays import each
from equirl.choices import Choices, options_of
from equirl.described import entries_of, moves
from equirl.fits import channels_first, check_observation, check_space
from equirl.training import augment


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
        observation: Acts on batches of observations as the environment emits them; on dicts of
            them an `equicore.Tree` with a representation for each entry.
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

    def act_on_observations(self, g: int, observations: Any) -> Any:
        """Apply element g to a batch of observations (B, ...), or a dict of them; new arrays."""
        tensors = each(lambda array: torch.from_numpy(np.array(array)), observations)
        return each(torch.Tensor.numpy, self.observation.act(g, tensors))

    def act_on_actions(self, g: int, actions: NDArray[Any]) -> NDArray[Any]:
        """Apply element g to a batch of actions, ids (B,) or vectors (B, d); a new array."""
        tensor = torch.from_numpy(np.array(actions))
        labels = tensor.ndim == 1 and not tensor.is_floating_point()
        if labels and isinstance(self.action, Permutation):
            return self.action.act_on_labels(g, tensor.long()).numpy().astype(actions.dtype)
        return self.action.act(g, tensor).numpy()

    def augment(self, env: Any, obs: Any, actions: torch.Tensor | None) -> tuple[Any, Any]:
        """Observations and actions with all their images: data augmentation as rsl_rl calls it.

        Pass it where rsl_rl takes a ``data_augmentation_func``; its mirror loss uses it too.

        Args:
            env: The environment, which is not looked at.
            obs: A batch (B, ...), or a dict or ``TensorDict`` of groups of observations, each with
                a representation of its name in an `equicore.Tree`; or None.
            actions: A batch (B, d), or ids (B,) or (B, 1) of discrete actions; or None.

        Returns:
            Both as (|G| B, ...), the samples as they were first, then their images under one
            element after the other; None where None was given.

        Raises:
            TypeError: If something is no tensor.
            ValueError: If the group does not act on tensors of these shapes, there are more
                observations than actions or fewer, or groups of observations that the symmetry has
                no representation for.
        """
        return augment(self.observation, self.action, obs, actions)

    def describe(self) -> str:
        """What each generator does, entry by entry, by their names."""
        lines = [f"{self.group.name}, of order {len(self.group)}"]
        seen = [(what, "observation", part) for what, part in self._entries.items()]
        if len(seen) == 1:
            seen = [("observations", "observation", self.observation)]
        parts = [*seen, ("actions", "action", self.action)]
        for g, (what, kind, part) in itertools.product(self.group.generators, parts):
            lines.append(f"element {g} on {what}")
            matrices = entries_of(part)
            if matrices is None:
                lines.append(f"  {part}")
            else:
                names = self.names_of(kind, (len(matrices[0]),))
                lines += [f"  {line}" for line in moves(matrices[g], names)]
        return "\n".join(lines)

    @property
    def _entries(self) -> dict[str, Representation]:
        """How the group acts on observations, or on each entry of dicts."""
        seen: Any = self.observation
        if not isinstance(seen, Tree):
            return {"observation": seen}
        return {f"observation[{name!r}]": part for name, part in seen.by_name().items()}

    def check_spaces(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Raise ValueError unless the group acts on these spaces.

        Sampled observations and actions must stay in their space under every generator, unless
        that mixes entries, as a rotation by 45 degrees does, which no box survives.
        """
        for name, space in self._spaces_of_entries(observation_space).items():
            check_observation(name, space, self._entries[name])
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
            check_space("action", action_space, self.action, self.act_on_actions)
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

    def _spaces_of_entries(self, space: spaces.Space) -> dict[str, spaces.Space]:
        """The space that each of the entries is in."""
        entries = self._entries
        if not isinstance(space, spaces.Dict):
            if "observation" in entries:
                return {"observation": space}
            raise ValueError(f"this symmetry acts on dicts with {[*entries]}; got {space}")
        found = {f"observation[{name!r}]": part for name, part in space.items()}
        if "observation" in entries:
            raise ValueError(
                f"observations are dicts with {', '.join(space)}; a symmetry of them has "
                "observation=equicore.Tree({name: representation, ...}), with one for each"
            )
        if missing := found.keys() - entries.keys():
            raise ValueError(
                f"the symmetry has no representation for {', '.join(sorted(missing))}; what no "
                "element changes has equicore.Trivial(group)"
            )
        if more := entries.keys() - found.keys():
            raise ValueError(
                f"the symmetry has a representation for {', '.join(sorted(more))}, which "
                f"observations lack: they have {', '.join(space)}"
            )
        return found

    def seen_by_agent(self, observation_space: spaces.Space, moved: bool | None = None) -> Symmetry:
        """The symmetry of what an agent sees, if this is that of what its environment emits.

        They differ where Stable-Baselines3 has moved the channels of images to the front.

        Args:
            observation_space: The agent's.
            moved: Whether it has; None if that is not known.

        Raises:
            ValueError: If it cannot be told whether it has, or which of the two this one is of.
        """
        seen = self.observation
        if isinstance(observation_space, spaces.Dict) and isinstance(seen, Tree):
            parts = seen.by_name()
            for name, space in observation_space.items():
                if name in parts:
                    own = Symmetry(parts[name], self.action).seen_by_agent(space, moved)
                    parts[name] = own.observation
            return dataclasses.replace(self, observation=Tree(parts))
        if not isinstance(observation_space, spaces.Box) or not is_image_space(observation_space):
            return self
        channels, *grid = observation_space.shape
        emitted = spaces.Box(0, 255, (*grid, channels), np.uint8)
        # Stable-Baselines3 moves the channels of all images that have them last, and of no others
        still = not moved if moved is not None else channels_first(observation_space)
        if still and (moved is False or channels_first(emitted)):
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
