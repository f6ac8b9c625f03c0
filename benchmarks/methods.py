"""What do equizero and lambda-equitune cost beside equitune and one forward? The paper's Table 1.

    python benchmarks/methods.py [--rounds 20] [--output results/methods]

Inference under C4. The weights of lambda-equitune depend on features of the model. The published
code computes these a second time; `features=` captures them from the model's own forward. An
orientation network looks at all views itself, so that the model runs on one or two of them only.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import equicore
from equicore.applications.images.networks import ResNet
from equicore.lab import command
from equicore.lab.tables import markdown
from equicore.weights import conv_weight

BAR = 1.05
"""For lambda-equitune's time and memory beside equitune's."""

# Basu et al., NeurIPS 2023, table 1: seconds and MB of CLIP's RN50 and ViT-B/32 on a GPU
PAPER = {
    "ResNet-18": {"equitune": (14.15, 3703), "equizero": (14.10, 3703), "lambda": (23.5, 3941)},
    "ViT": {"equitune": (11.00, 2589), "equizero": (10.27, 2587), "lambda": (16.08, 2915)},
}
SIZES = {"ResNet-18": 64, "ViT": 64, "ResNet-20": 32}
"""Of the images that each model takes."""


@dataclasses.dataclass
class Arguments:
    """Time and memory of the methods' inference, relative to equitune."""

    rounds: int = 20
    """Rounds; in each, every method is timed once."""
    batch: int = 8
    """Images in a batch."""
    output: Path | None = None
    """Folder for methods.csv, .md, .png and .svg; nothing is written when omitted."""


class ComputedTwice(nn.Module):
    """A weight network that computes its features itself, as the published one does."""

    def __init__(self, backbone: nn.Module, output: str, weight: nn.Module) -> None:
        super().__init__()
        self.backbone, self.output, self.weight = backbone, output, weight

    def forward(self, x: Tensor) -> Tensor:
        """Log-weights of inputs."""
        return self.weight(self.backbone(x)[self.output])


def methods_of(model: nn.Module) -> dict[str, nn.Module]:
    """The methods around one model."""
    rotations = equicore.image_rotations()
    invariant = equicore.Trivial(rotations.group)
    backbone, output = None, ""
    if isinstance(model, ResNet):
        name = "layer3"
        weight = equicore.MLPWeight((64, 2, 2), (100,), pool=nn.AdaptiveAvgPool2d(2))
    elif hasattr(model.model, "resnet"):
        name, backbone, output = "model.resnet.pooler", model.model.resnet, "pooler_output"
        weight = equicore.MLPWeight((512, 1, 1))
    else:
        name, backbone, output = "model.vit.layernorm", model.model.vit, "last_hidden_state"
        mean_over_tokens = nn.AdaptiveAvgPool2d((1, 192))
        weight = equicore.MLPWeight((1, 192), pool=mean_over_tokens)
    nn.init.normal_(weight.network[-1].weight)  # before it is fitted, all weights are equal
    look = conv_weight(3, 8)
    weighted = partial(equicore.lambda_equitune, model, rotations, invariant)
    symmetrized = {
        "plain": model,
        "equitune": equicore.equitune(model, rotations, invariant),
        "equizero": equicore.equizero(model, rotations, invariant),
        "lambda": weighted(weight, features=name),
        "lambda, top-1 of an orientation network": weighted(look, top_k=1),
        "lambda, top-2 of an orientation network": weighted(look, top_k=2),
    }
    if backbone is not None:
        symmetrized["lambda, features twice"] = weighted(ComputedTwice(backbone, output, weight))
    return {name: method.eval() for name, method in symmetrized.items()}


