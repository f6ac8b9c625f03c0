"""Judges of symmetries of one environment: by its twins, or by its transitions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tqdm import tqdm

from equirl.experience import Experience, random_experience
from equirl.simulators import CHANCE, HIDDEN, Episodes, Pair, Place, Placed, simulator_of
from equirl.statistical import of_transitions
from equirl.symmetry import Symmetry
from equirl.transitions import flat
from equirl.twins import QUICK, of_pairs
from equirl.verdict import Check, name_of

TRANSITIONS, TRIED = 20_000, 32
"""Transitions that are looked at where there are no twins; steps of twins in a quick look."""
FEWEST = 1000
"""Transitions that networks can learn from."""
HOLD = 10
"""Steps for which random actions are kept at most, on the way to states of twins."""
EPISODES = 100
"""If transformed states are hardly seen in so many episodes, they would be if it were true."""
RESETS, LEVEL = 400, 1e-4
"""Resets that are looked at, and the level of the test whether they are lopsided."""
MIXTURES, NOISE = 20, 0.05
"""Random mixtures of entries that it sees, too, and how much noise is added to them, in parts of an
entry's spread."""
LARGEST = 1000
"""Entries of observations of which transitions are looked at, at most."""
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
    if isinstance(env, gym.vector.VectorEnv) or not (isinstance(env, gym.Env) or callable(env)):
        raise ValueError(f"expected an environment, its id, or a function that makes it; got {env}")
    if not isinstance(env, gym.Env):
        first, second = env(), env()
        if first is second:
            raise ValueError(
                f"the function returns one and the same {name_of(first)} each time; it is called "
                "twice, for two of them"
            )
        return first, second
    try:
        if env.spec is not None:
            return env, gym.make(env.spec)
    except (gym.error.Error, ValueError, TypeError) as error:
        raise ValueError(
            f"{env} cannot be made a second time ({error}); pass a function that makes it"
        ) from error
    raise ValueError(f"{env} was not made from an environment id; pass a function that makes it")


