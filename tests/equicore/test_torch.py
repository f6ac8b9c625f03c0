"""What PyTorch does with models, it does with symmetrized ones: saving, hooks, autocast, func."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap

from equicore import (
    Best,
    Boxes,
    DirectSum,
    Identity,
    Matrix,
    Mean,
    Permutation,
    StraightThrough,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    confidence,
    cyclic,
    equitune,
    equivariance_error,
    equizero,
    image_rotations,
    image_shifts,
    lambda_equitune,
    symmetric,
    vector_field,
)
from equicore.representations import Pullback, TensorProduct

# forward-mode derivatives, of torch itself
JIT = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
METHODS = ["equitune", "equizero", "lambda_equitune", "features"]
# each method once, half of them a chunk at a time
METHODS_AND_CHUNKS = pytest.mark.parametrize(
    "method, chunk",
    [("equitune", 3), ("equizero", None), ("lambda_equitune", None), ("features", 3)],
)

QUARTERS = Matrix.from_generators(cyclic(4), [[[0, -1], [1, 0]]])
THIRDS = Matrix.from_generators(cyclic(3), [[[-0.5, -(0.75**0.5)], [0.75**0.5, -0.5]]])
TOKENS = Tokens.from_cycles(cyclic(4), [[[1, 4, 2, 5]]], size=7)
REPRESENTATIONS = {
    "permutation": Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]]),
    "matrix": THIRDS,
    "tokens": TOKENS,
    "boxes": Boxes(image_rotations()),
    "vector field": vector_field(image_rotations()),
    "sum": DirectSum([(QUARTERS, 2), (Trivial(cyclic(4)), 1)]),
    "product": TensorProduct(QUARTERS, TOKENS.logits(-2)),
    "pullback": Pullback(cyclic(2), QUARTERS, [0, 2]),
    "tree": Tree({"ids": TOKENS, "vectors": QUARTERS}),
}


def images(batch=5, dtype=torch.float32):
    return torch.randn(batch, 1, 6, 6, dtype=dtype)


def close(actual, expected):
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------- saving, copying


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_survives_a_file(method, classifier, by_hand, tmp_path):
    first, second = classifier(method, norm=True, seed=1), classifier(method, norm=True, seed=5)
    first(images())  # moves the running statistics
    first.eval()
    second.eval()
    x = images()
    assert not torch.allclose(first(x), second(x), atol=1e-3)
    torch.save(first.state_dict(), tmp_path / "model.pt")
    second.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(first(x), second(x))
    close(second(x), by_hand(second, x))


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_holds_the_models_and_no_tables(method, classifier):
    model = classifier(method)
    keys = {f"model.{key}" for key in model.model.state_dict()}
    if method in ("lambda_equitune", "features"):
        keys |= {f"reduce.weight.{key}" for key in model.reduce.weight.state_dict()}
    assert set(model.state_dict()) == keys
    assert {name for name, _ in model.named_buffers()} - keys >= {
        "output_rep.permutations",
        "output_rep.inverses",
    }
    assert {name for name, _ in model.named_parameters()} <= keys


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_tables_of_representations_are_not_saved_but_move(name):
    rep = copy.deepcopy(REPRESENTATIONS[name])
    tables = dict(rep.named_buffers())
    assert tables
    assert rep.state_dict() == {}
    assert {table.device.type for table in rep.to("meta").buffers()} == {"meta"}
    assert {table.device.type for table in tables.values()} == {"cpu"}


@pytest.mark.parametrize("method", METHODS)
def test_copies_are_independent(method, classifier, by_hand, randomise):
    x = images()
    model = classifier(method)
    before = model(x)
    other = copy.deepcopy(model)
    assert torch.equal(other(x), before)
    randomise(other.model, 9)
    changed = other(x)
    assert not torch.allclose(changed, before, atol=1e-3)
    close(changed, by_hand(other, x))  # with features: the weights see those of the copy
    assert torch.equal(model(x), before)
    randomise(model.model, 11)
    close(model(x), by_hand(model, x))
    assert torch.equal(other(x), changed)


def test_a_copy_captures_its_own_features(classifier):
    model = classifier("features")
    other = copy.deepcopy(model)
    x = images()
    with torch.no_grad():
        other.model.trunk[0].bias += 1
    moved = [model.input_rep.act(g, x) for g in range(8)]
    close(model.views(x), torch.stack([model.model.features(m) for m in moved]))
    close(other.views(x), torch.stack([other.model.features(m) for m in moved]))
    assert not torch.allclose(model.views(x), other.views(x), atol=1e-2)
    assert not any(module._forward_hooks for module in [*model.modules(), *other.modules()])


@pytest.mark.parametrize("method", METHODS)
def test_pickled_models_are_the_same(method, classifier):
    model = classifier(method)
    x = images()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_models_move_to_other_types(method, dtype, classifier, by_hand):
    model, x = classifier(method), images()
    exact = by_hand(copy.deepcopy(model).double(), x.double())
    output = model.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}
    if dtype == torch.float64:
        close(output, exact)
    elif method != "equizero":  # whose choice rounding may change
        close_to = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(output.double(), exact, rtol=close_to, atol=close_to)


@pytest.mark.parametrize("name", ["matrix", "boxes", "vector field", "sum"])
def test_tables_are_not_rounded_on_the_way(name):
    rep = copy.deepcopy(REPRESENTATIONS[name])
    shape = {"matrix": (3, 2), "boxes": (3, 4), "vector field": (3, 2, 4, 4), "sum": (3, 3)}[name]
    x = torch.randn(shape, dtype=torch.float64)
    expected = rep.orbit(x)
    close(rep.half().double().orbit(x), expected)
    close(rep.bfloat16().align(expected), x.expand_as(expected))


@pytest.mark.parametrize("method", METHODS)
def test_train_and_eval_reach_all_modules(method, classifier):
    model = classifier(method, norm=True, dropout=0.5)
    assert all(module.training for module in model.modules())
    model.eval()
    assert not any(module.training for module in model.modules())
    model.model.train()
    assert not model.training and model.model.trunk[1].training
    model.train()
    assert all(module.training for module in model.modules())


# ------------------------------------------------------------------------------------------ hooks


@pytest.mark.parametrize("name", ["", "trunk.0", "pool"])
@METHODS_AND_CHUNKS
def test_hooks_on_the_model_see_and_change_what_passes(method, chunk, name, classifier, by_hand):
    model = classifier(method, chunk=chunk).double()
    submodule = model.model.get_submodule(name)
    x = images(dtype=torch.float64)
    plain = model(x)
    rows = []

    def halve(_module, _inputs, output):
        rows.append(output.shape[0])
        return output / 2

    handle = submodule.register_forward_hook(halve)
    halved = model(x)
    assert sum(rows) == 8 * 5
    close(halved, by_hand(model, x))  # which runs the same hooks
    assert not torch.allclose(halved, plain, atol=1e-3)
    handle.remove()
    close(model(x), plain)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_before_and_backward(method, classifier):
    model = classifier(method)
    seen, gradients = [], []
    model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args[0].shape, kwargs)), with_kwargs=True
    )
    model.model.head.register_full_backward_hook(
        lambda _module, _into, out: gradients.append(out[0].shape)
    )
    model(images()).sum().backward()
    assert seen == [((40, 1, 6, 6), {})]
    assert gradients == [(40, 4)]


def test_capturing_leaves_no_hook(classifier):
    model = classifier("features", chunk=3)
    pool = model.model.pool
    own = pool.register_forward_hook(lambda _module, _inputs, output: None)
    hooks, kept = pool._forward_hooks, list(pool._forward_hooks.items())
    model(images()).sum().backward()
    model.views(images())
    model.scores(images())
    assert pool._forward_hooks is hooks and list(hooks.items()) == kept
    own.remove()
    assert not pool._forward_hooks


@pytest.mark.parametrize("place", ["trunk", "pool", "head"])
def test_capturing_leaves_no_hook_after_an_exception(place, classifier, by_hand):
    model = classifier("features")

    def refuse(_module, _inputs):
        raise RuntimeError("refused")

    handle = model.model.get_submodule(place).register_forward_pre_hook(refuse)
    x = images()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="refused"):
            model(x)
    assert not any(module._forward_hooks for module in model.modules())
    handle.remove()
    close(model(x), by_hand(model, x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


def test_captured_is_the_last_of_several_calls():
    model = Twice()
    rep = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
    symmetrized = lambda_equitune(model, rep, rep, nn.Linear(3, 1), features="layer")
    x = torch.randn(2, 3)
    close(symmetrized.views(x), torch.stack([model(rep.act(g, x)) for g in range(6)]))
    with pytest.raises(ValueError, match="'unused' was not called"):
        lambda_equitune(model, rep, rep, nn.Linear(3, 1), features="unused")(x)
    assert not model.unused._forward_hooks


def test_symmetrized_models_capture_from_each_other():
    """One inside the other, both with the features of the same layer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    swap = Permutation.from_generators(cyclic(2), [[1, 0, 3, 2]])
    turn = Permutation.from_generators(cyclic(2), [[2, 3, 0, 1]])
    x = torch.randn(3, 4, dtype=torch.float64)
    inner = lambda_equitune(model, swap, swap, nn.Linear(4, 1).double(), features="1")
    outer = lambda_equitune(inner, turn, turn, nn.Linear(4, 1).double(), features="model.1")
    with pytest.raises(ValueError, match="its submodule model.1 returned shape"):
        outer(x)  # which holds the inner's whole orbit
    inner.chunk = 1  # the last call is then that of the swapped samples
    moved = [turn.act(g, x) for g in range(2)]
    seen = torch.stack([model[:2](swap.act(1, m)) for m in moved])
    weights = outer.reduce.weight(seen).squeeze(-1).softmax(0)
    aligned = torch.stack([turn.act(g, inner(m)) for g, m in enumerate(moved)])
    close(outer(x), torch.einsum("gb,gbi->bi", weights, aligned))
    assert not any(module._forward_hooks for module in outer.modules())


