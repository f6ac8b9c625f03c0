"""What follows from observations and actions, learned from transitions.

The statistical check and the search for symmetries see an environment through its transitions
alone: a small network learns from observation and action what changes, the reward, and whether the
episode ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import jacrev, vmap
from tqdm import trange

from equirl.experience import Experience
from equirl.signed import Signed
from equirl.symmetry import Symmetry

USUAL, LARGEST = 0.98, 5.0
"""Entries change by as much as the root mean square of all changes, larger ones than this quantile
being cut off; targets are cut off at so many times it. Those of contacts would hide all others."""
WIDTH, BATCH, RATE = 128, 256, 2e-3
"""Hidden units of each layer, rows of a step of training, and its largest rate."""
ROWS = 256
"""Held-out transitions by which elements are judged."""
WORST, OUTLIER = 4.0, 25.0
"""Squared errors that count at most: of a target's mean in parts of its variance, of one row."""
STILL = 1e-8
"""Entries that change by less do not change."""


def transformed(experience: Experience, symmetry: Symmetry, g: int) -> Experience:
    """What a group element makes of transitions."""
    return Experience(
        symmetry.act_on_observations(g, experience.observations),
        symmetry.act_on_actions(g, experience.actions),
        experience.rewards,
        symmetry.act_on_observations(g, experience.next_observations),
        experience.terminated,
        experience.ended,
    )


@dataclass(frozen=True)
class Scales:
    """Transitions as inputs and targets of a network, all about as wide as each other.

    Attributes:
        actions: How many discrete actions there are, or entries of an action vector.
        discrete: Whether actions are ids.
        centre: Of the inputs, (entries + actions,).
        spread: Of the inputs, (entries + actions,).
        changes: How much each entry usually changes, (entries,); 1 where it does not.
        rewards: All rewards, sorted.
    """

    actions: int
    discrete: bool
    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    changes: NDArray[np.float64]
    rewards: NDArray[np.float64]

    @classmethod
    def of(cls, experience: Experience, space: spaces.Space) -> Scales:
        """The scales of transitions in an environment with this action space."""
        discrete = isinstance(space, spaces.Discrete)
        actions = (
            int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape or ())
        )
        both = _inputs(experience, actions, discrete)
        spread = both.std(0)
        changes = usual(_moved(experience))
        return cls(
            actions,
            discrete,
            both.mean(0),
            np.where(spread > STILL, spread, 1),
            np.where(changes > STILL, changes, 1),
            np.sort(np.asarray(experience.rewards, float)),
        )

    def inputs(self, experience: Experience) -> Tensor:
        """Observations and actions, (N, entries + actions)."""
        both = _inputs(experience, self.actions, self.discrete)
        return torch.from_numpy((both - self.centre) / self.spread).float()

    def targets(self, experience: Experience) -> Tensor:
        """Changes, reward and end, (N, entries + 2).

        The reward stands by its rank: a few large ones would hide all others.
        """
        from scipy.special import ndtri  # scipy is slow to import, and not needed for policies

        moved = (_moved(experience) / self.changes).clip(-LARGEST, LARGEST)
        near = 1e-9 * (1 + abs(self.rewards).max())
        rewards = np.asarray(experience.rewards, float)
        low = np.searchsorted(self.rewards, rewards - near, "left")
        high = np.searchsorted(self.rewards, rewards + near, "right")
        rank = ndtri((low + high + 1) / (2 * len(self.rewards) + 2))
        ends = np.asarray(experience.terminated, float)
        return torch.from_numpy(np.column_stack([moved, rank, ends])).float()


def usual(changes: NDArray[Any]) -> NDArray[np.float64]:
    """By how much each entry usually changes, of changes (N, entries): `USUAL`."""
    size = abs(changes)
    cut = np.sqrt((np.minimum(size, np.quantile(size, USUAL, 0)) ** 2).mean(0))
    return np.where(cut > STILL, cut, np.sqrt((size**2).mean(0)))


def flat(observations: NDArray[Any]) -> NDArray[np.float64]:
    """Observations as vectors, (N, entries)."""
    return np.asarray(observations, float).reshape(len(observations), -1)


