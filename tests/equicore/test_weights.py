import math

import pytest
import torch

from equicore import (
    Matrix,
    MLPWeight,
    Permutation,
    Tree,
    Trivial,
    assert_equivariant,
    cyclic,
    equitune,
    fit_familiarity,
    lambda_equitune,
    symmetric,
)

FLOATS = [torch.float32, torch.float64]
S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
# the first of two coordinates changes its sign
SIGN = Matrix(cyclic(2), [torch.eye(2).tolist(), [[-1.0, 0.0], [0.0, 1.0]]])


def half_space(n, seed=0):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = x[:, 0].abs() + 0.3
    return x


def weighted(weight, rep):
    return lambda_equitune(torch.nn.Identity(), rep, rep, weight)


def fitted(rep, inputs, **options):
    weight = MLPWeight(inputs.shape[1:], hidden=(16,))
    options = {"steps": 100, "batch_size": 64, "learning_rate": 3e-2} | options
    return weight, fit_familiarity(weighted(weight, rep), inputs, **options)


def weights_over_orbit(weight, rep, x):
    return weighted(weight, rep).scores(x).softmax(0)


@pytest.mark.parametrize(
    "hidden, dtype", [((), torch.float64), ((8,), torch.float32), ((8, 4), torch.float64)]
)
def test_before_fitting_lambda_equitune_is_equitune(hidden, dtype, random_model):
    model = random_model((3,), (3,), 1).to(dtype)
    weight = MLPWeight((3,), hidden=hidden).to(dtype)
    x = torch.randn(5, 3, dtype=dtype)
    assert torch.equal(weight(x), torch.zeros(5, dtype=dtype))
    actual, expected = lambda_equitune(model, S3, S3, weight)(x), equitune(model, S3, S3)(x)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual, expected, rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3)])
def test_one_log_weight_for_each_input(shape, randomise):
    weight = MLPWeight(shape)
    randomise(weight, 1)
    x = torch.randn(5, *shape)
    assert weight(x).shape == (5,)
    torch.testing.assert_close(weight(x[2:3]), weight(x)[2:3])


def test_integer_inputs_are_taken_as_numbers(randomise):
    weight = MLPWeight((4, 4))
    randomise(weight, 1)
    images = torch.randint(256, (5, 4, 4), dtype=torch.uint8)
    assert torch.equal(weight(images), weight(images.float()))


def test_standardize_scales_to_mean_0_and_deviation_1():
    weight = MLPWeight((3,))
    x = torch.tensor([[1.0, 10.0, 5.0], [3.0, 30.0, 5.0]])
    weight.standardize(x)
    # the last feature never changes: it is shifted but not scaled
    assert weight.shift.tolist() == [2.0, 20.0, 5.0]
    assert weight.scale.tolist() == [1.0, 10.0, 1.0]


def test_familiarity_tells_the_half_space_that_was_seen():
    weight, loss = fitted(SIGN, half_space(500))
    assert loss < 0.1 * math.log(2)
    new = half_space(100, seed=1)
    seen_side, other_side = (weights_over_orbit(weight, SIGN, SIGN.act(g, new)) for g in (0, 1))
    assert (seen_side[0] > 0.9).all()
    assert (other_side[1] > 0.9).all()


def test_familiarity_finds_the_element_that_leads_home():
    # seen: the second entry is largest, the first smallest
    seen = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).sort(-1).values
    seen = seen[:, [0, 2, 1]] + torch.tensor([0.0, 1.0, 0.5])
    weight, loss = fitted(S3, seen)
    assert loss < 0.1 * math.log(6)
    for h in range(6):
        heaviest = weights_over_orbit(weight, S3, S3.act(h, seen[:50])).argmax(0)
        assert (heaviest == S3.group.inverse(h)).all()


def test_nothing_can_be_told_on_a_symmetric_distribution():
    inputs = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    weight, loss = fitted(S3, inputs, learning_rate=3e-3, batch_size=256)
    assert abs(loss - math.log(6)) < 0.05
    assert weights_over_orbit(weight, S3, inputs).amax() < 0.6


def test_the_loss_returned_is_that_of_inputs_not_trained_on():
    # only by heart: nothing in these inputs tells one element of an orbit from another
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    weight, loss = fitted(S3, inputs, held_out=0.5, steps=200)
    on_all = -weights_over_orbit(weight, S3, inputs)[0].log().mean().item()
    assert loss > math.log(6) > on_all


def test_fitting_is_determined_by_its_seed():
    inputs = half_space(200)
    losses, parameters = [], []
    for seed in (3, 3, 4):
        torch.manual_seed(len(losses))
        weight, loss = fitted(SIGN, inputs, steps=20, seed=seed)
        losses.append(loss)
        parameters.append(torch.nn.utils.parameters_to_vector(weight.parameters()))
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])


