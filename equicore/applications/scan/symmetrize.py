"""The network made equivariant under exchanges of words, in two ways.

- `by_branch`: the network writes an output for each g x on its own, and the outputs, words put
  back, are reduced to one (Basu et al., NeurIPS 2023, section 5.2).
- `InStep`: the network writes for all g x at once, a token at a time; the distributions of the
  next token are reduced to one, from which all go on.

Probabilities are exactly equivariant. So are the most likely words, but for ties: where g leaves a
command as it is, words that g exchanges are equally likely, and no choice of one is equivariant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equicore.applications.scan.model import Encoded, Seq2Seq
from equicore.applications.scan.vocabulary import (
    END,
    LONGEST_OUTPUT,
    START,
    WordSymmetry,
    real_tokens,
)
from equicore.reduce import Reducer
from equicore.representations import Tree, Trivial
from equicore.symmetrize import Symmetrized


class Writer(nn.Module):
    """The network as a function of commands: outputs token by token."""

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, commands: Tensor) -> dict[str, Tensor]:
        """Outputs for commands (N, L), as a dict.

        - ``probabilities`` (N, T, 7) of the next token, each given the most likely ones before it;
          after END those of END alone;
        - ``log_probabilities`` (N, T, 7), which after END are 0, so that other branches go
          on alone, but for a hair that lets END win where all have ended;
        - ``real`` (N, T): 1 for tokens up to END, that included.
        """
        scores = self.network.write(commands)
        real = real_tokens(scores.argmax(-1))
        end = nn.functional.one_hot(torch.full_like(real, END, dtype=torch.long), END + 1)
        end = end.to(scores.dtype)
        written = real.unsqueeze(-1)
        return {
            "probabilities": scores.exp().where(written, end),
            "log_probabilities": scores.where(written, (end - 1) * 1e-6),
            "real": real.to(scores.dtype),
        }


def by_branch(network: Seq2Seq | Writer, over: WordSymmetry, reduce: Reducer) -> Symmetrized:
    """The network made equivariant; each branch writes on its own.

    Args:
        network: Trained; or a `Writer` of it.
        over: The exchanges of words.
        reduce: `Mean`, `Best` of a score of this module, or `WeightedMean` with
            ``features="network.encoder"``.

    Returns:
        Maps commands (B, L) to the output of `Writer`.
    """
    writer = network if isinstance(network, Writer) else Writer(network)
    return Symmetrized(writer, over.source, written_as(over), reduce)


def written_as(over: WordSymmetry) -> Tree:
    """How the group acts on the output of `Writer`."""
    token = over.next_token()
    return Tree({"probabilities": token, "log_probabilities": token, "real": Trivial(over.group)})


def mean_max_probability(written: dict[str, Tensor]) -> Tensor:
    """Mean over the real tokens of the largest probability."""
    real = written["real"]
    return (written["probabilities"].amax(-1) * real).sum(-1) / real.sum(-1)


def padded_max_probability(written: dict[str, Tensor]) -> Tensor:
    """The published code's score: the mean of the largest probability over 50 rows.

    Those after END are uniform over its eight words there, which favours long outputs.
    """
    real = written["real"]
    sure = (written["probabilities"].amax(-1) * real).sum(-1)
    return (sure + (LONGEST_OUTPUT - real.sum(-1)) / 8) / LONGEST_OUTPUT


def log_probability(written: dict[str, Tensor]) -> Tensor:
    """Log-probability of the whole output."""
    return (written["probabilities"].amax(-1).log() * written["real"]).sum(-1)


def negative_entropy(written: dict[str, Tensor]) -> Tensor:
    """Minus the mean entropy, in nats, over the real tokens."""
    real = written["real"]
    return (torch.special.entr(written["probabilities"]).sum(-1) * -real).sum(-1) / real.sum(-1)


class InStep(nn.Module):
    """The network made equivariant; all branches write in step.

    The next token's probabilities are those that `Symmetrized` has for the model that maps
    commands and the tokens so far to the next; here the states of the branches are kept, so that
    nothing is computed again.

    Args:
        network: Trained.
        over: The exchanges of words.
        reduce: Of probabilities. What its scores see of each branch is a dict: ``last``, the
            encoder's last state (n, B, width), ``features`` of the next token (n, B, width), and
            ``so_far``, the log-probability of the tokens so far (n, B).
    """

    def __init__(self, network: Seq2Seq, over: WordSymmetry, reduce: Reducer) -> None:
        super().__init__()
        self.network = network
        self.over = over
        self.rep = over.next_token()
        self.reduce = reduce

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``probabilities`` (B, T, 7) of the next tokens, and ``log_probabilities``, their logs.

        Args:
            batch: ``commands`` (B, L), and ``before``, the tokens before each (B, T), START first.
        """
        commands, before = batch["commands"], batch["before"]
        order, (size, length) = len(self.over.group), before.shape
        encoded = self._encode(commands)
        tokens = self.over.target.orbit(before)
        scores, features, _ = self.network.decoder(encoded, tokens.flatten(0, 1), encoded.state)
        scores, features = (t.unflatten(0, (order, size)) for t in (scores, features))
        own = scores[:, :, :-1].gather(-1, tokens[:, :, 1:, None].clamp(max=END)).squeeze(-1)
        so_far = nn.functional.pad(own.cumsum(-1), (1, 0))
        last = encoded.state[0].view(order, size, 1, -1).expand(-1, -1, length, -1)
        seen = {"last": last, "features": features, "so_far": so_far}
        flat = {name: t.flatten(1, 2) for name, t in seen.items()}
        reduced = self._reduced(scores.flatten(1, 2), flat).unflatten(0, (size, length))
        return {
            "probabilities": reduced,
            "log_probabilities": reduced.clamp(min=1e-30).log(),
        }

    @parametrize.cached()
    def write(self, commands: Tensor, limit: int = LONGEST_OUTPUT) -> Tensor:
        """The most likely tokens (B, T), each given those before it.

        Args:
            commands: Ids, (B, L).
            limit: T at most; it stops when all outputs have ended.
        """
        order, size = len(self.over.group), len(commands)
        encoded = self._encode(commands)
        state = encoded.state
        last = state[0].unflatten(0, (order, size))
        so_far = last.new_zeros(order, size)
        token = torch.full_like(commands[:, 0], START)
        ended = torch.zeros_like(token, dtype=torch.bool)
        written = []
        for _ in range(limit):
            own = self.over.target.orbit(token)
            scores, features, state = self.network.decoder(
                encoded, own.flatten().unsqueeze(1), state
            )
            scores, features = (t.view(order, size, -1) for t in (scores, features))
            seen = {"last": last, "features": features, "so_far": so_far}
            token = self._reduced(scores, seen).argmax(-1)
            written.append(token)
            ended |= token == END
            if ended.all():
                break
            own = self.over.target.orbit(token)
            so_far = so_far + scores.gather(-1, own.unsqueeze(-1)).squeeze(-1)
        return torch.stack(written, dim=1)

    def _encode(self, commands: Tensor) -> Encoded:
        return self.network.encoder(self.over.source.orbit(commands).flatten(0, 1))

    def _reduced(self, scores: Tensor, seen: dict[str, Tensor]) -> Tensor:
        raw = scores.exp()
        return self.reduce.whole(self.rep.align(raw), self.reduce.scores(seen, raw))
