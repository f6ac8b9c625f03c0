"""Twins: two copies of an environment, one in the state that a group element takes the other to.

Where both go on from there shows whether a symmetry is true. A `Simulator` makes twins: by setting
the state that an observation shows (classic control, MuJoCo, any environment with such a function),
or for whole episodes (Box2D, whose ground no observation shows).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from equirl.preprocessing import changes
from equirl.symmetry import Symmetry

Vector = NDArray[Any]
Place = Callable[[gym.Env, Vector], Vector]
"""Sets an environment's state to what an observation shows, and returns what it shows then."""
NEAR = 1e-3
"""Twins of whole episodes are compared as long as no entry differs by more."""
REPLACED = 0.3
"""Part of the steps of an episode whose states are compared."""


@dataclass(frozen=True)
class Pair:
    """A step of twins: what the first saw and did, and where both came to.

    ``before`` is what the first one saw, ``start`` what the group element makes of that and
    ``wanted`` what it makes of the first one's next observation; ``found`` is the second one's.
    """

    element: int
    before: Vector
    action: Any
    start: Vector
    wanted: Vector
    found: Vector
    rewards: tuple[float, float]
    ends: tuple[bool, bool]


class Simulator(ABC):
    """Makes twins of an environment."""

    exact = "exact"
    """What agreement up to rounding is called."""
    steps = 1000
    """How many are compared."""
    norm = 2
    """Of differences: 2 for their root mean square, 1 for their mean."""
    tolerance = 0.1
    """The largest difference, in parts of an entry's changes, of what is approximate."""
    derived = 0.5
    """The same of entries that are no part of the state, such as forces of contacts."""
    through_wrappers = False
    """Whether wrappers may change what an environment shows."""
    apart = 1.0
    """The largest part of steps after which twins differ by more than `NEAR`."""

    @abstractmethod
    def pairs(self, env: gym.Env, twin: gym.Env, symmetry: Symmetry, seed: int) -> Iterator[Pair]:
        """Steps of twins without end, under random actions, for all elements in turn."""

    def states(self, env: gym.Env, entries: int) -> int:
        """How many entries show the state, the first ones; what follows is derived from it."""
        return entries

    def takes(self, symmetry: Symmetry) -> bool:
        """Whether it makes twins for all elements of this group."""
        return True

    def deterministic(self, env: gym.Env, twin: gym.Env, seed: int) -> bool:
        """Whether twins in one and the same state go on alike: chance would tell them apart."""
        return True


@dataclass(frozen=True)
class Placed(Simulator):
    """Twins in a state that an observation shows: each step is compared by itself."""

    place: Place
    state: Callable[[gym.Env], int] | None = None
    """How many entries show the state, the first ones; all when omitted."""

    def states(self, env: gym.Env, entries: int) -> int:
        """See `Simulator.states`."""
        return entries if self.state is None else self.state(env)

    def deterministic(self, env: gym.Env, twin: gym.Env, seed: int) -> bool:
        """See `Simulator.deterministic`."""
        return all(self._alike(env, twin, seed, (True, True)))

    def check_whole(self, env: gym.Env, twin: gym.Env, seed: int) -> None:
        """Raise ValueError if an environment goes on differently once its state has been set."""
        if not all(self._alike(env, twin, seed, (False, True))):
            raise ValueError(
                "place does not set all of the state: after it the environment goes on differently "
                "than without it. Set what an observation does not show, too, or let place= out: "
                "transitions are looked at then"
            )

    def _alike(
        self, env: gym.Env, twin: gym.Env, seed: int, placed: tuple[bool, bool]
    ) -> Iterator[bool]:
        """Whether twins in the same state go on alike, for some steps; in which states are set."""
        env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed)
        twin.reset(seed=seed + 1)
        for _ in range(20):
            action = env.action_space.sample()
            follows = []
            for one, is_placed in zip((twin, env), placed[::-1], strict=True):
                if is_placed:
                    self.place(one, observation)
                after, reward, end, truncated, _ = one.step(action)
                follows.append(np.append(np.ravel(after), (float(reward), bool(end))))
            yield abs(follows[0] - follows[1]).max() <= 1e-6 * (1 + abs(follows[0]).max())
            observation = env.reset()[0] if end or truncated else after

    def pairs(self, env: gym.Env, twin: gym.Env, symmetry: Symmetry, seed: int) -> Iterator[Pair]:
        """See `Simulator.pairs`. States are those that random actions lead to."""
        generator, elements = np.random.default_rng(seed), _turns(symmetry)
        env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed)
        twin.reset(seed=seed)
        while True:
            action = env.action_space.sample()
            if generator.random() < REPLACED:
                before = self.place(env, observation)
                after, reward, end, *_ = env.step(action)
                g = next(elements)
                start = symmetry.act_on_observations(g, before[None])[0]
                self.place(twin, start)
                found, other, other_end, *_ = twin.step(_moved(symmetry, g, action))
                wanted = symmetry.act_on_observations(g, np.asarray(after)[None])[0]
                rewards, ends = (float(reward), float(other)), (bool(end), bool(other_end))
                yield Pair(g, before, action, start, wanted, found, rewards, ends)
                self.place(env, observation)
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()


