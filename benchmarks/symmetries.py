"""Which symmetries hold, is every lie caught, and are the known ones found?

    python benchmarks/symmetries.py [--seeds 0 1 2] [--output results/symmetries]

Four tables: what the checker says of each symmetry that equirl knows, over seeds; of lies, each a
mistake that people make; of both by transitions alone, beside twins; and what a search finds from
interaction alone. Each row is kept when it is made: what was interrupted goes on. Needs the extras
box2d and mujoco, and minigrid and gymnasium-robotics for their rows.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import lies
import numpy as np
import pandas as pd

import equirl
from equicore.lab import CORES, command
from equicore.lab.jobs import Workers, one_thread
from equicore.lab.statistics import proportion
from equicore.lab.store import remembered, write_text
from equicore.lab.tables import frame_markdown, write_csv
from equirl.discover import search
from equirl.judge import Judge

BY_TRANSITIONS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "Swimmer-v5",
                  "Walker2d-v5", "InvertedPendulum-v5", "equirl/Gridworld-v0")  # fmt: skip
"""Environments that allow both: twins, and random transitions that see transformed states."""
FOUND = {
    "CartPole-v1": 2, "Acrobot-v1": 2, "Pendulum-v1": 2, "LunarLander-v3": 2,
    "LunarLanderContinuous-v3": 2, "equirl/Gridworld-v0": 8, "Swimmer-v5": 2, "BipedalWalker-v3": 2,
    "Walker2d-v5": 2, "InvertedDoublePendulum-v5": 2, "Reacher-v5": 8, "MountainCar-v0": 1,
    "HalfCheetah-v5": 1, "Hopper-v5": 1,
}  # fmt: skip
"""The orders of the groups that a search should find; 1 where there is no symmetry."""
NEEDS = {"MiniGrid": "minigrid", "PointMaze": "gymnasium_robotics"}


@dataclasses.dataclass
class Arguments:
    """Check what is known, catch lies, and find symmetries."""

    seeds: tuple[int, ...] = tuple(range(20))
    """Of the checks of true symmetries by twins."""
    lies: tuple[int, ...] = (0, 1, 2)
    """Of lies."""
    few: tuple[int, ...] = (0, 1, 2)
    """Of searches; of checks by transitions the first two."""
    only: str = ""
    """Environments whose names begin so; all when omitted."""
    output: Path | None = None
    """Folder for the tables and the figure; nothing is written when omitted."""
    runs: Path = Path("results/runs/symmetries")
    """Folder that keeps each row."""
    jobs: int = CORES
    """Processes."""


def truths() -> dict[str, tuple[Callable[[], Any], Callable[[], equirl.Symmetry]]]:
    """Environments and symmetries that are checked."""
    found = {name: (lies.maker(name), lies.symmetry_of(name)) for name in
             equirl.registered_symmetries()}  # fmt: skip
    for name in lies.MINIGRIDS:
        found[name] = (lies.maker(name), lies.symmetry_of(name))
    found["Ant-v5, quarter turns"] = (lies.maker("Ant-v5"), lies.ant_turns)
    return {name: pair for name, pair in found.items() if _is_here(name)}


def _is_here(name: str) -> bool:
    return all(
        importlib.util.find_spec(module) for prefix, module in NEEDS.items() if prefix in name
    )


def checked(name: str, seed: int) -> pd.DataFrame:
    """A row of checks.csv."""
    make, symmetry = truths()[name]
    start = time.perf_counter()
    with one_thread():
        check = equirl.check_symmetry(make, symmetry(), seed=seed)
    return _row(name, check, seed=seed, seconds=time.perf_counter() - start)


def caught(name: str, seed: int) -> pd.DataFrame:
    """A row of lies.csv."""
    lie = lies.LIES[name]
    start = time.perf_counter()
    with one_thread():
        check = equirl.check_symmetry(lie.make, lie.symmetry(), place=lie.place, seed=seed)
    said = check.verdict
    named = not lie.entry or lie.entry in said
    row = _row(lie.env, check, lie=lie.words, seed=seed, caught=not check.holds, named=named)
    seconds = time.perf_counter() - start
    return row.assign(resembles=check.resembles or "", refuted=check.false, seconds=seconds)


def by_transitions(name: str, seed: int) -> pd.DataFrame:
    """A row of transitions.csv: of an environment, or of a lie about it."""
    lie = lies.LIES.get(name)
    make = lie.make if lie else lies.maker(name)
    symmetry = lie.symmetry() if lie else lies.symmetry_of(name)()
    with one_thread():
        twins = equirl.check_symmetry(make, symmetry, place=lie.place if lie else None, seed=seed)
        start = time.perf_counter()
        judge = Judge(make, seed=seed)
        judge.simulator = None  # as if there were no twins
        check = judge.judge(symmetry)
    row = _row(lie.env if lie else name, check, lie=lie.words if lie else "", seed=seed)
    return row.assign(
        twins="holds" if twins.holds else "refuted",
        twins_size=twins.dynamics.size,
        agree=check.holds == twins.holds,
        seconds=time.perf_counter() - start,
    )


def found(name: str, seed: int) -> pd.DataFrame:
    """A row of discovery.csv."""
    start = time.perf_counter()
    with one_thread():
        discovery = search(lies.maker(name), seed=seed)
    return pd.DataFrame(
        [
            {
                "env": name,
                "seed": seed,
                "order": len(discovery.symmetry.group),
                "known": FOUND[name],
                "right": len(discovery.symmetry.group) == FOUND[name],
                "refuted": discovery.refuted,
                "transitions": discovery.transitions,
                "seconds": time.perf_counter() - start,
            }
        ]
    )


def _row(name: str, check: Any, **more: Any) -> pd.DataFrame:
    sizes = {
        f"{aspect}_size": float(getattr(check, aspect).size)
        for aspect in ("dynamics", "reward", "termination")
    }
    verdicts = {a: getattr(check, a).verdict for a in ("dynamics", "reward", "termination")}
    worst = int(np.argmax(check.entries))
    names = check.symmetry.names.observation if check.symmetry.names else ()
    return pd.DataFrame(
        [
            {
                "env": name,
                **more,
                "holds": check.holds,
                **verdicts,
                **sizes,
                "worst_entry": names[worst] if len(names) > worst else str(worst),
                "in_return": check.in_return if check.in_return is not None else math.nan,
                "lopsided": len(check.lopsided),
            }
        ]
    )


def gathered(
    arguments: Arguments,
    what: str,
    row: Callable[[str, int], pd.DataFrame],
    names: list[str],
    seeds: tuple[int, ...],
) -> pd.DataFrame:
    """All rows of a table, those that are missing made side by side."""
    tasks = [
        functools.partial(_kept, arguments.runs / what, row, name, seed)
        for name in names
        if name.startswith(arguments.only)
        for seed in seeds
    ]
    return pd.concat(Workers(arguments.jobs).map(tasks, what), ignore_index=True)


def _kept(
    folder: Path, row: Callable[[str, int], pd.DataFrame], name: str, seed: int
) -> pd.DataFrame:
    plain = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
    settings = {"name": name, "seed": seed, "version": equirl.__version__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return remembered(
            folder / f"{plain}_{seed}.csv", settings, functools.partial(row, name, seed)
        )


def main(arguments: Arguments) -> None:
    """Make the tables, print and write them."""
    few = arguments.few
    known = [name for name in lies.LIES if _is_here(name)]
    simple = [name for name in known if lies.LIES[name].env in BY_TRANSITIONS]
    tables = {
        "checks": gathered(arguments, "checks", checked, list(truths()), arguments.seeds),
        "lies": gathered(arguments, "lies", caught, known, arguments.lies),
        "transitions": gathered(
            arguments, "transitions", by_transitions, [*BY_TRANSITIONS, *simple], few[:2]
        ),
        "discovery": gathered(arguments, "discovery", found, list(FOUND), few),
    }
    page = written(tables)
    print(page)
    if arguments.output is None:
        return
    for name, table in tables.items():
        write_csv(arguments.output / f"{name}.csv", table, "%.4g")
    write_text(arguments.output / "symmetries.md", page)
    lies.draw(tables, arguments.output)


def written(tables: dict[str, pd.DataFrame]) -> str:
    """All tables as a page."""
    checks, wrong = tables["checks"], tables["lies"]
    true = checks[~checks.env.str.contains("quarter")]
    rate = proportion(int(true.holds.sum()), len(true))
    catch = proportion(int(wrong.caught.sum()), len(wrong))
    named = proportion(int(wrong.named.sum()), len(wrong))
    both, found_ = tables["transitions"], tables["discovery"]
    agree = proportion(int(both.agree.sum()), len(both))
    right = proportion(int(found_.right.sum()), len(found_))
    first = checks.groupby("env", sort=False).agg(
        seeds=("seed", "count"), holds=("holds", "sum"), dynamics=("dynamics", _said),
        reward=("reward", _said), termination=("termination", _said),
        error=("dynamics_size", "max"), at=("worst_entry", "first"), in_return=("in_return", "max"),
        lopsided_entries=("lopsided", "max"), seconds=("seconds", "mean"),
    ).reset_index()  # fmt: skip
    second = wrong.groupby(["env", "lie"], sort=False).agg(
        seeds=("seed", "count"), caught=("caught", "sum"), called_false=("refuted", "sum"),
        named=("named", "sum"),
        error=("dynamics_size", "median"), resembles=("resembles", "first"),
    ).reset_index()  # fmt: skip
    third = both.fillna({"lie": ""}).groupby(["env", "lie"], sort=False).agg(
        seeds=("seed", "count"), twins=("twins", "first"), twins_error=("twins_size", "max"),
        transitions=("dynamics", _said), reward=("reward", _said), end=("termination", _said),
        size=("dynamics_size", "max"), agree=("agree", "sum"),
    ).reset_index()  # fmt: skip
    fourth = found_.groupby("env", sort=False).agg(
        seeds=("seed", "count"), known=("known", "first"), orders=("order", _said),
        right=("right", "sum"), transitions=("transitions", "max"), seconds=("seconds", "mean"),
    ).reset_index()  # fmt: skip
    parts = [
        "# Which symmetries hold, which lies are caught, and what is found",
        f"`python benchmarks/symmetries.py --output results/symmetries`, equirl "
        f"{equirl.__version__}; {common.machine()}, one for each row.",
        "## Symmetries that equirl knows, against the simulator",
        f"True ones hold in {rate} of the rows (95 % interval). The error is the largest over seeds"
        ", of the worst entry, in parts of its usual changes; where a solver's order tells "
        "twins apart, dynamics_size in checks.csv is the part of steps after which it had; "
        "in_return is by how much rewards differ in the mean. Quarter turns of the Ant hold for "
        "its dynamics, and not for its reward.",
        _page(first),
        "## Lies",
        f"Caught, that is not said to hold: {catch}. The entry named: {named}. What is caught and "
        "not called false was not shown: transitions could not tell.",
        _page(second),
        "## By transitions alone, beside twins",
        "20,000 transitions under random actions, level 1e-4 for all tests of a symmetry together. "
        f"Both agree in {agree}. The size of what holds is the smallest violation, everywhere "
        "alike, that would have been seen with probability 0.95. Transitions have less power: "
        "what is true is not shown (unknown) where episodes hardly end, and lies are missed that "
        "show in few states.",
        _page(third),
        "## Found from interaction alone",
        f"Right: {right}. Candidates are learned from transitions, then verified.",
        _page(fourth),
    ]
    return "\n\n".join(parts) + "\n"


def _page(table: pd.DataFrame) -> str:
    """A table in Markdown, with two digits."""
    plain = table.rename(columns=lambda name: name.replace("_", " "))
    for name in plain.select_dtypes(float):
        plain[name] = plain[name].map("{:.2g}".format)
    return frame_markdown(plain.fillna(""))


def _said(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(str(value).lower() for value in values))


if __name__ == "__main__":
    command.run({Arguments: main})
