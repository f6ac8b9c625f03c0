"""What the two papers prove, or disprove by counterexample, as tests."""

import itertools

import pytest
import torch
from torch import nn

from equicore import (
    Matrix,
    Permutation,
    Symmetrized,
    Tokens,
    Trivial,
    WeightedMean,
    assert_equivariant,
    confidence,
    cyclic,
    dihedral,
    equitune,
    equizero,
    lambda_equitune,
    max_value,
    product,
    symmetric,
)
from equicore.representations import regular

S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
D4 = Permutation.from_generators(dihedral(4), [[1, 2, 3, 0], [0, 3, 2, 1]])
C3_C2 = regular(product(cyclic(3), cyclic(2)))
REPS = [S3, D4, C3_C2]


class Given(nn.Module):
    """Log-weights by a function of the inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def name(rep):
    return rep.group.name


@pytest.mark.parametrize("rep", REPS, ids=name)
@pytest.mark.parametrize("method", ["equitune", "equizero", "lambda"])
def test_theorem_1_the_symmetrised_model_is_equivariant(method, rep, random_model, randomise):
    """Basu et al., AAAI 2023, Thm. 1, and NeurIPS 2023, Thm. 1; the model itself is not."""
    model = random_model((rep.size,), (rep.size,), 3).double()
    weight = random_model((rep.size,), (1,), 4).double()
    x = torch.randn(7, rep.size, dtype=torch.float64)
    symmetrised = {
        "equitune": equitune(model, rep, rep),
        "equizero": equizero(model, rep, rep),
        "lambda": lambda_equitune(model, rep, rep, weight),
    }[method]
    assert_equivariant(symmetrised, rep, rep, x)
    for g in range(len(rep.group)):
        exact(symmetrised(rep.act(g, x)), rep.act(g, symmetrised(x)))
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, rep, rep, x)


@pytest.mark.parametrize("rep", REPS, ids=name)
def test_an_equivariant_model_is_left_as_it_is(rep, random_model):
    inner = equitune(random_model((rep.size,), (rep.size,), 3), rep, rep).double()
    weight = random_model((rep.size,), (1,), 4).double()
    x = torch.randn(7, rep.size, dtype=torch.float64)
    for again in (
        equitune(inner, rep, rep),
        equizero(inner, rep, rep),
        lambda_equitune(inner, rep, rep, weight),
    ):
        exact(again(x), inner(x))


@pytest.mark.parametrize("rep", REPS, ids=name)
def test_equitune_is_the_closest_equivariant_model_over_the_orbit(rep, random_model):
    """AAAI 2023, eq. 2: it minimises the squared distance to f over the orbit."""
    model = random_model((rep.size,), (rep.size,), 3).double()
    x = torch.randn(1, rep.size, dtype=torch.float64)
    orbit = rep.orbit(x).flatten(0, 1)
    best = equitune(model, rep, rep)(x)

    def distance(value):
        return (model(orbit) - rep.orbit(value).flatten(0, 1)).square().sum()

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        other = best + 0.1 * torch.randn(best.shape, dtype=torch.float64, generator=generator)
        assert distance(best) < distance(other)


@pytest.mark.parametrize("rep", REPS, ids=name)
@pytest.mark.parametrize("constant", [-3.0, 0.0, 1e6])
def test_constant_lambda_is_equitune(constant, rep, random_model):
    model = random_model((rep.size,), (rep.size,), 3).double()
    x = torch.randn(7, rep.size, dtype=torch.float64)
    weight = Given(lambda inputs: inputs.new_full((len(inputs),), constant))
    exact(lambda_equitune(model, rep, rep, weight)(x), equitune(model, rep, rep)(x))


@pytest.mark.parametrize("rep", REPS, ids=name)
@pytest.mark.parametrize("score", [confidence, max_value])
def test_one_hot_lambda_is_equizero(score, rep, random_model):
    """Lambda is one where the score of f(g x) is the best of the orbit and zero elsewhere."""
    model = random_model((rep.size,), (rep.size,), 3).double()
    x = torch.randn(7, rep.size, dtype=torch.float64)
    x[0] = 1.0  # stabilised by everything: all elements tie

    def one_hot(inputs):
        scores = score(model(inputs).unflatten(0, (len(rep.group), -1)))
        best = scores >= scores.amax(0) - 1e-12
        return torch.where(best, 0.0, -torch.inf).flatten().double()

    weighted = lambda_equitune(model, rep, rep, Given(one_hot))
    exact(weighted(x), equizero(model, rep, rep, score)(x))


def test_equizero_can_be_inverted_where_the_chosen_element_is_known():
    """NeurIPS 2023, Prop. 2: y = g^-1 f(g x) gives x = g^-1 f^-1(g y)."""
    group = S3.group
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 3, dtype=torch.float64, generator=generator)

    def f(x):
        return torch.sinh(x @ mix.T)

    def f_inverse(y):
        return torch.asinh(y) @ torch.linalg.inv(mix).T

    model = equizero(f, S3, S3, max_value)
    x = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    y, chosen = model(x), model.scores(x).argmax(0)
    assert len(chosen.unique()) > 2
    found = S3.align_each(chosen, f_inverse(S3.act_each(chosen, y)))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    # without the element, x is one of |G| candidates
    candidates = torch.stack(
        [S3.act(group.inverse(g), f_inverse(S3.act(g, y))) for g in range(len(group))]
    )
    assert ((candidates - x).abs().amax(-1).amin(0) < 1e-9).all()


# (x, y) -> (y, x) is invertible; the group changes the sign of x, or of the first output
SIGN = Matrix(cyclic(2), [[[1, 0], [0, 1]], [[-1, 0], [0, 1]]])


def swap(x):
    return x.flip(-1)


def test_equitune_loses_invertibility():
    x = torch.randn(50, 2, dtype=torch.float64)
    exact(equitune(swap, SIGN, SIGN)(x), torch.zeros_like(x))


def test_equizero_needs_the_chosen_element_to_be_inverted():
    """Prop. 2 holds with the element known, not for y alone: here two inputs share an output."""
    model = equizero(swap, SIGN, SIGN, max_value)
    one = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    two = torch.tensor([[-2.0, -1.0]], dtype=torch.float64)
    exact(model(one), model(two))
    elements = [model.scores(x).argmax(0) for x in (one, two)]
    assert elements[0] != elements[1]
    for x, chosen in zip((one, two), elements, strict=True):
        exact(SIGN.align_each(chosen, swap(SIGN.act_each(chosen, model(x)))), x)


class Conditionals(nn.Module):
    """A causal language model: probabilities (B, T, V) of each token given those before it."""

    def __init__(self, vocabulary, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(
            vocabulary + 1, vocabulary, dtype=torch.float64, generator=generator
        )

    def forward(self, tokens):
        start = torch.full_like(tokens[:, :1], len(self.table) - 1)
        before = torch.cat([start, tokens[:, :-1]], dim=1)
        return self.table[before].softmax(-1)


def joint(conditionals, tokens):
    """The probability of each sequence, the product of its tokens' conditionals."""
    return conditionals.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).prod(-1)


