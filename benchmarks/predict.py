"""What does symmetrising cost? Microseconds per `predict`, and their ratio to plain SB3.

    python benchmarks/predict.py [--rounds 20] [--output results/predict]

All policies of a row are timed in turn within every round, and a ratio is the median over rounds
of ratios within a round, so it holds although the machine's speed drifts.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

import equirl
from equirl.files import replacing

CASES = [
    ("CartPole-v1", [64, 64]),
    ("CartPole-v1", [256, 256]),
    ("Acrobot-v1", [256, 256]),
    ("equirl/Gridworld-v0", [64, 64]),
]


@dataclasses.dataclass
class Arguments:
    """Time `predict` of plain SB3 and of each symmetrised policy."""

    rounds: int = 20
    """Rounds; in each, every policy is timed once."""
    calls: int = 200
    """Calls to `predict` that are timed together."""
    output: Path | None = None
    """Folder for predict.csv and predict.md; nothing is written when omitted."""


def seconds_per_call(policy: PolicyPredictor, observations: np.ndarray, calls: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        policy.predict(observations, deterministic=True)
    return (time.perf_counter() - start) / calls


def time_case(
    env_id: str, net_arch: list[int], batch: int, arguments: Arguments, progress: tqdm
) -> list[dict[str, object]]:
    """Rows of the table for one environment, network and batch size."""
    env = gym.make(env_id)
    agent = DQN(
        "MlpPolicy", env, seed=0, buffer_size=1, policy_kwargs={"net_arch": net_arch}, device="cpu"
    )
    policies = {
        "plain": agent,
        "equitune": equirl.EquitunePolicy(agent, env_id),
        "equizero": equirl.EquizeroPolicy(agent, env_id),
        "lambda": equirl.LambdaEquitunePolicy(agent, env_id),
    }
    env.observation_space.seed(0)
    samples = np.stack([env.observation_space.sample() for _ in range(batch)])
    observations = samples[0] if batch == 1 else samples
    for policy in policies.values():
        seconds_per_call(policy, observations, 20)
    times: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(arguments.rounds):
        for name, policy in policies.items():
            times[name].append(seconds_per_call(policy, observations, arguments.calls))
        progress.update()
    plain = np.array(times["plain"])
    return [
        {
            "environment": env_id,
            "network": "-".join(map(str, net_arch)),
            "batch": batch,
            "policy": name,
            "microseconds": round(1e6 * float(np.median(seconds)), 1),
            "ratio": round(float(np.median(np.array(seconds) / plain)), 3),
            "ratio_low": round(float(np.quantile(np.array(seconds) / plain, 0.25)), 3),
            "ratio_high": round(float(np.quantile(np.array(seconds) / plain, 0.75)), 3),
        }
        for name, seconds in times.items()
    ]


def main(arguments: Arguments) -> None:
    """Time everything, print the table, write it."""
    rows = []
    with tqdm(total=2 * len(CASES) * arguments.rounds, unit="round") as progress:
        for env_id, net_arch in CASES:
            for batch in (1, 64):
                rows += time_case(env_id, net_arch, batch, arguments, progress)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if arguments.output is not None:
        machine = (
            f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads"
        )
        with replacing(arguments.output / "predict.csv") as path:
            table.to_csv(path, index=False)
        wide = table.pivot_table(
            index=["environment", "network", "batch"], columns="policy", values="ratio", sort=False
        )
        micro = table[table.policy == "plain"].microseconds.to_numpy()
        lines = [
            "# Cost of `predict`",
            "",
            "`python benchmarks/predict.py --output results/predict`",
            "",
            f"Time as a ratio to plain SB3 in the same run (median of {arguments.rounds} rounds); "
            f"{machine}.",
            "",
            "| environment | network | batch | plain | equitune | equizero | λ |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {env} | {net} | {batch} | {us:.0f} µs | {row.equitune:.2f} × | "
                f"{row.equizero:.2f} × | {row['lambda']:.2f} × |"
                for ((env, net, batch), row), us in zip(wide.iterrows(), micro, strict=True)
            ),
            "",
        ]
        with replacing(arguments.output / "predict.md") as path:
            path.write_text("\n".join(lines))
        print(f"written to {arguments.output}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
