"""The options of the methods: gradients, features, top_k, samples, and what they refuse."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from equicore import (
    Best,
    Identity,
    Matrix,
    Mean,
    MLPWeight,
    Permutation,
    StraightThrough,
    Symmetrized,
    Trivial,
    WeightedMean,
    assert_equivariant,
    cyclic,
    dihedral,
    equitune,
    equizero,
    image_dihedral,
    lambda_equitune,
    max_value,
    symmetric,
)
from equicore.continuous import Vectors

C3 = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
S4 = Permutation.from_generators(symmetric(4), [[1, 0, 2, 3], [1, 2, 3, 0]])
D4 = Permutation.from_generators(dihedral(4), [[1, 2, 3, 0], [0, 3, 2, 1]])
QUARTERS = Matrix.from_generators(cyclic(4), [[[0, -1], [1, 0]]])
REPS = [C3, S3, D4]


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def name(rep):
    return rep.group.name


class Counting(nn.Module):
    """A model that remembers how many samples it was given in each call."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return self.model(x)


def gradient(output, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(output.square().sum(), parameters)])


# ------------------------------------------------------------------ straight-through gradients


def linear(seed=0):
    model = nn.Linear(3, 3, bias=False).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.weight.normal_(generator=generator)
    return model


@pytest.mark.parametrize("rep", [C3, S3], ids=name)
def test_straight_through_gradients_by_hand(rep):
    """For f(x) = W x and an upstream gradient v: dL/dW = v x^T, carried through each element."""
    model = linear()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, dtype=torch.float64, generator=generator)
    v = torch.randn(1, 3, dtype=torch.float64, generator=generator)
    # move x to where element 1 is the best: with another, the estimators could agree by chance
    best = rep.group[int(equizero(model, rep, rep, max_value).scores(x).argmax())]
    x = rep.act(~rep.group[1] @ best, x)
    elements = range(len(rep.group))
    # d(v . g^-1 W g x) / dW = (g v) (g x)^T, as permutation matrices are orthogonal
    by_element = [rep.act(g, v).T @ rep.act(g, x) for g in elements]
    assert equizero(model, rep, rep, max_value).scores(x).argmax() == 1

    def found(reducer):
        (grad,) = torch.autograd.grad(
            (Symmetrized(model, rep, rep, reducer)(x) * v).sum(), model.weight
        )
        return grad

    best = Best(max_value)
    exact(found(best), by_element[1])
    exact(found(Mean()), torch.stack(by_element).mean(0))
    exact(found(StraightThrough(best, Mean())), torch.stack(by_element).mean(0))
    exact(found(StraightThrough(best, Identity())), by_element[0])


@pytest.mark.parametrize("surrogate", [Mean, Identity])
@pytest.mark.parametrize("rep", REPS, ids=name)
def test_straight_through_keeps_the_value(rep, surrogate, random_model):
    model = random_model((rep.size,), (rep.size,), 1)
    x = torch.randn(5, rep.size)
    x[0] = 1.0  # ties
    plain = equizero(model, rep, rep, max_value)
    through = equizero(model, rep, rep, max_value, gradient=surrogate())
    assert torch.equal(through(x), plain(x))
    assert_equivariant(through, rep, rep, x)


@pytest.mark.parametrize("rep", REPS, ids=name)
def test_straight_through_gradients_are_those_of_the_surrogate(rep, random_model):
    model = random_model((rep.size,), (rep.size,), 1).double()
    parameters = list(model.parameters())
    x = torch.randn(5, rep.size, dtype=torch.float64)
    v = torch.randn(5, rep.size, dtype=torch.float64)

    def grad(output):
        return torch.cat([g.flatten() for g in torch.autograd.grad((output * v).sum(), parameters)])

    through_mean = grad(equizero(model, rep, rep, gradient=Mean())(x))
    exact(through_mean, grad(equitune(model, rep, rep)(x)))
    exact(grad(equizero(model, rep, rep, gradient=Identity())(x)), grad(model(x)))
    assert not torch.allclose(through_mean, grad(equizero(model, rep, rep)(x)))


