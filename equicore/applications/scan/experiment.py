"""The networks of the experiment: one for each split, cell, symmetry of its weights, and seed.

Each is trained by one process on one core and written whole or not at all; a training that was
killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from equicore.applications.scan.data import Pair, load_split
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.vocabulary import Batch, Batches, token_loss
from equicore.lab.jobs import Workers
from equicore.lab.store import digest, rounds

CELL_EPOCHS = {"rnn": 40, "gru": 30, "lstm": 30}
"""Passes over the training pairs that each cell is given."""
RESUME = "resume.safetensors"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int  # passes over the training pairs
    batch_size: int = 64  # pairs in a step, of outputs of about the same length
    learning_rate: float = 3e-3  # Adam's largest
    warmup: int = 100  # steps in which it rises; then it falls along a cosine to 2 %
    teacher_forcing: float = 0.5  # part of the batches that are given the true tokens before each
    clip: float = 5.0  # largest norm of the gradient
    held_out: float = 0.2  # part of the training pairs that validates

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * ((step + 1) / self.warmup)
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


@dataclasses.dataclass(frozen=True)
class Run:
    """A network, what it is trained on, and where it is kept."""

    runs: Path  # the folder of all runs
    split: str
    cell: str
    seed: int  # of the held-out pairs, the initial parameters and the training
    over: str = "none"  # the symmetry of its weights
    epochs: int | None = None  # when omitted, CELL_EPOCHS
    fit_steps: int = 300  # in which weights of lambda-equitune are fitted

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.runs / self.split / self.over / f"{self.cell}_{self.seed}"

    @property
    def file(self) -> Path:
        """Of the trained network."""
        return self.folder / "network.safetensors"

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return Recipe(epochs=CELL_EPOCHS[self.cell] if self.epochs is None else self.epochs)

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that tell it from all others."""
        named = {"split": self.split, "cell": self.cell, "over": self.over, "seed": self.seed}
        return {**named, "recipe": dataclasses.asdict(self.recipe)}

    def parts(self) -> dict[str, list[Pair]]:
        """The pairs to train on, to validate and to test."""
        pairs, test = load_split(self.split)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(self.seed))
        shuffled = [pairs[i] for i in order.tolist()]
        split = round(self.recipe.held_out * len(pairs))
        return {"train": shuffled[split:], "validation": shuffled[:split], "test": test}

    def train(self, progress: bool = False) -> None:
        """Train the network and write it, if that has not been done."""
        if self.file.is_file():
            return
        network = Seq2Seq(self.cell, over=self.over, seed=self.seed)
        pairs = self.parts()["train"]
        train(network, pairs, self.recipe, self.seed, self.folder, progress=progress)
        network.save(self.file, **self.settings)
        (self.folder / RESUME).unlink(missing_ok=True)

    def network(self, progress: bool = False) -> Seq2Seq:
        """The network, trained now if it has not been.

        Raises:
            FileExistsError: If the folder holds another network.
        """
        self.train(progress)
        return Seq2Seq.load(self.file, **self.settings)


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Train those networks that have not been trained, each on one core.

    Raises:
        FileExistsError: If one is there that was trained otherwise; before any work.
    """
    missing = [run for run in runs if not run.file.is_file()]
    for run in runs:
        if run not in missing:
            run.network()
    Workers(jobs).map([functools.partial(run.train, jobs == 1) for run in missing], "networks")


def train(
    network: Seq2Seq,
    pairs: Sequence[Pair],
    recipe: Recipe,
    seed: int,
    folder: Path | None = None,
    *,
    progress: bool = True,
) -> None:
    """Train a network in place on some pairs, from the parameters that it has.

    ``seed`` is that of the order of the pairs, dropout and teacher forcing; the global random state
    is left alone. ``folder`` keeps the state after each epoch: a training that was killed goes on
    from there, and ends with the same parameters, on the same machine.

    Raises:
        FileExistsError: If the folder holds the state of another training.
        ValueError: If the loss is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    batches = Batches(pairs, recipe.batch_size)
    steps = len(batches)
    total = steps * recipe.epochs
    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    settings = {
        "arguments": network.arguments,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "pairs": digest(repr(list(pairs)).encode()),
        "start": digest(start.numpy().tobytes()),
    }
    file = folder and folder / RESUME
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer}
    with tqdm(total=total, unit="step", disable=not progress) as bar:
        for epoch in rounds(file, settings, recipe.epochs, seed, **parts):
            bar.update(epoch * steps - bar.n)
            for step, batch in enumerate(batches.epoch(1000 * seed + epoch), epoch * steps):
                optimizer.param_groups[0]["lr"] = recipe.rate(step, total)
                loss = _step(network, batch, recipe, optimizer)
                bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
                bar.update()
    network.eval()


def _step(
    network: Seq2Seq, batch: Batch, recipe: Recipe, optimizer: torch.optim.Optimizer
) -> float:
    """One step of the optimiser; the loss before it."""
    inputs, actions = batch
    network.train()
    if torch.rand(()) < recipe.teacher_forcing:
        scores = network(**inputs)
    else:
        scores = network.write(inputs["commands"], actions.shape[1])
    loss = token_loss({"log_probabilities": scores}, actions)
    if not loss.isfinite():
        raise ValueError("the loss is not finite; a smaller learning rate may help")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()
