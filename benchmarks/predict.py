"""What does symmetrising cost? Microseconds per `predict`, and their ratio to plain SB3.

    python benchmarks/predict.py [--rounds 20] [--output results/predict]

How times become ratios is told in common.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import common
import gymnasium as gym
import numpy as np
import pandas as pd
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

import equirl

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

    def predict(policy: PolicyPredictor) -> Callable[[], object]:
        return lambda: policy.predict(observations, deterministic=True)

    calls = {name: predict(policy) for name, policy in policies.items()}
    times = common.time_rounds(calls, arguments.rounds, progress, repeats=arguments.calls)
    ratios = {name: common.ratio(seconds, times["plain"]) for name, seconds in times.items()}
    return [
        {
            "environment": env_id,
            "network": "-".join(map(str, net_arch)),
            "batch": batch,
            "policy": name,
            "microseconds": round(1e6 * float(np.median(seconds)), 1),
            "ratio": round(ratios[name].median, 3),
            "ratio_low": round(ratios[name].low, 3),
            "ratio_high": round(ratios[name].high, 3),
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
    wide = table.pivot_table(
        index=["environment", "network", "batch"], columns="policy", values="ratio", sort=False
    )
    plain = table[table.policy == "plain"].microseconds
    lines = [
        "# Cost of `predict`",
        "",
        f"`{common.command()}`",
        "",
        f"Time as a ratio to plain SB3 in the same run (median of {arguments.rounds} rounds); "
        f"{common.machine()}.",
        "",
        *common.markdown_table(
            ["environment", "network", "batch", "plain", "equitune", "equizero", "λ"],
            [
                [
                    *case,
                    f"{us:.0f} µs",
                    *(f"{row[name]:.2f} ×" for name in ("equitune", "equizero", "lambda")),
                ]
                for (case, row), us in zip(wide.iterrows(), plain, strict=True)
            ],
        ),
    ]
    common.write(arguments.output, "predict", table, lines)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
