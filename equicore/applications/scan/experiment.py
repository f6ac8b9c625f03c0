"""The networks of the experiment: one for each split, cell, symmetry of its weights, and seed.

Each is trained by one process on one core and written whole or not at all; a training that was
killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import pandas as pd
from tqdm import tqdm

from equicore.applications.scan.data import Pair, load_split
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.training import CELL_EPOCHS, RESUME, Recipe, hold_out, train
from equicore.files import first_difference, replacing
from equicore.processes import end_with, one_thread

T = TypeVar("T")
NETWORK = "network.safetensors"


@dataclasses.dataclass(frozen=True)
class Run:
    """A network, what it is trained on, and where it is kept.

    Attributes:
        runs: The folder of all runs.
        split: Of SCAN.
        cell: Of the network.
        seed: Of the held-out pairs, its initial parameters and its training.
        over: The symmetry of its weights; "none" for the plain network.
        epochs: Passes over the training pairs; when omitted, `CELL_EPOCHS`.
    """

    runs: Path
    split: str
    cell: str
    seed: int
    over: str = "none"
    epochs: int | None = None

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.runs / self.split / self.over / f"{self.cell}_{self.seed}"

    @property
    def file(self) -> Path:
        """Of the trained network."""
        return self.folder / NETWORK

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return Recipe(epochs=CELL_EPOCHS[self.cell] if self.epochs is None else self.epochs)

    @property
    def about(self) -> dict[str, Any]:
        """Plain values that tell it from all others."""
        return {
            "split": self.split,
            "cell": self.cell,
            "over": self.over,
            "seed": self.seed,
            "recipe": dataclasses.asdict(self.recipe),
        }

    def parts(self) -> dict[str, list[Pair]]:
        """The pairs to train on, to validate and to test."""
        pairs, test = load_split(self.split)
        training, validation = hold_out(pairs, self.recipe.held_out, self.seed)
        return {"train": training, "validation": validation, "test": test}

    def network(self, progress: bool = False) -> Seq2Seq:
        """The network, trained now if it has not been.

        Raises:
            ValueError: If the folder holds another network.
        """
        if self.file.is_file():
            return Seq2Seq.load(self.file, **self.about)
        network = Seq2Seq(self.cell, over=self.over, seed=self.seed)
        train(
            network, self.parts()["train"], self.recipe, self.seed, self.folder, progress=progress
        )
        network.save(self.file, **self.about)
        (self.folder / RESUME).unlink(missing_ok=True)
        return network


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Train those networks that have not been trained, each on one core.

    Raises:
        ValueError: If one is there that was trained otherwise; before any work.
    """
    missing = []
    for run in runs:
        if run.file.is_file():
            run.network()
        else:
            missing.append(run)
    in_parallel([functools.partial(_train, run, jobs == 1) for run in missing], jobs, "networks")


def kept(file: Path, about: dict[str, Any], measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """What a file holds; it is measured and written, whole or not at all, if there is none.

    Args:
        file: CSV after a line of JSON.
        about: The settings of the measurement, plain values.
        measure: Measures.

    Raises:
        ValueError: If the file was measured with other settings.
    """
    if not file.is_file():
        table = measure()
        with replacing(file) as temporary:
            temporary.write_text(f"# {json.dumps(about)}\n{table.to_csv(index=False)}")
    with file.open() as lines:
        first = lines.readline()
    header = json.loads(first.removeprefix("# ")) if first.startswith("# {") else {}
    if difference := first_difference(header, about):
        name, found, value = difference
        raise ValueError(
            f"{file} was measured with {name} {found}, not {value}; delete it, or "
            "name another folder of runs"
        )
    return pd.read_csv(file, comment="#")


def in_parallel(tasks: Sequence[Callable[[], T]], jobs: int, what: str) -> list[T]:
    """The results of all tasks, each of them on one core.

    Args:
        tasks: Without arguments.
        jobs: Processes.
        what: They are, for the progress bar.
    """
    if not tasks:
        return []
    workers = joblib.Parallel(jobs, return_as="generator")
    alone = functools.partial(_alone, os.getpid())
    with warnings.catch_warnings():
        # joblib renews a worker whose memory has grown
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        results = workers(joblib.delayed(alone)(task) for task in tasks)
        return list(tqdm(results, desc=what, total=len(tasks)))


def _alone(parent: int, task: Callable[[], T]) -> T:
    end_with(parent)
    with one_thread():
        return task()


def _train(run: Run, progress: bool) -> None:
    run.network(progress)
