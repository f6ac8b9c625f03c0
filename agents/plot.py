"""Plot comparisons: bars for each policy, and curves of return against training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from equicore.lab import figures
from equicore.lab.statistics import Estimate, Returns, interquartile_mean
from equicore.lab.tables import read_csv
from equirl.agents.arguments import Plot
from equirl.agents.cli import run

COLUMNS = ["env", "agent", "seed", "budget", "policy", "condition", "episode", "episode_return"]
"""Of returns.csv of a comparison."""


TRANSFORMED: dict[str, Any] = {"hatch": "//", "alpha": 0.45}
"""How bars of a transformed environment look, in all figures."""

IQM_LABEL = "IQM return per episode"


@dataclasses.dataclass(frozen=True)
class Style:
    """How a policy is drawn; policies differ in lightness, to be read in greyscale too."""

    label: str
    fill: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    stroke: str | None = None  # of lines, where the fill is too pale for them


STYLES = {
    "plain": Style("plain", "#d9d9d9", "o", ":", stroke="#8c8c8c"),
    "equitune": Style("equitune", "#e69f00", "s", "-"),
    "equizero": Style("equizero", "#0072b2", "^", "--"),
    "equitune_raw": Style("equitune, raw Q", "#f5ca66", ">", (0, (1, 1)), stroke="#966b00"),
    "equizero_raw": Style("equizero, raw Q", "#88cdf5", "<", (0, (3, 1))),
    "lambda": Style("λ-equitune", "#3a3a3a", "D", "-."),
    "lambda_blend": Style("λ, actions averaged", "#494949", "d", (0, (3, 1, 1, 1))),
    "selected": Style("selected", "#2ca67c", "v", (0, (5, 1, 1, 1))),
}


def as_array(rows: pd.DataFrame) -> Returns:
    """Returns of one policy under one condition as an array (agents, episodes).

    Args:
        rows: With the columns ``agent``, ``episode`` and ``episode_return``.

    Raises:
        ValueError: If an agent has played an episode twice, or fewer than others.
    """
    twice = rows[rows.duplicated(["agent", "episode"])]
    if len(twice):
        raise ValueError(f"there are two sets of returns of {twice.agent.iloc[0]} in one setting")
    array = rows.pivot(index="agent", columns="episode", values="episode_return")
    if array.isna().any(axis=None):
        counts = rows.groupby("agent").size()
        raise ValueError(f"agents have played different episodes: {counts.to_dict()}")
    return array.to_numpy()


def plot_returns(returns: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw all figures for the returns of a comparison, with ``COLUMNS``; a row is an episode."""
    files = figures.save(bars(returns), folder / "returns")
    budgets = returns.groupby(["env", "agent"]).budget.transform("nunique")
    if (budgets > 1).any():
        files += figures.save(curves(returns[budgets > 1]), folder / "curves")
    return files


def bars(returns: pd.DataFrame) -> Figure:
    """A panel for each environment and last budget: bars for each policy and condition."""
    returns = returns[returns.budget == returns.groupby(["env", "agent"]).budget.transform("max")]
    cells = [*returns.groupby(["env", "budget"], sort=False)]
    figure, axes = figures.panels(len(cells), size=(3.6, 3.6))
    policies, floors = drawn(returns), []
    for axis, ((env, budget), rows) in zip(axes, cells, strict=True):
        conditions = list(rows.condition.unique())
        width = 0.8 / len(policies)
        found = []
        for i, policy in enumerate(policies):
            for j, condition in enumerate(conditions):
                cell = rows[(rows.policy == policy) & (rows.condition == condition)]
                if cell.empty:
                    continue
                estimate = _estimate(cell)
                found.append(estimate)
                place = j + width * (i - (len(policies) - 1) / 2)
                look = TRANSFORMED if j else {}
                colour = STYLES[policy].fill
                figures.bars(axis, [place], 0.9 * width, [estimate], color=colour, **look)
        floors.append(figures.stand(axis, found))
        axis.set_xticks(range(len(conditions)), conditions)
        agents = rows.agent.nunique()
        plural = "agents" if agents > 1 else "agent"
        axis.set_title(f"{env}\n{budget:,} training steps, {agents} {plural}", fontsize=10)
        figures.tidy(axis)
    axes[0].set_ylabel(f"{IQM_LABEL}\n(higher is better)")
    patches = [
        Patch(facecolor=STYLES[name].fill, edgecolor="black", label=STYLES[name].label)
        for name in policies
    ]
    figures.legend_below(figure, patches, _note(returns, "bars") + floor_note(floors))
    return figure


