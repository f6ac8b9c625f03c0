"""How the arguments of a symmetrised model reach the model, and where the batch is."""

import copy
import functools
import itertools
import warnings
from collections import UserDict, defaultdict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from equicore import (
    Matrix,
    MLPWeight,
    Permutation,
    Tree,
    Trivial,
    assert_equivariant,
    cyclic,
    equitune,
    equizero,
    image_flips,
    image_rotations,
    lambda_equitune,
    restrict,
    symmetric,
)
from equicore.continuous import Canonicalized, GramSchmidt, Vectors

S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
SAME = Trivial(S3.group)
C3 = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
METHODS = ["equitune", "equizero", "lambda"]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


class Two(nn.Module):
    """Not equivariant; the second input is optional, and None is not its default."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, a, b=0.0, scale=1.0):
        return scale * self.layer(a).tanh() * (1 + b) + (a if isinstance(b, float) else a * b)


def mean_by_hand(model, *inputs, reps=(S3, S3), **others):
    terms = []
    for g in range(6):
        moved = [rep.act(g, x) for rep, x in zip(reps, inputs, strict=False)]
        terms.append(S3.act(S3.group.inverse(g), model(*moved, **others)))
    return torch.stack(terms).mean(0)


@pytest.mark.parametrize("names", [("a", "b"), (0, 1), (0, "b")], ids=str)
def test_inputs_by_place_and_by_keyword(names):
    model = Two()
    f = equitune(model, Tree(dict(zip(names, (S3, S3), strict=True))), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    close(f(a, b=b) if names[1] == "b" else f(a, b), mean_by_hand(model, a, b))
    if names != (0, 1):
        close(f(a, b, scale=2.0), mean_by_hand(model, a, b, scale=2.0))
        close(f(a, b, 2.0), mean_by_hand(model, a, b, scale=2.0))
    close(f(a), mean_by_hand(model, a))
    if names == ("a", "b"):
        close(f(a=a, b=b), mean_by_hand(model, a, b))
        close(f(b=b, a=a), mean_by_hand(model, a, b))
        close(f(a=a), mean_by_hand(model, a))
    for method in (equizero, functools.partial(lambda_equitune, weight=OfFirst())):
        g = method(model, Tree({"a": S3, "b": S3}), S3).double()
        assert_equivariant(lambda x, g=g: g(*x), Tree([S3, S3]), S3, (a, b))
        close(g(a, b), g(a=a, b=b))


class OfFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x["a"])


def test_places_of_functions_without_names():
    f = equitune(lambda *inputs: inputs[0] * inputs[1].cumsum(-1), Tree([S3, S3]), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    close(f(a, b), mean_by_hand(f.model, a, b))


def test_one_argument_that_is_a_tree_stays_one():
    def model(pair, scale=1.0):
        return scale * pair[0] * pair[1].cumsum(-1)

    f = equitune(model, Tree([S3, S3]), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = mean_by_hand(lambda a, b: model((a, b)), a, b)
    close(f((a, b)), expected)
    close(f([a, b]), expected)
    close(f((a, b), scale=2.0), 2 * expected)


def test_a_restriction_of_a_tree_has_its_names():
    half = S3.group.subgroup([1])
    f = equitune(Two(), restrict(Tree({"a": S3, "b": S3}), half), restrict(S3, half))
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = torch.stack([S3.act(g, f.model(S3.act(g, a), S3.act(g, b))) for g in (0, 1)]).mean(0)
    close(f(a, b=b), expected)


def test_one_tensor_that_no_name_is_of():
    f = equitune(lambda *x, **k: x[0], Tree({"a": S3, "b": S3}), S3)
    with pytest.raises(
        TypeError, match=r"\['a', 'b'\], and argument 0 is a tensor .* by its place, 0"
    ):
        f(torch.randn(4, 3))


Pair = namedtuple("Pair", "first second")


@dataclass
class Cache:
    keys: torch.Tensor


class Opaque:
    def __init__(self, tensor):
        self.layers = [{"keys": tensor}]


ROWS = torch.ones(4, 5)
CARRIERS = {
    "ctx": ROWS,
    "ctx[0]": (ROWS,),
    "ctx['rows']": {"rows": ROWS},
    "ctx['a'][1]": defaultdict(list, a=[None, ROWS]),
    "ctx[1]": Pair(None, ROWS),
    "ctx.keys": Cache(ROWS),
    "ctx.layers[0]['keys']": Opaque(ROWS),
}


@pytest.mark.parametrize("path", CARRIERS)
def test_rows_anywhere_in_the_arguments_are_warned_of_at_the_callers_line(path):
    f = equitune(lambda x, ctx=None: x, S3, S3)
    x = torch.ones(4, 3)
    with pytest.warns(UserWarning) as caught:
        f(x, ctx=CARRIERS[path])
    with pytest.warns(UserWarning) as by_place:
        f(x, CARRIERS[path])
    assert str(caught[0].message).startswith(f"{path}: a row for each of 4 samples")
    assert str(by_place[0].message).startswith(path.replace("ctx", "argument 1", 1) + ":")
    for warning in (caught[0], by_place[0]):
        assert warning.filename == __file__
    assert len(caught) == len(by_place) == 1


def test_what_is_no_row_of_a_sample_is_not_warned_of():
    f = equitune(lambda x, *a, **k: x, S3, S3)
    x = torch.ones(4, 3)
    f(
        x,
        torch.ones(5, 4),
        torch.tensor(4),
        table=torch.ones(3, 4),
        names=["a"] * 4,
        layer=nn.Linear(3, 4),
    )
    bound = equitune(functools.partial(lambda x, ctx: x, ctx=ROWS), S3, S3)
    bound(x)


def test_a_warning_of_rows_gives_both_ways_out():
    """As many texts as images: texts that all images share must not be repeated."""
    f = equitune(lambda pixels, texts=None: pixels, S3, S3)
    with pytest.warns(UserWarning) as caught:
        f(torch.ones(4, 3), texts=ROWS)
    message = str(caught[0].message)
    assert "make input_rep a Tree" in message
    assert "share, as texts that each image is compared with, is better bound" in message


class Growing:
    """A cache as transformers has them: what the model is given is added to it."""

    def __init__(self):
        self.layers = []

    def update(self, x):
        self.layers.append(x)
        return torch.stack(self.layers).sum(0)


OPTIONS = [
    ("chunk", lambda f: equitune(f, S3, S3, chunk=2)),
    ("samples", lambda f: equitune(f, S3, S3, samples=2).train()),
    ("top_k", lambda f: lambda_equitune(f, S3, S3, MLPWeight((3,)), top_k=1)),
]


@pytest.mark.parametrize("option, make", OPTIONS, ids=[name for name, _ in OPTIONS])
@pytest.mark.parametrize("gradients", [True, False])
def test_state_that_the_model_changes_is_refused_where_it_runs_on_parts(option, make, gradients):
    def model(x, state=None):
        return state.update(x)

    x = torch.ones(4, 3)
    with torch.set_grad_enabled(gradients):
        with pytest.raises(ValueError, match=rf"changes an argument .* state.*leave {option} out"):
            make(model)(x, state=Growing())

        def in_place(x, state=None):
            state[0] += 1
            return x

        with pytest.raises(ValueError, match=r"changes an argument while it runs, state\[0\]"):
            make(in_place)(x, state=[torch.zeros(7)])
        make(lambda x, state: x)(x, state=Growing())
        equitune(model, S3, S3)(x, state=Growing())


class TimeFirst(nn.Module):
    """(T, B, F) to (B, C)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3).double()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(
            (self.layer(x).tanh() * torch.arange(1.0, len(x) + 1)[:, None, None]).sum(0)
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [None, 4])
def test_input_and_output_have_their_batch_on_different_axes(method, chunk):
    model = TimeFirst()
    options = {"batch_dim": (1, 0), "chunk": chunk}
    f = {
        "equitune": lambda: equitune(model, S3, S3, **options),
        "equizero": lambda: equizero(model, S3, S3, **options),
        "lambda": lambda: lambda_equitune(model, S3, S3, MLPWeight((3,)), "inner", **options),
    }[method]().double()
    for batch in (1, 2, 3):
        x = torch.randn(5, batch, 3, dtype=torch.float64)
        assert f(x).shape == (batch, 3)
        assert_equivariant(f, S3, S3, x, batch_dim=(1, 0))
        if method != "equizero":  # all weights are equal
            close(f(x), mean_by_hand(model, x, reps=(S3,)))


