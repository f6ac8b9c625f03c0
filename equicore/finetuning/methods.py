"""Ways to fine-tune a model towards a symmetry, each one object, so that tasks run the same list.

>>> import equicore
>>> from equicore.finetuning import Penalty, Problem, Symmetry
>>> turns = equicore.image_rotations()
>>> symmetry = Symmetry(turns, equicore.Trivial(turns.group))
>>> problem = Problem(nn.functional.cross_entropy, (symmetry,))
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
>>> batches = [(torch.rand(5, 3, 3), torch.arange(5) % 2)]
>>> tuned = Penalty(0.1).of(model, problem)
>>> losses = tuned.fit(batches, torch.optim.Adam(tuned.parameters()), steps=3, progress=False)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from equicore.capture import Observed
from equicore.finetuning.fitting import fit
from equicore.finetuning.penalty import (
    Divergence,
    EquivarianceLoss,
    GroupAugmentation,
    by_part,
    relative_error,
    squared_error,
)
from equicore.representations import Tree
from equicore.representations.base import Action, Elements, check_one_group, orbit_size
from equicore.symmetrize import Symmetrized, equitune, lambda_equitune
from equicore.trees import leaves

Batches = Iterable[tuple[Any, Any]]
Part = Literal["output", "features"]


@dataclass(frozen=True)
class Symmetry:
    """How one finite group acts on what a model takes, returns and is told.

    Args:
        input: How it acts on inputs.
        output: How it acts on outputs.
        target: How it acts on targets; as on outputs when omitted.
        features: Submodules of the model by name, and how it acts on what they return: on feature
            maps (B, channels, rows, columns) as on images; where channels come last, on
            ``axes=(-3, -2)``.
        name: What tables call it; the group's name when omitted.

    Raises:
        ValueError: If the actions are of different groups, or of a continuous one.
    """

    input: Action
    output: Action
    target: Action | None = None
    features: Mapping[str, Action] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        """Check them."""
        group = check_one_group(
            (self.input, self.output, self.of_target, *self.features.values()),
            "input, output, target and features",
        )
        if group is None:
            raise ValueError("a Symmetry is of a finite group; these actions are of none")
        if not self.name:
            object.__setattr__(self, "name", group.name)

    @property
    def order(self) -> int:
        """How many elements the group has."""
        return orbit_size(self.input.group, None)

    @property
    def of_target(self) -> Action:
        """How the group acts on targets."""
        return self.output if self.target is None else self.target


@dataclass(frozen=True)
class Problem:
    """A task, and the symmetries that its model should have.

    Args:
        loss: Of outputs and targets: the task's.
        symmetries: One or more. Equitune, lambda-equitune and canonicalization are of the first;
            augmentation and penalties of all.
        divergence: Between outputs, for penalties; `equicore.finetuning.kl_divergence` for logits,
            `equicore.finetuning.relative_error` for dense ones.
        look: Makes a network that maps inputs (N, ...) to log-weights (N,), see
            `equicore.weights.conv_weight`; lambda-equitune and canonicalization need it.
    """

    loss: Callable[[Any, Any], Tensor]
    symmetries: tuple[Symmetry, ...]
    divergence: Divergence = squared_error
    look: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if there is no symmetry."""
        if not self.symmetries:
            raise ValueError("a Problem has one symmetry at least")


