"""Symmetries that are not true, as people write them, and the environments that they are about."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

import equirl
from equicore import Matrix, Permutation
from equicore.lab import figures
from equirl import Symmetry
from equirl.named import choices, mirror, negate, swap, symmetry
from equirl.signed import likely_mistakes
from equirl.simulators import Simulator

MINIGRIDS = ("MiniGrid-Empty-8x8-v0", "MiniGrid-FourRooms-v0")


@dataclass(frozen=True)
class Lie:
    """A wrong symmetry, the environment it is about, and the entry that should be named, if any."""

    env: str
    words: str
    make: Callable[[], gym.Env]
    symmetry: Callable[[], Symmetry]
    entry: str = ""
    place: Any = None


def maker(name: str) -> Callable[[], gym.Env]:
    """A function that makes an environment, flattened or without texts where it needs that."""
    return functools.partial(_make, name)


def _make(name: str) -> gym.Env:
    if name.startswith("MiniGrid"):
        from minigrid.wrappers import ImgObsWrapper

        return ImgObsWrapper(gym.make(name))
    if name.startswith("PointMaze"):
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
    env = gym.make(name)
    if name.startswith("PointMaze"):
        return gym.wrappers.FlattenObservation(env)
    if name.startswith(("FrozenLake", "CliffWalking")):
        ones = gym.wrappers.FlattenObservation(env)
        return gym.wrappers.DtypeObservation(ones, np.float32)
    if name == "MountainCar-v0":  # whose bounds show already that it has no mirror image
        env.observation_space = spaces.Box(-2, 2, (2,), np.float32)
    return env


def symmetry_of(name: str) -> Callable[[], Symmetry]:
    """A function that returns the symmetry that equirl knows."""
    if name.startswith("MiniGrid"):
        from equirl.envs.minigrid import view_symmetry

        return view_symmetry
    return functools.partial(equirl.symmetry_of, name)


def ant_turns() -> Symmetry:
    """Quarter turns of the Ant: of the dynamics alone."""
    from equirl.envs import mujoco

    return mujoco.ant_turns(gym.spec("Ant-v5"))


EDITED = {
    "CartPole-v1": [
        "observation: another sign of 'position'",
        "observation: another sign of 'angle'",
        "observation: another sign of 'angular velocity'",
        "action: 'left' and 'right' not exchanged",
    ],
    "Acrobot-v1": [
        "observation: another sign of 'sin first'",
        "observation: another sign of 'velocity second'",
        "observation: another sign of 'cos first'",
        "action: 'torque -1' and 'torque +1' not exchanged",
    ],
    "Pendulum-v1": [
        "observation: another sign of 'sin'",
        "observation: another sign of 'angular velocity'",
        "action: another sign of 'torque'",
    ],
    "LunarLander-v3": [
        "observation: another sign of 'x velocity'",
        "observation: another sign of 'angle'",
        "observation: another sign of 'angular velocity'",
        "observation: 'left leg contact' and 'right leg contact' not exchanged",
        "action: 'left engine' and 'right engine' not exchanged",
    ],
    "LunarLanderContinuous-v3": [
        "observation: another sign of 'angle'",
        "action: another sign of 'side engine'",
    ],
    "BipedalWalker-v3": [
        "observation: 'first leg hip angle' and 'second leg hip angle' not exchanged",
        "observation: another sign of 'hull angle'",
        "action: 'first leg hip' and 'second leg hip' not exchanged",
        "action: nothing exchanged",
        "observation: nothing exchanged",
    ],
    "Swimmer-v5": [
        "observation: another sign of 'angle'",
        "observation: another sign of 'velocity x'",
        "observation: another sign of 'first joint'",
        "action: another sign of 'second joint'",
    ],
    "Walker2d-v5": [
        "observation: another sign of 'pitch'",
        "observation: 'right foot' and 'left foot' not exchanged",
        "observation: nothing exchanged",
        "action: nothing exchanged",
        "action: 'right leg' and 'left leg' not exchanged",
    ],
    "Ant-v5": [
        "observation: another sign of 'orientation z'",
        "observation: another sign of 'velocity y'",
        "action: nothing exchanged",
    ],
    "InvertedDoublePendulum-v5": [
        "observation: another sign of 'sin second'",
        "action: another sign of 'force'",
    ],
    "InvertedPendulum-v5": [
        "observation: another sign of 'angular velocity'",
        "action: another sign of 'force'",
    ],
    "MiniGrid-FourRooms-v0": ["action: 'turn left' and 'turn right' not exchanged"],
    "PointMaze_UMaze-v3": [
        "observation: another sign of 'y velocity'",
        "observation: another sign of 'desired y'",
    ],
}
"""One change each of symmetries that are true."""


def edited(name: str, text: str) -> Symmetry:
    """The known symmetry with one of its likely mistakes."""
    return dict(likely_mistakes(symmetry_of(name)()))[text]


class WindyCartPole(CartPoleEnv):
    """A cart that a constant wind pushes to the right, half as hard as its own motor at most."""

    def step(self, action: Any) -> Any:
        """As ever, with the wind."""
        observation, *rest = super().step(action)
        self.state = np.array(self.state) + np.array([0, 0.05, 0, 0])
        return np.array(self.state, dtype=np.float32), *rest


def windy_lander() -> gym.Env:
    """A LunarLander with a constant wind from the left."""
    from gymnasium.envs.box2d.lunar_lander import LunarLander

    class Windy(LunarLander):
        def step(self, action: Any) -> Any:
            self.lander.ApplyForceToCenter((1.5, 0.0), True)
            return super().step(action)

    return Windy()


def lander_with(change: Callable[..., Any]) -> Callable[[], gym.Env]:
    """A LunarLander whose steps' results (action, observation, reward, end) are changed."""

    def make() -> gym.Env:
        from gymnasium.envs.box2d.lunar_lander import LunarLander

        class Changed(LunarLander):
            def step(self, action: Any) -> Any:
                observation, reward, end, *rest = super().step(action)
                reward, end = change(action, observation, reward, end)
                return observation, float(reward), bool(end), *rest

        return Changed()

    return make


