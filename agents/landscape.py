"""Draw what symmetrising does to an agent's values or actions, and where lambda trusts it."""

from __future__ import annotations

import dataclasses
from typing import cast

import matplotlib
import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from equicore.lab import figures
from equicore.lab.command import check_least
from equicore.lab.store import check_writable
from equirl.agents.arguments import Landscape
from equirl.agents.cli import run
from equirl.agents.plot import STYLES
from equirl.agents.policies import POLICIES, Subject
from equirl.agents.saved import find_agent
from equirl.algorithms import QValues, head_of
from equirl.heads import DiscreteHead, Normalization
from equirl.normalization import normalizing
from equirl.policies import LambdaEquitunePolicy
from equirl.symmetrized import SymmetrizedPolicy, equituned
from equirl.symmetry import Symmetry

Array = NDArray[np.floating]
Policy = BaseAlgorithm | SymmetrizedPolicy
RESOLUTION = 101  # states along each axis; odd, so that 0 is one of them
DOTS = 400  # so many of the visited states are drawn
ACTIONS = 3  # so many entries of continuous actions are shown
SIGNED = "PuOr"  # the colours of numbers of which 0 is the middle
ENTRIES = {
    "CartPole-v1": ("cart position", "cart velocity", "pole angle", "pole angular velocity"),
    "Acrobot-v1": ("cos a", "sin a", "cos b", "sin b", "velocity of a", "velocity of b"),
    "LunarLander-v3": (
        *("x", "y", "velocity of x", "velocity of y", "angle", "angular velocity"),
        *("left leg on the ground", "right leg on the ground"),
    ),
}


def grid(visited: Array, axes: tuple[int, int], symmetry: Symmetry) -> Array:
    """States on a plane of two entries, about the mean of the visited states and their images.

    The plane reaches as far from that centre as the 99th percentile of those states.

    Returns:
        Shape (RESOLUTION * RESOLUTION, entries); the first axis varies fastest.

    Raises:
        ValueError: If the axes are not two entries, or one is always the same.
    """
    entries = visited.shape[1]
    if axes[0] == axes[1] or not all(0 <= axis < entries for axis in axes):
        raise ValueError(f"--axes must be two different entries of 0..{entries - 1}; got {axes}")
    orbit = np.stack([symmetry.act_on_observations(g, visited) for g in range(len(symmetry.group))])
    centre = orbit.mean(axis=1, dtype=np.float64).mean(axis=0)
    limits = np.percentile(np.abs(orbit - centre), 99, axis=(0, 1))[[*axes]]
    if 0 in limits:
        raise ValueError(f"--axes: entry {axes[limits.argmin()]} is always the same; name another")
    lines = [np.linspace(-limit, limit, RESOLUTION) for limit in limits]
    states = np.tile(centre, (RESOLUTION**2, 1))
    states[:, axes] += np.stack([x.ravel() for x in np.meshgrid(*lines)], axis=1)
    return states.astype(visited.dtype)


def values(policy: Policy, states: Array, normalize: Normalization = None) -> Array:
    """Q-values, or probabilities, of states, as a policy reduces them, shape (B, actions)."""
    device = policy.policy.device
    inputs = torch.from_numpy(states).to(device)
    with torch.inference_mode():
        if not isinstance(policy, SymmetrizedPolicy):
            return normalizing(policy, head_of(policy, normalize)).to(device)(inputs).cpu().numpy()
        aligned = equituned(policy, normalize).aligned(inputs)
        # the weights are those that the policy acts by, whatever is reduced with them
        weighs = isinstance(policy, LambdaEquitunePolicy)
        scores = policy.symmetrized.scores(inputs) if weighs else None
        return policy.symmetrized.reduce.whole(aligned, scores).cpu().numpy()


