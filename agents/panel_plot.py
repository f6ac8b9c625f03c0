"""Draw and write up a study: figures, table.md and budgets.md beside its returns.csv."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter
from PIL import Image

from equicore.files import replacing
from equirl.agents import panel as panels
from equirl.agents import plot, statistics
from equirl.agents.panel import RETURN, SCORE, markdown, tasks

# Lightness still differs from policy to policy.
COLOURS = {**plot.COLOURS, "plain": "#8c8c8c"}
FILLS = plot.COLOURS
MARKERS, LINES, LABELS = plot.MARKERS, plot.LINES, plot.LABELS
PAPER_FAMILIES = ("equirl/Gridworld-v0", "CartPole-v1", "Acrobot-v1")
"""From left to right in figure 2 of Basu et al. (NeurIPS 2023)."""

DPI = 110
LARGEST_SVG = 150_000  # bytes; the files are committed

_HEADINGS = {
    "iqm": "IQM",
    "difference": "minus plain",
    "probability": "P(better than plain)",
}


def write_panel(folder: Path) -> list[Path]:
    """Write table.md, budgets.md and the figures of a study.

    Args:
        folder: Holds returns.csv and study.yaml, and command.txt, named in the tables.

    Returns:
        The files.

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
        with replacing(folder / name) as temporary:
            temporary.write_text(text)
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
            markdown(counts.reset_index(), ""),
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
        "one family weigh as much as they are many.",
        _markdown(panels.panel_table(panel), SCORE),
        "## Early, in the middle and late in training",
        "Differences of normalised scores to plain, paired, over all settings, in each third of "
        "the budgets. `best` is the fixed policy of the largest difference in these very data, so "
        "that its number flatters it; `selected` was chosen for each agent on other episodes.",
        _markdown(panels.stage_table(panel), SCORE),
        "## Each family and setting",
        "Normalised scores. Returns at each budget: [budgets.md](budgets.md).",
        _markdown(panels.family_table(panel), SCORE),
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
    return markdown(table.rename(columns=_HEADINGS), spec)


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
    """Draw all figures.

    Args:
        panel: As `equirl.agents.panel.read_panel` gives it.
        folder: Where to.

    Returns:
        The files: PNG of each figure, and SVG where it is small.
    """
    files = _save(paper_bars(panel), folder / "figure2")
    for condition, rows in panel.groupby("condition", sort=False):
        name = "budgets" if condition == "original" else f"budgets_{condition}"
        files += _save(budget_curves(rows), folder / name)
    return files + _save(profiles(panel), folder / "profiles")


