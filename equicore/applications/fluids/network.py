"""A small convolutional network that predicts the next velocity, and its pretraining."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from equicore.applications.fluids.solver import check_grid
from equicore.finetuning import fit
from equicore.lab.jobs import one_thread
from equicore.lab.store import digest, rounds

CHANNELS, DILATIONS = 16, (1, 2, 4, 2)
BATCH, LEARNING_RATE, ROUND = 32, 3e-3, 50
"""Of pretraining: pairs of velocities in a step, the first rate, and steps in a round."""


class FlowNet(nn.Module):
    """From a velocity (B, 2, n, n) to that an interval later: itself, and a correction.

    Dilated convolutions with residual connections, as of Stachenfeld et al. (ICLR 2022), but
    smaller. With circular padding they see the periodic square as it is, and commute with all its
    shifts; padded with zeros they see an edge that is not there. Other paddings of
    ``torch.nn.Conv2d`` will do, too.
    """

    def __init__(self, padding: str = "circular", channels: int = CHANNELS) -> None:
        super().__init__()
        self.first = _layer(padding, 2, channels)
        self.inner = nn.Sequential(*(_Residual(padding, channels, d) for d in DILATIONS))
        self.last = _layer(padding, channels, 2)

    def forward(self, velocity: Tensor) -> Tensor:
        """The next velocity; errors as of `equicore.applications.fluids.solver.check_grid`."""
        check_grid(velocity, 2)
        return velocity + self.last(functional.gelu(self.inner(self.first(velocity))))


class _Residual(nn.Module):
    """What comes in, and a convolution of it."""

    def __init__(self, padding: str, channels: int, dilation: int) -> None:
        super().__init__()
        self.layer = _layer(padding, channels, channels, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(functional.gelu(x))


def _layer(padding: str, inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    mode: Any = padding
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, padding_mode=mode)


class Trajectories:
    """Trajectories (N, times, 2, n, n) as samples, whose batches are pairs of velocities."""

    def __init__(self, velocities: Tensor) -> None:
        self.velocities = velocities

    def __len__(self) -> int:
        """How many trajectories."""
        return len(self.velocities)

    def __getitem__(self, rows: Tensor) -> Trajectories:
        """Those in some rows."""
        return Trajectories(self.velocities[rows])

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All pairs of a velocity and the next once, in an order that the seed decides."""
        before, after = (v.flatten(0, 1) for v in (self.velocities[:, :-1], self.velocities[:, 1:]))
        order = torch.randperm(len(before), generator=torch.Generator().manual_seed(seed))
        return ((before[rows], after[rows]) for rows in order.split(size))


def pretrained(
    name: str, velocities: Tensor, folder: Path, padding: str = "circular", steps: int = 1000
) -> FlowNet:
    """A network that is trained on trajectories (N, times, 2, n, n), which have a name.

    It is kept in a folder. It is trained now if it has not been, and goes on if that was killed.
    ValueError if steps are no multiple of `ROUND`, FileExistsError if the folder holds one that was
    trained otherwise.
    """
    if steps < ROUND or steps % ROUND:
        raise ValueError(f"pretraining takes a multiple of {ROUND} steps; got {steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FlowNet(padding)
    optimizer = torch.optim.Adam(model.parameters())
    settings = {
        "velocities": digest(velocities.numpy().tobytes()), "network": str(model), "batch": BATCH,
        "learning_rate": LEARNING_RATE, "round": ROUND,
    }  # fmt: skip
    file = folder / f"network-{name}-{padding}.safetensors"
    data, count = Trajectories(velocities), steps // ROUND
    left = rounds(file, settings, count, 0, model=model, optimizer=optimizer)
    with one_thread():
        for number in tqdm(left, f"pretraining, {padding}", count, disable=None):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1.001 + math.cos(math.pi * number / count)) / 2
            passes = (
                pair for i in range(ROUND) for pair in data.batches(BATCH, ROUND * number + i)
            )
            fit(model, passes, functional.mse_loss, optimizer, steps=ROUND, progress=False)
    return model.eval()
