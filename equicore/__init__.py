"""Make any PyTorch model equivariant under a finite group.

A pretrained model is rarely equivariant. `equitune`, `equizero` and `lambda_equitune` wrap it so
that it is, without a new architecture; groups and representations say under what; the checks of
`equicore.verify` tell whether it is true.

>>> import torch
>>> from torch import nn
>>> import equicore
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
>>> rotations = equicore.image_rotations()
>>> invariant = equicore.equizero(model, rotations, equicore.Trivial(rotations.group))
>>> images = torch.rand(8, 28, 28)
>>> equicore.assert_equivariant(invariant, rotations, equicore.Trivial(rotations.group), images)
"""

from equicore.actions import (
    Action,
    ActionTree,
    Motion,
    Points,
    Reordering,
    Rows,
    Scalars,
    Vectors,
    random_motions,
    rotations_2d,
    sign_frames,
)
from equicore.canonicalize import Canonicalized, Sampled, canonical_lambda_equitune
from equicore.canonicalizers import (
    Centred,
    GramSchmidt,
    PrincipalAxes,
    Sorting,
    VectorMix,
    VectorSum,
)
from equicore.groups import (
    Element,
    Group,
    Subgroup,
    cyclic,
    dihedral,
    product,
    semidirect,
    symmetric,
    trivial,
)
from equicore.reduce import (
    Best,
    Identity,
    Maximum,
    Mean,
    Reducer,
    StraightThrough,
    WeightedMean,
)
from equicore.regularize import (
    EquivarianceLoss,
    GroupAugmentation,
    Selection,
    kl_divergence,
    select_weight,
    squared_error,
)
from equicore.representations import (
    Boxes,
    DirectSum,
    Image,
    Matrix,
    Permutation,
    Pullback,
    Representation,
    TensorProduct,
    Tokens,
    Tree,
    Trivial,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    image_wallpaper,
    regular,
    restrict,
    vector_field,
)
from equicore.scores import max_probability, max_value, negative_entropy
from equicore.symmetrize import Keywords, Symmetrized, equitune, equizero, lambda_equitune
from equicore.training import fit
from equicore.verify import (
    EquivarianceError,
    Report,
    assert_equivariant,
    check_group,
    check_representation,
    equivariance_error,
    report,
)
from equicore.weights import MLPWeight, fit_familiarity

__all__ = [
    "Action",
    "ActionTree",
    "Best",
    "Boxes",
    "Canonicalized",
    "Centred",
    "DirectSum",
    "Element",
    "EquivarianceError",
    "EquivarianceLoss",
    "GramSchmidt",
    "Group",
    "GroupAugmentation",
    "Identity",
    "Image",
    "Keywords",
    "MLPWeight",
    "Matrix",
    "Maximum",
    "Mean",
    "Motion",
    "Permutation",
    "Points",
    "PrincipalAxes",
    "Pullback",
    "Reducer",
    "Reordering",
    "Report",
    "Representation",
    "Rows",
    "Sampled",
    "Scalars",
    "Selection",
    "Sorting",
    "StraightThrough",
    "Subgroup",
    "Symmetrized",
    "TensorProduct",
    "Tokens",
    "Tree",
    "Trivial",
    "VectorMix",
    "VectorSum",
    "Vectors",
    "WeightedMean",
    "assert_equivariant",
    "canonical_lambda_equitune",
    "check_group",
    "check_representation",
    "cyclic",
    "dihedral",
    "equitune",
    "equivariance_error",
    "equizero",
    "fit",
    "fit_familiarity",
    "image_dihedral",
    "image_flips",
    "image_rotations",
    "image_shifts",
    "image_wallpaper",
    "kl_divergence",
    "lambda_equitune",
    "max_probability",
    "max_value",
    "negative_entropy",
    "product",
    "random_motions",
    "regular",
    "report",
    "restrict",
    "rotations_2d",
    "select_weight",
    "semidirect",
    "sign_frames",
    "squared_error",
    "symmetric",
    "trivial",
    "vector_field",
]
