"""What is measured: regard of texts about each group, and the quality and cost of what is written.

One language model, under one list of words; every method writes texts about every group.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from equicore.applications.text.grammar import CLASSES, CONTEXTS
from equicore.applications.text.language import HELD_OUT, load, perplexity
from equicore.applications.text.models import EquiLM, fit_weight
from equicore.applications.text.names import STEERED, Method
from equicore.applications.text.regard import Regard, annotation, bias, cross_validated, fit_half
from equicore.applications.text.steering import (
    BestText,
    EquizeroLM,
    WholeText,
    Writing,
    joint,
)
from equicore.applications.text.words import WordGroup
from equicore.lab.statistics import Estimate, proportion, t_interval
from equicore.lab.store import digest, read_lines, remembered

TEXT_COLUMNS = ["task", "pair", "group", "language_model", "method", "number", "context", "text"]
ACCURACY = ["accuracy", "low", "high", "annotations"]
KEYS = ["task", "pair", "group", "language_model", "method", "judge"]
COST = ["tokens", "seconds"]
QUALITY_KEYS = ["pair", "language_model", "method"]
TABLES = {
    "regard": KEYS,
    "quality": QUALITY_KEYS,
    "judges": ["pair", "language_model", "judge", "group"],
    "samples": TEXT_COLUMNS[:-1],
}
"""The tables that are written, and what tells their rows apart."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One language model under one list of words.

    Attributes:
        source: Folder or hub id of the language model.
        name: What tables call it.
        words: What is exchanged.
        subjects: What contexts begin with, one for each group.
        annotations: ``text`` and ``regard``, of which one half steers and the other judges; None
            for methods that are not steered.
        neutral: Neutral words of relaxed models.
        held_out: Texts of the model's training distribution that it was not trained on.
        folder: Keeps texts.
        texts: For each task, method and group.
        new_tokens: Of each text.
        seed: Of what is drawn.
    """

    source: str
    name: str
    words: WordGroup
    subjects: tuple[str, ...]
    annotations: pd.DataFrame | None
    neutral: tuple[str, ...]
    held_out: tuple[str, ...]
    folder: Path
    texts: int = 500
    new_tokens: int = 15
    seed: int = 0

    def contexts(self, task: str, subject: str) -> list[str]:
        """Of one group, as many as texts."""
        own = [f"{subject} {context}" for context in CONTEXTS[task]]
        return [own[number % len(own)] for number in range(self.texts)]

    @property
    def fitted(self) -> tuple[str, ...]:
        """The half of the texts held out, at random, that weights are fitted to."""
        return tuple(random.Random(self.seed).sample(self.held_out, len(self.held_out) // 2))

    @property
    def measured(self) -> tuple[str, ...]:
        """The other half, whose perplexity is measured."""
        fitted = set(self.fitted)
        return tuple(text for text in self.held_out if text not in fitted)

    def file(self, method: str) -> Path:
        """Where texts of a method are kept."""
        return self.folder / f"{method}-{digest(self.settings(method))}.csv"

    def settings(self, method: str) -> dict[str, Any]:
        """What decides the texts of a method, and its quality."""
        settings: dict[str, Any] = {
            "model": _files_of(self.source),
            "words": self.words.entries, "subjects": self.subjects, "method": method,
            "texts": self.texts, "new_tokens": self.new_tokens, "seed": self.seed,
        }  # fmt: skip
        if method == "lambda_equi_lm":
            settings["held_out"] = digest({"texts": self.held_out})
        if method in STEERED:
            assert self.annotations is not None
            settings["annotations"] = digest({"rows": self.annotations.to_numpy().tolist()})
        if method.startswith("r_"):
            settings["neutral"] = self.neutral
        return settings


def _files_of(source: str) -> Any:
    """What tells a model in a folder from others; of the hub its name."""
    suffixes = {".bin", ".json", ".model", ".safetensors", ".txt"}
    files = [f for f in sorted(Path(source).glob("*")) if f.suffix in suffixes]
    return {f.name: digest(f.read_bytes()) for f in files if f.name != HELD_OUT} or source


def made(study: Study, method: Method) -> tuple[Any, Any]:
    """A method's writer, and what has probabilities of texts, or None."""

    def steering() -> Regard:
        assert study.annotations is not None
        return fit_half(study.annotations, 0, study.seed).of_subjects(study.subjects)

    model, tokenizer = load(study.source)
    words = study.words
    if method == "plain":
        return Writing(model, tokenizer, words), model
    if method == "whole_text":
        whole = WholeText(model, tokenizer, words)
        return whole, whole
    if method == "whole_text_joint":
        whole = WholeText(model, tokenizer, words, joint(model, tokenizer))
        return whole, whole
    if method == "best_text":
        return BestText(model, tokenizer, words, steering()), None
    if method in STEERED:
        neutral = study.neutral if method == "r_equizero_lm" else None
        return EquizeroLM(model, tokenizer, words, steering(), neutral), None
    options: dict[str, Any] = {}
    if method == "equi_lm_logits":
        options["mean"] = "logits"
    if method == "r_equi_lm":
        options["neutral"] = study.neutral
    if method == "lambda_equi_lm":
        options["weight"] = fit_weight(model, tokenizer, words, study.fitted, progress=False)
    fair = EquiLM(model, tokenizer, words, **options)
    return Writing(fair, tokenizer, words), fair


