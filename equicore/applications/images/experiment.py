"""What a model knows of images under a group, zero-shot: plain, and made invariant in every way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from equicore.applications.images import methods
from equicore.applications.images.data import Images
from equicore.applications.images.methods import on_tables
from equicore.applications.images.networks import Classifier
from equicore.applications.images.orbits import Entry, Seen, Table, tabulate
from equicore.applications.images.study import Study, looks
from equicore.lab.store import digest, remembered
from equicore.reduce import Best, Identity, Mean, Reducer, WeightedMean
from equicore.representations import Representation
from equicore.weights import conv_weight

COLUMNS = ["dataset", "model", "condition", "group", "method", "seed", "accuracy", "images",
           "forwards", "digest"]  # fmt: skip
POWERS = (0.25, 0.5, 1.0)
"""Of the proxy scores by which weights are multiplied."""
LOOK_POWER = 0.5
"""That of the largest logit beside the weights of orientation networks."""
VARIANTS: dict[str, tuple[int, ...]] = {"linear": (), "wide": (300,)}
"""Other networks for weights than the paper's, by their hidden layers."""
TOLD = 100
"""Images that advice takes: a tenth of them, which nothing is fitted on, decides."""
UNTOLD = 0.9
"""From this part of log |G| on, a loss of familiarity says that nothing can be told."""
VERSION = 2
"""Of the list of methods: to be raised with every change, so that it is measured anew."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to reduce the views of an image."""

    reduce: Reducer
    sees: tuple[str, ...] = ("logits",)  # entries of tables
    top_k: int | None = None  # the model runs on so many views


def measure(study: Study, seed: int) -> pd.DataFrame:
    """Accuracies of all methods, zero-shot or with weights fitted with this seed.

    The seed is that of the random elements under which images are seen, too. Conditions: "upright"
    and "moved" of the test images; "validation", moved training images that nothing is fitted on,
    by which methods may be chosen. Returns a table of `COLUMNS`; it is kept, and found again.
    """
    settings = {**study.settings, **more_settings(study), "looks": study.looks, "seed": seed}

    def made() -> pd.DataFrame:
        ways = _ways(study, seed)
        cost = {name: _forwards(study, name, way) for name, way in ways.items()}
        rows = []
        for condition, images, moved in (
            ("upright", study.test, False),
            ("moved", study.test, True),
            ("validation", study.parts[1], True),
        ):
            table, labels = study.shown(images, seed, moved), images.labels
            found = {n: right(table, labels, study.rep, way) for n, way in ways.items()}
            any_view = table["logits"].argmax(-1) == labels.unsqueeze(1)
            found["oracle"] = float(any_view.any(1).double().mean())
            rows += [
                (condition, name, part, len(labels), cost.get(name, len(study.rep.group)))
                for name, part in found.items()
            ]
        names = ["condition", "method", "accuracy", "images", "forwards"]
        return pd.DataFrame(rows, columns=names)

    file = Path(study.folder) / f"zero_shot-{digest(settings)}.csv"
    table = remembered(file, settings, made)
    return named(table, study, seed, made_with(study, more_settings(study)))


def more_settings(study: Study) -> dict[str, Any]:
    """What decides accuracies beside the study's settings and the seed."""
    return {"look_steps": study.look_steps, "version": VERSION}


def made_with(study: Study, more: Mapping[str, Any]) -> str:
    """Sixteen characters that are others for other settings, whatever the group is."""
    return digest({**study.settings, "group": None, **more})


def named(
    table: pd.DataFrame, study: Study, seed: int, made_with: str, more: tuple[str, ...] = ()
) -> pd.DataFrame:
    """The table with what it is of: the columns `COLUMNS`, and others."""
    table = table.assign(dataset=study.test.name, model=study.name, group=study.group)
    return table.assign(seed=seed, digest=made_with)[[*COLUMNS, *more]]


@torch.no_grad()
def right(table: Table, labels: Tensor, rep: Representation, way: Way) -> float:
    """The part of images whose label is the most likely class, by their tables."""
    table = {name: table[name] for name in way.sees}
    method = on_tables(table, rep.group, way.reduce, way.top_k)
    count = 0
    for rows in torch.arange(len(labels)).split(500):
        logits = method({name: entry[rows] for name, entry in table.items()})["logits"]
        count += int((logits.argmax(-1) == labels[rows]).sum())
    return count / len(labels)


