"""What a check of a symmetry found, and how it says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from equirl.symmetry import Symmetry

SAID = ("approximate", "unknown", "false")
"""Verdicts beside which the worst case stands."""
SHOWN, MARKS = 16, 300
"""Entries of a figure, and marks of each, at most."""
TOLD = 4
"""Entries that a line names at most."""


@dataclass(frozen=True)
class Aspect:
    """One thing that should commute with the group: the dynamics, the reward, or the end.

    Attributes:
        verdict: ``exact``, ``exact up to rounding``, ``exact up to solver order``,
            ``in distribution``, ``approximate``, ``unknown`` or ``false``.
        size: Of the error: of dynamics and reward in parts of the usual changes of the worst entry
            or of rewards, what 98 % of steps keep to; of ends the part of them that differ. If
            exact up to solver order, the part of steps after which twins had come apart. Where
            transitions show nothing, the smallest size that they would have shown, of a difference
            that is everywhere alike.
        worst: The state, action, element and entry where it is largest, in words.
        note: What was not tested, in words.
    """

    verdict: str
    size: float
    worst: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was shown, up to its size."""
        return self.verdict not in ("false", "unknown")

    def __str__(self) -> str:
        part = percent(self.size)
        about = {
            "approximate": f", by {part}",
            "false": f", by {part}",
            "in distribution": f"; {part}, if everywhere alike, would have been seen"
            if self.size
            else "",
            "exact up to solver order": f"; twins came apart after {part} of the steps"
            if self.size
            else "",
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
        names: Of the entries of observations.
        entries: The error of each, in parts of its usual changes, (entries,).
        in_return: By how much rewards of twins differ in the mean, in parts of their mean size.
            None where there are no twins.
        ranges: The smallest and the largest value of each entry in what was compared, (2, entries):
            nothing is said of states beyond.
        compared: What was, in words.
        hidden: How it was seen that what no observation shows matters, too, in words.
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
    names: tuple[str, ...] = dataclasses.field(repr=False)
    entries: NDArray[np.float64] = dataclasses.field(repr=False)
    in_return: float | None
    ranges: NDArray[np.float64] = dataclasses.field(repr=False)
    compared: str
    hidden: str = ""
    lopsided: tuple[str, ...] = ()
    resembles: str | None = None
    wanted: NDArray[np.float64] = dataclasses.field(kw_only=True, repr=False)
    found: NDArray[np.float64] = dataclasses.field(kw_only=True, repr=False)

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
    def unseen(self) -> tuple[int, ...]:
        """Places of entries that had one and the same value: their signs were not tested."""
        return tuple(np.flatnonzero(np.ptp(self.ranges, 0) < 1e-12).tolist())

    @property
    def _word(self) -> str:
        seen = " in what observations show" if self.hidden else ""
        if self.holds and "in distribution" in self.verdicts:
            return f"is not refuted{seen} by transitions, which miss errors that average out"
        if self.holds:
            return f"holds{' approximately' if 'approximate' in self.verdicts else ''}{seen}"
        return "is FALSE" if self.false else "is not shown"

    @property
    def verdict(self) -> str:
        """All of it in a few lines."""
        lines = [f"{self.environment}: the symmetry {self._word}"]
        for name in ("dynamics", "reward", "termination"):
            aspect: Aspect = getattr(self, name)
            lines.append(f"  {name}: {aspect}")
            told = (aspect.worst if aspect.verdict in SAID else "", aspect.note)
            lines += [f"    {line}" for line in told if line]
        if self.in_return is not None and self.holds and self.reward.verdict == "approximate":
            lines.append(f"  return: rewards differ by {percent(self.in_return)} in the mean")
        if self.unseen:
            lines.append(f"  never changed, so not tested: {_some(self.unseen_names)}")
        lines.append(
            f"  first states: lopsided in {_some(self.lopsided)}; an agent may never see the "
            "transformed ones"
            if self.lopsided
            else "  first states: symmetric, as far as resets tell"
        )
        if self.hidden:
            lines.append(f"  not shown, and not tested: {self.hidden}")
        lines.append(f"  compared: {self.compared}; {_some(self._told_ranges())}")
        if self.resembles:
            lines.append(f"  it would hold with one change: {self.resembles}")
        return "\n".join(lines)

    @property
    def unseen_names(self) -> list[str]:
        """The names of `unseen`."""
        return [self.names[place] for place in self.unseen]

    def _told_ranges(self) -> list[str]:
        return [
            f"{name} {low:.3g} to {high:.3g}"
            for name, low, high in zip(self.names, *self.ranges, strict=True)
            if high > low
        ]

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
        twins = self.in_return is not None
        for axis, entry in zip(axes, every, strict=True):
            both = np.stack([self.wanted[:, entry], self.found[:, entry]])
            both = both if twins else np.sort(both, 1)
            some = np.linspace(0, both.shape[1] - 1, min(MARKS, both.shape[1])).astype(int)
            low, high = both.min(), both.max()
            axis.plot([low, high], [low, high], color="#999999", linewidth=1)
            axis.plot(*both[:, some], ".", color="#0072b2", markersize=3)
            axis.set_title(f"{self.names[entry]}: {percent(self.entries[entry])}", fontsize=8)
            axis.tick_params(labelsize=6)
            figures.tidy(axis)
        figure.suptitle(self.summary, fontsize=8, wrap=True)
        figure.supxlabel("wanted by the symmetry", fontsize=8)
        figure.supylabel("found", fontsize=8)
        return figures.save(figure, stem)

    def __str__(self) -> str:
        return self.verdict


def name_of(env: gym.Env) -> str:
    """An environment's id, or the name of its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def percent(part: float) -> str:
    """A part of one in per cent, by two digits."""
    return f"{float(f'{100 * part:.2g}'):g} %"


def short(values: Any) -> str:
    """An array in a line."""
    values = np.asarray(values)
    if values.ndim > 1:
        return f"an array {values.shape} from {values.min():.3g} to {values.max():.3g}"
    return np.array2string(values, precision=3, threshold=12, max_line_width=10_000)


def alike_note(rewards: NDArray[Any]) -> str:
    """That rewards do not differ, in words; empty if they do."""
    return "" if np.ptp(rewards) > 0 else f"all rewards were {rewards.flat[0]:.3g}"


def ranges_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest and the largest value of each entry, (2, entries), of values (N, entries)."""
    return np.stack([values.min(0), values.max(0)])


def check_finite(
    env: gym.Env,
    names: Sequence[str],
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    rewards: NDArray[Any],
) -> None:
    """Raise ValueError if observations (N, entries) or rewards are NaN or infinite."""
    wrong = ~np.isfinite(one).all(0) | ~np.isfinite(other).all(0)
    if wrong.any() or not np.isfinite(rewards).all():
        what = f"the entry {names[int(wrong.argmax())]!r}" if wrong.any() else "the reward"
        raise ValueError(f"{what} of {name_of(env)} is NaN or infinite in some steps")


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:TOLD]) + (" ..." if len(words) > TOLD else "")
