"""Observations on their way to an agent: as tensors on its device, checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from equirl.arrays import Observations


class Observed:
    """Makes tensors of observations, as Stable-Baselines3 does, in less time, and finds NaN.

    Args:
        policy: The agent's.
    """

    def __init__(self, policy: BasePolicy) -> None:
        self.policy = policy
        self.parameter = next(policy.parameters())
        space = self.space = policy.observation_space
        self.shape, self.dtype = space.shape, space.dtype  # None of dicts
        self.real = self.dtype is not None and np.issubdtype(self.dtype, np.floating)

    def tensors(self, observation: Observations) -> tuple[Any, bool]:
        """The observations as a tensor (B, ...), or a dict, and whether they came as a batch.

        Raises:
            ValueError: If they do not fit the observation space, or are not all finite.
        """
        shape = self.shape
        if shape is None or isinstance(observation, dict):
            return self._entries(observation)
        if (  # the usual case, by fewer steps
            type(observation) is np.ndarray
            and observation.dtype == self.dtype
            and observation.shape[-len(shape) :] == shape
            and observation.ndim <= len(shape) + 1
        ):
            vectorized = observation.ndim > len(shape)
            batch = np.array(observation if vectorized else observation[None])
            tensor = torch.from_numpy(batch)
            if self.real and not math.isfinite(np.vdot(batch, batch)):  # which may overflow
                _check_finite(tensor)
            parameter = self.parameter
            return (tensor if parameter.is_cpu else tensor.to(parameter.device)), vectorized
        inputs, vectorized = self.policy.obs_to_tensor(observation)
        assert isinstance(inputs, Tensor)  # a Symmetry acts on Box observations only
        return (_checked(inputs) if self.real else inputs), vectorized

    def _entries(self, observation: Any) -> tuple[dict[str, Tensor], bool]:
        """The entries of a dict as tensors (B, ...)."""
        space = self.space
        if not (isinstance(observation, dict) and isinstance(space, spaces.Dict)):
            raise ValueError(f"observations are in {space}; got a {type(observation).__name__}")
        if observation.keys() != set(space.spaces):
            raise ValueError(
                f"observations have the entries {', '.join(space)}; got {', '.join(observation)}"
            )
        found, vectorized = self.policy.obs_to_tensor(observation)
        assert isinstance(found, dict)
        real = {name: x for name, x in found.items() if x.is_floating_point()}
        return found | {name: _checked(x) for name, x in real.items()}, vectorized


def _checked(observations: Tensor) -> Tensor:
    """Finite, and of a type that networks have."""
    observations = observations.to(torch.promote_types(observations.dtype, torch.float32))
    _check_finite(observations)
    return observations


def _check_finite(observations: Tensor) -> None:
    for what, places in (("NaN", observations.isnan()), ("infinity", observations.isinf())):
        if found := places.nonzero().tolist():
            index = found[0] if len(observations) > 1 else found[0][1:]
            raise ValueError(f"{what} in the observation, at index {tuple(index)}")
