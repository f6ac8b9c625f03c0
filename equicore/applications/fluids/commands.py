"""What `equicore fluids` does: finetune, evaluate, plot."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from equicore.applications.finetuning.commands import Comparison, compare, tuning_of
from equicore.lab.command import Main
from equicore.lab.store import check_writable
from equicore.lab.tables import add_rows, check_made

if TYPE_CHECKING:
    from equicore.applications.fluids.finetune import Prediction
    from equicore.applications.fluids.flows import Flows

Hidden = Literal["first", "inner.0", "inner.1", "inner.2", "inner.3"]
RESULTS = Path("results/fluids")
DEFAULTS: dict[str, Any] = {"steps": 200, "views": 32, "rate": 1e-3}
SIMULATED = {"turbulence": (128, 16, 9, 32), "jets": (16, 32, 9, 32)}
"""Trajectories to learn from and to test on, their times, and the side of the grid."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """Trajectories of flows, and the network that predicts them."""

    data: Path | None = None
    """File of trajectories to fine-tune on: velocities (trajectories, times, 2, n, n), component 0
    along the rows' axis, as .npz or .safetensors. When omitted, jets that are simulated now."""
    pretrain_data: Path | None = None
    """Such a file, to pretrain on. When omitted, turbulence that is simulated now."""
    pretrain_steps: int = 1000
    """Steps of pretraining, a multiple of 50."""
    padding: Literal["circular", "zeros"] = "circular"
    """How convolutions go on at the edges: as the square does, or with zeros; then shifts are a
    second symmetry, of penalties and augmentation."""
    features: tuple[Hidden, ...] = ("inner.3",)
    """Layers whose maps penalties are on."""


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune a network that predicts flows on few trajectories of another flow, by all methods.

    Errors of a step and of rollouts, on test trajectories as they are and under random mirrors and
    turns, and deviations from equivariance. Adds to finetuning.csv; see `equicore finetuning`.

    Example: equicore fluids finetune --fractions 0.125 0.25 0.5 1 --seeds 0 1 2
    """

    flow: Flow = Flow()
    comparison: Comparison = Comparison()


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Look at the symmetries, rollouts and spectra of fine-tuned networks.

    Networks that `equicore fluids finetune` has trained are found again. Writes symmetry.md,
    rollouts.csv, and fields.png: a flow, its predictions and their errors.

    Example: equicore fluids evaluate --methods plain augmentation equitune
    """

    flow: Flow = Flow()
    comparison: Comparison = Comparison(fractions=(0.1,))
    results: Path = RESULTS
    """Folder for what is written; other rows of rollouts.csv stay."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw rmse and energy, as PNG and SVG, from rollouts.csv.

    Example: equicore fluids plot
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds what `equicore fluids evaluate` wrote."""


def run(command: Finetune | Evaluate | Plot) -> None:
    """Networks that predict flows, and the mirrors, turns and shifts of the flows."""
    mains: dict[type, Main] = {Finetune: _finetune, Evaluate: _evaluate, Plot: _plot}
    mains[type(command)](command)


def _finetune(arguments: Finetune) -> None:
    options = arguments.comparison
    tuning_of(options, **DEFAULTS)  # refuses what cannot be before a network is pretrained
    print(*compare(_task(arguments.flow, options.runs)[0], options, **DEFAULTS), sep="\n")


def _evaluate(arguments: Evaluate) -> None:
    import pandas as pd

    from equicore.applications.finetuning.experiment import check, made_with
    from equicore.applications.fluids import evaluation, flows
    from equicore.applications.fluids.network import pretrained
    from equicore.lab.jobs import Workers

    options, flow = arguments.comparison, arguments.flow
    tuning = tuning_of(options, **DEFAULTS)
    file = arguments.results / "rollouts.csv"
    task, source = _task(flow, options.runs)
    made = made_with(task, "plain", tuning)
    check_made(file, evaluation.COLUMNS, made, task=task.name)
    check(task, options.methods, options.fractions, tuning, options.output / "finetuning.csv")
    each = list(itertools.product(options.fractions, options.seeds, options.methods))
    work = [
        functools.partial(evaluation.follow, task, method, fraction, seed, tuning, options.runs)
        for fraction, seed, method in each
    ]
    tables, *drawn = zip(*Workers(options.jobs).map(work, "networks"), strict=True)
    add_rows(file, pd.concat(tables).assign(digest=made), evaluation.KEYS)
    models: dict[str, Any] = {
        padding: pretrained(source.name, source.train, options.runs, padding, flow.pretrain_steps)
        for padding in ("circular", "zeros")
    } | {evaluation.SOLVER: flows.solved}
    first = dict(zip(options.methods, zip(*drawn, strict=True), strict=False))
    written = evaluation.write_symmetry(models, arguments.results)
    print(file, written, *evaluation.write_fields(first, arguments.results), sep="\n")


def _plot(arguments: Plot) -> None:
    from equicore.applications.fluids import evaluation  # which loads torch and matplotlib

    print(*evaluation.write_figures(arguments.folder), sep="\n")


def _task(flow: Flow, folder: Path) -> tuple[Prediction, Flows]:
    """The task, and the flows that its network was pretrained on; all is made now if need be."""
    from equicore.applications.fluids.finetune import Prediction
    from equicore.applications.fluids.flows import read, simulated
    from equicore.applications.fluids.network import ROUND, pretrained

    if flow.pretrain_steps < ROUND or flow.pretrain_steps % ROUND:
        raise ValueError(f"--pretrain-steps is a multiple of {ROUND}; got {flow.pretrain_steps}")
    check_writable(folder / "network")
    source, target = (
        simulated(name, *SIMULATED[name], folder) if file is None else read(file)
        for name, file in (("turbulence", flow.pretrain_data), ("jets", flow.data))
    )
    steps, zeros = flow.pretrain_steps, flow.padding == "zeros"
    model = pretrained(source.name, source.train, folder, flow.padding, steps)
    name = f"{target.name} from {source.name}" + (", zero-padded" if zeros else "")
    return Prediction(model, target, name, flow.features, shifts=zeros), source
