import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from equicore.lab import statistics
from equirl.agents import panel_plot, plot
from equirl.agents.plot import STYLES, Plot, as_array, bars, curves, plot_returns
from equirl.agents.policies import POLICIES


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    yield
    plt.close("all")


def test_bars_show_each_policy_and_condition(make_returns):
    returns = make_returns()
    figure = bars(returns)
    envs = [axis.get_title().split("\n")[0] for axis in figure.axes]
    assert envs == ["CartPole-v1", "Acrobot-v1"]
    last = returns[(returns.env == "CartPole-v1") & (returns.budget == 200)]
    patches = figure.axes[0].patches
    assert len(patches) == 2 * len(POLICIES)
    for i, policy in enumerate(POLICIES):
        for j, condition in enumerate(("original", "transformed")):
            rows = last[(last.policy == policy) & (last.condition == condition)]
            bar = patches[2 * i + j]
            expected = statistics.interquartile_mean(as_array(rows)).value
            assert bar.get_y() == 0 and bar.get_height() == pytest.approx(expected)
            assert (bar.get_hatch() == "//") == (condition == "transformed")
            assert round(bar.get_center()[0]) == j  # a group of bars for each condition
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        STYLES[policy].label for policy in POLICIES
    ]
    assert figure.axes[0].get_title() == "CartPole-v1\n200 training steps, 3 agents"
    note = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert note.startswith("10 episodes of each agent and policy, 3 agents. Error bars: 95 % inter")


def test_bars_show_each_agent_at_its_last_budget(make_returns):
    returns = make_returns(envs=("CartPole-v1",), budgets=(100, 2000), agents=2)
    returns = returns[(returns.agent == "agent1") | (returns.budget == 100)]
    titles = [axis.get_title() for axis in bars(returns).axes]
    assert sorted(titles) == [  # what differs is not pooled
        "CartPole-v1\n100 training steps, 1 agent",
        "CartPole-v1\n2,000 training steps, 1 agent",
    ]
    (axis,) = bars(returns[returns.agent == "agent1"]).axes
    assert axis.get_title() == "CartPole-v1\n2,000 training steps, 1 agent"


def test_curves_show_return_against_steps(make_returns):
    returns = make_returns(budgets=(100, 200, 300))
    figure = curves(returns)
    assert [axis.get_title() for axis in figure.axes] == [
        *("CartPole-v1, original", "Acrobot-v1, original"),
        *("CartPole-v1, transformed", "Acrobot-v1, transformed"),
    ]
    for axis in figure.axes:
        assert len(axis.lines) == len(POLICIES)
        assert all(list(line.get_xdata()) == [100, 200, 300] for line in axis.lines)
    rows = returns[(returns.env == "Acrobot-v1") & (returns.policy == "equizero")]
    rows = rows[(rows.condition == "transformed") & (rows.budget == 300)]
    drawn = figure.axes[3].lines[POLICIES.index("equizero")].get_ydata()[2]
    assert drawn == pytest.approx(statistics.interquartile_mean(as_array(rows)).value)
    assert figure.axes[-1].get_xlabel() == "training steps"


def test_where_returns_are_negative_the_better_bar_is_higher(make_returns):
    returns = make_returns(envs=("Acrobot-v1",), budgets=(100,))
    returns["episode_return"] -= 500
    (axis,) = bars(returns).axes
    floors = {bar.get_y() for bar in axis.patches}
    tops = [bar.get_y() + bar.get_height() for bar in axis.patches[::2]]
    assert len(floors) == 1 and axis.get_ylim()[0] == min(floors) < min(tops)
    assert tops == sorted(tops)  # of plain, equitune, equizero, lambda
    for bar, policy in zip(axis.patches[::2], POLICIES, strict=True):
        rows = returns[(returns.policy == policy) & (returns.condition == "original")]
        expected = statistics.interquartile_mean(as_array(rows)).value
        assert bar.get_y() + bar.get_height() == pytest.approx(expected)


def test_lines_that_coincide_are_all_seen(make_returns):
    returns = make_returns(envs=("CartPole-v1",))
    returns["episode_return"] = 1.0
    widths = [line.get_linewidth() for line in curves(returns).axes[0].lines]
    assert np.diff(widths).max() < -0.3  # each is drawn upon wider ones


