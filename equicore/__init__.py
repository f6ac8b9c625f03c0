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

from equicore.groups import Group, cyclic, dihedral, product, symmetric, trivial
from equicore.reduce import Best, Identity, Maximum, Mean, StraightThrough, WeightedMean
from equicore.representations import (
    Boxes,
    DirectSum,
    Image,
    Matrix,
    Permutation,
    Representation,
    Tokens,
    Tree,
    Trivial,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    restrict,
    vector_field,
)
from equicore.scores import max_probability, max_value, negative_entropy
from equicore.symmetrize import Keywords, Symmetrized, equitune, equizero, lambda_equitune
from equicore.verify import assert_equivariant, check_representation, equivariance_error, report
from equicore.weights import MLPWeight, fit_familiarity

__all__ = [
    "Best", "Boxes", "DirectSum", "Group", "Identity", "Image", "Keywords", "MLPWeight", "Matrix",
    "Maximum", "Mean", "Permutation", "Representation", "StraightThrough", "Symmetrized",
    "Tokens", "Tree", "Trivial", "WeightedMean", "assert_equivariant", "check_representation",
    "cyclic", "dihedral", "equitune", "equivariance_error", "equizero", "fit_familiarity",
    "image_dihedral", "image_flips", "image_rotations", "image_shifts", "lambda_equitune",
    "max_probability", "max_value", "negative_entropy", "product", "report", "restrict",
    "symmetric", "trivial", "vector_field",
]  # fmt: skip