def test_straight_through_survives_infinite_outputs_that_lost():
    def model(x):
        return torch.where(x[:, :1] > 0, x, -torch.inf)

    x = torch.tensor([[1.0, -1.0, -2.0]])
    assert equizero(model, C3, C3, max_value)(x).isfinite().all()


def test_straight_through_refuses_features():
    weighted = WeightedMean(nn.Linear(3, 1), features="0")
    with pytest.raises(ValueError, match="capture no features"):
        StraightThrough(weighted, Mean())


# --------------------------------------------------------------------------- captured features


def two_layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def test_captured_features_are_those_of_the_model():
    model = two_layers()
    weight = nn.Linear(8, 1).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    captured = lambda_equitune(model, D4, D4, weight, features="1")
    recomputed = lambda_equitune(model, D4, D4, nn.Sequential(model[0], model[1], weight))
    exact(captured(x), recomputed(x))
    exact(captured.scores(x), recomputed.scores(x))
    exact(captured.views(x), model[:2](D4.orbit(x)))
    assert_equivariant(captured, D4, D4, x)


def test_features_are_computed_once_and_no_hook_stays():
    model = two_layers()
    model[0] = Counting(model[0])
    captured = lambda_equitune(model, D4, D4, nn.Linear(8, 1).double(), features="1")
    captured(torch.randn(5, 4, dtype=torch.float64))
    assert model[0].calls == [8 * 5]
    assert not any(m._forward_hooks for m in captured.modules())


def test_gradients_reach_the_weight_network_and_the_model_through_features():
    model = two_layers()
    weight = nn.Linear(8, 1).double()
    captured = lambda_equitune(model, D4, D4, weight, features="1")
    x = torch.randn(5, 4, dtype=torch.float64)
    parameters = [*model.parameters(), weight.weight]
    recomputed = lambda_equitune(model, D4, D4, nn.Sequential(model[0], model[1], weight))
    exact(gradient(captured(x), parameters), gradient(recomputed(x), parameters))
    model.requires_grad_(False)
    captured(x).sum().backward()
    assert weight.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_weights_may_see_the_outputs():
    model = two_layers()
    weight = nn.Linear(4, 1).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    weighted = Symmetrized(model, D4, D4, WeightedMean(weight, of_outputs=True))
    raw = model(D4.orbit(x))
    shares = weight(raw).softmax(0)
    exact(weighted(x), (shares * D4.align(raw)).sum(0))
    exact(weighted.scores(x), weight(raw).squeeze(-1))
    assert_equivariant(weighted, D4, D4, x)


@pytest.mark.parametrize("count", [20, 21])
def test_of_very_many_submodules_twenty_are_named(count):
    model = nn.Sequential(*[nn.Identity() for _ in range(count)])
    with pytest.raises(ValueError) as error:
        lambda_equitune(model, D4, D4, nn.Linear(4, 1), features="last")
    assert ("..." in str(error.value)) is (count > 20)
    assert "'19'" in str(error.value) and "'20'" not in str(error.value)


def test_features_must_name_a_submodule_that_is_called():
    with pytest.raises(ValueError, match=r"'backbone' is none of \['0', '1', '2'\]"):
        lambda_equitune(two_layers(), D4, D4, nn.Linear(8, 1), features="backbone")
    with pytest.raises(ValueError, match="names a submodule"):
        lambda_equitune(torch.tanh, D4, D4, nn.Linear(8, 1), features="1")
    idle = two_layers()
    idle.add_module("idle", nn.Linear(1, 1))
    idle.forward = lambda x: x
    with pytest.raises(ValueError, match="'idle' was not called"):
        lambda_equitune(idle, D4, D4, nn.Linear(8, 1), features="idle")(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="names a submodule"):
        lambda_equitune(two_layers(), D4, D4, nn.Linear(8, 1), features="")  # the model itself


