"""What a model knows of images under a group: plain, and made invariant in every way."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from equicore.applications.images import methods
from equicore.applications.images.data import Images
from equicore.applications.images.methods import GROUPS, Table, on_tables, times
from equicore.applications.images.networks import Classifier, orientation
from equicore.applications.images.orbits import Entry, Seen, joined, regular_on, tabulate
from equicore.lab.store import digest, read_tensors, remembered, write_tensors
from equicore.reduce import Best, Identity, Mean, Reducer, WeightedMean
from equicore.representations import Representation, Trivial
from equicore.symmetrize import lambda_equitune
from equicore.weights import fit_familiarity

COLUMNS = ["dataset", "model", "condition", "group", "method", "seed", "accuracy", "images",
           "forwards"]  # fmt: skip
POWERS = (0.25, 0.5, 1.0)
"""Of the proxy scores by which weights are multiplied."""
VARIANTS: dict[str, tuple[int, ...]] = {"linear": (), "wide": (300,)}
"""Other networks for weights than the paper's, by their hidden layers."""
UNTOLD = 0.9
"""From this part of log |G| on, a loss of familiarity says that nothing can be told."""
CHOICE = 0.2
"""Part of the training images that nothing is fitted on: methods are chosen by them."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A model on a data set under a group, and where what is known of it is kept."""

    model: Classifier
    name: str  # of the model
    train: Images
    test: Images
    group: str  # one of GROUPS
    features: tuple[str, ...]  # submodules whose outputs weights see
    folder: Path
    familiar: Images | None = None  # upright images, without labels, that teach familiarity too
    fit_steps: int = 1000  # in which weights are fitted
    looks: tuple[int, ...] = (4, 8, 16, 32)  # widths of orientation networks
    look_steps: int = 1000  # in which they are fitted

    @functools.cached_property
    def rep(self) -> Representation:
        """How the group acts on images."""
        return GROUPS[self.group]()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Plain values that tell it from all others."""
        state = self.model.state_dict().values()
        parts = {"train": self.train, "test": self.test, "familiar": self.familiar}
        return {
            "model": digest(b"".join(t.detach().numpy().tobytes() for t in state)),
            **{name: part and part.digest for name, part in parts.items()},
            "group": self.group,
            "features": list(self.features),
            "fit_steps": self.fit_steps,
        }

    def copy_of_model(self) -> Classifier:
        """The model, to be changed."""
        return copy.deepcopy(self.model)

    def parts(self) -> tuple[Images, Images]:
        """Training images that weights are fitted on, and those that methods are chosen by."""
        return self.train.split(CHOICE, seed=0)

    def table(self, images: Images) -> Table:
        """The model's outputs for all views of some images, computed once and kept."""
        of_views = ("model", "group", "features")
        settings = {name: self.settings[name] for name in of_views} | {"images": images.digest}
        file = self.folder / f"views-{digest(settings)}.safetensors"
        if not file.is_file():
            seen = Seen(self.model, self.features)
            made = tabulate(seen, self.rep, images, ("logits", "features"))
            write_tensors(file, made, settings)
        return read_tensors(file)[0]

    def familiar_table(self) -> Table:
        """Of all upright images that weights may be fitted on without labels."""
        known = self.table(self.parts()[0])
        return known if self.familiar is None else joined(known, self.table(self.familiar))

    def prepare(self) -> None:
        """Compute the tables of all images, if that has not been done."""
        for images in (*self.parts(), self.test, self.familiar):
            if images is not None:
                self.table(images)

    def orientation(self, width: int, seed: int) -> nn.Module:
        """A small network that looks at all views, taught which are familiar; kept, too."""
        network = orientation(width, self.train.pixels.shape[1])
        settings = {name: self.settings[name] for name in ("train", "familiar", "group")}
        settings |= {"width": width, "steps": self.look_steps, "seed": seed}
        file = self.folder / f"orientation-{digest(settings)}.safetensors"
        if not file.is_file():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = orientation(width, self.train.pixels.shape[1])
            fit_part = self.parts()[0].inputs()
            if self.familiar is not None:
                fit_part = torch.cat([fit_part, self.familiar.inputs()])
            model = lambda_equitune(self.model, self.rep, Trivial(self.rep.group), network)
            options: dict[str, Any] = {"steps": self.look_steps, "batch_size": 64, "seed": seed}
            fit_familiarity(model, fit_part, learning_rate=3e-3, **options)
            write_tensors(file, network.state_dict(), settings)
        network.load_state_dict(read_tensors(file)[0])
        return network.eval()


