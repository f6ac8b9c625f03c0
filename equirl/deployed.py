"""A symmetrised policy as one module of tensors, from what an environment emits to actions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from equicore import Symmetrized, Tree
from equirl.choices import options_of
from equirl.held import held_view
from equirl.normalization import Normalized
from equirl.preprocessing import moves_channels
from equirl.symmetry import ChannelsFirst, Symmetry

if TYPE_CHECKING:
    from equirl.symmetrized import SymmetrizedPolicy

MASKS, VIEW, NEXT_VIEW = "action_masks", "view", "next_view"
"""Which options are allowed, the view of the step before, and that of this one."""


class Deployed(nn.Module):
    """From observations as the environment emits them to actions as ``predict`` returns them.

    It is a copy, on the CPU: what the agent learns later, it does not know.

    Attributes:
        inputs: What it is given, in order: ``observation``, or the entries of dicts; `MASKS` of a
            MaskablePPO; `VIEW` of a policy with a memory, -1 where an episode begins.
        outputs: ``action``, and of a policy with a memory `NEXT_VIEW`, for the next step.

    Args:
        policy: What is deployed.

    Raises:
        ValueError: If an entry of dicts has a name that something else has.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: SymmetrizedPolicy) -> None:
        super().__init__()
        own, model = policy.symmetrized, policy.head
        seen_by: nn.Module = model
        if policy.normalized is not None:
            seen_by = Normalized(model, policy.normalized.statistics)
        whole = Symmetrized(seen_by, own.input_rep, own.output_rep, own.reduce, top_k=own.top_k)
        # distributions, which may hold tensors that cannot be copied, are not run
        found = (vars(module).get("action_dist") for module in whole.modules())
        shared = {id(distribution): distribution for distribution in found}
        self.symmetrized = copy.deepcopy(whole, shared).cpu().eval()
        self.entries = tuple(entries_of(policy))
        self.of_dicts = isinstance(policy.policy.observation_space, spaces.Dict)
        self.channels_last = channels_last(policy)
        self.masked = model.masked
        self.hold = getattr(policy, "hold", 1.0) if policy.remembers else None
        memory = policy.remembers
        self.inputs = (*self.entries, *[MASKS] * self.masked, *[VIEW] * memory)
        self.outputs = ("action", *[NEXT_VIEW] * memory)
        others = {*self.inputs[len(self.entries) :], *self.outputs}
        if taken := [name for name in self.entries if name in others]:
            raise ValueError(
                f"observations have an entry {taken[0]!r}, and files of policies call something "
                "else so; give it another name"
            )
        space = policy.action_space
        self.options = options_of(space)
        self.shape = space.shape or ()
        self.single = isinstance(space, spaces.Discrete)
        self.as_numbers = isinstance(space, spaces.MultiBinary) and not self.masked
        if isinstance(space, spaces.Box):
            for name in ("low", "high"):
                bound = torch.from_numpy(np.array(getattr(space, name)))
                self.register_buffer(name, bound, persistent=False)

    def forward(self, *tensors: Tensor) -> Any:
        """The `outputs`, one or a tuple, each (B, ...), for `inputs`, each (B, ...)."""
        given = dict(zip(self.inputs, tensors, strict=True))
        seen: Any = {
            name: given[name].movedim(-1, 1).contiguous()
            if name in self.channels_last
            else given[name]
            for name in self.entries
        }
        seen = seen if self.of_dicts else seen["observation"]
        inputs = {"observation": seen, "mask": given[MASKS]} if self.masked else seen
        if self.hold is not None:
            outputs, views = held_view(self.symmetrized, inputs, given[VIEW], self.hold)
            return self._action(outputs), views
        return self._action(self.symmetrized(inputs))

    def _action(self, reduced: Any) -> Tensor:
        if self.options is None:
            return reduced["action"].clamp(self.low, self.high)
        if self.single:
            return reduced.argmax(-1)
        chosen = torch.stack([part.argmax(-1) for part in reduced.split(self.options, -1)], -1)
        chosen = chosen.float() if self.as_numbers else chosen
        return chosen.unflatten(-1, self.shape)


def entries_of(policy: SymmetrizedPolicy) -> dict[str, spaces.Space]:
    """The space of observations as ``observation``, or those of the entries of dicts."""
    space = policy.policy.observation_space
    return space.spaces if isinstance(space, spaces.Dict) else {"observation": space}


def channels_last(policy: SymmetrizedPolicy) -> set[str]:
    """The entries that are images whose channels the agent sees in front, and others last."""
    moved = moves_channels(policy.model)
    tree, action = policy.symmetry.observation, policy.symmetry.action
    parts = tree.by_name() if isinstance(tree, Tree) else {"observation": tree}
    found = set()
    for name, space in entries_of(policy).items():
        if not is_image_space(space):
            continue
        seen = Symmetry(parts[name], action).seen_by_agent(space, moved)
        if isinstance(seen.observation, ChannelsFirst) if moved is None else moved:
            found.add(name)
    return found
