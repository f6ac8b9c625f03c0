import dataclasses
import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

import equicore
import equirl
from equicore.lab import statistics
from equirl.agents import compare, evaluation
from equirl.agents.compare import COLUMNS, Compare, over_training, summarize
from equirl.agents.evaluation import CONDITIONS, FIRST_SEED, SELECTION_SEED, Protocol
from equirl.agents.policies import CANDIDATES, MAKERS, POLICIES
from equirl.agents.saved import find_agents
from equirl.agents.selection import Race
from equirl.agents.verdicts import verdicts

SETTING = "equirl/Gridworld-v0 goals=corner n=4 max_episode_steps=15"
AGENTS = ("equirl-Gridworld-v0_0", "equirl-Gridworld-v0_1")


def arguments_of(runs, output):
    return Compare(tuple(runs), episodes=5, transitions=60, device="cpu", output=output, jobs=1)


@pytest.fixture(scope="session")
def compared(tiny_runs, short_fits, tmp_path_factory):
    """The folder of a comparison, and how often weights were fitted for it."""
    folder = tmp_path_factory.mktemp("compared")
    with short_fits() as calls:
        compare.main(arguments_of(tiny_runs, folder))
    return folder, calls


@pytest.fixture
def tiny_compare(tiny_runs, fits, tmp_path, monkeypatch):
    """Arguments of a comparison that has not begun; no figures are drawn, and no page is made."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    monkeypatch.setattr(compare, "plot_returns", lambda returns, folder: [])
    monkeypatch.setattr(compare, "film", lambda *_: {})
    monkeypatch.setattr(compare, "write_report", lambda *_, **__: None)
    return arguments_of(tiny_runs, tmp_path / "out")


@pytest.fixture
def copied_compare(compared, tiny_compare):
    """Arguments of a comparison that is finished; another is refused before work begins."""
    shutil.copytree(compared[0], tiny_compare.output)
    return tiny_compare


def test_every_policy_plays_under_both_conditions(compared):
    returns = pd.read_csv(compared[0] / "returns.csv")
    assert list(returns.columns) == COLUMNS
    keys = ["agent", "policy", "condition", "episode"]
    rows = list(itertools.product(AGENTS, POLICIES, CONDITIONS, range(5)))
    rows += itertools.product(AGENTS, ["random"], CONDITIONS[:1], range(5))
    rows.sort(key=lambda row: AGENTS.index(row[0]))
    assert list(returns[keys].itertuples(index=False, name=None)) == rows
    assert set(returns.env) == {SETTING} and set(returns.budget) == {120}
    assert dict(zip(returns.agent, returns.seed, strict=True)) == {
        AGENTS[0]: 0,
        AGENTS[1]: 1,
    }


def test_returns_are_those_of_the_agent_and_policy_under_the_condition(tiny_compare, monkeypatch):
    names = [*POLICIES, "random"]

    def number(agent, policy, condition, episode):
        agent = AGENTS[0] if policy == "random" else agent  # of whom these actions are not
        places = AGENTS.index(agent), names.index(policy), CONDITIONS.index(condition), episode
        return int("".join(map(str, places)))

    def returns(policy, agent, condition, episodes, seed):
        name = "random" if isinstance(policy, evaluation.RandomActions) else policy
        found = [number(agent.name, name, condition, i) for i in range(episodes)]
        return np.array(found, dtype=float)

    for name in POLICIES:
        monkeypatch.setitem(MAKERS, name, lambda subject, name=name: name)
    monkeypatch.setattr(evaluation, "episode_returns", returns)
    compare.main(tiny_compare)
    table = pd.read_csv(tiny_compare.output / "returns.csv")
    keys = zip(table.agent, table.policy, table.condition, table.episode, strict=True)
    assert table.episode_return.tolist() == [number(*key) for key in keys]


def test_what_a_comparison_writes(compared):
    folder, _ = compared
    written = {path.name for path in folder.iterdir()}
    figures = {"returns.png", "returns.svg"}
    assert written == {"returns.csv", "table.md", "report.html", "settings.yml", *figures}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == len(POLICIES) and "no video" not in page
    table = (folder / "table.md").read_text()
    assert f"| {SETTING} | 120 | transformed | equizero | 2 |" in table
    assert f"- {SETTING}, 120 steps, original: equizero" in table
    assert "5 episodes for each agent, policy and condition; training seeds 0, 1." in table
    command = f"`equirl compare {' '.join(AGENTS)} --episodes 5 --transitions 60`"
    assert table.splitlines()[2] == f"{command}, equirl {equirl.__version__}"
    assert "selected" not in table and table.count(f"- {SETTING}, 120 steps: ") == 2


def test_means_over_training(make_returns):
    returns = make_returns(budgets=(100, 200, 300))
    few = returns[(returns.agent != "agent1") | (returns.budget != 200)]  # it has two checkpoints
    means = over_training(few)
    assert list(means) == COLUMNS and len(means) == len(returns) / 3
    for agent, budgets in ("agent0", (100, 200, 300)), ("agent1", (100, 300)):
        one = {"agent": agent, "policy": "lambda", "condition": "transformed", "episode": 4}
        one["env"] = "Acrobot-v1"
        own = few[(few[list(one)] == pd.Series(one)).all(axis=1)]
        mean = means[(means[list(one)] == pd.Series(one)).all(axis=1)]
        assert tuple(own.budget) == budgets and mean.budget.item() == 300
        assert mean.episode_return.item() == pytest.approx(own.episode_return.mean())


def test_weights_are_fitted_once_for_each_agent(compared):
    assert compared[1] == ["fit_familiarity"] * 2


def test_what_is_printed(tiny_compare, capsys):
    compare.main(dataclasses.replace(tiny_compare, output=None))
    printed = capsys.readouterr().out
    assert f"| {SETTING} | 120 | transformed | equizero | 2 |" in printed
    assert f"{SETTING}, 120 steps, original: equizero" in printed
    assert "written to" not in printed


def test_what_is_written_is_said(tiny_compare, capsys):
    compare.main(dataclasses.replace(tiny_compare, agents=tiny_compare.agents[:1]))
    assert capsys.readouterr().out.endswith(f"\n\nwritten to {tiny_compare.output}\n")


def test_the_work_can_be_done_by_other_processes(compared, tiny_compare, sent):
    agents = [agent for path in tiny_compare.agents for agent in find_agents(path)]
    protocol = Protocol(episodes=5, transitions=60)
    returns, _ = compare.compare(agents, protocol, sent, "cpu")
    kept = pd.read_csv(compared[0] / "returns.csv")
    pd.testing.assert_frame_equal(returns, kept, check_dtype=False)


@pytest.mark.slow
def test_two_processes_compare_as_one(fresh, compared, tiny_runs, tmp_path):
    words = ["compare", *tiny_runs, "--env", "gate:equirl/Gridworld-v0", "--episodes", 5]
    words += ["--transitions", 60, "--device", "cpu", "--jobs", 2, "--output", tmp_path / "out"]
    fresh.start(words)
    assert fresh.finish() == 0
    ours = pd.read_csv(tmp_path / "out" / "returns.csv")
    theirs = pd.read_csv(compared[0] / "returns.csv")
    pd.testing.assert_frame_equal(ours.drop(columns="env"), theirs.drop(columns="env"))


def test_the_same_comparison_again_is_no_other(copied_compare, tmp_path):
    """Where the agents are, on how many cores and on which device, does not count."""
    moved = tuple(
        shutil.copytree(path, tmp_path / "moved" / path.name) for path in copied_compare.agents
    )
    before = (copied_compare.output / "returns.csv").read_bytes()
    compare.main(dataclasses.replace(copied_compare, agents=moved, device="auto"))
    assert (copied_compare.output / "returns.csv").read_bytes() == before
    settings = yaml.safe_load((copied_compare.output / "settings.yml").read_text())
    assert set(settings) == {
        *(
            "agents",
            "environments",
            "episodes",
            "rules",
            "seed",
            "select",
            "symmetries",
            "transitions",
        )
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 6}, "episodes 5, not 6"),
        ({"seed": 7}, "seed 2000000, not 7"),
        ({"select": True}, "select False, not True"),
        ({"transitions": 61}, "transitions 60, not 61"),
        ({"env_kwargs": ("n=5",)}, "environments .*n=4.*, not .*n=5"),
        ({"checkpoints": "all"}, "does not say with which .*, 40 steps it was made"),
    ],
)
def test_another_comparison_is_refused_before_any_work(
    copied_compare, change, message, monkeypatch
):
    monkeypatch.setattr(compare, "fit", lambda *_: pytest.fail("work began"))
    with pytest.raises(FileExistsError, match=message):
        compare.main(dataclasses.replace(copied_compare, **change))


def test_other_experience_that_lambda_learns_from_is_another_comparison(copied_compare, tmp_path):
    path = shutil.copytree(copied_compare.agents[0], tmp_path / "moved" / AGENTS[0])
    agents = (path, copied_compare.agents[1])
    (path / "rl_model_120_steps.safetensors").write_bytes(b"more, or other, transitions")
    with pytest.raises(FileExistsError, match="was made with equirl-Gridworld-v0_0, .* 120 steps"):
        compare.main(dataclasses.replace(copied_compare, agents=agents))


def test_agents_of_one_name_in_two_environments_both_count(copied_compare):
    agents = find_agents(copied_compare.agents[0])
    other = [dataclasses.replace(agents[0], env_kwargs={"goals": "anywhere"})]
    found = compare.settings_of(copied_compare, agents + other)
    assert len(found["agents"]) == 2


def test_a_comparison_of_other_agents_of_the_same_name_is_refused(copied_compare, tmp_path):
    other = shutil.copytree(copied_compare.agents[0], tmp_path / "other" / AGENTS[0])
    shutil.copy(other / "rl_model_80_steps.zip", other / "equirl-Gridworld-v0.zip")
    with pytest.raises(FileExistsError, match="was made with equirl-Gridworld-v0_0, .* 120 steps"):
        compare.main(dataclasses.replace(copied_compare, agents=(other, copied_compare.agents[1])))


def test_a_comparison_under_another_symmetry_is_refused(copied_compare):
    equirl.register_symmetry(
        "equirl/Gridworld-v0",
        lambda spec: equirl.Symmetry(
            equicore.Trivial(equicore.cyclic(4)),
            equicore.Permutation.from_generators(equicore.cyclic(4), [[1, 2, 3, 0]]),
        ),
    )
    with pytest.raises(FileExistsError, match="was made with equirl/Gridworld-v0 .*, not"):
        compare.main(copied_compare)


def test_folder_of_other_files_is_refused(tiny_compare):
    tiny_compare.output.mkdir()
    (tiny_compare.output / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds files, such as thesis\.tex"):
        compare.main(tiny_compare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agents": ()}, "no agents given"),
        ({"episodes": 4}, "--episodes must be at least 5; got 4"),
        ({"transitions": 9}, "--transitions must be at least 10; got 9"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"seed": -1}, "--seed must be"),
        ({"seed": 3_000_000 - 4}, "the seeds from 3000000 are those that lambda learns from"),
        ({"device": "cudaa"}, "there is no device cudaa here"),
        ({"env_kwargs": ("n",)}, "name=value"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tiny_compare, change, message, monkeypatch):
    monkeypatch.setattr(compare, "fit", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        compare.main(dataclasses.replace(tiny_compare, **change))


def test_an_agent_given_twice_is_refused_before_any_work(tiny_compare, monkeypatch):
    monkeypatch.setattr(compare, "fit", lambda *_: pytest.fail("work began"))
    twice = (tiny_compare.agents[0], tiny_compare.agents[0])
    with pytest.raises(ValueError, match="are the same agent; give it once"):
        compare.main(dataclasses.replace(tiny_compare, agents=twice))


def test_the_last_seed_that_is_free(tiny_compare, monkeypatch):
    monkeypatch.setattr(compare, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compare.main(dataclasses.replace(tiny_compare, seed=3_000_000 - 5))


RAW, TUNED = ("EquizeroPolicy", None), ("EquitunePolicy", "softmax")


@pytest.fixture
def selecting(tiny_compare, monkeypatch):
    """A comparison in which raw equizero is best transformed, and plain original; seeds played."""
    seeds = []

    def returns(policy, agent, condition, episodes, seed=FIRST_SEED):
        seeds.append(seed)
        kind = type(policy).__name__, getattr(policy, "normalize", None)
        noise = np.random.default_rng(seed).normal(size=episodes)  # common to all policies
        if kind == TUNED:  # neither better nor worse: a race of all rounds
            noise = noise + np.random.default_rng([seed, 1]).normal(size=episodes)
        if kind == RAW:  # differences that are all alike would need more episodes
            noise = noise + 1e-4 * np.random.default_rng([seed, 2]).normal(size=episodes)
            noise = noise + (3 if condition == "transformed" else -2)
        return noise

    monkeypatch.setattr(evaluation, "episode_returns", returns)
    monkeypatch.setattr(compare, "Race", lambda: Race(rounds=2, episodes=5))
    return dataclasses.replace(tiny_compare, select=True, checkpoints="all"), seeds


def test_a_policy_is_selected_for_each_agent_and_condition(selecting, capsys):
    arguments, seeds = selecting
    compare.main(arguments)
    returns = pd.read_csv(arguments.output / "returns.csv")
    assert set(returns.policy) == {*CANDIDATES, "selected", "random"}
    # agents, checkpoints, policies in both conditions and random actions in one, episodes
    assert len(returns) == 2 * 3 * (7 * 2 + 1) * 5
    best = {"original": "plain", "transformed": "equizero_raw"}
    for (_, _, condition), rows in returns.groupby(["agent", "budget", "condition"]):
        selected, chosen = (
            rows[rows.policy == name].episode_return.tolist()
            for name in ("selected", best[condition])
        )
        assert selected == chosen
    assert set(seeds) == {FIRST_SEED, SELECTION_SEED, SELECTION_SEED + 5}

    printed = capsys.readouterr().out
    written = (arguments.output / "table.md").read_text()
    for agent in AGENTS:
        for budget in (40, 80, 120):
            where = f"{agent}, {SETTING}, {budget} steps"
            plain = f"{where}, original: use plain, as no other is clearly better, after "
            raw = f"{where}, transformed: use equizero_raw, better than plain by 3.0"
            for line in (plain, raw):
                assert printed.count(line) == written.count(f"- {line}") == 1
    advice = "original, use plain; transformed, use equizero_raw, by episodes of the race's own"
    assert printed.count(advice) == written.count(advice) == 3
    assert printed.count(": use ") == written.count(": use ") == 2 * 3 * 2
    for text in (printed, written):
        assert "| 120 | transformed | selected | 2 |" in text
        assert f"{SETTING}, 40 steps, transformed: selected is better than plain by 3.0" in text
        assert f"{SETTING}, 40 steps, original: selected does exactly as well as plain" in text
    assert " --checkpoints all --episodes 5 --select --transitions 60`" in written


def test_agents_without_a_budget_are_selected_too(selecting, cartpole_zip, capsys):
    """Zip files of others do not tell how long they were trained; the agent itself does."""
    arguments, _ = selecting
    compare.main(dataclasses.replace(arguments, agents=(cartpole_zip,), env="CartPole-v1"))
    assert "mine, CartPole-v1, 0 steps, original: use plain" in capsys.readouterr().out
    returns = pd.read_csv(arguments.output / "returns.csv")
    assert set(returns.budget) == {0} and returns.seed.isna().all()
    assert "policy and condition. Estimates" in (arguments.output / "table.md").read_text()


def test_a_real_selection_is_reproducible(tiny_compare, monkeypatch):
    monkeypatch.setattr(compare, "Race", lambda: Race(rounds=2, episodes=5))
    one = dataclasses.replace(tiny_compare, agents=tiny_compare.agents[:1], select=True)
    again = dataclasses.replace(one, output=one.output.with_name("again"))
    for arguments in (one, again):
        compare.main(arguments)
    for name in ("returns.csv", "table.md"):
        assert (one.output / name).read_bytes() == (again.output / name).read_bytes()


def test_summary_pairs_each_policy_with_plain(make_returns):
    summary = summarize(make_returns())
    assert list(summary.columns) == [
        *("environment", "steps", "condition", "policy", "agents"),
        *("mean return", "IQM", "minus plain"),
    ]
    assert len(summary) == 2 * 2 * 2 * 4
    for row in summary.to_dict("records"):
        assert row["agents"] == 3
        if row["policy"] == "plain":
            assert row["minus plain"] is None
        else:
            difference = row["minus plain"]
            bonus = {"equitune": 5, "equizero": 8, "lambda": 10}[row["policy"]]
            assert difference.value == pytest.approx(bonus, abs=1)
            assert difference.low < difference.value < difference.high
            assert row["mean return"].value == pytest.approx(20 + bonus + row["steps"] / 50, abs=1)
            assert row["IQM"].value == pytest.approx(20 + bonus + row["steps"] / 50, abs=1)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, "symmetrising helps these 3 agents"),
        (
            {"equitune": -100, "equizero": -100},
            "equitune and equizero hurt these 3 agents, or the symmetry is wrong (see its check "
            "above); learned weights (lambda) do not",
        ),
        (
            {"equitune": -100, "equizero": -100, "lambda": -100},
            "equitune and equizero hurt these 3 agents, or the symmetry is wrong (see",
        ),
        ({"equizero": -100}, "lambda is better than plain by "),
        ({"equitune": -100}, "lambda is better than plain by "),
        ({"equizero": -8}, "lambda is better than plain by "),  # no clear difference
    ],
)
def test_verdicts_say_when_symmetrising_helps_or_hurts(make_returns, changes, end):
    returns = make_returns(envs=("CartPole-v1",), budgets=(100,))
    for policy, by in changes.items():
        returns.loc[returns.policy == policy, "episode_return"] += by
    lines = verdicts(summarize(returns))
    assert lines[-1].startswith(f"CartPole-v1, 100 steps, transformed: {end}")
    assert any(line.startswith("CartPole-v1, 100 steps, original: equizero ") for line in lines)
    assert len(lines) == 2 * (3 + ("these 3 agents" in end))


def test_one_agent_is_named_so(make_returns):
    lines = verdicts(summarize(make_returns(envs=("CartPole-v1",), budgets=(1000,), agents=1)))
    assert lines[-1] == "CartPole-v1, 1,000 steps, transformed: symmetrising helps this agent"
