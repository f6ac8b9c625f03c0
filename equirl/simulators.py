"""Twins: two copies of an environment, one in the state that a group element takes the other to.

Where both go on from there shows whether a symmetry is true. A `Simulator` makes twins: by setting
the state that an observation shows (classic control, MuJoCo, any environment with such a function),
or for whole episodes (Box2D, whose ground no observation shows).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from equirl.experience import Experience
from equirl.preprocessing import changes
from equirl.registry import imported
from equirl.symmetry import Symmetry
from equirl.transitions import usual

Vector = NDArray[Any]
Place = Callable[[gym.Env, Vector], Vector | None]
"""Sets an environment's state to what an observation shows, and returns what it shows then; None
where an observation does not show the state, as one whose entries were clipped."""
NEAR, FAR = 1e-3, 1.0
"""Twins of whole episodes are together as long as no entry differs by more; and an episode is
given up where one differs by so much."""
SOON = 5
"""Steps by which a solver's order may make one of twins end later."""
TRIALS, MISSES = 300, 0.01
"""Steps by which it is tried whether states can be set, and the part of them that may fail."""
SAME, ALIKE = 1e-4, 0.1
"""Largest differences of what is the same, in parts of each entry's size; and of steps that were
made again, in parts of usual changes: MuJoCo shows some things as they were a moment ago."""

OTHER = (
    "two copies go on differently from the same state by the same seed: the second one was made "
    "otherwise than the first, or chance does not come from np_random"
)
CHANCE = "the same state and action lead to different steps by chance"
DRAWN = (
    "the same state and action lead to different steps after another reset: what a reset draws is "
    "not set, such as a goal that no observation shows"
)
HIDDEN = (
    "after a state has been set it goes on differently than it did: what no observation shows, "
    "such as the last action or a count of steps, matters, too"
)
"""Why twins are not used, in words."""


@dataclass(frozen=True)
class Pair:
    """A step of twins: what the first saw and did, and where both came to.

    ``before`` is what the first one saw, ``start`` what the group element makes of that and
    ``wanted`` what it makes of the first one's next observation; ``found`` is the second one's.
    The action is None where twins begin an episode.
    """

    element: int
    before: Vector
    action: Any
    start: Vector
    wanted: Vector
    found: Vector
    rewards: tuple[float, float]
    ends: tuple[bool, bool]
    gap: NDArray[np.float64] | float = 0.0
    """By how much the second one's entries differed before, in one and the same episode."""

    @property
    def off(self) -> NDArray[np.float64]:
        """By how much its entries differ now."""
        return np.subtract(self.found, self.wanted, dtype=float)

    @property
    def together(self) -> tuple[bool, bool]:
        """Whether twins were together before, and are now."""
        return bool(np.all(np.abs(self.gap) <= NEAR)), bool(np.all(np.abs(self.off) <= NEAR))

    @property
    def pushed(self) -> bool:
        """Whether this step took them apart, or further apart."""
        return bool(np.any(np.abs(self.off - self.gap) > NEAR))


class Simulator(ABC):
    """Makes twins of an environment."""

    exact = "exact"
    """What agreement up to rounding is called."""
    steps = 1000
    """How many are compared."""
    tolerance = 0.1
    """The largest difference, in parts of an entry's changes, of what is approximate."""
    derived = 0.5
    """The same of entries that are no part of the state, such as forces of contacts."""
    through_wrappers = False
    """Whether wrappers may change what an environment shows."""
    visits = 1
    """Steps under random actions to states that twins are put into, at least 1."""

    @abstractmethod
    def pairs(
        self, env: gym.Env, twin: gym.Env, symmetry: Symmetry, visited: Experience, seed: int
    ) -> Iterator[Pair]:
        """Steps of twins, for all elements in turn."""

    def states(self, env: gym.Env, entries: int) -> int:
        """How many entries show the state, the first ones; what follows is derived from it."""
        return entries

    def takes(self, symmetry: Symmetry) -> bool:
        """Whether it makes twins for all elements of this group."""
        return True

    @abstractmethod
    def unfit(self, env: gym.Env, twin: gym.Env, visited: Experience, seed: int) -> str:
        """Why twins tell nothing of this environment, in words; empty if they do."""


