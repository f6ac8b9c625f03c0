import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO

import equirl
from equirl.agents import evaluate
from equirl.agents.evaluation import SavedAgent, episode_returns, find_agents, parse_condition
from equirl.agents.policies import CANDIDATES, make_policy


@pytest.fixture
def cartpole_zip(tmp_path):
    path = tmp_path / "mine.zip"
    DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=1).save(path)
    return path


def test_run_folder_stands_for_its_finished_agent(tiny_runs):
    (agent,) = find_agents(tiny_runs[1])
    assert agent == SavedAgent(
        "equirl-Gridworld-v0_1",
        tiny_runs[1] / "equirl-Gridworld-v0.zip",
        "equirl/Gridworld-v0",
        {"goals": "corner", "n": 4},
        seed=1,
        budget=240,
    )


def test_run_folder_stands_for_its_checkpoints(tiny_runs):
    agents = find_agents(tiny_runs[0], checkpoints="all")
    assert [agent.budget for agent in agents] == [80, 160, 240]
    assert len({agent.name for agent in agents}) == 1


def test_checkpoint_in_a_run_folder_knows_its_environment(tiny_runs):
    (agent,) = find_agents(tiny_runs[0] / "rl_model_160_steps.zip")
    assert (agent.env_id, agent.budget, agent.seed) == ("equirl/Gridworld-v0", 160, 0)


def test_bare_zip_needs_the_environment(cartpole_zip):
    with pytest.raises(ValueError, match="--env CartPole-v1"):
        find_agents(cartpole_zip)
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    assert agent.name == "mine"


def test_unknown_environment_lists_the_known_ones(cartpole_zip):
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'.*Known: Acrobot-v1"):
        find_agents(cartpole_zip, "CartPole-v7")


def test_missing_agent(tmp_path):
    with pytest.raises(FileNotFoundError, match="no agent at"):
        find_agents(tmp_path / "none.zip", "CartPole-v1")
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        find_agents(tmp_path, "CartPole-v1")


def test_agent_of_another_environment_is_refused(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "Acrobot-v1")
    with pytest.raises(ValueError, match="for another environment than Acrobot-v1"):
        agent.load()


def test_agent_with_another_number_of_actions_is_refused(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "equirl/Gridworld-v0")
    with pytest.raises(ValueError, match="its action_space is Discrete"):
        agent.load()


def test_run_folder_of_the_zoo_is_understood(cartpole_zip):
    folder = cartpole_zip.parent / "CartPole-v1_1"
    (folder / "CartPole-v1").mkdir(parents=True)
    cartpole_zip.rename(folder / "CartPole-v1.zip")
    (folder / "CartPole-v1" / "args.yml").write_text(
        "!!python/object/apply:collections.OrderedDict\n"
        "- - - algo\n    - dqn\n  - - env\n    - CartPole-v1\n  - - n_timesteps\n    - -1\n"
        "  - - seed\n    - 7\n"
    )
    (agent,) = find_agents(folder)
    assert (agent.env_id, agent.seed, agent.budget) == ("CartPole-v1", 7, None)
    agent.load()


def test_description_with_code_is_not_read(tmp_path, cartpole_zip):
    folder = tmp_path / "CartPole-v1_1" / "CartPole-v1"
    folder.mkdir(parents=True)
    (folder / "args.yml").write_text(
        f"!!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path {tmp_path}/bad]"
    )
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        find_agents(folder.parent, "CartPole-v1")
    assert not (tmp_path / "bad").exists()


def test_environment_of_the_users_own_module(tmp_path, monkeypatch, cartpole_zip):
    (tmp_path / "a_users_module.py").write_text(
        "import gymnasium, equirl\n"
        "gymnasium.register('my/Pole-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
        "equirl.register_symmetry('my/Pole-v0', 'equirl.envs.classic_control:cartpole_symmetry')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (agent,) = find_agents(cartpole_zip, "a_users_module:my/Pole-v0")
    agent.load()
    assert len(agent.symmetry().group) == 2
    with pytest.raises(ValueError, match="cannot import no_such_module"):
        find_agents(cartpole_zip, "no_such_module:my/Pole-v0")


def test_agent_of_another_algorithm_is_refused(tmp_path):
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).save(tmp_path / "ppo.zip")
    (agent,) = find_agents(tmp_path / "ppo.zip", "CartPole-v1")
    with pytest.raises(ValueError, match="opens DQN only"):
        agent.load()


