"""Outputs of a model for all views of images, computed once, so that many methods can be compared.

A turned image has the views of the upright one in another order. So the table of a model's outputs
for all views of an image x stands for it: row h is of the view h^-1 x, the first one that of the
image itself, and the group acts by its regular representation. Everything in equicore runs on
tables as it does on images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from equicore.applications.images.data import Images
from equicore.capture import Observed, kept_modes
from equicore.groups import Group
from equicore.reduce import Mean
from equicore.representations import Representation, Tree, Trivial, regular
from equicore.symmetrize import Symmetrized
from equicore.trees import leaves

Table = dict[str, Tensor]
"""Of N images and |G| views: ``logits`` (N, |G|, classes) and ``features`` (N, |G|, F)."""


class Seen(Observed):
    """A classifier that also returns features: ``logits`` (B, classes), ``features`` (B, F).

    Args:
        model: Maps images to logits.
        features: Names of its submodules whose outputs are captured. Maps are pooled to 2 x 2,
            words and patches are averaged.

    Raises:
        ValueError: If there is no such submodule; one of a similar name is proposed.
    """

    def __init__(self, model: nn.Module, features: Sequence[str]) -> None:
        if isinstance(features, str) or not features:
            raise ValueError(
                f"features is a tuple of one submodule's name or more; got {features!r}"
            )
        super().__init__(model, features)

    def forward(self, images: Tensor) -> Table:
        """Run the model once."""
        seen = super().forward(images)
        vectors = {name: pooled(leaves(seen[name])[0]) for name in self.features}
        for name, features in vectors.items():
            if len(features) != len(images):
                raise ValueError(
                    f"the output of {name} is not one for each of {len(images)} images: it has the "
                    f"shape {tuple(leaves(seen[name])[0].shape)}"
                )
        return {"logits": seen["output"], "features": torch.cat(list(vectors.values()), dim=1)}


def pooled(features: Tensor) -> Tensor:
    """Features as vectors (B, F)."""
    if features.ndim == 4:
        features = functional.adaptive_avg_pool2d(features, 2)
    elif features.ndim == 3:
        features = features.mean(1)
    return features.flatten(1)


def invariant(group: Group, names: Sequence[str]) -> Tree:
    """How the group acts on what is in tables of these names, for one view: not at all."""
    return Tree(dict.fromkeys(names, Trivial(group)))


def regular_on(group: Group, names: Sequence[str]) -> Tree:
    """How the group acts on tables of these names: by exchanging their rows."""
    return Tree(dict.fromkeys(names, regular(group, dim=-2)))


def rows_under(rep: Representation, larger: Representation) -> list[int] | None:
    """The rows, of tables under a larger group, of the views under this one.

    None if this one is no subgroup of it.
    """
    probe = torch.arange(9.0).view(1, 1, 3, 3)
    known = [view.tolist() for view in larger.orbit(probe)]
    views = [view.tolist() for view in rep.orbit(probe)]
    return [known.index(view) for view in views] if all(v in known for v in views) else None


@torch.no_grad()
def tabulate(
    model: nn.Module, rep: Representation, images: Images, names: Sequence[str], views: int = 250
) -> Table:
    """What a model returns under some names for all views of images, so many at a time."""
    symmetrized = Symmetrized(model, rep, invariant(rep.group, names), Mean())
    inverses, parts = torch.tensor(rep.group.inverses), []
    device = next((parameter.device for parameter in model.parameters()), None)
    bar = tqdm(total=len(images), desc="views", unit="image", disable=None)
    with bar, kept_modes(model):
        model.eval()
        for inputs, _ in images.batches(max(1, views // len(rep.group)), device=device):
            aligned = symmetrized.aligned(inputs)
            parts.append({n: aligned[n].cpu()[inverses].transpose(0, 1) for n in names})
            bar.update(len(inputs))
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def joined(*tables: Table) -> Table:
    """One table of all their images, of the names that all of them have."""
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: torch.cat([table[name] for table in tables]) for name in names}


class First(nn.Module):
    """The first row of tables: the model's outputs for the images themselves."""

    def forward(self, table: Any) -> Any:
        """Of a tensor (B, |G|, ...) shape (B, ...), or of each of a dict."""
        if isinstance(table, Tensor):
            return table[:, 0]
        return {name: rows[:, 0] for name, rows in table.items()}


class Looks(nn.Module):
    """Weight networks by name, as one that `tabulate` takes: log-weights (B, 1) of each."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, images: Tensor) -> Table:
        """Of images."""
        return {name: network(images).unsqueeze(-1) for name, network in self.networks.items()}


class Entry(nn.Module):
    """Log-weights (B,) that stand in tables under a name, as (B, |G|, 1)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, table: Table) -> Tensor:
        """Of the images themselves."""
        return table[self.name][:, 0, 0]
