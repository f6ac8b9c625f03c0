"""Teaching lambda what an agent knows, from what it has lived through; the agent stays as it is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import equicore
from equicore import MLPWeight, WeightedMean
from equirl.algorithms import QValues
from equirl.arrays import Observations
from equirl.experience import Experience
from equirl.policies import LambdaEquitunePolicy
from equirl.symmetrized import equituned


def fit_familiarity(
    policy: LambdaEquitunePolicy,
    observations: Observations,
    *,
    steps: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    held_out: float = 0.1,
    seed: int = 0,
) -> float:
    """Train the weights of lambda-equitune on states that the agent has visited.

    No reward and no further interaction is needed: the weight network learns to tell the
    visited states from their transforms (`equicore.fit_familiarity`).

    Args:
        policy: The policy; its weight network is trained in place.
        observations: Visited observations (N, ...), or a dict of them, for instance those of
            `replay_experience` or `rollout_experience`; some ten thousand are plenty for
            choices, and twenty thousand were needed where actions are vectors (docs/study.md).
        steps: Optimiser steps. When omitted, 1,000 where views are averaged, and 5,000 where one
            is chosen, as for continuous actions: rare states, such as first ones, take longer to
            become familiar, and a wrong choice there is not averaged away.
        batch_size: Observations in a step.
        learning_rate: The first step's.
        held_out: Part of the observations that is not trained on.
        seed: Of the split and the order of the observations.

    Returns:
        The cross-entropy on held-out observations, in nats: log |G| if the agent has visited all
        transforms of a state alike, 0 if it has visited only one.

    Raises:
        TypeError: If the policy has no weights to fit.
        ValueError: If the observations are too few, of another shape, or hold NaN.
    """
    _check_policy(policy)
    if steps is None:
        steps = 1000 if policy.head.averages else 5000
    inputs = policy.inputs(policy.obs_to_tensor(observations)[0])
    return equicore.fit_familiarity(
        policy.symmetrized,
        inputs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        held_out=held_out,
        seed=seed,
    )


def fit_temporal_difference(
    policy: LambdaEquitunePolicy,
    experience: Experience,
    *,
    gamma: float | None = None,
    steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Train the weights of lambda-equitune on the temporal-difference loss, the agent frozen.

    The weighted Q-values Q'(s, .) = sum_g lambda(g s) Q(g s, .)[g .] shall satisfy Bellman's
    equation: minimises the Huber loss of Q'(s, a) - r - gamma max_b Q'(s', b), whose target has
    no gradient, as in the training of a DQN. The weights then go to the views whose Q-values are
    consistent with what happened. They are those of the network alone, and of the Q-values as
    they are, so give the policy ``sharpness=0`` and ``normalize=None``.

    Args:
        policy: The policy; its weight network is trained in place.
        experience: Transitions, for instance of `replay_experience`.
        gamma: Discount; that of the policy's agent when omitted.
        steps: Optimiser steps (Adam, cosine schedule).
        batch_size: Transitions in a step.
        learning_rate: The first step's.
        seed: Of the order of the transitions; the global random state is left alone.

    Returns:
        The loss over all transitions after the training.

    Raises:
        TypeError: If the policy has no weights to fit, or its agent no Q-values.
        ValueError: If the experience is empty, or no discount is known.
    """
    _check_policy(policy)
    if not isinstance(policy.head, QValues):
        raise TypeError(
            "the temporal-difference loss is one of Q-values, which the agent of this policy has "
            f"not: {type(policy.policy).__name__}"
        )
    gamma = getattr(policy.model, "gamma", None) if gamma is None else gamma
    if gamma is None:
        raise ValueError("a DQNPolicy does not know its discount; give gamma=, or the whole DQN")
    if len(experience) == 0:
        raise ValueError("the experience is empty")
    reduce = policy.symmetrized.reduce
    assert isinstance(reduce, WeightedMean)
    # Bellman's equation is about the Q-values as they are
    plain = equituned(policy, normalize=None)
    device = policy.policy.device
    before, after = (
        policy.inputs(policy.obs_to_tensor(seen)[0])
        for seen in (experience.observations, experience.next_observations)
    )
    actions, rewards, terminated = (
        torch.from_numpy(np.ascontiguousarray(x)).to(device)
        for x in (experience.actions, experience.rewards, experience.terminated)
    )
    if isinstance(reduce.weight, MLPWeight):
        with torch.no_grad():
            some = before[:: -(-len(before) // 4096)]
            reduce.weight.standardize(plain.views(some).flatten(0, 1))

    def weighted(observations: Tensor) -> Tensor:  # (B, actions); only the weights learn
        with torch.no_grad():
            aligned = plain.aligned(observations)
        return reduce.whole(aligned, reduce.log_weights(plain.views(observations)))

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad():
            best = weighted(after[rows]).amax(1)
            target = rewards[rows] + gamma * best.where(~terminated[rows], 0)
        chosen = weighted(before[rows]).gather(1, actions[rows].long()[:, None])
        return functional.smooth_l1_loss(chosen.squeeze(1), target.to(chosen.dtype))

    optimizer = torch.optim.Adam(reduce.weight.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(experience), (batch_size,), generator=generator).to(device)
        optimizer.zero_grad()
        loss(rows).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(loss(torch.arange(len(experience), device=device)))


def _check_policy(policy: LambdaEquitunePolicy) -> None:
    if not isinstance(policy, LambdaEquitunePolicy):
        raise TypeError(
            f"only LambdaEquitunePolicy has weights to fit; got {type(policy).__name__}"
        )
