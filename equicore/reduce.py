"""Reducers: how the |G| aligned outputs become one.

A reducer works in two steps. `scores` looks at what the model was given or gave for each g, and
returns one number for each, or None where all count alike. `partial`, `merge` and `finish` then
reduce the aligned outputs g^-1 f(g x), a part of the group at a time, so that the memory they need
does not grow with the group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equicore.representations import Elements
from equicore.representations.base import is_traced
from equicore.scores import Score
from equicore.trees import leaves, tree_map

Need = Literal["inputs", "features", "outputs"]
Needs = frozenset[Need]
NOTHING: Needs = frozenset()
INPUTS: Needs = frozenset({"inputs"})


class Reducer(nn.Module, ABC):
    """Base of all reducers.

    Attributes:
        needs: What `scores` looks at: any of ``"inputs"``, ``"features"`` and ``"outputs"``;
            nothing where all elements count alike.
        features: Name of the model's submodule that returns the features.
        averages: Whether outputs are averaged, so that they cannot be integers.
        estimates: Whether there is an `estimate` from a part of the group.
    """

    needs: Needs = NOTHING
    features: str | None = None
    averages = True
    estimates = False

    def scores(self, seen: Any, raw: Any) -> Tensor | None:
        """One number for each element and sample, shape (n, B), or None.

        Args:
            seen: The inputs g x, or the model's features of them, shape (n, B, ...), or a tree.
            raw: The outputs f(g x), shape (n, B, ...); None where they are not needed.
        """
        return None

    @abstractmethod
    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        """The state after some elements, of their aligned outputs (n, B, ...) and scores (n, B).

        ``elements`` are their places, 0 for the identity; None for all of the group.
        """

    @abstractmethod
    def merge(self, first: Any, second: Any) -> Any:
        """The state after the elements of two states."""

    @abstractmethod
    def finish(self, state: Any) -> Any:
        """The output (B, ...) for a state that has seen all elements."""

    def whole(self, stack: Any, scores: Tensor | None) -> Any:
        """The output for the aligned outputs and scores of all elements at once."""
        return self.finish(self.partial(stack, scores, None))

    def estimate(self, stack: Any, scores: Tensor | None, elements: list[int]) -> Any:
        """An unbiased estimate of the output from a random subset of the group.

        Args:
            stack: The aligned outputs of the subset, shape (k, B, ...).
            scores: Those of the whole group, shape (|G|, B).
            elements: The subset, drawn uniformly without replacement.
        """
        raise NotImplementedError


class Mean(Reducer):
    """The mean over the group: equitune (Basu et al., AAAI 2023, eq. 2)."""

    estimates = True

    def whole(self, stack: Any, scores: Tensor | None) -> Any:
        return tree_map(lambda y: y.mean(0), stack)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        """The sum, how many, and their type."""
        return tree_map(lambda y: wide(y).sum(0), stack), leaves(stack)[0].shape[0], empty(stack)

    def merge(self, first: Any, second: Any) -> Any:
        return tree_map(torch.add, first[0], second[0]), first[1] + second[1], first[2]

    def finish(self, state: Any) -> Any:
        total, count, like = state
        return tree_map(lambda y, e: (y / count).to(e.dtype), total, like)

    def estimate(self, stack: Any, scores: Tensor | None, elements: list[int]) -> Any:
        return self.whole(stack, None)


class Maximum(Reducer):
    """The largest value of each entry over the group: equizero where only arg-max is used.

    The largest entry of the result stands where `Best` with the score `max_value` has it, so the
    arg-max is the same. It costs less, and as it treats all elements alike, ties need no care.
    """

    averages = False

    def whole(self, stack: Any, scores: Tensor | None) -> Any:
        return tree_map(_largest, stack)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        return self.whole(stack, None)

    def merge(self, first: Any, second: Any) -> Any:
        return tree_map(torch.maximum, first, second)

    def finish(self, state: Any) -> Any:
        return state


class Identity(Reducer):
    """The output f(x) of the model itself, which is what the identity element gives.

    Not equivariant; it is there for `StraightThrough`, and as a plain model in comparisons.
    """

    averages = False

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        """The identity's slice, if it is among the elements."""
        if elements is None:
            return tree_map(lambda y: y[0], stack)
        if 0 not in elements:
            return None
        place = list(elements).index(0)
        return tree_map(lambda y: y[place], stack)

    def merge(self, first: Any, second: Any) -> Any:
        return second if first is None else first

    def finish(self, state: Any) -> Any:
        return state


