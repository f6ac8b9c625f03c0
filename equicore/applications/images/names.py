"""Names that the command line knows, apart from what they stand for, which takes torch to load."""

from typing import Literal

Network = Literal["small", "alexnet", "resnet20", "resnet56"]
Group = Literal["turns", "mirror", "flip", "turns+mirror", "eighths"]
Method = Literal[
    "plain", "augmented", "equitune", "equizero_mean", "equizero_plain",
    "lambda_frozen", "lambda_joint",
]  # fmt: skip
