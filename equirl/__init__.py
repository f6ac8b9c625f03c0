"""Make pretrained Stable-Baselines3 agents equivariant under the symmetry of their environment.

Importing this package registers the environments and symmetries of `equirl.envs` by name.

>>> import equirl
>>> equirl.registered_symmetries()
['Acrobot-v1', 'CartPole-v1', 'LunarLander-v3', 'LunarLanderContinuous-v3', 'equirl/Gridworld-v0']
"""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

__version__ = "0.2.0"

if TYPE_CHECKING:
    from equirl._face import *  # noqa: F403
    from equirl._face import __all__ as __all__


def __getattr__(name: str) -> Any:
    """What `_face` exports, imported when first used: torch alone takes seconds."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    face = importlib.import_module(f"{__name__}._face")
    if name not in globals():  # where a submodule is by now
        globals()[name] = getattr(face, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})


gymnasium.register(
    id="equirl/Gridworld-v0",
    entry_point="equirl.envs.gridworld:Gridworld",
    max_episode_steps=50,
)
