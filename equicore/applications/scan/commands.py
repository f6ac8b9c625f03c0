"""What `equicore scan` does: train, evaluate, finetune, table, plot."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from equicore.applications.scan import finetune, zero_shot
from equicore.applications.scan.experiment import Run, train_all
from equicore.applications.scan.finetune import Tuning
from equicore.applications.scan.vocabulary import symmetry
from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_seeds, check_several, check_training
from equicore.lab.jobs import Workers
from equicore.lab.store import check_writable
from equicore.lab.tables import check_rows, write_csv

Split = Literal["add_jump", "around_right", "opposite_right"]
Cell = Literal["rnn", "gru", "lstm"]
RESULTS = Path("results/scan")
PLAIN = "none"
Tasks = dict[tuple[str, str, int, str], Callable[[], pd.DataFrame]]


@dataclasses.dataclass(frozen=True)
class Networks:
    """Which networks; each is trained once, and found again afterwards."""

    splits: tuple[Split, ...] = ("add_jump", "around_right")
    """Of SCAN; opposite_right is ours, to choose methods on."""
    cells: tuple[Cell, ...] = ("lstm",)
    """Recurrent cells of encoder and decoder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the held-out pairs, the initial parameters and the training."""
    epochs: int | None = None
    """Passes over the training pairs; when omitted, 30, of an RNN 40."""
    runs: Path = Path("results/runs/scan")
    """Folder that keeps the networks and what was measured of each."""
    jobs: int = CORES
    """Processes, each on one core."""

    def runs_over(self, over: str = PLAIN) -> list[Run]:
        """One run for each split, cell and seed; ValueError for what cannot be."""
        check_seeds(self)
        check_several(self, "splits", "cells")
        check_least(self, epochs=1, jobs=1)
        check_writable(self.runs / "network")
        every = itertools.product(self.cells, self.splits, self.seeds)
        return [Run(self.runs, split, cell, seed, over, self.epochs) for cell, split, seed in every]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train encoder-decoders on SCAN: minutes each, on one core.

    A training that was interrupted goes on where it was. Networks over a symmetry are the
    permutation-equivariant ones of Gordon et al. (ICLR 2020).

    Example: equicore scan train --splits add_jump --seeds 0
    """

    networks: Networks = Networks()
    over: str = PLAIN
    """Symmetry of the network's weights, see --help of evaluate."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate networks zero-shot: plain, equitune, equizero, lambda-equitune.

    Trains them first, if they have not been. Writes zero_shot.csv: split, cell, group, method,
    seed, part, accuracy. Groups: jump-run, left-right, verb-cycle (of the four verbs), all-verbs
    (all 24 orders of them), and products such as verb-cycle+left-right.

    Example: equicore scan evaluate --splits add_jump --cells gru --output results/mine
    """

    networks: Networks = Networks(cells=("lstm", "gru", "rnn"))
    groups: tuple[str, ...] = ()
    """When omitted, the paper's for each split, and for an LSTM larger ones too."""
    output: Path = RESULTS
    """Folder for zero_shot.csv."""


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune networks under the paper's groups, and train equivariant networks to compare with.

    Writes finetune.csv: the columns of zero_shot.csv, and steps.

    How a network was fine-tuned, and after which steps it was evaluated, is fixed for a folder of
    runs; name another one for other settings.

    Example: equicore scan finetune --splits add_jump --methods equitune --output results/mine
    """

    networks: Networks = Networks()
    methods: tuple[finetune.Method, ...] = finetune.METHODS
    """What is fine-tuned."""
    steps: tuple[int, ...] = finetune.STEPS
    """Evaluate after so many steps, in rising order."""
    batch_size: int = Tuning.batch_size
    """Pairs in a step."""
    learning_rate: float = Tuning.learning_rate
    """Adam's."""
    output: Path = RESULTS
    """Folder for finetune.csv."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Write zero_shot.md and finetune.md from the CSV files beside them.

    Example: equicore scan table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds zero_shot.csv, and finetune.csv if there was a fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw zero_shot and finetune, as PNG and SVG, from the CSV files beside them.

    Example: equicore scan plot
    """


def run(command: Train | Evaluate | Finetune | Table | Plot) -> None:
    """Compositional generalization of sequence models on SCAN, by exchanges of words."""
    mains: dict[type, Main] = {
        Train: _train,
        Evaluate: _evaluate,
        Finetune: _tune,
        Table: _report,
        Plot: _report,
    }
    mains[type(command)](command)


def _train(arguments: Train) -> None:
    symmetry(arguments.over)  # which says if there is none
    runs = arguments.networks.runs_over(arguments.over)
    train_all(runs, arguments.networks.jobs)
    print(*(run.file for run in runs), sep="\n")


def _evaluate(arguments: Evaluate) -> None:
    runs = arguments.networks.runs_over()
    for group in arguments.groups:
        if len(symmetry(group).group) == 1:
            raise ValueError(f"--groups has {group!r}: the network alone is always measured")
        check_several(arguments, "groups")
    tasks: Tasks = {
        (run.split, run.cell, run.seed, group): functools.partial(zero_shot.measure, run, group)
        for run in runs
        for group in (PLAIN, *(arguments.groups or zero_shot.groups_of(run)))
    }
    _measure(arguments.output / "zero_shot.csv", "group", tasks, runs, arguments.networks.jobs)


def _tune(arguments: Finetune) -> None:
    steps, rate, jobs = arguments.steps, arguments.learning_rate, arguments.networks.jobs
    plain = arguments.networks.runs_over()
    check_several(arguments, "methods")
    check_least(arguments, batch_size=1)
    check_training(arguments)
    tasks: Tasks = {}
    for run, method in itertools.product(plain, arguments.methods):
        tuning = Tuning(zero_shot.GROUPS[run.split][0], method, steps, arguments.batch_size, rate)
        task = functools.partial(finetune.measure, run, tuning, jobs == 1)
        tasks[run.split, run.cell, run.seed, method] = task
    equivariant = [dataclasses.replace(run, over=zero_shot.GROUPS[run.split][0]) for run in plain]
    for run in equivariant:
        task = functools.partial(finetune.measure_equivariant, run)
        tasks[run.split, run.cell, run.seed, finetune.EQUIVARIANT[run.cell]] = task
    _measure(arguments.output / "finetune.csv", "method", tasks, [*plain, *equivariant], jobs)


def _report(arguments: Table) -> None:
    from equicore.applications.scan import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_tables
    print(*write(arguments.folder), sep="\n")


def _measure(file: Path, column: str, tasks: Tasks, runs: Sequence[Run], jobs: int) -> None:
    """Train networks and write a table, unless it has other rows, which would be lost.

    Tasks are named by what stands in the columns split, cell, seed and another one.
    """
    columns = ["split", "cell", "seed", column]
    for row in check_rows(file, columns)[columns].itertuples(index=False, name=None):
        if row not in tasks:
            raise ValueError(
                f"{file} also holds {' '.join(map(str, row))}, which this would not write again; "
                "name another --output"
            )
    train_all(runs, jobs)
    measured = Workers(jobs).map(list(tasks.values()), file.stem.replace("_", "-"))
    write_csv(file, pd.concat(measured), "%.6f")
    print(file)
