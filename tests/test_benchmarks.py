"""The benchmarks run, and their rulers measure what they say."""

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tqdm import tqdm

from equicore.lab import statistics
from equicore.lab.tables import frame_markdown
from equirl.agents.definition import read_units
from equirl.agents.evaluation import CONDITIONS
from equirl.agents.plot import COLUMNS
from equirl.agents.train import train_agent

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
RESULTS = ROOT / "results"

SMALLEST = {
    "predict": "--rounds 1 --calls 2",
    "symmetrize": "--rounds 1 --groups C4",
    "methods": "--rounds 1 --batch 1",
    "memory": "--orders 8 --batch 2",
    "top_k": "--rounds 1 --batches 1 --seeds 0 1 --epochs 1 --steps 2",
    "scan": "--sentences 5 --rounds 1 --epochs 1",
    "text": "--rounds 1 --batches 2 --tokens 3 --width 64 --layers 1",
    "scores": "--text ../shared/text/stories260k --seeds 0 1 --texts 4 --lengths 4",
    "sweep": "--rounds 1 --steps 100 --seeds 0 --policies plain equitune",
}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a file of the folder, as the scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["test.py"])
    yield importlib.import_module
    for name in ("common", "demo_sets", "peers", "weights"):
        sys.modules.pop(name, None)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    ).stdout


def written(name, folder):
    """The table and the page that a benchmark writes with the smallest settings."""
    if "../shared" in SMALLEST[name] and not (ROOT.parent / "shared").is_dir():
        pytest.skip("needs the models of ../shared, which are not here")
    run(FOLDER / f"{name}.py", *SMALLEST[name].split(), "--output", folder)
    table = pd.read_csv(folder / f"{name}.csv")
    page = (folder / f"{name}.md").read_text()
    kept = RESULTS / {"scan": "scan_speed", "text": "text_speed"}.get(name, name)
    assert list(table) == list(pd.read_csv(kept / f"{name}.csv"))
    assert page.splitlines()[0] == (kept / f"{name}.md").read_text().splitlines()[0]
    assert f"`python benchmarks/{name}.py {SMALLEST[name]}" in page
    assert (folder / f"{name}.png").exists() == (kept / f"{name}.png").exists()
    return table, page


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALLEST if name not in ("memory", "scan")])
def test_benchmark_writes_what_its_committed_results_hold(name, tmp_path):
    table, page = written(name, tmp_path)
    assert ("bar" in table) == ("≤" in page or "≥" in page)


@pytest.mark.slow
def test_memory_with_chunk_stays_flat(tmp_path):
    table, _ = written("memory", tmp_path)
    eight = table[(table.order == 8) & (table.model == "ViT")].set_index(["mode", "chunk"])
    for mode in ("inference", "training"):
        assert eight.activations[mode, "1"] < 1.15
        assert eight.activations[mode, "all"] > 6


@pytest.mark.slow
def test_scan_says_which_bars_are_met(tmp_path):
    _, page = written("scan", tmp_path)
    assert "(≤ 5: " in page and "(≥ 20: " in page and "(≤ 300: " in page
    assert "(≥ 99: **missed**)" in page  # after one epoch a network writes nonsense


