"""Symmetry in the training of robots: data augmentation in the contract of rsl_rl."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from equicore import Permutation, Representation, Tree


def augment(
    observation: Representation, action: Representation, obs: Any, actions: Any
) -> tuple[Any, Any]:
    """See `equirl.Symmetry.augment`."""
    if isinstance(obs, Tensor | None):
        groups = {} if obs is None else {"obs": obs}
        parts = {"obs": observation}
    else:
        groups = _groups(obs)
        parts = _parts(observation, groups)
    given = groups if actions is None else {**groups, "actions": actions}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"tensors are augmented, as rsl_rl passes them; {name} is a {type(tensor).__name__}"
            )
        if tensor.ndim == 0:
            raise ValueError(f"{name} must be a batch (B, ...); got a single number")
    if len({len(tensor) for tensor in given.values()}) > 1:
        sizes = ", ".join(f"{len(tensor)} of {name}" for name, tensor in given.items())
        raise ValueError(f"observations and actions are of the same samples; got {sizes}")
    moved = {name: _images(parts[name], tensor) for name, tensor in groups.items()}
    images = None if actions is None else _images_of_actions(action, actions)
    if isinstance(obs, Tensor | None):
        return moved.get("obs"), images
    if isinstance(obs, dict):
        return moved, images
    size = [len(observation.group) * len(actions if not groups else next(iter(groups.values())))]
    return type(obs)(moved, batch_size=size, device=obs.device), images


def _groups(obs: Any) -> dict[str, Any]:
    """Groups of observations by name, of a dict or a ``TensorDict``."""
    if not hasattr(obs, "keys"):
        raise TypeError(
            "observations are a tensor, or a dict or TensorDict of tensors, as rsl_rl passes them; "
            f"got a {type(obs).__name__}"
        )
    return {name: obs[name] for name in obs.keys()}  # noqa: SIM118


def _parts(observation: Any, groups: dict[str, Any]) -> dict[str, Representation]:
    parts = observation.by_name() if isinstance(observation, Tree) else {}
    if unknown := [name for name in groups if name not in parts]:
        raise ValueError(
            f"the symmetry has no representation for the observations {', '.join(unknown)}; it has "
            "observation=equicore.Tree({name: representation, ...}) with one for each, and "
            "equicore.Trivial(group) for what no element changes"
        )
    return parts


def _images_of_actions(action: Representation, actions: Tensor) -> Tensor:
    """Vectors (B, d), or ids of discrete actions, under all elements, one after the other."""
    ids = actions.ndim == 1 or actions.shape[1:] == (1,)
    if isinstance(action, Permutation) and ids and not actions.is_floating_point():
        own: Any = _placed(action, actions.device)
        return torch.cat([own.act_on_labels(g, actions.long()) for g in range(len(own.group))]).to(
            actions.dtype
        )
    return _images(action, actions)


def _images(representation: Representation, x: Tensor) -> Tensor:
    """A batch (B, ...) under all elements, one after the other, on its own device."""
    return _placed(representation, x.device).orbit(x).flatten(0, 1)


@functools.lru_cache(maxsize=32)
def _placed(representation: Representation, device: torch.device) -> Representation:
    """A copy on a device: simulators may be on a GPU, and symmetries are made on the CPU."""
    with torch.inference_mode(False):  # else it could not be used where gradients are needed
        return copy.deepcopy(representation).to(device)
