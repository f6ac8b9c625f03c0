"""Sequence models made equivariant that write in step, for any function that makes a step.

All branches g write together: in each step the distributions of their next tokens, words put back,
are reduced to one; the token that is chosen is given, words exchanged, to every branch. Each branch
keeps a state of its own, such as a cache, so that nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equicore.reduce import Reducer
from equicore.representations import Permutation, Tokens, Tree, Trivial
from equicore.representations.base import Elements
from equicore.symmetrize import Symmetrized
from equicore.trees import leaves, tree_map

Step = Callable[[Tensor, Any], tuple[dict[str, Tensor], Any]]
"""Ids (N, T) and a state to what comes after the last of them, and the next state.

What comes is a dict: ``log_probabilities`` (N, words), and whatever else a reducer's scores are to
look at, each (N, ...).
"""


class PerToken(Reducer):
    """Reduces outputs (B, T, ...) for each of their T tokens on its own.

    Args:
        reduce: What is done for a token; its scores look at outputs, or at nothing.

    Raises:
        ValueError: If its scores look at inputs or features, which belong to no token.
    """

    def __init__(self, reduce: Reducer) -> None:
        super().__init__()
        if not reduce.needs <= {"outputs"}:
            raise ValueError(
                f"{type(reduce).__name__} weighs by {', '.join(sorted(reduce.needs))} of a whole "
                "sequence; for each token, its scores must look at outputs"
            )
        self.reduce = reduce
        self.needs, self.averages = reduce.needs, reduce.averages

    def scores(self, seen: Any, raw: Any) -> Tensor | None:
        """Those of each token, (n, B, T)."""
        scores = self.reduce.scores(None, tree_map(lambda y: y.flatten(1, 2), raw))
        return None if scores is None else scores.unflatten(1, leaves(raw)[0].shape[1:3])

    def whole(self, stack: Any, scores: Tensor | None) -> Any:
        reduced = self.reduce.whole(*_flat(stack, scores))
        shape = leaves(stack)[0].shape[1:3]
        return tree_map(lambda y: y.unflatten(0, shape), reduced)

    def partial(self, stack: Any, scores: Tensor | None, elements: Elements | None) -> Any:
        state = self.reduce.partial(*_flat(stack, scores), elements)
        return state, leaves(stack)[0].shape[1:3]

    def merge(self, first: Any, second: Any) -> Any:
        return self.reduce.merge(first[0], second[0]), first[1]

    def finish(self, state: Any) -> Any:
        return tree_map(lambda y: y.unflatten(0, state[1]), self.reduce.finish(state[0]))


def _flat(stack: Any, scores: Tensor | None) -> tuple[Any, Tensor | None]:
    """Aligned outputs (n, B T, ...), and scores (n, B T)."""
    flat = None if scores is None else scores.flatten(1, 2)
    return tree_map(lambda y: y.flatten(1, 2), stack), flat


def write_in_step(
    step: Step,
    tokens: Tokens,
    reduce: Reducer,
    first: Tensor,
    state: Any = None,
    *,
    limit: int,
    end: int | None = None,
    next_token: Permutation | None = None,
    seen: Sequence[str] = (),
    choose: Callable[[Tensor], Tensor] = lambda probabilities: probabilities.argmax(-1),
) -> Tensor:
    """Write token by token, all branches in step.

    Args:
        step: Makes a step of |G| B branches, those of each element together. It is first given
            all of ``first``, later only the token that was written last, (|G| B, 1).
        tokens: How the group acts on ids.
        reduce: Of the next token's probabilities. Its scores see a dict, of each branch: these
            ``probabilities``, ``so_far``, the log-probability of the tokens written so far, and
            what ``seen`` names.
        first: What the outputs begin with, ids (B, T), T >= 1; it is not returned.
        state: What ``step`` is given first, for |G| B branches.
        limit: Tokens to write, at most.
        end: The id after which an output has ended; it stops when all have.
        next_token: How the group acts on the next token's probabilities, if these are fewer than
            the ids.
        seen: Further entries of what ``step`` returns that the reducer's scores look at.
        choose: Picks ids (B,) by probabilities (B, words); the most likely ones when omitted.

    Returns:
        The tokens, ids (B, T').

    >>> from equicore import Best, cyclic, max_value
    >>> swap = Tokens.from_cycles(cyclic(2), [[[0, 1]]], size=3)
    >>> likely = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]]).log()
    >>> def step(ids, state):  # a table of what follows each token
    ...     return {"log_probabilities": likely[ids[:, -1]]}, state
    >>> surest = Best(lambda y: max_value(y["probabilities"]))
    >>> write_in_step(step, swap, surest, torch.tensor([[0], [1]]), limit=4)
    tensor([[1, 0, 1, 0],
            [0, 1, 0, 1]])
    """
    branches = _Branches(step, state, seen)
    parts: dict[str, Any] = dict.fromkeys(("so_far", *seen), Trivial(tokens.group))
    parts["probabilities"] = tokens.logits() if next_token is None else next_token
    symmetrized = Symmetrized(branches, tokens, Tree(parts), reduce).to(first.device)
    ended = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    written: list[Tensor] = []
    ids = first
    for _ in range(limit):
        token = choose(symmetrized(ids)["probabilities"])
        written.append(token)
        ended |= token == end
        if ended.all():
            break
        branches.follow(tokens.orbit(token))
        ids = token.unsqueeze(1)
    return torch.stack(written, dim=1) if written else first[:, :0]


class _Branches(nn.Module):
    """A step as a model of ids (N, T), which remembers the state and how likely its tokens were."""

    def __init__(self, step: Step, state: Any, seen: Sequence[str]) -> None:
        super().__init__()
        self.step, self.state, self.seen = step, state, seen
        self.so_far: Tensor | None = None

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        output, self.state = self.step(ids, self.state)
        self.last = output["log_probabilities"]
        if self.so_far is None:
            self.so_far = self.last.new_zeros(len(ids))
        shown = {name: output[name] for name in self.seen}
        return {"probabilities": self.last.exp(), "so_far": self.so_far, **shown}

    def follow(self, own: Tensor) -> None:
        """Go on from the tokens that each branch is given, ids (|G|, B)."""
        assert self.so_far is not None
        self.so_far = self.so_far + self.last.gather(-1, own.reshape(-1, 1)).squeeze(-1)