@dataclass(frozen=True)
class Placed(Simulator):
    """Twins in a state that an observation shows: each step is compared by itself."""

    visits = 3000
    place: Place
    state: Callable[[gym.Env], int] | None = None
    """How many entries show the state, the first ones; all when omitted."""

    def states(self, env: gym.Env, entries: int) -> int:
        """See `Simulator.states`."""
        return entries if self.state is None else self.state(env)

    def unfit(self, env: gym.Env, twin: gym.Env, visited: Experience, seed: int) -> str:
        """See `Simulator.unfit`. Steps that were made before are made again, from placed states."""
        rows = _shuffled(visited, np.random.default_rng(seed))
        shown, was, again = [], [], []
        others: list[list[Vector]] = [[], [], []]
        for number, row in zip(range(min(TRIALS, len(visited))), rows, strict=False):
            seen, action = visited.observations[row], visited.actions[row]
            made = self._step(env, seen, action, seed + number)
            if made is None:
                continue
            # once more, with another chance, and after another reset
            for steps, (start, chance) in zip(others, ((0, 0), (0, 1), (TRIALS, 0)), strict=True):
                step = self._step(twin, seen, action, seed + start + number, chance)
                assert step is not None
                steps.append(_flat(*step[1:]))
            if made[0].shape != seen.shape:
                raise ValueError(
                    f"place returned an array of shape {made[0].shape}; it returns the observation "
                    f"that is shown then, of shape {seen.shape}"
                )
            shown.append((np.ravel(made[0]), np.ravel(seen)))
            after, reward = visited.next_observations[row], visited.rewards[row]
            was.append(_flat(after, reward, visited.terminated[row]))
            again.append(_flat(*made[1:]))
        if not shown:
            return "place returned None for each observation; does it lack a return?"
        known = self.states(env, len(was[0]) - 2)
        for steps, why in zip(others, (OTHER, CHANCE, DRAWN), strict=True):
            if _differ(np.array(again), np.array(steps)):
                return why
        placed, told = (np.array(part)[:, :known] for part in zip(*shown, strict=True))
        if _differ(placed, told):
            return "where a state is set it shows another observation than the one that it was told"
        parts = [*range(known), -2, -1]
        was_, again_ = np.array(was)[:, parts], np.array(again)[:, parts]
        moved = was_ - np.median(was_, 0)
        moved[:, :known] = was_[:, :known] - told
        size = SAME * (1e-9 + abs(was_).max(0))
        if (abs(was_ - again_) > np.maximum(ALIKE * usual(moved), size)).any(1).mean() > MISSES:
            return HIDDEN
        return ""

    def pairs(
        self, env: gym.Env, twin: gym.Env, symmetry: Symmetry, visited: Experience, seed: int
    ) -> Iterator[Pair]:
        """See `Simulator.pairs`. Every second action is drawn anew: agents choose but a few."""
        generator, elements = np.random.default_rng(seed), _turns(symmetry)
        env.action_space.seed(seed)
        rows = itertools.islice(_shuffled(visited, generator), 10 * self.steps)
        for number, row in enumerate(rows):
            g, action = next(elements), visited.actions[row]
            if number % 2:
                action = env.action_space.sample()
            one = self._step(env, visited.observations[row], action, seed + number)
            if one is None:
                continue
            before, after, reward, end = one
            start = symmetry.act_on_observations(g, before[None])[0]
            two = self._step(twin, start, _moved(symmetry, g, action), seed + number)
            if two is None:
                continue
            _, found, other, other_end = two
            wanted = symmetry.act_on_observations(g, after[None])[0]
            yield Pair(g, before, action, start, wanted, found, (reward, other), (end, other_end))

    def _step(
        self, env: gym.Env, observation: Vector, action: Any, seed: int, chance: int = 0
    ) -> tuple[Vector, Vector, float, bool] | None:
        """What an environment shows in a state, then, its reward, and whether it ends.

        It is reset first: what counts steps begins anew. None if an observation shows no state.
        """
        env.reset(seed=seed)
        placed = self.place(env, observation.copy())
        if placed is None:
            return None
        before = np.array(placed)
        env.unwrapped.np_random = np.random.default_rng((seed, chance))
        after, reward, end, *_ = env.step(np.copy(action) if np.ndim(action) else action)
        return before, np.array(after), float(reward), bool(end)


