"""What `equirl` exports, which imports it when it is first used."""

from equirl.check import check_symmetry
from equirl.discover import find_symmetries
from equirl.experience import Experience, replay_experience, rollout_experience
from equirl.loading import load_agent
from equirl.policies import (
    EquitunePolicy,
    EquizeroPolicy,
    LambdaEquitunePolicy,
)
from equirl.registry import register_symmetry, registered_symmetries, symmetry_of
from equirl.safe import symmetrize
from equirl.symmetrized import SymmetrizedPolicy
from equirl.symmetry import Names, Symmetry
from equirl.weights import fit_familiarity, fit_temporal_difference
from equirl.wrappers import (
    RandomSymmetry,
    SymmetryWrapper,
    VectorRandomSymmetry,
    VectorSymmetryWrapper,
)

__all__ = [
    "EquitunePolicy", "EquizeroPolicy", "Experience",
    "LambdaEquitunePolicy", "Names", "RandomSymmetry", "SymmetrizedPolicy", "Symmetry",
    "SymmetryWrapper", "VectorRandomSymmetry", "VectorSymmetryWrapper", "check_symmetry",
    "find_symmetries", "fit_familiarity", "fit_temporal_difference", "load_agent",
    "register_symmetry", "registered_symmetries", "replay_experience", "rollout_experience",
    "symmetrize", "symmetry_of",
]  # fmt: skip
