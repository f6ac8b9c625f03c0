"""Which weights should lambda-equitune have by default, for an agent nobody may experiment with?

    equirl study --panel validation --output results/validation
    python benchmarks/weights.py [--episodes 20] [--output results/weights]

Plays every variant with every checkpoint of the study's validation panel (other seeds and budgets
than the test panel's), in the original environment. All learn from the replay buffer of the
checkpoint, without interaction. What has been played is not played again by the next run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import joblib
import matplotlib
import numpy as np
import pandas as pd
import torch
import tyro
import yaml
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import equirl
from equicore import MLPWeight, WeightedMean
from equicore.files import replacing
from equirl.agents import statistics
from equirl.agents.definition import DEFAULT_FILE, Unit, read_units
from equirl.agents.evaluation import SavedAgent, episode_returns
from equirl.agents.panel import markdown
from equirl.agents.policies import MAKERS, Subject
from equirl.policies import SymmetrizedPolicy

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

SEED = 6_000_000
"""First seed of the episodes; no other evaluation uses these."""

SHARPNESSES = (1, 2, 3, 5, 10, 30)


@dataclasses.dataclass
class Arguments:
    """Compare weights of lambda-equitune on the validation panel."""

    episodes: int = 20
    """Episodes for each variant and checkpoint."""
    runs: Path = Path("results/runs/study")
    """Where `equirl study --panel validation` keeps its agents."""
    parts: Path = Path("results/runs/weights")
    """Folder for what is done so far."""
    jobs: int = os.cpu_count() or 1
    """Processes."""
    output: Path | None = None
    """Folder for weights.csv, .md and .png; nothing is written when omitted."""


class Times(nn.Module):
    """Log-weights times a number: an inverse temperature."""

    def __init__(self, weight: nn.Module, factor: float) -> None:
        super().__init__()
        self.weight, self.factor = weight, factor

    def forward(self, x: Tensor) -> Tensor:
        """Log-weights (N,)."""
        return self.factor * self.weight(x)


class Average(nn.Module):
    """The mean of the log-weights of several networks."""

    def __init__(self, weights: list[nn.Module]) -> None:
        super().__init__()
        self.weights = nn.ModuleList(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Log-weights (N,)."""
        return torch.stack([weight(x) for weight in self.weights]).mean(0)


class HalfUniform(WeightedMean):
    """Half of the weight is shared out equally."""

    def scores(self, seen: Tensor, raw: Tensor) -> Tensor:
        """Log-weights (n, B)."""
        weights = super().scores(seen, raw).softmax(0)
        return (weights / 2 + 0.5 / len(weights)).log()


class GreedyValue(nn.Module):
    """Log-weight: how good the agent's greedy action is, by a Q-function learned offline.

    That is learned from the replay buffer, every transition under a random element, by
    conservative Q-learning (Kumar et al., 2020) whose maximum is over the actions that the views
    propose.
    """

    def __init__(self, subject: Subject, steps: int = 2000, conservatism: float = 0.1) -> None:
        super().__init__()
        experience, symmetry = subject.replay, subject.symmetry
        before, after, actions, rewards, terminated = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in (
                experience.observations,
                experience.next_observations,
                experience.actions.astype(np.int64),
                experience.rewards,
                experience.terminated,
            )
        )
        size, count = before[0].numel(), int(subject.model.action_space.n)
        self.agent = [subject.model.q_net]  # in a list, so that it is no submodule
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.q = nn.Sequential(nn.Flatten(), *create_mlp(size, count, [64, 64]))
            self.scale = before.square().mean(0).sqrt().clamp_min(1e-3)
            target = copy.deepcopy(self.q)
            optimizer = torch.optim.Adam(self.q.parameters(), lr=1e-3)
            images = symmetry.action.permutations  # (|G|, actions)
            group = symmetry.group
            with torch.no_grad():
                orbit = symmetry.observation.orbit(after)
                proposed = torch.stack(
                    [images[group.inverse(g)][self.greedy(orbit[g])] for g in range(len(group))]
                )  # (|G|, N): what each view would do
            for _ in range(steps):
                rows = torch.randint(len(before), (128,))
                g = int(torch.randint(len(group), ()))
                taken = images[g][actions[rows]][:, None]
                with torch.no_grad():
                    following = target(symmetry.observation.act(g, after[rows]) / self.scale)
                    best = following.gather(1, images[g][proposed[:, rows]].T).amax(1)
                    goal = rewards[rows] + subject.model.gamma * best.where(~terminated[rows], 0)
                values = self.q(symmetry.observation.act(g, before[rows]) / self.scale)
                chosen = values.gather(1, taken).squeeze(1)
                loss = functional.smooth_l1_loss(chosen, goal)
                loss = loss + conservatism * (values.logsumexp(1) - chosen).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for mine, theirs in zip(target.parameters(), self.q.parameters(), strict=True):
                        mine.lerp_(theirs, 0.05)

    def greedy(self, x: Tensor) -> Tensor:
        """The agent's actions (N,)."""
        return self.agent[0](x).argmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """Log-weights (N,)."""
        with torch.no_grad():
            return self.q(x / self.scale).gather(1, self.greedy(x)[:, None]).squeeze(1)


