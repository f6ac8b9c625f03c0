"""Tables and figures of what was measured, beside the numbers of Basu et al. (NeurIPS 2023)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from equicore.applications.images.experiment import COLUMNS, LOOK_POWER, POWERS, weights
from equicore.applications.images.methods import GROUPS
from equicore.applications.images.study import Study
from equicore.lab import figures
from equicore.lab.statistics import Estimate, proportion, t_interval
from equicore.lab.store import write_text
from equicore.lab.tables import frame_markdown, markdown, measured, write_csv
from equicore.representations import Image

PAPER = pd.read_csv(Path(__file__).with_name("paper.csv"), dtype=str, keep_default_na=False)
LABELS = {
    "plain": "plain",
    "equitune": "equitune (mean of logits)",
    "equizero_published": "equizero, the least confident view, as in the published code",
    "equizero_log_odds": "equizero, log-odds",
    "equizero_entropy": "equizero, entropy",
    "equizero_largest_logit": "equizero, largest logit (of CLIP: similarity)",
    "equizero_energy": "equizero, energy",
    "equizero_class_means": "equizero, distance to class means",
    "lambda_familiar": "λ, without labels",
    "lambda_familiar_top1": "λ, without labels, heaviest view",
    "lambda_familiar_top2": "λ, without labels, two heaviest views",
    "lambda_familiar_linear": "λ, without labels, linear",
    "lambda_familiar_wide": "λ, without labels, 300 hidden units",
    "lambda_labels": "λ, on the task's loss, model frozen",
    "lambda_labels_top1": "λ, on the task's loss, heaviest view",
    "lambda_labels_top2": "λ, on the task's loss, two heaviest views",
    **{
        f"lambda_familiar_{score}_{power:g}": f"λ, without labels, times {name} to the {power:g}"
        for score, name in (("log_odds", "odds"), ("largest_logit", "exp of the largest logit"))
        for power in POWERS
    },
    "oracle": "oracle: some view is right",
}
TUNED = {
    "plain": "plain",
    "augmented": "plain, with augmentation",
    "equitune": "equitune",
    "equizero_mean": "equizero, gradient of the mean of views",
    "equizero_plain": "equizero, gradient of the image as it is",
    "lambda_frozen": "λ-equitune, weights frozen",
    "lambda_joint": "λ-equitune, weights trained too",
}
ZERO_SHOT = """\
# Images, zero-shot

Made by `equicore images table` from zero_shot.csv, which `equicore images evaluate` wrote. Accuracy
in % on test images that are each under a random element of the group: mean over seeds, [95 %
interval over test images, by Wilson], and (standard deviation over seeds, where something is
fitted or drawn). A seed is that of the elements and of what is fitted.

Nothing is fitted or chosen on test images: "to choose by" is the accuracy on moved training images,
a tenth of all, that neither weights nor probes nor networks of `equicore images train` are fitted
on (models of others may have seen them); **bold** is what is best there of its kind. Invariant
methods have one accuracy, whatever the elements are, but under eighths of a turn, which are
approximate. Forwards are what an image costs, in forwards of the model, counted in multiplications.
"""
FINETUNED = """\
# Images, fine-tuned

