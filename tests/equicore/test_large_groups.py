"""Groups of many elements: how large they may be, what they take, and checks of a part of them."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from equicore import (
    Group,
    Matrix,
    Maximum,
    Mean,
    Symmetrized,
    Trivial,
    assert_equivariant,
    check_representation,
    cyclic,
    dihedral,
    equitune,
    equivariance_error,
    equizero,
    image_dihedral,
    image_shifts,
    lambda_equitune,
    product,
    report,
    symmetric,
)
from equicore.finetuning import EquivarianceLoss
from equicore.groups import MAX_ORDER, semidirect
from equicore.representations import image_wallpaper, regular

TOO_LARGE = {
    "cyclic": lambda: cyclic(6000),
    "dihedral": lambda: dihedral(3000),
    "symmetric": lambda: symmetric(8),
    "product": lambda: product(cyclic(80), cyclic(80)),
    "semidirect": lambda: semidirect(cyclic(3000), cyclic(2), [range(3000)] * 2),
    "table": lambda: Group(np.broadcast_to(np.int8(0), (6000, 6000))),
    "shifts": lambda: image_shifts(96, 96),
    "wallpaper": lambda: image_wallpaper(image_dihedral(), 26),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_every_constructor_refuses_what_is_too_large_at_once(name):
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"{MAX_ORDER} elements"):
        TOO_LARGE[name]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_shifts_that_are_too_many_say_which_step_is_not():
    with pytest.raises(ValueError, match=r"shifts of 96 x 96 cells by 1 has 9216.*use step=2$"):
        image_shifts(96, 96)
    assert len(image_shifts(96, 96, step=2).group) == 48 * 48
    with pytest.raises(ValueError, match="use shifts along one axis"):
        image_shifts(97, 97)


@pytest.mark.parametrize("n, bytes_each", [(60, 1), (256, 2), (2000, 2)])
def test_tables_are_of_small_integers(n, bytes_each):
    table = cyclic(n).table
    assert table.itemsize == bytes_each
    k = np.arange(n)
    assert np.array_equal(table, (k[:, None] + k) % n)


def test_the_largest_group_takes_little_memory():
    tracemalloc.start()
    group = dihedral(MAX_ORDER // 2)
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(group) == MAX_ORDER
    assert current < 70e6 and peak < 350e6


def test_samples_of_a_group():
    group = symmetric(5)
    drawn = group.sample(10, seed=1)
    assert drawn[0] == 0 and len(set(drawn)) == 10 and set(drawn) <= set(range(120))
    assert group.sample(10, seed=1) == drawn != group.sample(10, seed=2)
    assert group.sample(1) == [0] and sorted(group.sample(120)) == list(range(120))
    for count in (0, 121):
        with pytest.raises(ValueError, match="has 120 elements; a sample of"):
            group.sample(count)


SHIFTS = image_shifts(16, 16)
SAME = Trivial(SHIFTS.group)


def corner(x):
    return x[:, :3, 5]


def test_checks_of_some_elements():
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    some = [17, 3, 200, 3]
    whole = equivariance_error(corner, SHIFTS, SAME, x)
    error = equivariance_error(corner, SHIFTS, SAME, x, elements=some)
    assert error.elements == (0, 17, 3, 200)  # the identity tells what f(x) is
    assert torch.equal(error.absolute, whole.absolute[[0, 17, 3, 200]])
    g = error.worst_element
    assert error.of(g) == (float(whole.absolute[g]), float(error.relative.max()))
    assert whole.elements == tuple(range(256)) and error.of(0) == (0, 0)
    with pytest.raises(AssertionError, match=rf"element {g} \(\("):
        assert_equivariant(corner, SHIFTS, SAME, x, elements=some)
    seen = []

    def total(x):
        seen.append(len(x))
        return x.sum((1, 2), keepdim=True).flatten(1)

    assert_equivariant(total, SHIFTS, SAME, x, elements=SHIFTS.group.sample(8))
    assert seen == [16]
    with pytest.raises(IndexError, match="0..255; got 256"):
        assert_equivariant(total, SHIFTS, SAME, x, elements=[256])


def test_of_a_large_group_not_all_pairs_are_tried():
    x = torch.randn(1, 16, 16)
    calls = []

    class Counted(type(SHIFTS)):
        def act(self, g, x):
            calls.append(g)
            return super().act(g, x)

    shifts = [move[2] for move in SHIFTS.moves]
    counted = Counted(SHIFTS.group, [0] * 256, [False] * 256, shifts, (16, 16))
    check_representation(counted, x)
    assert len(calls) < 10 * 256  # not 256 * 256
    calls.clear()
    check_representation(counted, x, elements=SHIFTS.group.sample(20))
    assert len(calls) < 1000

    class Wrong(type(SHIFTS)):
        def act(self, g, x):
            return super().act(g, x) if g != 77 else x

    wrong = Wrong(SHIFTS.group, [0] * 256, [False] * 256, shifts, (16, 16))
    with pytest.raises(ValueError, match="act.* fails"):
        check_representation(wrong, x)
    with pytest.raises(ValueError, match="act.* fails"):
        check_representation(wrong, x, elements=[5, 77])
    check_representation(wrong, x, elements=[0])


def test_a_report_of_many_elements_is_a_page():
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    found = report(corner, SHIFTS, SAME, x)
    lines = str(found).splitlines()
    assert len(lines) == 2 + 20 + 1 and "236 others, at most" in lines[-1]
    worst = equivariance_error(corner, SHIFTS, SAME, x)
    assert f"{worst.worst_element} (" in str(found)
    kept = sorted(float(r) for r in worst.relative)
    assert f"{kept[-21]:.1e}" in lines[-1]
    figure = found.plot()
    assert figure.get_size_inches()[0] < 13
    assert len(figure.axes[0].get_xticks()) <= 24
    few = report(corner, SHIFTS, SAME, x, elements=[1, 2])
    assert [line.split()[0] for line in str(few).splitlines()[2:]] == ["0", "1", "2"]
    assert len(few.plot().axes[0].lines[0].get_xdata()) == 3


PHASE = Matrix.from_generators(cyclic(4), [[[1j]]])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers(dtype):
    quarter = Matrix.from_generators(cyclic(4), [[[0, -1], [1, 0]]])
    x = torch.randn(3, 2, dtype=dtype)
    check_representation(quarter, x)
    assert torch.equal(quarter.act(1, x), torch.stack([-x[:, 1], x[:, 0]], dim=-1))
    check_representation(PHASE, x[:, :1])
    torch.testing.assert_close(PHASE.act(1, x[:, :1]), 1j * x[:, :1])
    torch.testing.assert_close(PHASE.align(PHASE.orbit(x[:, :1]))[3], x[:, :1])
    layer = nn.Linear(1, 1, dtype=dtype)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(layer, PHASE, PHASE, x[:, :1])
    for part in (equitune(layer, PHASE, PHASE), equitune(layer, PHASE, Trivial(cyclic(4)))):
        assert_equivariant(part, PHASE, part.output_rep, x[:, :1])
    with pytest.raises(TypeError, match="acts on complex tensors; got torch.float32"):
        PHASE.act(1, torch.randn(3, 1))
    with pytest.raises(TypeError, match="acts on floating-point tensors; got torch.int64"):
        quarter.act(1, torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="matrices do not follow"):
        Matrix(cyclic(2), [[[1.0]], [[1j]]])
    check_representation(regular(cyclic(4)), torch.randn(3, 4, dtype=dtype))


def test_groups_of_complex_matrices():
    group = Group.from_matrices([[[1j]], [[-1.0]]])
    assert len(group) == 4
    pauli = Group.from_matrices([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]]])
    assert len(pauli) == 8
    check_representation(
        Matrix.from_generators(pauli, [[[0, 1], [1, 0]], [[0, -1j], [1j, 0]]]),
        torch.randn(3, 2, dtype=torch.complex128),
    )


def test_penalties_of_complex_outputs_are_real():
    layer = nn.Linear(1, 1, dtype=torch.complex128)
    x = torch.randn(3, 1, dtype=torch.complex128)
    loss = EquivarianceLoss(layer, PHASE, PHASE, samples=None)(x)
    assert loss.dtype == torch.float64 and loss > 0
    assert loss_of_equitune(layer, x) < 1e-20


def loss_of_equitune(layer, x):
    return EquivarianceLoss(equitune(layer, PHASE, PHASE), PHASE, PHASE, samples=None)(x)


def test_what_complex_numbers_do_not_have_is_refused():
    layer = nn.Linear(1, 1, dtype=torch.complex128)
    x = torch.randn(3, 1, dtype=torch.complex128)
    largest = Symmetrized(layer, PHASE, PHASE, Maximum())
    with pytest.raises(TypeError, match="of complex numbers none is the largest"):
        largest(x)
    weighted = lambda_equitune(layer, PHASE, PHASE, nn.Linear(1, 1, dtype=torch.complex128))
    with pytest.raises(TypeError, match="log-weights are real numbers; the network gave torch.c"):
        weighted(x)
    sure = equizero(layer, PHASE, PHASE, lambda y: y.abs().squeeze(-1), gradient=Mean())
    sure(x).abs().sum().backward()
    assert layer.weight.grad.abs() > 0