# --------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("method", METHODS)
def test_autocast_gives_the_models_type_and_rounding(method, classifier, by_hand):
    model, x = classifier(method).eval(), images(20)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        plain, output = model.model(x), model(x)
        error = equivariance_error(model, model.input_rep, model.output_rep, x)
        of_model = equivariance_error(model.model, model.input_rep, model.output_rep, x)
    assert output.dtype == plain.dtype == torch.bfloat16
    assert float(of_model.relative.amax()) > 0.3
    assert float(error.relative.amax()) < 0.05
    if method != "equizero":  # whose choice rounding may change
        torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["matrix", "boxes", "vector field", "sum"])
def test_autocast_does_not_round_representations(name):
    rep = REPRESENTATIONS[name]
    shape = {"matrix": (3, 2), "boxes": (3, 4), "vector field": (3, 2, 4, 4), "sum": (3, 3)}[name]
    x = torch.randn(shape)
    elements = torch.tensor([1, 0, 2])
    expected = rep.orbit(x), rep.align(rep.orbit(x)), rep.act(1, x), rep.act_each(elements, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.mT).dtype == torch.bfloat16 or x.ndim != 2
        actual = rep.orbit(x), rep.align(rep.orbit(x)), rep.act(1, x), rep.act_each(elements, x)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_and_checkpoints_agree(method, classifier):
    """The backward pass computes again in the types of the forward pass."""
    x = images()
    gradients = []
    for options in ({}, {"chunk": 3}):
        model = classifier(method, **options)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        output.float().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    scale = float(gradients[0].abs().amax())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.02, atol=0.02 * scale)


