"""Equivariant policies over a Stable-Baselines3 agent, drop-in for it where actions are predicted.

Each is a reduction of the aligned outputs g^-1 f(g s) of the agent's head over the group, see
`equirl.heads`; the action is read off the result. They need no training, `LambdaEquitunePolicy`
apart, whose weights learn from states that the agent has visited (`equirl.weights`).
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from equicore import Best, Mean, MLPWeight, WeightedMean
from equicore.reduce import Reducer
from equirl.algorithms import head_of
from equirl.arrays import rows_of
from equirl.compiled import Compiled
from equirl.export import Exported
from equirl.heads import DiscreteHead, Head, Normalization, Outputs, Scale
from equirl.held import NO_VIEW, held_view
from equirl.registry import Env
from equirl.symmetrized import Agent, Observation, SymmetrizedPolicy
from equirl.symmetry import Symmetry

SHARPNESS = 3.0
"""How much an agent's sureness counts in lambda by default; chosen on a validation panel."""

HOLD = 1000.0
"""How many times as familiar another view must be to be taken; see results/rules."""


class EquitunePolicy(SymmetrizedPolicy):
    """The action of the mean over the group (Basu et al., AAAI 2023, eq. 2).

    For discrete actions, with the softmax: a*(s) = argmax_a mean_g softmax(Q(g s, .))[g a]. The
    mean of continuous actions is rarely one that any view would take, so they are warned of.

    Args:
        model: An agent, or its policy.
        symmetry: Of its environment; or the environment, or its registered id.
        normalize: ``"softmax"`` turns the values of each transformed state's discrete actions into
            probabilities before they are reduced, which makes them comparable between states;
            None leaves them as they are.
    """

    def __init__(
        self, model: Agent, symmetry: Symmetry | Env, normalize: Normalization = "softmax"
    ) -> None:
        super().__init__(model, symmetry, _head(model, normalize), Mean())
        if not self.head.averages:
            warnings.warn(
                "equitune averages actions, and two ways to act, such as two gaits, have no useful "
                "mean; EquizeroPolicy and LambdaEquitunePolicy choose one of them",
                stacklevel=2,
            )

    def _one_view(self) -> Reducer:
        """Any view, each as likely as the others: actions that are drawn have no mean."""
        return Best(_at_random, tolerance=0.0)


class EquizeroPolicy(SymmetrizedPolicy):
    """The action of the view that the agent values most (Basu et al., NeurIPS 2023, eq. 3).

    For discrete actions, with the softmax: a*(s) = argmax_a max_g softmax(Q(g s, .))[g a], computed
    by the log-odds of these probabilities, which do not saturate. For two actions and a group of
    two elements this is the same policy as `EquitunePolicy`. Of continuous
    actions it is the one whose view has the largest value V(g s), or Q(g s, .) of the critics.

    Args:
        model: An agent, or its policy.
        symmetry: Of its environment; or the environment, or its registered id.
        normalize: ``"softmax"`` turns the values of each transformed state's discrete actions into
            probabilities before they are reduced, which makes them comparable between states;
            None leaves them as they are.

    >>> import gymnasium as gym, numpy as np, equirl
    >>> from stable_baselines3 import DQN
    >>> env = gym.make("CartPole-v1")
    >>> policy = equirl.EquizeroPolicy(DQN("MlpPolicy", env, seed=0), "CartPole-v1")
    >>> observation, _ = env.reset(seed=0)
    >>> left_or_right, _ = policy.predict(observation, deterministic=True)
    >>> mirrored, _ = policy.predict(-observation, deterministic=True)
    >>> bool(mirrored == 1 - left_or_right)
    True
    """

    def __init__(
        self, model: Agent, symmetry: Symmetry | Env, normalize: Normalization = "softmax"
    ) -> None:
        head = _head(model, normalize, "log-odds")
        if not head.values_views:
            raise TypeError(
                f"{type(head.policy).__name__} has neither critic nor value, so it does not say "
                "which view it values most; use LambdaEquitunePolicy, which goes by familiarity"
            )
        super().__init__(model, symmetry, head, head.best())

    def _one_view(self) -> Reducer:
        """The view that the agent values most; of several that it values alike any one."""
        return Best(partial(_any_of_the_best, self.head), tolerance=0.0)


