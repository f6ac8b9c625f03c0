"""Two-dimensional incompressible flow on a periodic square, by a pseudo-spectral method.

The square has the side 2 pi and n x n points. Axis 0 is that of the rows, downwards, axis 1 that of
the columns, to the right, and so are the components of velocities, as in
`equicore.representations.vector_field`. The vorticity w = d_0 u_1 - d_1 u_0 follows

    d_t w + u . grad w = viscosity * laplace(w) + forcing.

All functions take any batch axes, float32 or float64, are differentiable, and raise errors as
`check_grid` does.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

STABLE = 2.8
"""Where the classical Runge-Kutta method stops being stable on the imaginary axis."""


@dataclasses.dataclass(frozen=True)
class Solver:
    """Integrates the vorticity equation in Fourier space, with a viscosity and a time step.

    Products are computed on the grid and cut to wavenumbers below n / 3, so that nothing is aliased
    (Orszag, J. Atmos. Sci. 1971). Viscosity is integrated exactly, by an integrating factor, all
    else by the classical Runge-Kutta method of order 4. Without viscosity and forcing, the
    truncated equations keep energy and enstrophy. The solver commutes with shifts by grid cells,
    mirrors and quarter turns.
    """

    viscosity: float
    step: float

    def __post_init__(self) -> None:
        """Raise ValueError if the viscosity is negative, the step not positive, or one infinite."""
        if not 0 <= self.viscosity < math.inf or not 0 < self.step < math.inf:
            raise ValueError(
                "a solver takes a viscosity of at least 0 and a positive step; got "
                f"{self.viscosity} and {self.step}"
            )

    def advance(self, vorticity: Tensor, steps: int = 1, forcing: Tensor | None = None) -> Tensor:
        """The vorticity (..., n, n) after some steps, without what is finer than waves of n / 3.

        The forcing is the curl of a force that is constant in time, of a shape that fits.
        ValueError if the mean vorticity is not 0, or the step is too long for velocities as fast as
        these.
        """
        check_grid(vorticity)
        if (vorticity.mean((-2, -1)).abs() > 1e-4 * vorticity.abs().amax()).any():
            raise ValueError("vorticity on a periodic square has mean 0; subtract the mean")
        grid = _Waves(vorticity)
        source = 0.0 if forcing is None else grid.kept * torch.fft.rfft2(forcing)
        half, h = torch.exp(-0.5 * self.viscosity * self.step * grid.square), self.step
        w = grid.kept * torch.fft.rfft2(vorticity)
        self._check_step(grid, w)
        for _ in range(steps):  # Runge-Kutta of order 4, of exp(viscosity k^2 t) w
            a = grid.advection(w) + source
            b = grid.advection(half * (w + h / 2 * a)) + source
            c = grid.advection(half * w + h / 2 * b) + source
            d = grid.advection(half * (half * w + h * c)) + source
            w = half * (half * (w + h / 6 * a) + h / 3 * (b + c)) + h / 6 * d
        self._check_step(grid, w)
        return grid.back(w)

    def _check_step(self, grid: _Waves, w: Tensor) -> None:
        """Advection turns the phase of a wave by at most (|u_0| + |u_1|) n / 3 per unit of time."""
        fastest = float(grid.back(grid.velocity(w.detach())).abs().sum(-3).amax())
        longest = STABLE / max(fastest * grid.side / 3, 1e-30)
        if not self.step <= longest:  # true for NaN
            raise ValueError(
                f"steps of {self.step:g} are not stable with velocities of {fastest:.3g} on a grid "
                f"of {grid.side} x {grid.side}; here they are at most {longest:.2g} long"
            )


class _Waves:
    """The wavenumbers of a grid, for fields in the form of ``torch.fft.rfft2``."""

    def __init__(self, like: Tensor) -> None:
        side = self.side = like.shape[-1]
        k0 = torch.fft.fftfreq(side, 1 / side, dtype=like.dtype, device=like.device).unsqueeze(-1)
        k1 = torch.fft.rfftfreq(side, 1 / side, dtype=like.dtype, device=like.device)
        self.square = k0.square() + k1.square()
        self.kept = (k0.abs() < side / 3) & (k1.abs() < side / 3) & (self.square > 0)
        # a wave of two cells has no derivative on its grid
        inner = [k * (2 * k.abs() < side) for k in (k0, k1)]
        self.gradient = torch.stack([1j * k.expand_as(self.square) for k in inner])

    def velocity(self, w: Tensor) -> Tensor:
        """Of a vorticity: (d_1, -d_0) of the stream function, (..., 2, n, n // 2 + 1)."""
        stream = w / self.square.where(self.square > 0, torch.inf)
        return torch.stack([self.gradient[1] * stream, -self.gradient[0] * stream], -3)

    def advection(self, w: Tensor) -> Tensor:
        """Minus u . grad w, not aliased."""
        fields = self.back(torch.cat([self.velocity(w), self.gradient * w.unsqueeze(-3)], -3))
        u, slopes = fields.split(2, -3)
        return torch.fft.rfft2(-(u * slopes).sum(-3)) * self.kept

    def back(self, w: Tensor) -> Tensor:
        """On the grid."""
        return torch.fft.irfft2(w, s=(self.side, self.side))


def velocity(vorticity: Tensor) -> Tensor:
    """The incompressible velocity of mean 0, shape (..., 2, n, n), of a vorticity (..., n, n)."""
    check_grid(vorticity)
    grid = _Waves(vorticity)
    return grid.back(grid.velocity(torch.fft.rfft2(vorticity)))


def vorticity(velocity: Tensor) -> Tensor:
    """d_0 u_1 - d_1 u_0, shape (..., n, n), of a velocity (..., 2, n, n)."""
    check_grid(velocity, 2)
    grid = _Waves(velocity)
    u = torch.fft.rfft2(velocity)
    return grid.back(grid.gradient[0] * u[..., 1, :, :] - grid.gradient[1] * u[..., 0, :, :])


def divergence(velocity: Tensor) -> Tensor:
    """d_0 u_0 + d_1 u_1, shape (..., n, n), of a velocity (..., 2, n, n)."""
    check_grid(velocity, 2)
    grid = _Waves(velocity)
    return grid.back((grid.gradient * torch.fft.rfft2(velocity)).sum(-3))


def energy(velocity: Tensor) -> Tensor:
    """Half the mean square of a velocity (..., 2, n, n), shape (...)."""
    check_grid(velocity, 2)
    return velocity.square().sum(-3).mean((-2, -1)) / 2


def enstrophy(vorticity: Tensor) -> Tensor:
    """Half the mean square of a vorticity (..., n, n), shape (...)."""
    check_grid(vorticity)
    return vorticity.square().mean((-2, -1)) / 2


def spectrum(velocity: Tensor) -> Tensor:
    """The energy of a velocity (..., 2, n, n) in shells of wavenumbers, shape (..., shells).

    Shell s is of wavenumbers whose length rounds to s; their sum is `energy`.
    """
    side = check_grid(velocity, 2)
    waves = torch.fft.fft2(velocity, norm="forward").abs().square().sum(-3) / 2
    k = torch.fft.fftfreq(side, 1 / side, dtype=velocity.dtype, device=velocity.device)
    shells = torch.hypot(k.unsqueeze(-1), k).round().long().flatten()
    sums = waves.new_zeros(*waves.shape[:-2], int(shells.max()) + 1)
    return sums.index_add(-1, shells, waves.flatten(-2))


def check_grid(field: Tensor, components: int | None = None) -> int:
    """The side n of fields (..., n, n), or (..., components, n, n).

    TypeError if they do not hold real floating-point numbers, ValueError if they have another shape
    or n is less than 4.
    """
    if not field.is_floating_point():
        raise TypeError(f"fields hold real floating-point numbers; got {field.dtype}")
    shape, leading = tuple(field.shape), () if components is None else (components,)
    fits = len(shape) >= 2 + len(leading) and shape[-2 - len(leading) : -2] == leading
    if not fits or shape[-1] != shape[-2] or shape[-1] < 4:
        wanted = ", ".join(["...", *map(str, leading), "n", "n"])
        raise ValueError(f"expected ({wanted}), a square grid of at least 4 x 4; got {shape}")
    return shape[-1]
