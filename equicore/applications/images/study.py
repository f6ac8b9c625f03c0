"""A model on images under a group: its outputs for all views, and networks that look first."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equicore.applications.images.data import HELD_OUT, Images
from equicore.applications.images.methods import GROUPS
from equicore.applications.images.networks import Classifier, Unit
from equicore.applications.images.orbits import (
    Looks,
    Seen,
    Table,
    joined,
    regular_on,
    rows_under,
    tabulate,
)
from equicore.capture import kept_modes
from equicore.lab.store import digest, read_tensors, remembered_tensors
from equicore.representations import Image, Representation, Trivial
from equicore.symmetrize import lambda_equitune
from equicore.weights import conv_weight, fit_familiarity

LEAST = 10
"""Images that familiarity is learned from."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A model on a data set under a group, and where what is known of it is kept."""

    model: Classifier
    name: str  # of the model
    train: Images
    test: Images
    group: str  # one of GROUPS
    features: tuple[str, ...]  # submodules whose outputs weights see
    folder: str | Path
    familiar: Images | None = None  # upright images, without labels, that teach familiarity too
    fit_steps: int = 1000  # in which weights are fitted
    looks: tuple[int, ...] = (4, 8, 16)  # widths of orientation networks
    look_steps: int = 2000  # in which they are fitted

    def __post_init__(self) -> None:
        """Raise ValueError if there is no such group, or there are too few images."""
        if self.group not in GROUPS:
            raise ValueError(f"there are the groups {', '.join(GROUPS)}; got {self.group!r}")
        if not isinstance(self.model, Classifier):
            raise TypeError(
                f"a study is of an images.Classifier(network); got {type(self.model).__name__}"
            )
        if not len(self.test):
            raise ValueError("there are no images to test on")
        fitted = len(self.train) - round(HELD_OUT * len(self.train))
        if fitted < LEAST:
            raise ValueError(
                f"weights are fitted on {LEAST} training images at least; there are {fitted}, "
                "without those that methods are chosen by"
            )

    @functools.cached_property
    def rep(self) -> Representation:
        """How the group acts on images."""
        return GROUPS[self.group]()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Plain values that tell it from all others, but for names."""
        parts = {"train": self.train, "test": self.test, "familiar": self.familiar}
        return {
            "model": _known(self.model, self.test),
            **{name: None if part is None else part.digest for name, part in parts.items()},
            "group": self.group,
            "features": list(self.features),
            "fit_steps": self.fit_steps,
        }

    @functools.cached_property
    def parts(self) -> tuple[Images, Images]:
        """Training images that weights are fitted on, and those that methods are chosen by."""
        return self.train.split(HELD_OUT, seed=0)

    def table(self, images: Images) -> Table:
        """The model's outputs for all views of some images, computed once and kept.

        Those under a larger group are among them, if such a table is kept.
        """
        of_views = ("model", "group", "features")
        settings = {name: self.settings[name] for name in of_views} | {"images": images.digest}

        def file(group: str) -> Path:
            return Path(self.folder) / f"views-{digest(settings | {'group': group})}.safetensors"

        own = file(self.group)
        for group, rep in {} if own.is_file() else GROUPS.items():
            if file(group).is_file() and (rows := rows_under(self.rep, rep())) is not None:
                known = read_tensors(file(group))[0]
                return {name: views[:, rows] for name, views in known.items()}
        seen = Seen(self.model, self.features)
        return remembered_tensors(
            own, settings, lambda: tabulate(seen, self.rep, images, ("logits", "features"))
        )

    def familiar_table(self) -> Table:
        """Of all upright images that weights may be fitted on without labels."""
        known = self.table(self.parts[0])
        return known if self.familiar is None else joined(known, self.table(self.familiar))

    def shown(self, images: Images, seed: int, moved: bool) -> Table:
        """Of images as they are, or each under a random element; with orientation networks.

        Where the group acts exactly, a moved image has the views of the upright one.
        """
        exact = isinstance(self.rep, Image)
        if moved and not exact:
            images = images.moved(self.rep, seed)
        table = self.table(images)
        if self.looks:
            networks = Looks({looks(width): self.orientation(width, seed) for width in self.looks})
            names = tuple(networks.networks)
            table = table | tabulate(networks, self.rep, images, names, 2000)
        if moved and exact:
            elements = images.drawn(self.rep.group, seed)
            table = regular_on(self.rep.group, list(table)).act_each(elements, table)
        return table

    def prepare(self) -> None:
        """Compute the tables of upright images, if that has not been done."""
        for images in (*self.parts, self.test, self.familiar):
            if images is not None:
                self.table(images)

    def orientation(self, width: int, seed: int) -> nn.Module:
        """A small network that gives views log-weights (B,), taught which are familiar; kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = conv_weight(self.train.pixels.shape[1], width)
        settings = {name: self.settings[name] for name in ("train", "familiar", "group")}
        options: dict[str, Any] = {"steps": self.look_steps, "batch_size": 64, "seed": seed}
        options["learning_rate"] = 3e-3
        settings |= {"network": str(network), **options}

        def taught() -> dict[str, torch.Tensor]:
            known = [i.pixels for i in (self.parts[0], self.familiar) if i is not None]
            same, look = Trivial(self.rep.group), nn.Sequential(Unit(), network)
            model = lambda_equitune(self.model, self.rep, same, look)
            fit_familiarity(model, torch.cat(known), **options)
            return network.state_dict()

        file = Path(self.folder) / f"orientation-{digest(settings)}.safetensors"
        network.load_state_dict(remembered_tensors(file, settings, taught))
        return network.eval()


def _known(model: Classifier, images: Images) -> str:
    """What tells a model from others: its parameters, and, of code that may change, what it does.

    Of networks that are not of torch, of Hugging Face or from here, the logits of some images count
    too: the largest to two digits, the others to a fiftieth of it, which other rounding on another
    machine seldom changes.
    """
    found = model.digest()
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    if packages <= {"torch", "transformers", "equicore"}:
        return found
    with torch.no_grad(), kept_modes(model):
        logits = model.eval()(images[slice(0, 16)].inputs().to(model.device))
    largest = logits.abs().max().clamp(min=1e-12)
    parts = (50 * logits / largest).round().int()
    return f"{found} {digest(f'{largest:.2g}'.encode() + parts.cpu().numpy().tobytes())}"


def looks(width: int) -> str:
    """The entry of tables for the log-weights of an orientation network."""
    return f"orientation_{width}"


def check_square(images: Images, group: str) -> None:
    """Raise ValueError if images are not square, and a group of `GROUPS` has quarter turns."""
    rows, columns = images.pixels.shape[-2:]
    if rows != columns and group not in ("mirror", "flip"):
        raise ValueError(
            f"images of {rows} x {columns} pixels are not square, and {group} has quarter turns; "
            "--size cuts squares out of them; mirror and flip take them as they are"
        )