def paper_bars(panel: pd.DataFrame) -> Figure:
    """Figure 2 of the paper: bars for each policy, a row for each setting, a column a family.

    Bars are means over seeds, budgets and the variants of the family; the first condition is
    solid, others are pale.
    """
    families = sorted(panel.family.unique(), key=_family_position)
    settings, conditions = list(panel.setting.unique()), list(panel.condition.unique())
    figure, axes = plt.subplots(
        len(settings),
        len(families),
        figsize=(max(6.4, 3.2 * len(families)), 2.8 * len(settings) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    names = plot.drawn(panel)
    width = 0.8 / len(conditions)
    for row, setting in zip(axes, settings, strict=True):
        for axis, family in zip(row, families, strict=True):
            rows = panel[(panel.setting == setting) & (panel.family == family)]
            for j, condition in enumerate(conditions):
                returns = tasks(rows[rows.condition == condition], "mean_return")
                estimates = [statistics.stratified_mean(returns[name]) for name in names]
                axis.bar(
                    np.arange(len(names)) + (j - (len(conditions) - 1) / 2) * width,
                    [e.value for e in estimates],
                    width,
                    yerr=plot.error_bars(estimates),
                    color=[FILLS[name] for name in names],
                    alpha=1 if j == 0 else 0.45,
                    hatch="" if j == 0 else "//",
                    edgecolor="black",
                    linewidth=0.8,
                    error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#7f7f7f"},
                )
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set_xticks(
                range(len(names)),
                [LABELS[name] for name in names],
                rotation=30,
                ha="right",
                rotation_mode="anchor",
                fontsize=9,
            )
            axis.set_title(f"{family}, {setting}", fontsize=10)
            plot.tidy(axis)
        row[0].set_ylabel("mean return per episode\n(higher is better)")
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
    """Mean return against training steps: a row for each setting, a column for each environment.

    Args:
        rows: Of a panel, of one condition.
    """
    settings, envs = list(rows.setting.unique()), list(rows.env.unique())
    figure, axes = plt.subplots(
        len(settings),
        len(envs),
        figsize=(max(6.4, 2.7 * len(envs)), 2.6 * len(settings) + 0.5),
        squeeze=False,
        sharey="col",
        layout="constrained",
    )
    for row, setting in zip(axes, settings, strict=True):
        for axis, env in zip(row, envs, strict=True):
            cell = rows[(rows.setting == setting) & (rows.env == env)]
            at = {budget: tasks(r, "mean_return") for budget, r in cell.groupby("budget")}
            for name in plot.drawn(rows):
                estimates = [statistics.stratified_mean(returns[name]) for returns in at.values()]
                values, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
                _band(axis, name, list(at), values, low, high, MARKERS[name])
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
            axis.set_title("\n".join([*env.split(" "), setting]), fontsize=9)
            plot.tidy(axis)
        row[0].set_ylabel("mean return per episode")
    for axis in axes[-1]:
        axis.set_xlabel("training steps", fontsize=9)
    figure.suptitle(f"Condition: {rows.condition.iloc[0]}", fontsize=11)
    _legend(figure, axes[0][0])
    return figure


def profiles(panel: pd.DataFrame) -> Figure:
    """The fraction of agents that score more than a threshold, a column for each condition."""
    conditions = list(panel.condition.unique())
    figure, axes = plt.subplots(
        1,
        len(conditions),
        figsize=(max(6.4, 4.2 * len(conditions)), 3.6),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    thresholds = np.linspace(min(0.0, panel.score.min()), max(1.0, panel.score.max()), 61)
    for axis, condition in zip(axes[0], conditions, strict=True):
        scores = tasks(panel[panel.condition == condition])
        for name in plot.drawn(panel):
            profile = statistics.performance_profile(scores[name], thresholds)
            _band(axis, name, thresholds, *profile)
        axis.set_title(condition, fontsize=10)
        axis.set_xlabel("normalised score τ")
        plot.tidy(axis)
    axes[0][0].set_ylabel("fraction of checkpoints\nwith score > τ")
    _legend(figure, axes[0][0])
    return figure


def _family_position(family: str) -> tuple[int, str]:
    known = family in PAPER_FAMILIES
    return PAPER_FAMILIES.index(family) if known else len(PAPER_FAMILIES), family


def _band(
    axis: Axes,
    name: str,
    x: Sequence[float] | statistics.Returns,
    values: statistics.Returns,
    low: statistics.Returns,
    high: statistics.Returns,
    marker: str | None = None,
) -> None:
    colour = COLOURS[name]
    axis.plot(
        x, values, ls=LINES[name], marker=marker, ms=4, color=colour, lw=1.3, label=LABELS[name]
    )
    axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    columns = min(len(labels), max(1, int(figure.get_figwidth() / 1.3)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _save(figure: Figure, stem: Path) -> list[Path]:
    """PNG, and SVG unless that is large; a large one of before is removed."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    drawn = {png: io.BytesIO(), svg: io.BytesIO()}
    # a fixed salt and no date: the same data give the same file
    with matplotlib.rc_context({"svg.hashsalt": "equirl", "svg.fonttype": "path"}):
        figure.savefig(drawn[png], format="png", dpi=DPI)
        figure.savefig(drawn[svg], format="svg", metadata={"Date": None})
    plt.close(figure)
    # overlapping bands have very many colours; 64 of them look the same in a quarter of the bytes
    image = Image.open(drawn[png]).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    drawn[png] = io.BytesIO()
    image.save(drawn[png], format="png", optimize=True)
    if drawn[svg].getbuffer().nbytes > LARGEST_SVG:
        del drawn[svg]
        svg.unlink(missing_ok=True)
    for file, content in drawn.items():
        with replacing(file) as temporary:
            temporary.write_bytes(content.getvalue())
    return list(drawn)
