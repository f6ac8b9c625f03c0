"""Trajectories of flows: two families that are simulated here, and files of others.

Neither family is symmetric, as measured flows with a mean wind are not: their initial states have a
preferred direction. The equations that move them have none.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from equicore.applications.fluids import solver
from equicore.applications.fluids.solver import Solver, check_grid, velocity
from equicore.lab.store import remembered_tensors
from equicore.representations import Image, Matrix, TensorProduct

VERSION = 1
"""Of what is simulated: to be raised with every change."""
INTERVAL, STEPS = 0.5, 20
"""Time between two states of a trajectory, and steps of the solver in it."""


def turbulence(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Vorticity (count, n, n), in float64, of random flows that are stretched along one direction.

    A Gaussian field whose waves are about a third of the square long and stand for the most part at
    25 degrees to the rows' axis. The root mean square of each velocity is 1.
    """
    white = torch.randn(count, side, side, generator=generator, dtype=torch.float64)
    k0 = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64).unsqueeze(-1)
    k1 = torch.fft.rfftfreq(side, 1 / side, dtype=torch.float64)
    length, angle = torch.hypot(k0, k1), torch.atan2(k1, k0) - math.radians(25)
    size = length**2 * torch.exp(-((length / 3) ** 2) + torch.cos(2 * angle))
    waves = torch.fft.rfft2(white) * size.where(2 * length < side, 0)
    return _normal(torch.fft.irfft2(waves, s=(side, side)))


def jets(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Vorticity (count, n, n), in float64, of jets to the right, with weak `turbulence`.

    Position and width of a jet are random. The root mean square of each velocity is 1.
    """
    centre, width = torch.rand(2, count, 1, 1, generator=generator, dtype=torch.float64)
    x0 = 2 * math.pi * (torch.arange(side, dtype=torch.float64).unsqueeze(-1) / side - centre)
    sharp = 2 + 4 * width
    shear = -sharp * x0.sin() * torch.exp(sharp * (x0.cos() - 1))
    jet = _normal(shear.expand(count, side, side))
    return _normal(jet + 0.4 * turbulence(count, side, generator))


def _normal(w: Tensor) -> Tensor:
    w = w - w.mean((-2, -1), keepdim=True)
    return w / velocity(w).square().sum(-3).mean((-2, -1), keepdim=True).sqrt()


FAMILIES = {"turbulence": (turbulence, 0.02), "jets": (jets, 0.01)}
"""How initial vorticities are drawn, and the viscosity."""


@dataclasses.dataclass(frozen=True)
class Flows:
    """Trajectories of velocities, (trajectories, times, 2, n, n), to learn from and to test on."""

    name: str
    train: Tensor
    test: Tensor


def simulated(name: str, train: int, test: int, times: int, side: int, folder: Path) -> Flows:
    """So many trajectories of one of `FAMILIES`, simulated now if a folder does not keep them.

    They have states at so many times, `INTERVAL` apart, on a grid of ``side`` x ``side``.
    """
    draw, viscosity = FAMILIES[name]
    sizes = {"train": train, "test": test, "times": times, "side": side}
    settings = {"viscosity": viscosity, "interval": INTERVAL, "steps": STEPS, **sizes}
    settings["version"] = VERSION

    def make() -> dict[str, Tensor]:
        start = draw(train + test, side, torch.Generator().manual_seed(0))
        paths, advance = [], Solver(viscosity, INTERVAL / STEPS).advance
        for part in tqdm(start.split(8), f"simulating {name}", disable=None):
            states = [advance(part, 0)]
            for _ in range(times - 1):
                states.append(advance(states[-1], STEPS))
            paths.append(velocity(torch.stack(states, 1)).float())
        return {"train": torch.cat(paths)[:train], "test": torch.cat(paths)[train:]}

    return Flows(name, **remembered_tensors(folder / f"{name}.safetensors", settings, make))


def solved(velocities: Tensor) -> Tensor:
    """The solver as a model: velocities (B, 2, n, n) of jets an interval later."""
    advance = Solver(FAMILIES["jets"][1], INTERVAL / STEPS).advance
    return velocity(advance(solver.vorticity(velocities), STEPS))


def read(path: str | Path) -> Flows:
    """Flows from a file of NumPy (.npz) or safetensors, in units of their typical velocity.

    It holds one array, or one that is named velocity, of shape (trajectories, times, 2, n, n);
    component 0 is along the rows' axis. A quarter of the trajectories, drawn at random, is to test
    on. Nothing in the file is executed. A divergence of over 0.001 of the gradients is warned of.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind, or the array has another shape, fewer than
            3 trajectories or 2 times, values that are not finite, or nothing but zeros.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        fields = _array(path)
        check_grid(fields, 2)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as e:
        raise ValueError(f"{path} holds no flows that can be read: {e}") from e
    fields = fields.float()
    if fields.ndim != 5 or len(fields) < 3 or fields.shape[1] < 2:
        raise ValueError(
            f"{path} holds {tuple(fields.shape)}; flows are (trajectories, times, 2, n, n), of at "
            "least 3 trajectories, to learn from, to choose by and to test on, and 2 times"
        )
    order = np.random.default_rng(0).permutation(len(fields))
    test, train = (fields[rows] for rows in np.split(order, [max(1, len(fields) // 4)]))
    if not fields.isfinite().all() or not train.any():
        raise ValueError(f"{path} has nothing but zeros, or numbers that are not finite in float32")
    unit = train.square().sum(2).mean().sqrt()
    diverging, turning = (
        of(fields).square().mean() for of in (solver.divergence, solver.vorticity)
    )
    if (part := float((diverging / (diverging + turning)).sqrt())) > 1e-3:
        warnings.warn(
            f"{path}: the divergence of the velocities is {part:.2g} of their gradients; for flows "
            "on a periodic square it is near 0. Component 0 is along the rows' axis",
            stacklevel=2,
        )
    return Flows(path.stem, train / unit, test / unit)


def _array(path: Path) -> Tensor:
    """The only array in a file, or that named velocity."""

    def chosen(names: list[str]) -> str:
        if len(names) != 1 and "velocity" not in names:
            raise ValueError(f"of its arrays {', '.join(names)} none is named velocity")
        return names[0] if len(names) == 1 else "velocity"

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays[chosen(list(arrays))])
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            return file.get_tensor(chosen(list(file.keys())))
    raise ValueError("flows are in .npz or .safetensors files")


def vorticity_field(grid: Image) -> TensorProduct:
    """How turns, mirrors and shifts act on vorticities (B, 1, n, n), whose sign a mirror turns.

    On velocities (B, 2, n, n) they act by `equicore.vector_field`.
    """
    signs = [round(float(np.linalg.det(grid.linear_part(g)))) for g in range(len(grid.group))]
    return TensorProduct(Matrix(grid.group, np.reshape(signs, (-1, 1, 1)), dim=-3), grid)
