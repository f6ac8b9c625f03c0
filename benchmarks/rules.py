"""Which rule that makes an agent equivariant is safe, and does the agent tell in advance?

    python benchmarks/rules.py AGENT.zip:ENVIRONMENT ... [--episodes 100] [--output results/rules]

Each agent plays with each rule that turns its views into one action, in the original environment
and in one whose episodes are each seen through a random group element, always in the same episodes.
In states that the agent visits it is measured how sharp its familiarity is, how far its views
disagree, and what its value says of them, and this is related to what the rules gain or lose. Each
result is kept when it is made: what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import rules_plot
import torch
import tyro
from torch import Tensor

import equirl
from equicore import Best, MLPWeight, Representation, Tree, Trivial, WeightedMean
from equicore.lab import command
from equicore.lab.jobs import Workers
from equicore.lab.statistics import mean_difference, t_interval
from equicore.lab.store import digest, remembered
from equicore.reduce import Reducer
from equirl.agents.evaluation import CONDITIONS, LEAST, Protocol, episode_returns, play_at_random
from equirl.agents.evaluation import RULES as PLAYED_BY
from equirl.agents.policies import Subject
from equirl.agents.saved import SavedAgent, find_agents, told_apart
from equirl.algorithms import ActorWithCritics, DeterministicActor, LinearAction, head_of
from equirl.heads import ContinuousHead, Head
from equirl.symmetrized import SymmetrizedPolicy

SHORT, LONGER = 1000, 5000
"""Steps of a fit of familiarity; the longer one is the default for continuous actions."""
UNFAMILIAR = 0.1
"""A view is unfamiliar if it is less than so many times as familiar as the most familiar one."""
FAR = 1000.0
"""Another view than the held one is taken if it is so many times as familiar."""
DRAWS = 4
"""Pairs of actions, drawn from the policy, that its value is the mean over."""


@dataclasses.dataclass
class Arguments:
    """Play agents under every rule, and ask the agents in advance."""

    agents: tyro.conf.Positional[tuple[str, ...]]
    """Each FILE.zip:ENVIRONMENT, or a run folder."""
    episodes: int = 100
    """For each agent, rule and condition."""
    transitions: int = 20_000
    """Of each agent's rollouts: once to fit familiarity, once more to ask the agent."""
    output: Path | None = None
    """Folder for the tables and the figure; nothing is written when omitted."""
    runs: Path = Path("results/runs/rules")
    """Folder that keeps the returns."""
    jobs: int = 1
    """Processes."""


