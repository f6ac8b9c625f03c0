import copy
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import (
    Group,
    Image,
    Matrix,
    Permutation,
    Representation,
    Trivial,
    check_representation,
    cyclic,
    dihedral,
    image_dihedral,
    image_flips,
    image_rotations,
    symmetric,
    trivial,
)

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
FLOATS = [torch.float32, torch.float64]
POINTS = Permutation.from_generators(symmetric(4), [[1, 0, 2, 3], [1, 2, 3, 0]])


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def rotations(n):
    return Matrix(cyclic(n), np.stack([rotation(2 * np.pi * k / n) for k in range(n)]))


def through_json(value):
    """A representation made again of its arguments: plain values, and other representations."""
    if isinstance(value, Representation):
        arguments = {name: through_json(v) for name, v in value.arguments().items()}
        return type(value).from_arguments(value.group, arguments)
    if isinstance(value, (list, tuple)):
        return [through_json(v) for v in value]
    return json.loads(json.dumps(value))


def described(value):
    if isinstance(value, Representation):
        arguments = {name: described(v) for name, v in value.arguments().items()}
        return type(value).__name__, value.group.table.tolist(), arguments
    return [described(v) for v in value] if isinstance(value, (list, tuple)) else value


def close(actual, expected):
    tolerance = 1e-12 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@PROPERTY
@given(data=st.data())
def test_random_representations_are_representations(dtype, groups, representations, data):
    rep, shape = data.draw(representations(data.draw(groups)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    batch = data.draw(st.integers(1, 3))
    x = torch.randn(batch, *shape, dtype=dtype, generator=generator)
    check_representation(rep, x)
    assert rep.orbit(x).shape == (len(rep.group), *x.shape)
    assert rep.orbit(x).dtype == dtype


@PROPERTY
@given(data=st.data())
def test_align_undoes_each_slice_of_any_stack(groups, representations, data):
    rep, shape = data.draw(representations(data.draw(groups)))
    y = torch.randn(len(rep.group), 2, *shape, dtype=torch.float64)
    for g, (slice_in, slice_out) in enumerate(zip(y, rep.align(y), strict=True)):
        close(slice_out, rep.act(rep.group.inverse(g), slice_in))
        close(rep.act(g, slice_out), slice_in)


@PROPERTY
@given(data=st.data())
def test_memory_layout_makes_no_difference(groups, representations, data):
    rep, shape = data.draw(representations(data.draw(groups)))
    x = torch.randn(2, *shape, dtype=torch.float64)
    scattered = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    close(rep.orbit(scattered), rep.orbit(x))
    stack = torch.randn(len(rep.group), 2, *shape, dtype=torch.float64)
    reversed_axes = stack.permute(*reversed(range(stack.ndim))).contiguous()
    close(rep.align(reversed_axes.permute(*reversed(range(stack.ndim)))), rep.align(stack))


@PROPERTY
@given(data=st.data())
def test_arguments_are_json_and_rebuild_the_representation(groups, representations, data):
    rep, shape = data.draw(representations(data.draw(groups)))
    again = through_json(rep)
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.equal(again.orbit(x), rep.orbit(x))
    assert described(again) == described(rep)


@PROPERTY
@given(data=st.data())
def test_deepcopy_acts_alike_and_shares_no_table(groups, representations, data):
    rep, shape = data.draw(representations(data.draw(groups)))
    other = copy.deepcopy(rep)
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert other.group == rep.group
    assert torch.equal(other.orbit(x), rep.orbit(x))
    mine = {buffer.data_ptr() for buffer in rep.buffers()}
    assert mine.isdisjoint(buffer.data_ptr() for buffer in other.buffers())


@PROPERTY
@given(data=st.data())
def test_state_dict_is_empty(groups, representations, data):
    rep, _ = data.draw(representations(data.draw(groups)))
    assert rep.state_dict() == {}


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


def test_labels_follow_the_product():
    labels = torch.arange(4)
    for g in range(24):
        for h in range(24):
            twice = POINTS.act_on_labels(g, POINTS.act_on_labels(h, labels))
            assert torch.equal(twice, POINTS.act_on_labels(POINTS.group.compose(g, h), labels))


@pytest.mark.parametrize(
    "rep",
    [POINTS, image_rotations(), image_dihedral(), image_flips(-2), Trivial(cyclic(3))],
    ids=lambda rep: f"{type(rep).__name__}-{rep.group.name}",
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_keep_their_type(rep, dtype):
    x = torch.randint(2, (2, 3, 4, 4)).to(dtype)
    orbit = rep.orbit(x)
    assert orbit.dtype == rep.act(len(rep.group) - 1, x).dtype == rep.align(orbit).dtype == dtype
    check_representation(rep, x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("call", ["act", "orbit", "align"])
def test_matrix_refuses_integers(dtype, call):
    x = torch.ones((3, 4, 2) if call == "align" else (4, 2), dtype=dtype)
    with pytest.raises(TypeError, match=f"floating-point tensors; got {dtype}"):
        getattr(rotations(3), call)(*([1, x] if call == "act" else [x]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type(dtype):
    x = torch.randn(4, 2).to(dtype)
    for rep in (rotations(3), Permutation(cyclic(2), [[0, 1], [1, 0]])):
        assert rep.orbit(x).dtype == rep.align(rep.orbit(x)).dtype == dtype


def test_matrix_multiplies_vectors_from_the_left():
    turn = rotations(4)
    close(turn.act(1, torch.tensor([[1.0, 0.0]])), torch.tensor([[0.0, 1.0]]))
    close(turn.orbit(torch.tensor([[1.0, 0.0]]))[3], torch.tensor([[0.0, -1.0]]))
    close(turn.align(torch.tensor([[[1.0, 0.0]]] * 4))[1], torch.tensor([[0.0, -1.0]]))


@pytest.mark.parametrize("n", [3, 5, 7])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("moved", [False, True], ids=["as built", "moved"])
def test_rotations_are_accurate_in_both_types(n, dtype, moved):
    rep = rotations(n)
    if moved:
        rep = rep.to(torch.float64)
    x = torch.randn(5, 2, dtype=dtype)
    check_representation(rep, x)
    angle = 2 * torch.pi / n
    cos, sin = np.cos(angle), np.sin(angle)
    expected = torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)
    close(rep.act(1, x), expected)
    close(rep.orbit(x)[1], expected)


def test_buffers_move_with_the_module():
    rep = rotations(3).half().double()  # the matrices do not lose what half has not
    check_representation(rep, torch.randn(5, 2, dtype=torch.float64))
    moved = copy.deepcopy(POINTS).to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())


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


def test_image_rotations_are_rot90():
    rep = image_rotations()
    x = torch.randn(2, 3, 5, 5)
    for k in range(4):
        expected = torch.rot90(x, k, (-2, -1))
        assert torch.equal(rep.act(k, x), expected)
        assert torch.equal(rep.orbit(x)[k], expected)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 4, 6)])
def test_image_flips_mirror_along_their_axis(axis, shape):
    x = torch.randn(shape)
    assert torch.equal(image_flips(axis).act(1, x), x.flip(axis))
    check_representation(image_flips(axis), x)


def test_image_dihedral_mirrors_then_turns():
    rep = image_dihedral()
    x = torch.randn(2, 5, 5)
    for m in range(2):
        for k in range(4):
            expected = torch.rot90(x.flip(-1) if m else x, k, (-2, -1))
            assert torch.equal(rep.act(4 * m + k, x), expected)
    check_representation(rep, x)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_stabilised_images_stay(n):
    x = torch.ones(1, n, n)
    x[..., 0, 0] = x[..., -1, -1] = x[..., 0, -1] = x[..., -1, 0] = 3
    assert torch.equal(image_dihedral().orbit(x), torch.stack([x] * 8))


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
        (image_rotations(), "act", (2, 3, 4)),
        (image_rotations(), "act", (3, 3)),
        (image_rotations(), "orbit", (2, 3, 4)),
        (image_dihedral(), "align", (7, 2, 3, 3)),
    ],
)
def test_wrong_shapes_are_shown(rep, call, shape):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"got (shape )?{re.escape(str(shape))}"):
        getattr(rep, call)(*([1, x] if call == "act" else [x]))


