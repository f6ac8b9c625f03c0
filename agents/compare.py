"""Compare plain, equitune, equizero and lambda policies of saved agents side by side.

Agents of one environment and one training budget are compared together: their mean is over seeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import equirl
from equicore import MLPWeight
from equicore.lab import statistics
from equicore.lab.command import check_least, command_line
from equicore.lab.devices import check_device
from equicore.lab.jobs import Workers
from equicore.lab.store import check_claim, claim, digest, write_text
from equicore.lab.tables import frame_markdown, write_csv
from equirl.agents.arguments import Compare
from equirl.agents.checked import checks_of, described
from equirl.agents.cli import run
from equirl.agents.evaluation import (
    CONDITIONS,
    LEAST,
    RULES,
    Condition,
    Protocol,
    check_seed,
    play,
    play_at_random,
)
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.agents.plot import COLUMNS, as_array, plot_returns, read_comparison
from equirl.agents.policies import CANDIDATES, POLICIES, Subject
from equirl.agents.report import write_report
from equirl.agents.saved import SavedAgent, find_agents, told_apart
from equirl.agents.selection import Race
from equirl.agents.verdicts import RANDOM, Chosen, advice, cautions, verdicts
from equirl.agents.video import film
from equirl.seeds import ROLLOUT_SEED


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that a comparison says, in lines of plain words; see `equirl.agents.verdicts`."""

    checks: Sequence[str]
    chosen: Sequence[str]
    verdicts: Sequence[str]
    cautions: Sequence[str]
    advice: Sequence[str]

    @property
    def lines(self) -> list[str]:
        """All of them, in the order of table.md."""
        return [*self.checks, *self.chosen, *self.verdicts, *self.cautions, *self.advice]


def compare(
    agents: Sequence[SavedAgent], protocol: Protocol, workers: Workers, device: str = "auto"
) -> tuple[pd.DataFrame, list[Chosen]]:
    """Let every agent play the policies under both conditions.

    Returns:
        A row for each episode, with the columns of `equirl.agents.plot.COLUMNS`, among them those
        of random actions; and what was chosen for each agent and condition, if anything was.
    """
    return play_all(fit(agents, protocol, workers, device), protocol, workers)


def fit(
    agents: Sequence[SavedAgent], protocol: Protocol, workers: Workers, device: str = "auto"
) -> list[Subject]:
    """The agents, with the weights that their lambda policies have learned."""
    subjects = [Subject(agent, protocol.transitions, device) for agent in agents]
    fitted = workers.map([functools.partial(_fit, s) for s in subjects], "learning weights")
    return [
        dataclasses.replace(subject, weights=weights)
        for subject, weights in zip(subjects, fitted, strict=True)
    ]


def play_all(
    subjects: Sequence[Subject], protocol: Protocol, workers: Workers
) -> tuple[pd.DataFrame, list[Chosen]]:
    """What `compare` returns, of agents whose weights have learned."""
    plays = [functools.partial(_play, s, c, protocol) for s in subjects for c in CONDITIONS]
    tables, chosen = zip(*workers.map(plays, "playing"), strict=True)
    settings = {subject.agent.setting: subject.agent for subject in subjects}
    drawn = [functools.partial(play_at_random, agent, protocol) for agent in settings.values()]
    at_random = dict(zip(settings, workers.map(drawn, "random actions"), strict=True))
    order = [*protocol.policies, "selected", RANDOM].index
    rows = []
    for i in range(0, len(tables), 2):
        one = tables[i].drop_duplicates("episode")
        chance = one.assign(policy=RANDOM, episode_return=at_random[one.env.iloc[0]])
        both = pd.concat([*tables[i : i + 2], chance])
        rows.append(both.sort_values("policy", key=lambda p: p.map(order), kind="stable"))
    return pd.concat(rows, ignore_index=True), [choice for choice in chosen if choice]


def _fit(subject: Subject) -> dict[str, MLPWeight]:
    """The weights of an agent's lambda policy."""
    subject.familiarity("replay")
    return subject.weights


