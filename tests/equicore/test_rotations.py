"""Rotations of images by any part of a turn: exact by quarters, approximate otherwise."""

import math

import pytest
import torch
from torch import nn

import equicore
from equicore.representations import Rotations
from equicore.representations.plain import from_dict, to_dict


def smooth(size, dtype=torch.float64):
    """Pictures of a blob off the middle, which is zero at the border."""
    row, column = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=dtype)] * 2, indexing="ij")
    blob = torch.exp(-12 * ((row + 0.3) ** 2 + (column - 0.1) ** 2))
    return torch.stack([blob, blob**2])[None]


@pytest.mark.parametrize("parts", [4, 8, 24])
def test_quarter_turns_are_exact(parts):
    rep, quarters = Rotations(parts), equicore.image_rotations()
    for size in (7, 8):
        x = torch.randn(3, 2, size, size, dtype=torch.float64)
        for k in range(4):
            assert torch.equal(rep.act(k * parts // 4, x), quarters.act(k, x))
            for g in range(parts):
                product = rep.group.compose(k * parts // 4, g)
                found = quarters.act(k, rep.act(g, x))
                torch.testing.assert_close(found, rep.act(product, x), rtol=1e-12, atol=1e-12)


def test_others_turn_the_picture_counter_clockwise():
    x = smooth(65)
    for g in range(24):
        angle = 2 * math.pi * g / 24
        right, up = 0.1, 0.3
        turned = (right * math.cos(angle) - up * math.sin(angle),
                  right * math.sin(angle) + up * math.cos(angle))  # fmt: skip
        place = int(Rotations(24).act(g, x)[0, 0].argmax())
        assert place // 65 == pytest.approx(32 - 32 * turned[1], abs=1.5)
        assert place % 65 == pytest.approx(32 + 32 * turned[0], abs=1.5)


def test_the_finer_the_grid_the_better_the_approximation():
    errors = []
    for size in (17, 33, 65):
        x, rep = smooth(size), Rotations(8)
        back = rep.act(7, rep.act(1, x))
        errors.append(float((back - x).abs().max()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_what_is_made_invariant_is_so_by_quarters_and_reported_otherwise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 33 * 33, 5)).double()
    rep = Rotations(8)
    same = equicore.Trivial(rep.group)
    x = smooth(33)
    invariant = equicore.equitune(model, rep, same)
    expected = invariant(x)
    for quarter in (2, 4, 6):
        torch.testing.assert_close(invariant(rep.act(quarter, x)), expected, rtol=1e-12, atol=1e-12)
    before = equicore.equivariance_error(model, rep, same, x)
    after = equicore.equivariance_error(invariant, rep, same, x)
    assert 1e-6 < after.relative.max() < before.relative.max() / 5


def test_pixels_that_are_integers_are_rounded():
    x = (255 * smooth(9)).round().to(torch.uint8)
    turned = Rotations(8).act(1, x)
    assert turned.dtype == torch.uint8
    assert torch.equal(turned, Rotations(8).act(1, x.float()).round().to(torch.uint8))


def test_wrong_input():
    for parts in (0, 3, 6, -4):
        with pytest.raises(ValueError, match="a multiple of 4; got"):
            Rotations(parts)
    with pytest.raises(ValueError, match=r"must be square; got shape \(1, 2, 3\)"):
        Rotations(8).act(1, torch.zeros(1, 2, 3))


def test_it_is_written_as_plain_values():
    rep = Rotations(8)
    again = from_dict(rep.group, to_dict(rep))
    x = smooth(9)
    assert torch.equal(again.act(3, x), rep.act(3, x))
