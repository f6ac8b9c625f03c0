"""What the check of an environment's symmetry says, kept from one command to the next."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd

import equirl
import equirl.envs
from equicore.lab.store import digest, remembered
from equirl.preprocessing import layers_of
from equirl.symmetry import Symmetry

ENGINES = ("mujoco", "Box2D")
"""Packages that compute what environments of others do."""


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
    check = functools.partial(_checked, make, symmetry)
    try:
        code, plain = _code(env), _plain(symmetry)
        if code is None or plain is None:
            return str(check().line.iloc[0])
        settings = {"env": env_id, "symmetry": plain, "code": code}
        file = cache() / "checks" / f"{digest(settings)}.csv"
        return str(remembered(file, settings, check).line.iloc[0])
    except Exception as error:  # whatever someone's environment raises: the comparison goes on
        kind = type(error).__name__
        return f"WARNING: {env_id}: the symmetry could not be checked: {kind}: {error}"
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
    return _plain(symmetry) or f"{symmetry.observation}, {symmetry.action}"


def _plain(symmetry: Symmetry) -> str | None:
    try:
        return digest(symmetry.to_dict())
    except NotImplementedError:
        return None


def _code(env: gym.Env) -> dict[str, str] | None:
    """What decides how an environment behaves and is checked: packages by version, and files.

    None where that is not known: code or data outside installed packages may change with nothing
    to show it, such as a module that a user's environment imports.
    """
    try:
        assert env.spec is not None  # as it was made from an id
        code = {"spec": env.spec.to_json()}  # with arguments, also of wrappers
        entry = importlib.import_module(str(env.spec.entry_point).partition(":")[0])
    except (ValueError, TypeError, ImportError):
        return None
    ours = [
        path for of in (equirl, equirl.envs) for path in Path(str(of.__file__)).parent.glob("*.py")
    ]
    code["equirl"] = digest(b"".join(path.read_bytes() for path in sorted(ours)))
    owners = importlib.metadata.packages_distributions()
    modules = {kind.__module__ for layer in layers_of(env) for kind in type(layer).__mro__}
    for module in {entry.__name__, *modules}:
        package = module.partition(".")[0]
        if package == "equirl" or package in sys.stdlib_module_names:
            continue
        file = getattr(sys.modules.get(module), "__file__", None)
        if package not in owners or file is None or not _installed(file):
            return None
        code |= {name: importlib.metadata.version(name) for name in owners[package]}
    for engine in ENGINES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            code[engine] = importlib.metadata.version(engine)
    given = [*env.spec.kwargs.values(), getattr(env.unwrapped, "fullpath", "")]
    data = [str(value) for value in given if isinstance(value, str | Path) and str(value)]
    if any(Path(value).exists() and not _installed(value) for value in data):
        return None
    return code


def _installed(file: str) -> bool:
    """Whether a file lies among installed packages, which change by version only."""
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return any(place in Path(file).resolve().parents for place in places)
