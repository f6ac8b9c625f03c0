"""The main job in one command: train, compare and plot DQN agents in three environments.

    make demo

Trains three seeds each on small budgets, on the two cores side by side, compares the plain agents
with their symmetrised policies on the original and on randomly transformed environments, and
writes results/demo. Run again, it skips what is already trained.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from equirl.agents.cli import run
from equirl.agents.compare import play, report, summarize, write_comparison
from equirl.agents.evaluation import find_agents
from equirl.agents.train import Train, plan, train_all

SETTINGS = (
    Train("equirl/Gridworld-v0", env_kwargs=("goals=corner",), steps=15_000, checkpoints=5),
    Train("CartPole-v1", steps=30_000, checkpoints=5),
    Train("Acrobot-v1", steps=20_000, checkpoints=5),
)


@dataclasses.dataclass
class Demo:
    """Train, compare and plot DQN agents in three environments; at most 6 minutes on 2 cores."""

    output: Path = Path("results/demo")
    """Folder for the table and the figures."""
    runs: Path = Path("results/runs/demo")
    """Folder for the trained agents."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    episodes: int = 50
    """Episodes for each agent, policy and condition."""
    jobs: int = os.cpu_count() or 1
    """Processes."""


def main(arguments: Demo) -> None:
    """Train, compare, plot."""
    start = time.monotonic()
    trainings = []
    for setting in SETTINGS:
        setting = dataclasses.replace(setting, seeds=arguments.seeds, output=arguments.runs)
        trainings += plan(setting)
    print(f"training {len(trainings)} agents ({', '.join(s.env for s in SETTINGS)})")
    train_all(trainings, arguments.jobs)
    agents = [agent for t in trainings for agent in find_agents(t.folder.path)]
    returns = play(agents, arguments.episodes, jobs=arguments.jobs)
    rows = summarize(returns)
    write_comparison(arguments.output, returns, rows, "make demo")
    report(rows)
    print(f"\ntook {time.monotonic() - start:.0f} s; the picture: {arguments.output}/returns.png")


if __name__ == "__main__":
    run(main, Demo)