def test_a_result_with_as_many_columns_is_not_transposed():
    """|G| B = 6 * 1 = 6 samples of 6 classes."""
    rep = Trivial(S3.group)

    def model(x):  # (T, B, F) to (B, 6)
        return x.sum(0) @ torch.arange(18.0).view(3, 6)

    x = torch.randn(5, 1, 3)
    expected = torch.stack([model(S3.act(g, x)) for g in range(6)]).mean(0)
    torch.testing.assert_close(equitune(model, S3, rep, batch_dim=(1, 0))(x), expected)
    with pytest.raises(ValueError, match=r"on axis 0 or 1: say .*batch_dim=\(1, 0\)"):
        equitune(model, S3, rep, batch_dim=1)(x)
    with pytest.raises(ValueError, match=r"returned shape \(6, 12\)"):
        equitune(model, S3, rep, batch_dim=1)(torch.randn(5, 2, 3))


def test_an_lstm_with_the_batch_first_and_its_state_second():
    flip = Matrix(cyclic(2), [[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]]])
    same = Trivial(flip.group)
    model = nn.LSTM(2, 2, num_layers=2, batch_first=True).double()
    outputs = Tree([same, [same, same]])
    f = equitune(model, flip, outputs, batch_dim=(0, [0, [1, 1]]))
    for batch in (1, 3):  # with one sample the state has |G| B = 2 layers and 2 samples
        x = torch.randn(batch, 7, 2, dtype=torch.float64)
        output, (hidden, cell) = f(x)
        assert output.shape == (batch, 7, 2) and hidden.shape == cell.shape == (2, batch, 2)
        close(hidden, (model(x)[1][0] + model(-x)[1][0]) / 2)
        close(output, (model(x)[0] + model(-x)[0]) / 2)
        assert_equivariant(f, flip, outputs, x, batch_dim=(0, [0, [1, 1]]))


