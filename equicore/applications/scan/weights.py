"""Weights of lambda-equitune, learned on the training split with the network frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equicore.applications.scan.data import Pair
from equicore.applications.scan.model import Encoded, Seq2Seq
from equicore.applications.scan.symmetrize import InStep
from equicore.applications.scan.training import Batches, forced, written_loss
from equicore.applications.scan.vocabulary import WordSymmetry, real_tokens, shifted
from equicore.reduce import WeightedMean
from equicore.representations import Tree, Trivial
from equicore.symmetrize import Symmetrized
from equicore.training import fit
from equicore.weights import MLPWeight

HIDDEN = (32,)


class LastState(nn.Module):
    """Log-weights by the encoder's last state: one for each command."""

    def __init__(self, network: Seq2Seq, seed: int = 0) -> None:
        super().__init__()
        self.network = MLPWeight((network.width,), HIDDEN, seed=seed)

    def forward(self, seen: Any) -> Tensor:
        """Shape (N,), for what the encoder returns or what `InStep` shows."""
        last = seen.state[0] if isinstance(seen, Encoded) else seen["last"]
        return self.network(last)


class NextToken(nn.Module):
    """Log-weights by the decoder's features: one for each token."""

    def __init__(self, network: Seq2Seq, seed: int = 0) -> None:
        super().__init__()
        self.network = MLPWeight((network.width,), HIDDEN, seed=seed)

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        """Shape (N,)."""
        return self.network(seen["features"])


class Posterior(nn.Module):
    """Log-weights that a mixture of the branches' outputs has after some of its tokens.

    Branch g has a weight before the first token, and times the probability that it gives to the
    tokens so far after them: Bayes' rule.

    Args:
        prior: Log-weights before the first token; equal ones when omitted.
    """

    def __init__(self, prior: nn.Module | None = None) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        """Shape (N,)."""
        return seen["so_far"] if self.prior is None else seen["so_far"] + self.prior(seen)


class Likelihood(nn.Module):
    """The network as a function of commands and actions: the probability of the actions."""

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Probabilities (N,) in float64, which does not lose the smallest."""
        actions = batch["actions"]
        scores = self.network(batch["commands"], shifted(actions))
        own = scores.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return (own * real_tokens(actions)).sum(-1).double().exp()


def fit_per_command(
    network: Seq2Seq,
    over: WordSymmetry,
    pairs: Sequence[Pair],
    *,
    steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
) -> LastState:
    """Weights of each command's branches that make the true outputs likely.

    Minimises -log of the sum over g of lambda(g x) p(g y | g x).
    """
    weight = LastState(network, seed)
    reduce = WeightedMean(weight, features="network.encoder")
    inputs = Tree({"commands": over.source, "actions": over.target})
    mixture = Symmetrized(Likelihood(network), inputs, Trivial(over.group), reduce)
    batches = [
        ({"commands": commands, "actions": actions}, actions)
        for commands, actions in Batches(pairs, batch_size).first(steps, seed)
    ]

    def loss(likelihood: Tensor, _: Tensor) -> Tensor:
        return -likelihood.clamp(min=1e-300).log().mean()

    _fit(mixture, weight, batches, loss, steps, learning_rate, progress)
    return weight


def fit_per_token(
    network: Seq2Seq,
    over: WordSymmetry,
    pairs: Sequence[Pair],
    *,
    steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
) -> NextToken:
    """Weights of each token's branches that make the true next tokens likely."""
    weight = NextToken(network, seed)
    in_step = InStep(network, over, WeightedMean(weight))
    batches = forced(Batches(pairs, batch_size).first(steps, seed))
    _fit(in_step, weight, batches, written_loss, steps, learning_rate, progress)
    return weight


def _fit(
    model: nn.Module,
    weight: nn.Module,
    batches: Iterable[tuple[dict[str, Tensor], Tensor]],
    loss: Callable[[Any, Tensor], Tensor],
    steps: int,
    learning_rate: float,
    progress: bool,
) -> None:
    optimizer = torch.optim.Adam(weight.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(model, batches, loss, optimizer, steps=steps, schedule=schedule, progress=progress)
    weight.eval()
