"""A study ends with the same files however it is run: interrupted, killed, on a cluster."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import joblib
import pandas as pd
import pytest
from distributed import LocalCluster
from joblib.externals.loky import get_reusable_executor

import equirl
from equirl.agents import evaluation, selection, study, train
from equirl.agents.definition import DEFAULT_FILE, read_units
from equirl.agents.evaluation import CONDITIONS
from equirl.agents.policies import MAKERS, ROLLOUT_SEED
from equirl.agents.study import CHOICE_COLUMNS, COLUMNS, EVALUATION_SEED, Study
from equirl.agents.train import EVALUATION_SEED as TRAINING_EVALUATION_SEED

# The error is that large so that the races choose other policies than plain. CartPole's returns
# and the differences in selection.csv tell agents apart, however little they have learned.
DEFINITION = """
environments:
  pole:
    env: short_fits:CartPole-v1
    env_kwargs: {max_episode_steps: 20}
    scale: [0, 20]
  images:
    env: short_fits:equirl/Gridworld-v0
    env_kwargs: {n: 4, observation: image, max_episode_steps: 8}
    scale: [-8, 0]
settings: {tiny: tiny.yaml}
panels:
  test: {seeds: [0, 1], checkpoints: 2}
  validation: {seeds: [7], checkpoints: 1}
  long: {seeds: [0, 1, 2, 3, 4, 5, 6, 7], checkpoints: 2}
episodes: 3
transitions: 60
candidates: [plain, equitune, lambda]
race: {rounds: 2, episodes: 5, error: 0.5}
"""

# Every process that makes the environment imports this, and has short fits from then on.
SHORT_FITS = """
import functools
import equirl

for name in dir(equirl):
    if name.startswith("fit_"):
        setattr(equirl, name, functools.partial(getattr(equirl, name), steps=5))
"""

# Forks a process for each command line, which spares it the imports, and tells its id and status.
FORKS = """
import json, os, sys
import torch._dynamo
import short_fits
from equirl.agents import study

study.write_panel = lambda folder: []
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        try:
            sys.argv = ["study", *json.loads(line)]
            study.run(study.main, study.Study)
            status = 0
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def arguments_in(folder, definition, **changes):
    """Arguments of a study of some seconds, whose files are in a folder."""
    arguments = Study(definition=definition, output=folder / "out", runs=folder / "runs", jobs=1)
    return dataclasses.replace(arguments, **changes)


def command_line(arguments):
    options = dataclasses.asdict(arguments).items()
    return [text for k, v in options if v is not None for text in (f"--{k}", str(v))]


def results(arguments):
    """What must be the same, to the byte."""
    return {n: (arguments.output / n).read_bytes() for n in ("returns.csv", "selection.csv")}


@contextlib.contextmanager
def short_fits(folder):
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.syspath_prepend(folder)
        for name in dir(equirl):
            if name.startswith("fit_"):
                patch.setattr(equirl, name, getattr(equirl, name))  # to be restored
        try:
            importlib.import_module("short_fits")
            yield
        finally:
            sys.modules.pop("short_fits", None)


@pytest.fixture(scope="session")
def definition(tiny_yaml, tmp_path_factory):
    folder = tmp_path_factory.mktemp("definition")
    tiny = tiny_yaml.read_text()
    (folder / "tiny.yaml").write_text(tiny + tiny.replace("equirl/Gridworld-v0", "CartPole-v1"))
    (folder / "study.yaml").write_text(DEFINITION)
    (folder / "short_fits.py").write_text(SHORT_FITS)
    return folder / "study.yaml"


@pytest.fixture(scope="session")
def undisturbed(definition, tmp_path_factory):
    """Arguments of a study that has been run, and is not to be changed."""
    arguments = arguments_in(tmp_path_factory.mktemp("undisturbed"), definition)
    with short_fits(definition.parent):
        study.main(arguments)
    return arguments


@pytest.fixture
def short(definition):
    with short_fits(definition.parent):
        yield