def dead_swimmer() -> gym.Env:
    """A Swimmer whose first motor does nothing at small torques to one side."""
    from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv

    class Dead(SwimmerEnv):
        def step(self, action: Any) -> Any:
            first = 0.0 if 0 < action[0] < 0.3 else action[0]
            return super().step(np.array([first, action[1]]))

    return gym.wrappers.TimeLimit(Dead(), 1000)


class Cart(gym.Env):
    """A point that 20 actions push; both its ends and its pushes may be unfair.

    Args:
        weaker: Part by which the two strongest pushes to the right are weaker.
        end: Where an episode ends on the right.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(20)

    def __init__(self, weaker: float = 0.0, end: float = np.inf) -> None:
        self.weaker, self.end = weaker, end

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Anywhere near the middle."""
        super().reset(seed=seed)
        self.state, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.state.copy(), {}

    def step(self, action: Any) -> Any:
        """The push, less friction."""
        place, speed = self.state
        push = (action - 9.5) / 50 * (1 - self.weaker * (action > 17))
        speed = 0.9 * speed + push - 0.1 * np.sin(3 * place)
        self.state = np.array([place + 0.1 * speed, speed])
        self.steps += 1
        return self.state.copy(), -abs(place), bool(place > self.end), self.steps >= 50, {}


