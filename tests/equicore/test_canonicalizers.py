"""Canonicalizers: h(g x) = g h(x), and what they do where no such map exists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore.continuous import (
    Centred,
    GramSchmidt,
    Motion,
    Points,
    PrincipalAxes,
    Reordering,
    Rows,
    Sorting,
    VectorMix,
    Vectors,
    VectorSum,
    random_motions,
    sign_frames,
)

PROPERTY = settings(max_examples=20, deadline=None, derandomize=True)
FLOATS = [torch.float32, torch.float64]
GROUPS = [("SO", 2), ("SO", 3), ("SO", 4), ("O", 1), ("O", 2), ("O", 3)]

BATCHES = st.tuples(st.integers(1, 4), st.integers(0, 2**16), st.sampled_from(FLOATS))


def close(actual, expected):
    tolerance = 1e-12 if expected.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def close_motions(actual, expected):
    close(actual.rotation, expected.rotation)
    close(actual.translation, expected.translation)


def moving(batch, dimension, seed, dtype=torch.float64, reflections=False, shift=0.0):
    some = random_motions(batch + 1, dimension, reflections=reflections, shift=shift, seed=seed)
    return Motion(some.rotation[1:].to(dtype), some.translation[1:].to(dtype))


def vectors(batch, count, dimension, seed, dtype=torch.float64):
    """Random vectors, the first of them close to orthonormal, so that rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, count, dimension, generator=generator, dtype=torch.float64)
    frame = random_motions(batch + 1, dimension, reflections=True, seed=seed).rotation[1:]
    x[:, :dimension] = frame[:, :count] + 0.3 * x[:, :dimension].clamp(-1, 1) / dimension
    return x.to(dtype)


def assert_in(kind, motion):
    """Orthogonal, and of determinant 1 for SO."""
    rotation = motion.rotation
    size = rotation.shape[-1]
    close(rotation.mT @ rotation, torch.eye(size).to(rotation).expand_as(rotation))
    determinants = torch.linalg.det(rotation)
    close(determinants if kind == "SO" else determinants.abs(), torch.ones_like(determinants))


@PROPERTY
@given(st.sampled_from(GROUPS), BATCHES, st.integers(0, 2))
def test_gram_schmidt_is_equivariant(group, batch, more):
    (kind, dimension), (samples, seed, dtype) = group, batch
    x = vectors(samples, dimension - (kind == "SO") + more, dimension, seed, dtype)
    g = moving(samples, dimension, seed, dtype, reflections=kind == "O")
    h = GramSchmidt(kind)
    assert_in(kind, h(x))
    close_motions(h(Vectors().act_each(g, x)), g @ h(x))


@PROPERTY
@given(st.sampled_from(GROUPS), BATCHES)
def test_gram_schmidt_is_the_unique_triangular_factor(group, batch):
    """h(x)^-1 x is lower triangular with a positive diagonal."""
    (kind, dimension), (samples, seed, dtype) = group, batch
    count = dimension - (kind == "SO")
    x = vectors(samples, count, dimension, seed, dtype)
    canonical = Vectors().act_each(GramSchmidt(kind)(x).inverse(), x)
    close(canonical.triu(1), torch.zeros_like(canonical))
    assert (canonical.diagonal(dim1=1, dim2=2) > 0).all()


@PROPERTY
@given(BATCHES, st.integers(1, 5))
def test_vector_sum_is_equivariant(batch, count):
    samples, seed, dtype = batch
    x = vectors(samples, count, 2, seed, dtype)
    g = moving(samples, 2, seed, dtype)
    h = VectorSum()
    assert_in("SO", h(x))
    close_motions(h(Vectors().act_each(g, x)), g @ h(x))
    total = x.sum(1)
    close(h(x).rotation[..., 0], total / total.norm(dim=-1, keepdim=True))


