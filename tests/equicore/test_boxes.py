"""Boxes move with their image."""

import pytest
import torch

from equicore import (
    Boxes,
    Image,
    check_representation,
    cyclic,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    restrict,
)

FLOATS = [torch.float32, torch.float64]
GRIDS = [image_rotations(), image_dihedral(), image_flips(-1), image_flips(-2)]
FORMS = ["center", "corners"]
SIDE = 8


def whole_boxes(count, seed=0):
    """Left, top, right, bottom of boxes of whole pixels, in pixels."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(SIDE, (count, 2, 2), generator=generator).sort(1).values
    corners = torch.cat([drawn[:, 0], drawn[:, 1] + 1], dim=-1)
    corners[0] = torch.tensor([1, 2, 7, 4])  # wider than high, off the centre
    return corners


def written(corners, form, dtype):
    """Boxes in pixels, as the form has them, relative to the sides of the image."""
    left, top, right, bottom = (corners.to(dtype) / SIDE).unbind(-1)
    if form == "corners":
        return torch.stack([left, top, right, bottom], dim=-1)
    centre = ((left + right) / 2, (top + bottom) / 2)
    return torch.stack([*centre, right - left, bottom - top], dim=-1)


def mask(corners):
    """An image of each box."""
    picture = torch.zeros(len(corners), SIDE, SIDE, dtype=torch.int64)
    for i, (left, top, right, bottom) in enumerate(corners.tolist()):
        picture[i, top:bottom, left:right] = 1
    return picture


def moved_point(g, x, y):
    """Where element g of D4 takes a point: mirror left to right, then quarter turns."""
    if g >= 4:
        x = 1 - x
    for _ in range(g % 4):
        x, y = y, 1 - x  # the middle of the right side becomes that of the upper side
    return x, y


@pytest.mark.parametrize("form, dtype", list(zip(FORMS, FLOATS, strict=True)))
@pytest.mark.parametrize("grid", GRIDS, ids=["C4", "D4", "left-right", "top-bottom"])
def test_boxes_move_as_their_masks_do(grid, form, dtype):
    boxes = Boxes(grid, form)
    corners = whole_boxes(30)
    x = written(corners, form, dtype)
    pictures = grid.orbit(mask(corners))
    for g, moved in enumerate(boxes.orbit(x)):
        if form == "center":
            centre, size = moved.split(2, -1)
            moved = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        pixels = (moved * SIDE).round()
        torch.testing.assert_close(moved * SIDE, pixels, rtol=0, atol=1e-5)
        assert torch.equal(mask(pixels.long()), pictures[g])
    check_representation(boxes, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_boxes_move_as_their_corner_points_do(dtype):
    x = torch.rand(20, 2, 2, dtype=dtype, generator=torch.Generator().manual_seed(2))
    corners = x.sort(1).values.flatten(1)
    by_corners, by_centre = (Boxes(image_dihedral(), form) for form in reversed(FORMS))
    centre = torch.cat(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=-1
    )
    for g in range(8):
        points = [moved_point(g, *corners[:, i : i + 2].unbind(-1)) for i in (0, 2)]
        xs, ys = (torch.stack(values) for values in zip(*points, strict=True))
        low, high = (torch.stack([f(xs, 0), f(ys, 0)], -1) for f in (torch.amin, torch.amax))
        torch.testing.assert_close(by_corners.act(g, corners), torch.cat([low, high], -1))
        expected = torch.cat([(low + high) / 2, high - low], -1)
        torch.testing.assert_close(by_centre.act(g, centre), expected)


@pytest.mark.parametrize("form, whole", [("center", [0.5, 0.5, 1, 1]), ("corners", [0, 0, 1, 1])])
def test_the_box_of_the_whole_image_stays(form, whole):
    x = torch.tensor([whole], dtype=torch.float32)
    boxes = Boxes(image_dihedral(), form)
    assert torch.equal(boxes.orbit(x), x.expand(8, 1, 4))
    assert torch.equal(boxes.align(x.expand(8, 1, 4)), x.expand(8, 1, 4))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_many_boxes_in_each_image(form, shape):
    boxes = Boxes(image_dihedral(), form)
    x = torch.rand(3, *shape, 4, dtype=torch.float64)
    orbit = boxes.orbit(x)
    assert orbit.shape == (8, *x.shape)
    flat = boxes.orbit(x.view(-1, 4))
    torch.testing.assert_close(orbit.view(8, -1, 4), flat)
    check_representation(boxes, x)
    elements = torch.tensor([5, 0, 3])
    expected = torch.stack([boxes.act(int(g), x[i : i + 1])[0] for i, g in enumerate(elements)])
    torch.testing.assert_close(boxes.act_each(elements, x), expected)


def test_boxes_of_a_subgroup():
    boxes = Boxes(image_dihedral())
    turns = restrict(boxes, boxes.group.subgroup([1]))
    x = torch.rand(3, 4)
    assert torch.equal(turns.orbit(x), Boxes(image_rotations()).orbit(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_moving_loses_nothing(dtype):
    boxes = Boxes(image_rotations())
    x = torch.tensor([[0.75, 0.5, 0.25, 0.125]])
    expected = boxes.orbit(x)
    assert torch.equal(boxes.orbit(x.to(dtype)), expected.to(dtype))
    boxes = boxes.to(dtype).to(torch.float32)
    assert torch.equal(boxes.orbit(x), expected)


def test_forms_are_named():
    with pytest.raises(
        ValueError, match=r"form is one of \['center', 'corners', 'corner'\]; got 'xywh'"
    ):
        Boxes(image_rotations(), "xywh")


@pytest.mark.parametrize(
    "grid", [image_shifts(2, 2), Image(cyclic(1), [0], [False], [(0, 0)], (2, 2))]
)
def test_boxes_do_not_shift(grid):
    with pytest.raises(ValueError, match="cyclic shifts cut it"):
        Boxes(grid)


@pytest.mark.parametrize("shape", [(2, 5), (4,)])
@pytest.mark.parametrize("call", ["act", "orbit"])
def test_wrong_shapes_are_shown(call, shape):
    arguments = [1, torch.zeros(shape)] if call == "act" else [torch.zeros(shape)]
    with pytest.raises(ValueError, match=r"axis -1 of size 4 .* got shape \("):
        getattr(Boxes(image_rotations()), call)(*arguments)


def test_pixels_as_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point tensors; got torch.int64"):
        Boxes(image_rotations()).act(1, torch.zeros(1, 4, dtype=torch.int64))
