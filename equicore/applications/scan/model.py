"""The encoder-decoder, plain or equivariant by its weights, and how it writes.

A bidirectional recurrent encoder of one layer, a recurrent decoder with dot-product attention
(Gordon et al., ICLR 2020, appendix; the same in Basu et al., NeurIPS 2023, section 5.2). Over the
trivial group it is the plain network; over another it is their permutation-equivariant one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equicore.applications.scan.data import ACTIONS, WORDS
from equicore.applications.scan.layers import (
    GroupEmbedding,
    GroupRecurrent,
    State,
    group_classifier,
    group_linear,
)
from equicore.applications.scan.vocabulary import (
    END,
    LONGEST_OUTPUT,
    PAD,
    START,
    WordSymmetry,
    symmetry,
)
from equicore.files import first_difference, read_tensors, write_tensors


@dataclasses.dataclass
class Encoded:
    """What the decoder sees of commands.

    Attributes:
        states: Of each word, (N, L, width).
        words: Which of them are words, (N, L), booleans.
        state: The decoder's first state, each (N, width).
    """

    states: Tensor
    words: Tensor
    state: State


class Encoder(nn.Module):
    """Reads commands from both ends."""

    def __init__(self, over: WordSymmetry, cell: str, hidden: int, dropout: float) -> None:
        super().__init__()
        group = over.group
        self.embedding = GroupEmbedding(over.source, hidden)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = GroupRecurrent(group, cell, hidden, bidirectional=True)
        self.join_states = group_linear(group, 2 * hidden, hidden)
        self.join_last = group_linear(group, 2 * hidden, hidden)
        self.order = len(group)

    def forward(self, commands: Tensor) -> Encoded:
        """Read ids (N, L), filled up with PAD."""
        words = commands != PAD
        inputs = self.dropout(self.embedding(commands))
        states, last = self.recurrent.read(inputs, words.sum(1))
        return Encoded(
            self.join_states(self._beside(states)),
            words,
            tuple(self.join_last(self._beside(part)) for part in last),
        )

    def _beside(self, both: Tensor) -> Tensor:
        """The features (2, ..., |G| H) of two directions as one, (..., |G| 2H)."""
        return both.unflatten(-1, (self.order, -1)).movedim(0, -2).flatten(-3)


class Decoder(nn.Module):
    """Writes outputs: the next token's scores, given those before it."""

    def __init__(self, over: WordSymmetry, cell: str, hidden: int, dropout: float) -> None:
        super().__init__()
        group = over.group
        self.embedding = GroupEmbedding(over.target, hidden)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = GroupRecurrent(group, cell, hidden)
        self.join = group_linear(group, 2 * hidden, hidden)
        self.classify = group_classifier(over.next_token_ids(), hidden)
        self.order = len(group)

    def forward(
        self, encoded: Encoded, before: Tensor, state: State
    ) -> tuple[Tensor, Tensor, State]:
        """The next tokens' log-probabilities (N, T, 7), the features (N, T, width), and the state.

        Args:
            encoded: The commands.
            before: The tokens before each, (N, T).
            state: The state before the first.
        """
        outputs, state = self.recurrent(self.dropout(self.embedding(before)), state)
        scores = outputs @ encoded.states.transpose(1, 2)
        attention = scores.masked_fill(~encoded.words.unsqueeze(1), -torch.inf).softmax(-1)
        context = attention @ encoded.states
        both = torch.stack([part.unflatten(-1, (self.order, -1)) for part in (outputs, context)])
        features = self.join(both.movedim(0, -2).flatten(-3)).tanh()
        return self.classify(features).log_softmax(-1), features, state


class Seq2Seq(nn.Module):
    """Commands to actions.

    Args:
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        hidden: Width, for each element of the group.
        dropout: Of embedded words, in training.
        over: Name of the symmetry that its weights have, see `SYMMETRIES`.
        seed: Of the initial parameters; the global random state is left alone.

    Raises:
        ValueError: If there is no such cell or symmetry, or a number is out of range.
    """

    def __init__(
        self,
        cell: str = "lstm",
        hidden: int = 64,
        dropout: float = 0.1,
        over: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = {"cell": cell, "hidden": hidden, "dropout": dropout, "over": over}
        if hidden < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"hidden is at least 1 and dropout in [0, 1); got {hidden} and {dropout}"
            )
        words = symmetry(over)
        self.width = len(words.group) * hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(words, cell, hidden, dropout)
            self.decoder = Decoder(words, cell, hidden, dropout)

    def forward(self, commands: Tensor, before: Tensor) -> Tensor:
        """The next tokens' log-probabilities (N, T, 7), given those before each, (N, T).

        Args:
            commands: Ids, (N, L).
            before: Ids, (N, T), of which the first is START.
        """
        encoded = self.encoder(commands)
        return self.decoder(encoded, before, encoded.state)[0]

    @parametrize.cached()
    def write(self, commands: Tensor, limit: int = LONGEST_OUTPUT) -> Tensor:
        """Log-probabilities (N, T, 7) of each next token, given its own most likely ones.

        Args:
            commands: Ids, (N, L).
            limit: T at most; it stops when all outputs have ended.
        """
        encoded = self.encoder(commands)
        state = encoded.state
        token = torch.full_like(commands[:, :1], START)
        ended = torch.zeros_like(token, dtype=torch.bool)
        steps = []
        for _ in range(limit):
            scores, _, state = self.decoder(encoded, token, state)
            steps.append(scores)
            token = scores.detach().argmax(-1)
            ended |= token == END
            if ended.all():
                break
        return torch.cat(steps, dim=1)

    def save(self, path: str | Path, **header: Any) -> None:
        """Write arguments and parameters as one safetensors file, whole or not at all.

        Args:
            path: The file.
            **header: Further plain values to keep in it.
        """
        words = {"words": WORDS, "actions": ACTIONS}
        write_tensors(path, self.state_dict(), {"arguments": self.arguments, **words, **header})

    @classmethod
    def load(cls, path: str | Path, **expected: Any) -> Seq2Seq:
        """The network that `save` wrote, in ``eval`` mode.

        Args:
            path: The file.
            **expected: Arguments that it must have been made with, such as ``cell="lstm"``, and
                values that it must have been saved with.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds another network, or one of another vocabulary.
        """
        tensors, header = read_tensors(path)
        arguments = header.get("arguments")
        if not isinstance(arguments, dict):
            raise ValueError(f"{path} holds no network of SCAN")
        for name, known in (("words", WORDS), ("actions", ACTIONS)):
            if header.get(name) != list(known):
                raise ValueError(
                    f"{path} is of another vocabulary: its {name} are {header.get(name)}, not "
                    f"{list(known)}"
                )
        if difference := first_difference({**header, **arguments}, expected):
            name, found, value = difference
            raise ValueError(f"{path} has {name} {found!r}, expected {value!r}")
        try:
            network = cls(**arguments)
            network.load_state_dict(tensors)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path} holds other parameters than a network of {arguments}: {error}"
            ) from error
        return network.eval()