def test_inputs_with_their_batch_on_different_axes():
    """A state of (layers, batch, hidden) beside a series of (batch, time, features)."""
    flip = Matrix(cyclic(2), [[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]]])
    same = Trivial(flip.group)
    model = nn.GRU(2, 2, num_layers=3, batch_first=True).double()
    axes = ({"input": 0, "hx": 1}, [0, 1])
    f = equitune(model, Tree({"input": flip, "hx": flip}), Tree([same, same]), batch_dim=axes)
    x, state = torch.randn(4, 7, 2).double(), torch.randn(3, 4, 2).double()
    output, after = f(x, state)
    close(output, (model(x, state)[0] + model(-x, -state)[0]) / 2)
    close(after, (model(x, state)[1] + model(-x, -state)[1]) / 2)
    with pytest.raises(ValueError, match=r"no axis is given for the entries \['hx'\]"):
        equitune(model, f.input_rep, f.output_rep, batch_dim=({"input": 0}, [0, 1]))(x, state)


@pytest.mark.parametrize("wrong", [(0, 1, 2), "1", 1.0, (0, ["a"]), None, True])
def test_a_batch_dim_that_is_none_is_refused(wrong):
    with pytest.raises(TypeError, match="batch_dim is the axis of the batch, or a pair"):
        equitune(nn.Identity(), S3, S3, batch_dim=wrong)


def test_channels_last_reaches_the_model():
    seen = []

    def model(x):
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.mean((-3, -2, -1)).unsqueeze(-1)

    x = torch.rand(2, 3, 4, 4)
    tree = equitune(lambda d: model(d["x"]), Tree({"x": image_flips()}), Trivial(cyclic(2)))
    expected = tree({"x": x})
    torch.testing.assert_close(tree({"x": x.to(memory_format=torch.channels_last)}), expected)
    assert seen == [False, True]
    for rep, chunk in itertools.product((image_rotations(), image_flips()), (None, 1)):
        f = equitune(model, rep, Trivial(rep.group), chunk=chunk)
        expected = f(x)
        seen.clear()
        torch.testing.assert_close(f(x.to(memory_format=torch.channels_last)), expected)
        assert seen and all(seen)
    seen.clear()
    f(x)
    assert not any(seen)


