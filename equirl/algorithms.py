"""The heads of the algorithms of Stable-Baselines3 and sb3-contrib: one small class each.

Networks are run layer by layer, without the distributions and the preprocessing that an agent's
``predict`` goes through: in the type of its parameters, quicker, and so that they can be exported.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn
from torch.nn import functional

from equicore import Maximum
from equicore.reduce import Reducer
from equicore.trees import tree_map
from equirl.heads import ContinuousHead, DiscreteHead, Head, Scale, StochasticHead
from equirl.normalization import statistics_of
from equirl.preprocessing import normalizer_of

KNOWN = ("stable_baselines3", "sb3_contrib")
"""Packages whose networks compute what their layers say."""
MASKED = -1e8
"""The log-probability of an action that a mask forbids, as in sb3-contrib."""
IN_PLACE: dict[type, Any] = {nn.ReLU: torch.relu_, nn.Tanh: torch.tanh_}
"""What needs no tensor of its own."""


class Features:
    """What a features extractor makes of observations, in the type of the network's parameters.

    Observations pass through Stable-Baselines3's own preprocessing (pixels are divided by 255);
    vectors, which need neither, are taken as they are, so that an agent in float64 computes in it.
    """

    def __init__(self, net: Any, extractor: nn.Module) -> None:
        self.net, self.extractor = net, extractor
        self.like = next(net.parameters())  # whose type may change later
        space = net.observation_space
        self.plain = (
            isinstance(space, spaces.Box)
            and type(extractor) is FlattenExtractor
            and space.shape == (extractor.features_dim,)
        )

    def __call__(self, observations: Any) -> Tensor:
        """Features (B, features)."""
        dtype = self.like.dtype
        if self.plain:
            return observations if observations.dtype == dtype else observations.to(dtype)
        space, images = self.net.observation_space, self.net.normalize_images
        inputs = preprocess_obs(observations, space, images)
        return self.extractor(tree_map(lambda t: t.to(dtype), inputs))


class QValues(DiscreteHead):
    """The Q-values of a DQN.

    Raises:
        TypeError: If the Q-network computes its output in a way of its own.
    """

    net_name = "q_net"

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        net: Any = getattr(policy, self.net_name)
        _check_own(net, "forward")
        self.net = net
        self.features = Features(net, net.features_extractor)

    def values(self, observations: Any) -> Tensor:
        """Q-values."""
        net: Any = self._modules["net"]
        return run(net._modules[self.net_name], self.features(observations))

    def best(self) -> Reducer:
        """The largest value of each action, whose arg-max is that of the best view."""
        return Maximum()


class Quantiles(QValues):
    """The mean of the quantiles of a QR-DQN."""

    net_name = "quantile_net"

    def values(self, observations: Any) -> Tensor:
        """Q-values."""
        return super().values(observations).unflatten(-1, (-1, self.options[0])).mean(1)


class Logits(StochasticHead):
    """The action probabilities of an actor-critic policy, such as PPO's, A2C's or TRPO's."""

    policy: Any

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        _check_own(policy, "get_distribution", "_get_action_dist_from_latent")
        self.features = Features(policy, self.policy.pi_features_extractor)
        self.binary = isinstance(policy.action_space, spaces.MultiBinary)

    def values(self, observations: Any) -> Tensor:
        """Log-probabilities."""
        latent = _part(self.policy.mlp_extractor, "policy_net")(self.features(observations))
        logits = run(self.policy.action_net, latent)
        if self.binary and logits.shape[-1] < sum(self.options):  # one for each choice of two
            logits = torch.stack([torch.zeros_like(logits), logits], -1).flatten(-2)
        return self.normalized(logits)

    def normalized(self, logits: Tensor) -> Tensor:
        """Log-probabilities of logits."""
        return torch.cat([v.log_softmax(-1) for v in logits.split(self.options, -1)], -1)


class MaskedLogits(Logits):
    """The action probabilities of a MaskablePPO, without the actions that a mask forbids.

    What it takes are dicts of ``observation`` and ``mask``, of which the group permutes the latter
    as it does the actions.
    """

    masked = True

    def values(self, observations: Any) -> Tensor:
        """Log-probabilities of the actions that are allowed."""
        logits = super().values(observations["observation"])
        return self.normalized(logits.masked_fill(~observations["mask"], MASKED))