def measure(study: Study, seed: int) -> pd.DataFrame:
    """Accuracies of all methods, zero-shot or with weights fitted with this seed.

    The seed is that of the random elements under which images are seen, too. Conditions: "upright"
    and "moved" of the test images; "validation", moved training images that nothing is fitted on,
    by which methods may be chosen. Returns a table of `COLUMNS`.

    Raises:
        FileExistsError: If the folder holds a measurement of other settings.
    """
    settings = {
        **study.settings,
        "seed": seed,
        "looks": list(study.looks),
        "look_steps": study.look_steps,
    }

    def made() -> pd.DataFrame:
        group, rows = study.rep.group, []
        fit_part, choice = study.parts()
        known = study.table(fit_part)
        tables = {"upright": (study.test, study.table(study.test))}
        for name, images in (("moved", study.test), ("validation", choice)):
            elements = _drawn(len(group), len(images), seed)
            table = study.table(images)
            tables[name] = images, regular_on(group, list(table)).act_each(elements, table)
        reducers = {**_without_fit(known, fit_part.labels), **_fitted(study, known, fit_part, seed)}
        for condition, (images, table) in tables.items():
            found = {n: accuracy(table, images.labels, study.rep, r) for n, r in reducers.items()}
            for k in (1, 2):
                for name in ("familiar", "labels"):
                    top = reducers[f"lambda_{name}"]
                    found[f"lambda_{name}_top{k}"] = accuracy(
                        table, images.labels, study.rep, top, k
                    )
            found["oracle"] = _oracle(table, images.labels)
            rows += [(condition, method, value) for method, value in found.items()]
        order = len(group)
        cost = {"plain": 1.0}
        for width in study.looks:
            network = study.orientation(width, seed)
            for condition, (images, table) in tables.items():
                drawn = None if condition == "upright" else _drawn(order, len(images), seed)
                found = _oriented(study, network, images, table, drawn)
                rows += [(condition, f"orientation_{width}_{k}", v) for k, v in found.items()]
            for how, k in (("top1", 1), ("top2", 2), ("all", order)):
                views = forwards(study.model, network, images, order, k)
                cost[f"orientation_{width}_{how}"] = views
        measured = pd.DataFrame(rows, columns=["condition", "method", "accuracy"])
        return measured.assign(
            dataset=study.test.name,
            model=study.name,
            group=study.group,
            seed=seed,
            images=measured.condition.map({name: len(of) for name, (of, _) in tables.items()}),
            forwards=measured.method.map(cost).fillna(order),
        )[COLUMNS]

    return remembered(study.folder / f"zero_shot-{digest(settings)}.csv", settings, made)


def weights(study: Study, seed: int) -> Tensor:
    """Weights of the views of all test images, (images, |G|), fitted without labels.

    Column g is of the view g x of the upright image x, the first of the image itself.
    """
    group, known = study.rep.group, study.familiar_table()
    weight, _ = methods.fit_unlabelled(group, known, seed, steps=study.fit_steps)
    table = study.table(study.test)
    with torch.no_grad():
        method = on_tables(table, group, WeightedMean(weight))
        parts = [
            method.scores({name: entry[rows] for name, entry in table.items()}).softmax(0).T
            for rows in torch.arange(len(study.test)).split(500)
        ]
    return torch.cat(parts)


def check_square(images: Images, group: str) -> None:
    """Raise ValueError if images are not square, and a group of `GROUPS` has quarter turns."""
    rows, columns = images.pixels.shape[-2:]
    if rows != columns and group not in ("mirror", "flip"):
        raise ValueError(
            f"images of {rows} x {columns} pixels are not square, and {group} has quarter turns; "
            "--size cuts squares out of them; mirror and flip take them as they are"
        )


