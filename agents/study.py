"""The evidence: train agents in all environments and settings, and evaluate every policy of each.

    equirl study
    equirl study --panel validation --output results/validation
    equirl study --backend dask --address tcp://head:8786

The definition is one YAML file, see study.yaml. Each (environment, setting, seed) is a unit of
work. What is finished is skipped, and what was killed goes on from its last checkpoint with its
replay buffer, so that the result is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import joblib
import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from equicore.files import check_writable, replacing
from equicore.processes import end_with, one_thread
from equirl.agents.cli import check_least, command_line, run
from equirl.agents.cluster import CLUSTERS, check_backend, cluster
from equirl.agents.definition import DEFAULT_FILE, Unit, read_units
from equirl.agents.evaluation import CONDITIONS, SavedAgent, episode_returns
from equirl.agents.panel import COLUMNS, KEYS
from equirl.agents.panel_plot import write_panel
from equirl.agents.policies import MAKERS, Subject
from equirl.agents.selection import choose
from equirl.agents.train import train_agent

CHOICE_COLUMNS = ["chosen", "difference", "low", "high", "spent"]

EVALUATION_SEED = 4_000_000
"""The episodes that are reported have this seed and the following."""


@dataclasses.dataclass
class Study:
    """Train agents in all environments and settings, and evaluate every policy of each.

    Writes returns.csv, selection.csv, tables and figures. Run again after an interruption or a
    kill, the same command goes on where it was.

    Example: equirl study --jobs 2
    """

    definition: Path = DEFAULT_FILE
    """YAML file: environments, settings, seeds, budgets, episodes."""
    panel: str = "test"
    """Which of its panels."""
    output: Path = Path("results/study")
    """Folder for the tables and figures."""
    runs: Path = Path("results/runs/study")
    """Folder for the trained agents; on a cluster, one that all machines see."""
    backend: str = "loky"
    """A backend of joblib: loky (processes of this machine), threading, dask, ray, ..."""
    address: str | None = None
    """Scheduler of a dask or ray cluster, as in tcp://head:8786."""
    jobs: int = os.cpu_count() or 1
    """Units side by side; each uses one core."""


_ONE_AT_A_TIME = threading.Lock()  # in a process: training seeds the global generators


def run_unit(unit: Unit) -> str | None:
    """Train and evaluate, as far as that is not done yet.

    Returns:
        None, or what went wrong; the traceback is in the unit's ``error.log``.
    """
    lock = unit.training.folder.path / ".unit.lock"
    try:
        with one_thread(), _ONE_AT_A_TIME, _waiting_lock(lock):
            unit.training.folder.clear_leftovers()
            if not unit.training.folder.final_agent.exists():
                with _timed(unit):
                    train_agent(unit.training, position=None)
            for budget, part in zip(unit.training.budgets, unit.parts, strict=True):
                if not part.exists():
                    with _timed(unit), replacing(part) as temporary:
                        evaluate_checkpoint(unit, budget).to_csv(temporary, index=False)
            unit.error_log.unlink(missing_ok=True)
        return None
    except Exception as error:  # a unit that fails must not stop the others
        with contextlib.suppress(OSError), replacing(unit.error_log) as temporary:
            temporary.write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error}"


def evaluate_checkpoint(unit: Unit, budget: int) -> pd.DataFrame:
    """The mean returns of all policies of one checkpoint under both conditions.

    Returns:
        A row for each policy and condition, with ``COLUMNS`` and ``CHOICE_COLUMNS``; the latter
        say how ``selected`` came about.
    """
    training, evaluation = unit.training, unit.evaluation
    file = training.folder.checkpoint(budget)
    agent = SavedAgent(str(unit), file, training.env_id, training.env_kwargs, training.seed, budget)
    subject = Subject(agent, agent.load("cpu"), evaluation.transitions)
    policies = {name: make(subject) for name, make in MAKERS.items()}
    rows = []
    for condition in CONDITIONS:
        means = {
            name: episode_returns(
                policy, agent, condition, evaluation.episodes, EVALUATION_SEED
            ).mean()
            for name, policy in policies.items()
        }
        candidates = {name: policies[name] for name in evaluation.candidates}
        choice = choose(evaluation.race, candidates, agent, condition)
        rows += [{"policy": n, "condition": condition, "mean_return": m} for n, m in means.items()]
        rows.append(
            {
                "policy": "selected",
                "condition": condition,
                "mean_return": means[choice.policy],
                "chosen": choice.policy,
                "difference": choice.difference.value,
                "low": choice.difference.low,
                "high": choice.difference.high,
                "spent": choice.spent,
            }
        )
    table = pd.DataFrame(rows).assign(
        env=unit.env,
        setting=unit.setting,
        seed=training.seed,
        budget=budget,
        n_episodes=evaluation.episodes,
    )
    return table[COLUMNS + CHOICE_COLUMNS]