def _play(
    subject: Subject, condition: Condition, protocol: Protocol
) -> tuple[pd.DataFrame, Chosen | None]:
    """The returns of an agent's policies, with `COLUMNS`; and which was chosen."""
    agent = subject.agent
    budget = subject.budget
    protocol = dataclasses.replace(protocol, policies=tuple(subject.fitting(protocol.policies)))
    played, choice = play(subject, condition, protocol)
    returns = {name: played[name] for name in protocol.policies}
    chosen = None
    if choice is not None:
        returns["selected"] = played[choice.policy]
        words = f"{agent.name}, {agent.setting}, {budget:,} steps, {condition}: use {choice}"
        chosen = Chosen(agent.setting, budget, str(condition), choice.policy, words)
    table = pd.DataFrame(returns).rename_axis("episode").reset_index()
    table = table.melt("episode", var_name="policy", value_name="episode_return").assign(
        env=agent.setting,
        agent=agent.name,
        seed=agent.seed,
        budget=budget,
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


def conclusions(
    returns: pd.DataFrame,
    summary: pd.DataFrame,
    chosen: Sequence[Chosen] = (),
    checks: Sequence[str] = (),
) -> list[str]:
    """All that a comparison says, in lines of plain words.

    Args:
        returns: What `compare` returns.
        summary: What `summarize` returns.
        chosen: What was selected.
        checks: What the checks of the symmetries say, see `equirl.agents.checked`.
    """
    return findings(returns, summary, chosen, checks).lines


def findings(
    returns: pd.DataFrame,
    summary: pd.DataFrame,
    chosen: Sequence[Chosen] = (),
    checks: Sequence[str] = (),
) -> Findings:
    """What `conclusions` says, kind by kind."""
    cautious = cautions(returns)
    words = [choice.words for choice in chosen]
    return Findings(checks, words, verdicts(summary), cautious, advice(summary, chosen, cautious))


def explained(returns: pd.DataFrame) -> str:
    """How much was played, and what the intervals are."""
    seeds = ", ".join(str(int(seed)) for seed in sorted(returns.seed.dropna().unique()))
    return (
        f"{returns.episode.nunique()} episodes for each agent, policy and condition"
        + (f"; training seeds {seeds}" if seeds else "")
        + ". Estimates with 95 % intervals: of a bootstrap over agents and episodes, and of means "
        "of one agent Student's. IQM is the mean of the middle half of the episodes. Differences "
        "are paired: episode k begins with the same seed for every policy."
    )


def write_comparison(
    folder: Path, returns: pd.DataFrame, lines: Sequence[str], summary: pd.DataFrame, command: str
) -> None:
    """Write table.md, which names the command that reproduces it, returns.csv and the figures."""
    parts = [
        "# Returns of plain and symmetrised policies",
        f"`{command}`, equirl {equirl.__version__}",
        explained(returns),
        frame_markdown(summary),
        "\n".join(f"- {line}" for line in lines),
    ]
    write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    write_csv(folder / "returns.csv", returns, "%.6g")
    plot_returns(read_comparison(folder), folder)  # as `equirl plot` draws them


def report(summary: pd.DataFrame, lines: Sequence[str]) -> None:
    """Print the table and what it says."""
    print("\n".join([frame_markdown(summary), "", *lines]))


def settings_of(arguments: Compare, agents: list[SavedAgent]) -> dict[str, Any]:
    """What decides the results: the agents' files, and what they play."""
    files = {}
    for agent in agents:
        both = (agent.path, agent.experience(agent.budget or 0))
        read = [file.read_bytes() for file in both if file.exists()]
        files[f"{agent.name}, {agent.setting}, {agent.budget} steps"] = digest(b"".join(read))
    return {
        "environments": sorted({agent.setting for agent in agents}),
        "symmetries": {agent.setting: described(agent.symmetry()) for agent in agents},
        "agents": files,
        "rules": RULES,
        **{key: getattr(arguments, key) for key in ("episodes", "seed", "select", "transitions")},
    }


def main(arguments: Compare) -> None:
    """Compare and report."""
    if not arguments.agents:
        raise ValueError("no agents given: name zip files or run folders")
    check_least(arguments, episodes=LEAST, jobs=1, transitions=10)
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
    agents = told_apart(agents)
    algorithms: dict[str, str] = {}
    shown: dict[str, SavedAgent] = {}
    for i, agent in enumerate(agents):
        model = agent.load()
        agents[i] = dataclasses.replace(agent, budget=agent.budget or model.num_timesteps)
        agent.symmetry()
        kind = type(model).__name__.removeprefix("Loaded")
        other = shown.setdefault(agent.setting, agent)
        if (agent.layers, agent.frames) != (other.layers, other.frames):
            raise ValueError(
                f"{agent.name} and {other.name} see {agent.setting} through other wrappers "
                "(env_wrapper, frame_stack of their config.yml); compare them by commands of their "
                "own"
            )
        first = algorithms.setdefault(agent.setting, kind)
        if kind != first:  # they would be seeds of one mean, or budgets of one curve
            raise ValueError(
                f"agents of {first} and {kind} for {agent.setting} have no mean in common; "
                "compare those of each algorithm by a command of its own"
            )
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
    checks = [
        *(f"{setting}: agents that were trained by {kind}" for setting, kind in algorithms.items()),
        *checks_of((agent.env_id, agent.env_kwargs) for agent in agents),
    ]
    print(*checks, "", sep="\n")
    workers = Workers(arguments.jobs)
    subjects = fit(agents, protocol, workers, arguments.device)
    returns, chosen = play_all(subjects, protocol, workers)
    summary = summarize(returns)
    found = findings(returns, summary, chosen, checks)
    report(summary, found.lines)
    if arguments.output is not None:
        claim(arguments.output, files)
        names = [path.name for path in arguments.agents]
        without = ("agents", "output", "device", "jobs")
        command = command_line("equirl compare", arguments, without, names)
        write_comparison(arguments.output, returns, found.lines, summary, command)
        page = functools.partial(
            write_report,
            arguments.output,
            returns,
            summary,
            found,
            seed=protocol.seed,
            played=explained(returns),
            command=command,
        )
        page({})  # what draws may end the process
        page(film(subjects, returns, protocol.seed, workers))
        print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    run(main, Compare)