class PlainNearSymmetry:
    """Acts as a symmetrised policy, but as the plain agent near states that an element fixes.

    There an equivariant policy must prefer no direction, and may do nothing for ever. Near is: the
    states differ by less than ``width`` root mean squares of each entry, by root mean square.
    """

    def __init__(self, subject: Subject, policy: SymmetrizedPolicy, width: float = 0.1) -> None:
        self.plain, self.policy, self.symmetry = subject.model, policy, subject.symmetry
        visited = subject.replay.observations
        self.scale = np.maximum(np.sqrt(np.square(visited.astype(np.float64)).mean(0)), 1e-3)
        self.width = width

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """Actions (B,) for observations (B, ...)."""
        others = range(1, len(self.symmetry.group))
        images = np.stack([self.symmetry.act_on_observations(g, observation) for g in others])
        apart = np.square((images - observation) / self.scale).reshape(*images.shape[:2], -1)
        near = np.sqrt(apart.mean(2)).min(0) < self.width
        plain, _ = self.plain.predict(observation, deterministic=True)
        symmetrised, _ = self.policy.predict(observation, deterministic=True)
        return np.where(near, plain, symmetrised), None


def variants(subject: Subject) -> dict[str, Callable[[], PolicyPredictor]]:
    """What makes each of the policies that are compared, by what tables call them."""
    model, symmetry = subject.model, subject.symmetry
    shape = model.observation_space.shape

    def policy(weight: nn.Module, sharpness: float = 0) -> equirl.LambdaEquitunePolicy:
        return equirl.LambdaEquitunePolicy(model, symmetry, weight, sharpness=sharpness)

    @functools.cache
    def familiarity(seed: int = 0) -> MLPWeight:
        weight = MLPWeight(shape, seed=seed)
        equirl.fit_familiarity(policy(weight), subject.replay.observations, seed=seed)
        return weight

    @functools.cache
    def consistency() -> MLPWeight:
        weight = MLPWeight(shape)
        equirl.fit_temporal_difference(policy(weight), subject.replay)
        return weight

    value = functools.cache(lambda: GreedyValue(subject))

    def raw(reduce: nn.Module) -> SymmetrizedPolicy:
        return SymmetrizedPolicy(model, symmetry, reduce, normalize=None)

    def powers(power: float, sharpness: float = 0) -> Callable[[], PolicyPredictor]:
        return lambda: policy(Times(familiarity(), power), sharpness)

    made: dict[str, Callable[[], PolicyPredictor]] = {
        name: functools.partial(MAKERS[name], subject)
        for name in ("plain", "equitune", "equizero", "equizero_raw")
    }
    made["familiarity"] = powers(1)
    made |= {f"familiarity, sureness^{k}": powers(1, k) for k in SHARPNESSES}
    made |= {f"familiarity^{t}": powers(t) for t in (0.1, 0.3)}
    made |= {f"familiarity^0.3, sureness^{k}": powers(0.3, k) for k in (1, 3)}
    made["familiarity of 3 networks, sureness^3"] = lambda: policy(
        Average([familiarity(seed) for seed in range(3)]), 3
    )
    made["familiarity, top-1"] = powers(1e3)
    made["familiarity, half uniform"] = lambda: SymmetrizedPolicy(
        model, symmetry, HalfUniform(familiarity())
    )
    made["familiarity, sureness^3, plain near symmetry"] = lambda: PlainNearSymmetry(
        subject, policy(familiarity(), 3)
    )
    made["temporal difference"] = lambda: raw(WeightedMean(consistency()))
    made["temporal difference, half uniform"] = lambda: raw(HalfUniform(consistency()))
    for b in (0.3, 1.0):
        made[f"offline value, x{b}"] = lambda b=b: policy(Times(value(), b))
    return made


