"""What all commands share: how they are called, and how they end.

Wrong input ends with its message and exit status 2, without a traceback; the environment variable
EQUIRL_DEBUG=1 shows it. Ctrl-C ends with status 130.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from equicore.lab.values import whole

Main = Callable[[Any], None]
"""What a command does, with its arguments: a dataclass whose docstrings are its ``--help``."""


def run(
    mains: Mapping[type, Main],
    *errors: type[Exception],
    args: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> None:
    """Parse the command line into one of some dataclasses, and call what belongs to it.

    One dataclass alone is no subcommand. ``errors`` are as in `report_errors`, the others as in
    ``tyro.cli``.
    """

    def dispatch() -> None:
        kinds: Any = functools.reduce(operator.or_, mains)
        words = _apart(sys.argv[1:] if args is None else args, mains)
        with numbers:
            arguments = tyro.cli(kinds, args=words, prog=prog, description=description)
        mains[type(arguments)](arguments)

    report_errors(dispatch, *errors)


def report_errors(action: Callable[[], None], *errors: type[Exception]) -> None:
    """Do what a command does, and end as one should.

    ``errors`` are what wrong input raises, besides ValueError, TypeError, OSError and ImportError.
    """
    expected: tuple[type[Exception], ...] = (ValueError, TypeError, OSError, ImportError, *errors)
    try:
        action()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # nobody reads the output any more
        sys.exit(141)
    except expected as error:
        if os.environ.get("EQUIRL_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _apart(words: Sequence[str], kinds: Iterable[type]) -> list[str]:
    """The words, with what follows options of several numbers written apart: 0,1,2 is 0 1 2."""
    fields = [field for kind in kinds for field in dataclasses.fields(kind)]
    of_several = [str(f.type) + option(f.name) for f in fields if "tuple[int" in str(f.type)]
    several = set(re.findall(r"--?\w[\w-]*", " ".join(of_several)))  # and their other names
    apart: list[str] = []
    inside = False
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("-") and not name[1:2].isdigit():
            inside = name in several
            if not (inside and equals):
                apart.append(word)
                continue
            apart.append(name)
            word = value
        apart += [w for w in word.split(",") if w] if inside else [word]
    return apart


numbers = ConstructorRegistry()
"""How numbers are typed in commands; tyro parses within it."""


@numbers.primitive_rule
def _whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """How integers are typed: 50000, 50_000 or 5e4."""
    if info.type is not int:
        return None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0], "it"),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def check_least(arguments: Any, **least: float) -> None:
    """Raise ValueError if an option, named by its field, is smaller than it may be."""
    for name, number in least.items():
        if (value := getattr(arguments, name)) is not None and value < number:
            raise ValueError(f"{option(name)} must be at least {number}; got {value}")


def check_several(arguments: Any, *names: str) -> None:
    """Raise ValueError if an option that takes several values has none, or one twice."""
    for name in names:
        values = getattr(arguments, name)
        if not values:
            raise ValueError(f"no {name} given: name at least one after {option(name)}")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{option(name)} has {twice[0]} more than once")


def check_training(arguments: Any) -> None:
    """Raise ValueError if ``steps`` do not rise, or the ``learning_rate`` is not positive."""
    steps, rate = arguments.steps, arguments.learning_rate
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"--steps rise, from 0 on; got {' '.join(map(str, steps))}")
    if not 0 < rate < math.inf:
        raise ValueError(f"--learning-rate must be positive; got {rate}")


def check_seeds(arguments: Any) -> None:
    """Raise ValueError if there are no ``seeds``, one stands twice, or is out of range."""
    check_several(arguments, "seeds")
    for seed in arguments.seeds:
        if not 0 <= seed < 2**31:
            raise ValueError(f"--seeds are whole numbers from 0 to {2**31 - 1}; got {seed}")


def option(field: str) -> str:
    """The command line's name of a field."""
    return "--" + field.replace("_", "-")


def command_line(
    script: str, arguments: Any, without: Sequence[str], positional: Sequence[str] = ()
) -> str:
    """The command line of a script that gives these arguments, where they are not the defaults.

    Of paths the name is written only. ``without`` are fields that do not change the results, and
    positional ones, in place of which ``positional`` is written.
    """
    words = [*script.split(), *positional]
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name in without or value == field.default:
            continue
        words.append(option(field.name))
        if isinstance(value, tuple):
            words += map(str, value)
        elif value is not True:
            words.append(value.name if isinstance(value, Path) else str(value))
    return shlex.join(words)
