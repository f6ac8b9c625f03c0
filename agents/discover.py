"""Find the symmetries of an environment from interaction alone."""

from __future__ import annotations

import time

from equicore.lab.store import check_writable, write_text
from equirl.agents.arguments import Discover
from equirl.agents.check import maker
from equirl.agents.cli import run
from equirl.discover import search
from equirl.registry import imported
from equirl.symmetry import Names

HEADER = '''"""The symmetry of {env}, as `equirl discover` found it."""

from equirl.named import choices, move, negate, power, swap, symmetry  # noqa: F401


def found(spec):
    return {code}
'''


def main(arguments: Discover) -> None:
    """Search, print what was found and Python code of it."""
    if arguments.output is not None:
        check_writable(arguments.output)
    names = None if arguments.names is None else imported(arguments.names)
    if not isinstance(names, Names | None):
        raise ValueError(f"{arguments.names} is {names!r}, not equirl.Names(observation, action)")
    start = time.monotonic()
    found = search(maker(arguments.env, arguments.env_kwargs), names=names, seed=arguments.seed)
    seconds = time.monotonic() - start
    print(f"{found.transitions:,} transitions, {found.refuted} candidates refuted, {seconds:.0f} s")
    if not found.code:
        print(f"{arguments.env}: no symmetry found among signed permutations of entries")
        return
    print(found.symmetry.describe())
    for check in found.checks:
        print(f"\n{check}")
    code = HEADER.format(env=arguments.env, code=found.code.replace("\n", "\n    "))
    print(f"\n{code}")
    if arguments.output is None:
        return
    write_text(arguments.output, code)
    print(
        f"written to {arguments.output}; register it: "
        f'equirl.register_symmetry("{arguments.env}", "{arguments.output.stem}:found")'
    )


if __name__ == "__main__":
    run(main, Discover)
