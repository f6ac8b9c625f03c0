"""A classifier, fine-tuned towards a symmetry: a task of `equicore.applications.finetuning`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.applications.finetuning.task import Data, Task
from equicore.applications.images.data import Images
from equicore.applications.images.methods import GROUPS
from equicore.applications.images.networks import Classifier, with_new_head
from equicore.applications.images.study import check_square
from equicore.applications.images.training import augmented, fit_head
from equicore.capture import Observed
from equicore.finetuning import Problem, Symmetry, kl_divergence
from equicore.representations import Representation, Trivial, image_shifts
from equicore.trees import leaves
from equicore.weights import conv_weight

PADDING = 4
"""Shifted images are shifted by so many pixels at most, and what comes in is black."""
VALIDATED = 1000
"""Held-out images that weights of penalties are chosen by, at most."""
SHARED = 0.01
"""Part of the test images that may be among those to fine-tune on: CIFAR has a few twice."""
PROBES = 64
"""Test images that deviations are measured on."""
FITTED, HEAD_STEPS = 10_000, 2000
"""New layers are first fitted to features of so many images at most, in so many steps."""


class Adaptation(Task):
    """A classifier whose last layer is replaced, fine-tuned on images of other classes.

    Its symmetries are a group of `GROUPS`, and cyclic shifts by whole cells of its feature maps.

    Args:
        model: Pretrained, on the device that all is computed on.
        name: Of the model.
        train: Images to fine-tune on.
        test: Images to test on, of which ``tested`` are drawn at random.
        group: One of `GROUPS`; its elements are exact.
        features: Submodules that return maps (B, channels, rows, columns).
        whole: Of how many images fractions are parts; of those to train on when omitted.

    Raises:
        ValueError: If images are not square and the group has quarter turns, a submodule is not
            there or returns no maps, maps do not divide the images, or test images are among those
            to train on.
    """

    training: Images
    metrics = {"accuracy": True, "accuracy_moved": True, "accuracy_shifted": True}
    chosen_by = "accuracy_moved"

    def __init__(
        self,
        model: Classifier,
        name: str,
        train: Images,
        test: Images,
        group: str = "turns",
        features: Sequence[str] = (),
        tested: int = 1000,
        whole: int | None = None,
    ) -> None:
        check_square(train, group)
        if not len(test) or not len(train):
            raise ValueError("there are no images to fine-tune on, or none to test on")
        self.base = model
        self.training = train
        self.test = _some(test, tested)
        if (shared := self.test.shared(train)) > SHARED * len(self.test):
            raise ValueError(
                f"{shared} of {len(self.test)} test images are among those to fine-tune on, so "
                "that accuracy would say nothing; name other --data"
            )
        self.group = group
        self.rep = GROUPS[group]()
        self.name = f"{train.name} from {name}" + ("" if group == "turns" else f", {group}")
        self._whole = whole
        self.settings = {
            "model": model.digest(),
            "train": train.digest,
            "test": self.test.digest,
            "group": group,
            "features": list(features),
            "whole": self.whole,
            "head": [FITTED, HEAD_STEPS],
        }
        look = functools.partial(conv_weight, train.shape[0])
        self.problem = Problem(
            functional.cross_entropy, self._symmetries(features), kl_divergence, look
        )

    @property
    def whole(self) -> int:
        """How many images the fraction 1 stands for."""
        return len(self.training) if self._whole is None else self._whole

    def model(self, seed: int, data: Data | None = None) -> nn.Module:
        """The classifier with two new layers at its end, fitted to features of the data."""
        example = self.training[slice(0, 2)].inputs().to(self.base.device)
        model, head = with_new_head(self.base, self.training.classes, example, seed)
        if isinstance(data, Images):
            fit_head(model, head, _some(data, FITTED), HEAD_STEPS, seed)
        return model

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The part that is right of images as they are, under random elements, and shifted."""
        return {
            "accuracy": _right(model, self.test),
            "accuracy_moved": _right(model, self.test.moved(self.rep, seed=0)),
            "accuracy_shifted": _right(model, self.test, shifted=True),
        }

    def validate(self, model: nn.Module, data: Data) -> float:
        """The part that is right of so many held-out images at most, under random elements."""
        assert isinstance(data, Images)
        return _right(model, _some(data, VALIDATED).moved(self.rep, seed=1))

    def compared(self, output: Tensor) -> Tensor:
        """Logits less their mean over classes."""
        return output - output.mean(-1, keepdim=True)

    def probes(self) -> list[Tensor]:
        """The first test images."""
        return [x for x, _ in self.test[slice(0, PROBES)].batches(64)]

    def _symmetries(self, features: Sequence[str]) -> tuple[Symmetry, ...]:
        """Of turns or mirrors, and of shifts."""
        rows, columns = self.training.shape[1:]
        maps = _shapes(self.model(0), features, self.training[slice(0, 2)])
        own: Representation = self.rep
        maps_too = dict.fromkeys(features, own)
        turned = Symmetry(own, Trivial(own.group), features=maps_too, name=self.group)
        cells = {name: rows // shape[-2] for name, shape in maps.items()}
        for name, side in cells.items():
            if (maps[name][-2] * side, maps[name][-1] * side) != (rows, columns):
                raise ValueError(
                    f"the maps of {name} have {maps[name][-2:]} cells, which do not divide images "
                    f"of {rows} x {columns} pixels into squares; name other --features"
                )
        step = max(cells.values(), default=math.gcd(rows, columns, PADDING))
        if wrong := [name for name, side in cells.items() if step % side]:
            raise ValueError(
                f"cells of {wrong[0]}, of {cells[wrong[0]]} pixels, do not divide those of other "
                f"--features, of {step}"
            )
        shifts = image_shifts(rows, columns, step)
        moved = {
            name: image_shifts(rows // side, columns // side, step // side)
            for name, side in cells.items()
        }
        return turned, Symmetry(shifts, Trivial(shifts.group), features=moved, name="shifts")


def _some(images: Images, count: int) -> Images:
    """So many of them at most, at random; always the same."""
    return images.split(min(1.0, count / len(images)), seed=0)[1]


@torch.no_grad()
def maps_of(model: nn.Module, features: Sequence[str], images: Images) -> tuple[str, ...]:
    """Those submodules, of some, that return maps (B, channels, rows, columns) for images."""
    seen = _seen(model, features, images[slice(0, 2)])
    return tuple(name for name in features if leaves(seen[name])[0].ndim == 4)


@torch.no_grad()
def _shapes(
    model: nn.Module, features: Sequence[str], images: Images
) -> dict[str, tuple[int, ...]]:
    """The shapes of the maps that submodules return, or ValueError if they return others."""
    seen = _seen(model, features, images)
    shapes = {name: tuple(leaves(seen[name])[0].shape) for name in features}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(
                f"{name} returns the shape {shape}; --features are submodules that return maps "
                "(B, channels, rows, columns)"
            )
    return shapes


def _seen(model: nn.Module, features: Sequence[str], images: Images) -> dict[str, Any]:
    device = next(model.parameters()).device
    return Observed(model.eval(), features)(images.inputs().to(device))


@torch.no_grad()
def _right(model: nn.Module, images: Images, shifted: bool = False) -> float:
    """The part of images whose label has the largest logit."""
    count, device = 0, next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for inputs, labels in images.batches(250):
            x = augmented(inputs, PADDING, mirror=False) if shifted else inputs
            count += int((model(x.to(device)).argmax(-1).cpu() == labels).sum())
    return count / len(images)
