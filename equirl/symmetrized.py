"""The base of all symmetrised policies: drop-in for an agent where actions are predicted."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from equicore import Mean, Symmetrized, Tree
from equicore.lab.devices import check_device
from equicore.lab.store import part_of, read_tensors, state_tensors, write_tensors
from equicore.reduce import Reducer
from equicore.trees import leaves, tree_map
from equirl.algorithms import head_of
from equirl.choices import options_of
from equirl.heads import Head, Normalization, Outputs
from equirl.loading import policy_from_dict, policy_to_dict
from equirl.normalization import Normalized, Statistics, normalizing, statistics_of
from equirl.preprocessing import changes, moves_channels
from equirl.registry import Env, symmetry_of
from equirl.symmetry import Symmetry

# A dict is refused, but it is part of the signature that Stable-Baselines3 asks of a policy.
Observation = NDArray[Any] | dict[str, NDArray[Any]]
Agent = BaseAlgorithm | BasePolicy
Policy = TypeVar("Policy", bound="SymmetrizedPolicy")

FORMAT = 2
"""Of the files that policies are saved to."""


class SymmetrizedPolicy(BasePolicy):
    """An agent's policy made equivariant; the abstract base of those in `equirl.policies`.

    Args:
        model: An agent of Stable-Baselines3 or sb3-contrib (see `equirl.algorithms.HEADS`), or its
            policy. It is used as it is, not copied: what it learns later, this policy knows. Move
            it to its device and type first. An agent trained under `VecNormalize` must be given
            whole, with that: the group acts on what the environment emits, and each view is
            normalised as the agent knows it.
        symmetry: Of its environment; or the environment, or its registered id.
        head: What the agent exposes, see `equirl.algorithms.head_of`.
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
        outputs = head.outputs(action)
        if head.masked:  # masks move as the actions do
            observation = Tree({"observation": observation, "mask": outputs})
        source, shape = statistics_of(model), policy.observation_space.shape
        seen_by = normalizing(model, head)
        self.normalized = seen_by if isinstance(seen_by, Normalized) else None
        if self.normalized is not None and self.normalized.mean.shape != shape:
            raise ValueError(
                f"this agent sees observations of shape {shape}, and its statistics are of "
                f"{tuple(self.normalized.mean.shape)}: observations were stacked or turned after "
                "they were normalised, which is not supported; normalise outside of that"
            )
        # an agent with its VecNormalize is shown what that emits, one from a file what its
        # environment does
        self.shown_normalized = isinstance(source, VecNormalize)
        self._as_it_is = not head.masked and source is None
        self.symmetrized = Symmetrized(seen_by, observation, outputs, reduce, top_k=top_k).to(
            policy.device
        )
        self._drawn: list[Symmetrized] = []  # not a submodule: it has the same parameters
        # plain attributes, as looking up a submodule costs a microsecond each time
        self._parts = (head, self.symmetrized, policy)
        assert policy.observation_space.shape is not None  # as it is a Box
        self._shape = policy.observation_space.shape
        self._dtype = policy.observation_space.dtype
        self._on_cpu = policy.device.type == "cpu"
        self._discrete = options_of(policy.action_space) is not None

    def __init_subclass__(cls) -> None:
        """Make the subclass known to `load`."""
        SymmetrizedPolicy.kinds[cls.__name__] = cls

    def __repr__(self) -> str:
        """As in ``EquizeroPolicy(DQNPolicy, Box(4,) to Discrete(2), cyclic(2))``."""
        kind, space = type(self.policy).__name__, self.action_space
        actions = f"{type(space).__name__}{space.shape}" if space.shape else space
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
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Choose actions, with the meaning that the agent's ``predict`` gives to each argument.

        Args:
            observation: One observation, or a batch of shape (B, ...).
            state: Returned as it is; the agent has no memory.
            episode_start: Ignored, as by an agent without memory.
            deterministic: If False, a whole DQN acts at random with the probability
                ``model.exploration_rate``, and agents that have a distribution draw actions: of
                choices from what the views' probabilities are reduced to, of vectors from the
                distribution of one view. Evaluate with True.
            action_masks: Of a MaskablePPO: which options are allowed, (options,) or (B, options);
                all when omitted.

        Returns:
            The actions, of one observation or of a batch (B, ...); and ``state``.

        Raises:
            TypeError: If there are masks, and the agent takes none.
            ValueError: If the observation does not fit the observation space, or there is a NaN
                in it or in the agent's outputs, or masks are not as many as options.
        """
        if action_masks is not None and not self.head.masked:
            raise TypeError(f"{type(self.policy).__name__} takes no action_masks")
        explores = not deterministic and not isinstance(observation, tuple)
        if explores and np.random.rand() < getattr(self.model, "exploration_rate", 0.0):
            space = self.action_space
            if not self.is_vectorized_observation(observation):
                return np.array(space.sample()), state
            samples = [space.sample() for _ in range(len(observation))]
            return np.array(samples, space.dtype), state
        if isinstance(observation, tuple):  # the agent's own message says what is wrong
            return self.policy.predict(observation, state, episode_start, deterministic)
        # what `BasePolicy.predict` does, in a fraction of its time
        batch, vectorized = self.obs_to_tensor(observation)
        actions = self._act(batch, deterministic, action_masks)
        if not self._discrete:
            box: Any = self.action_space
            actions = np.clip(actions, box.low, box.high)
        return (actions if vectorized else actions.squeeze(axis=0)), state

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
        values = self._reduced(self.inputs(batch), self.symmetrized)
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
        return torch.from_numpy(self._act(observation, deterministic, None))

    def _act(self, batch: Tensor, deterministic: bool, masks: NDArray[Any] | None) -> NDArray[Any]:
        if not len(batch):  # what Stable-Baselines3 itself cannot always do
            return np.zeros((0, *(self.action_space.shape or ())), self.action_space.dtype)
        head, symmetrized, _ = self._parts
        if not (deterministic or self._discrete):
            if not self._drawn:
                self._drawn.append(self._drawing())
            symmetrized = self._drawn[0]
        inputs = batch if self._as_it_is else self.inputs(batch, masks)
        return head.actions(self._reduced(inputs, symmetrized), deterministic)

    def inputs(self, batch: Tensor, masks: NDArray[Any] | None = None) -> Any:
        """What the views are made of: observations, and masks where the agent takes them."""
        if self.normalized is not None and self.shown_normalized:
            self.normalized.refresh()
            batch = self.normalized.emitted(batch)
        if not self.head.masked:
            return batch
        shape = len(batch), sum(options_of(self.action_space) or ())
        if masks is None:
            mask = torch.ones(shape, dtype=torch.bool)
        else:
            mask = torch.as_tensor(np.asarray(masks), dtype=torch.bool)
            if mask.numel() != math.prod(shape):
                raise ValueError(
                    f"action_masks of shape {tuple(mask.shape)} do not fit {shape[0]} observations "
                    f"and {shape[1]} options"
                )
        return {"observation": batch, "mask": mask.reshape(shape).to(batch.device)}

    def _drawing(self) -> Symmetrized:
        """What draws vectors: from the distribution of the view that is chosen."""
        symmetrized = self.symmetrized
        return Symmetrized(
            normalizing(self.model, self.head.drawing()),
            symmetrized.input_rep,
            symmetrized.output_rep,
            self._one_view(),
            top_k=symmetrized.top_k,
        )

    def _one_view(self) -> Reducer:
        """What takes a single view, for a draw of its action."""
        return self.symmetrized.reduce

    def _reduced(self, inputs: Any, symmetrized: Symmetrized) -> Outputs:
        """What the views are reduced to, as arrays."""
        policy = self._parts[2]
        if policy.training:
            policy.set_training_mode(False)
        with torch.inference_mode():
            try:
                reduced = symmetrized(inputs)
            except ValueError as error:  # so torch's distributions say that there is a NaN
                if leaves(inputs)[0].isfinite().all():
                    raise
                raise ValueError(_explain_nan(leaves(inputs)[0], policy)) from error
            outputs: Any = tree_map(lambda t: (t if self._on_cpu else t.cpu()).numpy(), reduced)
        values = outputs if isinstance(outputs, np.ndarray) else outputs["action"]
        if math.isnan(values.item(values.argmax())):  # where numpy finds a NaN, if there is one
            raise ValueError(_explain_nan(leaves(inputs)[0], policy))
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
        if self.normalized is not None:
            statistics = self.normalized.statistics
            for name in ("mean", "variance"):
                tensors[f"statistics.{name}"] = torch.from_numpy(np.array(vars(statistics)[name]))
            header["statistics"] = {
                "clip": statistics.clip,
                "epsilon": statistics.epsilon,
                "shown_normalized": self.shown_normalized,
            }
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
            if told := header.get("statistics"):
                moments = part_of(tensors, "statistics")
                mean, variance = (moments[name].numpy() for name in ("mean", "variance"))
                known: Any = Statistics(mean, variance, told["clip"], told["epsilon"])
                agent.statistics = known
            with warnings.catch_warnings():  # the agent was checked before it was saved
                warnings.simplefilter("ignore", UserWarning)
                policy = kind._from_header(header, agent, Symmetry.from_dict(header["symmetry"]))
            policy.shown_normalized = bool(told and told["shown_normalized"])
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


def equituned(policy: SymmetrizedPolicy, normalize: Normalization) -> Symmetrized:
    """The mean over the group of the values of a policy's agent, whatever the policy reduces by."""
    symmetrized = policy.symmetrized
    head = normalizing(policy.model, head_of(policy.policy, normalize)).to(policy.policy.device)
    return Symmetrized(head, symmetrized.input_rep, symmetrized.output_rep, Mean())


