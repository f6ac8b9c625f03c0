"""The encoder-decoder, plain or equivariant by its weights, and how it writes.

A bidirectional recurrent encoder of one layer, a recurrent decoder with dot-product attention
(Gordon et al., *Permutation Equivariant Models for Compositional Generalization in Language*, ICLR
2020, appendix; the same in Basu et al., NeurIPS 2023, section 5.2).

Its features are functions on a group: (N, |G|, H) holds a vector for each element, and an element k
acts on it by (k f)(g) = f(k^-1 g). Over the trivial group it is the plain network, over another the
permutation-equivariant one of Gordon et al. Features pass between layers with their last two axes
as one, (..., |G| H). Weights are tied by torch's parametrizations; inside ``parametrize.cached()``
that is done once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from equicore.applications.scan import vocabulary
from equicore.applications.scan.data import ACTIONS, WORDS
from equicore.applications.scan.vocabulary import END, PAD, START, WordSymmetry
from equicore.groups import Group
from equicore.lab.store import check_same, read_tensors, write_tensors
from equicore.representations import Permutation, Tokens

CELLS: dict[str, tuple[Callable[..., Any], int]] = {
    "rnn": (torch.rnn_tanh, 1),
    "gru": (torch.gru, 3),
    "lstm": (torch.lstm, 4),
}
"""For each cell what runs it, and how many gates it has."""

State = tuple[Tensor, ...]
"""What a recurrent cell remembers, each of shape (N, |G| H): one tensor, of an LSTM two."""


class GroupEmbedding(nn.Module):
    """A vector for each word and element: e(x)(g) = E[g^-1 x]."""

    def __init__(self, words: Tokens, hidden: int) -> None:
        super().__init__()
        self.words = words
        self.table = nn.Embedding(words.size, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Features (..., |G| H) of ids of shape (...)."""
        moved = self.words.align(ids.expand(len(self.words.group), *ids.shape))
        return self.table(moved).movedim(0, -2).flatten(-2)


def group_linear(group: Group, size_in: int, size_out: int, gates: int = 1) -> nn.Linear:
    """A group convolution: (W f)(g) = sum over h of W[g^-1 h] f(h), and a bias.

    Maps features (..., |G| size_in) to (..., gates |G| size_out).
    """
    order = len(group)
    places = torch.from_numpy(group.table[group.inverses].astype(np.int64))  # (g, h) -> g^-1 h
    layer = nn.Linear(order * size_in, gates * order * size_out)
    weight = _Tied(  # of kernels (gates, size_out, |G|, size_in)
        lambda kernels: kernels[:, :, places].transpose(1, 2).flatten(3).flatten(0, 2),
        lambda matrix: matrix.view(gates, order, -1, order, size_in)[:, 0],
    )
    bias = _Tied(  # of biases (gates, 1, size_out)
        lambda biases: biases.expand(-1, order, -1).flatten(),
        lambda bias: bias.view(gates, order, -1)[:, :1],
    )
    parametrize.register_parametrization(layer, "weight", weight)
    parametrize.register_parametrization(layer, "bias", bias)
    return layer


def group_classifier(words: Permutation, hidden: int) -> nn.Linear:
    """Scores of words, summed over the group: score(y) = sum over g of C[g^-1 y] f(g), and a bias.

    Maps features (..., |G| hidden) to (..., words). The bias is the same for the words of an orbit,
    without which it is not equivariant.
    """
    moved, orbits = words.inverses, words.permutations.amin(0)
    layer = nn.Linear(len(words.group) * hidden, words.size)
    weight = _Tied(  # of a table (words, hidden)
        lambda table: table[moved].movedim(0, 1).flatten(1),
        lambda matrix: matrix.unflatten(1, (len(moved), -1))[:, 0],
    )
    bias = _Tied(lambda bias: bias[orbits], lambda bias: bias)
    parametrize.register_parametrization(layer, "weight", weight)
    parametrize.register_parametrization(layer, "bias", bias)
    return layer


class _Tied(nn.Module):
    """A parametrization: a weight as a function of fewer numbers, and a way back to these."""

    def __init__(self, tie: Callable[..., Tensor], free: Callable[..., Tensor]) -> None:
        super().__init__()
        self.tie, self.free = tie, free

    def forward(self, numbers: Tensor) -> Tensor:
        return self.tie(numbers)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self.free(weight).contiguous()


