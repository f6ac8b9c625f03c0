"""Figures: drawn as they should be, and the same data give the same bytes."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from equicore.lab import figures
from equicore.lab.statistics import Estimate

ESTIMATES = [Estimate(1.0, 0.5, 2.0), Estimate(3.0, 2.5, 3.25), Estimate(2.0, np.nan, np.nan)]


@pytest.fixture(autouse=True)
def closed():
    """No test leaves an open figure."""
    before = pyplot.get_fignums()
    yield
    assert pyplot.get_fignums() == before


def drawn(points=5):
    figure, axes = figures.grid(1, 2, figsize=(4, 2))
    for axis in axes[0]:
        figures.tidy(axis)
    x = np.linspace(0, 1, points)
    figures.band(axes[0, 0], x, [Estimate(v, v - 1, v + 1) for v in x], "#1f77b4", label="a")
    axes[0, 1].plot(x, np.random.default_rng(0).random(points))
    figures.legend_below(figure, axes[0, 0])
    return figure


def test_the_same_data_give_the_same_bytes(tmp_path):
    contents, before = [], dict(matplotlib.rcParams)
    for folder in ("one", "two"):
        files = figures.save(drawn(), tmp_path / folder / "figure")
        assert [file.name for file in files] == ["figure.png", "figure.svg"]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0][1]
    assert dict(matplotlib.rcParams) == before


def test_a_name_may_have_dots(tmp_path):
    files = figures.save(drawn(), tmp_path / "agent-v1.0_turns")
    assert [file.name for file in files] == ["agent-v1.0_turns.png", "agent-v1.0_turns.svg"]


def colours(path):
    """How many colours a picture has, and its size."""
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 20)), image.size


def test_the_resolution_and_the_colours_of_the_png(tmp_path):
    (many, _) = figures.save(drawn(), tmp_path / "many", dpi=50)
    (few, _) = figures.save(drawn(), tmp_path / "few", dpi=50, colours=8)
    assert colours(many)[1] == colours(few)[1] == (200, 100)
    assert colours(few)[0] <= 8 < colours(many)[0]
    assert few.stat().st_size < many.stat().st_size


def test_a_large_svg_is_left_out_and_an_old_one_removed(tmp_path, monkeypatch):
    (_, svg) = figures.save(drawn(), tmp_path / "figure")
    monkeypatch.setattr(figures, "LARGEST_SVG", svg.stat().st_size - 1)
    for _ in range(2):  # the second time there is none to remove
        assert figures.save(drawn(), tmp_path / "figure") == [tmp_path / "figure.png"]
        assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_a_figure_that_cannot_be_saved_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        figures.save(drawn(), tmp_path / "file" / "figure")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_error_bars_reach_to_the_ends_of_intervals():
    below, above = figures.error_bars(ESTIMATES[:2])
    assert (below, above) == ([0.5, 0.5], [1.0, 0.25])
    # rounding must not make them negative, which matplotlib refuses
    assert figures.error_bars([Estimate(1.0, 1.0 + 1e-16, 1.0 - 1e-16)]) == ([0.0], [0.0])


def test_bars_have_their_intervals():
    figure, axes = figures.grid(1, 1)
    figures.bars(axes[0, 0], [0, 1], 0.4, ESTIMATES[:2], color="red", label="ours")
    (container,) = [c for c in axes[0, 0].containers if hasattr(c, "patches")]
    assert [(bar.get_height(), bar.get_width()) for bar in container] == [(1.0, 0.4), (3.0, 0.4)]
    (lines,) = container.errorbar.lines[2]
    assert [tuple(ends[:, 1]) for ends in lines.get_segments()] == [(0.5, 2.0), (2.5, 3.25)]
    assert container.get_label() == "ours"
    pyplot.close(figure)


def test_a_band_is_a_line_with_its_intervals():
    figure, axes = figures.grid(1, 1)
    figures.band(axes[0, 0], [0, 1], ESTIMATES[:2], "red", linestyle="--", label="ours")
    (line,) = axes[0, 0].get_lines()
    assert line.get_ydata().tolist() == [1.0, 3.0]
    assert (line.get_color(), line.get_linestyle(), line.get_label()) == ("red", "--", "ours")
    (area,) = axes[0, 0].collections
    corners = area.get_paths()[0].vertices
    assert {0.5, 2.0, 2.5, 3.25} <= set(corners[:, 1].tolist())
    pyplot.close(figure)


def test_one_legend_for_all_axes():
    figure, axes = figures.grid(2, 2)
    assert axes.shape == (2, 2)
    for i in range(5):
        axes[0, 0].plot([0, 1], label=f"line {i}")
    figures.legend_below(figure, axes[0, 0], columns=3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"line {i}" for i in range(5)]
    assert legend._ncols == 3
    pyplot.close(figure)


def test_a_legend_is_no_wider_than_the_figure():
    figure, axes = figures.grid(1, 1, figsize=(4, 2))
    for i in range(4):
        axes[0, 0].plot([0, 1], label=f"a label of the length of line {i}")
    figures.legend_below(figure, axes[0, 0], columns=3)
    (legend,) = figure.legends
    assert legend._ncols == 1
    figure.draw_without_rendering()
    assert legend.get_window_extent().width <= figure.bbox.width
    pyplot.close(figure)
