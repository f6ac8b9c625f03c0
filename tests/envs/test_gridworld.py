import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import equirl
from equirl.envs.gridworld import Gridworld

GREEN, BLUE = (0, 158, 115), (0, 90, 181)
RIGHT, UP, LEFT, DOWN = range(4)


def turned(cell, n):
    """A cell after a quarter turn, counter-clockwise, of the grid about its centre."""
    x, y = cell
    return n - 1 - y, x


def all_transitions(env):
    """Every state and action, stepped: observation, next one, reward and terminated of each."""
    table = {}
    cells = [(x, y) for x in range(env.n) for y in range(env.n)]
    for agent in cells:
        for goal in cells:
            if agent == goal:
                continue
            for action in range(4):
                observation, _ = env.reset(options={"agent": agent, "goal": goal})
                after, reward, terminated, _, _ = env.step(action)
                table[agent, goal, action] = observation, after, reward, terminated
    return table


def start(agent, goal, n=4, **kwargs):
    env = Gridworld(n=n, **kwargs)
    env.reset(options={"agent": agent, "goal": goal})
    return env


@pytest.mark.parametrize(
    ("n", "observation"), [(2, "image"), (3, "coordinates"), (4, "image"), (5, "coordinates")]
)
def test_every_transition_commutes_with_every_turn(n, observation):
    env = Gridworld(n=n, observation=observation)
    symmetry = equirl.symmetry_of(gym.make("equirl/Gridworld-v0", n=n, observation=observation))
    table = all_transitions(env)
    keys = list(table)
    place = {key: i for i, key in enumerate(keys)}
    seen, after, rewards, terminated = (
        np.array(column) for column in zip(*table.values(), strict=True)
    )
    assert len(keys) == n**2 * (n**2 - 1) * 4
    moved = keys
    for g in range(4):
        where = [place[key] for key in moved]
        # equality of every number, no tolerance
        assert (seen[where] == symmetry.act_on_observations(g, seen)).all()
        assert (after[where] == symmetry.act_on_observations(g, after)).all()
        assert (rewards[where] == rewards).all()
        assert (terminated[where] == terminated).all()
        actions = symmetry.act_on_actions(g, np.array([action for *_, action in keys]))
        assert actions.tolist() == [action for *_, action in moved]
        moved = [(turned(a, n), turned(b, n), (action + 1) % 4) for a, b, action in moved]


def test_a_wrong_symmetry_would_be_seen():
    table = all_transitions(Gridworld(n=3))
    wrong = [
        key
        for key, (_, _, _, terminated) in table.items()
        if table[turned(key[0], 3), turned(key[1], 3), key[2]][3] != terminated
    ]
    assert wrong  # had the action been left as it is


@pytest.mark.parametrize(
    ("action", "cell"), [(RIGHT, (2, 1)), (UP, (1, 2)), (LEFT, (0, 1)), (DOWN, (1, 0))]
)
def test_actions_move_as_documented(action, cell):
    env = start((1, 1), (3, 3))
    env.step(action)
    assert tuple(env.agent) == cell
    assert tuple(env.goal) == (3, 3)


@pytest.mark.parametrize(
    ("cell", "action"), [((3, 1), RIGHT), ((1, 3), UP), ((0, 1), LEFT), ((1, 0), DOWN)]
)
def test_walls_cost_a_step_and_move_nobody(cell, action):
    env = start(cell, (2, 2))
    before = env.reset(options={"agent": cell, "goal": (2, 2)})[0]
    after, reward, terminated, truncated, info = env.step(action)
    assert (after == before).all()
    assert (reward, terminated, truncated) == (-1.0, False, False)
    assert info == {"is_success": False}


def test_the_goal_terminates_with_the_success_reward():
    _, reward, terminated, truncated, info = start((1, 1), (2, 1)).step(RIGHT)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info == {"is_success": True}


def test_rewards_are_those_of_the_arguments():
    env = start((0, 0), (2, 0), step_cost=0.25, success_reward=7)
    assert [env.step(RIGHT)[1] for _ in range(2)] == [-0.25, 7.0]


def test_coordinates_are_measured_from_the_centre():
    env = Gridworld(n=5)
    observation, _ = env.reset(options={"agent": (0, 4), "goal": (2, 3)})
    np.testing.assert_array_equal(observation, np.array([-1, 1, 0, 0.5], np.float32))
    assert observation.dtype == np.float32


def test_image_has_the_top_row_first():
    env = Gridworld(n=3, observation="image")
    observation, _ = env.reset(options={"agent": (0, 2), "goal": (1, 0)})
    assert observation.tolist() == [
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
    ]
    assert observation.dtype == np.float32


