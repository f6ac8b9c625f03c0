"""Is a declared symmetry true of an environment?

A symmetry is true where dynamics, reward and termination commute with the group. A policy that is
equivariant under a wrong one acts the same in transformed states by construction, so that nothing
in its returns shows the mistake: it is looked for here, in the environment itself. With twins of
the environment (`equirl.simulators`) each step is compared; without, transitions are
(`equirl.statistical`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from tqdm import tqdm

from equicore import Tree
from equirl.composed import flattened
from equirl.experience import Experience
from equirl.judge import TRIED, Judge, Made, made
from equirl.registry import symmetry_of
from equirl.signed import likely_mistakes, signed_of
from equirl.simulators import Place
from equirl.statistical import STEPS
from equirl.symmetry import Symmetry
from equirl.transitions import Learned
from equirl.verdict import Check

EDITS, CONFIRMED = 250, 6
"""Mistakes that are tried at most, and those of which all steps of twins are looked at."""


def check_symmetry(
    env: Made,
    symmetry: Symmetry | None = None,
    *,
    place: Place | None = None,
    experience: Experience | None = None,
    seed: int = 0,
) -> Check:
    """Check a symmetry of an environment: against its simulator, or by its transitions.

    Where two copies of the environment can be put into states that an element of the group takes to
    each other, they are told what it takes to each other; then they must be so still, with the same
    reward and the same end. Of other environments 20,000 transitions are looked at; the verdict
    then names the smallest violation that these would have shown. Random actions lead to the
    states; the verdict tells how far.

    Args:
        env: An id, an environment that was made from one, or a function that makes it. Its
            observations are in a ``Box``, or dicts, which are judged in their flat form.
        symmetry: What is checked; the registered one when omitted.
        place: Sets an environment's state to what an observation shows, and returns what it then
            shows, or None where an observation does not show the state; for environments whose
            simulator is not known here.
        experience: Transitions such as `rollout_experience` of an agent. Twins are put into their
            states, too; where there are none, these transitions are looked at in place of random
            ones.
        seed: Of resets, actions, and networks.

    Returns:
        A `Check`; print it.

    Raises:
        ValueError: If no symmetry is registered, the group is trivial, it does not fit the spaces,
            resets of the environment by one seed differ, observations are not as their space says,
            it cannot be made a second time, or ``place`` does not set all of its state.
    """
    if symmetry is None:
        symmetry = symmetry_of(env if isinstance(env, str) else made(env)[0])
    if len(symmetry.group) == 1:
        raise ValueError("the group is trivial: there is nothing to check")
    if isinstance(symmetry.observation, Tree):  # entries are judged one by one
        inner, _ = made(env)
        symmetry, env = flattened(symmetry, inner.observation_space), _flat_maker(env)
    with Judge(env, place, experience, seed) as judge:
        symmetry.check_spaces(judge.env.observation_space, judge.env.action_space)
        checked = judge.judge(symmetry)
        return dataclasses.replace(
            checked,
            lopsided=judge.lopsided(symmetry),
            resembles=_nearest(judge, symmetry) if checked.false else None,
        )


def _flat_maker(env: Made) -> Callable[[], gym.Env]:
    """A function that makes an environment with its observations in one vector."""
    if isinstance(env, gym.Env):
        assert env.spec is not None  # as `made` has made another one by it
        env = functools.partial(gym.make, env.spec)
    elif isinstance(env, str):
        env = functools.partial(gym.make, env)
    make: Any = env
    return lambda: gym.wrappers.FlattenObservation(make())


def _nearest(judge: Judge, symmetry: Symmetry) -> str | None:
    """The change of one entry, or of two, that makes a mirror image true; None if there is none."""
    edits = []
    for text, other in itertools.islice(likely_mistakes(symmetry), EDITS):
        try:
            other.check_spaces(judge.env.observation_space, judge.env.action_space)
        except ValueError:
            continue
        edits.append((text, other))
    for text, other in _likely(judge, edits)[:CONFIRMED]:
        if not judge.judge(other, 10 * TRIED).false and judge.judge(other).holds:
            return text
    return None


def _likely(judge: Judge, edits: list[tuple[str, Symmetry]]) -> list[tuple[str, Symmetry]]:
    """Those that a quick look at twins does not refute, or what a network agrees with best."""
    if not edits:
        return []
    if judge.simulator is None:
        elements = [signed_of(other, 1) for _, other in edits]
        known = [i for i, element in enumerate(elements) if element is not None]
        learned = Learned(judge.transitions(), judge.env.action_space, STEPS, judge.seed)
        errors = learned.errors([e for e in elements if e is not None], 2048)
        return [edits[known[i]] for i in errors.argsort()[:1]]
    fits = []
    for text, other in tqdm(edits, "trying likely mistakes", leave=False, delay=3):
        if judge.judge(other, TRIED // 4).false:
            continue
        checked = judge.judge(other, TRIED)
        if not checked.false:
            error = checked.entries.max() + checked.reward.size + checked.termination.size
            fits.append((error, text, other))
    return [fit[1:] for fit in sorted(fits, key=lambda fit: fit[0])]
