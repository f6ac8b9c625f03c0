"""Proxy scores for equizero: how sure the model is of its output for each g x.

A score maps the model's outputs f(g x) to numbers of shape (|G|, B), higher is better; it is minus
the paper's loss (Basu et al., NeurIPS 2023, section 3.2). None of these saturates: a probability of
1 - 1e-9 is 1 in float32, but its log-odds, 20.7, are far from those of 1 - 1e-10.

Which axis holds the classes, and which entry of a tree is scored, is said by `Score.along` and
`Score.of`. Further axes, such as the words of a sentence or the pixels of a map, are averaged.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from equicore.trees import entries

CERTAIN = 1000.0
"""The most that log-odds count for in a mean."""

FAR = 80.0
"""From here on log(1 + e^-x) is e^-x up to rounding, and e^-x is not yet 0 in float32."""


@dataclasses.dataclass(frozen=True, repr=False)
class Score(ABC):
    """A proxy score of a model's outputs.

    Attributes:
        dim: The axis of the classes, counted from the end. None where outputs have one axis beside
            the samples, which is then that of the classes.
        entry: The names that lead to what is scored, where the model returns a tree.

    >>> confidence(torch.tensor([[[2.0, 0.0]], [[0.0, 5.0]]]))  # two elements, one sample
    tensor([[2.],
            [5.]])
    >>> confidence.of("logits").along(-3)
    confidence.of('logits').along(-3)
    """

    dim: int | None = None
    entry: tuple[Any, ...] = ()

    def along(self, dim: int) -> Score:
        """The same score with the classes on an axis, counted from the end.

        It is -1 for words (B, T, classes) and -3 for maps (B, classes, rows, columns).
        """
        if not isinstance(dim, int) or dim >= 0:
            raise ValueError(
                f"the axis of the classes is counted from the end, as -1 for the last; got {dim!r}"
            )
        return dataclasses.replace(self, dim=dim)

    def of(self, *entry: Any) -> Score:
        """The same score of an entry of what the model returns, by its name, or names."""
        return dataclasses.replace(self, entry=entry)

    def __call__(self, outputs: Any) -> Tensor:
        """How sure the model is.

        Args:
            outputs: Of shape (|G|, B, ...) with an axis of classes, or a tree of such tensors.

        Returns:
            Shape (|G|, B), in the type of the outputs.

        Raises:
            TypeError: If there is no such entry, or it does not hold floating-point numbers.
            ValueError: If it is not known which axis holds the classes, or there is none.
        """
        logits = self._logits(outputs)
        if torch.finfo(logits.dtype).bits >= 32:
            return self._score(logits)
        return self._score(logits.float()).to(logits.dtype)

    def magnitude(self, outputs: Any) -> Tensor | float:
        """The size of the numbers that the score was made of, (|G|, B): it has their rounding."""
        size = self._logits(outputs).detach().amax(-1).abs()
        # words whose logits are this large are masked or padding, and constants have no rounding
        return size if size.ndim == 2 else _average(size.masked_fill(size > CERTAIN, 0))

    def __repr__(self) -> str:
        entry = f".of({', '.join(map(repr, self.entry))})" if self.entry else ""
        return self._name + entry + ("" if self.dim is None else f".along({self.dim})")

    _name = ""

    @abstractmethod
    def _score(self, logits: Tensor) -> Tensor:
        """Scores (|G|, B) of logits (|G|, B, ..., classes)."""

    def _logits(self, outputs: Any) -> Tensor:
        """What is scored, with the classes on the last axis."""
        for name in self.entry:
            found = {} if isinstance(outputs, Tensor) or outputs is None else entries(outputs)
            if name not in found:
                what = f"the entries {list(found)}" if found else _said(outputs)
                raise TypeError(f"{self} looks for {name!r}; the model returned {what}")
            outputs = found[name]
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the model returns {type(outputs).__name__}, of which one entry can be scored: "
                f'name it, as in score={self._name}.of("logits")'
            )
        if not outputs.is_floating_point():
            raise TypeError(f"{self} scores floating-point numbers; got {outputs.dtype}")
        dim, axes = self.dim, outputs.ndim - 2  # beside elements and samples
        if dim is None:
            dim = -1 if axes == 1 else 0
        if dim == 0 or -dim > axes or outputs.shape[dim] == 0:
            raise ValueError(self._no_classes(outputs.shape[2:]))
        return outputs if dim == -1 else outputs.movedim(dim, -1)

    def _no_classes(self, axes: Sequence[int]) -> str:
        """What is wrong with outputs of the shape (B, axes)."""
        shape = "(" + ", ".join(["B", *map(str, axes)]) + ("," if len(axes) == 0 else "") + ")"
        if len(axes) == 0:
            return (
                f"outputs of shape {shape} have no axis of classes. Where each number is the logit "
                f"of a yes, use score=lambda y: {self._name}.along(-1)(y.unsqueeze(-1)); where it "
                "is a quantity, give a score of your own"
            )
        if self.dim is None and len(axes) > 1:
            return (
                f"outputs of shape {shape} have several axes: say which holds the classes, as in "
                f"score={self}.along(-1) for words (B, T, classes) or {self}.along(-3) for maps "
                "(B, classes, rows, columns)"
            )
        dim = -1 if self.dim is None else self.dim
        return f"{self} finds no classes on axis {dim} of outputs {shape}"


class _Confidence(Score):
    _name = "confidence"

    def _score(self, logits: Tensor) -> Tensor:
        odds = _log_odds(logits)
        if odds.ndim == 2:
            return odds
        # a word that is certain for every g, as where only one is allowed, shall not decide alone
        odds = odds.clamp(max=CERTAIN)
        return _average(odds.masked_fill(logits.amax(-1) < -CERTAIN, 0))  # padding


class _NegativeEntropy(Score):
    _name = "negative_entropy"

    def _score(self, logits: Tensor) -> Tensor:
        odds = _log_odds(logits)
        if logits.shape[-1] == 1:
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=-1)
        log_p = logits.log_softmax(-1)
        # log(-p log p) of each class; the winner's -log p would be rounded to 0, so it is made of
        # its log-odds: log(log(1 + e^-odds)), which is -odds where e^-odds is small
        terms = log_p + (-log_p).log()
        small = functional.softplus(-odds.clamp(max=FAR)).log()
        winner = functional.logsigmoid(odds) + torch.where(odds > FAR, -odds, small)
        terms = terms.masked_fill(log_p == -torch.inf, -torch.inf)
        terms = terms.scatter(-1, logits.argmax(-1, keepdim=True), winner.unsqueeze(-1))
        return -terms.flatten(2).logsumexp(-1) + math.log(max(1, odds[0, 0].numel()))


class _MaxValue(Score):
    _name = "max_value"

    def magnitude(self, outputs: Any) -> Tensor | float:
        """That of an average, whose terms may cancel; one value is compared by its own size."""
        return super().magnitude(outputs) if self._logits(outputs).ndim > 3 else 0.0

    def _score(self, logits: Tensor) -> Tensor:
        return _average(logits.amax(-1))


confidence: Score = _Confidence()
"""The log-odds log p / (1 - p) of the class with the largest softmax probability p.

