"""What `equicore so2` does: evaluate, table, plot."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import tyro

from equicore.applications.so2.names import MODELS, SAMPLED, TASK_NAMES, Model, TaskName
from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_seeds, check_several

RESULTS = Path("results/so2")
RUNS = Path("results/runs/so2")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Train and measure models under continuous groups: canonical forms, samples, frames.

    All models of a seed see the same inputs in the same order, and are tested on the same 10,000
    fresh ones. Writes so2.csv (task, model, group, samples, seed, train_size, batch_size, epochs,
    test_loss, median_loss, accuracy, parameters, forwards, seconds, degenerate). One that was
    killed goes on.

    Example: equicore so2 evaluate --tasks so2 --train-sizes 500 2000 --samples 4
    """

    tasks: tuple[TaskName, ...] = TASK_NAMES
    """EMLP's function of two vectors of the plane, under SO(2) or O(2); EMLP's inertia of five
    bodies, and shapes as clouds of points, under SO(3)."""
    models: tuple[Model, ...] = MODELS
    """The plain network; the same with random poses in training; the canonical form alone; the mean
    over samples around it, with equal or with learned weights; frame averaging."""
    samples: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of samples, from 2 on."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the data, the initial parameters, random samples and the order of inputs."""
    train_sizes: tuple[int, ...] = (1000,)
    """Numbers of training inputs."""
    batch_size: int = 50
    """Inputs in a step; the paper took 500."""
    epochs: int = 100
    """Passes over the training inputs."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for the table, in which other rows stay."""
    runs: Path = RUNS
    """Folder that keeps what was computed."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Write so2.md, beside the paper's numbers, from so2.csv.

    Example: equicore so2 table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds so2.csv."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw losses, the shares of the gain, and training sizes, as PNG and SVG, from so2.csv.

    Example: equicore so2 plot
    """


def run(command: Evaluate | Table | Plot) -> None:
    """Continuous groups: canonical-lambda-equitune beside its controls."""
    mains: dict[type, Main] = {Evaluate: _evaluate, Table: _report, Plot: _report}
    mains[type(command)](command)


def _evaluate(arguments: Evaluate) -> None:
    import pandas as pd

    from equicore.applications.so2.experiment import KEYS, Run
    from equicore.lab.jobs import Workers
    from equicore.lab.store import check_writable
    from equicore.lab.tables import add_rows, check_rows

    check_several(arguments, "tasks", "models", "samples", "train_sizes")
    check_seeds(arguments)
    check_least(arguments, batch_size=1, epochs=1, jobs=1)
    for name, least in (("samples", 2), ("train_sizes", 1)):
        if (smallest := min(getattr(arguments, name))) < least:
            raise ValueError(f"--{name.replace('_', '-')} are {least} or more; got {smallest}")
    file = arguments.output / "so2.csv"
    check_rows(file, KEYS)
    check_writable(arguments.runs / "run")
    chosen = itertools.product(arguments.seeds, arguments.tasks, arguments.train_sizes)
    runs = [
        Run(arguments.runs, task, model, k, seed, size, arguments.batch_size, arguments.epochs)
        for seed, task, size in chosen
        for model in arguments.models
        for k in (arguments.samples if model in SAMPLED else (1,))
    ]
    rows = Workers(arguments.jobs).map([run.measure for run in runs], "models")
    add_rows(file, pd.concat(rows), KEYS)
    print(file)


def _report(arguments: Table) -> None:
    from equicore.applications.so2 import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_tables
    print(*write(arguments.folder), sep="\n")