class Tuned(nn.Module):
    """A model that is being fine-tuned, and what its training adds to the task's loss.

    Attributes:
        model: What is used afterwards: it maps inputs to outputs.
        problem: What it is fine-tuned for.
    """

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        penalty: _Ramped | _Prior | None = None,
        augment: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        observed: Observed | None = None,
    ) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.problem = problem
        self.penalty = penalty
        self._augment = augment
        self._runs = Observed(model, ()) if observed is None else observed
        if (parameter := next(model.parameters(), None)) is not None:
            self.to(parameter.device)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Modules that hold its whole state, each once: what to keep of a training."""
        ramp = {"ramp": self.penalty.ramp} if isinstance(self.penalty, _Ramped) else {}
        return {"model": self.model, **ramp}

    def forward(self, x: Any) -> Any:
        """The model's output."""
        return self.model(x)

    def fit(
        self,
        batches: Batches,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int | None = None,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
        progress: bool = True,
    ) -> list[float]:
        """Train it; arguments, result and errors are those of `equicore.finetuning.fit`."""
        moved = batches if self._augment is None else _Augmented(batches, self._augment)
        return fit(
            self._runs, moved, lambda y, target: self.problem.loss(y[Observed.OUTPUT], target),
            optimizer, penalty=self.penalty, steps=steps, schedule=schedule, progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class Method(ABC):
    """A way to fine-tune; methods are compared by value, and their ``repr`` says all of them."""

    @abstractmethod
    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        """What is trained, for a model, which is trained in place.

        Args:
            model: Pretrained.
            problem: The task and its symmetries.

        Raises:
            ValueError: If the model has no submodule of a name, or the problem lacks what the
                method needs. Feature maps that a group cannot act on are refused in the first step.
        """

    def trained_views(self, problem: Problem) -> int:
        """How often the model runs on each sample in training."""
        return 1

    def views(self, problem: Problem) -> int:
        """How often the model runs on each sample afterwards."""
        return 1


@dataclass(frozen=True)
class Plain(Method):
    """The task's loss alone."""

    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        return Tuned(model, problem)


@dataclass(frozen=True)
class Augmentation(Method):
    """A random element for each sample, of every symmetry, one after the other."""

    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        steps = [GroupAugmentation(s.input, s.of_target) for s in problem.symmetries]

        def augment(inputs: Any, targets: Any) -> tuple[Any, Any]:
            for step in steps:
                inputs, targets = step(inputs, targets)
            return inputs, targets

        return Tuned(model, problem, augment=augment)


@dataclass(frozen=True)
class Penalty(Method):
    """The task's loss, and a multiple of the model's deviation from equivariance.

    The deviation is that of the outputs, by the problem's divergence, of the feature maps that the
    symmetry names, by `equicore.finetuning.relative_error`, or both; of several symmetries it is
    the sum.

    Args:
        weight: By which it is multiplied.
        on: ``("output",)``, ``("features",)`` or both.
        samples: So many random elements for each sample.
        ramp: In the first so many steps the weight rises from 0.

    Raises:
        ValueError: If one of these cannot be.
    """

    weight: float
    on: tuple[Part, ...] = ("output",)
    samples: int = 1
    ramp: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"the weight of a penalty is a number from 0 on; got {self.weight}")
        if not self.on or not {*self.on} <= {*get_args(Part)}:
            raise ValueError(f"a penalty is on {get_args(Part)}, one or both; got {self.on!r}")
        if self.samples < 1 or self.ramp < 0:
            raise ValueError(
                f"a penalty has samples from 1 on and a ramp of steps from 0 on; got "
                f"{self.samples} and {self.ramp}"
            )

    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        names = list(dict.fromkeys(n for s in problem.symmetries for n in s.features))
        names = names if "features" in self.on else []
        if "features" in self.on and not names:
            raise ValueError(
                "a penalty on features needs a Symmetry that names some, features={name: action}; "
                "else leave this method out"
            )
        observed = Observed(model, names)
        penalties = [self._of(observed, s, problem.divergence) for s in self._penalised(problem)]
        penalty = _Ramped(penalties, self.weight, _Ramp(self.ramp))
        return Tuned(model, problem, penalty, observed=observed)

    def _penalised(self, problem: Problem) -> list[Symmetry]:
        """The symmetries that it has something of."""
        return [s for s in problem.symmetries if "output" in self.on or s.features]

    def _of(
        self, observed: Observed, symmetry: Symmetry, divergence: Divergence
    ) -> EquivarianceLoss:
        features = symmetry.features if observed.features else {}
        actions: dict[str, Action] = {
            name: _OnMaps(name, action) for name, action in features.items()
        }
        divergences: dict[str, Divergence] = dict.fromkeys(features, relative_error)
        if "output" in self.on:
            actions[Observed.OUTPUT] = symmetry.output
            divergences[Observed.OUTPUT] = divergence
        return EquivarianceLoss(
            observed, symmetry.input, Tree(actions), self.samples, by_part(divergences)
        )

    def trained_views(self, problem: Problem) -> int:
        return 1 + self.samples * len(self._penalised(problem))


@dataclass(frozen=True)
class Equitune(Method):
    """Equivariant by construction: the mean over the first symmetry's group."""

    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        symmetry = problem.symmetries[0]
        return Tuned(equitune(model, symmetry.input, symmetry.output), problem)

    def trained_views(self, problem: Problem) -> int:
        return problem.symmetries[0].order

    def views(self, problem: Problem) -> int:
        return problem.symmetries[0].order


@dataclass(frozen=True)
class LambdaEquitune(Equitune):
    """Equivariant by construction: the mean with weights of a network that looks at the views.

    The network is trained with the model, on the task's loss.
    """

    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        symmetry = problem.symmetries[0]
        weight = _look(problem, model)
        return Tuned(lambda_equitune(model, symmetry.input, symmetry.output, weight), problem)


