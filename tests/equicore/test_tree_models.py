"""Models between random trees, made equivariant."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equicore import (
    Permutation,
    Tokens,
    Tree,
    assert_equivariant,
    confidence,
    equitune,
    equivariance_error,
    equizero,
    lambda_equitune,
    max_value,
    symmetric,
)
from equicore.trees import leaves, tree_map

PROPERTY = settings(max_examples=15, deadline=None, derandomize=True)
FLOATS = [torch.float32, torch.float64]
METHODS = ["equitune", "equizero", "lambda_equitune"]
S3 = symmetric(3)
POINTS = Permutation.from_generators(S3, [[1, 0, 2], [1, 2, 0]])


def flattened(tree, dtype):
    """All tensors of a tree side by side, (B, d), ids as one-hot vectors."""
    columns = [
        t.flatten(1) if t.is_floating_point() else nn.functional.one_hot(t, 32).flatten(1)
        for t in leaves(tree)
    ]
    return torch.cat([c.to(dtype) for c in columns], dim=1)


class Between(nn.Module):
    """A model of vectors as one of trees: flat inputs, and outputs in the form of a template."""

    def __init__(self, core, template):
        super().__init__()
        self.core = core
        self.template = template

    def forward(self, tree):
        dtype = next(self.core.parameters()).dtype
        flat = self.core(flattened(tree, dtype))
        sizes = [math.prod(t.shape[1:]) for t in leaves(self.template)]
        pieces = iter(flat.split(sizes, dim=1))
        return tree_map(lambda t: next(pieces).unflatten(1, t.shape[1:]), self.template)


class LogWeights(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, tree):
        return self.core(flattened(tree, next(self.core.parameters()).dtype)).squeeze(-1)


def score(raw):
    """Of two entries of the tree, one of which may be the same."""
    first, last = leaves(raw)[0], leaves(raw)[-1]
    return confidence(first.flatten(2)) + max_value(last.flatten(2))


def between(random_model, make_in, make_out, seed):
    size_in = flattened(make_in(1), torch.float32).shape[1]
    template = make_out(1)
    size_out = sum(math.prod(t.shape[1:]) for t in leaves(template))
    return Between(random_model((size_in,), (size_out,), seed), template), size_in


def symmetrised(method, model, size_in, input_rep, output_rep, random_model):
    if method == "equitune":
        return equitune(model, input_rep, output_rep)
    if method == "equizero":
        return equizero(model, input_rep, output_rep, score=score)
    weight = LogWeights(random_model((size_in,), (1,), 7))
    return lambda_equitune(model, input_rep, output_rep, weight)


def shapes(tree):
    return [(tuple(t.shape), t.dtype) for t in leaves(tree)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), method=st.sampled_from(METHODS), dtype=st.sampled_from(FLOATS))
def test_random_models_of_trees_become_equivariant(
    method, dtype, groups, trees, random_model, stabilised, data
):
    group = data.draw(groups)
    input_rep, make_in = data.draw(trees(group))
    output_rep, make_out = data.draw(trees(group, floating=True))
    seed = data.draw(st.integers(0, 2**16))
    model, size_in = between(random_model, make_in, make_out, seed)
    made = symmetrised(method, model, size_in, input_rep, output_rep, random_model).to(dtype)
    x = make_in(2, dtype, seed)
    h = data.draw(st.integers(0, len(group) - 1))
    fixed = stabilised(input_rep, h, x)
    batch = tree_map(lambda a, b: torch.cat([a, b]), x, fixed)
    assert_equivariant(made, input_rep, output_rep, batch)
    assert_equivariant(made, input_rep, output_rep, tree_map(lambda t: t[:1], x))
    output = made(batch)
    assert type(output) is type(make_out(1))
    assert shapes(output) == shapes(make_out(4, dtype))


@PROPERTY
@given(data=st.data())
def test_stabilised_trees_are_left_as_they_are(groups, trees, stabilised, data):
    # what the test above relies on
    rep, make = data.draw(trees(data.draw(groups)))
    h = data.draw(st.integers(0, len(rep.group) - 1))
    x = stabilised(rep, h, make(2))
    for actual, expected in zip(leaves(rep.act(h, x)), leaves(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


WORDS = Tokens.from_cycles(S3, [[[1, 4]], [[1, 4, 6]]], size=9)
INPUTS = Tree({"points": POINTS, "words": [WORDS]})
OUTPUTS = Tree((WORDS.logits(), {"points": POINTS}))


def inputs(batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, 3, dtype=dtype, generator=generator)
    return {"points": points, "words": [torch.randint(9, (batch, 2), generator=generator)]}


def outputs(batch=2, dtype=torch.float64, seed=0):
    return (torch.zeros(batch, 9, dtype=dtype), {"points": torch.zeros(batch, 3, dtype=dtype)})


def test_without_symmetrization_they_are_not(random_model):
    model, _ = between(random_model, inputs, outputs, 1)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, INPUTS, OUTPUTS, inputs(dtype=torch.float32))


@pytest.mark.parametrize("method", METHODS)
def test_outputs_by_hand(method, random_model):
    """The definition, one element at a time."""
    model, size_in = between(random_model, inputs, outputs, 1)
    made = symmetrised(method, model, size_in, INPUTS, OUTPUTS, random_model).double()
    x = inputs(5)
    moved = [INPUTS.act(g, x) for g in range(6)]
    raw = [model(tree) for tree in moved]
    aligned = [OUTPUTS.act(S3.inverse(g), y) for g, y in enumerate(raw)]
    if method == "equitune":
        weights = torch.full((6, 5), 1 / 6, dtype=torch.float64)
    elif method == "equizero":
        scores = torch.cat([score(tree_map(lambda t: t[None], y)) for y in raw])
        weights = nn.functional.one_hot(scores.argmax(0), 6).T.double()
        assert weights.sum(1).count_nonzero() > 1  # not always the same element
    else:
        weights = torch.stack([made.reduce.weight(tree) for tree in moved]).softmax(0)
        assert weights.std() > 0.01
    expected = tree_map(
        lambda *ys: sum(w.view(-1, 1) * y for w, y in zip(weights, ys, strict=True)), *aligned
    )
    for actual, wanted in zip(leaves(made(x)), leaves(expected), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", ["points", "words", "logits", "other points"])
def test_each_entry_counts(wrong, random_model):
    """A representation that is wrong in one entry is found out."""
    model, _ = between(random_model, inputs, outputs, 1)
    made = equitune(model, INPUTS, OUTPUTS).double()
    turned = Permutation.from_generators(S3, [[0, 2, 1], [1, 2, 0]])
    other_words = Tokens.from_cycles(S3, [[[1, 5]], [[1, 5, 6]]], size=9)
    input_rep = Tree(
        {
            "points": turned if wrong == "points" else POINTS,
            "words": [other_words if wrong == "words" else WORDS],
        }
    )
    output_rep = Tree(
        (
            (other_words if wrong == "logits" else WORDS).logits(),
            {"points": turned if wrong == "other points" else POINTS},
        )
    )
    assert equivariance_error(made, INPUTS, OUTPUTS, inputs()).relative.max() < 1e-12
    assert equivariance_error(made, input_rep, output_rep, inputs()).relative.max() > 1e-3
