"""What is measured: regard of texts about each group, and the quality and cost of what is written.

One language model, under one list of words; every method writes texts about every group.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from equicore.applications.text.grammar import CLASSES, CONTEXTS
from equicore.applications.text.language import load, perplexity
from equicore.applications.text.models import EquiLM, fit_weight
from equicore.applications.text.names import STEERED, Method
from equicore.applications.text.regard import NUMBERS, Regard, bias, cross_validated, halves
from equicore.applications.text.steering import (
    BestText,
    EquizeroLM,
    WholeText,
    Writing,
    joint,
)
from equicore.applications.text.words import WordGroup
from equicore.lab.statistics import t_interval
from equicore.lab.store import digest, remembered

TEXT_COLUMNS = ["task", "pair", "group", "language_model", "method", "number", "context", "text"]
KEYS = ["task", "pair", "group", "language_model", "method", "judge"]
QUALITY_KEYS = ["pair", "language_model", "method"]


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

    def settings(self, method: str) -> dict[str, Any]:
        """What decides the texts of a method, and its quality."""
        model = sorted(Path(self.source).glob("*.safetensors"))
        settings: dict[str, Any] = {
            "model": [digest(file.read_bytes()) for file in model] or self.source,
            "words": self.words.entries, "subjects": self.subjects, "method": method,
            "texts": self.texts, "new_tokens": self.new_tokens, "seed": self.seed,
            "held_out": digest({"texts": self.held_out}),
        }  # fmt: skip
        if method in STEERED:
            assert self.annotations is not None
            settings["annotations"] = digest({"rows": self.annotations.to_numpy().tolist()})
        if method.startswith("r_"):
            settings["neutral"] = self.neutral
        return settings


def made(study: Study, method: Method) -> tuple[Any, Any]:
    """A method's writer, and what has probabilities of texts, or None."""

    def steering() -> Regard:
        assert study.annotations is not None
        return halves(study.annotations, study.seed)[0]

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
        if len(study.held_out) < 2:
            raise ValueError("lambda_equi_lm fits its weight to --held-out texts; there are none")
        # a half of the texts, the other measures
        texts = study.held_out[::2]
        options["weight"] = fit_weight(model, tokenizer, words, texts, progress=False)
    fair = EquiLM(model, tokenizer, words, **options)
    return Writing(fair, tokenizer, words), fair


def write(study: Study, method: Method) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts of a method about all groups, `TEXT_COLUMNS`; and its quality, a row.

    They are kept in the study's folder.
    """
    settings = study.settings(method)
    file = study.folder / f"{method}-{digest(settings)}.csv"
    quality: dict[str, Any] = {}

    def texts() -> pd.DataFrame:
        writer, likely = made(study, method)
        rows, seconds = [], 0.0
        for task in CONTEXTS:
            for group, subject in enumerate(study.subjects):
                contexts = study.contexts(task, subject)
                begun = time.process_time()
                written = writer.generate(
                    contexts, study.new_tokens, seed=study.seed, progress=False
                )
                seconds += time.process_time() - begun
                rows += [
                    (task, study.words.name, group, study.name, method, number, context, text)
                    for number, (context, text) in enumerate(zip(contexts, written, strict=True))
                ]
        table = pd.DataFrame(rows, columns=TEXT_COLUMNS)
        quality["seconds"] = seconds / (len(table) * study.new_tokens)
        if likely is not None and study.held_out:
            asked = study.held_out[1::2]
            quality["perplexity"] = perplexity(likely, writer.tokenizer, asked)
        return table

    # as JSON, so that no text is empty or looks like a number
    table = remembered(
        file, settings, lambda: texts().assign(text=lambda t: t.text.map(json.dumps))
    )
    table = table.assign(text=table.text.map(json.loads), group=table.group.astype(str))
    measured = remembered(
        file.with_suffix(".quality.csv"), settings, lambda: _quality(study, table, quality)
    )
    return table, measured


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


def _quality(study: Study, table: pd.DataFrame, known: dict[str, Any]) -> pd.DataFrame:
    """A row: perplexity, distinct n-grams, exchanged texts, and the time of a token."""
    row = dict(zip(QUALITY_KEYS, (study.words.name, study.name, table.method[0]), strict=True))
    texts = [text.split() for text in table.text]
    for n in (1, 2, 3):
        grams = [tuple(t[k : k + n]) for t in texts for k in range(len(t) - n + 1)]
        row[f"distinct_{n}"] = len(set(grams)) / max(1, len(grams))
    first = table[table.group == "0"]
    exchanged = []
    for group in range(1, len(study.subjects)):
        other = table[table.group == str(group)]
        for context, text, there in zip(first.context, first.text, other.text, strict=True):
            exchanged.append(study.words.act(group, text, after=context) == there)
    row["exchanged"] = sum(exchanged) / len(exchanged)
    return pd.DataFrame([{**row, "perplexity": None, **known}])


def accuracy(annotations: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Of classifiers on annotations that are held out: columns of judges.csv."""
    counts = annotations.counts
    own, more = (annotations[rows][["text", "regard"]] for rows in (counts, ~counts))
    found = cross_validated(own, more, seed=seed)
    return {"accuracy": found.value, "low": found.low, "high": found.high, "annotations": len(own)}


def biases(study: Study, judges: dict[str, Any], texts: pd.DataFrame) -> pd.DataFrame:
    """How much higher judges find the regard of texts after an exchange of words: judges.csv.

    Of whole texts, whose subject is hidden.
    """
    whole = (texts.context + texts.text).tolist()
    rows = []
    for name, found in judges.items():
        if isinstance(found, Regard) and len(moved := bias(found, study.words, whole)):
            own = t_interval(moved.numpy())
            row: dict[str, Any] = {
                "pair": study.words.name,
                "language_model": study.name,
                "judge": name,
            }
            row |= {"bias": own.value, "bias_low": own.low, "bias_high": own.high, "n": len(moved)}
            rows.append(row)
    return pd.DataFrame(rows)


def read_judged(file: Path) -> pd.DataFrame:
    """Texts of a file, and their regard where it has one: ``text``, and ``regard`` or "".

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of texts at {file}")
    rows = []
    for line in filter(str.strip, file.read_text().splitlines()):
        number, tab, text = line.partition("\t")
        known = bool(tab) and number in map(str, NUMBERS)
        rows.append((text.strip(), NUMBERS[int(number)]) if known else (line.strip(), ""))
    return pd.DataFrame(rows, columns=["text", "regard"])


def judged(file: Path, texts: pd.DataFrame, regard: Regard) -> pd.DataFrame:
    """How many texts of a file are of each class, by a classifier and by the file itself."""
    part = f"{file.parent.name}/{file.stem}"
    classes = {"classifier": regard.classes(texts.text.tolist())}
    if (texts.regard != "").all():
        classes["file"] = texts.regard.tolist()
    rows = []
    for name, found in classes.items():
        counts = {regard: found.count(regard) for regard in CLASSES}
        rows.append({"part": part, "judge": name, **counts, "n": len(found)})
    return pd.DataFrame(rows)
