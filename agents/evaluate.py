"""Evaluate one agent under one policy, on the original or a transformed environment."""

from __future__ import annotations

import dataclasses
import json

from equicore.lab import statistics
from equicore.lab.command import check_least
from equicore.lab.store import check_writable, write_text
from equirl.agents.arguments import Evaluate
from equirl.agents.cli import run
from equirl.agents.evaluation import (
    LEAST,
    RULES,
    Protocol,
    check_seed,
    parse_condition,
    play,
)
from equirl.agents.policies import Subject
from equirl.agents.saved import find_agent


def main(arguments: Evaluate) -> None:
    """Evaluate and report."""
    check_least(arguments, episodes=LEAST, transitions=10)
    check_seed(arguments.seed)
    if arguments.output is not None:
        check_writable(arguments.output)
    agent = find_agent(arguments)
    condition = parse_condition(arguments.condition, agent.symmetry())
    protocol = Protocol((arguments.policy,), arguments.episodes, arguments.seed)
    subject = Subject(agent, arguments.transitions, arguments.device)
    played, _ = play(subject, condition, protocol)
    returns = played[arguments.policy]
    mean = statistics.mean(returns[None])
    middle = statistics.interquartile_mean(returns[None])
    where = f"element {condition}" if isinstance(condition, int) else condition
    print(
        f"{agent.name}, {arguments.policy}, {agent.setting} ({where}): mean return {mean}, "
        f"IQM {middle}, over {arguments.episodes} episodes (95 % intervals)"
    )
    if arguments.output is None:
        return
    report = {
        "agent": agent.name,
        "env": agent.env_id,
        "env_kwargs": agent.env_kwargs,
        "policy": arguments.policy,
        "condition": condition,
        "seed": arguments.seed,
        "transitions": arguments.transitions,
        "rules": RULES,
        "mean": dataclasses.asdict(mean),
        "iqm": dataclasses.asdict(middle),
        "returns": returns.tolist(),
    }
    write_text(arguments.output, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Evaluate)