def advice(study: Study) -> str:
    """What to use for a model under a group, by what its images, without labels, tell.

    If a network cannot tell upright images from moved ones, they have no natural orientation. Then
    there is nothing to learn weights from, and the mean is best.
    """
    group = study.rep.group
    known = study.table(study.parts()[0])
    _, loss = methods.fit_unlabelled(group, known, seed=0, steps=study.fit_steps)
    nothing = math.log(len(group))
    if loss > UNTOLD * nothing:
        use = "no view is more familiar than others: use equitune"
    else:
        use = "familiar views can be told: use lambda-equitune, or equizero without any fitting"
    return f"familiarity loss {loss:.2f} of at most log {len(group)} = {nothing:.2f}; {use}"


@torch.no_grad()
def accuracy(
    table: Table, labels: Tensor, rep: Representation, reduce: Reducer, top_k: int | None = None
) -> float:
    """The part of images whose label is the most likely class, by their tables."""
    method = on_tables(table, rep.group, reduce, top_k)
    right = 0
    for rows in torch.arange(len(labels)).split(500):
        logits = method({name: entry[rows] for name, entry in table.items()})["logits"]
        right += int((logits.argmax(-1) == labels[rows]).sum())
    return right / len(labels)


def _drawn(order: int, count: int, seed: int) -> Tensor:
    """A random element for each image."""
    return torch.randint(order, (count,), generator=torch.Generator().manual_seed(seed))


def _without_fit(known: Table, labels: Tensor) -> dict[str, Reducer]:
    """Methods that need no training."""
    scores = methods.scores(known, labels)
    best = {f"equizero_{name}": Best(score) for name, score in scores.items()}
    return {"plain": Identity(), "equitune": Mean(), **best}


def _fitted(study: Study, known: Table, fit_part: Images, seed: int) -> dict[str, Reducer]:
    """Lambda-equitune with weights fitted without labels and with them, and times proxy scores."""
    group = study.rep.group
    steps = study.fit_steps
    unlabelled, _ = methods.fit_unlabelled(group, study.familiar_table(), seed, steps=steps)
    labelled = methods.fit_labelled(group, known, fit_part.labels, seed, steps=steps)
    found: dict[str, Reducer] = {
        "lambda_familiar": WeightedMean(unlabelled),
        "lambda_labels": WeightedMean(labelled),
    }
    for name, hidden in VARIANTS.items():
        other, _ = methods.fit_unlabelled(group, study.familiar_table(), seed, hidden, steps)
        found[f"lambda_familiar_{name}"] = WeightedMean(other)
    scores = methods.scores(known, fit_part.labels)
    for name in ("log_odds", "largest_logit"):
        for power in POWERS:
            score = times(scores[name], power)
            found[f"lambda_familiar_{name}_{power:g}"] = WeightedMean(unlabelled, score=score)
    return found


def _oracle(table: Table, labels: Tensor) -> float:
    """The part of images of which some view is classified right."""
    right = table["logits"].argmax(-1) == labels.unsqueeze(1)
    return float(right.any(1).double().mean())


class _LogWeights(nn.Module):
    """A weight network as one that `tabulate` takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Table:
        return {"orientation": self.network(images).unsqueeze(-1)}


def _oriented(
    study: Study, network: nn.Module, images: Images, table: Table, elements: Tensor | None
) -> dict[str, float]:
    """Accuracies of the one and the two views of the largest weights, and of all weighted."""
    looks = tabulate(_LogWeights(network), study.rep, images, ("orientation",), 2000)
    if elements is not None:
        looks = regular_on(study.rep.group, ["orientation"]).act_each(elements, looks)
    both = {"logits": table["logits"], **looks}
    mean = WeightedMean(Entry("orientation"))
    order = len(study.rep.group)
    return {
        f"top{k}" if k < order else "all": accuracy(
            both, images.labels, study.rep, mean, k if k < order else None
        )
        for k in sorted({1, min(2, order), order})
    }


def forwards(
    model: nn.Module, network: nn.Module | None, images: Images, order: int, k: int
) -> float:
    """The cost of k forwards and of a network that looks at all views, in forwards of the model.

    Counted in multiplications.
    """
    one = images[:1].inputs()
    counts = []
    for module in (model, network):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if module is not None:
                module(one)
        counts.append(counter.get_total_flops())
    return k + order * counts[1] / counts[0]
