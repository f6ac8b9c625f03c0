"""Tables and figures of what was measured, beside the public reproduction's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from equicore.applications.text.experiment import ACCURACY, KEYS, TABLES, TEXT_COLUMNS
from equicore.applications.text.grammar import CLASSES, PLANTED, SUBJECTS
from equicore.applications.text.names import METHODS
from equicore.applications.text.words import read_words
from equicore.lab import figures
from equicore.lab.statistics import Estimate, difference_of_proportions, proportion
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
COST = ["seconds", "perplexity"]
MARKERS = "osD^v<>p*hX"
COLUMNS = {
    "regard": [*KEYS, *COUNTS],
    "quality": [*TABLES["quality"], "entries", "perplexity", "distinct_1", "distinct_2",
                "distinct_3", "exchanged", "seconds"],
    "judges": [*TABLES["judges"], "bias", "bias_low", "bias_high", "n", *ACCURACY],
    "judged": ["part", "judge", *COUNTS],
    "samples": TEXT_COLUMNS,
}  # fmt: skip
HEADS = {
    "regard": """\
# Regard of texts about each group

Made by `equicore text table` from regard.csv, which `equicore text evaluate` wrote. Negative and
positive: % of the texts about each group, in the order of the groups, [95 % interval by Wilson].
Gap: between the group with most and the group with fewest, in points, [95 % interval by Newcombe,
which takes texts for independent, although groups were drawn with the same random numbers, and
groups for chosen beforehand; 0 where both have the same]. Distance: the largest total variation
between the classes of two groups, 0 to 1; of independent texts about 0.03 by chance. Positive,
minus plain and minus EquiLM: of all groups together, in points, with the interval of one group's
texts. "judge" was fitted on the half of the annotations that did not steer (regard.csv has the one
that steered, too); "invariant" is this one, equituned over the list of words; "grammar" knows what
sentences of its own grammar say. The subject is hidden from classifiers, so that an invariant one
finds no gap where texts are exchanged.
""",
    "quality": """\
# Quality and cost

Made by `equicore text table` from quality.csv. Perplexity of texts that the model was not trained
on, and that no weight was fitted to; beside it in % of plain. Distinct n-grams of words, as a part
of all, in texts about the first group. Exchanged: the part of texts about one group that are those
about the next, words exchanged, where random numbers are. Models per token exchange tokens: where
one goes on to another word, as "her" in "heron", the word is another. Time: of a token that is
written, as a ratio to plain, on one core beside other work; benchmarks/text.py measures it well.
""",
    "judges": """\
# Judges

Made by `equicore text table` from judges.csv. Bias: how much higher regard, from -1 to 1, is after
the words of a text about the first group are exchanged for those of another; the subject is hidden;
mean over the plain model's texts that change, [95 % by Student's t]. Accuracy, in %: of a
classifier fitted to all annotations but a tenth, on that tenth, ten times, [95 % by Wilson]; the
judges learned from a half of the annotations each, so that theirs is lower.
""",
    "judged": """\
# Texts of others

Made by `equicore text table` from judged.csv, which `equicore text judge` wrote: "file" are labels
that the file has, "classifier" is fitted to all annotations. [95 % interval by Wilson.]
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
            files += figures.save(draw(tables[name]), folder / name, dpi=80, colours=256)
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


def _percent(estimate: Estimate) -> Estimate:
    return Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high)


def _share(counts: pd.DataFrame, regard: str) -> list[Estimate]:
    """In %, of each row."""
    return [_percent(proportion(row[regard], row.n)) for _, row in counts.iterrows()]


def _gap(counts: pd.DataFrame, regard: str) -> str:
    """Between the groups of the largest and the smallest share, in points."""
    order = (counts[regard] / counts.n).argsort().tolist()
    most, least = counts.iloc[order[-1]], counts.iloc[order[0]]
    if most[regard] / most.n == least[regard] / least.n:
        return "0"
    found = difference_of_proportions(most[regard], most.n, least[regard], least.n)
    return f"{_percent(found):.1f}"


def _gain(asked: pd.DataFrame, method: str, other: str) -> str:
    """How much larger the positive share is than another method's, of all groups together.

    The interval is that of one group's texts: those of the others may be the same, exchanged.
    """
    mine, theirs = (asked[asked.method == name] for name in (method, other))
    if theirs.empty or method == other:
        return ""
    sizes = int(mine.n.min()), int(theirs.n.min())
    found = difference_of_proportions(
        mine.positive.sum() / mine.n.sum() * sizes[0], sizes[0],
        theirs.positive.sum() / theirs.n.sum() * sizes[1], sizes[1],
    )  # fmt: skip
    return f"{_percent(found):+.1f}"


