import itertools

import numpy as np
import pandas as pd
import pytest

from equicore.lab import statistics
from equirl.agents.panel import (
    COLUMNS,
    budget_table,
    chance,
    env_table,
    findings,
    panel_table,
    read_panel,
    stage_table,
    summarize,
    tasks,
)

DEFINITION = """
environments:
  cartpole: {env: CartPole-v1, scale: [0, 500]}
  near: {env: equirl/Gridworld-v0, env_kwargs: {goals: corner}, scale: [-50, 0]}
  far: {env: equirl/Gridworld-v0, env_kwargs: {goals: anywhere}, scale: [-100, 0]}
settings: {tuned: dqn.yaml, paper: paper.yaml}
"""
CORNER, ANYWHERE = "equirl/Gridworld-v0 goals=corner", "equirl/Gridworld-v0 goals=anywhere"
BASES = {"CartPole-v1": 200, CORNER: -40, ANYWHERE: -80}
BONUS = {"selected": 30, "lambda_td": 5, "lambda": 25, "equizero": 20, "equitune": 10, "plain": 0}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


def make_rows(bonus=BONUS, envs=tuple(BASES), seeds=4, budgets=5, settings=("paper", "tuned")):
    """Returns in which a policy is better than plain by exactly its bonus, everywhere."""
    luck = np.random.default_rng(0)
    rows = []
    for env, setting, seed, i in itertools.product(envs, settings, range(seeds), range(budgets)):
        plain = BASES[env] + luck.normal()
        for policy, condition in itertools.product(bonus, ("transformed", "original")):
            mean = plain + bonus[policy] - (condition == "transformed")
            budget = 100 * (i + 1) * (1 + (env == "CartPole-v1"))
            rows.append((env, setting, seed, budget, policy, condition, mean, 50))
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def read(tmp_path):
    def read(rows, definition=DEFINITION):
        rows.to_csv(tmp_path / "returns.csv", index=False)
        (tmp_path / "study.yaml").write_text(definition)
        return read_panel(tmp_path)

    return read


def change(rows, where, policy, by):
    """The rows with a policy's returns changed where a condition holds."""
    chosen = where(rows) & (rows.policy == policy)
    return rows.assign(mean_return=rows.mean_return + chosen * by)


def exactly(number):
    return pytest.approx((number, number, number))


def numbers(estimate):
    return estimate.value, estimate.low, estimate.high


def test_panel_has_normalised_scores_and_stages(read):
    panel = read(make_rows())
    assert panel[panel.env == "CartPole-v1"].score.to_numpy() == pytest.approx(
        panel[panel.env == "CartPole-v1"].mean_return.to_numpy() / 500
    )
    corner = panel[panel.env == CORNER]
    assert corner.score.to_numpy() == pytest.approx((corner.mean_return.to_numpy() + 50) / 50)
    stages = dict(zip(panel["rank"], panel.stage, strict=True))
    assert stages == {0: "early", 1: "early", 2: "middle", 3: "late", 4: "late"}


@pytest.mark.parametrize(
    ("budgets", "stages"),
    [(1, "m"), (2, "el"), (3, "eml"), (4, "emml"), (6, "eemmll"), (7, "eemmmll")],
)
def test_stages_are_thirds(read, budgets, stages):
    panel = read(make_rows({"plain": 0}, seeds=2, budgets=budgets))
    assert "".join(s[0] for s in panel.drop_duplicates("rank").stage) == stages


def test_order_of_rows_does_not_matter(read):
    rows = make_rows(seeds=2, budgets=2)
    panel = read(rows)
    pd.testing.assert_frame_equal(panel, read(rows.sample(frac=1, random_state=0)))
    assert list(panel.env.unique()) == ["CartPole-v1", CORNER, ANYWHERE]  # as in study.yaml
    assert list(panel.setting.unique()) == ["tuned", "paper"]


def test_policies_are_in_the_order_of_display(read):
    bonus = dict.fromkeys(["selected", "other", "lambda_td", "equizero_raw", *BONUS], 0)
    panel = read(make_rows(bonus, seeds=2, budgets=1))
    assert list(panel.policy.unique()) == [
        *("plain", "equitune", "equizero", "equizero_raw", "lambda", "lambda_td", "other"),
        "selected",
    ]


