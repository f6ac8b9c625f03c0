import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equicore import (
    Best,
    Matrix,
    Maximum,
    Mean,
    MLPWeight,
    Permutation,
    Symmetrized,
    Trivial,
    assert_equivariant,
    confidence,
    cyclic,
    dihedral,
    equitune,
    equizero,
    image_dihedral,
    image_rotations,
    lambda_equitune,
    max_value,
    negative_entropy,
    product,
    symmetric,
)

FLOATS = [torch.float32, torch.float64]
SCORES = [score.along(-1) for score in (confidence, negative_entropy, max_value)]

S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
S4 = Permutation.from_generators(symmetric(4), [[1, 0, 2, 3], [1, 2, 3, 0]])
D6 = Permutation.from_generators(dihedral(6), [[1, 2, 3, 4, 5, 0], [0, 5, 4, 3, 2, 1]])
D4_C3 = Permutation.from_generators(
    product(dihedral(4), cyclic(3)),
    [[1, 2, 3, 0, 4, 5, 6], [0, 3, 2, 1, 4, 5, 6], [0, 1, 2, 3, 5, 6, 4]],
)
C3 = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
METHODS = ["equitune", *SCORES, "lambda_equitune"]
EACH_METHOD = pytest.mark.parametrize(
    "method", METHODS, ids=lambda method: getattr(method, "__name__", method)
)


def symmetrised(method, model, input_rep, output_rep, shape, randomise, **options):
    if method == "equitune":
        return equitune(model, input_rep, output_rep, **options)
    if method == "lambda_equitune":
        weight = MLPWeight(shape, hidden=(8,))
        randomise(weight, 7)  # its last layer is zero at first
        return lambda_equitune(model, input_rep, output_rep, weight, **options)
    return equizero(model, input_rep, output_rep, score=method, **options)


def close(actual, expected):
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def aligned_slices(model, input_rep, output_rep, x):
    """The definition, one sample and element at a time: raw f(g x), and g^-1 f(g x)."""
    raw = [
        torch.cat([model(input_rep.act(g, x[i : i + 1])) for i in range(len(x))])
        for g in range(len(input_rep.group))
    ]
    aligned = [output_rep.act(input_rep.group.inverse(g), y) for g, y in enumerate(raw)]
    return torch.stack(raw), torch.stack(aligned)


