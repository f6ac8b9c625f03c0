"""Run by peers.py in the environment of a peer: times it and equicore, and prints JSON.

PYTHONPATH=. python benchmarks/peers_worker.py ttach 20 8
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial

import common
import torch
from torch import Tensor, nn
from tqdm import tqdm

import equicore

SIZE = 64
TURNS = equicore.image_rotations()
SAME = equicore.Trivial(TURNS.group)

Calls = dict[str, Callable[[Tensor], Tensor]]


def ttach_calls(model: nn.Module) -> Calls:
    """The mean of ttach over quarter turns, and equitune."""
    import ttach

    turns = ttach.Compose([ttach.Rotate90(angles=[0, 90, 180, 270])])
    return {
        "ttach, mean": ttach.ClassificationTTAWrapper(model, turns, merge_mode="mean"),
        "equicore, equitune": equicore.equitune(model, TURNS, SAME),
    }


def equiadapt_calls(model: nn.Module) -> Calls:
    """Canonicalization of equiadapt by an e2cnn network, and top-1 of lambda-equitune."""
    from equiadapt.images import ESCNNEquivariantNetwork, GroupEquivariantImageCanonicalization
    from omegaconf import OmegaConf

    def canonicalized(size: int, channels: int, layers: int) -> Callable[[Tensor], Tensor]:
        network = ESCNNEquivariantNetwork((3, size, size), channels, 5, "rotation", 4, layers)
        settings = OmegaConf.create({"beta": 1.0, "input_crop_ratio": 0.8, "resize_shape": size})
        shape = (3, SIZE, SIZE)
        canonicalize = GroupEquivariantImageCanonicalization(network, settings, shape).eval()
        return lambda x: model(canonicalize(x))

    weight = equicore.MLPWeight((3, 8, 8), pool=nn.AdaptiveAvgPool2d(8))
    nn.init.normal_(weight.network[-1].weight)  # before it is fitted, all weights tie
    return {
        "equiadapt, its examples' network": canonicalized(96, 32, 3),
        "equiadapt, a small network": canonicalized(32, 8, 1),
        "equicore, lambda top-1": equicore.lambda_equitune(model, TURNS, SAME, weight, top_k=1),
    }


def declare_operators() -> str:
    """Make torchvision importable beside torch for CPUs; returns what importing it said.

    torchvision's wheels for CUDA cannot load their operators there, and its import then fails on
    the first that it describes. equiadapt needs of torchvision only crops and resizes, in Python.
    """
    if importlib.util.find_spec("torchvision") is None:
        return ""
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    else:
        return ""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["kept"] = operators  # they vanish with it
    return message


def deviation(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """How far from invariant: the largest change under a turn, relative to the output's size."""
    y = call(x)
    changes = [call(TURNS.act(g, x)) - y for g in range(1, len(TURNS.group))]
    return float(torch.stack(changes).abs().max() / y.abs().max())


def main(peer: str, rounds: int, batches: list[int]) -> None:
    """Time the peer, ours and the plain model in the same rounds."""
    error = declare_operators()  # before transformers, which also imports torchvision
    torch.manual_seed(0)
    model = common.resnet()
    peers = {"ttach": ttach_calls, "equiadapt": equiadapt_calls}
    methods = {"plain": model, **peers[peer](model)}
    results = []
    with torch.no_grad(), tqdm(total=len(batches) * rounds, unit="round", desc=peer) as progress:
        for batch in batches:
            x = torch.rand(batch, 3, SIZE, SIZE)
            calls = {name: partial(call, x) for name, call in methods.items()}
            times = common.time_rounds(calls, rounds, progress)
            results.append(
                {
                    "batch": batch,
                    "seconds": {name: list(values) for name, values in times.items()},
                    "deviation": {name: deviation(call, x) for name, call in methods.items()},
                }
            )
    print(json.dumps({"error": error, "results": results, "machine": common.machine()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(batch) for batch in sys.argv[3:]])
