"""What `equicore images` does: train, evaluate, advise, finetune, adapt, table, plot."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import tyro

from equicore.applications.finetuning.commands import Comparison, compare, tuning_of
from equicore.applications.images.names import Group, Method, Network
from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_seeds, check_several, check_training
from equicore.lab.store import check_writable
from equicore.lab.tables import add_rows, check_rows

if TYPE_CHECKING:
    from equicore.applications.images.data import Images
    from equicore.applications.images.study import Study

RESULTS = Path("results/images")
RUNS = Path("results/runs/images")
KEYS = ["dataset", "model", "group", "method", "seed"]
NETWORK_KEYS = ["network", "dataset"]
ADAPTED: dict[str, Any] = {"steps": 200, "views": 64, "rate": 3e-3}
"""How `equicore images adapt` fine-tunes by default."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Images, each with the name of its class."""

    data: str | None = None
    """A folder, split/class/image.png or class/image.png; the folder of CIFAR's official binary
    files; or hf:NAME, a data set of Hugging Face. When omitted, scikit-learn's handwritten
    digits."""
    mode: Literal["RGB", "L"] | None = None
    """Convert images to colour or to grey; they have to be alike when omitted."""
    size: int | None = None
    """Resize the shorter side to it, and cut out the square in the middle."""
    names: Path | None = None
    """File of class names, one a line, for class folders that are named by numbers from 0."""
    under: Group | None = None
    """Move all images, those to train on too, as if they had no natural orientation."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model, and under what it is looked at."""

    model: str | None = None
    """A file of `equicore images train`; weights of a ResNet for CIFAR (.th); a folder or a hub id
    of Hugging Face: an image classifier, or a CLIP, which classifies by text. When omitted, a small
    network that is trained on the digits now."""
    features: tuple[str, ...] = ()
    """Submodules whose outputs the weights of lambda-equitune see; when omitted, the last that
    gives maps, or words and patches, of ResNets for CIFAR the last two stages."""
    groups: tuple[Group, ...] = ("turns",)
    """Quarter turns; mirror, left to right; flip, top to bottom; quarter turns and mirrors; eighths
    of a turn, which pixels follow approximately."""
    fit_steps: int = 1000
    """In which the weights of lambda-equitune are fitted."""
    device: str = "cpu"
    """Where the model is computed: cpu, cuda, mps."""
    runs: Path = RUNS
    """Folder that keeps what was computed."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is measured, and how it is called."""

    probe: bool = False
    """Replace the model's last layer by two, fitted to the classes of the training images."""
    label: str | None = None
    """What tables call the model; its name when omitted."""
    familiar: str | None = None
    """More upright images, as --data, from which the weights learn without labels what is
    upright."""
    most_familiar: int = 15_000
    """Take so many of them at most, drawn at random."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for the table, in which rows of other models, methods and seeds stay."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network from scratch, to start from; one that was interrupted goes on where it was.

    With --captions it is the image encoder of a small CLIP, trained with the 80 captions of each
    class; its classification is by text alone. Adds a row to networks.csv.

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
    output: Path = RESULTS
    """Folder for networks.csv."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a classifier on test images under random elements, in every way.

    Plain, equitune, equizero by each score, lambda-equitune with weights fitted without labels or
    with them, and small orientation networks that choose one or two views before the model runs.
    Writes zero_shot.csv (dataset, model, condition, group, method, seed, accuracy, images,
    forwards, digest), and draws weights of views of some images.

    Example: equicore images evaluate --model microsoft/resnet-50 --data photos --size 224
    """

    images: Data = Data()
    model: Model = Model()
    experiment: Experiment = Experiment()
    looks: tuple[int, ...] = (4, 8, 16)
    """Widths of orientation networks; none are fitted when it is empty."""
    look_steps: int = 2000
    """In which they are fitted."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the elements, and of what is fitted."""


