"""What do equizero and lambda-equitune cost beside equitune? Table 1 of the paper, and ours.

    python benchmarks/methods.py [--rounds 20] [--output results/methods]

Inference under C4. The weights of lambda-equitune depend on features of the model. The published
code computes these a second time; `features=` captures them from the model's own forward.
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
from equicore.lab import command
from equicore.lab.tables import markdown

BAR = 1.05
"""For lambda-equitune's time and memory beside equitune's."""

# Basu et al., NeurIPS 2023, table 1: seconds and MB of CLIP's RN50 and ViT-B/32 on a GPU
PAPER = {
    "ResNet-18": {"equitune": (14.15, 3703), "equizero": (14.10, 3703), "lambda": (23.5, 3941)},
    "ViT": {"equitune": (11.00, 2589), "equizero": (10.27, 2587), "lambda": (16.08, 2915)},
}


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


def methods_of(model: common.Logits) -> dict[str, nn.Module]:
    """The methods around one model."""
    rotations = equicore.image_rotations()
    invariant = equicore.Trivial(rotations.group)
    if hasattr(model.model, "resnet"):
        name, backbone, output = "model.resnet.pooler", model.model.resnet, "pooler_output"
        weight = equicore.MLPWeight((512, 1, 1))
    else:
        name, backbone, output = "model.vit.layernorm", model.model.vit, "last_hidden_state"
        mean_over_tokens = nn.AdaptiveAvgPool2d((1, 192))
        weight = equicore.MLPWeight((1, 192), pool=mean_over_tokens)
    nn.init.normal_(weight.network[-1].weight)  # before it is fitted, all weights are equal
    twice = ComputedTwice(backbone, output, weight)
    symmetrized = {
        "equitune": equicore.equitune(model, rotations, invariant),
        "equizero": equicore.equizero(model, rotations, invariant),
        "lambda": equicore.lambda_equitune(model, rotations, invariant, weight, features=name),
        "lambda, features twice": equicore.lambda_equitune(model, rotations, invariant, twice),
    }
    return {name: method.eval() for name, method in symmetrized.items()}


def rows_of(
    name: str, model: common.Logits, arguments: Arguments, progress: tqdm
) -> list[common.Row]:
    """The rows of the table for one model."""
    torch.manual_seed(0)
    x = torch.rand(arguments.batch, 3, 64, 64)
    methods = methods_of(model)
    torch.testing.assert_close(
        methods["lambda"](x), methods["lambda, features twice"](x), atol=1e-4, rtol=1e-4
    )
    calls = {method: partial(module, x) for method, module in methods.items()}
    times = common.time_rounds(calls, arguments.rounds, progress)
    memory = {method: common.peak_memory(call) for method, call in calls.items()}
    base_seconds, base_megabytes = PAPER[name]["equitune"]
    rows = []
    for method in methods:
        seconds, megabytes = PAPER[name][method.split(",")[0]]
        rows.append(
            {
                "model": name,
                "method": method,
                "milliseconds": 1e3 * float(np.median(times[method])),
                "time": common.ratio(times[method], times["equitune"]),
                "paper_seconds": seconds,
                "paper_time": seconds / base_seconds,
                "megabytes": memory[method] / 1e6,
                "memory": memory[method] / memory["equitune"],
                "paper_megabytes": megabytes,
                "paper_memory": megabytes / base_megabytes,
                "bar": BAR if method == "lambda" else None,
            }
        )
    return rows


def markdown_row(row: common.Row) -> list[object]:
    """A row of the md."""
    return [
        row["model"],
        row["method"],
        f"{row['milliseconds']:.0f} ms",
        row["time"],
        common.verdict(row["time"].median, row["bar"]),
        f"{row['paper_seconds']:.2f} s",
        f"{row['paper_time']:.3f}",
        f"{row['megabytes']:.1f} MB",
        f"{row['memory']:.3f}",
        common.verdict(row["memory"], row["bar"]),
        f"{row['paper_megabytes']} MB",
        f"{row['paper_memory']:.3f}",
    ]


def main(arguments: Arguments) -> None:
    """Time and measure everything, print the table, write it."""
    models = {"ResNet-18": common.resnet(), "ViT": common.vit()}
    rows = []
    with torch.no_grad(), tqdm(total=2 * arguments.rounds, unit="round") as progress:
        for name, model in models.items():
            rows += rows_of(name, model, arguments, progress)
    beside = ["ratio", "bar", "paper", "ratio"]
    common.write(
        arguments.output,
        "methods",
        rows,
        3,
        "Cost of the methods",
        f"Inference under C4, {arguments.batch} images of 64 x 64, as ratios to equitune: median "
        f"and quartiles of {arguments.rounds} rounds of one run; {common.machine()}. Memory is "
        "the most that torch's allocator holds at once beyond parameters and input. The bar for "
        "lambda is for time and for memory each.",
        "The paper's columns are table 1 of Basu et al. (NeurIPS 2023), CLIP's RN50 and ViT-B/32 "
        "on a GPU. There lambda computes the features twice; its numbers stand beside both of "
        "ours. Seconds and MB do not compare with ours, ratios do.",
        markdown(
            ["model", "method", "time", *beside, "memory", *beside],
            map(markdown_row, rows),
        ),
        figure=common.ratio_figure(
            [f"{row['model']}, {row['method']}" for row in rows],
            {
                name.replace("_", ": "): [row[name] for row in rows]
                for name in ("time", "memory", "paper_time", "paper_memory")
            },
            "ratio to equitune",
            [row["bar"] for row in rows],
        ),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
