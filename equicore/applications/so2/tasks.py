"""The tasks: what is learned, under which continuous group, and by which networks.

`so2` is the synthetic function of EMLP (Finzi, Welling and Wilson, ICML 2021) in the plane, as in
section D.5 of Basu et al. (NeurIPS 2023), and `inertia` EMLP's other task. `points` was made here.
All inputs are as likely in any pose, so that test inputs are like training inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.continuous import (
    GramSchmidt,
    Motion,
    PrincipalAxes,
    Vectors,
    VectorSum,
    random_motions,
    rotations_2d,
    sign_frames,
)
from equicore.representations import Tree, Trivial
from equicore.representations.base import Action
from equicore.trees import leaves
from equicore.weights import MLPWeight

BODIES = 5
SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "helix")
POINTS = 32
HIDDEN = (32, 32)  # of networks for weights


class Tensors2(Action):
    """Matrices (B, ..., n, n) that turn as R A R^T: inertia, stress, quadratic forms."""

    axes = (-2, -1)

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = Vectors(-2), Vectors(-1)

    def act_each(self, elements: Motion, x: Tensor) -> Tensor:
        """Turn each matrix; errors as of `equicore.continuous.Vectors`."""
        return self.rows.act_each(elements, self.columns.act_each(elements, x))


class Residual(nn.Module):
    """A perceptron of four residual layers; width 200 gives the paper's 162,001 parameters.

    Args:
        inputs: Numbers in one input, a tensor or a tree of them.
        outputs: Shape of one output.
        width: Of all hidden layers.
    """

    def __init__(self, inputs: int, outputs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.first = nn.Linear(inputs, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.last = nn.Linear(width, math.prod(outputs))

    def forward(self, x: Any) -> Tensor:
        """Outputs (B, *outputs) for inputs (B, ...)."""
        hidden = self.first(torch.cat([part.flatten(1) for part in leaves(x)], dim=1)).relu()
        for layer in self.hidden:
            hidden = layer(hidden).relu_() + hidden
        return self.last(hidden).unflatten(1, self.outputs)


class PointFeatures(nn.Module):
    """The largest of each feature over all points, (B, points, 3) to (B, features)."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.last = nn.Linear(width, features)

    def forward(self, x: Tensor) -> Tensor:
        """Features that do not depend on the order of the points."""
        return self.last(self.first(x).relu()).max(1).values.relu()


class PointNet(nn.Sequential):
    """A small classifier of point clouds (Qi et al., CVPR 2017): (B, points, 3) to logits."""

    def __init__(self, width: int, classes: int) -> None:
        features = PointFeatures(width, 2 * width)
        head = nn.Linear(2 * width, 128), nn.ReLU(), nn.Linear(128, classes)
        super().__init__(features, *head)


@dataclass(frozen=True)
class Task:
    """What is learned under a group.

    Attributes:
        title: What tables call it.
        group: The group's name.
        dimension: Of the space that the group turns.
        reflections: Whether it has reflections.
        sample: Draws inputs and targets from a generator.
        network: Makes a network of a width.
        widths: Of a network alone, and of the somewhat narrower one in a model that is made
            equivariant, so that with weights it has no more parameters.
        weight: Makes a weight network from a seed.
        input_action: How the group acts on inputs.
        output_action: How it acts on targets and outputs.
        canonicalizer: From an input to an element of the group.
        loss: Of outputs and targets, one number for each sample.
        vectors: Picks the vectors whose principal axes are the frames; the input when omitted.
        classes: Whether targets are classes.
    """

    title: str
    group: str
    dimension: int
    reflections: bool
    sample: Callable[[int, torch.Generator], tuple[Any, Tensor]]
    network: Callable[[int], nn.Module]
    widths: tuple[int, int]
    weight: Callable[[int], nn.Module]
    input_action: Action
    output_action: Action
    canonicalizer: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    vectors: Callable[[Any], Tensor] | None = None
    classes: bool = False

    def draw(self, count: int, seed: int) -> tuple[Any, Tensor]:
        """So many inputs, a batch or a tree of batches, and their targets."""
        if count < 1:
            raise ValueError(f"draw one input at least; got {count}")
        return self.sample(count, torch.Generator().manual_seed(seed))

    def elements(self, count: int, seed: int) -> Motion:
        """Samples around the canonical form, the identity first.

        In SO(2) equally spaced, else random ones, fixed by the seed.
        """
        if self.group == "SO(2)":
            return rotations_2d(count)
        return random_motions(count, self.dimension, reflections=self.reflections, seed=seed)

    @property
    def axes(self) -> PrincipalAxes:
        """The principal axes of an input."""
        return PrincipalAxes("O" if self.reflections else "SO", self.vectors)

    @property
    def frames(self) -> Motion:
        """The signs that these axes can have."""
        return sign_frames(self.dimension, reflections=self.reflections)


def of_two_vectors(x: Tensor) -> Tensor:
    """EMLP's function sin|a| - |b|^3 / 2 + a.b / (|a| |b|) of vectors (B, 2, n): (B, 1)."""
    a, b = x.unbind(1)
    size_a, size_b = a.norm(dim=-1), b.norm(dim=-1)
    return (size_a.sin() - size_b**3 / 2 + (a * b).sum(-1) / (size_a * size_b)).unsqueeze(1)