@PROPERTY
@given(BATCHES, st.sampled_from([1, 2, 3, 4]))
def test_mixing_commutes_with_rotations_and_reflections(batch, dimension):
    samples, seed, dtype = batch
    mix, x = VectorMix(5, 3).to(dtype), vectors(samples, 5, dimension, seed, dtype)
    g = moving(samples, dimension, seed, dtype, reflections=True)
    assert mix(x).shape == (samples, 3, dimension)
    close(mix(Vectors().act_each(g, x)), Vectors().act_each(g, mix(x)))


def same_up_to_signs(actual, expected):
    """Whether columns of rotations agree up to a sign each, the translations exactly."""
    signs = (actual.rotation * expected.rotation).sum(1, keepdim=True)
    close(signs.abs(), torch.ones_like(signs))
    close(actual.rotation, expected.rotation * signs.sign())


@PROPERTY
@given(st.sampled_from(GROUPS), BATCHES, st.integers(0, 2))
def test_principal_axes_are_equivariant_up_to_signs(group, batch, more):
    (kind, dimension), (samples, seed, _) = group, batch
    # well separated moments, as rounding is amplified by the inverse of the gap
    moments = torch.arange(1.0, dimension + 1).double()
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, dimension + more, dimension)
    columns, _ = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
    x = moving(samples, dimension, seed + 1).rotation.mT
    x = columns * moments @ x
    g = moving(samples, dimension, seed, reflections=kind == "O")
    h = PrincipalAxes(kind)
    assert_in(kind, h(x))
    same_up_to_signs(h(Vectors().act_each(g, x)), g @ h(x))
    canonical = Vectors().act_each(h(x).inverse(), x)
    second = canonical.mT @ canonical
    close(second, torch.diag_embed(moments.flip(0).square()).expand_as(second))
    if dimension > 1:
        close(h.gap(x), torch.full((samples,), 3 / dimension**2, dtype=torch.float64))


INNER = {
    "shifts": lambda n: None,
    "SE": lambda n: GramSchmidt("SO"),
    "E": lambda n: GramSchmidt("O"),
    "mixed": lambda n: GramSchmidt("O", VectorMix(6, n).double()),
}


@PROPERTY
@given(BATCHES, st.sampled_from([2, 3, 4]))
@pytest.mark.parametrize("group", list(INNER))
def test_centred_points_are_equivariant_under_shifts_too(group, batch, dimension):
    samples, seed, _ = batch
    x = vectors(samples, 6, dimension, seed)
    g = moving(samples, dimension, seed, reflections=group in ("E", "mixed"), shift=3.0)
    if group == "shifts":
        g = Motion(torch.eye(dimension).to(g.rotation).expand_as(g.rotation), g.translation)
    h = Centred(INNER[group](dimension))
    assert_in("SO" if group == "SE" else "O", h(x))
    close_motions(h(Points().act_each(g, x)), g @ h(x))
    canonical = Points().act_each(h(x).inverse(), x)
    close(canonical.mean(1), torch.zeros(samples, dimension).double())


def test_centred_without_an_inner_canonicalizer_does_not_turn():
    x = torch.randn(3, 4, 2)
    assert torch.equal(Centred()(x).rotation, torch.eye(2).expand(3, 2, 2))
    close(Centred()(x).translation, x.mean(1))


@PROPERTY
@given(BATCHES, st.integers(1, 7))
def test_sorting_is_equivariant(batch, rows):
    samples, seed, dtype = batch
    generator = torch.Generator().manual_seed(seed)
    keys = torch.stack([torch.randperm(20, generator=generator)[:rows] for _ in range(samples)])
    x = torch.cat([keys[..., None], torch.randn(samples, rows, 2, generator=generator)], -1)
    x = x.to(dtype)
    g = Reordering(torch.stack([torch.randperm(rows, generator=generator) for _ in keys]))
    for h in (Sorting(), Sorting(lambda x: -x[..., 0])):
        moved = Rows().act_each(g, x)
        assert torch.equal(h(moved).places, (g @ h(x)).places)
        canonical = Rows().act_each(h(x).inverse(), x)
        assert torch.equal(canonical, Rows().act_each(h(moved).inverse(), moved))
        key = canonical[..., 0] if h.key is None else h.key(canonical)
        assert torch.equal(key, key.sort(-1).values)


