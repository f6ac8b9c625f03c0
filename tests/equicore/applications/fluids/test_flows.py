"""Families of flows, files of others, and how groups act on them."""

import numpy as np
import pytest
import safetensors.torch
import torch

import equicore
from equicore.applications.fluids import flows
from equicore.applications.fluids.network import FlowNet
from equicore.applications.fluids.solver import divergence, velocity
from equicore.representations import image_wallpaper

GRIDS = {
    "turns and mirrors": equicore.image_dihedral,
    "mirror": equicore.image_flips,
    "shifts": lambda: equicore.image_shifts(8, 8, step=4),
    "all": lambda: image_wallpaper(equicore.image_dihedral(), 8, step=4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GRIDS)
def test_fields_are_representations(name, dtype):
    grid = GRIDS[name]()
    equicore.check_representation(equicore.vector_field(grid), torch.randn(1, 2, 8, 8, dtype=dtype))
    equicore.check_representation(flows.vorticity_field(grid), torch.randn(3, 1, 8, 8, dtype=dtype))


def test_a_mirror_turns_the_sign_of_vorticity_and_of_one_component():
    mirror = equicore.image_flips()
    w = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(flows.vorticity_field(mirror).act(1, w), -w.flip(-1))
    u = torch.randn(1, 2, 4, 4)
    moved = equicore.vector_field(mirror).act(1, u)
    assert torch.equal(moved[:, 0], u[:, 0].flip(-1))
    assert torch.equal(moved[:, 1], -u[:, 1].flip(-1))


@pytest.mark.parametrize("name", flows.FAMILIES)
def test_families_have_a_direction(name, tmp_path):
    """By their mean Reynolds stress; jets are fastest where they go to the right."""
    u = flows.simulated(name, 40, 1, 2, 16, tmp_path).train
    assert u.shape == (40, 2, 2, 16, 16) and u.dtype == torch.float32
    assert divergence(u).abs().max() < 1e-4
    assert torch.allclose(u[:, 0].square().sum(1).mean((-2, -1)).sqrt(), torch.ones(40), rtol=0.02)
    stress = torch.einsum("btirc,btjrc->btij", u, u) / 256
    turned = stress[..., 1, 1].mean(1) / stress[..., 0, 0].mean(1)  # 1 on average if symmetric
    assert abs(turned.log().mean()) > 5 * turned.log().std() / 40**0.5
    if name == "jets":
        fastest = u[:, 0, 1].flatten(1)
        assert (fastest.amax(1) > -fastest.amin(1)).all()  # to the right, and not to the left


def test_flows_are_found_again(tmp_path):
    first = flows.simulated("jets", 2, 1, 3, 8, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    before = file.stat().st_mtime_ns
    again = flows.simulated("jets", 2, 1, 3, 8, tmp_path)
    assert torch.equal(first.train, again.train) and file.stat().st_mtime_ns == before
    assert not torch.equal(first.train[:1], first.test)
    with pytest.raises(FileExistsError, match="train 2, not 3"):
        flows.simulated("jets", 3, 1, 3, 8, tmp_path)


def example(count=8, times=3, side=8):
    w = flows.turbulence(count * times, side, torch.Generator().manual_seed(0))
    return velocity(w).view(count, times, 2, side, side).float().numpy()


def test_files_are_read(tmp_path):
    fields = 7 * example()
    np.savez(tmp_path / "own.npz", velocity=fields, times=np.arange(3))
    safetensors.torch.save_file({"u": torch.from_numpy(fields)}, tmp_path / "own.safetensors")
    one, two = (flows.read(tmp_path / f"own.{kind}") for kind in ("npz", "safetensors"))
    assert one.name == "own"
    assert (len(one.train), len(one.test)) == (6, 2)
    assert torch.equal(one.test, two.test)
    assert torch.allclose(one.train.square().sum(2).mean(), torch.tensor(1.0))
    found, given = torch.cat([one.train, one.test])[:, 0, 0, 0, 0], fields[:, 0, 0, 0, 0]
    ratios = found.sort().values.numpy() / np.sort(given)  # all trajectories once, in one unit
    assert np.allclose(ratios, ratios[0]) and ratios[0] > 0


def test_a_divergence_is_warned_of(tmp_path):
    np.savez(tmp_path / "swapped.npz", example()[:, :, ::-1])  # (u_1, u_0)
    with pytest.warns(UserWarning, match=r"divergence of the velocities is 0\.\d+ of their grad"):
        flows.read(tmp_path / "swapped.npz")


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"u": example(side=8)[..., :6]}, "square grid"),
        ({"u": example()[:, :, :1]}, r"\.\.\., 2, n, n"),
        ({"u": example()[0]}, r"\(trajectories, times, 2, n, n\)"),
        ({"u": example().astype(int)}, "real floating-point"),
        ({"u": example(count=2)}, r"\(2, 3, .* at least 3 trajectories"),
        ({"u": example(times=1)}, "2 times"),
        ({"u": 0 * example()}, "nothing but zeros"),
        ({"u": example() * np.where(np.arange(8) == 3, np.nan, 1)}, "not finite"),
        ({"u": example(), "v": example()}, "of its arrays u, v none is named velocity"),
        ({"u": np.array([{}], dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_bad_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=rf"bad\.npz.*{message}"):
        flows.read(tmp_path / "bad.npz")


def test_what_is_no_file_of_flows_is_refused(tmp_path):
    for name in ("a.npz", "a.safetensors", "a.csv", "empty.npz"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"no flows")
        with pytest.raises(ValueError, match=name):
            flows.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        flows.read(tmp_path / "none.npz")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_circular_padding_has_all_shifts_and_zeros_have_not(dtype):
    torch.manual_seed(0)
    shifts = equicore.vector_field(equicore.image_shifts(16, 16, step=1))
    x = torch.randn(1, 2, 16, 16, dtype=dtype)
    circular, zeros = (FlowNet(padding, 8).to(dtype) for padding in ("circular", "zeros"))
    equicore.assert_equivariant(circular, shifts, shifts, x, elements=range(0, 256, 5))
    error = equicore.equivariance_error(zeros, shifts, shifts, x, elements=range(0, 256, 5))
    assert error.relative[1:].min() > 1e-3


def test_symmetrized_networks_are_equivariant():
    torch.manual_seed(0)
    field = equicore.vector_field(equicore.image_dihedral())
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    network = FlowNet("zeros", 4).double()
    assert equicore.equivariance_error(network, field, field, x).relative.max() > 1e-3
    equicore.assert_equivariant(equicore.equitune(network, field, field), field, field, x)


@pytest.mark.parametrize("shape", [(1, 2, 8, 9), (1, 3, 8, 8), (2, 8)])
def test_networks_refuse_what_is_no_velocity(shape):
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 2, n, n\)"):
        FlowNet()(torch.zeros(shape))
    with pytest.raises(ValueError, match="circular.*periodic"):
        FlowNet("periodic")
