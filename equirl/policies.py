"""Equivariant policies over a Stable-Baselines3 agent, drop-in for it where actions are predicted.

Each is a reduction of the aligned outputs g^-1 f(g s) of the agent's head over the group, see
`equirl.heads`; the action is read off the result. They need no training, `LambdaEquitunePolicy`
apart, whose weights learn from states that the agent has visited (`equirl.weights`).
"""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from equicore import Mean, MLPWeight, Symmetrized, WeightedMean
from equicore.lab.devices import check_device
from equicore.lab.store import part_of, read_tensors, state_tensors, write_tensors
from equicore.reduce import Reducer
from equicore.trees import tree_map
from equirl.heads import Head, Normalization, Outputs, Scale, head_of
from equirl.loading import policy_from_dict, policy_to_dict
from equirl.preprocessing import changes, moves_channels
from equirl.symmetry import Env, Symmetry, symmetry_of

# A dict is refused, but it is part of the signature that Stable-Baselines3 asks of a policy.
Observation = NDArray[Any] | dict[str, NDArray[Any]]
Agent = BaseAlgorithm | BasePolicy
Policy = TypeVar("Policy", bound="SymmetrizedPolicy")

FORMAT = 2
"""Of the files that policies are saved to."""

SHARPNESS = 3.0
"""How much an agent's sureness counts in lambda by default; chosen on a validation panel."""


