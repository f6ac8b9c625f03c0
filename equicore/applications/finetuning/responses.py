"""Pictures of what feature maps do when the input is transformed, before and after fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from equicore.applications.finetuning.experiment import Trial
from equicore.applications.finetuning.report import LABELS
from equicore.capture import Observed
from equicore.finetuning import Symmetry
from equicore.lab import figures

ELEMENTS = 4
"""Of a group, those whose responses are drawn, the identity first."""


def write_responses(trials: Sequence[Trial], folder: Path) -> list[Path]:
    """Draw g^-1 F(g x) of a feature map F for some g: all alike where F is equivariant.

    Of the first test input and the last submodule that the first symmetry names, the channel of
    the largest variance; before fine-tuning, and after it by methods that add nothing to the model,
    as far as their models are kept. The trials are of one task, part of the data and seed. Nothing
    is drawn where the symmetry names no submodule, or inputs are no tensors.
    """
    task, seed = trials[0].task, trials[0].seed
    symmetry, inputs = task.problem.symmetries[0], task.probes()[0]
    alone = [t for t in trials if t.method.views(task.problem) == 1 and t.kept.is_file()]
    alone = [t for t in alone if t.name != "canonicalization"]
    if not symmetry.features or not isinstance(inputs, Tensor) or not alone:
        return []
    name, x = list(symmetry.features)[-1], inputs[:1]
    models: dict[str, nn.Module] = {"before": task.model(seed).eval()}
    models |= {LABELS[trial.name]: trial.tuned().model for trial in alone}
    found = {label: _responses(model, symmetry, name, x) for label, model in models.items()}
    count = len(next(iter(found.values())))
    figure, axes = figures.grid(len(found), count, (1.5 * count + 0.8, 1.5 * len(found) + 0.7))
    for row, (label, maps) in zip(axes, found.items(), strict=True):
        shown = maps[:, maps[0].flatten(1).var(1).argmax()].numpy()
        off = [float((view - maps[0]).norm() / maps[0].norm()) for view in maps]
        for g, axis in enumerate(row):
            axis.imshow(shown[g], cmap="gray", vmin=shown.min(), vmax=shown.max())
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
