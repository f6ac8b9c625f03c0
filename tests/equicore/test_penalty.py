"""Equivariance as a penalty, the choice of its weight, and augmentation."""

import itertools
import logging
import math
import sys
import types

import pytest
import torch
from torch import nn

from equicore import (
    Matrix,
    Permutation,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    cyclic,
    dihedral,
    equitune,
    image_dihedral,
    symmetric,
    trivial,
)
from equicore.continuous import Motion, Vectors
from equicore.finetuning import (
    EquivarianceLoss,
    GroupAugmentation,
    kl_divergence,
    select_weight,
    squared_error,
)

# non-abelian groups, with elements that are not their own inverse
S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
D4 = Matrix.from_generators(dihedral(4), [[[0, -1], [1, 0]], [[1, 0], [0, -1]]])
D4_CORNERS = Permutation.from_generators(dihedral(4), [[1, 2, 3, 0], [0, 3, 2, 1]])
REPRESENTATIONS = [(S3, S3, 3, 3), (D4, D4_CORNERS, 2, 4), (D4_CORNERS, D4, 4, 2)]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def double(random_model, size_in, size_out, seed=1):
    return random_model((size_in,), (size_out,), seed).double()


def by_hand(model, rep_in, rep_out, x, divergence):
    """The mean over all elements but the identity, one at a time."""
    order = len(rep_in.group)
    terms = [divergence(model(rep_in.act(g, x)), rep_out.act(g, model(x))) for g in range(1, order)]
    return sum(terms) / (order - 1)


