"""Which symmetry an environment has, by its id."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from equirl.composed import FOLLOWED, seen_through
from equirl.preprocessing import changes, changing, elsewhere
from equirl.symmetry import Symmetry

Factory = Callable[[EnvSpec], Symmetry]
Env = str | gym.Env | VectorEnv | VecEnv
"""An environment's id, or an environment that was made from one."""

_registry: dict[str, Factory | str] = {
    "equirl/Gridworld-v0": "equirl.envs.gridworld:gridworld_symmetry",
    "CartPole-v1": "equirl.envs.classic_control:cartpole_symmetry",
    "Acrobot-v1": "equirl.envs.classic_control:acrobot_symmetry",
    "LunarLander-v3": "equirl.envs.box2d:lunarlander_symmetry",
    "LunarLanderContinuous-v3": "equirl.envs.box2d:lunarlander_symmetry",
    "Pendulum-v1": "equirl.envs.classic_control:pendulum_symmetry",
    "BipedalWalker-v3": "equirl.envs.box2d:bipedalwalker_symmetry",
    "BipedalWalkerHardcore-v3": "equirl.envs.box2d:bipedalwalker_symmetry",
    "Ant-v5": "equirl.envs.mujoco:ant_symmetry",
    "Humanoid-v5": "equirl.envs.mujoco:humanoid_symmetry",
    "InvertedDoublePendulum-v5": "equirl.envs.mujoco:inverted_double_pendulum_symmetry",
    "InvertedPendulum-v5": "equirl.envs.mujoco:inverted_pendulum_symmetry",
    "Reacher-v5": "equirl.envs.mujoco:reacher_symmetry",
    "Swimmer-v5": "equirl.envs.mujoco:swimmer_symmetry",
    "Walker2d-v5": "equirl.envs.mujoco:walker_symmetry",
    "PointMaze_Open-v3": "equirl.envs.robotics:open_maze_symmetry",
    "PointMaze_UMaze-v3": "equirl.envs.robotics:point_maze_symmetry",
}


def register_symmetry(env_id: str, factory: Factory | str) -> None:
    """Declare the symmetry of an environment id.

    Args:
        env_id: A Gymnasium id, as in ``gymnasium.make``.
        factory: Called with the environment's ``EnvSpec`` (its ``kwargs`` tell how it was
            configured), returns its `Symmetry`; or a string ``"module:function"`` naming such a
            function, imported at first use.

    >>> from equicore import Image, Matrix, Permutation, cyclic
    >>> def pong_symmetry(spec):
    ...     flip = cyclic(2)
    ...     up_down = Image(flip, turns=[0, 2], mirrors=[False, True], axes=(-3, -2))
    ...     return Symmetry(up_down, Permutation.from_generators(flip, [[0, 1, 3, 2, 5, 4]]))
    >>> register_symmetry("my/Pong-v0", pong_symmetry)
    """
    _registry[env_id] = factory


def registered_symmetries() -> list[str]:
    """The environment ids whose symmetry is known, sorted."""
    return sorted(_registry)


def symmetry_of(env: Env) -> Symmetry:
    """Look up the symmetry of an environment.

    Args:
        env: An environment id (``module:id``, as in ``gymnasium.make``, imports the module first,
            which may register it), or an environment that was made from one: of Gymnasium, single
            or vectorised, or a ``VecEnv`` of Stable-Baselines3. Wrappers that compose
            observations are followed, see `equirl.composed.seen_through`.

    Raises:
        ValueError: If no symmetry is registered for it (the message lists the known ids), or a
            wrapper around the environment changes what it emits or is told in a way that is not
            known.
        TypeError: If what was registered makes no `Symmetry`.

    >>> import equirl
    >>> equirl.symmetry_of("CartPole-v1").group
    Group('cyclic(2)', order 2)
    """
    spec = _spec_of(env)
    around = changes(spec if isinstance(env, str) else env)
    unseen = [] if isinstance(env, str) else elsewhere(env)  # of which only the names are known
    if unknown := [name for name in around if name not in FOLLOWED or name in unseen]:
        raise ValueError(
            f"{spec.id} is seen through {', '.join(unknown)} here, and its registered symmetry is "
            "that of what the environment itself emits and is told; pass the Symmetry of what "
            "comes out of the wrappers, or put them outside"
        )
    if spec.id not in _registry:
        near = difflib.get_close_matches(spec.id, _registry, n=1)
        raise ValueError(
            f"no symmetry is registered for {spec.id!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" Known: {', '.join(registered_symmetries())}. Declare one with "
            f"equirl.register_symmetry({spec.id!r}, lambda spec: Symmetry(observation, action)), "
            "or pass a Symmetry where one is asked for"
        )
    factory = _registry[spec.id]
    if isinstance(factory, str):
        factory = imported(factory)
        _registry[spec.id] = factory
    symmetry = factory(spec)
    if not isinstance(symmetry, Symmetry):
        raise TypeError(
            f"what is registered for {spec.id} returned {symmetry!r}, not a Symmetry; does the "
            "function lack a return?"
        )
    for layer in [] if isinstance(env, str) else reversed(changing(env)):
        symmetry = seen_through(layer, symmetry)
    return symmetry


def imported(what: str) -> Any:
    """What ``module:name`` stands for.

    Raises:
        ValueError: If there is no such module, or no such name in it.
    """
    module, colon, name = what.partition(":")
    found = _import(module, what)
    if not colon or not hasattr(found, name):
        near = difflib.get_close_matches(name, dir(found), n=1)
        raise ValueError(
            f"{what}: write module:name, of something that the module {module} has"
            + (f"; did you mean {module}:{near[0]}?" if near else "")
        )
    return getattr(found, name)


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what}: cannot import {module}: {error}") from error


def _spec_of(env: Env) -> EnvSpec:
    if isinstance(env, str):
        module, _, env = env.rpartition(":")
        if module:
            _import(module, f"{module}:{env}")
        if env in gym.registry:
            return gym.spec(env)
        return EnvSpec(id=env)  # a symmetry may be registered before its environment is
    spec = env.get_attr("spec")[0] if hasattr(env, "get_attr") else env.spec
    if spec is None:
        raise ValueError(
            f"{env} was not made from an environment id, so its symmetry cannot be looked up; "
            "pass a Symmetry"
        )
    return spec
