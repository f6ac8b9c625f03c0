"""The files of symmetrised policies: weights as plain tensors, everything else as JSON."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equicore.lab.devices import check_device
from equicore.lab.store import part_of, read_tensors, state_tensors, write_tensors
from equirl.loading import policy_from_dict, policy_to_dict
from equirl.normalization import Statistics
from equirl.symmetry import Symmetry

if TYPE_CHECKING:
    from equirl.symmetrized import Policy, SymmetrizedPolicy

FORMAT = 2
"""Of the files that policies are saved to."""


def write(policy: SymmetrizedPolicy, path: str | Path) -> None:
    """See `SymmetrizedPolicy.save`."""
    header = {
        "policy": type(policy).__name__,
        "policy_format": FORMAT,
        "normalize": policy.normalize,
        "symmetry": policy.symmetry.to_dict(),
        "agent": policy_to_dict(policy.model),
        **policy._extra_header(),
    }
    tensors = state_tensors(agent=policy.policy, reduce=policy.symmetrized.reduce)
    if policy.normalized is not None:
        moments, numbers = policy.normalized.statistics.as_tensors()
        tensors |= {f"statistics.{name}": tensor for name, tensor in moments.items()}
        header["statistics"] = numbers
    write_tensors(path, tensors, header)


def read(cls: type[Policy], path: str | Path, device: str | torch.device) -> Policy:
    """See `SymmetrizedPolicy.load`."""
    check_device(device)
    tensors, header = read_tensors(path)
    kind = cls.kinds.get(header.get("policy", ""))
    if kind is None or not issubclass(kind, cls):
        raise ValueError(f"{path} holds {header.get('policy', 'no policy')}, not {cls.__name__}")
    if (version := header.get("policy_format", 1)) != FORMAT:
        raise ValueError(
            f"{path} is a policy of format {version}; this equirl reads {FORMAT}: wrap the agent "
            "and save it again"
        )
    try:
        agent = policy_from_dict(header["agent"], part_of(tensors, "agent"), device)
        if told := header.get("statistics"):
            known: Any = Statistics.from_tensors(part_of(tensors, "statistics"), told)
            agent.statistics = known
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
