"""Canonical-lambda-equitune: equivariance under continuous groups.

A canonicalizer h maps each input to an element of the group, h(g x) = g h(x). The model then only
ever sees the canonical form h(x)^-1 x, and its output is carried back by h(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from equicore.batch import check_batch
from equicore.calls import Binding, Model, unbound
from equicore.reduce import Mean, Reducer, WeightedMean
from equicore.representations.base import Action, Elements
from equicore.symmetrize import Symmetrized

Canonicalizer = nn.Module | Callable[[Any], Elements]


class Canonicalized(nn.Module):
    """A model that only ever sees canonical forms: h(x) . f(h(x)^-1 . x).

    Exactly as equivariant as the canonicalizer, h(g x) = g h(x).

    Args:
        model: The model f.
        canonicalizer: Maps a batch (B, ...) to B elements of the group.
        input_action: How the group acts on the model's input.
        output_action: How the group acts on the model's output.
    """

    def __init__(
        self,
        model: Model,
        canonicalizer: Canonicalizer,
        input_action: Action,
        output_action: Action,
    ) -> None:
        super().__init__()
        for action in (input_action, output_action):
            if not isinstance(action, Action) or action.group is not None:
                raise TypeError(
                    "Canonicalized takes actions of a continuous group, such as Vectors() or "
                    f"Trivial(); got {action!r}"
                )
        self._binding = Binding(model, input_action.names)
        self.model, self._rebound = unbound(model)
        self.canonicalizer = canonicalizer
        self.input_action = input_action
        self.output_action = output_action

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """The equivariant output for a batch (B, ...); arguments are those of `Symmetrized`."""
        x, run, _ = self._binding(self._rebound(self.model), x, args, kwargs)
        check_batch(x)
        h = self.canonicalizer(x)
        output = self.output_action.select(run(self.input_action.act_each(h.inverse(), x)))
        return self.output_action.act_each(h, output)


def canonical_lambda_equitune(
    model: Model,
    canonicalizer: Canonicalizer,
    input_action: Action,
    output_action: Action,
    elements: Elements,
    weight: nn.Module | None = None,
    features: str | None = None,
    *,
    chunk: int | None = None,
    samples: int | None = None,
    top_k: int | None = None,
) -> Canonicalized:
    """Sum over elements g of lambda(g h^-1 x) h g^-1 f(g h^-1 x), over the sum of lambda.

    Basu et al., NeurIPS 2023, Definition 1, with h = h(x). Equivariant whatever the elements are.
    With the sign frames of principal axes and equal weights it is frame averaging (Puny et al.,
    ICLR 2022). Other arguments are those of `Symmetrized`.

    Args:
        model: The model f.
        canonicalizer: Maps a batch (B, ...) to B elements of the group, h(g x) = g h(x), see
            `equicore.continuous.canonicalizers`.
        input_action: How the group acts on the model's input.
        output_action: How the group acts on the model's output; ``Trivial()`` for invariants.
        elements: Finitely many, for instance `rotations_2d` or `sign_frames`.
        weight: Network that maps inputs (N, ...) to log-weights (N,); equal weights when omitted.
        features: As in `lambda_equitune`.

    Raises:
        ValueError: If there are features but no weight network to see them.

    >>> import torch
    >>> from equicore.continuous import VectorSum, Vectors, random_motions, rotations_2d
    >>> f = nn.Linear(2, 2)
    >>> vectors = Vectors()
    >>> equivariant = canonical_lambda_equitune(f, VectorSum(), vectors, vectors, rotations_2d(4))
    >>> x, turn = torch.randn(5, 3, 2), random_motions(2, 2, seed=0)[[1] * 5]
    >>> turned = equivariant(vectors.act_each(turn, x))
    >>> torch.allclose(turned, vectors.act_each(turn, equivariant(x)), atol=1e-5)
    True
    """
    if features is not None and weight is None:
        raise ValueError("features are for a weight network; none is given")
    reduce: Reducer = Mean() if weight is None else WeightedMean(weight, features)
    options: dict[str, Any] = {"chunk": chunk, "samples": samples, "top_k": top_k}
    inner = Symmetrized(model, input_action, output_action, reduce, elements=elements, **options)
    return Canonicalized(inner, canonicalizer, input_action, output_action)
