"""Read and summarise a study: many agents, each evaluated under every policy.

A panel has one row for each environment, setting, seed, budget, policy and condition. Scores are
normalised returns, (return - worst) / (best - worst), so that environments can be averaged. A run
is one training; its budgets and conditions are repeated measurements of it, see
`equicore.lab.statistics`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from equicore.lab import statistics
from equicore.lab.statistics import Estimate, Returns
from equicore.lab.tables import read_csv
from equicore.lab.values import read_yaml
from equirl.agents.hyperparameters import setting_name

KEYS = ["env", "setting", "seed", "budget", "policy", "condition"]
COLUMNS = [*KEYS, "mean_return", "n_episodes"]
BASELINE = "plain"
FIRST_POLICIES = (BASELINE, "equitune", "equizero", "equitune_raw", "equizero_raw", "lambda")
SELECTED = "selected"
"""Chooses among the policies for each agent; all others are fixed."""
DEFAULT = "lambda"
"""What `equirl.symmetrize` uses."""
CLAIM = ("equizero", "equitune", "plain")
"""Best to worst, in figure 2 of Basu et al. (NeurIPS 2023)."""
STAGES = ("early", "middle", "late")
SCORE, RETURN = "z.3f", "z.2f"  # how they are written in tables


def read_panel(path: Path) -> pd.DataFrame:
    """The panel that `equirl study` wrote, in a folder or a returns.csv with study.yaml beside it.

    Returns:
        The rows, in an order that does not depend on that of the file. Columns besides those of
        the file: ``score`` (normalised), ``rank`` (of the budget, 0 is the smallest), ``stage``
        (its third of the training) and ``id`` (of the environment).

    Raises:
        FileNotFoundError: If there is no returns.csv or no study.yaml.
        ValueError: If one of them is not what `equirl study` writes, or rows are missing or double.
    """
    file = path / "returns.csv" if path.is_dir() else path
    panel = read_csv(file, COLUMNS, "equirl study")
    scales, settings = _read_definition(file.with_name("study.yaml"))
    _check(panel, file, list(scales), settings)

    order: dict[Any, Callable[[Any], Any]] = {
        "env": list(scales).index,
        "setting": settings.index,
        "policy": _policy_position,
    }
    panel = panel.sort_values(
        KEYS,
        key=lambda column: column.map(order[column.name]) if column.name in order else column,
        ignore_index=True,
    )
    worst, best = np.array([scales[env][:2] for env in panel.env]).T
    panel["score"] = (panel.mean_return - worst) / (best - worst)
    panel["id"] = [scales[env][2] for env in panel.env]
    budgets = panel.groupby(["env", "setting"]).budget
    panel["rank"] = budgets.rank("dense").astype(int) - 1
    thirds = (panel["rank"] + 0.5) / budgets.transform("nunique") * len(STAGES)
    panel["stage"] = [STAGES[int(third)] for third in thirds]
    return panel


def _read_definition(file: Path) -> tuple[dict[str, tuple[float, float, str]], list[str]]:
    """The scale and id of each environment, and the names of the settings, all in their order."""
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: scores need the scale of each environment from it")
    try:
        document = read_yaml(file)
        scales = {}
        for name, entry in document["environments"].items():
            scale = read_scale(name, entry)
            # rows may call it by its name here, or by its id and arguments
            for env in (name, setting_name(entry["env"], entry.get("env_kwargs") or {})):
                scales[env] = (*scale, entry["env"])
        return scales, list(document["settings"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file} is no definition of a study, {type(error).__name__}: {error}; it needs "
            "environments, each with env and scale: [worst, best], and settings, as in "
            "agents/study.yaml"
        ) from error


def read_scale(name: str, entry: dict[str, Any]) -> tuple[float, float]:
    """The returns that score 0 and 1 in an environment of a definition.

    Raises:
        ValueError: If they are not two numbers, the first the smaller.
    """
    scale = entry.get("scale")
    numbers = isinstance(scale, list) and all(isinstance(n, int | float) for n in scale)
    if scale is None or not numbers or len(scale) != 2 or not scale[0] < scale[1]:
        raise ValueError(f"the scale of {name} is scale: [worst, best] return; got {scale!r}")
    return float(scale[0]), float(scale[1])


def _check(panel: pd.DataFrame, file: Path, envs: list[str], settings: list[str]) -> None:
    """Raise ValueError unless a panel has each combination once, with a finite return."""
    for name, known in (("env", envs), ("setting", settings)):
        unknown = [value for value in panel[name].unique() if value not in known]
        if unknown:
            raise ValueError(f"{file}: study.yaml beside it has no {name} {unknown[0]}")
    wrong = panel[~np.isfinite(pd.to_numeric(panel.mean_return, errors="coerce"))]
    if len(wrong):
        raise ValueError(f"{file}: no finite mean_return for {_named(wrong[KEYS].iloc[0])}")
    double = panel[panel.duplicated(KEYS)]
    if len(double):
        raise ValueError(f"{file} has two rows for {_named(double[KEYS].iloc[0])}; delete one")
    if BASELINE not in panel.policy.unique():
        raise ValueError(f"{file} has no policy {BASELINE}, to which the others are compared")
    present = set(panel[KEYS].itertuples(index=False, name=None))
    budgets = panel.groupby(["env", "setting"]).budget.unique()
    seeds, policies, conditions = (
        sorted(panel[name].unique()) for name in ("seed", "policy", "condition")
    )
    for env, setting in itertools.product(panel.env.unique(), panel.setting.unique()):
        steps = sorted(budgets.get((env, setting), ["any"]))
        for rest in itertools.product(seeds, steps, policies, conditions):
            if (env, setting, *rest) not in present:
                key = dict(zip(KEYS, (env, setting, *rest), strict=True))
                raise ValueError(f"{file} has no row for {_named(key)}; finish it by equirl study")


def _named(key: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in key.items())


def _policy_position(name: str) -> tuple[int, str]:
    """Policies are shown in this order: known ones, variants and others, the selected one."""
    if name in FIRST_POLICIES:
        return FIRST_POLICIES.index(name), name
    return len(FIRST_POLICIES) + (name == SELECTED), name


def tasks(rows: pd.DataFrame, value: str = "score") -> dict[str, list[Returns]]:
    """For each policy, the values of each environment and setting, shape (seeds, k).

    Each run is a row of an array; its k columns are the budgets and conditions of ``rows``.
    """
    columns = ["policy", "condition", "budget"]
    strata = [
        group.pivot(index="seed", columns=columns, values=value)
        for _, group in rows.groupby(["env", "setting"], sort=False)
    ]
    return {name: [stratum[name].to_numpy() for stratum in strata] for name in rows.policy.unique()}


def summarize(rows: pd.DataFrame, by: list[str], value: str = "score") -> pd.DataFrame:
    """How each policy does in each group of a panel's rows, which the columns ``by`` tell.

    Returns:
        A row for each group and policy: ``by``, ``policy``, and as `Estimate` ``mean``, ``iqm``,
        ``difference`` (paired, to plain) and ``probability`` (of improvement over plain); the last
        two are None for plain itself.
    """
    records = []
    for key, group in rows.groupby(by, sort=False):
        scores = tasks(group, value)
        plain = scores[BASELINE]
        for policy, own in scores.items():
            record = {**dict(zip(by, key, strict=True)), "policy": policy}
            record |= {
                "mean": statistics.stratified_mean(own),
                "iqm": statistics.stratified_iqm(own),
                "difference": None,
                "probability": None,
            }
            if policy != BASELINE:
                record["difference"] = statistics.paired_difference(own, plain)
                record["probability"] = statistics.probability_of_improvement(own, plain)
            records.append(record)
    return pd.DataFrame(records)


def env_table(panel: pd.DataFrame) -> pd.DataFrame:
    """Scores in each environment, setting and condition, at the last budget and over all."""
    by = ["env", "setting", "condition"]
    last = panel.groupby(["env", "setting"])["rank"].transform("max")
    at_end = summarize(panel[panel["rank"] == last], by)
    over_all = summarize(panel, by)
    table = over_all[[*by, "policy"]].copy()
    for name, summary in (("last budget", at_end), ("all budgets", over_all)):
        table[f"IQM, {name}"] = summary.iqm
        table[f"mean, {name}"] = summary["mean"]
    return table


def budget_table(panel: pd.DataFrame) -> pd.DataFrame:
    """Returns of each environment, setting, condition, budget and policy, compared to plain."""
    table = summarize(panel, ["env", "setting", "condition", "budget"], "mean_return")
    table["than plain"] = [_word(difference) for difference in table.difference]
    return table


def _word(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    if difference.low == difference.high == 0:
        return "equal"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "not clear"


def stage_table(panel: pd.DataFrame) -> pd.DataFrame:
    """Differences to plain in each environment, third of the training and condition.

    Returns:
        Columns ``env``, ``stage``, ``condition``, ``best`` (the fixed policy of the largest
        mean difference), ``best - plain``, and the difference of each policy to plain.
    """
    by = ["env", "stage", "condition"]
    records = []
    for key, group in panel.groupby(by, sort=False):
        differences = _differences(group)
        fixed = [name for name in differences if name != SELECTED]
        best = max(fixed, key=lambda name: differences[name].value, default=None)
        chosen = {"best": best or "", "best - plain": differences[best] if best else None}
        records.append({**dict(zip(by, key, strict=True)), **chosen, **differences})
    return pd.DataFrame(records)


def _differences(rows: pd.DataFrame, value: str = "score") -> dict[str, Estimate]:
    scores = tasks(rows, value)
    plain = scores.pop(BASELINE)
    return {name: statistics.paired_difference(own, plain) for name, own in scores.items()}


def panel_table(panel: pd.DataFrame) -> pd.DataFrame:
    """Scores over the whole panel, in each condition and in all of them, best IQM first."""
    conditions = list(panel.condition.unique())
    parts = {name: panel[panel.condition == name] for name in conditions}
    if len(conditions) > 1:
        parts[" and ".join(conditions)] = panel
    tables = []
    for name, rows in parts.items():
        table = summarize(rows.assign(part=name), ["part"]).rename(columns={"part": "condition"})
        order = table.iqm.map(lambda iqm: -iqm.value).sort_values(kind="stable").index
        tables.append(table.loc[order])
    return pd.concat(tables, ignore_index=True)


def findings(panel: pd.DataFrame) -> list[str]:
    """What the panel says about the claims that can be made of it, in plain words."""
    lines = []
    policies = set(panel.policy)
    for (env, condition), rows in panel.groupby(["env", "condition"], sort=False):
        where = f"{env}, {condition}"
        scores = tasks(rows)
        if policies.issuperset(CLAIM):
            lines.append(f"{where}: {_order(rows, scores)}")
        if policies.issuperset({"lambda", "equitune", "equizero"}):
            lines.append(f"{where}: {_lambda(scores)}")
    lines += [_harmless(panel, name) for name in (SELECTED, DEFAULT) if name in policies]
    if DEFAULT in policies:
        lines.append(_beside_others(panel))
    return lines


def _order(rows: pd.DataFrame, scores: dict[str, list[Returns]]) -> str:
    """Whether the order of the paper's figure 2 holds, over all settings and in each."""
    steps = [
        statistics.paired_difference(scores[better], scores[worse])
        for better, worse in itertools.pairwise(CLAIM)
    ]
    claim = f"the paper's {' > '.join(CLAIM)}"
    if rows.id.iloc[0].rpartition(":")[2].startswith("CartPole-"):
        judgement = f"equizero and equitune are provably the same policy, so {claim} cannot hold"
    elif all(step.low > 0 for step in steps):
        judgement = f"{claim} holds"
    elif all(step.value > 0 for step in steps):
        judgement = f"{claim} holds on average, not beyond noise"
    else:
        judgement = f"{claim} does not hold"
    orders = [f"over all settings {_ranking(rows)}"]
    if rows.setting.nunique() > 1:
        orders += [f"{name} {_ranking(r)}" for name, r in rows.groupby("setting", sort=False)]
    words = [
        statistics.verdict(better, step, worse, SCORE)
        for step, (better, worse) in zip(steps, itertools.pairwise(CLAIM), strict=True)
    ]
    return f"{judgement}; mean scores: {', '.join(orders)}; {'; '.join(words)}"


