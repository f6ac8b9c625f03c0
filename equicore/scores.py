"""Proxy scores for equizero: how sure the model is of its output for each g x.

A score maps the model's outputs f(g x) of shape (|G|, B, ..., classes) to numbers of shape
(|G|, B), higher is better; it is minus the paper's loss (Basu et al., NeurIPS 2023, section 3.2).
Scores along further axes, such as the words of a sentence, are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_probability(logits: Tensor) -> Tensor:
    """The largest softmax probability of the last axis."""
    return _average(logits.softmax(-1).amax(-1))


def negative_entropy(logits: Tensor) -> Tensor:
    """Minus the entropy, in nats, of the softmax over the last axis."""
    log_probabilities = logits.log_softmax(-1)
    # 0 log 0 = 0, also where a logit is minus infinity
    terms = log_probabilities.exp() * log_probabilities
    terms = terms.masked_fill(log_probabilities == -torch.inf, 0)
    return _average(terms.sum(-1))


def max_value(values: Tensor) -> Tensor:
    """The largest entry of the last axis: for Q-values, the value of the greedy action."""
    return _average(values.amax(-1))


def _average(scores: Tensor) -> Tensor:
    return scores if scores.ndim == 2 else scores.flatten(2).mean(-1)
