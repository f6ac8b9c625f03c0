"""What do the k heaviest elements alone cost, and how accurate are they?

    python benchmarks/top_k.py [--rounds 20] [--seeds 0 1 2 3 4] [--output results/top_k]

Accuracy: a small CNN learns upright digits and is tested on digits after random quarter turns.
The weights of lambda-equitune are fitted without labels, on the upright training images, by
`fit_familiarity`. No setting was chosen on test images. Time: ResNet-18 under C4, against one
plain forward.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
import matplotlib
import numpy as np
import pandas as pd
import torch
import tyro
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import equicore

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BARS = {"lambda, top-1": 1.25}
"""For the time of a forward beside one plain forward."""
METHODS = ("plain", "equitune", "equizero", "lambda", "lambda, top-2", "lambda, top-1")


@dataclasses.dataclass
class Arguments:
    """Accuracy and time of lambda-equitune on its k heaviest elements."""

    rounds: int = 20
    """Rounds; in each, every method is timed once."""
    batches: tuple[int, ...] = (8, 16)
    """Images in a batch, for timing."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of split, training, turns and weights, for accuracy; at least two."""
    epochs: int = 20
    """Passes over the training images."""
    steps: int = 500
    """Steps of `fit_familiarity`."""
    output: Path | None = None
    """Folder for top_k.csv, .md and .png; nothing is written when omitted."""


def methods_of(model: nn.Module, weight: nn.Module) -> dict[str, nn.Module]:
    """The methods around one model that classifies images, under quarter turns."""
    turns = equicore.image_rotations()
    same = equicore.Trivial(turns.group)
    return {
        "plain": model,
        "equitune": equicore.equitune(model, turns, same),
        "equizero": equicore.equizero(model, turns, same),
        "lambda": equicore.lambda_equitune(model, turns, same, weight),
        "lambda, top-2": equicore.lambda_equitune(model, turns, same, weight, top_k=2),
        "lambda, top-1": equicore.lambda_equitune(model, turns, same, weight, top_k=1),
    }