class Best(Reducer):
    """The output of the element with the best score: equizero (Basu et al., NeurIPS 2023, eq. 3).

    Where several elements share the best score the result is the mean of theirs. Ties are no
    accident: they are what happens at an input that some g leaves as it is, and picking one of
    them would break equivariance there. Scores count as equal when they differ by no more than the
    rounding of what they were made of: ``tolerance * (1 + magnitude)``, with the magnitude of the
    best score, and for a `Score` also that of the logits.

    A NaN among the scores of a sample makes its output NaN.

    The gradient is that of the outputs chosen, see `StraightThrough` for others.

    Args:
        score: Maps raw outputs (|G|, B, ...) to scores (|G|, B), higher is better. For a model
            that returns a tree, it is given the tree.
        tolerance: Relative difference that is still a tie; when omitted, 32 machine epsilons, in
            16-bit types 2.
    """

    needs = frozenset({"outputs"})

    def __init__(self, score: Callable[[Any], Tensor], tolerance: float | None = None) -> None:
        super().__init__()
        if not callable(score):
            raise TypeError(f"score is a function, see equicore.scores; got {score!r}")
        self.score = score
        self.tolerance = tolerance

    def extra_repr(self) -> str:
        return getattr(self.score, "__name__", repr(self.score))

    def scores(self, seen: Any, raw: Any) -> Tensor:
        return _scored(self.score, raw)

    def whole(self, stack: Any, scores: Tensor | None) -> Any:
        assert scores is not None
        best, place = scores.max(0)
        magnitude = self._magnitude(stack)
        if isinstance(magnitude, Tensor):
            magnitude = magnitude.gather(0, place.unsqueeze(0)).squeeze(0)
        tied = near(scores, best, self.tolerance, magnitude)
        count = tied.sum(0)

        def average(y: Tensor) -> Tensor:
            # outputs that lost may be infinite, so they are replaced, not multiplied by 0
            total = wide(torch.where(beside(tied, y), y, 0)).sum(0)
            return (total / beside(count, total).to(total.dtype)).to(y.dtype)

        return tree_map(average, stack)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        """The candidates, as their scores and magnitudes, samples and outputs; how many samples.

        They are kept one by one: what ties with the best so far may not tie with a better one.
        """
        assert scores is not None
        order, batch = scores.shape
        samples = torch.arange(batch, device=scores.device).repeat(order)
        outputs = tree_map(lambda y: y.flatten(0, 1), stack)
        magnitude = torch.zeros_like(scores) + self._magnitude(stack)
        numbers = torch.stack([scores, magnitude]).flatten(1)
        return self._without_losers(numbers, samples, outputs, batch)

    def merge(self, first: Any, second: Any) -> Any:
        numbers = torch.cat([first[0], second[0]], dim=1)
        samples = torch.cat([first[1], second[1]])
        outputs = tree_map(lambda a, b: torch.cat([a, b]), first[2], second[2])
        return self._without_losers(numbers, samples, outputs, first[3])

    def finish(self, state: Any) -> Any:
        numbers, samples, outputs, batch = state
        tied = self._tied(numbers, samples, batch)
        count = samples.new_zeros(batch).index_add(0, samples, tied.to(samples.dtype))

        def average(y: Tensor) -> Tensor:
            best = wide(torch.where(beside(tied, y), y, 0))
            total = best.new_zeros(batch, *y.shape[1:]).index_add(0, samples, best)
            return (total / beside(count, total).to(total.dtype)).to(y.dtype)

        return tree_map(average, outputs)

    def _magnitude(self, stack: Any) -> Tensor | float:
        """Of what the scores were made of: aligning logits leaves it as it is."""
        if not isinstance(self.score, Score):
            return 0.0
        size = self.score.magnitude(stack)  # infinite logits have no rounding
        return size.nan_to_num(0.0, 0.0) if isinstance(size, Tensor) else size

    def _without_losers(self, numbers: Tensor, samples: Tensor, outputs: Any, batch: int) -> Any:
        if is_traced():  # a graph has no sizes that depend on values
            return numbers, samples, outputs, batch
        # a NaN stays, to make its sample's output NaN
        kept = self._tied(numbers, samples, batch) | numbers[0].isnan()
        kept = kept.nonzero().squeeze(1)
        return numbers[:, kept], samples[kept], tree_map(lambda y: y[kept], outputs), batch

    def _tied(self, numbers: Tensor, samples: Tensor, batch: int) -> Tensor:
        """Which candidates share the best score of their sample."""
        scores, magnitude = numbers
        lowest = scores.new_full((batch,), -torch.inf)
        best = lowest.scatter_reduce(0, samples, scores, "amax")[samples]
        of_best = magnitude.where(scores == best, 0)
        of_best = torch.zeros_like(lowest).scatter_reduce(0, samples, of_best, "amax")[samples]
        return near(scores, best, self.tolerance, of_best)


