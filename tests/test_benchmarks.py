"""The benchmarks run, and their rulers measure what they say."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"

SMALLEST = {
    "predict": "--rounds 1 --calls 2",
    "symmetrize": "--rounds 1 --groups C4",
    "methods": "--rounds 1 --batch 1",
    "memory": "--orders 1 8 --batch 2",
    "top_k": "--rounds 1 --batches 1 --seeds 0 1 --epochs 1 --steps 2",
}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a file of the folder, as the scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["test.py"])
    yield importlib.import_module
    for name in ("common", "peers"):
        sys.modules.pop(name, None)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
        env={**os.environ, **environment},
    ).stdout


def written(name, folder):
    """The table that a benchmark writes with the smallest settings."""
    run(FOLDER / f"{name}.py", *SMALLEST[name].split(), "--output", folder)
    table = pd.read_csv(folder / f"{name}.csv")
    ratios = table.filter(regex="ratio|loop|^time|^memory|^total$|^activations$")
    assert len(table) >= 4 and ratios.shape[1] >= 2
    assert (ratios > 0).all(axis=None)
    page = (folder / f"{name}.md").read_text()
    assert f"python benchmarks/{name}.py {SMALLEST[name]}" in page
    if name != "predict":
        assert "≤" in page
        assert (folder / f"{name}.png").stat().st_size > 1000
    return table


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "symmetrize", "methods", "top_k"])
def test_benchmark_writes_positive_ratios(name, tmp_path):
    written(name, tmp_path)


@pytest.mark.slow
def test_memory_with_chunk_stays_flat(tmp_path):
    table = written("memory", tmp_path)
    eight = table[(table.order == 8) & (table.model == "ViT")].set_index(["mode", "chunk"])
    for mode in ("inference", "training"):
        assert eight.activations[mode, "1"] < 1.15
        assert eight.activations[mode, "all"] > 6


@pytest.mark.slow
def test_worker_times_a_peer_and_ours(benchmark, tmp_path):
    """With a stand-in for ttach, as the peers are in environments of their own."""
    (tmp_path / "ttach.py").write_text(
        "def Rotate90(angles): return angles\n"
        "def Compose(transforms): return transforms[0]\n"
        "def ClassificationTTAWrapper(model, angles, merge_mode):\n"
        "    return lambda x: sum(model(x.rot90(a // 90, (-2, -1))) for a in angles) / 4\n"
    )
    path = os.pathsep.join([str(tmp_path), str(FOLDER.parent)])
    printed = run(FOLDER / "peers_worker.py", "ttach", 2, 1, PYTHONPATH=path)
    peers = benchmark("peers")
    rows = peers.rows_of("ttach", peers.json.loads(printed))
    assert [row["method"] for row in rows] == ["plain", "ttach, mean", "equicore, equitune"]
    assert rows[1]["ours"] > 0 and rows[1]["to_plain"] > 1
    assert rows[0]["deviation"] > 1e-3 > 1e-5 > rows[2]["deviation"]


def test_peer_that_does_not_run_is_in_the_table(benchmark):
    peers = benchmark("peers")
    error = peers.last_line("Traceback:\nOSError: /home/someone/x.so: cannot open\n\n")
    assert error == "OSError: ...: cannot open"
    (row,) = peers.rows_of("ttach", {"error": error})
    assert "did not run: `OSError" in peers.markdown_row(row)[3]


def test_peak_memory_counts_what_is_alive_at_once(benchmark):
    common = benchmark("common")
    megabyte = 10**6

    def call():
        first = torch.zeros(megabyte // 4)
        second = first + 1
        del first
        return torch.cat([second, second, second])

    assert common.peak_memory(call) == 4 * megabyte
    x = torch.zeros(megabyte // 4, requires_grad=True)
    # the product, its mean, the gradients of both and of x
    assert 2 * megabyte < common.peak_memory(lambda: (x * x).mean().backward()) < 5 * megabyte


def test_ratio_is_taken_within_rounds(benchmark):
    common = benchmark("common")
    drift = np.array([1.0, 10.0, 100.0])
    assert common.ratio(2 * drift, drift) == (2, 2, 2)
    assert common.verdict(1.06, 1.05) == "≤ 1.05: **missed**"
    assert common.verdict(1.05, 1.05) == "≤ 1.05: met"


@pytest.mark.slow
def test_speed_on_scan(tmp_path):
    """A network of one epoch writes nonsense, in batches still much faster than one by one."""
    options = "--sentences 5 --rounds 1 --epochs 1".split()
    run(FOLDER / "scan.py", *options, "--output", tmp_path)
    table = pd.read_csv(tmp_path / "scan.csv").set_index("what")
    assert table.seconds[["decode", "train"]].gt(0).all()
    assert table.ratio["one by one / all at once"] > 2
    page = (tmp_path / "scan.md").read_text()
    assert "python benchmarks/scan.py --sentences 5 --rounds 1 --epochs 1" in page
    assert "≤ 5: " in page and "≥ 20: " in page
