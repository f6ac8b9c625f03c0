"""Kinds of representations beside vectors and images: exchanged entries, flips, coordinates."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equicore import (
    Boxes,
    DirectSum,
    Exchange,
    Group,
    Keypoints,
    Matrix,
    Permutation,
    Representation,
    Tree,
    Trivial,
    assert_equivariant,
    check_representation,
    cyclic,
    dihedral,
    equitune,
    equizero,
    flip,
    image_dihedral,
    image_flips,
    image_rotations,
    max_value,
    product,
    restrict,
)
from equicore.continuous import Vectors
from equicore.representations import Flip, Pullback, TensorProduct, staggered_field, vector_field
from equicore.representations.plain import from_dict, group_to_dict, to_dict

FLOATS = [torch.float32, torch.float64]
MIRROR = image_flips()
STEREO = Exchange({"left": MIRROR, "right": MIRROR}, [{"left": "right", "right": "left"}])


def through_json(rep, kinds=()):
    data = json.loads(json.dumps({"group": group_to_dict(rep.group), "rep": to_dict(rep)}))
    return from_dict(Group(**data["group"]), data["rep"], kinds)


def same(a, b):
    assert type(a) is type(b)
    for name in a:
        assert torch.equal(a[name], b[name])


# ------------------------------------------------------------------------------------- exchanges


class Swap(Representation):
    """A stereo pair that a mirror exchanges: `act` alone."""

    def act(self, g, x):
        if self.group.check_element(g) == 0:
            return x
        return {"left": x["right"].flip(-1), "right": x["left"].flip(-1)}


def pair(batch=3, dtype=torch.float64):
    return {name: torch.randn(batch, 2, 4, dtype=dtype) for name in ("left", "right")}


@pytest.mark.parametrize("rep", [Swap(cyclic(2)), STEREO], ids=["own", "shipped"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_stereo_pair(rep, dtype):
    x = pair(dtype=dtype)
    check_representation(rep, x)
    same(rep.act(1, x), {"left": x["right"].flip(-1), "right": x["left"].flip(-1)})
    mixed = rep.act_each(torch.tensor([0, 1, 0]), x)
    assert torch.equal(mixed["left"][1], x["right"][1].flip(-1))
    assert torch.equal(mixed["left"][0], x["left"][0])
    layer = nn.Linear(4, 3).to(dtype)

    def model(images):
        return {"left": layer(images["left"]).sin(), "right": layer(2 * images["right"]).cos()}

    same_places = Tree({"left": Trivial(rep.group), "right": Trivial(rep.group)})
    for method in (equitune, lambda *r: equizero(*r, score=max_value.of("left").along(-1))):
        f = method(model, rep, same_places)
        assert_equivariant(f, rep, same_places, x)

    class Depth(Swap):
        names = ("left", "right")

    identity = equitune(lambda x: x, rep, Depth(rep.group))
    for batch in (x, pair(1, dtype)):
        output = identity(batch)
        for name in batch:
            torch.testing.assert_close(output[name], batch[name])


def test_a_tree_that_an_act_of_ones_own_returns():
    rep = Swap(cyclic(2))
    layer = nn.Linear(4, 4).double()
    f = equitune(lambda x: {name: layer(x[name]) for name in x}, rep, rep, chunk=1)
    assert_equivariant(f, rep, rep, pair())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_exchanges_are_representations(groups, representations, data):
    """Entries moved as the group moves cosets, acted on by a random representation, with signs."""
    group = data.draw(groups)
    part, shape = data.draw(representations(group))
    seed = data.draw(st.integers(0, 2**16))
    names = [f"entry {g}" for g in range(len(group))]
    moves = [
        {names[h]: names[group.compose(g, h)] for h in range(len(group))} for g in group.generators
    ]
    # each entry changes its sign where some homomorphism to 1 and -1 says so
    sign = [group.table[g].argsort(kind="stable") for g in range(len(group))]
    odd = [round(np.linalg.det(np.eye(len(group))[row])) < 0 for row in sign]
    signs = [["still", *names] if odd[g] else [] for g in group.generators]
    rep = Exchange({**dict.fromkeys(names, part), "still": part}, moves, signs)
    generator = torch.Generator().manual_seed(seed)
    x = {n: torch.randn(2, *shape, generator=generator).double() for n in (*names, "still")}
    check_representation(rep, x)
    try:
        again = through_json(rep)
    except NotImplementedError:
        return
    same(again.act(len(group) - 1, x), rep.act(len(group) - 1, x))


def test_named_arms_with_joints_that_change_their_sign():
    group = cyclic(2)
    joints = Matrix.from_generators(group, [[[-1.0, 0], [0, 1]]])
    robot = Exchange(
        {"left": joints, "right": joints, "head": Trivial(group)},
        [{"left": "right", "right": "left"}],
    )
    x = {name: torch.randn(3, 2) for name in ("head", "right", "left")}
    check_representation(robot, x)
    moved = robot.act(1, x)
    assert list(moved) == ["head", "right", "left"]
    same(
        moved,
        {"head": x["head"], "right": joints.act(1, x["left"]), "left": joints.act(1, x["right"])},
    )

    class Walker(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, left, right, head):
            turned = self.layer(torch.cat([left, 2 * right, head], dim=-1)).tanh()
            return {"left": turned[:, :2], "right": turned[:, 2:], "value": turned.sum(-1)}

    torques = Exchange({"left": joints, "right": joints}, [{"left": "right", "right": "left"}])
    f = equitune(Walker(), robot, torques)
    assert list(f(**x)) == ["left", "right"]
    assert_equivariant(lambda batch: f(**batch), robot, torques, x)
    torch.testing.assert_close(f(x["left"], x["right"], x["head"]), f(**x))


@pytest.mark.parametrize("make", [image_flips, image_rotations, image_dihedral])
def test_a_staggered_field_is_the_field_at_the_edges(make):
    grid = make()
    rep = staggered_field(grid, "u", "v")
    x = {"u": torch.randn(2, 5, 6).double(), "v": torch.randn(2, 6, 5).double()}
    check_representation(rep, x)

    def at_cells(field):  # the mean of both edges of each cell
        right = (field["u"][..., 1:] + field["u"][..., :-1]) / 2
        down = (field["v"][..., 1:, :] + field["v"][..., :-1, :]) / 2
        return torch.stack([down, right], dim=1)

    def divergence(field):
        return field["u"].diff(dim=-1) + field["v"].diff(dim=-2)

    assert_equivariant(at_cells, rep, vector_field(grid), x)
    assert_equivariant(divergence, rep, grid, x)
    if len(grid.group) > 2:  # turns exchange the components
        with pytest.raises(AssertionError):
            assert_equivariant(lambda f: f["u"].diff(dim=-1), rep, grid, x)
    layer = nn.Conv2d(1, 1, 3, padding=1).double()

    def model(field):
        return {n: layer(field[n].unsqueeze(1)).squeeze(1).tanh() for n in ("u", "v")}

    assert_equivariant(equitune(model, rep, rep), rep, rep, x)


def test_wrong_exchanges_are_refused():
    group = MIRROR.group
    other = image_flips(-2)
    swap = {"left": "right", "right": "left"}
    with pytest.raises(ValueError, match="'left' and 'right' change places, but are acted on"):
        Exchange({"left": MIRROR, "right": other}, [swap])
    with pytest.raises(ValueError, match="each of which goes to a place of its own"):
        Exchange({"left": MIRROR, "right": MIRROR}, [{"left": "right"}])
    with pytest.raises(ValueError, match="place of its own; got the moves .*'top'"):
        Exchange({"left": MIRROR, "right": MIRROR}, [{"top": "top"}])
    with pytest.raises(ValueError, match="moves of the entries do not follow"):
        same_part = Trivial(cyclic(2))
        turn = {"a": "b", "b": "c", "c": "a"}
        Exchange(dict.fromkeys("abc", same_part), [turn])
    with pytest.raises(ValueError, match="is generated by 1 elements"):
        Exchange({"left": MIRROR, "right": MIRROR}, [])
    with pytest.raises(ValueError, match="signs are for each of 1 generators; got 2"):
        Exchange({"left": MIRROR, "right": MIRROR}, [swap], [[], []])
    with pytest.raises(ValueError, match="change places; one of them is None"):
        STEREO.orbit({"left": torch.zeros(1, 2, 2), "right": None})
    with pytest.raises(ValueError, match="no representation is given for the entries"):
        STEREO.act(1, pair() | {"top": torch.zeros(3)})
    Exchange({"left": image_flips(), "right": image_flips()}, [swap])  # two that are the same
    own = Swap(group)
    with pytest.raises(ValueError, match="acted on differently"):  # nothing says they are the same
        Exchange({"left": own, "right": Swap(group)}, [swap])


@dataclass
class Views:
    left: Tensor
    right: Tensor


def test_entries_of_other_trees():
    x = pair()
    moved = STEREO.act(1, Views(**x))
    assert isinstance(moved, Views)
    same(vars(moved), STEREO.act(1, x))
    places = Exchange([MIRROR, MIRROR], [{0: 1, 1: 0}])
    left, right = places.act(1, (x["left"], x["right"]))
    same({"left": left, "right": right}, STEREO.act(1, x))


# ----------------------------------------------------------------------------------------- flips


def test_time_in_reverse():
    x = torch.randn(3, 7, dtype=torch.float64)
    check_representation(flip(), x)
    assert torch.equal(flip().act(1, x), x.flip(-1))
    layer = nn.Linear(7, 7).double()
    assert_equivariant(equitune(layer, flip(), flip()), flip(), flip(), x)
    check_representation(flip(-2), torch.randint(9, (3, 7, 2)))
    assert torch.equal(
        through_json(flip((-1, -3))).act(1, torch.arange(8).view(1, 2, 2, 2)),
        torch.arange(8).view(1, 2, 2, 2).flip(-1, -3),
    )


def test_all_mirrors_of_a_volume():
    group = product(product(cyclic(2), cyclic(2)), cyclic(2))
    flips = [[bool(g & bit) for g in range(8)] for bit in (4, 2, 1)]
    a, b, c = (Flip(group, f, dim) for f, dim in zip(flips, (-3, -2, -1), strict=True))
    volume = TensorProduct(TensorProduct(a, b), c)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    check_representation(volume, x)
    assert torch.equal(volume.act(5, x), x.flip(-3, -1))


def test_wrong_flips_are_refused():
    with pytest.raises(ValueError, match="flips do not follow"):
        Flip(cyclic(3), [False, True, True])
    with pytest.raises(ValueError, match="3 elements; got 2 flips"):
        Flip(cyclic(3), [False, True])
    with pytest.raises(ValueError, match="counted from the end"):
        flip(1)
    with pytest.raises(ValueError, match=r"axes \(-2,\) of a batch .*; got shape \(3, 4\)"):
        flip(-2).act(1, torch.zeros(3, 4))


# ----------------------------------------------------------------------------------- coordinates

GRIDS = [image_flips(), image_flips(-2), image_rotations(), image_dihedral()]


def bright(grid, g, size, row, column):
    """Where a pixel goes when its picture is moved, by moving a picture."""
    picture = torch.zeros(1, *size)
    picture[0, row, column] = 1
    return divmod(int(grid.act(g, picture).argmax()), size[1])


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.group.name)
@pytest.mark.parametrize("dtype", FLOATS)
def test_keypoints_and_boxes_in_pixels_move_with_the_picture(grid, dtype):
    sizes = [(6, 6)] if len(grid.group) > 2 else [(6, 6), (4, 7)]
    for rows, columns in sizes:
        centers = Keypoints(grid, size=(rows - 1, columns - 1))
        edges = Keypoints(grid, size=(rows, columns))
        corners = Boxes(grid, "corners", size=(rows, columns))
        corner = Boxes(grid, "corner", size=(rows, columns))
        for g in range(len(grid.group)):
            for row, column in ((0, 0), (1, 3), (2, 0)):
                r, c = bright(grid, g, (rows, columns), row, column)
                at = torch.tensor([[float(column), float(row)]], dtype=dtype)
                assert centers.act(g, at).tolist() == [[c, r]]
                assert edges.act(g, at + 0.5).tolist() == [[c + 0.5, r + 0.5]]
                box = torch.cat([at, at + 1], dim=-1)
                assert corners.act(g, box).tolist() == [[c, r, c + 1, r + 1]]
                box = torch.cat([at, torch.ones_like(at)], dim=-1)
                assert corner.act(g, box).tolist() == [[c, r, 1, 1]]
    x = torch.rand(3, 5, 2, dtype=dtype)
    check_representation(Keypoints(grid), x)
    check_representation(Keypoints(grid, size=(8, 8)), 8 * x)
    for form in ("center", "corners", "corner"):
        check_representation(Boxes(grid, form), torch.rand(3, 5, 4, dtype=dtype))
        check_representation(Boxes(grid, form, (8, 8)), 8 * torch.rand(3, 5, 4, dtype=dtype))


def test_parts_of_the_sides_and_pixels_are_the_same_boxes():
    grid = image_dihedral()
    boxes = torch.rand(4, 3, 4, dtype=torch.float64)
    for form in ("center", "corners", "corner"):
        parts, pixels = Boxes(grid, form), Boxes(grid, form, size=(32, 32))
        torch.testing.assert_close(pixels.orbit(32 * boxes), 32 * parts.orbit(boxes))
        again = through_json(pixels)
        assert torch.equal(again.orbit(boxes), pixels.orbit(boxes))
    points = Keypoints(grid, size=(31, 31))
    assert torch.equal(through_json(points).orbit(boxes[..., :2]), points.orbit(boxes[..., :2]))


def test_keypoints_that_a_mirror_exchanges_and_that_may_be_hidden():
    mirror = image_flips()
    names = Permutation.from_generators(mirror.group, [[1, 0, 2]], dim=-2)
    places = DirectSum([(Keypoints(mirror, size=(10, 20)), 2), (Trivial(mirror.group), 1)])
    face = TensorProduct(names, places)
    x = torch.tensor([[[3.0, 1.0, 2.0], [15.0, 2.0, 1.0], [9.0, 5.0, 2.0]]])
    check_representation(face, x)
    assert face.act(1, x).tolist() == [[[5.0, 2.0, 1.0], [17.0, 1.0, 2.0], [11.0, 5.0, 2.0]]]


def test_wrong_coordinates_are_refused():
    with pytest.raises(
        ValueError, match=r"quarter turns, as of element 1 \(r\), exchange the sides"
    ):
        Keypoints(image_rotations(), size=(480, 640))
    with pytest.raises(ValueError, match="exchange the sides"):
        Boxes(image_dihedral(), size=(480, 640))
    Keypoints(image_flips(), size=(480, 640))
    for size in ((480,), (0, 640), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"size is \(rows, columns\)"):
            Keypoints(image_flips(), size=size)
    with pytest.raises(ValueError, match=r"axis -1 of size 2 .*; got shape \(3, 4\)"):
        Keypoints(image_flips()).act(1, torch.zeros(3, 4))


# ------------------------------------------------------------------------- tables and their places

KEPT = {
    "permutation": (Permutation.from_generators(cyclic(3), [[1, 2, 0]]), (3,)),
    "boxes": (Boxes(image_dihedral(), "corners", (8, 8)), (4,)),
    "keypoints": (Keypoints(image_rotations()), (2,)),
    "matrix": (Matrix.from_generators(cyclic(2), [[[0.6, 0.8], [0.8, -0.6]]]), (2,)),
    "stereo": (Pullback(dihedral(1), STEREO, [0, 1]), None),
    "tree": (Tree({"a": Permutation.from_generators(cyclic(3), [[1, 2, 0]])}), {"a": (3,)}),
}


def example(shape):
    if shape is None:
        return pair(2)
    if isinstance(shape, dict):
        return {name: torch.randn(2, *s).double() for name, s in shape.items()}
    return torch.randn(2, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", KEPT)
def test_tables_survive_the_device_meta(name):
    import copy

    rep, shape = KEPT[name]
    x = example(shape)
    expected = rep.orbit(x)
    away = copy.deepcopy(rep).to("meta")
    assert all(buffer.is_meta for buffer in away.buffers())
    back = away.to_empty(device="cpu")
    half = copy.deepcopy(rep).half().to(torch.bfloat16).double()
    emptied = copy.deepcopy(rep).to_empty(device="cpu")
    reset = copy.deepcopy(rep)
    for buffer in reset.buffers():
        buffer.fill_(1)
    for module in reset.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for other in (back, half, emptied, reset):
        moved = other.orbit(x)
        for a, b in zip(leaves_of(moved), leaves_of(expected), strict=True):
            assert torch.equal(a, b)
        assert other.state_dict() == {}
    with torch.device("meta"):
        made = through_json(rep) if shape is not None else copy.deepcopy(rep)
    for a, b in zip(leaves_of(made.orbit(x)), leaves_of(expected), strict=True):
        torch.testing.assert_close(a, b)


def leaves_of(tree):
    return list(tree.values()) if isinstance(tree, dict) else [tree]


def test_a_symmetrised_model_through_to_empty():
    rep = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
    model = nn.Linear(3, 3).double()
    f = equizero(model, rep, rep)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected, state = f(x), f.state_dict()
    f.to("meta").to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(f(x), expected)


def test_tables_are_copies():
    class Factors(Representation):
        axes = (-1,)

        def __init__(self, group, factors):
            super().__init__(group)
            self.keep("factors", factors)

        def act(self, g, x):
            return x * self.factors[g]

    given = np.array([[1.0, 1.0], [1.0, -1.0]])
    rep = Factors(cyclic(2), given)
    given[:] = 7
    assert rep.to("cpu").act(1, torch.ones(1, 2)).tolist() == [[1.0, -1.0]]


def test_nested_entries_change_their_sign():
    group = cyclic(2)
    limb = {"x": Trivial(group), "y": Trivial(group)}
    swap = {"left": "right", "right": "left"}
    rep = Exchange({"left": limb, "right": limb}, [swap], [["left", "right"]])
    x = {side: {name: torch.randn(2, 3) for name in ("x", "y")} for side in ("left", "right")}
    check_representation(rep, x)
    assert torch.equal(rep.act(1, x)["right"]["y"], -x["left"]["y"])
    with pytest.raises(ValueError, match="do not follow"):  # twice is -1, not 1
        Exchange({"left": limb, "right": limb}, [swap], [["left"]])
    with pytest.raises(TypeError, match="moves has a dict for each of the generators"):
        Exchange({"left": limb, "right": limb}, swap)
    with pytest.raises(TypeError, match="an exchange is of a finite group"):
        Exchange({"left": Vectors(), "right": Vectors()}, [swap])


def test_a_restricted_picture_is_a_picture():
    square = image_dihedral()
    mirrors = restrict(square, square.group.subgroup([2, 4]))  # both, and half a turn
    assert len(mirrors.group) == 4
    x = torch.randn(2, 3, 5)
    check_representation(mirrors, x)
    assert torch.equal(mirrors.act(1, x), square.act(2, x))
    boxes = Boxes(mirrors, "corner", size=(480, 640))
    check_representation(boxes, torch.rand(2, 4, dtype=torch.float64))
    check_representation(vector_field(mirrors), torch.randn(2, 2, 3, 5))
    check_representation(staggered_field(mirrors, "u", "v"), {"u": x, "v": torch.randn(2, 4, 4)})
    for make in (vector_field, Keypoints, Boxes, lambda g: staggered_field(g, "u", "v")):
        with pytest.raises(TypeError, match="a grid moves as an Image does"):
            make(Permutation.from_generators(cyclic(2), [[1, 0]]))


def test_signs_need_a_type_that_has_them():
    same = Trivial(cyclic(2))
    rep = Exchange({"a": same}, [{}], [["a"]])
    with pytest.raises(TypeError, match="need a type with signs; got torch.uint8"):
        rep.act(1, {"a": torch.ones(2, 3, dtype=torch.uint8)})
