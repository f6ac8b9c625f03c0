import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

import equirl
from equicore.lab import command
from equirl import Experience
from equirl.agents import train
from equirl.agents.arguments import Train
from equirl.agents.train import train_agent, train_all
from equirl.agents.training import plan

PARTS = [field.name for field in dataclasses.fields(Experience)]


def trained(arguments):
    """A finished training of one seed."""
    (training,) = plan(arguments)
    train_agent(training)
    return training


def check_same(training, folder):
    """A training has ended as that in a run folder: agent, checkpoints and evaluations."""
    for path in sorted(folder.glob("*.zip")):
        first, second = (
            equirl.load_agent(where / path.name, "cpu").policy.state_dict()
            for where in (training.folder.path, folder)
        )
        assert all(torch.equal(first[name], second[name]) for name in second)
    with (
        np.load(training.folder.path / "evaluations.npz") as ours,
        np.load(folder / "evaluations.npz") as theirs,
    ):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_run_folder_has_the_layout_of_the_zoo(tiny_runs):
    folder = tiny_runs[0]
    assert folder.name == "equirl-Gridworld-v0_0"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "equirl-Gridworld-v0.zip",
        "best_model.zip",
        "rl_model_40_steps.zip",
        "rl_model_80_steps.zip",
        "rl_model_120_steps.zip",
        "evaluations.npz",
        "progress.csv",
        "0.monitor.csv",
        "equirl-Gridworld-v0/args.yml",
        "equirl-Gridworld-v0/config.yml",
    }
    assert not any(name.endswith(".safetensors") for name in names)  # nothing to go on from
    assert any("tfevents" in name for name in names)
    with np.load(folder / "evaluations.npz") as file:
        assert file["timesteps"].tolist() == [40, 80, 120]
        assert file["results"].shape == file["ep_lengths"].shape == (3, 2)
    frames = [pd.read_csv(path, skiprows=1) for path in sorted(folder.glob("*.monitor.csv"))]
    assert len(frames) == 3
    assert 0 < sum(frame["l"].sum() for frame in frames) <= 120


def test_best_model_is_the_one_that_was_best_first(tiny_runs):
    for folder in tiny_runs:
        with np.load(folder / "evaluations.npz") as file:
            best = file["timesteps"][file["results"].mean(axis=1).argmax()]
        assert equirl.load_agent(folder / "best_model.zip").num_timesteps == best


