"""Fine-tuning a trained network that is made equivariant (Basu et al., NeurIPS 2023, section 5.2).

All its parameters are trained on the pairs that it was trained on, through the symmetrization: its
training pairs never hold "jump" in a phrase, but what it learns of "run" it then knows of "jump".
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from equicore.applications.scan.experiment import Run, kept
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.symmetrize import (
    InStep,
    by_branch,
    mean_max_probability,
    written_as,
)
from equicore.applications.scan.training import Batches, forced, keep, restore, written_loss
from equicore.applications.scan.vocabulary import END, WordSymmetry, symmetry
from equicore.applications.scan.weights import fit_per_token
from equicore.applications.scan.zero_shot import COLUMNS, PARTS, SAMPLES, Answer, accuracies, plain
from equicore.reduce import Best, Mean, StraightThrough, WeightedMean
from equicore.representations import Tree
from equicore.symmetrize import Symmetrized
from equicore.training import fit

Method = Literal["equitune", "equizero", "lambda_token"]
METHODS: tuple[Method, ...] = get_args(Method)
STEPS = (0, 100, 300, 1000, 3000, 10000)
"""After so many steps the network is evaluated."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A fine-tuning.

    Attributes:
        group: The symmetry.
        method: One of `METHODS`.
        steps: The network is evaluated after so many steps; they rise.
        batch_size: Pairs in a step.
        learning_rate: Adam's.
    """

    group: str
    method: str
    steps: tuple[int, ...] = STEPS
    batch_size: int = 16
    learning_rate: float = 1e-4


class Forced(nn.Module):
    """The network as a function of commands and the tokens before each: see `Writer`."""

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``probabilities`` and ``log_probabilities`` (N, T, 7), ``real`` (N, T).

        The last is 1 for tokens up to the first END.
        """
        before = batch["before"]
        scores = self.network(batch["commands"], before)
        return {
            "probabilities": scores.exp(),
            "log_probabilities": scores,
            "real": (before != END).to(scores.dtype),
        }


def tunable(
    method: str, network: Seq2Seq, over: WordSymmetry, per_token: nn.Module | None = None
) -> tuple[nn.Module, Answer]:
    """What is trained, and what is evaluated, of one and the same network.

    Args:
        method: One of `METHODS`.
        network: Is changed by the training.
        over: The exchanges of words.
        per_token: The weights of "lambda_token", trained jointly; of `fit_per_token`.

    Returns:
        A model that maps ``{"commands": (B, L), "before": (B, T)}`` to a dict with
        ``probabilities`` and ``log_probabilities`` (B, T, 7), and a function that maps commands to
        tokens. All branches write in step, but with equizero, which chooses between whole outputs.
        Its straight-through gradient is that of the mean of the branches' log-probabilities, as in
        the published code. As the loss is linear in them, it learns what the network alone would
        from all exchanged pairs: the choice counts in the loss, and in what is answered.

    Raises:
        ValueError: If there is no such method, or its weights are missing.
    """
    if method == "equizero":
        best = Best(mean_max_probability)
        inputs = Tree({"commands": over.source, "before": over.target})
        model = Symmetrized(
            Forced(network), inputs, written_as(over), StraightThrough(best, Mean())
        )
        written = by_branch(network, over, best)
        return model, lambda commands: written(commands)["probabilities"].argmax(-1)
    if method == "equitune":
        in_step = InStep(network, over, Mean())
    elif method == "lambda_token" and per_token is not None:
        in_step = InStep(network, over, WeightedMean(per_token))
    else:
        raise ValueError(
            f"fine-tuning is by equitune, equizero, or lambda_token with weights; got {method!r}"
        )
    return in_step, in_step.write


def measure(run: Run, tuning: Tuning, progress: bool = False) -> pd.DataFrame:
    """Accuracies after some numbers of steps, of a network that is fine-tuned under a symmetry.

    What was done is kept at each of them; a fine-tuning that was killed goes on from there.

    Returns:
        A table of the columns of `equicore.applications.scan.zero_shot`, and "steps".

    Raises:
        ValueError: If the folder holds a fine-tuning of other settings.
    """
    about = {**run.about, **dataclasses.asdict(tuning)}
    file = run.folder / f"finetune_{tuning.group}_{tuning.method}.csv"
    resume = file.with_suffix(".safetensors")

    def measured() -> pd.DataFrame:
        network, parts, over = run.network(), run.parts(), symmetry(tuning.group)
        per_token = None
        if tuning.method == "lambda_token":
            per_token = fit_per_token(
                network, over, parts["train"], seed=run.seed, progress=progress
            )
        model, answer = tunable(tuning.method, network, over, per_token)
        optimizer = torch.optim.Adam(model.parameters(), lr=tuning.learning_rate)
        rows = restore(resume, model, optimizer, about).get("rows", [])
        batches = Batches(parts["train"], tuning.batch_size)
        known = (run.split, run.cell, tuning.group, tuning.method, run.seed)
        for first, last in itertools.pairwise((0, *tuning.steps)):
            if any(row[-1] == last for row in rows):
                continue
            stage = itertools.islice(batches.first(last, run.seed), first, None)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * run.seed + last)  # of dropout
                fit(
                    model,
                    forced(stage),
                    written_loss,
                    optimizer,
                    steps=last - first,
                    progress=progress,
                )
            for part in PARTS:
                methods = {tuning.method: answer}
                (value,) = accuracies(methods, parts[part], SAMPLES // len(over.group)).values()
                rows.append([*known, part, value, last])
            keep(resume, model, optimizer, about | {"rows": rows})
        return pd.DataFrame(rows, columns=[*COLUMNS, "steps"])

    table = kept(file, about, measured)
    resume.unlink(missing_ok=True)
    return table


def equivariant_name(cell: str) -> str:
    """What tables call the network that is equivariant by its weights."""
    return f"G-{cell.upper()}"


def measure_equivariant(run: Run) -> pd.DataFrame:
    """Accuracies of a network that is equivariant by its weights, after the training of all.

    Returns:
        A table as that of `measure`; "steps" are those of its training.
    """

    def measured() -> pd.DataFrame:
        network, parts = run.network(), run.parts()
        steps = run.recipe.epochs * len(Batches(parts["train"], run.recipe.batch_size))
        method = equivariant_name(run.cell)
        rows = [
            (run.split, run.cell, run.over, method, run.seed, part, value, steps)
            for part in PARTS
            for value in accuracies({method: plain(network)}, parts[part]).values()
        ]
        return pd.DataFrame(rows, columns=[*COLUMNS, "steps"])

    return kept(run.folder / "equivariant.csv", run.about, measured)
