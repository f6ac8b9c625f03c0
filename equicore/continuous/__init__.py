"""Continuous groups: how their elements act, and models that are equivariant under them.

Elements are tensors, one for each sample. A model is made equivariant through a canonicalizer,
which maps each input to an element of the group: see `canonical_lambda_equitune`.
"""

from equicore.continuous.actions import (
    Motion,
    Points,
    Reordering,
    Rows,
    Vectors,
    random_motions,
    rotations_2d,
    sign_frames,
)
from equicore.continuous.canonicalize import Canonicalized, canonical_lambda_equitune
from equicore.continuous.canonicalizers import (
    Centred,
    GramSchmidt,
    PrincipalAxes,
    Sorting,
    VectorMix,
    VectorSum,
)
