"""What do the k heaviest elements alone cost, and how accurate are they?

    python benchmarks/top_k.py [--rounds 20] [--seeds 0 1 2 3 4] [--output results/top_k]

Accuracy: a small CNN learns upright digits and is tested on digits after random quarter turns.
The weights of lambda-equitune are fitted without labels, on the upright training images, by
`fit_familiarity`. No setting was chosen on test images. Time: ResNet-18 under C4, against one
plain forward.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import equicore
from equicore.lab import command, figures
from equicore.lab.statistics import Estimate, t_interval
from equicore.lab.tables import markdown

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
    """Folder for top_k.csv, .md, .png and .svg; nothing is written when omitted."""


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


def small_cnn() -> nn.Module:
    """For images of 8 x 8 and ten classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train_cnn(images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """A small CNN that has learned to classify images of 8 x 8."""
    torch.manual_seed(seed)
    model = small_cnn()
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


def time_batch(batch: int, rounds: int, progress: tqdm) -> dict[str, common.Row]:
    """Time of every method's forward of ResNet-18."""
    torch.manual_seed(0)
    x = torch.rand(batch, 3, 64, 64)
    weight = equicore.MLPWeight((3, 8, 8), pool=nn.AdaptiveAvgPool2d(8))
    nn.init.normal_(weight.network[-1].weight)  # before it is fitted, all weights tie
    methods = {name: method.eval() for name, method in methods_of(common.resnet(), weight).items()}
    calls = {name: partial(method, x) for name, method in methods.items()}
    with torch.no_grad():
        times = common.time_rounds(calls, rounds, progress)
    return {
        name: {
            "batch": batch,
            "milliseconds": 1e3 * float(np.median(seconds)),
            "ratio": common.ratio(seconds, times["plain"]),
            "bar": BARS.get(name),
        }
        for name, seconds in times.items()
    }


def time_small(rounds: int, progress: tqdm) -> dict[str, common.Ratio]:
    """Times beside one plain forward of the small CNN on one image, and of the parts of top-1."""
    torch.manual_seed(0)
    model, weight = small_cnn().eval(), equicore.MLPWeight((1, 8, 8))
    nn.init.normal_(weight.network[-1].weight)
    x, turns = torch.rand(1, 1, 8, 8), equicore.image_rotations()
    orbit = turns.orbit(x).flatten(0, 1)
    methods = {name: method.eval() for name, method in methods_of(model, weight).items()}
    calls = {name: partial(method, x) for name, method in methods.items()}
    calls |= {"the orbit alone": partial(turns.orbit, x), "its weights": partial(weight, orbit)}
    with torch.no_grad():
        times = common.time_rounds(calls, rounds, progress)
    known = times["plain"] + times["the orbit alone"] + times["its weights"]
    times["rest of top-1"] = times["lambda, top-1"] - known
    return {name: common.ratio(seconds, times["plain"]) for name, seconds in times.items()}


def time_cells(method: str, times: dict[int, dict[str, common.Row]]) -> list[object]:
    """For each batch, the ratio and what it says of the bar."""
    rows = [timed[method] for timed in times.values()]
    cells = [(row["ratio"], common.verdict(row["ratio"].median, row["bar"])) for row in rows]
    return [cell for pair in cells for cell in pair]


def plus_minus(accuracy: Estimate) -> str:
    """A mean and half the width of its interval."""
    return f"{accuracy.value:.3f} ± {accuracy.high - accuracy.value:.3f}"


def draw(accurate: list[Estimate], times: dict[int, dict[str, common.Row]]) -> Figure:
    """Accuracy and time of each method."""
    figure, ((left, right),) = figures.grid(1, 2, figsize=(8, 3.1), sharey=True)
    places = np.arange(len(METHODS))
    left.barh(
        places,
        [estimate.value for estimate in accurate],
        xerr=figures.error_bars(accurate),
        color=common.COLOURS[0],
    )
    left.set_xlabel("accuracy on turned digits")
    left.set_yticks(places, METHODS)
    left.invert_yaxis()
    height = 0.8 / len(times)
    for i, (batch, rows) in enumerate(times.items()):
        ratios = [Estimate(*rows[method]["ratio"]) for method in METHODS]
        right.barh(
            places + height * (i - (len(times) - 1) / 2),
            [ratio.value for ratio in ratios],
            height,
            xerr=figures.error_bars(ratios),
            color=common.COLOURS[i],
            label=f"B = {batch}",
        )
    for method, bar in BARS.items():
        right.plot(bar, METHODS.index(method), "|", markersize=24, **common.BAR_STYLE)
    right.set_xlabel("time / one plain forward")
    figures.legend_below(figure, right)
    for axis in (left, right):
        figures.tidy(axis)
    return figure


def main(arguments: Arguments) -> None:
    """Train, test and time, print the table, write it."""
    found = pd.DataFrame(
        [accuracies(seed, arguments) for seed in tqdm(arguments.seeds, unit="seed")]
    )
    accurate = {name: t_interval(found[name]) for name in found}
    with tqdm(total=(len(arguments.batches) + 1) * arguments.rounds, unit="round") as progress:
        times = {
            batch: time_batch(batch, arguments.rounds, progress) for batch in arguments.batches
        }
        small = time_small(arguments.rounds, progress)
    rows = [
        {
            "method": method,
            "accuracy": accurate[method].value,
            "accuracy_interval": accurate[method].high - accurate[method].value,
            **timed[method],
        }
        for timed in times.values()
        for method in METHODS
    ]
    common.write(
        arguments.output,
        "top_k",
        rows,
        4,
        "The k heaviest elements alone",
        "Accuracy on scikit-learn's digits after random quarter turns, of a CNN that learned "
        "upright digits; lambda's weights see the pixels and are fitted by `fit_familiarity` on "
        "the upright training images, without labels. Mean and 95 % interval (Student's t) over "
        f"{len(found)} seeds, each with its own split (30 % for the test), training and turns. "
        f"On upright test digits the plain model's is {plus_minus(accurate['plain, upright'])}.",
        "Time of a forward of ResNet-18 on B images of 64 x 64, as a ratio to one plain forward: "
        f"median and quartiles of {arguments.rounds} rounds of one run; the weight network sees "
        f"pixels averaged to 8 x 8. {common.machine()}.",
        markdown(
            ["method", "accuracy", *(h for batch in times for h in (f"time, B = {batch}", "bar"))],
            [
                [method, plus_minus(accurate[method]), *time_cells(method, times)]
                for method in METHODS
            ],
        ),
        "A small model on one image: the CNN of above, whose forward takes less time than most "
        "else. *Rest of top-1* is its time less those of one plain forward, the orbit and its "
        "weights: choosing the element, taking its view, and checks.",
        markdown(["what", "time / one plain forward"], [[*item] for item in small.items()]),
        figure=draw([accurate[method] for method in METHODS], times),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
