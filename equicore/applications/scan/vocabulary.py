"""Words as integer ids, batches of them, and how a symmetry permutes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from equicore.applications.scan.data import ACTION_OF, ACTIONS, DIRECTIONS, WORDS, Pair
from equicore.groups import Group, cyclic, product, symmetric, trivial
from equicore.representations import Permutation, Tokens

PAD = len(WORDS)
"""Fills up short commands."""
END = len(ACTIONS)
"""Ends an output, and fills it up."""
START = END + 1
"""What a decoder is given first."""
LONGEST_COMMAND = 9
LONGEST_OUTPUT = 50
"""Tokens, END included, after which decoding stops; SCAN's longest output has 49."""
Batch = tuple[dict[str, Tensor], Tensor]
"""``commands`` (B, L) and ``before``, the tokens before each action (B, T); the actions (B, T)."""


def encode_commands(commands: Sequence[str]) -> Tensor:
    """Ids of commands, shape (B, length of the longest), filled up with PAD.

    Raises:
        ValueError: If there is none, or one is empty, has more than 9 words, which no command of
            SCAN has, or an unknown word; the message names it.
    """
    rows = _ids("commands", commands, WORDS, LONGEST_COMMAND)
    if [] in rows:
        raise ValueError("an empty command: give words such as 'jump twice and walk left'")
    return _filled(rows, PAD)


def encode_actions(outputs: Sequence[str]) -> Tensor:
    """Ids of outputs, shape (B, T), each with END after it, filled up with END.

    Raises:
        ValueError: If there is none, or one has an unknown word or more than 49.
    """
    rows = _ids("outputs", outputs, ACTIONS, LONGEST_OUTPUT - 1)
    return _filled([[*row, END] for row in rows], END)


def decode_actions(ids: Tensor) -> list[str]:
    """Outputs of ids (B, T), each up to its first END."""
    known = [itertools.takewhile(lambda i: i != END, row) for row in ids.tolist()]
    return [" ".join(ACTIONS[i] for i in row) for row in known]


def _ids(what: str, sentences: Sequence[str], words: Sequence[str], most: int) -> list[list[int]]:
    if isinstance(sentences, str):
        raise ValueError(f"{what} are a list of sentences; got the one sentence {sentences!r}")
    if not sentences:
        raise ValueError(f"no {what} given")
    rows = [sentence.split() for sentence in sentences]
    for row in rows:
        if len(row) > most:
            raise ValueError(
                f"SCAN's {what} have at most {most} words; got {len(row)}: {' '.join(row)!r}"
            )
        if unknown := [word for word in row if word not in words]:
            raise ValueError(
                f"unknown word {unknown[0]!r} in {' '.join(row)!r}; SCAN has {', '.join(words)}"
            )
    return [[words.index(word) for word in row] for row in rows]


def _filled(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows])


def shifted(actions: Tensor) -> Tensor:
    """What a decoder is given to predict actions (B, T): START, and all but the last."""
    return torch.cat([torch.full_like(actions[:, :1], START), actions[:, :-1]], dim=1)


def real_tokens(actions: Tensor) -> Tensor:
    """Which ids (B, T) belong to the output: those up to its first END, that included."""
    ended = (actions == END).cumsum(1)
    return ended - (actions == END).long() == 0


def token_loss(written: dict[str, Tensor], actions: Tensor) -> Tensor:
    """Mean negative log-likelihood, in nats, of the real ones of the ids ``actions`` (B, T).

    Of what was written ``log_probabilities`` (B, T', 7) count, where T' < T if it stopped early.
    """
    scores = written["log_probabilities"]
    actions = actions[:, : scores.shape[1]]
    losses = nn.functional.nll_loss(scores.transpose(1, 2), actions, reduction="none")
    real = real_tokens(actions)
    return (losses * real).sum() / real.sum()


