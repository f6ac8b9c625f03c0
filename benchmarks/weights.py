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
import re
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import PolicyPredictor
from torch import Tensor, nn
from torch.nn import functional

import equirl
from equicore import MLPWeight, WeightedMean
from equicore.lab import CORES, command, figures, statistics
from equicore.lab.jobs import Workers
from equicore.lab.store import digest, remembered, write_text
from equicore.lab.tables import frame_markdown, write_csv
from equicore.lab.values import read_yaml
from equirl.agents.definition import DEFAULT_FILE, Unit, read_units
from equirl.agents.evaluation import RULES, episode_returns
from equirl.agents.panel import tasks
from equirl.agents.plot import STYLES
from equirl.agents.policies import MAKERS, Subject
from equirl.agents.saved import find_agents
from equirl.algorithms import head_of
from equirl.symmetrized import SymmetrizedPolicy

SEED = 6_000_000
"""First seed of the episodes; no other evaluation uses these."""

SHARPNESSES = (1, 2, 3, 5, 10, 30)


@dataclasses.dataclass
class Arguments:
    """Compare weights of lambda-equitune on the validation panel."""

    episodes: int = 20
    """Episodes for each variant and checkpoint."""
    definition: Path = DEFAULT_FILE
    """The study's, as in `equirl study --definition`."""
    runs: Path = Path("results/runs/study")
    """Where `equirl study --panel validation` keeps its agents."""
    parts: Path = Path("results/runs/weights")
    """Folder for what is done so far."""
    jobs: int = CORES
    """Checkpoints side by side; each uses one core."""
    output: Path | None = None
    """Folder for weights.csv, .md, .png and .svg; nothing is written when omitted."""


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
        return SymmetrizedPolicy(model, symmetry, head_of(model, None), reduce)

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
        model, symmetry, head_of(model), HalfUniform(familiarity())
    )
    made["familiarity, sureness^3, plain near symmetry"] = lambda: PlainNearSymmetry(
        subject, policy(familiarity(), 3)
    )
    made["temporal difference"] = lambda: raw(WeightedMean(consistency()))
    made["temporal difference, half uniform"] = lambda: raw(HalfUniform(consistency()))
    for b in (0.3, 1.0):
        made[f"offline value, x{b}"] = lambda b=b: policy(Times(value(), b))
    return made


def play(unit: Unit, budget: int, arguments: Arguments) -> pd.DataFrame:
    """The mean return of every variant of one checkpoint; what was played is not played again."""
    (agent,) = find_agents(unit.training.folder.checkpoint(budget))
    subject = Subject(agent, unit.protocol.transitions, "cpu")
    checkpoint = {"env": unit.env, "setting": unit.setting, "seed": agent.seed, "budget": budget}
    settings = {
        **checkpoint,
        "agent": digest(agent.path.read_bytes()),
        "transitions": unit.protocol.transitions,
        "episodes": arguments.episodes,
        "first_seed": SEED,
        "rules": RULES,
    }

    def row(variant: str, make: Callable[[], PolicyPredictor]) -> pd.DataFrame:
        returns = episode_returns(make(), agent, "original", arguments.episodes, SEED)
        mean = {"variant": variant, "mean_return": returns.mean()}
        return pd.DataFrame([{**checkpoint, **mean, "n_episodes": arguments.episodes}])

    name = "_".join(map(str, [*checkpoint.values(), arguments.episodes]))
    return pd.concat(
        remembered(
            arguments.parts / name / f"{variant}.csv",
            {**settings, "variant": variant},
            functools.partial(row, variant, make),
        )
        for variant, make in variants(subject).items()
    )


def scores(table: pd.DataFrame, definition: Path) -> pd.DataFrame:
    """The table with normalised scores, by the scales of the study."""
    environments = read_yaml(definition)["environments"]
    worst, best = np.array([environments[env]["scale"] for env in table.env]).T
    return table.assign(score=(table.mean_return - worst) / (best - worst))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each variant, over each family and all, and its difference to plain."""
    family = table.env.str.partition("-")[0]
    means = table.groupby(["variant", family]).score.mean().unstack()
    ordered = table.sort_values(["env", "setting"], kind="stable").assign(condition="original")
    of = tasks(ordered.rename(columns={"variant": "policy"}))
    rows = [
        {
            "variant": variant,
            **means.loc[variant].map("{:.3f}".format),
            "mean": statistics.stratified_mean(own),
            "minus plain": statistics.paired_difference(own, of["plain"]),
        }
        for variant, own in of.items()
    ]
    return pd.DataFrame(sorted(rows, key=lambda row: -row["mean"].value))


def named(variant: str) -> str:
    """A variant in words, its powers raised."""
    words = STYLES[variant].label if variant in STYLES else variant
    return re.sub(r"\^([\d.]+)", r"$^{\1}$", words)


def draw(table: pd.DataFrame) -> Figure:
    """A bar for each variant, with its interval."""
    means = list(table["mean"])
    figure, ((axis,),) = figures.grid(1, 1, figsize=(7, 0.3 * len(table) + 1))
    axis.barh(
        table.variant,
        [estimate.value for estimate in means],
        xerr=figures.error_bars(means),
        color=["#0072b2" if v == "familiarity, sureness^3" else "#bbbbbb" for v in table.variant],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    axis.invert_yaxis()
    axis.set_yticks(range(len(table)), [named(variant) for variant in table.variant])
    axis.set_xlabel(
        "mean normalised score, validation panel\n"
        "(95 % intervals of a bootstrap over training runs)"
    )
    figures.tidy(axis)
    return figure


def main(arguments: Arguments) -> None:
    """Play, and write the table and the figure."""
    units = read_units(arguments.definition, "validation", arguments.runs)
    work = [(unit, budget) for unit in units for budget in unit.training.budgets]
    for unit, budget in work:
        if not unit.training.folder.checkpoint(budget).exists():
            raise FileNotFoundError(
                f"{unit} is not trained: run equirl study --panel validation first"
            )
    jobs = [functools.partial(play, unit, budget, arguments) for unit, budget in work]
    played = Workers(arguments.jobs).map(jobs, "checkpoints")
    table = scores(pd.concat(played, ignore_index=True), arguments.definition)
    rows = summary(table)
    lines = frame_markdown(rows)
    print(lines)
    if arguments.output is None:
        return
    page = common.page(
        "Weights for lambda-equitune, on the validation panel",
        f"{len(work)} checkpoints of {len(units)} training runs, {arguments.episodes} episodes "
        "each, in the original environment. Normalised scores; means with 95 % intervals of a "
        "bootstrap over training runs, stratified by environment and setting; differences are "
        f"paired. All weights learn from the replay buffer. Played by equirl {equirl.__version__}.",
        lines,
    )
    write_text(arguments.output / "weights.md", page)
    write_csv(arguments.output / "weights.csv", table, "%.6g")
    figures.save(draw(rows), arguments.output / "weights", dpi=120)


if __name__ == "__main__":
    command.run({Arguments: main})