@dataclass(frozen=True)
class Episodes(Simulator):
    """Twins that begin an episode alike; they are compared until they have come apart."""

    steps, norm, tolerance, apart = 6000, 1, 0.2, 0.05
    begin: Callable[[gym.Env, int], Vector]
    """Resets the second one by a seed, mirrored, and returns what it shows."""
    through_wrappers: bool = False
    """See `Simulator`: whether ``begin`` returns what is shown through them."""
    exact: str = "exact up to solver order"
    """As in `Simulator`: bodies in contact are solved for one after the other."""

    def takes(self, symmetry: Symmetry) -> bool:
        """See `Simulator.takes`: what is known is one mirror image."""
        return len(symmetry.group) == 2

    def pairs(self, env: gym.Env, twin: gym.Env, symmetry: Symmetry, seed: int) -> Iterator[Pair]:
        """See `Simulator.pairs`."""
        env.action_space.seed(seed)
        generator = np.random.default_rng(seed)
        while True:
            episode = int(generator.integers(2**31))
            before, _ = env.reset(seed=episode)
            seen = self.begin(twin, episode)
            wanted = symmetry.act_on_observations(1, np.asarray(before)[None])[0]
            yield Pair(1, before, None, wanted, wanted, seen, (0.0, 0.0), (False, False))
            ended = abs(seen - wanted).max() > NEAR
            while not ended:
                action = env.action_space.sample()
                start = wanted
                after, reward, end, *_ = env.step(action)
                found, other, other_end, *_ = twin.step(_moved(symmetry, 1, action))
                wanted = symmetry.act_on_observations(1, np.asarray(after)[None])[0]
                rewards, ends = (float(reward), float(other)), (bool(end), bool(other_end))
                yield Pair(1, before, action, start, wanted, found, rewards, ends)
                before, ended = after, end or other_end or abs(found - wanted).max() > NEAR


def simulator_of(env: gym.Env) -> Simulator | None:
    """How twins of an environment are made; None where that is not known.

    States are set by what an environment itself shows: not where a wrapper changes that.
    """
    changed = bool(changes(env))
    for kind in type(env.unwrapped).__mro__:
        if found := SIMULATORS.get(f"{kind.__module__}:{kind.__qualname__}"):
            return found if not changed or found.through_wrappers else None
    return None


def _turns(symmetry: Symmetry) -> Iterator[int]:
    while True:
        yield from range(1, len(symmetry.group))