# --------------------------------------------------------------------------------------- top_k


def by_hand(model, weight, rep, x, k, score=None):
    """One sample at a time: the k heaviest elements, their weights normalised."""
    outputs = []
    for i in range(len(x)):
        log_weights = weight(rep.orbit(x[i : i + 1])[:, 0]).flatten()
        chosen = log_weights.topk(k).indices.tolist()
        raw = [model(rep.act(g, x[i : i + 1])) for g in chosen]
        of_outputs = score(torch.stack(raw))[:, 0].detach() if score else 0
        share = (log_weights[chosen] + of_outputs).softmax(0)
        aligned = [rep.act(rep.group.inverse(g), y)[0] for g, y in zip(chosen, raw, strict=True)]
        outputs.append(sum(s * y for s, y in zip(share, aligned, strict=True)))
    return torch.stack(outputs)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("rep", [C3, S3, D4, S4], ids=name)
def test_top_k_by_hand_on_k_samples_each(rep, k, random_model):
    model = Counting(random_model((rep.size,), (rep.size,), 1).double())
    weight = random_model((rep.size,), (1,), 2).double()
    x = torch.randn(6, rep.size, dtype=torch.float64)
    sparse = lambda_equitune(model, rep, rep, weight, top_k=k)
    found = sparse(x)
    assert model.calls == [6 * k if k < len(rep.group) else 6 * len(rep.group)]
    exact(found, by_hand(model.model, weight, rep, x, k))
    assert_equivariant(sparse, rep, rep, x)
    assert_equivariant(sparse, rep, rep, x[:1])


def test_top_k_of_everything_is_lambda_equitune(random_model):
    model = random_model((3,), (3,), 1)
    weight = random_model((3,), (1,), 2)
    x = torch.randn(6, 3)
    everything = lambda_equitune(model, S3, S3, weight)(x)
    for k in (6, 100):
        assert torch.equal(lambda_equitune(model, S3, S3, weight, top_k=k)(x), everything)


@pytest.mark.parametrize("rep", [S3, D4, S4], ids=name)
def test_top_k_is_exact_where_elements_tie(rep, random_model, stabilised):
    for dtype, k in ((torch.float32, 1), (torch.float64, 2)):
        model = random_model((rep.size,), (rep.size,), 1).to(dtype)
        weight = random_model((rep.size,), (1,), 2).to(dtype)
        sparse = lambda_equitune(model, rep, rep, weight, top_k=k)
        for h in range(1, len(rep.group)):
            x = stabilised(rep, h, torch.randn(2, rep.size, dtype=dtype))
            assert_equivariant(sparse, rep, rep, x)


def test_top_k_on_images(randomise):
    square = image_dihedral()
    model = nn.Conv2d(1, 2, 3, padding=1).double()
    weight = MLPWeight((1, 5, 5), hidden=(8,)).double()
    randomise(weight, 1)
    sparse = lambda_equitune(model, square, square, weight, top_k=1)
    x = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    assert_equivariant(sparse, square, square, x)
    chosen = sparse.scores(x).argmax(0)
    assert len(chosen.unique()) > 1
    exact(sparse(x), square.align_each(chosen, model(square.act_each(chosen, x))))


def test_top_k_has_the_gradients_of_the_chosen(random_model):
    model = random_model((3,), (3,), 1).double()
    weight = random_model((3,), (1,), 2).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    parameters = [*model.parameters(), *weight.parameters()]
    sparse = gradient(lambda_equitune(model, S3, S3, weight, top_k=2)(x), parameters)
    exact(sparse, gradient(by_hand(model, weight, S3, x, 2), parameters))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("rep", [S3, D4, S4], ids=name)