class LambdaEquitunePolicy(SymmetrizedPolicy):
    """The action of the learned mean over the group (Basu et al., NeurIPS 2023, eq. 4).

    For discrete actions, with p = softmax(Q(s, .)): a*(s) = argmax_a sum_g lambda(g s) p(g s)[g a],
    where

        lambda(g s) ~ familiarity(g s) * sureness(g s) ** sharpness.

    The familiarity comes from the weight network, which `equirl.fit_familiarity` trains; the
    sureness of the agent is max_a p - mean_a p. With a sharpness of 0 the weights are those of
    the network alone, with a large one they choose as equizero does; docs/study.md tells why both
    count by default. Until the network is fitted every state is equally familiar.

    Of continuous actions it is the one of the most familiar view, as their mean is of no use. That
    view is held: another one is taken in the next step only if it is ``hold`` times as familiar, as
    an agent that changes its gait in mid-step falls (results/rules). The memory is the ``state``
    that `predict` returns and ``evaluate_policy`` gives back to it; without it each step stands
    alone. The policy is equivariant on histories of observations.

    Args:
        model: An agent, or its policy.
        symmetry: Of its environment; or the environment, or its registered id.
        weight: The weight network; a new `equicore.MLPWeight` when omitted.
        normalize: ``"softmax"`` turns the values of each transformed state's discrete actions into
            probabilities before they are reduced, which makes them comparable between states;
            None leaves them as they are.
        sharpness: How much the agent's sureness counts, at least 0; for discrete actions only.
        hold: How many times as familiar another view must be, at least 1; for continuous actions
            only.

    Raises:
        ValueError: If the sharpness is negative, or hold is less than 1.
    """

    def __init__(
        self,
        model: Agent,
        symmetry: Symmetry | Env,
        weight: MLPWeight | None = None,
        normalize: Normalization = "softmax",
        sharpness: float = SHARPNESS,
        hold: float = HOLD,
    ) -> None:
        if not sharpness >= 0:
            raise ValueError(f"sharpness is a number from 0; got {sharpness}")
        if not hold >= 1:
            raise ValueError(f"hold is a number from 1; got {hold}")
        head = _head(model, normalize)
        if weight is None:
            space = head.policy.observation_space
            weight = MLPWeight(_shapes(space))
        score = None
        if sharpness and isinstance(head, DiscreteHead):
            score = partial(_log_sureness, sharpness, head.options)
        seen = OfObservations(weight) if head.masked else weight
        super().__init__(
            model,
            symmetry,
            head,
            WeightedMean(seen, score=score),
            top_k=None if head.averages else 1,
        )
        self.weight = weight
        self.sharpness = sharpness
        self.hold = hold
        self._told = False

    def __repr__(self) -> str:
        """Also tells if its weights are not fitted yet."""
        return super().__repr__() if self.fitted else f"{super().__repr__()[:-1]}, not fitted)"

    @property
    def fitted(self) -> bool:
        """Whether the weight network has learned; True for networks that do not tell."""
        return getattr(self.weight, "fitted", True)

    @property
    def remembers(self) -> bool:
        """True of continuous actions."""
        return not self.head.averages

    def predict(
        self,
        observation: Observation,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """As of `SymmetrizedPolicy`; warns once if the weights are not fitted."""
        if not self._told:
            self._tell()
        return super().predict(observation, state, episode_start, deterministic, action_masks)

    def export(self, path: str | Path) -> Exported:
        """As of `SymmetrizedPolicy`; warns if the weights are not fitted."""
        self._tell()
        return super().export(path)

    def _tell(self) -> None:
        self._told = True
        if not self.fitted:
            warnings.warn(
                "the weights of this policy are not fitted: to it every state is equally "
                "familiar; see equirl.fit_familiarity",
                stacklevel=3,
            )

    def _next(
        self, inputs: Any, compiled: Compiled, state: Any, episode_start: NDArray[Any] | None
    ) -> tuple[Outputs, Any]:
        if not self.remembers:
            return super()._next(inputs, compiled, state, episode_start)
        before = self._before(rows_of(inputs), state, episode_start)
        chosen: list[torch.Tensor] = []

        def compute(inputs: Any) -> Any:
            outputs, views = held_view(
                compiled.symmetrized, inputs, before.to(self.policy.device), self.hold
            )
            chosen.append(views)
            return outputs

        outputs = self._reduced(inputs, compute)
        return outputs, (chosen[0].numpy(force=True),)

    def _before(self, count: int, state: Any, episode_start: Any) -> torch.Tensor:
        """The views of the step before, (B,), by what `predict` returned then."""
        if state is None:
            return torch.full((count,), NO_VIEW)
        views = state[0] if isinstance(state, tuple) and len(state) == 1 else None
        order = len(self.symmetry.group)
        if (
            not isinstance(views, np.ndarray)
            or views.dtype.kind != "i"
            or views.shape != (count,)
            or not ((views >= 0) & (views < order)).all()
        ):
            raise ValueError(
                f"state is what predict returned for the same {count} environments, or None; got "
                f"{state!r}"
            )
        starts = np.zeros(count, bool) if episode_start is None else np.asarray(episode_start)
        if starts.size != count or not np.isin(starts, (0, 1)).all():
            raise ValueError(
                f"episode_start tells of each of the {count} observations whether an episode "
                f"begins with it, True or False; got {episode_start!r}"
            )
        return torch.from_numpy(np.where(starts.reshape(count).astype(bool), NO_VIEW, views))

    def _extra_header(self) -> dict[str, Any]:
        return {
            "weight": {"shape": self.weight.shape, "hidden": self.weight.hidden},
            "sharpness": self.sharpness,
            "hold": self.hold,
        }

    @classmethod
    def _from_header(
        cls, header: dict[str, Any], agent: BasePolicy, symmetry: Symmetry
    ) -> LambdaEquitunePolicy:
        weight = MLPWeight(**header["weight"])
        hold = header.get("hold", HOLD)
        return cls(agent, symmetry, weight, header["normalize"], header["sharpness"], hold)


def _shapes(space: spaces.Space) -> Any:
    """The shape of what a weight network sees: an observation, or the arrays of a dict."""
    if isinstance(space, spaces.Dict):
        return {n: part.shape for n, part in space.items() if isinstance(part, spaces.Box)}
    return space.shape


def _head(model: Agent, normalize: Normalization, scale: Scale = "softmax") -> Head:
    if normalize not in ("softmax", None):
        raise ValueError(f'normalize must be "softmax" or None; got {normalize!r}')
    head = head_of(model, normalize and scale)
    if isinstance(model, BasePolicy):
        warnings.warn(
            "a policy without its agent does not tell whether its observations were normalised "
            "(VecNormalize), which would make it wrong here; give the whole agent, so that this "
            "can be checked",
            stacklevel=3,
        )
    return head


class OfObservations(nn.Module):
    """Weighs what an agent sees, and not its masks."""

    def __init__(self, weight: nn.Module) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The log-weights of observations (N, ...)."""
        return self.weight(inputs["observation"])


def _log_sureness(sharpness: float, options: tuple[int, ...], values: torch.Tensor) -> torch.Tensor:
    """Log of how far the best options stand out, (|G|, B), for values (|G|, B, options)."""
    parts = values.split(options, -1) if len(options) > 1 else (values,)
    margins = [part.amax(-1) - part.mean(-1) for part in parts]
    smallest = torch.finfo(values.dtype).tiny
    first, *others = (margin.clamp_min(smallest).log() for margin in margins)
    return sharpness * sum(others, first)


def _at_random(raw: dict[str, torch.Tensor]) -> torch.Tensor:
    action = raw["action"]
    return torch.rand(action.shape[:2], device=action.device)


def _any_of_the_best(head: Head, raw: dict[str, torch.Tensor]) -> torch.Tensor:
    """The agent's values, of which those that are alike up to rounding are drawn from."""
    value = head.value(raw)
    rounding = 32 * torch.finfo(value.dtype).eps * (1 + value.abs())
    return value + rounding * torch.rand_like(value)
