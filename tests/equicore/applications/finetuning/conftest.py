import functools

import pytest
import torch
from torch import nn

from equicore import Trivial, image_dihedral
from equicore.applications.finetuning.experiment import Tuning
from equicore.applications.finetuning.task import Task
from equicore.finetuning import Problem, Symmetry, kl_divergence
from equicore.weights import conv_weight


class Bars:
    """Pictures 8 x 8 of one horizontal bar, or two."""

    def __init__(self, x, labels):
        self.x, self.labels = x, labels

    @classmethod
    def drawn(cls, count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (count,), generator=generator)
        x = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
        x[:, :, 1:3, 2:6] += 1
        x[labels == 1, :, 4:6, 2:6] += 1
        return cls(x, labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, rows):
        return Bars(self.x[rows], self.labels[rows])

    def batches(self, size, seed):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return ((self.x[rows], self.labels[rows]) for rows in order.split(size))


class Counting(Task):
    """How many bars there are, under turns and mirrors."""

    name = "bars"
    metrics = {"accuracy": True, "accuracy_moved": True, "loss": False}
    chosen_by = "accuracy_moved"

    def __init__(self):
        rep = image_dihedral()
        symmetry = Symmetry(rep, Trivial(rep.group), features={"0": rep}, name="turns")
        look = functools.partial(conv_weight, 1, 4)
        self.problem = Problem(nn.functional.cross_entropy, (symmetry,), kl_divergence, look)
        self.training, self.test = Bars.drawn(100, 0), Bars.drawn(60, 1)
        self.settings = {"images": "bars"}

    def model(self, seed, data=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
            )

    def right(self, model, data, moved):
        rep = self.problem.symmetries[0].input
        x = data.x
        if moved:
            x = rep.act_each(torch.arange(len(data)) % 8, x)
        return float((model(x).argmax(1) == data.labels).double().mean())

    def evaluate(self, model):
        loss = self.problem.loss(model(self.test.x), self.test.labels)
        right = functools.partial(self.right, model, self.test)
        return {"accuracy": right(False), "accuracy_moved": right(True), "loss": float(loss)}

    def validate(self, model, data):
        return self.right(model, data, moved=True)

    def probes(self):
        return [self.test.x[:20], self.test.x[20:40]]


@pytest.fixture
def task():
    return Counting()


@pytest.fixture
def tuning():
    return Tuning(steps=10, views=16, learning_rate=3e-3, weights=(0.1, 1.0))
