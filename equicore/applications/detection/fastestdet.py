"""FastestDet (dog-qiuqiu/FastestDet, 2022), a detector of 0.24 M parameters, for its weights.

A ShuffleNetV2 whose three scales are joined at 1/16 of the image's sides, depthwise convolutions,
and heads for the objectness, the box and the class of each cell. Names are those of its weights.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.applications.detection.detector import weighed

STAGES = {"stage2": (24, 4), "stage3": (48, 8), "stage4": (96, 4)}
"""Channels that come in, which it doubles, and blocks."""
WIDTH = 96
"""Channels of the neck and the heads."""
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")
"""The classes that the published weights know."""
DEEPEST = 32
"""The side of the deepest features' cells, in pixels; those of the head are half as wide."""


class FastestDet(nn.Module):
    """Maps RGB images (B, 3, rows, columns), from 0 to 1, to head maps of cells of 16 pixels."""

    features = "SPP"  # what weights and penalties see by default

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.classes = classes
        self.names = COCO if classes == len(COCO) else None
        self.backbone = nn.ModuleDict({"first_conv": nn.Sequential(*_conv(3, 24, 3, 2), nn.ReLU())})
        for name, (width, blocks) in STAGES.items():
            units = [_Unit(width, 1 if block else 2) for block in range(blocks)]
            self.backbone[name] = nn.Sequential(*units)
        self.SPP = _Pyramid(sum(2 * width for width, _ in STAGES.values()))
        heads = {"obj_layers": _head(1), "reg_layers": _head(4), "cls_layers": _head(classes)}
        self.detect_head = nn.ModuleDict({"conv1x1": _pointwise(WIDTH), **heads})

    def forward(self, images: Tensor) -> Tensor:
        """The head map, see `equicore.applications.detection.detector.head_rep`.

        Offsets are from the middle of a cell; the published ones are from its upper left corner.
        """
        seen = self.published(images)
        right, down = seen[:, 1:3].tanh().sub(0.5).unbind(1)
        width, height = seen[:, 3:5].sigmoid().unbind(1)
        box = torch.stack([down, right, height, width], 1)
        return weighed(torch.cat([seen[:, :1], box, seen[:, 5:]], 1))

    def published(self, images: Tensor) -> Tensor:
        """What the published network returns: objectness; x, y, w and h unbounded; classes.

        Raises ValueError if images are not (B, 3, rows, columns), with sides that 32 divides.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(n % DEEPEST for n in images.shape[2:]):
            raise ValueError(
                f"FastestDet takes images (B, 3, rows, columns) whose sides are multiples of "
                f"{DEEPEST}; got {tuple(images.shape)}"
            )
        x = self.backbone["first_conv"](images.flip(1))  # it has learned BGR
        fine = self.backbone["stage2"](functional.max_pool2d(x, 3, 2, 1))
        middle = self.backbone["stage3"](fine)
        coarse = functional.interpolate(self.backbone["stage4"](middle), scale_factor=2)
        x = self.SPP(torch.cat([functional.avg_pool2d(fine, 3, 2, 1), middle, coarse], 1))
        x = self.detect_head["conv1x1"](x)
        sure, box, kind = (self.detect_head[f"{name}_layers"](x) for name in ("obj", "reg", "cls"))
        return torch.cat([sure.sigmoid(), box, kind.softmax(1)], 1)

    def with_classes(self, classes: int) -> FastestDet:
        """A copy with a new last layer for other classes, drawn from torch's random state."""
        made = copy.deepcopy(self)
        made.classes, made.names = classes, None
        for place, layer in enumerate(_conv(WIDTH, classes), 3):
            made.set_submodule(f"detect_head.cls_layers.conv5x5.{place}", layer)
        return made


def load(path: str | Path) -> FastestDet:
    """FastestDet with the weights in a file, in ``eval`` mode; no code in it is run.

    Raises FileNotFoundError if there is no such file, ValueError if it holds other things.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = FastestDet(len(state["detect_head.cls_layers.conv5x5.4.bias"]))
        model.load_state_dict(state)
    except Exception as error:  # torch raises errors of many kinds, and says what is not safe
        raise ValueError(
            f"{path} does not hold the weights of a FastestDet, a state_dict that torch.save wrote"
        ) from error
    return model.eval()


class _Unit(nn.Module):
    """A block of ShuffleNetV2: a half of the channels passes, or both are made smaller."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()

        def rest() -> list[nn.Module]:
            return [*_conv(width, width, 3, stride, width), *_conv(width, width), nn.ReLU()]

        self.branch_main = nn.Sequential(*_conv(width, width), nn.ReLU(), *rest())
        self.branch_proj = nn.Sequential(*rest()) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Twice the channels and half the rows and columns, or the same shape."""
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], 1)


class _Pyramid(nn.Module):
    """One, two and three depthwise convolutions beside each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv1x1 = _pointwise(channels)
        self.S1, self.S2, self.S3 = (nn.Sequential(*_depthwise(count)) for count in (1, 2, 3))
        self.output = nn.Sequential(*_conv(3 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, 96, rows, columns)."""
        x = self.Conv1x1(x)
        return (x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1))).relu()


def _conv(
    width: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    made = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [made, nn.BatchNorm2d(out)]


def _depthwise(count: int = 1) -> list[nn.Module]:
    return [part for _ in range(count) for part in (*_conv(WIDTH, WIDTH, 5, 1, WIDTH), nn.ReLU())]


def _pointwise(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv1x1=nn.Sequential(*_conv(channels, WIDTH), nn.ReLU())))


def _head(out: int) -> nn.Sequential:
    layers = nn.Sequential(*_depthwise(), *_conv(WIDTH, out))
    return nn.Sequential(OrderedDict(conv5x5=layers))
