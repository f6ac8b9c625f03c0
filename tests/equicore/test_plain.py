"""Groups and representations as plain JSON values, and back."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import (
    Boxes,
    DirectSum,
    Group,
    Matrix,
    Permutation,
    Representation,
    Tokens,
    Tree,
    Trivial,
    cyclic,
    image_dihedral,
    image_rotations,
    image_shifts,
    restrict,
    vector_field,
)
from equicore.representations import Pullback, TensorProduct, image_wallpaper, regular
from equicore.representations.plain import from_dict, group_to_dict, to_dict
from equicore.trees import leaves

FLIP = cyclic(2)
SWAP = Permutation.from_generators(FLIP, [[1, 0]])
NEGATE = Matrix.from_generators(FLIP, [-np.eye(4)])
SQUARE = image_dihedral()
FIELD = vector_field(SQUARE)
# of D4, and the shape of a sample
NESTED = {
    "sum": (
        DirectSum([(regular(SQUARE.group), 8), (Trivial(SQUARE.group), 2), (Boxes(SQUARE), 4)]),
        (14,),
    ),
    "sum of fields": (DirectSum([(FIELD, 2), (SQUARE, 1)], dim=-3), (3, 4, 4)),
    "product": (TensorProduct(SQUARE, regular(SQUARE.group, dim=-3)), (8, 3, 3)),
    "sign of a sum": (
        Pullback(SQUARE.group, DirectSum([(NEGATE, 4), (SWAP, 2)]), [0, 1, 0, 1, 1, 0, 1, 0]),
        (6,),
    ),
    "boxes by corners": (Boxes(SQUARE, "corners"), (4,)),
    "shifts": (image_shifts(4, 6, step=2), (4, 6)),
    "wallpaper": (vector_field(image_wallpaper(image_rotations(), 4, step=2)), (2, 4, 4)),
    "restriction": (restrict(FIELD, SQUARE.group.subgroup([2, 4])), (2, 3, 3)),
}


def through_json(rep):
    return from_dict(rep.group, json.loads(json.dumps(to_dict(rep))))


def assert_alike(again, rep, x):
    assert type(again) is type(rep)
    assert again.group == rep.group
    assert set(again.axes) == set(rep.axes)
    assert to_dict(again) == to_dict(rep)
    for actual, expected in zip(leaves(again.orbit(x)), leaves(rep.orbit(x)), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("rep, shape", NESTED.values(), ids=NESTED)
def test_nested_representations(rep, shape):
    x = torch.rand(4, *shape, dtype=torch.float64)
    assert_alike(through_json(rep), rep, x)
    assert not torch.equal(rep.orbit(x), x.expand(len(rep.group), *x.shape))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_representations_and_trees(groups, representations, trees, data):
    group = data.draw(groups)
    if data.draw(st.booleans()):
        rep, shape = data.draw(representations(group))
        x = torch.randn(2, *shape, dtype=torch.float64)
    else:
        rep, make = data.draw(trees(group))
        x = make(2)
    assert_alike(through_json(rep), rep, x)


def test_names_and_places_of_trees():
    """JSON has no keys but strings; the places of a sequence are written as a list."""
    words = Tokens.from_cycles(FLIP, [[[1, 4]]], 5)
    rep = Tree({"kind": words, "rest": [NEGATE, {"kind": Pullback(FLIP, NEGATE, [0, 1])}]})
    again = through_json(rep)
    assert again.names == ("kind", "rest")
    assert again.parts[1].names == (0, 1)
    x = {"kind": torch.tensor([[0, 1, 4]]), "rest": [torch.rand(1, 4), {"kind": torch.rand(1, 4)}]}
    moved = again.act(1, x)
    assert moved["kind"].tolist() == [[0, 4, 1]]
    assert torch.equal(moved["rest"][0], -x["rest"][0])
    assert torch.equal(moved["rest"][1]["kind"], -x["rest"][1]["kind"])
    with pytest.raises(NotImplementedError, match=r"names for entries, not \[1\]"):
        to_dict(Tree({"a": {1: NEGATE}}))


def test_a_group_is_made_again_with_its_names():
    group = SQUARE.group.subgroup([2, 4])
    again = Group(**json.loads(json.dumps(group_to_dict(group))))
    assert again == group
    assert (again.name, again.names) == (group.name, group.names)
    assert again.generators == group.generators


def test_another_group_is_written_only_where_a_representation_has_one():
    written = to_dict(NESTED["sign of a sum"][0])
    assert "group" not in written
    assert Group(**written["representation"]["group"]) == FLIP
    assert "group" not in written["representation"]["parts"][0][0]
    same = Pullback(FLIP, NEGATE, [0, 1])
    assert "group" not in to_dict(same)["representation"]


@pytest.mark.parametrize("kind", ["Group", "Representation", "group_to_dict", "os.system", None, 3])
def test_what_is_no_representation_of_ours_is_refused(kind):
    with pytest.raises(ValueError, match=f"no representation of equicore: {kind!r}"):
        from_dict(FLIP, {"kind": kind, "parts": []})
    data = to_dict(NESTED["sum"][0])
    data["parts"][0][0]["kind"] = kind
    with pytest.raises(ValueError, match=f"no representation of equicore: {kind!r}"):
        from_dict(SQUARE.group, data)


def test_a_representation_that_does_not_say_how_it_is_written():
    class Own(Representation):
        def act(self, g, x):
            return x

    for rep in (Own(FLIP), DirectSum([(SWAP, 2), (Own(FLIP), 1)])):
        with pytest.raises(NotImplementedError, match=r"Own does not say .* define arguments\(\)"):
            to_dict(rep)
