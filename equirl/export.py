"""Symmetrised policies as files that run without equirl: ONNX, or PyTorch's exported programs.

The file holds what lies between an observation, as the environment emits it, and the action that
``predict(..., deterministic=True)`` returns: normalisation, preprocessing, the orbit, the network,
the choice of a view, the way back, and bounds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import Dim

import equicore
from equicore.lab.store import replacing
from equirl.deployed import Deployed
from equirl.trials import Arrays, Run, Trials

if TYPE_CHECKING:
    from equirl.symmetrized import SymmetrizedPolicy

SUFFIXES = (".onnx", ".pt2")
"""What can be written."""

BATCHES = (1, 64)
"""How many observations the written file is tried on at once."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how it compared with the policy.

    Attributes:
        path: The file.
        inputs: What it takes, in this order; ONNX also knows them by these names.
        outputs: What it returns.
        compared: Observations on which both were run.
        alike: Of these, where the file took another action that the policy values alike up to
            rounding.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compared: int
    alike: int


def export(policy: SymmetrizedPolicy, path: str | Path) -> Exported:
    """See `SymmetrizedPolicy.export`."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        known = " and ".join(SUFFIXES)
        raise ValueError(f"policies are exported to {known} files; got {str(path)!r}")
    onnx = path.suffix == ".onnx"
    if onnx:
        _check_installed()
    module = Deployed(policy)
    trials = Trials(policy, module)
    with replacing(path) as temporary:
        with _silence():
            program = _traced(module, trials.draw(3))
            if onnx:
                _write_onnx(policy, module, program, temporary)
                run = _run_onnx(temporary, module)
            else:
                torch.export.save(program, temporary)
                run = _run_program(temporary)
            alike = sum(trials.compare(run, trials.draw(size)) for size in BATCHES)
    return Exported(path, module.inputs, module.outputs, sum(BATCHES), alike)


def _traced(module: Deployed, arrays: Arrays) -> torch.export.ExportedProgram:
    """The module as a graph for batches of any size."""
    examples = tuple(torch.from_numpy(array) for array in arrays)
    batch = Dim("batch", min=1)
    shapes = {"tensors": tuple({0: batch} for _ in examples)}
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=shapes)


def _write_onnx(
    policy: SymmetrizedPolicy,
    module: Deployed,
    program: torch.export.ExportedProgram,
    path: Path,
) -> None:
    names = list(module.inputs), list(module.outputs)
    written = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=names[0], output_names=names[1]
    )
    assert written is not None
    graph = written.model.graph
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph.all_nodes():  # torch calls what is in between by the functions' names
        for value in node.outputs:
            if value.name in (*module.inputs, *module.outputs) and id(value) not in ends:
                value.name = f"inside.{value.name}"
    written.model.metadata_props.update(
        policy=repr(policy),
        symmetry=repr(policy.symmetry.group),
        equirl=equicore.__version__,
        observation_space=str(policy.observation_space),
        action_space=str(policy.action_space),
    )
    written.save(path)


def _run_program(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(*inputs: object) -> Arrays:
        with torch.no_grad():
            outputs = module(*map(torch.as_tensor, inputs))
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(tensor.numpy() for tensor in found)

    return run


def _run_onnx(path: Path, module: Deployed) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: object) -> Arrays:
        given = dict(zip(module.inputs, inputs, strict=True))
        return tuple(session.run([*module.outputs], given))

    return run


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs {error.name}: pip install 'equirl[export]'; .pt2 needs none"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What torch tells of its own steps, which no user can change."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
