"""Reducers: how the |G| aligned outputs become one.

A reducer is called with the aligned outputs g^-1 f(g x), the orbit g x and the raw outputs
f(g x), each of shape (|G|, B, ...), and returns one output of shape (B, ...).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Mean(nn.Module):
    """The mean over the group: equitune (Basu et al., AAAI 2023, eq. 2)."""

    def forward(self, stack: Tensor, orbit: Tensor, raw: Tensor) -> Tensor:
        """Average over the first axis."""
        return stack.mean(0)


class Best(nn.Module):
    """The output of the element with the best score: equizero (Basu et al., NeurIPS 2023, eq. 3).

    Where several elements share the best score the result is the mean of theirs. Ties are no
    accident: they are what happens at an input that some g leaves as it is, and picking one of
    them would break equivariance there. Scores count as equal when they differ by no more than
    ``tolerance * (1 + magnitude)``.

    A NaN among the scores of a sample makes its output NaN.

    Args:
        score: Maps raw outputs (|G|, B, ...) to scores (|G|, B), higher is better.
        tolerance: Difference that is still a tie; 32 machine epsilons when omitted.
    """

    zero: Tensor

    def __init__(self, score: Callable[[Tensor], Tensor], tolerance: float | None = None) -> None:
        super().__init__()
        self.score = score
        self.tolerance = tolerance
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, stack: Tensor, orbit: Tensor, raw: Tensor) -> Tensor:
        """Average over the best elements of each sample."""
        scores = self.score(raw)
        if scores.shape != raw.shape[:2]:
            raise ValueError(
                f"the score returned shape {tuple(scores.shape)}, "
                f"expected one number for each element and sample, {tuple(raw.shape[:2])}"
            )
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 32 * torch.finfo(scores.dtype).eps
        scores = scores.detach()
        best = scores.amax(0)
        # the second comparison is for infinite scores, whose threshold is NaN
        tied = (scores >= best - tolerance * (best.abs() + 1)) | (scores == best)
        for _ in range(stack.ndim - 2):
            tied = tied.unsqueeze(-1)
        # outputs that lost may be infinite, so they are replaced, not multiplied by 0
        return stack.where(tied, self.zero).sum(0) / tied.sum(0, dtype=stack.dtype)


class Maximum(nn.Module):
    """The largest value of each entry over the group: equizero where only arg-max is used.

    The largest entry of the result stands where `Best` with the score `max_value` has it, so the
    arg-max is the same. It costs less, and as it treats all elements alike, ties need no care.
    """

    def forward(self, stack: Tensor, orbit: Tensor, raw: Tensor) -> Tensor:
        """Maximum over the first axis."""
        return stack.amax(0)


class WeightedMean(nn.Module):
    """The weighted mean over the group: lambda-equitune (Basu et al., NeurIPS 2023, eq. 4).

    The weights are the softmax over the orbit of log-weights, so they are positive and sum to 1;
    constant log-weights give equitune, one that dominates gives equizero.

    Args:
        weight: Maps inputs of shape (|G| B, ...) to log-weights of shape (|G| B,) or (|G| B, 1).
    """

    def __init__(self, weight: nn.Module) -> None:
        super().__init__()
        self.weight = weight

    def weights(self, orbit: Tensor) -> Tensor:
        """The weights of shape (|G|, B) for an orbit of shape (|G|, B, ...)."""
        order, batch = orbit.shape[:2]
        log_weights = self.weight(orbit.flatten(0, 1))
        if log_weights.shape not in {(order * batch,), (order * batch, 1)}:
            raise ValueError(
                f"the weight network returned shape {tuple(log_weights.shape)} for "
                f"{order * batch} inputs, expected one log-weight each: ({order * batch},)"
            )
        return log_weights.view(order, batch).softmax(0)

    def forward(self, stack: Tensor, orbit: Tensor, raw: Tensor) -> Tensor:
        """Average over the first axis with the network's weights."""
        weights = self.weights(orbit)
        return (weights.to(stack.dtype).view(weights.shape + (1,) * (stack.ndim - 2)) * stack).sum(
            0
        )
