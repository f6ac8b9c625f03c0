"""Names that the command line offers, apart from what takes long to import."""

from typing import Literal, get_args

TaskName = Literal["so2", "o2", "inertia", "points"]
Model = Literal["mlp", "augmented", "canonical", "canonical_uniform", "canonical_lambda", "frames"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
MODELS: tuple[Model, ...] = get_args(Model)
ALONE = ("mlp", "augmented")
"""Models that nothing makes equivariant."""
SAMPLED = ("canonical_uniform", "canonical_lambda")
"""Models that run on several samples around the canonical form."""
