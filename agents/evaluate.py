"""Evaluate one agent under one policy, on the original or a transformed environment."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from equicore.lab import statistics
from equicore.lab.command import check_least
from equicore.lab.store import check_writable, write_text
from equirl.agents.cli import run
from equirl.agents.evaluation import FIRST_SEED, Protocol, check_seed, parse_condition, play
from equirl.agents.policies import PolicyName, Subject
from equirl.agents.saved import OneAgent


@dataclasses.dataclass
class Evaluate(OneAgent):
    """Evaluate one agent under one policy: a line of text to stderr, JSON to stdout.

    Example: equirl evaluate dqn.zip --env CartPole-v1 --policy lambda --condition transformed
    """

    policy: PolicyName = "equizero"
    """The plain agent, or a symmetrised policy around it."""
    condition: str = "original"
    """original, transformed (a random group element for each episode), or one element: 1."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = FIRST_SEED
    """Seed of the first environment; the others follow."""
    output: Path | None = None
    """Also write the JSON to this file."""


def main(arguments: Evaluate) -> None:
    """Evaluate and report."""
    check_least(arguments, episodes=1)
    check_seed(arguments.seed)
    if arguments.output is not None:
        check_writable(arguments.output)
    agent = arguments.find()
    condition = parse_condition(arguments.condition, agent.symmetry())
    protocol = Protocol((arguments.policy,), arguments.episodes, arguments.seed)
    played, _ = play(Subject(agent, device=arguments.device), condition, protocol)
    returns = played[arguments.policy]
    mean = statistics.mean(returns[None])
    middle = statistics.interquartile_mean(returns[None])
    where = f"element {condition}" if isinstance(condition, int) else condition
    print(
        f"{agent.name}, {arguments.policy}, {agent.env_id} ({where}): mean return {mean}, "
        f"IQM {middle}, over {arguments.episodes} episodes (95 % intervals)",
        file=sys.stderr,
    )
    report = {
        "agent": agent.name,
        "env": agent.env_id,
        "env_kwargs": agent.env_kwargs,
        "policy": arguments.policy,
        "condition": condition,
        "seed": arguments.seed,
        "mean": dataclasses.asdict(mean),
        "iqm": dataclasses.asdict(middle),
        "returns": returns.tolist(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output is not None:
        write_text(arguments.output, text + "\n")


if __name__ == "__main__":
    run(main, Evaluate)
