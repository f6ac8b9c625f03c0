"""Compare plain, equitune, equizero and lambda policies of saved agents side by side.

Agents of one environment and one training budget are compared together: their mean is over seeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tyro

from equicore import MLPWeight
from equicore.lab import statistics
from equicore.lab.command import check_least, command_line
from equicore.lab.jobs import CORES, Workers, check_device
from equicore.lab.store import check_claim, claim, digest, write_text
from equicore.lab.tables import frame_markdown, write_csv
from equirl.agents.cli import run
from equirl.agents.evaluation import CONDITIONS, FIRST_SEED, Condition, Protocol, check_seed, play
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.agents.plot import COLUMNS, as_array, plot_returns, read_comparison
from equirl.agents.policies import CANDIDATES, POLICIES, ROLLOUT_SEED, Subject
from equirl.agents.saved import SavedAgent, find_agents
from equirl.agents.selection import Race


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
    jobs: int = CORES
    """Processes."""


def compare(
    agents: Sequence[SavedAgent], protocol: Protocol, workers: Workers, device: str = "auto"
) -> tuple[pd.DataFrame, list[str]]:
    """Let every agent play the policies under both conditions.

    Returns:
        A row for each episode, with the columns of `equirl.agents.plot.COLUMNS`; and a line for
        each agent and condition for which a policy was chosen.
    """
    subjects = [Subject(agent, protocol.transitions, device) for agent in agents]
    fitted = workers.map([functools.partial(_fit, s) for s in subjects], "learning weights")
    plays = [
        functools.partial(_play, dataclasses.replace(subject, weights=weights), c, protocol)
        for subject, weights in zip(subjects, fitted, strict=True)
        for c in CONDITIONS
    ]
    tables, chosen = zip(*workers.map(plays, "playing"), strict=True)
    order = [*protocol.policies, "selected"].index
    both = (pd.concat(tables[i : i + 2]) for i in range(0, len(tables), 2))
    rows = [t.sort_values("policy", key=lambda p: p.map(order), kind="stable") for t in both]
    return pd.concat(rows, ignore_index=True), [line for line in chosen if line]


def _fit(subject: Subject) -> dict[str, MLPWeight]:
    """The weights of an agent's lambda policy."""
    subject.familiarity("replay")
    return subject.weights


def _play(subject: Subject, condition: Condition, protocol: Protocol) -> tuple[pd.DataFrame, str]:
    """The returns of an agent's policies, with `COLUMNS`; and which was chosen, in words."""
    agent = subject.agent
    played, choice = play(subject, condition, protocol)
    returns = {name: played[name] for name in protocol.policies}
    chosen = ""
    if choice is not None:
        returns["selected"] = played[choice.policy]
        budget = "" if agent.budget is None else f", {agent.budget:,} steps"
        chosen = f"{agent.name}, {agent.setting}{budget}, {condition}: use {choice}"
    table = pd.DataFrame(returns).rename_axis("episode").reset_index()
    table = table.melt("episode", var_name="policy", value_name="episode_return").assign(
        env=agent.setting,
        agent=agent.name,
        seed=agent.seed,
        budget=agent.budget or subject.model.num_timesteps,
        condition=condition,
    )
    return table[COLUMNS], chosen


def over_training(returns: pd.DataFrame) -> pd.DataFrame:
    """Each agent's returns as means over its checkpoints, episode by episode."""
    keys = [name for name in COLUMNS if name not in ("budget", "episode_return")]
    checkpoints = returns.groupby(keys, sort=False, dropna=False, as_index=False)
    return checkpoints.agg({"budget": "max", "episode_return": "mean"})[COLUMNS]


def summarize(returns: pd.DataFrame) -> pd.DataFrame:
    """A row for each environment, budget, condition and policy; the columns are those of tables."""
    records = []
    groups = returns.groupby(["env", "budget", "condition"], sort=False)
    for (env, budget, condition), group in groups:
        arrays = {name: as_array(rows) for name, rows in group.groupby("policy", sort=False)}
        plain = arrays["plain"]
        for name, array in arrays.items():
            difference = None if array is plain else statistics.mean_difference(array, plain)
            records.append(
                {
                    "environment": env,
                    "steps": budget,
                    "condition": condition,
                    "policy": name,
                    "agents": len(array),
                    "mean return": statistics.mean(array),
                    "IQM": statistics.interquartile_mean(array),
                    "minus plain": difference,
                }
            )
    return pd.DataFrame(records)