class Counted(nn.Module):
    """Counts how often, and on how many samples, a model runs."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return self.model(x)


@pytest.mark.parametrize("samples", [None, 1, 4])
@pytest.mark.parametrize(("rep_in", "rep_out", "size_in", "size_out"), REPRESENTATIONS)
def test_zero_for_an_equivariant_model(
    rep_in, rep_out, size_in, size_out, samples, random_model, randomise
):
    model = double(random_model, size_in, size_out)
    x = torch.randn(5, size_in).double()
    robust = equitune(model, rep_in, rep_out)
    assert EquivarianceLoss(robust, rep_in, rep_out, samples)(x) < 1e-25
    assert EquivarianceLoss(model, rep_in, rep_out, samples)(x) > 1e-2


@pytest.mark.parametrize(("rep_in", "rep_out", "size_in", "size_out"), REPRESENTATIONS)
def test_all_elements_by_hand(rep_in, rep_out, size_in, size_out, random_model):
    model, x = double(random_model, size_in, size_out), torch.randn(5, size_in).double()
    expected = by_hand(model, rep_in, rep_out, x, lambda a, w: (a - w).square().sum(1).mean())
    close(EquivarianceLoss(model, rep_in, rep_out, samples=None)(x), expected)
    expected = by_hand(
        model, rep_in, rep_out, x,
        lambda a, w: nn.functional.kl_div(
            a.log_softmax(-1), w.log_softmax(-1), reduction="batchmean", log_target=True
        ),
    )  # fmt: skip
    actual = EquivarianceLoss(model, rep_in, rep_out, None, kl_divergence)(x)
    close(actual, expected)


@pytest.mark.parametrize("batch, samples", [(1, 1), (2, 1), (1, 3)])
def test_samples_are_an_unbiased_estimate(batch, samples, random_model, monkeypatch):
    """The mean over all draws of elements is the exact penalty."""
    model, x = double(random_model, 3, 3), torch.randn(batch, 3).double()
    penalty = EquivarianceLoss(model, S3, S3, samples)
    exact, found = EquivarianceLoss(model, S3, S3, None)(x), []
    for drawn in itertools.product(range(1, 6), repeat=batch * samples):
        monkeypatch.setattr(torch, "randint", lambda *_, d=drawn, **__: torch.tensor(d))
        found.append(penalty(x))
    assert torch.stack(found).std() > 1e-3
    close(torch.stack(found).mean(), exact)


def test_elements_are_drawn_for_each_sample_and_without_the_identity():
    """The model tells which elements it sees: its input is the number 0 of C5, moved."""
    turn = Tokens.from_cycles(cyclic(5), [[[0, 1, 2, 3, 4]]], size=5)
    seen = []

    def model(x):
        seen.append(x)
        return x.double()

    torch.manual_seed(3)
    EquivarianceLoss(model, turn, Trivial(turn.group), samples=300)(torch.zeros(2, 1).long())
    assert seen[0].tolist() == [[0], [0]]
    counts = torch.bincount(seen[1].flatten(), minlength=5)
    assert counts[0] == 0 and (counts[1:] - 150).abs().amax() < 55  # 5 standard errors
    pairs = seen[1].view(300, 2)
    assert (pairs[:, 0] == pairs[:, 1]).double().mean() < 0.4  # each sample has its own


@pytest.mark.parametrize("samples", [None, 1, 3])
def test_a_known_output_is_not_computed_again(samples, random_model):
    counted = Counted(double(random_model, 3, 3))
    x = torch.randn(4, 3).double()
    penalty = EquivarianceLoss(counted, S3, S3, samples)
    torch.manual_seed(1)
    without = penalty(x)
    more = 4 * (5 if samples is None else samples)
    assert counted.batches == [4, more]
    output = counted(x)
    counted.batches.clear()
    torch.manual_seed(1)
    assert torch.equal(penalty(x, output), without)
    assert counted.batches == [more]


def test_gradients_flow_through_both_sides(random_model):
    model, x = double(random_model, 3, 3), torch.randn(4, 3).double()
    penalty = EquivarianceLoss(model, S3, S3, None)
    whole = torch.autograd.grad(penalty(x), list(model.parameters()))
    half = torch.autograd.grad(penalty(x, model(x).detach()), list(model.parameters()))
    assert all(g.any() for g in whole)
    assert not any(torch.allclose(a, b) for a, b in zip(whole, half, strict=True))
    hand = by_hand(model, S3, S3, x, lambda a, w: (a - w).square().sum(1).mean())
    expected = torch.autograd.grad(hand, list(model.parameters()))
    for actual, wanted in zip(whole, expected, strict=True):
        close(actual, wanted)


def test_fine_tuning_with_the_penalty_reduces_the_error(random_model):
    """Trained on sorted inputs only, to an equivariant target."""
    x, new = torch.randn(2, 300, 3).double().sort(-1).values

    def error(weight):
        model = double(random_model, 3, 3)
        adam = torch.optim.Adam(model.parameters(), lr=3e-2)
        penalty = EquivarianceLoss(model, S3, S3)
        for _ in range(60):
            adam.zero_grad()
            output = model(x)
            loss = squared_error(output, x * x.softmax(-1))
            (loss + weight * penalty(x, output) if weight else loss).backward()
            adam.step()
        with torch.no_grad():
            size = model(new).square().sum(1).mean()
            return float(EquivarianceLoss(model, S3, S3, None)(new) / size)

    assert error(1.0) < error(0.0) / 5


class Branches(nn.Module):
    """A vector and a number for each sample, and one more entry that nobody asked for."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        y = self.model(x["a"] + x["b"])
        return {"vector": y, "number": y[:, 0], "unused": y}


def test_trees_and_one_number_for_each_sample(random_model):
    inputs = Tree({"a": S3, "b": S3})
    outputs = Tree({"number": Trivial(S3.group), "vector": S3})
    model = Branches(double(random_model, 3, 3))
    x = {name: torch.randn(4, 3).double() for name in "ab"}
    expected = by_hand(
        model.model, S3, S3, x["a"] + x["b"], lambda a, w: (a - w).square().sum(1).mean()
    ) + by_hand(
        lambda x: model.model(x)[:, 0], S3, Trivial(S3.group), x["a"] + x["b"],
        lambda a, w: (a - w).square().mean(),
    )  # fmt: skip
    penalty = EquivarianceLoss(model, inputs, outputs, None)
    close(penalty(x), expected)
    close(penalty(x, model(x)), expected)


