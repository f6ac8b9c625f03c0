"""Pictures of what feature maps do when the input is transformed, before and after fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from equicore.applications.finetuning.experiment import Tuning, fine_tuned
from equicore.applications.finetuning.names import Method
from equicore.applications.finetuning.report import LABELS
from equicore.applications.finetuning.task import Task
from equicore.capture import Observed
from equicore.finetuning import Symmetry
from equicore.lab import figures

ELEMENTS = 4
"""Of a group, those whose responses are drawn, the identity first."""


def write_responses(
    task: Task,
    methods: Sequence[Method],
    fraction: float,
    tuning: Tuning,
    runs: Path,
    folder: Path,
) -> list[Path]:
    """Draw g^-1 F(g x) of a feature map F for some g: all alike where F is equivariant.

    Of the first test input and the last submodule that the first symmetry names, the channel of
    the largest variance; before fine-tuning, and after it by methods that have such a map. Nothing
    is drawn where the symmetry names none.
    """
    symmetry = task.problem.symmetries[0]
    if not symmetry.features:
        return []
    name, x = list(symmetry.features)[-1], task.probes()[0][:1]
    models: dict[str, nn.Module] = {"before": task.model(0).eval()}
    for method in methods:
        tuned = fine_tuned(task, method, fraction, 0, tuning, runs)
        if name in {n for n, _ in tuned.model.named_modules()}:
            models[LABELS[method]] = tuned.model
    found = {label: _responses(model, symmetry, name, x) for label, model in models.items()}
    count = len(next(iter(found.values())))
    figure, axes = figures.grid(len(found), count, (1.5 * count + 0.8, 1.5 * len(found) + 0.7))
    for row, (label, maps) in zip(axes, found.items(), strict=True):
        channel = maps[0].flatten(1).var(1).argmax()
        shown = maps[:, channel]
        off = [float((view - maps[0]).norm() / maps[0].norm()) for view in maps]
        for g, axis in enumerate(row):
            axis.imshow(shown[g].numpy(), cmap="gray", vmin=float(shown.min()), vmax=float(shown.max()))
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"off by {100 * off[g]:.0f} %" if g else "F(x)", fontsize=8, pad=2)
        row[0].set_ylabel(label.replace(" on ", "\non "), fontsize=8)
    title = f"{task.name}: g⁻¹ F(g x) of {name},\nand its distance to F(x), of all channels"
    figure.suptitle(title, fontsize=9)
    stem = "responses_" + re.sub(r"[^\w.-]+", "-", task.name)
    return figures.save(figure, folder / stem, dpi=90, colours=256)


@torch.no_grad()
def _responses(model: nn.Module, symmetry: Symmetry, name: str, x: Tensor) -> Tensor:
    """The maps of one input's views, each moved back: (|G|, channels, rows, columns)."""
    elements = torch.arange(min(ELEMENTS, symmetry.order))
    views = symmetry.input.act_each(elements, x.expand(len(elements), *x.shape[1:]))
    maps: Tensor = Observed(model, [name])(views)[name]
    return symmetry.features[name].align_each(elements, maps).cpu()
