"""The base of all symmetrised policies: drop-in for an agent where actions are predicted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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
from equicore.reduce import Reducer
from equirl.algorithms import head_of
from equirl.arrays import Observations, rows_of, shape_of
from equirl.choices import options_of
from equirl.compiled import Compiled
from equirl.export import Exported, export
from equirl.heads import Head, Normalization, Outputs
from equirl.normalization import Normalized, normalizing, statistics_of
from equirl.observed import Observed
from equirl.preprocessing import changes, moves_channels
from equirl.registry import Env, symmetry_of
from equirl.saving import read, write
from equirl.symmetry import Symmetry

Observation = Observations
Agent = BaseAlgorithm | BasePolicy
Policy = TypeVar("Policy", bound="SymmetrizedPolicy")


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
        source, space = statistics_of(model), policy.observation_space
        if isinstance(symmetry, VecNormalize) and not isinstance(source, VecNormalize | None):
            raise ValueError(
                "this agent normalises its observations itself, by the statistics beside its file, "
                "and a VecNormalize would do it once more; give the environment inside of that"
            )
        seen_by = normalizing(model, head)
        self.normalized = seen_by if isinstance(seen_by, Normalized) else None
        if self.normalized is not None and not self.normalized.statistics.fits(space):
            raise ValueError(
                f"this agent sees observations of shape {shape_of(space)}, and its statistics are "
                f"of {self.normalized.statistics.shape}: observations were stacked or turned after "
                "they were normalised, which is not supported; normalise outside of that"
            )
        # an agent with its VecNormalize is shown what that emits, one from a file what its
        # environment does
        self.shown_normalized = isinstance(source, VecNormalize)
        self._as_it_is = not head.masked and source is None
        self.symmetrized = Symmetrized(seen_by, observation, outputs, reduce, top_k=top_k).to(
            policy.device
        )
        self._compiled = Compiled(self.symmetrized)
        self._drawn: list[Compiled] = []
        # plain attributes, as looking up a submodule costs a microsecond each time
        self._parts = (head, policy)
        self._observed = Observed(policy)
        self._discrete = options_of(policy.action_space) is not None

    def __init_subclass__(cls) -> None:
        """Make the subclass known to `load`."""
        SymmetrizedPolicy.kinds[cls.__name__] = cls

    def __repr__(self) -> str:
        """As in ``EquizeroPolicy(DQNPolicy, Box(4,) to Discrete(2), cyclic(2))``."""
        kind, space = type(self.policy).__name__, self.action_space
        actions = f"{type(space).__name__}{space.shape}" if space.shape else space
        group, space = self.symmetry.group.name, self.observation_space
        seen = f"Box{space.shape}"
        if isinstance(space, spaces.Dict):
            seen = f"Dict({', '.join(space)})"
        return f"{type(self).__name__}({kind}, {seen} to {actions}, {group})"

    @property
    def head(self) -> Head:
        """What the agent exposes."""
        return self._parts[0]

    @property
    def remembers(self) -> bool:
        """Whether `predict` acts by what went before, by the ``state`` that it returns."""
        return False

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
            observation: One observation, or a batch of shape (B, ...); or a dict of them.
            state: What the call before returned; only a `LambdaEquitunePolicy` of continuous
                actions has a memory, others return it as it is.
            episode_start: Whether an episode begins with this observation, shape (B,).
            deterministic: If False, a whole DQN acts at random with the probability
                ``model.exploration_rate``, and agents that have a distribution draw actions: of
                choices from what the views' probabilities are reduced to, of vectors from the
                distribution of one view. Evaluate with True.
            action_masks: Of a MaskablePPO: which options are allowed, (options,) of one
                observation or (B, options); all when omitted.

        Returns:
            The actions, of one observation or of a batch (B, ...); and the state for the next call.

        Raises:
            TypeError: If there are masks, and the agent takes none.
            ValueError: If the observation does not fit the observation space or is not finite, or
                there is a NaN in the agent's outputs, or masks are not as many as options.
        """
        if action_masks is not None and not self.head.masked:
            raise TypeError(f"{type(self.policy).__name__} takes no action_masks")
        explores = not deterministic and not isinstance(observation, tuple)
        if explores and np.random.rand() < getattr(self.model, "exploration_rate", 0.0):
            space = self.action_space
            if not self.is_vectorized_observation(observation):
                return np.array(space.sample()), state
            samples = [space.sample() for _ in range(rows_of(observation))]
            return np.array(samples, space.dtype), state
        if isinstance(observation, tuple):  # the agent's own message says what is wrong
            return self.policy.predict(observation, state, episode_start, deterministic)
        # what `BasePolicy.predict` does, in a fraction of its time
        batch, vectorized = self.obs_to_tensor(observation)
        actions, state = self._act(batch, deterministic, action_masks, state, episode_start)
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
        if not rows_of(batch):
            return np.zeros((0, self.action_space.n), np.float32)
        values = self._reduced(self.inputs(batch), self._compiled)
        assert isinstance(values, np.ndarray)
        return values if vectorized else values.squeeze(axis=0)

    def obs_to_tensor(self, observation: Observation) -> tuple[Any, bool]:
        """The observations as a tensor (B, ...), or a dict, and whether they came as a batch.

        Raises:
            ValueError: If they do not fit the observation space, or are not all finite.
        """
        return self._observed.tensors(observation)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return torch.from_numpy(self._act(observation, deterministic, None, None, None)[0])

    def _act(
        self,
        batch: Any,
        deterministic: bool,
        masks: NDArray[Any] | None,
        state: Any,
        episode_start: NDArray[Any] | None,
    ) -> tuple[NDArray[Any], Any]:
        """Actions, and the state for the next call."""
        if not rows_of(batch):  # what Stable-Baselines3 itself cannot always do
            nothing = np.zeros((0, *(self.action_space.shape or ())), self.action_space.dtype)
            return nothing, state
        compiled = self._compiled
        if not (deterministic or self._discrete):
            if not self._drawn:
                self._drawn.append(Compiled(self._drawing()))
            compiled = self._drawn[0]
        inputs = batch if self._as_it_is else self.inputs(batch, masks)
        outputs, state = self._next(inputs, compiled, state, episode_start)
        return self._parts[0].actions(outputs, deterministic), state

    def _next(
        self, inputs: Any, compiled: Compiled, state: Any, episode_start: NDArray[Any] | None
    ) -> tuple[Outputs, Any]:
        """What the views are reduced to after what went before, and the state after it."""
        return self._reduced(inputs, compiled), state

    def inputs(self, batch: Any, masks: NDArray[Any] | None = None) -> Any:
        """What the views are made of: observations, and masks where the agent takes them."""
        if self.normalized is not None and self.shown_normalized:
            self.normalized.refresh()
            batch = self.normalized.emitted(batch)
        if not self.head.masked:
            return batch
        shape = rows_of(batch), sum(options_of(self.action_space) or ())
        if masks is None:
            mask = torch.ones(shape, dtype=torch.bool)
        else:
            mask = torch.from_numpy(np.array(masks, dtype=bool))
            if mask.numel() != math.prod(shape):
                raise ValueError(
                    f"action_masks of shape {tuple(mask.shape)} do not fit {shape[0]} observations "
                    f"and {shape[1]} options"
                )
        return {"observation": batch, "mask": mask.reshape(shape).to(self.policy.device)}

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

    def _reduced(self, inputs: Any, compiled: Callable[[Any], Any]) -> Outputs:
        """What the views are reduced to, as arrays."""
        policy = self._parts[1]
        if policy.training:
            policy.set_training_mode(False)
        with torch.inference_mode():
            reduced = compiled(inputs)
        outputs: Any
        if isinstance(reduced, Tensor):
            outputs = values = reduced.numpy(force=True)
        else:
            outputs = {name: y.numpy(force=True) for name, y in reduced.items()}
            values = outputs["action"]
        if math.isnan(values.item(values.argmax())):  # where numpy finds a NaN, if there is one
            raise ValueError(_explain_nan(policy))
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
        write(self, path)

    @classmethod
    def load(cls: type[Policy], path: str | Path, device: str | torch.device = "auto") -> Policy:
        """Read a policy that `save` wrote; executes no code of the file's.

        Args:
            path: The file.
            device: For the agent's networks.

        Returns:
            The policy; its ``model`` is the agent's policy, without the algorithm around it. It
            takes what the environment emits: statistics of a ``VecNormalize`` are in the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is none of equirl's, damaged, or of another policy class, or
                there is no such device.
        """
        return read(cls, path, device)

    def export(self, path: str | Path) -> Exported:
        """Write what `predict` does, with ``deterministic=True``, as a file that needs no equirl.

        It takes ``observation``, a batch of any size as the environment emits it, in the space's
        type, or each entry of dicts by its name; of a MaskablePPO also bools ``action_masks`` (B,
        options). It returns ``action``. A policy with a memory also takes ``view``, whole numbers
        (B,), -1 where an episode begins, and returns ``next_view`` for the next step.
        The agent's networks and the statistics of a ``VecNormalize`` that still learns are those of
        now. Before the file appears, it is compared with the policy on observations of the space
        and on their group images, 1 and 64 at a time.

        Args:
            path: ``*.onnx`` (extra ``export``), or ``*.pt2`` for ``torch.export.load``. The file
                appears whole or not at all.

        Returns:
            What was compared.

        Raises:
            ValueError: If the suffix is another, or the file takes other actions.
            ImportError: If a package that ONNX needs is missing.
        """
        return export(self, path)

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
    around = [] if env is None else [name for name in changes(env) if name != known]
    if around and around != ([] if isinstance(symmetry, str) else changes(symmetry)):
        raise ValueError(
            f"this agent sees its environment through {', '.join(around)}, and the registered "
            "symmetry is that of the environment itself; pass the environment that the agent sees, "
            "as by model.get_env(), or the Symmetry of that"
        )
    return found


def _explain_nan(policy: BasePolicy) -> str:
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            return f"NaN in the outputs: the network has diverged, {name} is not finite"
    return "NaN in the outputs, though the observation and the network's parameters have none"
