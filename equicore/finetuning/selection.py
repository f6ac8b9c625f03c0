"""The choice of the penalty's weight, on data that the model was not fitted to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The weight of the smallest validation loss, its model, and all (weight, loss) tried.

    Of cross-validation the losses are means over folds, and there is no model.
    """

    weight: float
    model: Any
    trials: list[tuple[float, float]]


def select_weight(
    fine_tune: Callable[[float], Any],
    validate: Callable[[Any], float],
    *,
    low: float = 1e-3,
    high: float = 1e2,
    trials: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Choose the weight of the penalty on a validation split, by optuna.

    The first trial is without a penalty; the others are proposed by the tree-structured Parzen
    estimator on a logarithmic scale.

    Args:
        fine_tune: Makes and fine-tunes a model with a given weight of the penalty.
        validate: The loss of a model on the validation split, lower is better. Not the test
            split: what is chosen here has seen it.
        low: Smallest positive weight.
        high: Largest weight.
        trials: Models to fine-tune, at least 2.
        seed: Of the proposals.
        progress: Show a progress bar.

    Raises:
        ImportError: If optuna is not installed (``pip install "equirl[tune]"``).
        ValueError: If the range or the number of trials is not usable, or no loss is finite.
    """
    if not 0 < low < high < math.inf or trials < 2:
        raise ValueError(
            f"expected 0 < low < high and trials >= 2; got low {low}, high {high}, trials {trials}"
        )
    try:
        import optuna
    except ImportError as error:
        raise ImportError('select_weight needs optuna: pip install "equirl[tune]"') from error
    from tqdm import tqdm

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tried: list[tuple[float, float]] = []
    best: tuple[float, float, Any] | None = None
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        for number in tqdm(range(trials), unit="trial", disable=not progress):
            trial = study.ask() if number else None
            weight = trial.suggest_float("weight", low, high, log=True) if trial else 0.0
            model = fine_tune(weight)
            measured = validate(model)
            loss = float(measured.detach() if isinstance(measured, Tensor) else measured)
            tried.append((weight, loss))
            if trial:
                # a diverged model is a bad one, not a missing one
                study.tell(trial, loss if math.isfinite(loss) else sys.float_info.max)
            if math.isfinite(loss) and (best is None or loss < best[1]):
                best = (weight, loss, model)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if best is None:
        raise ValueError(f"no trial has a finite validation loss: {tried}")
    return Selection(best[0], best[2], tried)


def folds(samples: int, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The samples that are fitted and those that validate, for each of so many folds, at random.

    Raises:
        ValueError: If there are fewer than two folds, or fewer samples than folds.
    """
    if count < 2 or samples < count:
        raise ValueError(
            f"cross-validation needs 2 folds at least, and a sample for each; got {count} folds of "
            f"{samples} samples"
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(count)
    return [
        (torch.cat([*parts[:i], *parts[i + 1 :]]).sort().values, part.sort().values)
        for i, part in enumerate(parts)
    ]


def cross_validate(
    loss: Callable[[float, Tensor, Tensor], float],
    weights: Sequence[float],
    parts: Sequence[tuple[Tensor, Tensor]],
    *,
    progress: bool = True,
) -> Selection:
    """Choose the weight of the penalty whose validation loss, averaged over folds, is smallest.

    Of equally good weights it is the smallest.

    Args:
        loss: Of a weight and two sets of samples: fine-tunes a model on the first, and returns its
            loss on the second, lower is better, or NaN where it diverged.
        weights: To choose from, 0 for none.
        parts: The two sets of each fold, see `folds`.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are no weights, one is negative or not finite, there are fewer than
            two folds, or no weight has finite losses.
    """
    if not weights or min(weights) < 0 or not all(map(math.isfinite, weights)) or len(parts) < 2:
        raise ValueError(
            f"cross_validate chooses among weights from 0 on, by 2 folds at least; got "
            f"{list(weights)} and {len(parts)}"
        )
    from tqdm import tqdm

    tried: list[tuple[float, float]] = []
    with tqdm(total=len(weights) * len(parts), unit="fit", disable=not progress) as bar:
        for weight in sorted(weights):
            total = 0.0
            for fitted, held_out in parts:
                total += float(loss(weight, fitted, held_out))
                bar.update()
            tried.append((weight, total / len(parts)))
    finite = [(mean, weight) for weight, mean in tried if math.isfinite(mean)]
    if not finite:
        raise ValueError(f"no weight has a finite validation loss: {tried}")
    return Selection(min(finite)[1], None, tried)