def test_elements_of_continuous_groups(random_model):
    angles = torch.tensor([0.0, 0.4, 1.3, 2.9]).double()
    rotations = torch.stack(
        [
            torch.stack([angles.cos(), -angles.sin()], -1),
            torch.stack([angles.sin(), angles.cos()], -1),
        ],
        dim=1,
    )
    some = Motion(rotations, torch.zeros(4, 2).double())
    model, x = double(random_model, 2, 2), torch.randn(5, 2).double()
    terms = [squared_error(model(x @ r.T), model(x) @ r.T) for r in rotations[1:]]
    loss = EquivarianceLoss(model, Vectors(), Vectors(), None, elements=some)
    close(loss(x), sum(terms) / 3)
    one = EquivarianceLoss(lambda x: 2 * x, Vectors(), Vectors(), elements=some)
    assert one(x) < 1e-25
    augment = GroupAugmentation(Vectors(), Vectors(), elements=some)
    moved, target = augment(x, 3 * x)
    close(target, 3 * moved)
    assert not torch.equal(moved, x)
    close(moved.norm(dim=-1), x.norm(dim=-1))
    with pytest.raises(ValueError, match="of a continuous group"):
        EquivarianceLoss(model, Vectors(), Vectors())


def test_squared_error():
    a, w = torch.randn(4, 3, 2).double(), torch.randn(4, 3, 2).double()
    close(squared_error(a, w), (a - w).flatten(1).norm(dim=1).square().mean())
    close(squared_error(a[:, 0, 0], w[:, 0, 0]), (a - w)[:, 0, 0].square().mean())
    both = squared_error([a, {"x": w}], [w, {"x": w}])
    close(both, squared_error(a, w))
    with pytest.raises(ValueError):
        squared_error([a, a], [w])


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)])
def test_kl_divergence(shape):
    a, w = torch.randn(shape).double(), torch.randn(shape).double()
    expected = nn.functional.kl_div(
        a.log_softmax(-1), w.softmax(-1), reduction="none"
    ).sum(-1).mean()  # fmt: skip
    close(kl_divergence(a, w), expected)
    close(kl_divergence((a, w), (w, a)), expected + kl_divergence(w, a))
    assert kl_divergence(a, w) > 0
    assert kl_divergence(a, a + 5) < 1e-12  # logits are known up to a constant
    assert kl_divergence(1e4 * a, 1e4 * w).isfinite()
    with pytest.raises(ValueError, match=r"shape \(B, ..., classes\); got \(4,\)"):
        kl_divergence(a[(slice(None), *[0] * (a.ndim - 1))], a[(slice(None), *[0] * (a.ndim - 1))])


def test_another_divergence(random_model):
    model, x = double(random_model, 3, 3), torch.randn(4, 3).double()

    def largest(a, w):
        return (a - w).abs().amax()

    actual = EquivarianceLoss(model, S3, S3, None, largest)(x)
    each = [largest(model(S3.act(g, x)), S3.act(g, model(x))) for g in range(1, 6)]
    close(actual, max(each))


def test_penalties_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"of one group; got .*symmetric.*dihedral"):
        EquivarianceLoss(nn.Identity(), S3, D4)
    one = Trivial(trivial())
    with pytest.raises(ValueError, match="trivial group"):
        EquivarianceLoss(nn.Identity(), one, one)
    for samples in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1; got {samples}"):
            EquivarianceLoss(nn.Identity(), S3, S3, samples)
    with pytest.raises(ValueError, match=r"of one group; got .*symmetric.*dihedral"):
        GroupAugmentation(S3, D4)


def test_augmentation_keeps_inputs_and_targets_together():
    """Targets that are the inputs: they must be moved by the same element."""
    x = torch.randn(200, 3).double()
    moved, target = GroupAugmentation(S3, S3)(x, x)
    assert torch.equal(moved, target)
    torch.manual_seed(5)
    moved, again = GroupAugmentation(S3, S3)(x, x)
    torch.manual_seed(5)
    elements = torch.randint(6, (200,))  # all of them, the identity too
    assert torch.equal(moved, S3.act_each(elements, x))
    for i, g in enumerate(elements.tolist()):
        assert torch.equal(moved[i], S3.act(g, x[i : i + 1])[0])
    assert torch.bincount(elements, minlength=6).amin() > 0


def test_augmentation_maps_class_labels():
    """Quarter turns of an image with one bright corner; the class is which corner it is."""
    images = image_dihedral()
    corners = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0]])
    x = torch.zeros(4, 2, 2)
    x[torch.arange(4), corners[:, 0], corners[:, 1]] = 1
    x, labels = x.repeat(20, 1, 1), torch.arange(4).repeat(20)
    where = {tuple(place): i for i, place in enumerate(corners.tolist())}

    def corner(image):
        return where[tuple(image.nonzero()[0].tolist())]

    classes = [[corner(images.act(g, x[:4])[i]) for i in range(4)] for g in range(8)]
    moved, new = GroupAugmentation(images, Tokens(images.group, classes))(x, labels)
    assert new.dtype == labels.dtype and not torch.equal(new, labels)
    assert [corner(image) for image in moved] == new.tolist()