# ------------------------------------------------------------------------------------- torch.func


@pytest.mark.parametrize("method", METHODS)
def test_functional_call_uses_the_parameters_given(method, classifier, by_hand):
    first, second = classifier(method, seed=1), classifier(method, seed=5)
    x = images()
    before = first(x)
    close(functional_call(first, dict(second.named_parameters()), (x,)), by_hand(second, x))
    assert torch.equal(first(x), before)


@METHODS_AND_CHUNKS
def test_vmap_over_an_ensemble(method, chunk, classifier, by_hand):
    ensemble = [classifier(method, seed=seed, chunk=chunk).double() for seed in (1, 5, 9)]
    parameters, buffers = stack_module_state(ensemble)
    x = images(dtype=torch.float64)
    base = copy.deepcopy(ensemble[0]).to("meta")

    def call(p, b):
        return functional_call(base, (p, b), (x,))

    outputs = vmap(call)(parameters, buffers)
    close(outputs, torch.stack([by_hand(model, x) for model in ensemble]))
    found = torch.autograd.grad(outputs.square().sum(), parameters["model.head.weight"])[0]
    for model, actual in zip(ensemble, found, strict=True):
        loss = by_hand(model, x).square().sum()
        close(actual, torch.autograd.grad(loss, model.model.head.weight)[0])


