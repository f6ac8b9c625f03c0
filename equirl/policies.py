"""Equivariant policies over a Stable-Baselines3 agent, drop-in for it where actions are predicted.

Each is a reduction of the aligned action values g^-1 Q(g s, .) over the group, followed by
arg-max; see `equicore` for the methods. They need no training, `LambdaEquitunePolicy` apart,
whose weights learn from states that the agent has visited (`equirl.weights`).
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import DQNPolicy

from equicore import Maximum, Mean, MLPWeight, Reducer, Symmetrized, WeightedMean
from equicore.files import part_of, read_tensors, state_tensors, write_tensors
from equirl.heads import Normalization, QValues, dqn_policy
from equirl.loading import agent_from_dict, agent_to_dict
from equirl.symmetry import Symmetry, symmetry_of

# A dict is refused, but it is part of the signature that Stable-Baselines3 asks of a policy.
Observation = NDArray[Any] | dict[str, NDArray[Any]]
Policy = TypeVar("Policy", bound="SymmetrizedPolicy")

SHARPNESS = 3.0
"""How much an agent's sureness counts in lambda by default; chosen on a validation panel."""


class SymmetrizedPolicy:
    """A DQN's policy made equivariant; the abstract base of the three below.

    Args:
        model: A `DQN`, or the `DQNPolicy` of one. It is used as it is, not copied: what it learns
            later, this policy knows. Move it to its device and type first. An agent trained under
            `VecNormalize` must be given whole, as that is how it can be recognised and refused.
        symmetry: Of its environment, or the environment's registered id.
        reduce: Reducer of the aligned action values, see `equicore.reduce`.
        normalize: ``"softmax"`` turns the Q-values of each transformed state into probabilities
            before they are reduced, which makes them comparable between states; None leaves
            them as they are.

    Raises:
        TypeError: If the model is no DQN.
        ValueError: If the symmetry does not fit the agent's spaces, or is not known.
    """

    kinds: ClassVar[dict[str, type[SymmetrizedPolicy]]] = {}

    def __init__(
        self,
        model: DQN | DQNPolicy,
        symmetry: Symmetry | str,
        reduce: Reducer,
        normalize: Normalization = "softmax",
    ) -> None:
        self.model = model
        self.policy = dqn_policy(model)
        self.symmetry = symmetry_of(symmetry) if isinstance(symmetry, str) else symmetry
        if not isinstance(self.symmetry, Symmetry):
            raise TypeError(f"expected a Symmetry or an environment's id; got {symmetry!r}")
        self.symmetry.check_spaces(self.policy.observation_space, self.policy.action_space)
        self.normalize = normalize
        assert self.policy.observation_space.shape is not None  # as it is a Box
        self._observation_shape = self.policy.observation_space.shape
        self._observation_dtype = self.policy.observation_space.dtype
        self._on_cpu = self.policy.device.type == "cpu"
        self.symmetrized = Symmetrized(
            QValues(self.policy.q_net, normalize),
            self.symmetry.observation,
            self.symmetry.action,
            reduce,
        ).to(self.policy.device)

    def __init_subclass__(cls) -> None:
        """Make the subclass known to `load`."""
        SymmetrizedPolicy.kinds[cls.__name__] = cls

    def predict(
        self,
        observation: Observation,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Choose actions, with the meaning that ``DQN.predict`` gives to each argument.

        Args:
            observation: One observation, or a batch of shape (B, ...).
            state: Returned as it is; a DQN has no memory.
            episode_start: Ignored, as by a DQN.
            deterministic: If False, and the policy was made from a whole `DQN`, actions are
                random with the probability ``model.exploration_rate``. Evaluate with True.

        Returns:
            The actions, shape () for one observation, (B,) for a batch; and ``state``.

        Raises:
            ValueError: If the observation does not fit the observation space, or there is a NaN
                in it or in the Q-values.
        """
        if (
            not deterministic
            and isinstance(self.model, DQN)
            and np.random.rand() < self.model.exploration_rate
        ):
            space = self.policy.action_space
            if not self.policy.is_vectorized_observation(observation):
                return np.array(space.sample()), state
            return np.array([space.sample() for _ in range(len(observation))]), state
        values, vectorized = self._values(observation)
        actions = values.argmax(axis=1)
        return actions if vectorized else actions.squeeze(axis=0), state

    def action_values(self, observation: Observation) -> NDArray[np.floating[Any]]:
        """The reduced values whose arg-max is the action.

        These are probabilities under ``normalize="softmax"``, Q-values otherwise.

        Args:
            observation: One observation, or a batch of shape (B, ...).

        Returns:
            Shape (actions,) for one observation, (B, actions) for a batch.

        Raises:
            ValueError: As `predict`.
        """
        values, vectorized = self._values(observation)
        return values if vectorized else values.squeeze(axis=0)

    def _values(self, observation: Observation) -> tuple[NDArray[np.floating[Any]], bool]:
        if isinstance(observation, dict):
            raise ValueError("got a dict observation; a Symmetry acts on Box observations")
        if isinstance(observation, tuple):
            raise ValueError(
                "got a tuple for an observation: `env.reset()` of Gymnasium returns "
                "(observation, info), of which predict takes the first"
            )
        if self.policy.training:
            self.policy.set_training_mode(False)
        batch, vectorized = self._batch(observation)
        with torch.inference_mode():
            reduced = self.symmetrized(batch)
            values = (reduced if self._on_cpu else reduced.cpu()).numpy()
        if math.isnan(values.item(values.argmax())):  # where numpy finds a NaN, if there is one
            raise ValueError(_explain_nan(observation, self.policy))
        return values, vectorized

    def _batch(self, observation: Observation) -> tuple[torch.Tensor, bool]:
        """The observations as a tensor (B, ...), and whether they came as a batch."""
        shape = self._observation_shape
        if (
            isinstance(observation, np.ndarray)
            and observation.shape[-len(shape) :] == shape
            and observation.dtype == self._observation_dtype
        ):
            vectorized = observation.ndim == len(shape) + 1
            if vectorized or observation.ndim == len(shape):
                # what obs_to_tensor would do, in a tenth of its time
                batch = observation if vectorized else observation[None]
                tensor = torch.from_numpy(np.array(batch))
                return tensor if self._on_cpu else tensor.to(self.policy.device), vectorized
        inputs, vectorized = self.policy.obs_to_tensor(observation)
        assert isinstance(inputs, torch.Tensor)  # a Symmetry acts on Box observations only
        if np.issubdtype(self._observation_dtype, np.floating):
            inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return inputs, vectorized

    def save(self, path: str | Path) -> None:
        """Write the policy, its agent and its symmetry to one file.

        The file is in the safetensors format: weights as plain tensors, everything else as JSON
        in the header. Loading it executes no code.

        Args:
            path: By convention ``*.safetensors``. The file appears whole or not at all.

        Raises:
            TypeError: If the agent has a features extractor other than those of
                Stable-Baselines3.
        """
        header = {
            "policy": type(self).__name__,
            "normalize": self.normalize,
            "symmetry": self.symmetry.to_dict(),
            "agent": agent_to_dict(self.model),
            **self._extra_header(),
        }
        tensors = state_tensors(agent=self.policy, reduce=self.symmetrized.reduce)
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls: type[Policy], path: str | Path, device: str | torch.device = "auto") -> Policy:
        """Read a policy that `save` wrote; executes no code of the file's.

        Args:
            path: The file.
            device: For the agent's networks.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is none of equirl's, damaged, or of another policy class.
        """
        tensors, header = read_tensors(path)
        kind = cls.kinds.get(header.get("policy", ""))
        if kind is None or not issubclass(kind, cls):
            raise ValueError(
                f"{path} holds {header.get('policy', 'no policy')}, not {cls.__name__}"
            )
        try:
            agent = agent_from_dict(header["agent"], part_of(tensors, "agent"), device, source=path)
            policy = kind._from_header(header, agent, Symmetry.from_dict(header["symmetry"]))
            weights = part_of(tensors, "reduce")
            for tensor in weights.values():
                policy.symmetrized.reduce.to(tensor.dtype)
            policy.symmetrized.reduce.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is not a whole policy of equirl: {error!r}") from error
        return policy  # type: ignore[return-value]

    def _extra_header(self) -> dict[str, Any]:
        """What a subclass must write beyond its weights to be made again."""
        return {}

    @classmethod
    def _from_header(
        cls, header: dict[str, Any], agent: DQN, symmetry: Symmetry
    ) -> SymmetrizedPolicy:
        return cls(agent, symmetry, normalize=header["normalize"])  # type: ignore[call-arg]


class EquitunePolicy(SymmetrizedPolicy):
    """The action of the largest mean over the group (Basu et al., AAAI 2023, eq. 2).

    With the softmax over actions: a*(s) = argmax_a mean_g softmax(Q(g s, .))[g a].

    Args:
        model: A `DQN`, or the `DQNPolicy` of one.
        symmetry: Of its environment, or the environment's registered id.
        normalize: ``"softmax"`` or None, see `SymmetrizedPolicy`.
    """

    def __init__(
        self,
        model: DQN | DQNPolicy,
        symmetry: Symmetry | str,
        normalize: Normalization = "softmax",
    ) -> None:
        super().__init__(model, symmetry, Mean(), normalize)


class EquizeroPolicy(SymmetrizedPolicy):
    """The action of the largest value over the group (Basu et al., NeurIPS 2023, eq. 3).

    With the softmax over actions: a*(s) = argmax_a max_g softmax(Q(g s, .))[g a]. For two actions
    and a group of two elements this is the same policy as `EquitunePolicy`.

    Args:
        model: A `DQN`, or the `DQNPolicy` of one.
        symmetry: Of its environment, or the environment's registered id.
        normalize: ``"softmax"`` or None, see `SymmetrizedPolicy`.

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
        self,
        model: DQN | DQNPolicy,
        symmetry: Symmetry | str,
        normalize: Normalization = "softmax",
    ) -> None:
        super().__init__(model, symmetry, Maximum(), normalize)


