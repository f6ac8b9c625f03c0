"""What a study consists of, and which definitions are none."""

import dataclasses

import pytest
import yaml

from equirl.agents import definition
from equirl.agents.definition import DEFAULT_FILE, POLICIES, STUDY_SEED, read_units
from equirl.agents.evaluation import Protocol
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.agents.policies import MAKERS
from equirl.agents.selection import Race

DEFINITION = {
    "environments": {
        "corner": {
            "env": "equirl/Gridworld-v0",
            "env_kwargs": {"n": 4, "goals": "corner"},
            "scale": [-50, 0],
        },
        "anywhere": {"env": "equirl/Gridworld-v0", "env_kwargs": {"n": 4}, "scale": [-50, 0]},
    },
    "settings": {"tiny": "tiny.yaml", "longer": "longer.yaml"},
    "panels": {
        "test": {"seeds": [0, 1], "checkpoints": 2},
        "validation": {"seeds": [7], "checkpoints": 3},
    },
    "episodes": 3,
    "transitions": 60,
    "candidates": ["plain", "equizero"],
    "race": {"rounds": 2, "episodes": 5},
}

GRIDWORLD = DEFINITION["environments"]["corner"]


@pytest.fixture
def write(tiny_yaml, tmp_path):
    """Writes a definition with some keys changed, or without them if they are None."""
    tiny = tiny_yaml.read_text()
    (tmp_path / "tiny.yaml").write_text(tiny)
    (tmp_path / "longer.yaml").write_text(tiny.replace("n_timesteps: 120", "n_timesteps: 300"))

    def write(**changes):
        document = {k: v for k, v in {**DEFINITION, **changes}.items() if v is not None}
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return file

    return write


def test_units_are_all_combinations_the_longest_first(write, tmp_path):
    units = read_units(write(), "test", tmp_path / "runs")
    assert [(u.setting, u.env, u.training.seed) for u in units] == [
        (setting, env, seed)
        for setting in ("longer", "tiny")
        for env in ("corner", "anywhere")
        for seed in (0, 1)
    ]
    assert [u.training.steps for u in units] == [300] * 4 + [120] * 4
    assert str(units[0]) == "corner, longer, seed 0"


def test_units_play_what_the_definition_says(write, tmp_path):
    (unit, *_) = read_units(write(), "test", tmp_path / "runs")
    assert unit.protocol == PROTOCOL
    (unit, *_) = read_units(write(policies=["plain", "equizero"]), "test", tmp_path / "runs")
    assert unit.protocol == dataclasses.replace(PROTOCOL, policies=("plain", "equizero"))


def test_units_have_folders_and_parts_of_their_own(write, tmp_path):
    units = read_units(write(), "test", tmp_path / "runs")
    assert len({u.training.folder.path for u in units}) == 8
    folder = tmp_path / "runs" / "longer" / "corner" / "dqn" / "equirl-Gridworld-v0_0"
    assert units[0].training.folder.path == folder
    names = [path.name for path in units[0].parts]
    assert [name.split(".")[0] for name in names] == ["rl_model_150_steps", "rl_model_300_steps"]
    assert {part.parent for part in units[0].parts} == {folder}
    assert units[0].error_log == folder / "error.log"
    assert (folder / "equirl-Gridworld-v0" / "args.yml").exists()


