"""Draw and write up a study: figures, table.md and budgets.md beside its returns.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else ["equirl study"]
    command = ", ".join([f"`{lines[0]}`", *lines[1:]])  # and the version
    files = draw_panel(panel, folder)
    for name, text in (
        ("table.md", _table_page(panel, command, files, _record(folder))),
        ("budgets.md", _budgets_page(panel, command)),
    ):
        write_text(folder / name, text)
        files.append(folder / name)
    return files


def _record(folder: Path) -> list[str]:
    """What was checked, how long it took, and what was selected, as far as it is on record."""
    parts = []
    if (folder / "symmetries.txt").exists():
        checks = (folder / "symmetries.txt").read_text(encoding="utf-8").splitlines()
        parts += ["## Are the symmetries true?", "\n".join(f"- {line}" for line in checks)]
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
        command,
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
        command,
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
    """Figure 2 of the paper: bars for each policy, a panel for each setting and environment.

    Bars are means over seeds and budgets.
    """
    cells = _cells(panel)
    conditions = list(panel.condition.unique())
    figure, axes = figures.panels(len(cells), size=(3.4, 3.0))
    names = plot.drawn(panel)
    width = 0.8 / len(conditions)
    floors = []
    for axis, ((setting, env), rows) in zip(axes, cells, strict=True):
        found = []
        for j, condition in enumerate(conditions):
            returns = tasks(rows[rows.condition == condition], "mean_return")
            estimates = [statistics.stratified_mean(returns[name]) for name in names]
            found += estimates
            figures.bars(
                axis,
                [i + (j - (len(conditions) - 1) / 2) * width for i in range(len(names))],
                width,
                estimates,
                color=[plot.STYLES[name].fill for name in names],
                **(plot.TRANSFORMED if j else {}),
            )
        floors.append(figures.stand(axis, found))
        labels = [plot.STYLES[name].label for name in names]
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(names)), labels, fontsize=8, **slanted)
        axis.set_title(f"{_plain(env)}\n{setting}", fontsize=9)
        figures.tidy(axis)
    axes[0].set_ylabel("mean return per episode\n(higher is better)")
    patches = [
        Patch(facecolor="#8c8c8c", edgecolor="black", label=c, **(plot.TRANSFORMED if j else {}))
        for j, c in enumerate(conditions)
    ]
    note = f"Means over seeds and budgets. Error bars: {_intervals(panel)}"
    note += plot.floor_note(floors)
    figures.legend_below(figure, patches, note)
    return figure


def budget_curves(rows: pd.DataFrame) -> Figure:
    """Mean return against training steps, in one condition: a panel for each setting and env."""
    cells = _cells(rows)
    figure, axes = figures.panels(len(cells), size=(3.4, 2.8))
    for axis, ((setting, env), cell) in zip(axes, cells, strict=True):
        at = {budget: tasks(r, "mean_return") for budget, r in cell.groupby("budget")}
        budgets: list[Any] = [*at]
        for name in plot.drawn(rows):
            estimates = [statistics.stratified_mean(returns[name]) for returns in at.values()]
            marker = plot.STYLES[name].marker
            plot.draw_line(axis, name, budgets, estimates, marker=marker, ms=4)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
        axis.set_title(f"{_plain(env)}\n{setting}", fontsize=9)
        axis.set_xlabel("training steps", fontsize=9)
        figures.tidy(axis)
    axes[0].set_ylabel("mean return per episode\n(higher is better)")
    figure.suptitle(f"Condition: {rows.condition.iloc[0]}", fontsize=11)
    figures.legend_below(figure, axes[0], f"Bands: {_intervals(rows)}")
    return figure


def _cells(rows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The rows of each setting and environment, one setting after the other."""
    return [
        ((setting, env), rows[(rows.setting == setting) & (rows.env == env)])
        for setting in rows.setting.unique()
        for env in rows.env.unique()
    ]


def _plain(env: str) -> str:
    """The name of a study's environment as words, or an id and its arguments, one below another."""
    if "=" in env:
        return env.replace(" ", "\n")
    head, *rest = env.split("-")
    return env if not rest or rest[-1].startswith("v") else ", ".join([head, *rest])


def _intervals(panel: pd.DataFrame) -> str:
    """What the intervals are, and of how much."""
    episodes = " or ".join(str(n) for n in sorted(panel.n_episodes.unique()))
    return (
        f"95 % intervals of a bootstrap over {panel.seed.nunique()} training seeds; {episodes} "
        "episodes for each checkpoint, policy and condition."
    )


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
            plot.draw_line(axis, name, [*thresholds], profile)
        axis.set_title(condition, fontsize=10)
        axis.set_xlabel("normalised score τ")
        figures.tidy(axis)
    axes[0][0].set_ylabel("fraction of checkpoints\nwith score > τ")
    figures.legend_below(figure, axes[0][0], f"Bands: {_intervals(panel)}")
    return figure
