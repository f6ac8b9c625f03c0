"""What a trained network answers, plain and made equivariant, without further training of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from equicore.applications.scan import symmetrize
from equicore.applications.scan.data import DEVELOPMENT_SPLIT, Pair
from equicore.applications.scan.experiment import Run, kept
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.symmetrize import InStep, Writer, by_branch
from equicore.applications.scan.training import Batches
from equicore.applications.scan.vocabulary import (
    PAD,
    WordSymmetry,
    decode_actions,
    encode_commands,
    real_tokens,
    shifted,
    symmetry,
)
from equicore.applications.scan.weights import (
    LastState,
    NextToken,
    Posterior,
    fit_per_command,
    fit_per_token,
)
from equicore.reduce import Best, Mean, Reducer, WeightedMean

Answer = Callable[[Tensor], Tensor]
"""Commands (B, L) to tokens (B, T)."""
COLUMNS = ("split", "cell", "group", "method", "seed", "part", "accuracy")
PARTS = ("validation", "test")
SCORES = {
    "equizero": symmetrize.mean_max_probability,
    "equizero_padded": symmetrize.padded_max_probability,
    "equizero_likelihood": symmetrize.log_probability,
    "equizero_entropy": symmetrize.negative_entropy,
}
GROUPS = {
    "add_jump": ("jump-run", "verb-cycle", "all-verbs", "verb-cycle+left-right"),
    "around_right": ("left-right", "verb-cycle+left-right"),
    DEVELOPMENT_SPLIT: ("left-right", "verb-cycle+left-right"),
}
"""The symmetries that are tried on each split, the paper's first."""
SAMPLES = 4096
"""Commands times elements that are answered at once, so that memory grows with neither."""


class Remembering(Writer):
    """Gives its last output again for the same commands, so that several reducers cost one."""

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__(network)
        self.last: tuple[Tensor, dict[str, Tensor]] | None = None

    def forward(self, commands: Tensor) -> dict[str, Tensor]:
        """As `Writer`."""
        if self.last is None or not torch.equal(self.last[0], commands):
            self.last = commands, super().forward(commands)
        return self.last[1]


def groups_of(split: str, cell: str) -> tuple[str, ...]:
    """The symmetries that a network is tried under: all for an LSTM, the paper's for others."""
    return GROUPS[split] if cell == "lstm" else GROUPS[split][:1]


def answers(
    network: Seq2Seq, over: WordSymmetry, per_command: LastState, per_token: NextToken
) -> dict[str, Answer]:
    """All methods by name.

    Args:
        network: Trained.
        over: The exchanges of words.
        per_command: Its weights, of `fit_per_command`.
        per_token: Its weights, of `fit_per_token`.
    """
    shared = Remembering(network)

    def branches(
        reduce: Reducer, writer: Writer = shared, reduced: str = "probabilities"
    ) -> Answer:
        model = by_branch(writer, over, reduce)
        return lambda commands: model(commands)[reduced].argmax(-1)

    def in_step(reduce: Reducer) -> Answer:
        return InStep(network, over, reduce).write

    return {
        "equitune": branches(Mean()),
        "equitune_log": branches(Mean(), reduced="log_probabilities"),
        **{name: branches(Best(score)) for name, score in SCORES.items()},
        "lambda_sequence": branches(
            WeightedMean(per_command, "network.encoder"), Writer(network)
        ),  # which sees the encoder run
        "equitune_in_step": in_step(Mean()),
        "posterior_in_step": in_step(WeightedMean(Posterior())),
        "lambda_sequence_in_step": in_step(WeightedMean(Posterior(per_command))),
        "lambda_token": in_step(WeightedMean(per_token)),
    }


@torch.no_grad()
def accuracies(
    methods: Mapping[str, Answer], pairs: Sequence[Pair], batch_size: int = SAMPLES
) -> dict[str, float]:
    """For each method the part of the pairs whose actions it writes exactly.

    Those of outputs of similar length are written together, as the longest says how long it
    takes; no answer depends on what else is in its batch.
    """
    pairs = sorted(pairs, key=lambda pair: len(pair[1]))
    right = dict.fromkeys(methods, 0)
    for start in range(0, len(pairs), batch_size):
        commands, actions = zip(*pairs[start : start + batch_size], strict=True)
        ids = encode_commands(commands)
        for name, answer in methods.items():
            written = decode_actions(answer(ids))
            right[name] += sum(a == b for a, b in zip(written, actions, strict=True))
    return {name: number / len(pairs) for name, number in right.items()}


@torch.no_grad()
def token_oracle(
    network: Seq2Seq, over: WordSymmetry, pairs: Sequence[Pair], batch_size: int = SAMPLES
) -> float:
    """The part of the pairs of which every token is the most likely one of some branch.

    The branches are given the true tokens before it. It is what a method could reach that knew
    for each token which branch to trust.
    """
    right = 0
    for commands, actions in Batches(pairs, batch_size).epoch(0):
        views, before = over.source.orbit(commands), over.target.orbit(shifted(actions))
        scores = network(views.flatten(0, 1), before.flatten(0, 1))
        aligned = over.next_token().align(scores.unflatten(0, views.shape[:2]))
        known = (aligned.argmax(-1) == actions).any(0)
        right += int((known | ~real_tokens(actions)).all(1).sum())
    return right / len(pairs)


def plain(network: Seq2Seq) -> Answer:
    """The network as it is."""
    return lambda commands: network.write(commands).argmax(-1)


def measure(run: Run, group: str) -> pd.DataFrame:
    """Accuracies of all methods for a network under a symmetry; of the network alone under none.

    The network is trained, and its weights are fitted, if they have not been; what has been
    measured is read.

    Returns:
        A table of `COLUMNS`.
    """

    def measured() -> pd.DataFrame:
        network, parts = run.network(), run.parts()
        over = symmetry(group)
        methods: dict[str, Answer]
        if len(over.group) == 1:
            methods = {"plain": plain(network)}
        else:
            options: dict[str, Any] = {
                "batch_size": max(16, 512 // len(over.group)),
                "seed": run.seed,
                "progress": False,
            }
            methods = answers(
                network,
                over,
                fit_per_command(network, over, parts["train"], **options),
                fit_per_token(network, over, parts["train"], **options),
            )
        rows = []
        for part in PARTS:
            batch_size = SAMPLES // len(over.group)
            found = accuracies(methods, parts[part], batch_size)
            if len(over.group) > 1:
                found["oracle_token"] = token_oracle(network, over, parts[part], batch_size)
            for method, value in found.items():
                rows.append((run.split, run.cell, group, method, run.seed, part, value))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    return kept(run.folder / f"zero_shot_{group}.csv", run.about, measured)


def ceiling(train: Sequence[Pair], test: Sequence[Pair], over: WordSymmetry) -> float:
    """The part of test commands that some element maps to a training command.

    What a network that knows the training commands and no more can reach, each command answered
    by one of its branches.
    """
    known = set(_rows(encode_commands([command for command, _ in train])))
    orbits = over.source.orbit(encode_commands([command for command, _ in test]))
    views = zip(*map(_rows, orbits), strict=True)
    return sum(not known.isdisjoint(orbit) for orbit in views) / len(test)


def _rows(commands: Tensor) -> list[tuple[int, ...]]:
    return [tuple(i for i in row if i != PAD) for row in commands.tolist()]
