"""Models of every form: trees in and out, keywords, the batch on another axis."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from equicore import (
    DirectSum,
    Matrix,
    Mean,
    Permutation,
    Symmetrized,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    confidence,
    dihedral,
    equitune,
    equizero,
    image_dihedral,
    lambda_equitune,
    symmetric,
)

METHODS = ["equitune", "equizero", "lambda_equitune", "features"]

S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])

INVARIANT = Trivial(S3.group)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


class Named(NamedTuple):
    logits: Any
    value: Any = None


@dataclass
class Record:
    logits: Any
    value: Any = None
    loss: Any = None
    constant: int = field(default=3, init=False)


class OutputDict(OrderedDict):
    pass


CONTAINERS = {
    "dict": (lambda logits, value: {"logits": logits, "value": value}, "logits", "value"),
    "mapping": (
        lambda logits, value: OutputDict(logits=logits, value=value),
        "logits",
        "value",
    ),
    "tuple": (lambda logits, value: (logits, value), 0, 1),
    "list": (lambda logits, value: [logits, value], 0, 1),
    "namedtuple": (Named, "logits", "value"),
    "dataclass": (Record, "logits", "value"),
}


def entry(tree, name):
    return getattr(tree, name) if isinstance(tree, (Named, Record)) else tree[name]


class Heads(nn.Module):
    """Logits for three classes and one number, in a container."""

    def __init__(self, container=lambda logits, value: (logits, value)):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh())
        self.logits = nn.Linear(16, 3)
        self.value = nn.Linear(16, 1)
        self.container = container

    def forward(self, x):
        hidden = self.body(x)
        return self.container(self.logits(hidden), self.value(hidden).squeeze(-1))


def symmetrized(method, model, input_rep, output_rep, score, size, hidden, layer, **options):
    """With a weight network for inputs of some size, or for a layer's features."""
    if method == "equitune":
        return equitune(model, input_rep, output_rep, **options)
    if method == "equizero":
        return equizero(model, input_rep, output_rep, score, **options)
    if method == "features":
        weight, features = nn.Linear(hidden, 1), layer
    else:
        weight, features = nn.Linear(size, 1), None
    return lambda_equitune(model, input_rep, output_rep, weight, features, **options)


def weights_by_hand(method, seen, raw, weight):
    """Weights (n, B) of raw outputs (n, B, classes), for what a weight network sees (n, B, ...)."""
    if method == "equitune":
        return torch.full(raw.shape[:2], 1 / len(raw), dtype=raw.dtype)
    if method == "equizero":
        best = torch.cat([confidence.along(-1)(y.unsqueeze(0)) for y in raw]).argmax(0)
        return nn.functional.one_hot(best, len(raw)).T.to(raw.dtype)
    return torch.stack([weight(s).flatten() for s in seen]).softmax(0)


# ------------------------------------------------------------------------------------------ trees


