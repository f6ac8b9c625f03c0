"""Words as integer ids, and how a symmetry permutes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from equicore.applications.scan.data import ACTION_OF, ACTIONS, DIRECTIONS, WORDS
from equicore.groups import Group, cyclic, product, symmetric, trivial
from equicore.representations import Permutation, Tokens

PAD = len(WORDS)
"""Fills up short commands."""
END = len(ACTIONS)
"""Ends an output, and fills it up."""
START = len(ACTIONS) + 1
"""What a decoder is given first."""
LONGEST_COMMAND = 9
LONGEST_OUTPUT = 50
"""Tokens, END included, after which decoding stops; SCAN's longest output has 49."""


def encode_commands(commands: Sequence[str]) -> Tensor:
    """Ids of commands, shape (B, length of the longest), filled up with PAD.

    Raises:
        ValueError: If there is none, or one is empty, has more than 9 words, which no command of
            SCAN has, or an unknown word; the message names it.
    """
    rows = []
    for command in _several(commands, "commands"):
        words = command.split()
        if not words:
            raise ValueError("an empty command: give words such as 'jump twice and walk left'")
        if len(words) > LONGEST_COMMAND:
            raise ValueError(
                f"SCAN's commands have at most {LONGEST_COMMAND} words; got {len(words)}: "
                f"{command!r}"
            )
        rows.append(_ids(words, WORDS, command))
    return _filled(rows, PAD, "commands")


def encode_actions(outputs: Sequence[str]) -> Tensor:
    """Ids of outputs, shape (B, T), each with END after it, filled up with END.

    Raises:
        ValueError: If there is none, or one has an unknown word or more than 49.
    """
    rows = []
    for output in _several(outputs, "outputs"):
        words = output.split()
        if len(words) >= LONGEST_OUTPUT:
            raise ValueError(
                f"outputs have at most {LONGEST_OUTPUT - 1} actions; got {len(words)}: {output!r}"
            )
        rows.append([*_ids(words, ACTIONS, output), END])
    return _filled(rows, END, "outputs")


def decode_actions(ids: Tensor) -> list[str]:
    """Outputs of ids (B, T), each up to its first END."""
    outputs = []
    for row in ids.tolist():
        stop = row.index(END) if END in row else len(row)
        outputs.append(" ".join(ACTIONS[i] for i in row[:stop]))
    return outputs


def shifted(actions: Tensor) -> Tensor:
    """What a decoder is given to predict actions (B, T): START, and all but the last."""
    return torch.cat([torch.full_like(actions[:, :1], START), actions[:, :-1]], dim=1)


def real_tokens(actions: Tensor) -> Tensor:
    """Which ids (B, T) belong to the output: those up to its first END, that included."""
    ended = (actions == END).cumsum(1)
    return ended - (actions == END).long() == 0