def write(study: Study, method: Method) -> pd.DataFrame:
    """Texts of a method about all groups: `TEXT_COLUMNS` and `COST`; its folder keeps them."""

    def texts() -> pd.DataFrame:
        writer, _ = made(study, method)
        rows = []
        for task in CONTEXTS:
            for group, subject in enumerate(study.subjects):
                contexts = study.contexts(task, subject)
                begun = time.process_time()
                written = writer.generate(
                    contexts, study.new_tokens, seed=study.seed, progress=False
                )
                seconds = (time.process_time() - begun) / len(contexts)
                for number, (context, text) in enumerate(zip(contexts, written, strict=True)):
                    tokens = len(writer.tokenizer(text, add_special_tokens=False)["input_ids"])
                    # as JSON, so that no text is empty or looks like a number
                    rows.append((task, group, number, context, json.dumps(text), tokens, seconds))
        return pd.DataFrame(rows, columns=["task", "group", *TEXT_COLUMNS[-3:], *COST])

    table = remembered(study.file(method), study.settings(method), texts)
    return table.assign(
        pair=study.words.name,
        language_model=study.name,
        method=method,
        group=table.group.astype(str),
        text=table.text.map(json.loads),
    )


def quality(study: Study, method: Method, table: pd.DataFrame) -> dict[str, Any]:
    """A row of quality.csv: perplexity, distinct n-grams, exchanged texts, the time of a token."""
    row = {name: table[name].iloc[0] for name in QUALITY_KEYS}
    row |= {"entries": len(study.words.entries), "perplexity": _perplexity(study, method)}
    # of the first group alone, as texts about the others may be the same, exchanged
    first = table[table.group == "0"]
    texts = [text.split() for text in first.text]
    for n in (1, 2, 3):
        grams = [tuple(t[k : k + n]) for t in texts for k in range(len(t) - n + 1)]
        row[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    exchanged = []
    for group in range(1, len(study.subjects)):
        other = table[table.group == str(group)]
        for context, text, there in zip(first.context, first.text, other.text, strict=True):
            exchanged.append(study.words.act(group, text, after=context) == there)
    row["exchanged"] = sum(exchanged) / len(exchanged)
    return row | {"seconds": table.seconds.sum() / max(1, table.tokens.sum())}


def _perplexity(study: Study, method: Method) -> float:
    """Of the texts that are held out, and fit no weight; NaN if there are none, or no score."""
    if method in STEERED or not study.measured:
        return math.nan

    def measured() -> pd.DataFrame:
        writer, likely = made(study, method)
        found = perplexity(likely, writer.tokenizer, study.measured)
        return pd.DataFrame({"perplexity": [found]})

    settings = study.settings(method) | {"held_out": digest({"texts": study.held_out})}
    file = study.file(method).with_suffix(f".{settings['held_out']}.csv")
    return float(remembered(file, settings, measured).perplexity[0])


def judge(texts: pd.DataFrame, judges: dict[str, Regard | Callable[[list[str]], list[str]]]) -> Any:
    """How many texts of each group each judge finds of each class: the rows of regard.csv."""
    rows = []
    whole = (texts.context + texts.text).tolist()
    for name, found in judges.items():
        classes = found.classes(whole) if isinstance(found, Regard) else found(whole)
        one_hot = pd.get_dummies(pd.Categorical(classes, CLASSES)).set_index(texts.index)
        table = pd.concat([texts, one_hot.astype(int)], axis=1)
        sums = table.groupby(KEYS[:-1], sort=False)[list(CLASSES)].sum().reset_index()
        rows.append(sums.assign(judge=name, n=sums[list(CLASSES)].sum(axis=1)))
    return pd.concat(rows)[[*KEYS, *CLASSES, "n"]]


def accuracy(annotations: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Of a classifier on annotations that are held out: columns of judges.csv."""
    counts = annotations.counts
    own, more = (annotations[rows][["text", "regard"]] for rows in (counts, ~counts))
    return _accuracy(cross_validated(own, more, seed=seed), len(own))


def agreement(judge: Regard, annotations: pd.DataFrame) -> dict[str, Any]:
    """Of a classifier that has not learned from annotations: columns of judges.csv."""
    own = annotations[annotations.counts]
    right = sum(a == b for a, b in zip(judge.classes(own.text.tolist()), own.regard, strict=True))
    return _accuracy(proportion(right, len(own)), len(own))


def _accuracy(found: Estimate, count: int) -> dict[str, Any]:
    return dict(zip(ACCURACY, (found.value, found.low, found.high, count), strict=True))


def biases(
    study: Study,
    judges: dict[str, Regard],
    plain: pd.DataFrame,
    accurate: dict[str, dict[str, Any]],
) -> pd.DataFrame:
    """How much higher judges find regard after texts about the first group are exchanged.

    ``plain`` are those that the plain model writes; a row of judges.csv for each judge and each
    other group, with its ``accurate`` columns.
    """
    first = plain[plain.group == "0"]
    texts, rows = (first.context + first.text).tolist(), []
    for (name, judge), g in itertools.product(judges.items(), range(1, len(study.words.group))):
        found = bias(judge, study.words, texts, g)
        if len(found):
            mean = t_interval(found.numpy())
            rows.append({
                "pair": study.words.name, "language_model": study.name, "judge": name,
                "group": str(g), "bias": mean.value, "bias_low": mean.low, "bias_high": mean.high,
                "n": len(found), **accurate.get(name, dict.fromkeys(ACCURACY)),
            })  # fmt: skip
    return pd.DataFrame(rows)


def read_judged(file: Path) -> pd.DataFrame:
    """Texts of a file, and their regard where it has one: ``text``, and ``regard`` or "".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If some lines have a regard, and others none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of texts at {file}")
    lines = filter(str.strip, read_lines(file))
    rows = [annotation(line) or (line.strip(), "") for line in lines]
    table = pd.DataFrame(rows, columns=["text", "regard"])
    if not len(table) or (table.regard != "").nunique() > 1:
        raise ValueError(f"{file} has a regard, a tab and a text in some lines only, or no lines")
    return table


def judged(file: Path, texts: pd.DataFrame, regard: Regard) -> pd.DataFrame:
    """How many texts of a file are of each class, by a classifier and by the file itself."""
    part = f"{file.parent.name}/{file.name}"
    classes = {"classifier": regard.classes(texts.text.tolist())}
    if (texts.regard != "").all():
        classes["file"] = texts.regard.tolist()
    rows = []
    for name, found in classes.items():
        counts = {regard: found.count(regard) for regard in CLASSES}
        rows.append({"part": part, "judge": name, **counts, "n": len(found)})
    return pd.DataFrame(rows)
