"""Does the demonstration show what it says, whatever the seeds and the machine's arithmetic?

Runs `make demo` on eight sets of training seeds, of which the demonstration's is the first and none
was used to choose its settings. In each environment one policy is named beforehand.

    python benchmarks/demo_sets.py --output results/demo_sets
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import common
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from equicore.lab import CORES, command, figures
from equicore.lab.statistics import Estimate
from equicore.lab.store import remembered, write_text
from equicore.lab.tables import frame_markdown, write_csv
from equirl.agents import demo
from equirl.agents.compare import summarize
from equirl.agents.plot import STYLES, read_comparison
from equirl.agents.verdicts import RANDOM

NAMED = {
    "Acrobot-v1": ("equizero", "original"),
    "equirl/Gridworld-v0 goals=corner": ("lambda", "transformed"),
    "CartPole-v1": ("equizero", "original"),
}
"""The policy and the condition in which it should be clearly better than plain."""


@dataclasses.dataclass
class Arguments:
    """Run the demonstration on several sets of seeds; about an hour on two cores."""

    sets: int = 8
    """How many sets, one after the other, each of as many seeds as the demonstration has."""
    runs: Path = Path("results/runs/demo_sets")
    """Folder for the trained agents and the comparison of each set."""
    output: Path | None = None
    """Folder for the table and the figure."""
    jobs: int = CORES
    """Processes."""


def differences(arguments: demo.Demo) -> pd.DataFrame:
    """How each policy of a set of agents differs from plain."""
    demo.main(arguments)
    summary = summarize(read_comparison(arguments.output))
    rows = summary[~summary.policy.isin(["plain", RANDOM])]
    estimates = pd.DataFrame([dataclasses.asdict(e) for e in rows["minus plain"]])
    keys = rows[["environment", "condition", "policy", "agents"]].reset_index(drop=True)
    seeds = f"{arguments.seeds[0]}-{arguments.seeds[-1]}"
    return pd.concat([keys.assign(seeds=seeds), estimates], axis=1)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the policies that were named beforehand."""
    keys = zip(table.environment, table.policy, table.condition, strict=True)
    return table[[NAMED[env] == (policy, condition) for env, policy, condition in keys]]


def as_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each set, a column for each environment's named policy."""
    cells = named(table).assign(
        what=[
            f"{r.environment}, {r.condition}: {r.policy} - plain" for r in named(table).itertuples()
        ],
        cell=[Estimate(r.value, r.low, r.high) for r in named(table).itertuples()],
    )
    order = list(dict.fromkeys(cells.what))
    return cells.pivot(index="seeds", columns="what", values="cell")[order].reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """A panel for each environment: the named policy's difference in each set."""
    figure, axes = figures.grid(1, len(NAMED), figsize=(9, 3), sharey=True)
    for axis, (env, rows) in zip(
        axes[0], named(table).groupby("environment", sort=False), strict=True
    ):
        estimates = [
            Estimate(*map(float, row)) for row in rows[["value", "low", "high"]].to_numpy()
        ]
        policy, condition = NAMED[str(env)]
        axis.errorbar(
            [e.value for e in estimates],
            np.arange(len(rows)),
            xerr=figures.error_bars(estimates),
            color=STYLES[policy].fill,
            marker=STYLES[policy].marker,
            linestyle="none",
            capsize=3,
        )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{env}\n{condition}: {STYLES[policy].label} − plain", fontsize=9)
        axis.set_xlabel("difference of mean returns,\n95 % interval", fontsize=9)
        axis.set_yticks(np.arange(len(rows)), rows.seeds)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes[0][0].invert_yaxis()
    axes[0][0].set_ylabel("training seeds")
    return figure


def main(arguments: Arguments) -> None:
    """Run the sets, and write the table and the figure."""
    command.check_least(arguments, sets=1, jobs=1)
    first = demo.Demo(jobs=arguments.jobs)
    size = len(first.seeds)
    tables = []
    for number in range(arguments.sets):
        seeds = tuple(seed + number * size for seed in first.seeds)
        folder = arguments.runs / f"{seeds[0]}-{seeds[-1]}"
        one = dataclasses.replace(first, seeds=seeds, output=folder, runs=arguments.runs / "agents")
        make = functools.partial(differences, one)
        tables.append(remembered(folder / "set.csv", demo.settings(one), make))
    table = pd.concat(tables, ignore_index=True)
    clear = named(table).assign(clear=lambda rows: rows.low > 0)
    counts = clear.groupby("environment", sort=False).clear.agg(["sum", "count"])
    lines = [f"- {env}: in {n} of {of} sets" for env, n, of in counts.itertuples()]
    text = frame_markdown(as_table(table))
    print("\n".join([text, *lines]))
    if arguments.output is None:
        return
    page = common.page(
        "The demonstration on sets of seeds that were not used to choose it",
        f"Each set is {size} agents in each environment; the first is that of `make demo`. "
        "Differences to the plain agents of mean returns over the checkpoints of the training, "
        "paired by agent and episode, with 95 % intervals of a bootstrap over agents and episodes. "
        "For each environment one policy and condition is named beforehand; all others are in "
        "demo_sets.csv.",
        text,
        "The named policy is clearly better than plain, its interval lies above 0:",
        "\n".join(lines),
        "![The table as a figure](demo_sets.png)",
    )
    write_text(arguments.output / "demo_sets.md", page)
    write_csv(arguments.output / "demo_sets.csv", table, "%.6g")
    figures.save(draw(table), arguments.output / "demo_sets", dpi=120)


if __name__ == "__main__":
    command.run({Arguments: main})