def inertia(mass: Tensor, position: Tensor) -> Tensor:
    """The inertia about the origin, sum of m (|x|^2 - x x^T), of bodies (B, k): (B, 3, 3)."""
    squares = position.square().sum(-1)
    scalar = (mass * squares).sum(-1)[:, None, None] * torch.eye(3).to(position)
    return scalar - torch.einsum("bk,bki,bkj->bij", mass, position, position)


def extreme_points(x: Tensor) -> Tensor:
    """The point of a cloud (B, k, 3) farthest from 0, and the farthest from the line through it.

    Returns:
        Shape (B, 2, 3). They turn with the cloud, whatever the order of its points.
    """
    rows = torch.arange(x.shape[0], device=x.device)
    first = x[rows, x.norm(dim=-1).argmax(1)]
    across = torch.linalg.cross(first.unsqueeze(1).expand_as(x), x).norm(dim=-1)
    return torch.stack([first, x[rows, across.argmax(1)]], dim=1)


def _two_vectors(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 2, 2, generator=generator)
    return x, of_two_vectors(x)


def _bodies(count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    mass = functional.softplus(torch.randn(count, BODIES, generator=generator))
    position = torch.randn(count, BODIES, 3, generator=generator)
    return {"mass": mass, "position": position}, inertia(mass, position)


def _clouds(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of `SHAPES`, stretched along their axes, with noise, centred, in random poses."""
    u, v = torch.rand(2, count, POINTS, generator=generator)
    normal = torch.randn(count, POINTS, 3, generator=generator)
    circle = torch.stack([(2 * math.pi * u).cos(), (2 * math.pi * u).sin()], dim=-1)
    height = (2 * v - 1).unsqueeze(-1)
    tube, turns = 2 * math.pi * v.unsqueeze(-1), 4 * math.pi * v.unsqueeze(-1)
    shapes = [
        functional.normalize(normal, dim=-1),
        normal / normal.abs().amax(-1, keepdim=True),
        torch.cat([circle, height], dim=-1),
        torch.cat([circle * (1 - height) / 2, height], dim=-1),
        torch.cat([circle * (1 + 0.4 * tube.cos()), 0.4 * tube.sin()], dim=-1),
        torch.cat([turns.cos(), turns.sin(), height], dim=-1),
    ]
    labels = torch.randint(len(SHAPES), (count,), generator=generator)
    clouds = torch.stack(shapes)[labels, torch.arange(count)]
    clouds = clouds * (0.6 + 0.8 * torch.rand(count, 1, 3, generator=generator))
    clouds = clouds + 0.05 * torch.randn(clouds.shape, generator=generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    clouds = Vectors().act_each(random_motions(count, 3, seed=seed), clouds)
    return clouds - clouds.mean(1, keepdim=True), labels


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _position(x: dict[str, Tensor]) -> Tensor:
    return x["position"]


def _in_plane(
    group: str, reflections: bool, canonicalizer: nn.Module, widths: tuple[int, int]
) -> Task:
    """EMLP's function under a group of the plane."""
    return Task(
        title=f"{group}: EMLP's function of two vectors",
        group=group,
        dimension=2,
        reflections=reflections,
        sample=_two_vectors,
        network=lambda width: Residual(4, (1,), width),
        widths=widths,
        weight=lambda seed: MLPWeight((2, 2), HIDDEN, seed=seed),
        input_action=Vectors(),
        output_action=Trivial(),
        canonicalizer=canonicalizer,
        loss=_squared_error,
    )


TASKS = {
    "so2": _in_plane("SO(2)", False, VectorSum(), (200, 199)),
    "o2": _in_plane("O(2)", True, GramSchmidt("O"), (100, 98)),
    "inertia": Task(
        title="SO(3): the inertia of five bodies",
        group="SO(3)",
        dimension=3,
        reflections=False,
        sample=_bodies,
        network=lambda width: Residual(4 * BODIES, (3, 3), width),
        widths=(100, 97),
        weight=lambda seed: MLPWeight(
            {"mass": (BODIES,), "position": (BODIES, 3)}, HIDDEN, seed=seed
        ),
        input_action=Tree({"mass": Trivial(), "position": Vectors()}),
        output_action=Tensors2(),
        canonicalizer=GramSchmidt("SO", _position),
        loss=_squared_error,
        vectors=_position,
    ),
    "points": Task(
        title="SO(3): six shapes as clouds of 32 points",
        group="SO(3)",
        dimension=3,
        reflections=False,
        sample=_clouds,
        network=lambda width: PointNet(width, len(SHAPES)),
        widths=(16, 15),
        weight=lambda seed: MLPWeight((16,), (8,), pool=PointFeatures(8, 16), seed=seed),
        input_action=Vectors(),
        output_action=Trivial(),
        canonicalizer=GramSchmidt("SO", extreme_points),
        loss=_cross_entropy,
        classes=True,
    ),
}
"""By the names that the command has."""
