"""Symmetries of nested representations as JSON, and back."""

import json

import numpy as np
import pytest
import torch

from equicore import (
    Boxes,
    DirectSum,
    Matrix,
    Permutation,
    Pullback,
    TensorProduct,
    Tokens,
    Tree,
    Trivial,
    cyclic,
    image_dihedral,
    image_rotations,
    image_shifts,
    image_wallpaper,
    regular,
    restrict,
    vector_field,
)
from equirl import Symmetry

FLIP = cyclic(2)
SWAP = Permutation.from_generators(FLIP, [[1, 0]])
NEGATE = Matrix.from_generators(FLIP, [-np.eye(4)])
SQUARE = image_dihedral()
HALVES = SQUARE.group.subgroup([2, 4])
# of D4, and the shape of a sample
NESTED = {
    "sum": (
        DirectSum([(regular(SQUARE.group), 8), (Trivial(SQUARE.group), 2), (Boxes(SQUARE), 4)]),
        (14,),
    ),
    "sum of fields": (DirectSum([(vector_field(SQUARE), 2), (SQUARE, 1)], dim=-3), (3, 4, 4)),
    "product": (TensorProduct(SQUARE, regular(SQUARE.group, dim=-3)), (8, 3, 3)),
    "sign": (Pullback(SQUARE.group, NEGATE, [0] * 4 + [1] * 4), (4,)),
    "sign of a sum": (
        Pullback(SQUARE.group, DirectSum([(NEGATE, 4), (SWAP, 2)]), [0, 1, 0, 1, 1, 0, 1, 0]),
        (6,),
    ),
    "boxes": (Boxes(SQUARE), (5, 4)),
    "boxes by corners": (Boxes(SQUARE, "corners"), (4,)),
}


def made_again(symmetry):
    return Symmetry.from_dict(json.loads(json.dumps(symmetry.to_dict())))


def assert_alike(again, rep, shape):
    assert type(again) is type(rep)
    assert again.axes == rep.axes
    x = torch.rand(4, *shape, dtype=torch.float64)
    assert torch.equal(again.orbit(x), rep.orbit(x))
    assert not torch.equal(rep.orbit(x), x.expand(len(rep.group), *x.shape))
    elements = torch.arange(4) % len(rep.group)
    assert torch.equal(again.act_each(elements, x), rep.act_each(elements, x))


@pytest.mark.parametrize("rep, shape", NESTED.values(), ids=NESTED)
def test_json_round_trip_of_nested_representations(rep, shape):
    symmetry = Symmetry(rep, Trivial(rep.group))
    again = made_again(symmetry)
    assert again.group == symmetry.group
    assert again.group.names == symmetry.group.names
    assert_alike(again.observation, rep, shape)
    assert again.to_dict() == symmetry.to_dict()


@pytest.mark.parametrize("rep, shape", NESTED.values(), ids=NESTED)
def test_json_round_trip_of_restrictions(rep, shape):
    symmetry = Symmetry(restrict(rep, HALVES), regular(HALVES))
    again = made_again(symmetry)
    assert again.group == HALVES
    assert again.group.name == HALVES.name
    assert_alike(again.observation, symmetry.observation, shape)
    assert again.observation.representation.group == SQUARE.group
    assert again.observation.representation.group.name == "dihedral(4)"


@pytest.mark.parametrize(
    "rep, shape",
    [
        (image_shifts(4, 6, step=2), (4, 6)),
        (image_wallpaper(SQUARE, 4, step=2), (4, 4)),
        (vector_field(image_wallpaper(image_rotations(), 2)), (2, 2, 2)),
    ],
    ids=["shifts", "p4m", "field"],
)
def test_json_round_trip_of_images_with_shifts(rep, shape):
    again = made_again(Symmetry(rep, regular(rep.group)))
    assert_alike(again.observation, rep, shape)
    assert_alike(again.action, regular(rep.group), (len(rep.group),))
    assert again.observation.arguments().get("size") == rep.arguments().get("size")


def test_json_round_trip_of_trees():
    words = Tokens.from_cycles(FLIP, [[[1, 4]]], 5)
    rep = Tree({"ids": words, "rest": [NEGATE, {3: Pullback(FLIP, NEGATE, [0, 1])}]})
    again = made_again(Symmetry(rep, SWAP)).observation
    assert again.names == ("ids", "rest")
    assert again.parts[1].names == (0, 1)
    assert again.parts[1].parts[1].names == (3,)  # a number stays one
    x = {"ids": torch.tensor([[0, 1, 4]]), "rest": [torch.rand(1, 4), {3: torch.rand(1, 4)}]}
    moved, expected = again.act(1, x), rep.act(1, x)
    assert moved["ids"].tolist() == expected["ids"].tolist() == [[0, 4, 1]]
    assert torch.equal(moved["rest"][0], -x["rest"][0])
    assert torch.equal(moved["rest"][1][3], -x["rest"][1][3])


def test_from_dict_refuses_a_nested_kind_that_is_no_representation():
    data = Symmetry(NESTED["sum"][0], Trivial(SQUARE.group)).to_dict()
    data["observation"]["parts"][0][0]["kind"] = "Group"
    with pytest.raises(ValueError, match="no representation of equicore: 'Group'"):
        Symmetry.from_dict(data)
