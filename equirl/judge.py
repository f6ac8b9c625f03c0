"""Judges of symmetries of one environment: by its twins, or by its transitions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from equirl.experience import Experience, random_experience
from equirl.simulators import NEAR, Pair, Place, Placed, Simulator, simulator_of
from equirl.statistical import Evidence, evidence
from equirl.symmetry import Symmetry
from equirl.transitions import flat, halves, transformed
from equirl.verdict import Aspect, Check

EXACT, ROUNDING = 1e-12, 1e-5
"""Largest errors of what is called exact, and exact up to rounding, in parts of an entry's size."""
TRANSITIONS, TRIED = 20_000, 32
"""Transitions that are looked at where there are no twins; steps of twins in a quick look."""
OVERLAP = 0.8
"""Transitions tell of a symmetry if they overlap by as much with transformed ones."""
RESETS, LEVEL = 400, 1e-4
"""Resets that are looked at, and the level of the test whether they are lopsided."""
MIXTURES, NOISE = 20, 0.05
"""Random mixtures of entries that it sees, too, and how much noise is added to them, in parts of an
entry's spread."""
LARGEST = 1000
"""Entries of observations of which transitions are looked at, at most."""
POWERLESS = 0.5
"""Transitions that would not show violations of this size, in parts of usual changes, show nothing.
"""
SEEN = 0.05
"""The largest violation that transitions show and that is called approximate, in parts of usual
changes."""
RARE = 0.05
"""What is no part of the state and changes in fewer steps, as contacts may, is not judged."""
TOGETHER = "several entries together"
"""What is lopsided where a mixture is."""


Made = str | gym.Env | Callable[[], gym.Env]
"""An environment's id, an environment that was made from one, or a function that makes it."""


def made(env: Made) -> tuple[gym.Env, gym.Env]:
    """Two of an environment.

    Raises:
        ValueError: If there is no saying how a second one is made.
    """
    if isinstance(env, str):
        return gym.make(env), gym.make(env)
    if not isinstance(env, gym.Env):
        return env(), env()
    try:
        if env.spec is not None:
            return env, gym.make(env.spec)
    except (gym.error.Error, ValueError, TypeError) as error:
        raise ValueError(
            f"{env} cannot be made a second time ({error}); pass a function that makes it"
        ) from error
    raise ValueError(f"{env} was not made from an environment id; pass a function that makes it")


