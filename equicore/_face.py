"""What `equicore` exports, which imports it when it is first used."""

from equicore.calls import Keywords
from equicore.groups import Group, cyclic, dihedral, product, symmetric, trivial
from equicore.reduce import Best, Identity, Maximum, Mean, StraightThrough, WeightedMean
from equicore.representations import (
    Boxes,
    DirectSum,
    Exchange,
    Image,
    Keypoints,
    Matrix,
    Permutation,
    Representation,
    Tokens,
    Tree,
    Trivial,
    flip,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    restrict,
    vector_field,
)
from equicore.scores import confidence, max_value, negative_entropy
from equicore.symmetrize import Symmetrized, equitune, equizero, lambda_equitune
from equicore.verify import assert_equivariant, check_representation, equivariance_error, report
from equicore.weights import MLPWeight, fit_familiarity

__all__ = [
    "Best", "Boxes", "DirectSum", "Exchange", "Group", "Identity", "Image", "Keypoints", "Keywords",
    "MLPWeight", "Matrix", "Maximum", "Mean", "Permutation", "Representation", "StraightThrough",
    "Symmetrized", "Tokens", "Tree", "Trivial", "WeightedMean", "assert_equivariant",
    "check_representation", "confidence", "cyclic", "dihedral", "equitune", "equivariance_error",
    "equizero", "fit_familiarity", "flip", "image_dihedral", "image_flips", "image_rotations",
    "image_shifts", "lambda_equitune", "max_value", "negative_entropy", "product", "report",
    "restrict", "symmetric", "trivial", "vector_field",
]  # fmt: skip
