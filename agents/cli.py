"""The command `equirl`: train, evaluate, compare, study, plot, landscape, video."""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import tyro


def run(main: Callable[[Any], None], arguments: type) -> None:
    """Parse the command line into the dataclass ``arguments`` and call ``main`` with it.

    Wrong input ends with its message and exit status 2, without a traceback; the environment
    variable EQUIRL_DEBUG=1 shows it. Ctrl-C ends with status 130.
    """
    _call(lambda: main(tyro.cli(arguments)))


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
    try:
        action()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError, gymnasium.error.Error) as error:
        if os.environ.get("EQUIRL_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