def _found(symmetry: Symmetry | Env, model: Agent) -> Symmetry:
    """The symmetry that is meant by itself, an environment or its id."""
    if isinstance(symmetry, Symmetry):
        return symmetry
    if not (
        isinstance(symmetry, str) or hasattr(symmetry, "spec") or hasattr(symmetry, "get_attr")
    ):
        raise TypeError(f"expected a Symmetry, an environment or its id; got {symmetry!r}")
    while isinstance(symmetry, VecNormalize):  # whose statistics are known
        symmetry = symmetry.venv
    found = symmetry_of(symmetry)
    env = getattr(model, "env", None)
    known = type(statistics_of(model)).__name__
    if env is not None and (wrappers := [name for name in changes(env) if name != known]):
        raise ValueError(
            f"this agent sees its environment through {', '.join(wrappers)}, and the registered "
            "symmetry is that of the environment itself; pass the Symmetry of what the agent sees"
        )
    return found


def _explain_nan(observations: Tensor, policy: BasePolicy) -> str:
    for what, places in (("NaN", observations.isnan()), ("infinity", observations.isinf())):
        if found := places.nonzero().tolist():
            index = found[0] if len(observations) > 1 else found[0][1:]
            return f"{what} in the observation, at index {tuple(index)}"
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            return f"NaN in the outputs: the network has diverged, {name} is not finite"
    return "NaN in the outputs, though the observation and the network's parameters have none"
