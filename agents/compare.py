"""Compare plain, equitune, equizero and lambda policies of saved agents side by side.

    equirl compare dqn-CartPole-v1.zip --env CartPole-v1
    equirl compare results/runs/dqn/CartPole-v1_* --checkpoints all --output results/cartpole

Agents of one environment and one training budget are compared together: their mean is over seeds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import joblib
import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

from equicore.files import check_writable, replacing
from equicore.processes import one_thread
from equirl.agents import statistics
from equirl.agents.cli import check_least, command_line, run
from equirl.agents.evaluation import (
    CONDITIONS,
    FIRST_SEED,
    SavedAgent,
    check_device,
    check_seed,
    episode_returns,
    find_agents,
)
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.agents.plot import plot_returns
from equirl.agents.policies import (
    CANDIDATES,
    POLICIES,
    ROLLOUT_SEED,
    PolicyName,
    make_policy,
)
from equirl.agents.selection import Race, Selection, select
from equirl.agents.statistics import Estimate, as_array

COLUMNS = ["env", "agent", "seed", "budget", "policy", "condition", "episode", "episode_return"]


@dataclasses.dataclass
class Compare:
    """Compare plain, equitune, equizero and lambda policies of saved agents.

    Every policy plays the same episodes, on the original environment and on one seen through a
    random group element in each episode.

    Example: equirl compare dqn.zip --env Acrobot-v1 --episodes 200 --output results/mine
    """

    agents: tyro.conf.Positional[tuple[Path, ...]]
    """Zip files that Stable-Baselines3 saved, or run folders. Nothing in them is executed."""
    env: str | None = None
    """Environment id; known from run folders when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value; known from run folders when omitted."""
    checkpoints: Literal["final", "all"] = "final"
    """What a run folder stands for: its finished agent, or each of its checkpoints."""
    episodes: int = 100
    """Episodes for each agent, policy and condition."""
    seed: int = FIRST_SEED
    """Seed of the first environment; the others follow."""
    select: bool = False
    """Also choose a policy for each agent and condition, by validation episodes of its own seeds,
    allotted by racing; the plain agent is kept unless another is better."""
    transitions: int = 20_000
    """Transitions that lambda's weights learn from: the newest of the replay buffer if it was kept
    (equirl train --experience), else of the plain agent's own rollouts."""
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""
    output: Path | None = None
    """Folder for returns.csv, table.md and the figures; nothing is written when omitted."""
    jobs: int = os.cpu_count() or 1
    """Processes."""


def play(
    agents: list[SavedAgent],
    episodes: int,
    seed: int = FIRST_SEED,
    transitions: int = 20_000,
    device: str = "auto",
    jobs: int = 1,
    policies: Sequence[PolicyName] = POLICIES,
) -> pd.DataFrame:
    """Let every agent play the policies under both conditions.

    Returns:
        One row for each episode, with the columns ``COLUMNS``.
    """
    units = [(agent, policy) for agent in agents for policy in policies]
    jobs = max(1, min(jobs, len(units)))
    results = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(_play_unit)(agent, policy, episodes, seed, transitions, device)
        for agent, policy in units
    )
    frames = list(tqdm(results, total=len(units), desc="playing", unit="policy", disable=None))
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def _play_unit(
    agent: SavedAgent,
    policy_name: PolicyName,
    episodes: int,
    seed: int,
    transitions: int,
    device: str,
) -> pd.DataFrame:
    with one_thread():
        model = agent.load(device)
        policy = make_policy(policy_name, model, agent, transitions)
        frames = []
        for condition in CONDITIONS:
            returns = episode_returns(policy, agent, condition, episodes, seed)
            frames.append(
                pd.DataFrame(
                    {
                        "env": agent.setting,
                        "agent": agent.name,
                        "seed": agent.seed,
                        "budget": agent.budget or model.num_timesteps,
                        "policy": policy_name,
                        "condition": condition,
                        "episode": np.arange(episodes),
                        "episode_return": returns,
                    }
                )
            )
        return pd.concat(frames)


