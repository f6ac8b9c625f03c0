"""What the check of an environment's symmetry says, kept from one command to the next."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd

import equirl
from equicore.lab.store import digest, remembered
from equirl.symmetry import Symmetry

PACKAGES = ("gymnasium", "mujoco", "Box2D", "minigrid", "gymnasium-robotics")
"""Their versions decide what an environment does."""


def cache() -> Path:
    """The folder where verdicts are kept: ``~/.cache/equirl``, or in ``$XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equirl"


def checks_of(settings: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the check says of each environment, given by its id and arguments; a line for each."""
    return list(dict.fromkeys(_line(*setting) for setting in settings))


def _line(env_id: str, env_kwargs: dict[str, Any]) -> str:
    make = functools.partial(gym.make, env_id, **env_kwargs)
    env = make()
    symmetry = equirl.symmetry_of(env)
    settings = {
        "env": env_id,
        "arguments": {name: str(value) for name, value in sorted(env_kwargs.items())},
        "symmetry": described(symmetry),
        "code": _code(env),
        "versions": {name: _version(name) for name in PACKAGES},
        "equirl": equirl.__version__,
    }
    try:
        file = cache() / "checks" / f"{digest(settings)}.csv"
        table = remembered(file, settings, functools.partial(_checked, make, symmetry))
        return str(table.line.iloc[0])
    except ValueError as error:
        return f"{env_id}: the symmetry could not be checked: {error}"
    finally:
        env.close()


def _checked(make: Any, symmetry: Symmetry) -> pd.DataFrame:
    check = equirl.check_symmetry(make, symmetry)
    line = check.summary
    if not check.holds:
        line = (
            f"WARNING: {line}. What follows compares policies under it; see `equirl check "
            f"{check.environment}`"
        )
    return pd.DataFrame({"line": [line]})


def described(symmetry: Symmetry) -> str:
    """A digest of a symmetry, or its kinds where these have no plain description."""
    try:
        return digest(symmetry.to_dict())
    except NotImplementedError:
        return f"{symmetry.observation}, {symmetry.action}"


def _code(env: gym.Env) -> str:
    """A digest of the files that an environment's classes are written in, as far as there are."""
    files = set()
    for kind in type(env.unwrapped).__mro__:
        with contextlib.suppress(TypeError, OSError):
            files.add(inspect.getsourcefile(kind))
    return digest(b"".join(Path(file).read_bytes() for file in sorted(filter(None, files))))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