class ActorCritic(ContinuousHead):
    """The mean action of an actor-critic policy, such as PPO's, and its value V(s)."""

    policy: Any

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        _check_own(policy, "get_distribution", "_get_action_dist_from_latent", "predict_values")
        own = self.policy
        self.features = Features(policy, own.pi_features_extractor)
        shared = own.vf_features_extractor is own.pi_features_extractor
        extractor = own.vf_features_extractor
        self.of_values = self.features if shared else Features(policy, extractor)

    def act(self, observations: Any) -> tuple[Tensor, Tensor | None]:
        """See `ContinuousHead.act`."""
        seen = self.features(observations)
        latent = _part(self.policy.mlp_extractor, "policy_net")(seen)
        if self.draws:
            action = self.policy._get_action_dist_from_latent(latent).sample()
        else:
            action = run(self.policy.action_net, latent)
            noise = self.policy.action_dist
            if isinstance(noise, StateDependentNoiseDistribution) and noise.bijector is not None:
                action = noise.bijector.forward(action)
        if self.of_values is not self.features:
            seen = self.of_values(observations)
        hidden = _part(self.policy.mlp_extractor, "value_net")(seen)
        return action, run(self.policy.value_net, hidden).squeeze(-1)


class ActorWithCritics(ContinuousHead):
    """The action of an actor such as SAC's or CrossQ's, and the smallest of its critics' values."""

    policy: Any

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        actor, critic = self.policy.actor, self.policy.critic
        for net in (actor, critic):
            _check_own(net, "forward", "get_action_dist_params")
        self.features = Features(actor, actor.features_extractor)
        shared = critic.features_extractor is actor.features_extractor
        other = Features(critic, critic.features_extractor)
        # vectors need no extractor, so that there are no two
        self.of_critic = self.features if shared or self.features.plain else other

    def mean(self, features: Tensor) -> Tensor:
        """The action that is likeliest, in -1..1."""
        return run(self.policy.actor.mu, run(self.policy.actor.latent_pi, features)).tanh()

    def critics(self, inputs: Tensor) -> Tensor:
        """Values of features and actions by each critic, (B, critics)."""
        return torch.cat([run(net, inputs) for net in self.policy.critic.q_networks], 1)

    def act(self, observations: Any) -> tuple[Tensor, Tensor | None]:
        """See `ContinuousHead.act`; views are valued by their likeliest actions."""
        seen = self.features(observations)
        action = self.mean(seen)
        of_critic = seen if self.of_critic is self.features else self.of_critic(observations)
        value = self.critics(torch.cat([of_critic, action], 1)).amin(1)
        return self.drawn(observations, action), value

    def drawn(self, observations: Any, mean: Tensor) -> Tensor:
        """The action, or one that is drawn."""
        return self.policy.actor(observations, deterministic=False) if self.draws else mean


class QuantileCritics(ActorWithCritics):
    """The action of TQC's actor, and the smallest of the means of its critics' quantiles."""

    def critics(self, inputs: Tensor) -> Tensor:
        """See `ActorWithCritics.critics`."""
        nets = self.policy.critic.q_networks
        return torch.stack([run(net, inputs).mean(-1) for net in nets], 1)


class DeterministicActor(ActorWithCritics):
    """The action of TD3's or DDPG's actor, which has no distribution, and its critics."""

    def mean(self, features: Tensor) -> Tensor:
        """See `ActorWithCritics.mean`."""
        return run(self.policy.actor.mu, features)

    def drawn(self, observations: Any, mean: Tensor) -> Tensor:
        """The same action always."""
        return mean


class OneNetwork(Head):
    """What both kinds of ARS have: one network, and neither critic nor value."""

    policy: Any
    values_views = False

    def __init__(self, policy: BasePolicy, scale: Scale = "softmax") -> None:
        super().__init__(policy, scale)
        _check_own(policy, "forward")
        self.features = Features(policy, self.policy.features_extractor)

    def computed(self, observations: Any) -> Tensor:
        """What the network says, (B, actions)."""
        return run(self.policy.action_net, self.features(observations))


class LinearAction(OneNetwork, ContinuousHead):
    """The action of an ARS."""

    def act(self, observations: Any) -> tuple[Tensor, Tensor | None]:
        """See `ContinuousHead.act`."""
        return self.computed(observations), None


class Preferences(OneNetwork, DiscreteHead):
    """The scores of an ARS with discrete actions, which tell which is best and not by how much."""

    def values(self, observations: Any) -> Tensor:
        """Scores."""
        return self.computed(observations)


