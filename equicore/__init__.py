"""Make any PyTorch model equivariant under a finite group.

A pretrained model is rarely equivariant. `equitune`, `equizero` and `lambda_equitune` wrap it so
that it is, without a new architecture; groups and representations say under what; the checks of
`equicore.verify` tell whether it is true. Continuous groups are in `equicore.continuous`, training
in `equicore.finetuning`, sequence models that write token by token in `equicore.decoding`.

>>> import torch
>>> from torch import nn
>>> import equicore
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
>>> rotations = equicore.image_rotations()
>>> invariant = equicore.equizero(model, rotations, equicore.Trivial(rotations.group))
>>> images = torch.rand(8, 28, 28)
>>> equicore.assert_equivariant(invariant, rotations, equicore.Trivial(rotations.group), images)
"""

from typing import TYPE_CHECKING

from equicore.lazy import face_of

__version__ = "0.2.0"

if TYPE_CHECKING:
    from equicore._face import *  # noqa: F403
    from equicore._face import __all__ as __all__

__getattr__, __dir__ = face_of(__name__)
