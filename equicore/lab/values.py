"""Plain values: as YAML, and whole numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def from_yaml(text: str) -> Any:
    """Plain values from YAML; nothing in it is executed.

    Numbers are those of YAML 1.2, and whole ones without a decimal point are integers.

    Raises:
        ValueError: If the text is no YAML, or holds more than plain data.

    >>> from_yaml("{rate: 1e-3, steps: 5e4, size: 010}")
    {'rate': 0.001, 'steps': 50000, 'size': 10}
    """
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"not readable as YAML: {error}") from error


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file; see `from_yaml`."""
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is {error}") from error


def to_yaml(value: Any, flow: bool = False) -> str:
    """Plain values as YAML that `from_yaml` reads; in one line if ``flow``."""
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, default_flow_style=flow)


def whole(number: Any, what: str) -> int:
    """A whole number as an int, also of a float or a text that is one.

    Raises:
        ValueError: If it is none; the message begins with ``what``.

    >>> whole(500.0, "steps"), whole("2e3", "steps")
    (500, 2000)
    """
    value = from_yaml(number) if isinstance(number, str) else number
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number; got {number!r}")
    return value


_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_INT_TAG, _FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _PlainLoader(yaml.SafeLoader):
    """Reads the numbers of YAML 1.2: 1e-3 is one, 010 is ten, 1:30 is none; executes nothing.

    The zoo's ordered mappings are read as plain ones, its tuples as lists.
    """


class _PlainDumper(yaml.SafeDumper):
    """Writes what `_PlainLoader` reads."""


for _kind in (_PlainLoader, _PlainDumper):
    _kind.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in (_INT_TAG, _FLOAT_TAG)]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in ((_INT_TAG, _INTEGER), (_FLOAT_TAG, _FLOAT)):
        _kind.add_implicit_resolver(
            _tag, re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789")
        )


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    """A number; an integer where it is one and has no decimal point, as in 5e2."""
    text = node.value.replace("_", "").lower()
    if _INTEGER.fullmatch(text):
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return int(number) if number.is_integer() and "." not in text else number


_PlainLoader.add_constructor(_INT_TAG, _number)
_PlainLoader.add_constructor(_FLOAT_TAG, _number)
_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: dict(*loader.construct_sequence(node, deep=True)),  # type: ignore[arg-type]
)
_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: loader.construct_sequence(node, deep=True),  # type: ignore[arg-type]
)
