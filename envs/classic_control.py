"""Symmetries of Gymnasium's classic control environments."""

from __future__ import annotations

import numpy as np
from gymnasium.envs.registration import EnvSpec

from equicore import Matrix, Permutation, cyclic
from equirl.symmetry import Symmetry


def cartpole_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of CartPole: the mirror image; every entry changes sign, left and right swap."""
    mirror = cyclic(2)
    return Symmetry(
        observation=Matrix.from_generators(mirror, [-np.eye(4)]),
        action=Permutation.from_generators(mirror, [[1, 0]]),
    )


def acrobot_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of Acrobot: the mirror image; sines and velocities change sign, torques -1 and +1 swap.

    The observation is (cos a, sin a, cos b, sin b, velocity of a, velocity of b) of the two
    joint angles.
    """
    mirror = cyclic(2)
    return Symmetry(
        observation=Matrix.from_generators(mirror, [np.diag([1, -1, 1, -1, -1, -1])]),
        action=Permutation.from_generators(mirror, [[2, 1, 0]]),
    )
