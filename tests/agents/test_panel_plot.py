import itertools
import re

import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from equirl.agents import panel_plot, statistics
from equirl.agents.panel import COLUMNS, read_panel
from equirl.agents.panel_plot import (
    COLOURS,
    FILLS,
    LABELS,
    budget_curves,
    paper_bars,
    profiles,
    write_panel,
)

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
POLICIES = ["plain", "equitune", "equizero", "equizero_raw", "lambda", "lambda_td", "selected"]


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


def original(panel):
    return panel[panel.condition == "original"]


def test_bars_have_a_column_for_each_family_and_a_row_for_each_setting(panel):
    figure = paper_bars(panel)
    assert [axis.get_title() for axis in figure.axes] == [
        f"{family}, {setting}"
        for setting in ("tuned", "paper")
        for family in ("equirl/Gridworld-v0", "CartPole-v1", "Acrobot-v1")
    ]
    for axis in figure.axes:
        heights = [patch.get_height() for patch in axis.patches]
        assert len(heights) == 2 * len(LABELS)
        solid = heights[: len(LABELS)]
        assert solid == sorted(solid)
        assert [t.get_text() for t in axis.get_xticklabels()] == list(LABELS.values())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "original",
        "transformed",
    ]


def test_bars_are_means_over_seeds_and_budgets(panel):
    cartpole = panel[(panel.env == "CartPole-v1") & (panel.setting == "tuned")]
    expected = original(cartpole[cartpole.policy == "plain"]).mean_return.mean()
    assert paper_bars(panel).axes[1].patches[0].get_height() == pytest.approx(expected)


def test_curves_show_return_against_steps(panel):
    figure = budget_curves(original(panel))
    assert len(figure.axes) == 6
    for axis in figure.axes:
        assert len(axis.lines) == len(LABELS)
        assert all(list(line.get_xdata()) == [100, 200] for line in axis.lines)
    assert "original" in figure.get_suptitle()


def test_profiles_fall_from_all_to_none(panel):
    figure = profiles(panel)
    assert [axis.get_title() for axis in figure.axes] == ["original", "transformed"]
    for line in figure.axes[0].lines:
        heights = line.get_ydata()
        assert heights[0] == 1 or line.get_label() == "plain"
        assert heights[-1] == 0 and (np.diff(heights) <= 0).all()


@pytest.mark.parametrize("draw", [paper_bars, lambda p: budget_curves(original(p)), profiles])
@pytest.mark.parametrize("envs", [1, 3])
def test_nothing_is_cut_off(panel, draw, envs):
    figure = draw(panel[panel.env.isin(list(WORST)[-envs:]) & (panel.setting == "tuned")])
    figure.canvas.draw()
    inside = figure.bbox
    legend = figure.legends[0].get_window_extent()
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box.x0 >= inside.x0 and box.x1 <= inside.x1
        assert box.y0 >= legend.y1 and box.y1 <= inside.y1
    assert legend.x0 >= inside.x0 and legend.x1 <= inside.x1


@pytest.mark.parametrize("colours", [COLOURS, FILLS])
def test_policies_differ_in_greyscale(colours):
    lightness = sorted(
        0.299 * r + 0.587 * g + 0.114 * b
        for r, g, b in (matplotlib.colors.to_rgb(colour) for colour in colours.values())
    )
    assert np.diff(lightness).min() > 0.05


def test_same_data_give_the_same_files(study):
    rows = pd.read_csv(study / "returns.csv")
    rows = rows[(rows.env == "CartPole-v1") & (rows.setting == "tuned")]
    rows.to_csv(study / "returns.csv", index=False)
    first = {file: file.read_bytes() for file in write_panel(study)}
    rows.sample(frac=1, random_state=0).to_csv(study / "returns.csv", index=False)
    assert {file: file.read_bytes() for file in write_panel(study)} == first
    names = {file.name for file in first}
    figures = ("figure2.png", "budgets.png", "budgets_transformed.png", "profiles.png")
    assert names.issuperset({"table.md", "budgets.md", *figures})
    assert {path.name for path in study.iterdir()} == names | {"returns.csv", "study.yaml"}
    for name in figures:
        assert matplotlib.image.imread(study / name).std() > 0
    check_pages((study / "table.md").read_text(), (study / "budgets.md").read_text(), names)


def check_pages(table, budgets, files):
    for page in (table, budgets):
        assert page.splitlines()[2] == "`equirl study`"
        assert "seeds 0, 1, 2" in page and "50 episodes" in page
        assert "nan" not in page and "None" not in page
    targets = re.findall(r"\]\((.*?)\)", table)
    assert set(targets) <= files and "budgets.md" in targets
    assert "selected is worse than plain beyond noise nowhere" in table
    assert "| original | selected |" in table
    assert "## CartPole-v1, tuned, transformed" in budgets
    assert budgets.count("\n| 100 | equizero_raw |") == 2


def test_a_large_svg_is_not_kept(panel, tmp_path, monkeypatch):
    stem = tmp_path / "profiles"
    one = panel[(panel.env == "CartPole-v1") & (panel.condition == "original")]
    files = panel_plot._save(profiles(one), stem)
    assert files == [tmp_path / "profiles.png", tmp_path / "profiles.svg"]
    monkeypatch.setattr(panel_plot, "LARGEST_SVG", 10)
    assert panel_plot._save(profiles(one), stem) == files[:1]
    assert not files[1].exists()


def test_write_panel_needs_a_study(tmp_path):
    with pytest.raises(FileNotFoundError, match="no study at"):
        write_panel(tmp_path)