def test_checkpoints_hold_the_steps_that_they_name(tiny_runs):
    agents = [equirl.load_agent(tiny_runs[0] / f"rl_model_{n}_steps.zip") for n in (40, 80, 120)]
    assert [agent.num_timesteps for agent in agents] == [40, 80, 120]
    weights = [next(agent.policy.parameters()) for agent in agents]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_seeds_give_different_agents(tiny_runs):
    first, second = (
        next(equirl.load_agent(folder / "equirl-Gridworld-v0.zip").policy.parameters())
        for folder in tiny_runs
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_interrupted_training_goes_on_to_the_same_agent(tiny_train, tiny_runs, monkeypatch, moment):
    """Interrupted before, or after, the second leg was written."""
    (training,) = plan(tiny_train)
    write_leg = train._write_leg

    def interrupted(model, training, number, end, evaluations):
        if number == 1:
            if moment == "after":
                write_leg(model, training, number, end, evaluations)
            raise KeyboardInterrupt
        write_leg(model, training, number, end, evaluations)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_write_leg", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_agent(training)
    assert training.folder.resume_file.exists()
    train_agent(training)
    assert not training.folder.resume_file.exists()
    check_same(training, tiny_runs[0])


def command_line(tiny_train):
    words = ["train", "--env", "gate:equirl/Gridworld-v0", "--env-kwargs", *tiny_train.env_kwargs]
    words += ["--hyperparameters", tiny_train.hyperparameters, "--output", tiny_train.output]
    return [*words, "--checkpoints", 3, "--eval-episodes", 2, "--device", "cpu", "--jobs", 1]


def test_killed_training_goes_on_to_the_same_agent(forked, tiny_train, tiny_runs):
    """Killed twice: in the first leg, and while the second is written."""
    for written in (1, 6):  # the first leg writes four files
        forked.start(command_line(tiny_train), written)
        forked.kill()
    forked.start(command_line(tiny_train))
    assert forked.finish() == 0
    (training,) = plan(dataclasses.replace(tiny_train, env="gate:equirl/Gridworld-v0"))
    check_same(training, tiny_runs[0])
    assert not [*tiny_train.output.rglob(".unfinished-*")]


@pytest.mark.slow
def test_killed_trainings_side_by_side_go_on_to_the_same_agents(fresh, tiny_train, tiny_runs):
    words = [*command_line(tiny_train)[:-1], 2, "--seeds", 0, 1]
    for written in (3, 8):
        fresh.start(words, written)
        fresh.kill()
    fresh.start(words)
    assert fresh.finish() == 0
    arguments = dataclasses.replace(tiny_train, env="gate:equirl/Gridworld-v0", seeds=(0, 1))
    for training, folder in zip(plan(arguments), tiny_runs, strict=True):
        check_same(training, folder)


def test_ctrl_c_ends_with_the_command_that_goes_on(forked, tiny_train):
    words = command_line(tiny_train)
    forked.start(words, 5)
    forked.interrupt()
    assert forked.finish() == 130
    with open(forked.log.name) as log:
        said = log.read().rpartition("interrupted; finished legs are saved. To go on: ")[2]
    assert said == f"equirl {' '.join(map(str, words))}\n"


def test_the_command_that_goes_on_of_the_script_alone(tiny_train, monkeypatch, capsys):
    def interrupted(trainings, jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_all", interrupted)
    monkeypatch.setattr(sys, "argv", ["train.py", "--env", "a b"])
    with pytest.raises(KeyboardInterrupt):
        train.main(tiny_train)
    assert capsys.readouterr().err.endswith("To go on: equirl train --env 'a b'\n")


def test_main_tells_where_the_agents_are(tiny_train, tiny_runs, capsys):
    output = tiny_runs[0].parent.parent
    train.main(dataclasses.replace(tiny_train, seeds=(0, 1), output=output))
    said = capsys.readouterr().out.splitlines()
    for i, folder in enumerate(tiny_runs):
        agent = folder / "equirl-Gridworld-v0.zip"
        assert said[i] == f"already trained: {agent}"
        assert said[2 + i].startswith(f"{agent}: return -")
        assert said[2 + i].endswith(" over 2 episodes")


def test_finished_seeds_are_skipped(tiny_train, tiny_runs, monkeypatch):
    output = tiny_runs[0].parent.parent
    trainings = plan(dataclasses.replace(tiny_train, seeds=(0, 2), output=output))
    called = []
    monkeypatch.setattr(train, "train_agent", called.append)
    train_all(trainings, jobs=1)
    assert called == trainings[1:]


def test_folder_of_another_run_is_refused(tiny_train, tiny_runs):
    output = tiny_runs[0].parent.parent
    other = dataclasses.replace(tiny_train, output=output, steps=300)
    with pytest.raises(FileExistsError, match=r"args\.yml was made with n_timesteps 120, not 300"):
        plan(other)
    arguments = yaml.safe_load((tiny_runs[0] / "equirl-Gridworld-v0" / "args.yml").read_text())
    assert arguments == {
        "algo": "dqn",
        "env": "equirl/Gridworld-v0",
        "env_kwargs": {"goals": "corner", "n": 4, "max_episode_steps": 15},
        "seed": 0,
        "n_timesteps": 120,
        "checkpoints": 3,
        "eval_episodes": 2,
    }


def test_other_hyperparameters_are_another_run(tiny_train, tiny_runs, tiny_yaml, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(tiny_yaml.read_text().replace("batch_size: 16", "batch_size: 8"))
    output = tiny_runs[0].parent.parent
    with pytest.raises(FileExistsError, match=r"config\.yml was made with batch_size 16, not 8"):
        plan(dataclasses.replace(tiny_train, hyperparameters=other, output=output))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "no seeds given"),
        ({"seeds": (1, 1)}, "--seeds has 1 more than once"),
        ({"seeds": (-1,)}, "seeds must be"),
        ({"seeds": (1_000_000,)}, r"seeds must be 0\.\.999999"),
        ({"algo": "reinforce"}, "--algo is one of a2c, ars, .*, trpo; got 'reinforce'"),
        ({"algo": "ppo", "experience": 9}, "transitions of a replay buffer, and ppo has none"),
        ({"experience": -1}, "--experience must be at least 0; got -1"),
        ({"checkpoints": 0}, "--checkpoints must be at least 1"),
        ({"steps": 2}, "2 steps are too few for 3 checkpoints"),
        ({"env": "CartPole-v9"}, "cannot make CartPole-v9.* is known: Acrobot-v1, Ant-v5"),
        ({"env_kwargs": ("goals=middle",)}, "goals must be one of"),
        ({"env_kwargs": ("colour=red",)}, "cannot make"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tiny_train, change, message):
    with pytest.raises(ValueError, match=message):
        plan(dataclasses.replace(tiny_train, **change))
    assert not tiny_train.output.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "policy: MlpPolicy",
            "policy: MlpPolcy",
            r"policy is one of MlpPolicy, .*; got 'MlpPolcy'",
        ),
        ("net_arch: [16]", "net_arch: big", r"no dqn can be made of wrong\.yaml"),
    ],
)
def test_hyperparameters_that_make_no_agent_are_refused(
    tiny_train, tiny_yaml, tmp_path, old, new, message
):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(tiny_yaml.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        plan(dataclasses.replace(tiny_train, hyperparameters=wrong))
    assert not tiny_train.output.exists()


def test_no_folder_is_claimed_if_one_is_taken(tiny_train):
    taken = tiny_train.output / "dqn" / "equirl-Gridworld-v0_1"
    taken.mkdir(parents=True)
    (taken / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds files, such as thesis\.tex, but no .*args"):
        plan(dataclasses.replace(tiny_train, seeds=(0, 1)))
    assert [path.name for path in taken.parent.iterdir()] == [taken.name]


def test_what_a_kill_left_half_written_is_cleared(tiny_train, monkeypatch):
    (training,) = plan(tiny_train)
    leftover = training.folder.path / ".unfinished-abc.zip"
    leftover.touch()
    (training.folder.path / "equirl-Gridworld-v0" / "args.yml").unlink()
    (training,) = plan(tiny_train)  # is not taken for another's folder
    monkeypatch.setattr(train, "_train_legs", lambda training: None)
    train_agent(training)
    assert not leftover.exists()


def test_two_processes_do_not_train_in_one_folder(tiny_train, monkeypatch):
    monkeypatch.setattr(train, "FileLock", lambda path, timeout: FileLock(path, timeout=0))
    (training,) = plan(tiny_train)
    with (
        FileLock(training.folder.path / ".lock"),
        pytest.raises(ValueError, match="another process is training"),
    ):
        train_agent(training)


def test_schedules_are_those_of_the_whole_training(tiny_train, tiny_yaml, tmp_path):
    slow = tmp_path / "slow.yaml"
    slow.write_text(tiny_yaml.read_text() + "  exploration_fraction: 1.0\n")
    training = trained(dataclasses.replace(tiny_train, hyperparameters=slow))
    for steps in (40, 80, 120):  # from 1.0 at the start to 0.05 at the end
        agent = equirl.load_agent(training.folder.checkpoint(steps))
        assert agent.exploration_rate == pytest.approx(1 - 0.95 * steps / 120)


def test_what_is_longer_than_a_leg_is_told_of(tiny_train, tiny_yaml, tmp_path):
    long = tmp_path / "long.yaml"
    long.write_text(tiny_yaml.read_text().replace("train_freq: 4", "train_freq: 100"))
    with pytest.warns(UserWarning, match="checkpoint of 40 steps holds an agent of 100"):
        training = trained(dataclasses.replace(tiny_train, hyperparameters=long))
    counts = [equirl.load_agent(training.folder.checkpoint(n)).num_timesteps for n in (40, 80, 120)]
    assert counts == [100, 100, 200]


def kept(training):
    """The experience beside each checkpoint, by steps."""
    return {n: Experience.load(training.folder.experience(n)) for n in training.budgets}


@pytest.mark.parametrize(
    ("limit", "lengths"), [(1, [1, 1, 1]), (60, [40, 60, 60]), (1000, [40, 80, 100])]
)
def test_the_newest_experience_is_kept_with_each_checkpoint(tiny_train, tiny_runs, limit, lengths):
    """As many as asked, or as there are; the buffer holds 100. The agent is the same."""
    training = trained(dataclasses.replace(tiny_train, experience=limit))
    experiences = kept(training)
    assert [len(experience) for experience in experiences.values()] == lengths
    names = {path.name for path in training.folder.path.glob("*.safetensors")}
    assert names == {f"rl_model_{n}_steps.safetensors" for n in (40, 80, 120)}
    check_same(training, tiny_runs[0])


def test_experience_goes_on_from_checkpoint_to_checkpoint(tiny_train):
    training = trained(dataclasses.replace(tiny_train, experience=80))
    first, second, third = kept(training).values()
    for name in PARTS:
        assert np.array_equal(getattr(second, name)[:40], getattr(first, name))
        assert np.array_equal(getattr(third, name)[:40], getattr(second, name)[40:])
    assert first.ended[-1] and second.ended[39]  # where a leg ends, the environment is reset
    inside = ~second.ended[:-1]
    follows = (second.next_observations[:-1] == second.observations[1:]).all(axis=1)
    assert follows[inside].all()
    assert inside.mean() > 0.5


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_resumed_training_keeps_the_same_experience(tiny_train, tmp_path, monkeypatch, moment):
    """Interrupted before, or after, the second checkpoint's experience was written."""
    keeping = dataclasses.replace(tiny_train, experience=60)
    undisturbed = trained(dataclasses.replace(keeping, output=tmp_path / "undisturbed"))
    (training,) = plan(keeping)
    save = Experience.save

    def interrupted(experience, path):
        if "80" in path.name:
            if moment == "after":
                save(experience, path)
            raise KeyboardInterrupt
        save(experience, path)

    with monkeypatch.context() as patch:
        patch.setattr(Experience, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_agent(training)
    assert training.folder.experience(80).exists() == (moment == "after")
    train_agent(training)
    for steps in training.budgets:
        ours, theirs = (t.folder.experience(steps).read_bytes() for t in (training, undisturbed))
        assert ours == theirs


def test_a_folder_that_keeps_other_experience_is_refused(tiny_train):
    (training,) = plan(dataclasses.replace(tiny_train, experience=60))
    training.folder.checkpoint(40).touch()
    with pytest.raises(FileExistsError, match=r"args\.yml was made with experience 60, not 70"):
        plan(dataclasses.replace(tiny_train, experience=70))


def test_words_of_the_zoo_are_understood(tiny_train):
    """-n and --eval-freq, as in rl_zoo3.train; 0,1 for 0 1; 6e1 for 60."""
    words = ["--env", "equirl/Gridworld-v0", "-n", "6e1", "--eval-freq", "20", "--seeds", "0,1,"]
    seen = []
    command.run({Train: seen.append}, args=words)
    (arguments,) = seen
    assert arguments.steps == 60 and arguments.eval_freq == 20 and arguments.seeds == (0, 1)
    given = dataclasses.replace(tiny_train, steps=60, eval_freq=20)
    same = dataclasses.replace(tiny_train, steps=60, checkpoints=3)
    assert [t.budgets for t in plan(given)] == [[20, 40, 60]]
    assert plan(given)[0].description == plan(same)[0].description
    with pytest.raises(ValueError, match="--eval-freq 25 does not divide the 60 steps"):
        plan(dataclasses.replace(given, eval_freq=25))


def test_off_a_terminal_each_checkpoint_is_a_line(tiny_train, capsys):
    trained(tiny_train)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", mean return ")[0] for line in lines] == [
        f"equirl-Gridworld-v0_0: {steps} steps" for steps in (40, 80, 120)
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tiny_train):
    with pytest.raises(ValueError, match="there is no device cuda here"):
        plan(dataclasses.replace(tiny_train, device="cuda"))
    assert not tiny_train.output.exists()
