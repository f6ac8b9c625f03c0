"""Twins: where they tell the truth, where they are not used, and errors that few steps show."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import PendulumEnv

import equirl
from equirl.check import check_symmetry
from equirl.experience import Experience
from equirl.judge import Judge
from equirl.named import choices, mirror, negate, swap, symmetry

pytestmark = [
    pytest.mark.filterwarnings("ignore:builtin type [sS]wig"),  # of Box2D
    pytest.mark.filterwarnings("ignore:.*out of date"),
]


class Point(gym.Env):
    """A point that is pushed to the left or to the right."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.state.copy(), {}

    def push(self, action):
        return 0.2 * (2 * action - 1)

    def step(self, action):
        place, speed = self.state
        speed = 0.9 * speed + self.push(action) - 0.1 * np.sin(3 * place)
        self.state = np.array([place + 0.1 * speed, speed])
        self.steps += 1
        reward, end = float(self.reward(place, action)), bool(self.end(place))
        return self.state.copy(), reward, end, self.steps >= 50, {}

    def reward(self, place, action):
        return 1.0

    def end(self, place):
        return False


POINT = symmetry(
    ("place", "speed"),
    choices("left", "right"),
    mirror([negate("place", "speed")], [swap("left", "right")]),
)


def place(env, observation):
    env.unwrapped.state = np.array(observation, float)
    return observation


class Lean(Point):
    def reward(self, place, action):
        return (100.0 if abs(place) > 5 else 0.0) + np.sign(place) * 0.3 + abs(place)


class OneSided(Point):
    def end(self, place):
        return place > 1.0


class Weaker(Point):
    action_space = spaces.Discrete(20)

    def push(self, action):
        return (action - 9.5) / 50 * (0.7 if action > 17 else 1)


TWENTY = symmetry(
    ("place", "speed"),
    choices(*map(str, range(20))),
    mirror([negate("place", "speed")], [swap(str(i), str(19 - i)) for i in range(10)]),
)


@pytest.mark.parametrize(
    ("make", "wrong", "aspect"),
    [(Lean, POINT, "reward"), (OneSided, POINT, "termination"), (Weaker, TWENTY, "dynamics")],
)
def test_errors_that_few_steps_show_are_not_diluted(make, wrong, aspect):
    check = check_symmetry(make, wrong, place=place)
    assert check.false and getattr(check, aspect).verdict == "false"


@pytest.mark.slow
def test_rare_ends_on_one_side_are_refuted_by_transitions():
    """20 or so in 20,000 transitions: what counts is the part of ends that differs."""
    check = check_symmetry(OneSided, POINT)
    assert check.termination.verdict == "false" and check.termination.size > 0.5


class Wall(Point):
    def step(self, action):
        observation, *rest = super().step(action)
        self.state[0] = observation[0] = min(observation[0], 20.0)
        return observation, *rest


def test_states_of_an_experience_are_looked_at_too():
    def lived(env):
        generator, rows = np.random.default_rng(0), []
        env.reset(seed=0)
        for _ in range(300):
            env.state = before = generator.uniform((19.9, 0), (20, 2))
            after, reward, end, *_ = env.step(1)
            rows.append((before, 1, reward, after, end, True))
        return Experience(*(np.array(part) for part in zip(*rows, strict=True)))

    near = check_symmetry(Wall, POINT, place=place)
    assert near.holds and near.ranges[1, 0] < 19  # said in "compared"
    assert "compared: 1,000 steps of twins; place -" in near.verdict
    assert check_symmetry(Wall, POINT, place=place, experience=lived(Wall())).false


class Counts(Point):
    def end(self, place):
        return self.steps >= 30


def test_a_state_that_no_observation_shows_whole_is_no_twin():
    with pytest.raises(ValueError, match="a count of steps"):
        check_symmetry(Counts, POINT, place=place)


class Goal(Point):
    def reset(self, *, seed=None, options=None):
        first = super().reset(seed=seed)
        self.goal = self.np_random.uniform(-1, 1)
        return first

    def reward(self, place, action):
        return -abs(place - self.goal)


class Smooth(PendulumEnv):
    """The last action, which no observation shows, counts."""

    def reset(self, **how):
        self.last = 0.0
        return super().reset(**how)

    def step(self, action):
        after, reward, *rest = super().step(action)
        reward, self.last = reward - 2 * abs(float(action[0]) - self.last), float(action[0])
        return after, float(reward), *rest


@pytest.mark.parametrize(
    ("make", "how", "why"),
    [
        (Goal, {"place": place}, "what an episode draws and does not show"),
        (lambda: gym.wrappers.TimeLimit(Smooth(), 100), {}, "such as the last action"),
        (Point, {}, "place= can say it"),
        (lambda: gym.wrappers.RescaleObservation(gym.make("Pendulum-v1"), -1, 1), {}, "Rescale"),
    ],
)
def test_where_twins_would_be_wrong_there_are_none(make, how, why):
    with Judge(make, **how) as judge:
        assert judge.simulator is None and why in judge.why


@pytest.mark.slow
def test_transitions_are_looked_at_then_and_it_is_said_why():
    check = check_symmetry(Goal, POINT, place=place)
    assert check.holds and check.in_return is None
    assert "20,000 transitions (the same state and action lead to different" in check.verdict


def test_a_robot_that_shows_its_state_otherwise_has_no_twin():
    pytest.importorskip("mujoco")
    from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv

    class Reversed(SwimmerEnv):
        def _get_obs(self):
            return super()._get_obs()[::-1].copy()

    with Judge(lambda: gym.wrappers.TimeLimit(Reversed(), 1000)) as judge:
        assert judge.simulator is None and "shows another observation" in judge.why


def test_velocities_that_are_cut_off_are_left_out():
    pytest.importorskip("mujoco")
    with Judge("Walker2d-v5") as judge:
        assert judge.simulator is not None
        assert (abs(judge.visited.observations) == 10).any(1).mean() > 0.3


def lander(**methods):
    from gymnasium.envs.box2d.lunar_lander import LunarLander

    return type("Lander", (LunarLander,), methods)


def stepped(change):
    def step(self, action):
        from gymnasium.envs.box2d.lunar_lander import LunarLander

        return change(self, action, *LunarLander.step(self, action))

    return step


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        (lambda self, a, o, r, *rest: (o, r - 0.5 * (a == 1), *rest), "reward"),
        (lambda self, a, o, r, *rest: (o, float(r - 0.3 * o[4] - o[0]), *rest), "reward"),
        (lambda self, a, o, r, end, *rest: (o, r, bool(end or o[0] > 0.5), *rest), "termination"),
    ],
)
def test_a_lander_that_leans_is_refuted(change, aspect):
    """Beside the 100 of landing and crash small rewards were lost once."""
    check = check_symmetry(lander(step=stepped(change)), equirl.symmetry_of("LunarLander-v3"))
    assert getattr(check, aspect).verdict == "false"


def test_tasks_of_minigrid_that_remember_places_are_mirrored_whole():
    pytest.importorskip("minigrid")
    from minigrid.wrappers import ImgObsWrapper

    from equirl.envs.minigrid import view_symmetry

    for name in ("MemoryS7-v0", "GoToDoor-5x5-v0", "PutNear-6x6-N2-v0", "DoorKey-5x5-v0"):
        make = functools.partial(gym.make, f"MiniGrid-{name}")
        check = check_symmetry(lambda make=make: ImgObsWrapper(make()), view_symmetry())
        assert check.verdicts == ("exact",) * 3 and "entry [0, " in check.verdict
