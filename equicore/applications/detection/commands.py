"""What `equicore detection` does: evaluate, finetune, table, plot."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from equicore.applications.finetuning.commands import Comparison, compare, tuning_of
from equicore.lab import CORES
from equicore.lab.command import Main, check_least, check_seeds
from equicore.lab.store import check_writable
from equicore.lab.tables import add_rows, check_made

if TYPE_CHECKING:
    from equicore.applications.detection.data import Scenes
    from equicore.applications.detection.detector import Detector

RESULTS = Path("results/detection")
RUNS = Path("results/runs/detection")
DEFAULTS: dict[str, Any] = {"steps": 150, "views": 16, "rate": 1e-3}


@dataclasses.dataclass(frozen=True)
class Model:
    """A detector, and images with boxes; when omitted, a small one and scenes that are drawn."""

    detector: Path | None = None
    """File of FastestDet's weights."""
    images: Path | None = None
    """Folder of images to report."""
    annotations: Path | None = None
    """Their boxes: a JSON file of COCO, or a folder of XML files of Pascal VOC."""
    split: str | None = None
    """Of Pascal VOC, which of the lists in ImageSets/Main, such as test."""
    known_images: Path | None = None
    """Folder of images to learn from and to choose by; that of --images when omitted."""
    known_annotations: Path | None = None
    """Their boxes; those of --annotations when omitted."""
    known_split: str | None = None
    """As --split, such as train."""
    side: int = 352
    """Images are resized to squares of so many pixels, a multiple of 32."""
    features: str | None = None
    """Submodule of the network whose maps weights and penalties see; of FastestDet SPP when
    omitted."""
    drawn: tuple[int, int] = (400, 100)
    """Scenes to draw: known ones, which the small detector learns from, and others to report."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a detector on images under random elements, plain and made equivariant, zero-shot.

    Weights of views are learned from known images without labels; a method is chosen on these.
    Writes zero_shot.csv and shifts.csv, and draws boxes before and after.

    Example: equicore detection evaluate --detector fastestdet-coco.pth --images val2017
    --annotations val2017.json --known-images train2017 --known-annotations train2017.json
    """

    model: Model = Model()
    group: Literal["turns", "mirror", "flip", "turns+mirror"] = "turns"
    """Quarter turns; mirror, left to right; flip, top to bottom; quarter turns and mirrors."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the elements, and of what is fitted."""
    fit_steps: int = 300
    """In which the weights of lambda-equitune are fitted."""
    jobs: int = CORES
    """Processes, each on one core."""
    output: Path = RESULTS
    """Folder for tables, in which other rows stay."""
    runs: Path = RUNS
    """Folder that keeps what was computed: one that was interrupted goes on."""


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune a detector on images of other classes, by all methods; see `equicore finetuning`.

    Under quarter turns and mirrors, and shifts by whole cells.

    Example: equicore detection finetune --detector fastestdet-coco.pth --images JPEGImages
    --annotations Annotations --known-split train --split test --side 256
    """

    model: Model = Model()
    comparison: Comparison = Comparison()


@dataclasses.dataclass(frozen=True)
class Table:
    """Write zero_shot.md from zero_shot.csv and shifts.csv.

    Example: equicore detection table
    """

    folder: tyro.conf.Positional[Path] = RESULTS
    """Holds what `equicore detection evaluate` wrote."""


@dataclasses.dataclass(frozen=True)
class Plot(Table):
    """Draw zero_shot and shifts, as PNG and SVG, from the CSV files beside them.

    Example: equicore detection plot
    """


def run(command: Evaluate | Finetune | Table | Plot) -> None:
    """Detectors that find the same boxes however images are turned or mirrored."""
    mains: dict[type, Main] = {
        Evaluate: _evaluate,
        Finetune: _finetune,
        Table: _report,
        Plot: _report,
    }
    mains[type(command)](command)


def _evaluate(arguments: Evaluate) -> None:
    from equicore.applications.detection import experiment, report
    from equicore.lab.jobs import Workers

    check_seeds(arguments)
    check_least(arguments, fit_steps=1, jobs=1)
    if min(arguments.model.drawn) < experiment.LEAST:
        raise ValueError(f"--drawn are {experiment.LEAST} scenes or more to evaluate on")
    files = {name: arguments.output / f"{name}.csv" for name in experiment.KEYS}
    detector, name, known, test, features = _read(arguments.model, arguments.runs)
    study = experiment.Study(
        detector, name, known, test, arguments.group, f"network.{features}", arguments.runs,
        arguments.fit_steps,
    )  # fmt: skip
    for name, file in files.items():
        of = {"dataset": test.name, "model": study.name}
        check_made(file, experiment.KEYS[name], study.made_with, **of)
    work = [functools.partial(study.measure, seed) for seed in arguments.seeds]
    Workers(arguments.jobs).map(work, "evaluate")
    add_rows(files["zero_shot"], study.table(arguments.seeds), experiment.KEYS["zero_shot"])
    add_rows(files["shifts"], study.shifts(), experiment.KEYS["shifts"])
    print(*files.values(), *report.write_boxes(study, arguments.output), sep="\n")


def _finetune(arguments: Finetune) -> None:
    from equicore.applications.detection.finetune import Detection

    runs = arguments.comparison.runs
    tuning_of(arguments.comparison, **DEFAULTS)  # refuses what cannot be before images are read
    detector, name, known, test, features = _read(arguments.model, runs, fitting=False)
    task = Detection(detector, known, test, f"{test.name} from {name}", (features,))
    print(*compare(task, arguments.comparison, **DEFAULTS), sep="\n")


def _report(arguments: Table) -> None:
    from equicore.applications.detection import report  # which loads matplotlib

    write = report.write_figures if isinstance(arguments, Plot) else report.write_table
    print(*write(arguments.folder), sep="\n")


def _read(of: Model, runs: Path, fitting: bool = True) -> tuple[Detector, str, Scenes, Scenes, str]:
    """The detector and its name, known images and those to report, and the features' name.

    If ``fitting``, raise ValueError unless the detector has the images' classes.
    """
    from equicore.applications.detection import data, fastestdet, finetune
    from equicore.applications.detection.detector import Detector, of_head_map
    from equicore.boxes import Fusion

    check_writable(runs / "network")
    check_least(of, side=32)
    if min(of.drawn) < 1:
        raise ValueError(f"--drawn are numbers of scenes from 1 on; got {of.drawn}")
    if of.detector is None or of.images is None or of.annotations is None:
        if any((of.detector, of.images, of.annotations)):
            raise ValueError("--detector, --images and --annotations are given together, or none")
        known, test = (data.drawn(count, seed) for seed, count in enumerate(of.drawn))
        network: Any = finetune.trained(known, runs / f"drawn-{known.digest}.safetensors")
    else:
        network = fastestdet.load(of.detector)
        if of.side % fastestdet.DEEPEST:
            raise ValueError(f"--side is a multiple of {fastestdet.DEEPEST}; got {of.side}")
        source = of.known_images or of.images, of.known_annotations or of.annotations
        if (*source, of.known_split) == (of.images, of.annotations, of.split):
            raise ValueError("known images would be those to report; name --known-split, or others")
        known = data.read(*source, of.side, of.known_split)
        test = data.read(of.images, of.annotations, of.side, of.split, known.classes)
    if shared := {p.numpy().tobytes() for p in known.pixels} & {
        p.numpy().tobytes() for p in test.pixels
    }:
        raise ValueError(
            f"{len(shared)} images are among both those to learn from and those to report; name "
            "others, or another --known-split"
        )
    learned = getattr(network, "names", None) or known.classes[: network.classes]
    pairs = itertools.zip_longest(learned, known.classes)
    if fitting and (wrong := [pair for pair in pairs if pair[0] != pair[1]]):
        raise ValueError(
            f"{of.detector} knows {network.classes} classes, the images show {len(known.classes)}, "
            f"and the first to differ is {wrong[0][1]!r} instead of {wrong[0][0]!r}; for others it "
            "is fine-tuned: equicore detection finetune"
        )
    for some in (known, test):
        print(f"{some.name}: {len(some)} images, {some.empty} of them without boxes")
    detector = Detector(network, of_head_map, known.classes, Fusion()).eval()
    name = of.detector.stem if of.detector else "small"
    return detector, name, known, test, of.features or network.features
