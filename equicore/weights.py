"""Weight networks for lambda-equitune, and how they learn without labels.

A weight network maps inputs (N, ...), or features of the model, to log-weights (N,).
`fit_familiarity` trains one without labels: on the inputs that the model was trained on, the
softmax over the orbit shall put its mass on the identity. Afterwards, whichever g brings a new
input to where the model is at home gets the weight. To train on a task's loss see
`equicore.finetuning.fit`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.capture import kept_modes
from equicore.reduce import WeightedMean
from equicore.symmetrize import Symmetrized
from equicore.trees import entries, leaves, tree_map


class MLPWeight(nn.Module):
    """A small multilayer perceptron that maps inputs, or features, to log-weights.

    Before it is fitted all log-weights are 0, which makes lambda-equitune equal to equitune.

    Args:
        shape: Shape of one input, without the batch; with ``pool``, of one pooled input. Of a
            tree a shape for each entry that it sees, by name.
        hidden: Widths of the hidden layers.
        pool: Applied to the inputs first, for instance ``nn.AdaptiveAvgPool2d(8)`` for images or
            ``nn.AdaptiveAvgPool2d(1)`` for the features of a convolutional network.
        seed: Of the initial parameters; the global random state is left alone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        shape: Sequence[int] | Mapping[Any, Any],
        hidden: Sequence[int] = (64, 64),
        pool: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = dict(shape) if isinstance(shape, Mapping) else tuple(shape)
        self.hidden = tuple(hidden)
        self.pool = nn.Identity() if pool is None else pool
        self.seed = seed
        size = sum(math.prod(one) for one in _shapes(self.shape).values())
        widths = (size, *hidden, 1)
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.utils.skip_init(nn.Linear, width_in, width_out), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it as it was before it was fitted."""
        generator = torch.Generator().manual_seed(self.seed)
        *hidden, last = (layer for layer in self.network if isinstance(layer, nn.Linear))
        for layer in hidden:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.zeros_(self.shift)
        nn.init.ones_(self.scale)

    @property
    def fitted(self) -> bool:
        """Whether it tells inputs apart, as it does once it has learned."""
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        return bool(last.weight.any())

    def forward(self, x: Any) -> Tensor:
        """Log-weights of shape (N,) for inputs of shape (N, ...), or a tree of them."""
        return self.network((self._flat(x) - self.shift) / self.scale).squeeze(-1)

    def standardize(self, x: Any) -> None:
        """Set the input's shift and scale to the mean and deviation of a sample (N, ...)."""
        flat = self._flat(x)
        self.shift.copy_(flat.mean(0))
        deviation = flat.std(0, correction=0)
        rounding = 32 * torch.finfo(flat.dtype).eps * flat.abs().amax(0)
        self.scale.copy_(deviation.where(deviation > rounding, 1))

    def check_shape(self, x: Any) -> None:
        """Raise ValueError unless x is a batch (N, ...) of this network's inputs."""
        if not isinstance(x, Tensor) or x.shape[1:] != self.shape:
            self._parts(x)

    def _flat(self, x: Any) -> Tensor:
        """Inputs as vectors (N, size)."""
        if isinstance(x, Tensor):  # the usual case, by fewer steps
            pooled = self.pool(x.to(self.shift.dtype))
            self.check_shape(pooled)
            return pooled.flatten(1)
        return torch.cat([part.flatten(1) for part in self._parts(x, self.pool)], dim=1)

    def _parts(self, x: Any, pool: nn.Module | None = None) -> list[Tensor]:
        """The tensors of an input that are seen, pooled or not, or ValueError."""
        parts = []
        for path, shape in _shapes(self.shape).items():
            part = x
            for name in path:
                found = {} if isinstance(part, Tensor) or part is None else entries(part)
                part = found.get(name)
            if pool is not None and isinstance(part, Tensor):
                part = pool(part.to(self.shift.dtype))
            if not isinstance(part, Tensor) or part.ndim < 1 or part.shape[1:] != shape:
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                where = "".join(f"[{name!r}]" for name in path)
                raise ValueError(
                    f"this weight network takes inputs{where} of shape (N, "
                    f"{', '.join(map(str, shape))}); got {got}"
                )
            parts.append(part)
        return parts


def conv_weight(channels: int, width: int = 8) -> nn.Sequential:
    """A small convolutional weight network for images and fields, before it is fitted.

    Three convolutions with a stride of 2, from ``width`` channels to four times as many: it costs
    a small part of what most models cost. The log-weights are not 0 at first.

    Args:
        channels: Of the inputs (N, channels, rows, columns), from 8 x 8 on.
        width: Channels of the first convolution.

    >>> conv_weight(3)(torch.rand(5, 3, 32, 32)).shape
    torch.Size([5])
    """
    layers: list[nn.Module] = []
    widths = (channels, width, 2 * width, 4 * width)
    for width_in, width_out in itertools.pairwise(widths):
        layers.append(nn.Conv2d(width_in, width_out, 3, 2, 1, bias=False))
        layers += [nn.BatchNorm2d(width_out), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, 1), nn.Flatten(0)
    )


