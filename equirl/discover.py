"""Which symmetries an environment has, from interaction alone.

A small network learns from transitions what follows from observation and action. A symmetry must
permute its sensitivities, entry to entry and action to entry: which permutations do is a quadratic
assignment, whose signs the mean sensitivities then tell (of pairs that have one). Each candidate
is judged by how well the network predicts transitions that the candidate transforms, improved by
single changes, and what is left is verified by the checker (`equirl.check`). Elements are signed
permutations, exactly: nothing is learned that would have to be rounded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tqdm import tqdm

from equicore import Matrix, Permutation, trivial
from equirl.experience import Experience
from equirl.judge import TRIED, Judge, Made
from equirl.signed import Signed, generated, named_of, written
from equirl.symmetry import Names, Symmetry
from equirl.transitions import ROWS, Learned, flat
from equirl.verdict import Check, check_finite

ALIKE = 4.0
"""Entries that may change places differ in spread, changes and influence at most by this factor."""
SIGNED = 0.3, 0.5, 0.7, 0.9
"""Sensitivities have a sign if their mean is so large, in parts of their mean absolute value."""
FREE, FEWER = 10, 6
"""Groups of entries whose signs hang together of which all signs are tried, at most: of the
identity, and of other permutations."""
SIGNS = 3
"""Choices of signs of a permutation that are followed, the best ones."""
SIMPLER = 8
"""Elements of which simpler ones are candidates, too: of each change to actions the best."""
LARGEST_GROUP, TRAINING = 64, 4000
"""Elements of a group at most, and steps in which a network learns."""
NETWORKS = 2
"""So many learn, one after the other, until something is found."""
LOOKED_AT, TESTED = 100, 12
"""Candidates that are verified: by twins, which is quick, and by transitions."""


@dataclass(frozen=True)
class Discovery:
    """What a search for symmetries found.

    Attributes:
        symmetry: Of the group that was found; trivial if none was.
        checks: What the checker said of each generator.
        code: Python code of the symmetry, to read, to correct, and to register; empty if there is
            none.
        refuted: How many candidates the checker refused.
        transitions: How many were looked at.
    """

    symmetry: Symmetry
    checks: tuple[Check, ...]
    code: str
    refuted: int
    transitions: int


def find_symmetries(
    env: Made,
    *,
    names: Names | None = None,
    experience: Experience | None = None,
    seed: int = 0,
) -> Symmetry:
    """Find the signed permutations of entries and actions under which an environment is the same.

    See `search`, which also says how it was found.
    """
    return search(env, names=names, experience=experience, seed=seed).symmetry


def search(
    env: Made,
    *,
    names: Names | None = None,
    experience: Experience | None = None,
    seed: int = 0,
) -> Discovery:
    """Find the signed permutations of entries and actions under which an environment is the same.

    Candidates come from transitions alone; each is then verified as `equirl.check_symmetry` does.

    Args:
        env: An id, an environment that was made from one, or a function that makes it. Its
            observations are vectors, its actions ids or vectors.
        names: Of entries and actions, for what is returned; numbers when omitted.
        experience: Transitions to learn from in place of 20,000 under random actions, such as
            `rollout_experience` of an agent, where random actions do not lead to what matters.
        seed: Of resets, actions, and networks.

    Raises:
        ValueError: If observations are no vectors, actions neither ids from 0 nor vectors, names
            are more or fewer than entries, or resets of the environment by one seed differ.
    """
    with Judge(env, seed=seed) as judge:
        return _searched(judge, names, experience, seed)


def _searched(
    judge: Judge, names: Names | None, experience: Experience | None, seed: int
) -> Discovery:
    count, actions = _sizes(judge.env)
    names = names or Names(
        tuple(f"entry {i}" for i in range(count)), tuple(f"action {i}" for i in range(actions))
    )
    if (len(names.observation), len(names.action)) != (count, actions):
        raise ValueError(
            f"the environment has {count} entries and {actions} actions; there are names of "
            f"{len(names.observation)} and {len(names.action)}"
        )
    discrete = isinstance(judge.env.action_space, spaces.Discrete)
    if experience is not None:
        judge.lived(experience)
    lived = judge.transitions()
    both = flat(lived.observations), flat(lived.next_observations)
    check_finite(judge.env, names.observation, *both, lived.rewards)
    found: list[Signed] = []
    checks: list[Check] = []
    group, refuted = {Signed.identity(count + actions)}, 0
    most = TESTED if judge.simulator is None else LOOKED_AT
    for network in range(NETWORKS):
        learned = Learned(lived, judge.env.action_space, TRAINING, seed + network)
        for element in tqdm(proposed(learned)[:most], "verifying", leave=False, delay=3):
            grown = None if element in group else generated([*found, element], LARGEST_GROUP)
            if grown is None:
                continue
            checked = _verified(judge, named_of([element], names, discrete))
            if checked is None or any(_idle(one, checked.unseen) for one in grown):
                refuted += 1  # what only changes entries that are still was not tested
            else:
                found, checks, group = [*found, element], [*checks, checked], grown
        if found:
            break
    if not found:
        one = trivial()
        seen = Matrix(one, np.eye(count)[None])
        told = (
            Permutation(one, [range(actions)]) if discrete else Matrix(one, np.eye(actions)[None])
        )
        whole = Symmetry(seen, told, names)
        return Discovery(whole, (), "", refuted, len(lived))
    return Discovery(
        named_of(found, names, discrete),
        tuple(checks),
        written(found, names, discrete),
        refuted,
        len(lived),
    )


def _idle(element: Signed, unseen: Container[int]) -> bool:
    """Whether an element changes something, but nothing that was seen to change."""
    changed = [k for k, source in enumerate(element.source) if source != k or element.sign[k] != 1]
    return bool(changed) and all(k in unseen for k in changed)


def _sizes(env: gym.Env) -> tuple[int, int]:
    """Entries of observations, and actions; ValueError if there is no saying."""
    seen, told = env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        raise ValueError(
            f"symmetries are found among entries of vectors; the observations are {seen}. Flatten "
            "them, for instance with gymnasium.wrappers.FlattenObservation"
        )
    if isinstance(told, spaces.Discrete) and told.start == 0:
        return seen.shape[0], int(told.n)
    if isinstance(told, spaces.Box) and len(told.shape) == 1:
        return seen.shape[0], told.shape[0]
    raise ValueError(f"the actions are neither ids from 0 nor vectors, but {told}")


def _verified(judge: Judge, symmetry: Symmetry) -> Check | None:
    """What the checker says of a candidate; None if it does not hold."""
    try:
        symmetry.check_spaces(judge.env.observation_space, judge.env.action_space)
    except ValueError:
        return None
    simulator = judge.simulator
    if simulator and (not simulator.takes(symmetry) or judge.judge(symmetry, TRIED).false):
        return None
    checked = judge.judge(symmetry)
    return checked if checked.holds else None


def proposed(learned: Learned) -> list[Signed]:
    """Elements other than the identity that the network agrees with, the best first."""
    identity = Signed.identity(learned.size)
    strength, mean = learned.sensitivities()
    alike = _alike(learned, strength)
    found = set()
    for source in dict.fromkeys(_permutations(learned, strength, alike)):
        signs = [e for e in _signs(learned, source, strength, mean) if e != identity]
        if signs:
            errors = learned.errors(signs)
            near = [i for i in errors.argsort()[:SIGNS] if errors[i] <= 1.5 * errors.min() + 0.1]
            found |= {signs[i] for i in near}
            found |= {_improved(learned, signs[i], alike, identity) for i in near}
    kinds: dict[Signed, Signed] = {}
    for element in _ordered(learned, found - {identity}):
        kinds.setdefault(element.part(learned.entries, learned.size), element)
    for element in list(kinds.values())[:SIMPLER]:
        found |= set(_simpler(learned, element))
    return _ordered(learned, found - {identity})


def _ordered(learned: Learned, elements: set[Signed]) -> list[Signed]:
    """Those that the network predicts better than by means alone, the best first."""
    every = sorted(elements, key=lambda e: (e.source, e.sign))
    if not every:
        return []
    errors = learned.errors(every, 8 * ROWS)
    return [every[i] for i in errors.argsort() if errors[i] < learned.used.sum()]


def _alike(learned: Learned, strength: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which nodes may change places, (nodes, nodes)."""
    n, size, scales = learned.entries, learned.size, learned.scales
    influence = np.sqrt((strength**2).sum(0)) + 0.02
    changes = np.concatenate([scales.changes, np.ones(scales.actions)])
    alike = np.ones((size, size), bool)
    for feature in (scales.spread, changes, influence):
        logs = np.log(feature)
        alike &= abs(logs[:, None] - logs) < math.log(ALIKE)
    kind = np.arange(size) >= n
    alike &= kind[:, None] == kind
    for node in learned.still:
        alike[node] = alike[:, node] = False
        alike[node, node] = True
    return alike


