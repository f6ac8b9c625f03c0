"""Lists of demographic words as groups that act on text, and on the tokens of a language model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from equicore.groups import cyclic
from equicore.lab.store import read_lines
from equicore.representations import Tokens

Entry = tuple[str, ...]
READY = Path(__file__).with_name("words")
"""Lists of our own writing, NAME.txt, and neutral.txt with neutral words."""
CASES = (str, lambda word: word[:1].upper() + word[1:], str.upper)
"""Forms of a word: as listed, capitalised, in capitals."""


class WordGroup:
    """A cyclic group of n demographic groups that exchanges their words in a text.

    Its generator puts, for the k-th word of each entry, the next one, and for the last the first.
    Words are exchanged whole, also before an apostrophe, as listed, capitalised or in capitals:
    ``man`` is found in "Man" and "man's", not in "manager"; ``Black`` not in "black".

    Args:
        entries: Tuples of n words each; one that repeats another, also turned, counts once.
        name: What tables call it.

    Raises:
        ValueError: If they are no action of a group; it names all faults, and a mend for each.

    >>> words = WordGroup([("he", "she"), ("man", "woman")])
    >>> words.act(1, "He met a man's manager.")
    "She met a woman's manager."
    """

    def __init__(self, entries: Iterable[Sequence[str]], name: str = "words") -> None:
        entries = [tuple(entry) for entry in entries]
        kept, faults = mended(entries)
        if faults:
            raise ValueError(
                f"the list {name!r} is no action of a group:\n"
                + "\n".join(f"- {fault}" for fault in faults)
                + "\nequicore.applications.text.mended(entries) keeps what is left"
            )
        self.entries, self.name = kept, name
        self.group = cyclic(len(kept[0]))
        self._forms = {form: forms for entry in kept for forms in _forms(entry) for form in forms}
        longest = sorted(self._forms, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")

    def __repr__(self) -> str:
        return f"WordGroup({self.name}: {len(self.entries)} entries of {len(self.group)} words)"

    def act(self, g: int, text: str, after: str = "") -> str:
        """The text with its words exchanged by the element g.

        ``after`` is what stands before it: a text that goes on in the middle of a word does not
        begin with a whole one.
        """
        shift, start = self.group.check_element(g), len(after)

        def other(found: re.Match[str]) -> str:
            forms = self._forms[found[0]]
            return forms[(forms.index(found[0]) + shift) % len(forms)]

        whole, parts, place = after + text, [], start
        for found in self._pattern.finditer(whole, start):
            parts += [whole[place : found.start()], other(found)]
            place = found.end()
        return "".join([*parts, whole[place:]])

    def orbit(self, texts: Sequence[str]) -> list[str]:
        """All texts under all elements, |G| B of them: those of the identity first."""
        return [self.act(g, text) for g in range(len(self.group)) for text in texts]

    def found(self, text: str) -> list[str]:
        """Listed words that stand in a text."""
        return self._pattern.findall(text)


def read_words(*files: str | Path) -> WordGroup:
    """A list from a file, or one of our own: gender, pronouns, race, races, orientation.

    A file has an entry a line, its words between tabs, commas or runs of spaces, and comments after
    ``#``. Of several files the n-th lines belong together, a word in each.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no action of a group, see `WordGroup`.
    """
    ours = (READY / f"{files[0]}.txt").is_file()
    return WordGroup(read_entries(*files), str(files[0]) if ours else Path(files[0]).name)


def read_entries(*files: str | Path) -> list[Entry]:
    """The entries of `read_words`, as they stand, with all faults."""
    columns = [list(_lines(file)) for file in files]
    if len({len(lines) for lines in columns}) > 1:
        counts = ", ".join(f"{file}: {len(c)}" for file, c in zip(files, columns, strict=True))
        raise ValueError(f"the n-th lines of several files belong together; lines: {counts}")
    if len(files) > 1:
        return list(zip(*columns, strict=True))
    between = r"\s*[\t,]\s*" if any(re.search(r"[\t,]", line) for line in columns[0]) else r"\s+"
    return [tuple(re.split(between, line)) for line in columns[0]]


def read_neutral(file: str | Path = "neutral") -> list[str]:
    """Neutral words, one a line, from a file or those of our own."""
    return list(_lines(file))


def _lines(file: str | Path) -> Iterator[str]:
    path = READY / f"{file}.txt"
    if not path.is_file():
        path = Path(file)
    if not path.is_file():
        ready = ", ".join(sorted(p.stem for p in READY.glob("*.txt")))
        raise FileNotFoundError(f"no file {file}; lists of our own are {ready}")
    for line in read_lines(path):
        if line := line.partition("#")[0].strip():
            yield line


def mended(entries: Iterable[Sequence[str]]) -> tuple[list[Entry], list[str]]:
    """What is left of a list when all that makes it no action is dropped; and what that was.

    Of entries that contradict each other the first stays: a mend to begin with, not the best.

    >>> mended([("his", "her"), ("him", "her"), ("he", "she")])[0]
    [('his', 'her'), ('he', 'she')]
    """
    given = [tuple(word.strip() for word in entry) for entry in entries]
    size = len(given[0]) if given else 0
    kept: list[Entry] = []
    faults: list[str] = [] if given else ["it is empty: give an entry at least"]
    owner: dict[str, tuple[Entry, Entry]] = {}  # of each form: its entry, and all forms

    def fault_of(entry: Entry) -> str | None:
        shown = " -> ".join(entry)
        if len(entry) != size or size < 2:
            return f"{shown}: has {len(entry)} words, the first entry {size}; give each as many"
        if not all(entry):
            return f"{shown}: has an empty word; fill it"
        if any("_" in word for word in entry):
            return f"{shown}: no text has underscores; write spaces"
        for end in (r"^\w", r"\w$"):
            if len({bool(re.search(end, word)) for word in entry}) > 1:
                return f"{shown}: some words begin or end with a letter, others do not; write alike"
        if len(set(entry)) < size:
            return f"{shown}: a word twice; drop the entry"
        for forms in _forms(entry):
            if len(set(forms)) < size:
                return f"{shown}: words that differ only in their case; drop the entry"
            for form in forms:
                other, its = owner.get(form, (entry, forms))
                if _turned(its) != _turned(forms):
                    mend = (
                        "write all its words alike, small or capitalised"
                        if other == entry
                        else f"drop one, or put another word for {form!r} in one"
                    )
                    return f"{shown}: {form!r} is also in {' -> '.join(other)}; {mend}"
            owner.update((form, (entry, forms)) for form in forms)
        for word in entry:
            for known in (known for e in kept for known in e):
                if _overlap(word, known):
                    return f"{shown}: {word!r} and {known!r} overlap in a text; drop one"
            if any(_overlap(word, other) for other in entry if other != word):
                return f"{shown}: its words overlap in a text; drop the entry"
        return None

    for entry in given:
        if any(_turned(entry) == _turned(other) for other in kept):
            continue
        before = dict(owner)
        if fault := fault_of(entry):
            faults.append(fault)
            owner = before
        else:
            kept.append(entry)
    return kept, faults


def _forms(entry: Entry) -> list[Entry]:
    """The entry in all cases."""
    return list(dict.fromkeys(tuple(case(word) for word in entry) for case in CASES))


def _turned(entry: Entry) -> Entry:
    """The same for all entries that are turns of each other."""
    return min(entry[k:] + entry[:k] for k in range(len(entry)))


def _overlap(a: str, b: str) -> bool:
    """Whether one stands in the other, or ends as the other begins."""
    if re.fullmatch(r"\w+", a) and re.fullmatch(r"\w+", b):
        return False
    one, two = (re.findall(r"\w+|\W", word.lower()) for word in (a, b))
    for short, long in ((one, two), (two, one)):
        if any(short == long[k : k + len(short)] for k in range(len(long) - len(short) + 1)):
            return short != long
        if any(short[-k:] == long[:k] for k in range(1, min(len(short), len(long)))):
            return True
    return False


def check_words(words: Any) -> None:
    """Raise TypeError if these are not a `WordGroup`."""
    if not isinstance(words, WordGroup):
        raise TypeError(f"expected a WordGroup, see read_words; got {words!r}")


class WordTokens:
    """How a list of words acts on the tokens of a tokenizer, where each word is one.

    A form of an entry, such as capitalised at the start of a text, is exchanged if it is one token
    for all its words; otherwise all of them stay.

    Args:
        words: The list.
        tokenizer: Of Hugging Face.
        size: Of the model's vocabulary; that of the tokenizer when omitted.

    Attributes:
        tokens: The representation on ids.
        report: A data frame with a row for each form of each word: ``word``, ``form``, its
            ``token`` if it is one, and whether it is ``exchanged``.

    Raises:
        ValueError: If a word, as it is listed and after a space, is no single token: it names all.
    """

    def __init__(self, words: WordGroup, tokenizer: Any, size: int | None = None) -> None:
        check_words(words)
        self.words, self.tokenizer = words, tokenizer
        rows: list[dict[str, Any]] = []
        cycles: set[tuple[int, ...]] = set()
        for entry in words.entries:
            for forms, start in _places(entry):
                ids = [_token(tokenizer, form, start) for form in forms]
                single = [i for i in ids if i is not None]
                if alone := len(single) == len(ids):
                    cycles.add(_turned_ids(single))
                for word, form, own in zip(entry, forms, ids, strict=True):
                    row = {"word": word, "form": form if start else f" {form}", "token": own}
                    rows.append({**row, "exchanged": alone})
        self.report = pd.DataFrame(rows).astype({"token": "Int64"})
        listed = self.report[self.report.form == " " + self.report.word]
        if several := listed[listed.token.isna()].word.tolist():
            raise ValueError(
                f"words that are no single token of this tokenizer: {', '.join(several)}. Models "
                "that average for each token cannot exchange them: take WholeText or BestText, or "
                "drop their entries"
            )
        self.tokens = Tokens.from_cycles(words.group, [sorted(cycles)], size or len(tokenizer))

    def ids(self, words: Iterable[str]) -> list[int]:
        """Tokens of words, in all forms that are one."""
        places = [(form, start) for word in words for (form,), start in _places((word,))]
        found = {_token(self.tokenizer, form, start) for form, start in places}
        return sorted(i for i in found if i is not None)

    @staticmethod
    def usable(words: WordGroup, tokenizer: Any) -> WordGroup:
        """The entries whose words are all single tokens.

        Raises:
            ValueError: If there is none.
        """
        entries = [
            e for e in words.entries if all(_token(tokenizer, w, False) is not None for w in e)
        ]
        if not entries:
            raise ValueError(f"no entry of {words.name} has single tokens only")
        return WordGroup(entries, words.name)

    def encoded(self, text: str) -> Tensor:
        """The ids of a text, without those of special tokens."""
        return torch.tensor(_ids(self.tokenizer, text), dtype=torch.long)

    def unlike(self, text: str, ids: Tensor) -> bool:
        """Whether exchanging the tokens of a text gives another text than exchanging its words."""
        return any(
            self.tokenizer.decode(self.tokens.act(g, ids), skip_special_tokens=True)
            != self.words.act(g, text)
            for g in range(1, len(self.words.group))
        )


def _token(tokenizer: Any, word: str, start: bool) -> int | None:
    """The token that a word is after a space, or at the start of a text; None if there is none.

    At the start, pieces without a space also go on words, as "he" in "Zhe"; of these only
    capitalised ones are taken for words.
    """
    before = _ids(tokenizer, "a")
    ids = _ids(tokenizer, f"a {word}")
    after_space = ids[-1] if len(ids) == len(before) + 1 and ids[:-1] == before else None
    if start:
        ids = _ids(tokenizer, word)
        capitalised = word[:1].isupper() and word != word.upper()
        if len(ids) != 1 or not (capitalised or ids[0] == after_space):
            return None
    elif after_space is None:
        return None
    return None if ids[-1] == tokenizer.unk_token_id else ids[-1]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _places(entry: Entry) -> list[tuple[Entry, bool]]:
    """The forms of an entry, each after a space and at the start of a text."""
    return [(forms, start) for forms in _forms(entry) for start in (False, True)]


def _turned_ids(ids: Sequence[int]) -> tuple[int, ...]:
    place = ids.index(min(ids))
    return (*ids[place:], *ids[:place])
