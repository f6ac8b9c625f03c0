import functools
import random

import pytest

from equicore.applications import scan
from equicore.applications.scan import Recipe, Seq2Seq, experiment


def short_pairs(pairs, longest=4):
    return [pair for pair in pairs if pair[1].count(" ") < longest]


@pytest.fixture(scope="session")
def pairs():
    """Some short training pairs of Add Jump; half of them are the bare jump."""
    training, _ = scan.load_split("add_jump")
    return random.Random(0).sample(short_pairs(training), 500)


@pytest.fixture(scope="session")
def trained(pairs):
    """For a cell a network in float64 that has learned something, and is far from equivariant.

    Tests share it: one that changes it takes a copy.
    """

    @functools.cache
    def network(cell):
        made = Seq2Seq(cell, hidden=16, seed=1)
        recipe = Recipe(epochs=6, learning_rate=2e-2, warmup=10)
        scan.train(made, pairs, recipe, 0, progress=False)
        return made.double()

    return network


@pytest.fixture
def small_scan(monkeypatch):
    """Splits of few and short pairs, so that an experiment takes seconds."""
    load_split = scan.load_split

    def load_some(name):
        training, test = (short_pairs(part, 8) for part in load_split(name))
        random.Random(0).shuffle(training)
        random.Random(1).shuffle(test)
        return training[:100], test[:20]

    monkeypatch.setattr(experiment, "load_split", load_some)