def fit_familiarity(
    symmetrized: Symmetrized,
    inputs: Any,
    *,
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
) -> float:
    """Train the weights of lambda-equitune to tell familiar inputs from their transforms.

    Minimises the cross-entropy between the softmax over the orbit of e(g x) and the identity, for
    x among ``inputs``. The model is not changed.

    Args:
        symmetrized: Of `lambda_equitune`, or with boxes that are `equicore.boxes.Fused` by weights;
            its weight network is trained in place.
        inputs: What the model was trained on or has visited, shape (N, ...), N >= 10, or a tree.
        steps: Optimiser steps (Adam, cosine schedule).
        batch_size: Inputs in a step.
        learning_rate: The first step's.
        held_out: Part of the inputs, chosen at random, that is not trained on.
        seed: Of the split and the order of the inputs; the global random state is left alone.

    Returns:
        The cross-entropy on the held-out inputs, in nats: log |G| where nothing can be told,
        0 where the model only ever saw one element of each orbit.

    Raises:
        TypeError: If ``symmetrized`` has no weights to fit, or its weight network no parameters.
        ValueError: If there are too few inputs, they have another shape than the network's, or
            hold NaN or infinity.
    """
    reduce = getattr(symmetrized, "reduce", None)
    reduce = getattr(reduce, "weigh", reduce)  # of views whose boxes are fused
    if not isinstance(reduce, WeightedMean):
        raise TypeError(
            f"only lambda_equitune has weights to fit; got {type(symmetrized).__name__}"
            + ("" if reduce is None else f" with the reducer {type(reduce).__name__}")
        )
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a part between 0 and 1; got {held_out}")
    weight = reduce.weight
    first = next(weight.parameters(), None)
    if first is None:
        raise TypeError(f"the weight network {type(weight).__name__} has no parameters to fit")
    device = first.device
    model = symmetrized.model
    if reduce.features is not None and isinstance(model, nn.Module):  # which sees the inputs
        first = next(model.parameters(), first)
    dtype = first.dtype
    inputs = tree_map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), inputs)
    axes = symmetrized._axes
    inputs = axes.input_first(inputs)
    tensors = leaves(inputs)
    shape = tuple(tensors[0].shape)
    if len(shape) < 1 or shape[0] < 10:
        raise ValueError(f"familiarity needs at least 10 inputs; got shape {shape}")
    if (
        reduce.features is None
        and isinstance(weight, MLPWeight)
        and isinstance(weight.pool, nn.Identity)
    ):
        weight.check_shape(inputs)
    if not all(t.isfinite().all() for t in tensors):
        raise ValueError("inputs hold NaN or infinity")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(shape[0], generator=generator).to(device)
    split = min(max(1, round(held_out * shape[0])), shape[0] - 1)

    def views(x: Any) -> Any:
        return symmetrized.views(axes.input_back(x))

    if reduce.features is None:
        look = views
        known = inputs
    else:  # computed once: the model stays as it is
        assert isinstance(model, nn.Module)
        pieces = [_at(inputs, rows) for rows in torch.arange(shape[0]).split(batch_size)]
        with torch.no_grad(), kept_modes(model):
            model.eval()
            seen = [tree_map(lambda t: t.transpose(0, 1), views(p)) for p in pieces]
        known = tree_map(lambda *t: torch.cat(t), seen[0], *seen[1:])

        def look(x: Any) -> Any:
            return tree_map(lambda t: t.transpose(0, 1), x)

    if isinstance(weight, MLPWeight):
        with torch.no_grad():
            seen_first = look(_at(known, order[split:][:4096]))
            weight.standardize(tree_map(lambda t: t.flatten(0, 1), seen_first))

    def loss(rows: Tensor) -> Tensor:
        log_weights = reduce.log_weights(look(_at(known, rows)))
        identity = torch.zeros(len(rows), dtype=torch.long, device=device)
        return functional.cross_entropy(log_weights.T, identity)

    optimizer = torch.optim.Adam(weight.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trained_on = order[split:]
    with kept_modes(weight):
        weight.train()
        for _ in range(steps):
            batch = torch.randint(len(trained_on), (batch_size,), generator=generator).to(device)
            optimizer.zero_grad()
            loss(trained_on[batch]).backward()
            optimizer.step()
            schedule.step()
        weight.eval()
        with torch.no_grad():
            return float(loss(order[:split]))


def _shapes(shape: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The shapes of what a network sees, by the names that lead there."""
    if not isinstance(shape, Mapping):
        return {path: tuple(shape)}
    inner = [_shapes(one, (*path, name)) for name, one in shape.items()]
    return {where: one for found in inner for where, one in found.items()}


def _at(tree: Any, rows: Tensor) -> Any:
    return tree_map(lambda t: t[rows], tree)
