import dataclasses
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib.common.wrappers import TimeFeatureWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

import equirl
from equirl.agents.arguments import OneAgent
from equirl.agents.saved import SavedAgent, find_agent, find_agents, told_apart


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
    assert (best.name, best.budget) == ("equirl-Gridworld-v0_0/best_model", None)


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
    assert find_agent(arguments).env_kwargs == {"max_episode_steps": 9}
    with pytest.raises(ValueError, match="there is no device cudaa here"):
        find_agent(dataclasses.replace(arguments, device="cudaa"))


def test_the_suffix_may_be_left_out(cartpole_zip):
    (agent,) = find_agents(cartpole_zip.with_suffix(""), "CartPole-v1")
    assert agent.path == cartpole_zip and agent.name == "mine"


def test_modules_are_not_in_titles(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "gymnasium:CartPole-v1")
    assert (agent.env_id, agent.setting) == ("gymnasium:CartPole-v1", "CartPole-v1")


@pytest.fixture
def zoo_run(cartpole_zip, tmp_path):
    """Writes a run folder as rl-baselines3-zoo does, with a line more in its config.yml."""

    def write(line, name="CartPole-v1"):
        inner = tmp_path / "CartPole-v1_1" / "CartPole-v1"
        inner.mkdir(parents=True)
        (inner / "args.yml").write_text("env: CartPole-v1\nn_timesteps: -1\n")
        (inner / "config.yml").write_text(f"policy: MlpPolicy\n{line}\n")
        return Path(shutil.copy(cartpole_zip, inner.parent / f"{name}.zip"))

    return write


@pytest.mark.parametrize(
    "line",
    [
        "normalize: true",
        "normalize: \"{'norm_obs': True, 'norm_reward': False}\"",
        "normalize: {norm_reward: true}",
        "normalize: dict(norm_obs=False)",
        "frame_stack: many",
        "env_wrapper: [gymnasium.wrappers.RescaleObservation]",
        "vec_env_wrapper: stable_baselines3.common.vec_env.VecFrameStack",
        "normalize: true\ntrain_freq: !!python/tuple [1, episode]",
    ],
)
def test_an_agent_that_saw_something_else_is_refused(zoo_run, line):
    file = zoo_run(line)
    key = line.partition(":")[0]
    for path in (file.parent, file):
        with pytest.raises(ValueError, match=f"did not see what its environment emits .*{key}: "):
            find_agents(path)


def test_a_configuration_that_cannot_be_read_is_refused(zoo_run):
    file = zoo_run("normalize: true\nwrapper: !!python/object:some.Thing {}")
    with pytest.raises(ValueError, match=r"config\.yml is not readable as YAML"):
        find_agents(file)


@pytest.mark.parametrize(
    "line",
    [
        "normalize: false",
        "normalize: \"{'norm_obs': False, 'norm_reward': True}\"",
        "frame_stack: 1",
        "frame_stack: null",
        "env_wrapper: null",
        "env_wrapper: []",
        "env_wrapper: stable_baselines3.common.monitor.Monitor",
        "gamma: 0.9",
    ],
)
def test_an_agent_that_saw_what_the_environment_emits(zoo_run, line):
    (agent,) = find_agents(zoo_run(line).parent)
    assert agent.env_id == "CartPole-v1" and agent.load("cpu").num_timesteps == 0


@pytest.mark.parametrize(
    ("agent", "statistics", "refused"),
    [
        ("CartPole-v1.zip", "vecnormalize.pkl", True),
        ("CartPole-v1.zip", "CartPole-v1/vecnormalize.pkl", True),
        ("mine.zip", "mine.vecnormalize.pkl", True),
        ("mine.zip", "mine_vecnormalize.pkl", True),
        ("mine.zip", "vec_normalize.pkl", True),
        ("mine.zip", "mine-vec-normalize.pkl", True),
        ("mine.zip", "other.vecnormalize.pkl", False),
        ("rl_model_100_steps.zip", "rl_model_vecnormalize_100_steps.pkl", True),
        ("rl_model_200_steps.zip", "rl_model_vecnormalize_100_steps.pkl", False),
    ],
)
def test_statistics_beside_an_agent_tell(zoo_run, agent, statistics, refused):
    file = zoo_run("gamma: 0.9", agent.removesuffix(".zip"))
    (file.parent / statistics).touch()
    (found,) = find_agents(file)
    if refused:  # as it is empty
        with pytest.raises(ValueError, match=f"{Path(statistics).name} cannot be read"):
            found.load("cpu")
    else:
        assert found.load("cpu").statistics is None


@pytest.mark.parametrize("place", ["config.yml", "CartPole-v1/config.yml"])
def test_a_configuration_counts_without_the_arguments(cartpole_zip, tmp_path, place):
    """As beside agents of the hub, whose files stand in one folder."""
    (tmp_path / "CartPole-v1").mkdir(exist_ok=True)
    (tmp_path / place).write_text("normalize: true\n")
    file = cartpole_zip.rename(tmp_path / "CartPole-v1.zip")
    with pytest.raises(ValueError, match="normalize: True"):
        find_agents(file, "CartPole-v1")


def test_other_folders_do_not_make_a_run(cartpole_zip, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "args.yml").write_text("env: CartPole-v1\n")
    (agent,) = find_agents(cartpole_zip, "CartPole-v1")
    assert agent.name == "mine"


