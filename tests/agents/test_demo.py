import dataclasses
import functools
from pathlib import Path

import pandas as pd
import pytest

from equicore.lab.store import check_claim
from equirl.agents import demo
from equirl.agents.arguments import Train
from equirl.agents.demo import SETTINGS, Demo
from equirl.agents.evaluation import Protocol
from equirl.agents.training import plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny_demo(tiny_train, tiny_yaml, fits, tmp_path, monkeypatch):
    """A demonstration of seconds, without figures."""
    other = tmp_path / "pole.yaml"
    other.write_text(tiny_yaml.read_text().replace("equirl/Gridworld-v0", "CartPole-v1"))
    pole = Train("CartPole-v1", hyperparameters=other, checkpoints=2, eval_episodes=1, device="cpu")
    monkeypatch.setattr(demo, "SETTINGS", (dataclasses.replace(tiny_train, checkpoints=1), pole))
    monkeypatch.setattr("equirl.agents.compare.plot_returns", lambda returns, folder: [])
    monkeypatch.setattr(demo, "Protocol", functools.partial(Protocol, transitions=60))
    return Demo(tmp_path / "out", tmp_path / "runs", seeds=(3,), episodes=5, jobs=1)


def test_demo_trains_and_compares(tiny_demo, capsys):
    demo.main(tiny_demo)
    said = capsys.readouterr().out
    assert "training 2 agents (equirl/Gridworld-v0, CartPole-v1)" in said
    assert "CartPole-v1, 120 steps, original: equizero" in said
    assert said.splitlines()[-1].endswith(f"the picture: {tiny_demo.output}/returns.png")
    page = (tiny_demo.output / "table.md").read_text()
    assert "`python -m equirl.agents.demo --seeds 3 --episodes 5`" in page
    means = pd.read_csv(tiny_demo.output / "returns.csv")
    assert set(means.seed) == {3} and set(means.budget) == {120}
    each = pd.read_csv(tiny_demo.output / "checkpoints" / "returns.csv")
    assert set(each[each.env == "CartPole-v1"].budget) == {60, 120}
    assert len(each) == 1.5 * len(means)  # one checkpoint of one agent, and two of the other
    demo.main(tiny_demo)
    assert capsys.readouterr().out.count("already trained") == 2


def test_other_seeds_are_another_demonstration(tiny_demo, monkeypatch):
    demo.main(tiny_demo)
    monkeypatch.setattr(demo, "train_all", lambda *_: pytest.fail("work began"))
    with pytest.raises(FileExistsError, match="was made with seeds"):
        demo.main(dataclasses.replace(tiny_demo, seeds=(4,)))


def test_the_committed_results_are_those_of_the_settings():
    """So that `make demo` goes on in a fresh clone."""
    check_claim(ROOT / "results" / "demo", {"settings.yml": demo.settings(Demo())})


def test_real_settings_can_be_trained(tmp_path):
    for setting in SETTINGS:
        (training,) = plan(dataclasses.replace(setting, output=tmp_path))
        assert training.budgets[-1] == training.steps
