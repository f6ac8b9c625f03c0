"""Files: written whole or not at all, without code in them, and kept with what made them.

A result is kept together with its settings: plain values that decide it. The same settings find it
again; other settings are refused, with the first difference named.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equicore.lab.values import from_yaml, to_yaml

if TYPE_CHECKING:  # what commands need for their --help must not import torch
    import pandas as pd
    from torch import Tensor, nn, optim

FORMAT = 1
"""Of the header that `write_tensors` writes."""

_MEND = "delete it, or name another folder"

Settings = Mapping[str, Any]
"""Plain values: what JSON holds, and tuples, which count as lists."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path, renamed to ``path`` at the end.

    The temporary file stands beside ``path`` and has the same suffix. Missing folders are made.
    Where ``path`` is a link, the file that it points to is written. What is no file, such as
    /dev/null, is not replaced: the content is written to it.
    """
    suffix, path = Path(path).suffix, Path(path)
    special = _is_special(path)
    path = path if special else Path(os.path.realpath(path))
    folder = Path(tempfile.gettempdir()) if special else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".unfinished-", suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if special:
            with path.open("ab") as device:
                device.write(temporary.read_bytes())
        else:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Whether something is written to as it stands: a device, a pipe, or a standard stream."""
    if not path.exists() or path.is_dir():
        return False
    return not path.is_file() or path.absolute().parts[:2] in (("/", "dev"), ("/", "proc"))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text in UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    return text.removesuffix("\n").split("\n") if text else []


def check_writable(path: str | Path) -> None:
    """Raise ValueError if a file at ``path`` could not be written, before work is done for it."""
    path = Path(path)
    special = _is_special(path)
    path = path if special else Path(os.path.realpath(path))  # as `replacing` writes it
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if special:
        if not os.access(path, os.W_OK):
            raise ValueError(f"{path} cannot be written: no permission")
        return
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise ValueError(f"{path} cannot be written: {parent} is a file, not a folder")
            if not os.access(parent, os.W_OK):
                raise ValueError(f"{path} cannot be written: no permission in {parent}")
            return


def check_same(path: str | Path, found: Settings, wanted: Settings, exactly: bool = False) -> None:
    """Raise FileExistsError, which names the first difference, if settings are not as wanted.

    That there are more of them is a difference only if they shall be the same ``exactly``.
    """
    for name, value in _plain(wanted).items():
        if name not in found:
            raise FileExistsError(f"{path} does not say with which {name} it was made; {_MEND}")
        if isinstance(value, dict) and isinstance(found[name], dict):
            check_same(path, found[name], value, exactly=True)
        elif found[name] != value:
            raise FileExistsError(
                f"{path} was made with {name} {found[name]!r}, not {value!r}; {_MEND}"
            )
    if more := sorted(found.keys() - wanted.keys() if exactly else ()):
        raise FileExistsError(
            f"{path} was made with {more[0]} {found[more[0]]!r}, which is not given now; {_MEND}"
        )


def check_claim(folder: Path, files: Mapping[str, Settings]) -> None:
    """Raise FileExistsError if a folder holds other results than those of some settings.

    The settings are given by the names of the YAML files, in the folder, that hold them. Hidden
    files and logs do not count.
    """
    for name in files:
        check_writable(folder / name)
    known = {folder / name for name in files}
    others = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".log"
    ]
    if not set(others) - known:  # nothing that could be lost
        return
    for name, wanted in files.items():
        if not (folder / name).is_file():
            raise FileExistsError(
                f"{folder} holds files, such as {others[0].name}, but no {name} of ours; name an "
                "empty or a new folder"
            )
        check_same(folder / name, read_settings(folder / name), wanted, exactly=True)


def claim(folder: Path, files: Mapping[str, Settings]) -> None:
    """Write the settings of what a folder is going to hold; raise as `check_claim` does."""
    check_claim(folder, files)
    for name, settings in files.items():
        if read_settings(folder / name) != _plain(settings):
            write_text(folder / name, to_yaml(_plain(settings)))


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty if there is none, or it holds more than plain data."""
    try:
        content = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remembered(
    path: str | Path, settings: Settings, make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """A table that is made once, and found again afterwards, as it stands in its file.

    Args:
        path: A CSV file; its first line is a comment that holds the settings.
        settings: What decides the table.
        make: Makes it, if there is no file.

    Raises:
        FileExistsError: If the file was made with other settings, or does not say with which.
        ValueError: If it is damaged.

    >>> import pandas, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "squares.csv"
    >>> table = remembered(path, {"count": 2}, lambda: pandas.DataFrame({"square": [0, 1]}))
    >>> remembered(path, {"count": 2}, lambda: print("not called")).square.tolist()
    [0, 1]
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        write_text(path, f"# {json.dumps(_plain(settings))}\n{make().to_csv(index=False)}")
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        found = dict(json.loads(first.removeprefix("# "))) if first.startswith("# ") else {}
        check_same(path, found, settings)
        return pd.read_csv(io.StringIO(rest))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Delete it and run again") from error