class SymmetrizedPolicy(BasePolicy):
    """An agent's policy made equivariant; the abstract base of the three below.

    Args:
        model: An agent of Stable-Baselines3 (see `equirl.heads.HEADS`), or its policy. It is used
            as it is, not copied: what it learns later, this policy knows. Move it to its device and
            type first. An agent trained under `VecNormalize` must be given whole, as that is how it
            can be recognised and refused.
        symmetry: Of its environment; or the environment, or its registered id.
        head: What the agent exposes, see `equirl.heads.head_of`.
        reduce: What reduces its aligned outputs, see `equicore.reduce`.
        top_k: As in `equicore.Symmetrized`.

    Raises:
        TypeError: If there is no head for the model, or the symmetry is none.
        ValueError: If the symmetry does not fit the agent's spaces or is not known; if the agent
            is known to see normalised observations, or, for a registered symmetry, something else
            than its environment emits.
    """

    kinds: ClassVar[dict[str, type[SymmetrizedPolicy]]] = {}

    def __init__(
        self,
        model: Agent,
        symmetry: Symmetry | Env,
        head: Head,
        reduce: Reducer,
        top_k: int | None = None,
    ) -> None:
        policy = head.policy
        super().__init__(policy.observation_space, policy.action_space)
        self.symmetry = _found(symmetry, model)
        seen = self.symmetry.seen_by_agent(policy.observation_space, moves_channels(model))
        seen.check_spaces(policy.observation_space, policy.action_space)
        self.model = model
        self.policy = policy
        # copies, as the agent's device need not be that of the caller's symmetry
        observation, action = map(copy.deepcopy, (seen.observation, seen.action))
        self.symmetrized = Symmetrized(
            head, observation, head.outputs(action), reduce, top_k=top_k
        ).to(policy.device)
        # plain attributes, as looking up a submodule costs a microsecond each time
        self._parts = (head, self.symmetrized, policy)
        assert policy.observation_space.shape is not None  # as it is a Box
        self._shape = policy.observation_space.shape
        self._dtype = policy.observation_space.dtype
        self._on_cpu = policy.device.type == "cpu"
        self._discrete = isinstance(policy.action_space, spaces.Discrete)

    def __init_subclass__(cls) -> None:
        """Make the subclass known to `load`."""
        SymmetrizedPolicy.kinds[cls.__name__] = cls

    def __repr__(self) -> str:
        """As in ``EquizeroPolicy(DQNPolicy, Box(4,) to Discrete(2), cyclic(2))``."""
        kind, space = type(self.policy).__name__, self.action_space
        actions = space if self._discrete else f"{type(space).__name__}{space.shape}"
        group = self.symmetry.group.name
        return f"{type(self).__name__}({kind}, Box{self._shape} to {actions}, {group})"

    @property
    def head(self) -> Head:
        """What the agent exposes."""
        return self._parts[0]

    @property
    def normalize(self) -> Normalization:
        """What is done to the values of discrete actions before they are reduced."""
        return self.head.scale and "softmax"

    def predict(
        self,
        observation: Observation,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Choose actions, with the meaning that the agent's ``predict`` gives to each argument.

        Args:
            observation: One observation, or a batch of shape (B, ...).
            state: Returned as it is; the agent has no memory.
            episode_start: Ignored, as by an agent without memory.
            deterministic: If False, a whole DQN acts at random with the probability
                ``model.exploration_rate``, and PPO draws its action. Evaluate with True.

        Returns:
            The actions, of one observation or of a batch (B, ...); and ``state``.

        Raises:
            ValueError: If the observation does not fit the observation space, or there is a NaN
                in it or in the agent's outputs.
        """
        explores = not deterministic and not isinstance(observation, tuple)
        if explores and np.random.rand() < getattr(self.model, "exploration_rate", 0.0):
            space = self.action_space
            if not self.is_vectorized_observation(observation):
                return np.array(space.sample()), state
            samples = [space.sample() for _ in range(len(observation))]
            return np.array(samples, space.dtype), state
        if self._discrete and (batch := self._as_batch(observation)) is not None:
            # what `BasePolicy.predict` does, in a fraction of its time
            actions = self._act(batch, deterministic)
            vectorized = observation.ndim > len(self._shape)  # type: ignore[union-attr]
            return (actions if vectorized else actions.squeeze(axis=0)), state
        return super().predict(observation, state, episode_start, deterministic)

    def action_values(self, observation: Observation) -> NDArray[np.floating[Any]]:
        """The reduced values whose arg-max is the action, for discrete actions.

        Under ``normalize="softmax"`` these are probabilities, or the log-odds of probabilities for
        `EquizeroPolicy`.

        Args:
            observation: One observation, or a batch of shape (B, ...).

        Returns:
            Shape (actions,) for one observation, (B, actions) for a batch.

        Raises:
            TypeError: If the actions are continuous.
            ValueError: As `predict`.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise TypeError(f"only discrete actions have values; these are {self.action_space}")
        batch, vectorized = self.obs_to_tensor(observation)
        if not len(batch):
            return np.zeros((0, self.action_space.n), np.float32)
        values = self._reduced(batch)
        assert isinstance(values, np.ndarray)
        return values if vectorized else values.squeeze(axis=0)

    def obs_to_tensor(self, observation: Observation) -> tuple[Tensor, bool]:
        """The observations as a tensor (B, ...), and whether they came as a batch."""
        if isinstance(observation, dict):
            raise ValueError("got a dict observation; a Symmetry acts on Box observations")
        if (batch := self._as_batch(observation)) is not None:
            return batch, observation.ndim > len(self._shape)
        inputs, vectorized = self.policy.obs_to_tensor(observation)
        assert isinstance(inputs, Tensor)  # a Symmetry acts on Box observations only
        if np.issubdtype(self._dtype, np.floating):
            inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return inputs, vectorized

    def _as_batch(self, observation: Observation) -> Tensor | None:
        """Observations of the space's shape and type as a tensor (B, ...); None for others."""
        shape = self._shape
        if (
            type(observation) is np.ndarray
            and observation.dtype == self._dtype
            and observation.shape[-len(shape) :] == shape
            and observation.ndim <= len(shape) + 1
        ):
            batch = observation if observation.ndim > len(shape) else observation[None]
            tensor = torch.from_numpy(np.array(batch))
            return tensor if self._on_cpu else tensor.to(self.policy.device)
        return None

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return torch.from_numpy(self._act(observation, deterministic))

    def _act(self, batch: Tensor, deterministic: bool) -> NDArray[Any]:
        if not len(batch):  # what Stable-Baselines3 itself cannot always do
            return np.zeros((0, *(self.action_space.shape or ())), self.action_space.dtype)
        return self._parts[0].actions(self._reduced(batch), deterministic)

    def _reduced(self, batch: Tensor) -> Outputs:
        """What the views are reduced to, as arrays."""
        _, symmetrized, policy = self._parts
        if policy.training:
            policy.set_training_mode(False)
        with torch.inference_mode():
            try:
                reduced = symmetrized(batch)
            except ValueError as error:  # so torch's distributions say that there is a NaN
                if batch.isfinite().all():
                    raise
                raise ValueError(_explain_nan(batch, policy)) from error
            outputs: Any = tree_map(lambda t: (t if self._on_cpu else t.cpu()).numpy(), reduced)
        values = outputs if isinstance(outputs, np.ndarray) else outputs["action"]
        if math.isnan(values.item(values.argmax())):  # where numpy finds a NaN, if there is one
            raise ValueError(_explain_nan(batch, policy))
        return outputs

    def save(self, path: str | Path) -> None:
        """Write the policy, its agent's policy and its symmetry to one file.

        The file is in the safetensors format: weights as plain tensors, everything else as JSON
        in the header. Loading it executes no code.

        Args:
            path: By convention ``*.safetensors``. The file appears whole or not at all.

        Raises:
            TypeError: If the agent has parts other than those of Stable-Baselines3 and torch.
        """
        header = {
            "policy": type(self).__name__,
            "policy_format": FORMAT,
            "normalize": self.normalize,
            "symmetry": self.symmetry.to_dict(),
            "agent": policy_to_dict(self.model),
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

        Returns:
            The policy; its ``model`` is the agent's policy, without the algorithm around it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is none of equirl's, damaged, or of another policy class, or
                there is no such device.
        """
        check_device(device)
        tensors, header = read_tensors(path)
        kind = cls.kinds.get(header.get("policy", ""))
        if kind is None or not issubclass(kind, cls):
            raise ValueError(
                f"{path} holds {header.get('policy', 'no policy')}, not {cls.__name__}"
            )
        if (version := header.get("policy_format", 1)) != FORMAT:
            raise ValueError(
                f"{path} is a policy of format {version}; this equirl reads {FORMAT}: wrap the "
                "agent and save it again"
            )
        try:
            agent = policy_from_dict(header["agent"], part_of(tensors, "agent"), device)
            with warnings.catch_warnings():  # the agent was checked before it was saved
                warnings.simplefilter("ignore", UserWarning)
                policy = kind._from_header(header, agent, Symmetry.from_dict(header["symmetry"]))
            weights = part_of(tensors, "reduce")
            for tensor in weights.values():
                policy.symmetrized.reduce.to(tensor.dtype)
            policy.symmetrized.reduce.load_state_dict(weights)
        except Exception as error:  # whatever a header that does not fit leads to
            raise ValueError(f"{path} is not a whole policy of equirl: {error!r}") from error
        return policy  # type: ignore[return-value]

    def _extra_header(self) -> dict[str, Any]:
        """What a subclass must write beyond its weights to be made again."""
        return {}

    @classmethod
    def _from_header(
        cls, header: dict[str, Any], agent: BasePolicy, symmetry: Symmetry
    ) -> SymmetrizedPolicy:
        return cls(agent, symmetry, normalize=header["normalize"])  # type: ignore[call-arg]


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
        super().__init__(model, symmetry, head, head.best())


class LambdaEquitunePolicy(SymmetrizedPolicy):
    """The action of the learned mean over the group (Basu et al., NeurIPS 2023, eq. 4).

    For discrete actions, with p = softmax(Q(s, .)): a*(s) = argmax_a sum_g lambda(g s) p(g s)[g a],
    where

        lambda(g s) ~ familiarity(g s) * sureness(g s) ** sharpness.

    The familiarity comes from the weight network, which `equirl.fit_familiarity` trains; the
    sureness of the agent is max_a p - mean_a p. With a sharpness of 0 the weights are those of
    the network alone, with a large one they choose as equizero does; docs/study.md tells why both
    count by default. Until the network is fitted every state is equally familiar.

    Of continuous actions it is the one of the most familiar view, as their mean is of no use.

    Args:
        model: An agent, or its policy.
        symmetry: Of its environment; or the environment, or its registered id.
        weight: The weight network; a new `equicore.MLPWeight` when omitted.
        normalize: ``"softmax"`` turns the values of each transformed state's discrete actions into
            probabilities before they are reduced, which makes them comparable between states;
            None leaves them as they are.
        sharpness: How much the agent's sureness counts, at least 0; for discrete actions only.

    Raises:
        ValueError: If the sharpness is negative.
    """

    def __init__(
        self,
        model: Agent,
        symmetry: Symmetry | Env,
        weight: MLPWeight | None = None,
        normalize: Normalization = "softmax",
        sharpness: float = SHARPNESS,
    ) -> None:
        if not sharpness >= 0:
            raise ValueError(f"sharpness is a number from 0; got {sharpness}")
        head = _head(model, normalize)
        if weight is None:
            space = head.policy.observation_space
            weight = MLPWeight(space.shape if isinstance(space, spaces.Box) else (1,))
        score = partial(_log_sureness, sharpness) if sharpness and head.averages else None
        super().__init__(
            model,
            symmetry,
            head,
            WeightedMean(weight, score=score),
            top_k=None if head.averages else 1,
        )
        self.weight = weight
        self.sharpness = sharpness
        self._told = False

    def __repr__(self) -> str:
        """Also tells if its weights are not fitted yet."""
        return super().__repr__() if self.fitted else f"{super().__repr__()[:-1]}, not fitted)"

    @property
    def fitted(self) -> bool:
        """Whether the weight network has learned; True for networks that do not tell."""
        return getattr(self.weight, "fitted", True)

    def predict(
        self,
        observation: Observation,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """As of `SymmetrizedPolicy`; warns once if the weights are not fitted."""
        if not self._told:
            self._told = True
            if not self.fitted:
                warnings.warn(
                    "the weights of this policy are not fitted: to it every state is equally "
                    "familiar; see equirl.fit_familiarity",
                    stacklevel=2,
                )
        return super().predict(observation, state, episode_start, deterministic)

    def _extra_header(self) -> dict[str, Any]:
        return {
            "weight": {"shape": self.weight.shape, "hidden": self.weight.hidden},
            "sharpness": self.sharpness,
        }

    @classmethod
    def _from_header(
        cls, header: dict[str, Any], agent: BasePolicy, symmetry: Symmetry
    ) -> LambdaEquitunePolicy:
        weight = MLPWeight(**header["weight"])
        return cls(agent, symmetry, weight, header["normalize"], header["sharpness"])


def equituned(policy: SymmetrizedPolicy, normalize: Normalization) -> Symmetrized:
    """The mean over the group of the values of a policy's agent, whatever the policy reduces by."""
    symmetrized = policy.symmetrized
    head = head_of(policy.policy, normalize)
    return Symmetrized(head, symmetrized.input_rep, symmetrized.output_rep, Mean())


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


def _found(symmetry: Symmetry | Env, model: Agent) -> Symmetry:
    """The symmetry that is meant by itself, an environment or its id."""
    if isinstance(symmetry, Symmetry):
        return symmetry
    if not (
        isinstance(symmetry, str) or hasattr(symmetry, "spec") or hasattr(symmetry, "get_attr")
    ):
        raise TypeError(f"expected a Symmetry, an environment or its id; got {symmetry!r}")
    found = symmetry_of(symmetry)
    env = getattr(model, "env", None)
    if env is not None and (wrappers := changes(env)):
        raise ValueError(
            f"this agent sees its environment through {', '.join(wrappers)}, and the registered "
            "symmetry is that of the environment itself; pass the Symmetry of what the agent sees"
        )
    return found


def _log_sureness(sharpness: float, values: torch.Tensor) -> torch.Tensor:
    """Log of how far the best action stands out, (|G|, B), for values (|G|, B, actions)."""
    margin = values.amax(-1) - values.mean(-1)
    return sharpness * margin.clamp_min(torch.finfo(values.dtype).tiny).log()


def _explain_nan(observations: Tensor, policy: BasePolicy) -> str:
    for what, places in (("NaN", observations.isnan()), ("infinity", observations.isinf())):
        if found := places.nonzero().tolist():
            index = found[0] if len(observations) > 1 else found[0][1:]
            return f"{what} in the observation, at index {tuple(index)}"
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            return f"NaN in the outputs: the network has diverged, {name} is not finite"
    return "NaN in the outputs, though the observation and the network's parameters have none"
