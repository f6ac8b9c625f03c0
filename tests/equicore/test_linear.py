"""Permutations and matrices along one axis, labels, and what changes nothing."""

import copy
import re

import numpy as np
import pytest
import torch

from equicore import (
    Group,
    Matrix,
    Permutation,
    Tokens,
    Trivial,
    check_representation,
    cyclic,
    dihedral,
    symmetric,
    trivial,
)

FLOATS = [torch.float32, torch.float64]
POINTS = Permutation.from_generators(symmetric(4), [[1, 0, 2, 3], [1, 2, 3, 0]])


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def rotations(n):
    return Matrix(cyclic(n), np.stack([rotation(2 * np.pi * k / n) for k in range(n)]))


def close(actual, expected):
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_trivial_leaves_everything_as_it_is():
    rep = Trivial(symmetric(3))
    x = torch.randn(2, 3)
    assert all(torch.equal(rep.act(g, x), x) for g in range(6))
    assert torch.equal(rep.orbit(x), torch.stack([x] * 6))
    y = torch.randn(6, 2)
    assert torch.equal(rep.align(y), y)


def test_permutation_moves_entry_i_to_place_p_of_i():
    x = torch.randn(2, 4)
    for g in range(24):
        moved = POINTS.act(g, x)
        for i in range(4):
            assert torch.equal(moved[:, POINTS.permutations[g, i]], x[:, i])


def test_permutation_aligns_by_gathering_at_its_permutations():
    y = torch.randn(24, 2, 4)
    aligned = POINTS.align(y)
    for g in range(24):
        assert torch.equal(aligned[g], y[g][..., POINTS.permutations[g]])


@pytest.mark.parametrize("dim", [-1, -2, -3])
def test_permutation_of_any_axis_is_that_of_the_last_axis_moved(dim):
    rep = Permutation(POINTS.group, POINTS.permutations, dim=dim)
    x = torch.randn(2, 4, 4, 4)
    for g in range(24):
        expected = POINTS.act(g, x.movedim(dim, -1)).movedim(-1, dim)
        assert torch.equal(rep.act(g, x), expected)
        assert torch.equal(rep.orbit(x)[g], expected)


def test_labels_move_like_one_hot_vectors():
    labels = torch.tensor([[0, 1, 2], [3, 3, 0]])
    one_hot = torch.nn.functional.one_hot(labels, 4)
    for g in range(24):
        assert torch.equal(POINTS.act_on_labels(g, labels), POINTS.act(g, one_hot).argmax(-1))


@pytest.mark.parametrize("call", ["act", "orbit", "align"])
def test_matrix_refuses_integers(call):
    for dtype in (torch.int64, torch.uint8, torch.bool):
        x = torch.ones((3, 4, 2) if call == "align" else (4, 2), dtype=dtype)
        with pytest.raises(TypeError, match=f"floating-point tensors; got {dtype}"):
            getattr(rotations(3), call)(*([1, x] if call == "act" else [x]))


@pytest.mark.parametrize(
    "labels, wrong",
    [([0, -1], -1), ([0, 4], 4), ([-2, 3], -2), ([-3, 7], -3), ([[1], [4]], 4)],
)
def test_labels_outside_the_axis_are_shown(labels, wrong):
    with pytest.raises(ValueError, match=rf"labels are 0\.\.3; got {wrong}$"):
        POINTS.act_on_labels(1, torch.tensor(labels))


