"""Regard: how a text speaks of whom it is about, and classifiers of it.

Regard is negative, neutral, positive or other (Sheng et al., EMNLP 2019). Whom a text is about is
hidden from the classifier, which sees XYZ in its place, as its training texts have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline, make_union
from torch import Tensor

from equicore.applications.text.grammar import CLASSES, PLANTED
from equicore.applications.text.words import WordGroup
from equicore.lab.statistics import Estimate, proportion
from equicore.lab.store import read_lines
from equicore.reduce import Mean

HIDDEN = "XYZ"
NUMBERS = {-1: "negative", 0: "neutral", 1: "positive", 2: "other"}
"""How annotations write classes."""
Probabilities = Callable[[list[str]], Tensor]


class Regard:
    """A classifier of regard; called with texts it gives P(positive) - P(negative) of each, (N,).

    Args:
        probabilities: Maps texts to probabilities (N, 4) of `CLASSES`.
        subjects: Whom texts may begin with, hidden from the classifier; the paper's when omitted.
    """

    def __init__(
        self, probabilities: Probabilities, subjects: Iterable[str] = tuple(PLANTED)
    ) -> None:
        self._probabilities, self._subjects = probabilities, tuple(subjects)
        self._pattern = re.compile(rf"^(?:{'|'.join(map(re.escape, self._subjects))})\b")

    def hidden(self, text: str) -> str:
        """The text as the classifier sees it."""
        return self._pattern.sub(HIDDEN, text) if self._subjects else text

    def of_subjects(self, subjects: Iterable[str]) -> Regard:
        """The same classifier for texts about others."""
        return Regard(self._probabilities, subjects)

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Shape (N, 4), by `CLASSES`, of texts whose subject is hidden."""
        found = self._probabilities([self.hidden(text) for text in texts])
        if found.shape != (len(texts), len(CLASSES)):
            raise ValueError(
                f"a classifier of regard gives {len(CLASSES)} probabilities for each of "
                f"{len(texts)} texts; got shape {tuple(found.shape)}"
            )
        return found

    def classes(self, texts: Sequence[str]) -> list[str]:
        """The most probable class of each text."""
        return [CLASSES[i] for i in self.probabilities(texts).argmax(-1).tolist()]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """How well each text speaks of its subject, from -1 to 1, shape (N,)."""
        found = self.probabilities(texts)
        return found[:, CLASSES.index("positive")] - found[:, CLASSES.index("negative")]

    def invariant(self, words: WordGroup) -> Regard:
        """This classifier, equituned: the mean of its probabilities over exchanges of words."""

        def mean(texts: list[str]) -> Tensor:
            orbit = self._probabilities(words.orbit(texts))
            # a sum that does not depend on its order
            stack = orbit.unflatten(0, (len(words.group), len(texts))).sort(0).values
            return Mean().whole(stack, None)

        return Regard(mean, self._subjects)


def read_annotations(*files: str | Path) -> pd.DataFrame:
    """Sentences with regard from files of annotations, each once: ``text`` and ``regard``.

    A line is a number, -1, 0, 1 or 2 for other, a tab, and a sentence, as in Sheng et al.'s data.
    Of a folder all its files that end with .tsv.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no annotation.
    """
    rows = []
    for file in map(Path, files):
        paths = sorted(file.glob("*.tsv")) if file.is_dir() else [file]
        if not paths or not all(path.is_file() for path in paths):
            raise FileNotFoundError(f"no annotations, files .tsv, at {file}")
        for path in paths:
            for place, line in enumerate(read_lines(path), 1):
                found = annotation(line)
                if found is None:
                    raise ValueError(
                        f"{path}, line {place} is no annotation: a number of "
                        f"{', '.join(map(str, NUMBERS))}, a tab and a sentence; got {line[:60]!r}"
                    )
                rows.append(found)
    return pd.DataFrame(rows, columns=["text", "regard"]).drop_duplicates("text")


def annotation(line: str) -> tuple[str, str] | None:
    """The text and the class of regard of a line; None if it is no annotation."""
    number, tab, text = line.partition("\t")
    known = bool(tab) and number.strip() in map(str, NUMBERS)
    return (text.strip(), NUMBERS[int(number)]) if known else None


