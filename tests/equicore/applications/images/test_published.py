"""A published ResNet on real images: what turns cost, and what comes back."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equicore import Trivial, assert_equivariant, equizero, image_dihedral, max_value
from equicore.applications.images import data, loading
from equicore.applications.images.experiment import measure
from equicore.applications.images.study import Study

SHARED = Path(__file__).resolve().parents[5] / "shared"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """Training images, and a tenth of the test images of each class."""
    script, archive = SHARED / "data" / "unpack.py", SHARED / "data" / "cifar10.zip"
    if not archive.is_file():
        pytest.skip("shared/data is not here")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(script), str(archive), str(folder)], check=True)
    train, test = data.read(folder), data.read(folder, "test")
    return train, test[slice(0, None, 10)]


@pytest.fixture(scope="module")
def resnet20(cifar10):
    file = SHARED / "models" / "resnet20-12fca82f.th"
    if not file.is_file():
        pytest.skip("shared/models is not here")
    return loading.load(file, cifar10[1])


def test_turned_images(cifar10, resnet20, tmp_path):
    train, test = cifar10
    features = loading.features_of(resnet20, test)
    study = Study(resnet20, "resnet20", train, test, "turns", features, tmp_path, looks=(8,))
    table = measure(study, 0)
    of = table.pivot(index="method", columns="condition", values="accuracy")
    assert of.upright["plain"] > 0.9
    assert of.moved["plain"] < 0.57
    assert 0.7 < of.moved["equitune"] < 0.82
    assert of.moved["equizero_published"] < 0.45  # the least confident view
    assert of.moved["equizero_log_odds"] > of.moved["equitune"] + 0.05
    assert of.moved["equizero_largest_logit"] > 0.84
    assert of.moved["lambda_familiar"] > 0.86
    assert of.moved["lambda_familiar_largest_logit_0.5"] > 0.87
    assert (of.drop("plain").upright == of.drop("plain").moved).all()


def test_exactly_invariant(cifar10, resnet20):
    """In float64, for turns and mirrors, and for the odd size that a crop leaves."""
    images = cifar10[1][slice(0, None, 100)].inputs().double()
    rep = image_dihedral()
    same = Trivial(rep.group)
    model = equizero(resnet20.double(), rep, same, max_value)
    for x in (images, images[..., :31, :31]):
        with torch.no_grad():
            assert_equivariant(model, rep, same, x)  # to 1e-12
