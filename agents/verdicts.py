"""What a comparison says, in plain words, and no more than its intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from equicore.lab import statistics
from equicore.lab.statistics import Estimate
from equirl.agents.plot import as_array

RANDOM = "random"
"""What plays actions that are drawn at random, in the environment as it is."""


@dataclass(frozen=True)
class Chosen:
    """The policy that a race has chosen for an agent in a condition, also in words."""

    env: str
    budget: int
    condition: str
    policy: str
    words: str


Differences = dict[str, Estimate]
"""How each policy differs from plain."""


def verdicts(summary: pd.DataFrame) -> list[str]:
    """A line for each comparison to plain, and one where all of them agree.

    Args:
        summary: What `equirl.agents.compare.summarize` returns.
    """
    lines = []
    groups = summary.groupby(["environment", "steps", "condition"], sort=False)
    for (env, steps, condition), rows in groups:
        where = f"{env}, {steps:,} steps, {condition}"
        differences = _differences(rows)
        lines += [f"{where}: {statistics.verdict(n, d)}" for n, d in differences.items()]
        if together := _together(differences, _these(rows)):
            lines.append(f"{where}: {together}")
    return lines


def advice(
    summary: pd.DataFrame, chosen: Sequence[Chosen] = (), cautious: Sequence[str] = ()
) -> list[str]:
    """For each environment and budget the policy to use, or that none is known yet.

    Args:
        summary: See `verdicts`.
        chosen: What was selected by other episodes, if anything was.
        cautious: What `cautions` returns.
    """
    lines = []
    for (env, steps), rows in summary.groupby(["environment", "steps"], sort=False):
        where = f"{env}, {steps:,} steps:"
        if any(line.startswith(where) for line in cautious):
            where += " unless the warning of random actions applies,"
        own = [choice for choice in chosen if (choice.env, choice.budget) == (env, steps)]
        if own:
            lines.append(f"{where} {_selected(own)}, by episodes of the race's own")
            continue
        conditions = {c: _differences(r) for c, r in rows.groupby("condition", sort=False)}
        lines.append(f"{where} {_advice(conditions, _these(rows))}")
    return lines


def _selected(chosen: Sequence[Chosen]) -> str:
    """What was selected, if it is the same for all agents: in all conditions, or in each."""
    each = {
        condition: {choice.policy for choice in chosen if choice.condition == condition}
        for condition in dict.fromkeys(choice.condition for choice in chosen)
    }
    if any(len(policies) > 1 for policies in each.values()):
        return "use for each agent the policy that was chosen for it, see above"
    words = {condition: f"use {policies.pop()}" for condition, policies in each.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{condition}, {word}" for condition, word in words.items())


def cautions(returns: pd.DataFrame) -> list[str]:
    """A line for the agents that do no better than random actions, in each environment and budget.

    Args:
        returns: What `equirl.agents.compare.compare` returns.
    """
    lines = []
    original = returns[returns.condition == "original"]
    for (env, steps), rows in original.groupby(["env", "budget"], sort=False):
        chance = rows[rows.policy == RANDOM]
        if chance.empty:
            continue
        own, drawn = as_array(rows[rows.policy == "plain"]), as_array(chance)
        poor = [
            f"{agent} ({one.mean():.1f} to {other.mean():.1f})"
            for agent, one, other in zip(sorted(rows.agent.unique()), own, drawn, strict=True)
            if statistics.mean_difference(one[None], other[None]).low <= 0
        ]
        if poor:
            lines.append(
                f"{env}, {steps:,} steps: WARNING: plain is not clearly better than random actions:"
                f" {', '.join(poor)}. Such an agent has learned nothing yet, or it saw something "
                "else in its training (VecNormalize, stacked frames, wrappers, another version of "
                "the environment), and then nothing here is about it"
            )
    return lines


def _differences(rows: pd.DataFrame) -> Differences:
    differences: dict[Any, Any] = dict(zip(rows.policy, rows["minus plain"], strict=True))
    return {n: d for n, d in differences.items() if n not in ("plain", RANDOM)}


def _these(rows: pd.DataFrame) -> str:
    agents = rows.agents.iloc[0]
    return "this agent" if agents == 1 else f"these {agents} agents"


def _together(differences: Differences, these: str) -> str:
    """What equitune and equizero agree about, if they do."""
    fixed = [differences[name] for name in ("equitune", "equizero") if name in differences]
    if all(difference.low > 0 for difference in fixed):
        return f"symmetrising helps {these}"
    if not all(difference.high < 0 for difference in fixed):
        return ""
    text = f"equitune and equizero hurt {these}, or the symmetry is wrong (see its check above)"
    learned = differences.get("lambda")
    if learned is None or learned.high < 0:
        return text
    if learned.low >= 0:
        return f"{text}; learned weights (lambda) do not"
    return (
        f"{text}; of learned weights (lambda) that is not known: they may cost {-learned.low:.3g}"
    )


def _advice(conditions: Mapping[Any, Differences], these: str) -> str:
    """What to use in all conditions, or else in each."""
    everywhere = {
        name: [differences[name] for differences in conditions.values()]
        for name in next(iter(conditions.values()))
    }
    good = {
        name: sum(d.value for d in found)
        for name, found in everywhere.items()
        if any(d.low > 0 for d in found) and not any(d.high < 0 for d in found)
    }
    if good:
        best = max(good, key=lambda name: good[name])
        return (
            f"use {best} for {these}, provided that the symmetry is true; of those that are "
            "clearly better it gained most in these very episodes, --select chooses by others"
        )
    each = {condition: _advice_for(differences) for condition, differences in conditions.items()}
    if len(set(each.values())) == 1:
        return f"{next(iter(each.values()))} for {these}"
    return "; ".join(f"{condition}, {words}" for condition, words in each.items())


def _advice_for(differences: Differences) -> str:
    """What to use in one condition."""
    better = {name: d.value for name, d in differences.items() if d.low > 0}
    if better:
        return f"use {max(better, key=lambda name: better[name])}"
    if all(d.high <= 0 for d in differences.values()):
        return "use plain, as nothing is better"
    return "nothing is known yet, play more episodes; until then use plain"
