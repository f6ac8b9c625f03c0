import matplotlib.image
import numpy as np
import pytest

from equirl.agents import plot
from equirl.agents.plot import COLOURS, Plot, bars, curves, plot_returns
from equirl.agents.policies import POLICIES


def test_bars_show_each_policy_and_condition(make_returns):
    figure = bars(make_returns())
    assert len(figure.axes) == 2
    for axis in figure.axes:
        heights = [patch.get_height() for patch in axis.patches]
        assert len(heights) == 2 * len(POLICIES)
        assert heights[0] < heights[2] < heights[4] < heights[6]  # plain, equitune, ...
        assert "200 steps, 3 agents" in axis.get_title()
    assert "sum of rewards" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("draw", [bars, curves])
@pytest.mark.parametrize("envs", [("Acrobot-v1",), ("Acrobot-v1", "CartPole-v1")])
def test_nothing_is_cut_off(make_returns, draw, envs):
    figure = draw(make_returns(envs=envs))
    figure.canvas.draw()
    inside = figure.bbox
    for part in [*figure.legends, *(axis.title for axis in figure.axes)]:
        box = part.get_window_extent()
        assert box.x0 >= inside.x0 and box.x1 <= inside.x1
        assert box.y0 >= inside.y0 and box.y1 <= inside.y1


def test_bars_show_each_agent_at_its_last_budget(make_returns):
    returns = make_returns(envs=("CartPole-v1",), budgets=(100, 200), agents=2)
    returns = returns[(returns.agent == "agent1") | (returns.budget == 100)]
    (axis,) = bars(returns).axes
    assert "100 to 200 steps, 2 agents" in axis.get_title()


def test_curves_show_return_against_steps(make_returns):
    figure = curves(make_returns(budgets=(100, 200, 300)))
    assert len(figure.axes) == 4
    for axis in figure.axes:
        assert len(axis.lines) == len(POLICIES)
        assert all(list(line.get_xdata()) == [100, 200, 300] for line in axis.lines)
    assert figure.axes[-1].get_xlabel() == "training (environment steps)"


def test_curves_only_where_there_are_several_budgets(make_returns, tmp_path):
    files = plot_returns(make_returns(budgets=(100,)), tmp_path)
    assert [file.name for file in files] == ["returns.png", "returns.svg"]
    assert matplotlib.image.imread(files[0]).std() > 0


def test_policies_differ_in_greyscale():
    lightness = sorted(
        0.299 * r + 0.587 * g + 0.114 * b
        for r, g, b in (matplotlib.colors.to_rgb(colour) for colour in COLOURS.values())
    )
    assert np.diff(lightness).min() > 0.1


def test_same_data_give_the_same_files(make_returns, tmp_path):
    first = plot_returns(make_returns(), tmp_path / "a")
    second = plot_returns(make_returns(), tmp_path / "b")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_plot_reads_what_compare_wrote(make_returns, tmp_path, capsys):
    make_returns().to_csv(tmp_path / "returns.csv", index=False)
    plot.main(Plot((tmp_path,)))
    printed = capsys.readouterr().out.split()
    assert [p.rsplit("/", 1)[1] for p in printed] == [
        "returns.png",
        "returns.svg",
        "curves.png",
        "curves.svg",
    ]


def test_wrong_input(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot.main(Plot(()))
    with pytest.raises(FileNotFoundError, match="no comparison at"):
        plot.main(Plot((tmp_path,)))
    (tmp_path / "returns.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no columns agent, budget"):
        plot.main(Plot((tmp_path,)))
