"""Twins: where they tell the truth, where they are not used, and errors that few steps show."""

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


class Battery(Point):
    """A large number that changes by little: one motor needs more."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def reset(self, *, seed=None, options=None):
        first, info = super().reset(seed=seed)
        self.charge = 1e6
        return np.append(first, self.charge), info

    def step(self, action):
        after, *rest = super().step(action)
        self.charge -= 1 + 4 * action
        return np.append(after, self.charge), *rest


def set_battery(env, observation):
    env.unwrapped.state, env.unwrapped.charge = observation[:2], observation[2]
    return observation


class Crash(Point):
    def end(self, place):
        return abs(place) > 2

    def reward(self, place, action):
        return -1e5 if abs(place) > 2 else -0.1 * abs(place) - 0.09 * (place > 0)


@pytest.mark.parametrize(
    ("make", "set_it", "aspect"), [(Battery, set_battery, "dynamics"), (Crash, place, "reward")]
)
def test_large_numbers_do_not_hide_small_differences(make, set_it, aspect):
    names = ("place", "speed", "charge")[: make.observation_space.shape[0]]
    swapped = mirror([negate("place", "speed")], [swap("left", "right")])
    check = check_symmetry(make, symmetry(names, choices("left", "right"), swapped), place=set_it)
    assert getattr(check, aspect).verdict == "false"


def test_what_was_not_tested_is_said():
    said = check_symmetry(Point, POINT, place=place).verdict
    assert "all rewards were 1" in said and "none of these steps ended an episode" in said


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
    ("make", "why"),
    [
        (lambda: gym.wrappers.TimeLimit(Smooth(), 100), "such as the last action"),
        (Point, "place= can say it"),
        (lambda: gym.wrappers.RescaleObservation(gym.make("Pendulum-v1"), -1, 1), "Rescale"),
    ],
)
def test_where_twins_would_be_wrong_there_are_none(make, why):
    with Judge(make) as judge:
        assert judge.simulator is None and why in judge.why


@pytest.mark.slow
def test_transitions_are_looked_at_then_and_it_is_said_why():
    smooth = lambda: gym.wrappers.TimeLimit(Smooth(), 100)  # noqa: E731
    check = check_symmetry(smooth, equirl.symmetry_of("Pendulum-v1"))
    assert check.holds and check.in_return is None
    assert "is not refuted in what observations show by transitions" in check.summary
    assert "20,000 transitions (after a state has been set" in check.verdict


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (Goal, place, "what a reset draws is not set, such as a goal"),
        (Point, lambda env, seen: None, "lack a return"),
        (Point, lambda env, seen: seen[:1], r"an array of shape \(1,\)"),
    ],
)
def test_a_place_that_does_not_set_the_state_is_refused(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        check_symmetry(make, POINT, place=wrong)


def test_one_environment_is_not_two():
    one = Point()
    with pytest.raises(ValueError, match="one and the same Point each time"):
        check_symmetry(lambda: one, POINT)
    with pytest.raises(ValueError, match="expected an environment"):
        check_symmetry(gym.make_vec("CartPole-v1", 2), equirl.symmetry_of("CartPole-v1"))


def test_a_second_one_that_was_made_otherwise_is_noticed():
    env = gym.make("CartPole-v1")
    env.unwrapped.gravity = 20.0
    with Judge(env) as judge:
        assert judge.simulator is None and "made otherwise than the first" in judge.why


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
        (lambda self, a, o, *rest: (o if _pushed(self) is None else o, *rest), "dynamics"),
    ],
)
def test_a_lander_that_leans_is_refuted(change, aspect):
    """Beside the 100 of landing and crash small rewards were lost once."""
    check = check_symmetry(lander(step=stepped(change)), equirl.symmetry_of("LunarLander-v3"))
    assert getattr(check, aspect).verdict == "false"


def _pushed(lander):
    """A wind from one side, near the ground: once in an episode twins come apart."""
    if lander.lander.position.y < 8:
        lander.lander.ApplyForceToCenter((8.0, 0.0), True)


def test_landers_with_wind_have_no_twins():
    with Judge(lambda: gym.make("LunarLander-v3", enable_wind=True)) as judge:
        assert judge.simulator is None and "wind" in judge.why


def test_a_walker_whose_leg_fails_is_refuted():
    from gymnasium.envs.box2d.bipedal_walker import BipedalWalker

    class Lame(BipedalWalker):
        def reset(self, **how):
            self.number = 0
            return super().reset(**how)

        def step(self, action):
            self.number += 1
            return super().step(action * ([0, 0, 1, 1] if self.number > 60 else 1))

    with Judge(Lame) as judge:
        assert judge.judge(equirl.symmetry_of("BipedalWalker-v3")).false


@pytest.mark.slow
def test_in_a_grid_twins_never_come_apart():
    pytest.importorskip("minigrid")
    from minigrid.envs import EmptyEnv
    from minigrid.wrappers import ImgObsWrapper

    from equirl.envs.minigrid import view_symmetry

    class Worn(EmptyEnv):
        def step(self, action):
            return super().step(6 if self.step_count >= 40 and action == 0 else action)

    assert check_symmetry(lambda: ImgObsWrapper(Worn(size=8)), view_symmetry()).false


@pytest.mark.slow
def test_tasks_of_minigrid_that_remember_places_are_mirrored_whole():
    envs = pytest.importorskip("minigrid.envs")
    from minigrid.wrappers import ImgObsWrapper

    from equirl.envs.minigrid import view_symmetry

    for kind in (envs.MemoryEnv, envs.GoToDoorEnv, envs.PutNearEnv, envs.DoorKeyEnv):
        check = check_symmetry(lambda kind=kind: ImgObsWrapper(kind(size=7)), view_symmetry())
        assert check.verdicts == ("exact",) * 3 and "entry [0, " in check.verdict