def _moved(symmetry: Symmetry, g: int, action: Any) -> Any:
    moved = symmetry.act_on_actions(g, np.asarray(action)[None])[0]
    return moved.item() if moved.ndim == 0 else moved.astype(np.asarray(action).dtype)


def _set(entries: Callable[[Vector], Any]) -> Place:
    """By the attribute ``state``, as of classic control."""

    def place(env: gym.Env, observation: Vector) -> Vector:
        inner: Any = env.unwrapped
        inner.state = np.array(entries(np.asarray(observation, float)))
        for name, value in (("steps_beyond_terminated", None), ("last_u", None)):
            if hasattr(inner, name):
                setattr(inner, name, value)
        return observation

    return place


def _mujoco(env: gym.Env, observation: Vector) -> Vector:
    """By joint positions and velocities, which observations begin with, but for where a body is."""
    inner: Any = env.unwrapped
    positions, velocities, absent = _joints(inner)
    place = np.concatenate([np.zeros(absent), observation[: positions - absent]])
    inner.set_state(place, observation[positions - absent :][:velocities].astype(float))
    return np.array(inner._get_obs())


def _joints(inner: Any) -> tuple[int, int, int]:
    """How many positions and velocities a body has, and how many of the positions are not seen."""
    positions, velocities = inner.model.nq, inner.model.nv
    structure = getattr(inner, "observation_structure", None) or {}
    entries = inner.observation_space.shape[0]
    absent = structure.get("skipped_qpos", max(0, positions + velocities - entries))
    return positions, velocities, absent


def _seen_joints(env: gym.Env) -> int:
    positions, velocities, absent = _joints(env.unwrapped)
    return positions + velocities - absent


def _reacher(env: gym.Env, observation: Vector) -> Vector:
    """The sines and cosines, and the target, are joint positions."""
    inner: Any = env.unwrapped
    angles = np.arctan2(observation[2:4], observation[:2])
    inner.set_state(
        np.concatenate([angles, observation[4:6]]), np.concatenate([observation[6:8], [0, 0]])
    )
    return np.array(inner._get_obs())


def _double_pendulum(env: gym.Env, observation: Vector) -> Vector:
    inner: Any = env.unwrapped
    angles = np.arctan2(observation[1:3], observation[3:5])
    inner.set_state(np.concatenate([observation[:1], angles]), observation[5:8].astype(float))
    return np.array(inner._get_obs())


def _cells(env: gym.Env, observation: Vector) -> Vector:
    """Of a Gridworld: agent and goal, from their coordinates or from planes."""
    inner: Any = env.unwrapped
    if observation.ndim == 3:
        found = [np.argwhere(plane)[0] for plane in observation]
        cells = [np.array([column, inner.n - 1 - row]) for row, column in found]
    else:
        places = np.rint((np.asarray(observation, float) + 1) / 2 * (inner.n - 1))
        cells = list(places.astype(int).reshape(2, 2))
    inner.agent, inner.goal = cells
    return observation


def _one_of(env: gym.Env, observation: Vector) -> Vector:
    """Of environments whose state is a number, seen as ones and zeros."""
    inner: Any = env.unwrapped
    inner.s = int(np.argmax(observation))
    return observation


def _maze(env: gym.Env, observation: Vector) -> Vector:
    """Of a PointMaze, flattened: where the goal is, and where the point is and goes."""
    inner: Any = env.unwrapped
    inner.goal = np.array(observation[2:4], float)
    inner.update_target_site_pos()
    inner.point_env.set_state(*np.array(observation[4:8], float).reshape(2, 2))
    return observation


