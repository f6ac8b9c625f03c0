"""The commands, on small flows, as a user would run them."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from equicore.applications.cli import main
from equicore.applications.fluids import flows

METHODS = ["--methods", "plain", "penalty_both", "equitune", "--fractions", 0.5, "--seeds", 1]


def call(*words):
    """As `equicore fluids` does."""
    before = sys.argv
    sys.argv = ["equicore", "fluids", *map(str, words)]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files of two flows, as a user may have them."""
    path = tmp_path_factory.mktemp("fluids")
    for seed, draw in enumerate((flows.turbulence, flows.jets)):
        w = draw(24, 8, torch.Generator().manual_seed(seed))
        np.savez(path / f"{draw.__name__}.npz", flows.velocity(w).view(8, 3, 2, 8, 8).numpy())
    return path


def options(folder, results):
    data = ["--data", folder / "jets.npz", "--pretrain-data", folder / "turbulence.npz"]
    sizes = ["--pretrain-steps", 50, "--steps", 4, "--views", 16, "--weights", 1, "--jobs", 1]
    return [*data, *sizes, "--runs", folder / "runs", "--output", results]


def test_finetune_then_evaluate_then_plot(folder, tmp_path, capsys):
    call("finetune", *options(folder, tmp_path), *METHODS)
    table = pd.read_csv(tmp_path / "finetuning.csv")
    assert {*table.task} == {"jets from turbulence"}
    assert {*table.method} == {"plain", "penalty_both", "equitune"}
    last = table[table.steps == 4].pivot_table("value", ["method", "seed"], "metric")
    assert np.isfinite(last).all(axis=None)
    equitune = last.loc["equitune"]
    assert np.allclose(equitune.rmse, equitune.rmse_moved, rtol=1e-4)
    assert (equitune.deviation < 1e-6).all() and (last.loc["plain"].deviation > 1e-4).all()

    kept = {file: file.stat().st_mtime_ns for file in (folder / "runs").iterdir()}
    call("evaluate", *options(folder, tmp_path), *METHODS, "--results", tmp_path / "seen")
    now = {file: file.stat().st_mtime_ns for file in (folder / "runs").iterdir()}
    assert now.items() >= kept.items()  # the networks were found again, and nothing else was done
    rows = pd.read_csv(tmp_path / "seen" / "rollouts.csv")
    assert {*rows.method} == {"plain", "penalty_both", "equitune", "solver"}
    assert not rows.duplicated(["method", "seed", "condition", "measure", "at"]).any()
    rmse = rows[(rows.method == "plain") & (rows.measure == "rmse") & (rows.condition == "moved")]
    rollout = last.loc["plain", 1].rollout_moved
    assert (rmse.value**2).mean() ** 0.5 == pytest.approx(rollout, rel=1e-4)

    page = (tmp_path / "seen" / "symmetry.md").read_text()
    found = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")][1:]
    errors = {(row[0].strip(), row[1].strip()): float(row[4]) for row in found}
    for exact in (("circular", "shifts"), ("solver", "shifts"), ("solver", "mirrors and turns")):
        assert errors.pop(exact) < 1e-12
    assert len(errors) == 3 and min(errors.values()) > 1e-3

    call("plot", tmp_path / "seen")
    for name in ("rmse", "energy", "fields"):
        assert (tmp_path / "seen" / f"{name}.png").stat().st_size > 1000
    assert "energy.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--features", "last"], "inner.3"),  # whose vectors would be taken for scalars
        (["--pretrain-steps", 75], "--pretrain-steps is a multiple of 50; got 75"),
        (["--data", "none.npz"], "no file at none.npz"),
        (["--methods", "plain", "plain"], "more than once"),
        (["--fractions", 0.01], "are 0, and there are 6 to train on"),
        (["--fractions", 0.2, "--methods", "penalty"], "a sample for each"),
        (["--views", 4, "--methods", "equitune"], "4 views: give more"),
    ],
)
def test_what_cannot_be_is_refused(folder, tmp_path, capsys, words, message):
    """Also before data are simulated or networks pretrained, where that is possible."""
    with pytest.raises(SystemExit) as ended:
        call("finetune", *options(folder, tmp_path), *words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "finetuning.csv").exists()


def test_plots_need_what_was_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("plot", tmp_path)
    assert "make it with equicore fluids evaluate" in capsys.readouterr().err
