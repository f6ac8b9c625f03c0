import math

import pytest
import torch

from equicore import max_probability, max_value, negative_entropy

SCORES = [max_probability, negative_entropy, max_value]
FLOATS = [torch.float32, torch.float64]

# two elements, two samples; the logits are logarithms of the probabilities in the comments
LOGITS = [
    [[math.log(6), math.log(3), math.log(1)], [0.0, 0.0, 0.0]],  # .6 .3 .1 and 1/3 1/3 1/3
    [[0.0, math.log(2), 0.0], [math.log(1), math.log(8), math.log(1)]],  # 1/4 1/2 1/4, .1 .8 .1
]


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "score, expected",
    [
        (max_probability, [[0.6, 1 / 3], [0.5, 0.8]]),
        (
            negative_entropy,
            [
                [-entropy(0.6, 0.3, 0.1), -math.log(3)],
                [-entropy(0.25, 0.5, 0.25), -entropy(0.1, 0.8, 0.1)],
            ],
        ),
        (max_value, [[math.log(6), 0.0], [math.log(2), math.log(8)]]),
    ],
)
def test_scores_by_hand(score, expected, dtype):
    actual = score(torch.tensor(LOGITS, dtype=dtype))
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("axes", [(4,), (4, 2)])
def test_further_axes_are_averaged(score, axes):
    logits = torch.randn(3, 2, *axes, 5, dtype=torch.float64)
    words = logits.flatten(2, -2)
    one_by_one = torch.stack([score(words[:, :, i]) for i in range(words.shape[2])])
    assert score(logits).shape == (3, 2)
    torch.testing.assert_close(score(logits), one_by_one.mean(0))


@pytest.mark.parametrize("score", [max_probability, negative_entropy])
def test_a_constant_added_to_the_logits_changes_nothing(score):
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(score(logits + 700), score(logits))


@pytest.mark.parametrize("score", SCORES)
def test_a_permutation_of_the_classes_changes_nothing(score):
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(score(logits[..., [4, 2, 0, 1, 3]]), score(logits))


@pytest.mark.parametrize(
    "logits, expected",
    [
        ([0.0, 0.0, -math.inf], -math.log(2)),
        ([3.0, -math.inf, -math.inf], 0.0),
        ([0.0, 1000.0, 0.0], 0.0),  # probabilities that underflow
    ],
)
def test_negative_entropy_is_finite_where_probabilities_are_zero(logits, expected):
    score = negative_entropy(torch.tensor([[logits]]))
    torch.testing.assert_close(score, torch.tensor([[expected]]))


@pytest.mark.parametrize("score", SCORES)
def test_nan_logits_score_nan(score):
    logits = torch.zeros(2, 1, 3)
    logits[1, 0, 1] = torch.nan
    assert score(logits).isnan().tolist() == [[False], [True]]


@pytest.mark.parametrize("score", SCORES)
def test_of_a_tree_an_entry_must_be_picked(score):
    with pytest.raises(TypeError, match=r"returns dict; give a score that picks an entry of it"):
        score({"logits": torch.zeros(2, 1, 3)})
