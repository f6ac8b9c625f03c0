"""Draw and write up a study: figures, table.md and budgets.md beside its returns.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from equicore.lab import figures, statistics
from equicore.lab.store import write_text
from equicore.lab.tables import frame_markdown
from equirl.agents import panel as panels
from equirl.agents import plot
from equirl.agents.panel import RETURN, SCORE, tasks

_HEADINGS = {
    "iqm": "IQM",
    "difference": "minus plain",
    "probability": "P(better than plain)",
}


def write_panel(folder: Path) -> list[Path]:
    """Write table.md, budgets.md and the figures of a study beside its returns.csv.

    Raises:
        FileNotFoundError: If there is no study.
        ValueError: If it is not whole; see `equirl.agents.panel.read_panel`.
    """
    panel = panels.read_panel(folder)
    record = folder / "command.txt"
    command = record.read_text().strip() if record.exists() else "equirl study"
    files = draw_panel(panel, folder)
    for name, text in (
        ("table.md", _table_page(panel, command, files, _record(folder))),
        ("budgets.md", _budgets_page(panel, command)),
    ):
        write_text(folder / name, text)
        files.append(folder / name)
    return files


def _record(folder: Path) -> list[str]:
    """How long the study has taken, and what was selected, as far as it is on record."""
    parts = []
    if (folder / "seconds.csv").exists():
        seconds = pd.read_csv(folder / "seconds.csv").seconds
        parts.append(
            f"The {len(seconds)} units took {seconds.sum() / 3600:.1f} hours of one core, the "
            f"longest {seconds.max() / 60:.0f} minutes: {seconds.sum() / 7200:.1f} hours of wall "
            "time on two cores."
        )
    if (folder / "selection.csv").exists():
        selection = pd.read_csv(folder / "selection.csv")
        counts = selection.groupby(["condition", "chosen"]).size().unstack(fill_value=0)
        parts += [
            "## What was selected",
            f"Checkpoints at which each policy won. A race took {selection.spent.median():.0f} "
            f"episodes in the median, {selection.spent.max():.0f} at most.",
            frame_markdown(counts.reset_index()),
        ]
    return parts


def _table_page(panel: pd.DataFrame, command: str, figures: list[Path], record: list[str]) -> str:
    pictures = [f"![{file.stem}]({file.name})" for file in figures if file.suffix == ".png"]
    parts = [
        "# A panel of agents under every policy",
        f"`{command}`",
        _how(panel),
        "\n".join(f"- {line}" for line in panels.findings(panel)),
        *pictures,
        "## Over the whole panel",
        "Normalised scores. Each environment counts once in each setting, so that the variants of "
        "the gridworld weigh as much as they are many.",
        _markdown(panels.panel_table(panel), SCORE),
        "## Early, in the middle and late in training",
        "Differences of normalised scores to plain, paired, over all settings, in each third of "
        "the budgets. `best` is the fixed policy of the largest difference in these very data, so "
        "that its number flatters it; `selected` was chosen for each agent on other episodes.",
        _markdown(panels.stage_table(panel), SCORE),
        "## Each environment and setting",
        "Normalised scores. Returns at each budget: [budgets.md](budgets.md).",
        _markdown(panels.env_table(panel), SCORE),
        *record,
    ]
    return "\n\n".join(parts) + "\n"


def _budgets_page(panel: pd.DataFrame, command: str) -> str:
    parts = [
        "# Returns at each budget",
        f"`{command}`",
        _how(panel),
        "Returns, not normalised. Of so many comparisons, some differ by chance.",
    ]
    by = ["env", "setting", "condition"]
    for key, table in panels.budget_table(panel).groupby(by, sort=False):
        parts += [f"## {', '.join(map(str, key))}", _markdown(table.drop(columns=by), RETURN)]
    return "\n\n".join(parts) + "\n"


def _markdown(table: pd.DataFrame, spec: str) -> str:
    return frame_markdown(table.rename(columns=_HEADINGS), spec)


def _how(panel: pd.DataFrame) -> str:
    """What the numbers are, in words."""
    runs = panel[["env", "setting", "seed"]].drop_duplicates()
    seeds = ", ".join(str(seed) for seed in sorted(panel.seed.unique()))
    held = 1 - 2 * panels.chance(panel.seed.nunique())
    episodes = " or ".join(str(n) for n in sorted(panel.n_episodes.unique()))
    return (
        f"{len(runs)} training runs ({panel.env.nunique()} environments, "
        f"{panel.setting.nunique()} settings, seeds {seeds}); each policy plays {episodes} "
        "episodes with each checkpoint in each condition. A score is (return - worst) / (best - "
        "worst), with worst and best from study.yaml; IQM is the mean of the middle half. Brackets "
        "are 95 % intervals of a percentile bootstrap, stratified by environment and setting "
        f"(Agarwal et al., 2021; {statistics.RESAMPLES:,} resamples): whole runs are drawn, "
        "because the budgets and conditions of a run are not independent, and differences are "
        f"paired by run. Such intervals are narrow: those of one task, of {panel.seed.nunique()} "
        f"runs, hold the true mean of normal scores in {held:.0%} of cases. P(better than plain) "
        "compares runs of different seeds, too; its interval is wide."
    )


def draw_panel(panel: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw all figures of what `equirl.agents.panel.read_panel` gives: PNG, and SVG if small."""
    drawn = {"figure2": paper_bars(panel)}
    for condition, rows in panel.groupby("condition", sort=False):
        name = "budgets" if condition == "original" else f"budgets_{condition}"
        drawn[name] = budget_curves(rows)
    drawn["profiles"] = profiles(panel)
    saved = [figures.save(f, folder / name, dpi=110, colours=64) for name, f in drawn.items()]
    return [file for files in saved for file in files]