Where there is one logit, those of its sigmoid: its absolute value. Over words or pixels the mean
of the log-odds, which chooses better than the paper's mean of p: see results/scores.
"""

negative_entropy: Score = _NegativeEntropy()
"""Minus the logarithm of the entropy, in nats, of the softmax: the order of minus the entropy.

Where there is one logit, the entropy is that of its sigmoid. Over words or pixels of the mean
entropy.
"""

max_value: Score = _MaxValue()
"""The largest entry: for Q-values, the value of the greedy action. Averaged over further axes."""


def _log_odds(logits: Tensor) -> Tensor:
    """Log-odds (...) of the most likely of classes (..., classes)."""
    if logits.shape[-1] == 1:
        return logits.squeeze(-1).abs()
    best, place = logits.max(-1, keepdim=True)
    # not minus infinity, of which alone there is no softmax; not logsumexp, which takes 12 steps
    others = logits.scatter(-1, place, torch.finfo(logits.dtype).min)
    total = others.amax(-1) - others.log_softmax(-1).amax(-1)
    return best.squeeze(-1) - total


def _average(numbers: Tensor) -> Tensor:
    """Over all axes but those of elements and samples."""
    return numbers if numbers.ndim == 2 else numbers.flatten(2).mean(-1)


def _said(outputs: Any) -> str:
    return "one tensor" if isinstance(outputs, Tensor) else type(outputs).__name__