@pytest.mark.parametrize("rep", [POINTS, rotations(3), image_rotations()])
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


@pytest.mark.parametrize("rep", [POINTS, rotations(3), image_rotations(), Trivial(cyclic(2))])
@pytest.mark.parametrize("beyond", [0, 1])
def test_unknown_elements_are_refused(rep, beyond):
    g = len(rep.group) if beyond else -1
    with pytest.raises(IndexError, match=f"has the elements .* got {g}"):
        rep.act(
            g,
            torch.zeros(1, 4, 4)
            if isinstance(rep, Image)
            else torch.zeros(1, getattr(rep, "size", 1)),
        )


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


def test_wrong_moves_are_named():
    with pytest.raises(ValueError, match=r"image moves .* elements 1 \(r\) and 1 \(r\)"):
        Image(cyclic(4), [0, 1, 1, 3], [False] * 4)
    with pytest.raises(ValueError, match=r"image moves do not follow dihedral\(4\)"):
        Image(dihedral(4), [0, 1, 2, 3, 0, 3, 2, 1], [False] * 4 + [True] * 4)


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
    with pytest.raises(ValueError, match=r"cyclic\(3\) has 3 elements; got 2 image moves"):
        Image(cyclic(3), [0, 2], [False, False])


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


def test_image_flips_refuses_other_axes():
    with pytest.raises(ValueError, match="axis must be -1 .* or -2 .* got 1"):
        image_flips(1)


def test_from_generators_extends_permutations_to_all_elements():
    for g in range(24):
        for h in range(24):
            product = POINTS.permutations[g][POINTS.permutations[h]]
            assert torch.equal(product, POINTS.permutations[POINTS.group.compose(g, h)])
    rows = POINTS.permutations.tolist()
    exchange, cycle = POINTS.group.generators
    assert (rows[exchange], rows[cycle]) == ([1, 0, 2, 3], [1, 2, 3, 0])
    assert len({tuple(row) for row in rows}) == 24


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


def test_gradients_flow_through_orbit_and_align():
    for rep in (rotations(3), Permutation(cyclic(2), [[0, 1], [1, 0]])):
        x = torch.randn(4, 2, requires_grad=True)
        rep.align(rep.orbit(x)).sum().backward()
        close(x.grad, torch.full((4, 2), float(len(rep.group))))