@pytest.fixture
def tiny_study(short, definition, tmp_path, monkeypatch):
    """Arguments of a study that has not begun; no figures are drawn."""
    monkeypatch.setattr(study, "write_panel", lambda folder: [])
    return arguments_in(tmp_path, definition)


@pytest.fixture
def copied_study(undisturbed, tiny_study):
    """Arguments of a finished study that may be changed."""
    shutil.copytree(undisturbed.runs, tiny_study.runs)
    return tiny_study


@pytest.fixture
def units(copied_study):
    return read_units(copied_study.definition, copied_study.panel, copied_study.runs)


@pytest.fixture
def fresh_workers():
    """Workers that know this test's environment, and are gone after it."""
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


class Forks:
    """Runs studies in processes of their own."""

    def __init__(self, folder, environment):
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def start(self, arguments):
        print(json.dumps(command_line(arguments)), file=self.process.stdin, flush=True)
        return int(self._answer())

    def status(self):
        return int(self._answer())

    def _answer(self):
        while not (line := self.process.stdout.readline().strip()).lstrip("-").isdigit():
            assert line, f"the process died, see {self.log.name}"  # else a print of the study
        return line

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def forks(definition, tmp_path_factory):
    with short_fits(definition.parent):
        environment = dict(os.environ)
    forks = Forks(tmp_path_factory.mktemp("forks"), environment)
    yield forks
    forks.close()


class Processes:
    """Like `Forks`, but each is begun from nothing, as a user does."""

    def __init__(self, environment):
        self.environment = environment

    def start(self, arguments):
        code = FORKS.partition("for line in")[0] + "study.run(study.main, study.Study)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *command_line(arguments)],
            env=self.environment,
            start_new_session=True,
        )
        return self.process.pid

    def status(self):
        return self.process.wait()


@pytest.fixture
def processes(definition):
    with short_fits(definition.parent):
        return Processes(dict(os.environ))


def wait_for_progress(folder, count, pid):
    """Wait until so many files of trainings and evaluations have changed, or the process ended."""
    seen = None
    while count > 0 and is_running(pid):
        state = set()
        for path in folder.glob("*/*/dqn/*/[!.]*.*"):
            with contextlib.suppress(FileNotFoundError):
                state.add((path, path.stat().st_mtime_ns))
        if seen is None:
            seen = state
        count -= len(state - seen)
        seen |= state
        time.sleep(0.005)


def is_running(pid):
    """Whether there is such a process that is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def session(pid):
    """Processes that a process has started, and itself."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == pid and is_running(name):
                found.append(int(name))
    return found