def margins(probabilities: Array) -> Array:
    """That of action 1 minus that of action 0 if there are two; else the best minus the second."""
    ordered = probabilities if probabilities.shape[1] == 2 else np.sort(probabilities, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def identity_weights(policy: LambdaEquitunePolicy, states: Array) -> Array:
    """The weights, between 0 and 1, that lambda gives to the identity, shape (B,)."""
    with torch.inference_mode():
        scores = policy.symmetrized.scores(torch.from_numpy(states).to(policy.policy.device))
        return scores.softmax(0)[0].cpu().numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """Panels side by side: numbers for the states of a `grid`, by title; one colour scale."""

    label: str
    panels: dict[str, Array]
    low: float
    high: float
    colours: str = "viridis"


def value_rows(policies: dict[str, Policy], states: Array, what: str = "Q-value") -> list[Row]:
    """The largest value of each policy, by its title, and its margin."""
    best = {title: values(policy, states).max(1) for title, policy in policies.items()}
    chances = {title: values(policy, states, "softmax") for title, policy in policies.items()}
    margin = {title: margins(p) for title, p in chances.items()}
    q, m = np.stack([*best.values()]), np.abs([*margin.values()]).max()
    above = Row(f"largest {what}", best, q.min(), q.max())
    if next(iter(chances.values())).shape[1] == 2:
        return [above, Row("p(action 1) − p(action 0)", margin, -m, m, SIGNED)]
    return [above, Row("p(best action) − p(second best)", margin, 0, m)]


def action_rows(policies: dict[str, Policy], states: Array, names: tuple[str, ...]) -> list[Row]:
    """The first entries of each policy's continuous actions, by its title."""
    taken = {title: p.predict(states, deterministic=True)[0] for title, p in policies.items()}
    rows = []
    for place, name in enumerate(names[:ACTIONS]):
        panels = {title: actions[:, place] for title, actions in taken.items()}
        most = max(np.abs(array).max() for array in panels.values())
        rows.append(Row(name, panels, -most, most, SIGNED))
    return rows


def draw(rows: list[Row], states: Array, visited: Array, names: dict[int, str]) -> Figure:
    """Rows of panels over a `grid` of two axes, which have names; dots: visited states."""
    columns, start, end = len(rows[0].panels), states[0, [*names]], states[-1, [*names]]
    dots = np.random.default_rng(0).permutation(visited)[:DOTS, [*names]]
    dots = dots[((start <= dots) & (dots <= end)).all(axis=1)]  # others would widen the panels
    size = (1.6 + 2.7 * columns, 0.9 + 2.6 * len(rows))
    figure, axes = figures.grid(len(rows), columns, figsize=size)
    shown = {"origin": "lower", "extent": (start[0], end[0], start[1], end[1])}
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, array) in zip(line, row.panels.items(), strict=True):
            square = array.reshape(RESOLUTION, RESOLUTION)
            colours = matplotlib.colormaps[row.colours].resampled(21)  # few: small files
            scale = {"vmin": row.low, "vmax": row.high, "interpolation": "nearest"}
            image = axis.imshow(square, colours, aspect="auto", **scale, **shown)
            if row.colours == SIGNED and row.high > 0:  # dashed where negative, for greyscale
                levels = np.array([-0.25, 0, 0.25]) * row.high
                axis.contour(square, levels, colors="black", linewidths=[1, 2, 1], **shown)
            axis.scatter(*dots.T, s=5, color="white", edgecolors="black", linewidths=0.3)
            axis.set(title=title, **dict(zip(("xlabel", "ylabel"), names.values(), strict=True)))
            axis.label_outer()
        figure.colorbar(image, ax=list(line), label=row.label)
    return figure


def main(arguments: Landscape) -> None:
    """Draw the figures and say where they are."""
    check_least(arguments, transitions=10)
    check_writable(arguments.output / "lambda.png")
    agent = find_agent(arguments)
    subject = Subject(agent, arguments.transitions, arguments.device)
    model, space = subject.model, subject.model.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"a landscape needs observations that are vectors; got {space}")
    what = "Q-value" if isinstance(head := head_of(model), QValues) else "log-probability"
    choices = isinstance(head, DiscreteHead)
    if choices and not isinstance(model.action_space, spaces.Discrete):
        raise ValueError(
            f"a landscape shows one choice, or vectors; the actions are {model.action_space}"
        )
    visited = subject.rollouts.observations
    states = grid(visited, arguments.axes, subject.symmetry)
    titles = {name: STYLES[name].label for name in subject.fitting(POLICIES)}
    if choices and len(subject.symmetry.group) == values(model, states).shape[1] == 2:
        del titles["equizero"]
        titles["equitune"] = "equitune (equizero acts alike)"
    made = {name: cast(Policy, subject.policy(name)) for name in titles}
    drawn = {titles[name]: policy for name, policy in made.items()}
    weights = identity_weights(cast(LambdaEquitunePolicy, made["lambda"]), states)
    named = subject.symmetry.names_of("observation", states.shape[1:])
    known = ENTRIES.get(agent.env_id, named)
    labels = arguments.labels or tuple(known[axis] for axis in arguments.axes)
    names = dict(zip(arguments.axes, labels, strict=True))
    row = Row("weight of the identity", {titles["lambda"]: weights}, 0, 1)
    if choices:
        first, found = "q_landscape", value_rows(drawn, states, what)
    else:
        called = subject.symmetry.names_of("action", model.action_space.shape or ())
        first, found = "actions", action_rows(drawn, states, called)
    for name, rows in ((first, found), ("lambda", [row])):
        figure = draw(rows, states, visited, names)
        figure.suptitle(
            f"{agent.setting}\n{agent.name}\n"
            "other entries at their mean over the orbit\ndots: projections of visited states",
            fontsize="medium",
        )
        print(*figures.save(figure, arguments.output / name, dpi=120), sep="\n")


if __name__ == "__main__":
    run(main, Landscape)