class LambdaEquitunePolicy(SymmetrizedPolicy):
    """The action of the largest learned mean over the group (Basu et al., NeurIPS 2023, eq. 4).

    With p = softmax(Q(s, .)): a*(s) = argmax_a sum_g lambda(g s) p(g s)[g a], where

        lambda(g s) ~ familiarity(g s) * sureness(g s) ** sharpness.

    The familiarity comes from the weight network, which `equirl.fit_familiarity` trains; the
    sureness of the agent is max_a p - mean_a p. With a sharpness of 0 the weights are those of
    the network alone, with a large one they choose as equizero does; docs/study.md tells why both
    count by default. Until the network is fitted every state is equally familiar.

    Args:
        model: A `DQN`, or the `DQNPolicy` of one.
        symmetry: Of its environment, or the environment's registered id.
        weight: The weight network; a new `equicore.MLPWeight` when omitted.
        normalize: ``"softmax"`` or None, see `SymmetrizedPolicy`.
        sharpness: How much the agent's sureness counts, at least 0.

    Raises:
        ValueError: If the sharpness is negative.
    """

    def __init__(
        self,
        model: DQN | DQNPolicy,
        symmetry: Symmetry | str,
        weight: MLPWeight | None = None,
        normalize: Normalization = "softmax",
        sharpness: float = SHARPNESS,
    ) -> None:
        if not sharpness >= 0:
            raise ValueError(f"sharpness is a number from 0; got {sharpness}")
        symmetry = symmetry_of(symmetry) if isinstance(symmetry, str) else symmetry
        if weight is None:
            shape = dqn_policy(model).observation_space.shape
            assert shape is not None
            weight = MLPWeight(shape)
        score = partial(_log_sureness, sharpness) if sharpness else None
        super().__init__(model, symmetry, WeightedMean(weight, score=score), normalize)
        self.weight = weight
        self.sharpness = sharpness

    def _extra_header(self) -> dict[str, Any]:
        return {
            "weight": {"shape": self.weight.shape, "hidden": self.weight.hidden},
            "sharpness": self.sharpness,
        }

    @classmethod
    def _from_header(
        cls, header: dict[str, Any], agent: DQN, symmetry: Symmetry
    ) -> LambdaEquitunePolicy:
        weight = MLPWeight(**header["weight"])
        return cls(agent, symmetry, weight, header["normalize"], header.get("sharpness", 0.0))


def _log_sureness(sharpness: float, values: torch.Tensor) -> torch.Tensor:
    """Log of how far the best action stands out, (|G|, B), for values (|G|, B, actions)."""
    margin = values.amax(-1) - values.mean(-1)
    return sharpness * margin.clamp_min(torch.finfo(values.dtype).tiny).log()


def _explain_nan(observation: Observation, policy: DQNPolicy) -> str:
    places = np.argwhere(np.isnan(np.asarray(observation)))
    if len(places):
        return f"NaN in the observation, at index {tuple(int(i) for i in places[0])}"
    for name, parameter in policy.q_net.named_parameters():
        if not parameter.isfinite().all():
            return f"NaN in the Q-values: the network has diverged, {name} is not finite"
    return "NaN in the Q-values, though the observation and the network's parameters have none"
