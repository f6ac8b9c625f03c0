"""What `equicore.applications.text` exports, which imports it when it is first used."""

from equicore.applications.text.language import load, perplexity, score
from equicore.applications.text.models import EquiLM, fit_weight
from equicore.applications.text.regard import Regard, fit_regard, load_regard, read_annotations
from equicore.applications.text.steering import (
    BestText,
    EquizeroLM,
    Sampling,
    WholeText,
    Writing,
    joint,
)
from equicore.applications.text.words import (
    WordGroup,
    WordTokens,
    mended,
    read_entries,
    read_neutral,
    read_words,
)

__all__ = [
    "BestText", "EquiLM", "EquizeroLM", "Regard", "Sampling", "WholeText", "WordGroup",
    "WordTokens", "Writing", "fit_regard", "fit_weight", "joint", "load", "load_regard", "mended",
    "perplexity", "read_annotations", "read_entries", "read_neutral", "read_words", "score",
]  # fmt: skip
