"""Methods of fine-tuning on a task: parts of the data, seeds, the choice of weights, all resumable.

All methods of a seed see the same samples, start from the same model, take as many steps, and run
the model as often in each: one that runs it on |G| views of a sample takes |G| times fewer samples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from itertools import count, islice, pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from equicore.applications.finetuning.names import WEIGHTED
from equicore.applications.finetuning.names import Method as Name
from equicore.applications.finetuning.task import Data, Task
from equicore.capture import kept_modes
from equicore.finetuning import (
    Augmentation,
    Canonicalization,
    Diverged,
    Equitune,
    LambdaEquitune,
    Method,
    Penalty,
    Plain,
    Tuned,
    cross_validate,
    deviation,
    folds,
)
from equicore.lab.jobs import Workers
from equicore.lab.store import digest, remembered, remembered_tensors, rounds, write_tensors
from equicore.lab.tables import add_rows, check_rows
from equicore.trees import leaves, tree_map

COLUMNS = ["task", "method", "fraction", "samples", "seed", "steps", "metric", "value", "better",
           "deviation", "weight", "tried", "folds", "views", "digest"]  # fmt: skip
KEYS = ["task", "method", "fraction", "seed", "steps", "metric"]
DEVIATION = "deviation"
"""The metric whose value is the deviation under the first symmetry; others have their names."""
STAGES = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Parts of the steps after which deviations are measured; metrics after the last."""
LAST = 0.02
"""Part of the learning rate that is left at the end of its cosine."""
RAMP = 0.1
"""Part of the steps in which the weight of a penalty rises."""
MANY, FEW = 8, 4
"""Under groups of more elements deviations are of a few for each input, drawn at random."""
DIGITS = 6
"""Of fractions."""
VERSION = 2
"""Of what is measured: results of other versions are not found again."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How models are fine-tuned, by Adam, its rate along a cosine."""

    steps: int
    views: int  # how often a model runs in a step
    learning_rate: float
    weights: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)  # of penalties, to choose from
    folds: int = 2  # of cross-validation
    chosen_in: float = 0.5  # part of the steps that a model takes in it

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that cannot be."""
        if self.steps < 1 or self.views < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError(
                "fine-tuning has steps and views from 1 on, and a positive learning rate; got "
                f"{self.steps}, {self.views} and {self.learning_rate}"
            )
        if (
            not self.weights
            or not all(0 < round(w, DIGITS) == w < math.inf for w in self.weights)
            or len({*self.weights}) < len(self.weights)
        ):
            raise ValueError(
                f"weights of penalties are positive, differ, and have {DIGITS} digits after the "
                f"point at most, as in tables; got {self.weights}"
            )
        if self.folds < 2 or not 0 < self.chosen_in <= 1:
            raise ValueError(
                "weights are chosen by 2 folds or more, in a part of the steps; got "
                f"{self.folds} and {self.chosen_in}"
            )


def method_of(name: Name, weight: float, steps: int) -> Method:
    """The method of a name; the weight is that of penalties, which rises in the first steps."""
    ramp = round(RAMP * steps)
    methods: dict[Name, Method] = {
        "plain": Plain(),
        "augmentation": Augmentation(),
        "penalty": Penalty(weight, ("output",), ramp=ramp),
        "penalty_features": Penalty(weight, ("features",), ramp=ramp),
        "penalty_both": Penalty(weight, ("output", "features"), ramp=ramp),
        "equitune": Equitune(),
        "lambda_equitune": LambdaEquitune(),
        "canonicalization": Canonicalization(),
    }
    return methods[name]


def run(
    task: Task,
    methods: Sequence[Name],
    fractions: Sequence[float],
    seeds: Sequence[int],
    tuning: Tuning,
    file: Path,
    folder: Path,
    jobs: int = 1,
) -> list[Trial]:
    """Fine-tune by all methods on all parts of the data, and add rows of `COLUMNS` to a CSV file.

    Rows are added when a fine-tuning is finished. What the file already has, made with the same
    settings, is not measured again; of what was interrupted the last stage that was finished is
    kept in ``folder``.

    Raises:
        ValueError: If a fraction has too few samples or more than there are, a method does not fit
            the task, or the file has rows of the task that were made with other settings.
    """
    fractions = [round(fraction, DIGITS) for fraction in fractions]  # as the file has them
    check(task, methods, fractions, tuning, file)
    found = check_rows(file, COLUMNS)
    known = found[(found.task == task.name) & (found.metric == task.chosen_by)]
    done = known.set_index(["method", "fraction", "seed"]).weight.to_dict()
    each = list(product(fractions, seeds, methods))
    weighted = dict.fromkeys((n, f) for f, s, n in each if n in WEIGHTED and (n, f, s) not in done)
    choices = [
        functools.partial(choose, task, name, fraction, tuning, folder)
        for name, fraction in weighted
    ]
    weights = dict(zip(weighted, Workers(jobs).map(choices, "weights"), strict=True))
    trials = []
    for fraction, seed, name in each:
        weight = done.get((name, fraction, seed), weights.get((name, fraction)))
        weight = weight if name in WEIGHTED else None
        trials.append(Trial(task, name, fraction, seed, tuning, folder, weight))
    left = [t for t in trials if (t.name, t.fraction, t.seed) not in done]
    Workers(jobs).map([functools.partial(_measured, trial, file) for trial in left], task.name)
    return trials


def check(
    task: Task, methods: Sequence[Name], fractions: Sequence[float], tuning: Tuning, file: Path
) -> None:
    """Raise ValueError for what `run` would refuse, before it trains anything."""
    for fraction in fractions:
        _rows(task, fraction, 0)
        if any(name in WEIGHTED for name in methods):
            folds(_count(task, fraction), tuning.folds, 0)
    with torch.random.fork_rng(devices=[]):
        for name in methods:
            method = method_of(name, tuning.weights[0], tuning.steps)
            tuned = method.of(task.model(0), task.problem)
            some = task.training[torch.arange(min(2, len(task.training)))].batches(2, 0)
            batches = (_beside(tuned, batch) for batch in some)
            tuned.fit(batches, torch.optim.SGD(tuned.parameters(), 0.0), steps=1, progress=False)
            if (runs := method.trained_views(task.problem)) > tuning.views:
                raise ValueError(
                    f"{name} runs the model {runs} times on each sample, and a step has "
                    f"{tuning.views} views: give more"
                )
    found = check_rows(file, COLUMNS)
    kinds = found[found.task == task.name][["method", "tried", "folds", "digest"]]
    for name, tried, parts, made in kinds.drop_duplicates().itertuples(index=False):
        known = tuning
        if name in WEIGHTED and name not in methods:  # whose own search may be another
            weights = tuple(float(weight) for weight in str(tried).split())
            known = dataclasses.replace(tuning, weights=weights, folds=int(parts))
        if made != made_with(task, name, known):
            raise ValueError(
                f"{file} has rows of {task.name} and {name} that were made with another model, "
                "other data or other settings, and methods are compared where all of that is the "
                "same; delete them, or choose another --output"
            )


def choose(task: Task, name: Name, fraction: float, tuning: Tuning, folder: Path) -> float:
    """The weight of a penalty for a part of the data, by cross-validation on it; kept.

    On the samples of seed 0. A model takes a part of the steps, and the weight is best by the
    task's metric for it, averaged over the folds; one with which training diverges is not taken.
    Of a single weight nothing is to be chosen.
    """
    if len(tuning.weights) == 1:
        return tuning.weights[0]
    settings = {**_settings(task, name, tuning), "method": name, "fraction": fraction}
    data = task.training[_rows(task, fraction, 0)]
    steps = max(1, round(tuning.chosen_in * tuning.steps))
    short = dataclasses.replace(tuning, steps=steps)
    sign = -1.0 if task.metrics[task.chosen_by] else 1.0

    def loss(weight: float, fitted: Tensor, held_out: Tensor) -> float:
        def made() -> pd.DataFrame:
            method = method_of(name, weight, steps)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                tuned = method.of(task.model(0, data[fitted]), task.problem)
                adam = torch.optim.Adam(tuned.parameters(), tuning.learning_rate)
                try:
                    _train(tuned, data[fitted], method, short, 0, (0, steps), adam)
                except Diverged:
                    return pd.DataFrame([{"loss": math.nan}])
            with torch.no_grad():
                value = task.validate(tuned.eval(), data[held_out])
            return pd.DataFrame([{"loss": sign * value}])

        key = {**settings, "weight": weight, "held_out": held_out.tolist()}
        table = remembered(folder / f"weight-{digest(key)}.csv", {"weight": weight}, made)
        return float(table.loss.iloc[0])

    parts = folds(len(data), tuning.folds, 0)
    return cross_validate(loss, tuning.weights, parts, progress=False).weight


@dataclasses.dataclass(frozen=True)
class Trial:
    """A model that is fine-tuned by one method, on one part of the data, from one seed."""

    task: Task
    name: Name
    fraction: float
    seed: int
    tuning: Tuning
    folder: Path  # keeps what was computed
    weight: float | None = None  # of penalties

    @property
    def stem(self) -> Path:
        """What its files begin with."""
        own = {"method": self.name, "fraction": self.fraction, "weight": self.weight}
        settings = _settings(self.task, self.name, self.tuning)
        return self.folder / f"tuned-{digest({**settings, **own, 'seed': self.seed})}"

    @property
    def kept(self) -> Path:
        """The file of the model after the last step."""
        return self.stem.with_name(f"{self.stem.name}-model.safetensors")

    @property
    def method(self) -> Method:
        """How it is fine-tuned."""
        return method_of(self.name, self.weight or 0.0, self.tuning.steps)

    def measure(self) -> pd.DataFrame:
        """Fine-tune, and measure: a table of `COLUMNS`, kept at each stage."""
        task, tuning, stem, method = self.task, self.tuning, self.stem, self.method
        settings = {"tuned": stem.name}
        steps = sorted({round(part * tuning.steps) for part in STAGES})
        files = [stem.with_name(f"{stem.name}-{step}.csv") for step in steps]
        resume = stem.with_suffix(".safetensors")
        if not all(file.is_file() for file in files):
            data = task.training[_rows(task, self.fraction, self.seed)]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                tuned = method.of(task.model(self.seed, data), task.problem)
            optimizer = torch.optim.Adam(tuned.parameters(), tuning.learning_rate)
            stages = list(pairwise((0, *steps)))
            states: dict[str, Any] = {**tuned.parts, "optimizer": optimizer}
            for stage in rounds(resume, settings, len(steps), self.seed, **states):
                try:
                    _train(tuned, data, method, tuning, self.seed, stages[stage], optimizer)
                except Diverged as error:
                    raise Diverged(
                        f"{task.name}, {self.name}, fraction {self.fraction:g}, seed {self.seed}, "
                        f"after step {stages[stage][0]}: {error}; give a smaller --learning-rate, "
                        "or leave this method out"
                    ) from error
                last = stage == len(steps) - 1
                made = functools.partial(_evaluated, task, tuned, steps[stage], last)
                if last:
                    write_tensors(self.kept, tuned.model.state_dict(), settings)
                remembered(files[stage], settings, made)
        tables = [remembered(file, settings, functools.partial(_lost, stem)) for file in files]
        resume.unlink(missing_ok=True)
        table, weighted = pd.concat(tables), self.name in WEIGHTED
        return table.assign(
            task=task.name,
            method=self.name,
            fraction=self.fraction,
            samples=_count(task, self.fraction),
            seed=self.seed,
            better=["higher" if task.metrics.get(metric) else "lower" for metric in table.metric],
            weight=self.weight,
            tried=" ".join(f"{w:.12g}" for w in tuning.weights) if weighted else "",
            folds=tuning.folds if weighted else math.nan,
            views=method.views(task.problem),
            digest=made_with(task, self.name, tuning),
        )[COLUMNS]

    def tuned(self) -> Tuned:
        """The fine-tuned model, in eval mode; it is trained now if it is not kept."""
        if not self.kept.is_file():
            self.measure()
        tuned = self.method.of(self.task.model(self.seed), self.task.problem)
        lost = functools.partial(_lost, self.stem)
        tuned.model.load_state_dict(remembered_tensors(self.kept, {}, lost))
        return tuned.eval()


def fine_tuned(
    task: Task, name: Name, fraction: float, seed: int, tuning: Tuning, folder: Path
) -> Tuned:
    """The model, in eval mode, that `run` fine-tuned; it is trained now if it was not."""
    weight = choose(task, name, fraction, tuning, folder) if name in WEIGHTED else None
    return Trial(task, name, fraction, seed, tuning, folder, weight).tuned()


def _measured(trial: Trial, file: Path) -> None:
    add_rows(file, trial.measure(), KEYS)


def _train(
    tuned: Tuned,
    data: Data,
    method: Method,
    tuning: Tuning,
    seed: int,
    stage: tuple[int, int],
    optimizer: torch.optim.Optimizer,
) -> None:
    """From a step to another one."""
    first, last = stage
    size = max(1, tuning.views // method.trained_views(tuned.problem))

    def batches() -> Iterator[tuple[Any, Any]]:
        for step, batch in enumerate(islice(_whole(data, size, seed), first, last), first):
            cosine = (1 + math.cos(math.pi * step / tuning.steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = tuning.learning_rate * (LAST + (1 - LAST) * cosine)
            yield _beside(tuned, batch)

    if last > first:
        tuned.train()
        tuned.fit(batches(), optimizer, steps=last - first, progress=False)


def _whole(data: Data, size: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Batches of one size without end: what is left of a pass over the data opens the next one."""
    left: Any = None
    for epoch in count():
        empty = True
        for batch in data.batches(size, 1000 * seed + epoch):
            empty = False
            left = batch if left is None else tree_map(lambda a, b: torch.cat([a, b]), left, batch)
            while left is not None and (samples := len(leaves(left)[0])) >= size:
                yield tree_map(lambda t: t[:size], left)
                left = tree_map(lambda t: t[size:], left) if samples > size else None
        if empty:
            raise ValueError(f"{len(data)} samples gave no batch")


