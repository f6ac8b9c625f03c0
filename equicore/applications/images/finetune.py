"""Fine-tuning a classifier that is made invariant, beside plain fine-tuning and augmentation."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.applications.images import methods
from equicore.applications.images.data import Images
from equicore.applications.images.experiment import COLUMNS, Study
from equicore.applications.images.orbits import Seen, invariant
from equicore.finetuning import GroupAugmentation, fit
from equicore.lab.store import digest, remembered, rounds
from equicore.reduce import Best, Identity, Mean, Reducer, StraightThrough, WeightedMean
from equicore.representations import Trivial
from equicore.scores import max_value
from equicore.symmetrize import Symmetrized
from equicore.weights import MLPWeight

Method = Literal[
    "plain", "augmented", "equitune", "equizero_mean", "equizero_plain",
    "lambda_frozen", "lambda_joint",
]  # fmt: skip
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
    tested: int = 2000  # test images, the first ones; all of them after the last step


def tunable(study: Study, method: Method, seed: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """What maps images to ``logits``, in a dict, and its parameters that are trained.

    Equizero's straight-through gradient is that of the mean of the views, or that of the image as
    it is. The weights of lambda-equitune are fitted without labels first; then they are frozen, as
    in the paper, or trained with the model.
    """
    seen = Seen(study.copy_of_model(), study.features)
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
    known = study.table(study.parts()[0])
    fitted, _ = methods.fit_unlabelled(study.rep.group, known, seed, steps=study.fit_steps)
    weight = MLPWeight({"features": known["features"].shape[-1:]}, fitted.hidden)
    weight.load_state_dict(fitted.state_dict())
    mean = WeightedMean(weight, of_outputs=True)
    trained = [*model, *weight.parameters()] if method == "lambda_joint" else model
    return _symmetrized(study, seen, mean), trained


def _symmetrized(study: Study, seen: Seen, reduce: Reducer) -> Symmetrized:
    return Symmetrized(seen, study.rep, invariant(study.rep.group, NAMES), reduce)


def measure(study: Study, method: Method, tuning: Tuning, seed: int) -> pd.DataFrame:
    """Accuracies on moved test images after some numbers of steps.

    All see as many views in a step: a plain model and augmentation take |G| times as many images.
    A fine-tuning that was killed goes on from the last evaluation. Returns a table of the columns
    of `equicore.applications.images.experiment`, and "steps".

    Raises:
        FileExistsError: If the folder holds a fine-tuning of other settings.
    """
    settings = {**study.settings, **dataclasses.asdict(tuning), "method": method, "tuned": seed}
    name = f"finetune-{digest(settings)}"

    def made() -> pd.DataFrame:
        resume = study.folder / f"{name}.safetensors"
        model, trained = tunable(study, method, seed)
        optimizer = torch.optim.Adam(trained, tuning.learning_rate)
        stages = list(itertools.pairwise((0, *tuning.steps)))
        tables = []
        for number in rounds(resume, settings, len(stages), seed, model=model, optimizer=optimizer):
            first, last = stages[number]
            if last > first:
                stage = itertools.islice(_batches(study, method, tuning, seed), first, last)
                fit(model, stage, _loss, optimizer, steps=last - first, progress=False)
            remembered(*_evaluation(study, method, tuning, seed, number, model))
        for number in range(len(stages)):
            tables.append(remembered(*_evaluation(study, method, tuning, seed, number, model)))
        resume.unlink(missing_ok=True)
        return pd.concat(tables)

    return remembered(study.folder / f"{name}.csv", settings, made)


def _evaluation(
    study: Study, method: Method, tuning: Tuning, seed: int, number: int, model: nn.Module
) -> tuple[Any, ...]:
    """The arguments of `remembered` for the accuracy after a stage."""
    last = number == len(tuning.steps) - 1
    images = study.test if last else study.test[slice(0, tuning.tested)]
    settings = {**study.settings, **dataclasses.asdict(tuning), "method": method, "tuned": seed}
    settings["stage"] = number

    def made() -> pd.DataFrame:
        right = _right(model, images.moved(study.rep, seed))
        cost = 1 if method in ALONE else len(study.rep.group)
        row = (study.test.name, study.name, "moved", study.group, method, seed, right, len(images))
        return pd.DataFrame([(*row, cost, tuning.steps[number])], columns=[*COLUMNS, "steps"])

    return study.folder / f"finetune-{digest(settings)}.csv", settings, made


@torch.no_grad()
def _right(model: nn.Module, images: Images) -> float:
    """The part of images that a model classifies right."""
    model.eval()
    counts = [int((model(x)["logits"].argmax(-1) == y).sum()) for x, y in images.batches(64)]
    return sum(counts) / len(images)


def _batches(
    study: Study, method: Method, tuning: Tuning, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Upright training images without end, or, with augmentation, under random elements."""
    group = study.rep.group
    size = tuning.batch_size * (len(group) if method in ALONE else 1)
    augment = GroupAugmentation(study.rep, Trivial(group))
    for epoch in itertools.count():
        for inputs, labels in study.parts()[0].batches(size, 1000 * seed + epoch):
            yield augment(inputs, labels) if method == "augmented" else (inputs, labels)


def _loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs["logits"], labels)