@dataclass(frozen=True)
class Episodes(Simulator):
    """Twins that begin an episode alike; they are compared until they have come apart."""

    steps, tolerance = 6000, 0.2
    begin: Callable[[gym.Env, int], Vector]
    """Resets the second one by a seed, mirrored, and returns what it shows."""
    apart: float = 0.0
    """The largest part of steps after which twins that were together may have come apart, as bodies
    in contact are solved for one after the other; measured where the symmetry is true."""
    refuses: Callable[[gym.Env], str] | None = None
    """Why an environment has no mirrored episodes, in words; empty if it has."""
    through_wrappers: bool = False
    """See `Simulator`: whether ``begin`` returns what is shown through them."""
    draws: bool = True
    """Whether steps may draw random numbers: ``begin`` mirrors these, too."""
    exact: str = "exact up to solver order"
    """As in `Simulator`: bodies in contact are solved for one after the other."""

    def takes(self, symmetry: Symmetry) -> bool:
        """See `Simulator.takes`: what is known is one mirror image."""
        return len(symmetry.group) == 2

    def unfit(self, env: gym.Env, twin: gym.Env, visited: Experience, seed: int) -> str:
        """See `Simulator.unfit`."""
        if self.refuses is not None and (why := self.refuses(env)):
            return why
        if self.draws:
            return ""
        env.action_space.seed(seed)
        env.reset(seed=seed)
        inner: Any = env.unwrapped
        drawn = str(inner.np_random.bit_generator.state)
        for _ in range(50):
            *_, end, truncated, _ = env.step(env.action_space.sample())
            if str(inner.np_random.bit_generator.state) != drawn:
                return "its steps draw random numbers, whose mirror image is not known"
            if end or truncated:
                break
        return ""

    def pairs(
        self, env: gym.Env, twin: gym.Env, symmetry: Symmetry, visited: Experience, seed: int
    ) -> Iterator[Pair]:
        """See `Simulator.pairs`; under random actions."""
        env.action_space.seed(seed)
        generator = np.random.default_rng(seed)
        while True:
            episode = int(generator.integers(2**31))
            before = np.array(env.reset(seed=episode)[0])
            seen = np.array(self.begin(twin, episode))
            wanted = symmetry.act_on_observations(1, before[None])[0]
            pair = Pair(1, before, None, wanted, wanted, seen, (0.0, 0.0), (False, False))
            yield pair
            ended = not pair.together[1]
            while not ended:
                action = env.action_space.sample()
                start = wanted
                after, reward, end, truncated, _ = env.step(action)
                found, other, other_end, *_ = twin.step(_moved(symmetry, 1, action))
                after, found = np.array(after), np.array(found)
                wanted = symmetry.act_on_observations(1, after[None])[0]
                rewards, ends = (float(reward), float(other)), (bool(end), bool(other_end))
                if ends[0] != ends[1] and _ends_soon(twin if ends[0] else env):
                    break  # a solver's order may end one of them a moment before the other
                pair = Pair(1, before, action, start, wanted, found, rewards, ends, pair.off)
                yield pair
                before, ended = after, end or other_end or truncated
                ended |= bool((abs(pair.off) > FAR).any())


