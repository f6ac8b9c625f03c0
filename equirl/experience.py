"""Transitions of an agent: from its replay buffer, or from rollouts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import trange

from equicore.lab.store import read_tensors, write_tensors
from equirl.arrays import each, pairs_of
from equirl.normalization import seen_by

LONGEST = 1000
"""Steps after which an episode of random actions is given up that does not end."""


@dataclasses.dataclass(frozen=True, eq=False)
class Experience:
    """N transitions; within an episode they stand in the order in which they happened.

    Attributes:
        observations: Before the step, shape (N, ...), or a dict of such arrays.
        actions: Discrete actions, shape (N,), or continuous ones (N, ...).
        rewards: Shape (N,).
        next_observations: After the step, likewise; at the end of an episode the last one
            of that episode.
        terminated: Whether the environment ended the episode, so that nothing follows, shape (N,).
        ended: Whether the next row begins another episode or stands elsewhere in one, because
            this one was terminated or truncated or the record stops, shape (N,).
    """

    observations: Any
    actions: NDArray[Any]
    rewards: NDArray[Any]
    next_observations: Any
    terminated: NDArray[np.bool_]
    ended: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        lengths = {name: len(array) for name, array in self._arrays().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"each transition needs all its parts; got numbers of rows {lengths}")

    def __len__(self) -> int:
        """The number of transitions."""
        return len(self.rewards)

    def newest(self, limit: int) -> Experience:
        """The last ``limit`` rows, or all if there are fewer."""
        return self.rows(slice(max(0, len(self) - limit), None))

    def rows(self, which: slice | NDArray[Any]) -> Experience:
        """Some rows."""
        chosen = {n: each(lambda array: array[which], p) for n, p in self._parts().items()}
        return Experience(**chosen)

    def and_then(self, other: Experience) -> Experience:
        """These transitions, then those of another one."""
        mine, others = self._parts(), other._parts()
        both = {n: each(lambda *rows: np.concatenate(rows), mine[n], others[n]) for n in mine}
        return Experience(**both)

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, which holds no code."""
        write_tensors(path, {n: torch.from_numpy(p) for n, p in self._arrays().items()}, {})

    @classmethod
    def load(cls, path: str | Path) -> Experience:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, or holds something else.
        """
        tensors, _ = read_tensors(path)
        parts: dict[str, Any] = {}
        for name, tensor in tensors.items():
            part, _, entry = name.partition(".")
            if entry:
                parts.setdefault(part, {})[entry] = tensor.numpy()
            else:
                parts[part] = tensor.numpy()
        if parts.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"{path} holds no experience, but {', '.join(sorted(tensors))}")
        return cls(**parts)

    def _parts(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays, those of dicts as in ``observations.desired_goal``."""
        return {
            f"{name}.{entry}" if entry else name: array
            for name, part in self._parts().items()
            for entry, array in (part if isinstance(part, dict) else {"": part}).items()
        }