@dataclass(frozen=True)
class Canonicalization(Method):
    """Equivariant by construction: the one view that a small network finds the most canonical.

    The network learns from a prior alone: that the training data are canonical as they are (Mondal
    et al., *Equivariant Adaptation of Large Pretrained Models*, NeurIPS 2023). It is of use only
    where they have such an orientation. The gradient of the task, which they pass to the network
    straight through, is left out.

    Args:
        prior: Multiplies the cross-entropy of the network's weights with the identity.
    """

    prior: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError if the prior is not positive."""
        if not 0 < self.prior < float("inf"):
            raise ValueError(f"the prior's factor is positive; got {self.prior}")

    def of(self, model: nn.Module, problem: Problem) -> Tuned:
        symmetry = problem.symmetries[0]
        canonical = lambda_equitune(
            model, symmetry.input, symmetry.output, _look(problem, model), top_k=1
        )
        return Tuned(canonical, problem, _Prior(canonical, self.prior))


def deviation(
    model: Callable[[Any], Any],
    symmetry: Symmetry,
    batches: Iterable[Any],
    samples: int | None = None,
) -> float:
    """How far a model is from equivariance: the root mean of `relative_error` of its outputs.

    Args:
        model: Maps inputs (B, ...) to outputs.
        symmetry: How the group acts on both.
        batches: Inputs.
        samples: So many random elements for each sample; None for all elements.

    Returns:
        0 for an equivariant model, 1 where f(g x) and g f(x) are as far apart as unrelated outputs
        of mean 0. A constant in all outputs lowers it: of logits take away the mean over classes.

    Raises:
        ValueError: If there is no batch.
    """
    penalty = EquivarianceLoss(model, symmetry.input, symmetry.output, samples, relative_error)
    with torch.no_grad():
        found = [penalty(x) for x in batches]
    if not found:
        raise ValueError("there is no batch to measure the deviation on")
    return float(torch.stack(found).mean().sqrt())


class _OnMaps(Action):
    """An action on the feature maps of a submodule, whose errors name it."""

    def __init__(self, name: str, action: Action) -> None:
        super().__init__()
        self.group = action.group
        self.axes = action.axes
        self.name = name
        self.action = action

    def act_each(self, elements: Elements, x: Any) -> Any:
        try:
            return self.action.act_each(elements, x)
        except (ValueError, TypeError) as error:
            shape = tuple(leaves(x)[0].shape)
            raise ValueError(
                f"the submodule {self.name!r} returns the shape {shape}, on which the action given "
                f"for it cannot act: {error}"
            ) from error

    def check(self, x: Any, shape: tuple[int, ...]) -> None:
        """Raise ValueError if an action on rows and columns is given for what is no map of them."""
        if not {-1, -2} <= {*self.axes}:
            return
        image = isinstance(x, Tensor) and x.ndim > 3
        # words and patches (B, N, channels), or maps with channels last, would be taken for maps
        if len(shape) < 4 or (image and not _alike(x.shape[-2:], shape[-2:])):
            raise ValueError(
                f"the submodule {self.name!r} returns the shape {shape}, and its action is on maps "
                "(B, channels, rows, columns); name a submodule that returns such maps, or, where "
                "channels come last, an action on axes=(-3, -2)"
            )


def _check_maps(x: Any, output: Any, penalties: Iterable[Any]) -> None:
    for penalty in penalties:
        for name, action in zip(penalty.output_rep.names, penalty.output_rep.parts, strict=True):
            if isinstance(action, _OnMaps):
                for leaf in leaves(output[name]):
                    action.check(x, tuple(leaf.shape))


def _alike(image: Sequence[int], cells: Sequence[int]) -> bool:
    """Whether cells are about squares of an image's pixels."""
    high, wide = (side / count for side, count in zip(image, cells, strict=True))
    return max(high, wide) <= 1.5 * min(high, wide)


class _Ramp(nn.Module):
    """How far a weight has risen, which counts the steps."""

    done: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("done", torch.zeros((), dtype=torch.long))

    def forward(self) -> float:
        """Its part in the next step; steps without gradients do not count."""
        self.done += torch.is_grad_enabled()
        return min(1.0, int(self.done) / self.steps) if self.steps else 1.0


class _Ramped(nn.Module):
    """A multiple of the sum of penalties, which rises in the first steps."""

    def __init__(self, penalties: list[EquivarianceLoss], weight: float, ramp: _Ramp) -> None:
        super().__init__()
        self.penalties = nn.ModuleList(penalties)
        self.weight = weight
        self.ramp: _Ramp = ramp

    def forward(self, x: Any, output: Any) -> Tensor:
        """For a batch and what the model returned for it."""
        _check_maps(x, output, self.penalties)
        return self.weight * self.ramp() * torch.stack([p(x, output) for p in self.penalties]).sum()


class _Prior(nn.Module):
    """How improbable it is, by the weights of views, that inputs are canonical as they are."""

    def __init__(self, canonical: Symmetrized, weight: float) -> None:
        super().__init__()
        self.canonical = canonical
        self.weight = weight

    def forward(self, x: Any, output: Any) -> Tensor:
        """For a batch; the output is not looked at."""
        scores = self.canonical.scores(x).T
        return self.weight * functional.cross_entropy(scores, scores.new_zeros(len(scores)).long())


class _Augmented:
    """Batches that are moved anew in each pass."""

    def __init__(self, batches: Batches, augment: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self.batches = batches
        self.augment = augment

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self.augment(x, target) for x, target in self.batches)


def _look(problem: Problem, model: nn.Module) -> nn.Module:
    if problem.look is None:
        raise ValueError(
            "lambda-equitune and canonicalization need a network that looks at the views: give "
            "Problem(look=...), for instance equicore.weights.conv_weight"
        )
    network = problem.look()
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    return network if like is None else network.to(like)
