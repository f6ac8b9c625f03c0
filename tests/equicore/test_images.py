"""Images that turn, mirror and shift, wallpaper groups, and fields of vectors on a grid."""

import re

import numpy as np
import pytest
import torch

from equicore import (
    Image,
    Permutation,
    assert_equivariant,
    check_representation,
    cyclic,
    dihedral,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    product,
    restrict,
    vector_field,
)
from equicore.representations import image_wallpaper

FLOATS = [torch.float32, torch.float64]
POINTS = {"p4": image_rotations(), "p4m": image_dihedral()}


def images(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def pixels(rows, columns):
    """An image whose entries are all different, as integers."""
    return torch.arange(2 * rows * columns).view(2, rows, columns)


def moved_by_hand(x, shift, mirror, turns):
    """By numpy alone: first the mirror, then the turns, then the shift."""
    y = x.numpy()
    if mirror:
        y = np.flip(y, -1)
    y = np.rot90(y, turns, axes=(-2, -1))
    return torch.from_numpy(np.roll(y, shift, axis=(-2, -1)).copy())


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
    assert torch.equal(image_flips().act(1, x), x.flip(-1))
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


def test_wrong_moves_are_named():
    with pytest.raises(ValueError, match=r"image moves .* elements 1 \(r\) and 1 \(r\)"):
        Image(cyclic(4), [0, 1, 1, 3], [False] * 4)
    with pytest.raises(ValueError, match=r"image moves do not follow dihedral\(4\)"):
        Image(dihedral(4), [0, 1, 2, 3, 0, 3, 2, 1], [False] * 4 + [True] * 4)


def test_image_flips_refuses_other_axes():
    with pytest.raises(ValueError, match="axis must be -1 .* or -2 .* got 1"):
        image_flips(1)


@pytest.mark.parametrize("rows, columns, step", [(3, 4, 1), (4, 6, 2), (1, 5, 1), (3, 3, 3)])
def test_image_shifts_are_rolls(rows, columns, step):
    rep = image_shifts(rows, columns, step)
    down, right = rows // step, columns // step
    assert rep.group == product(cyclic(down), cyclic(right))
    x = pixels(rows, columns)
    orbit = rep.orbit(x)
    for a in range(down):
        for b in range(right):
            expected = np.roll(x.numpy(), (step * a, step * b), axis=(-2, -1))
            assert torch.equal(orbit[a * right + b], torch.from_numpy(expected))
    assert len({tuple(image.flatten().tolist()) for image in orbit}) == len(rep.group)
    check_representation(rep, x)
    check_representation(rep, images(2, 3, rows, columns))


@pytest.mark.parametrize(
    "rep, call, shape",
    [
        (image_rotations(), "act", (3, 3)),
        (image_dihedral(), "align", (7, 2, 3, 3)),
    ],
)
def test_wrong_shapes_of_images_are_shown(rep, call, shape):
    with pytest.raises(ValueError, match=f"got (shape )?{re.escape(str(shape))}"):
        getattr(rep, call)(*([1] if call == "act" else []), torch.zeros(shape))


def test_quarter_turns_of_other_grids_than_squares_are_not_stacked():
    x, turns = images(2, 3, 5), image_rotations()
    assert torch.equal(turns.act(1, x), x.rot90(1, (-2, -1)))
    for call in (
        lambda: turns.orbit(x),
        lambda: turns.align(x.expand(4, *x.shape)),
        lambda: turns.act_each(torch.tensor([0, 1]), x),
        lambda: turns.act_each(torch.tensor([1, 1]), x),
    ):
        with pytest.raises(ValueError, match=r"of samples of shape .*3, 5\),.* must be square"):
            call()
    assert torch.equal(turns.act_each(torch.tensor([0, 2]), x)[1], x[1].flip(-1, -2))


def test_images_without_quarter_turns_need_not_be_square():
    x = images(2, 3, 5)
    half = restrict(image_rotations(), image_rotations().group.subgroup([2]))
    assert torch.equal(half.act(1, x), x.flip(-1, -2))
    assert torch.equal(image_rotations().act(2, x), x.flip(-1, -2))


def test_unknown_elements_of_images_are_refused():
    for g in (-1, 4):
        with pytest.raises(IndexError, match=f"has the elements .* got {g}"):
            image_rotations().act(g, torch.zeros(1, 4, 4))


def test_images_act_on_the_last_two_axes():
    assert image_rotations().axes == (-2, -1)
    assert vector_field(image_rotations()).axes == (-3, -2, -1)


def test_a_shift_moves_a_pixel_down_and_to_the_right():
    x = torch.zeros(1, 3, 5)
    x[0, 1, 1] = 1
    moved = image_shifts(3, 5).act(1 * 5 + 2, x)
    assert moved.nonzero().tolist() == [[0, 2, 3]]
    assert image_shifts(3, 5).act(2 * 5 + 4, x).nonzero().tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("side, step", [(2, 1), (4, 2), (2, 2), (3, 3)])
def test_wallpaper_groups_move_as_numpy_does(name, side, step):
    point = POINTS[name]
    rep = image_wallpaper(point, side, step)
    order, steps = len(point.group), side // step
    assert len(rep.group) == steps**2 * order
    x = pixels(side, side)
    for g in range(len(rep.group)):
        shift, h = divmod(g, order)
        mirror, turns = divmod(h, 4)
        expected = moved_by_hand(
            x, (step * (shift // steps), step * (shift % steps)), mirror, turns
        )
        assert torch.equal(rep.act(g, x), expected)
        assert torch.equal(rep.orbit(x)[g], expected)
    check_representation(rep, x)
    check_representation(rep, images(1, 2, side, side, dtype=torch.float32))


@pytest.mark.parametrize("name, mirrors", [("p4", False), ("p4m", True)])
def test_wallpaper_groups_are_all_compositions(name, mirrors):
    # on 3 x 3 cells every motion moves the pixels differently, so they must number as many
    rep = image_wallpaper(POINTS[name], 3)
    x = pixels(3, 3)
    moves = [lambda y: y.rot90(1, (-2, -1)), lambda y: y.roll(1, -1), lambda y: y.roll(1, -2)]
    if mirrors:
        moves.append(lambda y: y.flip(-1))
    found, queue = {tuple(x.flatten().tolist())}, [x]
    while queue:
        y = queue.pop()
        for move in moves:
            key = tuple(move(y).flatten().tolist())
            if key not in found:
                found.add(key)
                queue.append(move(y))
    assert found == {tuple(y.flatten().tolist()) for y in rep.orbit(x)}
    assert len(found) == len(rep.group) == (72 if mirrors else 36)


def test_shifts_and_turns_do_not_commute():
    rep = image_wallpaper(image_rotations(), 3)
    turn, shift = rep.group[1], rep.group[4]
    assert turn @ shift != shift @ turn
    x = pixels(3, 3)
    first_shift = x.roll(1, -1).rot90(1, (-2, -1))
    assert torch.equal(rep.act(turn @ shift, x), first_shift)
    assert not torch.equal(rep.act(shift @ turn, x), first_shift)


def test_shifts_by_numpy_arrays_and_beyond_the_size():
    rep = Image(cyclic(2), np.zeros(2, int), [False] * 2, np.array([[0, 0], [3, -1]]), (2, 2))
    x = pixels(2, 2)
    assert torch.equal(rep.act(1, x), x.roll((1, 1), (-2, -1)))
    assert rep.arguments()["shifts"] == [[0, 0], [1, 1]]


@pytest.mark.parametrize("step", [0, -1, 3, 4])
def test_the_step_must_divide_the_sides(step):
    for rows, columns in ((2, 6), (6, 2)):
        with pytest.raises(ValueError, match=f"got step {step} and a grid of {rows} x {columns}"):
            image_shifts(rows, columns, step)
    with pytest.raises(ValueError, match=f"must divide .* got step {step} and a grid of 2 x 2"):
        image_wallpaper(image_rotations(), 2, step)


@pytest.mark.parametrize("extra", [{"shifts": [(0, 0), (0, 1)]}, {"size": (2, 2)}])
def test_shifts_and_size_come_together(extra):
    with pytest.raises(ValueError, match=r"shifts need the size \(rows, columns\)"):
        Image(cyclic(2), [0, 0], [False, False], **extra)


def test_moves_with_shifts_must_follow_the_group():
    still = ([0] * 3, [False] * 3)
    Image(cyclic(3), *still, [(0, 0), (0, 1), (0, 2)], (1, 3))
    with pytest.raises(ValueError, match=r"image moves do not follow cyclic\(3\).* \(r\)"):
        Image(cyclic(3), *still, [(0, 0), (0, 1), (0, 2)], (1, 4))
    with pytest.raises(ValueError, match="element 0 must act as identity"):
        Image(cyclic(2), [0, 0], [False, False], [(0, 1), (0, 0)], (1, 2))
    # the shift of a move comes after its turn: with the opposite order this is no homomorphism
    right = image_wallpaper(image_rotations(), 3)
    turns, mirrors, shifts = zip(*right.moves, strict=True)
    before = [(s[1], -s[0]) if t == 1 else s for t, s in zip(turns, shifts, strict=True)]
    with pytest.raises(ValueError, match="image moves do not follow"):
        Image(right.group, turns, mirrors, before, (3, 3))


@pytest.mark.parametrize(
    "turns, mirrors, shifts, message",
    [
        ([0, 0, 0], [False, False], None, r"2 elements .*'turns': 3, 'mirrors': 2"),
        ([0, 0], [False], None, r"2 elements .*'turns': 2, 'mirrors': 1"),
        ([0, 0], [False, True], [(0, 0)], r"2 elements .*'mirrors': 2, 'shifts': 1"),
        ([0], [False], None, r"cyclic\(2\) has 2 elements; got 1 image moves"),
    ],
)
def test_each_element_has_one_move(turns, mirrors, shifts, message):
    size = None if shifts is None else (2, 2)
    with pytest.raises(ValueError, match=message):
        Image(cyclic(2), turns, mirrors, shifts, size)


@pytest.mark.parametrize("size", [(2,), (2, 2, 2), (0, 2), (2, -1)])
def test_size_is_rows_and_columns(size):
    with pytest.raises(ValueError, match=r"size is \(rows, columns\) .* got \("):
        Image(cyclic(2), [0, 0], [False, False], [(0, 0), (0, 1)], size)


def test_quarter_turns_with_shifts_need_a_square():
    with pytest.raises(ValueError, match=r"quarter turns need a square grid; got size \(2, 4\)"):
        Image(cyclic(4), range(4), [False] * 4, [(0, 0)] * 4, (2, 4))
    half = Image(cyclic(2), [0, 2], [False] * 2, [(0, 0), (1, 2)], (2, 4))
    check_representation(half, pixels(2, 4))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 3), (2, 6, 8)])