def fitted(inputs: Tensor, targets: Tensor, steps: int, seed: int) -> nn.Sequential:
    """A network that has learned targets from inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, targets.shape[1]),
        )
        optimizer = torch.optim.Adam(network.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in trange(steps, desc="learning what follows", leave=False, delay=3):
            rows = torch.randint(len(inputs), (BATCH,))
            loss = (network(inputs[rows]) - targets[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False).eval()


def halves(experience: Experience, seed: int) -> tuple[Experience, Experience, NDArray[np.int64]]:
    """Two halves, and the number of the stretch of time that each row of the second is from.

    Stretches are episodes, or parts of long ones.
    """
    starts = np.concatenate([[0], np.cumsum(experience.ended)[:-1]])
    place = np.arange(len(experience)) - np.searchsorted(starts, starts)
    _, stretch = np.unique(np.column_stack([starts, place // 50]), axis=0, return_inverse=True)
    second = np.random.default_rng(seed).permutation(stretch.max() + 1)[stretch] % 2 == 1
    return experience.rows(~second), experience.rows(second), stretch[second]


class Learned:
    """What follows, learned; and held-out transitions to judge elements by."""

    def __init__(self, experience: Experience, space: spaces.Space, steps: int, seed: int) -> None:
        self.scales = scales = Scales.of(experience, space)
        known, other, _ = halves(experience, seed)
        self.network = fitted(scales.inputs(known), scales.targets(known), steps, seed)
        order = np.random.default_rng(seed).permutation(len(other))
        self.size = len(scales.centre)
        self.entries = self.size - scales.actions
        self.inputs = scales.inputs(other)[order]
        self.targets = scales.targets(other)[order]
        self.centre, self.spread, self.changes = (
            torch.from_numpy(x).float() for x in (scales.centre, scales.spread, scales.changes)
        )
        self.values = self.inputs * self.spread + self.centre
        self.moved = torch.from_numpy(_moved(other)[order]).float()
        variance = self.targets.var(0)
        self.used = variance > 1e-3
        self.variance = variance.clamp(min=1e-3)
        moves = experience.observations.std(0).reshape(-1) > STILL
        self.still = frozenset(np.flatnonzero(~moves).tolist())

    def errors(self, elements: Sequence[Signed], rows: int = ROWS) -> NDArray[np.float64]:
        """How badly the network predicts what each element makes of held-out transitions."""
        if not elements:
            return np.zeros(0)
        return np.concatenate(
            [self._errors(elements[i : i + 64], rows) for i in range(0, len(elements), 64)]
        )

    def _errors(self, elements: Sequence[Signed], rows: int) -> NDArray[np.float64]:
        source = torch.tensor([e.source for e in elements])
        sign = torch.tensor([e.sign for e in elements]).float()[:, None]
        count, n = len(elements), self.entries
        seen = self.values[:rows][:, source].transpose(0, 1) * sign
        moved = self.moved[:rows][:, source[:, :n]].transpose(0, 1) * sign[..., :n]
        moved = (moved / self.changes).clamp(-LARGEST, LARGEST)
        wanted = torch.cat([moved, self.targets[:rows, n:].expand(count, -1, -1)], -1)
        found = self.network(((seen - self.centre) / self.spread).flatten(0, 1))
        off = (found.unflatten(0, (count, -1)) - wanted).square().clamp(max=OUTLIER).mean(1)
        return (off / self.variance)[:, self.used].clamp(max=WORST).sum(1).double().numpy()

    def sensitivities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean absolute values, and means, of how each target depends on each input.

        Both of shape (targets, nodes), in units of the spreads. Of discrete actions: of how an
        action differs from the mean of all.
        """
        each = vmap(jacrev(self.network))(self.inputs[: 2 * ROWS])
        if self.scales.discrete:
            n, states = self.entries, self.inputs[: 2 * ROWS]
            follows = []
            for action in range(self.scales.actions):
                acts = -self.centre[n:] / self.spread[n:]
                acts[action] = (1 - self.centre[n + action]) / self.spread[n + action]
                follows.append(
                    self.network(torch.cat([states[:, :n], acts.expand(len(states), -1)], 1))
                )
            effects = torch.stack(follows, -1)
            each = torch.cat([each[..., :n], effects - effects.mean(-1, keepdim=True)], -1)
        return each.abs().mean(0).double().numpy(), each.mean(0).double().numpy()


def _moved(experience: Experience) -> NDArray[np.float64]:
    return flat(experience.next_observations) - flat(experience.observations)


def _inputs(experience: Experience, actions: int, discrete: bool) -> NDArray[np.float64]:
    """Observations and actions as vectors, (N, entries + actions): ones and zeros of ids."""
    told = experience.actions
    acts = np.eye(actions)[np.asarray(told, int)] if discrete else flat(told)
    return np.concatenate([flat(experience.observations), acts], 1)
