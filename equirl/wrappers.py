"""Environments seen through a group element.

Under element g the agent sees g . observation, and what it does is carried back by g^-1. If the
declared symmetry is true, the result is the same environment started elsewhere, and an
equivariant policy does as well in it as in the original. Rendering shows the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from equicore import Permutation, Representation
from equirl.arrays import each, pairs_of
from equirl.choices import on_options
from equirl.gathers import Moves, moves_of
from equirl.registry import symmetry_of
from equirl.symmetry import Symmetry


class SymmetryWrapper(gym.Wrapper, RecordConstructorArgs):
    """An environment seen through one fixed group element.

    Args:
        env: The environment.
        symmetry: Its symmetry; looked up by its id when omitted.
        element: The group element g.

    Raises:
        ValueError: If the symmetry is unknown or does not fit the environment's spaces.
        IndexError: If the element is none of the group.

    >>> import equirl
    >>> env = SymmetryWrapper(gym.make("CartPole-v1"), element=1)
    >>> seen, _ = env.reset(seed=0)
    >>> original, _ = gym.make("CartPole-v1").reset(seed=0)
    >>> bool((seen == -original).all())
    True
    """

    def __init__(self, env: gym.Env, symmetry: Symmetry | None = None, element: int = 0) -> None:
        RecordConstructorArgs.__init__(self, symmetry=symmetry, element=element)
        gym.Wrapper.__init__(self, env)
        self.symmetry = _bind(symmetry, env, env.observation_space, env.action_space)
        self.element = self.symmetry.group.check_element(element)
        self._observations = _Single(self.symmetry.observation, env.observation_space)
        self._actions = _Single(self.symmetry.action, env.action_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and show its first observation through the element."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Carry the action back, step, and show the observation through the element."""
        if self.element != self.symmetry.group.identity:
            action = self._actions.act(self.symmetry.group.inverse(self.element), action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(observation), reward, terminated, truncated, info

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """What tells which actions are allowed as they are seen, where the environment does."""
        of_env = self.env.get_wrapper_attr("action_masks")
        options = on_options(self.symmetry.action, self.action_space)

        def masks() -> NDArray[np.bool_]:
            own = np.asarray(of_env(), dtype=bool)
            return options.act(self.element, torch.from_numpy(own.ravel())[None]).numpy()[0]

        return masks

    def _seen(self, observation: Any) -> Any:
        if self.element == self.symmetry.group.identity:
            return observation
        return self._observations.act(self.element, observation)


class RandomSymmetry(SymmetryWrapper):
    """An environment seen through a random group element, drawn anew for each episode.

    The element is drawn uniformly, from a generator of the wrapper's own that a seeded reset
    seeds. So what the environment itself draws is the same as without the wrapper.
    ``env.element`` tells the element.

    Args:
        env: The environment.
        symmetry: Its symmetry; looked up by its id when omitted.

    Raises:
        ValueError: If the symmetry is unknown or does not fit the environment's spaces.

    >>> import equirl
    >>> env = RandomSymmetry(gym.make("equirl/Gridworld-v0"))
    >>> elements = []
    >>> for seed in range(5):
    ...     observation, info = env.reset(seed=seed)
    ...     elements.append(env.element)
    >>> elements
    [2, 2, 1, 3, 1]
    """

    def __init__(self, env: gym.Env, symmetry: Symmetry | None = None) -> None:
        RecordConstructorArgs.__init__(self, symmetry=symmetry)
        SymmetryWrapper.__init__(self, env, symmetry)
        self._generator = _element_generator(None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, draw an element, and show the observation through it."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._generator = _element_generator(seed)
        self.element = int(self._generator.integers(len(self.symmetry.group)))
        return self._seen(observation), info


class VectorSymmetryWrapper(VectorWrapper):
    """The twin of `SymmetryWrapper` for vector environments.

    Args:
        env: The vector environment.
        symmetry: Of one of its environments; looked up by its id when omitted.
        element: The group element g.

    Raises:
        ValueError: If the symmetry is unknown or does not fit the environment's spaces.
        IndexError: If the element is none of the group.

    >>> import equirl
    >>> envs = VectorSymmetryWrapper(gym.make_vec("CartPole-v1", num_envs=3), element=1)
    >>> observations, _ = envs.reset(seed=0)
    >>> envs.elements, observations.shape
    (array([1, 1, 1]), (3, 4))
    """

    def __init__(self, env: VectorEnv, symmetry: Symmetry | None = None, element: int = 0) -> None:
        super().__init__(env)
        self.symmetry = _bind(symmetry, env, env.single_observation_space, env.single_action_space)
        self.elements = np.full(env.num_envs, self.symmetry.group.check_element(element))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset and show the first observations through the elements."""
        # the vector environment takes the mask out of the options that it is given
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._begin_episodes(mask, seed)
        return self._seen(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Carry the actions back, step, and show the observations through the elements."""
        actions = np.asarray(actions)
        original = actions.copy()
        for g in np.unique(self.elements):
            mask = self.elements == g
            back = self.symmetry.group.inverse(g)
            original[mask] = self.symmetry.act_on_actions(back, actions[mask])
        observations, rewards, terminated, truncated, infos = self.env.step(original)
        if "final_obs" in infos:  # only under SAME_STEP
            final = infos["final_obs"].copy()
            for i in np.flatnonzero(infos["_final_obs"]):
                one = each(lambda array: array[None], final[i])
                moved = self.symmetry.act_on_observations(self.elements[i], one)
                final[i] = each(lambda array: array[0], moved)
            infos = {**infos, "final_obs": final}
        self._track_episodes(terminated | truncated)
        return self._seen(observations), rewards, terminated, truncated, infos

    def _begin_episodes(
        self, mask: NDArray[np.bool_], seed: int | Sequence[int | None] | None = None
    ) -> None:
        """Called when the environments in the mask have begun a new episode, with seeds if any."""

    def _track_episodes(self, done: NDArray[np.bool_]) -> None:
        """Called after each step with the environments whose episode has ended."""

    def _seen(self, observations: Any) -> Any:
        seen = each(np.empty_like, observations)
        for g in np.unique(self.elements):
            mask = self.elements == g
            own = each(lambda array, mask=mask: array[mask], observations)
            moved = self.symmetry.act_on_observations(g, own)
            for whole, part in pairs_of(seen, moved):
                whole[mask] = part
        return seen


class VectorRandomSymmetry(VectorSymmetryWrapper):
    """The twin of `RandomSymmetry` for vector environments: an element per environment, episode.

    It gives the same episodes as a vector of environments in `RandomSymmetry`.

    Args:
        env: The vector environment, of any autoreset mode.
        symmetry: Of one of its environments; looked up by its id when omitted.

    Raises:
        ValueError: If the symmetry is unknown or does not fit the environment's spaces, or the
            environment does not tell its autoreset mode.

    >>> import equirl
    >>> envs = VectorRandomSymmetry(gym.make_vec("equirl/Gridworld-v0", num_envs=5))
    >>> observations, _ = envs.reset(seed=0)
    >>> envs.elements
    array([2, 2, 1, 3, 1])
    """

    def __init__(self, env: VectorEnv, symmetry: Symmetry | None = None) -> None:
        super().__init__(env, symmetry)
        if "autoreset_mode" not in env.metadata:
            raise ValueError(
                f"{env} does not say in metadata['autoreset_mode'] when a new episode begins"
            )
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._ended = np.zeros(env.num_envs, dtype=bool)
        self._generators = [_element_generator(None) for _ in range(env.num_envs)]

    def _begin_episodes(
        self, mask: NDArray[np.bool_], seed: int | Sequence[int | None] | None = None
    ) -> None:
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        for i in map(int, np.flatnonzero(mask)):
            if seeds is not None and seeds[i] is not None:
                self._generators[i] = _element_generator(seeds[i])
            self.elements[i] = self._generators[i].integers(len(self.symmetry.group))
        self._ended[mask] = False

    def _track_episodes(self, done: NDArray[np.bool_]) -> None:
        if self._mode == AutoresetMode.NEXT_STEP:
            # those that ended a step ago have just been reset
            self._begin_episodes(self._ended.copy())
            self._ended |= done
        elif self._mode == AutoresetMode.SAME_STEP:
            self._begin_episodes(done)


def _element_generator(seed: int | None) -> np.random.Generator:
    """What draws elements; not as the environment of the same seed draws."""
    return np.random.default_rng(seed if seed is None else [seed, 1])


class _Single:
    """How a group acts on one observation or action, by numpy alone where that is possible.

    Possible it is for ids, and for vectors and images whose entries only move and change signs. A
    call of torch for each step takes longer than the step of many an environment.
    """

    def __init__(self, representation: Representation, space: gym.Space) -> None:
        self.representation = representation
        self.space = space
        self.entries: dict[str, _Single] = {}
        if isinstance(space, spaces.Dict):
            tree: Any = representation
            parts = tree.by_name()
            self.entries = {name: _Single(parts[name], own) for name, own in space.items()}
        self.labels: NDArray[np.int64] | None = None
        self.moves: Moves | None = None  # both (|G|, entries)
        if isinstance(space, spaces.Discrete) and isinstance(representation, Permutation):
            self.labels = representation.permutations.cpu().numpy()
        elif isinstance(space, spaces.Box) and 0 not in representation.axes:  # it is linear
            moves = moves_of(representation.orbit, (1, *space.shape))
            if moves is not None:
                places, signs = moves
                order = len(representation.group)
                signs = None if signs is None else signs.astype(space.dtype).reshape(order, -1)
                self.moves = places.reshape(order, -1), signs

    def act(self, g: int, x: Any) -> Any:
        """Element g applied to one observation or action."""
        if self.entries:
            return {name: self.entries[name].act(g, x[name]) for name in self.entries}
        if self.labels is not None:
            if not self.space.contains(x):
                raise ValueError(f"actions are in {self.space}; got {x!r}")
            return self.labels[g, x]
        x = np.asarray(x)
        if x.shape != self.space.shape:
            raise ValueError(f"expected the shape of {self.space}; got {x.shape}")
        if self.moves is None:
            return self.representation.act(g, torch.from_numpy(x[None].copy())).numpy()[0]
        places, signs = self.moves
        moved = x.ravel()[places[g]]
        return (moved if signs is None else moved * signs[g]).reshape(x.shape)


def _bind(
    symmetry: Symmetry | None,
    env: gym.Env | VectorEnv,
    observation_space: gym.Space,
    action_space: gym.Space,
) -> Symmetry:
    symmetry = symmetry_of(env) if symmetry is None else symmetry
    symmetry.check_spaces(observation_space, action_space)
    return symmetry
