"""Models and types that a symmetrised model must not trip over."""

import pytest
import torch
from torch import nn

from equicore import (
    Image,
    Keywords,
    Matrix,
    Mean,
    MLPWeight,
    Permutation,
    Symmetrized,
    Tree,
    Trivial,
    assert_equivariant,
    cyclic,
    equitune,
    equizero,
    image_dihedral,
    lambda_equitune,
    max_value,
    symmetric,
)
from equicore.continuous import Vectors, random_motions
from equicore.finetuning import EquivarianceLoss

S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
SQUARE = image_dihedral()
SAME = Trivial(SQUARE.group)


def flat(inplace):
    torch.manual_seed(0)
    return nn.Sequential(nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(16, 3)).double()


@pytest.mark.parametrize("options", [{}, {"chunk": 1}, {"chunk": 3}, {"top_k": 2}])
def test_weights_see_inputs_that_the_model_then_changes_in_place(options):
    torch.manual_seed(1)
    weight = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    x = torch.randn(5, 4, 4, dtype=torch.float64)
    copy = x.clone()
    with torch.no_grad():
        careless = lambda_equitune(flat(inplace=True), SQUARE, SAME, weight, **options)(x)
        careful = lambda_equitune(flat(inplace=False), SQUARE, SAME, weight, **options)(x)
    torch.testing.assert_close(careless, careful, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, copy)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("chunk", [None, 1])
def test_what_no_element_changes_is_copied_for_each(chunk, batch):
    def model(x):
        x += 1
        return x[:, :3]

    x = torch.zeros(batch, 4)
    same = Trivial(cyclic(2))
    assert torch.equal(equitune(model, same, same, chunk=chunk)(x), torch.ones(batch, 3))
    assert torch.equal(x, torch.zeros(batch, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_chunks_of_short_types_add_in_a_longer_one(dtype):
    """Sums of 300 outputs of 200 each: bfloat16 stops counting at 256, float16 at 65504."""
    same = Trivial(cyclic(300))
    x = torch.full((1, 3), 200.0, dtype=dtype)
    for method, options in (
        (equitune, {}),
        (equizero, {"score": max_value}),
        (lambda_equitune, {"weight": MLPWeight((3,))}),
    ):
        whole = method(nn.Identity(), same, same, **options)(x)
        chunked = method(nn.Identity(), same, same, **options, chunk=4)(x)
        assert whole.dtype == chunked.dtype == dtype
        torch.testing.assert_close(chunked, x, rtol=0.01, atol=0)
        torch.testing.assert_close(whole, x, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_have_no_mean(dtype):
    outputs = Tree({"logits": S3, "labels": S3})

    def model(x):
        return {"logits": x, "labels": (x > 0).to(dtype)}

    for method in (
        equitune(model, S3, outputs),
        equizero(model, S3, outputs, lambda y: max_value(y["logits"])),
        lambda_equitune(model, S3, outputs, MLPWeight((3,)), top_k=1),
    ):
        with pytest.raises(TypeError, match=f"{dtype} have no mean"):
            method(torch.randn(2, 3))


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_a_nan_among_the_weights_stays_with_its_sample(top_k):
    class Weight(nn.Module):
        def forward(self, x):
            return torch.where((x[:, 0] == 7) & (x[:, 1] == 1), torch.nan, x[:, 0])

    x = torch.tensor([[1.0, 2.0, 3.0], [7.0, 1.0, 2.0]])
    y = lambda_equitune(nn.Identity(), S3, S3, Weight(), top_k=top_k)(x)
    assert y.isnan().all(-1).tolist() == [False, True]


@pytest.mark.parametrize("k", [1, 2])
def test_a_constant_added_to_all_log_weights_changes_nothing_in_top_k(k, random_model):
    inner = random_model((3,), (1,), 2).double()
    x = torch.randn(20, 3, dtype=torch.float64)

    def sparse(constant):
        weight = nn.Sequential(inner, Shift(constant))
        return lambda_equitune(random_model((3,), (3,), 1).double(), S3, S3, weight, top_k=k)(x)

    torch.testing.assert_close(sparse(1e6), sparse(0.0), rtol=1e-8, atol=1e-8)


class Shift(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.constant = constant

    def forward(self, x):
        return x + self.constant


def test_models_with_keywords_take_a_dict():
    pair = Tree({"a": S3, "b": Trivial(S3.group)})
    torch.manual_seed(0)
    linear = nn.Linear(3, 3).double()

    def model(a, b, scale=1.0):
        return scale * linear(a) * b

    batch = {name: torch.randn(4, 3, dtype=torch.float64) for name in ("a", "b")}
    batch["b"] = batch["b"][:, :1]
    by_dict = equitune(Keywords(model), pair, S3)
    assert_equivariant(by_dict, pair, S3, batch)
    assert torch.equal(by_dict(batch, scale=2.0), equitune(model, pair, S3)(**batch, scale=2.0))
    assert EquivarianceLoss(Keywords(model), pair, S3, samples=None)(batch) > 0


def test_continuous_groups_do_not_mix_with_finite_ones():
    motions = random_motions(4, 2, seed=1)
    with pytest.raises(ValueError, match="one group"):
        Symmetrized(nn.Identity(), Vectors(), S3, Mean(), elements=motions)
    with pytest.raises(ValueError, match="one group"):
        Tree([Vectors(), S3])
    for one, elements in ((Vectors(), None), (S3, motions)):
        with pytest.raises(ValueError, match="of a continuous"):
            assert_equivariant(nn.Identity(), one, one, torch.zeros(2, 2), elements=elements)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: equitune(nn.Identity(), cyclic(3), S3), "input_rep is a Representation"),
        (lambda: equitune(nn.Identity(), S3, None), "output_rep is a Representation"),
        (lambda: Trivial(S3), "Trivial needs a Group"),
        (lambda: Matrix(4, [[[1.0]]]), "Matrix needs a Group"),
        (lambda: Image([0], [0], [False]), "Image needs a Group"),
        (lambda: equizero(nn.Identity(), S3, S3, score="max"), "score is a function"),
        (lambda: equizero(nn.Identity(), S3, S3, gradient="mean"), "expected a Reducer"),
        (lambda: equitune(nn.Identity(), Tree([S3]), S3)(), "no input: none of the arguments"),
    ],
)
def test_what_is_no_representation_group_or_function_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_penalties_refuse_another_output():
    penalty = EquivarianceLoss(nn.Identity(), S3, S3)
    with pytest.raises(ValueError, match=r"\(6, 3\).*\(6, 1\)"):
        penalty(torch.zeros(6, 3), torch.zeros(6, 1))
    with pytest.raises(ValueError, match="empty batch"):
        penalty(torch.zeros(0, 3))


def test_fractions_of_elements_are_refused():
    with pytest.raises(ValueError, match="chunk is a number of elements"):
        Symmetrized(nn.Identity(), S3, S3, Mean(), chunk=2.5)
