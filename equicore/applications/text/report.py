"""Tables and figures of what was measured, beside the public reproduction's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from equicore.applications.text.experiment import KEYS, QUALITY_KEYS, TEXT_COLUMNS
from equicore.applications.text.grammar import CLASSES, PLANTED, SUBJECTS
from equicore.applications.text.names import METHODS
from equicore.lab import figures
from equicore.lab.statistics import Estimate, proportion
from equicore.lab.store import write_text
from equicore.lab.tables import markdown, read_csv

LABELS = {
    "plain": "plain",
    "equi_lm": "EquiLM",
    "equi_lm_logits": "EquiLM, mean of logits",
    "r_equi_lm": "R-EquiLM",
    "lambda_equi_lm": "λ-EquiLM",
    "whole_text": "whole texts",
    "whole_text_joint": "whole texts, joint weights",
    "equizero_lm": "EquizeroLM",
    "r_equizero_lm": "R-EquizeroLM",
    "best_text": "best whole text",
}
COUNTS = [*CLASSES, "n"]
COLUMNS = {
    "regard": [*KEYS, *COUNTS],
    "quality": [*QUALITY_KEYS, "perplexity", "distinct_1", "distinct_2", "distinct_3", "exchanged",
                "seconds"],
    "judges": ["pair", "language_model", "judge", "bias", "bias_low", "bias_high", "n",
               "accuracy", "low", "high", "annotations"],
    "judged": ["part", "judge", *COUNTS],
    "samples": TEXT_COLUMNS,
}  # fmt: skip
HEADS = {
    "regard": """\
# Regard of texts about each group

Made by `equicore text table` from regard.csv, which `equicore text evaluate` wrote. Negative and
positive: % of the texts about each group, in the order of the groups, [95 % interval by Wilson].
Gap: between the group with most and the group with fewest, in points, [95 % interval by Newcombe,
which takes texts for independent: as groups were drawn with the same random numbers, it is too wide
rather than too narrow; 0 where both have the same]. Distance: the largest total variation between
the classes of two groups, 0 to 1. Positive, minus plain and minus EquiLM: of all groups together,
in points, with the interval of one group's texts. "judge" was fitted on the half of the annotations
that did not steer, "steering" on the other; "invariant" are these, equituned over the list of
words; "grammar" knows what sentences of its own grammar say. The subject is hidden from
classifiers, so that an invariant one finds no gap where texts are exchanged.
""",
    "quality": """\
# Quality and cost

Made by `equicore text table` from quality.csv. Perplexity of texts that the model was not trained
on, and that no weight was fitted to; beside it in % of plain. Distinct n-grams of words, as a part
of all. Exchanged: the part of texts about one group that are those about the next, words exchanged,
where random numbers are. Models per token exchange tokens: where one goes on to another word, as
"her" in "heron", the word is another. Time: of a token that is written, as a ratio to plain, on one
core.
""",
    "judges": """\
# Judges

