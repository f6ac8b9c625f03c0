"""Actions of several choices at once: ``MultiDiscrete`` and ``MultiBinary``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from equicore import Group, Permutation, Representation
from equicore.representations.base import is_traced


class Choices(Representation):
    """Acts on several choices, each of some options, by permuting all options together.

    An action of ``MultiDiscrete([3, 2])`` makes two choices; its options are the three of the first
    and the two of the second, numbered 0 to 4 in this order, as in the logits of an agent.

    Args:
        group: The group that acts.
        permutations: Integers (|G|, options), as of a `Permutation`: the options of one choice go
            to those of one choice.
        options: How many options each choice has.

    Raises:
        ValueError: If the permutations are not those of a representation, or tear a choice apart.

    >>> from equicore import cyclic
    >>> mirror = Choices(cyclic(2), [[0, 1, 2, 3, 4], [2, 1, 0, 3, 4]], [3, 2])
    >>> mirror.act(1, torch.tensor([[0, 1]]))
    tensor([[2, 1]])
    """

    first: Tensor
    choice: Tensor

    def __init__(self, group: Group, permutations: ArrayLike, options: Sequence[int]) -> None:
        super().__init__(group)
        self.options = tuple(int(number) for number in options)
        self.entries = Permutation(group, permutations)
        if self.entries.size != sum(self.options):
            raise ValueError(
                f"{sum(self.options)} options have permutations of as many numbers; got "
                f"{self.entries.size}"
            )
        choice = np.repeat(np.arange(len(self.options)), self.options)
        rows = self.entries.permutations.numpy()
        for g, row in enumerate(rows):
            for place, number in enumerate(self.options):
                goes = set(choice[row[choice == place]].tolist())
                if len(goes) > 1 or self.options[min(goes)] != number:
                    raise ValueError(
                        f"element {g} ({group.names[g]}) does not take the {number} options of "
                        f"choice {place} to those of one choice"
                    )
        self.axes = (-1,)
        self.keep("first", np.cumsum([0, *self.options[:-1]]))
        self.keep("choice", choice)

    @classmethod
    def of(cls, representation: Representation, options: Sequence[int]) -> Choices:
        """Of a `Permutation` of choices, whose options keep their order, or of all options.

        Raises:
            ValueError: If the representation does not act on such actions.
        """
        options = tuple(int(number) for number in options)
        if isinstance(representation, Choices) and representation.options == options:
            return representation
        group = representation.group
        rows: NDArray[Any] = getattr(representation, "permutations", torch.zeros(0, 0)).numpy()
        if isinstance(representation, Permutation) and rows.shape[1] == sum(options):
            return cls(group, rows, options)
        if isinstance(representation, Permutation) and rows.shape[1] == len(options):
            first = np.cumsum([0, *options[:-1]])
            if any(options[row[i]] != n for row in rows for i, n in enumerate(options)):
                raise ValueError(
                    f"choices of {list(options)} options cannot change places where these differ"
                )
            return cls(
                group,
                [np.concatenate([first[row[i]] + np.arange(n) for i, n in enumerate(options)])
                 for row in rows],
                options,
            )  # fmt: skip
        raise ValueError(
            f"on choices of {list(options)} options acts equirl.choices.Choices, or a Permutation "
            f"of {len(options)} choices or of {sum(options)} options; got {representation}"
        )

    def act(self, g: int, x: Tensor) -> Tensor:
        """Move options (..., options), or actions (..., choices), which are numbers of options."""
        if x.shape[-1] == self.entries.size:
            return self.entries.act(g, x)
        if x.shape[-1] != len(self.options):
            raise ValueError(
                f"actions make {len(self.options)} choices of {self.entries.size} options; got "
                f"the shape {tuple(x.shape)}"
            )
        if not is_traced():
            most = torch.tensor(self.options, device=x.device)
            if (wrong := ((x < 0) | (x >= most))).any():
                raise ValueError(
                    f"choices are numbers of their {list(self.options)} options, from 0; got "
                    f"{x[wrong.any(-1)][0].tolist()}"
                )
        moved = self.entries.act_on_labels(g, x.long() + self.first)
        goes = self.choice[moved]
        return torch.empty_like(x).scatter_(-1, goes, (moved - self.first[goes]).to(x.dtype))

    def arguments(self) -> dict[str, Any]:
        """See `equicore.Representation`."""
        return {
            "permutations": self.entries.permutations.tolist(),
            "options": list(self.options),
        }


def on_options(action: Representation, space: spaces.Space) -> Representation:
    """How a group that acts on actions acts on numbers for their options, as values and masks."""
    options = options_of(space)
    assert options is not None
    return action if isinstance(space, spaces.Discrete) else Choices.of(action, options).entries


def options_of(space: spaces.Space) -> tuple[int, ...] | None:
    """How many options each choice of an action has; None for other actions than choices."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(space.nvec.tolist())
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return (2,) * space.shape[0]
    return None
