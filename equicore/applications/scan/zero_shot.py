"""What a trained network answers, plain and made equivariant, without further training of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from equicore.applications.scan import symmetrize, vocabulary
from equicore.applications.scan.data import DEVELOPMENT_SPLIT, Pair
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.symmetrize import BranchWeight, InStep, Posterior, Writer
from equicore.applications.scan.vocabulary import LONGEST_COMMAND, PAD, WordSymmetry
from equicore.lab.store import remembered
from equicore.reduce import Best, Mean, Reducer, WeightedMean

Answer = Callable[[Tensor], Tensor]
"""Commands (B, L) to tokens (B, T)."""
COLUMNS = ["split", "cell", "group", "method", "seed", "part", "accuracy"]
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


def groups_of(run: Run) -> tuple[str, ...]:
    """The symmetries that a network is tried under: all for an LSTM, the paper's for others."""
    return GROUPS[run.split] if run.cell == "lstm" else GROUPS[run.split][:1]


def plain(network: Seq2Seq) -> Answer:
    """The network as it is."""
    return lambda commands: network.write(commands).argmax(-1)


def answers(
    network: Seq2Seq, over: WordSymmetry, per_command: BranchWeight, per_token: BranchWeight
) -> dict[str, Answer]:
    """All methods by name, with weights of `fit_per_command` and `fit_per_token`."""
    shared = _Remembering(network)

    def branches(
        reduce: Reducer, reduced: str = "probabilities", writer: Writer = shared
    ) -> Answer:
        model = symmetrize.by_branch(writer, over, reduce)
        return lambda commands: model(commands)[reduced].argmax(-1)

    def in_step(weight: nn.Module) -> Answer:
        return InStep(network, over, WeightedMean(weight, of_outputs=True)).write

    by_command = WeightedMean(per_command, "network.encoder")  # which has to see the encoder run
    return {
        "equitune": branches(Mean()),
        "equitune_log": branches(Mean(), "log_probabilities"),
        **{name: branches(Best(score)) for name, score in SCORES.items()},
        "lambda_sequence": branches(by_command, writer=Writer(network)),
        "equitune_in_step": InStep(network, over, Mean()).write,
        "posterior_in_step": in_step(Posterior()),
        "lambda_sequence_in_step": in_step(Posterior(per_command)),
        "lambda_token": in_step(per_token),
    }


class _Remembering(Writer):
    """Gives its last output again for the same commands, so that several reducers cost one."""

    last: tuple[Tensor, symmetrize.Written] | None = None

    def forward(self, commands: Tensor) -> symmetrize.Written:
        if self.last is None or not torch.equal(self.last[0], commands):
            self.last = commands, super().forward(commands)
        return self.last[1]


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
        ids = vocabulary.encode_commands(commands)
        for name, answer in methods.items():
            written = vocabulary.decode_actions(answer(ids))
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
    branches = symmetrize.forced(network, over, Mean())
    right = 0
    for inputs, actions in vocabulary.Batches(pairs, batch_size).epoch(0):
        written = branches.aligned(inputs)["log_probabilities"].argmax(-1)
        known = (written == actions).any(0) | ~vocabulary.real_tokens(actions)
        right += int(known.all(1).sum())
    return right / len(pairs)


def measure(run: Run, group: str) -> pd.DataFrame:
    """Accuracies of all methods for a network under a symmetry; of the network alone under none.

    What has been measured is read, and a network that has been trained. Returns a table of
    `COLUMNS`.

    Raises:
        FileExistsError: If the folder holds a measurement of other settings.
    """
    settings = {**run.settings, "fit_steps": run.fit_steps}

    def made() -> pd.DataFrame:
        network, parts, over = run.network(), run.parts(), vocabulary.symmetry(group)
        order = len(over.group)
        methods = {"plain": plain(network)}
        if order > 1:
            options: dict[str, Any] = {"steps": run.fit_steps, "seed": run.seed, "progress": False}
            options["batch_size"] = max(16, 512 // order)
            fits = (symmetrize.fit_per_command, symmetrize.fit_per_token)
            weights = (fit(network, over, parts["train"], **options) for fit in fits)
            methods = answers(network, over, *weights)
        rows = []
        for part in PARTS:
            found = accuracies(methods, parts[part], SAMPLES // order)
            if order > 1:
                found["oracle_token"] = token_oracle(network, over, parts[part], SAMPLES // order)
            rows += [(run.split, run.cell, group, m, run.seed, part, a) for m, a in found.items()]
        return pd.DataFrame(rows, columns=COLUMNS)

    return remembered(run.folder / f"zero_shot_{group}.csv", settings, made)


def ceiling(train: Sequence[Pair], test: Sequence[Pair], over: WordSymmetry) -> float:
    """The part of test commands that some element maps to a training command.

    What a network that knows the training commands and no more can reach, each command answered
    by one of its branches.
    """

    def numbers(ids: Tensor) -> Tensor:
        """One for each command (..., L), which no other has."""
        filled = nn.functional.pad(ids, (0, LONGEST_COMMAND - ids.shape[-1]), value=PAD)
        return (filled * (PAD + 1) ** torch.arange(LONGEST_COMMAND)).sum(-1)

    known, asked = (vocabulary.encode_commands([c for c, _ in pairs]) for pairs in (train, test))
    reached = torch.isin(numbers(over.source.orbit(asked)), numbers(known)).any(0)
    return reached.double().mean().item()