def test_top_k_adds_a_score_to_the_log_weights_of_the_chosen(rep, k, random_model, stabilised):
    """The model still runs k times, and the gradients are those of the network and the model."""
    model = Counting(random_model((rep.size,), (rep.size,), 1).double())
    weight = random_model((rep.size,), (1,), 2).double()
    x = torch.randn(6, rep.size, dtype=torch.float64)
    sparse = lambda_equitune(model, rep, rep, weight, score=max_value, top_k=k)
    found = sparse(x)
    assert model.calls == [6 * k]
    expected = by_hand(model.model, weight, rep, x, k, max_value)
    exact(found, expected)
    parameters = [*model.parameters(), *weight.parameters()]
    exact(gradient(found, parameters), gradient(expected, parameters))
    assert not torch.allclose(found, by_hand(model.model, weight, rep, x, k))
    assert_equivariant(sparse, rep, rep, x)
    assert_equivariant(sparse, rep, rep, x[:1])
    for h in range(1, len(rep.group)):
        assert_equivariant(sparse, rep, rep, stabilised(rep, h, x[:2]))


def test_top_k_with_a_score_where_all_elements_tie_is_lambda_equitune(random_model):
    """Also of a score of another type than the log-weights."""
    model, x = random_model((3,), (3,), 1), torch.randn(6, 3)
    for score in (max_value, lambda y: max_value(y).double()):
        weighted = functools.partial(lambda_equitune, model, S3, S3, MLPWeight((3,)), score=score)
        expected = weighted()(x)
        torch.testing.assert_close(weighted(top_k=2)(x), expected.to(x.dtype))


def test_a_score_that_has_no_effect_is_refused():
    with pytest.raises(ValueError, match="with top_k=1 the weight network alone chooses"):
        lambda_equitune(nn.Identity(), S3, S3, nn.Linear(3, 1), score=max_value, top_k=1)


class Sharper(WeightedMean):
    """Whose weights are the tenth power of others'."""

    def scores(self, seen, raw):
        return 10 * super().scores(seen, raw)


def test_top_k_of_reducers_with_scores_of_their_own(random_model):
    model, weight, x = random_model((3,), (3,), 1), random_model((3,), (1,), 2), torch.randn(6, 3)
    found = Symmetrized(model, S3, S3, Sharper(weight), top_k=3)(x)
    ten_times = nn.Sequential(weight, nn.Linear(1, 1, bias=False))
    nn.init.constant_(ten_times[1].weight, 10)
    torch.testing.assert_close(found, lambda_equitune(model, S3, S3, ten_times, top_k=3)(x))
    with pytest.raises(TypeError, match="top_k does not know how the scores of Sharper depend"):
        Symmetrized(model, S3, S3, Sharper(weight, score=max_value), top_k=3)


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_model_that_changes_its_input_does_not_change_the_weights(random_model, top_k):
    inner, weight, x = random_model((3,), (3,), 1), random_model((3,), (1,), 2), torch.randn(6, 3)
    expected = lambda_equitune(lambda y: inner(5 * y), S3, S3, weight, score=max_value, top_k=top_k)
    found = lambda_equitune(
        lambda y: inner(y.mul_(5)), S3, S3, weight, score=max_value, top_k=top_k
    )
    with torch.no_grad():
        torch.testing.assert_close(found(x.clone()), expected(x))


@pytest.mark.parametrize("reducer", [Mean(), Best(max_value), WeightedMean(nn.Linear(8, 1), "1"),
                                     WeightedMean(nn.Linear(8, 1), of_outputs=True)])  # fmt: skip
def test_top_k_needs_weights_of_the_inputs(reducer):
    with pytest.raises(TypeError, match="weights that are known before the model runs"):
        Symmetrized(two_layers(), D4, D4, reducer, top_k=1)


