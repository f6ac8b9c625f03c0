"""A chunk at a time is the same as all at once; BatchNorm and dropout, with and without."""

import copy

import pytest
import torch
from torch import nn

import equicore.symmetrize
from equicore import (
    Best,
    Identity,
    Maximum,
    Mean,
    MLPWeight,
    Permutation,
    StraightThrough,
    Symmetrized,
    Trivial,
    WeightedMean,
    assert_equivariant,
    confidence,
    equivariance_error,
    lambda_equitune,
    max_value,
    symmetric,
)

METHODS = ["equitune", "equizero", "lambda_equitune", "features"]
S4 = Permutation.from_generators(symmetric(4), [[1, 0, 2, 3], [1, 2, 3, 0]])
S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def images(batch=5):
    return torch.randn(batch, 1, 6, 6, dtype=torch.float64)


def network(randomise, seed=3):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    randomise(model, seed)
    return model


def weight(size, randomise):
    made = MLPWeight((size,), hidden=(8,))
    randomise(made, 7)
    return made


REDUCERS = {
    "mean": lambda _: Mean(),
    "best": lambda _: Best(confidence),
    "best of coarse scores": lambda _: Best(lambda y: (4 * max_value(y)).round()),
    "best within a tolerance": lambda _: Best(max_value, tolerance=0.1),
    "maximum": lambda _: Maximum(),
    "identity": lambda _: Identity(),
    "best through mean": lambda _: StraightThrough(Best(confidence), Mean()),
    "best through identity": lambda _: StraightThrough(Best(confidence), Identity()),
    "maximum through mean": lambda _: StraightThrough(Maximum(), Mean()),
    "weights through identity": lambda randomise: StraightThrough(
        WeightedMean(weight(4, randomise)), Identity()
    ),
    "weights": lambda randomise: WeightedMean(weight(4, randomise)),
    "weights of features": lambda randomise: WeightedMean(weight(8, randomise), "0"),
}


