"""What is compared: ways to reduce the views of an image to one answer, all of equicore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from equicore.applications.images.orbits import First, Table, invariant, regular_on
from equicore.finetuning import fit
from equicore.groups import Group
from equicore.reduce import Reducer, WeightedMean
from equicore.representations import (
    Representation,
    Rotations,
    image_dihedral,
    image_flips,
    image_rotations,
)
from equicore.scores import confidence, max_value, negative_entropy
from equicore.symmetrize import Symmetrized
from equicore.weights import MLPWeight, fit_familiarity

GROUPS: dict[str, Callable[[], Representation]] = {
    "turns": image_rotations,
    "mirror": image_flips,
    "flip": lambda: image_flips(-2),
    "turns+mirror": image_dihedral,
    "eighths": lambda: Rotations(8),
}
"""Quarter turns; left to right; top to bottom; quarter turns and mirrors; eighths of a turn."""

Score = Callable[[Any], Tensor]


def energy(outputs: Table) -> Tensor:
    """The logarithm of the sum of exp(logits): how much evidence there is for any class."""
    return outputs["logits"].logsumexp(-1)


def least_sure(outputs: Table) -> Tensor:
    """What the published code chooses by: the smallest of the largest probabilities."""
    return -outputs["logits"].softmax(-1).amax(-1)


class ClassMeans:
    """Minus the distance of features to the nearest of the classes' means."""

    def __init__(self, table: Table, labels: Tensor) -> None:
        features = table["features"][:, 0]
        self.scale = features.std(0) + 1e-6
        self.means = torch.stack(
            [features[labels == label].mean(0) / self.scale for label in labels.unique()]
        )

    def __call__(self, outputs: Table) -> Tensor:
        """Of shape (|G|, B)."""
        features = outputs["features"] / self.scale
        return -torch.cdist(features.flatten(0, 1), self.means).amin(-1).view(features.shape[:2])


def scores(table: Table, labels: Tensor) -> dict[str, Score]:
    """Proxy scores of equizero by name; what they have to know is from training images."""
    return {
        "log_odds": confidence.of("logits"),
        "entropy": negative_entropy.of("logits"),
        "largest_logit": max_value.of("logits"),
        "energy": energy,
        "class_means": ClassMeans(table, labels),
        "published": least_sure,
    }


def on_tables(table: Table, group: Group, reduce: Reducer, top_k: int | None = None) -> Symmetrized:
    """A method that maps tables of such names, (B, |G|, ...), to outputs (B, ...)."""
    names = list(table)
    return Symmetrized(
        First(), regular_on(group, names), invariant(group, names), reduce, top_k=top_k
    )


def weight_of(features: int, hidden: tuple[int, ...], seed: int) -> MLPWeight:
    """A weight network that sees the features of tables; the paper's has one layer of 100."""
    return MLPWeight({"features": (features,)}, hidden, First(), seed)


def fit_unlabelled(
    group: Group, table: Table, seed: int, hidden: tuple[int, ...] = (100,), steps: int = 1000
) -> tuple[MLPWeight, float]:
    """A weight network that tells familiar views from others, and its loss on held-out images."""
    weight = weight_of(table["features"].shape[-1], hidden, seed)
    loss = fit_familiarity(
        on_tables(table, group, WeightedMean(weight)), table, steps=steps, seed=seed
    )
    return weight, loss


def fit_labelled(
    group: Group,
    table: Table,
    labels: Tensor,
    seed: int,
    hidden: tuple[int, ...] = (100,),
    steps: int = 1000,
    batch_size: int = 256,
) -> MLPWeight:
    """A weight network fitted on the task's loss with the model frozen, as in the paper."""
    weight = weight_of(table["features"].shape[-1], hidden, seed)
    with torch.no_grad():
        weight.standardize(table)
    optimizer = torch.optim.Adam(weight.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(labels), (steps, batch_size), generator=generator)
    batches = (({k: v[rows] for k, v in table.items()}, labels[rows]) for rows in drawn)
    fit(
        on_tables(table, group, WeightedMean(weight)),
        batches,
        lambda outputs, target: functional.cross_entropy(outputs["logits"], target),
        optimizer,
        steps=steps,
        schedule=schedule,
        progress=False,
    )
    return weight.eval()


def times(score: Score, power: float) -> Score:
    """The score of what is raised to a power: it multiplies weights."""
    return lambda outputs: power * score(outputs)
