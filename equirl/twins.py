"""What steps of twins say of a symmetry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from equirl.simulators import Episodes, Pair, Simulator
from equirl.symmetry import Symmetry
from equirl.transitions import flat, usual
from equirl.verdict import Aspect, Check, alike_note, check_finite, name_of, ranges_of, short

EXACT, ROUNDING, UNITS = 1e-12, 1e-5, 4
"""Largest errors of what is called exact, in parts of an entry's size; and exact up to rounding, in
parts of usual changes, or in units of the last place of an entry's type."""
MOST = 0.98
"""Nearly all steps have smaller errors than the size that is told: this quantile, or their root
mean square (of rewards their mean), or that of the steps with one of the discrete actions: the
largest of these."""
RARE = 0.05
"""What is no part of the state and changes in fewer steps, as contacts may, is not judged."""
SOLVER = 0.01
"""Largest errors of rewards, in parts of usual changes, of twins that a solver's order tells apart.
"""
QUICK, PUSHED = 0.25, 0.1
"""Parts of the steps in which twins may come apart in a quick look, as it may happen in a row; and
of all steps that may push them apart, or further apart."""


def of_pairs(
    env: gym.Env, pairs: Sequence[Pair], symmetry: Symmetry, simulator: Simulator
) -> Check:
    """What steps of twins say."""
    wanted, found, start, before = (
        flat(np.array([getattr(pair, part) for pair in pairs], float))
        for part in ("wanted", "found", "start", "before")
    )
    rewards = np.array([pair.rewards for pair in pairs])
    names = symmetry.names_of("observation", pairs[0].before.shape)
    check_finite(env, names, wanted, found, rewards)
    moved = np.maximum(abs(wanted - start), abs(found - start))
    size = np.maximum(abs(wanted), abs(start)).max(0) + 1e-12
    off = abs(found - wanted)
    state = np.arange(len(names)) < simulator.states(env, len(names))
    judged = state | ((moved > 1e-3 * size).mean(0) > RARE)
    if isinstance(simulator, Episodes):
        were, are = np.array([pair.together for pair in pairs]).T
        entries = (off / np.maximum(moved.mean(0), 1e-9 * size))[were].mean(0)
        apart, pushed = (~are)[were].mean(), np.mean([pair.pushed for pair in pairs])
        few = len(pairs) < 1000
        wrong = apart > (QUICK if few else simulator.apart) or (not few and pushed > PUSHED)
        wrong |= entries.max() > simulator.tolerance
        parted = max(float(apart), float(pushed), float(entries.max()))
        dynamics = Aspect("false", parted) if wrong else Aspect(simulator.exact, float(apart))
        # rewards and ends follow from what happens: they are judged where the same happened
        same = were & are & [pair.action is not None for pair in pairs]
    else:
        scale = np.maximum(usual(moved), 1e-12 * size)
        entries = _typical(off / scale, pairs)
        means = [np.sqrt((x[:, ~state] ** 2).mean(0)) for x in (off, moved)]
        entries[~state] = means[0] / np.maximum(means[1], 1e-9 * size[~state])
        kind = np.asarray(pairs[0].found).dtype
        unit = UNITS * (np.finfo(kind).eps if np.issubdtype(kind, np.floating) else 0) * size
        largest = off.max(0)
        dynamics = _judged(
            (largest <= EXACT * size)[judged].all(),
            (largest <= np.maximum(unit, ROUNDING * scale))[judged].all(),
            entries[state].max(),
            simulator,
        )
        if (entries[judged & ~state] > simulator.derived).any():
            dynamics = Aspect("false", entries[judged].max())
        same = np.ones(len(pairs), bool)
    entry = int(np.where(judged, entries, 0).argmax())
    row = int(off[:, entry].argmax())
    told = f"{names[entry]}: {wanted[row, entry]:.4g} wanted, {found[row, entry]:.4g} found"
    alike = [pair for pair, is_same in zip(pairs, same, strict=True) if is_same]
    rewarded = alike
    if isinstance(simulator, Episodes):  # whose order may end one of them a step before the other
        rewarded = [pair for pair in alike if pair.ends[0] == pair.ends[1]]
    reward, in_return = _reward(rewarded, symmetry, simulator)
    return Check(
        name_of(env),
        symmetry,
        dataclasses.replace(dynamics, worst=_worst(pairs[row], symmetry, told)),
        reward,
        _termination(alike, symmetry, simulator),
        names,
        entries,
        in_return,
        ranges_of(np.concatenate([before, start])),
        f"{len(pairs):,} steps of twins",
        wanted=wanted,
        found=found,
    )


