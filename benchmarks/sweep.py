"""Do two workers finish a study in half the time? Units per second of one against two.

    python benchmarks/sweep.py [--rounds 5] [--steps 4000] [--output results/sweep]

The machine must be quiet: each worker needs a core of its own, and whatever else runs takes from
two workers more than from one. A unit is what it is in `equirl study`: a training, and the
evaluation of its checkpoints under every policy. Each round runs the same units with one worker
and with two, every second round in reverse, into a new folder. Workers import everything before
they are timed; what that takes is measured on workers that are started anew in each round.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import numpy as np
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from equicore.lab import command
from equicore.lab.jobs import Workers
from equicore.lab.tables import markdown
from equicore.lab.values import read_yaml, to_yaml
from equirl.agents.definition import POLICIES, read_units
from equirl.agents.hyperparameters import default_file
from equirl.agents.study import run_units

BAR = 1.7
"""Throughput of two workers beside that of one, on two cores: at least."""
WORKERS = 2
CANDIDATES = ("plain", "equitune", "equizero", "lambda")
ENVIRONMENTS = {
    "CartPole": {"env": "CartPole-v1", "scale": [0, 500]},
    "Gridworld": {"env": "equirl/Gridworld-v0", "scale": [-50, -4.3]},
}


@dataclasses.dataclass
class Arguments:
    """Time a small study with one worker and with two."""

    rounds: int = 5
    """Rounds; in each, the study is run once with each number of workers."""
    steps: int = 4000
    """Environment steps of each training."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Training seeds; each gives a unit in CartPole and one in Gridworld."""
    policies: tuple[str, ...] = POLICIES
    """What is evaluated: plain and others; one is chosen among ``CANDIDATES``."""
    output: Path | None = None
    """Folder for sweep.csv and sweep.md; nothing is written when omitted."""


def write_definition(folder: Path, arguments: Arguments) -> Path:
    """The definition of the study, and beside it the hyperparameters of dqn.yaml, but shorter."""
    known = read_yaml(default_file("dqn"))
    shorter = {
        entry["env"]: known[entry["env"]] | {"n_timesteps": arguments.steps}
        for entry in ENVIRONMENTS.values()
    }
    (folder / "dqn.yaml").write_text(to_yaml(shorter))
    document = {
        "environments": ENVIRONMENTS,
        "settings": {"short": "dqn.yaml"},
        "panels": {"sweep": {"seeds": list(arguments.seeds), "checkpoints": 1}},
        "policies": list(arguments.policies),
        "candidates": [name for name in CANDIDATES if name in arguments.policies],
        "episodes": 20,
        "transitions": 2000,
        "race": {"rounds": 2, "episodes": 20},
    }
    file = folder / "study.yaml"
    file.write_text(to_yaml(document))
    return file


def study_seconds(definition: Path, workers: int) -> float:
    """How long the study takes from nothing, with workers that are up."""
    with tempfile.TemporaryDirectory() as runs:
        units = read_units(definition, "sweep", Path(runs))
        start = time.perf_counter()
        failed = run_units(units, Workers(workers))
        elapsed = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"units failed: {failed}")
    return elapsed


def start_seconds() -> float:
    """How long new workers take until each has imported what a unit needs."""
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tasks = [partial(get_ready, Path(folder), number) for number in range(WORKERS)]
        Workers(WORKERS).map(tasks, "start")
    return time.perf_counter() - start


def get_ready(folder: Path, number: int) -> None:
    """Import everything, and wait for the others, so that no worker does this for two."""
    import torch._dynamo  # noqa: F401  optimisers import it when the first is made

    import equirl.agents.study  # noqa: F401

    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < WORKERS:
        time.sleep(0.01)


def main(arguments: Arguments) -> None:
    """Time everything, print the table, write it."""
    starts, times = [], {1: [], WORKERS: []}
    with tempfile.TemporaryDirectory() as folder:
        definition = write_definition(Path(folder), arguments)
        shortest = dataclasses.replace(arguments, steps=100, seeds=(0,))
        (Path(folder) / "first").mkdir()
        study_seconds(write_definition(Path(folder) / "first", shortest), 1)  # imports the rest
        with tqdm(total=2 * arguments.rounds, unit="study") as progress:
            for i in range(arguments.rounds):
                starts.append(start_seconds())
                for workers in list(times)[:: -1 if i % 2 else 1]:
                    times[workers].append(study_seconds(definition, workers))
                    progress.update()
    count = len(ENVIRONMENTS) * len(arguments.seeds)
    one, two, start = np.array(times[1]), np.array(times[WORKERS]), np.array(starts)
    rows = [
        {
            "workers": name,
            "seconds": float(np.median(elapsed)),
            "units_per_second": common.ratio(np.full_like(one, count), elapsed),
            "ratio": common.ratio(one, elapsed),
            "bar": bar,
        }
        for name, elapsed, bar in (
            ("1 worker", one, None),
            (f"{WORKERS} workers", two, BAR),
            (f"{WORKERS} workers, with their start", two + start, None),
        )
    ]
    common.write(
        arguments.output,
        "sweep",
        rows,
        4,
        "Throughput of a study",
        f"{count} units of {arguments.steps} steps: median and quartiles of {arguments.rounds} "
        f"rounds of one run, ratios taken within rounds; {common.machine()}, one for each unit. "
        f"New workers need {np.median(start):.1f} s [{start.min():.1f}, {start.max():.1f}] to "
        "import everything, once in a study of any length.",
        markdown(
            ["workers", "seconds", "units per second", "ratio to 1 worker", "bar"],
            [
                [
                    row["workers"],
                    f"{row['seconds']:.1f}",
                    row["units_per_second"],
                    row["ratio"],
                    common.verdict(row["ratio"].median, row["bar"], at_least=True),
                ]
                for row in rows
            ],
        ),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
