"""What `equicore images` does: train, evaluate, advise, finetune, table, plot."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
import tyro

from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_several
from equicore.lab.store import check_writable
from equicore.lab.tables import write_csv

if TYPE_CHECKING:
    from equicore.applications.images.data import Images
    from equicore.applications.images.experiment import Study

RESULTS = Path("results/images")
RUNS = Path("results/runs/images")
Network = Literal["small", "alexnet", "resnet20", "resnet56"]
Group = Literal["turns", "mirror", "flip", "turns+mirror", "eighths"]
Method = Literal[
    "plain", "augmented", "equitune", "equizero_mean", "equizero_plain",
    "lambda_frozen", "lambda_joint",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data:
    """Images, each with the name of its class."""

    data: str | None = None
    """A folder, split/class/image.png or class/image.png; one of CIFAR's official binary files; or
    hf:NAME, a data set of Hugging Face. When omitted, scikit-learn's handwritten digits."""
    mode: Literal["RGB", "L"] | None = None
    """Convert images to colour or to grey; they have to be alike when omitted."""
    size: int | None = None
    """Resize the shorter side to it, and cut out the square in the middle."""
    names: Path | None = None
    """File of class names, one a line, for class folders that are named by numbers from 0."""
    under: Group | None = None
    """Move all images, those to train on too, as if they had no natural orientation."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained classifier."""

    model: str | None = None
    """A file of `equicore images train`; weights of a ResNet for CIFAR (.th); a folder or a hub id
    of Hugging Face: an image classifier, or a CLIP, which classifies by text. When omitted, a small
    network that is trained on the digits now."""
    probe: bool = False
    """Replace its last layer by two, fitted to the classes of the training images."""
    features: tuple[str, ...] = ()
    """Submodules whose outputs the weights of lambda-equitune see; known for networks of ours."""
    label: str | None = None
    """What tables call the model; its name when omitted."""
    groups: tuple[Group, ...] = ("turns",)
    """Quarter turns; mirror, left to right; flip, top to bottom; quarter turns and mirrors; eighths
    of a turn, which pixels follow approximately."""
    familiar: str | None = None
    """More upright images, as --data; the weights learn without labels what is upright from
    them."""
    most_familiar: int = 15_000
    """Take so many of them at most, drawn at random."""
    fit_steps: int = 1000
    """In which the weights of lambda-equitune are fitted."""
    look_steps: int = 1000
    """In which orientation networks are fitted."""
    runs: Path = RUNS
    """Folder that keeps what was computed."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network from scratch, to start from; one that was interrupted goes on where it was.

    With --captions it is the image encoder of a small CLIP, trained with the 80 captions of each
    class; its classification is by text alone.

    Example: equicore images train --network resnet20 --data cifar-100-binary
    """

    images: Data = Data()
    network: Network = "small"
    """A few convolutions; AlexNet's for 32 x 32 pixels; residual networks for CIFAR."""
    captions: bool = False
    """Train it contrastively with captions."""
    epochs: int | None = None
    """Passes over the training images; when omitted, as many as the network needs."""
    seed: int = 0
    """Of the initial parameters and the order of the images."""
    runs: Path = RUNS
    """Folder for the network."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a classifier on test images under random elements, in every way.

    Plain, equitune, equizero by each score, lambda-equitune with weights fitted without labels or
    with them, and small orientation networks that choose one or two views before the model runs.
    Writes zero_shot.csv (dataset, model, condition, group, method, seed, accuracy, images,
    forwards), in which rows of other models stay, and draws weights of views of some images.

    Example: equicore images evaluate --model microsoft/resnet-50 --data photos --size 224
    """

    images: Data = Data()
    pretrained: Pretrained = Pretrained()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the elements, and of what is fitted."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for zero_shot.csv."""