class StraightThrough(Reducer):
    """The value of one reducer with the gradient of another.

    Choosing the best element is not differentiable in the scores, and its own gradient reaches
    only the elements chosen. The two estimators of Basu et al. (NeurIPS 2023, section 3.2 and
    their code) are ``StraightThrough(Best(score), Mean())``, mean + (best - mean).detach(), and
    ``StraightThrough(Best(score), Identity())``, f(x) + (best - f(x)).detach().

    Args:
        value: What the output is.
        gradient: What the gradient is taken of: `Mean`, `Identity`, `Maximum`, or another that
            needs no scores.

    Raises:
        ValueError: If one captures features, or ``gradient`` needs scores.
    """

    def __init__(self, value: Reducer, gradient: Reducer) -> None:
        super().__init__()
        for reducer in (value, gradient):
            if not isinstance(reducer, Reducer):
                raise TypeError(f"expected a Reducer such as Mean() or Identity(); got {reducer!r}")
        if "features" in value.needs:
            raise ValueError("StraightThrough is for reducers that capture no features")
        if gradient.needs:
            raise ValueError(
                "StraightThrough takes the gradient of a reducer without scores, for there is one "
                f"set of scores, the value's; got {type(gradient).__name__}"
            )
        self.value = value
        self.gradient = gradient
        self.needs = value.needs

    def scores(self, seen: Any, raw: Any) -> Tensor | None:
        return self.value.scores(seen, raw)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        with torch.no_grad():
            value = self.value.partial(stack, scores, elements)
        return value, self.gradient.partial(stack, scores, elements)

    def merge(self, first: Any, second: Any) -> Any:
        with torch.no_grad():
            value = self.value.merge(first[0], second[0])
        return value, self.gradient.merge(first[1], second[1])

    def finish(self, state: Any) -> Any:
        """The value, and a difference that is zero but has a gradient."""
        with torch.no_grad():
            value = self.value.finish(state[0])
        gradient = self.gradient.finish(state[1])

        def join(v: Tensor, g: Tensor) -> Tensor:
            # where g is infinite the difference is NaN; forward-mode derivatives ignore no_grad
            difference = g - g.detach()
            return v.detach() + (difference if g.is_complex() else difference.nan_to_num())

        return tree_map(join, value, gradient)


