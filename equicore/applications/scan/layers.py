"""Layers whose features are functions on a group: equivariant by their weights.

A feature (N, |G|, H) holds a vector for each element, and an element k acts on it by
(k f)(g) = f(k^-1 g). Over the trivial group these are the ordinary layers, so one network is both
the plain one and the permutation-equivariant one (Gordon et al., *Permutation Equivariant Models
for Compositional Generalization in Language*, ICLR 2020). Features pass between layers with their
last two axes as one, (..., |G| H).

Weights are tied by torch's parametrizations; inside ``parametrize.cached()`` that is done once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from equicore.groups import Group
from equicore.representations import Tokens

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
        self.table = nn.Embedding(words.vocabulary.size, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Features (..., |G| H) of ids of shape (...)."""
        moved = self.words.align(ids.expand(len(self.words.group), *ids.shape))
        return self.table(moved).movedim(0, -2).flatten(-2)


def group_linear(group: Group, size_in: int, size_out: int, gates: int = 1) -> nn.Linear:
    """A group convolution: (W f)(g) = sum over h of W[g^-1 h] f(h), and a bias.

    Maps features (..., |G| size_in) to (..., gates |G| size_out).
    """
    order = len(group)
    layer = nn.Linear(order * size_in, gates * order * size_out)
    parametrize.register_parametrization(layer, "weight", _Convolution(group, size_in, gates))
    parametrize.register_parametrization(layer, "bias", _Repeated(order, gates))
    return layer


class GroupRecurrent(nn.Module):
    """A recurrent layer whose matrices are group convolutions.

    Args:
        group: The group.
        cell: ``"rnn"`` (tanh), ``"gru"`` or ``"lstm"``.
        hidden: Size of its features, for each element.
        bidirectional: Whether it also reads backwards.

    Attributes:
        parts: How many tensors its state has.

    Raises:
        ValueError: If there is no such cell.
    """

    def __init__(self, group: Group, cell: str, hidden: int, bidirectional: bool = False) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell is one of {', '.join(CELLS)}; got {cell!r}")
        self._run, gates = CELLS[cell]
        self.parts = 2 if cell == "lstm" else 1
        self.width = len(group) * hidden
        self.linear = nn.ModuleList(  # of the input and of the state, in each direction
            group_linear(group, hidden, hidden, gates) for _ in range(4 if bidirectional else 2)
        )

    def forward(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs (N, T, |G| H), and the state afterwards.

        Args:
            features: Shape (N, T, |G| H).
            state: Before the first.
        """
        first = tuple(part.unsqueeze(0) for part in state)
        before = first if self.parts == 2 else first[0]
        outputs, *after = self._run(
            features, before, self._weights(), True, 1, 0.0, self.training, False, True
        )
        return outputs, tuple(part.squeeze(0) for part in after)

    def read(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read sequences of different lengths from both ends, starting from zeros.

        Args:
            features: Shape (N, T, |G| H), of which ``lengths`` count.
            lengths: Shape (N,).

        Returns:
            Outputs (2, N, T, |G| H) of both directions, and their last states (s, 2, N, |G| H),
            where s is 2 for an LSTM and 1 for the others.
        """
        packed = pack_padded_sequence(features, lengths.cpu(), True, enforce_sorted=False)
        zeros = features.new_zeros(2, len(features), self.width)
        before = (zeros, zeros) if self.parts == 2 else zeros
        data, *after = self._run(
            packed.data, packed.batch_sizes, before, self._weights(), True, 1, 0.0, False, True
        )
        outputs, _ = pad_packed_sequence(
            PackedSequence(
                data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
            ),
            batch_first=True,
            total_length=features.shape[1],
        )
        both = torch.stack(outputs.chunk(2, dim=-1))
        return both, torch.stack([part[:, packed.unsorted_indices] for part in after])

    def _weights(self) -> list[Tensor]:
        """In torch's order: in each direction of the input, of the state, then their biases."""
        layers = [cast(nn.Linear, layer) for layer in self.linear]
        return [
            tensor
            for pair in zip(layers[::2], layers[1::2], strict=True)
            for tensor in (*(layer.weight for layer in pair), *(layer.bias for layer in pair))
        ]


def group_classifier(words: Tokens, hidden: int) -> nn.Linear:
    """Scores of words, summed over the group: score(y) = sum over g of C[g^-1 y] f(g), and a bias.

    The bias is the same for the words of an orbit, without which it is not equivariant.

    Args:
        words: How the group acts on the words, END included, START not.
        hidden: Size of the features, for each element.
    """
    permutations = words.vocabulary.permutations
    layer = nn.Linear(len(permutations) * hidden, permutations.shape[1])
    parametrize.register_parametrization(layer, "weight", _Moved(words.vocabulary.inverses))
    parametrize.register_parametrization(layer, "bias", _OfOrbits(permutations.amin(0)))
    return layer


class _Convolution(nn.Module):
    """The matrix of a group convolution, for each of some gates, from its kernel."""

    places: Tensor

    def __init__(self, group: Group, size_in: int, gates: int) -> None:
        super().__init__()
        places = torch.from_numpy(group.table[group.inverses].copy())  # (g, h) -> g^-1 h
        self.register_buffer("places", places, persistent=False)
        self.size_in, self.gates = size_in, gates

    def forward(self, kernel: Tensor) -> Tensor:
        """Shape (gates |G| out, |G| in) of a kernel (gates, out, |G|, in)."""
        return kernel[:, :, self.places].transpose(1, 2).flatten(3).flatten(0, 2)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        """The rows of the identity."""
        order = len(self.places)
        return matrix.view(self.gates, order, -1, order, self.size_in)[:, 0].contiguous()


class _Repeated(nn.Module):
    """A bias (gates |G| out) that is the same for all elements."""

    def __init__(self, order: int, gates: int) -> None:
        super().__init__()
        self.order, self.gates = order, gates

    def forward(self, bias: Tensor) -> Tensor:
        """Of (gates, 1, out)."""
        return bias.expand(-1, self.order, -1).flatten()

    def right_inverse(self, bias: Tensor) -> Tensor:
        """That of the identity."""
        return bias.view(self.gates, self.order, -1)[:, :1].contiguous()


class _Moved(nn.Module):
    """The matrix (words, |G| H) of a classifier, from a table (words, H)."""

    words: Tensor

    def __init__(self, inverses: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", inverses.clone(), persistent=False)

    def forward(self, table: Tensor) -> Tensor:
        """Row g^-1 y at the place (y, g)."""
        return table[self.words].movedim(0, 1).flatten(1)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        """The columns of the identity."""
        return matrix.unflatten(1, (len(self.words), -1))[:, 0].contiguous()


class _OfOrbits(nn.Module):
    """A bias that is the same for the words of an orbit."""

    orbits: Tensor

    def __init__(self, orbits: Tensor) -> None:
        super().__init__()
        self.register_buffer("orbits", orbits, persistent=False)

    def forward(self, bias: Tensor) -> Tensor:
        """That of each word's orbit's first."""
        return bias[self.orbits]

    def right_inverse(self, bias: Tensor) -> Tensor:
        """As it is."""
        return bias
