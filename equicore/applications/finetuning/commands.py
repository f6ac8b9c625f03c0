"""What `equicore finetuning` does, and the options of applications that fine-tune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from equicore.applications.finetuning.names import Method
from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_seeds, check_several
from equicore.lab.store import check_writable

if TYPE_CHECKING:
    from equicore.applications.finetuning.experiment import Tuning
    from equicore.applications.finetuning.task import Task

RESULTS = Path("results/finetuning")
RUNS = Path("results/runs/finetuning")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Which methods are compared, on how much data, and how they are trained."""

    methods: tuple[Method, ...] = (
        "plain", "augmentation", "penalty", "penalty_features", "equitune", "lambda_equitune",
        "canonicalization",
    )  # fmt: skip
    """The task's loss alone; with random elements; with a penalty on outputs, on feature maps or
    both; the mean over views, with learned weights; the view that a network finds canonical."""
    fractions: tuple[float, ...] = (0.1, 1.0)
    """Parts of the training data."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the parts, new layers, and the order of samples; all methods of a seed have the same."""
    steps: int | None = None
    """Optimiser steps; when omitted, as many as the task's default takes."""
    views: int | None = None
    """How often a model runs in a step: equal for all methods, whatever they do with it."""
    learning_rate: float | None = None
    """Adam's, which falls along a cosine."""
    weights: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Of penalties, to choose from by cross-validation on the training data of the part."""
    folds: int = 2
    """Of cross-validation."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for finetuning.csv, in which rows of other tasks, methods and seeds stay."""
    runs: Path = RUNS
    """Folder that keeps what was computed: one that was interrupted goes on."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Write finetuning.md from the CSV file beside it.

    Example: equicore finetuning table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds finetuning.csv, which equicore images adapt, detection finetune and fluids finetune
    add to."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw metrics against data and deviations over training, as PNG and SVG.

    Example: equicore finetuning plot
    """


def run(command: Table | Plot) -> None:
    """What fine-tuning towards a symmetry brought on all tasks."""
    mains: dict[type, Main] = {Table: _report, Plot: _report}
    mains[type(command)](command)


def tuning_of(options: Comparison, *, steps: int, views: int, rate: float) -> Tuning:
    """How models are fine-tuned, by a command line and an application's own defaults.

    Raises:
        ValueError: For options that cannot be.
    """
    from equicore.applications.finetuning.experiment import DIGITS, Tuning

    check_several(options, "methods", "fractions", "weights")
    if wrong := [part for part in options.fractions if not 0 < part <= 1]:
        raise ValueError(f"--fractions are parts of the data, above 0 and up to 1; got {wrong[0]}")
    if len({round(part, DIGITS) for part in options.fractions}) < len(options.fractions):
        raise ValueError(f"--fractions are told apart by {DIGITS} digits; got {options.fractions}")
    check_seeds(options)
    check_least(options, steps=1, views=1, folds=2, jobs=1)
    check_writable(options.output / "finetuning.csv")
    check_writable(options.runs / "tuned")
    return Tuning(
        steps=steps if options.steps is None else options.steps,
        views=views if options.views is None else options.views,
        learning_rate=rate if options.learning_rate is None else options.learning_rate,
        weights=options.weights,
        folds=options.folds,
    )


def compare(task: Task, options: Comparison, *, steps: int, views: int, rate: float) -> list[Path]:
    """Measure what a command line says on an application's task; its own defaults come with it.

    Returns:
        The CSV file, to which rows were added, and pictures of feature maps.

    Raises:
        ValueError: For options that cannot be, before anything is trained.
    """
    from equicore.applications.finetuning import experiment
    from equicore.applications.finetuning.responses import write_responses

    tuning = tuning_of(options, steps=steps, views=views, rate=rate)
    file = options.output / "finetuning.csv"
    trials = experiment.run(
        task, options.methods, options.fractions, options.seeds, tuning, file, options.runs,
        options.jobs,
    )  # fmt: skip
    return [file, *write_responses(trials[: len(options.methods)], options.output)]


def _report(arguments: Table) -> None:
    from equicore.applications.finetuning import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_table
    print(*write(arguments.folder), sep="\n")
