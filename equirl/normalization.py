"""Statistics that an agent's observations were normalised by, as Stable-Baselines3 does.

A symmetry is one of what an environment emits. Where an agent sees ``(x - mean) / deviation``, cut
off at some size, the group acts on x: each view is normalised by itself, as if the environment had
shown it.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from equicore.lab.store import read_tensors, write_tensors
from equirl.preprocessing import layers_of


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and variance of observations, and where normalised ones are cut off.

    Attributes:
        mean: Of the shape of an observation.
        variance: The same.
        clip: Largest size of what is normalised.
        epsilon: Added to the variance.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    clip: float = 10.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Check that they are numbers, of one shape."""
        if self.mean.shape != self.variance.shape:
            raise ValueError(
                f"mean and variance have one shape; got {self.mean.shape} and {self.variance.shape}"
            )
        finite = np.isfinite(self.mean).all() and np.isfinite(self.variance).all()
        if not finite or (self.variance < 0).any() or not self.clip > 0:
            raise ValueError("means and variances are finite, variances and clip not negative")

    @classmethod
    def of(cls, env: VecNormalize) -> Statistics:
        """Those of a ``VecNormalize`` as they are now.

        Raises:
            ValueError: If its observations are dicts.
        """
        return cls._read(vars(env), type(env).__name__)

    @classmethod
    def load(cls, path: str | Path) -> Statistics | None:
        """Read what ``VecNormalize.save`` or `save` wrote; nothing in the file is executed.

        Returns:
            The statistics; None if the file says that only rewards were normalised.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else, or statistics of dicts.
        """
        path = Path(path)
        if path.suffix != ".pkl":
            tensors, header = read_tensors(path)
            try:
                mean, variance = (tensors[n].double().numpy() for n in ("mean", "variance"))
                return cls(mean, variance, float(header["clip"]), float(header["epsilon"]))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path} holds no statistics: {error}") from error
        if not path.is_file():
            raise FileNotFoundError(f"no statistics at {path}")
        found = _Reader(io.BytesIO(path.read_bytes()), path).whole()
        if not isinstance(found, _Inert) or found.kind.rpartition(".")[2] != "VecNormalize":
            raise ValueError(f"{path} holds no VecNormalize of Stable-Baselines3")
        if not found.state.get("norm_obs", True):
            return None
        return cls._read(found.state, str(path))

    @classmethod
    def _read(cls, fields: dict[str, Any], where: str) -> Statistics:
        moments: Any = fields.get("obs_rms")
        if isinstance(moments, dict):
            raise ValueError(
                f"{where} normalises dicts {sorted(moments)}; statistics of arrays are supported"
            )
        moments = getattr(moments, "state", None) or vars(moments)
        try:
            mean, variance = (np.array(moments[name], float) for name in ("mean", "var"))
            return cls(mean, variance, float(fields["clip_obs"]), float(fields["epsilon"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} holds no statistics of observations: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write them as a safetensors file, which holds no code."""
        tensors = {"mean": self.mean, "variance": self.variance}
        write_tensors(
            path,
            {name: torch.from_numpy(array) for name, array in tensors.items()},
            {"clip": self.clip, "epsilon": self.epsilon},
        )

    @property
    def deviation(self) -> NDArray[np.float64]:
        """The divisor."""
        return np.sqrt(self.variance + self.epsilon)

    def normalize(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Observations (..., shape) as the agent sees them."""
        seen = (observations - self.mean) / self.deviation
        return np.clip(seen, -self.clip, self.clip).astype(np.float32)


class Normalized(nn.Module):
    """A model of normalised observations as one of those that the environment emits.

    Args:
        model: What sees them; also dicts of ``observation`` and something else.
        source: Statistics, or the ``VecNormalize`` that has them, which may still learn.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, source: Statistics | VecNormalize) -> None:
        super().__init__()
        self.model = model
        self.sources = [source]  # not copied with the module's state
        statistics = self.statistics
        for name in ("mean", "deviation"):
            array = torch.from_numpy(np.array(getattr(statistics, name)))
            self.register_buffer(name, array, persistent=False)
        self.clip = statistics.clip

    @property
    def statistics(self) -> Statistics:
        """As they are now."""
        (source,) = self.sources
        return source if isinstance(source, Statistics) else Statistics.of(source)

    def refresh(self) -> None:
        """Take over what a ``VecNormalize`` has learned since."""
        if not isinstance(self.sources[0], Statistics):
            statistics = self.statistics
            self.mean.copy_(torch.from_numpy(np.array(statistics.mean)))
            self.deviation.copy_(torch.from_numpy(statistics.deviation))

    def _apply(self, fn: Any, recurse: bool = True) -> Normalized:
        super()._apply(fn, recurse)  # .float() would round the statistics, which may be large
        statistics = self.statistics
        for name in ("mean", "deviation"):
            array = torch.from_numpy(np.array(getattr(statistics, name)))
            self._buffers[name] = array.to(getattr(self, name).device)
        return self

    def forward(self, inputs: Any) -> Any:
        """What the model makes of normalised observations."""
        if isinstance(inputs, dict):
            seen = {**inputs, "observation": self.normalized(inputs["observation"])}
            return self.model(seen)
        return self.model(self.normalized(inputs))

    def normalized(self, observations: Tensor) -> Tensor:
        """As the agent sees them."""
        seen = (observations.double() - self.mean) / self.deviation
        return seen.clamp(-self.clip, self.clip).float()

    def emitted(self, seen: Tensor) -> Tensor:
        """What the environment emitted, of normalised observations that were not cut off."""
        return seen.double() * self.deviation + self.mean


def seen_by(model: Any) -> Callable[[Any], NDArray[Any]]:
    """What an agent that has a ``VecNormalize`` is shown of what its environment emits; a copy."""
    source = statistics_of(model)
    return source.normalize_obs if isinstance(source, VecNormalize) else np.copy  # type: ignore[return-value]


def statistics_of(model: Any) -> VecNormalize | Statistics | None:
    """What normalises an agent's observations: its environment, or what was beside its file."""
    for layer in layers_of(getattr(model, "env", None)):
        if isinstance(layer, VecNormalize) and layer.norm_obs:
            return layer
    return getattr(model, "statistics", None)


def normalizing(model: Any, head: nn.Module) -> nn.Module:
    """A head of an agent as a model of what its environment emits."""
    source = statistics_of(model)
    return head if source is None else Normalized(head, source)


NUMPY = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"),
}  # fmt: skip
"""What a file may name that is made: arrays of numbers, and dicts."""
INERT = (
    "stable_baselines3.common.vec_env.vec_normalize", "stable_baselines3.common.running_mean_std",
    "gym.spaces.", "gymnasium.spaces.", "numpy.random.",
)  # fmt: skip
"""Modules in whose place inert stand-ins are put."""


class _Inert:
    """Stands for an object of a file: keeps what it was made of, and does nothing."""

    kind = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Reads arrays of numbers and inert stand-ins, and refuses everything else."""

    def __init__(self, content: io.BytesIO, path: Path) -> None:
        super().__init__(content)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the file stands for."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in NUMPY:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if module.startswith(INERT):
            return type(name, (_Inert,), {"kind": f"{module}.{name}"})
        raise ValueError(f"{self.path} names {module}.{name}, which no statistics need: refused")

    def whole(self) -> Any:
        """What the file holds."""
        try:
            return self.load()
        except Exception as error:  # whatever a file that is no pickle leads to
            raise ValueError(f"{self.path} cannot be read as statistics: {error}") from error
