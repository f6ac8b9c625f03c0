"""What does symmetrising add to the model's own work, and what does a loop cost?

    python benchmarks/symmetrize.py [--rounds 12] [--output results/symmetrize]

The reference is one plain forward of |G| B samples, the orbit computed beforehand. Against it
stand equitune's forward, which computes the orbit, aligns the outputs and reduces them, and a
Python loop of |G| forwards of B samples, each with its transform and its inverse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import common
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

import equicore
from equicore import Permutation, Representation
from equicore.lab import command
from equicore.lab.tables import markdown

BARS = {"MLP": 1.3, "ResNet-18": 1.05, "ViT": 1.05, "GPT-2": 1.05}
IMAGES = {"C4": equicore.image_rotations(), "D4": equicore.image_dihedral()}


@dataclasses.dataclass
class Arguments:
    """Time equitune against plain forwards of the whole orbit, and against a loop."""

    rounds: int = 12
    """Rounds; in each, every variant is timed once."""
    groups: tuple[Literal["C4", "D4"], ...] = ("C4", "D4")
    """Quarter turns, and these with mirrors."""
    output: Path | None = None
    """Folder for symmetrize.csv, .md, .png and .svg; nothing is written when omitted."""


Case = tuple[str, nn.Module, Representation, Representation, Tensor]


def cases(group: str) -> list[Case]:
    """Model, how the group acts on its input and output, and a batch."""
    image = IMAGES[group]
    invariant = equicore.Trivial(image.group)
    # a grid of 4 x 4 cells and one of 2 x 2, flattened; a vocabulary of which 16 words move
    cells, corners = on_cells(image, 4), on_cells(image, 2)
    words = torch.arange(1000).repeat(len(image.group), 1)
    words[:, :16] = cells.permutations
    tokens = equicore.Tokens(image.group, words)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1000,
        n_positions=32,
        n_embd=192,
        n_layer=4,
        n_head=3,
        bos_token_id=0,
        eos_token_id=0,
    )
    pictures = torch.rand(4, 3, 64, 64)
    return [
        ("MLP 64-64", mlp(64), cells, corners, torch.rand(64, 16)),
        ("MLP 256-256", mlp(256), cells, corners, torch.rand(64, 16)),
        ("ResNet-18", common.resnet(), image, invariant, pictures),
        ("ViT", common.vit(), image, invariant, pictures),
        (
            "GPT-2",
            common.Logits(GPT2LMHeadModel(config)).eval(),
            tokens,
            tokens.logits(),
            torch.randint(1000, (4, 32)),
        ),
    ]


def mlp(width: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )


def on_cells(image: equicore.Image, side: int) -> Permutation:
    """How the group permutes the cells of a square grid, flattened."""
    cells = torch.arange(side**2).view(1, side, side)
    comes_from = [image.act(g, cells).flatten() for g in range(len(image.group))]
    return Permutation(image.group, [cells.argsort() for cells in comes_from])


def time_case(group: str, case: Case, backward: bool, rounds: int, progress: tqdm) -> common.Row:
    """A row of the table."""
    name, model, input_rep, output_rep, x = case
    order, inverse = len(input_rep.group), input_rep.group.inverse
    orbit = input_rep.orbit(x).flatten(0, 1).contiguous()
    symmetrized = equicore.equitune(model, input_rep, output_rep)

    def loop(x: Tensor) -> Tensor:
        outputs = [output_rep.act(inverse(g), model(input_rep.act(g, x))) for g in range(order)]
        return torch.stack(outputs).mean(0)

    with torch.no_grad():
        torch.testing.assert_close(symmetrized(x), loop(x), atol=1e-4, rtol=1e-4)

    def run(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
        def forward() -> None:
            with torch.no_grad():
                function(x)

        def forward_and_backward() -> None:
            model.zero_grad()
            function(x).square().mean().backward()

        return forward_and_backward if backward else forward

    model.train(backward)
    calls = {"plain": run(model, orbit), "equitune": run(symmetrized, x), "loop": run(loop, x)}
    times = common.time_rounds(calls, rounds, progress)
    model.eval()
    return {
        "model": name,
        "batch": len(x),
        "group": group,
        "pass": "forward + backward" if backward else "forward",
        "plain_ms": 1e3 * float(np.median(times["plain"])),
        "ratio": common.ratio(times["equitune"], times["plain"]),
        "loop": common.ratio(times["loop"], times["equitune"]),
        "bar": BARS[name.split()[0]],
    }


def markdown_row(row: common.Row) -> list[object]:
    """A row of the md."""
    return [
        *(row[name] for name in ("model", "batch", "group", "pass")),
        f"{row['plain_ms']:.2f} ms",
        row["ratio"],
        common.verdict(row["ratio"].median, row["bar"]),
        row["loop"],
    ]


def main(arguments: Arguments) -> None:
    """Time everything, print the table, write it."""
    chosen = [(group, case) for group in arguments.groups for case in cases(group)]
    with tqdm(total=2 * len(chosen) * arguments.rounds, unit="round") as progress:
        rows = [
            time_case(group, case, backward, arguments.rounds, progress)
            for backward in (False, True)
            for group, case in chosen
        ]
    common.write(
        arguments.output,
        "symmetrize",
        rows,
        3,
        "Cost of symmetrising",
        "Equitune's time as a ratio to one plain forward of |G| B samples, the orbit computed "
        "beforehand; and the time of a Python loop of |G| forwards of B samples, each with its "
        "transform and its inverse, as a ratio to equitune's. Median and quartiles of "
        f"{arguments.rounds} rounds of one run; {common.machine()}.",
        markdown(
            ["model", "B", "group", "pass", "plain", "equitune / plain", "bar", "loop / equitune"],
            map(markdown_row, rows),
        ),
        figure=common.ratio_figure(
            [f"{row['model']}, {row['group']}, {row['pass']}" for row in rows],
            {
                "equitune / plain": [row["ratio"] for row in rows],
                "loop / equitune": [row["loop"] for row in rows],
            },
            "ratio of times",
            [row["bar"] for row in rows],
        ),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