def test_environments_may_be_called_by_their_names_in_the_definition(read):
    rows = make_rows(seeds=2, budgets=2)
    names = {"CartPole-v1": "cartpole", CORNER: "near", ANYWHERE: "far"}
    panel, renamed = read(rows), read(rows.assign(env=rows.env.map(names)))
    pd.testing.assert_frame_equal(renamed, panel.assign(env=panel.env.map(names)))


def test_a_file_is_read_as_its_folder(read, tmp_path):
    panel = read(make_rows(seeds=2, budgets=1))
    pd.testing.assert_frame_equal(read_panel(tmp_path / "returns.csv"), panel)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*returns.csv; make it with equirl study"):
        read_panel(tmp_path)
    make_rows(seeds=1, budgets=1).to_csv(tmp_path / "returns.csv", index=False)
    with pytest.raises(FileNotFoundError, match="study.yaml: scores need the scale"):
        read_panel(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.drop(columns=["seed", "n_episodes"]), "no columns seed, n_episodes"),
        (lambda rows: rows.iloc[:0], "has no rows"),
        (lambda rows: pd.concat([rows, rows.iloc[[3]]]), "two rows for env CartPole-v1, setting"),
        (lambda rows: rows[rows.policy != "plain"], "has no policy plain"),
        (lambda rows: rows.replace("CartPole-v1", "Pole"), "study.yaml beside it has no env Pole"),
        (lambda rows: rows.replace("paper", "mine"), "study.yaml beside it has no setting mine"),
        (lambda rows: rows.replace({"mean_return": {rows.mean_return[5]: np.nan}}), "no finite"),
        (lambda rows: rows.assign(mean_return="x"), "no finite mean_return for env CartPole-v1"),
        (
            lambda rows: rows.drop(index=7),
            "no row for env CartPole-v1, setting paper, seed 0, budget 200, policy equizero, "
            "condition original",
        ),
        (
            lambda rows: rows[(rows.env != CORNER) | (rows.setting != "tuned")],
            "no row for env equirl/Gridworld-v0 goals=corner, setting tuned, seed 0, budget any",
        ),
        (
            lambda rows: rows[(rows.env != CORNER) | (rows.seed != 1)],
            "no row for env equirl/Gridworld-v0 goals=corner, setting paper, seed 1",
        ),
    ],
)
def test_wrong_panels(read, spoil, message):
    with pytest.raises(ValueError, match=message):
        read(spoil(make_rows(seeds=2, budgets=2)))


@pytest.mark.parametrize(
    "definition",
    [
        "",
        "{",
        "environments: {}",
        DEFINITION.replace("scale", "scales"),
        DEFINITION.replace("[0, 500]", "[500, 0]"),
        DEFINITION.replace("[0, 500]", "[1, 2, 3]"),
    ],
)
def test_wrong_definitions(read, definition):
    with pytest.raises(ValueError, match=r"(?s)no definition of a study.*scale: \[worst, best\]"):
        read(make_rows(seeds=1, budgets=1), definition)


def test_tasks_keep_the_measurements_of_a_run_together(read):
    panel = read(make_rows())
    scores = tasks(panel)
    assert list(scores) == list(panel.policy.unique())
    assert [array.shape for array in scores["lambda"]] == [(4, 10)] * 6
    run = panel[(panel.env == "CartPole-v1") & (panel.setting == "tuned") & (panel.seed == 2)]
    assert sorted(scores["lambda"][0][2]) == sorted(run[run.policy == "lambda"].score)


def test_a_constant_bonus_is_found_exactly(read):
    panel = read(make_rows())
    table = summarize(panel, ["env", "setting"], "mean_return")
    assert len(table) == 6 * len(BONUS)
    for row in table.itertuples():
        if row.policy == "plain":
            assert row.difference is None and row.probability is None
        else:
            assert numbers(row.difference) == exactly(BONUS[row.policy])
            assert row.probability.value == pytest.approx(1, abs=0.02)