def run(model, x):
    """The output, and gradients by the input and all parameters."""
    x = x.clone().requires_grad_()
    output = model(x)
    into = [x, *model.parameters()]
    loss = (
        output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    ).sum()
    return output.detach(), torch.autograd.grad(
        loss, into, allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize(
    "reducer, chunk",
    [*((name, 7) for name in REDUCERS), *(("weights", chunk) for chunk in (1, 8, 23, 24, 1000))],
)
def test_chunks_give_the_same_output_and_gradients(reducer, chunk, randomise):
    whole = Symmetrized(network(randomise), S4, S4, REDUCERS[reducer](randomise)).double()
    chunked = Symmetrized(whole.model, S4, S4, whole.reduce, chunk=chunk)
    x = torch.randn(6, 4, dtype=torch.float64)
    if reducer != "maximum":  # whose gradient at a tie is one of several
        x[0] = 1.0  # all tie
        x[1, :2] = 0.5  # some tie
    output, gradients = run(whole, x)
    actual, found = run(chunked, x)
    close(actual, output)
    assert gradients[1].abs().amax() > 0.01
    for a, b in zip(found, gradients, strict=True):
        close(a, b)
    with torch.no_grad():
        close(chunked(x), output)


def test_ties_with_the_best_of_a_chunk_are_not_ties_with_the_best(randomise):
    """Of scores 0.00, 0.06, 0.12 the middle ties with both, within a tolerance of 0.1."""
    lenient = Best(max_value, tolerance=0.1)
    whole = Symmetrized(network(randomise), S4, S4, lenient).double()
    chunked = Symmetrized(whole.model, S4, S4, lenient, chunk=2)
    x = torch.randn(200, 4, dtype=torch.float64)
    scores = whole.scores(x).sort(0, descending=True).values
    limits = scores - 0.1 * (1 + scores.abs())
    assert ((scores < limits[0]) & (scores >= limits[1])).any(0).sum() > 20
    close(chunked(x), whole(x))
    assert_equivariant(chunked, S4, S4, x)
    x[3] = torch.nan
    assert torch.equal(chunked(x).isnan().any(1), torch.arange(200) == 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ties_of_short_types(dtype, classifier):
    whole = classifier("equizero").to(dtype).eval()
    chunked = Symmetrized(whole.model, whole.input_rep, whole.output_rep, whole.reduce, chunk=3)
    x = torch.randn(500, 1, 6, 6).to(dtype)
    assert torch.equal(chunked(x), whole(x))


@pytest.mark.parametrize("method", METHODS)
def test_chunks_give_what_the_papers_define(method, classifier, by_hand):
    model, x = classifier(method, chunk=3).double(), images()
    close(model(x), by_hand(model, x))
    assert_equivariant(model, model.input_rep, model.output_rep, x)


@pytest.mark.parametrize("gradients, chunk", [(True, 3), (False, 3), (False, 1), (True, 8)])
def test_the_model_runs_on_a_chunk_at_a_time(gradients, chunk, classifier):
    model = classifier("lambda_equitune", chunk=chunk).double()
    samples = []
    model.model.register_forward_pre_hook(lambda _module, inputs: samples.append(len(inputs[0])))
    with torch.set_grad_enabled(gradients):
        output = model(images())
    expected = {1: [5] * 8, 3: [15, 15, 10], 8: [40]}[chunk]
    assert samples == expected
    if gradients:
        output.sum().backward()
        assert sorted(samples) == sorted(expected if chunk == 8 else expected * 2)


@pytest.mark.parametrize("method", METHODS)
def test_memory_for_the_backward_pass_does_not_grow_with_the_group(method, classifier):
    def kept(**options):
        """Bytes that the backward pass keeps, of tensors that are not the model's own."""
        model = classifier(method, **options).double()
        own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        sizes = {}

        def pack(t):
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(images())
        assert output.requires_grad
        return sum(sizes.values())

    assert kept(chunk=1) < kept() / 5


def test_graphs_that_are_kept_can_be_used_again(classifier):
    model = classifier("features", chunk=3, norm=True).double()
    loss = model(images()).square().sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


# -------------------------------------------------------------------------------------- BatchNorm


def statistics(model):
    return {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    }


def same(first, second):
    return first and all(torch.equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_takes_statistics_of_the_whole_orbit(method, classifier):
    model, x = classifier(method, norm=True).double(), images()
    norm = model.model.trunk[1]
    model(x)
    with torch.no_grad():
        orbit = torch.cat([model.input_rep.act(g, x) for g in range(8)])
        seen = model.model.trunk[0](orbit).transpose(0, 1).flatten(1)
    assert seen.shape == (4, 8 * 5 * 16)
    close(norm.running_mean, 0.1 * seen.mean(1))
    close(norm.running_var, 0.9 + 0.1 * seen.var(1))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_in_eval_mode_is_equivariant(method, classifier, by_hand):
    chunk = 3 if method in ("equizero", "features") else None
    model, x = classifier(method, norm=True, dropout=0.5, chunk=chunk).double(), images()
    model(images())
    model.eval()
    before = statistics(model)
    close(model(x), by_hand(model, x))
    assert_equivariant(model, model.input_rep, model.output_rep, x)
    assert (
        float(equivariance_error(model.model, model.input_rep, model.output_rep, x).relative.max())
        > 0.1
    )
    assert same(statistics(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_is_updated_once_for_each_chunk(method, classifier):
    model, x = classifier(method, norm=True, chunk=3).double(), images()
    norm = model.model.trunk[1]
    with torch.no_grad():
        moved = [model.input_rep.act(g, x) for g in range(8)]
        seen = [
            model.model.trunk[0](torch.cat(moved[start : start + 3])).transpose(0, 1).flatten(1)
            for start in (0, 3, 6)
        ]
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for values in seen:
        mean = 0.9 * mean + 0.1 * values.mean(1)
        variance = 0.9 * variance + 0.1 * values.var(1)
    buffers = dict(norm.named_buffers())
    loss = model(x).square().sum()
    for _ in range(2):
        close(norm.running_mean, mean)
        close(norm.running_var, variance)
        assert norm.num_batches_tracked == 3
        loss.backward(retain_graph=True)
    assert norm.track_running_stats and norm.training
    assert all(buffer is buffers[name] for name, buffer in norm.named_buffers())


class Plain(nn.Module):
    """Norms of every kind."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(3, momentum=None)
        self.second = nn.BatchNorm1d(3, affine=False)
        self.third = nn.BatchNorm1d(3, track_running_stats=False)
        self.fourth = nn.InstanceNorm1d(3, track_running_stats=True, affine=True)
        self.frozen = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.second(self.layer(self.first(x)).tanh())
        y = self.fourth(self.third(y).unsqueeze(-1) * torch.arange(1.0, 4.0)).amax(-1)
        return self.frozen(y + x)


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_change_nothing_for_norms(method, classifier, randomise, monkeypatch):
    """Outputs, gradients and statistics, compared with chunks that are not checkpointed."""

    def made():
        model = Plain()
        randomise(model, 3)
        norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        randomise(norm, 4)
        reduce = {
            "equitune": Mean(),
            "equizero": Best(confidence),
            "lambda_equitune": WeightedMean(norm),
            "features": WeightedMean(norm, "layer"),
        }[method]
        whole = Symmetrized(model, S3, S3, reduce, chunk=4)
        model.frozen.eval()
        return whole

    x = torch.randn(5, 3)
    checkpointed, plain = made(), made()
    results = []
    for model, function in (
        (checkpointed, equicore.symmetrize.checkpoint),
        (plain, lambda run, *args, **_: run(*args)),
    ):
        monkeypatch.setattr(equicore.symmetrize, "checkpoint", function)
        for step in range(2):
            output = model(x + step)
            output.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        results.append((output.detach(), gradients, statistics(model)))
    (a, first, one), (b, second, two) = results
    assert torch.equal(a, b)
    for p, q in zip(first, second, strict=True):
        assert (p is None) == (q is None)
        assert p is None or torch.equal(p, q)
    assert one["model.first.num_batches_tracked"] == 4
    assert one["model.frozen.num_batches_tracked"] == 0
    if method in ("lambda_equitune", "features"):
        assert one["reduce.weight.1.num_batches_tracked"] == 4
    assert same(one, two)


def test_statistics_are_given_back_after_an_exception_in_the_backward_pass(classifier):
    model = classifier("equitune", norm=True, chunk=3).double()
    norm = model.model.trunk[1]
    loss = model(images()).sum()
    before, buffers = statistics(model), dict(norm.named_buffers())

    def refuse(_module, _inputs):
        raise RuntimeError("refused")

    handle = model.model.head.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="refused"):
        loss.backward()
    handle.remove()
    assert same(statistics(model), before)
    assert all(buffer is buffers[name] for name, buffer in norm.named_buffers())


# ---------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_the_same_in_the_backward_pass(method, classifier, monkeypatch):
    x = images()
    results = []
    for function in (equicore.symmetrize.checkpoint, lambda run, *args, **_: run(*args)):
        monkeypatch.setattr(equicore.symmetrize, "checkpoint", function)
        model = classifier(method, norm=True, dropout=0.5, chunk=3).double()
        torch.manual_seed(3)
        output, gradients = run(model, x)
        results.append((output, gradients, torch.rand(3)))
    (output, gradients, after), (expected, wanted, after_too) = results
    assert torch.equal(output, expected)
    assert torch.equal(after, after_too)  # the random state goes on as without checkpoints
    for a, b in zip(gradients, wanted, strict=True):
        close(a, b)
    torch.manual_seed(4)
    assert not torch.allclose(run(model, x)[0], output, atol=1e-3)


def test_dropout_draws_anew_for_each_element():
    model = nn.Dropout(0.5)
    f = Symmetrized(model, S3, Trivial(S3.group), Mean())
    x = torch.ones(200, 3)
    values = f(x)  # the mean of 6 draws of 0 or 2
    assert len(values.unique()) > 3
    assert torch.equal(copy.deepcopy(f).eval()(x), x)


# ---------------------------------------------------------------------------------------- extremes


def test_chunks_of_lambda_with_a_dominating_element():
    """Log-weights that differ by more than floats can hold keep their limits in every chunk."""

    class Given(nn.Module):
        def forward(self, x):
            return 1e4 * x[:, 0]

    model = nn.Linear(4, 4).double()
    x = torch.tensor([[0.3, 0.1, 0.9, -0.4]], dtype=torch.float64)
    whole = lambda_equitune(model, S4, S4, Given())
    for chunk in (1, 5):
        chunked = lambda_equitune(model, S4, S4, Given(), chunk=chunk)
        close(chunked(x), whole(x))
    aligned = [S4.act(S4.group.inverse(g), model(S4.act(g, x))) for g in range(24)]
    heaviest = [y for g, y in enumerate(aligned) if S4.act(g, x)[0, 0] == 0.9]
    assert len(heaviest) == 6
    close(whole(x), sum(heaviest) / 6)


@pytest.mark.parametrize("surrogate", [Mean(), Identity()], ids=["mean", "identity"])
def test_straight_through_survives_infinite_logits(surrogate):
    """Masked classes: the gradient is zero where the surrogate's is not defined."""
    mask = torch.tensor([0.0, -torch.inf, 0.0])
    scale = torch.ones((), requires_grad=True)
    f = Symmetrized(
        lambda x: scale * x + mask, S3, S3, StraightThrough(Best(confidence), surrogate)
    )
    x = torch.tensor([[1.0, 2.0, 5.0]])
    output = f(x)
    assert torch.equal(output, Symmetrized(f.model, S3, S3, Best(confidence))(x))
    assert output.isfinite().sum() == 2
    output[output.isfinite()].sum().backward()
    assert scale.grad.isfinite()


@pytest.mark.parametrize("gradient", [Best(max_value), WeightedMean(nn.Linear(3, 1))])
def test_straight_through_has_no_scores_for_its_gradient(gradient):
    with pytest.raises(ValueError, match="gradient of a reducer without scores"):
        StraightThrough(Best(max_value), gradient)
