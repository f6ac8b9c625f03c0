"""What each kind of Stable-Baselines3 policy exposes to be symmetrised: one small class each.

A head says what a policy computes of observations, how the group acts on that, how the agent itself
values a view, and how an action is read off what the views are reduced to. Observations are as the
policy's ``obs_to_tensor`` gives them; actions are those of the environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn
from torch.nn import functional

from equicore import Best, Maximum, Representation, Tree, Trivial, max_value
from equicore.reduce import Reducer
from equicore.representations.base import Tables, is_traced
from equirl.preprocessing import normalizer_of

Normalization = Literal["softmax"] | None
"""What a user chooses."""

Scale = Literal["softmax", "log-odds"] | None
"""What a head makes of the values of discrete actions."""

SURE = 0.9
"""Below it the rounding of a probability is that of its log-odds, by a few units."""

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
    """

    averages = True

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__()
        self.policy = policy
        self.scale = scale

    @abstractmethod
    def forward(self, observations: Tensor) -> Any:
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


class DiscreteHead(Head):
    """Values of discrete actions (B, actions): the agent is confident where one stands out."""

    @abstractmethod
    def values(self, observations: Tensor) -> Tensor:
        """A number for each action."""

    def forward(self, observations: Tensor) -> Tensor:
        """The values, probabilities or log-odds of actions."""
        values = self.values(observations)
        if self.scale == "softmax":
            return values.softmax(-1)
        return log_odds(values) if self.scale == "log-odds" else values

    def outputs(self, action: Representation) -> Representation:
        """They are permuted as the actions are."""
        return action

    def value(self, raw: Tensor) -> Tensor:
        """The largest."""
        return max_value(raw)

    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """The action of the largest value."""
        assert isinstance(reduced, np.ndarray)
        return reduced.argmax(-1)


