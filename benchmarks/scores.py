"""What should equizero compare where a score averages over several predictions for one sample?

    python benchmarks/scores.py --models FOLDER --cifar FOLDER --text FOLDER [--output ...]

Maps: the last layer of a ResNet, at each cell of its last features, predicts 64 times for an image
that is turned at random. Words: a language model predicts each next token of a text that it wrote,
in half of the texts after a permutation of tokens. The natural view is upright, or as written.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import equicore
from equicore import Representation, confidence, max_value, negative_entropy
from equicore.lab import command, figures
from equicore.lab.statistics import Estimate, t_interval, verdict
from equicore.lab.tables import frame_markdown

DEFAULT = "mean log-odds"  # what `confidence` is
MEASURES = ("quality", "natural")
SELECTION = "all, selection half"
MOVED = {"words, 16 move": 16, "words, all move": None}  # tokens that are permuted
Acts = tuple[Representation, Representation]
Measure = Callable[[Any], Tensor]
Scores = dict[str, Measure]


@dataclasses.dataclass
class Arguments:
    """Compare scores of equizero on maps and words; half of the samples select, half report."""

    models: Path | None = None
    """Folder with resnet20-*.th and resnet56-*.th of akamaster/pytorch_resnet_cifar10, for maps."""
    cifar: Path | None = None
    """CIFAR-10 as an image folder, test/CLASS/*.png, for maps."""
    text: Path | None = None
    """A causal language model in Hugging Face's format, such as stories260K, for words."""
    seeds: tuple[int, ...] = tuple(range(20))
    """Each has its own share of the images, turns, texts and permutations; at least two."""
    images: int = 5000
    """How many in all."""
    texts: int = 100
    """How many in each half, of each seed."""
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    """How many tokens of a text are predicted."""
    output: Path | None = None
    """Folder for scores.csv, .md, .png and .svg; nothing is written when omitted."""


def candidates(dim: int) -> Scores:
    """The scores to compare, of outputs {"logits": (|G|, B, ...)} with classes on an axis."""

    def log_odds(y: Any) -> Tensor:  # of the winner of every prediction, (|G|, B, predictions)
        logits = y["logits"].movedim(dim, -1).flatten(2, -2)
        return confidence(logits.flatten(1, 2)).view(logits.shape[:3])

    return {
        DEFAULT: confidence.of("logits").along(dim),
        "log-odds of mean probability": lambda y: odds_of_mean(log_odds(y)),
        "mean log-probability": lambda y: functional.logsigmoid(log_odds(y)).mean(-1),
        "mean entropy": negative_entropy.of("logits").along(dim),
        "mean largest logit": max_value.of("logits").along(dim),
        "least log-odds": lambda y: log_odds(y).amin(-1),
        "mean float32 probability": lambda y: y["logits"].softmax(dim).amax(dim).flatten(2).mean(2),
    }


def odds_of_mean(odds: Tensor) -> Tensor:
    """Log-odds of the mean of probabilities along the last axis, of their log-odds."""
    sure, unsure = functional.logsigmoid(odds), functional.logsigmoid(-odds)
    return sure.logsumexp(-1) - unsure.logsumexp(-1)


def choices(
    outputs: Tensor, x: Tensor, moves: Tensor, acts: Acts, scores: Scores, quality: Measure
) -> pd.DataFrame:
    """The quality, and how far it is the natural view, of what equizero chooses by each score.

    Samples x were moved by the elements ``moves``, (B,); ``outputs`` are the logits of their orbit,
    (|G| B, ...), on which the second of ``acts`` acts. Quality maps logits (B, ...) to (B,).
    """
    group = acts[0].group
    inverses = torch.tensor([group.inverse(g) for g in range(len(group))])
    first, natural = torch.eye(len(group))[torch.stack([0 * moves, inverses[moves]])].mT
    references = {"plain": lambda y: first, "natural view": lambda y: natural}
    known = {"logits": outputs, "natural": natural.flatten()}
    aligned = equicore.Tree({"logits": acts[1], "natural": equicore.Trivial(group)})
    parts = []
    for name, score in (scores | references).items():
        best = equicore.equizero(lambda _: known, acts[0], aligned, score)(x)
        numbers = {"quality": quality(best["logits"]), "natural": best["natural"]}
        parts.append(pd.DataFrame(numbers).assign(score=name))
    return pd.concat(parts)


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.more = (1, 0) if before == after else (2, (after - before) // 2)
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = x[:, :, :: self.stride, :: self.stride]
        return (y + functional.pad(x, (0, 0, 0, 0, self.more, self.more))).relu()


class DenseResNet(nn.Module):
    """A pretrained ResNet with its linear layer at each cell: logits (B, 10, 8, 8)."""

    def __init__(self, folder: Path, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (before, after) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            others = (Block(after, after) for _ in range((depth - 2) // 6 - 1))
            self.add_module(f"layer{i}", nn.Sequential(Block(before, after), *others))
        self.linear = nn.Linear(64, 10)
        if not (paths := list(folder.glob(f"resnet{depth}-*.th"))):
            raise FileNotFoundError(f"no resnet{depth}-*.th in {folder}")
        state = torch.load(paths[0], map_location="cpu", weights_only=True)["state_dict"]
        self.load_state_dict({name.removeprefix("module."): v for name, v in state.items()})
        self.eval().to(memory_format=torch.channels_last)  # which is faster

    def forward(self, x: Tensor) -> Tensor:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        x = self.bn1(self.conv1((x - mean) / std)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).movedim(1, -1)).movedim(-1, 1)


def load_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The test images (N, 3, 32, 32), as bytes, and their classes."""
    paths = sorted((folder / "test").glob("*/*.png"))
    if len(classes := sorted({path.parent.name for path in paths})) != 10:
        raise ValueError(f"{folder} holds no test/CLASS/*.png of ten classes")
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return torch.from_numpy(images).movedim(-1, 1), labels