# ------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_samples_are_unbiased(k, weighted, random_model, monkeypatch):
    """The mean over all subsets of k elements is the exact output, and so is its gradient."""
    model = random_model((3,), (3,), 1).double()
    weight = random_model((3,), (1,), 2).double()
    reduce = WeightedMean(weight) if weighted else Mean()
    x = torch.randn(5, 3, dtype=torch.float64)
    v = torch.randn(5, 3, dtype=torch.float64)
    parameters = [*model.parameters(), *(weight.parameters() if weighted else [])]

    def value_and_gradient(module):
        output = module(x)
        grads = torch.autograd.grad((output * v).sum(), parameters)
        return torch.cat([output.detach().flatten(), *(g.flatten() for g in grads)])

    expected = value_and_gradient(Symmetrized(model, S3, S3, reduce))
    sampled = Symmetrized(Counting(model), S3, S3, reduce, samples=k)
    drawn = []
    for subset in itertools.combinations(range(6), k):
        monkeypatch.setattr(torch, "randperm", lambda n, s=subset: torch.tensor([*s, *[0] * n]))
        drawn.append(value_and_gradient(sampled))
    exact(torch.stack(drawn).mean(0), expected)
    assert torch.stack(drawn).std(0).amax() > 1e-3
    assert set(sampled.model.calls) == {5 * k}


def test_samples_are_for_training_and_drawn_from_torchs_random_state(random_model):
    model = random_model((3,), (3,), 1)
    sampled = equitune(model, S3, S3, samples=2)
    x = torch.randn(5, 3)
    torch.manual_seed(0)
    draws = [sampled(x) for _ in range(8)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) > 1
    torch.manual_seed(0)
    assert torch.equal(sampled(x), draws[0])
    sampled.eval()
    assert torch.equal(sampled(x), equitune(model, S3, S3)(x))
    assert_equivariant(sampled, S3, S3, x)
    more = equitune(model, S3, S3, samples=6).train()
    assert torch.equal(more(x), equitune(model, S3, S3)(x))


def test_samples_need_an_unbiased_estimate():
    with pytest.raises(TypeError, match="Best has no unbiased estimate"):
        Symmetrized(nn.Identity(), S3, S3, Best(max_value), samples=2)
    with pytest.raises(TypeError, match="weight network sees the inputs"):
        lambda_equitune(two_layers(), D4, D4, nn.Linear(8, 1), features="1", samples=2)


# ------------------------------------------------------------------------- unusual log-weights


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize(
    "log_weights, expected",
    [
        ([-torch.inf] * 6, [1 / 6] * 6),
        ([torch.inf, 0, 0, torch.inf, -torch.inf, 0], [0.5, 0, 0, 0.5, 0, 0]),
        ([-torch.inf, 0, 0, -torch.inf, 0, 0], [0, 0.25, 0.25, 0, 0.25, 0.25]),
        ([1e30, 0, 0, 0, 0, -1e30], [1, 0, 0, 0, 0, 0]),
    ],
)
def test_infinite_log_weights(log_weights, expected, chunk, random_model):
    model = random_model((3,), (3,), 1).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    orbit = S3.orbit(x)[:, 0]

    class Listed(nn.Module):
        def forward(self, inputs):
            places = [int((orbit == i).all(-1).nonzero()) for i in inputs]
            return torch.tensor(log_weights, dtype=torch.float64)[places]

    aligned = S3.align(model(S3.orbit(x)[:, 0]).view(6, 1, 3))
    wanted = (torch.tensor(expected, dtype=torch.float64).view(6, 1, 1) * aligned).sum(0)
    exact(lambda_equitune(model, S3, S3, Listed(), chunk=chunk)(x), wanted)


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_nan_stays_with_its_sample(chunk, random_model):
    model = random_model((3,), (3,), 1)
    x = torch.randn(3, 3)
    x[1, 2] = torch.nan
    for method in (
        equitune(model, S3, S3, chunk=chunk),
        equizero(model, S3, S3, chunk=chunk),
        lambda_equitune(model, S3, S3, random_model((3,), (1,), 2), chunk=chunk),
    ):
        assert method(x).isnan().all(-1).tolist() == [False, True, False]


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("option", ["chunk", "samples", "top_k"])
@pytest.mark.parametrize("number", [0, -1, 2.0, True, "2"])
def test_options_are_numbers_of_elements(option, number):
    with pytest.raises(ValueError, match=f"{option} is a number of elements, an integer from 1"):
        lambda_equitune(nn.Identity(), S3, S3, nn.Linear(3, 1), **{option: number})