def replay_experience(model: OffPolicyAlgorithm, limit: int = 20_000) -> Experience:
    """The last transitions in an agent's replay buffer.

    Args:
        model: The agent, as it was trained in this process or with its buffer loaded.
        limit: Largest number of transitions, at least 1.

    Raises:
        TypeError: If the agent has no replay buffer, as those that learn from rollouts.
        ValueError: If the buffer is empty, as that of a loaded archive is, or saves memory by
            keeping no next observations.
    """
    if limit < 1:
        raise ValueError(f"limit is a number of transitions, at least 1; got {limit}")
    if not hasattr(model, "replay_buffer"):
        raise TypeError(
            f"{type(model).__name__} has no replay buffer; use rollout_experience, which lets the "
            "agent act"
        )
    buffer = model.replay_buffer
    if buffer is None or buffer.size() == 0:
        raise ValueError(
            "the replay buffer is empty (saved agents come without it); "
            "use rollout_experience instead"
        )
    if buffer.optimize_memory_usage:
        raise ValueError(
            "a replay buffer with optimize_memory_usage keeps no next observations; use "
            "rollout_experience instead"
        )
    newest = buffer.pos if buffer.full else buffer.size()
    # one row of the buffer holds a step of each environment that ran side by side
    rows = min(-(-limit // buffer.n_envs), buffer.size())
    places = (newest - np.arange(rows)[::-1] - 1) % len(buffer.rewards)
    observations, follows = (
        each(lambda array: array[places], part)
        for part in (buffer.observations, buffer.next_observations)
    )
    shape = buffer.action_space.shape or ()
    actions = buffer.actions[places].reshape(rows, buffer.n_envs, *shape)
    if isinstance(buffer.action_space, spaces.Box):  # they are kept scaled to -1..1
        actions = model.policy.unscale_action(actions)
    dones = buffer.dones[places].astype(bool)
    # buffers keep observations as they were before they were normalised
    observations, follows = map(seen_by(model), (observations, follows))
    # a training may also have reset the environment between two steps
    ended = dones.copy()
    for after, before in pairs_of(follows, observations):
        moved = after[:-1] != before[1:]
        ended[:-1] |= moved.any(axis=tuple(range(2, moved.ndim)))
    ended[-1] = True
    return _one_after_the_other(
        observations,
        actions,
        buffer.rewards[places],
        follows,
        dones & ~buffer.timeouts[places].astype(bool),
        ended,
    ).newest(limit)


def rollout_experience(
    model: PolicyPredictor,
    env: str | Callable[[], gym.Env],
    steps: int = 20_000,
    *,
    seed: int,
    n_envs: int = 8,
    env_kwargs: dict[str, Any] | None = None,
) -> Experience:
    """Transitions of an agent that acts greedily.

    Args:
        model: The agent.
        env: Id of its environment, or a function that makes it.
        steps: At least this many transitions.
        seed: The first of ``n_envs`` consecutive seeds; keep them apart from those of evaluation.
        n_envs: Environments that run side by side.
        env_kwargs: Passed to ``gymnasium.make``, or to the function.

    Raises:
        TypeError: If env is an environment.
        ValueError: If a number is less than 1.
    """
    if steps < 1 or n_envs < 1:
        raise ValueError(f"steps and n_envs are at least 1; got {steps} and {n_envs}")
    if not isinstance(env, str) and not callable(env):
        raise TypeError(
            "expected the id of an environment, or a function that makes it, as several play side "
            f"by side; got {env!r}"
        )
    make = functools.partial(gym.make, env) if isinstance(env, str) else env
    envs = DummyVecEnv([lambda: make(**(env_kwargs or {}))] * n_envs)
    envs.seed(seed)
    see = seen_by(model)
    before = see(envs.reset())
    lived = []
    masked = takes_masks(model)
    if masked and not envs.has_attr("action_masks"):
        masked = False
        warnings.warn(
            "this agent takes masks of actions, and the environment has no action_masks(): it "
            "plays without; give a function that makes the environment with them",
            stacklevel=2,
        )
    predict: Any = model.predict
    for _ in range(-(-steps // n_envs)):
        masks = {"action_masks": np.stack(envs.env_method("action_masks"))} if masked else {}
        actions, _ = predict(before, deterministic=True, **masks)
        after, rewards, dones, infos = envs.step(actions)
        after = see(after)
        last = each(np.copy, after)
        truncated = np.zeros(n_envs, dtype=bool)
        for i in np.flatnonzero(dones):
            ending = see(infos[i]["terminal_observation"])
            for rows, one in pairs_of(last, ending):
                rows[i] = one
            truncated[i] = infos[i]["TimeLimit.truncated"]
        lived.append((before, actions, rewards, last, dones & ~truncated, dones))
        before = after
    envs.close()
    stacked = [each(lambda *rows: np.stack(rows), *part) for part in zip(*lived, strict=True)]
    stacked[-1][-1] = True
    return _one_after_the_other(*stacked)


def takes_masks(model: Any) -> bool:
    """Whether an agent, or a policy around it, is told which actions are allowed."""
    policy = getattr(model, "policy", model)  # a symmetrised policy takes what its agent does
    return "action_masks" in inspect.signature(policy.predict).parameters


def random_experience(env: gym.Env, steps: int, seed: int, hold: int = 1) -> Experience:
    """Transitions under random actions.

    Args:
        env: Has observations in a ``Box``.
        steps: How many.
        seed: Of the first episode and of the actions.
        hold: In every second episode an action is kept for so many steps at most: that leads
            further than an action drawn anew in each step.
    """
    rows: list[tuple[Any, ...]] = []
    generator = np.random.default_rng(seed)
    env.action_space.seed(seed)
    before = np.array(env.reset(seed=seed)[0])
    kept = lasted = episodes = 0
    for _ in trange(steps, desc="random actions", leave=False, delay=3):
        if not kept:
            action = env.action_space.sample()
            kept = int(generator.integers(hold)) if episodes % 2 else 0
        else:
            kept -= 1
        after, reward, terminated, truncated, _ = env.step(action)
        lasted += 1
        ended = bool(terminated or truncated or lasted == LONGEST)
        after = np.array(after)  # an environment may show the same array each time
        rows.append((before, action, float(reward), after, bool(terminated), ended))
        if ended:
            before = np.array(env.reset()[0])
            kept = lasted = 0
            episodes += 1
        else:
            before = after
    parts = [np.array(part) for part in zip(*rows, strict=True)]
    parts[-1][-1] = True
    return Experience(*parts)


def _one_after_the_other(*parts: Any) -> Experience:
    """Steps of environments side by side, (T, n_envs, ...), as those of each in turn."""
    in_turn = (each(lambda rows: np.concatenate(rows.swapaxes(0, 1)), part) for part in parts)
    return Experience(*in_turn)