def train_cnn(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """A small CNN that has learned to classify images of 8 x 8."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def accuracies(seed: int, arguments: Arguments) -> dict[str, float]:
    """Accuracy of every method on turned test digits, and of the plain model on upright ones."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    split = train_test_split(
        np.arange(len(labels)), test_size=0.3, random_state=seed, stratify=digits.target
    )
    train, test = (torch.from_numpy(rows) for rows in split)
    model = train_cnn(images[train], labels[train], arguments.epochs, seed)
    methods = methods_of(model, equicore.MLPWeight((1, 8, 8), seed=seed))
    equicore.fit_familiarity(methods["lambda"], images[train], steps=arguments.steps, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    angles = torch.randint(4, (len(test),), generator=generator)
    turned = equicore.image_rotations().act_each(angles, images[test])

    def accuracy(method: nn.Module, x: Tensor) -> float:
        with torch.no_grad():
            return float((method(x).argmax(-1) == labels[test]).float().mean())

    found = {name: accuracy(method.eval(), turned) for name, method in methods.items()}
    return {"plain, upright": accuracy(model, images[test]), **found}


def interval(numbers: pd.Series) -> tuple[float, float]:
    """Mean over seeds, and half the width of its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers)
    return float(numbers.mean()), float(half)


def time_batch(batch: int, rounds: int, progress: tqdm) -> dict[str, tuple[float, common.Ratio]]:
    """Milliseconds of every method's forward of ResNet-18, and the ratio to plain."""
    torch.manual_seed(0)
    x = torch.rand(batch, 3, 64, 64)
    weight = equicore.MLPWeight((3, 8, 8), pool=nn.AdaptiveAvgPool2d(8))
    nn.init.normal_(weight.network[-1].weight)  # before it is fitted, all weights tie
    methods = {name: method.eval() for name, method in methods_of(common.resnet(), weight).items()}
    calls = {name: lambda method=method: method(x) for name, method in methods.items()}
    with torch.no_grad():
        times = common.time_rounds(calls, rounds, progress)
    return {
        name: (1e3 * float(np.median(seconds)), common.ratio(seconds, times["plain"]))
        for name, seconds in times.items()
    }


def markdown_row(rows: pd.DataFrame) -> list[object]:
    """A method's line in the md: its accuracy, and for each batch its time and the bar."""
    line: list[object] = [
        rows.method.iloc[0],
        f"{rows.accuracy.iloc[0]:.3f} ± {rows.accuracy_interval.iloc[0]:.3f}",
    ]
    for row in rows.itertuples():
        line.append(common.Ratio(row.ratio, row.ratio_low, row.ratio_high))
        line.append(common.verdict(row.ratio, BARS.get(row.method)))
    return line


def draw(table: pd.DataFrame) -> Figure:
    """Accuracy and time of each method."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
    places = np.arange(len(METHODS))
    accurate = table.drop_duplicates("method").set_index("method").loc[list(METHODS)]
    left.barh(places, accurate.accuracy, xerr=accurate.accuracy_interval, color="#0072b2")
    left.set_xlabel("accuracy on turned digits")
    left.set_yticks(places, METHODS)
    left.invert_yaxis()
    batches = list(table.batch.unique())
    height = 0.8 / len(batches)
    for i, batch in enumerate(batches):
        times = table[table.batch == batch].set_index("method").loc[list(METHODS)]
        spread = [times.ratio - times.ratio_low, times.ratio_high - times.ratio]
        at = places + height * (i - (len(batches) - 1) / 2)
        right.barh(
            at, times.ratio, height, xerr=spread, color=common.COLOURS[i], label=f"B = {batch}"
        )
    for method, bar in BARS.items():
        right.plot(bar, METHODS.index(method), "|", color="#d55e00", markersize=24, label="bar")
    right.set_xlabel("time / one plain forward")
    right.legend(frameon=False, fontsize="small")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Arguments) -> None:
    """Train, test and time, print the table, write it."""
    found = pd.DataFrame(
        [accuracies(seed, arguments) for seed in tqdm(arguments.seeds, unit="seed")]
    )
    with tqdm(total=len(arguments.batches) * arguments.rounds, unit="round") as progress:
        times = {
            batch: time_batch(batch, arguments.rounds, progress) for batch in arguments.batches
        }
    rows = []
    for batch, timed in times.items():
        for method in METHODS:
            milliseconds, ratio = timed[method]
            mean, half = interval(found[method])
            rows.append(
                {
                    "method": method,
                    "accuracy": mean,
                    "accuracy_interval": half,
                    "batch": batch,
                    "milliseconds": milliseconds,
                    "ratio": ratio.median,
                    "ratio_low": ratio.low,
                    "ratio_high": ratio.high,
                    "bar": BARS.get(method),
                }
            )
    table = pd.DataFrame(rows)
    upright, upright_half = interval(found["plain, upright"])
    lines = [
        "# The k heaviest elements alone",
        "",
        f"`{common.command()}`",
        "",
        "Accuracy on scikit-learn's digits after random quarter turns, of a CNN that learned "
        "upright digits; lambda's weights see the pixels and are fitted by `fit_familiarity` on "
        "the upright training images, without labels. Mean and 95 % interval (Student's t) over "
        f"{len(found)} seeds, each with its own split (30 % for the test), training and turns. "
        f"On upright test digits the plain model's is {upright:.3f} ± {upright_half:.3f}.",
        "",
        "Time of a forward of ResNet-18 on B images of 64 x 64, as a ratio to one plain forward: "
        f"median and quartiles of {arguments.rounds} rounds of one run; the weight network sees "
        f"pixels averaged to 8 x 8. {common.machine()}.",
        "",
        *common.markdown_table(
            ["method", "accuracy", *(h for batch in times for h in (f"time, B = {batch}", "bar"))],
            [markdown_row(table[table.method == method]) for method in METHODS],
        ),
    ]
    common.write(arguments.output, "top_k", table.round(4), lines, draw(table))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
