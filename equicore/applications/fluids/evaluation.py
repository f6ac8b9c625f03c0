"""What is seen of models beside their errors: symmetries, rollouts, spectra and fields."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from equicore.applications.finetuning.experiment import Tuning, fine_tuned
from equicore.applications.finetuning.names import Method
from equicore.applications.fluids.finetune import Prediction, all_shifts, rmse, rollout
from equicore.applications.fluids.flows import jets
from equicore.applications.fluids.solver import spectrum, velocity, vorticity
from equicore.lab import figures
from equicore.lab.statistics import t_interval
from equicore.lab.store import write_text
from equicore.lab.tables import frame_markdown, read_csv
from equicore.representations import image_dihedral, vector_field
from equicore.verify import equivariance_error

KEYS = ["task", "method", "fraction", "seed", "condition", "measure", "at"]
COLUMNS = [*KEYS, "value"]
SOLVER, DRAWN = "solver", 4
"""The method whose energies are true, and the step of a rollout that is drawn."""
MEASURES = {
    "rmse": ("steps", "RMSE of velocity", "linear"),
    "energy": ("wavenumber", "energy after the last step", "log"),
}
"""What rollouts.csv has, at what, and how it is drawn."""
NOTE = "means over seeds of the training data; bands: their 95 % intervals by Student's t"
SYMMETRY = """\
# Symmetries of the solver, and of networks before fine-tuning

Made by `equicore fluids evaluate`: the largest |f(g u) - g f(u)|, relative to the largest |f|, over
elements g and the velocities u of two jets. Rounding alone gives 1e-6 (float32), 1e-15 (float64).

"""


def write_symmetry(models: Mapping[str, Callable[[Any], Any]], folder: Path) -> Path:
    """Write symmetry.md: errors of equivariance of models of velocities (B, 2, n, n), by name.

    They are measured on jets that are simulated; of modules copies are, in both types.
    """
    velocities = velocity(jets(2, 32, torch.Generator().manual_seed(0)))
    groups = {"mirrors and turns": image_dihedral(), "shifts": all_shifts(velocities.shape[-1])}
    rows: list[list[Any]] = []
    for name, model in models.items():
        for group, grid in groups.items():
            field, errors = vector_field(grid), []
            some = grid.group.sample(min(64, len(grid.group)))
            for kind in (torch.float32, torch.float64):
                of = copy.deepcopy(model).to(kind) if isinstance(model, nn.Module) else model
                found = equivariance_error(of, field, field, velocities.to(kind), elements=some)
                errors.append(f"{float(found.relative.max()):.0e}")
            rows.append([name, group, len(found.elements), *errors])
    table = pd.DataFrame(rows, columns=["model", "symmetry", "elements", "float32", "float64"])
    write_text(folder / "symmetry.md", SYMMETRY + frame_markdown(table) + "\n")
    return folder / "symmetry.md"


def follow(
    task: Prediction, method: Method, fraction: float, seed: int, tuning: Tuning, folder: Path
) -> tuple[pd.DataFrame, Tensor, Tensor]:
    """Fine-tune a network, if it has not been, and let it predict from the first test velocities.

    Returns a table of `COLUMNS`, a velocity (2, n, n), moved, and its prediction.
    """
    model = fine_tuned(task, method, fraction, seed, tuning, folder)
    rows: list[tuple[Any, ...]] = []
    for condition, velocities in task.conditions().items():
        true = velocities[:, 1:]
        path = rollout(model, velocities[:, 0], true.shape[1])
        for step in range(true.shape[1]):
            rows.append((method, condition, "rmse", step + 1, rmse(path[:, step], true[:, step])))
        for name, last in ((method, path[:, -1]), (SOLVER, true[:, -1])):
            energies = enumerate(spectrum(last).mean(0)[1 : -(-true.shape[-1] // 3)].tolist(), 1)
            rows += [(name, condition, "energy", shell, value) for shell, value in energies]
    table = pd.DataFrame(rows, columns=["method", "condition", "measure", "at", "value"])
    table = table.assign(task=task.name, fraction=fraction, seed=seed)[COLUMNS]
    as_they_are, moved = task.conditions().values()
    drawn = (moved - as_they_are).square().flatten(1).sum(1).argmax(), min(DRAWN, true.shape[1]) - 1
    return table, true[drawn], path[drawn]


def write_fields(predictions: Mapping[str, tuple[Tensor, Tensor]], folder: Path) -> list[Path]:
    """Draw fields.png: the vorticity of a moved test flow, its predictions, and their errors.

    Predictions are, for each method, the true velocity (2, n, n) and the predicted one.
    """
    figure, axes = figures.grid(2, 1 + len(predictions), figsize=(1.3 + 1.3 * len(predictions), 3))
    errors = {name: (found - true).norm(dim=0) for name, (true, found) in predictions.items()}
    fields = {SOLVER: next(iter(predictions.values()))[0]}
    fields |= {name: found for name, (_, found) in predictions.items()}
    most = float(vorticity(fields[SOLVER]).abs().max())
    worst = float(min(error.max() for error in errors.values()))
    for place, (name, field) in enumerate(fields.items()):
        axes[0, place].imshow(vorticity(field).numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
        axes[0, place].set_title(name.replace("_", " "), fontsize=8)
        if name in errors:
            rms = float((errors[name].square().mean() / 2).sqrt())
            axes[1, place].imshow(errors[name].numpy(), cmap="Greys", vmin=0, vmax=worst)
            axes[1, place].set_title(f"RMSE {rms:.3f}", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    axes[1, 0].set_axis_off()
    axes[0, 0].set_ylabel("vorticity", fontsize=8)
    axes[1, 1].set_ylabel("error of velocity", fontsize=8)
    return figures.save(figure, folder / "fields", dpi=110)


def write_figures(folder: Path) -> list[Path]:
    """Draw rmse and energy from rollouts.csv; errors as of `equicore.lab.tables.read_csv`."""
    table = read_csv(folder / "rollouts.csv", COLUMNS, "equicore fluids evaluate")
    methods, files = list(table.method.unique()), []
    for measure, (x, y, scale) in MEASURES.items():
        rows = table[table.measure == measure]
        each = list(rows.groupby(["task", "fraction", "condition"], sort=False))
        figure, axes = figures.panels(len(each), size=(4.4, 3), columns=2)
        for axis, ((task, fraction, condition), some) in zip(axes, each, strict=True):
            for method, own in some.groupby("method", sort=False):
                found = [t_interval(values) for _, values in own.groupby("at").value]
                colour = "black" if method == SOLVER else f"C{methods.index(method)}"
                label, places = str(method).replace("_", " "), sorted(own["at"].unique())
                figures.band(axis, places, found, colour, label=label, lw=1)
            axis.set(xlabel=x, ylabel=y, yscale=scale)
            axis.set_title(f"{task}, part {fraction:.3g}: {condition}", fontsize=8)
            figures.tidy(axis)
        figures.legend_below(figure, axes[0], NOTE)
        files += figures.save(figure, folder / measure, dpi=110, colours=64)
    return files
