import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

import equirl
from equirl import Experience, replay_experience
from equirl.agents import train
from equirl.agents.train import plan, train_agent, train_all


def states_equal(a, b):
    first, second = a.policy.state_dict(), b.policy.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_run_folder_has_the_layout_of_the_zoo(tiny_runs):
    folder = tiny_runs[0]
    assert folder.name == "equirl-Gridworld-v0_0"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "equirl-Gridworld-v0.zip",
        "best_model.zip",
        "rl_model_80_steps.zip",
        "rl_model_160_steps.zip",
        "rl_model_240_steps.zip",
        "evaluations.npz",
        "progress.csv",
        "0.monitor.csv",
        "equirl-Gridworld-v0/args.yml",
        "equirl-Gridworld-v0/config.yml",
    }
    assert "resume.safetensors" not in names
    assert any("tfevents" in name for name in names)


def test_evaluations_have_the_zoos_fields(tiny_runs):
    with np.load(tiny_runs[0] / "evaluations.npz") as file:
        assert file["timesteps"].shape == (3,)
        assert file["results"].shape == file["ep_lengths"].shape == (3, 2)


def test_monitor_files_cover_the_training(tiny_runs):
    frames = [pd.read_csv(path, skiprows=1) for path in sorted(tiny_runs[0].glob("*.monitor.csv"))]
    assert len(frames) == 3
    assert 0 < sum(frame["l"].sum() for frame in frames) <= 260


def test_finished_agent_loads_and_was_trained(tiny_runs):
    early = equirl.load_agent(tiny_runs[0] / "rl_model_80_steps.zip")
    final = equirl.load_agent(tiny_runs[0] / "equirl-Gridworld-v0.zip")
    assert not states_equal(early, final)
    assert final.num_timesteps >= 240


def test_seeds_give_different_agents(tiny_runs):
    first, second = (equirl.load_agent(f / "equirl-Gridworld-v0.zip") for f in tiny_runs)
    assert not states_equal(first, second)


