"""Fine-tuning a classifier that is made invariant, beside plain fine-tuning and augmentation."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.applications.images import methods
from equicore.applications.images.experiment import made_with, named
from equicore.applications.images.names import Method
from equicore.applications.images.orbits import Seen, invariant
from equicore.applications.images.study import Study
from equicore.finetuning import GroupAugmentation, fit
from equicore.lab.store import digest, remembered, rounds
from equicore.reduce import Best, Identity, Mean, Reducer, StraightThrough, WeightedMean
from equicore.representations import Trivial
from equicore.scores import max_value
from equicore.symmetrize import Symmetrized
from equicore.weights import MLPWeight

METHODS: tuple[Method, ...] = get_args(Method)
ALONE = ("plain", "augmented")
"""Models that run once for an image, which nothing makes invariant."""
NAMES = ("logits", "features")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How models are fine-tuned, by Adam."""

    steps: tuple[int, ...] = (0, 100, 300, 1000)  # they are evaluated after so many; they rise
    batch_size: int = 16  # images, of which each has all its views
    learning_rate: float = 3e-4
    tested: int = 2000  # test images, drawn at random; all of them after the last step


def tunable(study: Study, method: Method, seed: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """What maps images to ``logits``, in a dict, and its parameters that are trained.

    Equizero's straight-through gradient is that of the mean of the views, or that of the image as
    it is. The weights of lambda-equitune are fitted without labels first; then they are frozen, as
    in the paper, or trained with the model.
    """
    seen = Seen(copy.deepcopy(study.model), study.features)
    model = list(seen.parameters())
    if method in ALONE:
        return seen, model
    best = Best(max_value.of("logits"))
    reducers: dict[str, Reducer] = {
        "equitune": Mean(),
        "equizero_mean": StraightThrough(best, Mean()),
        "equizero_plain": StraightThrough(best, Identity()),
    }
    if method in reducers:
        return _symmetrized(study, seen, reducers[method]), model
    known = study.familiar_table()
    fitted, _ = methods.fit_unlabelled(study.rep.group, known, seed, steps=study.fit_steps)
    weight = MLPWeight({"features": known["features"].shape[-1:]}, fitted.hidden)
    weight.load_state_dict(fitted.state_dict())
    weight.to(study.model.device)
    mean = WeightedMean(weight, of_outputs=True)
    trained = [*model, *weight.parameters()] if method == "lambda_joint" else model
    return _symmetrized(study, seen, mean), trained


def _symmetrized(study: Study, seen: Seen, reduce: Reducer) -> Symmetrized:
    return Symmetrized(seen, study.rep, invariant(study.rep.group, NAMES), reduce)


def measure(study: Study, method: Method, tuning: Tuning, seed: int) -> pd.DataFrame:
    """Accuracies on moved test images after some numbers of steps.

    All see as many views in a step: a plain model and augmentation take |G| times as many images.
    What was done is kept at each evaluation; a fine-tuning that was killed goes on from there.
    Returns a table of the columns of `equicore.applications.images.experiment`, and "steps".
    """
    settings = {**study.settings, **dataclasses.asdict(tuning), "method": method, "tuned": seed}
    stem = Path(study.folder) / f"finetune-{digest(settings)}"
    files = [stem.with_name(f"{stem.name}-{steps}.csv") for steps in tuning.steps]
    if not all(file.is_file() for file in files):
        model, trained = tunable(study, method, seed)
        optimizer = torch.optim.Adam(trained, tuning.learning_rate)
        stages = list(itertools.pairwise((0, *tuning.steps)))
        resume = stem.with_suffix(".safetensors")
        for stage in rounds(resume, settings, len(files), seed, model=model, optimizer=optimizer):
            first, last = stages[stage]
            if last > first:
                batches = itertools.islice(_batches(study, method, tuning, seed), first, last)
                fit(model, batches, _loss, optimizer, steps=last - first, progress=False)
            made = functools.partial(_evaluated, study, method, tuning, seed, stage, model)
            remembered(files[stage], settings, made)
    lost = functools.partial(_lost, stem)
    tables = [remembered(file, settings, lost) for file in files]
    stem.with_suffix(".safetensors").unlink(missing_ok=True)
    of = made_with(study, dataclasses.asdict(tuning))
    return named(pd.concat(tables), study, seed, of, ("steps",))


def _lost(stem: Path) -> pd.DataFrame:
    raise FileNotFoundError(f"what was measured of {stem} is lost in part; delete {stem}*")


@torch.no_grad()
def _evaluated(
    study: Study, method: Method, tuning: Tuning, seed: int, stage: int, model: nn.Module
) -> pd.DataFrame:
    """The accuracy after a stage, a row."""
    images, last = study.test, stage == len(tuning.steps) - 1
    if not last and len(images) > tuning.tested:
        _, images = images.split(tuning.tested / len(images), seed=0)
    model.eval()
    pairs = images.moved(study.rep, seed).batches(64, device=study.model.device)
    count = sum(int((model(x)["logits"].argmax(-1) == y).sum()) for x, y in pairs)
    row = {
        "condition": "moved",
        "method": method,
        "accuracy": count / len(images),
        "images": len(images),
        "forwards": 1 if method in ALONE else len(study.rep.group),
        "steps": tuning.steps[stage],
    }
    return pd.DataFrame([row])


def _batches(
    study: Study, method: Method, tuning: Tuning, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Upright training images without end, or, with augmentation, under random elements."""
    group = study.rep.group
    size = tuning.batch_size * (len(group) if method in ALONE else 1)
    augment = GroupAugmentation(study.rep, Trivial(group))
    for epoch in itertools.count():
        pairs = study.parts[0].batches(size, 1000 * seed + epoch, study.model.device)
        for inputs, labels in pairs:
            yield augment(inputs, labels) if method == "augmented" else (inputs, labels)


def _loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs["logits"], labels)
