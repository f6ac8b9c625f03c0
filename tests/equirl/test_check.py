"""The checker, on environments whose symmetry is known, and on lies about them."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import equirl
from equicore import Matrix, Permutation, cyclic, trivial
from equirl.check import check_symmetry
from equirl.experience import Experience, random_experience
from equirl.judge import Judge
from equirl.named import choices, mirror, negate, swap, symmetry
from equirl.signed import likely_mistakes

EXACT = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "equirl/Gridworld-v0")
SOLVED = ("LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3")
MUJOCO = ("Swimmer-v5", "Walker2d-v5", "Reacher-v5", "InvertedDoublePendulum-v5")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*out of date"),
    pytest.mark.filterwarnings("ignore:builtin type [sS]wig"),  # of Box2D
]


def lie(name, text):
    return dict(likely_mistakes(equirl.symmetry_of(name)))[text]


@pytest.mark.parametrize("name", EXACT)
def test_known_symmetries_are_exact(name):
    check = check_symmetry(name)
    assert check.holds and not check.false and check.resembles is None
    assert check.verdicts == ("exact", "exact", "exact")
    assert check.in_return < 1e-9 and not check.lopsided
    assert "the symmetry holds (exact)" in check.summary


@pytest.mark.parametrize("name", SOLVED)
def test_known_symmetries_are_exact_up_to_solver_order(name):
    check = check_symmetry(name)
    assert check.holds and set(check.verdicts) == {"exact up to solver order"}
    assert check.dynamics.size < 0.15
    assert bool(check.lopsided) == name.startswith("Bipedal")


@pytest.mark.parametrize("name", MUJOCO)
def test_known_symmetries_of_mujoco(name):
    pytest.importorskip("mujoco")
    check = check_symmetry(name)
    assert check.holds and all(verdict.startswith("exact") for verdict in check.verdicts)


def test_ant_mirrors_and_its_quarter_turn_holds_for_the_dynamics_alone():
    pytest.importorskip("mujoco")
    from equirl.envs import mujoco

    assert check_symmetry("Ant-v5").verdicts == ("exact", "exact", "exact")
    check = check_symmetry("Ant-v5", mujoco.ant_turns(gym.spec("Ant-v5")))
    assert check.verdicts == ("exact", "false", "exact")
    assert not check.holds and check.false


def test_walker_is_refuted_in_version_4():
    pytest.importorskip("mujoco")
    check = check_symmetry("Walker2d-v4", equirl.symmetry_of("Walker2d-v5"))
    assert check.dynamics.verdict == "false" and check.resembles is None
    assert "wanted" in check.verdict and "found" in check.verdict


def test_a_pendulum_one_millimetre_off_is_approximate():
    pytest.importorskip("mujoco")
    check = check_symmetry("InvertedPendulum-v5")
    assert check.holds and check.dynamics.verdict == "approximate"
    assert 1e-4 < check.dynamics.size < 0.02
    assert "angular velocity" in check.dynamics.worst


@pytest.mark.parametrize(
    ("name", "text", "resembles"),
    [
        ("CartPole-v1", "observation: another sign of 'angle'", "another sign of 'angle'"),
        ("CartPole-v1", "action: 'left' and 'right' not exchanged", "'left' and 'right' exchanged"),
        ("Acrobot-v1", "observation: another sign of 'sin first'", "another sign of 'sin first'"),
        ("Pendulum-v1", "action: another sign of 'torque'", "another sign of 'torque'"),
        ("LunarLander-v3", "observation: another sign of 'angle'", "another sign of 'angle'"),
        (
            "LunarLander-v3",
            "observation: 'left leg contact' and 'right leg contact' not exchanged",
            "'left leg contact' and 'right leg contact' exchanged",
        ),
    ],
)
def test_lies_are_refuted_and_the_entry_named(name, text, resembles):
    check = check_symmetry(name, lie(name, text))
    assert check.false and not check.holds
    assert resembles in check.resembles
    assert f"it would hold with one change: {check.resembles}" in check.verdict


def test_what_no_single_change_mends_resembles_nothing():
    hills = symmetry(
        ("position", "velocity"),
        choices("left", "nothing", "right"),
        mirror([negate("position", "velocity")], [swap("left", "right")]),
    )

    def unbounded():
        env = gym.make("MountainCar-v0")
        env.observation_space = spaces.Box(-2, 2, (2,), np.float32)
        return env

    check = check_symmetry(unbounded, hills)
    assert check.false and check.resembles is None and "position" in check.lopsided
    with pytest.raises(ValueError, match="not invariant"):  # as it stands, bounds show it already
        check_symmetry("MountainCar-v0", hills)


def test_rows_do_not_depend_on_when_they_are_made():
    one, other = (check_symmetry("Pendulum-v1", seed=3) for _ in range(2))
    assert one.dynamics == other.dynamics and one.lopsided == other.lopsided


class Drift(gym.Env):
    """A point with a velocity; what pushes it does so alike on both sides, but for the drift."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)
    drift, noise, reward, seeded = 0.0, 0.0, 1.0, True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed if self.seeded else None)
        draws = self.np_random if self.seeded else np.random.default_rng()
        self.state, self.steps = draws.uniform(-1, 1, 2), 0
        return self.state.copy(), {}

    def step(self, action):
        place, speed = self.state
        speed = 0.9 * speed + 0.2 * (2 * action - 1) - 0.1 * np.sin(3 * place) + self.drift
        speed += self.noise * self.np_random.normal()
        self.state = np.array([place + 0.1 * speed, speed])
        self.steps += 1
        reward = self.reward if place > 0 else 1.0
        return self.state.copy(), reward, False, self.steps >= 50, {}