@pytest.mark.slow
def test_worker_times_a_peer_and_ours(benchmark, tmp_path):
    """With a stand-in for ttach; the peers' environments lack what tables and figures need."""
    (tmp_path / "ttach.py").write_text(
        "def Rotate90(angles): return angles\n"
        "def Compose(transforms): return transforms[0]\n"
        "def ClassificationTTAWrapper(model, angles, merge_mode):\n"
        "    return lambda x: sum(model(x.rot90(a // 90, (-2, -1))) for a in angles) / 4\n"
    )
    for absent in ("matplotlib", "pandas", "tyro", "gymnasium"):
        (tmp_path / f"{absent}.py").write_text("raise ImportError('it is not there')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    printed = run(FOLDER / "peers_worker.py", "ttach", 2, 1, PYTHONPATH=path)
    peers = benchmark("peers")
    rows = peers.rows_of("ttach", json.loads(printed))
    assert [row["method"] for row in rows] == ["plain", "ttach, mean", "equicore, equitune"]
    assert ["ours" in row for row in rows] == [False, True, False]
    assert rows[0]["deviation"] > 1e-3 > 1e-5 > rows[2]["deviation"]


def test_peer_that_does_not_run_is_in_the_table(benchmark):
    peers = benchmark("peers")
    error = peers.last_line("Traceback:\nOSError: /home/someone/x.so: cannot open\n\n")
    assert error == "OSError: ...: cannot open"
    (row,) = peers.rows_of("ttach", {"error": error})
    assert "did not run: `OSError" in peers.markdown_row(row)[3]


@pytest.mark.slow
def test_weights_plays_what_was_not_played(benchmark, monkeypatch, tmp_path):
    weights = benchmark("weights")
    hyperparameters = {"CartPole-v1": {"n_timesteps": 300, "policy": "MlpPolicy"}}
    (tmp_path / "dqn.yaml").write_text(yaml.safe_dump(hyperparameters))
    definition = tmp_path / "study.yaml"
    definition.write_text(
        yaml.safe_dump(
            {
                "environments": {"CartPole-v1": {"env": "CartPole-v1", "scale": [0, 500]}},
                "settings": {"short": "dqn.yaml"},
                "panels": {"validation": {"seeds": [0], "checkpoints": 1}},
                "episodes": 1,
                "transitions": 200,
                "candidates": ["plain", "equitune"],
                "race": {"rounds": 1, "episodes": 5},
            }
        )
    )
    (unit,) = read_units(definition, "validation", tmp_path / "runs")
    train_agent(unit.training)
    arguments = weights.Arguments(
        episodes=1,
        definition=definition,
        runs=tmp_path / "runs",
        parts=tmp_path / "parts",
        jobs=1,
        output=tmp_path / "weights",
    )
    weights.main(arguments)
    table = (tmp_path / "weights" / "weights.csv").read_text()
    assert table.splitlines()[0].split(",") == list(pd.read_csv(RESULTS / "weights/weights.csv"))
    (part,) = (tmp_path / "parts").glob("*/equizero.csv")
    part.unlink()
    played = []

    def episode_returns(policy, *rest):
        played.append(type(policy).__name__)
        return np.array([500.0])

    monkeypatch.setattr(weights, "episode_returns", episode_returns)
    weights.main(arguments)
    assert played == ["EquizeroPolicy"]


def test_table_of_weights_follows_from_its_csv(benchmark):
    weights = benchmark("weights")
    table = pd.read_csv(RESULTS / "weights" / "weights.csv").drop(columns="score")
    lines = frame_markdown(weights.summary(weights.scores(table, weights.DEFAULT_FILE)))
    assert lines in (RESULTS / "weights" / "weights.md").read_text()


def test_sets_of_the_demonstration_are_played_once(benchmark, tmp_path, monkeypatch):
    sets = benchmark("demo_sets")
    played = []

    def main(arguments):
        """Equizero is better than plain in the second set only, lambda in both."""
        played.append(arguments.seeds)
        bonus = {"plain": 0, "equizero": len(played) - 1, "lambda": 1}
        keys = itertools.product(sets.NAMED, arguments.seeds, bonus, CONDITIONS, range(3))
        rows = [(e, f"a{s}", s, 10, p, c, i, s + i + bonus[p]) for e, s, p, c, i in keys]
        arguments.output.mkdir(parents=True)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(arguments.output / "returns.csv", index=False)

    monkeypatch.setattr(sets.demo, "main", main)
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    for _ in range(2):
        sets.main(sets.Arguments(sets=2, runs=tmp_path / "runs", output=tmp_path / "out"))
    assert played == [(30, 31, 32, 33, 34), (35, 36, 37, 38, 39)]
    table = pd.read_csv(tmp_path / "out" / "demo_sets.csv")
    kept = RESULTS / "demo_sets" / "demo_sets"
    assert list(table) == list(pd.read_csv(kept.with_suffix(".csv")))
    page = (tmp_path / "out" / "demo_sets.md").read_text()
    assert page.splitlines()[0] == kept.with_suffix(".md").read_text().splitlines()[0]
    assert (
        "- Acrobot-v1: in 1 of 2 sets\n- equirl/Gridworld-v0 goals=corner: in 2 of 2 sets" in page
    )
    assert "| 35-39 | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in page


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


def test_every_second_round_is_in_reverse(benchmark):
    common = benchmark("common")
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    with tqdm(total=2, disable=True) as progress:
        times = common.time_rounds(calls, 2, progress, repeats=1)
    assert "".join(order) == "ababba"  # the first calls are not timed
    assert {name: t.shape for name, t in times.items()} == {"a": (2,), "b": (2,)}


def test_ratio_is_taken_within_rounds(benchmark):
    common = benchmark("common")
    drift = np.array([1.0, 10.0, 100.0])
    assert common.ratio(2 * drift, drift) == (2, 2, 2)
    assert common.ratio(drift * [1, 2, 3], drift) == (2, 1.5, 2.5)


def test_verdict_names_the_bar(benchmark):
    verdict = benchmark("common").verdict
    assert verdict(1.06, 1.05) == "≤ 1.05: **missed**"
    assert verdict(1.05, 1.05) == "≤ 1.05: met"
    assert verdict(1.7, 1.7, at_least=True) == "≥ 1.7: met"
    assert verdict(1.6, 1.7, at_least=True) == "≥ 1.7: **missed**"
    assert verdict(1.6, None) == ""


def test_ratios_are_three_columns_of_the_table(benchmark, tmp_path):
    common = benchmark("common")
    rows = [{"what": "a", "time": common.Ratio(1.23456, 1, 2)}, {"what": "b", "bar": 3}]
    common.write(tmp_path, "new", rows, 3, "Title", "Words.")
    assert (tmp_path / "new.csv").read_text() == (
        "what,time,time_low,time_high,bar\na,1.235,1.0,2.0,\nb,,,,3.0\n"
    )
    assert (tmp_path / "new.md").read_text() == "# Title\n\n`python benchmarks/test.py`\n\nWords.\n"


@pytest.mark.slow
def test_symmetries_are_checked_and_lies_are_caught(tmp_path):
    """The smallest run of benchmarks/symmetries.py, twice: the second time from what is kept."""
    words = [
        "--seeds",
        "0",
        "--lies",
        "0",
        "--few",
        "0",
        "--only",
        "CartPole",
        "--runs",
        tmp_path / "runs",
    ]
    for _ in range(2):
        page = run(FOLDER / "symmetries.py", *words, "--output", tmp_path / "out")
    assert "True ones hold in 1.00" in page
    lies = pd.read_csv(tmp_path / "out" / "lies.csv")
    assert lies.caught.all() and lies.named.all()
    assert pd.read_csv(tmp_path / "out" / "discovery.csv").right.all()
    assert (tmp_path / "out" / "symmetries.png").is_file()


def test_lies_are_those_of_the_results():
    """What results/symmetries says of each lie is about the lies that the benchmark has."""
    table = pd.read_csv(RESULTS / "symmetries" / "lies.csv")
    assert len(table.drop_duplicates(["env", "lie"])) >= 40 and table.env.nunique() >= 10
    assert table.caught.all()
