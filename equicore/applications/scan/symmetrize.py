"""The network made equivariant under exchanges of words, in two ways.

- `by_branch`: the network writes an output for each g x on its own, and the outputs, words put
  back, are reduced to one (Basu et al., NeurIPS 2023, section 5.2).
- `InStep`: the network writes for all g x at once, a token at a time; the distributions of the
  next token are reduced to one, from which all go on.

Probabilities are exactly equivariant. So are the most likely words, except for ties: where g leaves
a command as it is, words that g exchanges are equally likely, and no choice of one is equivariant.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equicore.applications.scan.data import Pair
from equicore.applications.scan.model import Encoded, Seq2Seq
from equicore.applications.scan.vocabulary import (
    END,
    LONGEST_OUTPUT,
    START,
    Batches,
    WordSymmetry,
    real_tokens,
    token_loss,
)
from equicore.decoding import PerToken, write_in_step
from equicore.finetuning import fit
from equicore.reduce import Reducer, WeightedMean
from equicore.representations import Tree, Trivial
from equicore.symmetrize import Symmetrized
from equicore.weights import MLPWeight

Written = dict[str, Tensor]
"""Of each branch, (n, B, ...) or (N, ...): see `Writer` and `Forced`."""


class Writer(nn.Module):
    """The network as a function of commands (N, L), which writes token by token.

    It returns ``probabilities`` (N, T, 7) of the next token, each given the most likely ones before
    it, after END those of END alone; ``log_probabilities`` (N, T, 7), which after END are 0, so
    that other branches go on alone, with a small bias so that END wins where all have ended; and
    ``real`` (N, T), 1 for tokens up to END, that included.
    """

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, commands: Tensor) -> Written:
        """Write."""
        scores = self.network.write(commands)
        real = real_tokens(scores.argmax(-1))
        end = nn.functional.one_hot(torch.full_like(real, END, dtype=torch.long), END + 1)
        end, written = end.to(scores.dtype), real.unsqueeze(-1)
        return {
            "probabilities": scores.exp().where(written, end),
            "log_probabilities": scores.where(written, (end - 1) * 1e-6),
            "real": real.to(scores.dtype),
        }


class Forced(nn.Module):
    """The network as a function of ``commands`` (N, L) and the tokens ``before`` each, (N, T).

    It returns ``probabilities`` and ``log_probabilities`` (N, T, 7) of the next tokens; ``real``
    (N, T), 1 for tokens up to the first END; ``so_far`` (N, T), the log-probability of the tokens
    before; ``features`` of the decoder and ``last``, the encoder's last state, (N, T, width); and
    ``likelihood`` (N,) of all tokens and END, in float64, which does not lose the smallest.
    """

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> Written:
        """One pass over the true tokens."""
        before = batch["before"]
        encoded = self.network.encoder(batch["commands"])
        scores, features, _ = self.network.decoder(encoded, before, encoded.state)
        actions = torch.cat([before[:, 1:], torch.full_like(before[:, :1], END)], dim=1)
        own = scores.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return {
            "probabilities": scores.exp(),
            "log_probabilities": scores,
            "real": (before != END).to(scores.dtype),
            "so_far": nn.functional.pad(own[:, :-1].cumsum(-1), (1, 0)),
            "features": features,
            "last": encoded.state[0].unsqueeze(1).expand_as(features),
            "likelihood": (own * (before != END)).sum(-1).double().exp(),
        }


def by_branch(network: Seq2Seq | Writer, over: WordSymmetry, reduce: Reducer) -> Symmetrized:
    """The network, or a `Writer` of it, made equivariant; each branch writes on its own.

    It maps commands (B, L) to the output of `Writer`. ``reduce`` is `Mean`, `Best` of a score of
    this module, or `WeightedMean` with ``features="network.encoder"``.
    """
    writer = network if isinstance(network, Writer) else Writer(network)
    return Symmetrized(writer, over.source, _outputs(over), reduce)


def forced(network: Seq2Seq, over: WordSymmetry, reduce: Reducer, *invariant: str) -> Symmetrized:
    """The network made equivariant, as a function of commands and the tokens before each.

    ``reduce`` is of what `Forced` returns: the first three entries, and those named here, which no
    exchange of words changes.
    """
    inputs = Tree({"commands": over.source, "before": over.target})
    return Symmetrized(Forced(network), inputs, _outputs(over, *invariant), reduce)


def _outputs(over: WordSymmetry, *invariant: str) -> Tree:
    token, same = over.next_token(), dict.fromkeys(("real", *invariant), Trivial(over.group))
    return Tree({"probabilities": token, "log_probabilities": token, **same})


class InStep(nn.Module):
    """The network made equivariant; all branches write in step.

    Args:
        network: Trained.
        over: The exchanges of words.
        reduce: Of the next token's probabilities. What its scores see of each branch is a dict:
            ``probabilities`` (n, B, 7), ``so_far`` (n, B), ``features`` and ``last``, each
            (n, B, width); see `Forced`.

    Raises:
        ValueError: If its scores look at inputs; a `WeightedMean` has ``of_outputs=True``.
    """

    def __init__(self, network: Seq2Seq, over: WordSymmetry, reduce: Reducer) -> None:
        super().__init__()
        self.network = network
        self.over = over
        self.reduce = reduce
        self.seen = ("features", "last") if reduce.needs else ()
        self.forced = forced(network, over, PerToken(reduce), "so_far", *self.seen)

    def forward(self, batch: dict[str, Tensor]) -> Written:
        """``probabilities`` (B, T, 7) of the next tokens, and ``log_probabilities``, their logs.

        For ``commands`` (B, L), and the tokens ``before`` each, (B, T), START first.
        """
        reduced = self.forced(batch)["probabilities"]
        return {"probabilities": reduced, "log_probabilities": reduced.clamp(min=1e-30).log()}

    @parametrize.cached()
    def write(self, commands: Tensor, limit: int = LONGEST_OUTPUT) -> Tensor:
        """The most likely tokens (B, T), each given those before it, for ids of commands (B, L).

        It stops after ``limit`` tokens, or when all outputs have ended.
        """
        encoded = self.network.encoder(self.over.source.orbit(commands).flatten(0, 1))

        def step(ids: Tensor, state: Any) -> tuple[Written, Any]:
            scores, features, state = self.network.decoder(encoded, ids, state)
            seen = {"features": features[:, -1], "last": encoded.state[0]}
            return {"log_probabilities": scores[:, -1], **seen}, state

        return write_in_step(
            step,
            self.over.target,
            self.reduce,
            torch.full_like(commands[:, :1], START),
            encoded.state,
            limit=limit,
            end=END,
            next_token=self.over.next_token(),
            seen=self.seen,
        )


def mean_max_probability(written: Written) -> Tensor:
    """Mean over the real tokens of the largest probability."""
    return _sum(written, written["probabilities"].amax(-1)) / written["real"].sum(-1)


def padded_max_probability(written: Written) -> Tensor:
    """The published code's score: the mean of the largest probability over 50 rows.

    Those after END are uniform over its eight words there, which favours long outputs.
    """
    sure = _sum(written, written["probabilities"].amax(-1))
    return (sure + (LONGEST_OUTPUT - written["real"].sum(-1)) / 8) / LONGEST_OUTPUT


def log_probability(written: Written) -> Tensor:
    """Log-probability of the whole output."""
    return _sum(written, written["probabilities"].amax(-1).log())


def negative_entropy(written: Written) -> Tensor:
    """Minus the mean entropy, in nats, over the real tokens."""
    entropy = torch.special.entr(written["probabilities"]).sum(-1)
    return -_sum(written, entropy) / written["real"].sum(-1)


def _sum(written: Written, numbers: Tensor) -> Tensor:
    """Over the real tokens."""
    return (numbers * written["real"]).sum(-1)


class BranchWeight(nn.Module):
    """Log-weights (N,) of lambda-equitune by an entry of what `InStep` shows of each branch.

    ``"last"`` gives one for each command, ``"features"`` for each token. ``seed`` is that of the
    initial parameters.
    """

    def __init__(self, network: Seq2Seq, entry: str, seed: int = 0) -> None:
        super().__init__()
        self.network = MLPWeight((network.width,), (32,), seed=seed)
        self.entry = entry

    def forward(self, seen: Any) -> Tensor:
        """Log-weights for that dict, or for what the encoder returns."""
        return self.network(seen.state[0] if isinstance(seen, Encoded) else seen[self.entry])


class Posterior(nn.Module):
    """Log-weights (N,) that a mixture of the branches' outputs has after some of its tokens.

    Branch g has a weight before the first token, of log-weights ``prior``, equal ones when omitted;
    after some tokens it is multiplied by the probability that g gives to them: Bayes' rule.
    """

    def __init__(self, prior: nn.Module | None = None) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, seen: Written) -> Tensor:
        """Log-weights for what `InStep` shows."""
        return seen["so_far"] if self.prior is None else seen["so_far"] + self.prior(seen)


def fit_weights(
    entry: Literal["last", "features"],
    network: Seq2Seq,
    over: WordSymmetry,
    pairs: Sequence[Pair],
    *,
    steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
) -> BranchWeight:
    """A `BranchWeight` that makes the true outputs of training pairs likely, the network frozen.

    For each command it minimises -log of the sum over g of lambda(g x) p(g y | g x), for each token
    the same of the token.
    """
    weight = BranchWeight(network, entry, seed)
    if entry == "last":
        mean, loss = WeightedMean(weight, "network.encoder"), _mixture_loss
        model: nn.Module = forced(network, over, mean, "likelihood")
    else:
        mean, loss = WeightedMean(weight, of_outputs=True), token_loss
        model = InStep(network, over, mean)
    optimizer = torch.optim.Adam(weight.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = list(Batches(pairs, batch_size).first(steps, seed))
    fit(model, batches, loss, optimizer, schedule=schedule, progress=progress)
    return weight.eval()


fit_per_command = functools.partial(fit_weights, "last")
"""Weights of each command's branches, see `fit_weights`."""
fit_per_token = functools.partial(fit_weights, "features")
"""Weights of each token's branches, see `fit_weights`."""


def _mixture_loss(written: Written, actions: Tensor) -> Tensor:
    return -written["likelihood"].clamp(min=1e-300).log().mean()
