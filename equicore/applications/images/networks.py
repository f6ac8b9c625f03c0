"""Classifiers: networks of our own to start from, and those that others have trained."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.lab.store import digest

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of colours by which pretrained networks usually normalise."""


class Classifier(nn.Module):
    """A network on images with values from 0 to 1, and the names of its classes.

    Args:
        network: Maps normalised images (B, channels, rows, columns) to logits (B, classes), or to
            an output with ``logits``, as those of Hugging Face.
        classes: Their names, in the order of the logits; empty where they are not known.
        mean: Of each channel, subtracted first.
        std: Of each channel, divided by.
    """

    mean: Tensor
    std: Tensor
    places: Tensor | None
    side: int | None = None
    """Pixels of the shorter side of what it has learned, where its preprocessor says so."""

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = tuple(classes)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.register_buffer("places", None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes).

        Raises ValueError for images of another number of channels, and a network without logits.
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"the images have {images.shape[1]} channels and the model takes {len(self.mean)}"
            )
        output = self.network((images - self.mean) / self.std)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise ValueError(f"a classifier's network gives logits (B, classes); got {found}")
        return logits if self.places is None else logits[:, self.places]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.mean.device

    def digest(self) -> str:
        """Sixteen characters that are others for other parameters or classes."""
        parts = [t for t in (*self.state_dict().values(), self.places) if t is not None]
        content = b"".join(t.detach().cpu().numpy().tobytes() for t in parts)
        return digest(content + repr((self.classes, str(self.network))).encode())

    def reorder(self, places: Sequence[int], classes: Sequence[str]) -> None:
        """Put the logits in the order of other classes, of which the i-th was at ``places[i]``."""
        order = torch.tensor(places, device=self.device)
        self.places = order if self.places is None else self.places[order]
        self.classes = tuple(classes)


class Block(nn.Module):
    """Two convolutions and a shortcut, which fills new channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels, rows / stride, columns / stride)."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.new:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.new, self.new))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """The residual network for CIFAR of He et al. (2016, section 4.2), with shortcuts A.

    Its parameters have the names of akamaster/pytorch_resnet_cifar10, whose weights it takes.

    Args:
        depth: 6 n + 2 layers: 20, 32, 44, 56, 110.
        outputs: How many.
        channels: Of the images.
    """

    def __init__(self, depth: int, outputs: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = _blocks(16, 16, 1, blocks)
        self.layer2 = _blocks(16, 32, 2, blocks)
        self.layer3 = _blocks(32, 64, 2, blocks)
        self.linear = nn.Linear(64, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, outputs) of normalised images."""
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((-2, -1)))


def _blocks(channels_in: int, channels: int, stride: int, count: int) -> nn.Sequential:
    others = [Block(channels, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(Block(channels_in, channels, stride), *others)


def alexnet(outputs: int, channels: int = 3) -> nn.Sequential:
    """AlexNet's five convolutions and three linear layers, for images of 32 x 32.

    Batches are normalised, and nothing is dropped out: it learns in ten epochs.
    """
    widths = (channels, 64, 192, 384, 256, 256)
    layers: list[nn.Module] = []
    for number, (width_in, width) in enumerate(itertools.pairwise(widths)):
        stride = 2 if number == 0 else 1
        layers.append(nn.Conv2d(width_in, width, 3, stride, 1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if number in (0, 1, 4):
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), *head, nn.Linear(512, outputs))


def small(outputs: int, channels: int = 1) -> nn.Sequential:
    """Three convolutions, for images from 8 x 8 on; it learns digits in seconds."""
    features = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
    )
    return nn.Sequential(features, nn.Flatten(), nn.Linear(128, outputs))


def with_new_head(
    model: Classifier, classes: Sequence[str], example: Tensor, seed: int
) -> tuple[Classifier, nn.Module]:
    """A copy of a classifier whose last linear layer is replaced by two, for other classes.

    Features that go through `NoHead` at the end get two layers there. The ``example``, images
    (B, channels, rows, columns), shows which layer is the last.

    Returns:
        The copy, and its new layers, which are not trained.

    Raises:
        ValueError: If no linear layer alone gives the logits.
    """
    model = copy.deepcopy(model)
    model.classes, model.places = tuple(classes), None
    path = _gives_logits(model, example)
    last: Any = model.get_submodule(path)
    width = last.width if isinstance(last, NoHead) else last.in_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(classes)))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, head.to(model.device))
    return model, head


@torch.no_grad()
def _gives_logits(model: Classifier, example: Tensor) -> str:
    """The name of the layer whose output is that of the model."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, y, name=name: outputs.update({name: y}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | NoHead)
    ]
    try:
        logits = model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    found = [n for n, y in outputs.items() if y.shape == logits.shape and torch.equal(y, logits)]
    if not found:
        raise ValueError(
            f"no linear layer of the model gives its logits ({', '.join(outputs) or 'it has none'})"
            ", so that none can be replaced by a probe"
        )
    return found[-1]


class NoHead(nn.Module):
    """The end of a model that gives features (B, width) and no logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        """The features."""
        return features


class Unit(nn.Module):
    """Pixels, integers from 0 to 255, as values from 0 to 1."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Of any shape."""
        return pixels.float() / 255


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small": small,
    "alexnet": alexnet,
    "resnet20": lambda outputs, channels: ResNet(20, outputs, channels),
    "resnet56": lambda outputs, channels: ResNet(56, outputs, channels),
}
"""Networks that can be trained here, for numbers of outputs and of channels."""