def paper_bars(panel: pd.DataFrame) -> Figure:
    """Figure 2 of the paper: bars for each policy, a row for each setting, a column an environment.

    Bars are means over seeds and budgets; the first condition is solid, others are pale.
    """
    envs = list(panel.env.unique())
    settings, conditions = list(panel.setting.unique()), list(panel.condition.unique())
    size = (max(6.4, 2.5 * len(envs)), 2.8 * len(settings) + 0.5)
    figure, axes = figures.grid(len(settings), len(envs), figsize=size)
    names = plot.drawn(panel)
    width = 0.8 / len(conditions)
    for row, setting in zip(axes, settings, strict=True):
        for axis, env in zip(row, envs, strict=True):
            rows = panel[(panel.setting == setting) & (panel.env == env)]
            for j, condition in enumerate(conditions):
                returns = tasks(rows[rows.condition == condition], "mean_return")
                estimates = [statistics.stratified_mean(returns[name]) for name in names]
                figures.bars(
                    axis,
                    [i + (j - (len(conditions) - 1) / 2) * width for i in range(len(names))],
                    width,
                    estimates,
                    color=[plot.STYLES[name].fill for name in names],
                    alpha=1 if j == 0 else 0.45,
                    hatch="" if j == 0 else "//",
                )
            axis.axhline(0, color="black", linewidth=0.8)
            labels = [plot.STYLES[name].label for name in names]
            slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor", "fontsize": 9}
            axis.set_xticks(range(len(names)), labels, **slanted)
            axis.set_title("\n".join([*env.split(" "), setting]), fontsize=9)
            figures.tidy(axis)
        row[0].set_ylabel("mean return per episode,\n95 % interval (higher is better)")
    patches = [
        Patch(
            facecolor="#bfbfbf" if j == 0 else "#e6e6e6",
            hatch="" if j == 0 else "//",
            edgecolor="black",
            label=condition,
        )
        for j, condition in enumerate(conditions)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))
    return figure


def budget_curves(rows: pd.DataFrame) -> Figure:
    """Mean return against training steps, in one condition: rows of settings, columns of envs."""
    settings, envs = list(rows.setting.unique()), list(rows.env.unique())
    size = (max(6.4, 2.7 * len(envs)), 2.6 * len(settings) + 0.5)
    figure, axes = figures.grid(len(settings), len(envs), figsize=size, sharey="col")
    for row, setting in zip(axes, settings, strict=True):
        for axis, env in zip(row, envs, strict=True):
            cell = rows[(rows.setting == setting) & (rows.env == env)]
            at = {budget: tasks(r, "mean_return") for budget, r in cell.groupby("budget")}
            for name in plot.drawn(rows):
                estimates = [statistics.stratified_mean(returns[name]) for returns in at.values()]
                style = {"marker": plot.STYLES[name].marker, "ms": 4, "lw": 1.3}
                plot.draw_line(axis, name, list(at), estimates, **style)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
            axis.set_title("\n".join([*env.split(" "), setting]), fontsize=9)
            figures.tidy(axis)
        row[0].set_ylabel("mean return per episode")
    for axis in axes[-1]:
        axis.set_xlabel("training steps", fontsize=9)
    figure.suptitle(f"Condition: {rows.condition.iloc[0]}", fontsize=11)
    figures.legend_below(figure, axes[0][0], max(1, int(figure.get_figwidth() / 1.3)))
    return figure


def profiles(panel: pd.DataFrame) -> Figure:
    """The fraction of agents that score more than a threshold, a column for each condition."""
    conditions = list(panel.condition.unique())
    size = (max(6.4, 4.2 * len(conditions)), 3.6)
    figure, axes = figures.grid(1, len(conditions), figsize=size, sharey=True)
    thresholds = np.linspace(min(0.0, panel.score.min()), max(1.0, panel.score.max()), 61)
    for axis, condition in zip(axes[0], conditions, strict=True):
        scores = tasks(panel[panel.condition == condition])
        for name in plot.drawn(panel):
            profile = statistics.performance_profile(scores[name], thresholds)
            plot.draw_line(axis, name, [*thresholds], profile, lw=1.3)
        axis.set_title(condition, fontsize=10)
        axis.set_xlabel("normalised score τ")
        figures.tidy(axis)
    axes[0][0].set_ylabel("fraction of checkpoints\nwith score > τ")
    figures.legend_below(figure, axes[0][0], max(1, int(figure.get_figwidth() / 1.3)))
    return figure
