import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equirl.agents import compare, selection
from equirl.agents.compare import (
    COLUMNS,
    Compare,
    Selection,
    add_selected,
    command_of,
    summarize,
    table,
    verdicts,
)
from equirl.agents.evaluation import FIRST_SEED, SavedAgent
from equirl.agents.policies import CANDIDATES, MAKERS, POLICIES
from equirl.agents.selection import SELECTION_SEED, Choice, Race
from equirl.agents.statistics import Estimate


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


def test_compare_of_checkpoints_draws_curves(tiny_compare, quick_lambda):
    compare.main(dataclasses.replace(tiny_compare, checkpoints="all", episodes=2))
    assert (tiny_compare.output / "curves.png").exists()
    returns = pd.read_csv(tiny_compare.output / "returns.csv")
    assert sorted(returns.budget.unique()) == [80, 160, 240]


def test_folder_of_another_comparison_is_refused_before_any_work(
    tiny_compare, quick_lambda, monkeypatch
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


@pytest.fixture
def quick_lambda(monkeypatch):
    """Lambda is not fitted, where that is not the point; works with one process only."""
    monkeypatch.setitem(MAKERS, "lambda", MAKERS["equitune"])


def best(scores):
    """A stand-in for `episode_returns`: those of a policy by its score, and the seeds played."""
    seeds = []

    def returns(policy, agent, condition, episodes, seed=FIRST_SEED):
        seeds.append(seed)
        noise = np.random.default_rng(seed).normal(size=episodes)  # common to all policies
        kind = f"{type(policy).__name__}, {getattr(policy, 'normalize', None)}"
        if kind == "EquitunePolicy, softmax":  # neither better nor worse: a race of all rounds
            noise = noise + np.random.default_rng([seed, 1]).normal(size=episodes)
        score = scores.get((kind, condition), 0.0)
        if score:  # differences that are all alike would need more episodes
            noise = noise + 1e-4 * np.random.default_rng([seed, 2]).normal(size=episodes)
        return noise + score

    returns.seeds = seeds
    return returns


RAW = "EquizeroPolicy, None"
EQUIZERO = "EquizeroPolicy, softmax"


@pytest.fixture
def selecting(tiny_compare, quick_lambda, monkeypatch):
    """A comparison in which raw equizero is best transformed, plain original."""
    monkeypatch.setattr(compare, "Race", lambda: Race(rounds=2, episodes=5))
    play = best({(RAW, "transformed"): 3.0, (EQUIZERO, "original"): -2.0})
    for module in (compare, selection):
        monkeypatch.setattr(module, "episode_returns", play)
    return dataclasses.replace(tiny_compare, select=True), play


CHOSEN = {"original": "plain", "transformed": "equizero_raw"}


def test_selected_rows_are_those_of_the_chosen_policies(selecting):
    arguments, _ = selecting
    compare.main(arguments)
    returns = pd.read_csv(arguments.output / "returns.csv")
    assert list(returns.columns) == COLUMNS
    assert set(returns.policy) == {*CANDIDATES, "selected"}
    assert len(returns) == 2 * 6 * 2 * 4  # agents, policies, conditions, episodes
    for (_, condition), rows in returns.groupby(["agent", "condition"]):
        selected, chosen = (
            rows[rows.policy == name].drop(columns="policy").reset_index(drop=True)
            for name in ("selected", CHOSEN[condition])
        )
        assert selected.equals(chosen)


def test_what_is_chosen_is_said_for_each_agent_and_condition(selecting, capsys):
    arguments, _ = selecting
    compare.main(arguments)
    printed = capsys.readouterr().out
    written = (arguments.output / "table.md").read_text()
    setting = "equirl/Gridworld-v0 goals=corner n=4, 240 steps"
    for agent in ("equirl-Gridworld-v0_0", "equirl-Gridworld-v0_1"):
        plain = f"{agent}, {setting}, original: use plain, as no other is clearly better, after "
        raw = f"{agent}, {setting}, transformed: use equizero_raw, better than plain by 3.0"
        for line in (plain, raw):
            assert printed.count(line) == 1
            assert written.count(f"- {line}") == 1
    assert printed.count(": use ") == written.count(": use ") == 4
    assert "| 240 | transformed | selected | 2 |" in printed
    assert "| 240 | transformed | selected | 2 |" in written
    assert "240 steps, transformed: selected is better than plain by 3.0" in printed
    assert "240 steps, original: selected does exactly as well as plain" in written
    assert " equirl-Gridworld-v0_1 --episodes 4 --select --transitions 60`" in written


def test_validation_episodes_are_others_than_the_reported(selecting):
    arguments, play = selecting
    compare.main(arguments)
    assert set(play.seeds) == {FIRST_SEED, SELECTION_SEED, SELECTION_SEED + 5}


def test_a_real_selection_is_reproducible(tiny_compare, quick_lambda, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "Race", lambda: Race(rounds=2, episodes=5))
    agents = tiny_compare.agents[:1]
    one = dataclasses.replace(tiny_compare, agents=agents, episodes=2, select=True)
    again = dataclasses.replace(one, output=tmp_path / "again")
    compare.main(one)
    compare.main(again)
    for name in ("returns.csv", "table.md"):
        assert (one.output / name).read_bytes() == (again.output / name).read_bytes()


def test_each_checkpoint_has_its_own_selection(selecting, capsys):
    arguments, _ = selecting
    compare.main(dataclasses.replace(arguments, checkpoints="all", episodes=2))
    printed = capsys.readouterr().out
    assert printed.count(": use ") == 2 * 3 * 2  # agents, checkpoints, conditions
    for budget in (80, 160, 240):
        assert f"_1, equirl/Gridworld-v0 goals=corner n=4, {budget} steps, original: use" in printed
    returns = pd.read_csv(arguments.output / "returns.csv")
    assert (returns[returns.policy == "selected"].groupby("budget").size() == 8).all()


def test_nothing_is_selected_unasked(tiny_compare, quick_lambda, monkeypatch, capsys):
    monkeypatch.setattr(compare, "episode_returns", best({}))
    monkeypatch.setattr(compare, "select", lambda *_: pytest.fail("a race began"))
    compare.main(tiny_compare)
    assert ": use " not in capsys.readouterr().out
    returns = pd.read_csv(tiny_compare.output / "returns.csv")
    assert set(returns.policy) == set(POLICIES) == {"plain", "equitune", "equizero", "lambda"}
    written = (tiny_compare.output / "table.md").read_text()
    assert "--select" not in written
    assert "selected" not in written


def test_a_selection_is_another_comparison(tiny_compare, quick_lambda, monkeypatch):
    monkeypatch.setattr(compare, "episode_returns", best({}))
    compare.main(tiny_compare)
    with pytest.raises(FileExistsError, match="holds another comparison"):
        compare.main(dataclasses.replace(tiny_compare, select=True))


def test_commands_name_what_differs_from_the_default():
    arguments = Compare((Path("runs/a"), Path("b.zip")), env="CartPole-v1", select=True)
    assert command_of(arguments) == "equirl compare a b.zip --env CartPole-v1 --select"
    more = dataclasses.replace(arguments, transitions=50, output=Path("o"), jobs=7, device="cpu")
    assert command_of(more).endswith(" --env CartPole-v1 --select --transitions 50")
    assert "select" not in command_of(dataclasses.replace(arguments, select=False))


def test_agents_without_a_budget_are_selected_too(make_returns):
    """Zip files of others do not tell how long they were trained."""
    returns = make_returns(envs=("CartPole-v1",), budgets=(500,), agents=2)
    selections = [
        Selection(
            SavedAgent(f"agent{i}", Path(f"agent{i}.zip"), "CartPole-v1", {}),
            "original",
            Choice(policy, Estimate(1.0, 0.5, 1.5), {"plain": 20}),
        )
        for i, policy in enumerate(("equizero", "plain"))
    ]
    more = add_selected(returns, selections)
    added = more[len(returns) :]
    assert more[: len(returns)].equals(returns)
    assert set(added.condition) == {"original"}
    for i, policy in enumerate(("equizero", "plain")):
        rows = returns[(returns.agent == f"agent{i}") & (returns.condition == "original")]
        chosen = rows[rows.policy == policy]
        ours = added[added.agent == f"agent{i}"]
        assert ours.episode_return.tolist() == chosen.episode_return.tolist()
    assert str(selections[0]) == (
        "agent0, CartPole-v1, original: use equizero, better than plain by 1.00 [0.50, 1.50], "
        "after 20 episodes"
    )


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
