"""SCAN: commands such as "jump twice and walk left", and the actions that they mean.

The data set of Lake and Baroni (2018) is finite, and its grammar is known, so it is generated and
not shipped. Two of its splits ask for compositional generalization: *add jump* trains on the verb
"jump" alone and tests it in phrases; *around right* tests a combination of two words that are each
known from other phrases (Loula et al., 2018).
"""

from __future__ import annotations

import re
from pathlib import Path

VERBS = ("walk", "look", "run", "jump")
DIRECTIONS = ("left", "right")
WORDS = (*VERBS, *DIRECTIONS, "turn", "opposite", "around", "twice", "thrice", "and", "after")
"""All words of commands."""
ACTION_OF = {verb: f"I_{verb.upper()}" for verb in VERBS} | {
    direction: f"I_TURN_{direction.upper()}" for direction in DIRECTIONS
}
"""The action that a word stands for; the other words stand for none."""
ACTIONS = tuple(ACTION_OF.values())
"""All words of outputs."""
SPLITS = ("add_jump", "around_right")
"""Those that are tested on."""
DEVELOPMENT_SPLIT = "opposite_right"
"""Made of around right's training pairs as that is made of all: methods are chosen on it."""

Pair = tuple[str, str]
"""A command and its actions, each as words joined by blanks."""


def all_pairs() -> list[Pair]:
    """All 20,910 commands with their actions, in the order of the grammar.

    >>> dict(all_pairs())["run left after jump twice"]
    'I_JUMP I_JUMP I_TURN_LEFT I_RUN'
    """
    repeated: dict[str, list[str]] = {}
    for phrase, actions in _phrases().items():
        for suffix, times in (("", 1), (" twice", 2), (" thrice", 3)):
            repeated[phrase + suffix] = actions * times
    pairs = [(phrase, " ".join(actions)) for phrase, actions in repeated.items()]
    for first, actions in repeated.items():
        for second, others in repeated.items():
            pairs.append((f"{first} and {second}", " ".join(actions + others)))
            pairs.append((f"{first} after {second}", " ".join(others + actions)))
    return pairs


def _phrases() -> dict[str, list[str]]:
    """The 34 phrases of a verb and where to do it."""
    verbs = {verb: [ACTION_OF[verb]] for verb in VERBS}
    phrases = dict(verbs)
    for verb, action in (verbs | {"turn": []}).items():
        for direction in DIRECTIONS:
            turn = [ACTION_OF[direction]]
            phrases[f"{verb} {direction}"] = turn + action
            phrases[f"{verb} opposite {direction}"] = turn + turn + action
            phrases[f"{verb} around {direction}"] = (turn + action) * 4
    return phrases


def load_split(name: str) -> tuple[list[Pair], list[Pair]]:
    """The training and test pairs of a split, with the duplicates of the published files.

    Args:
        name: ``"add_jump"`` or ``"around_right"``; or ``"opposite_right"``, which is ours, and
            made of the training pairs of around right in the same way.

    Raises:
        ValueError: If there is no such split.

    >>> train, test = load_split("add_jump")
    >>> len(train), len(test), train.count(("jump", "I_JUMP"))
    (14670, 7706, 1467)
    """
    pairs = all_pairs()
    if name == "add_jump":
        bare = ("jump", "I_JUMP")
        train = [pair for pair in pairs if "jump" not in pair[0]]
        test = [pair for pair in pairs if "jump" in pair[0] and pair != bare]
        return train + [bare] * 1467, test
    if name == "around_right":
        return _without(pairs, "around right")
    if name == DEVELOPMENT_SPLIT:
        return _without(load_split("around_right")[0], "opposite right")
    raise ValueError(f"the splits are {', '.join(SPLITS)} and {DEVELOPMENT_SPLIT}; got {name!r}")


def _without(pairs: list[Pair], words: str) -> tuple[list[Pair], list[Pair]]:
    """The pairs without the words, and those with; those with `turn` before them are left out."""
    return (
        [pair for pair in pairs if words not in pair[0]],
        [pair for pair in pairs if words in pair[0] and f"turn {words}" not in pair[0]],
    )


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a published text file, with lines such as ``IN: jump twice OUT: I_JUMP I_JUMP``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is of another form, or has words that SCAN has not; the message
            names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    pairs = []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        found = re.fullmatch("IN: (.*) OUT: (.*)", line.strip())
        command, actions = (found[1].split(), found[2].split()) if found else ([], [])
        if not command or not actions:
            raise ValueError(f"{path}:{number} is not of the form 'IN: ... OUT: ...': {line!r}")
        if unknown := set(command) - set(WORDS) | set(actions) - set(ACTIONS):
            raise ValueError(
                f"{path}:{number} has words that SCAN has not: {', '.join(sorted(unknown))}"
            )
        pairs.append((" ".join(command), " ".join(actions)))
    return pairs
