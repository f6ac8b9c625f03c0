"""Symmetries of Gymnasium's Box2D environments; they need the extra `box2d`."""

from __future__ import annotations

import numpy as np
from gymnasium.envs.registration import EnvSpec

from equicore import Matrix, Permutation, cyclic
from equirl.symmetry import Symmetry


def lunarlander_symmetry(spec: EnvSpec) -> Symmetry:
    """C2 of LunarLander: the mirror image.

    The observation is (x, y, velocity of x, of y, angle, angular velocity, left leg on the ground,
    right leg): what points sideways changes sign, the legs change places. So do the left and the
    right engine, actions 1 and 3, or the second entry of continuous actions changes its sign. The
    ground, the first push, the wind and the scatter of the engines are drawn from distributions
    that the mirror leaves alone: single episodes have no mirror image, but all of them together.
    """
    mirror = cyclic(2)
    observation = np.diag([-1, 1, -1, 1, -1, -1, 0, 0])
    observation[6, 7] = observation[7, 6] = 1
    return Symmetry(
        observation=Matrix.from_generators(mirror, [observation]),
        action=(
            Matrix.from_generators(mirror, [np.diag([1, -1])])
            if spec.kwargs.get("continuous")
            else Permutation.from_generators(mirror, [[0, 3, 2, 1]])
        ),
    )
