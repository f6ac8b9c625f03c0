"""Image classifiers and CLIP that no longer care which way is up."""

from equicore.applications.images.clip import TEMPLATES, Pair
from equicore.applications.images.data import Images, read
from equicore.applications.images.experiment import advice, measure
from equicore.applications.images.loading import load
from equicore.applications.images.methods import GROUPS
from equicore.applications.images.networks import Classifier
from equicore.applications.images.orbits import Seen, tabulate
from equicore.applications.images.study import Study
from equicore.applications.images.training import accuracy, probed, trained

__all__ = [
    "GROUPS", "TEMPLATES", "Classifier", "Images", "Pair", "Seen", "Study", "accuracy", "advice",
    "load", "measure", "probed", "read", "tabulate", "trained",
]  # fmt: skip
