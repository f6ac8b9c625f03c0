"""Packages whose public names are imported when they are first used: torch alone takes seconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def face_of(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package that exports what `_face` has."""

    def find(name: str) -> Any:
        if not name.startswith("_") or name == "__all__":
            face, own = importlib.import_module(f"{package}._face"), vars(sys.modules[package])
            if name in own:  # a submodule that is there by now
                return own[name]
            if hasattr(face, name):
                own[name] = getattr(face, name)
                return own[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*vars(sys.modules[package]), *find("__all__")})