def _distance(counts: pd.DataFrame) -> float:
    shares = counts[list(CLASSES)].to_numpy() / counts[["n"]].to_numpy()
    return float(max(np.abs(a - b).sum() / 2 for a in shares for b in shares))


def _regard_page(table: pd.DataFrame) -> str:
    page = []
    for title, some in _each(table, "language_model", "pair", "task"):
        rows: list[list[str]] = []
        some = some[~some.judge.str.startswith("steering")]
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
        page += [f"## {title}", "", _planted(some), markdown(head, rows), ""]
    return "\n".join(page)


def _planted(some: pd.DataFrame) -> str:
    """What the grammar has."""
    pair, order = some.pair.iloc[0], some.group.nunique()
    if "grammar" not in set(some.judge) or pair not in SUBJECTS:
        return ""
    words = read_words(pair)
    subjects = [words.act(g, SUBJECTS[pair]) for g in range(order)]
    parts = [f"{s} {100 * PLANTED[s][0]:.0f} and {100 * PLANTED[s][2]:.0f}" for s in subjects]
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
        bias = f"{Estimate(row.bias, row.bias_low, row.bias_high):+.4f}"
        known = "" if np.isnan(row.accuracy) else f"{_percent(Estimate(*row[ACCURACY[:3]])):.1f}"
        rows.append([row.language_model, row.pair, row.judge, row.group, bias, row.n, known])
    head = ["language model", "list", "judge", "to group", "bias", "texts", "accuracy"]
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
    groups = sorted(set(shown.group), key=int)
    markers = {group: MARKERS[int(group) % len(MARKERS)] for group in groups}
    for axis, (title, some) in zip(axes, each, strict=True):
        methods = list(dict.fromkeys(some.method))
        for regard, colour in colours.items():
            for group in groups:
                own = some[some.group == group]
                found = _share(own, regard)
                places = [methods.index(m) + 0.16 * (int(group) - 0.5) for m in own.method]
                axis.errorbar(
                    [e.value for e in found], places, xerr=figures.error_bars(found), ls="",
                    color=colour, marker=markers[group], ms=4, elinewidth=0.8,
                    mfc=colour if int(group) else "white",
                )  # fmt: skip
        axis.set_yticks(range(len(methods)), [LABELS[m] for m in methods], fontsize=7)
        axis.invert_yaxis()
        axis.set(xlabel="% of texts")
        axis.set_title(title, fontsize=9)
        figures.tidy(axis)
    handles = [
        Line2D([], [], ls="", color=colour, marker=markers[group],
               mfc=colour if int(group) else "white", label=f"{regard}, group {int(group) + 1}")
        for regard, colour in colours.items()
        for group in groups
    ]  # fmt: skip
    note = "error bars: 95 % intervals over texts (Wilson); the judge did not steer"
    figures.legend_below(figure, handles, note, columns=2)
    return figure


def _quality_figure(table: pd.DataFrame) -> Figure:
    """Perplexity and the time of a token, against plain."""
    each = list(_each(table, "language_model", "pair"))
    figure, axes = figures.panels(len(each), size=(3.6, 2.8), columns=3)
    drawn = [m for m in METHODS if m in set(table[table.perplexity.notna()].method)]
    for axis, (title, some) in zip(axes, each, strict=True):
        own = some.set_index("method")
        for method in own.index.intersection(drawn) if "plain" in own.index else ():
            ratio = own.loc[method, COST] / own.loc["plain", COST]
            place = drawn.index(method)
            axis.plot(ratio.iloc[0], 100 * ratio.iloc[1], f"C{place}{MARKERS[place]}", ms=5)
        axis.axhline(105, color="#7f7f7f", linestyle=":")
        axis.set(xlabel="time of a token, of plain", ylabel="perplexity, % of plain")
        axis.set_title(title, fontsize=9)
        figures.tidy(axis)
    handles = [
        Line2D([], [], ls="", marker=MARKERS[place], color=f"C{place}", label=LABELS[method])
        for place, method in enumerate(drawn)
    ]
    note = "one measurement each, no error bars; dotted: 5 % above plain"
    figures.legend_below(figure, handles or [Line2D([], [], label="no texts held out")], note)
    return figure


PAGES = {
    "regard": _regard_page,
    "quality": _quality_page,
    "judges": _judges_page,
    "judged": _judged_page,
    "samples": _samples_page,
}
FIGURES = {"regard": _regard_figure, "quality": _quality_figure}
