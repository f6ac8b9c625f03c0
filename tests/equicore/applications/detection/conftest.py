from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from equicore.applications.detection import data, detector, finetune
from equicore.boxes import Fusion, listed

SHARED = Path(__file__).resolve().parents[5] / "shared"


def shared(path):
    """A file or folder beside the checkout, on the project's own machines."""
    if not (SHARED / path).exists():
        pytest.skip(f"shared/{path} is not here")
    return SHARED / path


@pytest.fixture(scope="session")
def weights():
    return shared("models/fastestdet-coco.pth")


@pytest.fixture(scope="session")
def scenes():
    """Few drawn scenes to learn from, and others."""
    return data.drawn(120, 0), data.drawn(40, 1)


@pytest.fixture(scope="session")
def small(scenes, tmp_path_factory):
    """A detector that has learned them, if not well."""
    file = tmp_path_factory.mktemp("runs") / "small.safetensors"
    network = finetune.trained(scenes[0], file, epochs=8)
    return detector.Detector(network, detector.of_head_map, scenes[0].classes, Fusion()).eval()


@pytest.fixture(scope="session")
def apart():
    """How far sets of boxes differ at most, each box beside the most similar one.

    In boxes relative to the side of the images, and in scores; infinity if labels or numbers of
    boxes differ.
    """

    def largest(one, other, side):
        worst = 0.0
        for a, b in zip(listed(one), listed(other), strict=True):
            if sorted(a["labels"].tolist()) != sorted(b["labels"].tolist()):
                return np.inf
            if not len(a["labels"]):
                continue
            boxes = (a["boxes"][:, None] - b["boxes"]).abs().amax(-1).double() / side
            costs = torch.maximum(boxes, (a["scores"][:, None] - b["scores"]).abs().double())
            costs = costs + 10.0 * (a["labels"][:, None] != b["labels"])
            worst = max(worst, costs.numpy()[linear_sum_assignment(costs.numpy())].max())
        return worst

    return largest