Made by `equicore images table` from finetune.csv, which `equicore images finetune` wrote. Accuracy
in % on test images under random elements of the group after so many steps: mean over seeds
(standard deviation), before the last step on a random part of the test images. After the last step,
on all: [95 % interval by Student's t over seeds], and the difference to augmentation of the same
seed, with such an interval. These intervals do not include the choice of test images: an accuracy
on 10,000 images is known to about ±1 %, on 100 to about ±10 %. In a step all methods see equally
many views: plain fine-tuning and augmentation take |G| times as many images. Once trained, these
two need one forward for an image, the others |G|. λ-equitune starts with weights fitted without
labels.
"""
NETWORKS = """\
# Networks that were trained here

By `equicore images train`; upright accuracy on the test images, in %.

"""
BESIDE = "## Beside them: the paper, and others"
ALWAYS = ("plain", "equitune", "equizero_published", "lambda_familiar")
"""Methods that every measurement has."""
KINDS = ("equizero", "lambda", "orientation")
LOOKED = {
    "top1": "one view",
    "top2": "two views",
    "top2_scored": "two, and the largest logit",
    "all": "all views",
    "all_scored": "all, and the largest logit",
}


def write_tables(folder: Path) -> list[Path]:
    """Write zero_shot.md and finetune.md, and networks.md, beside what was measured.

    Raises:
        FileNotFoundError: If nothing was.
        ValueError: If a table lacks columns or rows.
    """
    tables = _tables(folder)
    for name, table in tables.items():
        write_text(folder / f"{name}.md", PAGES[name](table))
    return [folder / f"{name}.md" for name in tables]


def write_figures(folder: Path) -> list[Path]:
    """Draw zero_shot, cost and finetune, as PNG and SVG; errors as of `write_tables`.

    Cost is drawn if orientation networks were measured.
    """
    tables, files = _tables(folder), []
    for name, (source, draw) in FIGURES.items():
        table = tables.get(source)
        if table is None or (name == "cost" and not table.method.str.contains("orientation").any()):
            continue
        files += figures.save(draw(table), folder / name, dpi=110, colours=64)
    return files


def write_weights(study: Study, folder: Path, seed: int = 0, images: int = 4) -> list[Path]:
    """Draw views of some images with their weights, and say how often the upright one is heaviest.

    As Figure 12 of the paper: in the upper rows images whose heaviest view is the upright one, in
    the lower ones others. Writes weights_DATA_MODEL_GROUP, as PNG, and as CSV the part of the
    images of each class whose heaviest view is the upright one.
    """
    found = weights(study, seed)
    heaviest = found.argmax(1)
    generator = np.random.default_rng(seed)
    rows = []
    for chosen in (heaviest == 0, heaviest != 0):
        places = chosen.nonzero().squeeze(1).numpy()
        rows += generator.permutation(places)[:images].tolist()
    order = len(study.rep.group)
    size = max(1.1 * order, 3.6), 1.25 * len(rows) + 0.6
    figure, axes = figures.grid(len(rows), order, figsize=size)
    views = study.rep.orbit(study.test.pixels[rows]).permute(1, 0, 3, 4, 2).numpy()
    for row, image in enumerate(rows):
        for g, axis in enumerate(axes[row]):
            axis.imshow(views[row, g], cmap="gray", vmin=0, vmax=255)
            axis.set_title(f"{found[image, g]:.2f}", fontsize=8, pad=2)
            axis.set(xticks=[], yticks=[])
        name = study.test.classes[int(study.test.labels[image])]
        axes[row, 0].set_ylabel(name.replace("_", "\n"), fontsize=7)
    part = float((heaviest == 0).double().mean())
    told = f"the upright view (left) is heaviest in {100 * part:.1f} %"
    figure.suptitle(f"{study.name}, {study.group}:\n{told}", fontsize=10)
    named = (study.test.name, study.name, study.group)
    stem = folder / "_".join(["weights", *(re.sub(r"[^\w.-]", "-", name) for name in named)])
    upright = pd.Series((heaviest == 0).double().numpy(), name="upright_heaviest")
    classes = pd.Series(np.asarray(study.test.classes)[study.test.labels.numpy()], name="class")
    table = upright.groupby(classes).agg(["mean", "size"]).reset_index()
    table.columns = ["class", "upright_heaviest", "images"]
    rows_of = pd.DataFrame([{"class": "all", "upright_heaviest": part, "images": len(found)}])
    table = pd.concat([rows_of, table.sort_values("upright_heaviest")])
    listed = stem.with_name(f"{stem.name}.csv")
    write_csv(listed, table, "%.6f")
    return [listed, *figures.save(figure, stem, dpi=90, colours=64)]


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    """What was measured, by the names of `TABLES`; raise ValueError for what cannot be shown."""
    tables = measured(folder, TABLES)
    for name in {"zero_shot", "finetune"} & set(tables):
        table, file = tables[name], folder / f"{name}.csv"
        unknown = set(table.group) - set(GROUPS)
        if name == "finetune":
            unknown |= set(table.method) - set(TUNED)
        if unknown:
            raise ValueError(f"{file} has {sorted(unknown)[0]!r}, which this version does not know")
        for title, some in _each(table):
            seen = set(zip(some.condition, some.method, strict=True))
            needed = {("upright", "plain"), *(("moved", m) for m in ALWAYS)}
            if name == "zero_shot" and not needed <= seen:
                lacking = " ".join(sorted(needed - seen)[0])
                raise ValueError(f"{file} lacks the rows of {title}, {lacking}: write it anew")
            if name == "finetune" and some.pivot_table(
                "accuracy", ["method", "seed"], "steps"
            ).isna().any(axis=None):
                raise ValueError(f"{file} lacks steps of a method of {title}: write it anew")
    return tables


def _each(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """What was measured of each model under each group, with a title."""
    order = {group: place for place, group in enumerate(GROUPS)}
    keys = ["dataset", "model", "group"]
    table = table.sort_values(
        keys, key=lambda of: of.map(order) if of.name == "group" else of.astype(str), kind="stable"
    )
    for (dataset, model, group), some in table.groupby(keys, sort=False):
        approximate = "" if isinstance(GROUPS[str(group)](), Image) else " (approximate)"
        yield f"{dataset}, {model}, {group}{approximate}", some


def _estimate(values: pd.DataFrame) -> Estimate:
    """The mean over seeds, with its interval over images."""
    images = int(values.images.iloc[0])
    found = proportion(values.accuracy.mean() / 100 * images, images)
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


def _label(method: str) -> str:
    kind, _, rest = method.partition("_")
    if kind == "orientation":
        width, how, *scored = rest.split("_")
        views = {"top1": "its heaviest view", "top2": "its two heaviest views", "all": "all views"}
        times = f", times exp of the largest logit to the {LOOK_POWER:g}" if scored else ""
        return f"λ of an orientation network of width {width}, {views[how]}{times}"
    return LABELS.get(method, method)


def _best(some: pd.DataFrame, kind: str) -> str | None:
    """The method of a kind that is best on what methods are chosen by."""
    choice = some[(some.condition == "validation") & some.method.str.startswith(kind)]
    mean = choice.groupby("method").accuracy.mean()
    return None if mean.empty else str(mean.idxmax())


def _zero_shot_page(table: pd.DataFrame) -> str:
    page = [ZERO_SHOT]
    for title, some in _each(table):
        best = {_best(some, kind) for kind in KINDS}
        upright = some[(some.condition == "upright") & (some.method == "plain")]
        rows = [["plain, images as they are", f"{_estimate(upright):.1f}", "", "", "1"]]
        moved = some[some.condition == "moved"]
        for method in moved.method.unique():
            own = moved[moved.method == method]
            choice = some[(some.condition == "validation") & (some.method == method)]
            label = _label(method)
            spread = own.accuracy.std() if own.accuracy.nunique() > 1 else 0.0
            rows.append([
                f"**{label}**" if method in best else label,
                f"{_estimate(own):.1f}",
                f"({spread:.1f})" if spread else "",
                f"{choice.accuracy.mean():.1f}",
                f"{own.forwards.iloc[0]:.2f}",
            ])  # fmt: skip
        head = ["method", "moved [95 %]", "seeds", "to choose by", "forwards"]
        page += [f"## {title}", "", markdown(head, rows), ""]
    page += [BESIDE, "", frame_markdown(PAPER), ""]
    return "\n".join(page).rstrip() + "\n"


def _finetune_page(table: pd.DataFrame) -> str:
    page = [FINETUNED]
    for title, some in _each(table):
        steps = sorted(some.steps.unique())
        last = some[some.steps == steps[-1]].pivot(
            index="seed", columns="method", values="accuracy"
        )
        rows = []
        for method in some.method.unique():
            cells = [TUNED[method]]
            for step in steps:
                values = some[(some.method == method) & (some.steps == step)].accuracy
                spread = f" ({values.std():.1f})" if len(values) > 1 else ""
                cells.append(f"{values.mean():.1f}{spread}")
            interval = f"{t_interval(last[method].dropna()):.1f}".partition(" ")[2]
            gain = (last[method] - last.get("augmented", np.nan)).dropna()
            known = method != "augmented" and len(gain)
            rows.append([*cells, interval, f"{t_interval(gain):+.1f}" if known else ""])
        head = ["method", *map(str, steps), "95 %", "minus augmentation"]
        page += [f"## {title}", "", markdown(head, rows), ""]
    page += [BESIDE, "", frame_markdown(PAPER), ""]
    return "\n".join(page).rstrip() + "\n"


def _zero_shot_figure(table: pd.DataFrame) -> Figure:
    """Bars of the chosen method of each kind."""
    each = list(_each(table))
    figure, axes = figures.panels(len(each), size=(5, 2.6), columns=2)
    for axis, (title, some) in zip(axes, each, strict=True):
        moved = some[some.condition == "moved"]
        chosen = [_best(some, kind) for kind in KINDS]
        names = ["plain", "equitune", "equizero_published", *filter(None, chosen)]
        found = [_estimate(moved[moved.method == name]) for name in names]
        below, above = figures.error_bars(found)
        values = [estimate.value for estimate in found]
        axis.barh(range(len(names)), values, xerr=(below, above), color="#9ecae1", ec="black")
        labels = [textwrap.fill(_label(name), 34) for name in names]
        axis.set_yticks(range(len(names)), labels, fontsize=7)
        axis.invert_yaxis()
        axis.axvline(_upright(some), color="#d55e00", linestyle=":")
        axis.set(xlim=(0, 100), xlabel="accuracy, %; dotted: plain, upright")
        axis.set_title(title, fontsize=9)
    note = "error bars: 95 % intervals over test images (Wilson)"
    figures.legend_below(figure, [Patch(facecolor="#9ecae1", ec="black", label="moved")], note)
    return figure


def _cost_figure(table: pd.DataFrame) -> Figure:
    """Accuracy against cost, of orientation networks and of what needs all views."""
    each = [
        (title, some)
        for title, some in _each(table)
        if some.method.str.startswith("orientation").any()
    ]
    figure, axes = figures.panels(len(each), size=(4.6, 3.6), columns=2)
    against = {
        "plain": "plain",
        "equitune": "equitune",
        "equizero": "equizero, chosen score",
        "lambda_familiar": "λ, without labels",
    }
    for axis, (title, some) in zip(axes, each, strict=True):
        moved = some[some.condition == "moved"]
        for number, (end, how) in enumerate(LOOKED.items()):
            own = moved[moved.method.str.fullmatch(rf"orientation_\d+_{end}")]
            _at_cost(axis, own, f"C{number}o-", f"orientation networks, {how}")
        for marker, (name, label) in zip("v^sD", against.items(), strict=True):
            method = _best(some, "equizero") if name == "equizero" else name
            _at_cost(axis, moved[moved.method == method], f"k{marker}", label)
        axis.axhline(_upright(some), color="#d55e00", linestyle=":")
        axis.set(xlabel="cost, in forwards of the model", ylabel="accuracy, %")
        axis.set_title(title, fontsize=9)
        figures.tidy(axis)
    note = (
        "means over seeds, networks wider from left to right; error bars: 95 % intervals over test "
        "images (Wilson); dotted: plain, upright"
    )
    figures.legend_below(figure, axes[0], note)
    return figure


def _at_cost(axis: Axes, of: pd.DataFrame, style: str, label: str) -> None:
    """Points of methods, by their cost, with error bars."""
    costs = sorted(of.forwards.unique())
    found = [_estimate(of[of.forwards == cost]) for cost in costs]
    values, bars = [estimate.value for estimate in found], figures.error_bars(found)
    axis.errorbar(costs, values, bars, fmt=style, ms=4, lw=1, elinewidth=1, label=label)


def _upright(some: pd.DataFrame) -> float:
    """The plain model's accuracy on images as they are."""
    return some[(some.condition == "upright") & (some.method == "plain")].accuracy.mean()


def _finetune_figure(table: pd.DataFrame) -> Figure:
    """Accuracy against steps, a panel for each model; bands are the range of the seeds."""
    each = list(_each(table))
    colours = {method: f"C{place}" for place, method in enumerate(TUNED)}
    figure, axes = figures.panels(len(each), size=(4.4, 3.4), columns=2)
    for axis, (title, some) in zip(axes, each, strict=True):
        for method, own in some.groupby("method", sort=False):
            by_step = own.groupby("steps").accuracy
            mean, low, high = by_step.mean(), by_step.min(), by_step.max()
            axis.plot(mean.index, mean, colours[str(method)], marker="o", ms=3)
            axis.fill_between(
                mean.index, low, high, color=colours[str(method)], alpha=0.15, linewidth=0
            )
        axis.set_xticks(sorted(some.steps.unique()))
        axis.set(xlabel="steps of fine-tuning", ylabel="accuracy, %", title=title)
        figures.tidy(axis)
    shown = [
        Line2D([], [], color=colours[method], marker="o", ms=3, label=label)
        for method, label in TUNED.items()
        if method in set(table.method)
    ]
    figures.legend_below(figure, shown, "bands: from the lowest to the highest of the seeds")
    return figure


def _networks_page(table: pd.DataFrame) -> str:
    table = table.assign(accuracy=table.accuracy.round(1), minutes=table.minutes.round(1))
    return NETWORKS + frame_markdown(table) + "\n"


TABLES = {
    "zero_shot": ("equicore images evaluate", COLUMNS),
    "finetune": ("equicore images finetune", [*COLUMNS, "steps"]),
    "networks": ("equicore images train", ["network", "dataset", "accuracy", "minutes"]),
}
PAGES = {
    "zero_shot": _zero_shot_page,
    "finetune": _finetune_page,
    "networks": _networks_page,
}
FIGURES = {
    # of each: the table that it is of
    "zero_shot": ("zero_shot", _zero_shot_figure),
    "cost": ("zero_shot", _cost_figure),
    "finetune": ("finetune", _finetune_figure),
}