Made by `equicore text table` from judges.csv. Bias: how much higher regard, from -1 to 1, is after
an exchange of words, whose subject is hidden: mean over texts that the plain model wrote, [95 % by
Student's t]. Accuracy: of a classifier by all annotations but a tenth, in %, on that tenth, ten
times, [95 % interval by Wilson]; judges were fitted to a half of the annotations each, so that
theirs is lower. Published: 80 to 87 for a BERT on 30 sentences.
""",
    "judged": """\
# Texts of others

Made by `equicore text table` from judged.csv, which `equicore text judge` wrote: the sentences of
the public reproduction of Equi-Tuning, 500 to 506 for each group: "file" are its own labels, by a
BERT of regard; "classifier" is ours, fitted to all annotations. [95 % interval by Wilson.]
""",
    "samples": """\
# Sample texts

Made by `equicore text table` from samples.csv: the first of each group, as in Tables 3 to 7 of the
paper. Contexts in italics.
""",
}


def write_tables(folder: Path) -> list[Path]:
    """Write a page for each table that a folder has.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If a table lacks columns or rows, or has a method that is not known.
    """
    tables = _tables(folder)
    for name, table in tables.items():
        write_text(folder / f"{name}.md", f"{HEADS[name]}\n{PAGES[name](table)}".rstrip() + "\n")
    return [folder / f"{name}.md" for name in tables]


def write_figures(folder: Path) -> list[Path]:
    """Draw regard and quality, as PNG and SVG; errors as of `write_tables`."""
    tables, files = _tables(folder), []
    for name, draw in FIGURES.items():
        if name in tables:
            files += figures.save(draw(tables[name]), folder / name, dpi=110, colours=64)
    return files


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    tables = {}
    for name, columns in COLUMNS.items():
        if (folder / f"{name}.csv").is_file():
            tables[name] = read_csv(folder / f"{name}.csv", columns, "equicore text evaluate")
            methods = set(tables[name].get("method", METHODS))
            if unknown := methods - set(METHODS):
                raise ValueError(
                    f"{folder / name}.csv has {sorted(unknown)[0]!r}, which this version does not "
                    "know"
                )
    if not tables:
        raise FileNotFoundError(f"no regard.csv in {folder}; run: equicore text evaluate")
    return tables


def _each(table: pd.DataFrame, *keys: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Parts of a table that belong together, with a title, their methods in order."""
    if "method" in table:
        order = {method: place for place, method in enumerate(METHODS)}
        table = table.sort_values("method", key=lambda names: names.map(order), kind="stable")
    for names, some in table.groupby(list(keys), sort=False):
        yield ", ".join(map(str, names)), some


def _share(counts: pd.DataFrame, regard: str) -> list[Estimate]:
    """In %, of each row."""
    found = [proportion(row[regard], row.n) for _, row in counts.iterrows()]
    return [Estimate(100 * e.value, 100 * e.low, 100 * e.high) for e in found]


def _difference(more: Estimate, less: Estimate) -> Estimate:
    """Of two shares in %, in points, with its interval by Newcombe."""
    gap = more.value - less.value
    below = np.hypot(more.value - more.low, less.high - less.value)
    above = np.hypot(more.high - more.value, less.value - less.low)
    return Estimate(gap, gap - below, gap + above)


def _gap(counts: pd.DataFrame, regard: str) -> str:
    """Between the groups of the largest and the smallest share."""
    shares = sorted(_share(counts, regard), key=lambda e: e.value)
    if shares[-1].value == shares[0].value:
        return "0"
    return f"{_difference(shares[-1], shares[0]):.1f}"


def _gain(asked: pd.DataFrame, method: str, other: str) -> str:
    """How much larger the positive share is than another method's, of all groups together.

    The interval is that of one group's texts: those of the others may be the same, exchanged.
    """
    found = []
    for name in (method, other):
        own = asked[asked.method == name]
        if own.empty or method == other:
            return ""
        size = int(own.n.iloc[0])
        part = proportion(own.positive.sum() / own.n.sum() * size, size)
        found.append(Estimate(100 * part.value, 100 * part.low, 100 * part.high))
    return f"{_difference(*found):+.1f}"


def _distance(counts: pd.DataFrame) -> float:
    shares = counts[list(CLASSES)].to_numpy() / counts[["n"]].to_numpy()
    return float(max(np.abs(a - b).sum() / 2 for a in shares for b in shares))


def _regard_page(table: pd.DataFrame) -> str:
    page = []
    for title, some in _each(table, "language_model", "pair", "task"):
        rows = []
        for judge, asked in some.groupby("judge", sort=False):
            for method, counts in asked.groupby("method", sort=False):
                counts = counts.sort_values("group")
                rows.append([
                    str(judge),
                    LABELS[str(method)],
                    "; ".join(f"{e:.1f}" for e in _share(counts, "negative")),
                    "; ".join(f"{e:.1f}" for e in _share(counts, "positive")),
                    _gap(counts, "negative"),
                    f"{_distance(counts):.3f}",
                    _gain(asked, str(method), "plain"),
                    _gain(asked, str(method), "equi_lm"),
                ])  # fmt: skip
        head = ["judge", "method", "negative", "positive", "gap of negative", "distance",
                "positive, minus plain", "minus EquiLM"]  # fmt: skip
        page += [f"## {title}", "", _planted(title), markdown(head, rows), ""]
    return "\n".join(page)


def _planted(title: str) -> str:
    """What the grammar has."""
    model, pair, _ = title.split(", ")
    if model != "grammar" or pair not in SUBJECTS:
        return ""
    parts = [f"{s} {100 * PLANTED[s][0]:.0f} and {100 * PLANTED[s][2]:.0f}" for s in SUBJECTS[pair]]
    return f"Planted, % negative and positive: {'; '.join(parts)}.\n"


def _quality_page(table: pd.DataFrame) -> str:
    page = []
    for title, some in _each(table, "language_model", "pair"):
        plain = some[some.method == "plain"]
        rows = [
            [
                LABELS[row.method],
                "" if np.isnan(row.perplexity) else f"{row.perplexity:.3f}",
                _ratio(row.perplexity, plain.perplexity),
                *(f"{row[f'distinct_{n}']:.3f}" for n in (1, 2, 3)),
                f"{row.exchanged:.3f}",
                _ratio(row.seconds, plain.seconds, ""),
            ]
            for _, row in some.iterrows()
        ]
        head = ["method", "perplexity", "of plain", "distinct 1", "2", "3", "exchanged", "time"]
        page += [f"## {title}", "", markdown(head, rows), ""]
    return "\n".join(page)


def _ratio(value: float, plain: pd.Series, unit: str = " %") -> str:
    if plain.empty or np.isnan(value) or np.isnan(plain.iloc[0]):
        return ""
    found = value / plain.iloc[0]
    return f"{100 * found:.1f} %" if unit else f"{found:.2f}"


def _judges_page(table: pd.DataFrame) -> str:
    rows = []
    for _, row in table.iterrows():
        found = Estimate(100 * row.accuracy, 100 * row.low, 100 * row.high)
        rows.append([
            row.language_model, row.pair, row.judge,
            f"{Estimate(row.bias, row.bias_low, row.bias_high):+.4f}", row.n, f"{found:.1f}",
            row.annotations,
        ])  # fmt: skip
    head = ["language model", "list", "judge", "bias", "texts", "accuracy", "annotations"]
    return markdown(head, rows)


def _judged_page(table: pd.DataFrame) -> str:
    rows = []
    for _, row in table.sort_values(["judge", "part"]).iterrows():
        one = pd.DataFrame([row])
        rows.append([
            row.judge, row.part, f"{row.negative}/{row.n}", f"{_share(one, 'negative')[0]:.1f}",
            f"{_share(one, 'positive')[0]:.1f}",
        ])  # fmt: skip
    return markdown(["judge", "texts", "negative", "in %", "positive, %"], rows)


def _samples_page(table: pd.DataFrame) -> str:
    page = []
    for title, some in _each(table[table.number == 0], "language_model", "pair", "task"):
        rows = [[LABELS[row.method], f"*{row.context}*{_plain(row.text)}"]
                for _, row in some.iterrows()]  # fmt: skip
        page += [f"## {title}", "", markdown(["method", "text"], rows), ""]
    return "\n".join(page)


def _plain(text: Any) -> str:
    """A text as a cell of a table."""
    return " ".join(str(text).replace("|", "\\|").replace("*", "\\*").splitlines())


def _regard_figure(table: pd.DataFrame) -> Figure:
    """Negative and positive shares of each group, by the judge that did not steer."""
    shown = table[table.judge == "judge"]
    each = list(_each(shown, "language_model", "pair", "task"))
    figure, axes = figures.panels(len(each), size=(4.2, 3.2), columns=2)
    colours = {"negative": "#d55e00", "positive": "#0072b2"}
    markers = "osD^v"
    for axis, (title, some) in zip(axes, each, strict=True):
        methods = list(dict.fromkeys(some.method))
        for regard, colour in colours.items():
            for name, own in some.groupby("group"):
                found, group = _share(own, regard), int(str(name))
                places = [methods.index(m) + 0.16 * (group - 0.5) for m in own.method]
                axis.errorbar(
                    [e.value for e in found], places, xerr=figures.error_bars(found), ls="",
                    color=colour, marker=markers[group], ms=4, elinewidth=0.8,
                    mfc=colour if group else "white",
                )  # fmt: skip
        axis.set_yticks(range(len(methods)), [LABELS[m] for m in methods], fontsize=7)
        axis.invert_yaxis()
        axis.set(xlabel="% of texts")
        axis.set_title(title, fontsize=9)
        figures.tidy(axis)
    groups = sorted(set(shown.group))
    handles = [
        Line2D([], [], ls="", color=colour, marker=markers[int(group)], label=f"{regard}, {name}",
               mfc=colour if int(group) else "white")
        for regard, colour in colours.items()
        for group, name in zip(groups, ("first group", "second group", "third group"), strict=False)
    ]  # fmt: skip
    note = "error bars: 95 % intervals over texts (Wilson); the judge did not steer"
    figures.legend_below(figure, handles, note, columns=2)
    return figure


def _quality_figure(table: pd.DataFrame) -> Figure:
    """Perplexity against plain, and the time of a token."""
    each = list(_each(table, "language_model", "pair"))
    figure, axes = figures.panels(len(each), size=(3.6, 2.8), columns=3)
    for axis, (title, some) in zip(axes, each, strict=True):
        plain = some[some.method == "plain"]
        for place, (_, row) in enumerate(some.iterrows()):
            if plain.empty or np.isnan(row.perplexity):
                continue
            cost, quality = row.seconds / plain.seconds, row.perplexity / plain.perplexity
            label = LABELS[row.method]
            axis.plot(cost, 100 * quality, f"C{place}o", ms=5, label=label)
        axis.axhline(105, color="#7f7f7f", linestyle=":")
        axis.set(xlabel="time of a token, of plain", ylabel="perplexity, % of plain")
        axis.set_title(title, fontsize=9)
        figures.tidy(axis)
    fullest = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    note = "one measurement each, no error bars; dotted: 5 % above plain"
    figures.legend_below(figure, fullest, note)
    return figure


PAGES = {
    "regard": _regard_page,
    "quality": _quality_page,
    "judges": _judges_page,
    "judged": _judged_page,
    "samples": _samples_page,
}
FIGURES = {"regard": _regard_figure, "quality": _quality_figure}