def test_all_labels_of_the_axis_and_none_are_taken():
    assert POINTS.act_on_labels(0, torch.tensor([0, 3])).tolist() == [0, 3]
    assert POINTS.act_on_labels(1, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert POINTS.act_on_labels(5, torch.tensor([2], dtype=torch.uint8)).dtype == torch.int64
    with pytest.raises(TypeError, match="labels are integers; got torch.float32"):
        POINTS.act_on_labels(1, torch.zeros(2))


def test_matrix_multiplies_vectors_from_the_left():
    turn = rotations(4)
    close(turn.act(1, torch.tensor([[1.0, 0.0]])), torch.tensor([[0.0, 1.0]]))
    close(turn.orbit(torch.tensor([[1.0, 0.0]]))[3], torch.tensor([[0.0, -1.0]]))
    close(turn.align(torch.tensor([[[1.0, 0.0]]] * 4))[1], torch.tensor([[0.0, -1.0]]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [3, 7])
def test_rotations_are_accurate_in_both_types(n, dtype):
    x = torch.randn(5, 2, dtype=dtype)
    cos, sin = np.cos(2 * np.pi / n), np.sin(2 * np.pi / n)
    expected = torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)
    for rep in (rotations(n), rotations(n).to(torch.float64), rotations(n).half().to(dtype)):
        check_representation(rep, x)
        close(rep.act(1, x), expected)
        close(rep.orbit(x)[1], expected)


def test_buffers_move_with_the_module():
    moved = copy.deepcopy(POINTS).to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())


def test_matrices_are_kept_in_the_shortest_type_that_holds_them():
    assert rotations(4).matrices.dtype == torch.float64  # cos of a quarter turn is 6e-17
    assert Matrix(cyclic(2), [[[1.0]], [[-1.0]]]).double().matrices.dtype == torch.float32


def test_matrices_exact_in_float32_serve_float64_exactly():
    flip = Matrix.from_generators(cyclic(2), [np.diag([1.0, -1.0])])
    check_representation(flip, torch.randn(4, 2, dtype=torch.float64), tolerance=0.0)


def test_matrix_warns_of_nothing():
    rep = rotations(3)
    torch.set_warn_always(True)  # some warnings come once in a process and would be missed here
    try:
        rep.align(rep.orbit(torch.randn(4, 2)))
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize(
    "rep, call, shape",
    [
        (POINTS, "act", (2, 5)),
        (POINTS, "act", (4,)),  # an axis but no batch
        (POINTS, "orbit", (2, 5)),
        (POINTS, "align", (23, 2, 4)),
        (POINTS, "align", (24,)),
        (rotations(3), "act", (2, 3)),
        (rotations(3), "orbit", (2,)),
        (rotations(3), "align", (2, 2, 2)),
        (Trivial(cyclic(3)), "align", (2, 2)),
    ],
)
def test_wrong_shapes_are_shown(rep, call, shape):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"got (shape )?{re.escape(str(shape))}"):
        getattr(rep, call)(*([1, x] if call == "act" else [x]))


@pytest.mark.parametrize("rep", [POINTS, rotations(3)])
def test_align_shows_the_wrong_shape_of_a_slice(rep):
    slices = rf"got shape (\(2, 3, 5\)|\({len(rep.group)}, 2, 3, 5\))"
    with pytest.raises(ValueError, match=slices):
        rep.align(torch.zeros(len(rep.group), 2, 3, 5))


def test_shape_errors_name_the_axis_and_its_size():
    rep = Permutation(POINTS.group, POINTS.permutations, dim=-2)
    with pytest.raises(
        ValueError, match=r"Permutation of symmetric\(4\) acts on axis -2 of size 4"
    ):
        rep.act(1, torch.zeros(2, 4))
    for call, layout in (
        (
            lambda: rep.orbit(torch.zeros(2, 5, 4)),
            r"of a batch \(B, \.\.\.\); got shape \(2, 5, 4\)",
        ),
        (
            lambda: rep.align(torch.zeros(24, 2, 5, 4)),
            r"of a stack \(24, B, \.\.\.\); got shape \(24",
        ),
    ):
        with pytest.raises(ValueError, match=layout):
            call()


@pytest.mark.parametrize("rep", [POINTS, rotations(3), Trivial(cyclic(2))])
def test_unknown_elements_are_refused(rep):
    for g in (-1, len(rep.group)):
        with pytest.raises(IndexError, match=f"has the elements .* got {g}"):
            rep.act(g, torch.zeros(1, getattr(rep, "size", 1)))


