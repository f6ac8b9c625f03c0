import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equicore import (
    Matrix,
    Permutation,
    Representation,
    Trivial,
    assert_equivariant,
    check_representation,
    cyclic,
    dihedral,
    equivariance_error,
    image_rotations,
    symmetric,
)
from equicore.verify import check_group

SHIFT = Permutation.from_generators(cyclic(3), [[1, 2, 0]])
SIGN = Matrix(cyclic(2), [[[1.0]], [[-1.0]]])
POINTS = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
FLOATS = [torch.float32, torch.float64]
# what a message must tell: element 1 is called r and sample 1 is the worst
X = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 0.0]])


def scaled(x):
    return x * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)


class Rule(Representation):
    """A would-be representation on an axis of the size of the group, by a rule (g, x) -> x."""

    def __init__(self, group, rule, align=None, orbit=None):
        super().__init__(group)
        self.rule, self.align_rule, self.orbit_rule = rule, align, orbit

    def act(self, g, x):
        return self.rule(g, x)

    def align(self, y, elements=None):
        whole = self.align_rule is not None and elements is None
        return self.align_rule(y) if whole else super().align(y, elements)

    def orbit(self, x, elements=None):
        whole = self.orbit_rule is not None and elements is None
        return self.orbit_rule(x) if whole else super().orbit(x, elements)

    def arguments(self):
        return {}


def test_error_of_each_element_by_hand():
    # shifted by r, (a, b, c) becomes (c, a, b): f(r x) - r f(x) = (c, 2a, 3b) - (3c, a, 2b)
    error = equivariance_error(scaled, SHIFT, SHIFT, X)
    assert error.absolute.tolist() == [0.0, 10.0, 6.0]
    torch.testing.assert_close(error.relative, torch.tensor([0.0, 10.0, 6.0]) / 15)
    assert (error.worst_element, error.worst_sample) == (1, 1)


def test_error_of_an_equivariant_model_is_zero():
    error = equivariance_error(lambda x: 2 * x + x.sum(-1, keepdim=True), SHIFT, SHIFT, X)
    assert error.absolute.tolist() == [0.0, 0.0, 0.0]
    assert error.relative.tolist() == [0.0, 0.0, 0.0]


def test_zero_outputs_are_no_error():
    error = equivariance_error(lambda x: 0 * x, SHIFT, SHIFT, X)
    assert error.relative.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_outputs_without_further_axes(wrong):
    x = torch.zeros(3, 3)
    x[wrong, 2] = 4.0
    invariant = Trivial(SHIFT.group)
    error = equivariance_error(lambda x: x[:, 0], SHIFT, invariant, x)
    assert error.absolute.tolist() == [0.0, 4.0, 0.0]  # r moves the last entry to the front
    assert (error.worst_element, error.worst_sample) == (1, wrong)
    with pytest.raises(AssertionError, match=rf"element 1 \(r\), sample {wrong}"):
        assert_equivariant(lambda x: x[:, 0], SHIFT, invariant, x)
    assert_equivariant(lambda x: x.sum(-1), SHIFT, invariant, x)


def test_outputs_with_several_axes():
    rotations = image_rotations()
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert equivariance_error(lambda x: 2 * x, rotations, rotations, x).absolute.tolist() == [0] * 4
    weights = torch.zeros(3, 3)
    weights[0, 0] = 1
    # f keeps the corner of g x, g f(x) turns the corner 0 of x away
    error = equivariance_error(lambda x: x * weights, rotations, rotations, x)
    assert error.absolute.tolist() == [0.0, 2.0, 8.0, 6.0]


def test_the_model_is_called_once_without_gradients():
    calls = []

    def model(x):
        calls.append((x.shape, torch.is_grad_enabled()))
        return x

    equivariance_error(model, SHIFT, SHIFT, X)
    assert calls == [((9, 3), False)]


def test_assert_equivariant_tells_element_name_sample_and_size():
    with pytest.raises(AssertionError) as failure:
        assert_equivariant(scaled, SHIFT, SHIFT, X)
    assert str(failure.value) == (
        "not equivariant: |f(g x) - g f(x)| = 10 (relative 0.667, allowed 1e-05) "
        "at element 1 (r), sample 1"
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_default_tolerance_follows_the_type(dtype, tolerance):
    def almost(epsilon):
        return lambda x: x * (1 + epsilon * torch.tensor([0, 0, 1], dtype=dtype))

    x = torch.ones(2, 3, dtype=dtype)
    assert_equivariant(almost(0.5 * tolerance), SHIFT, SHIFT, x)
    with pytest.raises(AssertionError, match=f"allowed {tolerance:.3g}"):
        assert_equivariant(almost(2 * tolerance), SHIFT, SHIFT, x)
    assert_equivariant(almost(2 * tolerance), SHIFT, SHIFT, x, tolerance=3 * tolerance)


@pytest.mark.parametrize(
    "dtype, epsilon, suggested",
    [(torch.float32, 1e-4, True), (torch.float32, 1e-1, False), (torch.float64, 1e-4, False)],
)
def test_float64_is_suggested_for_small_errors_in_float32(dtype, epsilon, suggested):
    def almost(x):
        return x * (1 + epsilon * torch.tensor([0, 0, 1], dtype=dtype))

    with pytest.raises(AssertionError) as failure:
        assert_equivariant(almost, SHIFT, SHIFT, torch.ones(2, 3, dtype=dtype))
    assert ("repeat in float64" in str(failure.value)) == suggested


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_outputs_that_are_not_finite_fail(bad, everywhere):
    def model(x):
        return x + bad if everywhere else torch.where(x[:, :1] == 5, bad, x)

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, SHIFT, SHIFT, X)


