"""The solver: against exact solutions, conservation laws, and itself under every element."""

import math

import pytest
import torch

import equicore
from equicore.applications.fluids.flows import turbulence, vorticity_field
from equicore.applications.fluids.solver import (
    Solver,
    divergence,
    energy,
    enstrophy,
    spectrum,
    velocity,
    vorticity,
)

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def random_flow(side=16, count=2, dtype=torch.float64):
    return turbulence(count, side, torch.Generator().manual_seed(0)).to(dtype)


def taylor_green(side, dtype):
    """2 cos(x_0) cos(x_1), of Taylor and Green (1937): it only decays, by exp(-2 viscosity t)."""
    cos = torch.cos(torch.arange(side, dtype=dtype) * (2 * math.pi / side))
    return 2 * cos.unsqueeze(-1) * cos


def grids(side):
    """Turns and mirrors, then some shifts, which together generate all elements."""
    yield equicore.image_dihedral(), None
    yield equicore.image_shifts(side, side), [0, 1, side, 7 * side + 3]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("side", [15, 32])
def test_taylor_green_decays_as_it_should(side, dtype, tolerance):
    start = taylor_green(side, dtype)
    end = Solver(viscosity=0.1, step=0.05).advance(start, 20)
    assert end.dtype == dtype
    assert (end - start * math.exp(-2 * 0.1)).abs().max() < tolerance


def test_waves_of_one_length_only_decay():
    """Also many of them: 3-4-5 has waves that are not along the axes."""
    x = torch.arange(32, dtype=torch.float64) * (2 * math.pi / 32)
    x0, x1 = x.unsqueeze(-1), x
    start = (3 * x0 + 4 * x1).cos() + 0.5 * (5 * x0 + 0 * x1).sin() - (4 * x0 - 3 * x1).cos()
    end = Solver(viscosity=0.01, step=0.02).advance(start, 10)
    assert (end - start * math.exp(-25 * 0.01 * 0.2)).abs().max() < 1e-13


def test_without_viscosity_energy_and_enstrophy_stay():
    """Up to what the time step leaves, which vanishes with order 4 at least."""
    errors = []
    for step in (0.04, 0.02):
        solver = Solver(viscosity=0.0, step=step)
        start = solver.advance(random_flow(), 0)
        end = solver.advance(start, round(2 / step))
        assert (end - start).square().mean() > 0.5 * start.square().mean()  # it did flow
        lost = (energy(velocity(end)) / energy(velocity(start)), enstrophy(end) / enstrophy(start))
        errors.append([(part - 1).abs().max() for part in lost])
    for long, short, bound in zip(*errors, (1e-6, 1e-5), strict=True):
        assert short < bound and long > 12 * short


def test_energy_is_lost_as_viscosity_and_enstrophy_say():
    """dE/dt = -2 viscosity Z, integrated by Simpson's rule."""
    viscosity, step = 0.05, 0.01
    solver = Solver(viscosity, step)
    path = [solver.advance(random_flow(), 0)]
    for _ in range(20):
        path.append(solver.advance(path[-1]))
    weights = torch.tensor([1.0, *[4.0, 2.0] * 9, 4.0, 1.0], dtype=torch.float64) * step / 3
    lost = 2 * viscosity * torch.einsum("t,tb->b", weights, enstrophy(torch.stack(path)))
    found = energy(velocity(path[0])) - energy(velocity(path[-1]))
    assert torch.allclose(found, lost, rtol=1e-6, atol=0)
    assert (enstrophy(torch.stack(path)).diff(dim=0) < 0).all()


def test_order_four_in_time():
    start = random_flow()
    exact = Solver(0.02, 0.0025).advance(start, 160)
    errors = [(Solver(0.02, h).advance(start, round(0.4 / h)) - exact).norm() for h in (0.04, 0.02)]
    assert 12 < errors[0] / errors[1] < 24


