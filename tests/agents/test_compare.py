import dataclasses

import pandas as pd
import pytest

from equirl.agents import compare
from equirl.agents.compare import COLUMNS, Compare, summarize, table, verdicts


@pytest.fixture
def tiny_compare(tiny_runs, tmp_path):
    return Compare(tuple(tiny_runs), episodes=4, transitions=60, output=tmp_path / "out", jobs=1)


def test_compare_plays_every_policy_under_both_conditions(tiny_compare, capsys):
    compare.main(tiny_compare)
    returns = pd.read_csv(tiny_compare.output / "returns.csv")
    assert list(returns.columns) == COLUMNS
    assert len(returns) == 2 * 4 * 2 * 4  # agents, policies, conditions, episodes
    assert (returns.groupby(["agent", "policy", "condition"]).size() == 4).all()
    written = {path.name for path in tiny_compare.output.iterdir()}
    assert written == {"returns.csv", "table.md", "returns.png", "returns.svg"}
    printed = capsys.readouterr().out
    assert "| equirl/Gridworld-v0 goals=corner n=4 | 240 | transformed | equizero | 2 |" in printed
    assert "240 steps, original: equizero" in printed


def test_compare_is_reproducible(tiny_compare, tmp_path):
    compare.main(tiny_compare)
    again = dataclasses.replace(tiny_compare, output=tmp_path / "again", jobs=2)
    compare.main(again)
    first, second = ((c.output / "returns.csv").read_bytes() for c in (tiny_compare, again))
    assert first == second


def test_compare_of_checkpoints_draws_curves(tiny_compare):
    compare.main(dataclasses.replace(tiny_compare, checkpoints="all", episodes=2))
    assert (tiny_compare.output / "curves.png").exists()
    returns = pd.read_csv(tiny_compare.output / "returns.csv")
    assert sorted(returns.budget.unique()) == [80, 160, 240]


def test_folder_of_another_comparison_is_refused_before_any_work(
    tiny_compare, tiny_runs, monkeypatch
):
    compare.main(tiny_compare)
    monkeypatch.setattr(compare, "play", lambda *_: pytest.fail("work began"))
    with pytest.raises(FileExistsError, match="holds another comparison"):
        compare.main(dataclasses.replace(tiny_compare, episodes=5))


def test_agents_of_one_name_are_refused_before_any_work(tiny_compare, tiny_runs, monkeypatch):
    monkeypatch.setattr(compare, "play", lambda *_: pytest.fail("work began"))
    twice = (tiny_runs[0], tiny_runs[0])
    with pytest.raises(ValueError, match="two agents are called equirl-Gridworld-v0_0"):
        compare.main(dataclasses.replace(tiny_compare, agents=twice))


def test_a_file_is_no_output_folder(tiny_compare):
    tiny_compare.output.touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        compare.main(tiny_compare)


def test_folder_of_other_files_is_refused(tiny_compare):
    tiny_compare.output.mkdir()
    (tiny_compare.output / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        compare.main(tiny_compare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agents": ()}, "no agents given"),
        ({"episodes": 0}, "--episodes"),
        ({"jobs": 0}, "--jobs"),
        ({"transitions": 5}, "--transitions must be at least 10"),
        ({"seed": -3}, "--seed"),
        ({"device": "cudaa"}, "--device cudaa"),
    ],
)
def test_wrong_arguments(tiny_compare, change, message):
    with pytest.raises(ValueError, match=message):
        compare.main(dataclasses.replace(tiny_compare, **change))


def test_summary_pairs_each_policy_with_plain(make_returns):
    rows = summarize(make_returns())
    assert len(rows) == 2 * 2 * 2 * 4
    for row in rows:
        expected = {"plain": 0, "equitune": 5, "equizero": 8, "lambda": 10}[row.policy]
        assert row.difference.value == pytest.approx(expected, abs=1)
        assert row.difference.low <= row.difference.value <= row.difference.high


def test_table_is_markdown(make_returns):
    lines = table(summarize(make_returns())).splitlines()
    assert {line.count("|") for line in lines} == {9}


def test_verdicts_say_when_symmetrising_helps(make_returns):
    lines = verdicts(summarize(make_returns(budgets=(100,), agents=3)))
    assert "CartPole-v1, 100 steps, original: symmetrising helps these 3 agents" in lines
    assert any("original: equizero is better than plain by" in line for line in lines)


def test_verdicts_say_when_symmetrising_hurts(make_returns):
    returns = make_returns(envs=("CartPole-v1",), budgets=(100,), agents=1)
    returns.loc[returns.policy.isin(["equitune", "equizero"]), "episode_return"] -= 100
    lines = verdicts(summarize(returns))
    assert lines[-1] == (
        "CartPole-v1, 100 steps, transformed: symmetrising hurts this agent; "
        "learned weights (lambda) do not"
    )
