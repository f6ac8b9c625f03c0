"""The policy that the evidence says is safe for an agent, fitted and ready to act."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm

from equirl.arrays import Observations, rows_of
from equirl.experience import Experience, replay_experience, rollout_experience
from equirl.heads import ContinuousHead
from equirl.policies import LambdaEquitunePolicy
from equirl.preprocessing import added
from equirl.registry import Env
from equirl.seeds import ROLLOUT_SEED
from equirl.symmetry import Symmetry
from equirl.weights import fit_familiarity

CHOICES = (
    "the views' probabilities weighed by how familiar each view is and how sure the agent is of "
    "it; equitune and equizero ruin agents that are perfect on one side only (results/study)"
)
VECTORS = (
    "the action of the most familiar view, which is held from step to step; averages of actions "
    "and the agent's own value ruin some gaits (results/rules)"
)
FEW = 20_000
"""Of fewer states too little may be known where actions are vectors (docs/study.md)."""
OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "max_episode_steps")
"""What ``gymnasium.make_vec`` keeps beside the arguments of an environment."""


def symmetrize(
    model: BaseAlgorithm,
    symmetry: Symmetry | Env,
    experience: Experience | Observations | None = None,
    *,
    transitions: int = 20_000,
    verbose: int = 1,
) -> LambdaEquitunePolicy:
    """Make an agent equivariant by the policy that measured safest (docs/study.md).

    This is `LambdaEquitunePolicy` for agents of every kind, fitted to the states that the agent
    visits. Which policy is best for one agent, ``equirl compare --select`` finds by playing.

    Args:
        model: The agent.
        symmetry: Of its environment; or the environment, or its registered id.
        experience: What the weights learn from, or observations alone. When omitted, the agent's
            replay buffer if there is something in it, else the agent plays in the environment.
        transitions: How many, where they are not given. Fewer than 20,000 are warned of where
            actions are vectors.
        verbose: 1 prints which policy it is and why, 0 nothing.

    Returns:
        The policy; its weights have learned.

    Raises:
        TypeError: If there is no head for the model.
        ValueError: If the symmetry does not fit, or nothing is given that the weights can learn
            from.

    >>> import gymnasium as gym, equirl
    >>> from stable_baselines3 import PPO
    >>> agent = PPO("MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cpu")
    >>> policy = equirl.symmetrize(agent, "CartPole-v1", transitions=500, verbose=0)
    >>> policy
    LambdaEquitunePolicy(ActorCriticPolicy, Box(4,) to Discrete(2), cyclic(2))
    """
    policy = LambdaEquitunePolicy(model, symmetry)
    if experience is None:
        experience = _lived(model, symmetry, transitions)
    seen = experience.observations if isinstance(experience, Experience) else experience
    continuous = isinstance(policy.head, ContinuousHead)
    if continuous and rows_of(seen) < FEW:
        warnings.warn(
            f"{rows_of(seen):,} states may be too few to tell which views are familiar: from "
            f"5,000 an A2C of LunarLander kept half of its return, from {FEW:,} all; see "
            "docs/study.md",
            stacklevel=2,
        )
    fit_familiarity(policy, seen)
    if verbose:
        why = VECTORS if continuous else CHOICES
        print(f"equirl uses {policy}: {why}")
    return policy


def _lived(model: Any, symmetry: Any, transitions: int) -> Experience:
    """Transitions of the agent: from its buffer, or played."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None and buffer.size() >= transitions:
        return replay_experience(model, transitions)
    if isinstance(symmetry, Symmetry):
        raise ValueError(
            "to learn which states are familiar, give experience= (see rollout_experience), or the "
            "environment or its id in place of the Symmetry, so that the agent can play"
        )
    if isinstance(symmetry, str):
        return rollout_experience(model, symmetry, transitions, seed=ROLLOUT_SEED)
    if around := added(symmetry):
        raise ValueError(
            f"this environment is wrapped in {', '.join(around)}, and the agent would play in one "
            "that is not; give experience=rollout_experience(model, make, seed=...), where make "
            "makes the environment so"
        )
    spec = symmetry.get_attr("spec")[0] if hasattr(symmetry, "get_attr") else symmetry.spec
    kwargs = {name: value for name, value in spec.kwargs.items() if name not in OF_VECTORS}
    make = functools.partial(gym.make, spec.id, spec.max_episode_steps, **kwargs)
    return rollout_experience(model, make, transitions, seed=ROLLOUT_SEED)
