"""The main job in one command: train, compare and plot DQN agents in three environments.

    make demo

Trains five agents each on small budgets, on the two cores side by side. Compares them while they
learn, plain and under their symmetrised policies, in the original and in randomly transformed
environments. Run again, it skips what is already trained. All it writes is in results/runs; what
the repository keeps in results/demo is written by

    python -m equirl.agents.demo --output results/demo
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from equicore.lab import CORES
from equicore.lab.command import check_least, command_line
from equicore.lab.jobs import Workers
from equicore.lab.store import claim
from equirl.agents.arguments import Train
from equirl.agents.checked import checks_of
from equirl.agents.cli import run
from equirl.agents.compare import (
    compare,
    conclusions,
    over_training,
    report,
    summarize,
    write_comparison,
)
from equirl.agents.evaluation import LEAST, RULES, Protocol
from equirl.agents.saved import find_agents
from equirl.agents.train import train_all
from equirl.agents.training import Training, plan

SETTINGS = (
    Train("Acrobot-v1", hyperparameters=Path(__file__).with_name("demo.yaml"), checkpoints=5),
    Train("equirl/Gridworld-v0", env_kwargs=("goals=corner",), steps=15_000, checkpoints=3),
    Train("CartPole-v1", steps=10_000, checkpoints=2),
)
TRANSITIONS = 5_000
"""Of the replay buffer, that lambda's weights learn from."""
HOW = "returns are means over the checkpoints of a training; those of each are in checkpoints"


@dataclasses.dataclass
class Demo:
    """Train, compare and plot DQN agents in three environments; about 7 minutes on 2 cores.

    What to see, as means over the checkpoints of the training: equizero above plain in Acrobot and
    CartPole, where the agents are half trained, and lambda above plain in the transformed
    gridworld, of which they have seen one corner.
    """

    output: Path = Path("results/runs/demo/results")
    """Folder for the table and the figures; those of the repository are in results/demo."""
    runs: Path = Path("results/runs/demo")
    """Folder for the trained agents."""
    seeds: tuple[int, ...] = (30, 31, 32, 33, 34)
    """Training seeds; the settings were chosen on others."""
    episodes: int = 15
    """Episodes for each checkpoint, policy and condition."""
    jobs: int = CORES
    """Processes."""


def trainings(arguments: Demo) -> list[Training]:
    """One for each environment and seed."""
    where: dict[str, Any] = {"seeds": arguments.seeds, "output": arguments.runs}
    settings = [dataclasses.replace(s, experience=TRANSITIONS, **where) for s in SETTINGS]
    return [training for setting in settings for training in plan(setting)]


def settings(arguments: Demo) -> dict[str, Any]:
    """What decides the numbers."""
    agents = {
        t.arguments.env: {
            "env_kwargs": t.env_kwargs,
            "checkpoints": t.arguments.checkpoints,
            **t.hyperparameters,
            "n_timesteps": t.steps,
        }
        for t in trainings(arguments)
    }
    played = {"episodes": arguments.episodes, "transitions": TRANSITIONS, "rules": RULES}
    return {"seeds": arguments.seeds, **played, "agents": agents}


def main(arguments: Demo) -> None:
    """Train, compare, plot."""
    check_least(arguments, episodes=LEAST, jobs=1)
    start = time.monotonic()
    planned = trainings(arguments)
    claim(arguments.output, {"settings.yml": settings(arguments)})
    print(f"training {len(planned)} agents ({', '.join(s.env for s in SETTINGS)})")
    train_all(planned, arguments.jobs)
    agents = [agent for t in planned for agent in find_agents(t.folder.path, checkpoints="all")]
    protocol = Protocol(episodes=arguments.episodes, transitions=TRANSITIONS)
    returns, _ = compare(agents, protocol, Workers(arguments.jobs))
    means = over_training(returns)
    summary = summarize(means)
    name, without = "python -m equirl.agents.demo", ("output", "runs", "jobs")
    command = command_line(name, arguments, without)
    checks = checks_of((agent.env_id, agent.env_kwargs) for agent in agents)
    lines = [HOW, *conclusions(means, summary, checks=checks)]
    write_comparison(arguments.output, means, lines, summary, command)
    each = summarize(returns)
    folder = arguments.output / "checkpoints"
    write_comparison(folder, returns, conclusions(returns, each, checks=checks), each, command)
    report(summary, lines)
    print(f"\ntook {time.monotonic() - start:.0f} s; the picture: {arguments.output}/returns.png")


if __name__ == "__main__":
    run(main, Demo)
