"""The evidence: train agents in all environments and settings, and evaluate every policy of each.

The definition is one YAML file, see study.yaml. Each (environment, setting, seed) is a unit of
work. What is finished is skipped, and what was killed goes on from its last checkpoint with its
replay buffer, so that the result is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

import equirl
from equicore.lab import jobs, store
from equicore.lab.command import check_least, command_line
from equicore.lab.jobs import Workers
from equicore.lab.store import check_writable, claim, remembered, write_text
from equicore.lab.tables import write_csv
from equirl.agents.arguments import Study
from equirl.agents.checked import checks_of
from equirl.agents.cli import run
from equirl.agents.definition import DEFAULT_FILE, Unit, read_units
from equirl.agents.evaluation import CONDITIONS, RULES, play
from equirl.agents.panel import COLUMNS, KEYS
from equirl.agents.panel_plot import write_panel
from equirl.agents.policies import Subject
from equirl.agents.saved import SavedAgent
from equirl.agents.train import train_agent

CHOICE_COLUMNS = ["chosen", "difference", "low", "high", "spent"]


def run_unit(unit: Unit) -> str | None:
    """Train and evaluate, as far as that is not done yet.

    Returns:
        None, or what went wrong; the traceback is in the unit's ``error.log``.
    """
    lock = unit.training.folder.path / ".unit.lock"
    try:
        with jobs.ONE_AT_A_TIME, _waiting_lock(lock):  # training seeds the global generators
            unit.training.folder.clear_leftovers()
            if not unit.training.folder.final_agent.exists():
                with _timed(unit):
                    train_agent(unit.training)
            for budget, part in zip(unit.training.budgets, unit.parts, strict=True):
                if not part.exists():
                    with _timed(unit):
                        evaluate = functools.partial(evaluate_checkpoint, unit, budget)
                        remembered(part, unit.settings, evaluate)
            unit.error_log.unlink(missing_ok=True)
        return None
    except Exception as error:  # a unit that fails must not stop the others
        tqdm.write(f"failed: {unit}: {error}")
        with contextlib.suppress(OSError):
            write_text(unit.error_log, traceback.format_exc())
        return f"{type(error).__name__}: {error}"


def evaluate_checkpoint(unit: Unit, budget: int) -> pd.DataFrame:
    """The mean returns of all policies of one checkpoint under both conditions.

    Returns:
        A row for each policy and condition, with ``COLUMNS`` and ``CHOICE_COLUMNS``; the latter
        say how ``selected`` came about.
    """
    training = unit.training
    file = training.folder.checkpoint(budget)
    agent = SavedAgent(
        str(unit), file, training.arguments.env, training.env_kwargs, training.seed, budget
    )
    subject = Subject(agent, unit.protocol.transitions, "cpu")
    rows = []
    for condition in CONDITIONS:
        played, choice = play(subject, condition, unit.protocol)
        means = {name: returns.mean() for name, returns in played.items()}
        assert choice is not None
        rows += [{"policy": n, "condition": condition, "mean_return": m} for n, m in means.items()]
        row = {"policy": "selected", "condition": condition, "mean_return": means[choice.policy]}
        found = (choice.policy, *dataclasses.astuple(choice.difference), choice.spent)
        rows.append(row | dict(zip(CHOICE_COLUMNS, found, strict=True)))
    table = pd.DataFrame(rows).assign(
        env=unit.env,
        setting=unit.setting,
        seed=training.seed,
        budget=budget,
        n_episodes=unit.protocol.episodes,
    )
    return table[COLUMNS + CHOICE_COLUMNS]


def run_units(units: list[Unit], workers: Workers) -> dict[str, str]:
    """Run all units side by side; what went wrong, for each that failed, by its name."""
    # a bar over the environment steps of all checkpoints that are evaluated
    steps = {p: u.training.steps / len(u.parts) for u in units for p in u.parts}
    tasks = [functools.partial(run_unit, unit) for unit in units]
    try:
        errors = workers.map(
            tasks,
            "study",
            done=lambda: sum(weight for part, weight in steps.items() if part.exists()),
            total=sum(steps.values()),
        )
    except ChildProcessError as error:
        failed = {str(u): f"see {u.error_log}" for u in units if u.error_log.exists()}
        return {"a worker": str(error), **failed}
    return {str(u): error for u, error in zip(units, errors, strict=True) if error is not None}


def collect(units: list[Unit]) -> pd.DataFrame:
    """The evaluations of all units that are finished, ordered by environment, setting and seed."""
    ordered = sorted(units, key=lambda u: (u.env, u.setting, u.training.seed))
    tables = {
        part: remembered(part, unit.settings, pd.DataFrame)
        for unit in ordered
        if all(part.exists() for part in unit.parts)
        for part in unit.parts
    }
    for part, table in tables.items():
        if list(table.columns) != COLUMNS + CHOICE_COLUMNS or table[COLUMNS].isna().any(axis=None):
            raise ValueError(f"{part} is damaged. Delete it and run again")
    if not tables:
        return pd.DataFrame(columns=COLUMNS + CHOICE_COLUMNS)
    return pd.concat(tables.values(), ignore_index=True)


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
        write_csv(folder / name, rows, "%.6g")
    write_text(folder / "study.yaml", definition.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _timed(unit: Unit) -> Iterator[None]:
    """Add the seconds that something takes to those that the unit has taken so far."""
    start = time.monotonic()
    try:
        yield
    finally:
        write_text(unit.clock, f"{unit.seconds + time.monotonic() - start:.1f}")


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


def main(arguments: Study) -> None:
    """Run the study, and write what it has found."""
    check_least(arguments, jobs=1)
    check_writable(arguments.runs / "any")
    workers = Workers(arguments.jobs, arguments.backend, arguments.address)
    file = arguments.definition or DEFAULT_FILE
    definition = store.read_settings(file)
    decides = {"panel": arguments.panel, "definition": definition, "rules": RULES}
    settings = {"settings.yml": decides}
    if definition:  # else reading it says what is wrong
        store.check_claim(arguments.output, settings)
    units = read_units(file, arguments.panel, arguments.runs)
    claim(arguments.output, settings)
    where = ("output", "runs", "backend", "address", "jobs")
    command = command_line("equirl study", arguments, without=where)
    write_text(arguments.output / "command.txt", f"{command}\nequirl {equirl.__version__}\n")
    print(f"{len(units)} units; agents in {arguments.runs}, results in {arguments.output}")
    checks = checks_of((u.training.arguments.env, u.training.env_kwargs) for u in units)
    print(*checks, sep="\n")
    write_text(arguments.output / "symmetries.txt", "\n".join(checks) + "\n")
    failed = run_units(units, workers)
    write_study(arguments.output, units, file)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(units)} units failed, and are missing in returns.csv; see "
            "error.log in their run folders, and run the same command again:\n"
            + "\n".join(f"  {name}: {error}" for name, error in failed.items())
        )
    print(*write_panel(arguments.output), sep="\n")


if __name__ == "__main__":
    run(main, Study)