@dataclasses.dataclass(frozen=True)
class Advise:
    """Say what to use for a model and images without labels.

    Example: equicore images advise --model resnet20.th --data photos --size 32
    """

    images: Data = Data()
    pretrained: Pretrained = Pretrained()


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune a classifier that is made invariant, and a plain one with as many forwards.

    Writes finetune.csv: the columns of zero_shot.csv, and steps; rows of other models stay.

    Example: equicore images finetune --methods equitune lambda_frozen augmented
    """

    images: Data = Data()
    pretrained: Pretrained = Pretrained()
    methods: tuple[Method, ...] = (
        "plain", "augmented", "equitune", "equizero_mean", "equizero_plain", "lambda_frozen",
        "lambda_joint",
    )  # fmt: skip
    """What is fine-tuned; equizero's straight-through gradient is of the mean or the plain view."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the order of the images, and of what is fitted."""
    steps: tuple[int, ...] = (0, 100, 300, 1000)
    """Evaluate after so many steps, in rising order."""
    batch_size: int = 16
    """Images in a step, of which each has all its views; those without views have more images."""
    learning_rate: float = 3e-4
    """Adam's."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for finetune.csv."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Write zero_shot.md and finetune.md from the CSV files beside them.

    Example: equicore images table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds zero_shot.csv, and finetune.csv if there was a fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw zero_shot and finetune, as PNG and SVG, from the CSV files beside them.

    Example: equicore images plot
    """


def run(command: Train | Evaluate | Advise | Finetune | Table | Plot) -> None:
    """Classifiers and CLIP that no longer care which way is up."""
    mains: dict[type, Main] = {
        Train: _train,
        Evaluate: _evaluate,
        Advise: _advise,
        Finetune: _tune,
        Table: _report,
        Plot: _report,
    }
    mains[type(command)](command)


def _train(arguments: Train) -> None:
    from equicore.applications.images.loading import load
    from equicore.applications.images.training import accuracy, trained

    check_least(arguments, epochs=1, seed=0)
    check_writable(arguments.runs / "network")
    train, test = (_read(arguments.images, split) for split in ("train", "test"))
    name, epochs, seed = arguments.network, arguments.epochs, arguments.seed
    file = trained(name, train, arguments.runs, arguments.captions, epochs, seed)
    part = accuracy(load(file, test), test)
    print(f"{file}\n{100 * part:.1f} % of the {len(test)} test images, upright")


def _evaluate(arguments: Evaluate) -> None:
    from equicore.applications.images import report
    from equicore.applications.images.experiment import COLUMNS, measure
    from equicore.lab.jobs import Workers

    check_several(arguments, "seeds")
    check_least(arguments, jobs=1)
    file = arguments.output / "zero_shot.csv"
    check_writable(file)
    others = _without(file, COLUMNS)
    studies = _studies(arguments.images, arguments.pretrained)
    for study in studies:
        study.prepare()  # once, not in every process
    pairs = itertools.product(studies, arguments.seeds)
    tasks = [functools.partial(measure, study, seed) for study, seed in pairs]
    tables = Workers(arguments.jobs).map(tasks, "evaluate")
    write_csv(file, others(pd.concat(tables)), "%.6f")
    drawn = [report.write_weights(study, arguments.output) for study in studies]
    print(file, *itertools.chain.from_iterable(drawn), sep="\n")


def _advise(arguments: Advise) -> None:
    from equicore.applications.images.experiment import advice

    for study in _studies(arguments.images, arguments.pretrained):
        print(f"{study.group}: {advice(study)}")


