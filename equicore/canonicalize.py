"""Canonical-lambda-equitune: equivariance under continuous groups.

A canonicalizer h maps each input to an element of the group, h(g x) = g h(x). The model then only
ever sees the canonical form h(x)^-1 x, and its output is carried back by h(x). Canonical-lambda-
equitune (Basu et al., NeurIPS 2023, Definition 1) runs it on g h(x)^-1 x for each g of a finite set
of samples, and carries the weighted mean of g^-1 f(g h(x)^-1 x) back. Canonicalizers are in
`equicore.canonicalizers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equicore.actions import Action, ActionTree, GroupElements
from equicore.groups import Group
from equicore.reduce import Mean, Reducer, WeightedMean
from equicore.representations import Elements, Representation, Tree
from equicore.representations.base import check_elements
from equicore.symmetrize import Symmetrized
from equicore.trees import leaves, tree_map


class SampleSet(Group):
    """The index set of finitely many elements of a continuous group; it need not be a group.

    Only its order and names are used: element 0 counts as the first sample.

    Args:
        count: How many elements.
        samples: What they are, if two sets are to be told apart.
    """

    def __init__(self, count: int, samples: object = None) -> None:
        if count < 1:
            raise ValueError("there must be at least one sample")
        self.count = count
        self.samples = samples
        self.name = f"{count} samples"
        self.names = tuple(f"sample {i}" for i in range(count))

    def __len__(self) -> int:
        """How many."""
        return self.count

    def __eq__(self, other: object) -> bool:
        """Whether they are the same elements."""
        if not isinstance(other, SampleSet) or other.count != self.count:
            return False
        one, two = self.samples, other.samples
        return one is two or (
            type(one) is type(two)
            and all(torch.equal(vars(one)[name], vars(two)[name]) for name in vars(one))
        )

    def __hash__(self) -> int:
        """A hash that agrees with ``==``."""
        return hash(self.count)


class Sampled(Representation):
    """Finitely many elements of a continuous group, with the verbs of a representation.

    With the identity first, it serves `equivariance_error` and `assert_equivariant` to check a
    model on these elements, see `random_motions`. A mean over elements that are no group is
    equivariant only inside `Canonicalized`.

    Args:
        action: How the continuous group acts.
        samples: The elements.
    """

    def __init__(self, action: Action, samples: GroupElements) -> None:
        super().__init__(SampleSet(len(samples), samples))
        self.action = action
        self.samples = samples

    def act(self, g: int, x: Any) -> Any:
        """Transform the batch by sample g."""
        orbit = self.orbit(x, [self.group.check_element(g)])
        return tree_map(lambda t: t[0], orbit)

    def act_each(self, elements: Tensor, x: Any) -> Any:
        """Transform each sample of the batch by an element of its own."""
        return self.action.act(self._each(elements, x), x)

    def align_each(self, elements: Tensor, y: Any) -> Any:
        """Undo an element of each sample's own."""
        return self.action.act(self._each(elements, y).inverse(), y)

    def orbit(self, x: Any, elements: Elements | None = None) -> Any:
        """The batch transformed by each element."""
        chosen = list(self._listed(elements))
        return self.action.act(
            self.samples[chosen], tree_map(lambda t: t.expand(len(chosen), *t.shape), x)
        )

    def align(self, y: Any, elements: Elements | None = None) -> Any:
        """Undo each slice's element."""
        return self.action.act(self.samples[list(self._listed(elements))].inverse(), y)

    def _each(self, elements: Tensor, x: Any) -> GroupElements:
        return self.samples[check_elements(self.group, elements, leaves(x)[0].shape[0]).cpu()]


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
        model: nn.Module | Callable[..., Any],
        canonicalizer: nn.Module | Callable[[Any], GroupElements],
        input_action: Action,
        output_action: Action,
    ) -> None:
        super().__init__()
        self.model = model
        self.canonicalizer = canonicalizer
        self.input_action = input_action
        self.output_action = output_action

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The equivariant output for a batch.

        Args:
            x: Batch of shape (B, ...), or a tree of batches.
            *args: Passed to the model as they are.
            **kwargs: Passed to the model as they are.
        """
        h = self.canonicalizer(x)
        canonical = self.input_action.act(h.inverse(), x)
        return self.output_action.act(h, self.model(canonical, *args, **kwargs))


def canonical_lambda_equitune(
    model: nn.Module | Callable[..., Any],
    canonicalizer: nn.Module | Callable[[Any], GroupElements],
    input_action: Action,
    output_action: Action,
    elements: GroupElements,
    weight: nn.Module | None = None,
    features: str | None = None,
    **options: Any,
) -> Canonicalized:
    """Sum over elements g of lambda(g h^-1 x) h g^-1 f(g h^-1 x), over the sum of lambda.

    Basu et al., NeurIPS 2023, Definition 1, with h = h(x). Equivariant whatever the elements are.
    With the sign frames of principal axes and equal weights it is frame averaging (Puny et al.,
    ICLR 2022).

    Args:
        model: The model f.
        canonicalizer: Maps a batch (B, ...) to B elements of the group, h(g x) = g h(x), see
            `equicore.canonicalizers`.
        input_action: How the group acts on the model's input.
        output_action: How the group acts on the model's output.
        elements: Finitely many, for instance `rotations_2d` or `sign_frames`.
        weight: Network that maps inputs (N, ...) to log-weights (N,); equal weights when omitted.
        features: As in `lambda_equitune`.
        **options: ``chunk``, ``samples``, ``top_k`` of `Symmetrized`.

    Raises:
        TypeError: If an option is none of these.
        ValueError: If there are features but no weight network to see them.

    >>> import torch
    >>> from equicore import VectorSum, Vectors, random_motions, rotations_2d
    >>> f = nn.Linear(2, 2)
    >>> vectors = Vectors()
    >>> equivariant = canonical_lambda_equitune(f, VectorSum(), vectors, vectors, rotations_2d(4))
    >>> x, turn = torch.randn(5, 3, 2), random_motions(2, 2, seed=0)[[1] * 5]
    >>> turned = equivariant(vectors.act(turn, x))
    >>> torch.allclose(turned, vectors.act(turn, equivariant(x)), atol=1e-5)
    True
    """
    unknown = sorted(options.keys() - {"chunk", "samples", "top_k"})
    if unknown:
        raise TypeError(f"options are chunk, samples and top_k; got {', '.join(unknown)}")
    if features is not None and weight is None:
        raise ValueError("features are for a weight network; none is given")
    reduce: Reducer = Mean() if weight is None else WeightedMean(weight, features)
    inner = Symmetrized(
        model,
        _sampled(input_action, elements),
        _sampled(output_action, elements),
        reduce,
        **options,
    )
    return Canonicalized(inner, canonicalizer, input_action, output_action)


def _sampled(action: Action, elements: GroupElements) -> Representation:
    """Their representation; for a tree a `Tree`, from which `Symmetrized` selects entries."""
    if isinstance(action, ActionTree):
        parts: dict[Any, Any] = dict(zip(action.names, action.parts, strict=True))
        return Tree({name: _sampled(part, elements) for name, part in parts.items()})
    return Sampled(action, elements)
