"""How fast are others who symmetrise a model? ttach and equiadapt beside equicore.

    python benchmarks/peers.py [--rounds 20] [--output results/peers]

Each peer gets a virtual environment of its own, with torch and transformers as in
constraints.txt, in which peers_worker.py times the peer and equicore on the same model in the
same rounds: ResNet-18, images of 64 x 64, C4, forward without gradients.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import common
import numpy as np
from matplotlib.figure import Figure

from equicore.lab import command
from equicore.lab.store import write_text
from equicore.lab.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
PEERS = {"ttach": "ttach==0.0.3", "equiadapt": "equiadapt==0.1.2"}
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "equirl" / "peers"
BAR = 1.0
"""For our time beside the peer's."""


@dataclasses.dataclass
class Arguments:
    """Time peers and equicore on the same model and group."""

    rounds: int = 20
    """Rounds; in each, every method is timed once."""
    batches: tuple[int, ...] = (1, 8)
    """Images in a batch."""
    environments: Path = CACHE
    """Folder of the peers' virtual environments; those that exist are used again."""
    output: Path | None = None
    """Folder for peers.csv, .md, .png and .svg; nothing is written when omitted."""


def run_peer(peer: str, arguments: Arguments) -> dict:
    """What the worker found; only ``error`` if it could not be installed or run."""
    folder = arguments.environments.resolve() / peer
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = folder / "ready.txt"
    wanted = [PEERS[peer], "torch", "transformers", "tqdm", "numpy"]
    constraints = ROOT / "constraints.txt"
    content = "\n".join([*wanted, constraints.read_text()])
    try:
        if not ready.exists() or ready.read_text() != content:
            print(f"installing {PEERS[peer]} into {folder}", file=sys.stderr)
            venv.create(folder, clear=True, with_pip=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
            subprocess.run([*pip, *wanted], check=True, stderr=subprocess.PIPE, text=True)
            write_text(ready, content)
        worker = [str(python), str(ROOT / "benchmarks" / "peers_worker.py"), peer]
        done = subprocess.run(
            [*worker, str(arguments.rounds), *map(str, arguments.batches)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    except subprocess.CalledProcessError as error:
        return {"error": last_line(error.stderr)}
    return json.loads(done.stdout.splitlines()[-1])


def last_line(text: str) -> str:
    """What an error message comes to, without the machine's paths."""
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"(?<!\w)(\w+:/)?/[\w./-]+", "...", lines[-1] if lines else "no message")


def rows_of(peer: str, found: dict) -> list[common.Row]:
    """The rows of the table for one peer; one without numbers if it did not run."""
    if "results" not in found:
        return [{"peer": PEERS[peer], "method": peer, "note": found["error"]}]
    rows = []
    for result in found["results"]:
        times = {name: np.array(values) for name, values in result["seconds"].items()}
        ours = list(times)[-1]
        for name, seconds in times.items():
            row = {
                "peer": PEERS[peer],
                "batch": result["batch"],
                "method": name,
                "milliseconds": 1e3 * float(np.median(seconds)),
                "to_plain": common.ratio(seconds, times["plain"]),
                "deviation": result["deviation"][name],
            }
            if name.startswith(peer):
                row |= {"ours": common.ratio(times[ours], seconds), "bar": BAR}
                row |= {"note": found["error"]}
            rows.append(row)
    return rows


def markdown_row(row: common.Row) -> list[object]:
    """A row of the md."""
    if "milliseconds" not in row:
        return [row["peer"], "", row["method"], f"did not run: `{row['note']}`", "", "", "", ""]
    return [
        row["peer"],
        row["batch"],
        row["method"],
        f"{row['milliseconds']:.1f} ms",
        row["to_plain"],
        row.get("ours"),
        common.verdict(row["ours"].median, BAR) if "ours" in row else "",
        f"{row['deviation']:.1e}",
    ]


def draw(rows: list[common.Row]) -> Figure:
    """Times of all methods but the plain model."""
    timed = [row for row in rows if "milliseconds" in row and row["method"] != "plain"]
    figure = common.ratio_figure(
        [f"{row['method']}, B = {row['batch']}" for row in timed],
        {"time": [row["to_plain"] for row in timed]},
        "time / one plain forward",
    )
    figure.axes[0].set_xscale("log", base=2)
    figure.axes[0].xaxis.set_major_formatter("{x:g}")
    return figure


def main(arguments: Arguments) -> None:
    """Time every peer, print the table, write it."""
    found = {peer: run_peer(peer, arguments) for peer in PEERS}
    rows = [row for peer in PEERS for row in rows_of(peer, found[peer])]
    machines = {result["machine"] for result in found.values() if "machine" in result}
    common.write(
        arguments.output,
        "peers",
        rows,
        4,
        "Peers",
        "Forward of ResNet-18 under C4 on B images of 64 x 64, each peer in an "
        "environment of its own, in the same process and the same rounds as equicore: median and "
        f"quartiles of {arguments.rounds} rounds; {'; '.join(machines) or common.machine()}. "
        "The bar: ours is no slower than the peer. *Deviation* is the largest change of the "
        "logits when the image is turned, relative to the largest logit: 0 for an invariant model.",
        "ttach runs the model once for each element, as equitune does in one batch. equiadapt "
        "turns each image to a canonical pose, which an equivariant network chooses, and runs the "
        "model once, as top-1 of lambda-equitune does. Its network is timed as its examples "
        "configure it (3 layers, 32 channels, images resized to 96 x 96) and small (1 layer, 8 "
        "channels, 32 x 32). No network is trained: this is about time.",
        markdown(
            ["peer", "B", "method", "time", "to plain", "ours / peer", "bar", "deviation"],
            map(markdown_row, rows),
        ),
        *(
            f"As installed, {PEERS[peer]} cannot be imported here: `{result['error']}`. It is "
            "timed after this operator was declared, which it never calls."
            for peer, result in found.items()
            if "results" in result and result["error"]
        ),
        figure=draw(rows),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