@dataclasses.dataclass(frozen=True)
class Advise:
    """Say what to use for a model and images without labels: any folder of images.

    Example: equicore images advise --model resnet20.th --data photos --size 32
    """

    images: Data = Data()
    model: Model = Model()


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune a classifier that is made invariant, and a plain one with as many forwards.

    Writes finetune.csv: the columns of zero_shot.csv, and steps.

    Example: equicore images finetune --methods equitune lambda_frozen augmented
    """

    images: Data = Data()
    model: Model = Model()
    experiment: Experiment = Experiment()
    methods: tuple[Method, ...] = get_args(Method)
    """What is fine-tuned; equizero's straight-through gradient is of the mean or the plain view."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the order of the images, and of what is fitted."""
    steps: tuple[int, ...] = (0, 100, 300, 1000)
    """Evaluate after so many steps, in rising order."""
    batch_size: int = 16
    """Images in a step, of which each has all its views; those without views have more images."""
    learning_rate: float = 3e-4
    """Adam's."""


@dataclasses.dataclass(frozen=True)
class Adapt:
    """Fine-tune a classifier to other classes, towards a symmetry, by methods that are compared.

    Its last layer is replaced by two, which are first fitted to features of the images; then all of
    it is trained. Accuracy on test images as they are, under random elements of the group and
    shifted by up to 4 pixels, and the deviation from equivariance before, during and after. Adds to
    finetuning.csv; see `equicore finetuning`.

    Example: equicore images adapt --model resnet20-12fca82f.th --data cifar-100-binary
    """

    images: Data = Data()
    model: str | None = None
    """As of `equicore images evaluate`. When omitted, a small network that is trained on the
    digits now."""
    label: str | None = None
    """What tables call the model; its name when omitted."""
    group: Group = "turns"
    """Quarter turns, mirrors, or both; cyclic shifts are a second symmetry."""
    features: tuple[str, ...] = ()
    """Submodules whose feature maps penalties are on; when omitted, the last that returns maps, of
    ResNets for CIFAR the last two stages, and none of transformers."""
    whole: int | None = None
    """Of how many images fractions are parts, where these are a part already; of all when
    omitted."""
    tested: int = 1000
    """Test images, drawn at random."""
    device: str = "cpu"
    """Where the model is computed: cpu, cuda, mps."""
    comparison: Comparison = Comparison()


@dataclasses.dataclass(frozen=True)
class Table:
    """Write zero_shot.md and finetune.md from the CSV files beside them.

    Example: equicore images table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds zero_shot.csv, finetune.csv, or both, and networks.csv if networks were trained."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw zero_shot, cost and finetune, as PNG and SVG, from the CSV files beside them.

    Example: equicore images plot
    """


def run(command: Train | Evaluate | Advise | Finetune | Adapt | Table | Plot) -> None:
    """Classifiers and CLIP that no longer care which way is up."""
    mains: dict[type, Main] = {
        Train: _train,
        Evaluate: _evaluate,
        Advise: _advise,
        Finetune: _tune,
        Adapt: _adapt,
        Table: _report,
        Plot: _report,
    }
    mains[type(command)](command)


def _train(arguments: Train) -> None:
    from equicore.applications.images.loading import load
    from equicore.applications.images.training import accuracy, trained
    from equicore.lab.store import read_tensors

    check_least(arguments, epochs=1, seed=0)
    check_writable(arguments.runs / "network")
    table = arguments.output / "networks.csv"
    check_rows(table, NETWORK_KEYS)
    train, test = _both(arguments.images)
    name, epochs, seed = arguments.network, arguments.epochs, arguments.seed
    file = trained(name, train, arguments.runs, arguments.captions, epochs, seed)
    model, header = load(file, test), read_tensors(file)[1]
    row = {
        "network": file.stem,
        "dataset": test.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": header["recipe"]["epochs"],
        "minutes": header["seconds"] / 60,
        "accuracy": accuracy(model, test),
    }
    add_rows(table, pd.DataFrame([row]), NETWORK_KEYS)
    part = f"{100 * row['accuracy']:.1f} % of the {len(test)} test images, upright"
    print(f"{file}\n{part}; {row['minutes']:.1f} minutes\n{table}")


