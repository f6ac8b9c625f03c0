import math

import pytest
import torch

from equicore import (
    Matrix,
    MLPWeight,
    Permutation,
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
    options = {"steps": 300, "batch_size": 64, "learning_rate": 1e-2} | options
    return weight, fit_familiarity(weighted(weight, rep), inputs, **options)


def weights_over_orbit(weight, rep, x):
    return weighted(weight, rep).reduce.weights(rep.orbit(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
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


@pytest.mark.parametrize("dtype", FLOATS)
def test_familiarity_tells_the_half_space_that_was_seen(dtype):
    weight = MLPWeight((2,), hidden=(16,)).to(dtype)
    options = {"steps": 300, "batch_size": 64, "learning_rate": 1e-2}
    loss = fit_familiarity(weighted(weight, SIGN), half_space(500), **options)
    assert loss < 0.1 * math.log(2)
    new = half_space(100, seed=1).to(dtype)
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
    weight, loss = fitted(S3, inputs, learning_rate=1e-3, batch_size=256)
    assert abs(loss - math.log(6)) < 0.05
    assert weights_over_orbit(weight, S3, inputs).amax() < 0.6


def test_the_loss_returned_is_that_of_inputs_not_trained_on():
    # only by heart: nothing in these inputs tells one element of an orbit from another
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    weight, loss = fitted(S3, inputs, held_out=0.5, steps=1000)
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
