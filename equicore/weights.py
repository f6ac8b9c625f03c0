"""Weight networks for lambda-equitune, and how they learn.

A weight network maps inputs (N, ...) to log-weights (N,). `fit_familiarity` trains one without
labels and without the model: on the inputs that the model was trained on, the softmax over the
orbit shall put its mass on the identity. Afterwards, whichever g brings a new input to where the
model is at home gets the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.representations import Representation


class MLPWeight(nn.Module):
    """A small multilayer perceptron that maps inputs to log-weights.

    Before it is fitted all log-weights are 0, which makes lambda-equitune equal to equitune.

    Args:
        representation: How the group acts on the inputs.
        shape: Shape of one input, without the batch.
        hidden: Widths of the hidden layers.
        seed: Of the initial parameters; the global random state is left alone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        representation: Representation,
        shape: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.representation = representation
        self.shape = tuple(shape)
        self.hidden = tuple(hidden)
        size = math.prod(self.shape)
        layers: list[nn.Module] = []
        generator = torch.Generator().manual_seed(seed)
        for width_in, width_out in zip((size, *hidden), hidden, strict=False):
            layer = nn.utils.skip_init(nn.Linear, width_in, width_out)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        last = nn.utils.skip_init(nn.Linear, (size, *hidden)[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Log-weights of shape (N,) for inputs of shape (N, ...)."""
        flat = x.flatten(1).to(self.shift.dtype)
        return self.network((flat - self.shift) / self.scale).squeeze(-1)

    def standardize(self, x: Tensor) -> None:
        """Set the input's shift and scale to the mean and deviation of a sample (N, ...)."""
        flat = x.flatten(1).to(self.shift.dtype)
        self.shift.copy_(flat.mean(0))
        deviation = flat.std(0, correction=0)
        self.scale.copy_(deviation.where(deviation > 0, 1))


def fit_familiarity(
    weight: MLPWeight,
    inputs: Tensor,
    *,
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
) -> float:
    """Train a weight network to tell familiar inputs from their transforms, without labels.

    Minimises the cross-entropy between the softmax over the orbit of e(g x) and the identity, for
    x among ``inputs``.

    Args:
        weight: The network e; trained in place.
        inputs: What the model was trained on or has visited, shape (N, ...), N >= 10.
        steps: Optimiser steps (Adam, cosine schedule).
        batch_size: Inputs in a step.
        learning_rate: The first step's.
        held_out: Part of the inputs, chosen at random, that is not trained on.
        seed: Of the split and the order of the inputs; the global random state is left alone.

    Returns:
        The cross-entropy on the held-out inputs, in nats: log |G| where nothing can be told,
        0 where the model only ever saw one element of each orbit.

    Raises:
        ValueError: If there are too few inputs, they have another shape than the network's, or
            hold NaN or infinity.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a part between 0 and 1; got {held_out}")
    if inputs.ndim < 1 or len(inputs) < 10:
        raise ValueError(f"familiarity needs at least 10 inputs; got shape {tuple(inputs.shape)}")
    if tuple(inputs.shape[1:]) != weight.shape:
        raise ValueError(
            f"inputs have shape (N, {', '.join(map(str, weight.shape))}) for this weight network; "
            f"got {tuple(inputs.shape)}"
        )
    inputs = inputs.to(weight.shift)
    if not inputs.isfinite().all():
        raise ValueError("inputs hold NaN or infinity")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    split = max(1, round(held_out * len(inputs)))
    unseen, seen = inputs[order[:split]], inputs[order[split:]]
    weight.standardize(weight.representation.orbit(seen[:4096]).flatten(0, 1))

    def loss(x: Tensor) -> Tensor:
        log_weights = weight(weight.representation.orbit(x).flatten(0, 1)).view(-1, len(x))
        identity = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return functional.cross_entropy(log_weights.T, identity)

    optimizer = torch.optim.Adam(weight.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(seen), (batch_size,), generator=generator).to(inputs.device)
        optimizer.zero_grad()
        loss(seen[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(loss(unseen))