class GroupRecurrent(nn.Module):
    """A recurrent layer of a cell of `CELLS` whose matrices are group convolutions.

    ``hidden`` is the size of its features for each element; a bidirectional one also reads
    backwards. Raises ValueError if there is no such cell.
    """

    def __init__(self, group: Group, cell: str, hidden: int, bidirectional: bool = False) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell is one of {', '.join(CELLS)}; got {cell!r}")
        self._run, gates = CELLS[cell]
        self.cell = cell
        self.width = len(group) * hidden
        self.linear = nn.ModuleList(  # of the input and of the state, in each direction
            group_linear(group, hidden, hidden, gates) for _ in range(4 if bidirectional else 2)
        )

    def forward(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs (N, T, |G| H) for features of that shape, and the state afterwards."""
        first = tuple(part.unsqueeze(0) for part in state)
        before = first if self.cell == "lstm" else first[0]
        weights, training = self._weights(), self.training
        outputs, *after = self._run(features, before, weights, True, 1, 0.0, training, False, True)
        return outputs, tuple(part.squeeze(0) for part in after)

    def read(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read sequences of different lengths (N,) from both ends, starting from zeros.

        Returns the outputs (2, N, T, |G| H) of both directions for features (N, T, |G| H), and
        their last states (s, 2, N, |G| H), where s is 2 for an LSTM and 1 for the others.
        """
        packed = pack_padded_sequence(features, lengths.cpu(), True, enforce_sorted=False)
        zeros = features.new_zeros(2, len(features), self.width)
        before = (zeros, zeros) if self.cell == "lstm" else zeros
        data, *after = self._run(
            packed.data, packed.batch_sizes, before, self._weights(), True, 1, 0.0, False, True
        )
        outputs, _ = pad_packed_sequence(
            PackedSequence(data, *packed[1:]), True, total_length=features.shape[1]
        )
        both = torch.stack(outputs.chunk(2, dim=-1))
        return both, torch.stack([part[:, packed.unsorted_indices] for part in after])

    def _weights(self) -> list[Tensor]:
        """In torch's order: in each direction of the input, of the state, then their biases."""
        layers = [cast(nn.Linear, layer) for layer in self.linear]
        pairs = zip(layers[::2], layers[1::2], strict=True)
        return [t for a, b in pairs for t in (a.weight, b.weight, a.bias, b.bias)]


class Encoded(NamedTuple):
    """What the decoder sees of commands."""

    states: Tensor  # of each word, (N, L, width)
    words: Tensor  # which of them are words, (N, L), booleans
    state: State  # the decoder's first


class Encoder(nn.Module):
    """Reads commands from both ends."""

    def __init__(self, over: WordSymmetry, cell: str, hidden: int, dropout: float) -> None:
        super().__init__()
        self.order = len(over.group)
        self.embedding = GroupEmbedding(over.source, hidden)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = GroupRecurrent(over.group, cell, hidden, bidirectional=True)
        self.join_states = group_linear(over.group, 2 * hidden, hidden)
        self.join_last = group_linear(over.group, 2 * hidden, hidden)

    def forward(self, commands: Tensor) -> Encoded:
        """Read ids (N, L), filled up with PAD."""
        words = commands != PAD
        states, last = self.recurrent.read(self.dropout(self.embedding(commands)), words.sum(1))
        state = tuple(self.join_last(_beside(part, self.order)) for part in last)
        return Encoded(self.join_states(_beside(states, self.order)), words, state)


class Decoder(nn.Module):
    """Writes outputs: the next token's scores, given those before it."""

    def __init__(self, over: WordSymmetry, cell: str, hidden: int, dropout: float) -> None:
        super().__init__()
        self.order = len(over.group)
        self.embedding = GroupEmbedding(over.target, hidden)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = GroupRecurrent(over.group, cell, hidden)
        self.join = group_linear(over.group, 2 * hidden, hidden)
        self.classify = group_classifier(over.next_token(), hidden)

    def forward(
        self, encoded: Encoded, before: Tensor, state: State
    ) -> tuple[Tensor, Tensor, State]:
        """Log-probabilities (N, T, 7) of the next tokens, features (N, T, width), and the state.

        They are given the tokens before each, (N, T), and the state before the first.
        """
        outputs, state = self.recurrent(self.dropout(self.embedding(before)), state)
        scores = outputs @ encoded.states.transpose(1, 2)
        attention = scores.masked_fill(~encoded.words.unsqueeze(1), -torch.inf).softmax(-1)
        both = torch.stack([outputs, attention @ encoded.states])
        features = self.join(_beside(both, self.order)).tanh()
        return self.classify(features).log_softmax(-1), features, state


def _beside(both: Tensor, order: int) -> Tensor:
    """Two features (2, ..., |G| H) as one, (..., |G| 2H)."""
    return both.unflatten(-1, (order, -1)).movedim(0, -2).flatten(-3)


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
        words = vocabulary.symmetry(over)
        self.width = len(words.group) * hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(words, cell, hidden, dropout)
            self.decoder = Decoder(words, cell, hidden, dropout)

    def forward(self, commands: Tensor, before: Tensor) -> Tensor:
        """Log-probabilities (N, T, 7) of the next tokens.

        For ids of commands (N, L), and of the tokens before each (N, T), of which START is first.
        """
        encoded = self.encoder(commands)
        return self.decoder(encoded, before, encoded.state)[0]

    @parametrize.cached()
    def write(self, commands: Tensor, limit: int = vocabulary.LONGEST_OUTPUT) -> Tensor:
        """Log-probabilities (N, T, 7) of each next token, given its own most likely ones.

        It stops after ``limit`` tokens, or when the outputs of all commands (N, L) have ended.
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
        """Write arguments, parameters and further plain values as one safetensors file."""
        known = {"arguments": self.arguments, "words": WORDS, "actions": ACTIONS}
        write_tensors(path, self.state_dict(), known | header)

    @classmethod
    def load(cls, path: str | Path, **expected: Any) -> Seq2Seq:
        """The network that `save` wrote, with the expected arguments and values, in ``eval`` mode.

        Raises:
            FileNotFoundError: If there is no such file.
            FileExistsError: If it is no network of SCAN's words, or not as expected.
            ValueError: If it is damaged.
        """
        tensors, header = read_tensors(path)
        arguments = header.get("arguments", {})
        check_same(path, header | arguments, {"words": WORDS, "actions": ACTIONS, **expected})
        network = cls(**arguments)
        network.load_state_dict(tensors)
        return network.eval()