def test_equal_policies(read):
    panel = read(make_rows({"plain": 0, "equizero": 0}))
    row = panel_table(panel).query("policy == 'equizero'").iloc[0]
    assert numbers(row.difference) == (0, 0, 0)
    assert row.probability.value == pytest.approx(0.5)
    assert (row["mean"], row.iqm) == tuple(
        panel_table(panel).query("policy == 'plain'").iloc[0][["mean", "iqm"]]
    )


def test_budget_table_says_who_is_better(read):
    rows = make_rows({**BONUS, "same": 0}, ("CartPole-v1", CORNER), budgets=2, settings=("tuned",))
    rows = change(rows, lambda r: r.budget == r.budget.min(), "equizero", -100)
    rows.loc[rows.policy == "equitune", "mean_return"] += np.where(
        rows[rows.policy == "equitune"].seed % 2, 90, -110
    )
    table = budget_table(read(rows))
    first = table.env.ne("CartPole-v1") & (table.budget == 100)
    assert set(table[first & (table.policy == "equizero")]["than plain"]) == {"worse"}
    assert set(table[~first & (table.policy == "equizero")]["than plain"]) == {"better"}
    assert set(table[table.policy == "equitune"]["than plain"]) == {"not clear"}
    assert set(table[table.policy == "same"]["than plain"]) == {"equal"}
    assert set(table[table.policy == "plain"]["than plain"]) == {""}
    assert len(table) == 2 * 2 * 2 * 7


def test_stage_table_names_the_best_fixed_policy(read):
    early = change(make_rows(), lambda r: r.budget <= 400, "lambda_td", 100)
    table = stage_table(read(early[early.env == "CartPole-v1"]))
    assert list(table.best) == ["lambda_td"] * 2 + ["lambda"] * 4  # never selected
    assert list(table.stage) == ["early", "early", "middle", "middle", "late", "late"]
    assert numbers(table["best - plain"][0]) == exactly(105 / 500)
    assert numbers(table["best - plain"][5]) == exactly(25 / 500)
    assert numbers(table["selected"][5]) == exactly(30 / 500)
    assert list(table.columns[5:]) == ["equitune", "equizero", "lambda", "lambda_td", "selected"]


def test_stage_table_without_symmetrised_policies(read):
    table = stage_table(read(make_rows({"plain": 0, "selected": 1}, seeds=2, budgets=1)))
    assert set(table.best) == {""}


def test_env_table_tells_the_last_budget_from_all(read):
    rows = make_rows(envs=("CartPole-v1", CORNER), settings=("tuned",))
    early = lambda r: r.budget < r.groupby("env").budget.transform("max")  # noqa: E731
    rows = change(rows, early, "lambda", -25)
    table = env_table(read(rows))
    row = table[(table.policy == "lambda") & (table.condition == "original")].iloc[0]
    assert row.env == "CartPole-v1"
    assert row["mean, last budget"].value == pytest.approx(225 / 500, abs=0.01)
    assert row["mean, all budgets"].value == pytest.approx(205 / 500, abs=0.01)
    assert row["IQM, last budget"].value == pytest.approx(225 / 500, abs=0.01)
    assert row["IQM, all budgets"].value == pytest.approx(200 / 500, abs=0.01)
    assert len(table) == 2 * 2 * len(BONUS)


def test_panel_table_is_sorted_by_iqm_in_each_condition(read):
    table = panel_table(read(make_rows()))
    best_first = ["selected", "lambda", "equizero", "equitune", "lambda_td", "plain"]
    assert list(table.policy) == best_first * 3
    assert list(table.condition.unique()) == [
        "original",
        "transformed",
        "original and transformed",
    ]


def test_findings_when_the_paper_is_right(read):
    lines = findings(read(make_rows()))
    grid = [line for line in lines if line.startswith(f"{CORNER}, original")]
    assert "the paper's equizero > equitune > plain holds; " in grid[0]
    assert "equizero is better than equitune by 0.200 [0.200, 0.200]" in grid[0]
    assert "tuned equizero 0." in grid[0] and "paper equizero 0." in grid[0]
    assert "lambda's IQM is at least that of both" in grid[1]
    assert any("CartPole-v1, original: equizero and equitune are provably" in x for x in lines)
    chosen, default, beside = lines[-3:]
    assert chosen.startswith("selected is worse") and "nowhere, in 60 comparisons" in chosen
    assert default.startswith("lambda is worse") and "nowhere, in 60 comparisons" in default
    assert "of the same runs under plain by 0.2" in beside and "selected" not in beside
    assert len(lines) == 3 * 2 * 2 + 3