class Given(nn.Module):
    """Log-weights by a function of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), method=st.sampled_from(METHODS), dtype=st.sampled_from(FLOATS))
def test_random_models_become_equivariant(
    method, dtype, groups, representations, random_model, randomise, stabilised, data
):
    group = data.draw(groups)
    # faithful: else some outputs vanish, and rounding is all that is left to compare
    input_rep, shape_in = data.draw(representations(group, faithful=True))
    output_rep, shape_out = data.draw(representations(group))
    seed = data.draw(st.integers(0, 2**16))
    inner = random_model(shape_in, shape_out, seed)
    chunk = data.draw(st.sampled_from([None, None, 3]))
    model = symmetrised(method, inner, input_rep, output_rep, shape_in, randomise, chunk=chunk)
    x = torch.randn(2, *shape_in, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    h = data.draw(st.integers(0, len(group) - 1))
    batch = torch.cat([x, stabilised(input_rep, h, x), torch.zeros_like(x[:1])])
    assert_equivariant(model.to(dtype), input_rep, output_rep, batch)
    assert_equivariant(model, input_rep, output_rep, x[:1])
    assert model(batch).shape == (5, *shape_out)
    assert model(batch).dtype == dtype


@EACH_METHOD
@pytest.mark.parametrize(
    "rep, dtype", [(S4, torch.float64), (D4_C3, torch.float32)], ids=["S4", "D4 x C3"]
)
def test_stabilised_inputs_alone(method, rep, dtype, random_model, randomise, stabilised):
    shape = (rep.size,)
    model = symmetrised(method, random_model(shape, shape, 1), rep, rep, shape, randomise).to(dtype)
    for h in range(1, len(rep.group), 4):
        x = stabilised(rep, h, torch.randn(1, *shape, dtype=dtype))
        assert torch.equal(rep.act(h, x), x)
        assert_equivariant(model, rep, rep, x)


@pytest.mark.parametrize("rep", [S3, S4, D6, D4_C3], ids=lambda rep: rep.group.name)
def test_plain_random_models_are_not_equivariant(rep, random_model):
    model = random_model((rep.size,), (rep.size,), 1)
    for output_rep in (rep, Trivial(rep.group)):
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(model, rep, output_rep, torch.randn(4, rep.size))


@EACH_METHOD
def test_symmetric_images(method, random_model, randomise):
    rep = image_dihedral()
    x = torch.rand(2, 1, 4, 4)
    mirrored = torch.maximum(x, x.flip(-1))
    turned = torch.stack([x.rot90(k, (-2, -1)) for k in range(4)]).amax(0)
    batch = torch.cat([mirrored, turned, torch.ones(1, 1, 4, 4)])
    for output_rep, shape_out in ((Trivial(rep.group), (10,)), (rep, (2, 3, 3))):
        model = random_model((1, 4, 4), shape_out, 3)
        model = symmetrised(method, model, rep, output_rep, (1, 4, 4), randomise)
        assert_equivariant(model, rep, output_rep, batch)


def test_arg_max_alone_is_not_equivariant_on_stabilised_inputs(random_model):
    class First(Best):
        def whole(self, stack, scores):
            return stack[scores.argmax(0), torch.arange(stack.shape[1])]

    model = Symmetrized(random_model((3,), (3,), 1), S3, S3, First(confidence))
    equal = torch.tensor([[1.0, 1.0, 1.0]])
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, S3, S3, equal)


@pytest.mark.parametrize("rep", [C3, S3, D6], ids=lambda rep: rep.group.name)
def test_equitune_is_the_mean_by_hand(rep, random_model):
    model = random_model((rep.size,), (rep.size,), 2).double()
    x = torch.randn(5, rep.size, dtype=torch.float64)
    _, aligned = aligned_slices(model, rep, rep, x)
    close(equitune(model, rep, rep)(x), aligned.mean(0))


@pytest.mark.parametrize(
    "score, rep", list(zip(SCORES, [C3, S3, D6], strict=True)), ids=["C3", "S3", "D6"]
)
def test_equizero_is_the_best_slice_by_hand(score, rep, random_model):
    model = random_model((rep.size,), (rep.size,), 2).double()
    x = torch.randn(5, rep.size, dtype=torch.float64)
    raw, aligned = aligned_slices(model, rep, rep, x)
    output = equizero(model, rep, rep, score=score)(x)
    winners = set()
    for i in range(len(x)):
        scores = [score(raw[g : g + 1, i : i + 1]).item() for g in range(len(rep.group))]
        best = max(range(len(scores)), key=scores.__getitem__)
        assert sorted(scores)[-1] - sorted(scores)[-2] > 1e-4  # distinct
        close(output[i], aligned[best, i])
        winners.add(best)
    assert len(winners) > 1


def test_equizero_scores_confidence_by_default(random_model):
    model = random_model((3,), (3,), 2)
    x = torch.randn(20, 3)
    by_default = equizero(model, S3, S3)(x)
    assert torch.equal(by_default, equizero(model, S3, S3, score=confidence)(x))
    assert not torch.equal(by_default, equizero(model, S3, S3, score=max_value)(x))


@pytest.mark.parametrize("score", [None, lambda raw: 2 * max_value(raw)], ids=["", "score"])
def test_lambda_equitune_is_the_weighted_mean_by_hand(score, random_model, randomise):
    model = random_model((3,), (3,), 2).double()
    weight = MLPWeight((3,), hidden=(8,)).double()
    randomise(weight, 3)
    x = torch.randn(5, 3, dtype=torch.float64)
    raw, aligned = aligned_slices(model, S3, S3, x)
    log_weights = torch.stack([weight(S3.act(g, x)) for g in range(6)])
    if score is not None:
        log_weights = log_weights + torch.stack([2 * y.amax(-1) for y in raw])
    expected = (log_weights.exp()[..., None] * aligned).sum(0) / log_weights.exp().sum(0)[:, None]
    symmetric_model = lambda_equitune(model, S3, S3, weight, score=score)
    close(symmetric_model(x), expected)
    close(symmetric_model.scores(x), log_weights)
    assert_equivariant(symmetric_model, S3, S3, x)


@pytest.mark.parametrize("rep", [C3, S3, D6], ids=lambda rep: rep.group.name)
def test_what_is_reduced(rep, random_model):
    model = random_model((rep.size,), (rep.size,), 2).double()
    x = torch.randn(5, rep.size, dtype=torch.float64)
    raw, aligned = aligned_slices(model, rep, rep, x)
    symmetric_model = equizero(model, rep, rep, score=max_value)
    close(symmetric_model.aligned(x), aligned)
    close(symmetric_model.views(x), rep.orbit(x))
    close(symmetric_model.scores(x), raw.amax(-1))


@pytest.mark.parametrize("g", range(6))
def test_one_large_log_weight_gives_its_slice(g, random_model):
    model = random_model((3,), (3,), 2)
    x = torch.randn(5, 3)
    weight = Given(lambda inputs: 1e4 * (torch.arange(len(inputs)) // len(x) == g))
    _, aligned = aligned_slices(model, S3, S3, x)
    close(lambda_equitune(model, S3, S3, weight)(x), aligned[g])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rep", [S3, S4, D6, D4_C3], ids=lambda rep: rep.group.name)
def test_maximum_has_the_arg_max_of_the_best_value(rep, dtype, random_model, stabilised):
    model = random_model((rep.size,), (rep.size,), 5).to(dtype)
    maximum = Symmetrized(model, rep, rep, Maximum())
    x = torch.randn(50, rep.size, dtype=dtype)
    best = equizero(model, rep, rep, score=max_value)(x)
    assert torch.equal(maximum(x).argmax(-1), best.argmax(-1))
    close(maximum(x).amax(-1), best.amax(-1))
    assert_equivariant(maximum, rep, rep, x)
    assert_equivariant(maximum, rep, rep, stabilised(rep, 1, x))


@EACH_METHOD
def test_more_arguments_reach_the_model(method, randomise):
    seen = []

    def model(x, offset, *, scale):
        seen.append((offset, scale))
        return scale * x + offset

    symmetric_model = symmetrised(method, model, S3, S3, (3,), randomise)
    close(symmetric_model(torch.zeros(2, 3), 5.0, scale=2.0), torch.full((2, 3), 5.0))
    assert seen == [(5.0, 2.0)]


def test_the_model_runs_once_on_the_whole_orbit():
    shapes = []

    def model(x):
        shapes.append(x.shape)
        return x

    close(equitune(model, S4, S4)(torch.ones(5, 2, 4)), torch.ones(5, 2, 4))
    assert shapes == [(120, 2, 4)]


@EACH_METHOD
def test_gradients_reach_every_parameter(method, random_model, randomise):
    model = symmetrised(method, random_model((3,), (3,), 1), S3, S3, (3,), randomise)
    (model(torch.randn(20, 3)) ** 2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    # some parameters of single layers may be idle, whole layers not; a constant added to all
    # log-weights changes nothing, so the last bias of the weight network learns nothing
    learnt = {n for n, p in model.named_parameters() if p.grad.abs().sum() > 1e-6}
    idle = {n for n, _ in model.named_parameters()} - learnt
    assert idle <= {"reduce.weight.network.2.bias"}


def test_invariant_outputs_of_one_number_per_sample():
    rep = Matrix(cyclic(2), [[[1.0]], [[-1.0]]])
    invariant = equitune(lambda x: (x + 1).square().sum(-1), rep, Trivial(rep.group))
    close(invariant(torch.tensor([[2.0], [3.0]])), torch.tensor([5.0, 10.0]))


def test_integer_inputs_reach_the_model_as_they_are(random_model):
    rotations = image_rotations()
    invariant = Trivial(rotations.group)
    images = torch.randint(256, (3, 4, 4), dtype=torch.uint8)
    dtypes = []

    def model(x):
        dtypes.append(x.dtype)
        return x.flatten(1)[:, :5].float() / 255

    assert_equivariant(equizero(model, rotations, invariant), rotations, invariant, images)
    assert set(dtypes) == {torch.uint8}


def test_representations_of_different_groups_are_refused():
    with pytest.raises(ValueError, match=r"'symmetric\(3\)', order 6.*'cyclic\(3\)', order 3"):
        equitune(nn.Identity(), S3, C3)
    assert isinstance(equitune(nn.Identity(), C3, Trivial(cyclic(3))).reduce, Mean)


def test_empty_batches_are_refused():
    with pytest.raises(ValueError, match=r"empty batch: .* \(0, 3\)"):
        equitune(nn.Identity(), S3, S3)(torch.zeros(0, 3))


@pytest.mark.parametrize("model", [lambda x: x[:-1], lambda x: x.mT, lambda x: x.sum(0, True)])
def test_models_that_lose_the_batch_are_refused(model):
    with pytest.raises(
        ValueError, match=r"given 6 x 5 = 30 samples and the model returned shape \("
    ):
        equitune(model, S3, S3)(torch.zeros(5, 3))


@pytest.mark.parametrize(
    "score, shape",
    [(lambda raw: raw, "(6, 5, 3)"), (lambda raw: raw[0, :, 0], "(5,)"), (torch.sum, "()")],
)
def test_scores_of_the_wrong_shape_are_refused(score, shape):
    with pytest.raises(ValueError) as error:
        equizero(nn.Identity(), S3, S3, score=score)(torch.zeros(5, 3))
    assert f"the score returned shape {shape}, expected" in str(error.value)
    assert "(6, 5)" in str(error.value)
    weighted = lambda_equitune(nn.Identity(), S3, S3, nn.Linear(3, 1), score=score)
    with pytest.raises(ValueError, match=re.escape(f"the score returned shape {shape}, expected")):
        weighted(torch.zeros(5, 3))
    sparse = lambda_equitune(nn.Identity(), S3, S3, nn.Linear(3, 1), score=score, top_k=2)
    with pytest.raises(ValueError, match="the score returned shape"):
        sparse(torch.randn(5, 3))


@pytest.mark.parametrize(
    "weight, shape", [(lambda x: x, "(30, 3)"), (lambda x: x[:5, 0], "(5,)"), (torch.sum, "()")]
)
def test_weights_of_the_wrong_shape_are_refused(weight, shape):
    with pytest.raises(ValueError) as error:
        lambda_equitune(nn.Identity(), S3, S3, Given(weight))(torch.zeros(5, 3))
    assert f"the weight network returned shape {shape} for 30 inputs" in str(error.value)