def rows_of(name: str, model: nn.Module, arguments: Arguments, progress: tqdm) -> list[common.Row]:
    """The rows of the table for one model."""
    torch.manual_seed(0)
    x = torch.rand(arguments.batch, 3, SIZES[name], SIZES[name])
    methods = methods_of(model)
    if twice := methods.get("lambda, features twice"):
        torch.testing.assert_close(methods["lambda"](x), twice(x), atol=1e-4, rtol=1e-4)
    calls = {method: partial(module, x) for method, module in methods.items()}
    times = common.time_rounds(calls, arguments.rounds, progress)
    memory = {method: common.peak_memory(call) for method, call in calls.items()}
    rows = []
    for method in methods:
        row: common.Row = {
            "model": name,
            "method": method,
            "milliseconds": 1e3 * float(np.median(times[method])),
            "to_plain": common.ratio(times[method], times["plain"]),
            "time": common.ratio(times[method], times["equitune"]),
            "megabytes": memory[method] / 1e6,
            "memory": memory[method] / memory["equitune"],
            "bar": BAR if method == "lambda" else None,
        }
        paper = PAPER.get(name, {})
        if found := paper.get(method.removesuffix(", features twice")):
            row |= {
                "paper_seconds": found[0],
                "paper_time": found[0] / paper["equitune"][0],
                "paper_megabytes": found[1],
                "paper_memory": found[1] / paper["equitune"][1],
            }
        rows.append(row)
    return rows


def markdown_row(row: common.Row) -> list[object]:
    """A row of the md."""
    return [
        row["model"],
        row["method"],
        f"{row['milliseconds']:.0f} ms",
        row["to_plain"],
        row["time"],
        common.verdict(row["time"].median, row["bar"]),
        f"{row['paper_seconds']:.2f} s" if "paper_time" in row else "",
        f"{row['paper_time']:.3f}" if "paper_time" in row else "",
        f"{row['megabytes']:.1f} MB",
        f"{row['memory']:.3f}",
        common.verdict(row["memory"], row["bar"]),
        f"{row['paper_megabytes']} MB" if "paper_time" in row else "",
        f"{row['paper_memory']:.3f}" if "paper_time" in row else "",
    ]


def main(arguments: Arguments) -> None:
    """Time and measure everything, print the table, write it."""
    torch.manual_seed(0)
    small = ResNet(20, 100).eval()
    models = {"ResNet-18": common.resnet(), "ViT": common.vit(), "ResNet-20": small}
    rows = []
    with torch.no_grad(), tqdm(total=3 * arguments.rounds, unit="round") as progress:
        for name, model in models.items():
            rows += rows_of(name, model, arguments, progress)
    beside = ["ratio", "bar", "paper", "ratio"]
    common.write(
        arguments.output,
        "methods",
        rows,
        3,
        "Cost of the methods",
        f"Inference under C4, {arguments.batch} images of 64 x 64, for the ResNet-20 of CIFAR of "
        "32 x 32, as ratios to one forward of the plain model and to equitune: median "
        f"and quartiles of {arguments.rounds} rounds of one run; {common.machine()}. Memory is "
        "the most that torch's allocator holds at once beyond parameters and input. The bar for "
        "lambda is for time and for memory each.",
        "The paper's columns are table 1 of Basu et al. (NeurIPS 2023), CLIP's RN50 and ViT-B/32 "
        "on a GPU. There lambda computes the features twice; its numbers stand beside both of "
        "ours. Seconds and MB do not compare with ours, ratios do.",
        "The orientation network has three convolutions of widths 8, 16 and 32. ttach and "
        "equiadapt stand beside the ResNet-18 in [peers](../peers/peers.md); what each choice "
        "costs in accuracy is in [images](../images/zero_shot.md).",
        markdown(
            ["model", "method", "time", "to plain", *beside, "memory", *beside],
            map(markdown_row, rows),
        ),
        figure=common.ratio_figure(
            [f"{row['model']}, {row['method']}" for row in rows],
            {
                name.replace("_", ": "): [row.get(name, float("nan")) for row in rows]
                for name in ("time", "memory", "paper_time", "paper_memory")
            },
            "ratio to equitune",
            [row["bar"] for row in rows],
        ),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