def test_images_with_shifts_have_one_size(shape):
    with pytest.raises(ValueError, match=r"grid \(rows, columns\) = \(4, 4\); got shape \(2, "):
        image_shifts(4, 4, 2).act(1, torch.zeros(shape))


def test_a_point_group_has_no_shifts():
    with pytest.raises(ValueError, match="already has shifts"):
        image_wallpaper(image_shifts(2, 2), 2)


# fields of vectors: component 0 along the rows, component 1 along the columns


def positions(side):
    """The place of each pixel relative to the centre, shape (1, 2, side, side)."""
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]


@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_radial_field_is_invariant(side):
    field = vector_field(image_dihedral())
    radial = positions(side)
    for moved in field.orbit(radial):
        assert torch.equal(moved, radial)


@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_rotational_field_turns_its_sense_under_mirrors(side):
    field = vector_field(image_dihedral())
    down, right = positions(side).unbind(1)
    around = torch.stack([-right, down], dim=1)
    for g, moved in enumerate(field.orbit(around)):
        assert torch.equal(moved, around if g < 4 else -around)


def linear_map(g):
    """How element g of D4 moves (rows, columns) about the centre: mirror, then quarter turns."""
    quarter = np.array([[0, -1], [1, 0]])  # rot90 takes right (0, 1) to up (-1, 0)
    return np.linalg.matrix_power(quarter, g % 4) @ np.diag([1, -1 if g >= 4 else 1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_moved_field_is_the_analytic_one(dtype):
    # (g v)(p) = M v(M^-1 p) for a field that is nowhere symmetric
    def analytic(p):
        y, x = p[:, 0], p[:, 1]
        return torch.stack([y + 2 * x * x, 3 * x - y * x + 1], dim=1)

    p = positions(4).to(dtype)
    field = vector_field(image_dihedral())
    orbit = field.orbit(analytic(p))
    for g in range(8):
        m = torch.from_numpy(linear_map(g)).to(dtype)
        origin = torch.einsum("ij,bjrc->birc", m.T, p)
        expected = torch.einsum("ij,bjrc->birc", m, analytic(origin))
        torch.testing.assert_close(orbit[g], expected)
    check_representation(field, analytic(p))


@pytest.mark.parametrize(
    "grid, size",
    [
        (image_rotations(), (4, 4)),
        (image_dihedral(), (5, 5)),
        (image_flips(-1), (3, 5)),
        (image_flips(-2), (3, 5)),
        (image_shifts(4, 6, 2), (4, 6)),
        (image_wallpaper(image_dihedral(), 4, 2), (4, 4)),
    ],
    ids=str,
)
def test_the_gradient_of_an_image_moves_as_a_field(grid, size):
    def gradient(x):
        """Central differences on the torus, shape (B, 2, rows, columns)."""
        return torch.stack([x.roll(-1, d) - x.roll(1, d) for d in (-2, -1)], dim=1)

    x = images(3, *size)
    field = vector_field(grid)
    for g in range(len(grid.group)):
        torch.testing.assert_close(gradient(grid.act(g, x)), field.act(g, gradient(x)))
    assert_equivariant(gradient, grid, field, x)
    # a grid that turns or mirrors must turn the vectors, too
    still = all(
        torch.allclose(gradient(grid.act(g, x)), grid.act(g, gradient(x)))
        for g in range(len(grid.group))
    )
    assert still == all(move[:2] == (0, False) for move in grid.moves)


def test_field_components_are_rows_then_columns():
    field = vector_field(image_flips(-1))  # left to right
    v = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    assert field.act(1, v).flatten().tolist() == [2.0, -3.0]
    v = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    assert vector_field(image_flips(-2)).act(1, v).flatten().tolist() == [-2.0, 3.0]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4)])
