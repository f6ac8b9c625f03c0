"""What does symmetrising cost? Microseconds per `predict`, and their ratio to plain SB3.

    python benchmarks/predict.py [--rounds 20] [--output results/predict]

How times become ratios is told in common.py.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import common
import gymnasium as gym
import numpy as np
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm import tqdm

import equirl
from equicore.lab import command
from equicore.lab.tables import markdown

CASES = [
    (DQN, "CartPole-v1", [64, 64]),
    (DQN, "CartPole-v1", [256, 256]),
    (DQN, "Acrobot-v1", [256, 256]),
    (DQN, "equirl/Gridworld-v0", [64, 64]),
    (SAC, "Pendulum-v1", [256, 256]),
    (PPO, "LunarLanderContinuous-v3", [64, 64]),
]
"""Equizero of continuous actions also runs the critics, or the value, which plain agents do not."""


@dataclasses.dataclass
class Arguments:
    """Time `predict` of plain SB3 and of each symmetrised policy."""

    rounds: int = 20
    """Rounds; in each, every policy is timed once."""
    calls: int = 200
    """Calls to `predict` that are timed together."""
    output: Path | None = None
    """Folder for predict.csv and predict.md; nothing is written when omitted."""


def time_case(
    algorithm: type[BaseAlgorithm],
    env_id: str,
    net_arch: list[int],
    batch: int,
    arguments: Arguments,
    progress: tqdm,
) -> dict[str, common.Row]:
    """A row for each policy, in one environment, for one network and batch size."""
    env = gym.make(env_id)
    settings: dict[str, Any] = {} if algorithm is PPO else {"buffer_size": 1}
    settings["policy_kwargs"] = {"net_arch": net_arch}
    agent = algorithm("MlpPolicy", env, seed=0, device="cpu", **settings)
    with warnings.catch_warnings():  # that continuous actions have no useful mean
        warnings.simplefilter("ignore", UserWarning)
        equitune = equirl.EquitunePolicy(agent, env_id)
    policies = {
        "plain": agent,
        "equitune": equitune,
        "equizero": equirl.EquizeroPolicy(agent, env_id),
        "lambda": equirl.LambdaEquitunePolicy(agent, env_id),
    }
    env.observation_space.seed(0)
    samples = np.stack([env.observation_space.sample() for _ in range(batch)])
    observations = samples[0] if batch == 1 else samples
    calls = {
        name: partial(policy.predict, observations, deterministic=True)
        for name, policy in policies.items()
    }
    times = common.time_rounds(calls, arguments.rounds, progress, repeats=arguments.calls)
    return {
        name: {
            "algorithm": algorithm.__name__,
            "environment": env_id,
            "network": "-".join(map(str, net_arch)),
            "batch": batch,
            "policy": name,
            "microseconds": round(1e6 * float(np.median(seconds)), 1),
            "ratio": common.ratio(seconds, times["plain"]),
        }
        for name, seconds in times.items()
    }


def markdown_row(rows: dict[str, common.Row]) -> list[object]:
    """One line for all policies."""
    plain = rows["plain"]
    return [
        *(plain[name] for name in ("algorithm", "environment", "network", "batch")),
        f"{plain['microseconds']:.0f} µs",
        *(f"{rows[name]['ratio'].median:.2f} ×" for name in ("equitune", "equizero", "lambda")),
    ]


def main(arguments: Arguments) -> None:
    """Time everything, print the table, write it."""
    with tqdm(total=2 * len(CASES) * arguments.rounds, unit="round") as progress:
        results = [
            time_case(*case, batch, arguments, progress) for case in CASES for batch in (1, 64)
        ]
    common.write(
        arguments.output,
        "predict",
        [row for rows in results for row in rows.values()],
        3,
        "Cost of `predict`",
        f"Time as a ratio to plain SB3 in the same run (median of {arguments.rounds} rounds); "
        f"{common.machine()}.",
        markdown(
            ["algorithm", "environment", "network", "batch", "plain", "equitune", "equizero", "λ"],
            map(markdown_row, results),
        ),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