def curves(returns: pd.DataFrame) -> Figure:
    """Return against training steps: a panel for each environment and condition."""
    envs, conditions = returns.env.unique(), returns.condition.unique()
    cells = [
        ((condition, env), returns[(returns.env == env) & (returns.condition == condition)])
        for condition in conditions
        for env in envs
    ]
    figure, axes = figures.panels(len(cells), size=(4.2, 3.4), columns=min(3, len(envs)))
    for axis, ((condition, env), cell) in zip(axes, cells, strict=True):
        for policy in drawn(cell):
            at = cell[cell.policy == policy].groupby("budget")
            estimates = [_estimate(group) for _, group in at]
            draw_line(axis, policy, [*at.groups], estimates, marker=STYLES[policy].marker, ms=4)
        axis.set_title(f"{env}, {condition}", fontsize=10)
        axis.set_xlabel("training steps")
        figures.tidy(axis)
    axes[0].set_ylabel(f"{IQM_LABEL}\n(higher is better)")
    figures.legend_below(figure, axes[0], _note(returns, "bands"))
    return figure


def drawn(returns: pd.DataFrame) -> list[str]:
    """The policies that there are returns of, in the order of the tables."""
    return [policy for policy in STYLES if (returns.policy == policy).any()]


def draw_line(
    axis: Axes, policy: str, x: Sequence[float], estimates: Sequence[Estimate], **style: Any
) -> None:
    """A policy's line and band."""
    look = STYLES[policy]
    # those drawn later are thinner and broken, so that lines that coincide are all seen
    width = 1.3 + 0.45 * (len(STYLES) - 1 - list(STYLES).index(policy))
    style = {"linestyle": look.line, "label": look.label, "linewidth": width, **style}
    figures.band(axis, x, estimates, look.stroke or look.fill, **style)


def read_comparison(path: Path) -> pd.DataFrame:
    """The returns that `equirl compare --output` wrote.

    Raises:
        FileNotFoundError: If there is no comparison.
        ValueError: If the file is no table of returns.
    """
    file = path / "returns.csv" if path.is_dir() else path
    needed = [name for name in COLUMNS if name != "seed"]
    return read_csv(file, needed, "equirl compare --output")


def _estimate(rows: pd.DataFrame) -> Estimate:
    return interquartile_mean(as_array(rows))


def floor_note(floors: Sequence[float]) -> str:
    """What is to be said if bars do not begin at 0."""
    return " Where returns are negative, bars do not begin at 0." if any(floors) else ""


def _note(returns: pd.DataFrame, what: str) -> str:
    """What the bars or bands of error are, and of how much."""
    seeds = returns.groupby("env").agent.nunique()
    agents = f"{seeds.min()}" + (f" to {seeds.max()}" if seeds.nunique() > 1 else "")
    plural = "agent" if seeds.max() == 1 else "agents"
    return (
        f"{returns.episode.nunique()} episodes of each agent and policy, {agents} {plural}. Error "
        f"{what}: 95 % intervals of a bootstrap over agents and episodes. IQM: mean of the middle "
        "half of the episodes." + (" Pale and hatched: transformed." if what == "bars" else "")
    )


def main(arguments: Plot) -> None:
    """Draw the figures and say where they are."""
    if not arguments.comparisons:
        raise ValueError("nothing to plot: name folders that equirl compare --output wrote")
    first = arguments.comparisons[0]
    if (first / "study.yaml").exists():
        from equirl.agents.panel_plot import write_panel  # which draws with this module

        if len(arguments.comparisons) > 1 or arguments.output is not None:
            raise ValueError("a study is plotted alone, into its own folder")
        files = write_panel(first)
    else:
        returns = pd.concat([read_comparison(path) for path in arguments.comparisons])
        files = plot_returns(
            returns, arguments.output or (first if first.is_dir() else first.parent)
        )
    for file in files:
        print(file)


if __name__ == "__main__":
    run(main, Plot)
