"""Is a declared symmetry true of an environment?

A symmetry is true where dynamics, reward and termination commute with the group. A policy that is
equivariant under a wrong one acts the same in transformed states by construction, so that nothing
in its returns shows the mistake: it is looked for here, in the environment itself.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from equicore import Matrix, Permutation
from equirl.described import entries_of
from equirl.registry import symmetry_of
from equirl.simulators import Pair, Place, Placed, Simulator, simulator_of
from equirl.symmetry import Symmetry

EXACT, ROUNDING, APPROXIMATE = 1e-12, 1e-5, 0.05
"""Largest errors of what is called exact, exact up to rounding (both of all pairs, in parts of an
entry's size), and approximate (the root mean square, in parts of an entry's changes)."""
RESETS, LEVEL = 400, 1e-4
"""Resets that are looked at, and the level of the test whether they are lopsided."""
TRIED, EDITS = 64, 400
"""Pairs by which each likely mistake is tried, and mistakes that are tried at most."""


@dataclass(frozen=True)
class Aspect:
    """One thing that should commute with the group: the dynamics, the reward, or the end.

    Attributes:
        verdict: ``exact``, ``exact up to rounding``, ``approximate`` or ``false``.
        size: Of the error: of dynamics and reward the root mean square, in parts of the changes of
            the worst entry, or of the rewards' spread; of the end the part of steps that differ.
        worst: The state, action, element and entry where it is largest, in words.
    """

    verdict: str
    size: float
    worst: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is not false."""
        return self.verdict != "false"


