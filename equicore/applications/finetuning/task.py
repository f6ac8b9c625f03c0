"""What an application gives, so that methods of fine-tuning can be compared on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

from torch import Tensor, nn

from equicore.finetuning import Problem


class Data(Protocol):
    """Samples with their targets."""

    def __len__(self) -> int:
        """How many samples."""
        ...

    def __getitem__(self, rows: Tensor) -> Self:
        """Those in some rows, whole numbers (N,)."""
        ...

    def batches(self, size: int, seed: int) -> Iterator[tuple[Any, Any]]:
        """Batches (inputs, targets) of all samples once, in an order that the seed decides."""
        ...


class Task(ABC):
    """A pretrained model, data to fine-tune it on, and how it is measured.

    Attributes:
        name: What tables call it.
        settings: Plain values that decide what is measured, beside the method, the part of the
            data, the seed and the metrics: digests of the model and the data, sizes, groups.
        problem: The loss, the symmetries, and the network that looks at views.
        training: The data to fine-tune on, of which nothing is tested on.
        whole: Of how many samples fractions are parts; of all to train on as a rule.
        metrics: Those of `evaluate`, each with whether higher is better.
        chosen_by: The metric by which weights of penalties are chosen, on data held out of those
            to train on.
    """

    name: str
    settings: Mapping[str, Any]
    problem: Problem
    training: Data
    metrics: Mapping[str, bool]
    chosen_by: str

    @property
    def whole(self) -> int:
        """How many samples the fraction 1 stands for."""
        return len(self.training)

    @abstractmethod
    def model(self, seed: int, data: Data | None = None) -> nn.Module:
        """The pretrained model, a new copy; the seed is that of layers that are new in it.

        A task may first fit new layers to the data that the model is fine-tuned on. The model's
        device is that of all computations; batches and probes are brought there.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The ``metrics`` of a model in eval mode, on the test data."""

    @abstractmethod
    def validate(self, model: nn.Module, data: Data) -> float:
        """The metric ``chosen_by`` of a model in eval mode, on data held out of ``training``."""

    def compared(self, output: Any) -> Any:
        """What deviations from equivariance are measured of, from a model's output.

        Of logits those less their mean over classes: a constant in all of them says nothing.
        """
        return output

    @abstractmethod
    def probes(self) -> list[Any]:
        """Batches of test inputs, a few, on which deviations from equivariance are measured."""
