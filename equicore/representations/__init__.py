"""Representations: how the elements of a group act on a batch of tensors.

A representation acts on ``x`` of shape (B, ...), where B is the batch, or on a tree of such
tensors. Its tables are buffers, so it moves with ``.to``. Four verbs serve all methods:

- ``act(g, x)``: g . x, the same shape;
- ``act_each(elements, x)``: every sample by an element of its own;
- ``orbit(x)``: every g . x, shape (|G|, B, ...), the identity first;
- ``align(y)``: for y of shape (|G|, B, ...), slice g becomes g^-1 . y[g].

All agree with g . (h . x) = (g h) . x, which is verified at construction.
"""

from equicore.representations.base import Action, Elements, Representation, Trivial
from equicore.representations.combine import DirectSum, Pullback, TensorProduct, restrict
from equicore.representations.coordinates import Boxes, Keypoints
from equicore.representations.entries import Exchange, Tree
from equicore.representations.fields import staggered_field, vector_field
from equicore.representations.images import (
    Flip,
    Image,
    flip,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    image_wallpaper,
)
from equicore.representations.linear import Matrix, Permutation, regular
from equicore.representations.rotations import Rotations
from equicore.representations.tokens import Tokens
