"""The command `equirl`: train, evaluate, compare, study, plot, landscape, video."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import tyro

from equicore.processes import report_errors


def run(main: Callable[[Any], None], arguments: type) -> None:
    """Parse the command line into the dataclass ``arguments`` and call ``main`` with it.

    It ends as `report_errors` says.
    """
    _call(lambda: main(tyro.cli(arguments)))


def check_least(arguments: Any, **least: int) -> None:
    """Raise ValueError if an option, named by its field, is smaller than it may be."""
    for name, number in least.items():
        if (value := getattr(arguments, name)) < number:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least {number}; got {value}")


def command_line(
    script: str, arguments: Any, without: Sequence[str], positional: Sequence[str] = ()
) -> str:
    """The command line that gives these arguments, where they differ from the defaults.

    Args:
        script: As in ``equirl <script>``.
        arguments: Its dataclass. Of paths the name is written only.
        without: Fields that do not change the results, and the positional ones.
        positional: What is written in place of the latter.
    """
    words = ["equirl", script, *positional]
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name in without or value == field.default:
            continue
        words.append("--" + field.name.replace("_", "-"))
        if isinstance(value, tuple):
            words += value
        elif value is not True:
            words.append(value.name if isinstance(value, Path) else str(value))
    return shlex.join(words)


def main() -> None:
    """Entry point of the command `equirl`."""
    from equirl.agents import compare, evaluate, landscape, plot, study, train, video

    scripts: dict[type, Callable[[Any], None]] = {
        train.Train: train.main,
        evaluate.Evaluate: evaluate.main,
        compare.Compare: compare.main,
        study.Study: study.main,
        plot.Plot: plot.main,
        landscape.Landscape: landscape.main,
        video.Video: video.main,
    }

    def dispatch() -> None:
        arguments: Any = tyro.cli(
            functools.reduce(operator.or_, scripts),
            prog="equirl",
            description="Make pretrained agents equivariant, and see what it does to them.",
        )
        scripts[type(arguments)](arguments)

    _call(dispatch)


def _call(action: Callable[[], None]) -> None:
    sys.path.append(os.getcwd())  # for --env module:id, where the module is the user's own
    report_errors(action, gymnasium.error.Error)


if __name__ == "__main__":
    main()
