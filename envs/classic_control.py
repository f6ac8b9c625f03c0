"""Symmetries of Gymnasium's classic control environments: the mirror image of each.

MountainCar has none: its slopes are mirrored about x = -pi / 6, where its wall, its goal and its
first positions are not.
"""

from __future__ import annotations

from gymnasium.envs.registration import EnvSpec

from equirl.named import choices, mirror, negate, swap, symmetry
from equirl.symmetry import Symmetry

CARTPOLE = ("position", "velocity", "angle", "angular velocity")
ACROBOT = ("cos first", "sin first", "cos second", "sin second", "velocity first",
           "velocity second")  # fmt: skip
PENDULUM = ("cos", "sin", "angular velocity")


def cartpole_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of CartPole: every entry changes sign, left and right change places."""
    return symmetry(
        CARTPOLE, choices("left", "right"), mirror([negate(*CARTPOLE)], [swap("left", "right")])
    )


def acrobot_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Acrobot: sines and velocities of both joints change sign, so does the torque."""
    torques = choices("torque -1", "torque 0", "torque +1")
    turned = negate("sin first", "sin second", "velocity first", "velocity second")
    return symmetry(ACROBOT, torques, mirror([turned], [swap("torque -1", "torque +1")]))


def pendulum_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Pendulum: the sine, the velocity and the torque change sign."""
    return symmetry(
        PENDULUM, ("torque",), mirror([negate("sin", "angular velocity")], [negate("torque")])
    )
