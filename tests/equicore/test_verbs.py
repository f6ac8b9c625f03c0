"""What holds of every representation: act, act_each, orbit and align say the same."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import (
    Boxes,
    DirectSum,
    Matrix,
    Permutation,
    Tokens,
    Tree,
    Trivial,
    check_representation,
    cyclic,
    image_dihedral,
    image_rotations,
    restrict,
    symmetric,
    vector_field,
)
from equicore.representations import Pullback, TensorProduct, image_wallpaper, regular
from equicore.trees import leaves, tree_map

PROPERTY = settings(max_examples=20, deadline=None, derandomize=True)
FLOATS = [torch.float32, torch.float64]
S3 = symmetric(3)
POINTS = Permutation.from_generators(S3, [[1, 0, 2], [1, 2, 0]])
PLANE = Matrix.from_generators(
    S3, [[[1, 0], [0, -1]], [[-0.5, -np.sqrt(0.75)], [np.sqrt(0.75), -0.5]]]
)
GRID = image_rotations()
# one of each kind, and the shape of a sample
EACH_KIND = {
    "trivial": (Trivial(S3), (3,)),
    "permutation": (POINTS, (3,)),
    "matrix": (PLANE, (2,)),
    "matrix on rows": (Matrix(S3, PLANE.matrices, dim=-2), (2, 3)),
    "regular": (regular(S3), (6,)),
    "sum": (DirectSum([(POINTS, 3), (PLANE, 2), (Trivial(S3), 1)]), (6,)),
    "product": (TensorProduct(PLANE, Permutation(S3, POINTS.permutations, dim=-2)), (3, 2)),
    "pullback": (Pullback(cyclic(2), PLANE, [0, 1]), (2,)),
    "restriction": (restrict(PLANE, S3.subgroup([2])), (2,)),
    "image": (image_dihedral(), (3, 3)),
    "wallpaper": (image_wallpaper(GRID, 2), (2, 2)),
    "field": (vector_field(GRID), (2, 3, 3)),
    "boxes": (Boxes(GRID), (5, 4)),
    "boxes by corners": (Boxes(GRID, "corners"), (4,)),
    "features": (DirectSum([(GRID, 1), (vector_field(GRID), 2)], dim=-3), (3, 2, 2)),
}
KINDS = pytest.mark.parametrize("rep, shape", EACH_KIND.values(), ids=EACH_KIND)


def close(actual, expected):
    """Trees of the same tensors, up to rounding."""
    pairs = list(zip(leaves(actual), leaves(expected), strict=True))
    assert pairs
    for a, e in pairs:
        tolerance = 1e-12 if a.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


def at(tree, index):
    return tree_map(lambda t: t[index], tree)


def stacked(trees):
    return tree_map(lambda *t: torch.stack(t), trees[0], *trees[1:])


def inputs(data, groups, representations, trees):
    """A random representation, of a tensor or a tree, and a function that makes batches."""
    group = data.draw(groups)
    if data.draw(st.booleans()):
        return data.draw(trees(group))
    rep, shape = data.draw(representations(group))

    def make(batch, dtype=torch.float64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *shape, dtype=dtype, generator=generator)

    return rep, make


@PROPERTY
@given(data=st.data(), dtype=st.sampled_from(FLOATS), batch=st.integers(1, 3))
def test_random_representations_are_representations(
    groups, representations, trees, data, dtype, batch
):
    rep, make = inputs(data, groups, representations, trees)
    x = make(batch, dtype)
    check_representation(rep, x)
    for moved, still in zip(leaves(rep.orbit(x)), leaves(x), strict=True):
        assert moved.shape == (len(rep.group), *still.shape)
        assert moved.dtype == still.dtype


@PROPERTY
@given(data=st.data(), dtype=st.sampled_from(FLOATS), batch=st.integers(1, 3))
def test_each_slice_and_each_sample_has_an_element_of_its_own(
    groups, representations, trees, data, dtype, batch
):
    rep, make = inputs(data, groups, representations, trees)
    order, inverse = len(rep.group), rep.group.inverse
    # in any order, and more than once
    some = data.draw(st.lists(st.integers(0, order - 1), min_size=1, max_size=6))
    # different numbers in each slice, so that a slice undone by another's element is found out
    slices = [make(batch, dtype, seed) for seed in range(len(some))]
    aligned = rep.align(stacked(slices), some)
    close(aligned, stacked([rep.act(inverse(g), y) for g, y in zip(some, slices, strict=True)]))
    samples = tree_map(lambda t: t[:, 0], stacked(slices))
    each = rep.act_each(torch.tensor(some), samples)
    for i, g in enumerate(some):
        close(at(each, slice(i, i + 1)), rep.act(g, at(samples, slice(i, i + 1))))
    close(rep.align_each(torch.tensor(some), each), samples)
    all_slices = stacked([make(1, dtype, seed) for seed in range(order)])
    close(rep.align(all_slices), rep.align(all_slices, range(order)))


@PROPERTY
@given(data=st.data())
def test_samples_do_not_see_each_other_nor_the_layout_in_memory(
    groups, representations, trees, data
):
    rep, make = inputs(data, groups, representations, trees)
    x = make(3)
    orbit = rep.orbit(x)
    for i in range(3):
        alone = at(x, slice(i, i + 1))
        close(rep.orbit(alone), at(orbit, (slice(None), slice(i, i + 1))))
    close(rep.orbit(tree_map(scattered, x)), orbit)
    close(rep.align(tree_map(scattered, orbit)), rep.align(orbit))


def scattered(x):
    """The same tensor with its entries in reverse order in memory."""
    reverse = [*reversed(range(x.ndim))]
    return x.permute(reverse).contiguous().permute(reverse)


@PROPERTY
@given(data=st.data())
def test_copies_act_alike_and_share_no_table(groups, representations, trees, data):
    rep, make = inputs(data, groups, representations, trees)
    other, x = copy.deepcopy(rep), make(2)
    assert other.group == rep.group
    close(other.orbit(x), rep.orbit(x))
    mine = {buffer.data_ptr() for buffer in rep.buffers()}
    assert mine.isdisjoint(buffer.data_ptr() for buffer in other.buffers())
    assert rep.state_dict() == {}


@KINDS
def test_each_kind_is_a_representation(rep, shape):
    for batch, dtype in ((1, torch.float64), (3, torch.float32)):
        x = torch.randn(batch, *shape, dtype=dtype)
        check_representation(rep, x)
    assert isinstance(rep, Trivial) or not torch.allclose(rep.act(1, x), x)


@KINDS
def test_elements_may_be_given_in_many_ways(rep, shape):
    x = torch.randn(2, *shape, dtype=torch.float64)
    last = len(rep.group) - 1
    whole = rep.orbit(x)
    for some in (
        [last, 0],
        (last, 0),
        [rep.group[last], rep.group[0]],
        np.array([last, 0]),
        range(last, -1, -last),
    ):
        close(rep.orbit(x, some), whole[[last, 0]])
        close(rep.align(rep.orbit(x, some), some), torch.stack([x, x]))
    for some in (range(1), range(1, last + 1), range(len(rep.group)), rep.group.elements):
        close(rep.orbit(x, some), whole[list(some)])
        close(rep.align(whole[list(some)], some), torch.stack([x] * len(some)))


@KINDS
def test_elements_of_samples_may_be_of_any_type_of_integer(rep, shape):
    x = torch.randn(3, *shape, dtype=torch.float64)
    elements = torch.tensor([1, 0, 1])
    for dtype in (torch.int32, torch.int16, torch.uint8):
        close(rep.act_each(elements.to(dtype), x), rep.act_each(elements, x))
        close(rep.align_each(elements.to(dtype), x), rep.align_each(elements, x))


@KINDS
def test_there_is_one_element_for_each_sample(rep, shape):
    x = torch.randn(3, *shape)
    for elements in (
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([[0, 1, 0]]),
        torch.tensor(1),
        torch.tensor([0.0, 1.0, 0.0]),
        torch.tensor([True, False, True]),
    ):
        for verb in (rep.act_each, rep.align_each):
            with pytest.raises(ValueError, match=r"integers of shape \([3B],\); got") as error:
                verb(elements, x)
            assert f"{tuple(elements.shape)} of {elements.dtype}" in str(error.value)


@KINDS
def test_unknown_elements_of_samples_are_refused(rep, shape):
    x = torch.randn(3, *shape)
    for wrong in (-1, len(rep.group)):
        for verb in (rep.act_each, rep.align_each):
            with pytest.raises(IndexError, match=rf"has the elements 0\.\.\d+; got {wrong}"):
                verb(torch.tensor([0, wrong, 1]), x)


@KINDS
def test_no_samples_are_no_error(rep, shape):
    x = torch.zeros(0, *shape)
    assert rep.act(1, x).shape == x.shape
    assert rep.orbit(x).shape == (len(rep.group), *x.shape)
    assert rep.align(rep.orbit(x)).shape == (len(rep.group), *x.shape)
    assert rep.act_each(torch.zeros(0, dtype=torch.int64), x).shape == x.shape


@KINDS
def test_slices_must_be_as_many_as_elements(rep, shape):
    y = torch.zeros(2, 3, *shape)
    with pytest.raises(ValueError, match=r"each of 3 elements .* got \(2, 3"):
        rep.align(y, [0, 1, 0])
    with pytest.raises(ValueError, match=rf"each of {len(rep.group)} elements .* got \(2,\)"):
        rep.align(torch.zeros(2))  # no batch


@KINDS
def test_gradients(rep, shape):
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 2, *shape, dtype=torch.float64, requires_grad=True)
    some = [1, 0, 1]
    elements = torch.tensor([1, 0])
    for function, argument in (
        (lambda t: rep.act(1, t), x),
        (lambda t: rep.act_each(elements, t), x),
        (lambda t: rep.orbit(t), x),
        (lambda t: rep.orbit(t, some), x),
        (lambda t: rep.align(t, some), y),
    ):
        assert torch.autograd.gradcheck(function, (argument,), fast_mode=True)


def test_gradients_through_trees():
    rep = Tree({"points": POINTS, "plane": [PLANE, Tokens(S3, POINTS.permutations)]})
    points = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    plane = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1], [2, 2]])

    def orbit(points, plane):
        return leaves(rep.orbit({"points": points, "plane": [plane, ids]}))[:2]

    assert torch.autograd.gradcheck(lambda *t: tuple(orbit(*t)), (points, plane))


@KINDS
def test_half_precision_is_kept(rep, shape):
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(2, *shape).to(dtype)
        orbit = rep.orbit(x)
        found = (orbit, rep.align(orbit), rep.act(1, x), rep.act_each(torch.tensor([0, 1]), x))
        assert all(t.dtype == dtype for t in found)
        torch.testing.assert_close(orbit.float(), rep.orbit(x.float()), rtol=0.03, atol=0.06)


INTEGER_KINDS = {
    "trivial": EACH_KIND["trivial"],
    "permutation": EACH_KIND["permutation"],
    "regular": EACH_KIND["regular"],
    "image": EACH_KIND["image"],
    "wallpaper": EACH_KIND["wallpaper"],
    "restriction": (restrict(POINTS, S3.subgroup([2])), (3,)),
    "sum": (DirectSum([(POINTS, 3), (Trivial(S3), 2)]), (5,)),
}


@pytest.mark.parametrize("rep, shape", INTEGER_KINDS.values(), ids=INTEGER_KINDS)
def test_integers_are_moved_as_they_are(rep, shape):
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        x = torch.randint(2, (3, *shape), generator=torch.Generator().manual_seed(5)).to(dtype)
        check_representation(rep, x)
        orbit = rep.orbit(x)
        moved = (orbit, rep.align(orbit), rep.act(1, x), rep.act_each(torch.tensor([0, 1, 1]), x))
        assert all(t.dtype == dtype for t in moved)
        assert torch.equal(orbit.double(), rep.orbit(x.double()))


@KINDS
def test_the_input_is_left_alone(rep, shape):
    x = torch.randn(2, *shape)
    before = x.clone()
    rep.act(1, x)
    rep.act_each(torch.tensor([0, 1]), x)
    rep.align(rep.orbit(x))
    assert torch.equal(x, before)


@KINDS
def test_repr_names_the_group(rep, shape):
    assert rep.group.name in repr(rep)
