"""Training an encoder-decoder on SCAN, in mini-batches, so that a killed training goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from equicore.applications.scan.data import Pair
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.vocabulary import (
    PAD,
    encode_actions,
    encode_commands,
    real_tokens,
    shifted,
)
from equicore.files import (
    first_difference,
    load_state_tensors,
    read_tensors,
    state_tensors,
    write_tensors,
)

RESUME = "resume.safetensors"
CELL_EPOCHS = {"rnn": 40, "gru": 30, "lstm": 30}
"""Passes over the training pairs that each cell is given."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training pairs.
        batch_size: Pairs in a step; they have outputs of about the same length.
        learning_rate: Adam's largest: it warms up over ``warmup`` steps, then falls along a cosine
            to 2 % of it.
        warmup: Steps.
        teacher_forcing: Probability that a batch is given the true tokens before each, and not
            those that the network has written.
        clip: Largest norm of the gradient.
        held_out: Part of the training pairs that validates.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    teacher_forcing: float = 0.5
    clip: float = 5.0
    held_out: float = 0.2

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, as a part of the largest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


def hold_out(pairs: Sequence[Pair], part: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs, chosen at random."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    split = round(part * len(pairs))
    return [pairs[i] for i in order[split:]], [pairs[i] for i in order[:split]]


def train(
    network: Seq2Seq,
    pairs: Sequence[Pair],
    recipe: Recipe,
    seed: int,
    folder: Path | None = None,
    *,
    progress: bool = True,
) -> None:
    """Train a network in place.

    Args:
        network: Its parameters are where the training starts.
        pairs: To train on.
        recipe: How.
        seed: Of the order of the pairs, dropout and teacher forcing; the global random state is
            left alone.
        folder: Where the state is kept after each epoch. A training that was killed goes on from
            there, and ends with the same parameters, on the same machine.
        progress: Show a progress bar.

    Raises:
        ValueError: If the folder holds the state of another training, or the loss is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    batches = Batches(pairs, recipe.batch_size)
    steps = len(batches)
    total = steps * recipe.epochs
    about = {
        "arguments": network.arguments,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "pairs": hashlib.sha256(repr(list(pairs)).encode()).hexdigest(),
        "start": _digest(network),
    }
    file = None if folder is None else folder / RESUME
    first = 0 if file is None else restore(file, network, optimizer, about).get("epoch", 0)
    with tqdm(total=total, initial=first * steps, unit="step", disable=not progress) as bar:
        for epoch in range(first, recipe.epochs):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * seed + epoch)
                epoch_batches = batches.epoch(1000 * seed + epoch)
                for step, (commands, actions) in enumerate(epoch_batches, start=epoch * steps):
                    for group in optimizer.param_groups:
                        group["lr"] = recipe.learning_rate * recipe.rate(step, total)
                    loss = _step(network, commands, actions, recipe, optimizer)
                    bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
                    bar.update()
            if file is not None:
                keep(file, network, optimizer, about | {"epoch": epoch + 1})
    network.eval()


class Batches:
    """Commands (B, L) and actions (B, T) as ids, those of outputs of similar length together.

    Args:
        pairs: All that there are.
        size: B at most.
    """

    def __init__(self, pairs: Sequence[Pair], size: int) -> None:
        commands, actions = zip(*pairs, strict=True)
        self.commands, self.actions = encode_commands(commands), encode_actions(actions)
        self.lengths = real_tokens(self.actions).sum(1)
        self.size = size

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return math.ceil(len(self.commands) / self.size)

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All pairs, once, in an order that depends on the seed."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.commands), generator=generator)
        order = order[self.lengths[order].argsort(stable=True)]  # equal ones stay in random order
        pieces = order.split(self.size)
        for place in torch.randperm(len(pieces), generator=generator).tolist():
            rows = pieces[place]
            commands = self.commands[rows]
            words = int((commands != PAD).sum(1).max())
            yield commands[:, :words], self.actions[rows, : self.lengths[rows].max()]

    def first(self, number: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches, of as many epochs as that takes."""
        epochs = (self.epoch(1000 * seed + epoch) for epoch in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(epochs), number)


def token_loss(log_probabilities: Tensor, actions: Tensor) -> Tensor:
    """Mean negative log-likelihood, in nats, of the real tokens.

    Args:
        log_probabilities: Shape (B, T', 7) with T' <= T, as an output may have stopped early.
        actions: Ids (B, T).
    """
    actions = actions[:, : log_probabilities.shape[1]]
    losses = nn.functional.nll_loss(log_probabilities.transpose(1, 2), actions, reduction="none")
    real = real_tokens(actions)
    return (losses * real).sum() / real.sum()


def forced(
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Inputs of models that are given the true tokens before each, and the true tokens."""
    return [
        ({"commands": commands, "before": shifted(actions)}, actions)
        for commands, actions in batches
    ]


def written_loss(written: dict[str, Tensor], actions: Tensor) -> Tensor:
    """`token_loss` of ``log_probabilities`` (B, T', 7)."""
    return token_loss(written["log_probabilities"], actions)


def _digest(network: Seq2Seq) -> str:
    """Of its parameters, so that those of two networks are the same if their digests are."""
    numbers = [parameter.detach().cpu().flatten() for parameter in network.parameters()]
    return hashlib.sha256(torch.cat(numbers).numpy().tobytes()).hexdigest()


def _step(
    network: Seq2Seq,
    commands: Tensor,
    actions: Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One step of the optimiser; the loss before it."""
    network.train()
    if torch.rand(()) < recipe.teacher_forcing:
        scores = network(commands, shifted(actions))
    else:
        scores = network.write(commands, actions.shape[1])
    loss = token_loss(scores, actions)
    if not loss.isfinite():
        raise ValueError("the loss is not finite; a smaller learning rate may help")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


def keep(
    file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]
) -> None:
    """Write the state of a training, whole or not at all.

    Args:
        file: Where to.
        module: What is trained.
        optimizer: Of its parameters.
        header: Further plain values; among them what tells this training from others.
    """
    write_tensors(file, state_tensors(module=module, optimizer=optimizer), header)


def restore(
    file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, expected: dict[str, Any]
) -> dict[str, Any]:
    """Put a training into the state that `keep` wrote, if there is one.

    Args:
        file: Where it may be.
        module: What is trained.
        optimizer: Of its parameters.
        expected: What its header must hold.

    Returns:
        The header; empty if there is no file.

    Raises:
        ValueError: If it is the state of another training.
    """
    if not file.is_file():
        return {}
    tensors, header = read_tensors(file)
    if difference := first_difference(header, expected):
        name, found, value = difference
        raise ValueError(
            f"{file} is of another training: its {name} is {found}, not {value}; "
            "name another folder, or delete it"
        )
    load_state_tensors(tensors, module=module, optimizer=optimizer)
    return header
