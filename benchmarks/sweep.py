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
from pathlib import Path

import common
import joblib
import numpy as np
import pandas as pd
import tyro
import yaml
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from equirl.agents import hyperparameters, study
from equirl.agents.definition import read_units

BAR = 1.7
"""Throughput of two workers beside that of one, on two cores: at least."""
WORKERS = 2
ENVIRONMENTS = {
    "CartPole": {"env": "CartPole-v1", "scale": [0, 500]},
    "Gridworld": {"env": "equirl/Gridworld-v0", "scale": [-50, -4.3]},
}
EVALUATION = {
    "episodes": 20,
    "transitions": 2000,
    "candidates": ["plain", "equitune", "equizero", "lambda"],
    "race": {"rounds": 2, "episodes": 20},
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
    output: Path | None = None
    """Folder for sweep.csv and sweep.md; nothing is written when omitted."""


def write_definition(folder: Path, arguments: Arguments) -> Path:
    """The definition of the study, and beside it the hyperparameters of dqn.yaml, but shorter."""
    known = yaml.safe_load(hyperparameters.DEFAULT_FILE.read_text())
    shorter = {
        entry["env"]: known[entry["env"]] | {"n_timesteps": arguments.steps}
        for entry in ENVIRONMENTS.values()
    }
    (folder / "dqn.yaml").write_text(yaml.safe_dump(shorter))
    document = {
        "environments": ENVIRONMENTS,
        "settings": {"short": "dqn.yaml"},
        "panels": {"sweep": {"seeds": list(arguments.seeds), "checkpoints": 1}},
        **EVALUATION,
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def study_seconds(definition: Path, workers: int) -> float:
    """How long the study takes from nothing, with workers that are up."""
    with tempfile.TemporaryDirectory() as runs:
        units = read_units(definition, "sweep", Path(runs))
        start = time.perf_counter()
        failed = study.run_units(units, "loky", None, workers)
        elapsed = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"units failed: {failed}")
    return elapsed


def start_seconds() -> float:
    """How long new workers take until each has imported what a unit needs."""
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        joblib.Parallel(WORKERS, backend="loky", batch_size=1)(
            joblib.delayed(get_ready)(Path(folder), number) for number in range(WORKERS)
        )
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
    rows = []
    for name, elapsed in (
        ("1 worker", one),
        (f"{WORKERS} workers", two),
        (f"{WORKERS} workers, with their start", two + start),
    ):
        throughput, ratio = (
            common.ratio(np.full_like(one, count), elapsed),
            common.ratio(one, elapsed),
        )
        rows.append(
            {
                "workers": name,
                "seconds": np.median(elapsed),
                "units_per_second": throughput.median,
                "units_per_second_low": throughput.low,
                "units_per_second_high": throughput.high,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "bar": BAR if elapsed is two else np.nan,
            }
        )
    lines = [
        "# Throughput of a study",
        "",
        f"`{common.command()}`",
        "",
        f"{count} units of {arguments.steps} steps: median and quartiles of {arguments.rounds} "
        f"rounds of one run, ratios taken within rounds; {common.machine()}, one for each unit. "
        f"New workers need {np.median(start):.1f} s [{start.min():.1f}, {start.max():.1f}] to "
        "import everything, once in a study of any length.",
        "",
        *common.markdown_table(
            ["workers", "seconds", "units per second", "ratio to 1 worker", "bar"],
            [markdown_row(row) for row in rows],
        ),
    ]
    common.write(arguments.output, "sweep", pd.DataFrame(rows).round(4), lines)


def markdown_row(row: dict[str, object]) -> list[str]:
    """A row of the table, as text."""
    throughput, ratio = (
        common.Ratio(row[name], row[f"{name}_low"], row[f"{name}_high"])
        for name in ("units_per_second", "ratio")
    )
    met = "met" if ratio.median >= BAR else "**missed**"
    bar = "" if np.isnan(row["bar"]) else f"≥ {BAR}: {met}"
    return [row["workers"], f"{row['seconds']:.1f}", str(throughput), str(ratio), bar]


if __name__ == "__main__":
    main(tyro.cli(Arguments))