def drifting(**settings):
    return type("Drift", (Drift,), settings)


def place(env, observation):
    env.unwrapped.state = np.array(observation, float)
    return observation


POINT = symmetry(
    ("place", "speed"),
    choices("left", "right"),
    mirror([negate("place", "speed")], [swap("left", "right")]),
)


def test_users_say_how_a_state_is_set():
    assert check_symmetry(drifting(), POINT, place=place).verdicts == ("exact",) * 3
    wrong = check_symmetry(drifting(drift=0.1), POINT, place=place)
    assert wrong.dynamics.verdict == "false" and "speed" in wrong.dynamics.worst
    unfair = check_symmetry(drifting(reward=2.0), POINT, place=place)
    assert unfair.verdicts == ("exact", "false", "exact")


def test_a_state_that_is_not_set_whole_is_noticed():
    def forgets(env, observation):
        env.unwrapped.state = np.array([observation[0], 0.0])
        return observation

    with pytest.raises(ValueError, match="place cannot be used for Drift"):
        check_symmetry(drifting(), POINT, place=forgets)


def test_entries_that_never_change_are_said_to_be_untested():
    class Idle(Drift):
        observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

        def reset(self, *, seed=None, options=None):
            return np.append(super().reset(seed=seed)[0], 0.0), {}

        def step(self, action):
            observation, *rest = super().step(action)
            return np.append(observation, 0.0), *rest

    names = ("place", "speed", "alarm")
    right = symmetry(names, choices("left", "right"),
                     mirror([negate("place", "speed")], [swap("left", "right")]))  # fmt: skip
    wrong = symmetry(names, choices("left", "right"),
                     mirror([negate(*names)], [swap("left", "right")]))  # fmt: skip

    def set_two(env, observation):
        env.unwrapped.state = np.array(observation[:2], float)
        return observation

    for each in (right, wrong):
        check = check_symmetry(Idle, each, place=set_two)
        assert check.unseen == (2,) and "never changed, so not tested: alarm" in check.verdict


def test_that_no_episode_ended_is_said():
    assert "none of these steps ended" in check_symmetry(drifting(), POINT, place=place).verdict
    assert "none of these steps ended" not in check_symmetry("CartPole-v1").verdict


def test_without_a_state_transitions_are_looked_at():
    check = check_symmetry(drifting(), POINT)
    assert check.holds and set(check.verdicts) == {"in distribution"}
    assert check.in_return is None and 0 < check.dynamics.size < 0.05
    assert "would have been seen" in check.verdict


@pytest.mark.slow
def test_transitions_refute_a_drift():
    assert check_symmetry(drifting(drift=0.05), POINT).dynamics.verdict == "false"


@pytest.mark.slow
def test_transitions_refute_a_reward():
    unfair = check_symmetry(drifting(reward=2.0), POINT)
    assert unfair.verdicts == ("in distribution", "false", "in distribution")
    assert "reward" in unfair.reward.worst


def test_chance_is_noticed_and_looked_at_by_transitions():
    """Twins whose random numbers differ would always come apart."""
    with Judge(drifting(noise=0.05), place=place) as judge:
        assert judge.simulator is None and "by chance" in judge.why


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_transitions_see_through_chance(drift):
    check = check_symmetry(drifting(noise=0.05, drift=drift), POINT, place=place)
    assert check.holds == (not drift) and check.false == bool(drift)


@pytest.mark.slow
def test_transitions_name_the_mistake():
    wrong = dataclasses.replace(POINT, action=Permutation.from_generators(cyclic(2), [[0, 1]]))
    check = check_symmetry(drifting(), wrong)
    assert check.false and check.resembles == "action: 'left' and 'right' exchanged"


def test_an_agent_that_sees_one_side_only_tells_nothing():
    env = drifting()()
    rows = []
    for episode in range(40):
        before, _ = env.reset(seed=episode)
        env.state = before = abs(before)
        for _ in range(25):
            after, reward, *_ = env.step(1)
            rows.append((before, 1, reward, after, False, False))
            before = after
    experience = Experience(*(np.array(part) for part in zip(*rows, strict=True)))
    check = check_symmetry(drifting(), POINT, experience=experience)
    assert check.verdicts == ("unknown", "unknown", "in distribution")
    assert "none of these transitions ended" in check.verdict
    assert not check.holds and not check.false and "is not shown" in check.summary
    assert "overlap" in check.dynamics.worst


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CartPole-v1", "Swimmer-v5"])
def test_transitions_agree_with_twins(name):
    if name == "Swimmer-v5":
        pytest.importorskip("mujoco")
    judge = Judge(name)
    judge.simulator = None
    check = judge.judge(equirl.symmetry_of(name))
    assert check.holds and check.dynamics.size < 0.05


