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
from torch import nn

from equicore.applications.scan import symmetrize
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.vocabulary import Batches, WordSymmetry, symmetry, token_loss
from equicore.applications.scan.zero_shot import COLUMNS, PARTS, SAMPLES, Answer, accuracies, plain
from equicore.finetuning import fit
from equicore.lab.store import remembered, restore_state, write_state
from equicore.reduce import Best, Mean, StraightThrough, WeightedMean

Method = Literal["equitune", "equizero", "lambda_token"]
METHODS: tuple[Method, ...] = get_args(Method)
STEPS = (0, 100, 300, 1000, 3000, 10000)
"""After so many steps the network is evaluated."""
EQUIVARIANT = {"lstm": "G-LSTM", "gru": "G-GRU", "rnn": "G-RNN"}
"""What tables call the networks that are equivariant by their weights."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A fine-tuning by one of `METHODS` under a symmetry."""

    group: str
    method: str
    steps: tuple[int, ...] = STEPS  # the network is evaluated after so many; they rise
    batch_size: int = 16
    learning_rate: float = 1e-4  # Adam's


def tunable(
    method: str, network: Seq2Seq, over: WordSymmetry, per_token: nn.Module | None = None
) -> tuple[nn.Module, Answer]:
    """What is trained, and what is evaluated, of one and the same network.

    The first maps ``{"commands": (B, L), "before": (B, T)}`` to a dict with ``probabilities`` and
    ``log_probabilities`` (B, T, 7), the second commands to tokens. All branches write in step,
    except with equizero, which chooses between whole outputs. Its straight-through gradient is that
    of the mean of the branches' log-probabilities, as in the published code. As the loss is linear
    in them, it learns what the network alone would from all exchanged pairs: the choice counts in
    the loss, and in what is answered.

    Raises:
        ValueError: If there is no such method, or "lambda_token" lacks weights ``per_token``.
    """
    if method == "equizero":
        best = Best(symmetrize.mean_max_probability)
        written = symmetrize.by_branch(network, over, best)
        model = symmetrize.forced(network, over, StraightThrough(best, Mean()))
        return model, lambda commands: written(commands)["probabilities"].argmax(-1)
    if method == "equitune":
        in_step = symmetrize.InStep(network, over, Mean())
    elif method == "lambda_token" and per_token is not None:
        in_step = symmetrize.InStep(network, over, WeightedMean(per_token, of_outputs=True))
    else:
        raise ValueError(
            f"fine-tuning is by equitune, equizero, or lambda_token with weights; got {method!r}"
        )
    return in_step, in_step.write


def measure(run: Run, tuning: Tuning, progress: bool = False) -> pd.DataFrame:
    """Accuracies after some numbers of steps, of a network that is fine-tuned under a symmetry.

    What was done is kept at each of them; a fine-tuning that was killed goes on from there. Returns
    a table of the columns of `equicore.applications.scan.zero_shot`, and "steps".

    Raises:
        FileExistsError: If the folder holds a fine-tuning of other settings.
    """
    file = run.folder / f"finetune_{tuning.group}_{tuning.method}.csv"
    resume = file.with_suffix(".safetensors")
    settings = {**run.settings, **dataclasses.asdict(tuning), "fit_steps": run.fit_steps}

    def made() -> pd.DataFrame:
        network, training, over = run.network(), run.parts()["train"], symmetry(tuning.group)
        per_token = None
        if tuning.method == "lambda_token":
            per_token = symmetrize.fit_per_token(
                network, over, training, steps=run.fit_steps, seed=run.seed, progress=progress
            )
        model, answer = tunable(tuning.method, network, over, per_token)
        optimizer = torch.optim.Adam(model.parameters(), lr=tuning.learning_rate)
        kept = restore_state(resume, settings, model=model, optimizer=optimizer)
        rows = kept.get("rows", [])
        batches = Batches(training, tuning.batch_size)
        for first, last in itertools.pairwise((0, *tuning.steps)):
            if any(row[-1] == last for row in rows):
                continue
            stage = list(itertools.islice(batches.first(last, run.seed), first, None))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * run.seed + last)  # of dropout
                fit(model, stage, token_loss, optimizer, steps=len(stage), progress=progress)
            size = SAMPLES // len(over.group)
            rows += _rows(run, tuning.group, tuning.method, answer, last, size)
            write_state(resume, settings | {"rows": rows}, model=model, optimizer=optimizer)
        return pd.DataFrame(rows, columns=[*COLUMNS, "steps"])

    table = remembered(file, settings, made)
    resume.unlink(missing_ok=True)
    return table


def measure_equivariant(run: Run) -> pd.DataFrame:
    """Accuracies of a network that is equivariant by its weights, after its training.

    A table as that of `measure`; "steps" are all of its training.
    """

    def made() -> pd.DataFrame:
        epoch = len(Batches(run.parts()["train"], run.recipe.batch_size))
        method, steps = EQUIVARIANT[run.cell], run.recipe.epochs * epoch
        rows = _rows(run, run.over, method, plain(run.network()), steps, SAMPLES)
        return pd.DataFrame(rows, columns=[*COLUMNS, "steps"])

    return remembered(run.folder / "equivariant.csv", run.settings, made)


def _rows(
    run: Run, group: str, method: str, answer: Answer, steps: int, batch_size: int
) -> list[tuple]:
    """Accuracies on both parts."""
    parts = run.parts()
    return [
        (run.split, run.cell, group, method, run.seed, part, accuracy, steps)
        for part in PARTS
        for accuracy in accuracies({method: answer}, parts[part], batch_size).values()
    ]
