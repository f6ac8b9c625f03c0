"""What exported policies are tried on, and whether they act as the policy does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from equirl.arrays import each
from equirl.choices import options_of
from equirl.deployed import MASKS, NEXT_VIEW, VIEW, Deployed, entries_of
from equirl.held import NO_VIEW

if TYPE_CHECKING:
    from equirl.symmetrized import SymmetrizedPolicy

CLOSE = 1e-4
"""Relative difference of numbers that two runtimes compute alike."""

Arrays = tuple[NDArray[Any], ...]
Run = Callable[..., Arrays]
"""A file as a function of its inputs, in order."""


class Trials:
    """Inputs of an exported policy, with group images among them, and what it must make of them.

    Args:
        policy: What is exported.
        module: As a module; it tells the inputs.
    """

    def __init__(self, policy: SymmetrizedPolicy, module: Deployed) -> None:
        self.policy = copy.copy(policy)
        self.policy.shown_normalized = False  # as the file is
        self.module = module
        self.generator = np.random.default_rng(0)
        self.spaces = entries_of(policy)

    def draw(self, count: int) -> Arrays:
        """Inputs of so many samples, drawn anew."""
        entries = {name: self._drawn(name, space, count) for name, space in self.spaces.items()}
        for i in range(1, count, 2):
            g = i % len(self.policy.symmetry.group)
            one = self._as_seen({name: array[i : i + 1] for name, array in entries.items()})
            moved = self.policy.symmetry.act_on_observations(g, one)
            for name, array in entries.items():
                array[i] = (moved[name] if self.module.of_dicts else moved)[0]
        given = [*entries.values()]
        if self.module.masked:
            given.append(self._drawn_masks(count))
        if self.module.hold is not None:
            order = len(self.policy.symmetry.group)
            given.append(self.generator.integers(NO_VIEW, order, size=count))
        return tuple(given)

    def _drawn(self, name: str, space: spaces.Space, count: int) -> NDArray[Any]:
        """One entry of observations, as the environment emits it."""
        if not isinstance(space, spaces.Box):
            space.seed(int(self.generator.integers(2**31)))
            return np.stack([np.asarray(space.sample()) for _ in range(count)])
        shape = count, *space.shape
        known = self.policy.normalized and self.policy.normalized.statistics
        mean: Any = known.mean if known else {}
        if known and (not isinstance(mean, dict) or name in mean):
            own = each(lambda *both: both, mean, known.deviation)
            centre, deviation = own[name] if isinstance(own, dict) else own
            drawn = centre + deviation * self.generator.normal(size=shape).clip(-2, 2)
        else:
            drawn = _within(space, self.generator, shape)
        array = drawn.astype(space.dtype)
        return np.moveaxis(array, 1, -1).copy() if name in self.module.channels_last else array

    def _drawn_masks(self, count: int) -> NDArray[np.bool_]:
        """Options that are allowed, of each choice at least one."""
        masks = []
        for options in options_of(self.policy.action_space) or ():
            allowed = self.generator.random((count, options)) < 0.7
            allowed[np.arange(count), self.generator.integers(options, size=count)] = True
            masks.append(allowed)
        return np.concatenate(masks, 1)

    def _as_seen(self, entries: dict[str, NDArray[Any]]) -> Any:
        """Entries as one observation."""
        return entries if self.module.of_dicts else entries["observation"]

    def compare(self, run: Run, given: Arrays) -> int:
        """How many actions differ only by a choice between what is alike.

        Raises:
            ValueError: If others differ.
        """
        inputs = dict(zip(self.module.inputs, given, strict=True))
        found = dict(zip(self.module.outputs, run(*given), strict=True))
        seen = self._as_seen(
            {
                name: np.moveaxis(inputs[name], -1, 1).copy()
                if name in self.module.channels_last
                else inputs[name]
                for name in self.spaces
            }
        )
        masks, view = inputs.get(MASKS), inputs.get(VIEW)
        state = starts = None
        if view is not None:
            state, starts = (view.clip(min=0),), view == NO_VIEW
        actions, _ = self.policy.predict(seen, state, starts, True, masks)
        own = found["action"]
        if own.shape != actions.shape or own.dtype != actions.dtype:
            raise ValueError(
                f"the exported policy returns {own.dtype} {own.shape} and the policy "
                f"{actions.dtype} {actions.shape}"
            )
        far = abs(own - actions) > CLOSE * (1 + abs(actions))
        rows = far.reshape(len(actions), -1).any(1).nonzero()[0]
        if not len(rows):
            return 0
        batch = self.policy.inputs(self.policy.obs_to_tensor(seen)[0], masks)
        if view is not None:
            alike = self._may_hold(batch, view, found)
        else:
            alike = self._alike(batch, own) & self._alike(batch, actions)
        if wrong := [row for row in rows if not alike[row]]:
            first = each(lambda array: array[wrong[0]], seen)
            raise ValueError(
                f"the exported policy takes other actions than the policy on {len(wrong)} of "
                f"{len(actions)} observations, as {own[wrong[0]]} in place of {actions[wrong[0]]} "
                f"for {first}; no file is left"
            )
        return len(rows)

    def _alike(self, batch: Any, found: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether actions are among those that a policy values as its own, up to rounding."""
        symmetrized, space = self.policy.symmetrized, self.policy.action_space
        options = options_of(space)
        with torch.inference_mode():
            if options is not None:
                values = symmetrized(batch).cpu()
                chosen = torch.from_numpy(found).long().reshape(len(found), -1)
                good = []
                for place, part in enumerate(values.split(options, -1)):
                    own = part.gather(-1, chosen[:, place : place + 1]).squeeze(-1)
                    good.append(_near(own, part.amax(-1)))
                return torch.stack(good).all(0).numpy()
            if not symmetrized.reduce.needs:
                return np.zeros(len(found), bool)
            scores = symmetrized.scores(batch)
            near = _near(scores, scores.amax(0)).cpu().numpy()  # (|G|, B)
        actions = self._clipped(batch)
        near = near.reshape(*near.shape, *(1,) * (actions.ndim - 2))
        # the mean of some of them lies between all
        least = np.where(near, actions, np.inf).min(0)
        most = np.where(near, actions, -np.inf).max(0)
        rounding = CLOSE * (1 + abs(found))
        inside = (found >= least - rounding) & (found <= most + rounding)
        return inside.reshape(len(found), -1).all(1)

    def _may_hold(
        self, batch: Any, before: NDArray[Any], found: dict[str, NDArray[Any]]
    ) -> NDArray[np.bool_]:
        """Whether actions are those of views that are held, or not, up to rounding."""
        reduce: Any = self.policy.symmetrized.reduce
        rows = np.arange(len(before))
        with torch.inference_mode():
            views = self.policy.symmetrized.views(batch)
            familiar = reduce.log_weights(views).numpy(force=True)
        best = familiar.max(0)
        rounding = CLOSE * (1 + abs(best))
        lost = best - familiar[before.clip(min=0), rows] - math.log(self.module.hold or 1)
        held = (before != NO_VIEW) & (lost < rounding) & (found[NEXT_VIEW] == before)
        free = (before == NO_VIEW) | (lost > -rounding)
        taken = free & (familiar[found[NEXT_VIEW], rows] >= best - rounding)
        own = self._clipped(batch)[found[NEXT_VIEW], rows]
        same = abs(own - found["action"]) <= CLOSE * (1 + abs(own))
        return (held | taken) & same.reshape(len(rows), -1).all(1)

    def _clipped(self, batch: Any) -> NDArray[Any]:
        """The actions of all views, carried back, (|G|, B, ...)."""
        space: Any = self.policy.action_space
        with torch.inference_mode():
            actions = self.policy.symmetrized.aligned(batch)["action"].numpy(force=True)
        return np.clip(actions, space.low, space.high)


def _within(
    space: spaces.Box, generator: np.random.Generator, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Numbers within bounds, where these are no larger than any number of use."""
    if not np.issubdtype(space.dtype, np.floating):
        low, high = (bound.astype(np.int64) for bound in (space.low, space.high))
        return generator.integers(low, high, size=shape, endpoint=True)
    bounded = (abs(space.low) < 1e6) & (abs(space.high) < 1e6)
    low, high = (np.where(bounded, bound, 0) for bound in (space.low, space.high))
    return np.where(bounded, generator.uniform(low, high, shape), generator.normal(size=shape))


def _near(values: Tensor, best: Tensor) -> Tensor:
    return (values >= best - CLOSE * (1 + best.abs())) | (values == best)
