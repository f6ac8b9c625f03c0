"""Which seeds are for what, so that no episode serves two purposes; trainings stay below all."""

TRAINING_EVALUATION_SEED = 1_000_000
"""Evaluations during training use this seed and the following."""

FIRST_SEED = 2_000_000
"""Evaluations use this seed and the following."""

ROLLOUT_SEED = 3_000_000
"""First seed of the rollouts that lambda's weights learn from."""

STUDY_SEED = 4_000_000
"""The episodes that a study reports have this seed and the following."""

SELECTION_SEED = 5_000_000
"""Episodes of a race have this seed and the following."""