def _ways(study: Study, seed: int) -> dict[str, Way]:
    """All methods by name; weights are fitted now."""
    group, steps, fit_part = study.rep.group, study.fit_steps, study.parts[0]
    known, familiar = study.table(fit_part), study.familiar_table()
    scores = methods.scores(known, fit_part.labels)
    both = ("logits", "features")
    ways = {"plain": Way(Identity()), "equitune": Way(Mean())}
    ways |= {f"equizero_{name}": Way(Best(score), both) for name, score in scores.items()}

    def weighted(name: str, weight: nn.Module) -> None:
        for end, k in {"": None, "_top1": 1, "_top2": min(2, len(group))}.items():
            ways[f"lambda_{name}{end}"] = Way(WeightedMean(weight), both, k)

    unlabelled, _ = methods.fit_unlabelled(group, familiar, seed, steps=steps)
    weighted("familiar", unlabelled)
    for name in ("log_odds", "largest_logit"):
        for power in POWERS:
            mean = WeightedMean(unlabelled, score=methods.times(scores[name], power))
            ways[f"lambda_familiar_{name}_{power:g}"] = Way(mean, both)
    for name, hidden in VARIANTS.items():
        other, _ = methods.fit_unlabelled(group, familiar, seed, hidden, steps)
        ways[f"lambda_familiar_{name}"] = Way(WeightedMean(other), both)
    weighted("labels", methods.fit_labelled(group, known, fit_part.labels, seed, steps=steps))
    for width in study.looks:
        sees, score = ("logits", looks(width)), methods.times(scores["largest_logit"], LOOK_POWER)
        for end, k in {"top1": 1, "top2": min(2, len(group)), "all": None}.items():
            ways[f"{looks(width)}_{end}"] = Way(WeightedMean(Entry(looks(width))), sees, k)
            if k != 1:
                mean = WeightedMean(Entry(looks(width)), score=score)
                ways[f"{looks(width)}_{end}_scored"] = Way(mean, sees, k)
    return ways


def _forwards(study: Study, name: str, way: Way) -> float:
    """What a method costs, in forwards of the model, counted in multiplications."""
    order = len(study.rep.group)
    if isinstance(way.reduce, Identity):
        return 1.0
    if not name.startswith("orientation"):
        return float(order)  # features are known only after all forwards
    width, channels = int(name.split("_")[1]), study.train.shape[0]
    network = conv_weight(channels, width).to(study.model.device).eval()  # fitted or not
    counts = []
    for module in (study.model, network):
        device = next(module.parameters()).device
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(study.test[slice(0, 1)].inputs().to(device))
        counts.append(counter.get_total_flops())
    return (way.top_k or order) + order * counts[1] / counts[0]


@torch.no_grad()
def weights(study: Study, seed: int) -> Tensor:
    """Weights of the views of all test images, (images, |G|), fitted without labels.

    Column g is of the view g x of the upright image x, the first of the image itself.
    """
    group, known = study.rep.group, study.familiar_table()
    with torch.enable_grad():
        weight, _ = methods.fit_unlabelled(group, known, seed, steps=study.fit_steps)
    table = study.table(study.test)
    method = on_tables(table, group, WeightedMean(weight))
    pieces = torch.arange(len(study.test)).split(500)
    parts = [method.scores({name: entry[rows] for name, entry in table.items()}) for rows in pieces]
    return torch.cat(parts, dim=1).softmax(0).T


def advice(
    model: Classifier,
    images: Images,
    rep: Representation,
    features: tuple[str, ...],
    fit_steps: int = 1000,
) -> str:
    """What to use for a model under a group, by what images, without labels, tell.

    If a network cannot tell images as they are from moved ones, they have no natural orientation.
    Then there is nothing to learn weights from, and the mean is best.

    Args:
        model: Pretrained.
        images: A hundred at least, as they come; labels are not looked at.
        rep: How the group acts on them.
        features: Submodules of the model whose outputs the weights see.
        fit_steps: In which they are fitted.
    """
    if len(images) < TOLD:
        raise ValueError(
            f"advice takes {TOLD} images at least, fewer tell little; got {len(images)}"
        )
    known = tabulate(Seen(model, features), rep, images, ("logits", "features"))
    _, loss = methods.fit_unlabelled(rep.group, known, seed=0, steps=fit_steps)
    nothing = math.log(len(rep.group))
    use = "familiar views can be told: use lambda-equitune, or equizero without any fitting"
    if loss > UNTOLD * nothing:
        use = "no view is more familiar than others: use equitune"
    return f"familiarity loss {loss:.2f}, of log {len(rep.group)} = {nothing:.2f} if none is; {use}"
