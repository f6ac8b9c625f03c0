"""Evaluate one agent under one policy, on the original or a transformed environment.

equirl evaluate dqn-CartPole-v1.zip --env CartPole-v1 --policy equizero
equirl evaluate results/runs/dqn/CartPole-v1_0 --condition transformed
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from equicore.files import check_writable, replacing
from equirl.agents import statistics
from equirl.agents.cli import check_least, run
from equirl.agents.evaluation import (
    FIRST_SEED,
    check_device,
    check_seed,
    episode_returns,
    find_agents,
    parse_condition,
)
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.agents.policies import PolicyName, make_policy


@dataclasses.dataclass
class Evaluate:
    """Evaluate one agent under one policy: a line of text to stderr, JSON to stdout.

    Example: equirl evaluate dqn.zip --env CartPole-v1 --policy lambda --condition transformed
    """

    agent: tyro.conf.Positional[Path]
    """A zip file that Stable-Baselines3 saved, or a run folder. Nothing in it is executed."""
    env: str | None = None
    """Environment id; known from the run folder when omitted."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, name=value; known from the run folder when omitted."""
    policy: PolicyName = "equizero"
    """The plain agent, or a symmetrised policy around it."""
    condition: str = "original"
    """original, transformed (a random group element for each episode), or one element: 1."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = FIRST_SEED
    """Seed of the first environment; the others follow."""
    device: str = "auto"
    """Device of the networks: auto, cpu, cuda."""
    output: Path | None = None
    """Also write the JSON to this file."""


def main(arguments: Evaluate) -> None:
    """Evaluate and report."""
    check_least(arguments, episodes=1)
    check_seed(arguments.seed)
    check_device(arguments.device)
    if arguments.output is not None:
        check_writable(arguments.output)
    (agent,) = find_agents(arguments.agent, arguments.env, parse_env_kwargs(arguments.env_kwargs))
    condition = parse_condition(arguments.condition, agent.symmetry())
    model = agent.load(arguments.device)
    policy = make_policy(arguments.policy, model, agent)
    returns = episode_returns(policy, agent, condition, arguments.episodes, arguments.seed)
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
        with replacing(arguments.output) as temporary:
            temporary.write_text(text + "\n")


if __name__ == "__main__":
    run(main, Evaluate)
