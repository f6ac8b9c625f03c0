"""Elements of continuous groups, and how they act."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import Tree, Trivial
from equicore.continuous import (
    Motion,
    Points,
    Reordering,
    Rows,
    Vectors,
    random_motions,
    rotations_2d,
    sign_frames,
)
from equicore.trees import leaves

PROPERTY = settings(max_examples=15, deadline=None, derandomize=True)
FLOATS = [torch.float32, torch.float64]
DIMENSIONS = [2, 3, 4]


def close(actual, expected):
    tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def close_motions(actual, expected):
    close(actual.rotation, expected.rotation)
    close(actual.translation, expected.translation)


def moving(batch, dimension, seed, dtype=torch.float64):
    """A random motion for each sample, reflections among them, and none the identity."""
    some = random_motions(batch + 1, dimension, reflections=True, shift=1.0, seed=seed)[1:]
    return Motion(some.rotation.to(dtype), some.translation.to(dtype))


def shuffling(batch, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return Reordering(
        torch.stack([torch.randperm(rows, generator=generator) for _ in range(batch)])
    )


@st.composite
def motions(draw):
    """Three batches of motions."""
    batch, dimension = draw(st.integers(1, 4)), draw(st.sampled_from(DIMENSIONS))
    dtype, seed = draw(st.sampled_from(FLOATS)), draw(st.integers(0, 2**16))
    return [moving(batch, dimension, seed + i, dtype) for i in range(3)]


@st.composite
def reorderings(draw):
    """Three batches of permutations."""
    batch, rows, seed = (draw(st.integers(1, top)) for top in (4, 6, 2**16))
    return [shuffling(batch, rows, seed + i) for i in range(3)]


def a_batch(draw, samples, size, dim, dtype):
    """Random numbers with an axis of a size at a place from the end, among up to 2 others."""
    others = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(-1 - dim, 2)))]
    place = len(others) + 1 + dim
    shape = (samples, *others[:place], size, *others[place:])
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@PROPERTY
@given(motions())
def test_group_laws_of_motions(three):
    a, b, c = three
    close_motions((a @ b) @ c, a @ (b @ c))
    close_motions((a @ b).inverse(), b.inverse() @ a.inverse())
    close_motions(a.inverse().inverse(), a)
    size = a.translation.shape[-1]
    one = Motion(
        torch.eye(size).to(a.rotation).expand_as(a.rotation), torch.zeros_like(a.translation)
    )
    close_motions(a @ a.inverse(), one)
    close_motions(a.inverse() @ a, one)
    close_motions(a @ one, a)
    close_motions(one @ a, a)


@PROPERTY
@given(reorderings())
def test_group_laws_of_reorderings(three):
    a, b, c = three
    assert torch.equal(((a @ b) @ c).places, (a @ (b @ c)).places)
    assert torch.equal((a @ b).inverse().places, (b.inverse() @ a.inverse()).places)
    one = torch.arange(a.places.shape[1]).expand_as(a.places)
    assert torch.equal((a @ a.inverse()).places, one)
    assert torch.equal((a.inverse() @ a).places, one)


@PROPERTY
@given(motions(), st.data())
@pytest.mark.parametrize("kind", [Vectors, Points])
def test_motions_act_as_a_group(kind, three, data):
    a, b, _ = three
    dim = data.draw(st.sampled_from([-1, -2, -3]))
    action = kind(dim)
    x = a_batch(data.draw, len(a), a.rotation.shape[-1], dim, a.rotation.dtype)
    close(action.act_each(a @ b, x), action.act_each(a, action.act_each(b, x)))
    close(action.act_each(a.inverse(), action.act_each(a, x)), x)


@PROPERTY
@given(reorderings(), st.data())
def test_reorderings_act_as_a_group(three, data):
    a, b, _ = three
    dim = data.draw(st.sampled_from([-1, -2, -3]))
    action = Rows(dim)
    x = a_batch(data.draw, len(a), a.places.shape[-1], dim, torch.float32)
    assert torch.equal(action.act_each(a @ b, x), action.act_each(a, action.act_each(b, x)))
    assert torch.equal(action.act_each(a.inverse(), action.act_each(a, x)), x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [-1, -2, -3])
def test_each_vector_and_point_by_the_formula(dim, dtype):
    g = moving(2, 3, 5)
    x = torch.randn(2, 3, 3, 3, dtype=dtype)
    turned, moved = (kind(dim).act_each(g, x).movedim(dim, -1) for kind in (Vectors, Points))
    for sample in range(2):
        for place in np.ndindex(3, 3):
            vector = x.movedim(dim, -1)[sample][place].double()
            expected = g.rotation[sample] @ vector
            close(turned[sample][place], expected.to(dtype))
            close(moved[sample][place], (expected + g.translation[sample]).to(dtype))


@pytest.mark.parametrize("dim", [-1, -2])
def test_each_row_goes_to_its_place(dim):
    g = shuffling(3, 4, 5)
    x = torch.randn(3, 4, 4)
    moved = Rows(dim).act_each(g, x).movedim(dim, 1)
    for sample in range(3):
        for i, place in enumerate(g.places[sample].tolist()):
            assert torch.equal(moved[sample, place], x.movedim(dim, 1)[sample, i])


def test_rows_may_hold_integers():
    assert Rows(-1).act_each(
        Reordering(torch.tensor([[2, 0, 1]])), torch.tensor([[7, 8, 9]])
    ).tolist() == [[8, 9, 7]]


def test_what_nothing_changes_stays():
    x = torch.randn(2, 3)
    assert Trivial().act_each(moving(2, 3, 0), x) is x
    assert Trivial().align_each(moving(2, 3, 0), x) is x


def test_no_points_and_no_vectors_are_moved_too():
    assert Points().act_each(moving(2, 3, 0), torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    assert Vectors(-2).act_each(moving(2, 3, 0), torch.zeros(2, 3, 0)).shape == (2, 3, 0)


@pytest.mark.parametrize("kind", [Vectors, Points])
def test_gradients_reach_the_batch_and_the_motion(kind):
    g = moving(2, 3, 1)
    x, rotation, translation = (
        t.clone().requires_grad_()
        for t in (torch.randn(2, 4, 3, dtype=torch.float64), g.rotation, g.translation)
    )
    assert torch.autograd.gradcheck(
        lambda x, r, t: kind().act_each(Motion(r, t), x), (x, rotation, translation)
    )


def test_autocast_does_not_round_motions():
    g, x = moving(2, 3, 1), torch.randn(2, 4, 3)
    expected = Points().act_each(g, x), g @ g, g.inverse()
    with torch.autocast("cpu", torch.bfloat16):
        actual = Points().act_each(g, x), g @ g, g.inverse()
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1].rotation, expected[1].rotation)
    assert torch.equal(actual[2].translation, expected[2].translation)


def test_trees_of_actions():
    g = moving(2, 3, 1)
    tree = Tree({"a": Vectors(), "b": [Points(), Vectors(-2)], "kinds": Trivial(), "c": Points()})
    assert tree.group is None
    v, p, w = torch.randn(2, 3), torch.randn(2, 4, 3), torch.randn(2, 3, 5)
    kinds = torch.randint(5, (2, 4))
    moved = tree.act_each(g, {"b": (p, w), "a": v, "c": None, "kinds": kinds})
    assert list(moved) == ["b", "a", "c", "kinds"]
    assert torch.equal(moved["a"], Vectors().act_each(g, v))
    assert torch.equal(moved["b"][0], Points().act_each(g, p))
    assert torch.equal(moved["b"][1], Vectors(-2).act_each(g, w))
    assert moved["kinds"] is kinds and moved["c"] is None
    back = tree.align_each(g, moved)
    for actual, expected in ((back["a"], v), (back["b"][0], p), (back["b"][1], w)):
        close(actual, expected)


@pytest.mark.parametrize("action", [Vectors(), Points(-2), Tree([Points(), Vectors()])])
def test_orbits_of_some_elements(action):
    elements = random_motions(4, 3, shift=1.0, reflections=True, seed=1)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    x = (x, 2 * x) if isinstance(action, Tree) else x
    orbit = action.orbit(x, elements)
    for g in range(4):
        expected = action.act_each(elements[[g] * 5], x)
        for whole, one in zip(leaves(orbit), leaves(expected), strict=True):
            close(whole[g], one)
    for aligned, still in zip(leaves(action.align(orbit, elements)), leaves(x), strict=True):
        close(aligned, still.expand(4, *still.shape))


def test_orbits_of_reorderings():
    elements, x = shuffling(3, 4, seed=1), torch.randint(9, (5, 4, 2))
    orbit = Rows().orbit(x, elements)
    for g in range(3):
        assert torch.equal(orbit[g][:, elements.places[g]], x)
    assert torch.equal(Rows().align(orbit, elements), x.expand(3, *x.shape))


@pytest.mark.parametrize(
    ("action", "elements", "shape"),
    [
        (Vectors(), moving(2, 3, 1), (2, 4)),
        (Vectors(), moving(2, 3, 1), (3,)),
        (Vectors(-2), moving(2, 3, 1), (2, 3)),
        (Points(), moving(2, 3, 1), (2, 3, 2)),
        (Rows(), shuffling(2, 3, 1), (2, 4, 3)),
        (Rows(), shuffling(2, 3, 1), (2, 3)),
    ],
)
def test_batches_with_another_axis_are_refused(action, elements, shape):
    with pytest.raises(ValueError) as error:
        action.act_each(elements, torch.zeros(shape))
    assert f"of 3 {'rows' if isinstance(action, Rows) else 'dimensions'} act on axis" in str(
        error.value
    )
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("action", [Vectors(), Points(), Rows()])
def test_there_is_one_element_for_each_sample(action):
    for samples, batch in ((1, 2), (1, 3), (2, 1), (2, 3)):
        elements = shuffling(samples, 3, 1) if isinstance(action, Rows) else moving(samples, 3, 1)
        with pytest.raises(ValueError, match=f"{samples} elements act on {samples} samples"):
            action.act_each(elements, torch.randn(batch, 3, 3))


@pytest.mark.parametrize("kind", [Vectors, Points])
def test_integers_do_not_turn(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__} acts on floating-point.*int64"):
        kind().act_each(moving(2, 3, 1), torch.ones(2, 3, dtype=torch.long))


@pytest.mark.parametrize("kind", [Vectors, Points, Rows])
def test_axes_are_counted_from_the_end(kind):
    with pytest.raises(ValueError, match="counted from the end"):
        kind(1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_moved_keeps_its_type(dtype):
    for kind in (Vectors, Points):
        assert kind().act_each(moving(2, 3, 1), torch.zeros(2, 3, dtype=dtype)).dtype == dtype


def test_some_of_the_elements():
    g, p = moving(4, 3, 1), shuffling(4, 3, 1)
    assert (len(g), len(p)) == (4, 4)
    for index in ([2, 0, 2], slice(1, 3), torch.tensor([3])):
        rows = list(range(4))[index] if isinstance(index, slice) else list(map(int, index))
        assert len(g[index]) == len(p[index]) == len(rows)
        for i, row in enumerate(rows):
            assert torch.equal(g[index].rotation[i], g.rotation[row])
            assert torch.equal(g[index].translation[i], g.translation[row])
            assert torch.equal(p[index].places[i], p.places[row])


@pytest.mark.parametrize("reflections", [False, True])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_random_motions_are_orthogonal(dimension, reflections):
    g = random_motions(200, dimension, reflections=reflections, shift=2.0, seed=3)
    assert g.rotation.dtype == torch.float64 and len(g) == 200
    close(g.rotation @ g.rotation.mT, torch.eye(dimension).double().expand_as(g.rotation))
    determinants = torch.linalg.det(g.rotation)
    close(determinants.abs(), torch.ones(200).double())
    assert torch.equal(g.rotation[0], torch.eye(dimension).double())
    assert torch.equal(g.translation[0], torch.zeros(dimension).double())
    if reflections:  # about half, 5 standard errors
        assert abs((determinants < 0).sum() - 100) < 35
    else:
        assert (determinants > 0).all()
    assert abs(g.translation[1:].std() - 2) < 0.3
    assert not random_motions(5, dimension, seed=3).translation.any()


@pytest.mark.parametrize("reflections", [False, True])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_random_motions_are_uniform(dimension, reflections):
    """Moments of Haar measure: the mean is 0, each squared entry 1/n, the squared trace 1."""
    rotation = random_motions(20000, dimension, reflections=reflections, seed=0).rotation[1:]
    error = 5 / math.sqrt(20000)
    assert rotation.mean(0).abs().amax() < error
    assert (rotation.square().mean(0) - 1 / dimension).abs().amax() < error
    trace = rotation.diagonal(dim1=1, dim2=2).sum(1).square()
    # the vector representation is irreducible, but for SO(2) that of the complex numbers
    expected = 2 if dimension == 2 and not reflections else 1
    assert abs(trace.mean() - expected) < 5 * trace.std() / math.sqrt(20000)
    # and invariant: turned by any fixed rotation they are distributed alike
    fixed = random_motions(2, dimension, seed=9).rotation[1]
    for turned in (fixed @ rotation, rotation @ fixed):
        quantiles = [
            r[:, 0, 0].quantile(torch.linspace(0, 1, 11).double()) for r in (turned, rotation)
        ]
        assert (quantiles[0] - quantiles[1])[1:-1].abs().amax() < 0.06


def test_random_motions_are_determined_by_their_seed():
    def draw(seed):
        return random_motions(4, 3, shift=1.0, seed=seed)

    state = torch.random.get_rng_state()
    assert torch.equal(draw(1).rotation, draw(1).rotation)
    assert torch.equal(draw(1).translation, draw(1).translation)
    assert not torch.equal(draw(1).rotation[1:], draw(2).rotation[1:])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_rotations_of_the_plane_by_multiples(count):
    g = rotations_2d(count)
    assert torch.equal(g.rotation[0], torch.eye(2).double())
    step = g[[1 % count]].rotation[0]
    angle = 2 * math.pi / count
    turned = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    close(step, torch.tensor(turned, dtype=torch.float64))
    for i in range(count):
        close(g.rotation[i], torch.linalg.matrix_power(step, i))
    assert not g.translation.any()


@pytest.mark.parametrize("reflections", [False, True])
@pytest.mark.parametrize("dimension", [1, *DIMENSIONS])
def test_sign_frames_are_all_diagonal_matrices_of_signs(dimension, reflections):
    g = sign_frames(dimension, reflections=reflections)
    diagonals = g.rotation.diagonal(dim1=1, dim2=2)
    assert torch.equal(g.rotation, torch.diag_embed(diagonals))
    found = {tuple(signs) for signs in diagonals.tolist()}
    assert len(found) == len(g) == 2 ** (dimension - (not reflections))
    assert found <= set(itertools.product((1.0, -1.0), repeat=dimension))
    assert reflections or (torch.linalg.det(g.rotation) > 0).all()
    assert diagonals[0].tolist() == [1.0] * dimension


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("make", [rotations_2d, lambda n: random_motions(n, 3, seed=0)])
def test_the_identity_is_always_there(make, count):
    with pytest.raises(ValueError, match=f"count is at least 1.*got {count}"):
        make(count)


def test_motions_from_matrices():
    turn = [[0, -1], [1, 0]]
    exact = torch.tensor([turn], dtype=torch.float64)
    for given_as in ([turn], np.array([turn]), torch.tensor([turn]), exact):
        g = Motion.from_matrices(given_as)
        assert torch.equal(g.rotation, exact)
        assert torch.equal(g.translation, torch.zeros(1, 2).double())
    assert Motion.from_matrices(exact.float()).rotation.dtype == torch.float32
    assert Motion.from_matrices(exact.clone().requires_grad_()).rotation.requires_grad


def test_motions_do_not_change_with_the_array_that_they_are_of():
    matrices = np.eye(2)[None].copy()
    g = Motion.from_matrices(matrices)
    matrices[:] = 7
    assert torch.equal(g.rotation, torch.eye(2).double()[None])
    matrices.flags.writeable = False
    with pytest.raises(ValueError, match="matrix 0 is not orthogonal"):  # and no warning
        Motion.from_matrices(matrices)


@pytest.mark.parametrize(
    "bad",
    [
        [[1.0, 0.1], [0.0, 1.0]],
        [[2.0, 0.0], [0.0, 2.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.0, 0.0], [0.0, torch.nan]],
        [[torch.inf, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [0.0, 1.0001]],
    ],
)
def test_matrices_that_are_not_orthogonal_are_named(bad):
    for dtype in FLOATS:
        stack = torch.eye(2, dtype=dtype).repeat(4, 1, 1)
        stack[2] = torch.tensor(bad, dtype=dtype)
        with pytest.raises(ValueError, match="matrix 2 is not orthogonal"):
            Motion.from_matrices(stack)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_is_no_reason_to_refuse_matrices(dtype):
    Motion.from_matrices(random_motions(50, 4, reflections=True, seed=1).rotation.to(dtype))


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3), (3,), (1, 2, 2, 2), (2, 0, 0)])
def test_matrices_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError) as error:
        Motion.from_matrices(torch.zeros(shape))
    assert "(B, n, n)" in str(error.value) and str(shape) in str(error.value)