class Judge:
    """Says of symmetries whether they hold in an environment.

    Args:
        env: The environment.
        place: See `equirl.check_symmetry`.
        experience: The same.
        seed: Of resets, actions, and networks.
    """

    def __init__(
        self,
        env: Made,
        place: Place | None = None,
        experience: Experience | None = None,
        seed: int = 0,
    ) -> None:
        self.env, self.twin = made(env)
        self.seed, self.experience, self.drawn = seed, experience, False
        _check_seeds(self.env, seed)
        simulator = simulator_of(self.env) if place is None else Placed(place)
        if experience is not None or simulator is None:
            self.simulator = None
        else:
            alike = simulator.deterministic(self.env, self.twin, seed)
            if alike and place is not None and isinstance(simulator, Placed):
                simulator.check_whole(self.env, self.twin, seed)
            self.simulator = simulator if alike else None

    def transitions(self) -> Experience:
        """Those that are looked at; random actions lead to them."""
        space = self.env.observation_space
        if math.prod(space.shape or ()) > LARGEST:
            raise ValueError(
                f"{name_of(self.env)} has no twins here, and observations {space} are too large to "
                "learn from transitions what follows; give place=, which sets its state"
            )
        if self.experience is None:
            self.experience = random_experience(self.env, TRANSITIONS, self.seed)
            self.drawn = True
        return self.experience

    def _refuted_unseen(self, checked: Check) -> Check:
        """Refute what random actions would show if it were true.

        If episodes begin symmetrically, and actions are drawn so, all states are visited so.
        """
        if lopsided(self.env, checked.symmetry, self.seed):
            return checked
        worst = (
            "transformed states are hardly seen, although episodes begin symmetrically and actions "
            "are drawn so: the dynamics lead elsewhere"
        )
        return dataclasses.replace(
            checked, dynamics=dataclasses.replace(checked.dynamics, verdict="false", worst=worst)
        )

    def judge(self, symmetry: Symmetry, steps: int | None = None) -> Check:
        """What twins or transitions say.

        Args:
            symmetry: Acts on the environment's spaces.
            steps: Of twins, fewer than usual for a quick look.
        """
        if self.simulator is None or not self.simulator.takes(symmetry):
            by_chance = self.experience is None or self.drawn
            checked = of_transitions(self.env, symmetry, self.transitions(), self.seed)
            if by_chance and "unknown" in checked.verdicts:
                return self._refuted_unseen(checked)
            return checked
        every = self.simulator.pairs(self.env, self.twin, symmetry, self.seed)
        count = steps or self.simulator.steps
        shown = tqdm(itertools.islice(every, count), "comparing twins", count, leave=False, delay=3)
        pairs: list[Pair] = []
        apart = 0
        for pair in shown:
            pairs.append(pair)
            apart += bool((abs(np.subtract(pair.found, pair.wanted, dtype=float)) > NEAR).any())
            # twins that come apart begin a new episode, which takes time and says no more
            if self.simulator.apart < 1 and apart > max(count // 200, len(pairs) // 2, 3):
                break
        return of_pairs(self.env, pairs, symmetry, self.simulator)


def of_pairs(
    env: gym.Env, pairs: Sequence[Pair], symmetry: Symmetry, simulator: Simulator
) -> Check:
    """What steps of twins say."""
    wanted, found, start = (
        flat(np.array([getattr(pair, part) for pair in pairs], float))
        for part in ("wanted", "found", "start")
    )
    rewards = np.array([pair.rewards for pair in pairs])
    check_finite(env, symmetry.names_of("observation", wanted.shape[1]), wanted, found, rewards)
    moved = np.maximum(abs(wanted - start), abs(found - start))
    changes = _mean(moved, simulator) + 1e-12
    size = abs(wanted).max(0) + changes
    scale = np.maximum(changes, 1e-9 * size)
    off = abs(found - wanted)
    entries = _mean(off, simulator) / scale
    entry = int(entries.argmax())
    row = int(off[:, entry].argmax())
    name = symmetry.names_of("observation", len(entries))[entry]
    told = f"{name}: {wanted[row, entry]:.4g} wanted, {found[row, entry]:.4g} found"
    state = np.arange(len(entries)) < simulator.states(env, len(entries))
    often = (moved > 1e-3 * size).mean(0) > RARE
    dynamics = _judged((off / size).max(), float(entries[state].max()), simulator)
    wrong = entries[~state & often] > simulator.derived
    # a solver's order may tell twins apart several times in a row: a quick look allows more
    apart = simulator.apart if len(pairs) > 1000 else max(simulator.apart, 0.5)
    if wrong.any() or (off.max(1) > NEAR).mean() > apart:
        dynamics = Aspect("false", float(entries[state | often].max()))
    differ = rewards[:, 1] - rewards[:, 0]
    largest, at = abs(rewards).max() + 1e-12, int(abs(differ).argmax())
    spread = max(float(rewards[:, 0].std()), 1e-9 * largest)
    reward = _judged(
        abs(differ).max() / largest, float(_mean(differ, simulator)) / spread, simulator
    )
    other = f"{rewards[at, 0]:.4g} wanted, {rewards[at, 1]:.4g} found"
    ends = np.array([pair.ends for pair in pairs])
    wrong = ends[:, 0] != ends[:, 1]
    part = float(wrong.mean())
    few = part <= simulator.tolerance * max(float(ends.any(1).mean()), 1e-3)
    verdict = ("approximate" if simulator.exact == "exact" else simulator.exact) if few else "false"
    told_of_ends = "" if ends.any() else "none of these steps ended an episode"
    if part:
        told_of_ends = _worst(pairs[int(wrong.argmax())], symmetry, "one ends, the other does not")
    termination = Aspect(verdict if part else simulator.exact, part, told_of_ends)
    return Check(
        name_of(env),
        symmetry,
        dataclasses.replace(dynamics, worst=_worst(pairs[row], symmetry, told)),
        dataclasses.replace(reward, worst=_worst(pairs[at], symmetry, other)),
        termination,
        entries,
        float(abs(differ).mean() / (abs(rewards).mean() + 1e-12)),
        _unchanged(np.concatenate([wanted, start])),
        (),
        None,
        wanted,
        found,
    )


def of_transitions(env: gym.Env, symmetry: Symmetry, experience: Experience, seed: int) -> Check:
    """What transitions say; of the worst generator."""
    seen = flat(experience.observations), flat(experience.next_observations)
    check_finite(env, symmetry.names_of("observation", seen[0].shape[1]), *seen, experience.rewards)
    every = evidence(experience, symmetry, env.action_space, seed)
    _, other, _ = halves(experience, seed)
    worst = max(every, key=lambda e: (e.scores / e.threshold).max())
    count = len(worst.scores) - 2
    parts = {
        "dynamics": slice(0, count),
        "reward": slice(count, -1),
        "termination": slice(-1, None),
    }
    aspects = {}
    for name, part in parts.items():
        aspects[name] = _of_evidence(every, part, other, symmetry)
    found = flat(experience.next_observations)
    return Check(
        name_of(env),
        symmetry,
        aspects["dynamics"],
        aspects["reward"],
        aspects["termination"],
        worst.sizes[:count],
        None,
        _unchanged(np.concatenate(seen)),
        (),
        None,
        flat(transformed(experience, symmetry, worst.element).next_observations),
        found,
    )


def _of_evidence(
    every: Sequence[Evidence], part: slice, other: Experience, symmetry: Symmetry
) -> Aspect:
    """Of some targets, of the generator that they speak against most."""
    one = max(every, key=lambda e: (e.scores[part] / e.threshold).max())
    at = int(one.scores[part].argmax())
    target = range(len(one.scores))[part][at]
    count = len(one.scores) - 2
    names = [*symmetry.names_of("observation", count), "reward", "end"]
    if one.overlap < OVERLAP:
        return Aspect(
            "unknown",
            float(one.detectable[part].max()),
            f"transitions overlap with transformed ones by {100 * one.overlap:.0f} % only: this "
            "agent does not see transformed states; give place=, or transitions of another agent",
        )
    if not one.against[target] and one.detectable[part].max() > POWERLESS:
        return Aspect(
            "unknown",
            float(one.detectable[part].max()),
            "too few transitions, or too much chance: even large violations would not be seen",
        )
    if not one.against[target]:
        return Aspect("in distribution", float(max(e.detectable[part].max() for e in every)))
    row = int(one.worst[target])
    size = float(one.sizes[target])
    element = f"element {one.element} ({symmetry.group.names[one.element]})"
    return Aspect(
        "false" if size > SEEN else "approximate",
        size,
        f"{names[target]}, {one.scores[target]:.0f} standard errors; most so with {element}, "
        f"action {_short(other.actions[row])}, state {_short(other.observations[row])}",
    )


def _unchanged(values: NDArray[np.float64]) -> tuple[int, ...]:
    """Places of entries, of (N, entries), that have one value in all rows."""
    return tuple(np.flatnonzero(np.ptp(values, 0) < 1e-12).tolist())


def check_finite(
    env: gym.Env,
    names: Sequence[str],
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    rewards: NDArray[Any],
) -> None:
    """Raise ValueError if observations (N, entries) or rewards are NaN or infinite."""
    wrong = ~np.isfinite(one).all(0) | ~np.isfinite(other).all(0)
    if wrong.any() or not np.isfinite(rewards).all():
        what = f"the entry {names[int(wrong.argmax())]!r}" if wrong.any() else "the reward"
        raise ValueError(f"{what} of {name_of(env)} is NaN or infinite in some steps")


def _mean(values: NDArray[Any], simulator: Simulator) -> Any:
    return (abs(values) ** simulator.norm).mean(0) ** (1 / simulator.norm)


def _judged(largest: float, usual: float, simulator: Simulator) -> Aspect:
    exact = simulator.exact
    if largest <= EXACT:
        return Aspect(exact, float(usual))
    if largest <= ROUNDING:
        return Aspect("exact up to rounding" if exact == "exact" else exact, float(usual))
    if usual > simulator.tolerance:
        return Aspect("false", float(usual))
    return Aspect("approximate" if exact == "exact" else exact, float(usual))


def _worst(pair: Pair, symmetry: Symmetry, what: str) -> str:
    element = f"element {pair.element} ({symmetry.group.names[pair.element]})"
    action = "the first one" if pair.action is None else f"action {_short(pair.action)}"
    return f"{what}; {element}, {action}, state {_short(pair.before)}"


def _short(values: Any) -> str:
    return np.array2string(np.asarray(values), precision=3, threshold=12, max_line_width=200)


def name_of(env: gym.Env) -> str:
    """An environment's id, or the name of its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _check_seeds(env: gym.Env, seed: int) -> None:
    """Raise ValueError if resets by one seed differ: nothing could be compared, or run again."""
    first, again = (np.asarray(env.reset(seed=seed)[0], float) for _ in range(2))
    if first.shape != again.shape or not np.array_equal(first, again, equal_nan=True):
        raise ValueError(
            f"two resets of {name_of(env)} by seed {seed} show different observations: it does not "
            "use its seed; call super().reset(seed=seed) in its reset and draw from self.np_random"
        )


def lopsided(env: gym.Env, symmetry: Symmetry, seed: int) -> tuple[str, ...]:
    """Entries of first observations that are not drawn as their images under generators are."""
    from scipy.stats import ks_2samp  # scipy is slow to import, and not needed for policies

    first = np.stack([np.asarray(env.reset(seed=seed + i)[0]) for i in range(RESETS)])
    values = flat(first)
    names = [*symmetry.names_of("observation", values.shape[1]), *[TOGETHER] * MIXTURES]
    spread = values.std(0)
    generator = np.random.default_rng(seed)
    mixed = generator.choice([-1.0, 1.0], (values.shape[1], MIXTURES))
    mixed /= np.where(spread > 1e-9, spread, 1)[:, None]
    tests = len(names) * len(symmetry.group.generators)
    found = []
    for g in symmetry.group.generators:
        moved = flat(symmetry.act_on_observations(g, first))
        # where entries go together, mixtures are what a solver's rounding leaves: noise hides that
        noise = generator.normal(0, NOISE, (2, RESETS, MIXTURES))
        one, other = (
            np.hstack([x.round(9), x @ mixed + n])
            for x, n in zip((values, moved), noise, strict=True)
        )
        for place, name in enumerate(names):
            halves = one[: RESETS // 2, place], other[RESETS // 2 :, place]
            if name not in found and ks_2samp(*halves, method="asymp").pvalue < LEVEL / tests:
                found.append(name)
    return tuple(found)
