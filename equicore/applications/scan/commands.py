"""What `equicore scan` does: train, evaluate, finetune, table, plot."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from equicore.applications.scan import finetune, zero_shot
from equicore.applications.scan.experiment import Run, in_parallel, train_all
from equicore.applications.scan.finetune import Tuning
from equicore.applications.scan.vocabulary import symmetry
from equicore.files import check_writable, replacing

Split = Literal["add_jump", "around_right", "opposite_right"]
Cell = Literal["rnn", "gru", "lstm"]
RESULTS = Path("results/scan")
PLAIN = "none"


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
    jobs: int = os.cpu_count() or 1
    """Processes, each on one core."""

    def check(self) -> None:
        """Raise ValueError for what cannot be, before any work."""
        for name in ("splits", "cells", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"no {name} given: leave --{name} out for the default")
            _once(name, getattr(self, name))
        for name in ("epochs", "jobs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1; got {value}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds are not negative; got {min(self.seeds)}")
        check_writable(self.runs / "network")

    def runs_over(self, over: str = PLAIN) -> list[Run]:
        """One run for each split, cell and seed."""
        return [
            Run(self.runs, split, cell, seed, over, self.epochs)
            for cell in self.cells
            for split in self.splits
            for seed in self.seeds
        ]


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
class Plot:
    """Draw zero_shot and finetune, as PNG and SVG, from the CSV files beside them.

    Example: equicore scan plot
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds zero_shot.csv, and finetune.csv if there was a fine-tuning."""


def run(command: Train | Evaluate | Finetune | Table | Plot) -> None:
    """Compositional generalization of sequence models on SCAN, by exchanges of words."""
    actions: dict[type, Callable] = {
        Train: train,
        Evaluate: evaluate,
        Finetune: tune,
        Table: table,
        Plot: plot,
    }
    actions[type(command)](command)


def train(arguments: Train) -> None:
    """Train, and name the files."""
    symmetry(arguments.over)  # which says if there is none
    networks = arguments.networks
    networks.check()
    runs = networks.runs_over(arguments.over)
    train_all(runs, networks.jobs)
    _say(run.file for run in runs)


def evaluate(arguments: Evaluate) -> None:
    """Evaluate, and name the table."""
    networks = arguments.networks
    networks.check()
    for group in arguments.groups:
        if len(symmetry(group).group) == 1:
            raise ValueError(f"--groups has {group!r}: the network alone is always measured")
    _once("groups", arguments.groups)
    file = arguments.output / "zero_shot.csv"
    runs = networks.runs_over()
    measured = [
        (run, group)
        for run in runs
        for group in (PLAIN, *(arguments.groups or zero_shot.groups_of(run.split, run.cell)))
    ]
    _check_output(
        file,
        ("split", "cell", "seed", "group"),
        {(run.split, run.cell, run.seed, group) for run, group in measured},
    )
    train_all(runs, networks.jobs)
    tasks = [functools.partial(zero_shot.measure, run, group) for run, group in measured]
    _write(tasks, networks.jobs, file)


def tune(arguments: Finetune) -> None:
    """Fine-tune, and name the table."""
    networks, steps = arguments.networks, arguments.steps
    networks.check()
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"--steps rise, from 0 on; got {' '.join(map(str, steps))}")
    if not arguments.methods:
        raise ValueError(f"no methods given; there are {', '.join(finetune.METHODS)}")
    _once("methods", arguments.methods)
    if arguments.batch_size < 1 or not 0 < arguments.learning_rate < math.inf:
        raise ValueError(
            "--batch-size and --learning-rate must be positive; got "
            f"{arguments.batch_size} and {arguments.learning_rate}"
        )
    file = arguments.output / "finetune.csv"
    plain = networks.runs_over()
    groups = [zero_shot.GROUPS[run.split][0] for run in plain]
    equivariant = [
        dataclasses.replace(run, over=group) for run, group in zip(plain, groups, strict=True)
    ]
    _check_output(
        file,
        ("split", "cell", "seed", "method"),
        {
            (run.split, run.cell, run.seed, method)
            for run in plain
            for method in (*arguments.methods, finetune.equivariant_name(run.cell))
        },
    )
    train_all([*plain, *equivariant], networks.jobs)
    tasks: list[Callable[[], pd.DataFrame]] = []
    for run, group in zip(plain, groups, strict=True):
        for method in arguments.methods:
            tuning = Tuning(group, method, steps, arguments.batch_size, arguments.learning_rate)
            tasks.append(functools.partial(finetune.measure, run, tuning, networks.jobs == 1))
    tasks += [functools.partial(finetune.measure_equivariant, run) for run in equivariant]
    _write(tasks, networks.jobs, file)


def table(arguments: Table) -> None:
    """Write, and name the files."""
    from equicore.applications.scan import report  # which loads matplotlib

    _say(report.write_tables(arguments.folder))


def plot(arguments: Plot) -> None:
    """Draw, and name the files."""
    from equicore.applications.scan import report

    _say(report.write_figures(arguments.folder))


def _once(name: str, values: Sequence[object]) -> None:
    """Raise ValueError if a value is there twice, which would count as two measurements."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"--{name} has {value} more than once")


def _check_output(file: Path, columns: Sequence[str], planned: set[tuple]) -> None:
    """Raise ValueError if a table cannot be written, or has rows that would be lost."""
    check_writable(file)
    if not file.is_file():
        return
    table = pd.read_csv(file)
    if missing := set(columns) - set(table.columns):
        raise ValueError(
            f"{file} is another table, without {', '.join(sorted(missing))}; name another --output"
        )
    for row in table[list(columns)].drop_duplicates().itertuples(index=False, name=None):
        if row not in planned:
            raise ValueError(
                f"{file} also holds {' '.join(map(str, row))}, which this would not write again; "
                "name another --output"
            )


def _write(tasks: Sequence[Callable[[], pd.DataFrame]], jobs: int, file: Path) -> None:
    measured = pd.concat(in_parallel(tasks, jobs, file.stem.replace("_", "-")))
    with replacing(file) as temporary:
        measured.to_csv(temporary, index=False, float_format="%.6f")
    _say([file])


def _say(files: Iterable[Path]) -> None:
    for file in files:
        print(file)
