"""How much memory does a symmetrised model need, for groups of 1 to 24 elements?

    python benchmarks/memory.py [--output results/memory]

Peak memory of equitune with and without `chunk=1`, against that of the plain model on the same
batch, in inference and in training. Nothing is random or timed: there are no rounds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import common
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import equicore
from equicore import Image, Permutation, Representation
from equicore.lab import command, figures
from equicore.lab.tables import markdown
from equicore.representations import Pullback, TensorProduct

BAR = 1.15
"""For activations with chunk=1, of all groups, beside the plain model's."""


@dataclasses.dataclass
class Arguments:
    """Measure the peak memory of equitune against the order of the group."""

    batch: int = 8
    """Images in a batch."""
    orders: tuple[Literal[1, 2, 4, 8, 12, 24], ...] = (1, 2, 4, 8, 24)
    """Orders of the groups."""
    output: Path | None = None
    """Folder for memory.csv, .md, .png and .svg; nothing is written when omitted."""


def with_colours(image: Image) -> Representation:
    """Turns and mirrors of an image, times cyclic shifts of its three colours."""
    colours = Permutation.from_generators(equicore.cyclic(3), [[1, 2, 0]], dim=-3)
    group = equicore.product(image.group, colours.group)
    pixels, channels = zip(*[divmod(g, 3) for g in range(len(group))], strict=True)
    return TensorProduct(Pullback(group, colours, channels), Pullback(group, image, pixels))


GROUPS: dict[int, tuple[str, Callable[[], Representation]]] = {
    1: ("trivial", lambda: equicore.Trivial(equicore.trivial())),
    2: ("C2, a mirror", equicore.image_flips),
    4: ("C4, turns", equicore.image_rotations),
    8: ("D4, turns and mirrors", equicore.image_dihedral),
    12: ("C4 x C3, turns and colours", lambda: with_colours(equicore.image_rotations())),
    24: ("D4 x C3", lambda: with_colours(equicore.image_dihedral())),
}