@torch.no_grad()
def _evaluated(task: Task, tuned: Tuned, steps: int, last: bool) -> pd.DataFrame:
    """The deviation after some steps, and after the last all metrics."""
    with kept_modes(tuned):
        tuned.eval()
        values = task.evaluate(tuned) if last else {}
        if last and {*values} != {*task.metrics}:
            raise ValueError(f"{task.name} measures {[*values]}, and says {[*task.metrics]}")
        off = _deviations(task, tuned)
    rows = [{"metric": name, "value": value} for name, value in {**off, **values}.items()]
    return pd.DataFrame(rows).assign(steps=steps, deviation=off[DEVIATION])


def _deviations(task: Task, tuned: Tuned) -> dict[str, float]:
    """Under each symmetry; those of large groups by a few random elements, always the same."""
    found = {}
    probes = [_beside(tuned, x) for x in task.probes()]
    for number, symmetry in enumerate(task.problem.symmetries):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            few = None if symmetry.order <= MANY else FEW
            name = f"{DEVIATION}_{symmetry.name}" if number else DEVIATION
            found[name] = deviation(lambda x: task.compared(tuned(x)), symmetry, probes, few)
    return found


def _beside(tuned: Tuned, tree: Any) -> Any:
    """On the model's device."""
    device = next(tuned.parameters()).device
    return tree_map(lambda t: t.to(device), tree)