@pytest.mark.slow
def test_a_wrapper_that_changes_observations_has_no_twin():
    """Their state cannot be set by what it shows."""
    normalised = lambda: gym.wrappers.TransformObservation(  # noqa: E731
        gym.make("CartPole-v1"), lambda x: x + 0.2, gym.make("CartPole-v1").observation_space
    )
    check = check_symmetry(normalised, equirl.symmetry_of("CartPole-v1"))
    assert not check.holds and "position" in check.lopsided


def test_frozen_lake_is_seen_as_ones_and_zeros():
    names = tuple(f"cell {i}" for i in range(16))
    moves = choices("left", "down", "right", "up")
    pairs = [swap(f"cell {4 * r + c}", f"cell {4 * c + r}") for r in range(4) for c in range(r)]
    across = symmetry(names, moves, mirror(pairs, [swap("left", "up"), swap("down", "right")]))

    def make(desc):
        def made():
            lake = gym.make("FrozenLake-v1", desc=desc, is_slippery=False)
            return gym.wrappers.DtypeObservation(gym.wrappers.FlattenObservation(lake), np.float32)

        return made

    assert check_symmetry(make(["SFFF", "FHFF", "FFHF", "FFFG"]), across).holds
    assert check_symmetry(make(None), across).false


def test_figures_show_each_entry(tmp_path):
    check = check_symmetry(
        "CartPole-v1", lie("CartPole-v1", "observation: another sign of 'angle'")
    )
    files = check.plot(tmp_path / "cart")
    assert [file.suffix for file in files][0] == ".png" and all(f.stat().st_size for f in files)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        ("CartPole-v1", dataclasses.replace(POINT, names=None), "does not fit the observation"),
        ("MountainCar-v0", None, "no symmetry is registered"),
        ("CartPole-v9", None, "no symmetry is registered"),
        (lambda: Drift(), None, "not made from an environment id"),
        (drifting(seeded=False), POINT, "does not use its seed"),
        (Drift(), POINT, "pass a function that makes it"),
        (
            "CartPole-v1",
            equirl.Symmetry(Matrix(trivial(), np.eye(4)[None]), Permutation(trivial(), [[0, 1]])),
            "trivial",
        ),
        (
            "FrozenLake-v1",
            dataclasses.replace(POINT, names=None),
            "FlattenObservation",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused(make, wrong, message):
    with pytest.raises((ValueError, gym.error.Error), match=message):
        check_symmetry(make, wrong)


@pytest.mark.parametrize("how", [{"place": place}, {}])
def test_what_is_not_a_number_is_named(how):
    class Breaks(Drift):
        def step(self, action):
            observation, *rest = super().step(action)
            observation[1] = np.nan if self.steps > 20 else observation[1]
            return observation, *rest

    with pytest.raises(ValueError, match="of Breaks is NaN"):
        check_symmetry(Breaks, POINT, **how)


class Shapeless(Drift):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)


class Dicts(Drift):
    observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (2,))})


def running():
    return gym.wrappers.NormalizeObservation(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("make", "wrong", "how", "message"),
    [
        (Shapeless, POINT, {}, r"has shape \(3,\), its observations have \(2,\)"),
        (Dicts, POINT, {}, "FlattenObservation"),
        (running, equirl.symmetry_of("CartPole-v1"), {}, "update_running_mean = False"),
        (Drift, POINT, {"experience": "short"}, "30 transitions are too few"),
        (Drift, POINT, {"experience": "other"}, "observations of shape"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(make, wrong, how, message):
    lived = {
        "short": lambda: random_experience(Drift(), 30, seed=0),
        "other": lambda: random_experience(gym.make("CartPole-v1"), 30, seed=0),
    }
    how = {name: lived[value]() for name, value in how.items()}
    with pytest.raises(ValueError, match=message):
        check_symmetry(make, wrong, **how)


def test_large_images_without_twins_are_refused():
    class Pictures(Drift):
        observation_space = spaces.Box(0, 255, (84, 84), np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros((84, 84), np.uint8), {}

        def step(self, action):
            return np.zeros((84, 84), np.uint8), 0.0, False, False, {}

    flip = Permutation.from_generators(cyclic(2), [np.arange(84)[::-1]])
    moves = Permutation.from_generators(cyclic(2), [[1, 0]])
    with pytest.raises(ValueError, match="pictures or of more than"):
        check_symmetry(Pictures, equirl.Symmetry(flip, moves))


def test_random_transitions_are_those_of_episodes():
    experience = random_experience(gym.make("CartPole-v1"), 300, seed=0)
    assert len(experience) == 300 and experience.ended[-1]
    follows = ~experience.ended[:-1]
    np.testing.assert_array_equal(
        experience.next_observations[:-1][follows], experience.observations[1:][follows]
    )
