"""Make pretrained Stable-Baselines3 agents equivariant under the symmetry of their environment.

Importing this package registers the environments and symmetries of `equirl.envs` by name.

>>> import equirl
>>> equirl.registered_symmetries()
['Acrobot-v1', 'CartPole-v1', 'equirl/Gridworld-v0']
"""

import gymnasium

from equirl.experience import Experience, replay_experience, rollout_experience
from equirl.loading import load_agent
from equirl.policies import (
    EquitunePolicy,
    EquizeroPolicy,
    LambdaEquitunePolicy,
    SymmetrizedPolicy,
)
from equirl.symmetry import Symmetry, register_symmetry, registered_symmetries, symmetry_of
from equirl.weights import fit_familiarity, fit_temporal_difference
from equirl.wrappers import (
    RandomSymmetry,
    SymmetryWrapper,
    VectorRandomSymmetry,
    VectorSymmetryWrapper,
)

__version__ = "0.1.0"

__all__ = [
    "EquitunePolicy", "EquizeroPolicy", "Experience", "LambdaEquitunePolicy", "RandomSymmetry",
    "SymmetrizedPolicy", "Symmetry", "SymmetryWrapper", "VectorRandomSymmetry",
    "VectorSymmetryWrapper", "fit_familiarity", "fit_temporal_difference", "load_agent",
    "register_symmetry", "registered_symmetries", "replay_experience", "rollout_experience",
    "symmetry_of",
]  # fmt: skip

gymnasium.register(
    id="equirl/Gridworld-v0",
    entry_point="equirl.envs.gridworld:Gridworld",
    max_episode_steps=50,
)
register_symmetry("equirl/Gridworld-v0", "equirl.envs.gridworld:gridworld_symmetry")
register_symmetry("CartPole-v1", "equirl.envs.classic_control:cartpole_symmetry")
register_symmetry("Acrobot-v1", "equirl.envs.classic_control:acrobot_symmetry")
