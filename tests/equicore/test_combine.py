"""Representations made of others: regular, sums, products, pullbacks and restrictions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import (
    Boxes,
    DirectSum,
    Image,
    Matrix,
    Permutation,
    Tokens,
    Tree,
    Trivial,
    check_representation,
    cyclic,
    dihedral,
    equivariance_error,
    image_dihedral,
    image_rotations,
    product,
    restrict,
    symmetric,
    vector_field,
)
from equicore.representations import Pullback, TensorProduct, regular

PROPERTY = settings(max_examples=15, deadline=None, derandomize=True)
S3 = symmetric(3)
POINTS = Permutation.from_generators(S3, [[1, 0, 2], [1, 2, 0]])
SIGN = Matrix.from_generators(S3, [[[-1.0]], [[1.0]]])


def plane(dim=-1):
    """S3 on the plane, as the symmetries of a triangle."""
    c, s = -0.5, np.sqrt(0.75)
    return Matrix.from_generators(S3, [[[1, 0], [0, -1]], [[c, -s], [s, c]]], dim)


def numbers(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@PROPERTY
@given(data=st.data())
def test_the_regular_representation_moves_h_to_g_h(groups, data):
    group = data.draw(groups)
    x = torch.arange(2 * len(group)).view(2, -1)
    for g, moved in enumerate(regular(group).orbit(x)):
        assert torch.equal(moved[:, group.table[g].tolist()], x)


def test_the_regular_representation_on_another_axis():
    x = numbers(2, 6, 3)
    rows = regular(S3, dim=-2)
    assert torch.equal(rows.orbit(x), regular(S3).orbit(x.mT).mT)


# direct sums


def blocks(dim=-1):
    turned = Permutation(S3, POINTS.permutations, dim)
    sign = Matrix(S3, SIGN.matrices, dim)
    return DirectSum([(turned, 3), (plane(dim), 2), (Trivial(S3), 2), (sign, 1)], dim)


def test_a_direct_sum_is_a_block_matrix():
    x = numbers(4, 8)
    for g in range(6):
        matrix = torch.block_diag(
            torch.eye(3, dtype=torch.float64)[POINTS.inverses[g]],
            plane().matrices[g].double(),
            torch.eye(2, dtype=torch.float64),
            SIGN.matrices[g].double(),
        )
        torch.testing.assert_close(blocks().act(g, x), x @ matrix.T)


@pytest.mark.parametrize("dim", [-1, -2, -3])
def test_a_direct_sum_along_any_axis(dim):
    x = numbers(2, 8, 8, 8)
    moved = blocks(dim)
    expected = blocks().orbit(x.movedim(dim, -1)).movedim(-1, dim)
    torch.testing.assert_close(moved.orbit(x), expected)
    check_representation(moved, x)
    assert moved.axes == (dim,)


def test_a_direct_sum_of_fields_cuts_the_channels():
    grid = image_dihedral()
    rep = DirectSum([(grid, 2), (vector_field(grid), 2)], dim=-3)
    x = numbers(2, 4, 3, 3)
    for g in range(8):
        scalars, vectors = rep.act(g, x).split(2, -3)
        assert torch.equal(scalars, grid.act(g, x[:, :2]))
        assert torch.equal(vectors, vector_field(grid).act(g, x[:, 2:]))
    assert set(rep.axes) == {-3, -2, -1}
    check_representation(rep, x)


def test_direct_sums_nest():
    inner = DirectSum([(POINTS, 3), (SIGN, 1)])
    outer = DirectSum([(SIGN, 1), (inner, 4)])
    flat = DirectSum([(SIGN, 1), (POINTS, 3), (SIGN, 1)])
    x = numbers(3, 5)
    assert torch.equal(outer.orbit(x), flat.orbit(x))


def test_integers_need_parts_that_take_them():
    with pytest.raises(TypeError, match="floating-point tensors; got torch.int64"):
        blocks().act(1, torch.zeros(2, 8, dtype=torch.int64))


def test_a_direct_sum_of_boxes_and_scores():
    grid = image_rotations()
    rep = DirectSum([(Boxes(grid), 4), (Trivial(grid.group), 3)])
    x = numbers(2, 5, 7)
    for g in range(4):
        assert torch.equal(rep.act(g, x)[..., :4], Boxes(grid).act(g, x[..., :4]))
        assert torch.equal(rep.act(g, x)[..., 4:], x[..., 4:])
    check_representation(rep, x)


@pytest.mark.parametrize("call, shape", [("act", (2, 7)), ("orbit", (8,)), ("align", (6, 2, 9))])
def test_the_pieces_must_fill_the_axis(call, shape):
    arguments = [1, torch.zeros(shape)] if call == "act" else [torch.zeros(shape)]
    with pytest.raises(ValueError, match=r"DirectSum .* axis -1 of size 8 .* got shape \("):
        getattr(blocks(), call)(*arguments)


def test_a_piece_must_fit_its_part():
    rep = DirectSum([(POINTS, 2), (SIGN, 1)])
    with pytest.raises(ValueError, match=r"axis -1 of size 3 .* got shape \(5, 2\)"):
        rep.act(1, torch.zeros(5, 3))


def test_a_direct_sum_needs_parts_of_one_group():
    with pytest.raises(ValueError, match="a direct sum needs at least one"):
        DirectSum([])
    with pytest.raises(ValueError, match=r"one group; got Group\('symmetric\(3\)'.*'cyclic\(2\)'"):
        DirectSum([(POINTS, 3), (Trivial(cyclic(2)), 1)])
    with pytest.raises(ValueError, match="dim is counted from the end .* got 1"):
        DirectSum([(POINTS, 3)], dim=1)


# tensor products


@pytest.mark.parametrize("second", [plane(-1), Permutation(S3, POINTS.permutations), SIGN])
def test_a_tensor_product_is_the_kronecker_product(second):
    size = second.size
    first = Permutation(S3, POINTS.permutations, dim=-2)
    rep = TensorProduct(first, second)
    x = numbers(4, 3, size)
    eye = torch.eye(3, dtype=torch.float64)
    for g in range(6):
        matrix = second.act(g, torch.eye(size, dtype=torch.float64)).T.contiguous()
        both = torch.kron(eye[POINTS.inverses[g]], matrix)
        expected = (x.flatten(1) @ both.T).unflatten(1, (3, size))
        torch.testing.assert_close(rep.act(g, x), expected)
        torch.testing.assert_close(TensorProduct(second, first).act(g, x), expected)
    check_representation(rep, x)
    assert set(rep.axes) == {-1, -2}


def test_ids_in_places_that_move():
    # the sentence's words are exchanged, and so are their places
    words = Tokens.from_cycles(S3, [[[0, 1]], [[0, 1, 2]]], 4)
    rep = TensorProduct(words, POINTS)
    x = torch.tensor([[0, 3, 1], [2, 2, 0]])
    for g in range(6):
        assert torch.equal(rep.act(g, x), POINTS.act(g, words.act(g, x)))
    check_representation(rep, x)


def test_a_factor_that_acts_on_no_axis():
    rep = TensorProduct(POINTS, Trivial(S3))
    x = numbers(2, 3)
    assert torch.equal(rep.orbit(x), POINTS.orbit(x))


@pytest.mark.parametrize(
    "first, second, axes",
    [
        (POINTS, SIGN, r"\[-1\]"),
        (image_rotations(), Permutation(cyclic(4), [[0]] * 4, dim=-2), r"\[-2\]"),
        (image_rotations(), image_rotations(), r"\[-2, -1\]"),
        (vector_field(image_rotations()), Matrix(cyclic(4), [[[1]]] * 4, dim=-3), r"\[-3\]"),
        (DirectSum([(POINTS, 3)]), POINTS, r"\[-1\]"),
        (Tokens(S3, POINTS.permutations), Tokens(S3, POINTS.permutations), r"\[0\]"),
        (Boxes(image_rotations()), image_rotations(), r"\[-1\]"),
        (restrict(POINTS, S3.subgroup([1])), regular(S3.subgroup([1])), r"\[-1\]"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_factors_act_on_different_axes(first, second, axes):
    names = f"{type(first).__name__} and {type(second).__name__}"
    with pytest.raises(ValueError, match=f"different axes; {names} both act on {axes}"):
        TensorProduct(first, second)


def test_beside_a_factor_that_is_not_linear_entries_may_only_move():
    grid = image_rotations()
    boxes = Boxes(grid)
    order = Permutation.from_generators(grid.group, [[1, 2, 3, 0]], dim=-2)
    rep = TensorProduct(order, boxes)
    check_representation(rep, numbers(2, 4, 4))
    mirrored = Matrix.from_generators(grid.group, [[[-1.0]]], dim=-2)
    words = Tokens.from_cycles(grid.group, [[[0, 1, 2, 3]]], 4)
    for mixing in (mirrored, DirectSum([(mirrored, 1)], dim=-2)):
        for other in (boxes, DirectSum([(boxes, 4)]), words):
            with pytest.raises(ValueError, match=f"{type(other).__name__} is not linear, so"):
                TensorProduct(mixing, other)
            with pytest.raises(ValueError, match=f"{type(other).__name__} is not linear, so"):
                TensorProduct(other, mixing)


def test_factors_are_of_one_group():
    with pytest.raises(ValueError, match=r"a tensor product must be of one group; got .* and .*"):
        TensorProduct(POINTS, regular(cyclic(2), dim=-2))


def test_wrong_axes_of_a_factor_are_shown():
    rep = TensorProduct(Permutation(S3, POINTS.permutations, dim=-2), SIGN)
    with pytest.raises(ValueError, match=r"axis -2 of size 3 .* got shape \(2, 4, 1\)"):
        rep.act(1, torch.zeros(2, 4, 1))


# pullbacks and restrictions


def test_a_product_acts_through_its_factors():
    both = product(S3, cyclic(4))
    first = Pullback(both, POINTS, [g // 4 for g in range(24)])
    second = Pullback(both, image_rotations(), [g % 4 for g in range(24)])
    x, y = numbers(2, 3), numbers(2, 3, 3)
    for g in range(24):
        assert torch.equal(first.act(g, x), POINTS.act(g // 4, x))
        assert torch.equal(second.act(g, y), image_rotations().act(g % 4, y))
        assert torch.equal(first.orbit(x)[g], POINTS.act(g // 4, x))
    assert first.group == both
    check_representation(first, x)
    check_representation(second, y)


def test_the_determinant_is_a_pullback_of_the_sign():
    flip = Matrix(cyclic(2), [[[1.0]], [[-1.0]]])
    rep = Pullback(dihedral(4), flip, [0] * 4 + [1] * 4)
    x = numbers(3, 1)
    assert torch.equal(rep.orbit(x), torch.stack([x] * 4 + [-x] * 4))


def test_images_must_be_a_homomorphism():
    with pytest.raises(ValueError, match=r"images of the elements do not follow cyclic\(4\)"):
        Pullback(cyclic(4), POINTS, [0, 1, 0, 2])
    with pytest.raises(ValueError, match="element 0 must act as identity"):
        Pullback(cyclic(2), POINTS, [1, 0])
    with pytest.raises(ValueError, match=r"cyclic\(2\) has 2 elements; got 3 images of the"):
        Pullback(cyclic(2), POINTS, [0, 1, 0])
    # g -> g^-1 turns products around
    with pytest.raises(ValueError, match=r"do not follow symmetric\(3\)"):
        Pullback(S3, POINTS, S3.inverses)
    with pytest.raises(IndexError, match=r"symmetric\(3\) has the elements 0..5; got 6"):
        Pullback(cyclic(2), POINTS, [0, 6])


@PROPERTY
@given(data=st.data())
def test_restrictions_act_as_the_elements_of_the_parent_do(groups, representations, data):
    group = data.draw(groups)
    rep, shape = data.draw(representations(group))
    generators = data.draw(st.lists(st.integers(0, len(group) - 1), max_size=2))
    subgroup = group.subgroup(generators)
    restricted = restrict(rep, subgroup)
    x = numbers(2, *shape)
    orbit = rep.orbit(x)
    assert restricted.group is subgroup
    torch.testing.assert_close(restricted.orbit(x), orbit[subgroup.embedding.tolist()])
    for h, g in enumerate(subgroup.embedding):
        assert torch.equal(restricted.act(h, x), rep.act(int(g), x))


def test_restrictions_of_trees_name_the_same_entries():
    half = S3.subgroup([1])
    tree = restrict(Tree({"y": POINTS}), half)

    def model(x):
        return {"y": x.sigmoid(), "other": x.sum()}

    error = equivariance_error(model, restrict(POINTS, half), tree, numbers(2, 3))
    assert error.relative.max() < 1e-12


def test_restrictions_of_restrictions():
    square = image_dihedral()
    turns = square.group.subgroup([1])
    halves = turns.subgroup([2])
    rep = restrict(restrict(square, turns), halves)
    x = numbers(1, 4, 4)
    assert torch.equal(rep.orbit(x), torch.stack([x, x.rot90(2, (-2, -1))]))
    assert rep.axes == square.axes


def test_foreign_subgroups_are_refused():
    with pytest.raises(ValueError, match=r"<r> in dihedral\(3\).* is no subgroup of .*symmetric"):
        restrict(POINTS, dihedral(3).subgroup([1]))
    with pytest.raises(TypeError, match=r"expected a Subgroup, .* got Group\('cyclic\(2\)'"):
        restrict(POINTS, cyclic(2))
    # a group with the same table is the same group
    again = Image(dihedral(4), [0, 1, 2, 3] * 2, [False] * 4 + [True] * 4)
    assert len(restrict(again, image_dihedral().group.subgroup([4])).group) == 2


@pytest.mark.parametrize("g", [-1, 2])
def test_unknown_elements_of_the_smaller_group_are_refused(g):
    rep = restrict(POINTS, S3.subgroup([1]))
    with pytest.raises(IndexError, match=f"has the elements 0..1; got {g}"):
        rep.act(g, torch.zeros(1, 3))
    with pytest.raises(IndexError, match=f"has the elements 0..1; got {g}"):
        rep.act_each(torch.tensor([g]), torch.zeros(1, 3))
