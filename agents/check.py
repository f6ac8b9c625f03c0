"""Check whether the symmetry of an environment is true."""

from __future__ import annotations

import functools
import sys
from typing import Any

import gymnasium as gym
from gymnasium import spaces

import equirl
from equicore.lab.store import check_writable
from equirl.agents.arguments import Check
from equirl.agents.cli import run
from equirl.agents.hyperparameters import parse_env_kwargs
from equirl.registry import imported
from equirl.symmetry import Symmetry


def maker(env: str, env_kwargs: tuple[str, ...]) -> functools.partial[gym.Env]:
    """A function that makes an environment, flattened if its observations are no ``Box``."""
    return functools.partial(_made, env, parse_env_kwargs(env_kwargs))


def _made(env: str, arguments: dict[str, Any]) -> gym.Env:
    made = gym.make(env, **arguments)
    if isinstance(made.observation_space, spaces.Box):
        return made
    return gym.wrappers.FlattenObservation(made)


def main(arguments: Check) -> None:
    """Check, print the verdict; exit with 1 unless the symmetry holds."""
    if arguments.output is not None:
        if arguments.output.suffix not in ("", ".png", ".svg"):
            raise ValueError(f"figures are written as PNG and SVG; name {arguments.output} so")
        check_writable(arguments.output.with_suffix(".png"))
    make = maker(arguments.env, arguments.env_kwargs)
    env = make()
    env.close()
    if arguments.symmetry is None:
        symmetry = equirl.symmetry_of(env)
    else:
        found = imported(arguments.symmetry)
        symmetry = found(env.spec) if callable(found) else found
        if not isinstance(symmetry, Symmetry):
            raise ValueError(
                f"{arguments.symmetry} is neither a Symmetry nor a function of the environment's "
                f"EnvSpec that returns one: {symmetry!r}"
            )
    print(symmetry.describe())
    check = equirl.check_symmetry(make, symmetry, seed=arguments.seed)
    print(f"\n{check}")
    if arguments.output is not None:
        print(*check.plot(arguments.output.with_suffix("")), sep="\n")
    if not check.holds:
        sys.exit(1)


if __name__ == "__main__":
    run(main, Check)