@pytest.mark.parametrize("dim", [0, 1])
def test_dim_is_counted_from_the_end(dim):
    with pytest.raises(ValueError, match=f"dim is counted from the end .* got {dim}"):
        Permutation(cyclic(2), [[0, 1], [1, 0]], dim=dim)
    with pytest.raises(ValueError, match=f"dim is counted from the end .* got {dim}"):
        Matrix(cyclic(2), [[[1]], [[-1]]], dim=dim)


def test_inverse_permutations_of_a_non_abelian_group_are_no_homomorphism():
    # the usual mistake: rows that say where each entry comes from, not where it goes
    wrong = np.argsort(POINTS.permutations.numpy(), axis=1)
    with pytest.raises(ValueError, match=r"follow symmetric\(4\): those of elements \d+ \(g\d+\)"):
        Permutation(symmetric(4), wrong)


def test_inverse_matrices_of_a_non_abelian_group_are_no_homomorphism():
    right = [rotation(k * np.pi / 2) @ np.diag([1, s]) for s in (1, -1) for k in range(4)]
    Matrix(dihedral(4), right)
    with pytest.raises(ValueError, match=r"the matrices do not follow dihedral\(4\): .* \(r"):
        Matrix(dihedral(4), np.linalg.inv(right))


def test_identity_must_act_as_the_identity():
    # a projection is its own square, so it passes the product rule
    with pytest.raises(ValueError):
        Matrix(cyclic(2), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError):
        Matrix(trivial(), [np.diag([1.0, 0.0])])