def _ranking(rows: pd.DataFrame) -> str:
    """As in ``equizero 0.91 > plain 0.85 = equitune 0.85``."""
    means = (
        rows.groupby("policy").score.mean()[list(CLAIM)].sort_values(ascending=False, kind="stable")
    )
    text = ""
    for (name, score), before in zip(means.items(), [None, *means], strict=False):
        sign = "" if before is None else " = " if np.isclose(before, score) else " > "
        text += f"{sign}{name} {score:.2f}"
    return text


def _lambda(scores: dict[str, list[Returns]]) -> str:
    names = ("lambda", "equitune", "equizero")
    iqm = {name: statistics.stratified_iqm(scores[name]) for name in names}
    below = [name for name in names[1:] if iqm["lambda"].value < iqm[name].value]
    words = f"is below that of {' and '.join(below)}" if below else "is at least that of both"
    numbers = ", ".join(f"{name} {value:{SCORE}}" for name, value in iqm.items())
    return f"lambda's IQM {words}: {numbers}"


def _harmless(panel: pd.DataFrame, name: str) -> str:
    """Where a policy is worse than plain, in returns."""
    by = ["env", "setting", "budget", "condition"]
    rows = panel[panel.policy.isin([BASELINE, name])]
    differences, chances = {}, []
    for key, group in rows.groupby(by, sort=False):
        differences[key] = _differences(group, "mean_return")[name]
        returns = group.pivot(index="seed", columns="policy", values="mean_return")
        gains = (returns[name] - returns[BASELINE]).to_numpy()
        same = np.ptp(gains) == 0
        chances.append(1.0 if same else stats.ttest_1samp(gains, 0, alternative="less").pvalue)
    count = f"{len(differences)} comparisons (of environment, setting, budget and condition)"
    worse = {key: difference for key, difference in differences.items() if difference.high < 0}
    if not worse:
        return f"{name} is worse than plain beyond noise nowhere, in {count}"
    where = "; ".join(
        f"{env}, {setting}, {budget:,} steps, {condition}: {difference:{RETURN}}"
        for (env, setting, budget, condition), difference in worse.items()
    )
    allowed = _holm(chances)
    return (
        f"{name} is worse than plain beyond noise in {len(worse)} of {count}, where chance alone "
        f"would give about {chance(panel.seed.nunique()) * len(differences):.0f}, were they equal; "
        f"in {allowed} when their number is allowed for (t-tests over seeds, Holm, 5 %): {where}"
    )


