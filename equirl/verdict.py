"""What a check of a symmetry found, and how it says so."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equirl.symmetry import Symmetry

SAID = ("approximate", "unknown", "false")
"""Verdicts beside which the worst case stands."""
SHOWN, MARKS = 16, 300
"""Entries of a figure, and marks of each, at most."""


@dataclass(frozen=True)
class Aspect:
    """One thing that should commute with the group: the dynamics, the reward, or the end.

    Attributes:
        verdict: ``exact``, ``exact up to rounding``, ``exact up to solver order``,
            ``in distribution``, ``approximate``, ``unknown`` or ``false``.
        size: Of the error: of dynamics and reward the root mean square, in parts of the changes of
            the worst entry, or of the rewards' spread; of the end the part of steps that differ.
            Where transitions show none, the smallest size that they would have shown.
        worst: The state, action, element and entry where it is largest, in words.
    """

    verdict: str
    size: float
    worst: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was shown, up to its size."""
        return self.verdict not in ("false", "unknown")

    def __str__(self) -> str:
        part = f"{100 * self.size:.2g} %"
        about = {
            "approximate": f", by {part}",
            "false": f", by {part}",
            "in distribution": f"; {part} would have been seen",
            "exact up to solver order": f", within {part}" if self.size > 1e-12 else "",
        }
        return self.verdict + about.get(self.verdict, "")


@dataclass(frozen=True)
class Check:
    """What `check_symmetry` found.

    Attributes:
        environment: Its id.
        symmetry: What was checked.
        dynamics: Of the next observations.
        reward: Of the rewards.
        termination: Of whether an episode ends.
        entries: The error of each entry of next observations, in parts of its changes.
        in_return: By how much rewards of twins differ at most in the mean, in parts of their mean
            size: an episode's return differs by no more, as long as twins stay together. None
            where there are no twins.
        unseen: Places of entries that had one and the same value in all steps: whether their signs
            are right was not tested.
        lopsided: Entries whose first values are not drawn symmetrically: an agent may never see the
            transformed states. The symmetry can be true all the same.
        resembles: The symmetry that is nearest by one change and is true, in words, if this one is
            false.
        wanted: What next observations should be, by the symmetry: (N, entries).
        found: What they were, of twins; or the next observations of other transitions.
    """

    environment: str
    symmetry: Symmetry
    dynamics: Aspect
    reward: Aspect
    termination: Aspect
    entries: NDArray[np.float64] = dataclasses.field(repr=False)
    in_return: float | None
    unseen: tuple[int, ...]
    lopsided: tuple[str, ...]
    resembles: str | None
    wanted: NDArray[np.float64] = dataclasses.field(repr=False)
    found: NDArray[np.float64] = dataclasses.field(repr=False)

    @property
    def holds(self) -> bool:
        """Whether dynamics, reward and termination were shown to commute with the group."""
        return self.dynamics.holds and self.reward.holds and self.termination.holds

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        aspects = {n: str(getattr(self, n)) for n in ("dynamics", "reward", "termination")}
        alike = len(set(aspects.values())) == 1
        said = aspects["dynamics"] if alike else ", ".join(f"{n} {v}" for n, v in aspects.items())
        return f"{self.environment}: the symmetry {self._word} ({said})"

    @property
    def verdicts(self) -> tuple[str, str, str]:
        """Of dynamics, reward and termination."""
        return self.dynamics.verdict, self.reward.verdict, self.termination.verdict

    @property
    def false(self) -> bool:
        """Whether one of them does not, rather than that it was not shown."""
        return "false" in self.verdicts

    @property
    def _word(self) -> str:
        if self.holds:
            return "holds"
        return "is FALSE" if self.false else "is not shown"

    @property
    def verdict(self) -> str:
        """All of it in a few lines."""
        lines = [f"{self.environment}: the symmetry {self._word}"]
        for name in ("dynamics", "reward", "termination"):
            aspect: Aspect = getattr(self, name)
            lines.append(f"  {name}: {aspect}")
            unseen = name == "termination" and not aspect.size
            if aspect.worst and (unseen or aspect.verdict in SAID):
                lines.append(f"    {aspect.worst}")
        if self.in_return is not None and self.holds and self.reward.verdict == "approximate":
            lines.append(f"  return: differs by {100 * self.in_return:.2g} % at most")
        if self.unseen:
            every = self.symmetry.names_of("observation", len(self.entries))
            names = [every[place] for place in self.unseen]
            more = " ..." if len(names) > 4 else ""
            lines.append(f"  never changed, so not tested: {', '.join(names[:4])}{more}")
        some = ", ".join(self.lopsided[:4]) + (" ..." if len(self.lopsided) > 4 else "")
        lines.append(
            f"  first states: lopsided in {some}; an agent may never see the transformed ones"
            if self.lopsided
            else "  first states: symmetric, as far as resets tell"
        )
        if self.resembles:
            lines.append(f"  it would hold with one change: {self.resembles}")
        return "\n".join(lines)

    def plot(self, stem: Path) -> list[Path]:
        """Draw what was found against what the symmetry wants, for the entries that err most.

        Of twins each mark is a step; of transitions it is a quantile, of next observations and of
        transformed ones.

        Args:
            stem: The file without its ending; a PNG and, unless it is large, an SVG are written.

        Returns:
            The files.
        """
        from equicore.lab import figures  # draws, which policies need not

        every = self.entries.argsort()[::-1][:SHOWN]
        figure, axes = figures.panels(len(every), (1.9, 1.7), columns=4)
        names = self.symmetry.names_of("observation", len(self.entries))
        twins = self.in_return is not None
        for axis, entry in zip(axes, every, strict=True):
            both = np.stack([self.wanted[:, entry], self.found[:, entry]])
            both = both if twins else np.sort(both, 1)
            some = np.linspace(0, both.shape[1] - 1, min(MARKS, both.shape[1])).astype(int)
            low, high = both.min(), both.max()
            axis.plot([low, high], [low, high], color="#999999", linewidth=1)
            axis.plot(*both[:, some], ".", color="#0072b2", markersize=3)
            axis.set_title(f"{names[entry]}: {100 * self.entries[entry]:.2g} %", fontsize=8)
            axis.tick_params(labelsize=6)
            figures.tidy(axis)
        figure.suptitle(self.summary, fontsize=8, wrap=True)
        figure.supxlabel("wanted by the symmetry", fontsize=8)
        figure.supylabel("found", fontsize=8)
        return figures.save(figure, stem)

    def __str__(self) -> str:
        return self.verdict