def test_augmentation_of_trees():
    x = {"a": torch.randn(9, 3), "b": torch.randn(9, 2, 3)}
    tree = Tree({"a": S3, "b": S3})
    moved, target = GroupAugmentation(tree, S3)(x, x["a"])
    assert torch.equal(moved["a"], target)
    assert torch.equal(moved["a"].sort(-1).values, x["a"].sort(-1).values)


def curve(optimum):
    """A validation loss with one minimum on a logarithmic scale, worse without a penalty."""

    def validate(weight):
        return (math.log10(weight) - math.log10(optimum)) ** 2 if weight > 0 else 10.0

    return validate


def search(validate, **options):
    return select_weight(lambda weight: weight, validate, progress=False, **options)


def test_the_first_trial_is_without_a_penalty():
    found = search(curve(1.0), trials=6)
    weights = [weight for weight, _ in found.trials]
    assert weights[0] == 0 and len(weights) == len(set(weights)) == 6
    assert all(1e-3 <= weight <= 1e2 for weight in weights[1:])
    assert found.trials == [(w, curve(1.0)(w)) for w in weights]
    assert all(0.5 <= w <= 0.6 for w, _ in search(curve(1.0), low=0.5, high=0.6).trials[1:])


def test_the_search_is_determined_by_its_seed():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, again, other = (search(curve(1.0), seed=seed).trials for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("optimum, seed", [(0.01, 0), (0.7, 1), (30.0, 2)])
def test_a_known_optimum_is_found(optimum, seed):
    found = search(curve(optimum), trials=25, seed=seed)
    assert abs(math.log10(found.weight / optimum)) < 0.35
    assert found.model == found.weight
    assert (found.weight, min(loss for _, loss in found.trials)) in found.trials


def test_two_trials_are_enough():
    assert len(search(curve(1.0), trials=2).trials) == 2


def test_no_penalty_is_kept_where_it_is_best():
    assert search(lambda weight: weight).weight == 0
    assert search(lambda weight: 1.0).weight == 0  # also where all are as good


def test_models_that_diverge_do_not_win():
    for bad in (math.nan, math.inf, -math.inf):
        found = search(lambda w, bad=bad: bad if w == 0 or w > 1 else 1 + w, trials=12)
        assert 0 < found.weight <= 1
        assert len(found.trials) == 12
        found = search(lambda w, bad=bad: bad if w > 0 else 1.0, trials=4)
        assert found.weight == 0
    with pytest.raises(ValueError, match="no trial has a finite validation loss"):
        search(lambda weight: math.nan, trials=3)


def test_losses_may_be_tensors():
    found = search(lambda weight: torch.tensor(weight))
    assert found.weight == 0 and isinstance(found.trials[0][1], float)


def test_only_the_best_model_is_kept():
    models = []

    def fine_tune(weight):
        models.append(types.SimpleNamespace(weight=weight))
        return models[-1]

    found = select_weight(fine_tune, lambda m: curve(1.0)(m.weight), progress=False)
    assert found.model.weight == found.weight
    assert any(found.model is model for model in models)


@pytest.mark.parametrize("verbosity", [logging.DEBUG, logging.ERROR])
def test_optuna_says_nothing_and_is_left_as_it_was(verbosity, capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(verbosity)
    try:
        search(lambda weight: math.nan if weight > 1 else weight)
        assert optuna.logging.get_verbosity() == verbosity
        with pytest.raises(ZeroDivisionError):
            search(lambda weight: 1 / 0)
        assert optuna.logging.get_verbosity() == verbosity
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_is_optional(progress, capsys):
    select_weight(lambda w: w, lambda w: w, trials=3, progress=progress)
    out, err = capsys.readouterr()
    assert out == "" and ("3/3" in err) is progress


@pytest.mark.parametrize(
    "options",
    [
        {"low": 0.0},
        {"low": -1.0},
        {"low": 2.0, "high": 1.0},
        {"low": 1.0, "high": 1.0},
        {"high": math.inf},
        {"low": math.nan},
        {"trials": 1},
    ],
)
def test_searches_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected 0 < low < high and trials >= 2"):
        search(lambda weight: 1 / 0, **options)


def test_without_optuna_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "equirl\[tune\]"'):
        search(lambda weight: weight)


def test_the_penalty_end_to_end(random_model):
    """More of the penalty is better here: the validation split is turned, the training is not."""
    x = torch.randn(40, 3).double()
    y = x.square().sum(1, keepdim=True)  # invariant
    invariant = Trivial(S3.group)

    def fine_tune(weight):
        model = double(random_model, 3, 1)
        penalty = EquivarianceLoss(model, S3, invariant, None)
        adam = torch.optim.Adam(model.parameters(), lr=3e-2)
        for _ in range(20):
            adam.zero_grad()
            output = model(x.sort(-1).values)
            loss = squared_error(output, y) + weight * penalty(x.sort(-1).values, output)
            loss.backward()
            adam.step()
        return model

    def validate(model):
        with torch.no_grad():
            return squared_error(model(x), y)

    found = select_weight(fine_tune, validate, trials=4, progress=False)
    assert found.weight > 0
    assert float(validate(found.model)) == min(loss for _, loss in found.trials)
    with pytest.raises(AssertionError):  # which is not exact
        assert_equivariant(found.model, S3, invariant, x)


@pytest.mark.parametrize("samples", [None, 2])
def test_the_batch_on_other_axes(samples):
    """A time-first classifier (T, B, 3) to (B, 3): the penalty and augmentation of both layouts."""
    layer = nn.Linear(3, 3).double()

    def first(x):  # (B, T, 3) to (B, 3)
        return (layer(x).tanh() * torch.arange(1.0, 6.0)[:, None]).sum(1)

    def second(x):
        return first(x.transpose(0, 1))

    x = torch.randn(4, 5, 3, dtype=torch.float64)
    by_sample = EquivarianceLoss(first, S3, S3, samples)
    by_time = EquivarianceLoss(second, S3, S3, samples, batch_dim=(1, 0))
    for output in (None, first(x)):
        torch.manual_seed(0)
        expected = by_sample(x, output)
        torch.manual_seed(0)
        assert torch.equal(by_time(x.transpose(0, 1), output), expected)
        assert expected > 0
    with pytest.raises(ValueError, match="empty batch"):
        by_time(x.transpose(0, 1)[:, :0])
    y = torch.randn(4, 3, dtype=torch.float64)
    torch.manual_seed(0)
    expected = GroupAugmentation(S3, S3)(x, y)
    torch.manual_seed(0)
    moved, target = GroupAugmentation(S3, S3, batch_dim=(1, 0))(x.transpose(0, 1), y)
    assert torch.equal(moved.transpose(0, 1), expected[0]) and torch.equal(target, expected[1])


def test_labels_that_losses_leave_out_stay():
    words = Tokens.from_cycles(cyclic(3), [[[0, 1, 2]]], size=4)
    labels = torch.tensor([[0, -100, 3], [1, 2, -100]])
    ids, moved = GroupAugmentation(words, words)(labels.clamp(min=0), labels)
    assert torch.equal(moved == -100, labels == -100)
    assert torch.equal(ids[labels != -100], moved[labels != -100])


def test_targets_and_axes_that_do_not_fit_are_named():
    turns = image_dihedral()
    augment = GroupAugmentation(turns, Trivial(turns.group))
    with pytest.raises(TypeError, match="the target's representation acts on one tensor; got list"):
        augment(torch.rand(2, 4, 4), [torch.rand(3), torch.rand(4)])
    labelled = GroupAugmentation(S3, Trivial(S3.group), batch_dim=1)
    with pytest.raises(ValueError, match=r"the target has the shape \(2,\), which has no axis 1"):
        labelled(torch.rand(5, 2, 3), torch.zeros(2))
    penalty = EquivarianceLoss(lambda x: x.sum(0), S3, S3, None, batch_dim=1)
    with pytest.raises(ValueError, match="with its batch first, shape .* batch_dim is a pair"):
        penalty(torch.rand(5, 2, 3))
