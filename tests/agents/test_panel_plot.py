import itertools
import re

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from equicore.lab import statistics
from equirl.agents import panel_plot
from equirl.agents.panel import COLUMNS, read_panel
from equirl.agents.panel_plot import budget_curves, paper_bars, profiles, write_panel
from equirl.agents.plot import STYLES as ALL_STYLES

DEFINITION = """
environments:
  acrobot: {env: Acrobot-v1, scale: [-500, -65]}
  cartpole: {env: CartPole-v1, scale: [0, 500]}
  gridworld:
    env: equirl/Gridworld-v0
    env_kwargs: {goals: corner, observation: coordinates}
    scale: [-50, -6.1]
settings: {tuned: dqn.yaml, paper: paper.yaml}
"""
WORST = {
    "Acrobot-v1": -500,
    "CartPole-v1": 0,
    "equirl/Gridworld-v0 goals=corner observation=coordinates": -50,
}
POLICIES = [
    *("plain", "equitune", "equizero", "equitune_raw", "equizero_raw", "lambda", "lambda_td"),
    "selected",
]

STYLES = {name: style for name, style in ALL_STYLES.items() if name != "lambda_blend"}
"""Of the policies that the panel has."""


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    yield
    plt.close("all")


@pytest.fixture
def study(tmp_path):
    """A folder with a made-up study, in which each policy is better than the one before it."""
    keys = itertools.product(
        WORST, ("tuned", "paper"), range(3), (100, 200), POLICIES, ("original", "transformed")
    )
    luck = np.random.default_rng(0)
    rows = [
        (*key, WORST[key[0]] + 3 * (1 + POLICIES.index(key[4])) + luck.normal(), 50) for key in keys
    ]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "returns.csv", index=False)
    (tmp_path / "study.yaml").write_text(DEFINITION)
    return tmp_path


@pytest.fixture
def panel(study):
    return read_panel(study)


def test_bars_have_a_panel_for_each_setting_and_environment(panel):
    figure = paper_bars(panel)
    assert [axis.get_title() for axis in figure.axes] == [
        "\n".join([*env.split(), setting]) for setting in ("tuned", "paper") for env in WORST
    ]
    for axis in figure.axes:
        heights = [patch.get_y() + patch.get_height() for patch in axis.patches]
        assert len(heights) == 2 * len(STYLES)
        assert [patch.get_hatch() == "//" for patch in axis.patches] == [
            j == 1 for j in range(2) for _ in STYLES
        ]
        solid = heights[: len(STYLES)]
        assert solid == sorted(solid)
        assert [t.get_text() for t in axis.get_xticklabels()] == [
            style.label for style in STYLES.values()
        ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "original",
        "transformed",
    ]


def test_bars_are_means_over_seeds_and_budgets(panel):
    cartpole = panel[(panel.env == "CartPole-v1") & (panel.setting == "tuned")]
    bars = paper_bars(cartpole).axes[0].patches
    for i, condition in enumerate(("original", "transformed")):
        rows = cartpole[(cartpole.policy == "equizero") & (cartpole.condition == condition)]
        bar = bars[i * len(STYLES) + 2]
        top = bar.get_y() + bar.get_height()
        assert top == pytest.approx(rows.mean_return.mean())
        assert bar.get_center()[0] == pytest.approx(2 + (-0.2, 0.2)[i])


def test_curves_show_return_against_steps(panel):
    rows = panel[(panel.setting == "paper") & (panel.condition == "transformed")]
    figure = budget_curves(rows)
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == [
        *("Acrobot-v1", "CartPole-v1", "equirl/Gridworld-v0")
    ]
    for axis in figure.axes:
        assert len(axis.lines) == len(STYLES)
        assert all(list(line.get_xdata()) == [100, 200] for line in axis.lines)
    chosen = rows[(rows.env == "CartPole-v1") & (rows.policy == "lambda") & (rows.budget == 200)]
    drawn = figure.axes[1].lines[list(STYLES).index("lambda")].get_ydata()[1]
    assert drawn == pytest.approx(chosen.mean_return.mean())
    assert figure.get_suptitle() == "Condition: transformed"


