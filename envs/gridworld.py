"""A grid on which an agent walks to a goal; quarter turns of the grid are its symmetry (C4)."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from equicore import Image, Matrix, Permutation, cyclic
from equirl.simulators import Placed, Vector
from equirl.symmetry import Symmetry

MOVES = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""The (x, y) step of each action: right, up, left, down. A quarter turn maps each to the next."""

QUARTER_TURN = np.array([[0, -1], [1, 0]])
"""Counter-clockwise: (x, y) becomes (-y, x)."""

_CELL = 32  # pixels
_WHITE, _GREY, _GOAL, _AGENT = (255, 255, 255), (205, 205, 205), (0, 158, 115), (0, 90, 181)


class Gridworld(gym.Env):
    """Walk to the goal on an n x n grid.

    Agent and goal start on two different cells, chosen at random. Walking into the wall costs a
    step and moves nobody. The episode terminates at the goal; the registered id truncates it
    after 50 steps. ``info["is_success"]`` tells whether the goal was reached.

    **Actions** ``Discrete(4)``: 0 right, 1 up, 2 left, 3 down.

    **Observations** ``"coordinates"``: ``Box(-1, 1, (4,), float32)``, x and y of the agent, then
    of the goal, measured from the centre of the grid (x grows to the right, y upwards);
    ``"image"``: ``Box(0, 1, (2, n, n), float32)``, a plane with a 1 at the agent and one with a 1
    at the goal, the top row first.

    **Reward** ``success_reward`` for the step that reaches the goal, ``-step_cost`` for others; by
    default 0 and -1, so that a return is minus the steps that did not reach the goal (as in Sutton
    and Barto, 2018, example 4.1).

    **Symmetry** C4: turning the grid, the observation and the action by a quarter turn.

    Args:
        n: Cells along a side, at least 2.
        observation: ``"coordinates"`` or ``"image"``.
        goals: ``"anywhere"``, or ``"corner"``: always the top right corner, so that an agent
            trained there has never seen the other three, the zero-shot case.
        step_cost: Subtracted for each step that does not reach the goal.
        success_reward: Reward for reaching the goal.
        render_mode: ``"rgb_array"``, ``"human"`` (needs pygame) or ``"ansi"``.

    Raises:
        ValueError: If an argument is none of the above.

    >>> env = gym.make("equirl/Gridworld-v0", goals="corner", render_mode="ansi", n=3)
    >>> observation, info = env.reset(seed=1)
    >>> print(env.render())
    . . G
    . A .
    . . .
    >>> observation
    array([0., 0., 1., 1.], dtype=float32)
    """

    metadata = {"render_modes": ["rgb_array", "human", "ansi"], "render_fps": 8}

    def __init__(
        self,
        n: int = 8,
        observation: Literal["coordinates", "image"] = "coordinates",
        goals: Literal["anywhere", "corner"] = "anywhere",
        step_cost: float = 1.0,
        success_reward: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        if n < 2:
            raise ValueError(f"the grid needs at least 2 x 2 cells; got n={n}")
        _check_choice("observation", observation, ("coordinates", "image"))
        _check_choice("goals", goals, ("anywhere", "corner"))
        _check_choice("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        self.n = n
        self.observation = observation
        self.goals = goals
        self.step_cost = step_cost
        self.success_reward = success_reward
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(4)
        self.observation_space = (
            spaces.Box(-1.0, 1.0, (4,), np.float32)
            if observation == "coordinates"
            else spaces.Box(0.0, 1.0, (2, n, n), np.float32)
        )
        self.agent = np.zeros(2, dtype=np.int64)
        self.goal = np.zeros(2, dtype=np.int64)
        self._window: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Place agent and goal.

        Args:
            seed: Seeds the environment's generator.
            options: ``{"agent": (x, y), "goal": (x, y)}``, both optional, place them on the given
                cells, 0..n-1 from the lower left.

        Raises:
            ValueError: If an option is no cell, or both are the same one.
        """
        super().reset(seed=seed)
        options = options or {}
        # two draws in every episode, whatever the options, so that equal seeds stay equal episodes
        first, step = (int(draw) for draw in self.np_random.integers([self.n**2, self.n**2 - 1]))
        if self.goals == "corner":
            first = self.n**2 - 1
        if "goal" not in options and "agent" in options and self.goals == "anywhere":
            self.agent = self._cell(options["agent"])
            self.goal = self._cell(self._other_cell(self.agent, step))
        else:
            self.goal = self._cell(options.get("goal", divmod(first, self.n)))
            self.agent = self._cell(options.get("agent", self._other_cell(self.goal, step)))
        if np.array_equal(self.agent, self.goal):
            raise ValueError(
                f"agent and goal cannot start on the same cell {tuple(self.goal.tolist())}"
            )
        if self.render_mode == "human":
            self._show()
        return self._observe(), {"is_success": False}

    def step(
        self, action: int | np.integer
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move the agent by one cell, unless there is the wall."""
        if not self.action_space.contains(action):
            raise ValueError(f"the actions are 0 (right), 1 (up), 2 (left), 3 (down); got {action}")
        self.agent = np.clip(self.agent + MOVES[action], 0, self.n - 1)
        reached = bool(np.array_equal(self.agent, self.goal))
        if self.render_mode == "human":
            self._show()
        reward = self.success_reward if reached else -self.step_cost
        return self._observe(), float(reward), reached, False, {"is_success": reached}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which moves do not lead against the wall, shape (4,), for agents that take masks."""
        moved = self.agent + MOVES
        return ((moved >= 0) & (moved < self.n)).all(axis=1)

    def render(self) -> NDArray[np.uint8] | str | None:
        """A picture (32 pixels a cell), a text of n lines, or None if shown in a window."""
        if self.render_mode == "ansi":
            rows = [["."] * self.n for _ in range(self.n)]
            for name, (x, y) in (("G", self.goal), ("A", self.agent)):
                rows[self.n - 1 - y][x] = name
            return "\n".join(" ".join(row) for row in rows)
        if self.render_mode == "rgb_array":
            return self._picture()
        if self.render_mode is None:
            gym.logger.warn('render() needs a render_mode, as in gym.make(..., "rgb_array")')
        return None

    def close(self) -> None:
        """Close the window."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None

    def _cell(self, position: Any) -> NDArray[np.int64]:
        cell = np.asarray(position)
        if cell.shape != (2,) or not np.isin(cell, np.arange(self.n)).all():
            raise ValueError(
                f"a cell is a pair (x, y) of 0..{self.n - 1}, from the lower left; got {position}"
            )
        return cell.astype(np.int64)

    def _other_cell(self, cell: NDArray[np.int64], step: int) -> tuple[int, int]:
        """One of the n^2 - 1 other cells, for a step of 0..n^2 - 2."""
        return divmod((int(cell @ [self.n, 1]) + 1 + step) % self.n**2, self.n)

    def _observe(self) -> NDArray[np.float32]:
        if self.observation == "coordinates":
            centred = 2 * np.concatenate([self.agent, self.goal]) - (self.n - 1)
            return (centred / (self.n - 1)).astype(np.float32)
        planes = np.zeros((2, self.n, self.n), dtype=np.float32)
        for plane, (x, y) in zip(planes, (self.agent, self.goal), strict=True):
            plane[self.n - 1 - y, x] = 1
        return planes

    def _picture(self) -> NDArray[np.uint8]:
        side = self.n * _CELL
        picture = np.full((side, side, 3), _WHITE, dtype=np.uint8)
        picture[::_CELL] = picture[:, ::_CELL] = picture[-1] = picture[:, -1] = _GREY
        across = np.arange(_CELL) - (_CELL - 1) / 2
        radius = np.hypot(across[:, None], across)
        # the goal is a ring and the agent a disc, so that they differ without colour too
        for (x, y), colour, mask in (
            (self.goal, _GOAL, (radius < 13) & (radius > 9)),
            (self.agent, _AGENT, radius < 8),
        ):
            row, column = (self.n - 1 - y) * _CELL, x * _CELL
            picture[row : row + _CELL, column : column + _CELL][mask] = colour
        return picture

    def _show(self) -> None:
        try:
            import pygame
        except ImportError as error:
            raise gym.error.DependencyNotInstalled(
                'render_mode="human" needs pygame: pip install "equirl[render]"'
            ) from error
        if self._window is None:
            pygame.display.init()  # pygame.init would look for a sound card too
            self._window = pygame.display.set_mode((self.n * _CELL, self.n * _CELL))
            pygame.display.set_caption("equirl/Gridworld-v0")
        surface = pygame.surfarray.make_surface(self._picture().swapaxes(0, 1))
        self._window.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        pygame.time.Clock().tick(self.metadata["render_fps"])


def gridworld_symmetry(spec: EnvSpec) -> Symmetry:
    """C4: element k turns the grid counter-clockwise by k quarter turns."""
    turns = cyclic(4)
    return Symmetry(
        observation=(
            Image(turns, range(4), [False] * 4)
            if spec.kwargs.get("observation") == "image"
            else Matrix.from_generators(turns, [np.kron(np.eye(2), QUARTER_TURN)])
        ),
        action=Permutation.from_generators(turns, [[1, 2, 3, 0]]),
    )


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


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


STATE = Placed(_cells)