def _evaluate(arguments: Evaluate) -> None:
    from equicore.applications.images import report
    from equicore.applications.images.experiment import made_with, measure, more_settings
    from equicore.lab.jobs import Workers

    looks = arguments.looks
    check_seeds(arguments)
    check_least(arguments, look_steps=1)
    if min(looks, default=1) < 1 or len(set(looks)) < len(looks):
        raise ValueError(f"--looks are different widths from 1 on; got {' '.join(map(str, looks))}")
    output, jobs = arguments.experiment.output, arguments.experiment.jobs
    file, keys = output / "zero_shot.csv", [*KEYS, "condition"]
    found = check_rows(file, [*keys, "digest"])
    fitted: dict[str, Any] = {"looks": looks, "look_steps": arguments.look_steps}
    studies = [dataclasses.replace(study, **fitted) for study in _studies(arguments)]
    wanted = {(s.test.name, s.name): made_with(s, more_settings(s)) for s in studies}
    _check_names(file, found, wanted)
    for study in _largest_first(studies):
        study.prepare()
    tasks = [functools.partial(measure, s, seed) for s in studies for seed in arguments.seeds]
    add_rows(file, pd.concat(Workers(jobs).map(tasks, "evaluate")), keys)
    drawn = [report.write_weights(study, output) for study in studies]
    print(file, *itertools.chain.from_iterable(drawn), sep="\n")


def _advise(arguments: Advise) -> None:
    from equicore.applications.images import loading
    from equicore.applications.images.experiment import advice
    from equicore.applications.images.methods import GROUPS

    images, of = _read(arguments.images, None, labelled=False), arguments.model
    _check(of, images)
    model = loading.without_classes(_source(arguments.images, of), images).to(of.device)
    features = of.features or loading.features_of(model, images)
    for group in of.groups:
        print(f"{group}: {advice(model, images, GROUPS[group](), features, of.fit_steps)}")


def _tune(arguments: Finetune) -> None:
    from equicore.applications.images import finetune
    from equicore.applications.images.experiment import made_with
    from equicore.lab.jobs import Workers

    check_seeds(arguments)
    check_several(arguments, "methods")
    check_least(arguments, batch_size=1)
    check_training(arguments)
    file, keys = arguments.experiment.output / "finetune.csv", [*KEYS, "steps"]
    found = check_rows(file, [*keys, "digest"])
    tuning = finetune.Tuning(arguments.steps, arguments.batch_size, arguments.learning_rate)
    studies, of = _studies(arguments), dataclasses.asdict(tuning)
    _check_names(file, found, {(s.test.name, s.name): made_with(s, of) for s in studies})
    if any(method.startswith("lambda") for method in arguments.methods):
        for study in _largest_first(studies):
            study.familiar_table()
    tasks = [
        functools.partial(finetune.measure, study, method, tuning, seed)
        for study in studies
        for seed, method in itertools.product(arguments.seeds, arguments.methods)
    ]
    tables = Workers(arguments.experiment.jobs).map(tasks, "finetune")
    add_rows(file, pd.concat(tables), keys)
    print(file)


def _adapt(arguments: Adapt) -> None:
    from equicore.applications.images import loading
    from equicore.applications.images.adapt import Adaptation, maps_of
    from equicore.lab.devices import check_device

    check_least(arguments, tested=1, whole=1)
    check_device(arguments.device)
    tuning_of(arguments.comparison, **ADAPTED)  # refuses what cannot be before images are read
    if arguments.group == "eighths":
        raise ValueError("--group eighths is approximate, also on feature maps; choose turns")
    train, test = _both(arguments.images)
    source = arguments.model
    if source is None:
        source = _source(arguments.images, Model(runs=arguments.comparison.runs))
    model = loading.without_classes(source, test).to(arguments.device)
    task = Adaptation(
        model, arguments.label or _stem(source), train, test, arguments.group,
        arguments.features or maps_of(model, loading.features_of(model, test), test),
        arguments.tested, arguments.whole,
    )  # fmt: skip
    print(*compare(task, arguments.comparison, **ADAPTED), sep="\n")


def _report(arguments: Table) -> None:
    from equicore.applications.images import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_tables
    print(*write(arguments.folder), sep="\n")