def test_profiles_fall_from_all_to_none(panel):
    figure = profiles(panel)
    assert [axis.get_title() for axis in figure.axes] == ["original", "transformed"]
    for line in figure.axes[0].lines:
        heights = line.get_ydata()
        assert heights[0] == 1 or line.get_label() == "plain"
        assert heights[-1] == 0 and (np.diff(heights) <= 0).all()


@pytest.mark.parametrize(
    ("draw", "envs"), [(paper_bars, 3), (budget_curves, 1), (budget_curves, 3), (profiles, 1)]
)
def test_nothing_is_cut_off(panel, draw, envs):
    rows = panel[panel.env.isin(list(WORST)[-envs:]) & (panel.setting == "tuned")]
    figure = draw(rows[rows.condition == "original"])
    figure.canvas.draw()
    inside = figure.bbox
    legend = figure.legends[0].get_window_extent()
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box.x0 >= inside.x0 and box.x1 <= inside.x1
        assert box.y0 >= legend.y1 and box.y1 <= inside.y1
    assert legend.x0 >= inside.x0 and legend.x1 <= inside.x1


@pytest.fixture
def small(study):
    """A study of one environment and setting."""
    rows = pd.read_csv(study / "returns.csv")
    rows = rows[(rows.env == "CartPole-v1") & (rows.setting == "tuned")]
    rows.to_csv(study / "returns.csv", index=False)
    return study


def test_what_is_written(small):
    names = {file.name for file in write_panel(small)}
    figures = ("figure2.png", "budgets.png", "budgets_transformed.png", "profiles.png")
    assert names.issuperset({"table.md", "budgets.md", *figures})
    assert {path.name for path in small.iterdir()} == names | {"returns.csv", "study.yaml"}
    for name in figures:
        assert matplotlib.image.imread(small / name).std() > 0
    table, budgets = ((small / f"{name}.md").read_text() for name in ("table", "budgets"))
    for page in (table, budgets):
        assert page.splitlines()[2] == "`equirl study`"
        assert "3 training runs (1 environments, 1 settings, seeds 0, 1, 2)" in page
        assert "50 episodes" in page and "of 3 runs, hold the true mean" in page
        assert "nan" not in page and "None" not in page
    targets = re.findall(r"\]\((.*?)\)", table)
    assert set(targets) <= names and "budgets.md" in targets
    assert "selected is worse than plain beyond noise nowhere" in table
    assert "| original | selected |" in table
    assert "## CartPole-v1, tuned, transformed" in budgets
    assert budgets.count("\n| 100 | equizero_raw |") == 2


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr(panel_plot, "draw_panel", lambda panel, folder: [])


def test_the_order_of_the_rows_does_not_matter(small, without_figures):
    write_panel(small)
    before = (small / "table.md").read_bytes()
    rows = pd.read_csv(small / "returns.csv").sample(frac=1, random_state=1)
    rows.to_csv(small / "returns.csv", index=False)
    write_panel(small)
    assert (small / "table.md").read_bytes() == before


def test_tables_tell_the_command_the_time_and_the_choices(small, without_figures):
    (small / "command.txt").write_text("equirl study --panel test\n")
    pd.DataFrame({"seconds": [3600, 7200, 600]}).to_csv(small / "seconds.csv")
    choices = {"condition": ["original"] * 3, "chosen": ["plain", "plain", "lambda"]}
    pd.DataFrame({**choices, "spent": [30, 70, 60]}).to_csv(small / "selection.csv")
    write_panel(small)
    table = (small / "table.md").read_text()
    assert "`equirl study --panel test`" in table
    assert "The 3 units took 3.2 hours of one core, the longest 120 minutes: 1.6 hours" in table
    assert "A race took 60 episodes in the median, 70 at most." in table
    assert "| condition | lambda | plain |\n|---|---|---|\n| original | 1 | 2 |" in table


def test_write_panel_needs_a_study(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with equirl study"):
        write_panel(tmp_path)