class Judge:
    """Says of symmetries whether they hold in an environment; closes it at the end of a ``with``.

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
        self.seed, self.by_chance = seed, True
        self.experience: Experience | None = None
        self._own = [self.twin] if isinstance(env, gym.Env) else [self.env, self.twin]
        self._firsts: NDArray[Any] | None = None
        _check_observations(self.env, seed)
        if experience is not None:
            self.lived(experience)
        simulator, self.why = (Placed(place), "") if place else simulator_of(self.env)
        if isinstance(simulator, Episodes) and experience is not None:
            simulator, self.why = None, "its twins do not begin in the states of transitions"
        if simulator is not None:
            self.visited = self._visits(simulator.visits)
            self.why = simulator.unfit(self.env, self.twin, self.visited, seed)
            if self.why and place is not None and self.why != CHANCE:
                raise ValueError(
                    f"place cannot be used for {name_of(self.env)}: {self.why}. Mend it, or let it "
                    "out: transitions are looked at then"
                )
        self.simulator = None if self.why else simulator

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Close the environments that it has made."""
        for env in self._own:
            env.close()

    def _visits(self, steps: int) -> Experience:
        """States for twins: those that random actions lead to, and as many of an experience."""
        visited = random_experience(self.env, steps, self.seed, HOLD)
        if self.experience is None:
            return visited
        some = np.random.default_rng(self.seed).permutation(len(self.experience))[:steps]
        return visited.and_then(self.experience.rows(some))

    def lived(self, experience: Experience) -> None:
        """Look at these transitions where there are no twins."""
        _check_experience(self.env, experience)
        self.experience, self.by_chance = experience, False

    def transitions(self) -> Experience:
        """Those that are looked at where there are no twins; random actions lead to them."""
        space = self.env.observation_space
        shape = space.shape or ()
        if len(shape) != 1 or math.prod(shape) > LARGEST:
            raise ValueError(
                f"{name_of(self.env)} has no twins here ({self.why}), and transitions of pictures "
                f"or of more than {LARGEST:,} entries tell too little; its observations have the "
                f"shape {shape}. Give place=, which sets its state, or check the environment "
                "by observations that are vectors"
            )
        if self.experience is None:
            self.experience = random_experience(self.env, TRANSITIONS, self.seed)
        if len(self.experience) < FEWEST:
            raise ValueError(
                f"{len(self.experience)} transitions are too few to tell anything; give {FEWEST:,} "
                f"or more (20,000 are usual). Twins cannot be used: {self.why}"
            )
        return self.experience

    def judge(self, symmetry: Symmetry, steps: int | None = None) -> Check:
        """What twins or transitions say.

        Args:
            symmetry: Acts on the environment's spaces.
            steps: Of twins, fewer than usual for a quick look.
        """
        if self.simulator is None or not self.simulator.takes(symmetry):
            return self._by_transitions(symmetry)
        count = steps or self.simulator.steps
        every = self.simulator.pairs(self.env, self.twin, symmetry, self.visited, self.seed)
        some = itertools.islice(every, count)
        pairs: list[Pair] = []
        apart = 0
        for pair in tqdm(some, "comparing twins", count, leave=False, delay=3):
            pairs.append(pair)
            # twins that come apart begin a new episode, which takes time and says no more
            apart += isinstance(self.simulator, Episodes) and pair.together == (True, False)
            if apart > max(count // 200, QUICK * len(pairs), 1):
                break
        if not pairs:
            raise ValueError(
                f"place sets no state of {name_of(self.env)} that an element takes another one to"
            )
        return of_pairs(self.env, pairs, symmetry, self.simulator)

    def _by_transitions(self, symmetry: Symmetry) -> Check:
        why = self.why or "its twins are known for one mirror image only"
        lived = self.transitions()
        checked, seen = of_transitions(self.env, symmetry, lived, self.seed)
        told = f"{len(lived):,} transitions ({why})"
        unseen = self.by_chance and not seen
        if unseen and lived.ended.sum() >= EPISODES and not self.lopsided(symmetry):
            worst = (
                "transformed states are hardly seen, although episodes begin symmetrically and "
                "actions are drawn so: the dynamics lead elsewhere"
            )
            false = dataclasses.replace(checked.dynamics, verdict="false", worst=worst)
            return dataclasses.replace(checked, dynamics=false, compared=told)
        hidden = why if why == HIDDEN else ""
        return dataclasses.replace(checked, compared=told, hidden=hidden)

    def lopsided(self, symmetry: Symmetry) -> tuple[str, ...]:
        """Entries of first observations that are not drawn as their images under generators are."""
        from scipy.stats import ks_2samp  # scipy is slow to import, and not needed for policies

        if self._firsts is None:
            seeds = range(self.seed, self.seed + RESETS)
            self._firsts = np.stack([np.array(self.env.reset(seed=i)[0]) for i in seeds])
        first = self._firsts
        values = flat(first)
        names = [*symmetry.names_of("observation", first.shape[1:]), *[TOGETHER] * MIXTURES]
        spread = values.std(0)
        generator = np.random.default_rng(self.seed)
        mixed = generator.choice([-1.0, 1.0], (values.shape[1], MIXTURES))
        mixed /= np.where(spread > 1e-9, spread, 1)[:, None]
        tests = len(names) * len(symmetry.group.generators)
        found = []
        for g in symmetry.group.generators:
            moved = flat(symmetry.act_on_observations(g, first))
            # where entries go together, mixtures are what a solver's rounding leaves: noise hides
            # that
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


def _check_observations(env: gym.Env, seed: int) -> None:
    """Raise ValueError unless observations are as the space says, and resets use their seed."""
    space, name = env.observation_space, name_of(env)
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"symmetries act on arrays; the observations of {name} are {space}. Flatten them: "
            "gymnasium.wrappers.FlattenObservation"
        )
    first, again = (np.array(env.reset(seed=seed)[0], float) for _ in range(2))
    env.action_space.seed(seed)
    after = np.array(env.step(env.action_space.sample())[0])
    for shape in (first.shape, after.shape):
        if shape != space.shape:
            raise ValueError(
                f"the observation space of {name} has shape {space.shape}, its observations have "
                f"{shape}"
            )
    if np.array_equal(first, again, equal_nan=True):
        return
    inner = env.unwrapped
    vectors = inner is not env and isinstance(inner.observation_space, spaces.Box)
    if vectors and np.array_equal(*(inner.reset(seed=seed)[0] for _ in range(2))):
        raise ValueError(
            f"two resets of {name} by seed {seed} show different observations, because a wrapper "
            f"changes from one to the next: {env}. Stop it (NormalizeObservation: "
            "update_running_mean = False), or check the environment without it"
        )
    raise ValueError(
        f"two resets of {name} by seed {seed} show different observations: it does not "
        "use its seed; call super().reset(seed=seed) in its reset and draw from self.np_random"
    )


def _check_experience(env: gym.Env, experience: Experience) -> None:
    """Raise ValueError if transitions are of another environment."""
    shape = np.shape(experience.observations)[1:]
    if not len(experience) or shape != env.observation_space.shape:
        raise ValueError(
            f"{len(experience)} transitions with observations of shape {shape}; those of "
            f"{name_of(env)} have {env.observation_space.shape}"
        )
    acts = np.shape(experience.actions)[1:]
    if acts != env.action_space.shape:
        raise ValueError(
            f"the experience has actions of shape {acts}, {name_of(env)} {env.action_space.shape}"
        )
