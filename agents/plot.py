"""Plot comparisons: bars for each policy, and curves of return against training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equicore.lab import figures
from equicore.lab.statistics import Estimate, Returns, interquartile_mean
from equicore.lab.tables import read_csv
from equirl.agents.cli import run

COLUMNS = ["env", "agent", "seed", "budget", "policy", "condition", "episode", "episode_return"]
"""Of returns.csv of a comparison."""


@dataclasses.dataclass(frozen=True)
class Style:
    """How a policy is drawn; lightness falls from policy to policy, to be read in greyscale too."""

    label: str
    fill: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]
    hatch: str = ""
    stroke: str | None = None  # of lines, where the fill is too pale for them


STYLES = {
    "plain": Style("plain", "#d9d9d9", "o", ":", stroke="#8c8c8c"),
    "equitune": Style("equitune", "#e69f00", "s", "--", hatch="//"),
    "equizero": Style("equizero", "#0072b2", "^", "-"),
    "equizero_raw": Style("equizero, raw Q", "#88cdf5", "<", (0, (3, 1)), hatch=".."),
    "lambda": Style("λ-equitune", "#111111", "D", "-."),
    "selected": Style("selected", "#2ca67c", "v", (0, (5, 1, 1, 1)), hatch="xx"),
}


@dataclasses.dataclass
class Plot:
    """Plot what `equirl compare --output` or `equirl study` wrote.

    For comparisons: returns.png and returns.svg, seed-averaged bars for each policy; and, for each
    environment with several training budgets, curves of return against training steps. For a
    study: all its tables and figures, anew.

    Example: equirl plot results/mine
    """

    comparisons: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of comparisons, or their returns.csv; several are drawn together. Or a study."""
    output: Path | None = None
    """Folder for the figures; that of the first comparison when omitted."""


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
    """A panel for each environment: bars for each policy and condition, at each last budget."""
    returns = returns[returns.budget == returns.groupby(["env", "agent"]).budget.transform("max")]
    envs = list(returns.env.unique())
    figure, axes = figures.grid(1, len(envs), figsize=(_width(3.6, len(envs)), 3.6))
    for axis, env in zip(axes[0], envs, strict=True):
        rows = returns[returns.env == env]
        conditions = list(rows.condition.unique())
        policies = drawn(rows)
        width = 0.8 / len(policies)
        for i, policy in enumerate(policies):
            estimates = [
                _estimate(rows[(rows.policy == policy) & (rows.condition == condition)])
                for condition in conditions
            ]
            places = [j + width * (i - (len(policies) - 1) / 2) for j in range(len(conditions))]
            style = {"color": STYLES[policy].fill, "hatch": STYLES[policy].hatch}
            label = STYLES[policy].label
            figures.bars(axis, places, 0.9 * width, estimates, label=label, **style)
        axis.set_xticks(range(len(conditions)), conditions)
        axis.axhline(0, color="black", linewidth=0.8)
        agents, budgets = rows.agent.nunique(), sorted(rows.budget.unique())
        steps = f"{budgets[0]:,}" + (f" to {budgets[-1]:,}" if len(budgets) > 1 else "")
        plural = "agents" if agents > 1 else "agent"
        axis.set_title(f"{env}\n{steps} steps, {agents} {plural}", fontsize=10)
        figures.tidy(axis)
    axes[0][0].set_ylabel("IQM return per episode\n(sum of rewards, higher is better)")
    figures.legend_below(figure, axes[0][0])
    return figure


def curves(returns: pd.DataFrame) -> Figure:
    """Return against training steps: a column for each environment, a row for each condition."""
    envs, conditions = list(returns.env.unique()), list(returns.condition.unique())
    size = (_width(4.2, len(envs)), 3.2 * len(conditions))
    figure, axes = figures.grid(
        len(conditions), len(envs), figsize=size, sharex="col", sharey="col"
    )
    for column, env in enumerate(envs):
        for row, condition in enumerate(conditions):
            axis = axes[row][column]
            cell = returns[(returns.env == env) & (returns.condition == condition)]
            for policy in drawn(cell):
                at = cell[cell.policy == policy].groupby("budget")
                estimates = [_estimate(group) for _, group in at]
                marks = {"marker": STYLES[policy].marker, "ms": 4}
                draw_line(axis, policy, [*at.groups], estimates, **marks)
            axis.set_title(f"{env}, {condition}", fontsize=10)
            figures.tidy(axis)
        axes[-1][column].set_xlabel("training (environment steps)")
    for row in range(len(conditions)):
        axes[row][0].set_ylabel("IQM return per episode\n(sum of rewards, higher is better)")
    figures.legend_below(figure, axes[0][0])
    return figure


def drawn(returns: pd.DataFrame) -> list[str]:
    """The policies that there are returns of, in the order of the tables."""
    return [policy for policy in STYLES if (returns.policy == policy).any()]


def draw_line(
    axis: Axes, policy: str, x: Sequence[float], estimates: Sequence[Estimate], **style: Any
) -> None:
    """A policy's line and band."""
    look = STYLES[policy]
    style = {"linestyle": look.line, "label": look.label, **style}
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


def _width(panel: float, panels: int) -> float:
    """Width of a figure in inches; the legend needs some, too."""
    return max(5.6, panel * panels)


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