def test_names_do_not_depend_on_where_one_stands(zoo_run, monkeypatch):
    file = zoo_run("gamma: 0.9", "best_model")
    monkeypatch.chdir(file.parent)
    (agent,) = find_agents(Path("best_model.zip"))
    assert agent.name == "CartPole-v1_1/best_model"


def test_arguments_that_the_environment_refuses(cartpole_zip):
    (agent,) = find_agents(cartpole_zip, "CartPole-v1", {"colour": "red"})
    with pytest.raises(ValueError, match="cannot make CartPole-v1 colour=red: .*colour"):
        agent.load("cpu")


def test_statistics_of_rewards_do_no_harm(zoo_run):
    file = zoo_run("normalize: \"{'norm_obs': False}\"")
    (file.parent / "vecnormalize.pkl").touch()
    assert find_agents(file)[0].path == file


@pytest.mark.parametrize("rewards_only", [False, True])
def test_a_normalised_agent_is_known_by_its_file_too(zoo_run, rewards_only):
    file = zoo_run("normalize: \"{'norm_obs': False}\"" if rewards_only else "gamma: 0.9")
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=not rewards_only)
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu").learn(8).save(file)
    (agent,) = find_agents(file)
    if rewards_only:
        equirl.EquizeroPolicy(agent.load("cpu"), agent.symmetry())
    else:
        with pytest.raises(ValueError, match="VecNormalize, by what the file keeps"):
            agent.load("cpu")


@pytest.mark.filterwarnings("ignore:builtin type [sS]wig")  # of Box2D
def test_real_agents_of_normalised_observations_are_played_so(shared_agents):
    for name, env in (
        ("a2c-Pendulum-v1", "Pendulum-v1"),
        ("ppo-BipedalWalker-v3", "BipedalWalker-v3"),
    ):
        (agent,) = find_agents(shared_agents / f"{name}.zip", env)
        assert agent.load("cpu").statistics is not None
    assert find_agents(shared_agents / "dqn-CartPole-v1.zip", "CartPole-v1")


def test_agents_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / a / b / "dqn.zip" for a, b in (("x", "s0"), ("x", "s1"), ("y", "s0"))]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]))
    agents = [SavedAgent("dqn", path, "CartPole-v1", {}) for path in paths]
    assert [a.name for a in told_apart(agents[:2])] == ["s0/dqn", "s1/dqn"]
    assert [a.name for a in told_apart(agents)] == ["x/s0/dqn", "x/s1/dqn", "y/s0/dqn"]
    assert [a.name for a in told_apart(agents[:1])] == ["dqn"]
    links = [tmp_path / "links" / name / "best.zip" for name in "ab"]
    for link, path in zip(links, paths, strict=False):
        link.parent.mkdir(parents=True)
        link.symlink_to(path)
    best = [SavedAgent("best", link, "CartPole-v1", {}) for link in links]
    assert [a.name for a in told_apart(best)] == ["a/best", "b/best"]
    copy = dataclasses.replace(agents[0], name="other", path=tmp_path / "other.zip", budget=7)
    shutil.copy(agents[0].path, copy.path)
    with pytest.raises(ValueError, match=r"dqn\.zip and .*other\.zip are the same agent"):
        told_apart([agents[0], copy])


def test_runs_of_one_name_keep_one_name_over_their_checkpoints(tiny_runs, tmp_path):
    moved = Path(shutil.copytree(tiny_runs[0], tmp_path / "moved" / tiny_runs[0].name))
    agents = find_agents(tiny_runs[0], checkpoints="all")
    others = [dataclasses.replace(a, path=moved / a.path.name) for a in agents]
    for i, agent in enumerate(others):
        agent.path.write_bytes(bytes([i]))
    names = [agent.name for agent in told_apart(agents + others)]
    assert len(set(names[:3])) == len(set(names[3:])) == 1 and names[0] != names[3]
    assert names[3] == f"moved/{tiny_runs[0].name}"


@pytest.mark.parametrize(
    ("line", "wrap"),
    [
        ("frame_stack: 3", lambda env: VecFrameStack(env, 3)),
        (
            "env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper\nframe_stack: 2",
            lambda env: VecFrameStack(env, 2),
        ),
    ],
)
def test_an_agent_that_saw_several_frames_or_the_time_is_shown_them(zoo_run, line, wrap):
    """What it is shown is what it was shown in its training, by Stable-Baselines3 itself."""
    file = zoo_run(line)

    def make():
        env = gym.make("CartPole-v1")
        return TimeFeatureWrapper(env) if "TimeFeature" in line else env

    trained = wrap(DummyVecEnv([make]))
    PPO("MlpPolicy", trained, n_steps=8, batch_size=8, seed=0, device="cpu").save(file)
    (agent,) = find_agents(file)
    model, env = agent.load("cpu"), agent.make()
    trained.seed(0)
    seen, shown = trained.reset()[0], env.reset(seed=0)[0]
    for step in range(6):
        np.testing.assert_allclose(shown, seen, atol=1e-6)
        seen = trained.step(np.array([step % 2]))[0][0]
        shown = env.step(step % 2)[0]
    policy = equirl.EquizeroPolicy(model, agent.symmetry())
    mirrored = policy.symmetry.act_on_observations(1, shown[None])
    action = policy.predict(shown, deterministic=True)[0]
    assert policy.predict(mirrored, deterministic=True)[0][0] == 1 - action
