import copy
import random

import pytest

from equicore.applications import scan
from equicore.applications.scan import Seq2Seq, experiment
from equicore.applications.scan.training import Recipe, train


def short_pairs(pairs, longest=8):
    return [pair for pair in pairs if pair[1].count(" ") < longest]


@pytest.fixture(scope="session")
def pairs():
    """Some training pairs of Add Jump that a small network learns in seconds."""
    training, _ = scan.load_split("add_jump")
    return random.Random(0).sample(short_pairs(training), 800)


@pytest.fixture(scope="session")
def trained_once(pairs):
    networks = {}
    for cell in ("rnn", "gru", "lstm"):
        networks[cell] = Seq2Seq(cell, hidden=24, seed=1)
        train(networks[cell], pairs, Recipe(epochs=3, learning_rate=1e-2), 0, progress=False)
    return networks


@pytest.fixture
def trained(trained_once):
    """For each cell a network that has learned something, and is far from equivariant.

    They are the test's own, as some become float64 in place, and tests run in any order.
    """
    return copy.deepcopy(trained_once)


@pytest.fixture
def small_scan(monkeypatch):
    """Splits of few and short pairs, so that an experiment takes seconds."""
    load_split = scan.load_split

    def load_some(name):
        training, test = (short_pairs(part) for part in load_split(name))
        random.Random(0).shuffle(training)
        random.Random(1).shuffle(test)
        return training[:200], test[:40]

    monkeypatch.setattr(experiment, "load_split", load_some)