def run_units(units: list[Unit], backend: str, address: str | None, jobs: int) -> dict[str, str]:
    """Run all units side by side.

    Returns:
        What went wrong, for each unit that failed, by its name.
    """
    failed = {}
    study = None if backend in CLUSTERS else os.getpid()
    with cluster(backend, address, jobs), joblib.parallel_config(backend=backend, n_jobs=jobs):
        active, _ = joblib.parallel.get_active_backend()
        streams = active.supports_return_generator
        results = joblib.Parallel(
            batch_size=1, return_as="generator_unordered" if streams else "list"
        )(joblib.delayed(_work)(unit, study) for unit in units)
        with _progress(units) as progress:
            try:
                for name, error in results:
                    if error is not None:
                        failed[name] = error
                        progress.write(f"failed: {name}: {error}")
            except BrokenProcessPool as error:
                failed["a worker"] = f"was killed, perhaps for want of memory: {error}"
    return failed


def collect(units: list[Unit]) -> pd.DataFrame:
    """The evaluations of all units that are finished, ordered by environment, setting and seed."""
    ordered = sorted(units, key=lambda u: (u.env, u.setting, u.training.seed))
    parts = [part for unit in ordered if all(p.exists() for p in unit.parts) for part in unit.parts]
    if not parts:
        return pd.DataFrame(columns=COLUMNS + CHOICE_COLUMNS)
    return pd.concat([_read_part(part) for part in parts], ignore_index=True)


def _read_part(part: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(part)
    except ValueError as error:
        raise ValueError(f"{part} is damaged: {error}. Delete it and run again") from error
    if list(table.columns) != COLUMNS + CHOICE_COLUMNS or table[COLUMNS].isna().any(axis=None):
        raise ValueError(f"{part} is damaged. Delete it and run again")
    return table


def write_study(folder: Path, units: list[Unit], definition: Path) -> None:
    """Write returns.csv, selection.csv, seconds.csv and the definition."""
    table = collect(units)
    chosen = table[table.policy == "selected"].astype({"spent": int})
    keys = [name for name in KEYS if name != "policy"]
    seconds = pd.DataFrame(
        {"env": u.env, "setting": u.setting, "seed": u.training.seed, "seconds": u.seconds}
        for u in units
    )
    for name, rows in (
        ("returns.csv", table[COLUMNS]),
        ("selection.csv", chosen[keys + CHOICE_COLUMNS]),
        ("seconds.csv", seconds.sort_values(["env", "setting", "seed"])),
    ):
        with replacing(folder / name) as temporary:
            rows.to_csv(temporary, index=False, float_format="%.6g")
    with replacing(folder / "study.yaml") as temporary:
        temporary.write_text(definition.read_text())


def _work(unit: Unit, study: int | None) -> tuple[str, str | None]:
    if study is not None:  # the workers of a cluster are not ours
        end_with(study)
    return str(unit), run_unit(unit)


@contextlib.contextmanager
def _timed(unit: Unit) -> Iterator[None]:
    """Add the seconds that something takes to those that the unit has taken so far."""
    start = time.monotonic()
    try:
        yield
    finally:
        with replacing(unit.clock) as temporary:
            temporary.write_text(f"{unit.seconds + time.monotonic() - start:.1f}")


@contextlib.contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock; if another process has it, wait until that has finished or died."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"waiting for another process that works in {path.parent}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress(units: list[Unit]) -> Iterator[tqdm]:
    """A bar over the environment steps of all checkpoints that are evaluated, looked up on disk."""
    weights = {p: u.training.steps / u.training.checkpoints for u in units for p in u.parts}

    def done() -> float:
        return sum(weight for part, weight in weights.items() if part.exists())

    stopped = threading.Event()
    with tqdm(
        total=sum(weights.values()),
        initial=done(),
        desc="study",
        unit="step",
        unit_scale=True,
        disable=None,
    ) as progress:

        def watch() -> None:
            while not stopped.wait(2):
                progress.update(done() - progress.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield progress
        finally:
            stopped.set()
            watcher.join()
            progress.update(done() - progress.n)


def command_of(arguments: Study) -> str:
    """The command that gives the same results, wherever it runs."""
    where = ("output", "runs", "backend", "address", "jobs")
    return command_line("study", arguments, without=where)


def main(arguments: Study) -> None:
    """Run the study, and write what it has found."""
    check_least(arguments, jobs=1)
    command = command_of(arguments)
    for folder in (arguments.output, arguments.runs):
        check_writable(folder / "any")
    check_backend(arguments.backend, arguments.address)
    record = arguments.output / "command.txt"
    if record.exists() and record.read_text().strip() != command:
        raise FileExistsError(
            f"{arguments.output} holds another study, {record.read_text().strip()!r}; name another "
            "folder with --output"
        )
    units = read_units(arguments.definition, arguments.panel, arguments.runs)
    with replacing(record) as temporary:
        temporary.write_text(command + "\n")
    print(f"{len(units)} units; agents in {arguments.runs}, results in {arguments.output}")
    failed = run_units(units, arguments.backend, arguments.address, arguments.jobs)
    write_study(arguments.output, units, arguments.definition)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(units)} units failed, and are missing in returns.csv; see "
            "error.log in their run folders, and run the same command again:\n"
            + "\n".join(f"  {name}: {error}" for name, error in failed.items())
        )
    for file in write_panel(arguments.output):
        print(file)


if __name__ == "__main__":
    run(main, Study)
