"""Every algorithm is trained, resumed, evaluated and compared by the same commands."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import equirl
from equirl.agents import train
from equirl.agents.arguments import Compare, Train
from equirl.agents.compare import main as compare
from equirl.agents.evaluation import evaluate
from equirl.agents.hyperparameters import ALGORITHMS
from equirl.agents.saved import find_agents
from equirl.agents.train import train_agent, train_all
from equirl.agents.training import plan
from equirl.normalization import statistics_of
from equirl.seeds import TRAINING_EVALUATION_SEED

GRID, PENDULUM = "equirl/Gridworld-v0", "Pendulum-v1"
GOALS = "replay_buffer_class: HerReplayBuffer"
MAZE = "gymnasium_robotics:PointMaze_UMaze-v3"
ON_POLICY = "n_envs: 2, n_steps: 16, normalize: true"
OFF_POLICY = "buffer_size: 100, learning_starts: 20, batch_size: 16, train_freq: 4"
SETTINGS = {
    "a2c": (PENDULUM, f"{ON_POLICY}, use_sde: true"),
    "ddpg": (PENDULUM, f"{OFF_POLICY}, noise_type: ornstein-uhlenbeck, noise_std: 0.2"),
    "dqn": (GRID, OFF_POLICY),
    "ppo": (PENDULUM, f"{ON_POLICY}, batch_size: 16, n_epochs: 2, clip_range: lin_0.2"),
    "sac": (PENDULUM, f"{OFF_POLICY}, normalize: {{norm_reward: false}}, use_sde: true"),
    "td3": (PENDULUM, f"{OFF_POLICY}, noise_type: normal, noise_std: 0.1, n_envs: 2"),
    "ars": (PENDULUM, "n_delta: 1, n_envs: 2, normalize: {norm_reward: false}"),
    "crossq": (PENDULUM, OFF_POLICY),
    "maskable_ppo": (GRID, "n_envs: 2, n_steps: 16, batch_size: 16, n_epochs: 2"),
    "qrdqn": (GRID, OFF_POLICY),
    "tqc": (PENDULUM, OFF_POLICY),
    "trpo": (PENDULUM, f"{ON_POLICY}, batch_size: 16"),
    "sac with goals": (
        MAZE,
        "buffer_size: 60, learning_starts: 30, batch_size: 16, train_freq: 4, "
        "replay_buffer_class: HerReplayBuffer, replay_buffer_kwargs: {n_sampled_goal: 3}",
    ),
}


def test_every_algorithm_stands_here():
    assert {name.partition(" ")[0] for name in SETTINGS} == ALGORITHMS.keys()


@pytest.fixture
def small(tmp_path):
    """The arguments of a tiny training by an algorithm."""

    def arguments(algo, more=""):
        env, rest = SETTINGS[algo]
        name = env.rpartition(":")[2]
        steps = 1600 if algo == "ars" else 120
        policy, kwargs = ("LinearPolicy", "") if algo == "ars" else ("MlpPolicy", "net_arch: [8]")
        env_kwargs = ("n=3", "max_episode_steps=9") if env == GRID else ()
        if env == MAZE:
            robotics = pytest.importorskip("gymnasium_robotics", reason="needs gymnasium-robotics")
            if name not in gym.registry:  # what an earlier test has imported is forgotten
                robotics.register_robotics_envs()
            policy, env_kwargs = "MultiInputPolicy", ("max_episode_steps=15",)
        file = tmp_path / f"{algo}.yaml"
        file.write_text(
            f"{name}: {{n_timesteps: {steps}, policy: {policy}, policy_kwargs: {{{kwargs}}}, "
            f"{rest}{more}}}"
        )
        return Train(
            env=env,
            algo=algo.partition(" ")[0],
            env_kwargs=env_kwargs,
            hyperparameters=file,
            output=tmp_path / "whole",
            checkpoints=2 if algo == "ars" else 3,
            eval_episodes=2,
            device="cpu",
            jobs=1,
        )

    return arguments


@pytest.mark.parametrize(
    "algo",
    [
        algo if algo in ("ppo", "sac", "ars") else pytest.param(algo, marks=pytest.mark.slow)
        for algo in SETTINGS
    ],
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_a_training_that_was_killed_goes_on_to_the_same_agent(small, algo, tmp_path, monkeypatch):
    given = small(algo)
    (whole,) = plan(given)
    train_agent(whole)
    (broken,) = plan(dataclasses.replace(given, output=tmp_path / "broken"))

    def killed(model, training, number, end, evaluations):
        if number == 1:
            raise KeyboardInterrupt
        write(model, training, number, end, evaluations)

    write = train._write_leg
    with monkeypatch.context() as patch:
        patch.setattr(train, "_write_leg", killed)
        with pytest.raises(KeyboardInterrupt):
            train_agent(broken)
    assert broken.folder.resume_file.exists() and not broken.folder.final_agent.exists()
    train_agent(broken)
    agents = [equirl.load_agent(t.folder.final_agent, "cpu") for t in (whole, broken)]
    one, other = (agent.policy.state_dict() for agent in agents)
    assert all(torch.equal(one[name], other[name]) for name in one)
    evaluations = [np.load(t.folder.path / "evaluations.npz")["results"] for t in (whole, broken)]
    assert np.array_equal(*evaluations)
    for end in whole.budgets:
        (first, second) = (
            find_agents(t.folder.checkpoint(end))[0].load("cpu") for t in (whole, broken)
        )
        normalized = "normalize" in SETTINGS[algo][1]
        assert (statistics_of(first) is not None) == normalized
        if normalized:
            for part in ("mean", "variance"):
                same = [getattr(statistics_of(a), part) for a in (first, second)]
                assert np.array_equal(*same)


TIME = "sb3_contrib.common.wrappers.TimeFeatureWrapper"


@pytest.mark.parametrize(
    ("more", "entries"),
    [
        (", frame_stack: 3", 9),
        (f", env_wrapper: [{TIME}]", 4),
        (f", env_wrapper: {TIME}, frame_stack: 2", 8),
    ],
)
def test_an_agent_is_shown_what_it_was_trained_with(small, more, entries):
    """Played from its files, it does as well as in the last evaluation of its training."""
    (training,) = plan(small("ppo", more))
    train_agent(training)
    (agent,) = find_agents(training.folder.path)
    model = agent.load("cpu")
    assert model.observation_space.shape == (entries,)
    env = Monitor(agent.make())
    env.reset(seed=TRAINING_EVALUATION_SEED)
    returns, _ = evaluate(model, DummyVecEnv([lambda: env]), 2)
    kept = np.load(training.folder.path / "evaluations.npz")["results"][-1]
    assert np.allclose(returns, kept, rtol=1e-4)
    policy = equirl.EquizeroPolicy(model, agent.symmetry())
    seen = agent.make().reset(seed=0)[0]
    image = policy.symmetry.act_on_observations(1, seen[None])[0]
    actions = [policy.predict(x, deterministic=True)[0] for x in (seen, image)]
    assert np.allclose(actions[0], -actions[1], atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", frame_stack: 0", "frame_stack is at least 1"),
        (
            ", env_wrapper: os.system",
            "env_wrapper names some of Flatten.*'system'",
        ),
    ],
)
def test_classes_that_are_not_known_are_refused(small, more, message):
    with pytest.raises(ValueError, match=message):
        plan(small("sac", more))


def test_frames_of_what_is_no_vector_are_refused(small):
    given = small("dqn", ", frame_stack: 2")
    given = dataclasses.replace(given, env_kwargs=("n=3", "observation=image"))
    with pytest.raises(ValueError, match="frame_stack is for vectors"):
        plan(given)


def test_policies_are_those_of_the_observations(small):
    given = small("sac with goals")
    text = given.hyperparameters.read_text()
    given.hyperparameters.write_text(text.replace("MultiInputPolicy", "MlpPolicy"))
    with pytest.raises(ValueError, match="MultiInputPolicy is for dicts, and others are not"):
        plan(given)


def test_hindsight_wants_a_whole_episode_first(small):
    given = dataclasses.replace(small("sac with goals"), env_kwargs=("max_episode_steps=40",))
    with pytest.raises(ValueError, match="may take 40 steps .* learning_starts is 30, give at"):
        plan(given)
    given = small("sac", f", {GOALS}")
    with pytest.raises(ValueError, match="HerReplayBuffer is for environments with goals"):
        plan(given)


def test_one_environment_where_episodes_count(small):
    given = small("sac", ", n_envs: 2")
    text = given.hyperparameters.read_text().replace("train_freq: 4", "train_freq: [1, episode]")
    given.hyperparameters.write_text(text)
    with pytest.raises(ValueError, match="n_envs must be 1"):
        plan(given)


def test_an_unfinished_training_is_called_so(small, monkeypatch):
    """Also where observations are normalised, whose statistics each checkpoint has."""
    (training,) = plan(small("sac"))
    save = train._save

    def killed(model, file, statistics):
        if file == training.folder.final_agent:
            raise KeyboardInterrupt
        save(model, file, statistics)

    monkeypatch.setattr(train, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        train_agent(training)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        find_agents(training.folder.path)
    agents = find_agents(training.folder.path, checkpoints="all")
    assert [agent.budget for agent in agents] == training.budgets
    training.folder.statistics(training.budgets[0]).unlink()
    with pytest.raises(ValueError, match="rl_model_40_steps.zip has no vecnormalize.pkl: put"):
        find_agents(training.folder.path, checkpoints="all")


def test_agents_that_see_other_things_are_not_compared(small):
    folders = []
    for seed, more in enumerate(("", ", frame_stack: 2")):
        (training,) = plan(dataclasses.replace(small("ppo", more), seeds=(seed,)))
        train_agent(training)
        folders.append(training.folder.path)
    with pytest.raises(ValueError, match="see Pendulum-v1 through other wrappers"):
        compare(Compare(agents=tuple(folders), episodes=5))


def test_a_rollout_of_more_than_a_leg_is_refused(small):
    """Else two checkpoints would hold the same agent under two names."""
    given = dataclasses.replace(small("ppo"), checkpoints=4)  # of 30 steps, and 32 at once
    with pytest.raises(ValueError, match=r"ppo learns from 32 steps at once .* 4 checkpoints"):
        plan(given)


def test_an_iteration_of_more_than_a_leg_is_told_of(small):
    (training,) = plan(dataclasses.replace(small("ars"), checkpoints=4))
    with pytest.warns(
        UserWarning, match=r"checkpoint of (400|1,200) steps holds an agent of (800|1,600)"
    ):
        train_agent(training)


def test_agents_of_two_algorithms_are_not_compared(small, tmp_path):
    """Whatever their budgets are: lines of one table are of one algorithm."""
    folders = []
    for algo, steps in (("ppo", 120), ("sac", 90)):
        (training,) = plan(dataclasses.replace(small(algo), steps=steps, checkpoints=1))
        train_agent(training)
        folders.append(training.folder.path)
    with pytest.raises(ValueError, match="agents of PPO and SAC for Pendulum-v1 have no mean"):
        compare(Compare(agents=tuple(folders), episodes=5))


@pytest.mark.slow
@pytest.mark.parametrize("algo", SETTINGS)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.filterwarnings("ignore:equitune averages actions")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function GLContext")  # no screen
def test_it_is_compared(small, algo, tmp_path, short_fits, capsys):
    given = small(algo)
    train_all(plan(given), 1)
    folder = next((given.output / given.algo).iterdir())
    arguments = Compare(
        agents=(folder,), episodes=5, transitions=64, output=tmp_path / "compared", jobs=1
    )
    compare(arguments)
    assert "lambda" in capsys.readouterr().out
    assert (tmp_path / "compared" / "returns.csv").exists()
