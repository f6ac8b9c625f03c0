"""Training networks here, to start from: supervised, or contrastively with captions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from equicore.applications.images import clip
from equicore.applications.images.data import HELD_OUT, Images
from equicore.applications.images.loading import check_takes, write
from equicore.applications.images.networks import (
    IMAGENET,
    NETWORKS,
    Classifier,
    with_new_head,
)
from equicore.capture import kept_modes
from equicore.finetuning import fit
from equicore.lab.store import check_same, digest, read_tensors, remembered_tensors, rounds


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: by SGD or AdamW, its rate along one cycle."""

    epochs: int
    learning_rate: float = 0.2  # the largest
    batch_size: int = 128
    weight_decay: float = 5e-4
    padding: int = 4  # images are shifted by so many pixels at most
    mirror: bool = True  # half of them left to right
    adam: bool = False  # AdamW instead of SGD with momentum 0.9
    warmup: float = 0.2  # part of the steps in which the rate rises

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Of all parameters."""
        kind: Any = torch.optim.AdamW if self.adam else torch.optim.SGD
        options: dict[str, Any] = {} if self.adam else {"momentum": 0.9, "nesterov": True}
        rate, decay = self.learning_rate, self.weight_decay
        return kind(model.parameters(), lr=rate, weight_decay=decay, **options)

    def rate(self, done: float) -> float:
        """The learning rate after a part of the steps."""
        if done < self.warmup:
            return self.learning_rate * (0.05 + 0.95 * done / self.warmup)
        left = (done - self.warmup) / (1 - self.warmup)
        return self.learning_rate * (1e-3 + (1 + math.cos(math.pi * left)) / 2)


RECIPES = {
    "small": Recipe(30, 0.01, padding=1, mirror=False, adam=True),
    "alexnet": Recipe(10, 0.05),
    "resnet20": Recipe(20),
    "resnet56": Recipe(20),
}
CAPTIONS = Recipe(18, 3e-3, weight_decay=0.05, adam=True)
HEAD_BATCH = 128
"""Images in a step of layers that are fitted to features."""


def augmented(images: Tensor, padding: int, mirror: bool) -> Tensor:
    """Images (B, channels, rows, columns) shifted at random, and mirrored; from torch's state."""
    batch, channels, rows, columns = images.shape
    padded = functional.pad(images, (padding,) * 4)
    down, right = torch.randint(2 * padding + 1, (2, batch, 1))
    row = (down + torch.arange(rows)).view(batch, 1, rows, 1)
    column = right + torch.arange(columns)
    if mirror:
        column = column.where(torch.rand(batch, 1) < 0.5, column.flip(1))
    samples = torch.arange(batch).view(batch, 1, 1, 1)
    channel = torch.arange(channels).view(1, channels, 1, 1)
    return padded[samples, channel, row, column.view(batch, 1, 1, columns)]


def trained(
    name: str,
    images: Images,
    folder: str | Path,
    captions: bool = False,
    epochs: int | None = None,
    seed: int = 0,
) -> Path:
    """The file of a network of `NETWORKS` that is trained on images, now if it has not been.

    With captions, of a pair of encoders; see `equicore.applications.images.clip`.

    Raises:
        ValueError: If there is no such network, or fewer than one epoch or two images to train on.
        FileExistsError: If the file holds another one of the name.
    """
    rest, _ = images.split(HELD_OUT, seed=0)
    if name not in NETWORKS or (epochs is not None and epochs < 1) or len(rest) < 2:
        raise ValueError(
            f"trained takes one of {', '.join(NETWORKS)}, at least 1 epoch and 2 images; got "
            f"{name!r}, {epochs} and {len(rest)}"
        )
    folder, recipe = Path(folder), CAPTIONS if captions else RECIPES[name]
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    stem = f"{'clip-' if captions else ''}{name}-{images.name}" + (f"-{seed}" if seed else "")
    file, resume = folder / f"{stem}.safetensors", folder / f"{stem}.resume.safetensors"
    settings = {
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "images": images.digest,
        "trained": stem,
    }
    if file.is_file():
        check_same(file, read_tensors(file)[1], settings)
        return file
    channels = images.pixels.shape[1]
    colours = IMAGENET if channels == 3 else ([0.5], [0.5])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](clip.WIDTH if captions else len(images.classes), channels)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model: Classifier | clip.Pair = Classifier(network, images.classes, *colours)
        loss: Any = functional.cross_entropy
        if captions:
            model = clip.small_pair(network, clip.vocabulary(images.classes), *colours)
            loss = clip.contrastive(model, images.classes)
    check_takes(model.eval(), images)
    seconds = train(model, rest, loss, recipe, seed, resume, settings)
    write(file, model, name, {**settings, "seconds": seconds})
    resume.unlink(missing_ok=True)
    return file


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """The part of images that a model, in eval mode, maps to the largest logit for their label.

    Raises:
        ValueError: If there are no images, or the model gives other than finite logits (B, classes)
            of their classes.
    """
    if not len(images):
        raise ValueError("there are no images, of which accuracy would be a part")
    device = next((p.device for p in model.parameters()), None)
    count = 0
    with kept_modes(model):
        model.eval()
        for inputs, labels in images.batches(256, device=device):
            logits, wanted = model(inputs), (len(labels), len(images.classes))
            if tuple(logits.shape) != wanted or not logits.isfinite().all():
                raise ValueError(
                    f"logits are finite and of shape {wanted}, by the images' classes; the model "
                    f"gives shape {tuple(logits.shape)}"
                    + ("" if logits.isfinite().all() else ", not all of them finite")
                )
            count += int((logits.argmax(-1) == labels).sum())
    return count / len(images)