def test_nan_is_the_worst():
    # only r moves the 5 of sample 1 to the front; other errors there are finite
    def model(x):
        return torch.where(x[:, :1] == 5, torch.nan, scaled(x))

    error = equivariance_error(model, SHIFT, SHIFT, X)
    assert (error.worst_element, error.worst_sample) == (1, 1)


def test_empty_batches_are_refused():
    with pytest.raises(ValueError, match=r"empty batch: .* \(0, 3\)"):
        equivariance_error(scaled, SHIFT, SHIFT, torch.zeros(0, 3))


@pytest.mark.parametrize("group", [dihedral(4), symmetric(3)], ids=lambda group: group.name)
def test_check_group_accepts_groups_and_tables(group):
    assert check_group(group) == group
    assert check_group(group.table) == group
    assert check_group(group.table.tolist()) == group


def test_check_group_names_the_failing_elements():
    with pytest.raises(ValueError, match="element 1 has no inverse"):
        check_group([[0, 1], [1, 1]])


def test_check_group_finds_damage_to_a_group():
    group = cyclic(3)
    group.table.flags.writeable = True
    group.table[1, 1] = 1
    with pytest.raises(ValueError, match="1"):
        check_group(group)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_check_group_finds_any_single_wrong_entry(groups, data):
    group = data.draw(groups.filter(lambda group: len(group) > 1))
    table = group.table.copy()
    g, h = (data.draw(st.integers(0, len(group) - 1)) for _ in "gh")
    wrong = data.draw(st.integers(0, len(group) - 1).filter(lambda p: p != table[g, h]))
    table[g, h] = wrong
    with pytest.raises(ValueError, match=r"\d"):
        check_group(table)


def permuted(g, x):
    return POINTS.act(g, x)


def undone(g, x):
    return POINTS.act(POINTS.group.inverse(g), x)


def align_forwards(y):
    return torch.stack([POINTS.act(g, y[g]) for g in range(6)])


@pytest.mark.parametrize(
    "wrong, law",
    [
        # act by the inverse: an anti-homomorphism, which only a non-abelian group tells apart
        (Rule(POINTS.group, undone), r"act\(\d, act\(\d, x\)\) = act\(\d, x\)"),
        (Rule(POINTS.group, permuted, align=align_forwards), r"align\(orbit\(x\)\)\[\d\] = x"),
        (
            Rule(POINTS.group, permuted, orbit=lambda x: POINTS.orbit(x).flip(0)),
            r"orbit\(x\)\[\d\] = act\(\d, x\)",
        ),
        (Rule(POINTS.group, lambda g, x: x.flip(-1)), r"act\(0, x\) = x"),
    ],
    ids=["act by inverse", "align by g", "orbit in another order", "identity moves"],
)
def test_check_representation_names_the_broken_law(wrong, law):
    for dtype in (*FLOATS, torch.int64, torch.uint8):
        x = torch.tensor([[1, 2, 4], [3, 5, 9]]).to(dtype)
        check_representation(Rule(POINTS.group, permuted), x)
        with pytest.raises(ValueError, match=rf"not a representation of symmetric\(3\): .*{law}"):
            check_representation(wrong, x)


def test_check_representation_tells_the_size_of_the_difference():
    wrong = Rule(cyclic(2), lambda g, x: x + 0.5 * g)
    with pytest.raises(ValueError, match=r"act\(1, act\(1, x\)\) = act\(0, x\) fails, .* by 1$"):
        check_representation(wrong, torch.zeros(1, 3))


@pytest.mark.parametrize("intact", [0, 1], ids=["no element", "the identity"])
def test_check_representation_shows_shapes_that_change(intact):
    wrong = Rule(cyclic(2), lambda g, x: x if g < intact else x[..., :2])
    with pytest.raises(ValueError, match=r"fails, \(1, 2\) of .* instead of \(1, 3\) of"):
        check_representation(wrong, torch.zeros(1, 3))


def test_check_representation_wants_integers_exact():
    wrong = Rule(cyclic(2), lambda g, x: x + g)
    with pytest.raises(ValueError, match=r"act\(1, act\(1, x\)\) = act\(0, x\)"):
        check_representation(wrong, torch.full((2, 3), 10**6))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_check_representation_is_relative_to_the_size_of_the_input(scale):
    x = scale * torch.tensor([[1.0, 2.0, 4.0]])
    check_representation(POINTS, x)
    with pytest.raises(ValueError, match="not a representation"):
        check_representation(Rule(POINTS.group, undone), x)


@pytest.mark.parametrize("dtype, epsilon", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_check_representation_takes_a_tolerance(dtype, epsilon):
    slightly_off = Rule(cyclic(2), lambda g, x: x * (1 + epsilon * g))
    x = torch.ones(1, 3, dtype=dtype)
    with pytest.raises(ValueError, match="they differ by"):
        check_representation(slightly_off, x)
    check_representation(slightly_off, x, tolerance=10 * epsilon)


def test_a_sign_flip_is_its_own_undoing_so_align_by_g_passes_there():
    # why the tests above use elements of order above two
    align_forwards = Rule(SIGN.group, SIGN.act, align=lambda y: y * torch.tensor([[[1.0]], [[-1]]]))
    check_representation(align_forwards, torch.ones(2, 1))


def test_matrices_of_a_random_basis_pass():
    basis = np.array([[1.0, 0.3, 0.0], [0.0, 1.0, -2.0], [0.5, 0.0, 1.0]])
    permutations = np.eye(3)[:, POINTS.permutations.numpy()].transpose(1, 0, 2)
    rep = Matrix(POINTS.group, basis @ permutations @ np.linalg.inv(basis))
    for dtype in FLOATS:
        check_representation(rep, torch.randn(4, 3, dtype=dtype))
