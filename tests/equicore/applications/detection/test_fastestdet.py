"""FastestDet, beside its published ONNX file."""

import numpy as np
import onnxruntime
import pytest
import torch

from equicore.applications.detection import fastestdet
from equicore.applications.detection.data import drawn
from equicore.applications.detection.detector import Detector, of_head_map
from equicore.applications.detection.finetune import Detection
from equicore.boxes import Fusion
from equicore.finetuning import Penalty


def test_it_returns_what_the_published_file_returns(weights):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(weights.with_suffix(".onnx"), options)
    x = torch.rand(1, 3, 352, 352, generator=torch.Generator().manual_seed(0))
    (wanted,) = session.run(None, {"input.1": x.flip(1).numpy()})  # BGR
    with torch.no_grad():
        model = fastestdet.load(weights)
        found = model.published(x)
        head = model(x)
    assert abs(found.numpy() - wanted).max() < 1e-4
    assert head.shape == (1, 85, 22, 22) and np.ptp(wanted) > 5
    torch.testing.assert_close(head[:, 3] / head[:, 0], found[:, 4].sigmoid())


def test_other_classes(weights):
    model = fastestdet.load(weights)
    torch.manual_seed(0)
    other = model.with_classes(3).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found, before = other.published(x), model.published(x)
    assert found.shape == (2, 8, 4, 6) and model.classes == 80 and other.classes == 3
    torch.testing.assert_close(found[:, :5], before[:, :5])
    torch.manual_seed(0)
    again = model.with_classes(3).state_dict()
    assert all(torch.equal(t, again[name]) for name, t in other.state_dict().items())


def test_it_is_fine_tuned_on_other_classes(weights):
    scenes = drawn(4, 0, side=96)
    model = Detector(fastestdet.load(weights), of_head_map, scenes.classes, Fusion())
    task = Detection(model, scenes, scenes, "drawn", ("SPP", "backbone.stage4"))
    one, other, again = (
        task.model(seed).eval()(torch.rand(1, 3, 96, 96) * 0) for seed in (0, 1, 0)
    )
    assert one.shape == (1, 8, 6, 6) and torch.equal(one, again) and not torch.equal(one, other)
    turns, shifts = task.problem.symmetries
    assert turns.order == 8 and shifts.order == 9  # by the cells of the deepest features
    tuned = Penalty(0.1, ("output", "features")).of(task.model(0), task.problem)
    batches = list(task.training.batches(2))
    losses = tuned.fit(batches, torch.optim.Adam(tuned.parameters(), 1e-3), progress=False)
    assert len(losses) == 2 and {*task.evaluate(tuned.eval())} == {*task.metrics}


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        fastestdet.load(tmp_path / "no.pth")
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"layer": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    for name in ("text.pth", "other.pth", "code.pth"):
        with pytest.raises(ValueError, match="does not hold the weights of a FastestDet"):
            fastestdet.load(tmp_path / name)
    model = fastestdet.FastestDet(3)
    for shape in ((1, 3, 100, 96), (1, 1, 96, 96), (3, 96, 96)):
        with pytest.raises(ValueError, match="multiples of 32"):
            model(torch.zeros(shape))