def fit_regard(annotations: pd.DataFrame, seed: int = 0) -> Regard:
    """A classifier by words and parts of words, with a strength chosen by cross-validation.

    Args:
        annotations: ``text`` and ``regard``, a class, as of `read_annotations`.
        seed: Of the folds.

    Raises:
        ValueError: If there are fewer than two classes, fewer than 5 texts of one, or others.
    """
    fewest = annotations.regard.value_counts()
    if unknown := sorted(set(fewest.index) - set(CLASSES)):
        raise ValueError(f"regard is one of {', '.join(CLASSES)}; got {unknown[0]!r}")
    if len(fewest) < 2 or fewest.min() < 5:
        raise ValueError(
            "a classifier of regard needs two classes, and 5 texts of each; got "
            + (", ".join(f"{count} {name}" for name, count in fewest.items()) or "none")
        )
    model = _classifier(seed)

    def probabilities(texts: list[str]) -> Tensor:
        found = np.zeros((len(texts), len(CLASSES)))
        if texts:
            places = [CLASSES.index(name) for name in model.classes_]
            found[:, places] = model.predict_proba(texts)
        return torch.from_numpy(found)

    regard = Regard(probabilities)
    model.fit([regard.hidden(text) for text in annotations.text], annotations.regard.tolist())
    return regard


def cross_validated(
    annotations: pd.DataFrame, more: pd.DataFrame | None = None, folds: int = 10, seed: int = 0
) -> Estimate:
    """The part of texts that `fit_regard` classifies right when they are held out, by Wilson.

    ``more`` are annotations that are learned from as well, and not counted.
    """
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    right = 0
    for kept, held in cut.split(annotations.text, annotations.regard):
        known, asked = annotations.iloc[kept], annotations.iloc[held]
        found = fit_regard(pd.concat([known, more]), seed).classes(asked.text.tolist())
        right += int((np.asarray(found) == asked.regard.to_numpy()).sum())
    return proportion(right, len(annotations))


def fit_half(annotations: pd.DataFrame, half: int, seed: int = 0) -> Regard:
    """A classifier of one half, 0 or 1, of annotations: one steers, and the other judges."""
    return fit_regard(annotations.sample(frac=1, random_state=seed).iloc[half::2], seed)


def load_regard(source: str | Path, labels: Iterable[str] = (), device: str = "cpu") -> Regard:
    """A classifier of Hugging Face, from a folder or a hub id.

    Args:
        source: Of a model for sequence classification, and its tokenizer.
        labels: What its outputs are, in their order, each of `CLASSES`; as the model names them
            when omitted.
        device: Where it is computed.

    Raises:
        ValueError: If labels are no classes of regard, or not as many as outputs.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval().to(device)
    names = list(labels) or [str(model.config.id2label[i]).lower() for i in model.config.id2label]
    if set(names) - set(CLASSES) or len(names) != model.config.num_labels:
        raise ValueError(
            f"labels name the {model.config.num_labels} outputs of {source}, each one of "
            f"{', '.join(CLASSES)}; got {', '.join(names)}"
        )
    places = [CLASSES.index(name) for name in names]

    @torch.no_grad()
    def probabilities(texts: list[str]) -> Tensor:
        found = torch.zeros(len(texts), len(CLASSES), dtype=torch.float64)
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], return_tensors="pt", padding=True,
                              truncation=True).to(device)  # fmt: skip
            rows = model(**batch).logits.softmax(-1).cpu().double()
            found[start : start + 64].index_add_(1, torch.tensor(places), rows)
        return found

    return Regard(probabilities)


def bias(regard: Regard, words: WordGroup, texts: Sequence[str], g: int = 1) -> Tensor:
    """How much higher the regard of texts is after their words are exchanged by g, (N',).

    Of texts about one group, as the other direction has the other sign; and of those alone in
    which words are exchanged beside the subject, which is hidden.
    """
    pairs = [(text, words.act(g, text)) for text in texts]
    pairs = [(a, b) for a, b in pairs if regard.hidden(a) != regard.hidden(b)]
    return regard([b for _, b in pairs]) - regard([a for a, _ in pairs])


def _classifier(seed: int) -> Any:
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return make_pipeline(
        features,
        LogisticRegressionCV(
            Cs=[1, 3, 10, 30], cv=folds, class_weight="balanced", max_iter=2000,
            scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False,
        ),
    )  # fmt: skip
