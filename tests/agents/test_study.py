import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from equirl.agents import study
from equirl.agents.definition import read_units
from equirl.agents.study import COLUMNS, Study

DEFINITION = """
environments:
  small:
    env: equirl/Gridworld-v0
    env_kwargs: {n: 4, goals: corner}
    scale: [-50, 0]
  images:
    env: equirl/Gridworld-v0
    env_kwargs: {n: 4, observation: image}
    scale: [-50, 0]
settings: {tiny: tiny.yaml}
panels:
  test: {seeds: [0, 1], checkpoints: 2}
  validation: {seeds: [7], checkpoints: 3}
episodes: 3
transitions: 60
candidates: [plain, equitune, equizero, lambda]
race: {rounds: 2, episodes: 5}
"""

# the fits are shortened in a file that every worker process reads
SHORT = """
import equirl
from functools import partial
for name in ("fit_familiarity", "fit_temporal_difference"):
    setattr(equirl, name, partial(getattr(equirl, name), steps=5))
"""


@pytest.fixture
def tiny_study(tiny_yaml, tmp_path):
    """Arguments of a study of some seconds."""
    (tmp_path / "tiny.yaml").write_text(tiny_yaml.read_text())
    (tmp_path / "study.yaml").write_text(DEFINITION)
    return Study(
        definition=tmp_path / "study.yaml",
        output=tmp_path / "out",
        runs=tmp_path / "runs",
        jobs=1,
    )


def test_a_study_writes_a_row_for_each_policy_and_condition(tiny_study):
    study.main(tiny_study)
    table = pd.read_csv(tiny_study.output / "returns.csv")
    assert list(table.columns) == COLUMNS
    assert len(table) == 4
