"""What each Stable-Baselines3 algorithm exposes to be symmetrised.

For a DQN these are its Q-values: the group permutes their entries as it permutes the actions.
"""

from __future__ import annotations

from typing import Literal

from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from equirl.symmetry import Symmetry

Normalization = Literal["softmax"] | None


class QValues(nn.Module):
    """The Q-values of a DQN, from observations as its policy's ``obs_to_tensor`` gives them.

    Observations pass through Stable-Baselines3's own preprocessing (pixels are divided by 255) and
    features extractor, then through the network in the type of its parameters. Vectors, which need
    neither, go straight to the network, so that an agent in float64 computes in float64.

    Args:
        q_net: The Q-network.
        normalize: ``"softmax"`` turns the Q-values of each observation into probabilities, which
            makes them comparable between observations; None leaves them as they are.
    """

    def __init__(self, q_net: QNetwork, normalize: Normalization = None) -> None:
        super().__init__()
        if normalize not in ("softmax", None):
            raise ValueError(f'normalize must be "softmax" or None; got {normalize!r}')
        self.q_net = q_net
        self.normalize = normalize
        self.dtype = next(q_net.parameters()).dtype
        self.takes_vectors = (
            isinstance(q_net.observation_space, spaces.Box)
            and q_net.observation_space.shape == (q_net.features_dim,)
            and type(q_net.features_extractor) is FlattenExtractor
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Values of shape (B, actions) for observations (B, ...)."""
        net = self.q_net
        features = observations
        if not self.takes_vectors:
            inputs = preprocess_obs(observations, net.observation_space, net.normalize_images)
            assert isinstance(inputs, Tensor)  # a Symmetry acts on Box observations only
            features = net.features_extractor(inputs.to(self.dtype))
        elif features.dtype != self.dtype:
            features = features.to(self.dtype)
        q_values = net.q_net(features)
        return q_values.softmax(-1) if self.normalize == "softmax" else q_values


def aligned_values(values: QValues, symmetry: Symmetry, observations: Tensor) -> Tensor:
    """The values g^-1 Q(g s, .) of the whole orbit of observations (B, ...): (|G|, B, actions)."""
    orbit = symmetry.observation.orbit(observations)
    return symmetry.action.align(values(orbit.flatten(0, 1)).unflatten(0, orbit.shape[:2]))


def dqn_policy(model: DQN | DQNPolicy) -> DQNPolicy:
    """The policy of a DQN.

    Raises:
        TypeError: If ``model`` is no DQN, nor the policy of one, or its Q-network computes its
            output in a way of its own.
        ValueError: If it was trained on normalised observations (``VecNormalize``).
    """
    policy = getattr(model, "policy", model)
    if not isinstance(policy, DQNPolicy):
        raise TypeError(
            "equirl symmetrises the Q-values of a stable_baselines3 DQN; "
            f"got {type(model).__module__}.{type(model).__name__}"
        )
    if type(policy.q_net).forward is not QNetwork.forward:
        raise TypeError(
            f"{type(policy.q_net).__name__} overrides QNetwork.forward, so its Q-values are not "
            "those of features_extractor and q_net; symmetrise it with equicore.equizero"
        )
    normalizer = model.get_vec_normalize_env() if isinstance(model, DQN) else None
    if normalizer is not None and normalizer.norm_obs:
        raise ValueError(
            "this agent sees observations that VecNormalize shifts and scales, on which the "
            "group acts differently than on those of the environment; train it with "
            "VecNormalize(norm_obs=False)"
        )
    return policy
