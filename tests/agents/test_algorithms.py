"""Every algorithm is trained, resumed, evaluated and compared by the same commands."""

import dataclasses

import numpy as np
import pytest
import torch

import equirl
from equirl.agents import train
from equirl.agents.arguments import Compare, Train
from equirl.agents.compare import main as compare
from equirl.agents.hyperparameters import ALGORITHMS
from equirl.agents.saved import find_agents
from equirl.agents.train import plan, train_agent, train_all
from equirl.normalization import statistics_of

GRID, PENDULUM = "equirl/Gridworld-v0", "Pendulum-v1"
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
}


def test_every_algorithm_stands_here():
    assert SETTINGS.keys() == ALGORITHMS.keys()


@pytest.fixture
def small(tmp_path):
    """The arguments of a tiny training by an algorithm."""

    def arguments(algo):
        env, rest = SETTINGS[algo]
        steps = 1600 if algo == "ars" else 120
        policy, kwargs = ("LinearPolicy", "") if algo == "ars" else ("MlpPolicy", "net_arch: [8]")
        file = tmp_path / f"{algo}.yaml"
        file.write_text(
            f"{env}: {{n_timesteps: {steps}, policy: {policy}, policy_kwargs: {{{kwargs}}}, "
            f"{rest}}}"
        )
        return Train(
            env=env,
            algo=algo,
            env_kwargs=("n=3", "max_episode_steps=9") if env == GRID else (),
            hyperparameters=file,
            output=tmp_path / "whole",
            checkpoints=3,
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


@pytest.mark.slow
@pytest.mark.parametrize("algo", SETTINGS)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.filterwarnings("ignore:equitune averages actions")
def test_it_is_compared(small, algo, tmp_path, short_fits, capsys):
    given = small(algo)
    train_all(plan(given), 1)
    folder = next((given.output / algo).iterdir())
    arguments = Compare(
        agents=(folder,), episodes=5, transitions=64, output=tmp_path / "compared", jobs=1
    )
    compare(arguments)
    assert "lambda" in capsys.readouterr().out
    assert (tmp_path / "compared" / "returns.csv").exists()
