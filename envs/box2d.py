"""Symmetries of Gymnasium's Box2D environments; they need the extra `box2d`."""

from __future__ import annotations

from gymnasium.envs.registration import EnvSpec

from equirl.named import choices, mirror, negate, swap, symmetry
from equirl.symmetry import Symmetry

LANDER = ("x", "y", "x velocity", "y velocity", "angle", "angular velocity", "left leg contact",
          "right leg contact")  # fmt: skip
ENGINES = choices("nothing", "left engine", "main engine", "right engine")
LEG = ("hip angle", "hip speed", "knee angle", "knee speed", "contact")
WALKER = ("hull angle", "hull angular velocity", "x velocity", "y velocity",
          *(f"{leg} leg {entry}" for leg in ("first", "second") for entry in LEG),
          *(f"lidar {ray}" for ray in range(10)))  # fmt: skip
MOTORS = tuple(f"{leg} leg {joint}" for leg in ("first", "second") for joint in ("hip", "knee"))


def lunarlander_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of LunarLander: the mirror image.

    What points sideways changes sign, the legs change places, and so do the engines at the sides.
    The ground, the first push, the wind and the scatter of the engines are drawn from distributions
    that the mirror leaves alone: single episodes have no mirror image, but all of them together.
    """
    seen = [negate("x", "x velocity", "angle", "angular velocity"), swap("left leg", "right leg")]
    if spec.kwargs.get("continuous"):
        return symmetry(LANDER, ("main engine", "side engine"),
                        mirror(seen, [negate("side engine")]))  # fmt: skip
    return symmetry(LANDER, ENGINES, mirror(seen, [swap("left", "right")]))


def bipedalwalker_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of BipedalWalker: its two legs, which are alike, change places.

    An episode starts with one leg in front, always the same: an agent that has learned to walk
    need never have seen the other one there.
    """
    return symmetry(
        WALKER,
        MOTORS,
        mirror([swap("first leg", "second leg")], [swap("first leg", "second leg")]),
    )
