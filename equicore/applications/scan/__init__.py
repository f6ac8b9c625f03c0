"""SCAN: compositional generalization of sequence models, by exchanges of words."""

from equicore.applications.scan.data import (
    ACTIONS,
    SPLITS,
    WORDS,
    all_pairs,
    load_split,
    read_pairs,
)
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.symmetrize import InStep, by_branch
from equicore.applications.scan.vocabulary import SYMMETRIES, WordSymmetry, symmetry

__all__ = [
    "ACTIONS",
    "SPLITS",
    "SYMMETRIES",
    "WORDS",
    "InStep",
    "Seq2Seq",
    "WordSymmetry",
    "all_pairs",
    "by_branch",
    "load_split",
    "read_pairs",
    "symmetry",
]
