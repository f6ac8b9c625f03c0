import dataclasses

import pytest

from equirl.agents.saved import OneAgent, SavedAgent, find_agents


def test_run_folder_stands_for_its_finished_agent(tiny_runs):
    (agent,) = find_agents(tiny_runs[1])
    assert agent == SavedAgent(
        "equirl-Gridworld-v0_1",
        tiny_runs[1] / "equirl-Gridworld-v0.zip",
        "equirl/Gridworld-v0",
        {"goals": "corner", "n": 4, "max_episode_steps": 15},
        seed=1,
        budget=120,
    )
    assert agent.setting == "equirl/Gridworld-v0 goals=corner n=4 max_episode_steps=15"
    assert agent.load("cpu").num_timesteps == 120
    assert len(agent.symmetry().group) == 4


def test_run_folder_stands_for_its_checkpoints(tiny_runs):
    agents = find_agents(tiny_runs[0], checkpoints="all")
    assert [agent.budget for agent in agents] == [40, 80, 120]
    assert len({agent.name for agent in agents}) == 1


def test_checkpoints_are_in_the_order_of_their_steps(cartpole_zip, tmp_path):
    folder = tmp_path / "CartPole-v1_1"
    (folder / "CartPole-v1").mkdir(parents=True)
    (folder / "CartPole-v1" / "args.yml").write_text("env: CartPole-v1\nn_timesteps: 1000\n")
    for name in ("1000", "200", "many"):
        (folder / f"rl_model_{name}_steps.zip").touch()
    assert [agent.budget for agent in find_agents(folder, checkpoints="all")] == [200, 1000]


def test_checkpoint_in_a_run_folder_knows_its_environment(tiny_runs):
    (agent,) = find_agents(tiny_runs[0] / "rl_model_80_steps.zip")
    assert (agent.env_id, agent.budget, agent.seed) == ("equirl/Gridworld-v0", 80, 0)
    assert agent.name == "equirl-Gridworld-v0_0/rl_model_80_steps"
    (best,) = find_agents(tiny_runs[0] / "best_model.zip")
    assert (best.name, best.budget) == ("equirl-Gridworld-v0_0/best_model", 120)


def test_given_arguments_go_before_those_of_the_run(tiny_runs):
    (agent,) = find_agents(tiny_runs[0], env_kwargs={"n": 5, "goals": "anywhere"})
    assert agent.env_kwargs == {"goals": "anywhere", "n": 5, "max_episode_steps": 15}


def test_run_that_is_not_finished(tiny_runs, tmp_path):
    folder = tmp_path / "equirl-Gridworld-v0_0"
    (folder / "equirl-Gridworld-v0").mkdir(parents=True)
    described = "equirl-Gridworld-v0/args.yml"
    (folder / described).write_text((tiny_runs[0] / described).read_text())
    with pytest.raises(FileNotFoundError, match="is not finished: it has no equirl-Gridworld-v0"):
        find_agents(folder)
    with pytest.raises(FileNotFoundError, match="no checkpoints in"):
        find_agents(folder, checkpoints="all")


def test_bare_zip_needs_the_environment(cartpole_zip):
    with pytest.raises(ValueError, match="--env CartPole-v1"):
        find_agents(cartpole_zip)
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    assert (agent.name, agent.setting, agent.budget) == ("mine", "CartPole-v1", None)


def test_unknown_environment_lists_the_known_ones(cartpole_zip):
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'.*Known: Acrobot-v1"):
        find_agents(cartpole_zip, "CartPole-v7")


def test_missing_agent(tmp_path):
    with pytest.raises(FileNotFoundError, match="no agent at"):
        find_agents(tmp_path / "none.zip", "CartPole-v1")
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        find_agents(tmp_path, "CartPole-v1")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Acrobot-v1", "for another environment than Acrobot-v1: its observation_space is"),
        ("equirl/Gridworld-v0", "its action_space is Discrete"),
    ],
)
def test_agent_of_another_environment_is_refused(cartpole_zip, env_id, message):
    (agent,) = find_agents(cartpole_zip, env_id)
    with pytest.raises(ValueError, match=message):
        agent.load("cpu")


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
    agent.load("cpu")


def test_description_with_code_is_not_read(tmp_path):
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
    agent.load("cpu")
    assert len(agent.symmetry().group) == 2
    with pytest.raises(ValueError, match="cannot import no_such_module"):
        find_agents(cartpole_zip, "no_such_module:my/Pole-v0")


def test_commands_about_one_agent_find_it(cartpole_zip):
    arguments = OneAgent(cartpole_zip, "CartPole-v1", ("max_episode_steps=9",), "cpu")
    assert arguments.find().env_kwargs == {"max_episode_steps": 9}
    with pytest.raises(ValueError, match="--device cudaa"):
        dataclasses.replace(arguments, device="cudaa").find()