def maps(arguments: Arguments) -> Iterator[pd.DataFrame]:
    """Choices of both networks; each image belongs to one seed and half."""
    images, labels = load_images(arguments.cifar)
    networks = {f"ResNet-{depth}": DenseResNet(arguments.models, depth) for depth in (20, 56)}
    turns = equicore.image_rotations()
    own = {"log-odds of own output": lambda y: confidence(y["logits"].mean((-2, -1)))}
    order = torch.randperm(len(images), generator=torch.manual_seed(0))[: arguments.images]
    for i, share in enumerate(tqdm(order.chunk(2 * len(arguments.seeds)), "maps")):
        torch.manual_seed(2 * arguments.seeds[i // 2] + i % 2)
        for rows in share.split(125):
            moves = torch.randint(4, rows.shape)
            x = turns.act_each(moves, images[rows] / 255)
            right = partial(accuracy, labels[rows])
            for case, network in networks.items():
                y = network(turns.orbit(x).flatten(0, 1))
                found = choices(y, x, moves, (turns, turns), candidates(-3) | own, right)
                found = found.assign(unit=rows.numpy()[found.index])
                yield found.assign(setting="maps", case=case, selects=i % 2 == 0)


def accuracy(labels: Tensor, logits: Tensor) -> Tensor:
    """Of the mean logits of each map, 0 or 1."""
    return (logits.mean((-2, -1)).argmax(-1) == labels).float()


def words(arguments: Arguments) -> Iterator[pd.DataFrame]:
    """Choices for the texts of each seed, of different length and under different groups."""
    model = AutoModelForCausalLM.from_pretrained(arguments.text, local_files_only=True).eval()
    begin = torch.full((arguments.texts, 1), model.config.bos_token_id)
    options = {"do_sample": True, "top_k": 0, "pad_token_id": 0}
    options |= dict.fromkeys(("min_new_tokens", "max_new_tokens"), max(arguments.lengths))
    for seed, half in tqdm(list(itertools.product(arguments.seeds, range(2))), "words"):
        torch.manual_seed(2 * seed + half)
        texts = model.generate(begin, **options)
        for (setting, moved), order in itertools.product(MOVED.items(), (2, 4)):
            acts = permutations(order, moved, texts, model.config.vocab_size)
            moves = torch.randint(1, order, (len(texts),)) * torch.randint(2, (len(texts),))
            views = acts.act_each(moves, texts)
            for length in arguments.lengths:
                x, after = views[:, :length], views[:, 1 : length + 1]
                y = model(acts.orbit(x).flatten(0, 1)).logits
                likely, of_views = (partial(log_likelihood, a) for a in (after, acts.orbit(after)))
                known = {"likelihood of the text": lambda y, f=of_views: f(y["logits"])}
                found = choices(y, x, moves, (acts, acts.logits()), candidates(-1) | known, likely)
                case = f"C{order}, {length} tokens"
                yield found.assign(setting=setting, case=case, unit=seed, selects=half == 0)


def permutations(order: int, moved: int | None, texts: Tensor, size: int) -> equicore.Tokens:
    """Random cycles of some ids of the texts, often frequent ones; not of that which begins."""
    ids, counts = texts[texts != texts[0, 0]].unique(return_counts=True)
    ids = ids[counts.float().multinomial(len(ids))][:moved]
    cycles = ids[: len(ids) // order * order].view(-1, order).tolist()
    return equicore.Tokens.from_cycles(equicore.cyclic(order), [cycles], size)


def log_likelihood(after: Tensor, logits: Tensor) -> Tensor:
    """Mean log-probability of the ids (..., T) that follow, by logits (..., T, ids)."""
    return logits.log_softmax(-1).gather(-1, after.unsqueeze(-1)).squeeze(-1).mean(-1)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over images or seeds, and what they gain over the default, each an `Estimate`."""
    report, rows = table[~table.selects], []
    together = [table[table.selects].assign(case=SELECTION), report.assign(case="all")]
    parts = pd.concat([report, *together]).groupby(["setting", "case"], sort=False)
    for (setting, case), part in parts:
        means = part.pivot_table(list(MEASURES), "unit", "score")
        for score in part.score.unique():
            row = {"setting": setting, "case": case, "score": score}
            for name in MEASURES:
                own, default = means[name][score], means[name][DEFAULT]
                row |= {name: t_interval(own), f"{name}_gain": t_interval(own - default)}
            rows.append(row)
    return pd.DataFrame(rows)


def section(setting: str, rows: pd.DataFrame) -> str:
    """Which score the first half selects, what the second says of it, and a table per measure."""
    together = {case: part.set_index("score") for case, part in rows.groupby("case")}
    best = max(candidates(-1), key=lambda score: together[SELECTION].quality[score].value)
    gain = verdict("its quality", together["all"].quality_gain[best], "the default's", ".3f")
    parts = [f"## {setting.capitalize()}", f"Selected: {best}. In the other half, {gain}."]
    for name in MEASURES:
        wide = rows.pivot(index="score", columns="case", values=name)
        wide = wide.loc[rows.score.unique(), rows.case.unique()]
        wide["all, gain"] = together["all"][f"{name}_gain"]
        parts.append(frame_markdown(wide.rename_axis(name).reset_index(), ".3f"))
    return "\n\n".join(parts)


def draw(rows: pd.DataFrame) -> Figure:
    """The candidates' gain and natural views, a column for each setting."""
    settings, names = rows.setting.unique(), list(candidates(-1))
    figure, axes = figures.grid(2, len(settings), (3 * len(settings) + 2, 6), "row", True)
    shown = rows[~rows.case.str.match("all|C2") & rows.score.isin(names)]
    whats = {"quality_gain": "quality minus the default's", "natural": "natural view chosen"}
    panels = itertools.product(whats.items(), settings)
    for axis, ((name, what), setting) in zip(axes.flat, panels, strict=True):
        cases = shown[shown.setting == setting].groupby("case", sort=False)[name]
        for i, (case, estimates) in enumerate(cases):
            style = {"color": common.COLOURS[i % 4], "marker": common.MARKERS[i % 4], "label": case}
            values, places = [e.value for e in estimates], np.arange(len(names)) + 0.15 * i - 0.2
            spread = figures.error_bars(list(estimates))
            axis.errorbar(values, places, xerr=spread, linestyle="none", markersize=4, **style)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=setting, xlabel=f"{what}\n(95 % intervals)")
        if name == "natural":
            axis.legend(fontsize=7, frameon=False)
        figures.tidy(axis)
    axes[0, 0].set(xlim=(-0.35, 0.2), ylim=(len(names) - 0.5, -0.5))  # shared
    return figure


@torch.no_grad()
def main(arguments: Arguments) -> None:
    """Compare, print the table, write it."""
    parts = list(maps(arguments)) if arguments.models and arguments.cifar else []
    parts += words(arguments) if arguments.text else []
    if not parts:
        raise ValueError("give --models and --cifar, or --text, or all three")
    rows = summary(pd.concat(parts))
    ratios = rows.map(lambda v: common.Ratio(v.value, v.low, v.high) if type(v) is Estimate else v)
    common.write(
        arguments.output,
        "scores",
        ratios.to_dict("records"),
        4,
        "Scores of equizero that average over several predictions",
        "Equizero chooses a view of each sample by each score. Quality is the accuracy of a map's "
        "mean logits, or the mean log-probability (nats) of a text's next tokens. Natural is how "
        f"often the natural view is chosen, a part of 1 in ties. The default, {DEFAULT}, is "
        "`confidence`; gains are paired differences to it. All columns but one are of the half "
        "that selects nothing. Means and 95 % intervals (Student's t): maps, over half of the "
        f"{arguments.images:,} images; words, over {len(arguments.seeds)} seeds with own texts and "
        "permutations. The last rows of each table are no candidates. The figure, without C2, "
        "leaves out gains below -0.35.",
        *(section(*pair) for pair in rows.groupby("setting", sort=False)),
        "![The candidates](scores.png)",
    )
    if arguments.output:
        figures.save(draw(rows), arguments.output / "scores", colours=64)


if __name__ == "__main__":
    command.run({Arguments: main})
