import copy
import dataclasses
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equicore import (
    Best,
    Matrix,
    MLPWeight,
    Symmetrized,
    Trivial,
    confidence,
    cyclic,
    equitune,
    equizero,
    image_rotations,
    lambda_equitune,
    max_value,
    negative_entropy,
)

SCORES = [confidence, negative_entropy, max_value]
FLOATS = [torch.float32, torch.float64]

# two elements, two samples; the logits are logarithms of the probabilities in the comments
LOGITS = [
    [[math.log(6), math.log(3), math.log(1)], [0.0, 0.0, 0.0]],  # .6 .3 .1 and 1/3 1/3 1/3
    [[0.0, math.log(2), 0.0], [math.log(1), math.log(8), math.log(1)]],  # 1/4 1/2 1/4, .1 .8 .1
]


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    boxes: torch.Tensor


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "score, expected",
    [
        (confidence, [[math.log(6 / 4), math.log(1 / 2)], [0.0, math.log(8 / 2)]]),
        (
            negative_entropy,
            [
                [-math.log(entropy(0.6, 0.3, 0.1)), -math.log(math.log(3))],
                [-math.log(entropy(0.25, 0.5, 0.25)), -math.log(entropy(0.1, 0.8, 0.1))],
            ],
        ),
        (max_value, [[math.log(6), 0.0], [math.log(2), math.log(8)]]),
    ],
)
def test_scores_by_hand(score, expected, dtype):
    actual = score(torch.tensor(LOGITS, dtype=dtype))
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), atol=1e-6, rtol=1e-5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), classes=st.integers(2, 7), scale=st.floats(0.1, 10))
def test_one_prediction_is_ordered_as_by_probability_and_entropy(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(20, 1, classes, dtype=torch.float64, generator=generator)
    probabilities = logits.softmax(-1)
    for score, of in (
        (confidence, probabilities.amax(-1)),
        (negative_entropy, -torch.special.entr(probabilities).sum(-1)),
    ):
        if of.flatten().diff().abs().min() > 1e-12:
            assert torch.equal(score(logits).argsort(0), of.argsort(0))


@pytest.mark.parametrize("score, by", [(confidence, "mean"), (negative_entropy, "entropy")])
@pytest.mark.parametrize("axes", [(4,), (4, 2)])
def test_further_axes_are_averaged(score, by, axes):
    logits = torch.randn(3, 2, *axes, 5, dtype=torch.float64)
    p = logits.softmax(-1)
    actual = score.along(-1)(logits)
    if by == "mean":
        expected = p.amax(-1).logit().flatten(2).mean(-1)
    else:
        expected = -torch.special.entr(p).sum(-1).flatten(2).mean(-1).log()
    torch.testing.assert_close(actual, expected)
    values = max_value.along(-1)(logits)
    torch.testing.assert_close(values, logits.amax(-1).flatten(2).mean(-1))


@pytest.mark.parametrize("score", SCORES)
def test_the_axis_of_the_classes_is_named(score):
    maps = torch.randn(3, 2, 5, 4, 6, dtype=torch.float64)  # (|G|, B, classes, rows, columns)
    expected = score.along(-1)(maps.movedim(2, -1))
    torch.testing.assert_close(score.along(-3)(maps), expected)
    with pytest.raises(ValueError, match=r"\(B, 5, 4, 6\) have several axes: say which .*-3"):
        score(maps)
    with pytest.raises(ValueError, match="counted from the end"):
        score.along(2)
    with pytest.raises(ValueError, match=r"no classes on axis -4 of outputs \(B, 5, 4, 6\)"):
        score.along(-4)(maps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_confident_views_stay_apart(dtype):
    margins = torch.tensor([[12.0], [12.5], [40.0], [41.0], [200.0], [201.0]], dtype=dtype)
    logits = torch.stack([margins, torch.zeros_like(margins), -margins], dim=-1)
    for score in (confidence, negative_entropy):
        assert (score(logits).diff(dim=0) > 0.3).all(), score
        words = torch.stack([logits, logits], dim=2)
        assert (score.along(-1)(words).diff(dim=0) > 0.3).all(), score
    one = margins.unsqueeze(-1)
    for score in (confidence, negative_entropy):
        assert (score(one).diff(dim=0) > 0.3).all(), score


@pytest.mark.parametrize("score", [confidence, negative_entropy])
def test_a_confident_classifier_gets_the_best_view_and_no_mean(score):
    turns = image_rotations()
    same = Trivial(turns.group)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    sure = nn.Sequential(model, nn.Linear(10, 10))
    nn.init.eye_(sure[1].weight)
    with torch.no_grad():
        sure[1].weight *= 300
    x = torch.rand(50, 4, 4)
    f = equizero(sure, turns, same, score)
    aligned = f.aligned(x)
    assert (aligned.softmax(-1).amax(-1).sort(0).values[-2] == 1).float().mean() > 0.5
    odds = aligned.double().sort(-1).values
    best = (odds[..., -1] - odds[..., :-1].logsumexp(-1)).argmax(0)
    assert torch.equal(f(x), aligned[best, torch.arange(50)])


def test_one_logit_is_scored_by_its_sigmoid():
    sign = Matrix(cyclic(2), [[[1.0]], [[-1.0]]])
    same = Trivial(sign.group)

    def model(x):  # a yes at x, and a less sure no at -x
        return torch.where(x > 0, 3 * x, x)

    x = torch.tensor([[1.0], [2.0]])
    for score in (confidence, negative_entropy):
        assert torch.equal(equizero(model, sign, same, score)(x), 3 * x)
    assert torch.equal(equitune(model, sign, same)(x), x)
    logits = torch.randn(3, 2, 1, dtype=torch.float64)
    p = logits.sigmoid().squeeze(-1)
    torch.testing.assert_close(confidence(logits), p.maximum(1 - p).logit())
    entropies = torch.special.entr(p) + torch.special.entr(1 - p)
    torch.testing.assert_close(negative_entropy(logits), -entropies.log())


@pytest.mark.parametrize("score", SCORES)
def test_numbers_without_an_axis_of_classes_are_refused(score):
    with pytest.raises(ValueError, match=r"shape \(B,\) have no axis of classes.*unsqueeze"):
        score(torch.randn(3, 2))
    with pytest.raises(TypeError, match="floating-point"):
        score(torch.ones(3, 2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"no classes on axis -1 of outputs \(B, 0\)"):
        score(torch.ones(3, 2, 0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("score", [confidence, negative_entropy])
def test_ties_are_as_wide_as_the_rounding_of_the_logits(score, chunk, offset, dtype):
    """Logits far from zero have a rounding that their margins do not show."""
    three = Trivial(cyclic(3))
    logits = 5 * torch.randn(50, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = logits.amax(-1) + 1
    spacing = 4 * torch.finfo(dtype).eps * max(abs(offset), 1)

    def model(x):  # the same up to rounding, and one that is clearly less sure
        moved = logits + offset + spacing * torch.tensor([1, -1, 1, -1])
        return torch.stack([logits + offset, moved, 0.8 * logits + offset]).flatten(0, 1)

    f = equizero(model, three, three, score, chunk=chunk)
    if chunk is not None:  # of one element at a time
        outputs = model(None).unflatten(0, (3, 50))
        calls = iter([0, 1, 2])
        f.model = lambda x: outputs[next(calls)]
    output = f(torch.zeros(50, 1, dtype=dtype))
    first, second, _ = model(None).unflatten(0, (3, 50))
    assert torch.equal(output, (first + second) / 2)


def test_a_mask_of_minus_infinity_or_a_large_number_does_not_widen_ties():
    logits = torch.tensor([[[3.0, 1.0, -1e9]], [[3.01, 1.0, -1e9]], [[3.0, 1.0, -1e9]]])
    for mask in (-1e9, -torch.inf):
        logits[..., 2] = mask
        for score in (confidence, negative_entropy):
            best = Best(score)
            chosen = best.whole(logits, best.scores(None, logits))
            assert torch.equal(chosen[0], logits[1, 0])


@pytest.mark.parametrize("score", [confidence, negative_entropy])
def test_a_constant_added_to_the_logits_changes_nothing(score):
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(score(logits + 700), score(logits))


@pytest.mark.parametrize("score", SCORES)
def test_a_permutation_of_the_classes_changes_nothing(score):
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(score(logits[..., [4, 2, 0, 1, 3]]), score(logits))


@pytest.mark.parametrize(
    "logits, odds, entropy",
    [
        ([0.0, 0.0, -math.inf], 0.0, -math.log(math.log(2))),
        ([0.0, 1000.0, 0.0], 1000 - math.log(2), 1000 - math.log(2) - math.log(1001)),
    ],
)
def test_probabilities_that_are_zero(logits, odds, entropy):
    logits = torch.tensor([[logits]])
    torch.testing.assert_close(confidence(logits), torch.tensor([[odds]]))
    torch.testing.assert_close(
        negative_entropy(logits), torch.tensor([[entropy]]), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", SCORES)
def test_short_types(score, dtype):
    logits = 5 * torch.randn(3, 2, 4)
    actual = score(logits.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(
        actual.float(), score(logits.to(dtype).float()), rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize("score", SCORES)
def test_nan_logits_score_nan(score):
    logits = torch.zeros(2, 1, 3)
    logits[1, 0, 1] = torch.nan
    assert score(logits).isnan().tolist() == [[False], [True]]


@pytest.mark.parametrize("score", SCORES)
def test_of_a_tree_an_entry_is_named(score):
    logits, boxes = torch.randn(2, 1, 3), torch.randn(2, 1, 4)
    tree = {"logits": logits, "inner": Output(logits, boxes)}
    assert torch.equal(score.of("logits")(tree), score(logits))
    assert torch.equal(score.of("inner", "boxes")(tree), score(boxes))
    assert torch.equal(score.of(0).along(-1)((logits, boxes)), score(logits))
    with pytest.raises(TypeError, match=r'returns dict, of which one .*\.of\("logits"\)'):
        score(tree)
    with pytest.raises(TypeError, match=r"looks for 'scores'; the model returned the entries \['l"):
        score.of("scores")(tree)
    with pytest.raises(TypeError, match="looks for 'logits'; the model returned one tensor"):
        score.of("logits")(logits)


def test_scores_are_values():
    named = confidence.of("logits").along(-3)
    assert repr(named) == "confidence.of('logits').along(-3)"
    assert named == copy.deepcopy(named) == pickle.loads(pickle.dumps(named)) != confidence
    three = Trivial(cyclic(3))
    assert "confidence" in repr(Symmetrized(nn.Identity(), three, three, Best(named)))


def test_a_word_that_is_certain_for_every_view_does_not_decide():
    words = torch.tensor([[[[3.0, 0.0], [0.0, -torch.inf]]], [[[4.0, 0.0], [0.0, -torch.inf]]]])
    best = Best(confidence.along(-1))
    scores = best.scores(None, words)
    assert scores.isfinite().all() and torch.equal(best.whole(words, scores), words[1])


def test_certainty_is_a_very_large_score():
    logits = torch.tensor([[[3.0, -torch.inf, -torch.inf]], [[3.0, -1e9, -1e9]]])
    for score in (confidence, negative_entropy):
        certain, almost = score(logits)
        assert certain > 1e30 > almost > 1e8


@pytest.mark.parametrize("huge", [-1e9, -torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_view_that_is_masked_altogether_does_not_win_or_tie(huge, chunk):
    outputs = torch.tensor([[[huge] * 3], [[5.0, 0.0, 0.0]], [[1e6 + 2, 1e6, 1e6]]])
    three = Trivial(cyclic(3))
    # where all is minus infinity there is no distribution to have an entropy
    for score in (confidence,) if huge == -torch.inf else (confidence, negative_entropy):
        f = equizero(lambda x: outputs.flatten(0, 1), three, three, score, chunk=chunk)
        if chunk:
            calls = iter(outputs)
            f.model = lambda x: next(calls)  # noqa: B023
        assert torch.equal(f(torch.zeros(1, 1)), outputs[1])


@pytest.mark.parametrize(
    "padding",
    [[-1e9, -1e9], [torch.finfo(torch.float32).min] * 2, [-torch.inf] * 2, [1e9, 0.0], [0.0, 0.0]],
)
def test_a_word_of_padding_does_not_make_views_tie(padding):
    for classes in (2, 3):
        pad = torch.tensor(padding + padding[-1:] * (classes - 2))
        word = torch.zeros(classes)
        views = torch.stack([torch.stack([word + margin, pad]) for margin in (0.0, 0.0)])
        views[0, 0, 0], views[1, 0, 0] = 3.0, 9.0
        best = Best(confidence.along(-1))
        outputs = views.unsqueeze(1)
        chosen = best.whole(outputs, best.scores(None, outputs))
        assert torch.equal(chosen[0], views[1])


def test_weights_with_a_score_of_certainty_are_numbers():
    three = Trivial(cyclic(2))
    outputs = torch.tensor([[3.0, -torch.inf], [4.0, -torch.inf]])
    f = lambda_equitune(
        lambda x: outputs.clamp(min=-9),
        three,
        three,
        MLPWeight((1,)),
        score=lambda y: 3 * confidence(outputs.unsqueeze(1)),
    )
    assert f(torch.zeros(1, 1)).tolist() == [[3.5, -9.0]]


@pytest.mark.parametrize("padding", [-1e3 - 1, -1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_padded_words_are_left_out(padding):
    """60 of 100 places are padding: equizero chooses as without them, and ties no wider."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(4, 200, 40, 5, generator=generator)
    pad = torch.full((4, 200, 60, 5), padding)
    best = Best(confidence.along(-1))
    plain = best.whole(words, best.scores(None, words))
    padded = torch.cat([words, pad], dim=2)
    chosen = best.whole(padded, best.scores(None, padded))[:, :40]
    assert torch.equal(chosen, plain)