def bytes_of(model: nn.Module) -> int:
    """The size of all parameters, which is that of their gradients."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def inference(model: nn.Module, x: Tensor) -> int:
    """Peak of a forward without gradients."""
    with torch.no_grad():
        return common.peak_memory(lambda: model(x))


def training(model: nn.Module, x: Tensor, keep_gradients: bool) -> int:
    """Peak of a forward and a backward that starts without gradients, as after zero_grad.

    Args:
        model: Its parameters are trained.
        x: A batch.
        keep_gradients: If False, each parameter's gradient is dropped as soon as it is complete.
    """

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    model.zero_grad()
    dropped = [] if keep_gradients else list(model.parameters())
    handles = [p.register_post_accumulate_grad_hook(drop) for p in dropped]
    peak = common.peak_memory(lambda: model(x).square().mean().backward())
    model.zero_grad()
    for handle in handles:
        handle.remove()
    return peak


def measure(
    name: str, model: nn.Module, order: int, chunk: int | None, x: Tensor
) -> list[common.Row]:
    """The rows of inference and training for one model, group and chunk."""
    label, make = GROUPS[order]
    rep = make()
    symmetrized = equicore.equitune(model, rep, equicore.Trivial(rep.group), chunk=chunk)
    symmetrized.train()
    # autograd adds up the chunks' gradients of a parameter before the parameter gets them
    buffered = 0 if chunk is None or chunk >= order else bytes_of(model)
    in_training = (
        training(symmetrized, x, keep_gradients=False) - buffered,
        training(model, x, keep_gradients=False),
        training(symmetrized, x, keep_gradients=True),
        training(model, x, keep_gradients=True),
    )
    symmetrized.eval()
    in_inference = (inference(symmetrized, x), inference(model, x)) * 2
    return [
        {
            "model": name,
            "mode": mode,
            "order": order,
            "group": label,
            "chunk": chunk or "all",
            "activations_mb": activations / 1e6,
            "activations": activations / plain,
            "total_mb": total / 1e6,
            "total": total / plain_total,
            "bar": BAR if chunk == 1 else None,
        }
        for mode, (activations, plain, total, plain_total) in (
            ("inference", in_inference),
            ("training", in_training),
        )
    ]


def draw(table: pd.DataFrame) -> Figure:
    """Activations relative to the plain model's against the order of the group."""
    figure, (axes,) = figures.grid(1, 2, figsize=(8, 4), sharey=True)
    for axis, mode in zip(axes, ("inference", "training"), strict=True):
        lines = table[table["mode"] == mode].groupby(["chunk", "model"], sort=False)
        for i, ((chunk, model), line) in enumerate(lines):
            axis.plot(
                line.order,
                line.activations,
                label=f"{model}, {'whole orbit' if chunk == 'all' else 'chunk=1'}",
                color=common.COLOURS[i // 2],
                linestyle="-" if i % 2 else "--",
                marker=common.MARKERS[i],
            )
        axis.axhline(BAR, linewidth=1, **common.BAR_STYLE | {"label": f"bar, {BAR:g}"})
        axis.set_title(mode, fontsize="medium")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(sorted(table.order.unique()), sorted(table.order.unique()))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("elements of the group")
        figures.tidy(axis)
    axes[0].set_ylabel("peak of activations / plain")
    figures.legend_below(figure, axes[0], columns=3)
    return figure


def markdown_row(row: common.Row) -> list[object]:
    """A row of the md."""
    return [
        *(row[name] for name in ("model", "mode", "group", "order", "chunk")),
        f"{row['activations_mb']:.1f} MB",
        f"{row['activations']:.3f}",
        common.verdict(row["activations"], row["bar"]),
        f"{row['total_mb']:.1f} MB",
        f"{row['total']:.3f}",
    ]


def main(arguments: Arguments) -> None:
    """Measure everything, print the table, write it."""
    torch.manual_seed(0)
    x = torch.rand(arguments.batch, 3, 64, 64)
    models = {"ResNet-18": common.resnet(), "ViT": common.vit()}
    points = list(itertools.product(models, (None, 1), arguments.orders))
    rows = []
    for name, chunk, order in tqdm(points, unit="point"):
        rows += measure(name, models[name], order, chunk, x)
    sizes = ", ".join(f"{name} {bytes_of(model) / 1e6:.1f} MB" for name, model in models.items())
    common.write(
        arguments.output,
        "memory",
        rows,
        3,
        "Memory against the order of the group",
        f"Peak memory of equitune on {arguments.batch} images of 64 x 64, and its ratio to that of "
        f"the plain model on the same batch; {common.machine()}. Each is measured once: it is the "
        "sum of torch's allocations and frees, which its profiler reports, beyond what is there "
        "before the call (parameters and the input), and so the same in every run with as many "
        "threads. The resident size of the process is no such measure, as the C library keeps "
        "freed pages. The workspaces of operators count: those of ResNet-18's convolutions grow "
        "with parameters and threads, not with the batch, so that its peak grows more slowly than "
        "the group.",
        "Training is a forward and a backward. With chunk=1 every element is checkpointed: "
        "computed again in the backward. *Total* is a step that begins without gradients and "
        f"ends with those of all parameters ({sizes}). *Activations* are without them: each "
        "gradient is dropped when it is complete, and with chunk=1, where autograd holds the sum "
        "of every parameter's gradient until the last chunk, the parameters' size is subtracted. "
        f"The bar, {BAR:g} times the plain model with chunk=1, is for activations; where "
        "parameters are large beside activations, the total exceeds it, as it does whenever "
        "gradients are accumulated over several batches.",
        markdown(
            ["model", "mode", "group", "elements", "chunk", "activations", "ratio", "bar"]
            + ["total", "ratio"],
            map(markdown_row, sorted(rows, key=lambda row: (row["model"], row["mode"]))),
        ),
        figure=draw(pd.DataFrame(rows)),
    )


if __name__ == "__main__":
    command.run({Arguments: main})