class Views(ContinuousHead):
    """A head of continuous actions that also hands on what each view saw, for rules to score."""

    def __init__(self, head: ContinuousHead, action: Representation) -> None:
        super().__init__(head.policy, head.scale)
        self.head, self.action = head, action
        self.values_views = head.values_views

    def forward(self, observations: Tensor) -> dict[str, Tensor]:
        """The head's outputs, and ``seen``."""
        dtype = next(self.policy.parameters()).dtype
        return {**self.head(observations), "seen": observations.to(dtype)}

    def outputs(self, action: Representation) -> Representation:
        """As those of the head."""
        still = Trivial(action.group)
        value = {"value": still} if self.values_views else {}
        return Tree({"action": action, "seen": still, **value})

    def act(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """As the head."""
        return self.head.act(observations)

    def scaled(self, action: Tensor) -> Tensor:
        """Actions of the environment as those in -1..1 that critics see."""
        low, high = (bound.to(action.dtype) for bound in (self.low, self.high))
        return (2 * (action - low) / (high - low) - 1) if self.policy.squash_output else action

    def critics(self, seen: Tensor, action: Tensor) -> Tensor:
        """What each critic says of actions (..., A) in -1..1, shape (..., critics)."""
        head: Any = self.head
        known = head.of_critic(seen.flatten(0, -2))
        values = head.critics(torch.cat([known, action.flatten(0, -2)], 1))
        return values.unflatten(0, action.shape[:-1])

    def distribution(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (n, B, A) of the policy's normal distribution, before any tanh."""
        flat, policy = seen.flatten(0, 1), self.policy
        if isinstance(self.head, ActorWithCritics):
            mean, log_std, others = policy.actor.get_action_dist_params(flat)
            normal = policy.actor.action_dist.proba_distribution(mean, log_std, **others)
        else:
            normal = policy.get_distribution(flat)
        mean, deviation = normal.distribution.mean, normal.distribution.stddev
        return mean.unflatten(0, seen.shape[:2]), deviation.unflatten(0, seen.shape[:2])


def critic_mean(views: Views, raw: dict[str, Tensor]) -> Tensor:
    """The mean of the critics of a view's own action, in place of the smallest."""
    return views.critics(raw["seen"], views.scaled(raw["action"])).mean(-1)


def critic_of_all(views: Views, raw: dict[str, Tensor]) -> Tensor:
    """Of action a_g the mean over all views h of Q(h s, h a_g), shape (n, B)."""
    aligned = views.action.align(raw["action"])
    moved = views.action.orbit(aligned.flatten(0, 1)).unflatten(1, aligned.shape[:2])  # h, g, B
    seen = raw["seen"].unsqueeze(1).expand(*moved.shape[:3], -1)
    return views.critics(seen, views.scaled(moved)).amin(-1).mean(0)


def soft_value(views: Views, raw: dict[str, Tensor]) -> Tensor:
    """V(g s): the mean of the smallest critic over actions that the policy draws there."""
    mean, deviation = views.distribution(raw["seen"])
    noise = torch.randn(DRAWS, mean.shape[-1], generator=torch.Generator().manual_seed(0))
    drawn = [(mean + deviation * z).tanh() for z in (*noise, *-noise)]
    return torch.stack([views.critics(raw["seen"], a).amin(-1) for a in drawn]).mean(0)


def likelihood(views: Views, raw: dict[str, Tensor]) -> Tensor:
    """The log of the mean over all views h of the density of a_g under the aligned pi_h."""
    mean, deviation = map(views.action.align, views.distribution(raw["seen"]))
    each = torch.distributions.Normal(mean.unsqueeze(1), deviation.abs().unsqueeze(1))  # h, 1, B
    return each.log_prob(mean).sum(-1).logsumexp(0)


class BestOfFamiliar(Best):
    """The view that scores best among those that are familiar."""

    needs = frozenset({"inputs", "outputs"})

    def __init__(self, score: Callable[[Any], Tensor], weight: torch.nn.Module) -> None:
        super().__init__(score)
        self.familiarity = WeightedMean(weight)

    def scores(self, seen: Any, raw: Any) -> Tensor:
        """Those of the familiar views; of others minus infinity."""
        log, scores = self.familiarity.log_weights(seen), super().scores(seen, raw)
        return scores.masked_fill(log < log.amax(0) + math.log(UNFAMILIAR), -math.inf)


def _scored(score: Callable[[Views, Any], Tensor], subject: Subject) -> SymmetrizedPolicy:
    views = Views(head_of(subject.model), subject.symmetry.action)
    best = Best(functools.partial(score, views))
    return SymmetrizedPolicy(subject.model, subject.symmetry, views, best)


def _fitted(subject: Subject, steps: int) -> MLPWeight:
    """A weight network that knows the agent's rollouts, fitted for so many steps."""
    if (name := f"rollouts, {steps}") not in subject.weights:
        policy = equirl.LambdaEquitunePolicy(subject.model, subject.symmetry)
        equirl.fit_familiarity(policy, subject.rollouts.observations, steps=steps)
        subject.weights[name] = policy.weight
    return subject.weights[name]


def _lambda(subject: Subject, steps: int = SHORT, hold: float = 1) -> SymmetrizedPolicy:
    weight = _fitted(subject, steps)
    return equirl.LambdaEquitunePolicy(subject.model, subject.symmetry, weight, hold=hold)


def _reduced(reduce: Reducer, subject: Subject) -> SymmetrizedPolicy:
    return SymmetrizedPolicy(subject.model, subject.symmetry, head_of(subject.model), reduce)


def _best_of_familiar(subject: Subject, steps: int = SHORT) -> SymmetrizedPolicy:
    weight = _fitted(subject, steps)
    return _reduced(BestOfFamiliar(head_of(subject.model).value, weight), subject)


MAKERS: dict[str, Callable[[Subject], Any]] = {
    "plain": lambda s: s.policy("plain"),
    "equitune": lambda s: s.policy("equitune"),
    "equizero": lambda s: s.policy("equizero"),
    "critic mean": functools.partial(_scored, critic_mean),
    "critic of all": functools.partial(_scored, critic_of_all),
    "soft value": functools.partial(_scored, soft_value),
    "likelihood": functools.partial(_scored, likelihood),
    "lambda": _lambda,
    "lambda blend": lambda s: _reduced(WeightedMean(_fitted(s, SHORT)), s),
    "best of familiar": _best_of_familiar,
    "lambda, longer": functools.partial(_lambda, steps=LONGER),
    "lambda, longer, held": functools.partial(_lambda, steps=LONGER, hold=FAR),
    "best of familiar, longer": functools.partial(_best_of_familiar, steps=LONGER),
}
"""Every rule by its name."""
OF_CRITICS = ("critic mean", "critic of all", "soft value")
OF_FAMILIAR = ("best of familiar", "best of familiar, longer")


def rules_of(head: Head) -> list[str]:
    """The rules that an agent with this head can follow."""
    without: set[str] = set() if head.values_views else {"equizero", *OF_FAMILIAR}
    if not isinstance(head, ContinuousHead):
        without |= {*OF_CRITICS, "likelihood", "lambda blend", "lambda, longer, held", *OF_FAMILIAR}
    elif not isinstance(head, ActorWithCritics):
        without |= {*OF_CRITICS}
    if isinstance(head, DeterministicActor | LinearAction):  # they have no distribution
        without |= {"soft value", "likelihood"}
    return [rule for rule in MAKERS if rule not in without]


@dataclasses.dataclass
class Case:
    """An agent, the rules that it can follow, and where its results are kept."""

    agent: SavedAgent
    algorithm: str
    rules: list[str]
    continuous: bool
    arguments: Arguments

    @property
    def settings(self) -> dict[str, Any]:
        """What decides all its results."""
        return {
            "agent": digest(self.agent.path.read_bytes()), "env": self.agent.setting,
            "version": equirl.__version__, "transitions": self.arguments.transitions,
        }  # fmt: skip

    def file(self, *what: str) -> Path:
        """Where a result is kept."""
        words = "_".join((self.agent.name, self.agent.setting, *what))
        plain = "".join(c if c.isalnum() or c in "-." else "_" for c in words)
        return self.arguments.runs / f"{plain}.csv"

    def files(self, condition: str) -> Iterator[Path]:
        """All results under a condition."""
        first = ("random", "asked") if condition == CONDITIONS[0] else ()
        return (self.file(what, condition) for what in (*first, *self.rules))

    def returns(self, rule: str, condition: str, subject: Subject) -> Any:
        """The returns of a rule's episodes."""
        episodes = self.arguments.episodes
        settings = {**self.settings, "episodes": episodes, "rules": PLAYED_BY}

        def make() -> pd.DataFrame:
            if rule == "random":
                played = play_at_random(self.agent, Protocol(episodes=episodes))
            else:
                played = episode_returns(MAKERS[rule](subject), self.agent, condition, episodes)
            return pd.DataFrame({"return": played})

        return remembered(self.file(rule, condition), settings, make)["return"].to_numpy()

    def asked(self, subject: Subject) -> pd.DataFrame:
        """What the agent says in advance: a row for each rule."""

        def make() -> pd.DataFrame:
            policies = {rule: MAKERS[rule](subject) for rule in self.rules}
            return rules_plot.ask(subject, policies, _fitted(subject, SHORT))

        return remembered(self.file("asked", CONDITIONS[0]), self.settings, make)


def measured(case: Case, condition: str) -> pd.DataFrame:
    """Rows of rules.csv: all rules of an agent under a condition."""
    subject = Subject(case.agent, case.arguments.transitions, "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "equitune averages actions")
        asked = case.asked(subject).set_index("rule")
        random = case.returns("random", CONDITIONS[0], subject).mean()
        plain = case.returns("plain", condition, subject)
        rows = []
        for rule in case.rules:
            played = case.returns(rule, condition, subject)
            own, gap = t_interval(played), mean_difference(played[None], plain[None])
            rows.append({
                "agent": case.agent.name, "algorithm": case.algorithm, "env": case.agent.setting,
                "rule": rule, "condition": condition,
                "mean_return": own.value, "low": own.low, "high": own.high,
                "difference": gap.value, "difference_low": gap.low, "difference_high": gap.high,
                "n_episodes": len(played), "p_value": rules_plot.p_value(played - plain),
                "scale": plain.mean() - random, "continuous": case.continuous,
                **asked.loc[rule].to_dict(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def cases_of(arguments: Arguments) -> list[Case]:
    """The agents, those with continuous actions first."""
    cases: list[Case] = []
    words = [word.partition(":") for word in arguments.agents]
    found = [find_agents(Path(path), env or None) for path, _, env in words]
    for agent in told_apart([agent for some in found for agent in some]):
        model = agent.load("cpu")
        head, name = head_of(model), type(model).__name__.removeprefix("Loaded")
        cases.append(Case(agent, name, rules_of(head), isinstance(head, ContinuousHead), arguments))
    return sorted(cases, key=lambda case: not case.continuous)


def main(arguments: Arguments) -> None:
    """Play what has not been played, print and write the page."""
    command.check_least(arguments, episodes=LEAST, transitions=1000, jobs=1)
    command.check_several(arguments, "agents")
    cases = cases_of(arguments)
    pairs = [(case, condition) for condition in CONDITIONS for case in cases]
    files = [file for case, condition in pairs for file in case.files(condition)]
    tables = Workers(arguments.jobs).map(
        [functools.partial(measured, *pair) for pair in pairs],
        "results",
        done=lambda: sum(file.is_file() for file in files),
        total=len(files),
    )
    rules_plot.write(pd.concat(tables, ignore_index=True), arguments.output)


if __name__ == "__main__":
    command.run({Arguments: main})