class QValues(DiscreteHead):
    """The Q-values of a DQN.

    Observations pass through Stable-Baselines3's own preprocessing (pixels are divided by 255) and
    features extractor, then through the network in the type of its parameters. Vectors, which need
    neither, go straight to the network, so that an agent in float64 computes in float64.

    Raises:
        TypeError: If the Q-network computes its output in a way of its own.
    """

    def __init__(self, policy: DQNPolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        q_net = policy.q_net
        if type(q_net).forward is not QNetwork.forward:
            raise TypeError(
                f"{type(q_net).__name__} overrides QNetwork.forward, so its Q-values are not "
                "those of features_extractor and q_net; symmetrise it with equicore.equizero"
            )
        self.q_net = q_net
        self.dtype = next(q_net.parameters()).dtype
        self.takes_vectors = (
            isinstance(q_net.observation_space, spaces.Box)
            and q_net.observation_space.shape == (q_net.features_dim,)
            and type(q_net.features_extractor) is FlattenExtractor
        )

    def values(self, observations: Tensor) -> Tensor:
        """Q-values."""
        net: Any = self._modules["q_net"]
        if self.takes_vectors:
            return _run(net._modules["q_net"], observations.to(self.dtype))
        inputs = preprocess_obs(observations, net.observation_space, net.normalize_images)
        assert isinstance(inputs, Tensor)  # a Symmetry acts on Box observations only
        return _run(net.q_net, net.features_extractor(inputs.to(self.dtype)))

    def best(self) -> Reducer:
        """The largest value of each action, whose arg-max is that of the best view."""
        return Maximum()


class Logits(DiscreteHead):
    """The action probabilities of an actor-critic policy, such as PPO's or A2C's."""

    policy: ActorCriticPolicy

    def values(self, observations: Tensor) -> Tensor:
        """Log-probabilities."""
        return self.policy.get_distribution(observations).distribution.logits  # type: ignore[union-attr]

    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """The most probable action, or one that is drawn."""
        if deterministic:
            return super().actions(reduced, deterministic)
        values = torch.as_tensor(reduced)
        if self.scale == "log-odds":
            chances = values.sigmoid()
        else:
            chances = values if self.scale == "softmax" else values.softmax(-1)
        return torch.multinomial(chances, 1).squeeze(-1).numpy()


class ContinuousHead(Head):
    """An action, and how the agent values it: two ways to act have no useful mean."""

    averages = False
    low: Tensor
    high: Tensor

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        space = policy.action_space
        assert isinstance(space, spaces.Box)  # see `HEADS`
        for name, bound in (("low", space.low), ("high", space.high)):
            self.keep(name, bound.astype(np.float32))

    def unscaled(self, action: Tensor) -> Tensor:
        """Actions from -1..1 to the space's bounds, where the policy squashes them."""
        if not self.policy.squash_output:
            return action
        return self.low + 0.5 * (action + 1) * (self.high - self.low)

    def outputs(self, action: Representation) -> Representation:
        """The action moves, its value stays."""
        return Tree({"action": action, "value": Trivial(action.group)})

    def value(self, raw: dict[str, Tensor]) -> Tensor:
        """The agent's own value."""
        return raw["value"]

    def actions(self, reduced: Outputs, deterministic: bool) -> NDArray[Any]:
        """The action.

        Raises:
            ValueError: If it is to be drawn.
        """
        if not deterministic:
            raise ValueError(
                "a symmetrised policy of continuous actions does not draw them yet; predict with "
                "deterministic=True"
            )
        assert isinstance(reduced, dict)
        return reduced["action"]


class MeanAction(ContinuousHead):
    """The mean action of an actor-critic policy, such as PPO's or A2C's, and its value V(s)."""

    policy: ActorCriticPolicy

    def forward(self, observations: Tensor) -> dict[str, Tensor]:
        """``action`` (B, ...) and ``value`` (B,)."""
        action = self.unscaled(self.policy.get_distribution(observations).mode())
        return {"action": action, "value": self.policy.predict_values(observations).squeeze(-1)}


class ActorWithCritic(ContinuousHead):
    """The action of SAC's actor, and the smallest of its critics' values of it."""

    policy: SACPolicy

    def forward(self, observations: Tensor) -> dict[str, Tensor]:
        """``action`` (B, ...) and ``value`` (B,)."""
        action = self.policy.actor(observations, deterministic=True)
        values = torch.cat(self.policy.critic(observations, action), dim=1)
        return {"action": self.unscaled(action), "value": values.amin(1)}


HEADS: tuple[tuple[type[BasePolicy], type[spaces.Space], type[Head]], ...] = (
    (DQNPolicy, spaces.Discrete, QValues),
    (ActorCriticPolicy, spaces.Discrete, Logits),
    (ActorCriticPolicy, spaces.Box, MeanAction),
    (SACPolicy, spaces.Box, ActorWithCritic),
)
"""For each kind of policy and of action space, what symmetrises it."""


def log_odds(values: Tensor) -> Tensor:
    """The log-odds log p / (1 - p) of the softmax of values, shapes (..., actions).

    They have the order of the probabilities p, but do not saturate: p is 1 in float32 where a value
    exceeds the others by 17. An action beside which all others have minus infinity has infinity.
    """
    if values.shape[-1] == 2:
        return values - values.flip(-1)
    probabilities = values.softmax(-1)
    if not is_traced() and probabilities.numel() and probabilities.max().item() < SURE:
        return probabilities.logit()  # in a third of the time
    own = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
    others = values.unsqueeze(-2).masked_fill(own, -torch.inf)  # (..., action, other action)
    return values - others.logsumexp(-1)


def head_of(model: Any, scale: Scale = "softmax") -> Head:
    """The head of an agent.

    Args:
        model: An agent of Stable-Baselines3, or its policy.
        scale: See `Head`.

    Raises:
        TypeError: If there is no head for it, or it has a memory.
        ValueError: If it is known to see normalised observations (``VecNormalize``,
            ``NormalizeObservation``).
    """
    policy = getattr(model, "policy", model)
    if (normalizer := normalizer_of(model)) is not None:
        raise ValueError(
            f"this agent sees observations that {normalizer} shifts and scales, on which the group "
            "acts differently than on those of the environment; such agents cannot be symmetrised "
            "yet. If it normalised rewards only, say so by an environment that does: "
            "model.set_env(VecNormalize(env, norm_obs=False))"
        )
    if hasattr(policy, "lstm_actor"):  # of sb3_contrib's recurrent policies
        raise TypeError(
            "this agent remembers what it has seen (LSTM); only agents without a memory can be "
            "symmetrised"
        )
    for kind, space, head in HEADS:
        if isinstance(policy, kind) and isinstance(policy.action_space, space):
            return head(policy, scale)
    known = ", ".join(dict.fromkeys(f"{kind.__name__}" for kind, _, _ in HEADS))
    what = f"{type(model).__module__}.{type(model).__name__}"
    if isinstance(policy, BasePolicy):
        what += f" with the actions {policy.action_space}"
    raise TypeError(
        f"equirl symmetrises agents of stable_baselines3 with a policy of the kinds {known}; got "
        f"{what}"
    )


def _run(network: nn.Sequential, x: Tensor) -> Tensor:
    """What a network computes, without the frames of its modules: they cost more than its work."""
    if type(network) is not nn.Sequential or network._forward_hooks or network._forward_pre_hooks:
        return network(x)
    fresh = False
    for layer in network._modules.values():
        kind = type(layer)
        assert layer is not None
        if layer._forward_hooks or layer._forward_pre_hooks:
            x = layer(x)
            fresh = False
        elif kind is nn.Linear:
            x = functional.linear(x, layer._parameters["weight"], layer._parameters["bias"])  # type: ignore[arg-type]
            fresh = True
        elif kind is nn.ReLU and fresh:
            x = x.relu_()
        else:
            x = layer(x)
            fresh = False
    return x