def train(
    model: nn.Module,
    images: Images,
    loss: Callable[[Any, Tensor], Tensor],
    recipe: Recipe,
    seed: int,
    file: Path,
    settings: dict[str, Any],
    *,
    progress: bool = True,
) -> float:
    """Train a model in place, from the parameters that it has.

    ``file`` keeps its state after each epoch: a training that was killed goes on from there.

    Returns:
        The seconds that all epochs took.

    Raises:
        FileExistsError: If the file holds the state of another training.
        ValueError: If the loss is not finite.
    """
    optimizer = recipe.optimizer(model)
    steps = math.ceil(len(images) / recipe.batch_size)
    with tqdm(total=steps * recipe.epochs, unit="step", disable=None if progress else True) as bar:

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            pairs = images.batches(recipe.batch_size, 1000 * seed + epoch)
            for step, (inputs, labels) in enumerate(pairs, epoch * steps):
                if len(inputs) == 1:  # of which alone BatchNorm has no statistics
                    continue
                rate = recipe.rate(step / (steps * recipe.epochs))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                yield augmented(inputs, recipe.padding, recipe.mirror), labels
                bar.update()

        for epoch in rounds(file, settings, recipe.epochs, seed, model=model, optimizer=optimizer):
            bar.update(epoch * steps - bar.n)
            losses = fit(model, batches(epoch), loss, optimizer, progress=False)
            bar.set_postfix(epoch=epoch + 1, loss=f"{sum(losses) / len(losses):.3f}")
    model.eval()
    return float(read_tensors(file)[1]["seconds"])


def fit_head(model: Classifier, head: nn.Module, images: Images, steps: int, seed: int) -> None:
    """Fit the last layers of a classifier to images, in place, by Adam, its rate along a cosine.

    The rest of it stays as it is, in eval mode: what it gives for an image is computed once.
    """
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with kept_modes(model), torch.no_grad():
            model.eval()
            for inputs, _ in images.batches(256, device=model.device):
                model(inputs)
    finally:
        hook.remove()
    features, labels = torch.cat(seen), images.labels.to(model.device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            generator = torch.Generator().manual_seed(1000 * seed + epoch)
            for rows in torch.randperm(len(images), generator=generator).split(HEAD_BATCH):
                yield features[rows], labels[rows]

    optimizer = torch.optim.Adam(head.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = functional.cross_entropy
    fit(head, batches(), loss, optimizer, steps=steps, schedule=schedule, progress=False)


def probed(model: Classifier, images: Images, folder: str | Path, seed: int = 0) -> Classifier:
    """A copy of a classifier with its last layer replaced by two, fitted to upright images.

    Nothing else of it is trained, and not on the images that methods are chosen by. It is kept in a
    file of the folder.
    """
    fitted, _ = images.split(HELD_OUT, seed=0)
    settings = {"model": model.digest(), "images": fitted.digest, "seed": seed}
    settings["classes"] = list(images.classes)
    example = images[slice(0, 2)].inputs().to(model.device)
    found, head = with_new_head(model, images.classes, example, seed)

    def fitted_head() -> dict[str, Tensor]:
        fit_head(found, head, fitted, 10 * math.ceil(len(fitted) / HEAD_BATCH), seed)
        return found.state_dict()

    file = Path(folder) / f"probe-{digest(settings)}.safetensors"
    found.load_state_dict(remembered_tensors(file, settings, fitted_head))
    return found.eval()
