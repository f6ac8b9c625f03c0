"""The command `equirl`: train, evaluate, compare, study, plot, landscape, video."""

from __future__ import annotations

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
    from equirl.agents import compare, evaluate, landscape, plot, study, train, video

    call(
        {
            train.Train: train.main,
            evaluate.Evaluate: evaluate.main,
            compare.Compare: compare.main,
            study.Study: study.main,
            plot.Plot: plot.main,
            landscape.Landscape: landscape.main,
            video.Video: video.main,
        },
        prog="equirl",
        description="Make pretrained agents equivariant, and see what it does to them.",
    )


if __name__ == "__main__":
    main()
