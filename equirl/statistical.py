"""Is a symmetry true of transitions, where no twin of the environment can be made?

Where it is, what follows from an observation and an action does not depend on whether the
transition was transformed. Two networks learn what follows from transitions and transformed ones,
one of them knowing which is which. What the second one says of the difference is a direction in
which the first one's errors are looked at, on held-out transitions: their mean in this direction,
in parts of its standard error, is near a standard normal where the symmetry holds (the projected
covariance measure of Lundborg, Kim, Shah and Samworth, 2024, The Annals of Statistics). Networks
that are not exact make it see less, and do not make it see what is not there. Two directions that
need not be learned are looked at, too, for small violations: a constant, and what follows itself.

It needs transitions whose transformed ones are seen too: an agent that always walks with one leg in
front tells nothing of the other. How far they overlap is measured, and so is the smallest violation
that as many transitions would have shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.experience import Experience
from equirl.symmetry import Symmetry
from equirl.transitions import Scales, fitted, flat, halves, transformed
from equirl.verdict import Aspect, Check, alike_note, check_finite, name_of, ranges_of, short

LEVEL, POWER = 1e-4, 0.95
"""Of all tests of a symmetry together; and how often the violation that is named would be seen."""
STEPS = 3000
"""Of training, of each network."""
OVERLAP = 0.8
"""Transitions tell of a symmetry if they overlap by as much with transformed ones."""
POWERLESS = 0.5
"""Transitions that would not show violations of this size, in parts of usual changes, show nothing.
"""
FORESEEN = 0.02
"""Changes that can be foreseen count as no smaller, in parts of usual changes."""
SEEN = 0.05
"""The largest violation that transitions show and that is called approximate, in parts of usual
changes."""


@dataclass(frozen=True)
class Evidence:
    """What transitions say of one generator of a group.

    All arrays have a value for each target: the changes of entries, the reward, the end.

    Attributes:
        element: The generator.
        scores: In standard errors; large ones speak against the symmetry.
        sizes: Root mean square differences, in parts of the targets' own size; upper ones where
            nothing was found are noise.
        detectable: The smallest constant differences between transitions and transformed ones that
            would have been seen with probability `POWER`; of ends, in parts of their own number.
        overlap: How far transitions and transformed ones come from the same places, 0 to 1.
        worst: For each target the row that speaks most against the symmetry, of the second half of
            the experience (`halves`).
        threshold: Of the scores.
    """

    element: int
    scores: NDArray[np.float64]
    sizes: NDArray[np.float64]
    detectable: NDArray[np.float64]
    overlap: float
    worst: NDArray[np.int64]
    threshold: float

    @property
    def against(self) -> NDArray[np.bool_]:
        """Which targets speak against the symmetry."""
        return self.scores > self.threshold


def of_transitions(
    env: gym.Env, symmetry: Symmetry, experience: Experience, seed: int
) -> tuple[Check, bool]:
    """What transitions say, of the worst generator; and whether they saw transformed states."""
    seen = flat(experience.observations), flat(experience.next_observations)
    names = symmetry.names_of("observation", np.shape(experience.observations)[1:])
    check_finite(env, names, *seen, experience.rewards)
    every = evidence(experience, symmetry, env.action_space, seed)
    _, other, _ = halves(experience, seed)
    worst = max(every, key=lambda e: (e.scores / e.threshold).max())
    targets = [*names, "reward", "end"]
    parts = slice(0, len(names)), slice(len(names), -1), slice(-1, None)
    dynamics, reward, end = (_of_evidence(every, part, other, symmetry, targets) for part in parts)
    if not experience.terminated.any():
        end = Aspect("in distribution", 0.0, note="none of these transitions ended an episode")
    reward = dataclasses.replace(reward, note=alike_note(experience.rewards))
    checked = Check(
        name_of(env),
        symmetry,
        dynamics,
        reward,
        end,
        names,
        worst.sizes[: len(names)],
        None,
        ranges_of(np.concatenate(seen)),
        f"{len(experience):,} transitions",
        wanted=flat(transformed(experience, symmetry, worst.element).next_observations),
        found=seen[1],
    )
    return checked, all(e.overlap >= OVERLAP for e in every)


def _of_evidence(
    every: Sequence[Evidence],
    part: slice,
    other: Experience,
    symmetry: Symmetry,
    names: Sequence[str],
) -> Aspect:
    """Of some targets, of the generator that they speak against most."""
    one = max(every, key=lambda e: (e.scores[part] / e.threshold).max())
    target = range(len(names))[part][int(one.scores[part].argmax())]
    least = float(max(e.detectable[part].max() for e in every))
    if one.overlap < OVERLAP:
        return Aspect(
            "unknown",
            least,
            f"transitions overlap with transformed ones by {100 * one.overlap:.0f} % only: this "
            "agent does not see transformed states; give place=, or transitions of another agent",
        )
    if not one.against[target] and least > POWERLESS:
        return Aspect(
            "unknown",
            least,
            "too few transitions, or too much chance: even large violations would not be seen",
        )
    if not one.against[target]:
        return Aspect("in distribution", least)
    row = int(one.worst[target])
    size = float(one.sizes[target])
    element = f"element {one.element} ({symmetry.group.names[one.element]})"
    return Aspect(
        "false" if size > SEEN else "approximate",
        size,
        f"{names[target]}, {one.scores[target]:.0f} standard errors; most so with {element}, "
        f"action {short(other.actions[row])}, state {short(other.observations[row])}",
    )


def evidence(
    experience: Experience, symmetry: Symmetry, space: spaces.Space, seed: int
) -> list[Evidence]:
    """What transitions say of each generator of a symmetry.

    Args:
        experience: Transitions of the environment.
        symmetry: What is looked at.
        space: Of the actions.
        seed: Of the networks, and of which half they learn from.
    """
    from scipy.special import ndtri  # scipy is slow to import, and not needed for policies

    scales = Scales.of(experience, space)
    known, other, stretch = halves(experience, seed)
    generators = symmetry.group.generators
    found = []
    for g in generators:
        (inputs, targets, sides), (seen, follows, side) = (
            _both(scales, part, transformed(part, symmetry, g)) for part in (known, other)
        )
        plain = fitted(inputs, torch.cat([targets, sides], 1), STEPS, seed)
        told = fitted(torch.cat([inputs, sides], 1), targets, STEPS, seed + 1)
        said = plain(seen)
        right, wrong = (told(torch.cat([seen, sign * side.abs()], 1)) for sign in (1, -1))
        surprise = (side - said[:, -1:]).clamp(-2, 2).double()
        errors = (follows - said[:, :-1]).double()
        directions = (right - wrong, torch.ones_like(right), said[:, :-1])
        terms = torch.stack([errors * surprise * d for d in directions])
        signs = torch.sign(terms.mean(1, keepdim=True))
        signs[0] = 1  # what was learned has a sign; of the others either counts
        looked = (terms * signs).numpy()
        overlap = float(surprise.square().mean().clamp(max=1))
        sums, spreads = np.stack([_sums(each, stretch) for each in looked], 1)
        scores = np.where(spreads > 0, sums / np.where(spreads > 0, spreads, 1), 0)
        scores[:, follows.std(0).numpy() < 1e-6] = 0
        best, every = scores.argmax(0), np.arange(scores.shape[1])
        # violations are measured by what can be foreseen, which chance may exceed by far
        foreseen = said[:, :-1].double().square().mean(0).numpy()
        wide = torch.stack([d.square().mean(0) for d in directions]).double().numpy() + 1e-12
        slope = abs(looked.mean(1)) / (wide * overlap + 1e-12)
        tests = scores.size * len(generators) * 5 / 3  # of two directions either sign counts
        threshold = float(-ndtri(LEVEL / tests))
        signal = np.clip(np.sqrt(foreseen), FORESEEN, 1)
        sizes = (2 * slope * np.sqrt(wide))[best, every] / signal
        least = 2 * (threshold + ndtri(POWER)) * spreads[1] / len(seen)
        # of ends what matters is which part of them one side has more of: they are rare
        expected = max(float((follows[:, -1] * said[:, -2]).mean()), 1e-12)
        sizes[-1] /= np.sqrt(expected)
        least[-1] *= spreads[2, -1] / (spreads[1, -1] + 1e-12) / expected
        found.append(
            Evidence(
                g,
                scores[best, every],
                sizes,
                least / max(overlap, 1e-3),
                overlap,
                looked[best, :, every].argmax(1) % len(other),
                threshold,
            )
        )
    return found


def _sums(terms: NDArray[np.float64], stretch: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums, and their standard errors, (2, targets); rows of a stretch of time go together."""
    _, places = np.unique(np.tile(stretch, 2), return_inverse=True)
    sums = np.stack([np.bincount(places, term) for term in terms.T], 1)
    spread = np.sqrt(((sums - sums.mean(0)) ** 2).sum(0))
    return np.stack([sums.sum(0), spread])


def _both(
    scales: Scales, part: Experience, moved: Experience
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs and targets of transitions and of transformed ones, and which is which."""
    side = torch.ones(len(part), 1)
    return (
        torch.cat([scales.inputs(part), scales.inputs(moved)]),
        torch.cat([scales.targets(part), scales.targets(moved)]),
        torch.cat([-side, side]),
    )
