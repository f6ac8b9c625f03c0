"""Make pretrained Stable-Baselines3 agents equivariant under the symmetry of their environment.

Importing this package registers the environments and symmetries of `equirl.envs` by name.

>>> import equirl
>>> equirl.registered_symmetries()[:4]
['Acrobot-v1', 'Ant-v5', 'BipedalWalker-v3', 'BipedalWalkerHardcore-v3']
"""

from typing import TYPE_CHECKING

import gymnasium

from equicore import __version__ as __version__
from equicore.lazy import face_of

if TYPE_CHECKING:
    from equirl._face import *  # noqa: F403
    from equirl._face import __all__ as __all__

__getattr__, __dir__ = face_of(__name__)


gymnasium.register(
    id="equirl/Gridworld-v0",
    entry_point="equirl.envs.gridworld:Gridworld",
    max_episode_steps=50,
)