WORDS = Tokens.from_cycles(symmetric(3), [[[1, 2]], [[1, 2, 3]]], size=5)
SENTENCES = torch.tensor(list(itertools.product(range(5), repeat=3)))


def test_equizero_keeps_the_autoregressive_property():
    """NeurIPS 2023, Prop. 1: one element serves a sequence, so its conditionals multiply."""
    f = Conditionals(5, seed=1)
    places = torch.arange(3)  # weighted, else exchanging two words would tie
    conditional = equizero(f, WORDS, WORDS.logits(), lambda p: (p.amax(-1) * places).sum(-1))
    scores = conditional.scores(SENTENCES)
    best = scores.topk(2, dim=0).values
    alone = best[0] - best[1] > 1e-9  # the mean of elements that tie is a mixture
    assert 20 < alone.sum() < len(SENTENCES)
    sentences, chosen = SENTENCES[alone], scores.argmax(0)[alone]
    assert len(chosen.unique()) == 6
    moved = WORDS.act_each(chosen, sentences)
    exact(joint(conditional(sentences), sentences), joint(f(moved), moved))


def test_equitune_loses_the_autoregressive_property():
    """The mean of the joint probabilities is not the product of the mean conditionals."""
    f = Conditionals(5, seed=1)
    same = Trivial(WORDS.group)
    of_conditionals = joint(equitune(f, WORDS, WORDS.logits())(SENTENCES), SENTENCES)
    of_joints = equitune(lambda x: joint(f(x), x), WORDS, same)(SENTENCES)
    # both are distributions over all sentences
    exact(of_conditionals.sum(), torch.ones((), dtype=torch.float64))
    exact(of_joints.sum(), torch.ones((), dtype=torch.float64))
    assert (of_conditionals - of_joints).abs().amax() > 0.01


def test_lambda_lies_between_its_special_cases(random_model):
    """From equal weights to the best element, as the log-weights grow."""
    model = random_model((3,), (3,), 3).double()
    x = torch.randn(7, 3, dtype=torch.float64)

    def sharpened(factor):
        def log_weights(inputs):
            return factor * max_value(model(inputs).unsqueeze(0)).squeeze(0)

        return Symmetrized(model, S3, S3, WeightedMean(Given(log_weights)))(x)

    exact(sharpened(0.0), equitune(model, S3, S3)(x))
    best = equizero(model, S3, S3, max_value)(x)
    distances = [(sharpened(f) - best).norm() for f in (1.0, 10.0, 100.0, 10_000.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3