class WeightedMean(Reducer):
    """The weighted mean over the group: lambda-equitune (Basu et al., NeurIPS 2023, eq. 4).

    The weights are the softmax over the orbit of log-weights, so they are positive and sum to 1;
    constant log-weights give equitune, one that dominates gives equizero. Elements of log-weight
    plus infinity share all the weight; where every log-weight is minus infinity the weights are
    equal; a NaN makes the sample's output NaN. So does an infinite output, even of weight zero.

    Args:
        weight: Maps inputs of shape (N, ...), or features, to log-weights of shape (N,) or
            (N, 1).
        features: Name of a submodule of the model, as in ``model.get_submodule(name)``, whose
            output the network sees instead of the inputs. It is captured from the model's own
            forward.
        of_outputs: Whether the network sees the outputs f(g x) instead of the inputs.
        score: Maps raw outputs (|G|, B, ...) to numbers (|G|, B) that are added to the network's
            log-weights: what equizero would choose by. It has no gradient, and looks at each
            output alone: with ``chunk`` and ``top_k`` it is given some of them.
    """

    def __init__(
        self,
        weight: nn.Module,
        features: str | None = None,
        score: Callable[[Any], Tensor] | None = None,
        *,
        of_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.features = features
        self.of_outputs = of_outputs
        self.score = score
        sees: Need = "outputs" if of_outputs else "inputs" if features is None else "features"
        self.needs = frozenset({sees} if score is None else {sees, "outputs"})
        self.looks_first = sees == "inputs"
        self.estimates = self.needs == INPUTS

    def scores(self, seen: Any, raw: Any) -> Tensor:
        """Log-weights of shape (n, B): the network's, plus the score of the outputs."""
        log_weights = self.log_weights(raw if self.of_outputs else seen)
        return self.scored(log_weights, raw)

    def scored(self, log_weights: Tensor, raw: Any) -> Tensor:
        """Log-weights of shape (n, B), plus the score of the raw outputs."""
        if self.score is None:
            return log_weights
        return _bounded(log_weights + _scored(self.score, raw))

    def log_weights(self, seen: Any) -> Tensor:
        """The network's log-weights alone, shape (n, B)."""
        order, batch = leaves(seen)[0].shape[:2]
        log_weights = self.weight(tree_map(lambda x: x.flatten(0, 1), seen))
        if log_weights.shape not in ((order * batch,), (order * batch, 1)):
            raise ValueError(
                f"the weight network returned shape {tuple(log_weights.shape)} for "
                f"{order * batch} inputs, expected one log-weight each: ({order * batch},)"
            )
        if not log_weights.is_floating_point():
            raise TypeError(f"log-weights are real numbers; the network gave {log_weights.dtype}")
        return _bounded(log_weights.view(order, batch))

    def whole(self, stack: Any, scores: Tensor | None) -> Any:
        assert scores is not None
        weights = scores.softmax(0)
        return tree_map(lambda y: _weighted(weights, y).sum(0), stack)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        """Largest log-weight, and sums of the outputs and of the weights relative to it."""
        assert scores is not None
        largest = scores.detach().amax(0)
        weights = (scores - largest).exp()
        total = tree_map(lambda y: _weighted(weights, wide(y)).sum(0), stack)
        return largest, total, wide(weights).sum(0), empty(stack)

    def merge(self, first: Any, second: Any) -> Any:
        largest = torch.maximum(first[0], second[0])
        one, two = (wide(state[0] - largest).exp() for state in (first, second))
        total = tree_map(lambda a, b: _weighted(one, a) + _weighted(two, b), first[1], second[1])
        return largest, total, one * first[2] + two * second[2], first[3]

    def finish(self, state: Any) -> Any:
        _, total, weight, like = state
        return tree_map(lambda y, e: (y / beside(weight, y).to(y.dtype)).to(e.dtype), total, like)

    def estimate(self, stack: Any, scores: Tensor | None, elements: list[int]) -> Any:
        assert scores is not None
        weights = scores.softmax(0)[elements] * (scores.shape[0] / len(elements))
        return tree_map(lambda y: _weighted(weights, y).sum(0), stack)


def near(
    scores: Tensor,
    best: Tensor,
    tolerance: float | None = None,
    magnitude: Tensor | float = 0.0,
) -> Tensor:
    """Which scores are as good as the best, up to a tolerance, by default that of `Best`."""
    if tolerance is None:
        tolerance = rounding(scores.dtype)
    # the second comparison is for infinite scores, whose threshold is NaN
    threshold = torch.sub(best, best.abs() + (magnitude + 1), alpha=tolerance)
    return (scores >= threshold) | (scores == best)


def far(scores: Tensor, best: Tensor | float) -> Tensor:
    """Which scores, of which none is infinity, are worse than the best, which is at most 0."""
    tolerance = rounding(scores.dtype)
    return scores < best * (1 + tolerance) - tolerance


def _largest(y: Tensor) -> Tensor:
    if y.is_complex():
        raise TypeError("of complex numbers none is the largest; use another reducer")
    return y.amax(0)


def _scored(score: Callable[[Any], Tensor], raw: Any) -> Tensor:
    """The score of raw outputs, shape (n, B), without gradient."""
    scores = score(raw)
    expected = leaves(raw)[0].shape[:2]
    if scores.shape != expected:
        raise ValueError(
            f"the score returned shape {tuple(scores.shape)}, "
            f"expected one number for each element and sample, {tuple(expected)}"
        )
    return scores.detach()


def rounding(dtype: torch.dtype) -> float:
    """The relative difference of numbers that are the same."""
    epsilon = torch.finfo(dtype).eps
    return epsilon * (32 if epsilon < 1e-5 else 2)  # 32 of bfloat16 would be a quarter


def beside(numbers: Tensor, y: Tensor) -> Tensor:
    """Numbers along the first axes of y, with axes of length 1 for its others."""
    return numbers.view(numbers.shape + (1,) * (y.ndim - numbers.ndim))


def wide(y: Tensor) -> Tensor:
    """What sums are kept in: 16-bit types would overflow, and stop counting at 256 or 2048."""
    return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y


def empty(tree: Any) -> Any:
    """A tree of empty tensors of the same types."""
    return tree_map(lambda y: y.new_empty(0), tree)


def _bounded(log_weights: Tensor) -> Tensor:
    """Infinities as the largest numbers whose difference is finite."""
    limit = torch.finfo(log_weights.dtype).max / 4
    return log_weights.clamp(-limit, limit)


def _weighted(weights: Tensor, y: Tensor) -> Tensor:
    return beside(weights, y).to(y.dtype) * y