def play(unit: Unit, budget: int, episodes: int, part: Path) -> None:
    """Play the variants of one checkpoint that are not in its part yet, and add their returns."""
    torch.set_num_threads(1)
    training = unit.training
    file = training.folder.checkpoint(budget)
    agent = SavedAgent(str(unit), file, training.env_id, training.env_kwargs, training.seed, budget)
    subject = Subject(agent, agent.load("cpu"), unit.evaluation.transitions)
    makers = variants(subject)
    rows = pd.read_csv(part).to_dict("records") if part.exists() else []
    rows = [row for row in rows if row["variant"] in makers]
    done = {row["variant"] for row in rows}
    rows += [
        {
            "env": unit.env,
            "setting": unit.setting,
            "seed": training.seed,
            "budget": budget,
            "variant": name,
            "mean_return": episode_returns(make(), agent, "original", episodes, SEED).mean(),
            "n_episodes": episodes,
        }
        for name, make in makers.items()
        if name not in done
    ]
    with replacing(part) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """The table with normalised scores, by the scales of the study."""
    environments = yaml.safe_load(DEFAULT_FILE.read_text())["environments"]
    worst, best = (
        table.env.map({name: entry["scale"][i] for name, entry in environments.items()})
        for i in (0, 1)
    )
    return table.assign(
        score=(table.mean_return - worst) / (best - worst),
        family=table.env.str.partition("-")[0],
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each variant, over each family and all, and its difference to plain."""

    def tasks(variant: str, rows: pd.DataFrame) -> list[np.ndarray]:
        mine = rows[rows.variant == variant]
        return [
            group.pivot(index="seed", columns="budget", values="score").to_numpy()
            for _, group in mine.groupby(["env", "setting"])
        ]

    rows = []
    for variant in table.variant.unique():
        row: dict[str, object] = {"variant": variant}
        for family, group in table.groupby("family"):
            row[str(family)] = f"{group[group.variant == variant].score.mean():.3f}"
        mine, plain = tasks(variant, table), tasks("plain", table)
        row["mean"] = statistics.stratified_mean(mine)
        row["minus plain"] = statistics.paired_difference(mine, plain)
        rows.append(row)
    return pd.DataFrame(rows).sort_values("mean", key=lambda c: c.map(lambda e: -e.value))


def draw(table: pd.DataFrame) -> Figure:
    """A bar for each variant, with its interval."""
    ordered = table.iloc[::-1]
    means = list(ordered["mean"])
    figure, axis = plt.subplots(figsize=(7, 0.3 * len(ordered) + 1), layout="constrained")
    axis.barh(
        ordered.variant,
        [e.value for e in means],
        xerr=([e.value - e.low for e in means], [e.high - e.value for e in means]),
        color=["#0072b2" if v == "familiarity, sureness^3" else "#bbbbbb" for v in ordered.variant],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    axis.set_xlabel("mean normalised score, validation panel")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Arguments) -> None:
    """Play, and write the table and the figure."""
    units = read_units(DEFAULT_FILE, "validation", arguments.runs)
    work: list[tuple[Unit, int, Path]] = []
    for unit in units:
        for budget in unit.training.budgets:
            if not unit.training.folder.checkpoint(budget).exists():
                raise SystemExit(
                    f"{unit} is not trained: run equirl study --panel validation first"
                )
            name = f"{unit.env}_{unit.setting}_{unit.training.seed}_{budget}"
            work.append((unit, budget, arguments.parts / f"{name}_{arguments.episodes}.csv"))
    jobs: list[Callable] = [
        joblib.delayed(play)(unit, budget, arguments.episodes, part) for unit, budget, part in work
    ]
    done = joblib.Parallel(arguments.jobs, return_as="generator", batch_size=1)(jobs)
    for _ in tqdm(done, total=len(jobs), unit="checkpoint"):
        pass
    table = scores(pd.concat([pd.read_csv(part) for _, _, part in work], ignore_index=True))
    rows = summary(table)
    lines = markdown(rows, "")
    print(lines)
    if arguments.output is None:
        return
    text = (
        "# Weights for lambda-equitune, on the validation panel\n\n"
        "`python benchmarks/weights.py --output results/weights`\n\n"
        f"{len(work)} checkpoints of {len(units)} training runs, {arguments.episodes} episodes "
        "each, in the original environment. Normalised scores; means with 95 % intervals of a "
        "bootstrap over training runs, stratified by environment and setting; differences are "
        "paired. All weights learn from the replay buffer.\n\n"
    )
    with replacing(arguments.output / "weights.md") as temporary:
        temporary.write_text(text + lines + "\n")
    with replacing(arguments.output / "weights.csv") as temporary:
        table.drop(columns=["family"]).to_csv(temporary, index=False, float_format="%.6g")
    with replacing(arguments.output / "weights.png") as temporary:
        draw(rows).savefig(temporary, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