def test_vectors_are_picked_from_the_input():
    x = {"velocities": vectors(2, 3, 3, 0), "masses": torch.rand(2, 3).double()}

    def momenta(x):
        return x["velocities"] * x["masses"].unsqueeze(-1)

    for make in (lambda pick: GramSchmidt("SO", pick), lambda pick: PrincipalAxes("O", pick)):
        close_motions(make(momenta)(x), make(None)(momenta(x)))
    pick = lambda x: momenta(x)[..., :2]  # noqa: E731
    close_motions(VectorSum(pick)(x), VectorSum()(pick(x)))
    close_motions(Centred(GramSchmidt("SO"), momenta)(x), Centred(GramSchmidt("SO"))(momenta(x)))
    by_mass = Sorting(lambda x: x["masses"])(x).places
    assert torch.equal(x["masses"].gather(1, by_mass), x["masses"].sort(1).values)


def gradient(h, x):
    """Of all entries of the motion, each with a weight of its own."""
    x = x.clone().requires_grad_()
    motion = h(x)
    weights = torch.arange(1.0, motion.rotation.numel() + 1).view_as(motion.rotation)
    loss = (motion.rotation * weights).sum() + motion.translation.sum()
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize(("kind", "dimension"), [g for g in GROUPS if g[1] > 1])
def test_gram_schmidt_of_zeros_is_the_identity(kind, dimension):
    for count, dtype in ((3, torch.float32), (5, torch.float64)):
        x, eye = torch.zeros(2, count, dimension, dtype=dtype), torch.eye(dimension, dtype=dtype)
        assert torch.equal(GramSchmidt(kind)(x).rotation, eye.expand(2, -1, -1))
        assert gradient(GramSchmidt(kind), x).isfinite().all()