def test_the_registered_id_truncates_after_50_steps():
    env = gym.make("equirl/Gridworld-v0")
    env.reset(seed=0, options={"agent": (0, 0), "goal": (7, 7)})
    ends = [env.step(LEFT)[2:4] for _ in range(50)]
    assert ends[:49] == [(False, False)] * 49
    assert ends[49] == (False, True)


@pytest.mark.parametrize(("goals", "pairs"), [("anywhere", 9 * 8), ("corner", 8)])
def test_reset_covers_all_cells_and_never_starts_at_the_goal(goals, pairs):
    env = Gridworld(n=3, goals=goals)
    env.reset(seed=0)
    starts = set()
    for _ in range(12 * pairs):
        env.reset()
        starts.add((tuple(env.agent.tolist()), tuple(env.goal.tolist())))
    assert all(agent != goal for agent, goal in starts)
    assert len(starts) == pairs


def test_starts_are_uniform():
    env = Gridworld(n=2)
    env.reset(seed=0)
    counts = np.zeros((4, 4))
    for _ in range(600):
        env.reset()
        counts[env.agent @ [2, 1], env.goal @ [2, 1]] += 1
    # 50 for each of the 12 pairs, standard deviation 6.8
    assert (np.abs(counts[~np.eye(4, dtype=bool)] - 50) < 27).all()


def test_corner_is_always_top_right():
    env = Gridworld(n=6, goals="corner")
    for seed in range(50):
        observation, _ = env.reset(seed=seed)
        assert observation[2:].tolist() == [1, 1]


def test_options_override_the_corner():
    env = Gridworld(goals="corner")
    env.reset(options={"goal": (0, 0)})
    assert env.goal.tolist() == [0, 0]


def test_a_given_goal_leaves_the_agent_random():
    env = Gridworld(n=2)
    env.reset(seed=0)
    agents = set()
    for _ in range(100):
        env.reset(options={"goal": (1, 0)})
        agents.add(tuple(env.agent.tolist()))
    assert agents == {(0, 0), (0, 1), (1, 1)}


def test_a_given_agent_leaves_the_goal_random():
    env = Gridworld(n=2)
    env.reset(seed=0)
    goals = set()
    for _ in range(100):
        env.reset(options={"agent": (1, 0)})  # must not fail where the goal would be drawn there
        goals.add(tuple(env.goal.tolist()))
    assert goals == {(0, 0), (0, 1), (1, 1)}


@pytest.mark.parametrize(
    ("key", "cell"),
    [
        ("agent", (-1, 0)),
        ("goal", (0, 4)),
        ("agent", (1,)),
        ("goal", (1, 2, 3)),
        ("agent", 5),
        ("goal", (np.nan, 0)),
        ("agent", (0.5, 1)),
        ("goal", ((0, 1), (1, 0))),
    ],
)
def test_reset_refuses_what_is_no_cell(key, cell):
    with pytest.raises(ValueError, match=r"a cell is a pair \(x, y\) of 0\.\.3"):
        Gridworld(n=4).reset(seed=0, options={key: cell})


def test_reset_refuses_one_cell_for_both():
    with pytest.raises(ValueError, match=r"same cell \(2, 1\)"):
        Gridworld(n=4).reset(options={"agent": (2, 1), "goal": (2, 1)})


def test_cells_may_be_lists_and_arrays():
    env = Gridworld(n=4)
    env.reset(options={"agent": [1, 2], "goal": np.array([3, 0])})
    assert (env.agent.tolist(), env.goal.tolist()) == ([1, 2], [3, 0])


def test_the_callers_arrays_are_left_alone():
    agent = np.array([1, 1])
    env = start(agent, (3, 3))
    env.step(RIGHT)
    assert agent.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 1}, "n=1"),
        ({"n": 0}, "n=0"),
        ({"observation": "pixels"}, "observation must be one of 'coordinates', 'image'"),
        ({"goals": "edge"}, "goals must be one of 'anywhere', 'corner'; got 'edge'"),
        ({"render_mode": "rgb"}, "render_mode must be one of"),
    ],
)
def test_constructor_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Gridworld(**kwargs)


@pytest.mark.parametrize("action", [4, -1, 1.0, "up", None, np.array([1])])
def test_step_refuses_what_is_no_action(action):
    env = start((0, 0), (3, 3))
    with pytest.raises(ValueError, match="the actions are 0"):
        env.step(action)
    assert env.agent.tolist() == [0, 0]


