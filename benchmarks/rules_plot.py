"""What rules.py asks agents in advance; its page, tables and figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from gymnasium import spaces
from scipy import stats

from equicore import WeightedMean
from equicore.lab import figures
from equicore.lab.statistics import Estimate
from equicore.lab.store import write_text
from equicore.lab.tables import markdown, write_csv
from equirl.agents.policies import Subject
from equirl.experience import Experience, rollout_experience
from equirl.seeds import ROLLOUT_SEED

SHARP = 0.9
"""Familiarity is sharp at a state where the largest weight is at least this."""
HORIZON = 0.97
"""Largest discount of the returns that values are compared with, so that rollouts hold them."""
ROUNDING = 1e-4
"""In parts of the range; actions nearer than that are the same."""
STARTS = 100
"""Episodes whose first states are looked at."""
LEVEL = 0.05
"""Chance, at most, that any difference of the whole table is called clear where there is none."""
OF_AGENT = {
    "sharpness": "familiarity: mean largest weight",
    "not_sharp": "familiarity: states with no weight of 0.9",
    "familiar_is_own": "familiarity: states whose heaviest view is the agent's own",
    "disagreement": "disagreement of the views' actions",
    "value_prefers_own": "value: states whose own view it prefers",
    "familiarity_of_valued": "value: mean familiarity of the view that it prefers",
    "optimism": "value of the best other view minus that of the own, in deviations",
    "value_gap": "size of the difference of the two values, in deviations",
    "value_agrees": "value of the own view: correlation with that of the best other",
    "value_knows_return": "value: correlation with the return that follows",
    "mirrored_value_knows_return": "value of the best other view: the same correlation",
}
"""What is asked of an agent alone; its heading in tables."""
OF_RULE = {
    "moved": "how far its actions are from the agent's",
    "other_view": "states in which it acts otherwise",
    "other_first": "first states of episodes in which it acts otherwise",
}
"""What is asked of an agent and a rule."""
PLAYED = (
    "agent", "algorithm", "env", "rule", "condition", "mean_return", "low", "high", "difference",
    "difference_low", "difference_high", "n_episodes", "p_value", "verdict", "share",
)  # fmt: skip
EXPLAINED = """\
plain: the agent as it is. equitune: the mean of the views' actions. equizero: the action of the
view that the agent values most, by the smallest of its critics or by V. critic mean: by the mean
of its critics. critic of all: the action a_g that has the largest mean over h of Q(h s, h a_g).
soft value: of the view whose mean critic over drawn actions is largest. likelihood: the action
a_g whose mean density over all aligned policies is largest. lambda: of the most familiar view
(of choices, the mean weighted by familiarity and sureness). lambda blend: the mean weighted by
familiarity. best of familiar: equizero among the views that are at least a tenth as familiar as
the most familiar one. longer: familiarity fitted in 5,000 steps, not in 1,000. held: another
view than in the step before only if it is 1,000 times as familiar. Longer and held were thought of
after the first results of the BipedalWalker and LunarLanderContinuous agents, so these flatter
them. All rules but plain are equivariant: an episode and its transform have the same return, up to
what rounding leads to, so the two conditions are no independent evidence."""


def ask(subject: Subject, policies: dict[str, Any], weight: torch.nn.Module) -> pd.DataFrame:
    """Diagnostics on rollouts of the plain agent that its familiarity was not fitted on.

    Columns: ``moved`` is how far a rule's actions are from the agent's own, in parts of the range,
    or the part of states in which they differ where they are choices; ``other_view`` the part of
    states in which they differ at all, ``other_first`` of the first states of episodes. The others
    are alike for all rules, see `OF_AGENT`.
    """
    fresh = rollout_experience(
        subject.model, subject.agent.env_id, subject.transitions, seed=ROLLOUT_SEED + 1000,
        env_kwargs=subject.agent.env_kwargs,
    )  # fmt: skip
    states, space = fresh.observations, subject.model.action_space

    def apart(actions: Any, others: Any) -> Any:  # of each state
        if isinstance(space, spaces.Box):
            actions, others = (np.clip(a, space.low, space.high) for a in (actions, others))
            gaps = np.abs(actions - others) / (space.high - space.low)
        else:
            gaps = actions != others
        return gaps.reshape(len(actions), -1).mean(1)

    def other_than_own(rule: str, states: Any) -> Any:
        own = subject.model.predict(states, deterministic=True)[0]
        return apart(policies[rule].predict(states, deterministic=True)[0], own)

    env = subject.agent.make()
    firsts = np.stack([env.reset(seed=ROLLOUT_SEED + 1000 + k)[0] for k in range(STARTS)])
    env.close()
    gaps = {rule: other_than_own(rule, states) for rule in policies}
    at_first = {rule: (other_than_own(rule, firsts) > ROUNDING).mean() for rule in policies}
    policy = policies["equizero" if "equizero" in policies else "equitune"]
    with torch.inference_mode():
        inputs = policy.inputs(policy.obs_to_tensor(states)[0])
        aligned = policy.symmetrized.aligned(inputs)
        weights = WeightedMean(weight)
        familiar = weights.scores(policy.symmetrized.views(inputs), None).softmax(0).numpy()
    continuous = isinstance(aligned, dict)
    actions = aligned["action"] if continuous else aligned.argmax(-1)
    values = policy.head.value(aligned).double().numpy() if policy.head.values_views else None
    largest = familiar.max(0)
    told: dict[str, float] = {
        "sharpness": largest.mean(),
        "not_sharp": (largest < SHARP).mean(),
        "familiar_is_own": (familiar.argmax(0) == 0).mean(),
        "disagreement": np.mean([apart(a.numpy(), actions[0].numpy()) for a in actions[1:]]),
    }
    if values is not None:
        others, best = values[1:].max(0), values.argmax(0)
        goes, known = to_go(fresh, min(subject.model.gamma, HORIZON))
        told |= {
            "value_prefers_own": ((values[0] > others) + 0.5 * (values[0] == others)).mean(),
            "familiarity_of_valued": np.take_along_axis(familiar, best[None], 0).mean(),
            "optimism": (others - values[0]).mean() / values[0].std(),
            "value_gap": np.abs(others - values[0]).mean() / values[0].std(),
            "value_agrees": _correlation(values[0], others),
            "value_knows_return": _correlation(values[0][known], goes[known]),
            "mirrored_value_knows_return": _correlation(others[known], goes[known]),
        }
    rows = [
        {"rule": rule, "moved": g.mean(), "other_view": (g > ROUNDING).mean(),
         "other_first": at_first[rule], **told}
        for rule, g in gaps.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def to_go(lived: Experience, gamma: float) -> tuple[Any, Any]:
    """Discounted returns from each state on, and which of them the rollouts hold all but 5 % of."""
    returns, missing = np.zeros(len(lived)), np.ones(len(lived))
    after, rest = 0.0, 1.0
    for i in reversed(range(len(lived))):
        if lived.ended[i]:
            after, rest = 0.0, 0.0 if lived.terminated[i] else 1.0
        after, rest = lived.rewards[i] + gamma * after, gamma * rest
        returns[i], missing[i] = after, rest
    return returns, missing < 0.05


def _correlation(x: Any, y: Any) -> float:
    many = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if many else math.nan


def p_value(differences: Any) -> float:
    """Of the paired t-test that the mean difference is zero."""
    if np.ptp(differences) <= 1e-9 * max(1.0, np.abs(differences).max()):
        return 1.0 if abs(differences.mean()) <= 1e-9 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def write(table: pd.DataFrame, folder: Path | None) -> None:
    """Print the page, and write it with tables and figure, if there is a folder."""
    table = judged(table)
    agents = table.drop_duplicates("agent")[["agent", "env", *OF_AGENT]]
    text = page(table, agents)
    print(text)
    if folder is not None:
        write_csv(folder / "rules.csv", table[[*PLAYED, *OF_RULE]], "%.5g")
        write_csv(folder / "diagnostics.csv", agents, "%.4g")
        figures.save(figure(table), folder / "rules", dpi=110, colours=64)
        write_text(folder / "rules.md", text)


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """With ``share``, and a ``verdict`` that allows for all comparisons (Holm, 1979)."""
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *OF_AGENT])))
    table = table.assign(share=table.difference / table.scale, verdict="")
    ranked = table[table.rule != "plain"].sort_values("p_value")
    clear = ranked.index[(ranked.p_value * np.arange(len(ranked), 0, -1)).cummax() < LEVEL]
    signs = np.where(table.loc[clear, "difference"] > 0, "better", "worse")
    table.loc[clear, "verdict"] = signs
    return table


def page(table: pd.DataFrame, agents: pd.DataFrame) -> str:
    """All in Markdown."""
    parts = [
        f"Episodes for each agent, rule and condition: {table.n_episodes.min()}, the same for all "
        "rules. Under *transformed* each episode is seen through a random group element. "
        "Differences are those to the plain agent's return in the same episodes, with 95 % "
        f"intervals; bold ones are clear when all {sum(table.rule != 'plain')} comparisons are "
        f"allowed for (paired t-tests, Holm, {LEVEL:.0%} for the whole table). Shares are of what "
        "the plain agent gains over random actions.",
        EXPLAINED.replace("\n", " "),
        "## Findings",
        "\n".join(f"- {line}" for line in findings(table, agents)),
    ]
    for continuous, kind in ((True, "Continuous actions"), (False, "Choices")):
        some = table[table.continuous == continuous]
        if len(some):
            parts += [f"## {kind}", summary(some[some.rule != "plain"])]
        for condition, rows in some.groupby("condition", sort=False):
            parts += [f"### {kind}, {condition}", differences(rows)]
    lines = [
        [words, *("" if math.isnan(v) else f"{v:.3f}" for v in agents[name])]
        for name, words in OF_AGENT.items()
    ]
    parts += [
        "## What the agents say in advance",
        "Measured in states of the agent's own rollouts that its familiarity was not fitted on.",
        markdown(["", *agents.agent], lines),
        "![Differences to the plain agent](rules.png)",
    ]
    return common.page("Which rule is safe, and does the agent tell?", *parts)


def differences(rows: pd.DataFrame) -> str:
    """A line for each rule, a column for each agent."""
    names, lines = list(dict.fromkeys(rows.agent)), []
    for rule, some in rows.groupby("rule", sort=False):
        cells = dict.fromkeys(names, "")
        for row in some.itertuples():
            bold = "**" if row.verdict else ""
            found = Estimate(row.difference, row.difference_low, row.difference_high)
            if rule == "plain":
                found = Estimate(row.mean_return, row.low, row.high)
            cells[row.agent] = f"{bold}{found}{bold}"
        lines.append(["plain, return" if rule == "plain" else rule, *cells.values()])
    return markdown(["", *names], lines)


def summary(rows: pd.DataFrame) -> str:
    """How often each rule is clearly better or worse; shares are of plain minus random play."""
    lines = [
        [rule, len(some), sum(some.verdict == "better"), sum(some.verdict == "worse"),
         *(f"{share:+.1%}" for share in (some.share.min(), (some.difference_low / some.scale).min(),
                                         some.share.mean(), some.share.max()))]
        for rule, some in rows.groupby("rule", sort=False)
    ]  # fmt: skip
    head = ("comparisons", "clearly better", "clearly worse")
    return markdown(["rule", *head, "worst share", "lowest end", "mean share", "best share"], lines)


def findings(table: pd.DataFrame, agents: pd.DataFrame) -> Iterator[str]:
    """In words, from the numbers."""
    many = table[table.rule != "plain"]
    for continuous, kind in ((True, "continuous actions"), (False, "choices")):
        rows = many[many.continuous == continuous]
        safe, not_safe = [], []
        for rule, some in rows.groupby("rule", sort=False):
            bad = some[some.verdict == "worse"]
            lost = f"{rule}, in {len(bad)} of {len(some)}, by up to {-bad.share.min():.0%}"
            (not_safe if len(bad) else safe).append(lost if len(bad) else f"{rule} ({len(some)})")
        if len(rows):
            yield (
                f"Of {kind}, never clearly worse than plain (comparisons): "
                f"{'; '.join(safe) or 'no rule'}. "
                f"Clearly worse somewhere: {'; '.join(not_safe) or 'none'}."
            )
    original = many[many.condition == many.condition.iloc[0]]
    for (continuous, rule), rows in original.groupby(["continuous", "rule"], sort=False):
        yield from _told(rows, f"{rule} of {'continuous actions' if continuous else 'choices'}")
    rows = original[original.continuous]
    bad = rows.verdict == "worse"
    if bad.any() and not bad.all():
        told = (f"{words} {_ranks(rows[name][bad], rows[name][~bad]):.2f}"
                for name, words in OF_RULE.items())  # fmt: skip
        yield (
            f"Over all {len(rows)} pairs of a rule and an agent with continuous actions in the "
            f"original environment, the probability that one of the {bad.sum()} that are clearly "
            "worse ranks above one that is not, by what is known in advance: "
            f"{'; '.join(told)} (0.5 is chance)."
        )
    blunt = [f"{a.agent} ({a.sharpness:.2f})" for a in agents.itertuples() if a.sharpness < SHARP]
    yield (
        f"Agents whose familiarity is not sharp (mean largest weight below {SHARP}): "
        f"{', '.join(blunt) or 'none'}."
    )


def _told(rows: pd.DataFrame, rule: str) -> Iterator[str]:
    """Which diagnostic separates the agents that a rule hurts from those that it helps."""
    hurt, helped = (rows[rows.verdict == verdict] for verdict in ("worse", "better"))
    if not len(hurt) or not len(helped):
        return
    split, ranks = [], []
    for name, words in {**OF_AGENT, **OF_RULE}.items():
        if rows[name].isna().any() or rows[name].nunique() < 2:
            continue
        for below, under, above, over in ((hurt, "hurt", helped, "helped"),
                                          (helped, "helped", hurt, "hurt")):  # fmt: skip
            low, high = below[name].max(), above[name].min()
            if low < high:
                split.append(f"{words} ({under} at most {low:.3g}, {over} at least {high:.3g})")
        ranks.append((float(stats.spearmanr(rows[name], rows.share)[0]), words))
    ranks.sort(key=lambda pair: -abs(pair[0]))
    listed = f": {'; '.join(split)}" if 0 < len(split) < 6 else ""
    t = float(stats.t.ppf(1 - LEVEL / 2, len(rows) - 2))
    chance = 2 / math.comb(len(hurt) + len(helped), len(hurt))
    yield (
        f"In the original environment {rule} clearly hurts {', '.join(hurt.agent)} and clearly "
        f"helps {', '.join(helped.agent)}. Of {len(ranks)} numbers, each of which would separate "
        f"the two by chance with probability {min(1.0, chance):.2f}, {len(split)} do{listed}. Rank "
        f"correlations with its share over all {len(rows)} "
        f"agents, the strongest: {'; '.join(f'{words} {r:+.2f}' for r, words in ranks[:3])} (one "
        f"alone is beyond {t / math.sqrt(len(rows) - 2 + t**2):.2f} by chance in {LEVEL:.0%})."
    )


def _ranks(first: pd.Series, second: pd.Series) -> float:
    """The probability that one of the first is larger than one of the second, ties half."""
    return float(stats.mannwhitneyu(first, second).statistic / (len(first) * len(second)))


def figure(table: pd.DataFrame) -> figures.Figure:
    """A panel for each agent, a bar for each rule and condition."""
    many = table[table.rule != "plain"]
    drawn, axes = figures.panels(many.agent.nunique(), size=(3.6, 3.3))
    conditions = list(dict.fromkeys(many.condition))
    for axis, (name, rows) in zip(axes, many.groupby("agent", sort=False), strict=True):
        rules = list(dict.fromkeys(rows.rule))
        for i, condition in enumerate(conditions):
            some = rows[rows.condition == condition].set_index("rule").loc[rules]
            ends = some[["difference", "difference_low", "difference_high"]].div(some.scale, axis=0)
            places = np.arange(len(rules)) + 0.4 * (i - (len(conditions) - 1) / 2)
            estimates = [Estimate(*row) for row in ends.to_numpy()]
            figures.bars(axis, places, 0.4, estimates, color=common.COLOURS[i], label=condition)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(rules)), rules, rotation=90, fontsize=7)
        axis.set_title(f"{name}\n{rows.env.iloc[0]}", fontsize=8)
        figures.tidy(axis)
    axes[0].set_ylabel("difference / (plain - random)")
    note = (
        "Bars: mean return minus the plain agent's in the same episodes, as a share of what the "
        "plain agent gains over random actions; 95 % intervals, paired by episode, without regard "
        "to the number of comparisons. 0: as good as plain; -1: as bad as random actions."
    )
    figures.legend_below(drawn, axes[0], note)
    return drawn
