"""The command `equicore images`, from its options to its files."""

import itertools
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from equicore.applications import cli
from equicore.applications.images import data, report, study
from equicore.applications.images.experiment import COLUMNS


def call(monkeypatch, *arguments):
    """The exit status of ``equicore images ...``."""
    monkeypatch.setattr(sys, "argv", ["equicore", "images", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def quick(file, tmp_path):
    """Options for seconds."""
    return ["--model", file, "--runs", tmp_path / "runs", "--output", tmp_path / "out",
            "--jobs", 1, "--fit-steps", 5]  # fmt: skip


def test_help_teaches(monkeypatch, capsys):
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for command in ("train", "evaluate", "advise", "finetune", "table", "plot"):
        assert f"• {command}" in shown
    assert call(monkeypatch, "evaluate", "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--data", "--model", "--groups", "--familiar", "--probe"):
        assert option in shown
    assert "Example: equicore images evaluate" in shown


def test_from_a_network_to_tables_and_figures(monkeypatch, capsys, quick, tmp_path):
    out = tmp_path / "out"
    assert (
        call(
            monkeypatch,
            "evaluate",
            "--look-steps",
            5,
            *quick,
            "--seeds",
            0,
            1,
            "--groups",
            "turns",
            "flip",
        )
        == 0
    )
    table = pd.read_csv(out / "zero_shot.csv")
    assert list(table.columns) == COLUMNS
    assert set(table.group) == {"turns", "flip"}
    assert set(table.seed) == {0, 1}
    assert (out / "weights_digits_small-digits_turns.png").is_file()
    weights = pd.read_csv(out / "weights_digits_small-digits_turns.csv")
    assert weights["class"].tolist()[0] == "all"
    assert weights.images.sum() == 2 * weights.images[0] == 2 * 397
    mean = (weights.upright_heaviest * weights.images)[1:].sum() / 397
    assert weights.upright_heaviest[0] == pytest.approx(mean, abs=1e-5)

    tuning = ["--methods", "equitune", "augmented", "--seeds", 0, "--steps", 0, 1]
    with monkeypatch.context() as without:
        without.setattr(study, "tabulate", lambda *_: pytest.fail("views that no method needs"))
        assert call(monkeypatch, "finetune", *quick, *tuning, "--groups", "mirror") == 0
    (out / "finetune.csv").unlink()
    assert call(monkeypatch, "finetune", *quick, *tuning) == 0
    assert len(pd.read_csv(out / "finetune.csv")) == 4

    capsys.readouterr()
    assert call(monkeypatch, "table", out) == 0
    assert call(monkeypatch, "plot", out) == 0
    written = capsys.readouterr().out.split()
    assert [path.rpartition("/")[2] for path in written] == [
        "zero_shot.md", "finetune.md", "zero_shot.png", "zero_shot.svg", "cost.png", "cost.svg",
        "finetune.png", "finetune.svg",
    ]  # fmt: skip
    page = (out / "zero_shot.md").read_text()
    plain = table[(table.group == "turns") & (table.method == "plain")]
    moved = 100 * plain[plain.condition == "moved"].accuracy.mean()
    assert re.search(rf"\| plain \| {moved:.1f} \[", page)
    assert "digits, small-digits, flip" in page
    assert "CLIP ViT-B/16" in page
    tuned = pd.read_csv(out / "finetune.csv").query("steps == 1").set_index("method").accuracy
    gain = 100 * (tuned.equitune - tuned.augmented)
    assert f"[one run] | {gain:+.1f} [one run] |" in (out / "finetune.md").read_text()


def test_rows_of_other_models_stay(monkeypatch, quick, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    row = dict.fromkeys(COLUMNS, 0) | {"dataset": "other", "model": "resnet", "group": "turns"}
    pd.DataFrame([row]).to_csv(out / "zero_shot.csv", index=False)
    for _ in range(2):
        assert (
            call(
                monkeypatch, "evaluate", "--look-steps", 5, *quick, "--seeds", 0, "--groups", "flip"
            )
            == 0
        )
        table = pd.read_csv(out / "zero_shot.csv")
        assert (table.dataset == "other").sum() == 1
        assert not table.duplicated().any()
    assert (
        call(monkeypatch, "evaluate", "--look-steps", 5, *quick, "--seeds", 1, "--groups", "flip")
        == 0
    )
    again = pd.read_csv(out / "zero_shot.csv")
    assert len(again) - 1 == 2 * (len(table) - 1)
    changed = [*quick[:-3], 6, *quick[-2:]]
    assert call(monkeypatch, "evaluate", *changed, "--seeds", 2, "--groups", "flip") == 2


@pytest.mark.slow
def test_a_label_may_look_like_a_number_or_have_dots(monkeypatch, capsys, quick, tmp_path):
    out = tmp_path / "out"
    labels = {"5": ("flip",), "v1.0": ("flip", "mirror")}
    for label, groups in labels.items():
        of = ["evaluate", *quick, "--seeds", 0, "--looks", "--label", label, "--groups", *groups]
        assert call(monkeypatch, *of) == 0
        rows = (out / "zero_shot.csv").read_text()
        assert call(monkeypatch, *of) == 0
        assert (out / "zero_shot.csv").read_text() == rows
        changed = [6 if word == 5 else word for word in of]  # of the steps
        assert call(monkeypatch, *changed) == 2
        assert f"rows of digits and {label} that were made" in capsys.readouterr().err
        for group in groups:
            assert (out / f"weights_digits_{label}_{group}.csv").is_file()
    assert call(monkeypatch, "table", out) == 0
    page = (out / "zero_shot.md").read_text()
    assert all(f"## digits, {label}, flip" in page for label in labels)


def tuned(**changed):
    """A table of fine-tuning."""
    row = dict.fromkeys(COLUMNS, 0) | {"dataset": "digits", "model": "small", "group": "turns"}
    rows = [
        row | {"method": method, "condition": "moved", "steps": steps, "accuracy": 0.5} | changed
        for method, steps in itertools.product(("plain", "equitune"), (0, 9))
    ]
    return pd.DataFrame(rows)


def test_tables_of_other_versions_are_refused(monkeypatch, capsys, tmp_path):
    for table, message in (
        (tuned(group="rot"), "has 'rot', which this version does not know"),
        (tuned().replace({"equitune": "mean"}), "has 'mean', which this version does not know"),
        (tuned()[1:], "lacks steps of a method of digits, small, turns"),
    ):
        table.to_csv(tmp_path / "finetune.csv", index=False)
        for command in ("table", "plot"):
            assert call(monkeypatch, command, tmp_path) == 2
            assert message in capsys.readouterr().err
    (tmp_path / "finetune.csv").unlink()
    tuned().drop(columns="steps").to_csv(tmp_path / "zero_shot.csv", index=False)
    assert call(monkeypatch, "table", tmp_path) == 2
    assert "lacks the rows of digits, small, turns, moved equizero_pub" in capsys.readouterr().err


def test_a_method_has_one_colour():
    """In all panels, whichever methods these have."""
    flip = tuned(group="flip").replace({"equitune": "augmented"})
    figure = report._finetune_figure(pd.concat([tuned(), flip]))
    (legend,) = figure.legends
    known = {
        text.get_text(): to_hex(line.get_color())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert list(known) == ["plain", "plain, with augmentation", "equitune"]
    turns, flips = ([to_hex(line.get_color()) for line in axis.get_lines()] for axis in figure.axes)
    assert turns == [known["plain"], known["equitune"]]
    assert flips == [known["plain"], known["plain, with augmentation"]]
    plt.close(figure)


def test_another_model_of_the_same_name_is_refused(monkeypatch, capsys, quick, tmp_path):
    assert (
        call(monkeypatch, "evaluate", "--look-steps", 5, *quick, "--seeds", 0, "--groups", "flip")
        == 0
    )
    table = pd.read_csv(tmp_path / "out" / "zero_shot.csv").assign(digest="other")
    table.to_csv(tmp_path / "out" / "zero_shot.csv", index=False)
    assert (
        call(monkeypatch, "evaluate", "--look-steps", 5, *quick, "--seeds", 0, "--groups", "flip")
        == 2
    )
    assert (
        "rows of digits and small-digits that were made with another model"
        in capsys.readouterr().err
    )


def test_advise(monkeypatch, capsys, quick, tmp_path):
    pairs = dict(zip(quick[::2], quick[1::2], strict=True))
    options = [v for n in ("--model", "--runs", "--fit-steps") for v in (n, pairs[n])]
    assert call(monkeypatch, "advise", *options) == 0
    shown = capsys.readouterr().out
    assert re.match(r"turns: familiarity loss \d\.\d\d, of log 4 = 1.39 if none is; ", shown)
    for i in range(100):  # any folder of images will do
        Image.fromarray(np.full((8, 8), 2 * i, np.uint8)).save(tmp_path / f"{i}.png")
    done = call(monkeypatch, "advise", *options, "--data", tmp_path)
    assert done == 0, capsys.readouterr().err


def picture_folder(folder, size):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "oblong"], "32 x 24 pixels are not square, and turns has quarter turns"),
        (["--data", "square"], "--data needs a --model"),
        (
            ["--data", "square", "--model", "FILE"],
            "the images have 3 channels and the model takes 1; --mode L converts them",
        ),  # fmt: skip
        (["--data", "square", "--mode", "L", "--model", "FILE"], "--probe fits its last two"),
        (["--model", "nothing.th"], "there is no file nothing.th"),
        (["--model", "FILE", "--features", "network.00"], "did you mean 'network.0.0'"),
        (["--seeds"], "no seeds given"),
        (["--device", "nowhere"], "there is no device nowhere here"),
        (["--groups", "turns", "turns"], "--groups has turns more than once"),
        (["--fit-steps", 0], "--fit-steps must be at least 1"),
        (["--looks", 4, 0], "--looks are different widths from 1 on; got 4 0"),
        (["--looks", 4, 4], "--looks are different widths from 1 on; got 4 4"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(
    monkeypatch, capsys, tmp_path, file, options, message
):
    monkeypatch.chdir(tmp_path)
    picture_folder(tmp_path / "oblong", (32, 24))
    picture_folder(tmp_path / "square", (32, 32))
    monkeypatch.setattr(study, "tabulate", lambda *_: pytest.fail("began"))
    words = [file if word == "FILE" else word for word in options]
    assert call(monkeypatch, "evaluate", *words, "--runs", tmp_path / "runs") == 2
    assert message in capsys.readouterr().err


def test_familiar_images_that_are_to_test_are_warned_of(monkeypatch, quick, tmp_path):
    test = data.read(None, "test")[slice(0, 12)]  # of which a folder sets one apart
    for i, pixels in enumerate(test.pixels):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / f"{i}.png")
    options = ["--seeds", 0, "--looks", "--familiar", tmp_path]
    with pytest.warns(UserWarning, match="11 of 11 images of --familiar are also among those to"):
        assert call(monkeypatch, "evaluate", *quick, *options) == 0


def test_fine_tuning_that_cannot_be(monkeypatch, capsys, quick):
    for options, message in {
        ("--steps", 3, 1): "--steps rise, from 0 on; got 3 1",
        ("--learning-rate", -1): "--learning-rate must be positive",
        ("--batch-size", 0): "--batch-size must be at least 1",
        ("--seeds", -1): "--seeds are whole numbers from 0 to 2147483647; got -1",
    }.items():
        assert call(monkeypatch, "finetune", *quick, *options) == 2
        assert message in capsys.readouterr().err


def test_tables_need_measurements(monkeypatch, capsys, tmp_path):
    for command in ("table", "plot"):
        assert call(monkeypatch, command, tmp_path) == 2
        assert "run: equicore images evaluate" in capsys.readouterr().err


def test_train_says_what_it_reached(monkeypatch, capsys, tmp_path):
    options = ["--epochs", 1, "--runs", tmp_path / "runs", "--output", tmp_path]
    assert call(monkeypatch, "train", *options) == 0
    shown = capsys.readouterr().out
    assert "small-digits.safetensors" in shown
    assert re.search(r"\d+\.\d % of the 397 test images, upright; \d+\.\d minutes", shown)
    assert call(monkeypatch, "train", "--captions", *options) == 0
    assert "clip-small-digits.safetensors" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "networks.csv")
    assert table.network.tolist() == ["small-digits", "clip-small-digits"]
    assert (table.parameters > 10_000).all()
    assert call(monkeypatch, "train", "--network", "alexnet", *options) == 2
    assert "does not take images of 8 x 8 pixels" in capsys.readouterr().err


@pytest.mark.slow
def test_images_without_a_natural_orientation(monkeypatch, capsys, tmp_path):
    options = ["--under", "turns", "--runs", tmp_path, "--fit-steps", 100]
    assert call(monkeypatch, "advise", *options) == 0
    assert "use equitune" in capsys.readouterr().out
    assert (tmp_path / "small-digits-turns.safetensors").is_file()