@pytest.mark.parametrize("kind, dtype", [("SO", torch.float32), ("O", torch.float64)])
@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5, 1e3])
def test_a_dependent_vector_is_replaced_by_the_farthest_axis(factor, kind, dtype):
    first = torch.tensor([0.0, 0.6, 0.8], dtype=dtype)
    third = torch.tensor([0.3, 0.0, 1.0], dtype=dtype)
    x = torch.stack([first, factor * first, third]).expand(2, 3, 3)
    h = GramSchmidt(kind)
    assert_in(kind, h(x))
    close(h(x).rotation[..., 0], first.expand(2, 3))
    close(h(x).rotation[..., 1], torch.tensor([1.0, 0.0, 0.0], dtype=dtype).expand(2, 3))
    assert gradient(h, x).isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_degenerate_samples_leave_the_others_alone(dtype):
    x = vectors(3, 3, 3, 0, dtype)
    spoilt = x.clone()
    spoilt[1] = 0
    for h in (GramSchmidt("SO"), GramSchmidt("O")):
        assert torch.equal(h(spoilt).rotation[[0, 2]], h(x).rotation[[0, 2]])
        close(gradient(h, spoilt)[[0, 2]], gradient(h, x)[[0, 2]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_counts_as_dependent(dtype):
    """Up to 100 epsilons of all vectors' size, whatever that is."""
    eps = torch.finfo(dtype).eps
    first = torch.tensor([1.0, 0.0], dtype=dtype)
    # the limit is sqrt(2) times 100 epsilons for two vectors of length 1
    for size in (1e-30, 1.0, 1e30):
        for offset, kept in ((-142 * eps, True), (-141 * eps, False)):
            x = size * torch.stack([first, torch.tensor([1.0, offset], dtype=dtype)])
            second = GramSchmidt("O")(x[None]).rotation[0, :, 1]
            close(second, torch.tensor([0.0, -1.0 if kept else 1.0], dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_very_small_and_very_large_vectors(size, dtype):
    """Their squares are no numbers in float32."""
    x = vectors(2, 3, 3, 0, dtype)
    close_motions(GramSchmidt("SO")(size * x), GramSchmidt("SO")(x))
    flat = vectors(2, 3, 2, 0, dtype)
    close_motions(VectorSum()(size * flat), VectorSum()(flat))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nearly_parallel_vectors_still_give_an_orthogonal_frame(dtype):
    x = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]], dtype=dtype)
    x[0, 1, 2] += 2000 * torch.finfo(dtype).eps
    for kind in ("SO", "O"):
        assert_in(kind, GramSchmidt(kind)(x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_vector_sum_of_zero_is_the_identity(dtype):
    triangle = torch.tensor([0.1, 2.1, 4.1], dtype=torch.float64) * torch.pi / 3
    x = torch.stack([triangle.cos(), triangle.sin()], -1).to(dtype)
    x = torch.stack([torch.zeros_like(x), 1e3 * x])
    assert x[1].sum(0).any()  # zero but for rounding
    assert torch.equal(VectorSum()(x).rotation, torch.eye(2).to(x).expand(2, 2, 2))
    assert gradient(VectorSum(), x).isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["SO", "O"])
def test_equal_moments_have_no_gap(kind, dtype):
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=dtype)
    line = torch.tensor([[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]], dtype=dtype)
    for x in (square, line, torch.zeros_like(line)):
        h, x = PrincipalAxes(kind), x[None]
        assert_in(kind, h(x))
        close(h.gap(x), torch.zeros(1, dtype=dtype))
    assert PrincipalAxes(kind).gap(square[None, :1]) == 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_equal_keys_keep_their_order(dtype):
    x = torch.tensor([[2.0, 1.0, 2.0, 1.0]], dtype=dtype).unsqueeze(-1)
    assert Sorting()(x).places.tolist() == [[1, 3, 0, 2]]
    # equal rows: the canonical form is still invariant
    g = Reordering(torch.tensor([[3, 0, 2, 1]]))
    forms = [Rows().act_each(Sorting()(y).inverse(), y) for y in (x, Rows().act_each(g, x))]
    assert torch.equal(*forms)


def on_axes(dimension, count):
    return torch.eye(dimension, dtype=torch.float64)[None, :count]


@pytest.mark.parametrize(("kind", "dimension"), [g for g in GROUPS if g[1] > 1])
def test_gradients_of_gram_schmidt(kind, dimension):
    """Also where all vectors lie on axes, as minors of the frame are zero there."""
    count = dimension - (kind == "SO")
    h = GramSchmidt(kind)
    for x in (vectors(1, count, dimension, 1), on_axes(dimension, count)):
        x = x.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: h(x).rotation, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: h(x).rotation, x, fast_mode=True)


def test_gradients_of_the_others():
    x = vectors(2, 4, 2, 1).requires_grad_()
    flat = on_axes(2, 1).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: VectorSum()(x).rotation, x)
    assert torch.autograd.gradcheck(lambda x: VectorSum()(x).rotation, flat)
    assert torch.autograd.gradcheck(lambda x: PrincipalAxes("O")(x).rotation, x)
    assert torch.autograd.gradcheck(lambda x: PrincipalAxes("SO")(x).rotation, x)
    for h in (Centred(), Centred(GramSchmidt("SO"))):
        assert torch.autograd.gradcheck(lambda x, h=h: (h(x).rotation, h(x).translation), x)


def test_a_mix_learns_through_gram_schmidt():
    mix = VectorMix(4, 2).double()
    x = vectors(3, 4, 3, 0)
    GramSchmidt("SO", mix)(x).rotation[..., 0].sum().backward()
    assert mix.coefficients.grad[0].any()


def test_a_mix_is_determined_by_its_seed():
    state = torch.random.get_rng_state()
    assert torch.equal(VectorMix(3, 2).coefficients, VectorMix(3, 2).coefficients)
    assert not torch.equal(VectorMix(3, 2).coefficients, VectorMix(3, 2, seed=1).coefficients)
    assert torch.equal(torch.random.get_rng_state(), state)


