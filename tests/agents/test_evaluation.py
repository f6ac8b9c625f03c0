import json

import gymnasium as gym
import numpy as np
import pytest

import equirl
from equirl.agents import evaluate, evaluation
from equirl.agents.evaluation import (
    FIRST_SEED,
    SELECTION_SEED,
    Protocol,
    check_seed,
    episode_returns,
    parse_condition,
    play,
)
from equirl.agents.policies import MAKERS, Subject
from equirl.agents.saved import SavedAgent, find_agents
from equirl.agents.selection import Race


@pytest.fixture
def cartpole(tmp_path):
    """An agent that is never opened: policies that the tests write play in its place."""
    return SavedAgent("mine", tmp_path / "mine.zip", "CartPole-v1", {"max_episode_steps": 60})


class Upright:
    """Pushes to where the pole leans; does not depend on the other rows of a batch."""

    def __init__(self, bias=0.0):
        self.bias = bias  # with one it is not equivariant: its returns tell elements apart

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 2] + self.bias > 0).astype(int), state


def played_by_hand(make, episodes, seed):
    """Returns of Upright in one episode after the other."""
    env, returns = make(), []
    for number in range(episodes):
        observation, _ = env.reset(seed=seed + number)
        total, over = 0.0, False
        while not over:
            action = Upright().predict(observation[None])[0][0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return returns


@pytest.mark.parametrize("episodes", [1, 3, 20, 33])
def test_returns_are_those_of_each_episode_in_the_order_of_their_starts(cartpole, episodes):
    together = episode_returns(Upright(), cartpole, "original", episodes, seed=7)
    make = lambda: gym.make("CartPole-v1", max_episode_steps=60)  # noqa: E731
    assert together.tolist() == played_by_hand(make, episodes, seed=7)
    assert len(set(together)) > min(3, episodes) - 1


def test_an_episode_is_the_same_however_many_are_played(cartpole):
    for condition in ("original", "transformed"):
        more = episode_returns(Upright(0.1), cartpole, condition, 30, seed=7)
        fewer = episode_returns(Upright(0.1), cartpole, condition, 9, seed=7)
        later = episode_returns(Upright(0.1), cartpole, condition, 5, seed=17)
        assert more[:9].tolist() == fewer.tolist()
        assert more[10:15].tolist() == later.tolist()


class Ledger(gym.Env):
    """Episodes of 1, 5, 9, ... steps by their seed; counts the steps of each."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    books: dict = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = 1 + 4 * (seed % 20)
        self.seed = seed
        assert seed not in self.books
        self.books[seed] = 0
        return np.full(4, self.length, np.float32), {}

    def step(self, action):
        self.books[self.seed] += 1
        over = self.books[self.seed] >= self.length
        return np.full(4, self.length, np.float32), 1.0, over, False, {}


@pytest.mark.parametrize(
    ("condition", "episodes"), [("original", 7), ("transformed", 20), (1, 33), ("original", 33)]
)
def test_each_episode_is_played_once_and_nothing_more(monkeypatch, cartpole, condition, episodes):
    monkeypatch.setattr(Ledger, "books", {})
    gym.register("test/Ledger-v0", Ledger)
    equirl.register_symmetry("test/Ledger-v0", "equirl.envs.classic_control:cartpole_symmetry")
    agent = SavedAgent("mine", cartpole.path, "test/Ledger-v0", {})
    returns = episode_returns(Upright(), agent, condition, episodes, seed=40)
    expected = {40 + k: 1 + 4 * (k % 20) for k in range(episodes)}
    assert Ledger.books == expected  # whole episodes and nothing more, not even a reset
    assert returns.tolist() == list(expected.values())


class Restless(gym.Env):
    """Draws in each step, and ends by what it draws and is told; keeps what begins each episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    began: dict = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.began[seed] = self.np_random.normal(size=4).astype(np.float32)
        return self.began[seed], {}

    def step(self, action):
        drawn = self.np_random.normal(size=4).astype(np.float32)
        return drawn, float(drawn[0]), bool(drawn[1] > action), False, {}


class Always:
    """Does the same for ever."""

    def __init__(self, action):
        self.action = action

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation), self.action), state


@pytest.mark.parametrize("condition", ["original", "transformed", 1])
def test_episodes_begin_alike_where_steps_draw(monkeypatch, cartpole, condition):
    """Two policies, whose episodes are of other lengths, begin episode k in the same state."""
    gym.register("test/Restless-v0", Restless)
    equirl.register_symmetry("test/Restless-v0", "equirl.envs.classic_control:cartpole_symmetry")
    agent = SavedAgent("mine", cartpole.path, "test/Restless-v0", {})
    found, returns = [], []
    for action in (0, 1):
        monkeypatch.setattr(Restless, "began", {})
        returns.append(episode_returns(Always(action), agent, condition, 50, seed=3))
        found.append(Restless.began)
    assert found[0].keys() == found[1].keys() == set(range(3, 53))
    assert all((found[0][k] == found[1][k]).all() for k in found[0])
    assert len({state.tobytes() for state in found[0].values()}) == 50
    assert (returns[0] != returns[1]).mean() > 0.2