def _permutations(
    learned: Learned, strength: NDArray[np.float64], alike: NDArray[np.bool_]
) -> Iterator[tuple[int, ...]]:
    """Sources that nearly keep the sensitivities: the identity first, then with a pair exchanged.

    One for each pair of nodes that may change places: the assignment that keeps sensitivities best
    if these two do, of all other nodes.
    """
    from scipy.optimize import quadratic_assignment  # slow to import

    n, size, scales = learned.entries, learned.size, learned.scales
    yield tuple(range(size))
    targets = [*range(n), size, size + 1]  # the places of reward and end
    features = [np.log(scales.spread), np.append(np.log(scales.changes), np.zeros(size - n))]
    whole = size + 2 + len(features) + 1
    weights = np.zeros((whole, whole))
    weights[np.ix_(targets, range(size))] = np.log1p(strength / 0.02)
    for k, feature in enumerate(features):
        weights[:size, size + 2 + k] = feature - feature.mean()
    weights[n:size, -1] = 10.0
    fixed = [(k, k) for k in [*range(size, whole), *learned.still]]
    for one, other in itertools.combinations(range(size), 2):
        if not alike[one, other]:
            continue
        straight = list(range(size))
        straight[one], straight[other] = other, one
        yield tuple(straight)
        if whole - len(fixed) < 4:  # no others could change places
            continue
        assignment = quadratic_assignment(
            weights,
            weights,
            options={
                "maximize": True,
                "partial_match": [*fixed, (one, other), (other, one)],
                "rng": np.random.default_rng(0),
            },
        )
        source = assignment.col_ind[:size]
        if all(alike[k, source[k]] for k in range(size)):
            yield tuple(source.tolist())