def test_fields_of_wrong_shape_are_shown(shape):
    field = vector_field(image_rotations())
    with pytest.raises(ValueError, match=r"got shape \("):
        field.act(1, torch.zeros(shape))


def test_fields_are_of_floating_point():
    with pytest.raises(TypeError, match="floating-point tensors; got torch.int64"):
        vector_field(image_rotations()).act(1, torch.zeros(1, 2, 3, 3, dtype=torch.int64))


@pytest.mark.parametrize("grid", [image_rotations(), image_dihedral()])
def test_linear_parts_are_the_matrices_of_the_moves(grid):
    for g in range(len(grid.group)):
        assert np.array_equal(grid.linear_part(g), linear_map(g))
    with pytest.raises(IndexError, match="got 99"):
        grid.linear_part(99)


def test_an_image_and_its_places_move_alike():
    # the permutation of the 16 pixels that the image gives acts on the flattened image
    grid = image_wallpaper(image_rotations(), 4, 2)
    places = grid.orbit(torch.arange(16).view(1, 4, 4)).flatten(1)  # [g, to] -> from
    rep = Permutation(grid.group, places.argsort(1))
    x = images(2, 4, 4)
    assert torch.equal(rep.orbit(x.flatten(1)).unflatten(-1, (4, 4)), grid.orbit(x))