def test_forcing_feeds_a_wave_until_viscosity_takes_as_much():
    viscosity = 0.5
    force = taylor_green(16, torch.float64)
    end = Solver(viscosity, 0.05).advance(torch.zeros_like(force), 40, force)  # until time 2
    exact = force * (1 - math.exp(-2 * viscosity * 2)) / (2 * viscosity)
    assert (end - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("side", [15, 16])
def test_the_solver_is_equivariant_under_every_element(side, dtype):
    """Mirrors turn the sign of vorticity. Ten steps add up to ten times the rounding of one."""
    start = random_flow(side, dtype=dtype).unsqueeze(1)
    solver = Solver(viscosity=0.01, step=0.02)
    for grid, some in grids(side):
        rep = vorticity_field(grid)
        equicore.assert_equivariant(
            lambda w: solver.advance(w, 10), rep, rep, start, TOLERANCES[dtype], elements=some
        )


def test_a_mirror_that_keeps_the_sign_is_no_symmetry():
    grid = equicore.image_flips()
    solver = Solver(viscosity=0.01, step=0.02)
    error = equicore.equivariance_error(
        lambda w: solver.advance(w, 10), grid, grid, random_flow().unsqueeze(1)
    )
    assert error.relative[1] > 0.1


def test_a_force_moves_with_the_flow():
    rep = vorticity_field(equicore.image_dihedral())
    start, force = random_flow()[:, None, None]
    solver = Solver(viscosity=0.01, step=0.02)
    ends = [solver.advance(rep.act(g, start), 10, rep.act(g, force)) for g in range(8)]
    assert (rep.align(torch.stack(ends)) - ends[0]).abs().max() < 1e-12
    assert (solver.advance(rep.act(5, start), 10, force) - ends[5]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("side", [15, 16])
def test_velocity_and_vorticity_are_equivariant_and_each_others_inverse(side, dtype):
    tolerance = TOLERANCES[dtype]
    w = random_flow(side, dtype=dtype)
    u = velocity(w)
    for grid, some in grids(side):
        vectors, scalars = equicore.vector_field(grid), vorticity_field(grid)
        equicore.assert_equivariant(
            lambda w: velocity(w.squeeze(1)), scalars, vectors, w.unsqueeze(1), tolerance,
            elements=some,
        )  # fmt: skip
        equicore.assert_equivariant(
            lambda u: vorticity(u).unsqueeze(1), vectors, scalars, u, tolerance, elements=some
        )
    assert (vorticity(u) - w).abs().max() < tolerance * w.abs().max()
    assert divergence(u).abs().max() < tolerance * w.abs().max()


def test_vorticity_of_a_turning_flow():
    """It is positive where velocity turns from the rows' axis towards the columns'."""
    u = velocity(taylor_green(32, torch.float64))  # a vortex about (0, 0), where it is 2
    assert u[1, 1, 0] > 0 and u[0, 0, 1] < 0  # below the middle to the right, right of it upwards
    side_by_side = torch.stack([u, -u])
    assert torch.allclose(vorticity(side_by_side)[:, 0, 0], torch.tensor([2.0, -2.0]).double())


def test_the_spectrum_sums_to_the_energy_and_has_waves_in_their_shells():
    u = velocity(random_flow(15))
    assert torch.allclose(spectrum(u).sum(-1), energy(u), rtol=1e-12)
    shells = spectrum(velocity(taylor_green(16, torch.float64)))  # sqrt(2) rounds to 1
    assert shells.argmax() == 1 and abs(shells[1] - 0.25) < 1e-12
    moved = equicore.vector_field(equicore.image_dihedral()).orbit(u)
    assert torch.allclose(spectrum(moved), spectrum(u).expand(8, -1, -1), rtol=1e-9, atol=1e-15)


def test_energy_and_enstrophy_of_taylor_green():
    w = taylor_green(16, torch.float64)
    assert abs(energy(velocity(w)) - 0.25) < 1e-12 and abs(enstrophy(w) - 0.5) < 1e-12


def test_gradients_flow_through_the_solver():
    solver = Solver(viscosity=0.01, step=0.02)
    start = random_flow(6, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: solver.advance(w - w.mean((-2, -1), True), 2), start)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda w: Solver(-1.0, 0.1), ValueError, "viscosity of at least 0"),
        (lambda w: Solver(0.1, math.nan), ValueError, "positive step"),
        (lambda w: Solver(0.1, 0.1).advance(w[..., :8]), ValueError, "square grid"),
        (lambda w: Solver(0.1, 0.1).advance(w.long()), TypeError, "real floating-point"),
        (lambda w: Solver(0.1, 0.1).advance(w + 1), ValueError, "subtract the mean"),
        (lambda w: Solver(0.0, 0.5).advance(w), ValueError, "not stable .* at most 0.1"),
        (lambda w: Solver(0.1, 0.01).advance(w * math.nan), ValueError, "not stable"),
        (lambda w: vorticity(w[:, 0]), ValueError, r"\.\.\., 2, n, n"),
        (lambda w: divergence(w[0, 0]), ValueError, r"\.\.\., 2, n, n"),
        (lambda w: spectrum(torch.zeros(2, 8, 9)), ValueError, "square grid"),
        (lambda w: velocity(torch.zeros(3, 3)), ValueError, "at least 4 x 4"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(random_flow().expand(3, 2, 16, 16).clone())
