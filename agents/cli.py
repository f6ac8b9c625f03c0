"""The command `equirl`: train, evaluate, compare, check, discover, convert, study and others."""

from __future__ import annotations

import importlib
import os
import sys

import gymnasium

from equicore.lab import command
from equicore.lab.command import Main


def run(main: Main, arguments: type) -> None:
    """What a script does when it is called by itself."""
    call({arguments: main})


def call(mains: dict[type, Main], prog: str | None = None, description: str | None = None) -> None:
    """Parse the command line and do what it says, see `equicore.lab.command.run`."""
    sys.path.append(os.getcwd())  # for --env module:id, where the module is the user's own
    command.run(mains, gymnasium.error.Error, prog=prog, description=description)


def main() -> None:
    """Entry point of the command `equirl`."""
    from equirl.agents import arguments

    modules = {
        arguments.Train: "train",
        arguments.Evaluate: "evaluate",
        arguments.Compare: "compare",
        arguments.Check: "check",
        arguments.Discover: "discover",
        arguments.Convert: "convert",
        arguments.Study: "study",
        arguments.Plot: "plot",
        arguments.Landscape: "landscape",
        arguments.Video: "video",
    }
    call(
        {kind: _of_module(name) for kind, name in modules.items()},
        prog="equirl",
        description="Make pretrained agents equivariant, and see what it does to them.",
    )


def _of_module(name: str) -> Main:
    """The ``main`` of a module beside this one, which is imported when it is called."""
    return lambda arguments: importlib.import_module(f"{__package__}.{name}").main(arguments)


if __name__ == "__main__":
    main()