def test_numpy_integers_are_actions():
    env = start((0, 0), (3, 3))
    env.step(np.int64(UP))
    env.step(np.array(UP))
    assert env.agent.tolist() == [0, 2]


def run(env, seed, steps=30):
    rng = np.random.default_rng(seed)
    record = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(int(rng.integers(4)))
        record += [observation, np.array([reward])]
        if terminated or truncated:
            record.append(env.reset()[0])
    return np.concatenate([part.ravel() for part in record])


def test_equal_seeds_give_equal_runs():
    assert (run(Gridworld(n=3), 3) == run(Gridworld(n=3), 3)).all()
    assert run(Gridworld(n=3), 3).tolist() != run(Gridworld(n=3), 4).tolist()


def test_later_episodes_do_not_depend_on_how_earlier_ones_went():
    quick, slow = Gridworld(), Gridworld()
    quick.reset(seed=1)
    slow.reset(seed=1)
    for episode in range(20):
        for _ in range(episode):
            slow.step(LEFT)
        # an episode whose start is given draws as much as any other
        options = {"agent": (0, 0), "goal": (1, 1)} if episode % 3 == 0 else None
        slow.reset(options=options)
        expected, _ = quick.reset()
        if options is None:
            assert slow._observe().tolist() == expected.tolist()


def test_both_observations_show_the_same_episodes():
    numbers, image = Gridworld(n=5), Gridworld(n=5, observation="image")
    for seed in range(20):
        numbers.reset(seed=seed)
        image.reset(seed=seed)
        assert numbers.agent.tolist() == image.agent.tolist()
        assert numbers.goal.tolist() == image.goal.tolist()


def test_ansi_shows_agent_and_goal():
    env = start((0, 0), (2, 1), n=3, render_mode="ansi")
    assert env.render() == ". . .\n. . G\nA . ."


def test_ansi_shows_the_agent_at_the_goal():
    env = start((1, 1), (2, 1), n=3, render_mode="ansi")
    env.step(RIGHT)
    assert env.render() == ". . .\n. . A\n. . ."


def coloured_cells(picture, colour):
    rows, columns = np.nonzero((picture == colour).all(-1))
    n = len(picture) // 32
    return {(int(c), n - 1 - int(r)) for r, c in zip(rows // 32, columns // 32, strict=True)}


def test_picture_shows_agent_and_goal_in_their_cells():
    env = start((0, 3), (2, 1), render_mode="rgb_array")
    picture = env.render()
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    assert coloured_cells(picture, BLUE) == {(0, 3)}
    assert coloured_cells(picture, GREEN) == {(2, 1)}


def test_picture_shows_both_at_the_goal():
    env = start((1, 1), (2, 1), render_mode="rgb_array")
    env.step(RIGHT)
    picture = env.render()
    assert coloured_cells(picture, BLUE) == coloured_cells(picture, GREEN) == {(2, 1)}


def test_picture_turns_with_the_state():
    agent, goal, picture = (0, 3), (2, 1), None
    for _ in range(5):
        before, picture = picture, start(agent, goal, render_mode="rgb_array").render()
        if before is not None:
            # the lines of the grid stand left of and above each cell, so they do not turn along
            for colour in (BLUE, GREEN):
                mask = (picture == colour).all(-1)
                assert mask.any()
                assert (mask == np.rot90((before == colour).all(-1))).all()
        agent, goal = turned(agent, 4), turned(goal, 4)


def test_render_without_a_mode_warns():
    env = start((0, 0), (1, 1))
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


@pytest.mark.filterwarnings("ignore")  # pygame's imports
def test_human_mode_shows_a_window_and_closes_it(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = start((0, 0), (1, 1), n=3, render_mode="human")
    assert pygame.display.get_surface().get_size() == (96, 96)
    assert tuple(pygame.display.get_surface().get_at((16, 80)))[:3] == BLUE
    env.step(RIGHT)
    assert tuple(pygame.display.get_surface().get_at((48, 80)))[:3] == BLUE
    assert env.render() is None
    env.close()
    assert not pygame.display.get_init()
    env.close()  # twice is harmless
    env.reset(seed=0)  # and the window opens again
    assert pygame.display.get_init()
    env.close()


@pytest.mark.filterwarnings("ignore")  # the checkers say a lot
@pytest.mark.parametrize(
    ("observation", "goals"), [("coordinates", "anywhere"), ("image", "corner")]
)
def test_passes_the_checkers_of_gymnasium_and_stable_baselines(observation, goals, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("equirl/Gridworld-v0", observation=observation, goals=goals)
    check_env(env.unwrapped)
    sb3_check_env(env)