def test_as_many_rows_as_elements():
    with pytest.raises(ValueError, match=r"cyclic\(3\) has 3 elements; got 2 permutations"):
        Permutation(cyclic(3), [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"cyclic\(3\) has 3 elements; got 2 matrices"):
        Matrix(cyclic(3), [np.eye(2), np.eye(2)])


@pytest.mark.parametrize("row", [[0, 0], [1, 2], [0.5, 1.0]])
def test_rows_must_be_permutations(row):
    with pytest.raises(ValueError, match=re.escape(f"not a permutation of 0..1: {row}")):
        Permutation(cyclic(2), [[0, 1], row])


def test_tables_of_wrong_shape_are_shown():
    with pytest.raises(ValueError, match=r"shape \(2, d\), .* got \(2,\)"):
        Permutation(cyclic(2), [0, 1])
    with pytest.raises(ValueError, match=r"shape \(2, d, d\), .* got \(2, 2, 3\)"):
        Matrix(cyclic(2), np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, d, d\), .* got \(2, 2\)"):
        Matrix(cyclic(2), np.eye(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_matrices_must_be_finite(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Matrix(cyclic(2), [[[1.0]], [[bad]]])


def test_from_generators_extends_permutations_to_all_elements():
    for g in range(24):
        for h in range(24):
            product = POINTS.permutations[g][POINTS.permutations[h]]
            assert torch.equal(product, POINTS.permutations[POINTS.group.compose(g, h)])
    rows = POINTS.permutations.tolist()
    exchange, cycle = POINTS.group.generators
    assert (rows[exchange], rows[cycle]) == ([1, 0, 2, 3], [1, 2, 3, 0])
    assert len({tuple(row) for row in rows}) == 24


def test_the_axis_of_generated_permutations():
    x = torch.arange(6).reshape(1, 3, 2)
    for rep in (
        Permutation.from_generators(cyclic(3), [[1, 2, 0]], dim=-2),
        Permutation.from_cycles(cyclic(3), [[[0, 1, 2]]], size=3, dim=-2),
    ):
        assert torch.equal(rep.act(1, x), x.roll(1, dims=1))
    still = Permutation.from_cycles(trivial(), [], size=3, dim=-2)
    assert still.dim == -2 and torch.equal(still.act(0, x), x)
    with pytest.raises(TypeError, match="dim"):  # ids are in tensors of any shape
        Tokens.from_cycles(cyclic(2), [[[0, 1]]], size=3, dim=-1)


def test_from_generators_extends_matrices_to_all_elements():
    rep = Matrix.from_generators(dihedral(6), [rotation(np.pi / 3), np.diag([1.0, -1.0])])
    for k in range(6):
        turn = torch.from_numpy(rotation(k * np.pi / 3))
        close(rep.matrices[k], turn)
        close(rep.matrices[6 + k], turn @ torch.diag(torch.tensor([1.0, -1.0]).double()))


def test_from_generators_takes_arrays():
    rep = Permutation.from_generators(cyclic(3), np.array([[1, 2, 0]]))
    assert rep.permutations.tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    flip = Matrix.from_generators(cyclic(2), -np.ones((1, 1, 1)))
    assert flip.matrices.tolist() == [[[1.0]], [[-1.0]]]


def test_from_generators_of_a_group_from_permutations_takes_the_same_order():
    exchange, cycle = [0, 2, 1, 3], [1, 2, 3, 0]
    group = Group.from_permutations([cycle, exchange])
    rep = Permutation.from_generators(group, [cycle, exchange])
    assert rep.permutations[group.generators[0]].tolist() == cycle
    assert rep.permutations[group.generators[1]].tolist() == exchange


def test_from_generators_of_the_trivial_group_needs_no_images():
    x = torch.randn(2, 1)
    assert torch.equal(Permutation.from_generators(trivial(), []).orbit(x), x[None])
    assert torch.equal(Matrix.from_generators(trivial(), []).orbit(x), x[None])


@pytest.mark.parametrize(
    "group, images",
    [
        (cyclic(3), [[1, 0]]),  # a swap is of order 2
        (cyclic(4), [[1, 2, 0]]),
        (dihedral(4), [[1, 2, 3, 0], [1, 0, 2, 3]]),  # s r is not r^-1 s
        (symmetric(3), [[1, 2, 0], [1, 0, 2]]),  # the right images in the wrong order
    ],
)
def test_from_generators_refuses_images_that_break_a_relation(group, images):
    with pytest.raises(ValueError, match=r"permutations do not follow .* elements \d+ \("):
        Permutation.from_generators(group, images)
    with pytest.raises(ValueError, match=r"matrices do not follow .* elements \d+ \("):
        Matrix.from_generators(group, [np.eye(len(p))[:, p] for p in images])


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.eye(3), np.eye(2)[0], 1.0])
def test_from_generators_wants_square_matrices_of_one_size(wrong):
    with pytest.raises(ValueError, match=r"square and of one size; that of generator 1 has shape"):
        Matrix.from_generators(dihedral(2), [np.eye(2), wrong])
    with pytest.raises(ValueError, match="that of generator 0 has shape"):
        Matrix.from_generators(dihedral(2), [np.zeros((2, 3)), np.eye(2)])


def test_from_generators_wants_permutations_of_one_size():
    for images, wrong in (([[1, 0], [0, 1, 2]], [0, 1, 2]), ([[1, 0, 2], [0, 1]], [0, 1])):
        with pytest.raises(
            ValueError, match=re.escape(f"not a permutation of 0..{len(images[0]) - 1}: {wrong}")
        ):
            Permutation.from_generators(dihedral(2), images)


def test_from_generators_refuses_a_wrong_number_of_images():
    with pytest.raises(ValueError, match="generated by 2 elements .* got 1 images"):
        Permutation.from_generators(dihedral(3), [[1, 2, 0]])


def test_from_generators_heeds_the_images_of_repeated_generators():
    group = Group.from_permutations([[1, 0], [1, 0]])
    with pytest.raises(ValueError):
        Permutation.from_generators(group, [[1, 0, 2], [0, 2, 1]])


def test_from_generators_heeds_the_image_of_an_identity_generator():
    group = Group.from_permutations([[0, 1], [1, 0]])
    with pytest.raises(ValueError):
        Permutation.from_generators(group, [[1, 0], [1, 0]])
