"""Fine-tuning on few trajectories: the task that `equicore.applications.finetuning` runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.applications.finetuning.task import Data, Task
from equicore.applications.fluids.flows import Flows
from equicore.applications.fluids.network import Trajectories
from equicore.applications.fluids.solver import check_grid, spectrum
from equicore.finetuning import Problem, Symmetry, relative_error
from equicore.lab.store import digest_tensors
from equicore.representations import Image, image_dihedral, image_shifts, vector_field
from equicore.weights import conv_weight

PROBES = 16
"""Test velocities that deviations are measured on."""


class Prediction(Task):
    """A network that predicts the next velocity, fine-tuned on trajectories of another flow.

    Its first symmetry is that of mirrors and quarter turns. Metrics are the root mean square error
    of a step, ``rmse``, from each velocity; that of a ``rollout``, in which each velocity is
    predicted from the prediction before; and of its ``spectrum`` after the last step: by how many
    decades the energy in a shell of wavenumbers below n / 3 is wrong, on average. Those that are
    called moved are of trajectories each under a random mirror or turn.

    Args:
        model: Pretrained; it maps velocities (B, 2, n, n) to velocities.
        flows: To fine-tune on, and to test on.
        name: What tables call the task.
        features: Submodules for penalties on hidden maps (B, channels, n, n). The grid moves them;
            their channels are taken for scalars.
        shifts: Whether shifts by whole cells are a second symmetry, of penalties and augmentation.

    Raises:
        ValueError: If the flows have no square grid.
    """

    metrics = dict.fromkeys(
        ("rmse", "rmse_moved", "rollout", "rollout_moved", "spectrum", "spectrum_moved"), False
    )
    chosen_by = "rmse_moved"

    def __init__(
        self,
        model: nn.Module,
        flows: Flows,
        name: str,
        features: Sequence[str] = (),
        shifts: bool = False,
    ) -> None:
        self.name, self.base = name, model
        self.training, self.test = Trajectories(flows.train), Trajectories(flows.test)
        self.settings = {
            "model": digest_tensors(model.state_dict()) + str(model),
            "flows": digest_tensors({"train": flows.train, "test": flows.test}),
            "features": list(features),
            "shifts": shifts,
        }
        side = check_grid(flows.test, 2)
        symmetries = [_symmetry("mirrors and turns", image_dihedral(), features)]
        if shifts:
            symmetries.append(_symmetry("shifts", all_shifts(side), features))
        look = functools.partial(conv_weight, 2)
        self.problem = Problem(functional.mse_loss, tuple(symmetries), relative_error, look)

    def model(self, seed: int, data: Data | None = None) -> nn.Module:
        """The pretrained model, which has no new layers."""
        return copy.deepcopy(self.base)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The errors on test trajectories."""
        found = {}
        for end, velocities in zip(("", "_moved"), self.conditions().values(), strict=True):
            found[f"rmse{end}"] = one_step(model, velocities)
            path = rollout(model, velocities[:, 0], velocities.shape[1] - 1)
            found[f"rollout{end}"] = rmse(path, velocities[:, 1:])
            found[f"spectrum{end}"] = spectral_error(path[:, -1], velocities[:, -1])
        return found

    def validate(self, model: nn.Module, data: Data) -> float:
        """The error of one step on other trajectories, moved."""
        assert isinstance(data, Trajectories)
        return one_step(model, self._moved(data.velocities))

    def conditions(self) -> dict[str, Tensor]:
        """The test trajectories as they are, and moved, always alike."""
        velocities = self.test.velocities
        return {"as they are": velocities, "moved": self._moved(velocities)}

    def _moved(self, velocities: Tensor) -> Tensor:
        symmetry, (count, times) = self.problem.symmetries[0], velocities.shape[:2]
        generator = torch.Generator().manual_seed(0)
        elements = torch.randint(symmetry.order, (count,), generator=generator)
        moved = symmetry.input.act_each(elements.repeat_interleave(times), velocities.flatten(0, 1))
        return moved.view_as(velocities)

    def probes(self) -> list[Tensor]:
        """Some of all test velocities."""
        states = self.test.velocities.flatten(0, 1)
        return [states[:: max(1, len(states) // PROBES)][:PROBES]]


def _symmetry(name: str, grid: Image, features: Sequence[str]) -> Symmetry:
    field = vector_field(grid)
    return Symmetry(field, field, features=dict.fromkeys(features, grid), name=name)


def one_step(model: nn.Module, velocities: Tensor) -> float:
    """The error of all predictions from trajectories (B, times, 2, n, n)."""
    true = velocities[:, 1:]
    return rmse(in_batches(model, velocities[:, :-1].flatten(0, 1)).view_as(true), true)


def rollout(model: nn.Module, start: Tensor, steps: int) -> Tensor:
    """Velocities that are each predicted from the prediction before, (B, steps, 2, n, n)."""
    path = [start]
    for _ in range(steps):
        path.append(in_batches(model, path[-1]))
    return torch.stack(path[1:], 1)


@torch.no_grad()
def in_batches(model: nn.Module, velocities: Tensor) -> Tensor:
    """What a model predicts for velocities (B, 2, n, n), a few at a time."""
    return torch.cat([model(some) for some in velocities.split(32)])


def rmse(predicted: Tensor, true: Tensor) -> float:
    """The root mean square of all errors; infinite if a prediction is not finite."""
    return float((predicted - true).square().mean().sqrt().nan_to_num(torch.inf, torch.inf))


def spectral_error(predicted: Tensor, true: Tensor) -> float:
    """By how many decades mean energies in shells 1 to n / 3 of (B, 2, n, n) are wrong."""
    tiny = torch.finfo(true.dtype).tiny
    logs = [spectrum(u).mean(0).clamp(min=tiny).log10() for u in (predicted, true)]
    wrong = (logs[0] - logs[1])[1 : -(-true.shape[-1] // 3)].abs().mean()
    return float(wrong.nan_to_num(torch.inf, torch.inf))


def all_shifts(side: int) -> Image:
    """Shifts of n x n cells by whole cells, of more than 32 x 32 by several."""
    step = next(k for k in range(1, side + 1) if side % k == 0 and side // k <= 32)
    return image_shifts(side, side, step)
