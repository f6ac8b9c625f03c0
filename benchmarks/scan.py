"""How fast are training and decoding on SCAN?

    python benchmarks/scan.py [--sentences 100] [--rounds 3] [--output results/scan_speed]

Decoding: all test commands of Add Jump under {jump, run}, by equizero, each branch writing on
its own: all branches and many sentences at once, beside one sentence and one branch at
a time. Training: one LSTM on one core, from nothing to its accuracy on the held-out pairs.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from equicore import Best
from equicore.applications.scan import Seq2Seq, by_branch, symmetry
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.symmetrize import mean_max_probability
from equicore.applications.scan.vocabulary import PAD, encode_commands
from equicore.applications.scan.zero_shot import SAMPLES, accuracies, plain
from equicore.lab import command
from equicore.lab.jobs import one_thread

DECODE, TRAIN = 5, 300
"""Bars, at most: seconds."""
ONE_BY_ONE, ACCURACY = 20, 99
"""Bars, at least: a ratio of times, and percent of the held-out pairs."""


@dataclasses.dataclass
class Arguments:
    """Speed of decoding in batches, and of training, on SCAN; both on one core."""

    sentences: int = 100
    """Sentences that are decoded one at a time, drawn at random from the test set."""
    rounds: int = 3
    """Rounds; in each, both ways of decoding are timed once."""
    epochs: int | None = None
    """Passes over the training pairs; when omitted, the experiment's."""
    seed: int = 0
    """Of the training."""
    output: Path | None = None
    """Folder for scan.csv and .md; nothing is written when omitted."""


def decode_in_batches(network: Seq2Seq, commands: Tensor) -> list[list[int]]:
    """The tokens that equizero writes, all branches and many sentences at once."""
    over = symmetry("jump-run")
    model = by_branch(network, over, Best(mean_max_probability))
    pieces = commands.split(SAMPLES // len(over.group))
    return [row for piece in pieces for row in model(piece)["probabilities"].argmax(-1).tolist()]


def decode_one_by_one(network: Seq2Seq, commands: Tensor) -> None:
    """What equizero needs, as the published code does it: each branch of each sentence alone."""
    over = symmetry("jump-run")
    for sentence in commands:
        words = sentence[sentence != PAD].unsqueeze(0)
        for g in range(len(over.group)):
            network.write(over.source.act(g, words))


def main(arguments: Arguments) -> None:
    """Train, decode, print the table, write it."""
    with one_thread(), TemporaryDirectory() as folder:
        run = Run(Path(folder), "add_jump", "lstm", arguments.seed, epochs=arguments.epochs)
        start = time.perf_counter()
        network = run.network(progress=True)
        training = time.perf_counter() - start
        parts = run.parts()
        accurate = accuracies({"plain": plain(network)}, parts["validation"])["plain"]
        commands = encode_commands([words for words, _ in parts["test"]])
        generator = torch.Generator().manual_seed(arguments.seed)
        some = commands[torch.randperm(len(commands), generator=generator)[: arguments.sentences]]
        calls = {
            "all at once": lambda: decode_in_batches(network, commands),
            "one by one": lambda: decode_one_by_one(network, some),
        }
        with torch.no_grad(), tqdm(total=arguments.rounds, unit="round") as progress:
            times = common.time_rounds(calls, arguments.rounds, progress, repeats=1)
        machine = common.machine()
    ratio = common.ratio(times["one by one"] / len(some), times["all at once"] / len(commands))
    decoding = float(np.median(times["all at once"]))
    rows = [
        {"what": "decode", "seconds": decoding, "bar": DECODE},
        {"what": "train", "seconds": training, "bar": TRAIN},
        {"what": "one by one / all at once", "ratio": ratio.median, "bar": ONE_BY_ONE},
    ]
    common.write(
        arguments.output,
        "scan",
        rows,
        4,
        "SCAN: speed",
        f"- The {len(commands):,} test commands of Add Jump are decoded under {{jump, run}} in "
        f"{decoding:.1f} s ({common.verdict(decoding, DECODE)}).\n"
        f"- One sentence and one branch at a time takes {ratio} times as long for each sentence "
        f"({common.verdict(ratio.median, ONE_BY_ONE, at_least=True)}): median and quartiles of "
        f"{arguments.rounds} rounds, {len(some)} sentences one by one in each.\n"
        f"- One LSTM is trained in {training:.0f} s ({common.verdict(training, TRAIN)}) to "
        f"{100 * accurate:.2f} % on the held-out pairs "
        f"({common.verdict(100 * accurate, ACCURACY, at_least=True)}).",
        f"{machine}.",
    )


if __name__ == "__main__":
    command.run({Arguments: main})