@pytest.mark.parametrize(
    "method, container, chunk",
    [
        (METHODS[i % 4], container, chunk)
        for i, container in enumerate(CONTAINERS)
        for chunk in (None, 4)
    ],
)
def test_outputs_in_containers(method, container, chunk):
    make, first, second = CONTAINERS[container]
    model = Heads(make)
    output_rep = Tree({first: S3, second: INVARIANT})
    f = symmetrized(
        method,
        model,
        S3,
        output_rep,
        lambda y: confidence(entry(y, first)),
        3,
        16,
        "body",
        chunk=chunk,
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    output = f(x)
    assert type(output) is type(model(x))
    assert entry(output, second).shape == (5,)

    moved = [S3.act(g, x) for g in range(6)]
    raw = [model(m) for m in moved]
    seen = [model.body(m) for m in moved] if method == "features" else moved
    weights = weights_by_hand(
        method,
        seen,
        torch.stack([entry(y, first) for y in raw]),
        getattr(f.reduce, "weight", None),
    )
    inverse = S3.group.inverse
    aligned = torch.stack([S3.act(inverse(g), entry(y, first)) for g, y in enumerate(raw)])
    close(entry(output, first), torch.einsum("gb,gbi->bi", weights, aligned))
    values = torch.stack([entry(y, second) for y in raw])
    close(entry(output, second), (weights * values).sum(0))
    assert_equivariant(f, S3, output_rep, x)


def test_fields_without_representation_become_none_and_keys_vanish():
    x = torch.randn(5, 3)
    record = equitune(Heads(Record), S3, Tree({"logits": S3}))(x)
    assert isinstance(record, Record) and record.value is None and record.constant == 3
    model = Heads(CONTAINERS["dict"][0])
    assert set(equitune(model, S3, Tree({"value": INVARIANT}))(x)) == {"value"}


class Nested(nn.Module):
    """A tree in, with places, a dict and None, to a tree out."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(9, 12)

    def forward(self, batch):
        points, extra = batch
        flat = torch.cat([points.flatten(1), extra["vector"], extra["number"].unsqueeze(1)], 1)
        y = self.mix(flat).tanh()
        return {"best": Record(y[:, :3]), "rest": [(y[:, 3:5], y[:, 5:11].unflatten(1, (3, 2)))]}


@pytest.mark.parametrize("method", [equitune, equizero])
def test_nested_trees(method):
    signs = torch.tensor([torch.linalg.det(torch.eye(3)[p]) for p in S3.permutations])
    flip = Matrix(S3.group, signs.view(6, 1, 1))
    triples = Permutation(S3.group, S3.permutations, dim=-2)
    vector = DirectSum([(flip, 1), (INVARIANT, 1)])
    input_rep = Tree((triples, {"vector": vector, "number": INVARIANT, "absent": INVARIANT}))
    output_rep = Tree({"best": {"logits": S3}, "rest": [(vector, triples)]})
    options = {} if method is equitune else {"score": lambda y: confidence(y["best"].logits)}
    model = Nested().double()
    f = method(model, input_rep, output_rep, **options)
    double = torch.float64
    x = (
        torch.randn(5, 3, 2, dtype=double),
        {
            "vector": torch.randn(5, 2, dtype=double),
            "number": torch.randn(5, dtype=double),
            "absent": None,
        },
    )
    output = f(x)
    assert isinstance(output["rest"][0], tuple) and isinstance(output["best"], Record)

    def act(g, x):
        points = x[0][:, S3.inverses[g]]
        sign = torch.tensor([signs[g], 1], dtype=double)
        return points, {"vector": x[1]["vector"] * sign, "number": x[1]["number"]}

    raw = [model(act(g, x)) for g in range(6)]
    weights = weights_by_hand(
        "equitune" if method is equitune else "equizero",
        None,
        torch.stack([y["best"].logits for y in raw]),
        None,
    )
    logits = torch.stack([y["best"].logits[:, S3.permutations[g]] for g, y in enumerate(raw)])
    close(output["best"].logits, torch.einsum("gb,gbi->bi", weights, logits))
    rows = torch.stack([y["rest"][0][1][:, S3.permutations[g]] for g, y in enumerate(raw)])
    close(output["rest"][0][1], torch.einsum("gb,gbij->bij", weights, rows))
    signed = torch.stack(
        [y["rest"][0][0] * torch.tensor([signs[g], 1.0]) for g, y in enumerate(raw)]
    )
    close(output["rest"][0][0], torch.einsum("gb,gbi->bi", weights, signed))
    assert_equivariant(f, input_rep, output_rep, x)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_one_number_for_each_sample(method, chunk):
    class Number(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh())
            self.head = nn.Linear(16, 1)

        def forward(self, x):
            return self.head(self.body(x)).squeeze(-1)

    model = Number()
    f = symmetrized(
        method, model, S3, INVARIANT, lambda y: y.sigmoid(), 3, 16, "body", chunk=chunk
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert f(x).shape == (5,)
    moved = torch.stack([S3.act(g, x) for g in range(6)])
    raw = model(moved)
    expected = {
        "equitune": lambda: raw.mean(0),
        "equizero": lambda: raw.amax(0),
        "lambda_equitune": lambda: (f.reduce.weight(moved).squeeze(-1).softmax(0) * raw).sum(0),
        "features": lambda: (f.reduce.weight(model.body(moved)).squeeze(-1).softmax(0) * raw).sum(
            0
        ),
    }[method]()
    close(f(x), expected)
    assert_equivariant(f, S3, INVARIANT, x)


# --------------------------------------------------------------------------------------- keywords


class Keywords(nn.Module):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.seen = []

    def forward(self, x, mask=None, *, scale=1.0, flag=None, unbatched=None):
        self.seen.append({"scale": scale, "flag": flag, "unbatched": unbatched})
        y = self.layer(x) * scale
        return y if mask is None else y * mask


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_keywords_of_the_tree_move_and_others_pass(method, chunk):
    model = Keywords()
    rep = Tree({"x": S3, "mask": S3})

    class Weight(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, seen):
            return self.layer(seen if isinstance(seen, Tensor) else seen["x"])

    f = symmetrized(method, model, rep, S3, confidence, 3, 3, "layer", chunk=chunk)
    if method in ("lambda_equitune", "features"):
        f.reduce.weight = Weight()
    f.double()
    x, mask = torch.randn(2, 5, 3, dtype=torch.float64)
    matrix = torch.randn(7, 7)
    output = f(x=x, mask=mask, scale=2.0, flag="as it is", unbatched=matrix)
    for seen in model.seen:
        assert seen == {"scale": 2.0, "flag": "as it is", "unbatched": matrix}
        assert seen["unbatched"] is matrix
    assert len(model.seen) == (1 if chunk is None else 2)

    moved = [(S3.act(g, x), S3.act(g, mask)) for g in range(6)]
    raw = torch.stack([model(a, b, scale=2.0) for a, b in moved])
    seen = [model.layer(a) if method == "features" else a for a, _ in moved]
    weights = weights_by_hand(method, seen, raw, getattr(f.reduce, "weight", None))
    aligned = torch.stack([S3.act(S3.group.inverse(g), y) for g, y in enumerate(raw)])
    close(output, torch.einsum("gb,gbi->bi", weights, aligned))
    assert_equivariant(lambda batch: f(**batch, scale=2.0), rep, S3, {"x": x, "mask": mask})


def test_input_missing_and_partly_given():
    model = Keywords()
    with pytest.raises(TypeError, match="no input"):
        equitune(model, S3, S3)(x=torch.randn(2, 3))
    x = torch.randn(2, 3)  # an input that is not given is not given to the model
    close(equitune(model, Tree({"x": S3, "mask": S3}), S3)(x=x), equitune(model, S3, S3)(x))


def test_tensors_of_different_batches_are_refused():
    model = Keywords()
    f = equitune(model, Tree({"x": S3, "mask": S3}), S3)
    with pytest.raises(ValueError, match="different batches"):
        f(x=torch.randn(2, 3), mask=torch.randn(3, 3))
    with pytest.raises(ValueError, match=r"different batches: shapes \[\(2, 3\), \(\)\]"):
        f(x=torch.randn(2, 3), mask=torch.tensor(1.0))


@pytest.mark.parametrize("shapes", [[(0, 3)], [(0, 3), (0, 3)]])
def test_empty_trees_are_refused(shapes):
    rep = Tree([S3] * len(shapes))
    with pytest.raises(ValueError, match=r"empty batch: got an input of shapes \[\(0, 3\)"):
        equitune(lambda x: x, rep, rep)([torch.zeros(shape) for shape in shapes])
    with pytest.raises(ValueError, match=r"the input holds no tensor: \[None"):
        equitune(lambda x: x, rep, rep)([None] * len(shapes))
    one = [torch.randn(1, 3) for _ in shapes]
    assert len(equitune(lambda x: x, rep, rep)(one)) == len(shapes)


def test_samples_without_numbers_are_no_empty_batch():
    nothing = Trivial(S3.group)
    for x in (torch.zeros(2, 0), [torch.zeros(2, 0)]):
        rep = nothing if isinstance(x, torch.Tensor) else Tree([nothing])
        found = equitune(lambda x: x, rep, rep)(x)
        assert (found if isinstance(x, torch.Tensor) else found[0]).shape == (2, 0)
    with pytest.raises(ValueError, match=r"empty batch: got an input of shape \(\)"):
        equitune(lambda x: x, nothing, nothing)(torch.tensor(1.0))


# ---------------------------------------------------------------------------- batch on other axes


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_lstm_with_the_batch_on_axis_1(method, chunk):
    """An LSTM (time, batch, 3) returns its outputs and a state (layers, batch, 6)."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 6, num_layers=2)
            self.head = nn.Linear(6, 3)

        def forward(self, x, start=None, *, scale=1.0):
            y, (hidden, cell) = self.lstm(scale * x, start)
            return self.head(y), (hidden, cell)

    class Weight(nn.Module):
        """Of sequences with the batch first, by their last vector."""

        def __init__(self, size):
            super().__init__()
            self.layer = nn.Linear(size, 1)

        def forward(self, seen):
            return self.layer(seen[:, -1])

    output_rep = Tree((S3, (INVARIANT, INVARIANT)))
    f = symmetrized(
        method,
        model := Recurrent(),
        S3,
        output_rep,
        confidence.of(0).along(-1),
        3,
        3,
        "head",
        batch_dim=1,
        chunk=chunk,
    )
    if method in ("lambda_equitune", "features"):
        f.reduce.weight = Weight(3)
    f.double()
    x = torch.randn(7, 5, 3, dtype=torch.float64)
    output, (hidden, cell) = f(x, scale=0.5)
    assert output.shape == (7, 5, 3) and hidden.shape == cell.shape == (2, 5, 6)

    moved = [S3.act(g, x) for g in range(6)]
    raw = [model(m, scale=0.5) for m in moved]
    first = [y[0].transpose(0, 1) for y in raw]
    seen = first if method == "features" else [m.transpose(0, 1) for m in moved]
    weights = weights_by_hand(method, seen, torch.stack(first), getattr(f.reduce, "weight", None))
    aligned = torch.stack([S3.act(S3.group.inverse(g), y[0]) for g, y in enumerate(raw)])
    close(output, torch.einsum("gb,gtbi->tbi", weights, aligned))
    for actual, place in ((hidden, 0), (cell, 1)):
        states = torch.stack([y[1][place] for y in raw])
        close(actual, torch.einsum("gb,glbi->lbi", weights, states))
    assert_equivariant(f, S3, output_rep, x, batch_dim=1)


@pytest.mark.parametrize("method", METHODS)
def test_transformer_encoder_with_the_sequence_first(method):
    """Tensors (time, batch, 4); the mask of times belongs to all samples, and passes."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, seen):
            return self.layer(seen.mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    rep = Permutation.from_generators(dihedral(4), [[1, 2, 3, 0], [0, 3, 2, 1]])
    f = symmetrized(method, model, rep, rep, confidence.along(-1), 4, 4, "layers.0", batch_dim=1)
    if method in ("lambda_equitune", "features"):
        f.reduce.weight = Pooled()
    f.double()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    output = f(x, mask=mask, is_causal=True)
    moved = [rep.act(g, x) for g in range(8)]
    raw = torch.stack([model(m, mask=mask, is_causal=True) for m in moved])
    inner = [model.layers[0](m, src_mask=mask, is_causal=True) for m in moved]
    seen = [s.transpose(0, 1) for s in (inner if method == "features" else moved)]
    weights = weights_by_hand(method, seen, raw.transpose(1, 2), getattr(f.reduce, "weight", None))
    aligned = torch.stack([rep.act(rep.group.inverse(g), y) for g, y in enumerate(raw)])
    close(output, torch.einsum("gb,gtbi->tbi", weights, aligned))
    assert not torch.allclose(output, f(x), atol=1e-3)  # the mask matters
    f.eval()
    assert_equivariant(lambda inputs: f(inputs, mask=mask), rep, rep, x, batch_dim=1)


def test_batch_on_the_last_axis():
    rep = S3
    weight = torch.randn(3, 3, dtype=torch.float64)

    def f(x):  # (3, B)
        return (weight @ x).tanh()

    x = torch.randn(3, 5, dtype=torch.float64)
    output = Symmetrized(f, rep, rep, Mean(), batch_dim=-1)(x)
    aligned = [rep.act(S3.group.inverse(g), f(rep.act(g, x.T).T).T).T for g in range(6)]
    close(output, sum(aligned) / 6)


# ----------------------------------------------------------------------------------- images, words


def test_images_and_words_in_one_tree():
    """A picture and a question about it: under D4, "left" becomes "up" as the picture turns."""
    images = image_dihedral()
    words = Tokens.from_cycles(images.group, [[[1, 2, 3, 4]], [[1, 3]]], size=6)
    rep = Tree({"pixels": images, "ids": words})

    class Asked(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels = nn.Linear(16, 8)
            self.words = nn.Embedding(6, 8)
            self.head = nn.Linear(8, 6)

        def forward(self, pixels, ids):
            seen = self.pixels(pixels.flatten(1)) * self.words(ids).cumsum(1).tanh().sum(1)
            return self.head(seen.tanh())

    model = Asked().double()
    f = equizero(model, rep, words.logits(), confidence.along(-1))
    batch = {
        "pixels": torch.randn(4, 1, 4, 4, dtype=torch.float64),
        "ids": torch.randint(6, (4, 3)),
    }
    output = f(**batch)
    raw = torch.stack([model(**rep.act(g, batch)) for g in range(8)])
    best = raw.softmax(-1).amax(-1).argmax(0)
    inverse = images.group.inverse
    expected = [
        words.logits().act(inverse(int(g)), raw[g, i].unsqueeze(0))[0] for i, g in enumerate(best)
    ]
    close(output, torch.stack(expected))
    assert_equivariant(lambda b: f(**b), rep, words.logits(), batch)
