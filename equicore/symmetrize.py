"""Symmetrization: make any model equivariant under a finite group.

A model f is equivariant when f(g x) = g f(x). Each method here computes, in one batched forward
of |G| B samples, the aligned outputs g^-1 f(g x) of the whole orbit, and reduces them to one:

- `equitune`: their mean (Basu et al., AAAI 2023, eq. 2);
- `equizero`: the one whose f(g x) scores best (Basu et al., NeurIPS 2023, eq. 3);
- `lambda_equitune`: their mean with learned weights (NeurIPS 2023, eq. 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from equicore.reduce import Best, Mean, WeightedMean
from equicore.representations import Representation
from equicore.scores import max_probability


class Symmetrized(nn.Module):
    """A model made equivariant: orbit -> model -> align -> reduce.

    Args:
        model: Maps a batch (B, ...) to a batch (B, ...), sample by sample.
        input_rep: How the group acts on the model's input.
        output_rep: How the group acts on the model's output.
        reduce: Reducer of the aligned outputs, see `equicore.reduce`.

    Raises:
        ValueError: If the representations are of different groups.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Tensor],
        input_rep: Representation,
        output_rep: Representation,
        reduce: nn.Module,
    ) -> None:
        super().__init__()
        if input_rep.group != output_rep.group:
            raise ValueError(
                "input and output representation must be of one group; got "
                f"{input_rep.group} and {output_rep.group}"
            )
        self.group = input_rep.group
        self.model = model
        self.input_rep = input_rep
        self.output_rep = output_rep
        self.reduce = reduce

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The equivariant output for a batch.

        Args:
            x: Batch of shape (B, ...), B >= 1.
            *args: Passed to the model as they are.
            **kwargs: Passed to the model as they are.

        Raises:
            ValueError: If the batch is empty, or the model returns another number of samples
                than it was given.
        """
        order, batch = len(self.group), x.shape[0]
        if batch == 0:
            raise ValueError(f"empty batch: got an input of shape {tuple(x.shape)}")
        orbit = self.input_rep.orbit(x)
        raw = self.model(orbit.flatten(0, 1), *args, **kwargs)
        if raw.shape[0] != order * batch:
            raise ValueError(
                f"the model was given {order} x {batch} = {order * batch} samples and returned "
                f"shape {tuple(raw.shape)}; its output must keep the batch on axis 0"
            )
        raw = raw.reshape(order, batch, *raw.shape[1:])
        return self.reduce(self.output_rep.align(raw), orbit, raw)


def equitune(
    model: nn.Module | Callable[..., Tensor], input_rep: Representation, output_rep: Representation
) -> Symmetrized:
    """The mean of g^-1 f(g x) over the group (Basu et al., AAAI 2023, eq. 2).

    Args:
        model: The model f.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.

    >>> import torch
    >>> from equicore import Trivial, image_rotations
    >>> f = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    >>> rotations = image_rotations()
    >>> invariant = equitune(f, rotations, Trivial(rotations.group))
    >>> x = torch.rand(5, 3, 3)
    >>> torch.allclose(invariant(x), invariant(x.rot90(1, (-2, -1))), atol=1e-6)
    True
    """
    return Symmetrized(model, input_rep, output_rep, Mean())


def equizero(
    model: nn.Module | Callable[..., Tensor],
    input_rep: Representation,
    output_rep: Representation,
    score: Callable[[Tensor], Tensor] = max_probability,
) -> Symmetrized:
    """The g^-1 f(g x) whose f(g x) scores best (Basu et al., NeurIPS 2023, eq. 3).

    Needs no training. Ties are averaged, see `equicore.reduce.Best`.

    Args:
        model: The model f.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        score: Proxy score, higher is better, see `equicore.scores`.
    """
    return Symmetrized(model, input_rep, output_rep, Best(score))


def lambda_equitune(
    model: nn.Module | Callable[..., Tensor],
    input_rep: Representation,
    output_rep: Representation,
    weight: nn.Module,
) -> Symmetrized:
    """The mean of g^-1 f(g x) with learned weights (Basu et al., NeurIPS 2023, eq. 4).

    Args:
        model: The model f.
        input_rep: How the group acts on its input.
        output_rep: How the group acts on its output.
        weight: Network that maps inputs (N, ...) to log-weights (N,); the weights are their
            softmax over the orbit. See `equicore.weights`.
    """
    return Symmetrized(model, input_rep, output_rep, WeightedMean(weight))