def test_equivariant_policies_do_as_well_through_every_element(tiny_runs):
    (agent,) = find_agents(tiny_runs[0])
    policy = Subject(agent, device="cpu").policy("equitune")
    original = episode_returns(policy, agent, "original", 20)
    for element in range(4):
        assert np.array_equal(original, episode_returns(policy, agent, element, 20))


class ToTheTopRight:
    """What an agent does that was trained with the goal in the top right corner."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation[:, 0] < 1, 0, 1), state


def test_a_policy_that_is_not_equivariant_fails_through_the_others(tiny_runs):
    (agent,) = find_agents(tiny_runs[0])
    assert episode_returns(ToTheTopRight(), agent, "original", 20).min() > -15
    for element in (1, 2, 3):
        assert np.median(episode_returns(ToTheTopRight(), agent, element, 20)) == -15
    mixed = episode_returns(ToTheTopRight(), agent, "transformed", 40)
    assert 5 <= (mixed > -15).sum() <= 25


@pytest.fixture
def record(monkeypatch):
    """What would have been played: (policy, condition, episodes, seed). Equizero is best."""
    calls = []

    def returns(policy, agent, condition, episodes, seed=FIRST_SEED):
        calls.append((policy, condition, episodes, seed))
        rng = np.random.default_rng(seed)
        return rng.normal(size=episodes) + {"equizero": 3 + rng.normal(size=episodes) / 9}.get(
            policy, 0
        )

    monkeypatch.setattr(evaluation, "episode_returns", returns)
    for name in MAKERS:
        monkeypatch.setitem(MAKERS, name, lambda subject, name=name: name)
    return calls


def test_all_policies_play_the_same_episodes(record, cartpole):
    protocol = Protocol(("plain", "lambda"), episodes=7, seed=5)
    played, choice = play(Subject(cartpole), 1, protocol)
    assert record == [("plain", 1, 7, 5), ("lambda", 1, 7, 5)]
    assert choice is None
    assert list(played) == ["plain", "lambda"] and played["plain"].shape == (7,)


def test_what_a_race_chooses_plays_too(record, cartpole, monkeypatch):
    """The race has episodes of its own, others in each round."""
    monkeypatch.setattr(Subject, "fitting", lambda self, names: list(names))
    race = Race(rounds=3, episodes=6)
    protocol = Protocol(("plain",), 4, 5, race=race, candidates=("plain", "equizero", "equitune"))
    played, choice = play(Subject(cartpole), "original", protocol)
    assert choice.policy == "equizero"
    assert list(played) == ["plain", "equizero"]
    raced = [call for call in record if call[2] == 6]
    assert {seed for *_, seed in raced} <= {SELECTION_SEED + 6 * i for i in range(3)}
    assert ("plain", "original", 6, SELECTION_SEED) in raced
    assert record[-2:] == [("plain", "original", 4, 5), ("equizero", "original", 4, 5)]


def test_conditions():
    symmetry = equirl.symmetry_of("equirl/Gridworld-v0")
    texts = ("original", "transformed", "0", "3")
    assert [parse_condition(t, symmetry) for t in texts] == ["original", "transformed", 0, 3]
    assert parse_condition("r^2", symmetry) == 2
    for wrong in ("4", "-1", "q", ""):
        with pytest.raises(ValueError, match=r"0 \(e\), 1 \(r\), 2 \(r\^2\), 3 \(r\^3\); got"):
            parse_condition(wrong, symmetry)


def test_seeds_are_those_that_environments_take():
    for seed in (0, 2**31 - 1):
        check_seed(seed)
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match="--seed must be 0..2147483647; got"):
            check_seed(seed)


def test_evaluate_prints_a_summary_and_writes_all(tiny_runs, tmp_path, capsys):
    arguments = evaluate.Evaluate(
        tiny_runs[0], condition="2", episodes=5, device="cpu", output=tmp_path / "report.json"
    )
    evaluate.main(arguments)
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    (agent,) = find_agents(tiny_runs[0])
    policy = Subject(agent, device="cpu").policy("equizero")
    assert report["returns"] == episode_returns(policy, agent, 2, 5).tolist()
    assert report["mean"]["value"] == pytest.approx(np.mean(report["returns"]))
    assert (
        printed.count("\n") == 1
        and f"equizero, {agent.setting} (element 2): mean return" in printed
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 4}, "--episodes must be at least 5; got 4"),
        ({"seed": -1}, "--seed must be"),
        ({"condition": "turned"}, "a condition is original, transformed"),
        ({"device": "cudaa"}, "there is no device cudaa here"),
    ],
)
def test_evaluate_refuses(tiny_runs, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate.main(evaluate.Evaluate(tiny_runs[0], **change))


def test_evaluate_refuses_a_folder_as_output(tiny_runs, tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file"):
        evaluate.main(evaluate.Evaluate(tiny_runs[0], output=tmp_path))
