"""Training on head maps: a small network on drawn scenes, and a task of fine-tuning."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from equicore.applications.detection.data import Scenes
from equicore.applications.detection.detector import (
    Detector,
    corners,
    head_rep,
    unweighed,
    weighed,
)  # fmt: skip
from equicore.applications.detection.metrics import average_precision, check_boxes, judged
from equicore.applications.finetuning.task import Data, Task
from equicore.boxes import Detections, joined
from equicore.capture import Observed
from equicore.finetuning import Problem, Symmetry, fit, relative_error
from equicore.lab.store import digest, digest_tensors, rounds
from equicore.representations import Image, image_dihedral, image_shifts
from equicore.weights import conv_weight

TINY = 1e-6
BOXES, SURE = 8.0, 16.0
"""FastestDet's weights of the loss of boxes and of objectness, beside that of classes."""
RATE = 3e-3
"""Of learning from scratch, in the first epoch."""
PROBES = 4
"""Test images that deviations are measured on."""


def detection_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """The loss of head maps, much like FastestDet's: of boxes, objectness and classes.

    Of boxes the generalised intersection over union (Rezatofighi et al., CVPR 2019); as objectness
    a cell learns how well its box overlaps with the one that it is to show. Objectness is the mean
    over all cells, the others over those that show a box: images without boxes weigh as others do.
    """
    shown = wanted[:, 0] > 0
    one, other = corners(found), corners(wanted)
    low, high = torch.maximum(one, other), torch.minimum(one, other)
    shared = (high[..., 2:] - low[..., :2]).clamp(min=0).prod(-1)
    hull = (low[..., 2:] - high[..., :2]).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (one, other)]
    union = areas[0] + areas[1] - shared
    overlap = shared / union.clamp(min=TINY)
    apart = 1 - overlap + (hull - union) / hull.clamp(min=TINY)
    sure, good = found[:, 0].clamp(TINY, 1 - TINY), (overlap * shown).detach().clamp(0, 1)
    known = functional.binary_cross_entropy(sure, good, reduction="none")
    kinds = -(wanted[:, 5:] * unweighed(found)[:, 5:].clamp(min=TINY).log()).sum(1)
    boxes = (shown * (BOXES * apart + kinds)).sum() / shown.sum().clamp(min=1)
    return SURE * known.mean() + boxes


class Small(nn.Module):
    """Maps images (B, 3, rows, columns), from 0 to 1, to head maps of cells of 8 pixels."""

    features = "body"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = []
        for channels, out, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)]
            layers += [nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Conv2d(64, 5 + classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """The head map."""
        sure, offsets, sides, kinds = self.head(self.body(images)).tensor_split([1, 3, 5], 1)
        boxes = torch.cat([offsets.tanh(), sides.sigmoid()], 1)
        return weighed(torch.cat([sure.sigmoid(), boxes, kinds.softmax(1)], 1))


def trained(scenes: Scenes, file: Path, epochs: int = 30) -> Small:
    """A small network in eval mode, trained on scenes; ``file`` keeps what was done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Small(len(scenes.classes))
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    settings = {"scenes": scenes.digest, "network": str(network)}
    left = rounds(file, settings, epochs, 0, network=network, optimizer=optimizer)
    for epoch in tqdm(left, "training", unit="epoch", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * epoch / epochs)) / 2
        fit(network, scenes.batches(32, epoch), detection_loss, optimizer, progress=False)
    return network.eval()


class Detection(Task):
    """The head map of a detector, fine-tuned on other images, and classes if it has others.

    Its symmetries are quarter turns and mirrors, and cyclic shifts by whole cells of the head map
    and of the feature maps. Targets are head maps, on which both act.

    Args:
        detector: Of a network that returns head maps.
        training: Images to fine-tune on.
        test: Images to test on.
        name: What tables call the task.
        features: Submodules of the network that return maps (B, channels, rows, columns).

    Raises:
        ValueError: If a submodule is not there, or its cells are not squares that fit the others',
            or no image to train on, or to test on, has boxes.
    """

    training: Scenes
    metrics = dict.fromkeys(("AP50", "AP", "AP50_moved", "AP_moved"), True)
    chosen_by = "AP50_moved"

    def __init__(
        self, detector: Detector, training: Scenes, test: Scenes, name: str, features: Sequence[str]
    ) -> None:
        self.detector, self.training, self.test, self.name = detector, training, test, name
        sets = {"train": training.digest, "test": test.digest, "features": list(features)}
        self.settings = {"model": known(detector), **sets}
        for scenes in (training, test):
            check_boxes(scenes)
        side, count = training.side, len(training.classes)
        with torch.no_grad():
            seen = Observed(self.model(0).eval(), features)(training[:1].pixels / 255)
        cells = {name: side // t.shape[-1] if t.ndim == 4 else 0 for name, t in seen.items()}
        step = max(cells.values())
        if unfit := [n for n, cell in cells.items() if not cell or step % cell or side % step]:
            raise ValueError(
                f"the cells of maps divide each other and images of {side} pixels; those of "
                f"{unfit[0]} do not, sides are {cells}: name other features"
            )

        def shifts(cell: int) -> Image:
            return image_shifts(side // cell, side // cell, step // cell)

        self.training = dataclasses.replace(training, cell=cells[Observed.OUTPUT])
        square, look = image_dihedral(), functools.partial(conv_weight, 3)
        turned = dict.fromkeys(features, square)
        turns = Symmetry(square, head_rep(square, count), features=turned, name="turns")
        maps = {name: shifts(cells[name]) for name in features}
        head = head_rep(shifts(cells[Observed.OUTPUT]), count)
        moves = Symmetry(shifts(1), head, features=maps, name="shifts")
        self.problem = Problem(detection_loss, (turns, moves), relative_error, look)

    def model(self, seed: int, data: Data | None = None) -> nn.Module:
        """The network, with a new layer for the classes if it has others."""
        network: Any = self.detector.network
        count = len(self.training.classes)
        names = getattr(network, "names", None) or self.training.classes
        if getattr(network, "classes", count) == count and [*names] == [*self.training.classes]:
            return copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return network.with_classes(count)

    def evaluate(self, model: nn.Module, scenes: Scenes | None = None) -> dict[str, float]:
        """Average precision on test images as they are, and each under a random element."""
        scenes, found = self.test if scenes is None else scenes, {}
        order, generator = self.problem.symmetries[0].order, torch.Generator().manual_seed(0)
        elements = torch.randint(order, (len(scenes),), generator=generator)
        parts = self.detector.outputs, self.training.classes, self.detector.suppress
        for end, some in (("", scenes), ("_moved", scenes.moved(image_dihedral(), elements))):
            judge = judged(detected(Detector(model, *parts), some), some)
            found[f"AP{end}"], found[f"AP50{end}"] = average_precision(judge)
        return found

    def validate(self, model: nn.Module, data: Data) -> float:
        """AP50 on moved images that were held out."""
        assert isinstance(data, Scenes)
        return self.evaluate(model, data)[self.chosen_by]

    def probes(self) -> list[Tensor]:
        """The first test images."""
        return [x for x, _ in self.test[:PROBES].batches(PROBES)]


@torch.no_grad()
def detected(detector: nn.Module, scenes: Scenes) -> Detections:
    """What a detector finds in images, a few at a time."""
    return joined([detector(pixels / 255) for pixels in scenes.pixels.split(16)])


def known(detector: Detector) -> str:
    """Sixteen characters that are others for other parameters, or another suppression."""
    of = detector.classes, detector.suppress, detector.network, detector.outputs.__qualname__
    return digest(repr(of).encode() + digest_tensors(detector.state_dict()).encode())
