"""The commands, on few drawn scenes and few photographs; each is run as a user would."""

import dataclasses
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from equicore.applications.cli import main
from equicore.applications.detection import data, detector, experiment, fastestdet, finetune
from equicore.applications.detection.experiment import MAPS, PARTS, PLAIN, UPRIGHT, Study
from equicore.boxes import Fusion
from equicore.finetuning import Equitune, deviation

FEW = ["--drawn", 36, 12]


pytestmark = pytest.mark.slow  # each trains a model or looks at photographs


def call(*words):
    """As `equicore detection` does."""
    before = sys.argv
    sys.argv = ["equicore", "detection", *map(str, words)]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `evaluate` wrote, and its runs."""
    made = tmp_path_factory.mktemp("detection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "RESAMPLES", 20)
        evaluate(made)
    return made


def evaluate(folder, *options):
    places = ["--output", folder, "--runs", folder / "runs"]
    call("evaluate", *FEW, "--seeds", 0, "--jobs", 1, "--fit-steps", 60, *places, *options)


def test_evaluate(folder):
    table = pd.read_csv(folder / "zero_shot.csv")
    assert {PLAIN, MAPS, UPRIGHT} < {*table.method} and {*table.part} == {*PARTS}
    assert len(table) == 10 * 3
    assert (table.ap50.between(table.ap50_low, table.ap50_high) & table.ap50.between(0, 1)).all()
    moved = table[table.part == "all"].set_index("method")
    upright = moved.loc[UPRIGHT]
    assert upright.share == 1 and upright.ap50 > 0.3 and upright.deviation == 0
    fused = moved.drop(index=[PLAIN, UPRIGHT])
    assert moved.deviation[PLAIN] > 0.2 and (fused.deviation < 1e-4).all()
    assert moved.ap50[PLAIN] < moved.ap50["equitune: union, NMS"]
    assert moved.ap50["lambda: views weighed"] > 0.9 * upright.ap50
    assert moved.forwards[PLAIN] == 1 and (fused.forwards == 4).all()
    shifts = pd.read_csv(folder / "shifts.csv").set_index("shift")
    assert (shifts.value.between(shifts.low, shifts.high) & (shifts.value > 0)).all()
    assert shifts.value[8] < shifts.value[4]  # a whole cell is less than a half
    assert (folder / "boxes_drawn-64_small_turns.png").stat().st_size > 1000


def test_what_was_computed_is_found_again(folder):
    wanted = (folder / "zero_shot.csv").read_bytes()
    kept = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*")}
    assert len(kept) >= 3  # the network, a seed, shifts
    (folder / "zero_shot.csv").unlink()
    evaluate(folder)
    assert (folder / "zero_shot.csv").read_bytes() == wanted
    assert {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*")} == kept


def test_table_and_plot(folder, capsys):
    call("table", folder)
    call("plot", folder)
    page = (folder / "zero_shot.md").read_text()
    assert "## drawn-64, small, turns" in page and "**lambda" in page
    assert {"zero_shot.svg", "zero_shot.png", "shifts.png"} <= {f.name for f in folder.iterdir()}
    assert "shifts.png" in capsys.readouterr().out


def test_training_goes_on(tmp_path, monkeypatch):
    scenes = data.drawn(40, 0)
    whole = finetune.trained(scenes, tmp_path / "whole.safetensors", 3).state_dict()
    fit, calls = finetune.fit, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(finetune, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune.trained(scenes, tmp_path / "part.safetensors", 3)
    found = finetune.trained(scenes, tmp_path / "part.safetensors", 3).state_dict()
    assert len(calls) == 4 and all(torch.equal(found[name], t) for name, t in whole.items())


def test_finetune(folder, tmp_path):
    places = ["--output", tmp_path, "--runs", folder / "runs"]
    chosen = ["--methods", "plain", "equitune", "--fractions", 0.5, "--seeds", 0, "--jobs", 1]
    call("finetune", *FEW, *chosen, "--steps", 3, "--views", 8, *places)
    table = pd.read_csv(tmp_path / "finetuning.csv")
    last = table[table.steps == 3].pivot(index="metric", columns="method", values="value")
    assert last.equitune["AP50"] == pytest.approx(last.equitune["AP50_moved"], abs=1e-6)
    assert last.equitune["deviation"] < 1e-4 < 0.05 < last.plain["deviation"]


def test_the_task(small, scenes):
    train, test = scenes[0][:12], scenes[1][:4]
    task = finetune.Detection(small, train, test, "few", ("body.5", "body"))
    turns, shifts = task.problem.symmetries
    x, head = next(train.batches(3))
    for symmetry in (turns, shifts):
        assert deviation(lambda x: x, type(symmetry)(symmetry.input, symmetry.input), [x]) == 0
    moved = train[:3].moved(turns.input, torch.tensor([1, 4, 7]))
    expected = turns.of_target.act_each(torch.tensor([1, 4, 7]), head)
    torch.testing.assert_close(next(moved.batches(3))[1], expected)
    assert shifts.order == 64 and shifts.features["body.5"].size == (16, 16)
    network = Equitune().of(task.model(0), task.problem).eval()
    assert deviation(network, turns, task.probes()) < 1e-5
    loss = finetune.detection_loss
    assert loss(head, head) < loss(task.model(0)(x), head)
    for g in range(8):  # the loss does not change with the frame
        found = task.model(0).eval()(x)
        turned = loss(turns.output.act(g, found), turns.output.act(g, head))
        torch.testing.assert_close(turned, loss(found, head))
    with pytest.raises(ValueError, match="is none of"):
        finetune.Detection(small, train, test, "few", ("head.none",))


def test_rows_of_other_settings_are_refused(folder, capsys):
    """Other scenes under the same name, in a table and in shifts.csv."""
    kept = (folder / "zero_shot.csv").read_bytes()
    with pytest.raises(SystemExit):
        evaluate(folder, "--drawn", 40, 14)
    said = capsys.readouterr().err
    assert "zero_shot.csv has rows of drawn-64, small that were made with other models" in said
    assert (folder / "zero_shot.csv").read_bytes() == kept


def test_a_head_for_other_classes_is_not_kept(weights, scenes):
    """As many classes as the published weights know, under other names."""
    network, names = fastestdet.load(weights), tuple(f"kind {i}" for i in range(80))
    side = {"pixels": torch.zeros(4, 3, 64, 64, dtype=torch.uint8)}
    some = dataclasses.replace(scenes[0][:4], classes=names, **side)
    for classes, same in ((names, False), (tuple(fastestdet.COCO), True)):
        own = dataclasses.replace(some, classes=classes)
        model = detector.Detector(network, detector.of_head_map, classes, Fusion())
        task = finetune.Detection(model, own, own, "few", ("SPP",))
        name = "detect_head.cls_layers.conv5x5.3.weight"
        kept = torch.equal(task.model(0).state_dict()[name], network.state_dict()[name])
        assert kept is same


def test_data_without_boxes_are_refused_before_anything_is_trained(small, scenes):
    bare = dataclasses.replace(scenes[1], labels=scenes[1].labels * 0 - 1)
    for train, test in ((bare, scenes[1]), (scenes[0], bare)):
        with pytest.raises(ValueError, match="none of these 40 images of drawn-64 has boxes"):
            finetune.Detection(small, train, test, "few", ("body",))


def test_features_that_are_no_maps_are_refused(small, scenes):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.flat = small.network, torch.nn.Flatten()

        def forward(self, x):
            self.flat(x)
            return self.network(x)

    flat = type(small)(Flat(), small.outputs, small.classes, small.suppress)
    with pytest.raises(ValueError, match="flat do not, .* name other features"):
        finetune.Detection(flat, scenes[0], scenes[1], "few", ("flat",))


def test_a_study_refuses_what_does_not_fit(small, scenes, tmp_path):
    known, test = scenes
    rest = {"group": "turns", "features": "network.body", "folder": tmp_path}
    with pytest.raises(ValueError, match="fewer than 10 images nothing familiar is learned"):
        Study(small, "small", known, test[:9], **rest)
    with pytest.raises(ValueError, match="sides of 32"):
        Study(small, "small", known, data.drawn(4, 0, side=32), **rest)
    other = type(small)(small.network, small.outputs, ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="the detector has 4 classes"):
        Study(other, "small", known, test, **rest)


@pytest.fixture
def photographs(tmp_path):
    """An image of COCO to learn from and one to report, with one category; and both again."""
    from PIL import Image

    for value, (name, places) in enumerate((("train", "a"), ("val", "b"), ("both", "ab"))):
        images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in places]
        boxes = [{"id": 1, "image_id": places[0], "category_id": 1, "bbox": [1, 1, 20, 20]}]
        kinds = [{"id": 1, "name": "cat"}]
        content = {"images": images, "annotations": boxes, "categories": kinds}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        if len(places) == 1:
            pixels = np.full((40, 60, 3), 40 * value, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{places}.png")
    return tmp_path


def test_bad_input_is_refused(photographs, weights, capsys):
    images = ["--images", photographs, "--annotations", photographs / "val.json"]
    known = ["--known-annotations", photographs / "train.json"]
    ours = ["--detector", weights, *images]
    places = ["--output", photographs, "--runs", photographs / "runs"]
    for words, message in (
        (images, "--detector, --images and --annotations are given together"),
        (ours, "known images would be those to report"),
        (
            [*ours, *known],
            "images show 1, and the first to differ is 'cat' instead of 'person'",
        ),
        (
            [*ours, "--known-annotations", photographs / "both.json"],
            "1 images are among both those to learn from and those to report",
        ),
        ([*ours, *known, "--side", 8], "--side must be at least 32"),
        (["--detector", photographs / "a.png", *images, *known], "does not hold the weights"),
        (["--drawn", 0, 5], "--drawn are 10 scenes or more to evaluate on"),
        ([*ours, *known, "--side", 100], "--side is a multiple of 32; got 100"),
        (["--seeds", 1, 1], "--seeds has 1 more than once"),
    ):
        with pytest.raises(SystemExit):
            call("evaluate", *words, *places)
        assert message in capsys.readouterr().err, words
    with pytest.raises(SystemExit):
        call("table", photographs / "none")
    assert "make it with equicore detection evaluate" in capsys.readouterr().err
