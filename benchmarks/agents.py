"""What symmetrising does to agents of every algorithm: plain, equitune, equizero, lambda, selected.

    python benchmarks/agents.py AGENT.zip:ENVIRONMENT RUN_FOLDER ... [--output results/agents]

Each agent plays the same 100 episodes under each policy, in the original environment and in one
whose episodes are each seen through a random group element. Which policy is *selected* is decided
by a race on other episodes, as by ``equirl compare --select``. Each result is kept when it is made:
what was interrupted goes on. The small agents of results/agents were trained by

    equirl train --algo ALGO --env Pendulum-v1 --steps STEPS --checkpoints 1 --device cpu

with 40960 steps of trpo, 14000 of td3 and ddpg, and 4000 of tqc and crossq; by 10000 steps of ars
in CartPole-v1; and by 10240 of maskable_ppo in equirl/Gridworld-v0 with --env-kwargs n=5.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

import equirl
from equicore.lab import command, figures
from equicore.lab.jobs import Workers
from equicore.lab.statistics import mean_difference, t_interval
from equicore.lab.store import digest, remembered, write_text
from equicore.lab.tables import markdown, write_csv
from equirl.agents.evaluation import CONDITIONS, LEAST, Protocol, play
from equirl.agents.hyperparameters import algorithm_class
from equirl.agents.plot import STYLES
from equirl.agents.policies import CANDIDATES, POLICIES, Subject
from equirl.agents.runs import RunFolder
from equirl.agents.saved import SavedAgent, find_agents, told_apart
from equirl.agents.selection import Race

COLUMNS = [
    *("algorithm", "env", "agent", "policy", "condition", "mean_return", "low", "high"),
    *("n_episodes", "difference", "difference_low", "difference_high", "chosen"),
]


@dataclasses.dataclass
class Arguments:
    """Let agents play under each policy, and write agents.csv, agents.md and a figure."""

    agents: tyro.conf.Positional[tuple[str, ...]]
    """Each FILE.zip:ENVIRONMENT, or a run folder of `equirl train`."""
    episodes: int = 100
    """Episodes for each agent, policy and condition."""
    output: Path = Path("results/agents")
    """Folder for the table and the figure."""
    runs: Path = Path("results/runs/agents")
    """Folder for the returns of each agent and condition."""
    jobs: int = 1
    """Processes."""


def found(name: str) -> SavedAgent:
    """The agent that an argument names."""
    path, _, env = name.partition(":")
    (agent,) = find_agents(Path(path), env or None)
    return agent


def returns_of(agent: SavedAgent, condition: str, episodes: int) -> pd.DataFrame:
    """The return of each episode under each policy, and which one was selected."""
    subject = Subject(agent, device="cpu")
    policies = tuple(subject.fitting(POLICIES))
    protocol = Protocol(policies, episodes, race=Race(), candidates=CANDIDATES)
    played, choice = play(subject, condition, protocol)
    assert choice is not None
    rows = {name: played[name] for name in policies} | {"selected": played[choice.policy]}
    run = RunFolder.find(agent.path)
    told = run.arguments().get("algo", "") if run is not None else ""
    # a DDPG is opened as the TD3 that it is but for its training
    kind = algorithm_class(told).__name__ if told else type(subject.model).__name__
    kind = kind.removeprefix("Loaded")
    table = pd.DataFrame(rows).rename_axis("episode").reset_index()
    table = table.melt("episode", var_name="policy", value_name="episode_return")
    return table.assign(algorithm=kind, chosen=choice.policy)


def summary_of(agent: SavedAgent, condition: str, returns: pd.DataFrame) -> pd.DataFrame:
    """A row for each policy, with `COLUMNS`."""
    plain = returns[returns.policy == "plain"].episode_return.to_numpy()
    rows = []
    for policy, own in returns.groupby("policy", sort=False):
        values = own.episode_return.to_numpy()
        mean, difference = t_interval(values), mean_difference(values[None], plain[None])
        rows.append(
            {
                "algorithm": own.algorithm.iloc[0],
                "env": agent.setting,
                "agent": agent.name,
                "policy": policy,
                "condition": condition,
                **dict(zip(("mean_return", "low", "high"), dataclasses.astuple(mean), strict=True)),
                "n_episodes": len(values),
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "chosen": own.chosen.iloc[0] if policy == "selected" else "",
            }
        )
    return pd.DataFrame(rows)[COLUMNS]


def kept(arguments: Arguments, agent: SavedAgent, condition: str) -> pd.DataFrame:
    """What `summary_of` says of returns that are played once."""
    settings = {
        "agent": digest(agent.path.read_bytes()),
        "env": agent.setting,
        "condition": condition,
        "episodes": arguments.episodes,
        "lambda": equirl.policies.HOLD,
    }
    file = arguments.runs / f"{digest(settings)}.csv"
    make = functools.partial(returns_of, agent, condition, arguments.episodes)
    return summary_of(agent, condition, remembered(file, settings, make))


def page(table: pd.DataFrame, told: str) -> str:
    """The table in Markdown, and what it says."""
    parts = [
        "# Agents of every algorithm, plain and symmetrised",
        f"`{told}`",
        f"{table.n_episodes.max()} episodes for each agent, policy and condition, the same for all "
        "policies. Returns of plain with 95 % intervals (Student's); the others as paired "
        "differences to it, with theirs. **Bold**: the interval does not hold 0. *selected* was "
        "chosen by a race on other episodes. Agents named by a folder are small ones, trained as "
        "benchmarks/agents.py says; the others are of rl-baselines3-zoo.",
    ]
    for condition, rows in table.groupby("condition", sort=False):
        names = [n for n in (*POLICIES, "selected") if n != "plain"]
        lines = []
        for _, own in rows.groupby(["agent", "env"], sort=False):
            cells = {row.policy: row for row in own.itertuples()}
            plain = cells["plain"]
            first = f"{plain.mean_return:.1f} [{plain.low:.1f}, {plain.high:.1f}]"
            line: list[Any] = [plain.algorithm, plain.env, plain.agent, first]
            for name in names:
                line.append(_difference(cells.get(name)))
            lines.append([*line, cells["selected"].chosen])
        head = ["algorithm", "environment", "agent", "plain", *names, "chosen"]
        parts += [f"## {condition.capitalize()}", markdown(head, lines)]
        parts.append(_counted(rows, names))
    return "\n\n".join(parts) + "\n"


def _difference(row: Any) -> str:
    if row is None:
        return "none"  # of an agent that does not value views
    text = f"{row.difference:+.1f} [{row.difference_low:+.1f}, {row.difference_high:+.1f}]"
    clear = row.difference_low > 0 or row.difference_high < 0
    return f"**{text}**" if clear else text


def _counted(rows: pd.DataFrame, names: list[str]) -> str:
    lines = []
    for name in names:
        own = rows[rows.policy == name]
        better, worse = own[own.difference_low > 0], own[own.difference_high < 0]
        where = f" ({', '.join(f'{r.agent}' for r in worse.itertuples())})" if len(worse) else ""
        lines.append(
            f"- {name}: better than plain in {len(better)} of {len(own)}, worse in {len(worse)}"
            f"{where}; each interval stands alone, so that about 5 % hold no 0 by chance"
        )
    return "\n".join(lines)


def draw(table: pd.DataFrame, output: Path) -> list[Path]:
    """Differences to plain as shares of plain's return, a row of points for each agent."""
    original = table[(table.condition == "original")]
    plain = original[original.policy == "plain"].set_index(["agent", "env"]).mean_return.abs()
    labels = [f"{agent}" for agent, _ in plain.index]
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(labels)), layout="constrained")
    axis = figure.subplots()
    names = ("equitune", "equizero", "lambda", "selected")
    for i, name in enumerate(names):
        own = original[original.policy == name].set_index(["agent", "env"])
        places = [list(plain.index).index(key) for key in own.index]
        size = plain[own.index].to_numpy()
        value = own.difference.to_numpy() / size
        ends = np.abs(
            own[["difference_low", "difference_high"]].to_numpy() / size[:, None] - value[:, None]
        )
        colour = STYLES[name].fill
        axis.errorbar(
            value, np.array(places) + 0.16 * (i - 1.5), xerr=ends.T, fmt="o", ms=4, lw=1.2,
            color=colour, label=STYLES[name].label,
        )  # fmt: skip
    axis.axvline(0, color="grey", lw=0.8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(
        "difference to plain, as a share of the size of its return; bars: paired 95 % intervals",
        fontsize=8,
    )
    axis.legend(fontsize=8)
    figures.tidy(axis)
    return figures.save(figure, output / "agents")


def main(arguments: Arguments) -> None:
    """Play what is not played yet, and write what was found."""
    command.check_least(arguments, episodes=LEAST, jobs=1)
    agents = told_apart([found(name) for name in arguments.agents])
    for agent in agents:
        agent.load("cpu")
        agent.symmetry()
    tasks = [
        functools.partial(kept, arguments, agent, condition)
        for agent in agents
        for condition in CONDITIONS
    ]
    tables = Workers(arguments.jobs).map(tasks, "playing")
    table = pd.concat(tables, ignore_index=True).sort_values(
        ["condition", "algorithm", "env"], kind="stable", ignore_index=True
    )
    write_csv(arguments.output / "agents.csv", table, "%.6g")
    # of run folders what tells them apart: .../td3/Pendulum-v1_0
    paths = [Path(name.partition(":")[0]) for name in arguments.agents]
    names = " ".join(p.name if p.suffix == ".zip" else "/".join(p.parts[-2:]) for p in paths)
    told = f"python benchmarks/agents.py {names} --episodes {arguments.episodes}"
    text = page(table, told)
    write_text(arguments.output / "agents.md", text)
    print(text, *draw(table, arguments.output), sep="\n")


if __name__ == "__main__":
    command.run({Arguments: main})
