"""A study ends with the same files however it is run: interrupted, killed, on a cluster."""

import dataclasses
import random
import shutil

import pandas as pd
import pytest
import yaml
from filelock import FileLock

import equirl
from equicore.lab.jobs import Workers
from equicore.lab.store import remembered
from equirl import seeds
from equirl.agents import study, train
from equirl.agents.definition import DEFAULT_FILE, POLICIES, read_units
from equirl.agents.evaluation import CONDITIONS, RULES
from equirl.agents.panel import read_panel
from equirl.agents.policies import MAKERS
from equirl.agents.study import CHOICE_COLUMNS, COLUMNS, Study

# The error is that large so that the races choose other policies than plain. CartPole's returns
# and the differences in selection.csv tell agents apart, however little they have learned.
DEFINITION = """
environments:
  pole:
    env: gate:CartPole-v1
    env_kwargs: {max_episode_steps: 40}
    scale: [0, 40]
  images:
    env: gate:equirl/Gridworld-v0
    env_kwargs: {n: 3, observation: image, max_episode_steps: 8}
    scale: [-8, 0]
settings: {tiny: tiny.yaml}
panels:
  test: {seeds: [1], checkpoints: 2}
  validation: {seeds: [7], checkpoints: 1}
  two: {seeds: [1, 0], checkpoints: 1}
  long: {seeds: [0, 1, 2, 3, 4], checkpoints: 2}
policies: [plain, equitune, lambda, lambda_td]
episodes: 3
transitions: 60
candidates: [plain, equitune, lambda]
race: {rounds: 2, episodes: 5, error: 0.5}
"""
PLAYED = ("plain", "equitune", "lambda", "lambda_td")