@METHODS_AND_CHUNKS
def test_gradients_of_each_sample(method, chunk, classifier, by_hand):
    model, x = classifier(method, chunk=chunk).double(), images(3, torch.float64)
    parameters = dict(model.named_parameters())

    def loss(p, sample):
        return functional_call(model, p, (sample.unsqueeze(0),)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(3):
        expected = torch.autograd.grad(
            by_hand(model, x[i : i + 1]).square().sum(),
            list(parameters.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        for name, e in zip(parameters, expected, strict=True):
            close(found[name][i], e)


@pytest.mark.filterwarnings(JIT)
@pytest.mark.parametrize("derivative", [jacrev, jacfwd])
@METHODS_AND_CHUNKS
def test_derivatives_by_the_input(method, derivative, chunk, classifier, by_hand):
    model, x = classifier(method, chunk=chunk).double(), images(2, torch.float64)
    expected = torch.autograd.functional.jacobian(lambda inputs: by_hand(model, inputs), x)
    assert expected.abs().amax() > 0.01
    close(derivative(model)(x), expected)


@pytest.mark.filterwarnings(JIT)
@pytest.mark.parametrize("derivative", [jacrev, jacfwd])
@pytest.mark.parametrize("surrogate", [Mean, Identity])
def test_straight_through_derivatives_are_those_of_the_surrogate(
    surrogate, derivative, classifier, by_hand
):
    through = StraightThrough(Best(confidence), surrogate())
    model = classifier("", reduce=through).double()
    x = images(2, torch.float64)
    surrogates = {
        Mean: lambda inputs: by_hand(classifier("equitune").double(), inputs),
        Identity: model.model,
    }
    expected = torch.autograd.functional.jacobian(surrogates[surrogate], x)
    close(derivative(model)(x), expected)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_another_axis_of_the_input(method, classifier, by_hand):
    model = classifier(method)
    x = torch.randn(3, 5, 1, 6, 6)
    close(vmap(model)(x), torch.stack([by_hand(model, inputs) for inputs in x]))
    close(vmap(model, in_dims=1, out_dims=1)(x), vmap(model)(x))


@pytest.mark.parametrize("method", [equitune, equizero])
def test_vmap_over_tokens(method, by_hand):
    layers = nn.Embedding(7, 5), nn.Flatten(), nn.Linear(30, 42), nn.Unflatten(1, (6, 7))
    model = nn.Sequential(*layers)  # sensitive to the order of words, so that no scores tie
    score = {"score": confidence.along(-1)} if method is equizero else {}
    symmetrized = method(model, TOKENS, TOKENS.logits(), **score)
    ids = torch.randint(7, (3, 4, 6))
    expected = torch.stack([symmetrized(rows) for rows in ids])
    close(vmap(symmetrized)(ids), expected)
    close(expected[0], by_hand(symmetrized, ids[0]))
    assert_equivariant(symmetrized, TOKENS, TOKENS.logits(), ids[0])


@METHODS_AND_CHUNKS
def test_second_derivatives(method, chunk, classifier):
    model = classifier(method, chunk=chunk).double()
    image = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    direction = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    along = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def function(steps):
        return model(image + torch.einsum("i,ichw->chw", steps, direction))

    assert torch.autograd.gradcheck(function, along)
    assert torch.autograd.gradgradcheck(function, along, torch.randn(1, 4, dtype=torch.float64))


def test_shifts_follow_the_same_rules():
    """A larger group, of image shifts, to numbers along an axis that is not the last."""
    shifts = image_shifts(4, 4, step=2)
    rep = Permutation(shifts.group, shifts.group.table, dim=-2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Unflatten(1, (4, 3)))
    symmetrized = equitune(model, shifts, rep).double()
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    aligned = [rep.act(shifts.group.inverse(g), model(shifts.act(g, x))) for g in range(4)]
    close(vmap(lambda sample: symmetrized(sample.unsqueeze(0)))(x)[:, 0], sum(aligned) / 4)