def _reward(
    pairs: Sequence[Pair], symmetry: Symmetry, simulator: Simulator
) -> tuple[Aspect, float]:
    """Of rewards, and by how much they differ in the mean, in parts of their mean size."""
    if not pairs:
        return Aspect("unknown", 1.0, "twins came apart at once"), 1.0
    rewards = np.array([pair.rewards for pair in pairs])
    differ = abs(rewards[:, 1] - rewards[:, 0])
    size, at = abs(rewards).max() + 1e-12, int(differ.argmax())
    on = rewards[[not any(pair.ends) for pair in pairs]]  # ends have rewards of their own
    plain = on if len(on) and np.ptp(on) > 0 else rewards
    spread = max(usual(plain - np.median(plain)).max(), 1e-9 * size)
    in_return = float(differ.mean() / (abs(rewards).mean() + 1e-12))
    # few rewards among many that are alike count by their own size; a single contact's do not
    few = float(differ.mean() / (abs(rewards - np.median(rewards)).mean() + 1e-9 * size))
    typical = max(_typical(differ[:, None] / spread, pairs, norm=1)[0], few, in_return)
    exact, rounding = differ.max() <= EXACT * size, differ.max() <= ROUNDING * spread
    aspect = _judged(exact, rounding, typical, simulator)
    if isinstance(simulator, Episodes) and typical <= SOLVER:
        aspect = Aspect(simulator.exact, 0.0)
    told = f"{rewards[at, 0]:.4g} wanted, {rewards[at, 1]:.4g} found"
    worst = _worst(pairs[at], symmetry, told)
    return dataclasses.replace(aspect, worst=worst, note=alike_note(rewards)), in_return


def _termination(pairs: Sequence[Pair], symmetry: Symmetry, simulator: Simulator) -> Aspect:
    """Of ends: the part of them that only one of the twins came to."""
    ends = np.array([pair.ends for pair in pairs], bool).reshape(-1, 2)
    if not ends.any():
        return Aspect(simulator.exact, 0.0, note="none of these steps ended an episode")
    wrong = ends[:, 0] != ends[:, 1]
    if not wrong.any():
        return Aspect(simulator.exact, 0.0)
    part = float(wrong.sum() / ends.any(1).sum())
    return Aspect(
        "false" if part > Simulator.tolerance else "approximate",
        part,
        _worst(pairs[int(wrong.argmax())], symmetry, "one ends, the other does not"),
    )


def _typical(
    errors: NDArray[np.float64], pairs: Sequence[Pair], norm: int = 2
) -> NDArray[np.float64]:
    """The size of errors (N, entries) that nearly all steps keep to; see `MOST`."""
    kinds = [np.ones(len(errors), bool)]
    if np.ndim(pairs[0].action) == 0:
        told = np.array([pair.action for pair in pairs])
        kinds += [told == action for action in np.unique(told)]
    means = [(errors[rows] ** norm).mean(0) ** (1 / norm) for rows in kinds]
    return np.max([*means, np.quantile(errors, MOST, 0)], 0)


def _judged(exact: bool, rounding: bool, typical: float, simulator: Simulator) -> Aspect:
    if exact:
        return Aspect(simulator.exact, float(typical))
    if rounding:
        return Aspect("exact up to rounding", float(typical))
    return Aspect("false" if typical > Simulator.tolerance else "approximate", float(typical))


def _worst(pair: Pair, symmetry: Symmetry, what: str) -> str:
    element = f"element {pair.element} ({symmetry.group.names[pair.element]})"
    action = "the first one" if pair.action is None else f"action {short(pair.action)}"
    return f"{what}; {element}, {action}, state {short(pair.before)}"
