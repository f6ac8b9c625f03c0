"""Names that the command line offers, apart from what takes long to import."""

from typing import Literal, get_args

Method = Literal[
    "plain", "equi_lm", "equi_lm_logits", "r_equi_lm", "lambda_equi_lm", "whole_text",
    "whole_text_joint", "equizero_lm", "r_equizero_lm", "best_text",
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
PER_TOKEN = tuple(method for method in METHODS if "_lm" in method)
STEERED = ("equizero_lm", "r_equizero_lm", "best_text")
