"""Files that are written whole or not at all, and tensors in files that hold no code."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

FORMAT = 1
"""Of the header that `write_tensors` writes."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path, renamed to ``path`` at the end.

    The temporary file stands beside ``path`` and has the same suffix. Missing folders are made.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new" / "numbers.txt"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("1 2 3")
    >>> path.read_text()
    '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise ValueError if a file at ``path`` could not be written, before work is done for it."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise ValueError(f"{path} cannot be written: {parent} is a file, not a folder")
            if not os.access(parent, os.W_OK):
                raise ValueError(f"{path} cannot be written: no permission in {parent}")
            return


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file, whole or not at all."""
    import safetensors.torch

    metadata = {"equirl": json.dumps({"format": FORMAT, **header})}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(plain, temporary, metadata)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, none of equirl's, or of a newer format.
    """
    import safetensors

    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        hint = "; it is a zip archive, see load_agent" if zipfile.is_zipfile(path) else ""
        raise ValueError(f"{path} is not a whole safetensors file: {error}{hint}") from error
    if "equirl" not in metadata:
        raise ValueError(f"{path} was not written by equirl: it has no header of ours")
    try:
        header = json.loads(metadata["equirl"])
        newer = header["format"] > FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has a damaged header: {error!r}") from error
    if newer:
        raise ValueError(
            f"{path} is of format {header['format']}; this equirl reads up to {FORMAT}: upgrade it"
        )
    return tensors, header


def first_difference(
    header: Mapping[str, Any], expected: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """The first expected value that a header has not: its name, what is there, what was expected.

    Args:
        header: Was read from JSON.
        expected: Plain values; tuples count as the lists that JSON makes of them.
    """
    for name, value in json.loads(json.dumps(expected)).items():
        if (found := header.get(name)) != value:
            return name, found, value
    return None


def state_tensors(**parts: nn.Module | optim.Optimizer) -> dict[str, Tensor]:
    """The states of modules and optimisers as tensors, each named after its part."""
    tensors: dict[str, Tensor] = {}
    for part, thing in parts.items():
        state = thing.state_dict()
        if isinstance(thing, optim.Optimizer):
            state = {f"{i}.{k}": v for i, entry in state["state"].items() for k, v in entry.items()}
        tensors |= {f"{part}.{name}": tensor for name, tensor in state.items()}
    return tensors


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those that `state_tensors` named after one part, under their names in it."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_state_tensors(tensors: dict[str, Tensor], **parts: nn.Module | optim.Optimizer) -> None:
    """Put modules and optimisers into the states that `state_tensors` gave; others are left."""
    for part, thing in parts.items():
        state: dict[str, Any] = part_of(tensors, part)
        if isinstance(thing, optim.Optimizer):
            entries, state = state, thing.state_dict()
            for name, tensor in entries.items():
                place, _, entry = name.partition(".")
                state["state"].setdefault(int(place), {})[entry] = tensor
        thing.load_state_dict(state)