def wait_until_none(pid, seconds):
    end = time.monotonic() + seconds
    while (left := session(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left, f"workers {left} outlived the study by {seconds} s"


def test_a_row_for_each_policy_and_condition(undisturbed):
    table = pd.read_csv(undisturbed.output / "returns.csv")
    assert list(table.columns) == COLUMNS
    keys = COLUMNS[:-2]
    assert set(table[keys].itertuples(index=False, name=None)) == {
        (env, "tiny", seed, budget, policy, condition)
        for env in ("pole", "images")
        for seed in (0, 1)
        for budget in (120, 240)
        for policy in [*MAKERS, "selected"]
        for condition in CONDITIONS
    }
    assert not table.duplicated(keys).any()
    assert (table.n_episodes == 3).all()
    assert table[table.env == "pole"].mean_return.between(1, 20).all()
    assert table[table.env == "images"].mean_return.between(-8, 0).all()
    assert table.mean_return.nunique() > 5


def test_selected_is_the_policy_that_was_chosen(undisturbed):
    table = pd.read_csv(undisturbed.output / "returns.csv")
    choices = pd.read_csv(undisturbed.output / "selection.csv")
    keys = ["env", "setting", "seed", "budget", "condition"]
    assert list(choices.columns) == keys + CHOICE_COLUMNS
    assert len(choices) == 2 * 2 * 2 * 2
    means = table.set_index([*keys, "policy"]).mean_return
    for choice in choices.itertuples():
        key = tuple(getattr(choice, name) for name in keys)
        assert means[(*key, "selected")] == means[(*key, choice.chosen)]
        assert choice.low <= choice.difference <= choice.high
        assert 15 <= choice.spent <= 3 * 2 * 5  # all candidates play the first round
        if choice.chosen == "plain":
            assert choice.difference == 0
        else:
            assert choice.difference > 0
    assert choices.chosen.nunique() > 1 and choices.difference.nunique() > 2


def test_tables_figures_and_definition_are_written(undisturbed):
    names = {path.name for path in undisturbed.output.iterdir()}
    assert names >= {"returns.csv", "selection.csv", "seconds.csv", "study.yaml", "table.md"}
    assert "figure2.png" in names
    assert (undisturbed.output / "study.yaml").read_text() == DEFINITION


def seeds_of_an_evaluation(first, episodes):
    return set(range(first, first + min(episodes, evaluation.SIDE_BY_SIDE)))


def test_seeds_of_the_reported_episodes_are_used_for_nothing_else(tmp_path):
    units = [
        unit
        for panel in ("test", "validation")
        for unit in read_units(DEFAULT_FILE, panel, tmp_path / panel)
    ]
    race, episodes = units[0].evaluation.race, units[0].evaluation.episodes
    reported = seeds_of_an_evaluation(EVALUATION_SEED, episodes)
    selecting = set()
    for number in range(race.rounds):
        first = selection.SELECTION_SEED + number * race.episodes
        selecting |= seeds_of_an_evaluation(first, race.episodes)
    training, evaluating = set(), set()
    for unit in units:
        seed = unit.training.seed
        training |= {seed, *(train.derived_seed(seed, leg) for leg in range(5))}
        evaluating.add(TRAINING_EVALUATION_SEED + seed)
    rollouts = seeds_of_an_evaluation(ROLLOUT_SEED, evaluation.SIDE_BY_SIDE)
    comparing = seeds_of_an_evaluation(evaluation.FIRST_SEED, evaluation.SIDE_BY_SIDE)
    groups = [reported, selecting, training, evaluating, rollouts, comparing]
    assert sum(map(len, groups)) == len(set.union(*groups))
    # and whatever the definition says, as long as it is sane
    assert 1_000_000 == TRAINING_EVALUATION_SEED < evaluation.FIRST_SEED < ROLLOUT_SEED
    assert ROLLOUT_SEED < EVALUATION_SEED < selection.SELECTION_SEED


def test_rerun_skips_everything_and_writes_the_same(copied_study, undisturbed, monkeypatch):
    for name in ("train_agent", "evaluate_checkpoint"):
        monkeypatch.setattr(study, name, lambda *_: pytest.fail("done again"))
    study.main(copied_study)
    assert results(copied_study) == results(undisturbed)


def test_one_checkpoint_is_evaluated_again_if_its_part_is_gone(
    copied_study, undisturbed, units, monkeypatch
):
    evaluate, called = study.evaluate_checkpoint, []

    def counted(unit, budget):
        called.append((str(unit), budget))
        return evaluate(unit, budget)

    units[1].part(240).unlink()
    monkeypatch.setattr(study, "train_agent", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(study, "evaluate_checkpoint", counted)
    study.main(copied_study)
    assert called == [(str(units[1]), 240)]
    assert results(copied_study) == results(undisturbed)


def test_another_panel_goes_into_the_same_folders(copied_study):
    before = set(copied_study.runs.rglob("*.csv"))
    study.main(dataclasses.replace(copied_study, panel="validation"))
    table = pd.read_csv(copied_study.output / "returns.csv")
    assert set(table.seed) == {7} and set(table.budget) == {240}
    assert before < set(copied_study.runs.rglob("*.csv"))


def test_two_processes_write_the_same(tiny_study, undisturbed, fresh_workers):
    study.main(dataclasses.replace(tiny_study, jobs=2))
    assert results(tiny_study) == results(undisturbed)


def test_two_threads_write_the_same(tiny_study, undisturbed):
    study.main(dataclasses.replace(tiny_study, jobs=2, backend="threading"))
    assert results(tiny_study) == results(undisturbed)


def test_cluster_writes_the_same(tiny_study, undisturbed):
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        study.main(dataclasses.replace(tiny_study, backend="dask", address=address))
    assert results(tiny_study) == results(undisturbed)


@pytest.mark.slow
def test_cluster_of_threads_writes_the_same(tiny_study, undisturbed):
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        study.main(dataclasses.replace(tiny_study, backend="dask", address=address))
    assert results(tiny_study) == results(undisturbed)


@pytest.mark.slow
def test_dask_without_address_makes_a_cluster(tiny_study, undisturbed):
    study.main(dataclasses.replace(tiny_study, backend="dask"))
    assert results(tiny_study) == results(undisturbed)


def kill_and_finish(start_from, arguments, undisturbed, kills, most_changes, seed):
    """Kill a study at random moments, and let it finish."""
    rng = random.Random(seed)
    for _ in range(kills):
        pid = start_from.start(arguments)
        wait_for_progress(arguments.runs, rng.randint(1, most_changes), pid)
        time.sleep(rng.uniform(0, 0.3))
        assert is_running(pid), "finished before it could be killed"
        os.kill(pid, signal.SIGKILL)
        assert start_from.status() == -signal.SIGKILL
        wait_until_none(pid, seconds=10)
    pid = start_from.start(arguments)
    assert start_from.status() == 0
    wait_until_none(pid, seconds=10)
    assert results(arguments) == results(undisturbed)
    found = {p.relative_to(arguments.runs) for p in arguments.runs.rglob("rl_model_*.csv")}
    assert found == {
        p.relative_to(undisturbed.runs) for p in undisturbed.runs.rglob("rl_model_*.csv")
    }
    assert not [*arguments.runs.rglob(".unfinished-*"), *arguments.runs.rglob("error.log")]
    assert not [*arguments.runs.rglob("resume.safetensors")]


def test_killed_study_ends_with_the_same(forks, tiny_study, undisturbed):
    arguments = dataclasses.replace(tiny_study, jobs=2, backend="multiprocessing")
    kill_and_finish(forks, arguments, undisturbed, kills=3, most_changes=12, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_study_killed_ten_times_ends_with_the_same(processes, tiny_study, tmp_path, seed):
    undisturbed = arguments_in(tmp_path / "undisturbed", tiny_study.definition, panel="long")
    study.main(undisturbed)
    arguments = dataclasses.replace(tiny_study, panel="long", jobs=2)
    kill_and_finish(processes, arguments, undisturbed, kills=10, most_changes=12, seed=seed)


def interrupt_and_finish(start_from, arguments, undisturbed):
    """Send Ctrl-C as a terminal does, to all of its processes, and let it go on."""
    pid = start_from.start(arguments)
    wait_for_progress(arguments.runs, 30, pid)
    os.killpg(pid, signal.SIGINT)
    assert start_from.status() == 130
    wait_until_none(pid, seconds=10)
    assert not (arguments.output / "returns.csv").exists()
    started = [*arguments.runs.rglob("*.monitor.csv")]
    assert started
    pid = start_from.start(arguments)
    assert start_from.status() == 0
    assert results(arguments) == results(undisturbed)


def test_interrupted_study_goes_on(forks, tiny_study, undisturbed):
    interrupt_and_finish(forks, tiny_study, undisturbed)


@pytest.mark.slow
def test_interrupted_study_of_two_processes_goes_on(processes, tiny_study, undisturbed):
    interrupt_and_finish(processes, dataclasses.replace(tiny_study, jobs=2), undisturbed)


def test_what_a_kill_left_half_written_is_cleared(copied_study, units):
    units[0].part(240).unlink()
    leftover = units[0].training.folder.path / ".unfinished-abc.csv"
    leftover.touch()
    study.main(copied_study)
    assert not leftover.exists()


def test_failed_unit_is_reported_and_the_others_finish(copied_study, undisturbed, units, capsys):
    broken, other = units[0], units[-1]
    for unit in (broken, other):
        unit.part(240).unlink()
    archive = broken.training.folder.checkpoint(240)
    content = archive.read_bytes()
    archive.write_bytes(content[:100])

    with pytest.raises(ValueError, match=rf"1 of 4 units failed[^$]*error\.log[^$]*{broken}: "):
        study.main(copied_study)
    assert f"failed: {broken}: " in capsys.readouterr().out
    assert "Traceback" in broken.error_log.read_text()
    assert "evaluate_checkpoint" in broken.error_log.read_text()
    assert not broken.part(240).exists()
    assert other.part(240).exists() and not other.error_log.exists()
    table = pd.read_csv(copied_study.output / "returns.csv")
    assert len(table) == 3 / 4 * len(pd.read_csv(undisturbed.output / "returns.csv"))

    archive.write_bytes(content)
    study.main(copied_study)
    assert not broken.error_log.exists()
    assert results(copied_study) == results(undisturbed)


def test_study_whose_units_all_fail_names_them(copied_study, units, monkeypatch):
    for unit in units:
        unit.part(240).unlink()

    def fail(unit, budget):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(study, "evaluate_checkpoint", fail)
    with pytest.raises(ValueError, match="4 of 4 units failed") as error:
        study.main(copied_study)
    assert all(f"{unit}: RuntimeError: no such luck" in str(error.value) for unit in units)


def test_training_that_fails_is_reported_by_its_exit_status(forks, copied_study, units):
    """In a process of its own, with workers."""
    folder = units[0].training.folder
    folder.final_agent.unlink()
    folder.resume_file.write_bytes(b"not what it was")
    for part in units[0].parts:
        part.unlink()
    forks.start(dataclasses.replace(copied_study, jobs=2, backend="multiprocessing"))
    assert forks.status() == 2
    assert "Traceback" in units[0].error_log.read_text()
    with open(forks.log.name) as log:
        assert f"{units[0]}: " in log.read().rpartition("error: ")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panel": "final"}, "no panel 'final'; it has test, validation"),
        ({"backend": "slurm"}, "joblib has no backend 'slurm'; it has .*loky.*dask"),
        ({"address": "tcp://head:8786"}, "--address is for dask and ray; loky has none"),
        ({"jobs": 0}, "--jobs must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_training(tiny_study, change, message, monkeypatch):
    monkeypatch.setattr(study, "run_units", lambda *_: pytest.fail("began"))
    with pytest.raises(ValueError, match=message):
        study.main(dataclasses.replace(tiny_study, **change))
    assert not tiny_study.runs.exists()


def test_missing_cluster_package_is_named(tiny_study, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--backend ray needs ray: pip install ray"):
        study.main(dataclasses.replace(tiny_study, backend="ray"))


def test_address_where_no_cluster_is_ends_with_an_error(forks, tiny_study):
    """After a while; dask waits for it."""
    wrong = dataclasses.replace(tiny_study, backend="dask", address="tcp:/nowhere")
    forks.start(wrong)
    assert forks.status() == 2
    assert not [*tiny_study.runs.rglob("*.monitor.csv")]


def test_output_that_is_a_file_is_refused_before_training(tiny_study, monkeypatch):
    monkeypatch.setattr(study, "run_units", lambda *_: pytest.fail("began"))
    tiny_study.output.touch()
    with pytest.raises(ValueError, match="out is a file, not a folder"):
        study.main(tiny_study)
    assert not tiny_study.runs.exists()


def test_every_backend_of_joblib_is_known():
    for backend in joblib.parallel.BACKENDS:
        study.check_backend(backend, None)