def _mirrored_grid(env: gym.Env, seed: int) -> Vector:
    """A MiniGrid with left and right exchanged, as the agent sees them first."""
    env.reset(seed=seed)
    inner: Any = env.unwrapped
    grid, width = inner.grid.grid, inner.grid.width
    rows = [grid[i : i + width] for i in range(0, len(grid), width)]
    inner.grid.grid = [cell for row in rows for cell in reversed(row)]
    x, y = inner.agent_pos
    inner.agent_pos = (width - 1 - x, y)
    inner.agent_dir = (2 - inner.agent_dir) % 4  # right, down, left, up
    shown = inner.gen_obs()
    layers = []
    while isinstance(env, gym.Wrapper):
        layers.append(env)
        env = env.env
    for layer in reversed(layers):
        shown = layer.observation(shown) if isinstance(layer, gym.ObservationWrapper) else shown
    return shown


class _MirroredDraws:
    """LunarLander's random numbers as its mirror image would draw them.

    The heights of the ground in reverse, the first push sideways negated, and of both numbers by
    which the engines scatter in each step the one along the side.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator, self.drawn = generator, 0

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        drawn = self.generator.uniform(low, high, size)
        if size is not None:
            return np.concatenate([drawn[:-1][::-1], drawn[-1:]])
        self.drawn += 1
        sideways = self.drawn == 1 or (self.drawn > 2 and self.drawn % 2 == 0)
        return -drawn if sideways else drawn


def _mirrored_lander(env: gym.Env, seed: int) -> Vector:
    inner: Any = env.unwrapped
    if inner.enable_wind:
        raise ValueError(
            "LunarLander's wind goes through its own sequence, which has no mirror image: an "
            "episode with wind has none"
        )
    inner.np_random = _MirroredDraws(gym.utils.seeding.np_random(seed)[0])
    return np.array(env.reset()[0])


def _other_leg_first(env: gym.Env, seed: int) -> Vector:
    """BipedalWalker's legs under each other's names."""
    observation = np.array(env.reset(seed=seed)[0])
    inner: Any = env.unwrapped
    inner.legs = [*inner.legs[2:], *inner.legs[:2]]
    inner.joints = [*inner.joints[2:], *inner.joints[:2]]
    first, second = observation[4:9].copy(), observation[9:14].copy()
    observation[4:9], observation[9:14] = second, first
    return observation


_STATE = Placed(_set(lambda o: o))
_CONTROL, _MUJOCO = "gymnasium.envs.classic_control", "gymnasium.envs.mujoco"
SIMULATORS: dict[str, Simulator] = {
    f"{_CONTROL}.cartpole:CartPoleEnv": _STATE,
    f"{_CONTROL}.mountain_car:MountainCarEnv": _STATE,
    f"{_CONTROL}.continuous_mountain_car:Continuous_MountainCarEnv": _STATE,
    f"{_CONTROL}.acrobot:AcrobotEnv": Placed(
        _set(lambda o: (np.arctan2(o[1], o[0]), np.arctan2(o[3], o[2]), o[4], o[5]))
    ),
    f"{_CONTROL}.pendulum:PendulumEnv": Placed(_set(lambda o: (np.arctan2(o[1], o[0]), o[2]))),
    f"{_MUJOCO}.reacher_v5:ReacherEnv": Placed(_reacher),
    f"{_MUJOCO}.inverted_double_pendulum_v5:InvertedDoublePendulumEnv": Placed(_double_pendulum),
    f"{_MUJOCO}.mujoco_env:MujocoEnv": Placed(_mujoco, _seen_joints),
    "equirl.envs.gridworld:Gridworld": Placed(_cells),
    "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv": Placed(_one_of),
    "gymnasium.envs.toy_text.cliffwalking:CliffWalkingEnv": Placed(_one_of),
    "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv": Placed(_maze),
    "minigrid.minigrid_env:MiniGridEnv": Episodes(
        _mirrored_grid, through_wrappers=True, exact="exact"
    ),
    "gymnasium.envs.box2d.lunar_lander:LunarLander": Episodes(_mirrored_lander),
    "gymnasium.envs.box2d.bipedal_walker:BipedalWalker": Episodes(_other_leg_first),
}
"""How twins are made, by the class of an environment; the first of its line that is here counts."""