def test_a_defaultdict_as_input():
    f = equitune(lambda d: d["a"] * d["b"].cumsum(-1), Tree({"a": S3, "b": S3}), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = f({"a": a, "b": b})
    close(f(defaultdict(lambda: None, a=a, b=b)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f(defaultdict(int, {"a": a, "b": b}))


@pytest.mark.parametrize("wrapped", ["partial", "parallel", "compiled", "places"])
def test_what_wraps_a_model_takes_what_it_takes(wrapped):
    model = Two()
    a, b = torch.randn(2, 1, 3, dtype=torch.float64)  # one sample, which broadcasts
    names = Tree([S3, S3]) if wrapped == "places" else Tree({"a": S3, "b": S3})
    made = {
        "partial": lambda: functools.partial(model, scale=1.0),
        "parallel": lambda: nn.DataParallel(model),
        "compiled": lambda: torch.compile(model, backend="eager"),
        "places": lambda: model,
    }[wrapped]()
    close(equitune(made, names, S3)(a, b=b), mean_by_hand(model, a, b))
    torch.compiler.reset()


def test_an_argument_that_cannot_be_told_is_refused():
    def model(x, /, a, b=None):
        return x + a.cumsum(-1)

    x, a = torch.randn(2, 1, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match="argument 0 is a tensor of which it cannot be told"):
        equitune(model, Tree({"a": S3, "b": SAME}), S3)(x, a)
    f = equitune(model, Tree({0: S3, "a": S3}), S3)
    close(f(x, a), mean_by_hand(model, x, a))


def test_the_first_of_several_arguments_may_be_a_tree():
    def model(pose, mask=None):
        y = pose["u"] * pose["v"].cumsum(-1)
        return y if mask is None else y * mask

    f = equitune(model, Tree({"pose": Tree({"u": S3, "v": S3}), "mask": S3}), S3)
    u, v, mask = torch.randn(3, 4, 3, dtype=torch.float64)
    pose = {"u": u, "v": v}
    close(f(pose), f(pose=pose))
    close(f(pose, mask), f(pose=pose, mask=mask))
    assert not torch.allclose(f(pose), f(pose, mask))


class Counter:
    def __init__(self):
        self.n = 0
        self.h = torch.zeros(3)


STATEFUL = {
    "replaced twice": lambda x, s: (setattr(s, "h", s.h + 1), setattr(s, "h", s.h + 1), x)[-1],
    "in place": lambda x, s: (s.h.add_(1), x)[-1],
    "in place, to NaN": lambda x, s: (s.h.fill_(torch.nan), x)[-1],
    "a number": lambda x, s: (setattr(s, "n", s.n + 1), x)[-1],
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("inference", [False, True])
def test_any_change_of_state_is_seen(name, inference):
    with torch.inference_mode(inference):
        f = equitune(STATEFUL[name], S3, S3, chunk=2)
        with pytest.raises(ValueError, match="changes an argument while it runs"):
            f(torch.ones(4, 3), Counter())
        equitune(lambda x, s: x, S3, S3, chunk=2)(torch.ones(4, 3), Counter())


def test_negative_axes_are_axes():
    rep = Trivial(S3.group)

    def model(x):  # (F, T, B) to (B, 6)
        return x.sum(1).T @ torch.arange(18.0).view(3, 6)

    moved = TensorAt(-3)
    x = torch.randn(3, 5, 1)
    with pytest.raises(ValueError, match="on axis 0 or -1: say"):
        equitune(model, moved, rep, batch_dim=-1)(x)
    assert equitune(model, moved, rep, batch_dim=(-1, 0))(x).shape == (1, 6)
    f = equitune(lambda x, ctx=None: x, S3, S3, batch_dim=-2)
    with pytest.warns(UserWarning, match="^ctx: a row for each of 4"):
        f(torch.randn(5, 4, 3), ctx=torch.randn(4, 7))
    with pytest.raises(
        ValueError, match=r"shape \(12,\), which has no axis 1; .*batch_dim=\(1, 0\)"
    ):
        equitune(lambda x: x.sum((0, 2)), S3, rep, batch_dim=1)(torch.randn(5, 2, 3))


def TensorAt(dim):
    """S3 on the second axis of (B, 3, 5), where the first and last are exchanged for the model."""
    return Permutation(S3.group, S3.permutations, dim + 1)


def test_exported_with_both_axes_of_any_size():
    f = equitune(nn.Linear(3, 3), S3, S3, batch_dim=1)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(f, (torch.randn(5, 2, 3),), dynamic_shapes=(any_size,)).module()
    for shape in ((6, 1, 3), (24, 4, 3), (5, 3, 3)):
        x = torch.randn(shape)
        if shape[0] == 6 * shape[1]:
            expected = equitune(f.model, S3, S3, batch_dim=(1, 1))(x)
        else:
            expected = f(x)
        torch.testing.assert_close(exported(x), expected)


def test_compiled_with_dicts_in_and_out():
    def model(batch):
        return {"y": batch["a"] * batch["b"].cumsum(-1)}

    f = equitune(model, Tree({"a": S3, "b": S3}), Tree({"y": S3}))
    by_keyword = equitune(Two(), Tree({"a": S3, "b": S3}), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    whole = torch.compile(f, backend="eager", fullgraph=True)
    close(whole({"a": a, "b": b})["y"], f({"a": a, "b": b})["y"])
    keywords = torch.compile(by_keyword, backend="eager", fullgraph=True)
    close(keywords(a=a, b=b), by_keyword(a=a, b=b))
    pair = equitune(lambda p: p[0] * p[1].cumsum(-1), Tree([S3, S3]), S3)
    listed = torch.compile(pair, backend="eager", fullgraph=True)
    close(listed([a, b]), pair([a, b]))
    torch.compiler.reset()


class Store(UserDict):
    pass


def test_the_callers_tree_stays_as_it_is():
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    f = equitune(lambda d: d["a"] * d["b"].cumsum(-1), Tree({"a": S3, "b": S3}), S3)
    store = Store(a=a, b=b)
    close(f(store), f({"a": a, "b": b}))
    assert store["a"] is a and store["b"] is b


def test_a_model_that_has_no_length():
    compiled = torch.compile(nn.Sequential(nn.Linear(3, 3)), backend="eager")
    x = torch.randn(4, 3)
    assert equitune(compiled, S3, S3)(x).shape == (4, 3)
    torch.compiler.reset()


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, x, offset):
        return self.dropout(self.layer(x)) + offset


@pytest.mark.parametrize("canonical", [False, True])
def test_a_module_inside_of_a_partial_is_in_reach(canonical):
    model = Dropping()
    bound = functools.partial(model, offset=torch.ones(3))
    if canonical:
        f = Canonicalized(bound, GramSchmidt("SO"), Vectors(), Trivial()).eval()
        x = torch.randn(4, 2, 3)
    else:
        f = lambda_equitune(bound, S3, S3, nn.Linear(3, 1), features="layer").eval()
        x = torch.randn(4, 3)
    assert not model.training and {*model.parameters()} <= {*f.parameters()}
    assert torch.equal(f(x), f(x)) and "model.layer.weight" in f.state_dict()
    copied = copy.deepcopy(f)
    assert torch.equal(copied(x), f(x)) and copied.model is not model
    with torch.no_grad():
        copied.model.layer.weight.zero_()
    assert not torch.equal(copied(x), f(x))


def test_recurrent_networks_say_where_their_batch_is():
    four = Permutation.from_generators(cyclic(4), [[1, 2, 3, 0]])
    same = Trivial(four.group)
    first = nn.GRU(4, 5, num_layers=2, bidirectional=True, batch_first=True)
    with pytest.raises(ValueError, match=r"state of this GRU is .*batch_dim=\(0, \[0, 1\]\)"):
        equitune(first, four, Tree([same, same]))
    f = equitune(first, four, Tree([same, same]), batch_dim=(0, [0, 1]))
    assert f(torch.randn(1, 7, 4))[1].shape == (4, 1, 5)
    assert f.batch_dim == (0, [0, 1])
    with pytest.raises(AttributeError):
        f.batch_dim = 1
    equitune(first, four, Tree([same]))(torch.randn(1, 7, 4))
    with pytest.raises(ValueError, match=r"LSTM takes \(time, batch, features\).*batch_dim=1"):
        equitune(nn.LSTM(4, 4), four, Tree([same]))


def test_two_arguments_by_place_in_a_graph():
    f = equitune(Two(), Tree({"a": S3, "b": S3}), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    close(compiled(a, b), f(a, b))
    torch.compiler.reset()


def test_inputs_of_another_kind_are_named():
    x = torch.randn(4, 3)
    for rep in (S3, SAME):
        f = equitune(lambda x: x, rep, S3)
        for wrong in ({"x": x}, [x, x]):
            with pytest.raises(TypeError, match="acts on one tensor, and the input is a "):
                f(wrong)
    f = equitune(lambda d: d["im"], Tree({"im": S3}), S3)
    with pytest.raises(TypeError, match="entry 'path' of the input holds more than tensors"):
        f({"im": x, "path": ["a", "b"]})


def test_a_dict_of_the_first_argument_that_has_its_name():
    def model(obs, act=1.0):
        return obs["obs"] * obs["v"].cumsum(-1) * act

    f = equitune(model, Tree({"obs": Tree({"obs": S3, "v": S3}), "act": S3}), S3)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    close(f({"obs": a, "v": b}), f(obs={"obs": a, "v": b}))


def test_nan_among_the_arguments_is_no_change():
    with torch.inference_mode():
        state = {"h": torch.full((3,), torch.nan), "n": float("nan")}
        f = equitune(lambda x, s: x, S3, S3, chunk=2)
        assert f(torch.ones(4, 3), state).shape == (4, 3)
