"""SCAN: compositional generalization of sequence models, by exchanges of words."""

from equicore.applications.scan.data import all_pairs, load_split, read_pairs
from equicore.applications.scan.experiment import Recipe, train
from equicore.applications.scan.model import Seq2Seq
from equicore.applications.scan.symmetrize import (
    InStep,
    by_branch,
    fit_per_command,
    fit_per_token,
    log_probability,
    mean_max_probability,
    negative_entropy,
    padded_max_probability,
)
from equicore.applications.scan.vocabulary import (
    SYMMETRIES,
    WordSymmetry,
    decode_actions,
    encode_actions,
    encode_commands,
    symmetry,
)

__all__ = [
    "SYMMETRIES", "InStep", "Recipe", "Seq2Seq", "WordSymmetry", "all_pairs", "by_branch",
    "decode_actions", "encode_actions", "encode_commands", "fit_per_command", "fit_per_token",
    "load_split", "log_probability", "mean_max_probability", "negative_entropy",
    "padded_max_probability", "read_pairs", "symmetry", "train",
]  # fmt: skip