def simulator_of(env: gym.Env) -> tuple[Simulator | None, str]:
    """How twins of an environment are made; or None, and why that is not known, in words.

    States are set by what an environment itself shows: not where a wrapper changes that.
    """
    for kind in type(env.unwrapped).__mro__:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if name not in KNOWN:
            continue
        if KNOWN[name] is None:
            break
        found: Simulator = imported(str(KNOWN[name]))
        flat = gym.wrappers.FlattenObservation.__name__  # which moves nothing
        changed = [name for name in changes(env) if name != flat]
        if changed and not found.through_wrappers:
            return None, f"{', '.join(changed)} changes what it shows or is told"
        return found, ""
    return None, "how its state is set is not known; place= can say it"


def _ends_soon(env: gym.Env) -> bool:
    """Whether an episode ends in the next steps, too."""
    return any(env.step(env.action_space.sample())[2] for _ in range(SOON))


def _turns(symmetry: Symmetry) -> Iterator[int]:
    while True:
        yield from range(1, len(symmetry.group))


def _shuffled(visited: Experience, generator: np.random.Generator) -> Iterator[int]:
    """Rows without end; of those that ended an episode one in five, as long as there are any."""
    ends = iter(generator.permutation(np.flatnonzero(visited.terminated)).tolist())
    while True:
        for number, row in enumerate(generator.permutation(len(visited)).tolist()):
            if number % 4 == 3 and (end := next(ends, None)) is not None:
                yield end
            yield row


def _moved(symmetry: Symmetry, g: int, action: Any) -> Any:
    moved = symmetry.act_on_actions(g, np.asarray(action)[None])[0]
    return moved.item() if moved.ndim == 0 else moved.astype(np.asarray(action).dtype)


def _flat(after: Vector, reward: float, end: bool) -> Vector:
    return np.append(np.ravel(after).astype(float), (float(reward), float(end)))


def _differ(one: Vector, other: Vector) -> bool:
    """Whether more rows differ than may."""
    size = np.maximum(abs(one), abs(other)).max(0) + 1e-9
    return bool((abs(one - other) > SAME * size).any(1).mean() > MISSES)


_GYM = "gymnasium.envs"
KNOWN: dict[str, str | None] = {
    f"{_GYM}.classic_control.cartpole:CartPoleEnv": "equirl.envs.classic_control:STATE",
    f"{_GYM}.classic_control.mountain_car:MountainCarEnv": "equirl.envs.classic_control:STATE",
    f"{_GYM}.classic_control.continuous_mountain_car:Continuous_MountainCarEnv":
        "equirl.envs.classic_control:STATE",
    f"{_GYM}.classic_control.acrobot:AcrobotEnv": "equirl.envs.classic_control:ACROBOT_STATE",
    f"{_GYM}.classic_control.pendulum:PendulumEnv": "equirl.envs.classic_control:PENDULUM_STATE",
    f"{_GYM}.mujoco.reacher_v5:ReacherEnv": "equirl.envs.mujoco_states:REACHER_STATE",
    f"{_GYM}.mujoco.inverted_double_pendulum_v5:InvertedDoublePendulumEnv":
        "equirl.envs.mujoco_states:DOUBLE_PENDULUM_STATE",
    f"{_GYM}.mujoco.mujoco_env:MujocoEnv": "equirl.envs.mujoco_states:STATE",
    f"{_GYM}.toy_text.frozen_lake:FrozenLakeEnv": "equirl.envs.toy_text:STATE",
    f"{_GYM}.toy_text.cliffwalking:CliffWalkingEnv": "equirl.envs.toy_text:STATE",
    f"{_GYM}.box2d.lunar_lander:LunarLander": "equirl.envs.box2d:MIRRORED_LANDER",
    f"{_GYM}.box2d.bipedal_walker:BipedalWalker": "equirl.envs.box2d:OTHER_LEG_FIRST",
    "equirl.envs.gridworld:Gridworld": "equirl.envs.gridworld:STATE",
    "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv": "equirl.envs.robotics:MAZE_STATE",
    "minigrid.minigrid_env:MiniGridEnv": "equirl.envs.minigrid:MIRRORED",
    "minigrid.envs.babyai.core.roomgrid_level:RoomGridLevel": None,  # remembers places in words
}  # fmt: skip
"""The `Simulator` of an environment's class, as module:name; the first of its line that is here."""