def add_selected(returns: pd.DataFrame, selections: list[Selection]) -> pd.DataFrame:
    """The returns, with those of the chosen policies again under the name ``selected``."""
    chosen = []
    for selection in selections:
        agent = selection.agent
        rows = returns[
            (returns.env == agent.setting)
            & (returns.agent == agent.name)
            & (returns.policy == selection.choice.policy)
            & (returns.condition == selection.condition)
        ]
        if agent.budget is not None:
            rows = rows[rows.budget == agent.budget]
        chosen.append(rows.assign(policy="selected"))
    return pd.concat([returns, *chosen], ignore_index=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """How one policy does in one setting, over all agents of it."""

    env: str
    budget: int
    condition: str
    policy: str
    agents: int
    mean: Estimate
    iqm: Estimate
    difference: Estimate
    """Mean of the paired difference to plain."""


def summarize(returns: pd.DataFrame) -> list[Row]:
    """A row for each environment, budget, condition and policy."""
    rows = []
    for (env, budget, condition), group in returns.groupby(
        ["env", "budget", "condition"], sort=False
    ):
        arrays = {name: as_array(rows) for name, rows in group.groupby("policy", sort=False)}
        rows += [
            Row(
                env=str(env),
                budget=int(str(budget)),
                condition=str(condition),
                policy=str(name),
                agents=len(array),
                mean=statistics.mean(array),
                iqm=statistics.interquartile_mean(array),
                difference=statistics.mean_difference(array, arrays["plain"]),
            )
            for name, array in arrays.items()
        ]
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| environment | steps | condition | policy | agents | mean return | IQM | minus plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = "" if row.policy == "plain" else str(row.difference)
        lines.append(
            f"| {row.env} | {row.budget:,} | {row.condition} | {row.policy} | {row.agents} | "
            f"{row.mean} | {row.iqm} | {difference} |"
        )
    return "\n".join(lines)


def verdicts(rows: list[Row]) -> list[str]:
    """The rows in plain words, a line for each comparison to plain."""
    lines = []
    for env, budget, condition in dict.fromkeys((r.env, r.budget, r.condition) for r in rows):
        setting = f"{env}, {budget:,} steps, {condition}"
        compared = {
            row.policy: row
            for row in rows
            if (row.env, row.budget, row.condition) == (env, budget, condition)
            and row.policy != "plain"
        }
        for name, row in compared.items():
            lines.append(f"{setting}: {statistics.verdict(name, row.difference)}")
        fixed = [compared[name].difference for name in ("equitune", "equizero")]
        agents = compared["equizero"].agents
        this = "this agent" if agents == 1 else f"these {agents} agents"
        if all(difference.high < 0 for difference in fixed):
            harmless = compared["lambda"].difference.high >= 0
            learned = "; learned weights (lambda) do not" if harmless else ""
            lines.append(f"{setting}: symmetrising hurts {this}{learned}")
        elif all(difference.low > 0 for difference in fixed):
            lines.append(f"{setting}: symmetrising helps {this}")
    return lines


def write_comparison(
    folder: Path,
    returns: pd.DataFrame,
    rows: list[Row],
    command: str,
    selections: Sequence[Selection] = (),
) -> None:
    """Write table.md, returns.csv and the figures.

    Args:
        folder: Where to.
        returns: As `play` gives them.
        rows: Their summary.
        command: The command that reproduces them, named in the table.
        selections: What was chosen, if something was.
    """
    seeds = ", ".join(str(int(seed)) for seed in sorted(returns.seed.dropna().unique()))
    parts = [
        "# Returns of plain and symmetrised policies",
        f"`{command}`",
        f"{returns.episode.nunique()} episodes for each agent, policy and condition"
        + (f"; training seeds {seeds}" if seeds else "")
        + ". Estimates with 95 % intervals of a bootstrap over agents and episodes; IQM is the "
        "mean of the middle half of the episodes; differences are paired.",
        table(rows),
        *(f"- {line}" for line in [*map(str, selections), *verdicts(rows)]),
    ]
    text = "\n\n".join(parts[:4]) + "\n\n" + "\n".join(parts[4:]) + "\n"
    # the table first: by it the same command knows the folder again after a kill
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(text)
    with replacing(folder / "returns.csv") as temporary:
        returns.to_csv(temporary, index=False, float_format="%.6g")
    plot_returns(returns, folder)


def report(rows: list[Row]) -> None:
    """Print the table and the verdicts."""
    print(table(rows))
    print()
    print("\n".join(verdicts(rows)))


def check_output(folder: Path, command: str) -> None:
    """Raise FileExistsError if a folder holds another comparison, or other files."""
    check_writable(folder / "table.md")
    table_file = folder / "table.md"
    if table_file.exists():
        if f"`{command}`" not in table_file.read_text():
            raise FileExistsError(
                f"{folder} holds another comparison, see its table.md; name another folder with "
                "--output"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds other files; name an empty or new folder with --output"
        )


def check_names(agents: list[SavedAgent]) -> None:
    """Raise ValueError if two agents of one setting have one name, by which they are told apart."""
    seen: dict[tuple[str, str, int | None], Path] = {}
    for agent in agents:
        other = seen.setdefault((agent.setting, agent.name, agent.budget), agent.path)
        if other is not agent.path:
            raise ValueError(
                f"two agents are called {agent.name}: {other} and {agent.path}; rename one, or "
                "compare them one after the other"
            )


def command_of(arguments: Compare) -> str:
    """The command line that gives these arguments, with the agents by name only.

    >>> command_of(Compare((Path("models/dqn.zip"),), env="Acrobot-v1", episodes=200))
    'equirl compare dqn.zip --env Acrobot-v1 --episodes 200'
    """
    names = [path.name for path in arguments.agents]
    return command_line("compare", arguments, ("agents", "output", "device", "jobs"), names)


def main(arguments: Compare) -> None:
    """Compare and report."""
    if not arguments.agents:
        raise ValueError("no agents given: name zip files or run folders")
    check_least(arguments, episodes=1, jobs=1, transitions=10)
    check_seed(arguments.seed)
    if arguments.seed + arguments.episodes > ROLLOUT_SEED:
        raise ValueError(
            f"the seeds from {ROLLOUT_SEED} are those that lambda learns from and policies are "
            f"chosen by; give a smaller --seed than {arguments.seed}"
        )
    check_device(arguments.device)
    env_kwargs = parse_env_kwargs(arguments.env_kwargs)
    agents = [
        agent
        for path in arguments.agents
        for agent in find_agents(path, arguments.env, env_kwargs, arguments.checkpoints)
    ]
    check_names(agents)
    for agent in agents:
        agent.load()
        agent.symmetry()
    if arguments.output is not None:
        check_output(arguments.output, command_of(arguments))
    selections = []
    if arguments.select:
        selections = select(agents, Race(), arguments.transitions, arguments.device, arguments.jobs)
    returns = play(
        agents,
        arguments.episodes,
        arguments.seed,
        arguments.transitions,
        arguments.device,
        arguments.jobs,
        CANDIDATES if arguments.select else POLICIES,
    )
    returns = add_selected(returns, selections)
    rows = summarize(returns)
    report(rows)
    if selections:
        print("\n" + "\n".join(map(str, selections)))
    if arguments.output is not None:
        write_comparison(arguments.output, returns, rows, command_of(arguments), selections)
        print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    run(main, Compare)
