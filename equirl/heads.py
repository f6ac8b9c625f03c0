"""What an agent exposes to be symmetrised: the two kinds of heads, of choices and of vectors.

A head says what a policy computes of observations, how the group acts on that, how the agent itself
values a view, and how an action is read off what the views are reduced to. Observations are as the
policy's ``obs_to_tensor`` gives them; actions are those of the environment. `equirl.algorithms` has
one small class for each kind of policy.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor
from torch.nn import functional

from equicore import Best, Representation, Tree, Trivial, max_value
from equicore.reduce import Reducer
from equicore.representations.base import Tables, is_traced
from equirl.choices import on_options, options_of

Normalization = Literal["softmax"] | None
"""What a user chooses."""

Scale = Literal["softmax", "log-odds"] | None
"""What a head makes of the values of discrete actions."""

SURE = 0.9
"""Below it the rounding of a probability is that of its log-odds, by a few units."""

FEW = 4
"""Actions whose log-odds are quickest computed one other action after the other."""

Outputs = NDArray[Any] | dict[str, NDArray[Any]]


class Head(Tables, ABC):
    """A policy as a model of observations (B, ...).

    Args:
        policy: Of the agent.
        scale: ``"softmax"`` turns the values of each observation's actions into probabilities,
            which makes them comparable between observations; ``"log-odds"`` into the log-odds of
            these; None leaves them as they are. For heads of other outputs it has no meaning.

    Attributes:
        averages: Whether the outputs of different views have a useful mean.
        values_views: Whether the agent says which view it values most, as equizero needs.
        masked: Whether it takes masks of actions beside the observations.
        draws: Whether actions are drawn, where the policy has a distribution of vectors.
    """

    averages = True
    values_views = True
    masked = False
    draws = False

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__()
        self.policy = policy
        self.scale = scale

    @abstractmethod
    def forward(self, observations: Any) -> Any:
        """What is reduced over the group, a tensor or a dict of tensors (B, ...)."""

    @abstractmethod
    def outputs(self, action: Representation) -> Representation:
        """How the group acts on what `forward` returns, if it acts on actions so."""

    @abstractmethod
    def value(self, raw: Any) -> Tensor:
        """How the agent values views, higher is better: outputs (n, B, ...) to numbers (n, B)."""

    def best(self) -> Reducer:
        """What takes the view that the agent values most: equizero."""
        return Best(self.value)

    @abstractmethod
    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """Actions (B, ...) for what the views are reduced to."""

    def drawing(self) -> Self:
        """The same head; where actions are vectors that have a distribution, it draws them."""
        other = copy.copy(self)
        other.__dict__ = {**self.__dict__, "draws": True}
        return other


class DiscreteHead(Head):
    """Values of the options of one or several choices: the agent is confident where one stands out.

    ``Discrete`` actions are one choice, ``MultiDiscrete`` ones several, and each entry of
    ``MultiBinary`` ones is a choice of two.
    """

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        options = options_of(policy.action_space)
        assert options is not None  # see `equirl.algorithms.HEADS`
        self.options = options
        self.single = isinstance(policy.action_space, spaces.Discrete)

    @abstractmethod
    def values(self, observations: Any) -> Tensor:
        """A number for each option, (B, options)."""

    def forward(self, observations: Any) -> Tensor:
        """The values, probabilities or log-odds of options."""
        values = self.values(observations)
        if self.scale is None:
            return values
        if len(self.options) == 1:
            return values.softmax(-1) if self.scale == "softmax" else log_odds(values)
        every = values.split(self.options, -1)
        scaled = (v.softmax(-1) if self.scale == "softmax" else log_odds(v) for v in every)
        return torch.cat(list(scaled), -1)

    def outputs(self, action: Representation) -> Representation:
        """They are permuted as the actions are."""
        return on_options(action, self.policy.action_space)

    def value(self, raw: Tensor) -> Tensor:
        """The largest; of several choices the chance that all have their likeliest options."""
        if len(self.options) == 1:
            return max_value(raw)
        best = torch.stack([part.amax(-1) for part in raw.split(self.options, -1)])
        if self.scale == "log-odds":
            best = functional.logsigmoid(best)
        elif self.scale == "softmax":
            best = best.log()
        return best.sum(0)

    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """The option of the largest value, for each choice."""
        assert isinstance(reduced, np.ndarray)
        if self.single:
            return reduced.argmax(-1)
        places = np.cumsum(self.options)[:-1]
        return self._shaped(np.stack([v.argmax(-1) for v in np.split(reduced, places, -1)], -1))

    def _shaped(self, chosen: NDArray[Any]) -> NDArray[Any]:
        """Choices (B, choices) as Stable-Baselines3 returns actions."""
        space = self.policy.action_space
        if isinstance(space, spaces.MultiBinary) and not self.masked:
            chosen = chosen.astype(np.float32)
        return chosen.reshape(-1, *(space.shape or ()))


class StochasticHead(DiscreteHead):
    """Log-probabilities of options, from which actions can be drawn."""

    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """The most probable options, or some that are drawn."""
        if deterministic:
            return super().actions(reduced, deterministic)
        values = torch.as_tensor(reduced)
        if self.scale == "log-odds":
            chances = values.sigmoid()
        elif self.scale == "softmax":
            chances = values
        else:
            chances = torch.cat([v.softmax(-1) for v in values.split(self.options, -1)], -1)
        drawn = [torch.multinomial(part, 1) for part in chances.split(self.options, -1)]
        return self._shaped(torch.cat(drawn, -1).numpy())


class ContinuousHead(Head):
    """An action, and how the agent values it: two ways to act have no useful mean."""

    averages = False
    low: Tensor
    high: Tensor

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        space = policy.action_space
        assert isinstance(space, spaces.Box)  # see `equirl.algorithms.HEADS`
        for name, bound in (("low", space.low), ("high", space.high)):
            self.keep(name, bound.astype(np.float64))
        self.shape, self.squashes = space.shape, policy.squash_output
        self._known_bounds: tuple[Tensor, Tensor, Tensor] | None = None

    def _bounds(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """The least action and the size of the box, of the type of actions."""
        known = self._known_bounds
        if known is None or known[0] is not self.low or known[1].dtype != action.dtype:
            with torch.inference_mode(False):  # what is kept serves outside of it, too
                low, high = self.low.to(action.dtype), self.high.to(action.dtype)
                known = self.low, low, high - low
            if not is_traced():
                self._known_bounds = known
        return known[1:]

    @abstractmethod
    def act(self, observations: Any) -> tuple[Tensor, Tensor | None]:
        """Actions as the policy computes them, and how the agent values these views, (B,)."""

    def forward(self, observations: Any) -> dict[str, Tensor]:
        """``action`` (B, ...), and ``value`` (B,) if there is one."""
        action, value = self.act(observations)
        if len(self.shape) != 1:
            action = action.unflatten(-1, self.shape)
        if self.squashes:
            low, size = self._bounds(action)
            action = low + 0.5 * (action + 1) * size
        return {"action": action} if value is None else {"action": action, "value": value}

    def outputs(self, action: Representation) -> Representation:
        """The action moves, its value stays."""
        value = {"value": Trivial(action.group)} if self.values_views else {}
        return Tree({"action": action, **value})

    def value(self, raw: dict[str, Tensor]) -> Tensor:
        """The agent's own value."""
        return raw["value"]

    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """The action, which was drawn before if it was to be."""
        assert isinstance(reduced, dict)
        return reduced["action"]


def log_odds(values: Tensor) -> Tensor:
    """The log-odds log p / (1 - p) of the softmax of values, shapes (..., actions).

    They have the order of the probabilities p, but do not saturate: p is 1 in float32 where a value
    exceeds the others by 17. An action beside which all others have minus infinity has infinity.
    """
    actions = values.shape[-1]
    if actions == 2:
        return values - values.flip(-1)
    if not is_traced() and values.numel():
        probabilities = values.softmax(-1)
        if probabilities.max().item() < SURE:
            return probabilities.logit()  # in half of the time
    if 1 < actions <= FEW:
        twice = torch.cat([values, values], -1)
        others = [twice.narrow(-1, place, actions) for place in range(1, actions)]
        return values - functools.reduce(torch.logaddexp, others)
    # row a of the others, (..., action, other action), begins with the action after a
    twice = torch.cat([values.narrow(-1, 1, actions - 1), values.narrow(-1, 0, actions - 1)], -1)
    return values - twice.unfold(-1, actions - 1, 1).logsumexp(-1)