class Clockwork(gym.Env):
    """Two legs that follow clocks of their own, as robots that walk by a gait phase do.

    Observations: the hips, and sine and cosine of each leg's clock.
    """

    observation_space = spaces.Box(-2, 2, (6,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Hips and clocks anywhere."""
        super().reset(seed=seed)
        angles = self.np_random.uniform(-np.pi, np.pi, 2)
        self.state = np.concatenate(
            [self.np_random.uniform(-1, 1, 2), np.sin(angles), np.cos(angles)]
        )
        return self.state.copy(), {}

    def step(self, action: Any) -> Any:
        """Hips follow clocks and motors; clocks go on."""
        hips, sine, cosine = self.state.reshape(3, 2)
        moved = hips + 0.2 * (sine + np.asarray(action) - hips)
        both = np.sin(0.3), np.cos(0.3)
        self.state = np.concatenate(
            [moved, sine * both[1] + cosine * both[0], cosine * both[1] - sine * both[0]]
        )
        return self.state.copy(), float(-abs(moved).sum()), False, False, {}


def set_state(env: gym.Env, observation: Any) -> Any:
    """Its state is what it shows."""
    inner: Any = env.unwrapped
    inner.state = np.array(observation, float)
    return observation


def normalised() -> gym.Env:
    """A CartPole whose observations are normalised by statistics of an agent that leans left."""
    env = gym.make("CartPole-v1")
    shift = np.array([0.4, 0.1, -0.05, 0.0])
    return gym.wrappers.TransformObservation(
        env, lambda x: np.asarray((x - shift) / 2, np.float32), env.observation_space
    )


NAMED: dict[str, tuple[tuple[str, ...], Any, Any]] = {
    "MountainCar-v0": (
        ("position", "velocity"),
        choices("push left", "no push", "push right"),
        mirror([negate("position", "velocity")], [swap("push left", "push right")]),
    ),
    "HalfCheetah-v5": (
        ("height", "pitch", "back thigh", "back shin", "back foot", "front thigh", "front shin",
         "front foot", "velocity x", "velocity z", "pitch velocity", "back thigh velocity",
         "back shin velocity", "back foot velocity", "front thigh velocity",
         "front shin velocity", "front foot velocity"),
        ("back thigh", "back shin", "back foot", "front thigh", "front shin", "front foot"),
        mirror([swap("back", "front")], [swap("back", "front")]),
    ),
    "Hopper-v5": (
        ("height", "pitch", "thigh", "leg", "foot", "velocity x", "velocity z", "pitch velocity",
         "thigh velocity", "leg velocity", "foot velocity"),
        ("thigh", "leg", "foot"),
        mirror([negate("pitch", "thigh", "leg", "foot", "velocity x")],
               [negate("thigh", "leg", "foot")]),
    ),
    "FrozenLake-v1": (
        tuple(f"row {r} column {c}" for r in range(4) for c in range(4)),
        choices("left", "down", "right", "up"),
        mirror([swap(f"row {r} column {c}", f"row {c} column {r}")
                for r in range(4) for c in range(r)],
               [swap("left", "up"), swap("down", "right")]),
    ),
    "CliffWalking-v1": (
        tuple(f"row {r} column {c}" for r in range(4) for c in range(12)),
        choices("up", "right", "down", "left"),
        mirror([swap(f"row {r} column {c}", f"row {r} column {11 - c}")
                for r in range(4) for c in range(6)],
               [swap("right", "left")]),
    ),
    "Clockwork": (
        ("left hip", "right hip", "left clock sine", "right clock sine", "left clock cosine",
         "right clock cosine"),
        ("left motor", "right motor"),
        mirror([swap("left hip", "right hip"), negate("left clock", "right clock")],
               [swap("left", "right")]),
    ),
    "Cart": (
        ("place", "speed"),
        choices(*(f"push {i}" for i in range(20))),
        mirror([negate("place", "speed")],
               [swap(f"push {i}", f"push {19 - i}") for i in range(10)]),
    ),
}  # fmt: skip
"""Mirror images that are not there."""


def named(name: str) -> Symmetry:
    """One of `NAMED`."""
    observation, action, generator = NAMED[name]
    return symmetry(observation, action, generator)


def as_a_vector(name: str) -> Symmetry:
    """The mirror image of a robot, with the quaternion's vector part turned as if it were one."""
    right = symmetry_of(name)()
    matrices = right.observation.matrices.numpy().copy()
    for axis, sign in (("x", 1), ("y", -1), ("z", 1)):
        place = right.names.observation.index(f"orientation {axis}")
        matrices[1, place, place] = sign
    return dataclasses.replace(right, observation=Matrix(right.group, matrices))


def turned_grid() -> Symmetry:
    """Gridworld's quarter turn, with moves that are turned the other way."""
    right = equirl.symmetry_of("equirl/Gridworld-v0")
    return dataclasses.replace(
        right, action=Permutation.from_generators(right.group, [[3, 0, 1, 2]])
    )


POINT = ("achieved x", "achieved y", "desired x", "desired y", "x", "y", "x velocity", "y velocity")
"""What the flat observations of a point maze are called here."""


def across_maze() -> Symmetry:
    """The U-shaped maze, mirrored along x, where its opening is on one side."""
    seen = negate("achieved x", "desired x", "x", "x velocity")
    return symmetry(POINT, ("x force", "y force"), mirror([seen], [negate("x force")]))


def _lies() -> dict[str, Lie]:
    found = {}
    for env, texts in EDITED.items():
        for text in texts:
            entry = text.split("'")[1] if "'" in text else ""
            found[f"{env}, {text}"] = Lie(
                env, text, maker(env), functools.partial(edited, env, text), entry
            )
    others = [
        *(Lie(e, "a mirror image that is not there", maker(e), functools.partial(named, e))
          for e in ("MountainCar-v0", "HalfCheetah-v5", "Hopper-v5", "FrozenLake-v1",
                    "CliffWalking-v1")),
        Lie("Clockwork", "gait phase negated, not exchanged", Clockwork,
            functools.partial(named, "Clockwork"), "clock", set_state),
        Lie("CartPole-v1", "constant side wind", WindyCartPole,
            symmetry_of("CartPole-v1"), "velocity"),
        Lie("LunarLander-v3", "constant side wind", windy_lander,
            symmetry_of("LunarLander-v3"), "x velocity"),
        *(Lie("LunarLander-v3", words, lander_with(change), symmetry_of("LunarLander-v3"), entry)
          for words, entry, change in (
              ("reward: one engine costs 0.5 more", "reward: false",
               lambda a, o, r, end: (r - 0.5 * (a == 1), end)),
              ("reward leans by the angle", "reward: false",
               lambda a, o, r, end: (r - 0.3 * o[4], end)),
              ("ends sooner on the right", "termination: false",
               lambda a, o, r, end: (r, end or o[0] > 0.5)))),
        Lie("Swimmer-v5", "a motor that is dead on one side", dead_swimmer,
            symmetry_of("Swimmer-v5")),
        Lie("Cart", "2 of 20 actions weaker", functools.partial(Cart, weaker=0.3),
            functools.partial(named, "Cart"), "speed", set_state),
        Lie("Cart", "rare ends on one side", functools.partial(Cart, end=1.0),
            functools.partial(named, "Cart"), "termination: false", set_state),
        Lie("Cart", "rare ends on one side, by transitions", functools.partial(Cart, end=1.0),
            functools.partial(named, "Cart")),
        Lie("CartPole-v1", "normaliser with unsymmetric statistics", normalised,
            symmetry_of("CartPole-v1")),
        Lie("Walker2d-v4", "feet with different frictions", maker("Walker2d-v4"),
            symmetry_of("Walker2d-v5")),
        *(Lie(e, "quaternion treated as a vector", maker(e), functools.partial(as_a_vector, e))
          for e in ("Ant-v5", "Humanoid-v5")),
        Lie("Ant-v5", "quarter turns, and a reward along x", maker("Ant-v5"), ant_turns),
        Lie("equirl/Gridworld-v0", "moves turned the other way", maker("equirl/Gridworld-v0"),
            turned_grid),
        Lie("PointMaze_UMaze-v3", "mirrored along the other axis", maker("PointMaze_UMaze-v3"),
            across_maze),
    ]  # fmt: skip
    return found | {f"{lie.env}, {lie.words}": lie for lie in others}


LIES = _lies()


def draw(tables: dict[str, Any], folder: Path) -> None:
    """Errors of what is true and of lies, for each environment."""
    checks, wrong = tables["checks"], tables["lies"]
    names = list(dict.fromkeys([*checks.env, *wrong.env]))
    figure, axes = figures.grid(1, 1, figsize=(7.5, 0.3 * len(names) + 1.4))
    axis = axes[0, 0]
    for table, label, colour, marker in (
        (checks, "symmetries that equirl knows", common.COLOURS[0], "o"),
        (wrong, "lies", common.COLOURS[1], "x"),
    ):
        size = table[["dynamics_size", "reward_size", "termination_size"]].max(1).clip(1e-15, 1e2)
        axis.plot(size, [names.index(e) for e in table.env], marker, color=colour, label=label)
    axis.axvline(Simulator.tolerance, color="#666666", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("error of dynamics, reward or end, in parts of their changes (a mark: a seed)")
    figures.tidy(axis)
    figures.legend_below(figure, axis)
    figures.save(figure, folder / "symmetries")