class Batches:
    """Pairs as ids, in batches of at most ``size``, of outputs of similar length."""

    def __init__(self, pairs: Sequence[Pair], size: int) -> None:
        commands, actions = zip(*pairs, strict=True)
        self.commands, self.actions = encode_commands(commands), encode_actions(actions)
        self.lengths = real_tokens(self.actions).sum(1)
        self.size = size

    def __len__(self) -> int:
        """How many an epoch has."""
        return math.ceil(len(self.commands) / self.size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """All pairs, once, in an order that depends on the seed."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.commands), generator=generator)
        order = order[self.lengths[order].argsort(stable=True)]  # equal ones stay in random order
        pieces = order.split(self.size)
        for place in torch.randperm(len(pieces), generator=generator).tolist():
            rows = pieces[place]
            commands, actions = self.commands[rows], self.actions[rows, : self.lengths[rows].max()]
            words = int((commands != PAD).sum(1).max())
            yield {"commands": commands[:, :words], "before": shifted(actions)}, actions

    def first(self, number: int, seed: int) -> Iterator[Batch]:
        """So many batches, of as many epochs as that takes."""
        epochs = (self.epoch(1000 * seed + epoch) for epoch in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), number)


class WordSymmetry:
    """A group that permutes words of commands, and their actions with them.

    Args:
        name: What tables call it.
        group: The group.
        cycles: For each of its ``generators`` the cycles of words: ``[("jump", "run", "look")]``
            puts run in place of jump, look in place of run, jump in place of look. They are verbs
            and directions, as the others stand for no action of their own.

    Attributes:
        source: How it acts on ids of commands.
        target: How it acts on ids of outputs, END and START included, which stay.

    Raises:
        ValueError: If a word stands for no action, or the cycles are not disjoint, or do not
            follow the group's multiplication.

    >>> exchange = WordSymmetry("jump-run", cyclic(2), [[("jump", "run")]])
    >>> decode_actions(exchange.target.act(1, encode_actions(["I_JUMP I_WALK"])))
    ['I_RUN I_WALK']
    """

    def __init__(self, name: str, group: Group, cycles: Sequence[Sequence[Sequence[str]]]) -> None:
        if silent := {w for some in cycles for cycle in some for w in cycle} - set(ACTION_OF):
            raise ValueError(
                f"{name}: {min(silent)!r} stands for no action that could be exchanged with it; "
                f"words that do are {', '.join(ACTION_OF)}"
            )
        words = [[[WORDS.index(w) for w in cycle] for cycle in some] for some in cycles]
        actions = [[[ACTIONS.index(ACTION_OF[w]) for w in c] for c in some] for some in cycles]
        self.name = name
        self.group = group
        try:
            self.source = Tokens.from_cycles(group, words, PAD + 1)
            self.target = Tokens.from_cycles(group, actions, START + 1)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; the cycles are {cycles}") from error

    def next_token(self) -> Permutation:
        """How it acts on scores or probabilities of the next token, (..., 7): actions and END."""
        return Permutation(self.group, self.target.permutations[:, : END + 1])


Cycles = list[list[tuple[str, ...]]]
_VERBS, _C2 = ("jump", "run", "walk", "look"), cyclic(2)
SYMMETRIES: dict[str, tuple[Group, Cycles]] = {
    "none": (trivial(), []),
    "jump-run": (_C2, [[("jump", "run")]]),
    "left-right": (_C2, [[DIRECTIONS]]),
    "verb-cycle": (cyclic(4), [[_VERBS]]),
    "all-verbs": (symmetric(4), [[("jump", "run")], [_VERBS]]),
}
"""Group, and the cycles of words that each of its generators makes."""
for _name in ("jump-run", "verb-cycle", "all-verbs"):
    _group, _cycles = SYMMETRIES[_name]
    SYMMETRIES[f"{_name}+left-right"] = (product(_group, _C2), [*_cycles, [DIRECTIONS]])


def symmetry(name: str) -> WordSymmetry:
    """A symmetry by its name, one of `SYMMETRIES`; ValueError if there is none."""
    if name not in SYMMETRIES:
        raise ValueError(f"there are the symmetries {', '.join(SYMMETRIES)}; got {name!r}")
    return WordSymmetry(name, *SYMMETRIES[name])