def _signs(
    learned: Learned,
    source: tuple[int, ...],
    strength: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> list[Signed]:
    """Elements of one permutation, by signs that keep the sign of mean sensitivities.

    Where an element takes node i to i' and target t to t', the mean sensitivity of t' to i' is that
    of t to i, times both signs. Pairs that have one tie signs together; each group of tied nodes
    keeps two choices, all of which are tried.
    """
    n, size = learned.entries, learned.size
    rows = [*source[:n], n, n + 1]  # of targets, as of nodes
    other, usual = mean[np.ix_(rows, source)], strength[np.ix_(rows, source)]
    both = np.minimum(strength, usual)
    clear = np.minimum(abs(mean), abs(other)) / (both + 1e-9)
    weight = both / (np.maximum(strength, usual).max(0) + 1e-9)
    places = np.array([*range(n), size, size + 1])  # nodes of targets
    straight = source == tuple(range(size))
    signs: dict[tuple[int, ...], None] = {}
    for least in SIGNED if straight else SIGNED[::2]:
        tied = (clear > least) & (weight > 0.1) & (both > 0.02)
        ties = sorted(
            (
                (
                    -float(clear[t, i] * weight[t, i]),
                    int(places[t]),
                    int(i),
                    mean[t, i] * other[t, i],
                )
                for t, i in zip(*np.nonzero(tied), strict=True)
                if places[t] != i
            ),
        )
        free = FREE if straight else FEWER
        signs |= dict.fromkeys(_tied(learned, ties, free))
        # episodes that begin or end on one side give reward and end a sign that they do not have
        signs |= dict.fromkeys(_tied(learned, [t for t in ties if t[1] < size], free))
    return [Signed(source, each) for each in signs]


def _tied(
    learned: Learned, ties: list[tuple[float, int, int, float]], free: int
) -> Iterator[tuple[int, ...]]:
    """Signs of all nodes that keep the ties between two, the clearest first.

    A tie has the product of both signs at its end. Reward, end, and discrete actions have none.
    """
    n, size = learned.entries, learned.size
    actions = range(n, size) if learned.scales.discrete else ()
    group, sign = list(range(size + 2)), [1] * (size + 2)
    for node in (size + 1, *learned.still, *actions):
        group[node] = size
    for _, one, two, product in ties:
        if group[one] == group[two]:
            continue
        keep, lose = (one, two) if group[one] == size else (two, one)
        turned = sign[keep] * sign[lose] * int(np.sign(product))
        old = group[lose]
        sign = [s * turned if g == old else s for s, g in zip(sign, group, strict=True)]
        group = [group[keep] if g == old else g for g in group]
    open_groups = sorted({*group[:size]} - {group[size]}, key=group.count, reverse=True)[:free]
    for chosen in itertools.product((1, -1), repeat=len(open_groups)):
        by = dict(zip(open_groups, chosen, strict=True))
        yield tuple(sign[k] * by.get(group[k], 1) for k in range(size))


def _improved(
    learned: Learned, element: Signed, alike: NDArray[np.bool_], identity: Signed
) -> Signed:
    """The element after the single changes that lower its error, the best one each time."""
    (error,) = learned.errors([element])
    while True:
        changed = [e for e in _changed(learned, element, alike) if e != identity]
        if not changed:
            return element
        errors = learned.errors(changed)
        best = int(errors.argmin())
        if errors[best] > error - max(0.002 * error, 1e-3):
            return element
        element, error = changed[best], errors[best]


def _simpler(learned: Learned, element: Signed) -> Iterator[Signed]:
    """The element without some of its changes: what hardly matters may have moved by chance.

    Its entries are put back one by one, always the one that costs least.
    """
    while True:
        back = []
        for k in range(learned.size):
            if element.source[k] != k or element.sign[k] != 1:
                place = element.source.index(k)
                back.append(element.changed({place: element.source[k], k: k}, {k: 1}))
        if not back:
            return
        element = back[int(learned.errors(back, 4 * ROWS).argmin())]
        yield element


def _changed(learned: Learned, element: Signed, alike: NDArray[np.bool_]) -> Iterator[Signed]:
    """Elements with another sign, or two nodes exchanged, with any signs."""
    n, discrete = learned.entries, learned.scales.discrete
    source, sign = element.source, element.sign
    signed = [k for k in range(learned.size) if k not in learned.still]
    signed = [k for k in signed if k < n or not discrete]
    for k in signed:
        yield Signed(source, (*sign[:k], -sign[k], *sign[k + 1 :]))
    for a, b in itertools.combinations(range(learned.size), 2):
        if not (alike[source[a], b] and alike[source[b], a]):
            continue
        moved, turned = list(source), list(sign)
        moved[a], moved[b] = source[b], source[a]
        choices = (1, -1) if a in signed else (1,)
        for first, second in itertools.product(choices, repeat=2):
            turned[a], turned[b] = first, second
            yield Signed(tuple(moved), tuple(turned))