MAKERS = [
    lambda: GramSchmidt("SO", VectorMix(4, 2)),
    lambda: GramSchmidt("O"),
    lambda: VectorSum(lambda x: x[..., :2]),
    lambda: PrincipalAxes("SO"),
    lambda: Centred(GramSchmidt("SO")),
]


@pytest.mark.parametrize("make", MAKERS)
def test_autocast_does_not_round_frames(make):
    x = vectors(2, 4, 3, 0, torch.float32)
    expected = make()(x)
    with torch.autocast("cpu", torch.bfloat16):
        close_motions(make()(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", MAKERS[1:])
def test_short_types_are_computed_in_float32(make, dtype):
    x = vectors(2, 4, 3, 0).to(dtype)
    close_motions(make()(x), make()(x.float()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_stays_in_its_sample(bad):
    x = vectors(3, 4, 3, 0)
    spoilt = x.clone()
    spoilt[1, 0, 1] = bad
    for h in (GramSchmidt("SO"), GramSchmidt("O"), Centred(GramSchmidt("O"))):
        assert torch.equal(h(spoilt).rotation[[0, 2]], h(x).rotation[[0, 2]])
        assert h(spoilt).rotation[1].isnan().any()


@pytest.mark.parametrize("make", [GramSchmidt, PrincipalAxes])
def test_other_groups_are_refused(make):
    with pytest.raises(ValueError, match="kind is \"SO\".*got 'U'"):
        make("U")


@pytest.mark.parametrize(("kind", "shape"), [("SO", (2, 1, 3)), ("O", (2, 2, 3)), ("O", (2, 1, 2))])
def test_too_few_vectors_are_refused(kind, shape):
    with pytest.raises(ValueError) as error:
        GramSchmidt(kind)(torch.ones(shape))
    needed = shape[-1] - (kind == "SO")
    assert f"{kind}({shape[-1]}) needs {needed} vectors; got shape {shape}" in str(error.value)


def test_vector_sum_is_for_the_plane():
    with pytest.raises(ValueError, match=r"for the plane.*\(2, 1, 3\)"):
        VectorSum()(torch.ones(2, 1, 3))


@pytest.mark.parametrize("make", MAKERS[1:])
def test_inputs_that_are_no_vectors_are_refused(make):
    for shape in ((2, 3), (2, 0, 3), (0, 3, 3), (1, 2, 3, 3)):
        with pytest.raises(ValueError, match=r"vectors \(B, k, n\)"):
            make()(torch.ones(shape))
    with pytest.raises(TypeError, match="floating-point vectors; got torch.int64"):
        make()(torch.ones(2, 3, 3, dtype=torch.long))


def test_vectors_must_be_picked_from_a_tree():
    for h in (GramSchmidt("SO"), PrincipalAxes("O"), Centred(), Sorting()):
        with pytest.raises(TypeError, match="from an input that is a dict"):
            h({"positions": torch.ones(2, 3, 3)})


def test_sorting_needs_a_key_for_each_row():
    with pytest.raises(ValueError, match=r"one key for each row.*got \(2, 3, 4\)"):
        Sorting(lambda x: x)(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"one key for each row.*got \(2,\)"):
        Sorting()(torch.ones(2, 3))


def test_sign_frames_are_what_principal_axes_leave_open():
    """The frames of x and of g x are the same set, up to g."""
    x, g = vectors(1, 5, 3, 4), moving(1, 3, 5)
    h, signs = PrincipalAxes("SO"), sign_frames(3, reflections=False)
    frames = h(x).rotation @ signs.rotation
    moved = h(Vectors().act_each(g, x)).rotation @ signs.rotation
    distances = (moved[:, None] - (g.rotation @ frames)[None]).abs().amax((2, 3))
    assert ((distances < 1e-9).sum(0) == 1).all() and ((distances < 1e-9).sum(1) == 1).all()