class Alternating:
    """A policy whose actions do not depend on the batch it sees."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 2] > 0).astype(int), state


def test_episodes_are_listed_in_the_order_of_their_starts(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    together = episode_returns(Alternating(), agent, "original", 5, seed=7)
    one_by_one = [
        episode_returns(Alternating(), agent, "original", 1, seed=7 + i)[0] for i in range(5)
    ]
    assert together.tolist() == one_by_one


def test_number_of_episodes_need_not_divide(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    assert episode_returns(Alternating(), agent, "original", 33).shape == (33,)


def played_by_hand(make, episodes, seed):
    """Returns of Alternating in one environment after the other, as the monitors list them."""
    count = min(20, episodes)
    returns = []
    for i in range(count):
        env = make()
        for number in range((episodes + i) // count):
            observation, _ = env.reset(seed=seed + i) if number == 0 else env.reset()
            total, over = 0.0, False
            while not over:
                action = Alternating().predict(observation[None])[0][0]
                observation, reward, terminated, truncated, _ = env.step(action)
                total, over = total + reward, terminated or truncated
            returns.append(total)
    return returns


@pytest.mark.parametrize("episodes", [1, 3, 20, 33, 60])
def test_environments_at_rest_do_not_change_the_returns(cartpole_zip, episodes):
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    together = episode_returns(Alternating(), agent, "original", episodes, seed=7)
    assert together.tolist() == played_by_hand(lambda: gym.make("CartPole-v1"), episodes, seed=7)
    assert len(set(together)) > min(3, episodes) - 1


def test_environments_at_rest_do_not_change_the_elements_that_are_drawn(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    together = episode_returns(LeansRight(), agent, "transformed", 30, seed=7)
    half = episode_returns(LeansRight(), agent, "transformed", 20, seed=7)
    # environments 10 to 19 play two episodes of the 30, and their first as before
    assert together[:10].tolist() == half[:10].tolist()
    assert together[10::2].tolist() == half[10:].tolist()


class LeansRight:
    """Not equivariant, so that its returns tell through which element it looked."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 2] + 0.1 > 0).astype(int), state


class Ledger(gym.Env):
    """Episodes of 1, 5, 9, ... steps by its seed; writes down each reset and step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    books: dict = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.length = 1 + 4 * (seed % 20)
            self.book = self.books[seed] = []
        self.book.append(0)
        return np.full(4, self.length, np.float32), {}

    def step(self, action):
        self.book[-1] += 1
        over = self.book[-1] >= self.length
        return np.full(4, self.length, np.float32), 1.0, over, False, {}


@pytest.mark.parametrize("episodes", [7, 20, 33])
@pytest.mark.parametrize("condition", ["original", "transformed", 1])
def test_no_environment_is_stepped_after_its_quota(cartpole_zip, monkeypatch, episodes, condition):
    monkeypatch.setattr(Ledger, "books", {})
    gym.register("test/Ledger-v0", Ledger)
    equirl.register_symmetry("test/Ledger-v0", "equirl.envs.classic_control:cartpole_symmetry")
    (agent,) = find_agents(cartpole_zip, "test/Ledger-v0")
    returns = episode_returns(Alternating(), agent, condition, episodes, seed=40)
    count = min(20, episodes)
    expected = {40 + i: [1 + 4 * i] * ((episodes + i) // count) for i in range(count)}
    assert Ledger.books == expected  # whole episodes and nothing more, not even a reset
    assert returns.tolist() == [length for lengths in expected.values() for length in lengths]


def test_equivariant_policies_do_as_well_through_every_element(tiny_runs):
    (agent,) = find_agents(tiny_runs[0])
    policy = make_policy("equitune", agent.load(), agent)
    original = episode_returns(policy, agent, "original", 20)
    for element in range(4):
        assert np.array_equal(original, episode_returns(policy, agent, element, 20))


class ToTheTopRight:
    """What an agent does that was trained with the goal in the top right corner."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation[:, 0] < 1, 0, 1), state


def test_a_policy_that_is_not_equivariant_fails_through_the_others(tiny_runs):
    (agent,) = find_agents(tiny_runs[0])
    assert episode_returns(ToTheTopRight(), agent, "original", 20).min() > -50
    for element in (1, 2, 3):
        assert np.median(episode_returns(ToTheTopRight(), agent, element, 20)) == -50
    mixed = episode_returns(ToTheTopRight(), agent, "transformed", 40)
    assert 5 <= (mixed > -50).sum() <= 25


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_policy_is_made(tiny_runs, name):
    (agent,) = find_agents(tiny_runs[0])
    policy = make_policy(name, agent.load(), agent, transitions=100)
    assert episode_returns(policy, agent, "transformed", 3).shape == (3,)


def test_conditions():
    symmetry = equirl.symmetry_of("equirl/Gridworld-v0")
    assert [parse_condition(t, symmetry) for t in ("original", "transformed", "3")] == [
        "original",
        "transformed",
        3,
    ]
    with pytest.raises(ValueError, match=r"0 \(e\), 1 \(r\), 2 \(r\^2\), 3 \(r\^3\); got '4'"):
        parse_condition("4", symmetry)


def test_evaluate_writes_what_it_prints(tiny_runs, tmp_path, capsys):
    arguments = evaluate.Evaluate(
        tiny_runs[0], condition="2", episodes=4, output=tmp_path / "report.json"
    )
    evaluate.main(arguments)
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert len(report["returns"]) == 4
    assert report["mean"]["value"] == pytest.approx(np.mean(report["returns"]))
    assert "equizero, equirl/Gridworld-v0 (element 2): mean return" in printed.err


def test_evaluate_refuses_no_episodes(tiny_runs):
    with pytest.raises(ValueError, match="--episodes"):
        evaluate.main(evaluate.Evaluate(tiny_runs[0], episodes=0))