def _settings(task: Task, name: Name, tuning: Tuning) -> dict[str, Any]:
    """What decides a method's results, but for the seed, the part of the data and the weight."""
    how = dataclasses.asdict(tuning)
    if name not in WEIGHTED:
        how = {k: v for k, v in how.items() if k not in ("weights", "folds", "chosen_in")}
    symmetries = [[s.name, s.order, sorted(s.features)] for s in task.problem.symmetries]
    own = {"metrics": dict(task.metrics), "chosen_by": task.chosen_by, "symmetries": symmetries}
    return {"task": {**task.settings}, **own, "tuning": how, "version": VERSION}


def made_with(task: Task, name: Name, tuning: Tuning) -> str:
    """Sixteen characters that are others for another task, tuning, or search for a weight."""
    return digest(_settings(task, name, tuning))


def _count(task: Task, fraction: float) -> int:
    return round(fraction * task.whole)


def _rows(task: Task, fraction: float, seed: int) -> Tensor:
    """Which samples are a part of the data: those of a smaller part are among a larger one's."""
    count, there = _count(task, fraction), len(task.training)
    if not 1 <= count <= there:
        raise ValueError(
            f"the fraction {fraction:g} of {task.whole} samples of {task.name} are {count}, and "
            f"there are {there} to train on"
        )
    order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def _lost(stem: Path) -> Any:
    raise FileNotFoundError(f"what was measured of {stem} is lost in part; delete {stem}*")