def test_the_claim_on_cartpole_goes_by_the_id_of_the_environment(read):
    """Not by what the study calls it."""
    rows = make_rows(envs=("CartPole-v1",)).assign(env="pole")
    lines = findings(read(rows, DEFINITION.replace("cartpole: ", "pole: ")))
    assert "pole, original: equizero and equitune are provably the same" in lines[0]
    other = DEFINITION.replace("cartpole: {env: CartPole-v1", "CartPole-swing: {env: my/Swing-v0")
    lines = findings(read(rows.assign(env="CartPole-swing"), other))
    assert "provably" not in " ".join(lines)


def test_findings_when_the_paper_is_wrong(read):
    rows = make_rows({**BONUS, "equizero": -10, "lambda": 5}, envs=(CORNER,))
    where = lambda r: (r.budget == 300) & (r.condition == "original")  # noqa: E731
    lines = findings(read(change(rows, where, "selected", -40)))
    assert "the paper's equizero > equitune > plain does not hold" in lines[0]
    assert "equizero is worse than equitune by 0.400" in lines[0]
    assert "over all settings equitune" in lines[0]
    assert "lambda's IQM is below that of equitune: " in lines[1]
    assert "beyond noise in 2 of 20 comparisons" in lines[-3]
    assert "in 0 when their number is allowed for" in lines[-3]  # all seeds alike: no t-test
    assert f"{CORNER}, tuned, 300 steps, original: -10.00 [-10.00, -10.00]; " in lines[-3]


def test_the_number_of_comparisons_is_allowed_for(read):
    """A loss that all seeds show is clear among all comparisons, one of some noise is not."""
    rows = make_rows(envs=(CORNER,))
    noise = np.random.default_rng(0).normal(size=len(rows))
    where = (rows.policy == "lambda") & (rows.budget == 300) & (rows.condition == "original")
    rows.loc[where, "mean_return"] += -60 + 0.1 * noise[where]
    default = findings(read(rows))[-2]
    assert "lambda is worse than plain beyond noise in 2 of 20" in default
    assert "; in 2 when their number is allowed for (t-tests over seeds, Holm, 5 %)" in default


def test_findings_within_noise(read):
    rows = make_rows({"plain": 0, "equitune": 1, "equizero": 2}, envs=(CORNER,))
    rows.loc[rows.policy == "equitune", "mean_return"] += np.where(
        rows[rows.policy == "equitune"].seed % 2, 20, -20
    )
    lines = findings(read(rows))
    assert len(lines) == 2  # neither lambda nor selected
    assert "holds on average, not beyond noise" in lines[0]


def test_equal_scores_are_not_ranked(read):
    rows = make_rows({"plain": 0, "equitune": 10, "equizero": 10}, envs=("CartPole-v1",))
    line = findings(read(rows))[0]
    assert "equizero 0.42 = equitune 0.42 > plain 0.40" in line
    assert "equizero does exactly as well as equitune" in line


def test_one_seed_gives_no_verdict_and_no_warning(read):
    panel = read(make_rows(seeds=1, budgets=1, envs=(CORNER,)))
    table = budget_table(panel)
    assert set(table["than plain"]) == {"", "not clear"}
    assert all(str(estimate).endswith("[one run]") for estimate in table["mean"])
    assert not any("nan" in line for line in findings(panel))


def test_losses_by_chance():
    """How often all of an interval of equal runs lies below 0, against drawn runs."""
    rng = np.random.default_rng(0)
    for runs in (2, 5):
        drawn = rng.normal(size=(100_000, runs))
        high = drawn.mean(1) + 1.96 * drawn.std(1) / np.sqrt(runs)
        assert chance(runs) == pytest.approx((high < 0).mean(), abs=0.005)
    assert chance(1) == 0.5
    assert chance(10**6) == pytest.approx(0.025, rel=1e-3)