@pytest.mark.parametrize("draw", [bars, curves])
def test_nothing_is_cut_off(make_returns, draw):
    figure = draw(make_returns(envs=("Acrobot-v1",), agents=1, episodes=2))
    figure.canvas.draw()
    inside = figure.bbox
    for part in [*figure.legends, *(axis.title for axis in figure.axes)]:
        box = part.get_window_extent()
        assert box.x0 >= inside.x0 and box.x1 <= inside.x1
        assert box.y0 >= inside.y0 and box.y1 <= inside.y1


@pytest.mark.parametrize("of", [lambda style: style.fill, lambda style: style.stroke or style.fill])
def test_policies_differ_in_greyscale(of):
    lightness = sorted(
        0.299 * r + 0.587 * g + 0.114 * b
        for r, g, b in (matplotlib.colors.to_rgb(of(style)) for style in STYLES.values())
    )
    assert np.diff(lightness).min() > 0.05


def test_each_policy_is_told_by_more_than_its_colour():
    assert len({style.marker for style in STYLES.values()}) == len(STYLES)
    assert len({style.line for style in STYLES.values()}) == len(STYLES)


def test_plot_reads_what_compare_wrote(make_returns, tmp_path, capsys):
    """Curves are drawn where there are several budgets."""
    make_returns(envs=("CartPole-v1",), agents=1, episodes=2).to_csv(
        tmp_path / "returns.csv", index=False
    )
    plot.main(Plot((tmp_path,)))
    printed = capsys.readouterr().out.split()
    names = ("returns.png", "returns.svg", "curves.png", "curves.svg")
    assert printed == [str(tmp_path / name) for name in names]
    assert matplotlib.image.imread(printed[0]).std() > 0


def test_several_comparisons_are_drawn_together(make_returns, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(plot, "plot_returns", lambda *words: calls.append(words) or [])
    for env in ("CartPole-v1", "Acrobot-v1"):
        make_returns(envs=(env,), agents=1, episodes=1).to_csv(tmp_path / f"{env}.csv", index=False)
    files = (tmp_path / "CartPole-v1.csv", tmp_path / "Acrobot-v1.csv")
    plot.main(Plot(files))
    plot.main(Plot(files, tmp_path / "figures"))
    assert [folder for _, folder in calls] == [tmp_path, tmp_path / "figures"]
    assert list(calls[0][0].env.unique()) == ["CartPole-v1", "Acrobot-v1"]


def test_one_budget_has_no_curves(make_returns, tmp_path):
    files = plot_returns(make_returns(("CartPole-v1",), (100,), agents=1, episodes=2), tmp_path)
    assert [file.name for file in files] == ["returns.png", "returns.svg"]


def test_curves_are_of_agents_with_several_budgets(make_returns, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot.figures, "save", lambda figure, stem: [stem])
    monkeypatch.setattr(plot, "curves", drawn.append)
    returns = make_returns(agents=1, episodes=1)
    plot_returns(returns[(returns.env == "CartPole-v1") | (returns.budget == 100)], tmp_path)
    assert set(drawn[0].env) == {"CartPole-v1"}


def test_a_study_is_plotted_into_its_own_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "study.yaml").touch()
    monkeypatch.setattr(panel_plot, "write_panel", lambda folder: [folder / "table.md"])
    plot.main(Plot((tmp_path,)))
    assert capsys.readouterr().out == f"{tmp_path}/table.md\n"
    for wrong in (Plot((tmp_path, tmp_path)), Plot((tmp_path,), tmp_path)):
        with pytest.raises(ValueError, match="a study is plotted alone"):
            plot.main(wrong)


def test_wrong_input(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot.main(Plot(()))
    with pytest.raises(FileNotFoundError, match="make it with equirl compare --output"):
        plot.main(Plot((tmp_path,)))
    (tmp_path / "returns.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no columns env, agent, budget"):
        plot.main(Plot((tmp_path,)))


def test_seeds_may_be_unknown(make_returns, tmp_path):
    table = make_returns(agents=1, episodes=1).drop(columns="seed")
    table.to_csv(tmp_path / "returns.csv", index=False)
    assert len(plot.read_comparison(tmp_path)) == len(table)


def test_arrays_have_a_row_for_each_agent():
    rows = pd.DataFrame(
        {"agent": ["b", "a", "b", "a"], "episode": [0, 1, 1, 0], "episode_return": [1, 2, 3, 4]}
    )
    assert as_array(rows).tolist() == [[4, 2], [1, 3]]
    with pytest.raises(ValueError, match="two sets of returns of b in one setting"):
        as_array(pd.concat([rows, rows[:1]]))
    with pytest.raises(ValueError, match="different episodes: {'a': 2, 'b': 1}"):
        as_array(rows[1:])