def test_options_may_be_integers_of_numpy():
    x = torch.randn(4, 3)
    f = equitune(nn.Linear(3, 3), S3, S3, chunk=np.int64(4))
    torch.testing.assert_close(f(x), equitune(f.model, S3, S3)(x))


@pytest.mark.parametrize("other", [{"chunk": 2}, {"samples": 2}])
def test_top_k_excludes_other_limits(other):
    with pytest.raises(ValueError, match="excludes chunk and samples"):
        lambda_equitune(nn.Identity(), S3, S3, nn.Linear(3, 1), top_k=1, **other)


def test_elements_are_given_of_continuous_groups_only():
    with pytest.raises(ValueError, match=r"of a continuous group; Group\(.* is finite"):
        Symmetrized(nn.Identity(), S3, S3, Mean(), elements=[0, 1])
    with pytest.raises(ValueError, match="of a continuous group, of which .* use .*Canonicalized"):
        Symmetrized(nn.Identity(), Vectors(), Vectors(), Mean())


def test_a_reducer_is_a_reducer():
    with pytest.raises(TypeError, match="must be a Reducer; got Linear"):
        Symmetrized(nn.Identity(), S3, S3, nn.Linear(3, 3))


def test_a_reducer_with_scores_says_what_they_look_at():
    class Silent(Mean):
        def scores(self, seen, raw):
            return raw.sum(-1)

    with pytest.raises(TypeError, match="Silent has scores; its needs say what they look at"):
        Symmetrized(nn.Identity(), S3, S3, Silent())


def test_an_input_is_needed():
    with pytest.raises(TypeError, match=r"no input.*keywords \['mask'\]"):
        equitune(nn.Identity(), S3, S3)(mask=torch.ones(2, 3))


def test_models_that_return_trees_need_a_tree():
    with pytest.raises(TypeError, match="returned tuple; make output_rep a Tree"):
        equitune(lambda x: (x, x), S3, S3)(torch.zeros(2, 3))


@pytest.mark.parametrize("top_k", [None, 1])
@pytest.mark.parametrize("shape", [(6, 5), (30, 2), (5,), ()])
def test_weight_networks_of_another_shape_are_refused(shape, top_k):
    class Wrong(nn.Module):
        def forward(self, x):
            return torch.zeros(shape)

    with pytest.raises(ValueError) as error:
        lambda_equitune(nn.Identity(), S3, S3, Wrong(), top_k=top_k)(torch.zeros(5, 3))
    assert str(shape) in str(error.value)
    assert "(30,)" in str(error.value)


def test_scores_are_of_elements_that_differ():
    with pytest.raises(TypeError, match="Mean treats all elements alike"):
        equitune(nn.Identity(), S3, S3).scores(torch.zeros(2, 3))


def test_quarter_turns_of_vectors_with_an_invariant_output(random_model):
    """Order 4, so that g and its inverse differ; the output has one number for each sample."""
    inner = random_model((2,), (1,), 5).double()
    same = Trivial(QUARTERS.group)
    x = torch.randn(6, 2, dtype=torch.float64)

    def model(v):
        return inner(v).squeeze(-1)

    for method in (
        equitune(model, QUARTERS, same),
        equizero(model, QUARTERS, same, lambda y: y),
        lambda_equitune(model, QUARTERS, same, random_model((2,), (1,), 6).double(), top_k=2),
    ):
        assert method(x).shape == (6,)
        assert_equivariant(method, QUARTERS, same, x)


def test_a_batch_among_the_keywords_is_warned_of():
    def model(x, mask, table):
        return x

    symmetrised = equitune(model, S3, S3)
    with pytest.warns(UserWarning, match="^mask: a row for each of 2 samples"):
        symmetrised(torch.zeros(2, 3), mask=torch.ones(2, 3), table=torch.ones(5))
