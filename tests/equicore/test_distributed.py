"""DistributedDataParallel: two processes with half a batch each learn what one does with all.

Run as a script, this file is one of the processes.
"""

import os
import subprocess
import sys
import time
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
    Permutation,
    StraightThrough,
    Symmetrized,
    equitune,
    equizero,
    lambda_equitune,
    max_probability,
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
        return Symmetrized(model, plane, rep, StraightThrough(Best(max_probability), Identity()))
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


def learn(name, model, x):
    """Gradients of two steps of a descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        loss(model, x).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
    return gradients


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=PROCESSES,
    )
    results = {}
    for name in NAMES:
        model = made(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += rank  # what the first process has is what counts
        parallel = DistributedDataParallel(model)
        sent = {id(buffer) for buffer in parallel.modules_buffers}
        assert not any(id(table) in sent for table in model.output_rep.buffers())
        results[name] = learn(name, parallel, batches().chunk(PROCESSES, dim=1)[rank])
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of the processes found."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    folder = tmp_path_factory.mktemp("distributed")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    files = [folder / f"{rank}.txt" for rank in range(PROCESSES)]
    started = []
    try:
        for rank, path in enumerate(files):
            command = [sys.executable, __file__, str(rank), str(folder)]
            with path.open("w") as file:
                started.append(subprocess.Popen(command, env=environment, stderr=file))
        end = time.monotonic() + 120
        # one that fails leaves the others waiting
        while time.monotonic() < end and {one.poll() for one in started} in ({None}, {None, 0}):
            time.sleep(0.05)
        errors = "\n".join(path.read_text() for path in files)
        assert [one.poll() for one in started] == [0] * PROCESSES, errors
    finally:
        for one in started:
            one.kill()
            one.wait()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_what_one_does(name, processes):
    expected = learn(name, made(name), batches())
    for results in processes:
        for step, gradients in enumerate(expected):
            assert len(gradients) == len(results[name][step])
            for parameter, gradient in gradients.items():
                found = results[name][step][f"module.{parameter}"]
                torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
    assert max(g.abs().amax() for g in expected[0].values()) > 0.01
    assert any("reduce.weight" in p for p in expected[0]) == (
        name in ("lambda_equitune", "features", "chunks")
    )


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
