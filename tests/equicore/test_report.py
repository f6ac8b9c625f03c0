"""Errors of models of trees, and of batches on another axis; reports."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from equicore import (
    Matrix,
    Permutation,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    check_representation,
    cyclic,
    dihedral,
    equitune,
    equivariance_error,
    equizero,
    image_rotations,
    report,
    symmetric,
)
from equicore.trees import leaves, tree_map
from equicore.verify import EquivarianceError, Report

SHIFT = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
POINTS = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])
Pair = namedtuple("Pair", ["first", "second"])


def scaled(x):
    return x * WEIGHTS.to(x.dtype)


# trees


def test_the_error_of_a_tree_is_that_of_its_worst_tensor():
    small = torch.tensor([[0.1, 0.0, 0.0]]).expand(3, 3)
    rep = Tree({"a": SHIFT, "b": SHIFT})
    x = {"a": X, "b": small}

    def model(x):
        return {"a": x["a"], "b": scaled(x["b"])}

    error = equivariance_error(model, rep, rep, x)
    # f(r x) - r f(x) = 0.1 (-> second) * (2 - 1), and for r^2 (-> third) * (3 - 1)
    torch.testing.assert_close(error.absolute, torch.tensor([0.0, 0.1, 0.2]))
    torch.testing.assert_close(error.relative, torch.tensor([0.0, 1 / 3, 2 / 3]))
    assert error.worst_element == 2
    # the larger tensor's error is larger in size, the other's relative to its size
    both = equivariance_error(
        lambda x: {"a": scaled(x["a"]) + 30, "b": scaled(x["b"])}, rep, rep, x
    )
    torch.testing.assert_close(both.absolute, torch.tensor([0.0, 10.0, 6.0]))
    torch.testing.assert_close(both.relative, torch.tensor([0.0, 1 / 3, 2 / 3]))


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_worst_sample_of_a_tree(wrong):
    rep = Tree([SHIFT, {"x": SHIFT}])
    x = [torch.zeros(3, 3), {"x": torch.zeros(3, 3)}]
    x[1]["x"][wrong, 2] = 4.0

    def model(x):
        return (x[0], scaled(x[1]["x"]))

    error = equivariance_error(model, rep, Tree([SHIFT, SHIFT]), x)
    assert (error.worst_element, error.worst_sample) == (1, wrong)
    with pytest.raises(AssertionError, match=rf"element 1 \(r\), sample {wrong}$"):
        assert_equivariant(model, rep, Tree([SHIFT, SHIFT]), x)


def test_only_named_outputs_count():
    x = {"x": X}

    def model(x):
        return {"good": 2 * x["x"], "bad": scaled(x["x"]), "loss": 3.0}

    rep = Tree({"x": SHIFT})
    assert_equivariant(model, rep, Tree({"good": SHIFT}), x)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, rep, Tree({"good": SHIFT, "bad": SHIFT}), x)
    with pytest.raises(ValueError, match=r"\['other'\] are missing; got \['good', 'bad', 'loss'\]"):
        assert_equivariant(model, rep, Tree({"other": SHIFT}), x)


def test_none_and_integers_in_trees():
    words = Tokens(SHIFT.group, SHIFT.permutations)
    rep = Tree({"ids": words, "mask": SHIFT})
    x = {"ids": torch.tensor([[0, 2], [1, 1]]), "mask": None}
    logits = words.logits()

    def model(x):
        return nn.functional.one_hot(x["ids"], 3).float()

    assert_equivariant(model, rep, logits, x)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda x: scaled(model(x)), rep, logits, x)
    with pytest.raises(TypeError, match="floating-point outputs; got torch.int64"):
        equivariance_error(lambda x: x["ids"], rep, words, x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8], ids=str)
def test_outputs_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match=f"floating-point outputs; got {dtype}"):
        equivariance_error(lambda x: x.to(dtype), SHIFT, SHIFT, X)


def test_empty_batches_of_trees_are_refused():
    with pytest.raises(ValueError, match=r"empty batch: .*\(0, 3\)"):
        equivariance_error(lambda x: x, Tree([SHIFT]), Tree([SHIFT]), [torch.zeros(0, 3)])


@pytest.mark.parametrize("model", [lambda x: x[:3], lambda x: x.mT, lambda x: x[:-1]])
def test_models_that_lose_samples_are_refused(model):
    with pytest.raises(ValueError, match=r"given 3 x 3 = 9 samples and returned \d, shape \(\d, "):
        equivariance_error(model, SHIFT, SHIFT, X)


def test_trees_of_representations_are_checked_entry_by_entry():
    wrong = Permutation(POINTS.group, POINTS.permutations)
    # the mistake of a table that says where entries come from
    wrong.permutations, wrong.inverses = wrong.inverses, wrong.permutations
    x = {"a": torch.randn(2, 3), "b": [torch.randn(2, 3), None]}
    check_representation(Tree({"a": POINTS, "b": [POINTS, POINTS]}), x)
    with pytest.raises(ValueError, match=r"not a representation of symmetric\(3\): act\(\d, act"):
        check_representation(Tree({"a": POINTS, "b": [wrong, POINTS]}), x)


class Careless(Permutation):
    """Right but for one verb, where it forgets something."""

    forgets = ""

    def act_each(self, elements, x):
        return x if self.forgets == "act_each" else super().act_each(elements, x)

    def align_each(self, elements, y):
        return y if self.forgets == "align_each" else super().align_each(elements, y)

    def orbit(self, x, elements=None):
        return super().orbit(x, self.only("orbit", elements))

    def align(self, y, elements=None):
        return super().align(y, self.only("align", elements))

    def only(self, verb, elements):
        if elements is None or self.forgets != verb:
            return elements
        return sorted(elements)


@pytest.mark.parametrize(
    "verb, law",
    [
        ("act_each", r"act_each\(1, x\) = act\(1, x\)"),
        ("align_each", r"align_each\(1, act_each\(1, x\)\) = x"),
        ("orbit", r"orbit\(x, \[5, 4, 3, 2, 1, 0, 5\]\)\[0\] = act\(5, x\)"),
        ("align", r"align\(orbit\(x, .*\), \[5, 4, 3, 2, 1, 0, 5\]\)\[0\] = x"),
    ],
)
def test_check_representation_checks_every_verb(verb, law):
    rep = Careless(POINTS.group, POINTS.permutations)
    x = torch.randn(2, 3)
    check_representation(rep, x)
    rep.forgets = verb
    with pytest.raises(ValueError, match=law):
        check_representation(rep, x)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_identity_on_random_trees_is_equivariant(groups, trees, data):
    rep, make = data.draw(trees(data.draw(groups), floating=True))
    x = make(2)
    error = equivariance_error(lambda x: x, rep, rep, x)
    assert float(error.relative.max()) < 1e-12
    if len(rep.group) == 1:
        return
    # numbers that are added to the first tensor, whose representation is faithful, do not move
    added = torch.randn(leaves(x)[0].shape[1:], dtype=torch.float64)

    def shifted(x):
        first = leaves(x)[0]
        return tree_map(lambda t: t + added if t is first else t, x)

    assert float(equivariance_error(shifted, rep, rep, x).relative.max()) > 1e-3


# the batch on another axis


@pytest.mark.parametrize("batch_dim", [1, -1, 2])
def test_the_axis_of_the_batch_makes_no_difference(batch_dim):
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = equivariance_error(lambda x: x * x[:, :1] * WEIGHTS, SHIFT, SHIFT, x)

    def model(moved):
        y = moved.movedim(batch_dim, 0)
        return (y * y[:, :1] * WEIGHTS).movedim(0, batch_dim)

    moved = x.movedim(0, batch_dim)
    error = equivariance_error(model, SHIFT, SHIFT, moved, batch_dim=batch_dim)
    torch.testing.assert_close(error.absolute, expected.absolute)
    torch.testing.assert_close(error.relative, expected.relative)
    assert (error.worst_element, error.worst_sample) == (
        expected.worst_element,
        expected.worst_sample,
    )
    with pytest.raises(AssertionError, match=f"sample {expected.worst_sample}"):
        assert_equivariant(model, SHIFT, SHIFT, moved, batch_dim=batch_dim)


def test_trees_with_the_batch_on_another_axis():
    # sequences first, as in nn.Transformer: (words, B, features) and (words, B)
    words = Tokens(SHIFT.group, SHIFT.permutations)
    rep = Tree({"ids": words, "x": SHIFT})
    generator = torch.Generator().manual_seed(0)
    x = {
        "ids": torch.randint(3, (5, 2), generator=generator),
        "x": torch.randn(5, 2, 3, generator=generator),
    }

    def model(x):
        assert x["ids"].shape == (5, 6) and x["x"].shape == (5, 6, 3)
        return Pair(x["x"] * nn.functional.one_hot(x["ids"], 3), x["x"].cumsum(0))

    both = Tree(Pair(SHIFT, SHIFT))
    assert_equivariant(model, rep, both, x, batch_dim=1)
    error = equivariance_error(
        lambda x: Pair(model(x).first, scaled(model(x).second)), rep, both, x, batch_dim=1
    )
    assert error.absolute.shape == error.relative.shape == (3,)
    assert float(error.relative[1:].min()) > 0.1


# reports


def test_a_report_compares_the_model_with_equitune():
    found = report(scaled, SHIFT, SHIFT, X)
    assert list(found.errors) == ["model", "equitune"]
    expected = equivariance_error(scaled, SHIFT, SHIFT, X)
    assert torch.equal(found.errors["model"].relative, expected.relative)
    assert float(found.errors["equitune"].relative.max()) < 1e-6


def test_a_report_as_a_table():
    found = report(scaled, SHIFT, SHIFT, X, {"a long name": equizero(scaled, SHIFT, SHIFT)})
    lines = str(found).split("\n")
    assert lines[0] == "relative error |f(g x) - g f(x)|"
    assert lines[1] == "element     model  a long name"
    assert lines[2] == "0 (e)     0.0e+00      0.0e+00"
    assert lines[3].startswith("1 (r)     6.7e-01      ")
    assert lines[4].startswith("2 (r^2)   4.0e-01      ")
    assert len(lines) == 5
    assert len({len(line) for line in lines[1:]}) == 1


def made_up(group, **errors):
    return Report(
        group,
        {
            name: EquivarianceError(torch.tensor(e), torch.tensor(e), 0, 0, tuple(range(len(e))))
            for name, e in errors.items()
        },
    )


def test_a_report_as_a_figure():
    found = made_up(cyclic(3), model=[0.0, 0.5, 2.0], equitune=[0.0, 1e-7, 3e-7], other=[0.1] * 3)
    figure = found.plot()
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["model", "equitune", "other"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "model",
        "equitune",
        "other",
    ]
    eps = torch.finfo(torch.float32).eps
    np.testing.assert_allclose(lines[0].get_ydata(), [eps / 4, 0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(lines[1].get_ydata(), [eps / 4, 1e-7, 3e-7], rtol=1e-6)
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["e", "r", "r^2"]
    assert len({line.get_marker() for line in lines}) == 3
    assert "cyclic(3)" in axes.get_xlabel()
    # beside each other, around the place of their element
    places = np.stack([line.get_xdata() for line in lines])
    assert (np.diff(places, axis=0) > 0).all()
    np.testing.assert_allclose(places.mean(0), [0, 1, 2])
    assert np.abs(places - [0, 1, 2]).max() < 0.5


def test_figures_of_every_type(tmp_path):
    rep = Permutation.from_generators(dihedral(5), [[1, 2, 3, 4, 0], [0, 4, 3, 2, 1]])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(2, 5).to(dtype)
        figure = report(lambda x: x * x[:, :1], rep, rep, x).plot()
        (axes,) = figure.axes
        assert len(axes.get_xticklabels()) == 10
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {90.0}
        assert all((line.get_ydata() > 0).all() for line in axes.get_lines())
    figure.savefig(tmp_path / "report.svg")
    assert (tmp_path / "report.svg").stat().st_size > 1000


def test_plots_leave_pyplot_alone():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    made_up(cyclic(2), model=[0.0, 1.0]).plot()
    assert pyplot.get_fignums() == before


def test_a_report_of_trees_with_the_batch_on_another_axis():
    sign = Matrix(SHIFT.group, [[[1.0]]] * 3)
    rep = Tree({"x": SHIFT, "y": sign})
    generator = torch.Generator().manual_seed(0)
    x = {
        "x": torch.randn(4, 2, 3, generator=generator),
        "y": torch.randn(4, 2, 1, generator=generator),
    }

    def model(x):
        return {"out": scaled(x["x"]) + x["y"], "aux": x["y"]}

    out = Tree({"out": SHIFT, "aux": Trivial(SHIFT.group)})
    found = report(model, rep, out, x, batch_dim=1)
    assert float(found.errors["model"].relative[1:].min()) > 0.1
    assert float(found.errors["equitune"].relative.max()) < 1e-6
    made = {"mean": equitune(model, rep, out, batch_dim=1)}
    assert list(report(model, rep, out, x, made, batch_dim=1).errors) == ["model", "mean"]


@pytest.mark.parametrize("mask", [-1e9, -torch.inf, torch.finfo(torch.float32).min])
def test_masked_entries_do_not_hide_errors_or_make_them(mask):
    turns = image_rotations()
    same = Trivial(turns.group)
    layer = torch.nn.Linear(16, 6)

    def model(x):
        return layer(x.flatten(1)).index_fill(-1, torch.tensor([0]), mask)

    x = torch.rand(3, 4, 4)
    error = equivariance_error(model, turns, same, x)
    plain = equivariance_error(lambda x: model(x)[:, 1:], turns, same, x)
    torch.testing.assert_close(error.relative, plain.relative)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, turns, same, x)
    masked = equitune(lambda x: model(x)[:, 1:], turns, same)
    assert_equivariant(
        lambda x: torch.nn.functional.pad(masked(x), (1, 0), value=mask), turns, same, x
    )
    assert "nan" not in str(report(model, turns, same, x))