def digest(content: bytes | Settings) -> str:
    """Sixteen characters that are others for other bytes or settings."""
    if not isinstance(content, bytes):
        content = json.dumps(_plain(content), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen characters that are others for other tensors, names, types or shapes."""
    parts = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        + tensor.detach().cpu().contiguous().numpy().tobytes()
        for name, tensor in tensors.items()
    ]
    return digest(b" ".join(parts))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Settings) -> None:
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
        ValueError: If the file is damaged, none of equirl's, or of another format.
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
        version = int(header["format"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has a damaged header: {error!r}") from error
    if version > FORMAT:
        raise ValueError(
            f"{path} is of format {version}; this equirl reads up to {FORMAT}: upgrade it"
        )
    return tensors, header


def remembered_tensors(
    path: str | Path, settings: Settings, make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors that are made once, and found again; as `remembered` does with tables."""
    path = Path(path)
    if not path.is_file():
        write_tensors(path, make(), settings)
    try:
        tensors, found = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}. Delete it and run again") from error
    check_same(path, found, settings)
    return tensors


def write_state(path: str | Path, header: Settings, **parts: nn.Module | optim.Optimizer) -> None:
    """Write the states of modules and optimisers, and plain values, as one safetensors file."""
    write_tensors(path, state_tensors(**parts), header)


def restore_state(
    path: str | Path, wanted: Settings, **parts: nn.Module | optim.Optimizer
) -> dict[str, Any]:
    """Put modules and optimisers into the states that `write_state` wrote, if there is a file.

    Returns:
        The header; empty if there is no file.

    Raises:
        FileExistsError: If the header does not hold the wanted settings.
        ValueError: If the file is damaged.
    """
    if not Path(path).is_file():
        return {}
    tensors, header = read_tensors(path)
    check_same(path, header, wanted)
    load_state_tensors(tensors, **parts)
    return header


def rounds(
    path: str | Path | None,
    settings: Settings,
    count: int,
    seed: int,
    **parts: nn.Module | optim.Optimizer,
) -> Iterator[int]:
    """The numbers of those rounds of a training that are left; a killed one goes on with the next.

    After each round the states of modules and optimisers are written to ``path``, if any, and how
    many ``seconds`` all rounds took. In each,
    torch's global random state is one that depends on the seed and the round; afterwards it is as
    before.

    Raises:
        FileExistsError: If the file holds the state of a training with other settings.
        ValueError: If it is damaged.
    """
    import torch

    kept = {**settings, "seed": seed, "rounds": count}
    found = {} if path is None else restore_state(path, kept, **parts)
    seconds = found.get("seconds", 0.0)
    for number in range(found.get("done", 0), count):
        start = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + number)
            yield number
        seconds += time.monotonic() - start
        if path is not None:
            write_state(path, {**kept, "done": number + 1, "seconds": seconds}, **parts)


def state_tensors(**parts: nn.Module | optim.Optimizer) -> dict[str, Tensor]:
    """The states of modules and optimisers as tensors, each named after its part."""
    from torch import optim

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


def load_state_tensors(tensors: Mapping[str, Tensor], **parts: nn.Module | optim.Optimizer) -> None:
    """Put modules and optimisers into the states that `state_tensors` gave; others are left."""
    from torch import optim

    for part, thing in parts.items():
        state: dict[str, Any] = part_of(tensors, part)
        if isinstance(thing, optim.Optimizer):
            entries, state = state, thing.state_dict()
            for name, tensor in entries.items():
                place, _, entry = name.partition(".")
                state["state"].setdefault(int(place), {})[entry] = tensor
        thing.load_state_dict(state)


def _plain(settings: Settings) -> dict[str, Any]:
    """As they come back from JSON."""
    return json.loads(json.dumps(dict(settings)))
