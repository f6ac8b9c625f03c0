"""SCAN: compositional generalization of sequence models, by exchanges of words."""

from equicore.applications.scan.data import (
    ACTIONS,
    DEVELOPMENT_SPLIT,
    SPLITS,
    WORDS,
    all_pairs,
    load_split,
    read_pairs,
)
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.symmetrize import (
    InStep,
    by_branch,
    log_probability,
    mean_max_probability,
    negative_entropy,
    padded_max_probability,
)
from equicore.applications.scan.training import Recipe, train
from equicore.applications.scan.vocabulary import (
    SYMMETRIES,
    WordSymmetry,
    decode_actions,
    encode_actions,
    encode_commands,
    symmetry,
)
from equicore.applications.scan.weights import fit_per_command, fit_per_token

__all__ = [
    "ACTIONS",
    "DEVELOPMENT_SPLIT",
    "SPLITS",
    "SYMMETRIES",
    "WORDS",
    "InStep",
    "Recipe",
    "Seq2Seq",
    "WordSymmetry",
    "all_pairs",
    "by_branch",
    "decode_actions",
    "encode_actions",
    "encode_commands",
    "fit_per_command",
    "fit_per_token",
    "load_split",
    "log_probability",
    "mean_max_probability",
    "negative_entropy",
    "padded_max_probability",
    "read_pairs",
    "symmetry",
    "train",
]
