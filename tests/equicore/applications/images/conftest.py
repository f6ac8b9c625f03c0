import dataclasses

import pytest
import torch

from equicore.applications.images import data, loading, training
from equicore.applications.images.study import Study


@pytest.fixture(scope="session")
def digits():
    """Digits to train on and to test."""
    return data.read(), data.read(None, "test")


@pytest.fixture(scope="session")
def file(digits, tmp_path_factory):
    """Of a small network that has learned upright digits."""
    return training.trained("small", digits[0], tmp_path_factory.mktemp("runs"), epochs=8)


@pytest.fixture
def model(file, digits):
    return loading.load(file, digits[1])


@pytest.fixture(scope="session")
def study(file, digits, tmp_path_factory):
    """What is known of it under quarter turns; its tables are computed once."""
    train, test = digits
    made = Study(
        loading.load(file, test), "small", train, test, "turns", ("network.0",),
        tmp_path_factory.mktemp("study"), fit_steps=200, looks=(4,), look_steps=200,
    )  # fmt: skip
    made.prepare()
    return made


@pytest.fixture
def few(study, tmp_path):
    """The same with few images and nothing computed."""
    train, test = study.train[slice(0, 200)], study.test[slice(0, 50)]
    return dataclasses.replace(
        study, train=train, test=test, folder=tmp_path, fit_steps=20, look_steps=20
    )


@pytest.fixture
def trained64(model, digits):
    """The network in float64, some digits, and others of an odd size."""
    images = digits[1][slice(0, 12)].inputs().double()
    odd = torch.nn.functional.interpolate(images, size=9, mode="bilinear")
    return model.double(), images, odd
