"""One model of one task: how it is made, trained and measured."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from equicore.applications.so2.names import ALONE, MODELS, SAMPLED
from equicore.applications.so2.tasks import TASKS, Task
from equicore.continuous import Canonicalized, canonical_lambda_equitune, random_motions
from equicore.finetuning import GroupAugmentation, fit
from equicore.lab.store import digest, remembered, rounds
from equicore.trees import tree_map

LEARNING_RATE = 2e-3  # Adam's; it falls along a cosine
AT_ONCE = 500  # inputs that are measured
ROUND = 10  # epochs, after which the state is kept
TEST_SIZE = 10_000
VERSION = 1  # of what is measured: to be raised with every change
POSES = 1000  # random elements that augmentation draws from
NEAR = 0.05  # second moments that differ by less, relative to the largest, are nearly equal
KEYS = ["task", "model", "group", "samples", "seed", "train_size", "batch_size", "epochs"]
MEASURED = ["test_loss", "median_loss", "accuracy", "parameters", "forwards", "seconds",
            "degenerate"]  # fmt: skip


def built(task: Task, model: str, samples: int = 1, seed: int = 0) -> nn.Module:
    """A model of `equicore.applications.so2.names.MODELS` before its training.

    Initial parameters of a seed are the same for all models of one network: of those alone, and of
    all others. Weights begin equal, so that canonical-lambda begins as its uniform control.

    Args:
        task: What it shall learn.
        model: Its name.
        samples: Around the canonical form; 1 for models that have none.
        seed: Of the initial parameters and of random samples; the global random state is left
            alone.

    Raises:
        ValueError: If there is no such model, or not as many samples.
    """
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}; there are {', '.join(MODELS)}")
    if samples < 1 or (samples > 1 and model not in SAMPLED):
        raise ValueError(f"{model} of {samples} samples: {', '.join(SAMPLED)} have several")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = task.network(task.widths[model not in ALONE])
        weight = task.weight(seed) if model == "canonical_lambda" else None
    actions = task.input_action, task.output_action
    if model in ALONE:
        return network
    if model == "canonical":
        return Canonicalized(network, task.canonicalizer, *actions)
    if model == "frames":
        return canonical_lambda_equitune(network, task.axes, *actions, task.frames)
    elements = task.elements(samples, seed)
    return canonical_lambda_equitune(network, task.canonicalizer, *actions, elements, weight)


@torch.no_grad()
def losses(task: Task, model: nn.Module, x: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A model's losses (B,) on a batch of any size; and, of classes, where it is right, else NaN.

    The model is left in ``eval`` mode.
    """
    model.eval()
    parts = torch.arange(len(targets)).split(AT_ONCE)
    outputs = torch.cat([model(_at(x, rows)) for rows in parts])
    found = task.loss(outputs, targets)
    if not task.classes:
        return found, torch.full_like(found, math.nan)
    return found, (outputs.argmax(-1) == targets).to(found)


@dataclasses.dataclass(frozen=True)
class Run:
    """One model that is trained and measured, and where it is kept."""

    folder: Path
    task: str  # of TASKS
    model: str
    samples: int  # around the canonical form; 1 for models that have none
    seed: int  # of the data, the initial parameters, random samples and the order of batches
    train_size: int = 1000
    batch_size: int = 50
    epochs: int = 100

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that decide what is measured."""
        own = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        return {**own, "learning_rate": LEARNING_RATE, "test_size": TEST_SIZE, "version": VERSION}

    def measure(self) -> pd.DataFrame:
        """A row of `KEYS` and `MEASURED`: measured now, or found again in the folder.

        A training that was killed goes on. Raises ValueError if a loss is not finite.
        """
        name = f"{self.task}-{self.model}{self.samples}-{self.seed}-{digest(self.settings)}"
        file, resume = (self.folder / f"{name}{suffix}" for suffix in (".csv", ".safetensors"))
        row = remembered(file, self.settings, lambda: self._measured(resume))
        resume.unlink(missing_ok=True)
        keys = {**self.settings, "group": TASKS[self.task].group}
        return row.assign(**{name: keys[name] for name in KEYS})[[*KEYS, *MEASURED]]

    def _measured(self, resume: Path) -> pd.DataFrame:
        task = TASKS[self.task]
        model = built(task, self.model, self.samples, self.seed)
        seconds = self._train(task, model, resume)
        x, targets = task.draw(TEST_SIZE, 2 * self.seed + 1)
        found, right = losses(task, model, x, targets)
        frames = self.model == "frames"
        row = {
            "test_loss": float(found.mean()),
            "median_loss": float(found.median()),
            "accuracy": float(right.mean()),
            "parameters": sum(p.numel() for p in model.parameters()),
            "forwards": len(task.frames) if frames else self.samples,
            "seconds": seconds,
            "degenerate": float((task.axes.gap(x) < NEAR).double().mean()) if frames else math.nan,
        }
        return pd.DataFrame([row])

    def _train(self, task: Task, model: nn.Module, resume: Path) -> float:
        """Train a model in place; the processor's seconds for a step, of those done now."""
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        pairs = task.draw(self.train_size, 2 * self.seed)
        poses = random_motions(POSES, task.dimension, reflections=task.reflections, seed=self.seed)
        augment = GroupAugmentation(task.input_action, task.output_action, poses)
        count = math.ceil(self.epochs / ROUND)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        seconds, steps = 0.0, 0
        for number in rounds(resume, self.settings, count, self.seed, **parts):
            epochs = range(number * ROUND, min((number + 1) * ROUND, self.epochs))
            batches = self._batches(*pairs, augment, optimizer, epochs)
            begun = time.process_time()
            done = fit(model, batches, lambda *pair: task.loss(*pair).mean(), optimizer,
                       progress=False)  # fmt: skip
            seconds, steps = seconds + time.process_time() - begun, steps + len(done)
        return seconds / steps if steps else math.nan

    def _batches(
        self, x: Any, targets: Tensor, augment: nn.Module, optimizer: Any, epochs: range
    ) -> Iterator[tuple[Any, Tensor]]:
        """The batches of some epochs, the same for all models; sets the learning rate of each."""
        in_epoch = math.ceil(self.train_size / self.batch_size)
        for epoch in epochs:
            generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
            order = torch.randperm(self.train_size, generator=generator)
            for step, rows in enumerate(order.split(self.batch_size), epoch * in_epoch):
                done = step / (self.epochs * in_epoch)
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
                pair = _at(x, rows), targets[rows]
                yield augment(*pair) if self.model == "augmented" else pair


def _at(tree: Any, rows: Tensor) -> Any:
    return tree_map(lambda t: t[rows], tree)
