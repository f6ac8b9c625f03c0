"""Proxy scores for equizero: how sure the model is of its output for each g x.

A score maps the model's outputs f(g x) of shape (|G|, B, ..., classes) to numbers of shape
(|G|, B), higher is better; it is minus the paper's loss (Basu et al., NeurIPS 2023, section 3.2).
Scores along further axes, such as the words of a sentence, are averaged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def max_probability(logits: Tensor) -> Tensor:
    """The largest softmax probability of the last axis."""
    return _average(_tensor(logits).softmax(-1).amax(-1))


def negative_entropy(logits: Tensor) -> Tensor:
    """Minus the entropy, in nats, of the softmax over the last axis."""
    log_probabilities = _tensor(logits).log_softmax(-1)
    # 0 log 0 = 0, also where a logit is minus infinity
    terms = log_probabilities.exp() * log_probabilities
    terms = terms.masked_fill(log_probabilities == -torch.inf, 0)
    return _average(terms.sum(-1))


def max_value(values: Tensor) -> Tensor:
    """The largest entry of the last axis: for Q-values, the value of the greedy action."""
    return _average(_tensor(values).amax(-1))


def _average(scores: Tensor) -> Tensor:
    return scores if scores.ndim == 2 else scores.flatten(2).mean(-1)


def _tensor(raw: Any) -> Tensor:
    if not isinstance(raw, Tensor):
        raise TypeError(
            f"the model returns {type(raw).__name__}; give a score that picks an entry of it, such "
            "as score=lambda y: max_probability(y.logits)"
        )
    return raw