def test_relative_folder_of_runs_does_not_depend_on_where_workers_are(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unit = read_units(write(), "test", tmp_path.relative_to(tmp_path) / "runs")[0]
    assert unit.training.folder.path.is_relative_to(tmp_path / "runs")


def test_panel_has_its_seeds_and_budgets(write, tmp_path):
    units = read_units(write(), "validation", tmp_path / "runs")
    assert {u.training.seed for u in units} == {7}
    assert units[0].training.budgets == [100, 200, 300]
    assert units[-1].training.budgets == [40, 80, 120]
    assert len({part for u in units for part in u.parts}) == 4 * 3


def test_training_keeps_experience_and_runs_on_the_cpu(write, tmp_path):
    training = read_units(write(), "test", tmp_path / "runs")[0].training
    assert (training.arguments.experience, training.arguments.device) == (60, "cpu")
    assert training.env_kwargs == {"n": 4, "goals": "corner"}


@pytest.mark.parametrize("value", ["a: b", "3", "", None, 1e-5, True, [1, "2"], {"a": 1}])
def test_arguments_of_environments_arrive_as_they_are(write, tmp_path, value, monkeypatch):
    seen = []
    monkeypatch.setattr(definition, "plan", lambda arguments: seen.append(arguments) or [])
    entry = {**GRIDWORLD, "env_kwargs": {"x": value}}
    read_units(write(environments={"e": entry}), "test", tmp_path / "runs")
    assert [parse_env_kwargs(arguments.env_kwargs) for arguments in seen] == [{"x": value}] * 2


PROTOCOL = Protocol(POLICIES, 3, STUDY_SEED, 60, Race(2, 5), ("plain", "equizero"))


@pytest.fixture
def parts(write, tmp_path):
    """The names of what is evaluated in the first unit of a definition."""

    def parts(panel="test", folder="runs", **changes):
        unit = read_units(write(**changes), panel, tmp_path / folder)[0]
        return [part.name for part in unit.parts]

    return parts


@pytest.mark.parametrize(
    "change",
    [
        {"episodes": 4},
        {"transitions": 61},
        {"candidates": ["plain", "equitune"]},
        {"candidates": ["plain"]},
        {"policies": ["plain", "equizero"]},
        {"race": {"rounds": 3, "episodes": 5}},
        {"race": {"rounds": 2, "episodes": 6}},
        {"race": {"rounds": 2, "episodes": 5, "error": 0.1}},
    ],
    ids=str,
)
def test_evaluations_have_other_names_when_something_else_is_played(parts, change):
    assert not set(parts(folder="other", **change)) & set(parts())


def test_evaluations_keep_their_names_when_the_same_is_played(parts, monkeypatch):
    """Also when there is another policy, which plays where a definition names it."""
    before = parts()
    monkeypatch.setitem(MAKERS, "another", MAKERS["plain"])
    race = {"episodes": 5, "error": 0.05, "rounds": 2}  # what is left out above is the default
    assert parts(race=race) == parts(policies=list(POLICIES)) == before
    assert parts(settings={"longer": "longer.yaml"}) == before
    assert parts(policies=[*POLICIES, "another"]) != before


def test_default_definition_is_one(tmp_path):
    units = read_units(DEFAULT_FILE, "validation", tmp_path / "runs")
    assert len(units) == 2 * 6 * 2
    assert len(read_units(DEFAULT_FILE, "test", tmp_path / "runs")) == 2 * 6 * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({key: None}, rf"study\.yaml is no definition of a study.*{key}") for key in DEFINITION),
        ({"candidates": ["plain", "equizer"]}, "candidates are plain and others of .*equizer"),
        ({"candidates": ["equizero"]}, "candidates are plain and others of"),
        ({"candidates": ["plain", "plain"]}, "candidates are plain and others of"),
        ({"policies": ["plain", "equizer"]}, "policies are plain and others of .*equizer"),
        ({"policies": ["equizero"], "candidates": ["equizero"]}, "policies are plain and others"),
        ({"policies": ["plain", "lambda"]}, "candidates are plain and others of plain, lambda, "),
        ({"race": {"rounds": 0}}, "at least one round"),
        ({"race": {"round": 2}}, "race has an unknown round; known are rounds"),
        ({"episodes": 0}, "episodes must be at least 1; got 0"),
        ({"episodes": "many"}, "episodes must be a whole number; got 'many'"),
        ({"transitions": 9}, "transitions must be at least 10"),
        ({"environments": {"e": {"scale": [0, 1]}}}, "no definition of a study.*env"),
        (
            {"environments": {"e": {**GRIDWORLD, "env": "Nowhere-v0"}}},
            "no symmetry is registered for 'Nowhere-v0'",
        ),
        ({"environments": {"e": {**GRIDWORLD, "env_kwargs": [4]}}}, "no definition of a study"),
        ({"environments": {"e": {"env": "equirl/Gridworld-v0"}}}, "scale"),
        ({"environments": {"e": {**GRIDWORLD, "scale": [0, -50]}}}, "scale"),
        ({"environments": ["CartPole-v1"]}, "no definition of a study"),
        ({"settings": "tiny.yaml"}, "no definition of a study"),
        ({"panels": {"test": {"seeds": [0]}}}, "no definition of a study.*checkpoints"),
        ({"panels": {"test": {"seeds": [], "checkpoints": 1}}}, "seeds must be a list"),
        ({"panels": {"test": {"seeds": [0, 0], "checkpoints": 1}}}, "--seeds has 0 more than once"),
        ({"panels": {"test": {"seeds": 3, "checkpoints": 1}}}, "seeds must be a list, as in"),
        ({"panels": {"test": {"seeds": ["a"], "checkpoints": 1}}}, "a seed must be a whole number"),
        ({"panels": {"test": {"seeds": [0], "checkpoints": "a"}}}, "checkpoints must be a whole"),
        ({"panels": {"test": {"seeds": [0], "checkpoints": 999}}}, "too few for 999 checkpoints"),
        ({"panels": {"test": {"seed": [0], "checkpoints": 1}}}, "unknown panels: test: seed;"),
        ({"episode": 3}, "unknown episode; known are .*episodes"),
        ({"panels": {"final": {"seeds": [0], "checkpoints": 1}}}, "no panel 'test'; it has final"),
    ],
)
def test_wrong_definition_is_refused(write, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_units(write(**changes), "test", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_environment_without_symmetry_is_refused(write, tmp_path):
    lake = {"env": "FrozenLake-v1", "scale": [0, 1]}
    for name in ("tiny.yaml", "longer.yaml"):
        with (tmp_path / name).open("a") as file:
            file.write("FrozenLake-v1: {n_timesteps: 240, policy: MlpPolicy}\n")
    with pytest.raises(ValueError, match="no symmetry is registered for 'FrozenLake-v1'"):
        read_units(write(environments={"lake": lake}), "test", tmp_path / "runs")


@pytest.mark.parametrize("text", ["", "[]", "a: [", "test"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"study\.yaml is (no definition|not readable as YAML)"):
        read_units(file, "test", tmp_path / "runs")


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no definition of a study at .*nowhere"):
        read_units(tmp_path / "nowhere.yaml", "test", tmp_path / "runs")
    with pytest.raises(FileNotFoundError, match=r"no hyperparameters at .*other\.yaml"):
        read_units(write(settings={"other": "other.yaml"}), "test", tmp_path / "runs")


def test_folder_of_other_files_is_refused(write, tmp_path):
    runs = tmp_path / "runs"
    taken = runs / "longer" / "anywhere" / "dqn" / "equirl-Gridworld-v0_1"
    taken.mkdir(parents=True)
    (taken / "thesis.tex").touch()
    with pytest.raises(FileExistsError):
        read_units(write(), "test", runs)
    assert [path.name for path in taken.iterdir()] == ["thesis.tex"]