def verdicts(summary: pd.DataFrame) -> list[str]:
    """The summary in plain words, a line for each comparison to plain."""
    lines = []
    for (env, steps, condition), rows in summary.groupby(
        ["environment", "steps", "condition"], sort=False
    ):
        setting = f"{env}, {steps:,} steps, {condition}"
        differences = dict(zip(rows.policy, rows["minus plain"], strict=True))
        del differences["plain"]
        lines += [f"{setting}: {statistics.verdict(n, d)}" for n, d in differences.items()]
        fixed = [differences[name] for name in ("equitune", "equizero")]
        agents = rows.agents.iloc[0]
        this = "this agent" if agents == 1 else f"these {agents} agents"
        if all(difference.high < 0 for difference in fixed):
            harmless = differences["lambda"].high >= 0
            learned = "; learned weights (lambda) do not" if harmless else ""
            lines.append(f"{setting}: symmetrising hurts {this}{learned}")
        elif all(difference.low > 0 for difference in fixed):
            lines.append(f"{setting}: symmetrising helps {this}")
    return lines


def write_comparison(
    folder: Path, returns: pd.DataFrame, chosen: list[str], summary: pd.DataFrame, command: str
) -> None:
    """Write table.md, which names the command that reproduces it, returns.csv and the figures."""
    seeds = ", ".join(str(int(seed)) for seed in sorted(returns.seed.dropna().unique()))
    parts = [
        "# Returns of plain and symmetrised policies",
        f"`{command}`",
        f"{returns.episode.nunique()} episodes for each agent, policy and condition"
        + (f"; training seeds {seeds}" if seeds else "")
        + ". Estimates with 95 % intervals of a bootstrap over agents and episodes; IQM is the "
        "mean of the middle half of the episodes; differences are paired.",
        frame_markdown(summary),
        "\n".join(f"- {line}" for line in [*chosen, *verdicts(summary)]),
    ]
    write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    write_csv(folder / "returns.csv", returns, "%.6g")
    plot_returns(read_comparison(folder), folder)  # as `equirl plot` draws them


def report(summary: pd.DataFrame) -> None:
    """Print the table and the verdicts."""
    print("\n".join([frame_markdown(summary), "", *verdicts(summary)]))


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


def settings_of(arguments: Compare, agents: list[SavedAgent]) -> dict[str, Any]:
    """What decides the results: the agents' files, and what they play."""
    files = {}
    for agent in agents:
        budget = f", {agent.budget} steps" if agent.budget else ""
        both = (agent.path, agent.experience(agent.budget or 0))
        read = [file.read_bytes() for file in both if file.exists()]
        files[f"{agent.name}, {agent.setting}{budget}"] = digest(b"".join(read))
    return {
        "environments": sorted({agent.setting for agent in agents}),
        "agents": files,
        **{key: getattr(arguments, key) for key in ("episodes", "seed", "select", "transitions")},
    }


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
    files = {"settings.yml": settings_of(arguments, agents)}
    if arguments.output is not None:
        check_claim(arguments.output, files)
    protocol = Protocol(
        CANDIDATES if arguments.select else POLICIES,
        arguments.episodes,
        arguments.seed,
        arguments.transitions,
        Race() if arguments.select else None,
    )
    returns, chosen = compare(agents, protocol, Workers(arguments.jobs), arguments.device)
    summary = summarize(returns)
    report(summary)
    if chosen:
        print("\n" + "\n".join(chosen))
    if arguments.output is not None:
        claim(arguments.output, files)
        names = [path.name for path in arguments.agents]
        without = ("agents", "output", "device", "jobs")
        command = command_line("equirl compare", arguments, without, names)
        write_comparison(arguments.output, returns, chosen, summary, command)
        print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    run(main, Compare)