def _holm(chances: list[float]) -> int:
    """How many of several tests are clear at 5 % for all together (Holm, 1979)."""
    for rank, value in enumerate(sorted(chances)):
        if value > 0.05 / (len(chances) - rank):
            return rank
    return len(chances)


def _beside_others(panel: pd.DataFrame) -> str:
    """The default policy against each other fixed one, over the whole panel."""
    scores = tasks(panel)
    own = scores[DEFAULT]
    words = [
        f"{name} by {statistics.iqm_difference(own, other):{SCORE}} (mean scores by "
        f"{statistics.paired_difference(own, other):{SCORE}})"
        for name, other in scores.items()
        if name not in (DEFAULT, SELECTED)
    ]
    return (
        f"{DEFAULT}, which equirl.symmetrize uses, has an IQM of "
        f"{statistics.stratified_iqm(own):{SCORE}} over the whole panel; it differs from that of "
        f"the same runs under {', '.join(words)}"
    )


def chance(runs: int) -> float:
    """How often the percentile interval of the mean of equal runs lies wholly below 0.

    For normal scores: the interval is about that of the normal distribution, with the deviation
    of the sample, which is too narrow for few runs.
    """
    if runs < 2:
        return 0.5
    return float(stats.t.cdf(-1.96 * np.sqrt(1 - 1 / runs), runs - 1))