def test_interrupted_training_goes_on_to_the_same_agent(tiny_train, tiny_runs, monkeypatch):
    (training,) = plan(tiny_train)
    write_leg = train._write_leg

    def interrupted(model, training, number, end, evaluations):
        if number == 1:
            raise KeyboardInterrupt
        write_leg(model, training, number, end, evaluations)

    monkeypatch.setattr(train, "_write_leg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_agent(training)
    assert training.folder.resume_file.exists()
    monkeypatch.setattr(train, "_write_leg", write_leg)
    resumed = train_agent(training)
    undisturbed = equirl.load_agent(tiny_runs[0] / "equirl-Gridworld-v0.zip")
    assert states_equal(resumed, undisturbed)
    with (
        np.load(training.folder.path / "evaluations.npz") as ours,
        np.load(tiny_runs[0] / "evaluations.npz") as theirs,
    ):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_agent(tiny_train, tiny_yaml, tmp_path):
    command = [sys.executable, "-m", "equirl.agents.train", "--env", "equirl/Gridworld-v0"]
    command += ["--env-kwargs", "goals=corner", "n=4", "--hyperparameters", str(tiny_yaml)]
    command += ["--steps", "4000", "--checkpoints", "20", "--device", "cpu"]
    subprocess.run([*command, "--output", str(tmp_path / "a")], check=True)
    folder = tmp_path / "b" / "dqn" / "equirl-Gridworld-v0_0"
    kills = 0
    while not (folder / "equirl-Gridworld-v0.zip").exists():
        process = subprocess.Popen([*command, "--output", str(tmp_path / "b")])
        seen = set(folder.glob("rl_model_*"))
        while process.poll() is None and (kills >= 3 or set(folder.glob("rl_model_*")) == seen):
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills == 3
    first, second = (
        equirl.load_agent(path)
        for path in sorted(tmp_path.glob("*/dqn/equirl-Gridworld-v0_0/equirl-Gridworld-v0.zip"))
    )
    assert states_equal(first, second)


def test_finished_seeds_are_skipped(tiny_train, tiny_runs, capsys, monkeypatch):
    output = tiny_runs[0].parent.parent
    trainings = plan(dataclasses.replace(tiny_train, seeds=(0, 1), output=output))
    monkeypatch.setattr(train, "train_agent", lambda *_: pytest.fail("trained again"))
    train_all(trainings, jobs=1)
    assert capsys.readouterr().out.count("already trained") == 2


def test_folder_of_another_run_is_refused(tiny_train, tiny_runs):
    output = tiny_runs[0].parent.parent
    other = dataclasses.replace(tiny_train, output=output, steps=300)
    with pytest.raises(FileExistsError, match=r"another run: its args\.yml has n_timesteps = 240"):
        plan(other)
    arguments = yaml.safe_load((tiny_runs[0] / "equirl-Gridworld-v0" / "args.yml").read_text())
    assert arguments["n_timesteps"] == 240


def test_folder_of_other_files_is_refused(tiny_train):
    folder = tiny_train.output / "dqn" / "equirl-Gridworld-v0_0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"it has files, but no args\.yml"):
        plan(tiny_train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "no seeds given"),
        ({"seeds": (1, 1)}, "given twice"),
        ({"seeds": (-1,)}, "seeds must be"),
        ({"experience": -1}, "--experience must be at least 0; got -1"),
        ({"checkpoints": 0}, "--checkpoints must be at least 1"),
        ({"steps": 2}, "too few for 3 checkpoints"),
        ({"env": "CartPole-v9"}, "cannot make CartPole-v9.* is known: Acrobot-v1, CartPole-v1"),
        ({"env_kwargs": ("goals=middle",)}, "goals must be one of"),
        ({"env_kwargs": ("colour=red",)}, "cannot make"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tiny_train, change, message):
    with pytest.raises(ValueError, match=message):
        plan(dataclasses.replace(tiny_train, **change))
    assert not tiny_train.output.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [("policy: MlpPolicy", "policy: MlpPolcy"), ("net_arch: [16]", "net_arch: big")],
)
def test_hyperparameters_that_make_no_dqn_are_refused(tiny_train, tiny_yaml, tmp_path, old, new):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(tiny_yaml.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"no DQN can be made of wrong\.yaml"):
        plan(dataclasses.replace(tiny_train, hyperparameters=wrong))
    assert not tiny_train.output.exists()


def test_no_folder_is_claimed_if_one_is_taken(tiny_train):
    taken = tiny_train.output / "dqn" / "equirl-Gridworld-v0_1"
    taken.mkdir(parents=True)
    (taken / "thesis.tex").touch()
    with pytest.raises(FileExistsError):
        plan(dataclasses.replace(tiny_train, seeds=(0, 1)))
    assert [path.name for path in taken.parent.iterdir()] == [taken.name]


def test_what_a_kill_left_half_written_is_cleared(tiny_train):
    (training,) = plan(tiny_train)
    leftover = training.folder.path / ".unfinished-abc.zip"
    leftover.touch()
    (training.folder.path / "equirl-Gridworld-v0" / "args.yml").unlink()
    (training,) = plan(tiny_train)  # is not taken for another's folder
    train_agent(training)
    assert not leftover.exists()


def test_two_processes_do_not_train_in_one_folder(tiny_train):
    (training,) = plan(tiny_train)
    with (
        FileLock(training.folder.path / ".lock"),
        pytest.raises(ValueError, match="another process is training"),
    ):
        train_agent(training)


def test_checkpoints_hold_the_steps_that_they_name(tiny_runs):
    for steps in (80, 160, 240):
        agent = equirl.load_agent(tiny_runs[0] / f"rl_model_{steps}_steps.zip")
        assert agent.num_timesteps == steps


def test_schedules_are_those_of_the_whole_training(tiny_train, tiny_yaml, tmp_path):
    slow = tmp_path / "slow.yaml"
    slow.write_text(tiny_yaml.read_text() + "  exploration_fraction: 1.0\n")
    (training,) = plan(dataclasses.replace(tiny_train, hyperparameters=slow))
    train_agent(training)
    for steps in (80, 160, 240):  # from 1.0 at the start to 0.05 at the end
        agent = equirl.load_agent(training.folder.checkpoint(steps))
        assert agent.exploration_rate == pytest.approx(1 - 0.95 * steps / 240)