def test_initial_parameters_are_determined_by_their_seed():
    def first_layer(seed):
        return MLPWeight((3,), seed=seed).network[0].weight

    assert torch.equal(first_layer(1), first_layer(1))
    assert not torch.equal(first_layer(1), first_layer(2))


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    fitted(SIGN, half_space(50), steps=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fitting_changes_neither_the_inputs_nor_their_type():
    inputs = half_space(50).double()
    copy = inputs.clone()
    fitted(SIGN, inputs, steps=3)
    assert torch.equal(inputs, copy)


class Model(torch.nn.Module):
    """With BatchNorm and dropout before the features; it counts the samples of each call."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        )
        self.head = torch.nn.Linear(4, 2)
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return self.head(self.features(x))


def by_features(model, **options):
    weight = MLPWeight((4,), hidden=(16,))
    return lambda_equitune(model, SIGN, SIGN, weight, features="features", **options)


FEW = {"steps": 30, "batch_size": 16, "learning_rate": 3e-2}


def test_for_features_the_model_runs_once_on_each_input():
    model = Model()
    fit_familiarity(by_features(model), half_space(50), **FEW)
    assert model.calls == [32, 32, 32, 4]  # |G| = 2 times batches of 16


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_is(training):
    """In train mode its statistics would change, and dropout would make features random."""
    model = Model().train(training)
    model.head.eval()
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        symmetrized = by_features(model)
        fit_familiarity(symmetrized, half_space(50), **FEW)
        states.append(torch.nn.utils.parameters_to_vector(symmetrized.reduce.parameters()))
    assert torch.equal(*states)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_features_are_fitted_like_inputs():
    """Features that are the inputs give the same weights as the inputs."""
    inputs, model = half_space(100), torch.nn.Sequential(torch.nn.Identity())
    vectors, losses = [], []
    for features in (None, "0"):
        weight = MLPWeight((2,), hidden=(16,))
        symmetrized = lambda_equitune(model, SIGN, SIGN, weight, features)
        losses.append(fit_familiarity(symmetrized, inputs, **FEW))
        vectors.append(torch.nn.utils.parameters_to_vector(weight.parameters()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-5)


def test_features_of_a_model_in_another_type_than_the_weights():
    model = Model().double().eval()
    symmetrized = by_features(model)
    assert fit_familiarity(symmetrized, half_space(50), **FEW | {"steps": 100}) < 0.3
    assert symmetrized(half_space(5).double()).dtype == torch.float64


def test_inputs_have_their_batch_where_the_model_has_it():
    inputs, losses = half_space(100), []
    for batch_dim, x in ((0, inputs), (1, inputs.T)):
        weight = MLPWeight((2,), hidden=(16,))
        symmetrized = lambda_equitune(torch.nn.Identity(), SIGN, SIGN, weight, batch_dim=batch_dim)
        losses.append(fit_familiarity(symmetrized, x, **FEW))
    assert losses[0] == losses[1] < 0.3


class Summed(torch.nn.Module):
    """Weighs a dict of inputs."""

    def __init__(self):
        super().__init__()
        self.inner = MLPWeight((2,), hidden=(16,))

    def forward(self, x):
        return self.inner(x["a"] + x["b"])


def test_trees_of_inputs():
    rep = Tree({"a": SIGN, "b": SIGN})
    model = lambda_equitune(lambda x: x["a"], rep, SIGN, Summed())
    inputs = {"a": half_space(100, 1), "b": half_space(100, 2)}
    assert fit_familiarity(model, inputs, **FEW | {"steps": 100}) < 0.2
    inputs["b"][3, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_familiarity(model, inputs)


def test_a_weight_network_with_dropout():
    """It is on while it learns, off where the loss is measured, and then as it was."""
    dropout, seen = torch.nn.Dropout(0.2), []
    dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    weight = torch.nn.Sequential(
        torch.nn.Linear(2, 16), torch.nn.ReLU(), dropout, torch.nn.Linear(16, 1)
    )
    for training in (True, False):
        weight.train(training)
        seen.clear()
        fit_familiarity(weighted(weight, SIGN), half_space(50), **FEW)
        assert seen == [True] * 30 + [False]
        assert all(module.training is training for module in weight.modules())


@pytest.mark.parametrize(("held_out", "trained_on"), [(0.01, 9), (0.5, 5), (0.99, 1)])
def test_at_least_one_input_is_held_out_and_one_is_trained_on(held_out, trained_on):
    inputs = half_space(10)
    inputs[:, 1] = torch.arange(10.0)
    seen = []
    weight = MLPWeight((2,), hidden=())
    weight.register_forward_pre_hook(lambda _, args: seen.append(set(args[0][:, 1].tolist())))
    fit_familiarity(weighted(weight, SIGN), inputs, **FEW | {"held_out": held_out})
    assert len(set.union(*seen[:-1])) == trained_on
    assert set.union(*seen[:-1]) | seen[-1] == set(range(10))
    assert not set.union(*seen[:-1]) & seen[-1]


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, math.nan])
def test_all_or_nothing_cannot_be_held_out(held_out):
    with pytest.raises(ValueError, match="held_out is a part between 0 and 1"):
        fitted(SIGN, half_space(20), held_out=held_out)


def test_what_has_no_weights_to_fit_is_refused():
    plain = equitune(torch.nn.Identity(), SIGN, SIGN)
    with pytest.raises(TypeError, match="Symmetrized with the reducer Mean"):
        fit_familiarity(plain, half_space(20))
    with pytest.raises(TypeError, match="got Linear"):
        fit_familiarity(torch.nn.Linear(2, 2), half_space(20))
    with pytest.raises(TypeError, match="weight network Flatten has no parameters"):
        fit_familiarity(weighted(torch.nn.Flatten(0), SIGN), half_space(20))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_is_not_taken_for_deviation(dtype):
    """A constant input, as the border of an image, that is inexact in some samples."""
    weight = MLPWeight((3,)).to(dtype)
    x = torch.randn(10, 3, dtype=dtype)
    x[:, 1] = torch.tensor(-0.42421296)
    x[::2, 1] *= 1 + 4 * torch.finfo(dtype).eps
    x[:, 2] *= 1e-3
    weight.standardize(x)
    assert weight.scale[1] == 1
    torch.testing.assert_close(weight.scale[[0, 2]], x[:, [0, 2]].std(0, correction=0))


def test_pooled_inputs():
    pool = torch.nn.AdaptiveAvgPool2d(2)
    weight = MLPWeight((1, 2, 2), pool=pool)
    torch.nn.init.normal_(weight.network[-1].weight)
    x = torch.randn(5, 1, 6, 6)
    assert torch.equal(weight(x), weight(pool(x)))
    with pytest.raises(ValueError, match=r"shape \(N, 1, 2, 2\); got \(5, 3, 2, 2\)"):
        weight(torch.randn(5, 3, 6, 6))


def test_state_dict_carries_the_standardization():
    weight, _ = fitted(SIGN, half_space(50), steps=3)
    other = MLPWeight((2,), hidden=(16,), seed=1)
    x = half_space(5, seed=1)
    assert not torch.equal(other(x), weight(x))
    other.load_state_dict(weight.state_dict())
    assert torch.equal(other(x), weight(x))


def test_nine_inputs_are_too_few():
    with pytest.raises(ValueError, match=r"at least 10 inputs; got shape \(9, 2\)"):
        fitted(SIGN, half_space(9))
    fitted(SIGN, half_space(10), steps=1)


@pytest.mark.parametrize("shape", [(20, 3), (20,), (20, 2, 1)])
def test_inputs_of_another_shape_are_refused(shape):
    weight = MLPWeight((2,))
    with pytest.raises(ValueError) as error:
        fit_familiarity(weighted(weight, SIGN), torch.zeros(shape))
    assert "(N, 2)" in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inputs_must_be_finite(bad):
    inputs = half_space(20)
    inputs[7, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        fitted(SIGN, inputs)


def test_trees_are_seen_by_the_entries_that_are_named():
    rep = Tree({"a": SIGN, "b": SIGN, "unseen": Trivial(cyclic(2))})
    weight = MLPWeight({"a": (2,), "b": (3, 2)}, hidden=(16,))
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "a": torch.rand(400, 2, generator=generator),  # on the positive side
        "b": torch.randn(400, 3, 2, generator=generator),
        "unseen": torch.zeros(400, dtype=torch.long),
    }
    model = lambda_equitune(lambda x: x["a"] * x["b"].sum(1), rep, SIGN, weight)
    assert fit_familiarity(model, inputs, steps=1000, learning_rate=3e-3) < 0.2
    assert weight.fitted
    assert_equivariant(model, rep, SIGN, inputs)
    with pytest.raises(ValueError, match=r"takes inputs\['b'\] of shape \(N, 3, 2\); got \(5, 2\)"):
        weight({"a": torch.zeros(5, 2), "b": torch.zeros(5, 2)})
    with pytest.raises(ValueError, match=r"takes inputs\['a'\] of shape \(N, 2\); got NoneType"):
        weight({"b": torch.zeros(5, 3, 2)})
    nested = MLPWeight({"inner": {"a": (2,)}})
    assert nested({"inner": {"a": torch.zeros(5, 2)}}).shape == (5,)


def test_reset_makes_it_as_it_was_before_it_was_fitted():
    weight, fresh = MLPWeight((2,), seed=3), MLPWeight((2,), seed=3)
    randomized = [p.data.normal_() for p in weight.parameters()]
    assert randomized
    weight.standardize(torch.randn(5, 2))
    weight.reset_parameters()
    for name, value in weight.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])