@pytest.fixture(scope="session")
def definition(tiny_yaml, gate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("definition")
    tiny = tiny_yaml.read_text()
    (folder / "tiny.yaml").write_text(tiny + tiny.replace("equirl/Gridworld-v0", "CartPole-v1"))
    (folder / "study.yaml").write_text(DEFINITION)
    return folder / "study.yaml"


def arguments_in(folder, definition, **changes):
    """Arguments of a study of some seconds, whose files are in a folder."""
    arguments = Study(definition=definition, output=folder / "out", runs=folder / "runs", jobs=1)
    return dataclasses.replace(arguments, **changes)


@pytest.fixture(scope="session")
def undisturbed(definition, short_fits, tmp_path_factory):
    """Arguments of a study that has been run, and is not to be changed."""
    return run_undisturbed(definition, short_fits, tmp_path_factory.mktemp("undisturbed"))


def run_undisturbed(definition, short_fits, folder, **changes):
    arguments = arguments_in(folder, definition, **changes)
    with short_fits(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "write_panel", lambda folder: [folder / "table.md"])
        study.main(arguments)
    return arguments


@pytest.fixture
def tiny_study(fits, definition, tmp_path, monkeypatch):
    """Arguments of a study that has not begun; no figures are drawn."""
    monkeypatch.setattr(study, "write_panel", lambda folder: [folder / "table.md"])
    return arguments_in(tmp_path, definition)


@pytest.fixture
def copied_study(undisturbed, tiny_study):
    """Arguments of a finished study that may be changed."""
    shutil.copytree(undisturbed.runs, tiny_study.runs)
    return tiny_study


def units_of(arguments):
    return read_units(arguments.definition, arguments.panel, arguments.runs)


@pytest.fixture
def units(copied_study):
    return units_of(copied_study)


def command_line(arguments):
    options = dataclasses.asdict(arguments).items()
    return ["study", *(word for k, v in options if v is not None for word in (f"--{k}", v))]


def results(arguments):
    """What must be the same, to the byte."""
    return {n: (arguments.output / n).read_bytes() for n in ("returns.csv", "selection.csv")}


def check_finished(arguments, undisturbed):
    """The study has the same results as one that was left alone, and leaves nothing else."""
    assert results(arguments) == results(undisturbed)
    found, expected = (
        {p.relative_to(a.runs): p.read_text() for p in a.runs.rglob("rl_model_*.csv")}
        for a in (arguments, undisturbed)
    )
    assert found == expected
    for name in (".unfinished-*", "error.log", "resume.safetensors"):
        assert not [*arguments.runs.rglob(name), *arguments.output.rglob(name)]


def test_a_row_for_each_policy_and_condition(undisturbed):
    table = pd.read_csv(undisturbed.output / "returns.csv")
    assert list(table.columns) == COLUMNS
    assert list(table[COLUMNS[:-2]].itertuples(index=False, name=None)) == [
        (env, "tiny", 1, budget, policy, condition)
        for env in ("images", "pole")
        for budget in (60, 120)
        for condition in CONDITIONS
        for policy in (*PLAYED, "selected")
    ]
    assert (table.n_episodes == 3).all()
    assert table[table.env == "pole"].mean_return.between(1, 40).all()
    assert table[table.env == "images"].mean_return.between(-8, 0).all()
    assert table.mean_return.nunique() > 3


def test_selected_is_the_policy_that_was_chosen(undisturbed):
    table = pd.read_csv(undisturbed.output / "returns.csv")
    choices = pd.read_csv(undisturbed.output / "selection.csv")
    keys = ["env", "setting", "seed", "budget", "condition"]
    assert list(choices.columns) == keys + CHOICE_COLUMNS
    assert len(choices) == 2 * 2 * 2
    means = table.set_index([*keys, "policy"]).mean_return
    for choice in choices.itertuples():
        key = tuple(getattr(choice, name) for name in keys)
        assert means[(*key, "selected")] == means[(*key, choice.chosen)]
        assert choice.low <= choice.difference <= choice.high
        assert 15 <= choice.spent <= 3 * 2 * 5  # all candidates play the first round
        assert choice.difference > 0 or choice.chosen == "plain"
    assert choices.chosen.nunique() > 1 and choices.difference.nunique() > 2


def test_a_study_keeps_its_definition_settings_and_times(undisturbed):
    assert (undisturbed.output / "study.yaml").read_text() == DEFINITION
    assert yaml.safe_load((undisturbed.output / "settings.yml").read_text()) == {
        "panel": "test",
        "definition": yaml.safe_load(DEFINITION),
        "rules": RULES,
    }
    command = (undisturbed.output / "command.txt").read_text()
    assert command == f"equirl study --definition study.yaml\nequirl {equirl.__version__}\n"
    seconds = pd.read_csv(undisturbed.output / "seconds.csv")
    assert list(seconds.env) == ["images", "pole"]
    assert (seconds.seconds > 0).all()


def test_a_study_is_a_panel(undisturbed):
    panel = read_panel(undisturbed.output)
    assert list(panel.env.unique()) == ["pole", "images"]
    assert panel.score.between(0, 1).all()


def test_main_says_how_much_there_is_and_what_it_has_written(copied_study, capsys):
    study.main(copied_study)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 units; agents in ")
    assert printed[-1] == str(copied_study.output / "table.md")


def seeds_of_an_evaluation(first, episodes):
    return set(range(first, first + episodes))


def test_seeds_of_the_reported_episodes_are_used_for_nothing_else(tmp_path):
    units = [
        unit
        for panel in ("test", "validation")
        for unit in read_units(DEFAULT_FILE, panel, tmp_path / panel)
    ]
    protocol = units[0].protocol
    race = protocol.race
    assert protocol.seed == seeds.STUDY_SEED
    reported = seeds_of_an_evaluation(protocol.seed, protocol.episodes)
    selecting = set()
    for number in range(race.rounds):
        first = seeds.SELECTION_SEED + number * race.episodes
        selecting |= seeds_of_an_evaluation(first, race.episodes)
    training, evaluating = set(), set()
    for unit in units:
        seed = unit.training.seed
        training |= {seed, *(train.derived_seed(seed, leg) for leg in range(5))}
        evaluating.add(seeds.TRAINING_EVALUATION_SEED + seed)
    rollouts = seeds_of_an_evaluation(seeds.ROLLOUT_SEED, 8)
    comparing = seeds_of_an_evaluation(seeds.FIRST_SEED, 1000)
    groups = [reported, selecting, training, evaluating, rollouts, comparing]
    assert sum(map(len, groups)) == len(set.union(*groups))
    # and whatever the definition says, as long as it is sane
    assert 1_000_000 == seeds.TRAINING_EVALUATION_SEED < seeds.FIRST_SEED < seeds.ROLLOUT_SEED
    assert seeds.ROLLOUT_SEED < seeds.STUDY_SEED < seeds.SELECTION_SEED < 2**31


def test_weights_are_fitted_once_for_each_checkpoint(copied_study, units, fits):
    """All policies of a study, under both conditions, share them."""
    unit = units[0]
    protocol = dataclasses.replace(unit.protocol, policies=POLICIES, episodes=1)
    table = study.evaluate_checkpoint(dataclasses.replace(unit, protocol=protocol), 60)
    assert list(table.policy) == [*POLICIES, "selected"] * 2
    # of the replay buffer and of rollouts; and by temporal differences
    assert sorted(fits) == ["fit_familiarity", "fit_familiarity", "fit_temporal_difference"]


@pytest.fixture
def nothing_is_done(monkeypatch):
    for name in ("train_agent", "evaluate_checkpoint"):
        monkeypatch.setattr(study, name, lambda *_: pytest.fail("done again"))


def test_a_finished_study_is_not_done_again(copied_study, undisturbed, nothing_is_done):
    study.main(copied_study)
    check_finished(copied_study, undisturbed)


def test_a_new_policy_leaves_finished_studies_finished(
    copied_study, undisturbed, nothing_is_done, monkeypatch
):
    monkeypatch.setitem(MAKERS, "another", MAKERS["plain"])
    study.main(copied_study)
    check_finished(copied_study, undisturbed)


def test_one_checkpoint_is_evaluated_again_if_its_part_is_gone(
    copied_study, undisturbed, units, monkeypatch
):
    evaluate, called = study.evaluate_checkpoint, []

    def counted(unit, budget):
        called.append((str(unit), budget))
        return evaluate(unit, budget)

    units[1].parts[1].unlink()
    monkeypatch.setattr(study, "train_agent", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(study, "evaluate_checkpoint", counted)
    study.main(copied_study)
    assert called == [(str(units[1]), 120)]
    assert results(copied_study) == results(undisturbed)


def test_a_part_of_other_settings_is_refused(copied_study, units):
    part = units[0].parts[0]
    part.write_text(part.read_text().replace('"episodes": 3', '"episodes": 4'))
    with pytest.raises(FileExistsError, match="was made with episodes 4, not 3"):
        study.main(copied_study)


@pytest.mark.parametrize(("old", "new"), [("mean_return", "mean"), ("pole,tiny", ",tiny")])
def test_a_damaged_part_is_named(copied_study, units, old, new):
    """A column is missing, or a number."""
    part = units[0].parts[0]
    part.write_text(part.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"rl_model_60_steps.*\.csv is damaged"):
        study.main(copied_study)


def test_the_folder_of_another_study_is_refused_before_training(copied_study, monkeypatch):
    study.main(copied_study)
    monkeypatch.setattr(study, "run_units", lambda *_: pytest.fail("began"))
    with pytest.raises(FileExistsError, match="made with panel 'test', not 'validation'"):
        study.main(dataclasses.replace(copied_study, panel="validation"))


def test_units_are_collected_in_order_and_only_when_finished(tiny_study):
    units = units_of(dataclasses.replace(tiny_study, panel="two"))
    made = units[:-1]
    for unit in made:
        rows = {"env": unit.env, "seed": unit.training.seed, "mean_return": 1.0}
        table = pd.DataFrame([rows]).reindex(columns=COLUMNS + CHOICE_COLUMNS).fillna({})
        table[COLUMNS] = table[COLUMNS].fillna(0)
        remembered(unit.parts[0], unit.settings, lambda table=table: table)
    table = study.collect(units)
    keys = list(zip(table.env, table.seed, strict=True))
    assert keys == [("images", 1), ("pole", 0), ("pole", 1)]
    assert str(units[-1]) == "images, tiny, seed 0"


def test_nothing_finished_is_an_empty_table(tiny_study):
    assert list(study.collect(units_of(tiny_study)).columns) == COLUMNS + CHOICE_COLUMNS


def test_two_threads_write_the_same(tiny_study, undisturbed):
    study.main(dataclasses.replace(tiny_study, jobs=2, backend="threading"))
    check_finished(tiny_study, undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_same(fresh, tiny_study, undisturbed):
    arguments = dataclasses.replace(tiny_study, jobs=2)
    fresh.start(command_line(arguments))
    assert fresh.finish() == 0
    check_finished(arguments, undisturbed)
    assert (arguments.output / "figure2.png").exists()


@pytest.mark.slow
def test_a_cluster_writes_the_same(fresh, tiny_study, undisturbed):
    fresh.start(command_line(dataclasses.replace(tiny_study, jobs=2, backend="dask")))
    assert fresh.finish() == 0
    check_finished(tiny_study, undisturbed)


@pytest.mark.slow
def test_a_cluster_with_an_address_writes_the_same(tiny_study, undisturbed):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        study.main(dataclasses.replace(tiny_study, backend="dask", address=address))
    check_finished(tiny_study, undisturbed)


def kill_and_finish(commands, arguments, undisturbed, limits):
    """Kill a study each time that so many files have been written, and let it finish."""
    for limit in limits:
        commands.start(command_line(arguments), limit)
        commands.kill()
    commands.start(command_line(arguments))
    assert commands.finish() == 0
    check_finished(arguments, undisturbed)


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_results(forked, tiny_study, undisturbed):
    """Killed twice: in the first leg, and between the training and the evaluation of a unit."""
    arguments = dataclasses.replace(tiny_study, jobs=2, backend="multiprocessing")
    kill_and_finish(forked, arguments, undisturbed, [2, 12])


@pytest.fixture(scope="session")
def undisturbed_long(definition, short_fits, tmp_path_factory):
    return run_undisturbed(
        definition, short_fits, tmp_path_factory.mktemp("undisturbed_long"), panel="long"
    )


@pytest.mark.slow
def test_a_study_killed_ten_times_goes_on_to_the_same_results(forked, tiny_study, undisturbed_long):
    """Each of ten units writes at least eleven files, so the kills come while there is work."""
    arguments = dataclasses.replace(tiny_study, panel="long", jobs=2, backend="multiprocessing")
    limits = random.Random(0).choices(range(9), k=10)
    kill_and_finish(forked, arguments, undisturbed_long, limits)


@pytest.mark.slow
def test_a_killed_study_of_fresh_processes_goes_on_to_the_same_results(
    fresh, tiny_study, undisturbed
):
    kill_and_finish(fresh, dataclasses.replace(tiny_study, jobs=2), undisturbed, [0, 7])


def interrupt_and_finish(commands, arguments, undisturbed):
    commands.start(command_line(arguments), 8)
    commands.interrupt()
    assert commands.finish() == 130
    assert not (arguments.output / "returns.csv").exists()
    commands.start(command_line(arguments))
    assert commands.finish() == 0
    check_finished(arguments, undisturbed)


def test_an_interrupted_study_goes_on_to_the_same_results(forked, tiny_study, undisturbed):
    interrupt_and_finish(forked, tiny_study, undisturbed)


@pytest.mark.slow
def test_an_interrupted_study_of_two_processes_goes_on_to_the_same_results(
    fresh, tiny_study, undisturbed
):
    interrupt_and_finish(fresh, dataclasses.replace(tiny_study, jobs=2), undisturbed)


def test_what_a_kill_left_half_written_is_cleared(copied_study, units):
    leftover = units[0].training.folder.path / ".unfinished-abc.csv"
    leftover.touch()
    study.main(copied_study)
    assert not leftover.exists()


def test_a_unit_waits_for_another_process_that_has_it(copied_study, units, monkeypatch):
    said = []
    lock = FileLock(units[0].training.folder.path / ".unit.lock", thread_local=False)
    monkeypatch.setattr(study.tqdm, "write", lambda text: said.append(text) or lock.release())
    lock.acquire()
    assert study.run_unit(units[0]) is None
    assert said == [f"waiting for another process that works in {units[0].training.folder.path}"]


def test_failed_unit_is_reported_and_the_others_finish(copied_study, undisturbed, units):
    broken, other = units
    for unit in units:
        unit.parts[1].unlink()
    archive = broken.training.folder.checkpoint(120)
    content = archive.read_bytes()
    archive.write_bytes(content[:100])

    with pytest.raises(ValueError, match=rf"1 of 2 units failed[^$]*error\.log[^$]*{broken}: "):
        study.main(copied_study)
    assert "Traceback" in broken.error_log.read_text()
    assert "evaluate_checkpoint" in broken.error_log.read_text()
    assert not broken.parts[1].exists()
    assert other.parts[1].exists() and not other.error_log.exists()
    table = pd.read_csv(copied_study.output / "returns.csv")
    assert set(table.env) == {other.env}
    assert not (copied_study.output / "table.md").exists()

    archive.write_bytes(content)
    study.main(copied_study)
    check_finished(copied_study, undisturbed)


def test_a_study_whose_units_all_fail_names_them(copied_study, units, monkeypatch):
    for unit in units:
        unit.parts[1].unlink()

    def fail(unit, budget):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(study, "evaluate_checkpoint", fail)
    with pytest.raises(ValueError, match="2 of 2 units failed") as error:
        study.main(copied_study)
    assert all(f"{unit}: RuntimeError: no such luck" in str(error.value) for unit in units)


def test_a_failure_is_said_when_it_happens(copied_study, units, monkeypatch):
    def fail(unit, budget):
        raise RuntimeError("no such luck")

    units[0].parts[1].unlink()
    said = []
    monkeypatch.setattr(study, "evaluate_checkpoint", fail)
    monkeypatch.setattr(study.tqdm, "write", said.append)
    assert study.run_unit(units[0]) == "RuntimeError: no such luck"
    assert said == [f"failed: {units[0]}: no such luck"]


def test_an_output_of_another_study_is_refused_before_anything_is_made(undisturbed, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(DEFINITION.replace("rounds: 2", "rounds: 3"))
    runs = tmp_path / "other-runs"
    arguments = dataclasses.replace(undisturbed, definition=changed, runs=runs)
    with pytest.raises(FileExistsError, match="was made with rounds 2, not 3"):
        study.main(arguments)
    assert not runs.exists()


def test_a_worker_that_was_killed_is_reported(units):
    class Killed(Workers):
        def map(self, tasks, what, **options):
            raise ChildProcessError("a worker was killed")

    assert study.run_units(units, Killed(1)) == {"a worker": "a worker was killed"}
    units[0].error_log.write_text("Traceback")
    assert study.run_units(units, Killed(1)) == {
        "a worker": "a worker was killed",
        str(units[0]): f"see {units[0].error_log}",
    }


def test_progress_is_counted_in_steps_of_evaluated_checkpoints(units):
    seen = []

    class Watched(Workers):
        def map(self, tasks, what, *, done, total):
            seen.append((done(), total))
            return [None] * len(tasks)

    study.run_units(units, Watched(1))
    units[0].parts[0].unlink()
    study.run_units(units, Watched(1))
    assert seen == [(240, 240), (180, 240)]


def test_a_failure_in_a_worker_is_reported_by_the_exit_status(forked, copied_study, units):
    folder = units[0].training.folder
    folder.final_agent.unlink()
    folder.resume_file.write_bytes(b"not what it was")
    for part in units[0].parts:
        part.unlink()
    arguments = dataclasses.replace(copied_study, jobs=2, backend="multiprocessing")
    forked.start(command_line(arguments))
    assert forked.finish() == 2
    assert "Traceback" in units[0].error_log.read_text()
    with open(forked.log.name) as log:
        assert f"{units[0]}: " in log.read().rpartition("error: ")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panel": "final"}, "no panel 'final'; it has test, validation"),
        ({"backend": "slurm"}, "joblib has no backend 'slurm'; it has .*loky.*dask"),
        ({"address": "tcp://head:8786"}, "an address is for dask and ray; loky has none"),
        ({"jobs": 0}, "--jobs must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_training(tiny_study, change, message, monkeypatch):
    monkeypatch.setattr(study, "run_units", lambda *_: pytest.fail("began"))
    with pytest.raises(ValueError, match=message):
        study.main(dataclasses.replace(tiny_study, **change))
    assert not tiny_study.runs.exists()


@pytest.mark.slow
def test_an_address_where_no_cluster_is_ends_with_an_error(fresh, tiny_study):
    """After a while: dask waits for it."""
    wrong = dataclasses.replace(tiny_study, backend="dask", address="tcp://127.0.0.1:1")
    fresh.start(command_line(wrong))
    assert fresh.finish() == 2
    assert not [*tiny_study.runs.rglob("*.monitor.csv")]


def test_output_that_is_a_file_is_refused_before_training(tiny_study, monkeypatch):
    monkeypatch.setattr(study, "run_units", lambda *_: pytest.fail("began"))
    tiny_study.output.touch()
    with pytest.raises(ValueError, match="out is a file, not a folder"):
        study.main(tiny_study)


def test_runs_in_a_file_are_refused_before_training(tiny_study):
    tiny_study.runs.touch()
    with pytest.raises(ValueError, match="runs is a file, not a folder"):
        study.main(tiny_study)
    assert not tiny_study.output.exists()
