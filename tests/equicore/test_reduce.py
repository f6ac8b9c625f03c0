"""Reducers alone: what they make of aligned outputs and raw ones, at once and in parts."""

import pytest
import torch
from torch import nn

from equicore import Best, Identity, Maximum, Mean, StraightThrough, WeightedMean, max_value
from equicore.reduce import Reducer

FLOATS = [torch.float32, torch.float64]


def reduced(reducer, stack, raw):
    """The result for all elements at once, which is that of any parts."""
    scores = reducer.scores(raw, raw)
    whole = reducer.whole(stack, scores)
    for size in (1, 2):
        state = None
        for start in range(0, len(stack), size):
            places = range(start, min(start + size, len(stack)))
            some = None if scores is None else scores[places.start : places.stop]
            part = reducer.partial(stack[places.start : places.stop], some, places)
            state = part if state is None else reducer.merge(state, part)
        torch.testing.assert_close(reducer.finish(state), whole, equal_nan=True)
    return whole


class Given(nn.Module):
    """Log-weights that are what the network sees."""

    def forward(self, x):
        return x.flatten(1).sum(1)


def test_tied_scores_give_the_mean_of_the_tied():
    stack = torch.tensor([[[1.0, 2.0]], [[3.0, 8.0]], [[5.0, 100.0]]])
    raw = torch.tensor([[[7.0]], [[7.0]], [[6.0]]])
    assert reduced(Best(max_value), stack, raw).tolist() == [[2.0, 5.0]]


def test_ties_are_each_samples_own():
    stack = torch.arange(6.0).view(3, 2)
    raw = torch.tensor([[[1.0], [0.0]], [[1.0], [2.0]], [[0.0], [2.0]]])
    assert reduced(Best(lambda y: y.squeeze(-1)), stack, raw).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("magnitude", [0.0, 1.0, -1000.0, 1e6])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_differences_are_ties(magnitude, dtype):
    eps = torch.finfo(dtype).eps * (1 + abs(magnitude))
    stack = torch.tensor([[[0.0]], [[2.0]]], dtype=dtype)
    for steps, expected in ((0, 1.0), (31, 1.0), (34, 2.0)):
        raw = torch.tensor([[[magnitude]], [[magnitude + steps * eps]]], dtype=dtype)
        assert reduced(Best(max_value), stack, raw).tolist() == [[expected]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ties_of_short_types_are_closer(dtype):
    eps = torch.finfo(dtype).eps
    stack = torch.tensor([[[0.0]], [[2.0]]], dtype=dtype)
    for difference, expected in ((1.5, 1.0), (3.0, 2.0)):
        raw = torch.tensor([[[0.0]], [[difference * eps]]], dtype=dtype)
        assert reduced(Best(max_value), stack, raw).item() == expected


def test_tolerance_can_be_chosen():
    stack, raw = torch.tensor([[[0.0]], [[2.0]]]), torch.tensor([[[0.0]], [[0.1]]])
    assert reduced(Best(max_value), stack, raw).item() == 2.0
    assert reduced(Best(max_value, tolerance=0.2), stack, raw).item() == 1.0
    assert reduced(Best(max_value, tolerance=0.0), stack, raw * 0).item() == 1.0


@pytest.mark.parametrize("lost", [torch.inf, -torch.inf, torch.nan])
def test_outputs_that_lost_may_be_anything(lost):
    stack = torch.tensor([[[1.0, 2.0]], [[lost, lost]]])
    raw = torch.tensor([[[5.0]], [[4.0]]])
    assert reduced(Best(max_value), stack, raw).tolist() == [[1.0, 2.0]]


def test_nan_scores_give_nan_to_their_sample_only():
    stack = torch.ones(2, 2, 3)
    for nan, number in ((0, 1), (1, 0)):
        raw = torch.full((2, 2, 1), 4.0)
        raw[nan, 0] = torch.nan
        raw[number, 0] = 5.0
        found = reduced(Best(max_value), stack, raw)
        assert found.isnan().tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("scores", [(0.0, torch.inf), (-torch.inf, 0.0), (-torch.inf, torch.inf)])
def test_infinite_scores_compare_as_numbers_do(scores):
    stack = torch.tensor([[[1.0]], [[2.0]]])
    for places in ([0, 1], [1, 0]):
        raw = torch.tensor(scores).view(2, 1, 1)
        assert reduced(Best(max_value), stack[places], raw[places]).item() == 2.0
    equal = torch.full((2, 1, 1), scores[0])
    assert reduced(Best(max_value), stack, equal).item() == 1.5


def test_losers_get_no_gradient_even_where_they_are_infinite():
    stack = torch.tensor([[[2.0, 3.0]], [[torch.inf, 1.0]]], requires_grad=True)
    raw = torch.tensor([[[1.0]], [[0.0]]])
    reduced(Best(max_value), stack, raw).sum().backward()
    assert stack.grad.tolist() == [[[1.0, 1.0]], [[0.0, 0.0]]]


def test_reducers_reduce_elements_only():
    stack = torch.randn(4, 3, 2)
    raw = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(4, 1, 1).expand(4, 3, 1)
    expected = torch.einsum("g,gbi->bi", torch.tensor([0.1, 0.2, 0.3, 0.4]), stack)
    for weights in (WeightedMean(Given()), WeightedMean(Given(), of_outputs=True)):
        torch.testing.assert_close(reduced(weights, stack, raw), expected)
    torch.testing.assert_close(reduced(Mean(), stack, raw), stack.mean(0))
    torch.testing.assert_close(reduced(Maximum(), stack, raw), stack.amax(0))
    torch.testing.assert_close(reduced(Identity(), stack, raw), stack[0])
    through = StraightThrough(Best(max_value), Mean())
    torch.testing.assert_close(reduced(through, stack, raw), stack[3])


def test_the_sums_of_short_types_are_kept_in_a_longer_one():
    stack = torch.full((300, 1, 1), 200.0, dtype=torch.float16)  # the sum is beyond float16
    for reducer in (Mean(), Best(max_value), WeightedMean(Given(), of_outputs=True)):
        found = reduced(reducer, stack, torch.zeros(300, 1, 1, dtype=torch.float16))
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, stack[0], rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "reducer, needs, estimates",
    [
        (Mean(), set(), True),
        (Maximum(), set(), False),
        (Identity(), set(), False),
        (Best(max_value), {"outputs"}, False),
        (StraightThrough(Best(max_value), Mean()), {"outputs"}, False),
        (StraightThrough(WeightedMean(Given()), Mean()), {"inputs"}, False),
        (WeightedMean(Given()), {"inputs"}, True),
        (WeightedMean(Given(), "0"), {"features"}, False),
        (WeightedMean(Given(), score=max_value), {"inputs", "outputs"}, False),
        (WeightedMean(Given(), "0", max_value), {"features", "outputs"}, False),
        (WeightedMean(Given(), of_outputs=True), {"outputs"}, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Reducer) else "",
)
def test_what_scores_look_at_is_declared(reducer, needs, estimates):
    assert reducer.needs == needs
    assert reducer.estimates is estimates


def test_without_an_estimate_there_is_none():
    with pytest.raises(NotImplementedError):
        Best(max_value).estimate(torch.zeros(2, 1, 3), None, [0, 1])