_SB3, _CONTRIB = KNOWN
CHOICES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
HEADS: dict[str, dict[type[spaces.Space], type[Head]]] = {
    f"{_SB3}.dqn.policies:DQNPolicy": {spaces.Discrete: QValues},
    f"{_CONTRIB}.qrdqn.policies:QRDQNPolicy": {spaces.Discrete: Quantiles},
    f"{_SB3}.common.policies:ActorCriticPolicy": {
        **dict.fromkeys(CHOICES, Logits),
        spaces.Box: ActorCritic,
    },
    f"{_CONTRIB}.common.maskable.policies:MaskableActorCriticPolicy": dict.fromkeys(
        CHOICES, MaskedLogits
    ),
    f"{_SB3}.sac.policies:SACPolicy": {spaces.Box: ActorWithCritics},
    f"{_SB3}.td3.policies:TD3Policy": {spaces.Box: DeterministicActor},
    f"{_CONTRIB}.tqc.policies:TQCPolicy": {spaces.Box: QuantileCritics},
    f"{_CONTRIB}.crossq.policies:CrossQPolicy": {spaces.Box: ActorWithCritics},
    f"{_CONTRIB}.ars.policies:ARSPolicy": {spaces.Box: LinearAction, spaces.Discrete: Preferences},
}
"""For each kind of policy, by its class, and each kind of action space, what symmetrises it."""


def head_of(model: Any, scale: Scale = "softmax") -> Head:
    """The head of an agent.

    Args:
        model: An agent of Stable-Baselines3 or sb3-contrib, or its policy.
        scale: See `Head`.

    Raises:
        TypeError: If there is no head for it, or it has a memory.
        ValueError: If it is known to see normalised observations, and their statistics are not
            (see `equirl.normalization.statistics_of`).
    """
    policy = getattr(model, "policy", model)
    if statistics_of(model) is None and (normalizer := normalizer_of(model)) is not None:
        raise ValueError(
            f"this agent sees observations that {normalizer} shifts and scales, on which the group "
            "acts differently than on those of the environment, and the statistics are not known. "
            "Give the agent with its VecNormalize, load_agent(path, statistics=), or, if it "
            "normalised rewards only, model.set_env(VecNormalize(env, norm_obs=False))"
        )
    if hasattr(policy, "lstm_actor"):  # of sb3_contrib's recurrent policies
        raise TypeError(
            "this agent remembers what it has seen (LSTM); only agents without a memory can be "
            "symmetrised"
        )
    what = f"{type(model).__module__}.{type(model).__name__}"
    for kind in type(policy).__mro__:
        heads = HEADS.get(f"{kind.__module__}:{kind.__qualname__}")
        if heads is None:
            continue
        for space, head in heads.items():
            if isinstance(policy.action_space, space):
                return head(policy, scale)
        raise TypeError(f"{what} has the actions {policy.action_space}, which it cannot have")
    known = ", ".join(name.partition(":")[2] for name in HEADS)
    raise TypeError(f"equirl symmetrises agents with a policy of the kinds {known}; got {what}")


def run(network: Any, x: Tensor) -> Tensor:
    """What a network computes, without the frames of its modules: they cost more than its work."""
    if network._forward_hooks or network._forward_pre_hooks:
        return network(x)
    layers = network._modules.values() if type(network) is nn.Sequential else (network,)
    fresh = False
    for layer in layers:
        kind = type(layer)
        assert layer is not None
        if layer._forward_hooks or layer._forward_pre_hooks:
            x = layer(x)
            fresh = False
        elif kind is nn.Linear:
            x = functional.linear(x, layer._parameters["weight"], layer._parameters["bias"])  # type: ignore[arg-type]
            fresh = True
        elif fresh and kind in IN_PLACE:
            x = IN_PLACE[kind](x)
        else:
            x = layer(x)
            fresh = False
    return x


def _part(extractor: Any, name: str) -> Any:
    """The actor's or the critic's half of a network, as something to call."""
    half = extractor.forward_actor if name == "policy_net" else extractor.forward_critic
    if half.__module__.partition(".")[0] in KNOWN:
        return lambda features: run(getattr(extractor, name), features)
    return half


def _check_own(net: Any, *methods: str) -> None:
    """Raise TypeError unless a network computes as Stable-Baselines3 says."""
    for name in (*methods, "extract_features"):
        method = getattr(type(net), name, None)  # a critic has no distribution of actions
        if method is not None and method.__module__.partition(".")[0] not in KNOWN:
            raise TypeError(
                f"{type(net).__name__} overrides {name}, so that its layers do not say what it "
                "computes; symmetrise it with equicore.equizero"
            )