@dataclasses.dataclass(frozen=True)
class WordSymmetry:
    """A group that permutes words of commands, and their actions with them.

    Attributes:
        name: What tables call it.
        source: How it acts on ids of commands.
        target: How it acts on ids of outputs, END and START included, which stay.

    Raises:
        ValueError: If it does not exchange the actions of words as it exchanges the words.
    """

    name: str
    source: Tokens
    target: Tokens

    def __post_init__(self) -> None:
        """Check that words and their actions go together."""
        words, tokens = self.source.vocabulary.permutations, self.target.vocabulary.permutations
        same = (self.source.group, PAD + 1, START + 1)
        if (self.target.group, words.shape[1], tokens.shape[1]) != same:
            raise ValueError(
                f"{self.name}: source and target are of one group, of {PAD + 1} words and "
                f"{START + 1} tokens; got {words.shape[1]} words under {self.source.group}, "
                f"{tokens.shape[1]} tokens under {self.target.group}"
            )
        action = {i: ACTIONS.index(ACTION_OF[w]) for i, w in enumerate(WORDS) if w in ACTION_OF}
        for word, moved in enumerate(words.T.tolist()):  # where each element moves it
            if word not in action and set(moved) != {word}:
                raise ValueError(f"{self.name} moves words that stand for no action, or PAD")
            if word in action and tokens[:, action[word]].tolist() != [action[w] for w in moved]:
                raise ValueError(
                    f"{self.name} does not exchange the action of {WORDS[word]!r} as it exchanges "
                    "the word; WordSymmetry.of makes symmetries that do"
                )
        if (tokens[:, END:] != torch.tensor([END, START])).any():
            raise ValueError(f"{self.name} moves END or START")

    @classmethod
    def of(cls, name: str, group: Group, cycles: Sequence[Sequence[Sequence[str]]]) -> WordSymmetry:
        """The symmetry by which each of ``group.generators`` exchanges words.

        Args:
            name: What tables call it.
            group: The group.
            cycles: For each generator, its cycles of words: ``[("jump", "run", "look")]`` puts
                run in place of jump, look in place of run, jump in place of look. They are verbs
                and directions, as the others stand for no action of their own.

        Raises:
            ValueError: If a word stands for no action, or the cycles are not disjoint, or do not
                follow the group's multiplication.

        >>> exchange = WordSymmetry.of("jump-run", cyclic(2), [[("jump", "run")]])
        >>> decode_actions(exchange.target.act(1, encode_actions(["I_JUMP I_WALK"])))
        ['I_RUN I_WALK']
        """
        for word in [word for some in cycles for cycle in some for word in cycle]:
            if word not in ACTION_OF:
                raise ValueError(
                    f"{name}: {word!r} stands for no action that could be exchanged with it; "
                    f"words that do are {', '.join(ACTION_OF)}"
                )
        source = [[[WORDS.index(w) for w in cycle] for cycle in some] for some in cycles]
        target = [[[ACTIONS.index(ACTION_OF[w]) for w in c] for c in some] for some in cycles]
        try:
            return cls(
                name,
                Tokens.from_cycles(group, source, PAD + 1),
                Tokens.from_cycles(group, target, START + 1),
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}; the cycles are {cycles}") from error

    @property
    def group(self) -> Group:
        """The group."""
        return self.source.group

    def next_token_ids(self) -> Tokens:
        """How it acts on ids of the next token: actions and END."""
        return Tokens(self.group, self.target.vocabulary.permutations[:, : END + 1])

    def next_token(self) -> Permutation:
        """How it acts on scores or probabilities of the next token, (..., 7): actions and END."""
        return Permutation(self.group, self.target.vocabulary.permutations[:, : END + 1])


def symmetry(name: str) -> WordSymmetry:
    """A symmetry by its name.

    Args:
        name: One of `SYMMETRIES`.

    Raises:
        ValueError: If there is no such symmetry.
    """
    if name not in SYMMETRIES:
        raise ValueError(f"there are the symmetries {', '.join(SYMMETRIES)}; got {name!r}")
    group, cycles = SYMMETRIES[name]
    return WordSymmetry.of(name, group, cycles)


_VERBS: tuple[str, ...] = ("jump", "run", "walk", "look")
_C2, _C4, _S4 = cyclic(2), cyclic(4), symmetric(4)
_JUMP_RUN: list[tuple[str, ...]] = [_VERBS[:2]]
_LEFT_RIGHT: list[tuple[str, ...]] = [DIRECTIONS]
_S4_CYCLES: list[list[tuple[str, ...]]] = [_JUMP_RUN, [_VERBS]]  # of its two generators
SYMMETRIES: dict[str, tuple[Group, Sequence[Sequence[Sequence[str]]]]] = {
    "none": (trivial(), []),
    "jump-run": (_C2, [_JUMP_RUN]),
    "left-right": (_C2, [_LEFT_RIGHT]),
    "jump-run+left-right": (product(_C2, _C2), [_JUMP_RUN, _LEFT_RIGHT]),
    "verb-cycle": (_C4, [[_VERBS]]),
    "verb-cycle+left-right": (product(_C4, _C2), [[_VERBS], _LEFT_RIGHT]),
    "all-verbs": (_S4, _S4_CYCLES),
    "all-verbs+left-right": (product(_S4, _C2), [*_S4_CYCLES, _LEFT_RIGHT]),
}
"""Group, and the cycles of words that each of its generators makes."""


def _several(sentences: Sequence[str], what: str) -> Sequence[str]:
    if isinstance(sentences, str):
        raise ValueError(f"{what} are a list of sentences; got the one sentence {sentences!r}")
    return sentences


def _ids(words: Sequence[str], vocabulary: Sequence[str], sentence: str) -> list[int]:
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise ValueError(
            f"unknown word {unknown[0]!r} in {sentence!r}; SCAN has {', '.join(vocabulary)}"
        )
    return [vocabulary.index(word) for word in words]


def _filled(rows: Sequence[Sequence[int]], filling: int, what: str) -> Tensor:
    if not rows:
        raise ValueError(f"no {what} given")
    ids = torch.full((len(rows), max(map(len, rows))), filling)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids
