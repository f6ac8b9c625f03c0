"""Plot comparisons: bars for each policy, and curves of return against training steps.

equirl plot results/demo
equirl plot results/cartpole/returns.csv results/acrobot/returns.csv --output figures
equirl plot results/study
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import pandas as pd
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equicore.files import replacing
from equirl.agents import statistics
from equirl.agents.cli import run

# Lightness falls from policy to policy, so the figures read in greyscale too.
COLOURS = {
    "plain": "#d9d9d9",
    "equitune": "#e69f00",
    "equizero": "#0072b2",
    "equizero_raw": "#88cdf5",
    "lambda": "#111111",
    "selected": "#2ca67c",
}
HATCHES = {"equitune": "//", "equizero_raw": "..", "selected": "xx"}
MARKERS = {
    "plain": "o",
    "equitune": "s",
    "equizero": "^",
    "equizero_raw": "<",
    "lambda": "D",
    "selected": "v",
}
LINES: dict[str, str | tuple[int, tuple[int, ...]]] = {
    "plain": ":",
    "equitune": "--",
    "equizero": "-",
    "equizero_raw": (0, (3, 1)),
    "lambda": "-.",
    "selected": (0, (5, 1, 1, 1)),
}
LABELS = {
    "plain": "plain",
    "equitune": "equitune",
    "equizero": "equizero",
    "equizero_raw": "equizero, raw Q",
    "lambda": "λ-equitune",
    "selected": "selected",
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


def plot_returns(returns: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw all figures for returns as `equirl.agents.compare.play` gives them.

    Args:
        returns: One row for each episode.
        folder: Where to.

    Returns:
        The files, PNG and SVG of each figure.
    """
    files = _save(bars(returns), folder / "returns")
    budgets = returns.groupby(["env", "agent"]).budget.transform("nunique")
    if (budgets > 1).any():
        files += _save(curves(returns[budgets > 1]), folder / "curves")
    return files


def bars(returns: pd.DataFrame) -> Figure:
    """A panel for each environment: bars for each policy and condition, at each last budget."""
    returns = returns[returns.budget == returns.groupby(["env", "agent"]).budget.transform("max")]
    envs = list(returns.env.unique())
    figure, axes = plt.subplots(
        1, len(envs), figsize=(_width(3.6, len(envs)), 3.6), squeeze=False, layout="constrained"
    )
    for axis, env in zip(axes[0], envs, strict=True):
        last = returns[returns.env == env]
        conditions = list(last.condition.unique())
        policies = drawn(last)
        width = 0.8 / len(policies)
        for i, policy in enumerate(policies):
            estimates = [
                _estimate(last[(last.policy == policy) & (last.condition == condition)])
                for condition in conditions
            ]
            axis.bar(
                [j + width * (i - (len(policies) - 1) / 2) for j in range(len(conditions))],
                [e.value for e in estimates],
                0.9 * width,
                yerr=error_bars(estimates),
                color=COLOURS[policy],
                hatch=HATCHES.get(policy, ""),
                edgecolor="black",
                linewidth=0.8,
                error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#7f7f7f"},
                label=LABELS[policy],
            )
        axis.set_xticks(range(len(conditions)), conditions)
        axis.axhline(0, color="black", linewidth=0.8)
        agents, budgets = last.agent.nunique(), sorted(last.budget.unique())
        steps = f"{budgets[0]:,}" + (f" to {budgets[-1]:,}" if len(budgets) > 1 else "")
        plural = "agents" if agents > 1 else "agent"
        axis.set_title(f"{env}\n{steps} steps, {agents} {plural}", fontsize=10)
        tidy(axis)
    axes[0][0].set_ylabel("IQM return per episode\n(sum of rewards, higher is better)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def curves(returns: pd.DataFrame) -> Figure:
    """Return against training steps: a column for each environment, a row for each condition."""
    envs, conditions = list(returns.env.unique()), list(returns.condition.unique())
    figure, axes = plt.subplots(
        len(conditions),
        len(envs),
        figsize=(_width(4.2, len(envs)), 3.2 * len(conditions)),
        squeeze=False,
        sharex="col",
        sharey="col",
        layout="constrained",
    )
    for column, env in enumerate(envs):
        for row, condition in enumerate(conditions):
            axis = axes[row][column]
            cell = returns[(returns.env == env) & (returns.condition == condition)]
            for policy in drawn(cell):
                steps, estimates = zip(
                    *(
                        (budget, _estimate(group))
                        for budget, group in cell[cell.policy == policy].groupby("budget")
                    ),
                    strict=True,
                )
                colour = COLOURS[policy] if policy != "plain" else "#8c8c8c"
                axis.plot(
                    steps,
                    [e.value for e in estimates],
                    linestyle=LINES[policy],
                    marker=MARKERS[policy],
                    markersize=4,
                    color=colour,
                    label=LABELS[policy],
                )
                axis.fill_between(
                    steps,
                    [e.low for e in estimates],
                    [e.high for e in estimates],
                    color=colour,
                    alpha=0.12,
                    linewidth=0,
                )
            axis.set_title(f"{env}, {condition}", fontsize=10)
            tidy(axis)
        axes[-1][column].set_xlabel("training (environment steps)")
    for row in range(len(conditions)):
        axes[row][0].set_ylabel("IQM return per episode\n(sum of rewards, higher is better)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def drawn(returns: pd.DataFrame) -> list[str]:
    """The policies that there are returns of, in the order of the tables."""
    return [policy for policy in LABELS if (returns.policy == policy).any()]


def _estimate(rows: pd.DataFrame) -> statistics.Estimate:
    return statistics.interquartile_mean(statistics.as_array(rows))


def error_bars(estimates: list[statistics.Estimate]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above the values."""
    return (
        [max(0.0, e.value - e.low) for e in estimates],
        [max(0.0, e.high - e.value) for e in estimates],
    )


def _width(panel: float, panels: int) -> float:
    """Width of a figure in inches; the legend needs some, too."""
    return max(5.6, panel * panels)


def tidy(axis: Axes) -> None:
    """The common look of axes."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def _save(figure: Figure, stem: Path) -> list[Path]:
    files = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    # a fixed salt and no date: the same data give the same file
    with matplotlib.rc_context({"svg.hashsalt": "equirl", "svg.fonttype": "path"}):
        for file in files:
            with replacing(file) as temporary:
                metadata = {"Date": None} if file.suffix == ".svg" else None
                figure.savefig(temporary, dpi=150, metadata=metadata)
    plt.close(figure)
    return files


def read_comparison(path: Path) -> pd.DataFrame:
    """The returns that `equirl compare --output` wrote.

    Raises:
        FileNotFoundError: If there is no comparison.
        ValueError: If the file is no table of returns.
    """
    file = path / "returns.csv" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no comparison at {path}: make one with equirl compare --output")
    returns = pd.read_csv(file)
    needed = {"env", "agent", "budget", "policy", "condition", "episode", "episode_return"}
    missing = needed - set(returns.columns)
    if missing:
        raise ValueError(f"{file} has no columns {', '.join(sorted(missing))}")
    return returns


def main(arguments: Plot) -> None:
    """Draw the figures and say where they are."""
    if not arguments.comparisons:
        raise ValueError("nothing to plot: name folders that equirl compare --output wrote")
    first = arguments.comparisons[0]
    if (first / "study.yaml").exists():
        from equirl.agents.panel_plot import write_panel  # which draws with this module

        if len(arguments.comparisons) > 1 or arguments.output is not None:
            raise ValueError("a study is plotted alone, into its own folder")
        for file in write_panel(first):
            print(file)
        return
    returns = pd.concat([read_comparison(path) for path in arguments.comparisons])
    folder = arguments.output or (first if first.is_dir() else first.parent)
    for file in plot_returns(returns, folder):
        print(file)


if __name__ == "__main__":
    run(main, Plot)