def _read(data: Data, split: str | None, labelled: bool = True, other: str | None = None) -> Images:
    """Images of one split, of another folder if it is named."""
    from equicore.applications.images.data import read
    from equicore.applications.images.methods import GROUPS
    from equicore.applications.images.study import check_square

    names = data.names if labelled else None
    options: dict[str, Any] = {"mode": data.mode, "size": data.size, "labelled": labelled}
    images = read(other or data.data, split, names=names, **options)
    if data.under is None or other is not None:
        return images
    check_square(images, data.under)
    # with seeds that no measurement has, which would undo it
    moved = images.moved(GROUPS[data.under](), seed=2**31 + (split == "test"))
    return dataclasses.replace(moved, name=f"{images.name}-{data.under}")


def _both(data: Data) -> tuple[Images, Images]:
    """Images to train on and to test."""
    train, test = _read(data, "train"), _read(data, "test")
    for what in ("classes", "shape"):
        if getattr(train, what) != getattr(test, what):
            raise ValueError(
                f"the {what} of the images to train on are {getattr(train, what)}, of those to "
                f"test {getattr(test, what)}"
            )
    return train, test


def _check(of: Model, images: Images) -> None:
    """Raise ValueError for options that cannot be."""
    from equicore.applications.images.study import check_square
    from equicore.lab.devices import check_device

    check_several(of, "groups")
    check_least(of, fit_steps=1)
    check_device(of.device)
    check_writable(of.runs / "network")
    for group in of.groups:
        check_square(images, group)


def _source(data: Data, of: Model) -> str:
    """The model's name, or the file of a small network for the digits, trained now."""
    from equicore.applications.images.training import trained

    if of.model is not None:
        return of.model
    if data.data is not None:
        raise ValueError("--data needs a --model; train one with: equicore images train")
    return str(trained("small", _read(data, "train"), of.runs))


def _studies(arguments: Evaluate | Finetune) -> list[Study]:
    """A study for each group; raises for whatever does not fit, before measuring."""
    from equicore.applications.images import loading, training
    from equicore.applications.images.data import HELD_OUT
    from equicore.applications.images.orbits import Seen
    from equicore.applications.images.study import Study

    of, how = arguments.model, arguments.experiment
    check_least(how, most_familiar=1, jobs=1)
    train, test = _both(arguments.images)
    _check(of, test)
    familiar = None
    if how.familiar is not None:
        familiar = _read(arguments.images, "train", labelled=False, other=how.familiar)
        if familiar.shape != test.shape:
            raise ValueError(
                f"images of --familiar have the shape {familiar.shape}, of --data {test.shape}; "
                "--size and --mode make them alike"
            )
        if len(familiar) > how.most_familiar:
            _, familiar = familiar.split(how.most_familiar / len(familiar), seed=0)
        if shared := familiar.shared(test, train.split(HELD_OUT, seed=0)[1]):
            warnings.warn(
                f"{shared} of {len(familiar)} images of --familiar are also among those to test or "
                "to choose methods by: weights learn, without labels, that these are upright",
                stacklevel=2,
            )
    source = _source(arguments.images, of)
    load = loading.without_classes if how.probe else loading.load
    model = load(source, test)
    features = of.features or loading.features_of(model, test)
    Seen(model, features)  # which names a submodule that there is none of
    model = model.to(of.device)
    if how.probe:
        model = loading.checked(training.probed(model, train, of.runs), test)
    study = Study(
        model, how.label or _stem(source), train, test, of.groups[0], features, of.runs,
        familiar, of.fit_steps,
    )  # fmt: skip
    return [dataclasses.replace(study, group=group) for group in of.groups]


def _stem(source: str) -> str:
    """The name of a model: of a file without its suffix; a folder's or a hub id's may have dots."""
    return Path(source).stem if Path(source).is_file() else Path(source).name


def _largest_first(studies: list[Study]) -> list[Study]:
    """In which order views are computed, once for all processes: small groups find theirs then."""
    return sorted(studies, key=lambda study: -len(study.rep.group))


def _check_names(file: Path, found: pd.DataFrame, wanted: dict[tuple[str, str], str]) -> None:
    """Raise ValueError if a table has rows that were made otherwise, under the same names.

    ``wanted`` are the digests of data sets and models.
    """
    for (dataset, model), own in wanted.items():
        same = found[(found.dataset == dataset) & (found.model == model)]
        if len(same) and set(same.digest) != {own}:
            raise ValueError(
                f"{file} has rows of {dataset} and {model} that were made with another model, "
                "other images or other settings; give this one a --label"
            )