def test_seeds_train_side_by_side(tiny_train):
    trainings = plan(dataclasses.replace(tiny_train, seeds=(0, 1)))
    train_all(trainings, jobs=2)
    assert all(training.folder.final_agent.exists() for training in trainings)


PARTS = [field.name for field in dataclasses.fields(Experience)]


def kept(training):
    """The experience beside each checkpoint, by steps."""
    return {n: Experience.load(training.folder.experience(n)) for n in training.budgets}


def test_no_experience_is_kept_unasked(tiny_runs):
    assert not list(tiny_runs[0].rglob("*.safetensors"))
    arguments = yaml.safe_load((tiny_runs[0] / "equirl-Gridworld-v0" / "args.yml").read_text())
    assert not arguments.get("experience")


@pytest.mark.parametrize(
    ("limit", "lengths"),
    [(1, [1, 1, 1]), (60, [60, 60, 60]), (100, [80, 100, 100]), (1000, [80, 160, 200])],
)
def test_the_newest_experience_is_kept_with_each_checkpoint(tiny_train, limit, lengths):
    """As many as asked, or as there are; the buffer holds 200."""
    (training,) = plan(dataclasses.replace(tiny_train, experience=limit))
    model = train_agent(training)
    names = {path.name for path in training.folder.path.glob("*.safetensors")}
    assert names == {f"rl_model_{n}_steps.safetensors" for n in (80, 160, 240)}
    experiences = kept(training)
    assert [len(experience) for experience in experiences.values()] == lengths
    expected = replay_experience(model, limit)
    for name in PARTS:
        ours, theirs = getattr(experiences[240], name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_experience_goes_on_from_checkpoint_to_checkpoint(tiny_train):
    (training,) = plan(dataclasses.replace(tiny_train, experience=160))
    train_agent(training)
    first, second, third = kept(training).values()
    for name in PARTS:
        assert np.array_equal(getattr(second, name)[:80], getattr(first, name))
        assert np.array_equal(getattr(third, name)[:80], getattr(second, name)[80:])
    assert first.ended[-1] and second.ended[79]  # where a leg ends, the environment is reset
    inside = ~second.ended[:-1]
    follows = (second.next_observations[:-1] == second.observations[1:]).all(axis=1)
    assert follows[inside].all()
    assert inside.mean() > 0.5


def test_keeping_experience_does_not_change_the_agent(tiny_train, tiny_runs):
    (training,) = plan(dataclasses.replace(tiny_train, experience=60))
    model = train_agent(training)
    assert states_equal(model, equirl.load_agent(tiny_runs[0] / "equirl-Gridworld-v0.zip"))


@pytest.mark.parametrize("stop", ["before", "after"])
def test_a_resumed_training_keeps_the_same_experience(tiny_train, tmp_path, monkeypatch, stop):
    """Interrupted before, or after, the second checkpoint's experience was written."""
    whole = dataclasses.replace(tiny_train, experience=150, output=tmp_path / "whole")
    (undisturbed,) = plan(whole)
    train_agent(undisturbed)
    (training,) = plan(dataclasses.replace(whole, output=tmp_path / "interrupted"))
    save = Experience.save

    def interrupted(experience, path):
        if "160" in path.name:
            if stop == "after":
                save(experience, path)
            raise KeyboardInterrupt
        save(experience, path)

    monkeypatch.setattr(Experience, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_agent(training)
    monkeypatch.setattr(Experience, "save", save)
    assert training.folder.experience(160).exists() == (stop == "after")
    train_agent(training)
    for steps in training.budgets:
        ours, theirs = (t.folder.experience(steps).read_bytes() for t in (training, undisturbed))
        assert ours == theirs


def test_a_folder_that_keeps_other_experience_is_refused(tiny_train):
    (training,) = plan(dataclasses.replace(tiny_train, experience=60))
    train_agent(training)
    with pytest.raises(FileExistsError, match=r"args\.yml has experience = 60, this one 70"):
        plan(dataclasses.replace(tiny_train, experience=70))