@dataclass(frozen=True)
class Check:
    """What `check_symmetry` found.

    Attributes:
        environment: Its id.
        dynamics: Of the next observations.
        reward: Of the rewards.
        termination: Of whether an episode ends.
        lopsided: Entries whose first values are not drawn symmetrically: an agent may never see the
            transformed states. The symmetry can be true all the same.
        resembles: The symmetry that is nearest by one change and is true, in words, if this one is
            false.
        pairs: That were compared.
    """

    environment: str
    symmetry: Symmetry
    dynamics: Aspect
    reward: Aspect
    termination: Aspect
    lopsided: tuple[str, ...]
    resembles: str | None
    pairs: tuple[Pair, ...] = dataclasses.field(repr=False)

    @property
    def holds(self) -> bool:
        """Whether dynamics, reward and termination commute with the group."""
        return self.dynamics.holds and self.reward.holds and self.termination.holds

    @property
    def verdict(self) -> str:
        """All of it in a few lines."""
        lines = [f"{self.environment}: the symmetry {'holds' if self.holds else 'is FALSE'}"]
        for name in ("dynamics", "reward", "termination"):
            aspect: Aspect = getattr(self, name)
            size = f", by {100 * aspect.size:.2g} %" if aspect.verdict == "approximate" else ""
            lines.append(f"  {name}: {aspect.verdict}{size}")
            if aspect.worst and aspect.verdict in ("approximate", "false"):
                lines.append(f"    {aspect.worst}")
        if self.lopsided:
            some = ", ".join(self.lopsided[:4]) + (" ..." if len(self.lopsided) > 4 else "")
            lines.append(
                f"  first states: lopsided in {some}; an agent may not see the transformed ones"
            )
        else:
            lines.append("  first states: symmetric, as far as resets tell")
        if self.resembles:
            lines.append(f"  it would hold with one change: {self.resembles}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.verdict


def check_symmetry(
    env: str | gym.Env,
    symmetry: Symmetry | None = None,
    *,
    pairs: int = 1000,
    place: Place | None = None,
    seed: int = 0,
) -> Check:
    """Check a symmetry of an environment against its simulator.

    Two copies of the environment are put into states that an element of the group takes to each
    other, and are told what it takes to each other; then they must be so still, with the same
    reward and the same end. Random actions lead to the states.

    Args:
        env: An id, or an environment that was made from one.
        symmetry: What is checked; the registered one when omitted.
        pairs: Steps that are compared.
        place: Sets an environment's state to what an observation shows, and returns what it then
            shows; for environments whose simulator is not known here.
        seed: Of resets and actions.

    Raises:
        ValueError: If no symmetry is registered, it does not fit the spaces, or the state of the
            environment cannot be set.
    """
    first = gym.make(env) if isinstance(env, str) else env
    symmetry = symmetry_of(first) if symmetry is None else symmetry
    symmetry.check_spaces(first.observation_space, first.action_space)
    if len(symmetry.group) == 1:
        raise ValueError("the group is trivial: there is nothing to check")
    if first.spec is None:
        raise ValueError(f"{first} was not made from an environment id, so it has no twin")
    simulator = simulator_of(first) if place is None else Placed(place)
    if simulator is None:
        raise ValueError(
            f"the state of {first.spec.id} cannot be set by what is known here; give place=, a "
            "function of the environment and an observation that does so"
        )
    twin = gym.make(first.spec)
    found = tuple(itertools.islice(simulator.pairs(first, twin, symmetry, seed), pairs))
    aspects = _aspects(found, symmetry, simulator.exact)
    holds = all(aspect.holds for aspect in aspects)
    resembles = None if holds else _nearest(first, twin, symmetry, simulator, seed)
    return Check(
        first.spec.id, symmetry, *aspects, _lopsided(first, symmetry, seed), resembles, found
    )


def _aspects(
    pairs: Sequence[Pair], symmetry: Symmetry, exact: str
) -> tuple[Aspect, Aspect, Aspect]:
    """Of dynamics, reward and termination."""
    wanted, found = (np.array([getattr(p, w) for p in pairs], float) for w in ("wanted", "found"))
    wanted, found = (x.reshape(len(pairs), -1) for x in (wanted, found))
    changes = np.array([p.after - p.before for p in pairs], float).reshape(len(pairs), -1)
    scale, size = _rms(changes) + 1e-12, abs(wanted).max(0) + _rms(changes) + 1e-12
    scale = np.maximum(scale, 1e-9 * size)
    off = abs(found - wanted)
    entry = int((_rms(off) / scale).argmax())
    row = int(off[:, entry].argmax())
    dynamics = _judged((off / size).max(), (_rms(off) / scale).max(), exact)
    name = _names(symmetry, "observation", wanted.shape[1])[entry]
    dynamics = dataclasses.replace(
        dynamics,
        worst=_worst(
            pairs[row],
            symmetry,
            f"{name}: {wanted[row, entry]:.4g} wanted, {found[row, entry]:.4g} found",
        ),
    )
    rewards = np.array([p.rewards for p in pairs])
    off = abs(rewards[:, 1] - rewards[:, 0])
    size, row = abs(rewards).max() + 1e-12, int(off.argmax())
    spread = max(float(rewards[:, 0].std()), 1e-9 * size)
    reward = _judged(off.max() / size, float(_rms(off)) / spread, exact)
    reward = dataclasses.replace(
        reward,
        worst=_worst(
            pairs[row], symmetry, f"{rewards[row, 0]:.4g} wanted, {rewards[row, 1]:.4g} found"
        ),
    )
    ends = np.array([p.ends for p in pairs])
    wrong = ends[:, 0] != ends[:, 1]
    part = float(wrong.mean())
    verdict = "false" if part > APPROXIMATE * max(ends[:, 0].mean(), 1e-3) else "approximate"
    worst = _worst(pairs[int(wrong.argmax())], symmetry, "one ends, the other does not")
    termination = Aspect(verdict if part else exact, part, worst if part else "")
    return dynamics, reward, termination


def _rms(values: NDArray[Any]) -> Any:
    return np.sqrt((values**2).mean(0))


def _judged(largest: float, usual: float, exact: str) -> Aspect:
    if largest <= EXACT:
        return Aspect(exact, float(usual))
    if largest <= ROUNDING:
        return Aspect("exact up to rounding" if exact == "exact" else exact, float(usual))
    return Aspect("approximate" if usual <= APPROXIMATE else "false", float(usual))


def _worst(pair: Pair, symmetry: Symmetry, what: str) -> str:
    state = np.array2string(np.asarray(pair.before), precision=3, threshold=12, max_line_width=200)
    element = f"element {pair.element} ({symmetry.group.names[pair.element]})"
    action = "the first one" if pair.action is None else f"action {np.round(pair.action, 3)}"
    return f"{what}; {element}, {action}, state {state}"


def _names(symmetry: Symmetry, what: str, count: int) -> Sequence[str]:
    return getattr(symmetry.names, what, None) or [f"entry {i}" for i in range(count)]


def _lopsided(env: gym.Env, symmetry: Symmetry, seed: int) -> tuple[str, ...]:
    """Entries of first observations that are not drawn as their images under generators are."""
    first = np.stack([np.asarray(env.reset(seed=seed + i)[0], float) for i in range(RESETS)])
    flat, found = first.reshape(RESETS, -1), []
    names = _names(symmetry, "observation", flat.shape[1])
    tests = len(names) * len(symmetry.group.generators)
    for g in symmetry.group.generators:
        moved = symmetry.act_on_observations(g, first).reshape(RESETS, -1)
        for place, name in enumerate(names):
            one, other = flat[: RESETS // 2, place], moved[RESETS // 2 :, place]
            rounded = (np.round(x, 9) for x in (one, other))
            if name not in found and ks_2samp(*rounded).pvalue < LEVEL / tests:
                found.append(name)
    return tuple(found)


def _nearest(
    env: gym.Env, twin: gym.Env, symmetry: Symmetry, simulator: Simulator, seed: int
) -> str | None:
    """The change of one entry, or of two, that makes a mirror image true; None if there is none."""
    best: tuple[float, str | None] = (math.inf, None)
    for text, other in itertools.islice(_edited(symmetry), EDITS):
        try:
            pairs = list(itertools.islice(simulator.pairs(env, twin, other, seed), TRIED))
            aspects = _aspects(pairs, other, simulator.exact)
        except (ValueError, AssertionError):
            continue
        if all(aspect.holds for aspect in aspects):
            best = min(best, (sum(aspect.size for aspect in aspects), text))
    return best[1]


def _edited(symmetry: Symmetry) -> Iterator[tuple[str, Symmetry]]:
    """Mirror images that differ in one sign, one exchange, or all actions, and how."""
    if len(symmetry.group) != 2:
        return
    for what in ("action", "observation"):
        representation = getattr(symmetry, what)
        matrices = entries_of(representation)
        if matrices is None:
            continue
        names = _names(symmetry, what, len(matrices[1]))
        for text, matrix in _mistakes(matrices[1], names, isinstance(representation, Permutation)):
            other: Any = Matrix.from_generators(symmetry.group, [matrix])
            if isinstance(representation, Permutation):
                other = Permutation.from_generators(symmetry.group, [matrix.argmax(0)])
            yield f"{what}: {text}", dataclasses.replace(symmetry, **{what: other})


def _mistakes(
    matrix: NDArray[Any], names: Sequence[str], ids: bool
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Other signs and other exchanges."""
    count = len(matrix)
    partner = abs(matrix).argmax(0)
    pairs = [(i, int(partner[i])) for i in range(count) if partner[i] > i]
    alone = [i for i in range(count) if partner[i] == i]
    if not ids:
        for i in range(count):
            changed = copy.deepcopy(matrix)
            for place in {i, int(partner[i])}:
                changed[:, place] *= -1
            if i <= partner[i]:
                yield f"another sign of {names[i]!r}", changed
    for i, j in pairs:
        changed = copy.deepcopy(matrix)
        changed[:, [i, j]] = abs(changed[:, [j, i]])
        yield f"{names[i]!r} and {names[j]!r} not exchanged", changed
    if len(pairs) > 1:
        yield (
            "nothing exchanged",
            np.diag(np.where(np.isin(range(count), alone), matrix.diagonal(), 1)),
        )
    for i, j in itertools.combinations(alone, 2):
        for sign in (1,) if ids else (1, -1):
            changed = copy.deepcopy(matrix)
            changed[i, i] = changed[j, j] = 0
            changed[i, j] = changed[j, i] = sign
            minus = "" if sign > 0 else " with another sign"
            yield f"{names[i]!r} and {names[j]!r} exchanged{minus}", changed
