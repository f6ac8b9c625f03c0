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
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from equicore.lab.store import part_of, read_tensors, write_tensors
from equirl.arrays import arrays_of, each, shape_of
from equirl.preprocessing import layers_of


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and variance of observations, and where normalised ones are cut off.

    Attributes:
        mean: Of the shape of an observation; of dicts for each entry that is normalised, by name.
        variance: The same.
        clip: Largest size of what is normalised.
        epsilon: Added to the variance.
    """

    mean: Any
    variance: Any
    clip: float = 10.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Check that they are numbers, of one shape."""
        shapes = [each(np.shape, part) for part in (self.mean, self.variance)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"mean and variance have one shape; got {shapes[0]} and {shapes[1]}")
        variances = arrays_of(self.variance)
        finite = all(np.isfinite(array).all() for array in [*arrays_of(self.mean), *variances])
        if not finite or any((part < 0).any() for part in variances) or not self.clip > 0:
            raise ValueError("means and variances are finite, variances and clip not negative")

    @classmethod
    def of(cls, env: VecNormalize) -> Statistics:
        """Those of a ``VecNormalize`` as they are now."""
        return cls._read(vars(env), type(env).__name__)

    @classmethod
    def load(cls, path: str | Path) -> Statistics | None:
        """Read what ``VecNormalize.save`` or `save` wrote; nothing in the file is executed.

        Returns:
            The statistics; None if the file says that only rewards were normalised.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        path = Path(path)
        if path.suffix != ".pkl":
            tensors, header = read_tensors(path)
            try:
                return cls.from_tensors(tensors, header)
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
        try:
            known = each(lambda m: getattr(m, "state", None) or vars(m), fields["obs_rms"])
            of_dicts = isinstance(fields["obs_rms"], dict)
            mean, variance = (
                {key: np.array(own[name], float) for key, own in known.items()}
                if of_dicts
                else np.array(known[name], float)
                for name in ("mean", "var")
            )
            return cls(mean, variance, float(fields["clip_obs"]), float(fields["epsilon"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where} holds no statistics of observations: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write them as a safetensors file, which holds no code."""
        write_tensors(path, *self.as_tensors())

    def as_tensors(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors by name, and the plain numbers beside them."""
        tensors = {}
        for name in ("mean", "variance"):
            part = getattr(self, name)
            named = part if isinstance(part, dict) else {"": part}
            for entry, array in named.items():
                tensors[f"{name}.{entry}" if entry else name] = torch.from_numpy(np.array(array))
        return tensors, {"clip": self.clip, "epsilon": self.epsilon}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Statistics:
        """What `as_tensors` gave.

        Raises:
            KeyError: If something is missing.
            ValueError: If they do not belong together.
        """
        parts: list[Any] = []
        for name in ("mean", "variance"):
            entries = part_of(tensors, name)
            own: Any = {entry: tensor.double().numpy() for entry, tensor in entries.items()}
            parts.append(own or tensors[name].double().numpy())
        mean, variance = parts
        return cls(mean, variance, float(header["clip"]), float(header["epsilon"]))

    @property
    def shape(self) -> Any:
        """Of observations; of dicts for each entry that is normalised."""
        return each(np.shape, self.mean)

    @property
    def deviation(self) -> Any:
        """The divisor."""
        return each(lambda variance: np.sqrt(variance + self.epsilon), self.variance)

    def normalize(self, observations: Any) -> Any:
        """Observations (..., shape), or a dict of them, as the agent sees them."""

        def one(seen: NDArray[Any], mean: NDArray[Any], deviation: NDArray[Any]) -> NDArray[Any]:
            shifted = (seen - mean) / deviation
            return np.clip(shifted, -self.clip, self.clip).astype(np.float32)

        if not isinstance(observations, dict):
            return one(observations, self.mean, self.deviation)
        known = {name: observations[name] for name in self.mean}
        return {**observations, **each(one, known, self.mean, self.deviation)}

    def are_of(self, observations: Any) -> bool:
        """Whether these are arrays, or dicts of arrays, that end with the shapes of statistics."""

        def one(mean: NDArray[Any], seen: Any) -> bool:
            return (
                isinstance(seen, np.ndarray) and seen.shape[seen.ndim - mean.ndim :] == mean.shape
            )

        if not isinstance(self.mean, dict):
            return one(self.mean, observations)
        known = isinstance(observations, dict) and self.mean.keys() <= observations.keys()
        return known and all(one(mean, observations[name]) for name, mean in self.mean.items())

    def fits(self, space: spaces.Space) -> bool:
        """Whether observations of a space have the shapes of these statistics."""
        wanted = shape_of(space)
        if isinstance(wanted, dict):
            return isinstance(self.mean, dict) and self.shape.items() <= wanted.items()
        return self.shape == wanted


SHOWN = 2 * torch.finfo(torch.float32).eps
"""Relative rounding of normalised observations, which Stable-Baselines3 shows in this type."""


class Moments(nn.Module):
    """Mean and deviation as tensors that follow a model to its device, but keep their type."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: NDArray[Any], deviation: NDArray[Any]) -> None:
        super().__init__()
        for name, array in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.from_numpy(np.array(array)), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Moments:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # .float() would round the statistics, which may be large
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(getattr(self, name).device)
        return self


class Normalized(nn.Module):
    """A model of normalised observations as one of those that the environment emits.

    Args:
        model: What sees them; if it is ``masked``, in dicts of ``observation`` and ``mask``.
        source: Statistics, or the ``VecNormalize`` that has them, which may still learn.
    """

    def __init__(self, model: nn.Module, source: Statistics | VecNormalize) -> None:
        super().__init__()
        self.model = model
        self.masked = bool(getattr(model, "masked", False))
        self.sources = [source]  # not copied with the module's state
        now = self.statistics
        self.of_dicts = isinstance(now.mean, dict)
        mean, deviation = ({"": m} if not self.of_dicts else m for m in (now.mean, now.deviation))
        self.names = list(mean)
        self.moments = nn.ModuleList([Moments(mean[n], deviation[n]) for n in self.names])
        self.clip = now.clip

    @property
    def statistics(self) -> Statistics:
        """As they are now."""
        (source,) = self.sources
        return source if isinstance(source, Statistics) else Statistics.of(source)

    def refresh(self) -> None:
        """Take over what a ``VecNormalize`` has learned since."""
        if isinstance(self.sources[0], Statistics):
            return
        now = self.statistics
        parts = zip(arrays_of(now.mean), arrays_of(now.deviation), self.moments, strict=True)
        for mean, deviation, moments in parts:
            own: Any = moments
            own.mean.copy_(torch.from_numpy(np.array(mean)))
            own.deviation.copy_(torch.from_numpy(np.array(deviation)))

    def forward(self, inputs: Any) -> Any:
        """What the model makes of normalised observations."""
        if self.masked:
            return self.model({**inputs, "observation": self.normalized(inputs["observation"])})
        return self.model(self.normalized(inputs))

    def normalized(self, observations: Any) -> Any:
        """As the agent sees them."""

        def one(seen: Tensor, moments: Any) -> Tensor:
            shifted = (seen.double() - moments.mean) / moments.deviation
            return shifted.clamp(-self.clip, self.clip).float()

        return self._each(one, observations)

    def emitted(self, seen: Any) -> Any:
        """What the environment emitted, of normalised observations that were not cut off.

        Numbers that are no larger than the rounding of what was shown are 0: their signs would tell
        one view from another.
        """

        def one(shown: Tensor, moments: Any) -> Tensor:
            emitted = shown.double() * moments.deviation + moments.mean
            return emitted.where(emitted.abs() > SHOWN * moments.mean.abs(), 0.0)

        return self._each(one, seen)

    def _each(self, function: Callable[[Tensor, Any], Tensor], observations: Any) -> Any:
        if not self.of_dicts:
            return function(observations, self.moments[0])
        pairs = zip(self.names, self.moments, strict=True)
        return {**observations, **{n: function(observations[n], m) for n, m in pairs}}


def seen_by(model: Any) -> Callable[[Any], Any]:
    """What an agent that has a ``VecNormalize`` is shown of what its environment emits; a copy."""
    source = statistics_of(model)
    if isinstance(source, VecNormalize):
        return source.normalize_obs
    return lambda observations: each(np.copy, observations)


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
