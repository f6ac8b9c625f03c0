"""Names that the command line knows, apart from what they stand for, which takes torch to load."""

from typing import Literal, get_args

Method = Literal[
    "plain", "augmentation", "penalty", "penalty_features", "penalty_both", "equitune",
    "lambda_equitune", "canonicalization",
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
WEIGHTED: tuple[Method, ...] = ("penalty", "penalty_features", "penalty_both")
"""Methods with a weight, which is chosen by cross-validation."""