def _tune(arguments: Finetune) -> None:
    from equicore.applications.images import finetune
    from equicore.applications.images.experiment import COLUMNS
    from equicore.lab.jobs import Workers

    steps, rate = arguments.steps, arguments.learning_rate
    check_several(arguments, "methods", "seeds")
    check_least(arguments, batch_size=1, jobs=1)
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"--steps rise, from 0 on; got {' '.join(map(str, steps))}")
    if not 0 < rate < math.inf:
        raise ValueError(f"--learning-rate must be positive; got {rate}")
    file = arguments.output / "finetune.csv"
    check_writable(file)
    others = _without(file, [*COLUMNS, "steps"])
    tuning = finetune.Tuning(steps, arguments.batch_size, rate)
    studies = _studies(arguments.images, arguments.pretrained)
    for study in studies:
        study.prepare()
    tasks = [
        functools.partial(finetune.measure, study, method, tuning, seed)
        for study, seed, method in itertools.product(studies, arguments.seeds, arguments.methods)
    ]
    tables = Workers(arguments.jobs).map(tasks, "finetune")
    write_csv(file, others(pd.concat(tables)), "%.6f")
    print(file)


def _report(arguments: Table) -> None:
    from equicore.applications.images import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_tables
    print(*write(arguments.folder), sep="\n")


def _read(data: Data, split: str, familiar: str | None = None) -> Images:
    from equicore.applications.images.data import read
    from equicore.applications.images.experiment import check_square
    from equicore.applications.images.methods import GROUPS

    if familiar is not None:
        return read(familiar, split, mode=data.mode, size=data.size, labelled=False)
    images = read(data.data, split, mode=data.mode, size=data.size, names=data.names)
    if data.under is None:
        return images
    check_square(images, data.under)
    moved = images.moved(GROUPS[data.under](), seed=0 if split == "train" else 1)
    return dataclasses.replace(moved, name=f"{images.name}-{data.under}")


def _studies(data: Data, pretrained: Pretrained) -> list[Study]:
    """A study for each group; raises for whatever does not fit, before any long work."""
    from equicore.applications.images import experiment, loading, training

    check_several(pretrained, "groups")
    check_least(pretrained, fit_steps=1, look_steps=1, most_familiar=1)
    check_writable(pretrained.runs / "network")
    train, test = (_read(data, split) for split in ("train", "test"))
    if train.classes != test.classes:
        raise ValueError(f"the classes of {data.data} are others in its training and test images")
    familiar = None
    if pretrained.familiar is not None:
        familiar = _read(data, "train", pretrained.familiar)
        if familiar.pixels.shape[1:] != train.pixels.shape[1:]:
            raise ValueError(
                f"images of --familiar have the shape {tuple(familiar.pixels.shape[1:])}, those of "
                f"--data {tuple(train.pixels.shape[1:])}; --size and --mode make them alike"
            )
        if len(familiar) > pretrained.most_familiar:
            _, familiar = familiar.split(pretrained.most_familiar / len(familiar), seed=0)
    for group in pretrained.groups:
        experiment.check_square(test, group)
    source = pretrained.model
    if source is None:
        if data.data is not None:
            raise ValueError("--data needs a --model; train one with: equicore images train")
        source = str(training.trained("small", train, pretrained.runs))
    if pretrained.probe:
        model = training.probed(loading.load(source, None), train, pretrained.runs)
    else:
        model = loading.load(source, test)
    label = pretrained.label or Path(source).stem
    features = pretrained.features or loading.features_of(model)
    study = experiment.Study(
        model, label, train, test, "turns", features, pretrained.runs, familiar,
        fit_steps=pretrained.fit_steps, look_steps=pretrained.look_steps,
    )  # fmt: skip
    return [dataclasses.replace(study, group=group) for group in pretrained.groups]


def _without(file: Path, columns: Sequence[str]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Adds new rows to those in a file that are of other models, data sets or groups.

    Raises:
        ValueError: If the file is another table.
    """
    found = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=list(columns))
    if missing := set(columns) - set(found.columns):
        raise ValueError(
            f"{file} is another table, without {', '.join(sorted(missing))}; name another --output"
        )

    def add(new: pd.DataFrame) -> pd.DataFrame:
        keys = ["dataset", "model", "group"]
        known = set(new[keys].itertuples(index=False, name=None))
        kept = [row not in known for row in found[keys].itertuples(index=False, name=None)]
        return pd.concat([found[kept], new]) if any(kept) else new

    return add
