import pytest
import torch

from equicore import Points, Sampled, Vectors, random_motions
from equicore.canonicalize import SampleSet


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_sampled_verbs_agree():
    elements, x = random_motions(4, 3, shift=1.0, reflections=True, seed=1), torch.randn(5, 2, 3)
    rep = Sampled(Points(), elements)
    orbit = rep.orbit(x)
    for g in range(4):
        expected = Points().act(elements[[g] * 5], x)
        close(rep.act(g, x), expected)
        close(orbit[g], expected)
    close(rep.align(orbit), x.expand(4, *x.shape))
    close(rep.orbit(x, [3, 1, 3]), orbit[[3, 1, 3]])
    close(rep.align(orbit[[3, 1, 3]], [3, 1, 3]), x.expand(3, *x.shape))
    chosen = torch.tensor([3, 0, 2, 2, 1])
    each = rep.act_each(chosen, x)
    for i, g in enumerate(chosen.tolist()):
        close(each[i], orbit[g, i])
    close(rep.align_each(chosen, each), x)


def test_sampled_refuses_what_are_no_elements():
    rep, x = Sampled(Vectors(), random_motions(4, 3, seed=1)), torch.randn(2, 3)
    for g in (4, -1):
        with pytest.raises(IndexError):
            rep.act(g, x)
        with pytest.raises(IndexError):
            rep.act_each(torch.tensor([0, g]), x)
    for elements in (torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match="one element for each of 2 samples"):
            rep.act_each(elements, x)
    with pytest.raises(ValueError):
        rep.align(torch.randn(3, 2, 3))
    with pytest.raises(NotImplementedError, match="Sampled does not say how it is written"):
        rep.arguments()


def test_sample_sets():
    assert SampleSet(3) == SampleSet(3) != SampleSet(4)
    assert hash(SampleSet(3)) == hash(SampleSet(3))
    assert len(SampleSet(3)) == len(SampleSet(3).names) == 3
    with pytest.raises(ValueError, match="at least one sample"):
        SampleSet(0)
