"""DistributedDataParallel: a process of its group learns what a model without it does.

Run as a script, this file is one of the two processes of the slow test.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from equicore import (
    Best,
    Identity,
    Matrix,
    MLPWeight,
    Permutation,
    StraightThrough,
    Symmetrized,
    assert_equivariant,
    confidence,
    equitune,
    equizero,
    lambda_equitune,
    symmetric,
)

PROCESSES = 2
NAMES = ["equitune", "equizero", "through identity", "lambda_equitune", "features", "chunks"]


def made(name):
    """Under S3, whose elements turn and mirror the input and permute the output."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    rep = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
    half, height = 0.5, 0.75**0.5
    plane = Matrix.from_generators(
        rep.group, [[[-half, height], [height, half]], [[-half, -height], [height, -half]]]
    )
    if name == "equitune":
        return equitune(model, plane, rep)
    if name == "equizero":
        return equizero(model, plane, rep)
    if name == "through identity":
        return Symmetrized(model, plane, rep, StraightThrough(Best(confidence), Identity()))
    size, features = (2, None) if name == "lambda_equitune" else (8, "1")
    weight = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    chunk = 4 if name == "chunks" else None
    return lambda_equitune(model, plane, rep, weight, features, chunk=chunk)


def batches():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 6, 2, dtype=torch.float64, generator=generator)


def loss(model, x):
    """Of two forward passes before one backward pass."""
    first, second = x
    return (model(first).square() + model(second).abs()).sum(-1).mean()


def learned(model, x):
    """Gradients of two steps of a descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, x).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
    return gradients


@contextmanager
def group(rank, size, folder):
    """A group of processes that meet at a file."""
    meeting = (folder / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def parallel(model):
    """It sends no tables of representations in its forward passes."""
    made = DistributedDataParallel(model)
    sent = {id(buffer) for buffer in made.modules_buffers}
    assert not any(id(table) in sent for table in model.output_rep.buffers())
    return made


def process(rank, folder):
    torch.set_num_threads(1)
    results = {}
    with group(rank, PROCESSES, folder):
        for name in NAMES:
            model = made(name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += rank  # what the first process has is what counts
            half = batches().chunk(PROCESSES, dim=1)[rank]
            results[name] = learned(parallel(model), half)
    torch.save(results, folder / f"{rank}.pt")


def assert_same(found, expected):
    for own, wanted in zip(found, expected, strict=True):
        assert len(own) == len(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(own[f"module.{name}"], gradient, rtol=1e-12, atol=1e-12)


needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


@pytest.fixture
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@needs_gloo
def test_one_process_learns_what_the_model_alone_does(tmp_path, loopback):
    with group(0, 1, tmp_path):
        for name in NAMES:
            expected = learned(made(name), batches())
            assert_same(learned(parallel(made(name)), batches()), expected)
            assert max(g.abs().amax() for g in expected[0].values()) > 0.01
            weighted = name in ("lambda_equitune", "features", "chunks")
            assert any("reduce.weight" in p for p in expected[0]) == weighted


@needs_gloo
@pytest.mark.slow
def test_two_processes_with_half_a_batch_each_learn_what_one_does(tmp_path, loopback):
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    started = []
    try:
        for rank in range(PROCESSES):
            command = [sys.executable, __file__, str(rank), str(tmp_path)]
            with (tmp_path / f"{rank}.txt").open("w") as errors:
                started.append(subprocess.Popen(command, env=environment, stderr=errors))
        # one that fails leaves the others waiting
        end = time.monotonic() + 300
        while time.monotonic() < end and {one.poll() for one in started} in ({None}, {None, 0}):
            time.sleep(0.05)
    finally:
        for one in started:
            one.kill()
    errors = "\n".join(file.read_text() for file in tmp_path.glob("*.txt"))
    assert [one.wait() for one in started] == [0] * PROCESSES, errors
    for rank in range(PROCESSES):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in NAMES:
            assert_same(results[name], learned(made(name), batches()))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about the CPU
@pytest.mark.parametrize("version", [1, 2])
def test_fully_sharded_from_the_device_meta(version, tmp_path):
    """Parameters come from a state, tables of representations by themselves."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    rep = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
    x = torch.randn(4, 3)

    def make():
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        return lambda_equitune(model, rep, rep, MLPWeight((3,)))

    reference = make()
    with torch.device("meta"):
        model = make()
    model.to("meta")
    with group(0, 1, tmp_path):
        if version == 1:
            model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
            assert torch.equal(model.module.input_rep.permutations, rep.permutations.cpu())
            assert_equivariant(model, rep, rep, x)
            return
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        model.to_empty(device="cpu")
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, reference.state_dict(), options=whole)
        torch.testing.assert_close(model(x), reference(x))


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
