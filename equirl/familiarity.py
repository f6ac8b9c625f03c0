"""Teaching lambda what an agent knows: weights from the states that the agent has visited."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv

import equicore
from equirl.policies import LambdaEquitunePolicy


def fit_familiarity(
    policy: LambdaEquitunePolicy, observations: NDArray[Any], **options: Any
) -> float:
    """Train the weights of lambda-equitune on states that the agent has visited.

    No reward and no further interaction is needed: the weight network learns to tell the
    visited states from their transforms (`equicore.fit_familiarity`).

    Args:
        policy: The policy; its weight network is trained in place.
        observations: Visited observations (N, ...), for instance of `replay_observations` or
            `rollout_observations`; some ten thousand are plenty.
        **options: ``steps``, ``batch_size``, ``learning_rate``, ``held_out``, ``seed`` of
            `equicore.fit_familiarity`.

    Returns:
        The cross-entropy on held-out observations, in nats: log |G| if the agent has visited all
        transforms of a state alike, 0 if it has visited only one.

    Raises:
        TypeError: If the policy has no weights to fit.
        ValueError: If the observations are too few, of another shape, or hold NaN.
    """
    if not isinstance(policy, LambdaEquitunePolicy):
        raise TypeError(
            f"only LambdaEquitunePolicy has weights to fit; got {type(policy).__name__}"
        )
    inputs = torch.from_numpy(np.array(observations))
    return equicore.fit_familiarity(policy.symmetrized, inputs, **options)


def replay_observations(model: DQN, limit: int = 20_000) -> NDArray[Any]:
    """The last observations in an agent's replay buffer, shape (N, ...), oldest first.

    Args:
        model: The agent, as it was trained in this process or with its buffer loaded.
        limit: Largest N.

    Raises:
        ValueError: If the buffer is empty; archives of Stable-Baselines3 do not hold it.
    """
    buffer = model.replay_buffer
    if buffer is None or buffer.size() == 0:
        raise ValueError(
            "the replay buffer is empty (saved agents come without it); "
            "use rollout_observations instead"
        )
    newest = buffer.pos if buffer.full else buffer.size()
    # one row of the buffer holds a step of each environment that ran side by side
    rows = min(-(-limit // buffer.n_envs), buffer.size())
    places = (newest - np.arange(rows)[::-1] - 1) % len(buffer.observations)
    observations = buffer.observations[places]
    observations = observations.reshape(-1, *observations.shape[2:])
    return observations[max(0, len(observations) - limit) :]


def rollout_observations(
    model: PolicyPredictor,
    env_id: str,
    steps: int = 20_000,
    *,
    seed: int,
    n_envs: int = 8,
    env_kwargs: dict[str, Any] | None = None,
) -> NDArray[Any]:
    """The observations that an agent visits when it acts greedily, shape (N, ...).

    Args:
        model: The agent.
        env_id: Id of its environment.
        steps: At least this many observations, N.
        seed: The first of ``n_envs`` consecutive seeds; keep them apart from those of evaluation.
        n_envs: Environments that run side by side.
        env_kwargs: Passed to ``gymnasium.make``.
    """
    envs = DummyVecEnv([lambda: gym.make(env_id, **(env_kwargs or {}))] * n_envs)
    envs.seed(seed)
    visited = [envs.reset()]
    while len(visited) * n_envs < steps:
        actions, _ = model.predict(visited[-1], deterministic=True)  # type: ignore[arg-type]
        visited.append(envs.step(actions)[0])
    envs.close()
    return np.concatenate(visited)  # type: ignore[arg-type]
