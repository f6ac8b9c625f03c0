"""What is measured, found again, and resumed."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from equicore.applications.images import experiment, finetune, methods, training
from equicore.applications.images.experiment import COLUMNS, accuracy, advice, measure
from equicore.applications.images.finetune import METHODS, Tuning
from equicore.lab.store import rounds
from equicore.reduce import Identity


@pytest.fixture(scope="module")
def measured(study):
    """Of one seed, by method and condition."""
    table = measure(study, 0)
    assert list(table.columns) == COLUMNS
    return table.pivot(index="method", columns="condition", values="accuracy")


def test_what_was_lost_is_regained(measured):
    """Label-free weights, and small networks that choose one view before the model runs."""
    upright, moved = measured.loc["plain", "upright"], measured.moved
    assert upright > 0.85
    assert moved["plain"] < 0.5
    assert moved["lambda_familiar"] > upright - 0.08
    assert moved["lambda_labels"] > upright - 0.08
    assert moved["orientation_4_top1"] > upright - 0.2
    assert moved["equizero_published"] < moved["equizero_log_odds"]
    assert moved["oracle"] >= moved.drop("oracle").max()


def test_methods_are_invariant(measured):
    """Their accuracies on upright and on turned images are the same."""
    methods = measured.drop("plain")
    assert (methods.upright == methods.moved).all()


def test_it_is_found_again_and_only_with_the_same_settings(study, monkeypatch):
    first = measure(study, 0)
    monkeypatch.setattr(methods, "fit_unlabelled", lambda *_, **__: pytest.fail("fitted again"))
    pd.testing.assert_frame_equal(measure(study, 0), first)
    assert study.settings != dataclasses.replace(study, group="mirror").settings
    assert study.settings != dataclasses.replace(study, fit_steps=7).settings


def test_validation_images_are_no_test_images_and_not_fitted_on(study):
    fitted, choice = study.parts()
    assert len(fitted) + len(choice) == len(study.train)
    assert accuracy(study.table(choice), choice.labels, study.rep, Identity()) > 0.8


def test_orientation_networks_cost_a_part_of_a_forward(study):
    from equicore.applications.images.networks import orientation

    cost = experiment.forwards(study.model, orientation(4, 1), study.test, 4, 1)
    assert 1 < cost < 1.1
    wide = experiment.forwards(study.model, orientation(8, 1), study.test, 4, 2)
    assert wide - 2 > 2 * (cost - 1)


def test_advice(study, digits, tmp_path):
    """Upright digits have an orientation, turned ones have none."""
    assert "use lambda-equitune" in advice(study)
    turned = dataclasses.replace(
        study, train=digits[0].moved(study.rep, 0), folder=tmp_path, fit_steps=100
    )
    said = advice(turned)
    assert "use equitune" in said
    assert f"log 4 = {math.log(4):.2f}" in said


def test_images_that_are_not_square(digits):
    oblong = dataclasses.replace(digits[1], pixels=digits[1].pixels[..., :6])
    experiment.check_square(oblong, "mirror")
    with pytest.raises(ValueError, match="8 x 6 pixels are not square, and turns has quarter"):
        experiment.check_square(oblong, "turns")


TUNING = Tuning(steps=(0, 2, 4), batch_size=4, tested=20)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_is_evaluated(few, method):
    table = finetune.measure(few, method, TUNING, 0)
    assert list(table.steps) == [0, 2, 4]
    assert list(table.images) == [20, 20, 50]
    assert table.accuracy.between(0, 1).all()


def test_what_is_trained(few):
    before = [p.clone() for p in few.model.parameters()]
    counts = {}
    for method in METHODS:
        model, trained = finetune.tunable(few, method, 0)
        counts[method] = sum(p.numel() for p in trained)
        outputs = model(few.test[slice(0, 3)].inputs())["logits"]
        outputs.sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in trained), method
    assert counts["lambda_joint"] > counts["lambda_frozen"] == counts["plain"]
    after = few.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_fine_tuned_models_stay_invariant(few):
    images = few.test[slice(0, 6)].inputs().double()
    for method in METHODS[2:]:
        model = finetune.tunable(few, method, 0)[0].double().eval()
        expected = model(images)["logits"]
        torch.testing.assert_close(model(few.rep.act(1, images))["logits"], expected)


def test_a_fine_tuning_that_was_killed_goes_on(few, monkeypatch, tmp_path):
    expected = finetune.measure(dataclasses.replace(few, folder=tmp_path / "a"), "augmented",
                                TUNING, 1)  # fmt: skip
    killed = dataclasses.replace(few, folder=tmp_path / "b")
    fit, calls = finetune.fit, []

    def interrupted(*arguments, **options):
        calls.append(options["steps"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(finetune, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.measure(killed, "augmented", TUNING, 1)
    found = finetune.measure(killed, "augmented", TUNING, 1)
    assert len(calls) == 3
    pd.testing.assert_frame_equal(found, expected)


def test_a_training_that_was_killed_goes_on(digits, tmp_path, monkeypatch):
    train = digits[0][slice(0, 300)]
    file = training.trained("small", train, tmp_path / "a", epochs=2)
    fit, calls = training.fit, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(training, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.trained("small", train, tmp_path / "b", epochs=2)
    again = training.trained("small", train, tmp_path / "b", epochs=2)
    assert len(calls) == 3
    assert again.read_bytes() == file.read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == [file.name]
    with pytest.raises(FileExistsError, match="was made with epochs 2, not 3"):
        training.trained("small", train, tmp_path / "b", epochs=3)


def test_rounds_leave_the_random_state_alone(tmp_path):
    network = torch.nn.Linear(2, 2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    drawn = [float(torch.rand(1)) for _ in rounds(tmp_path / "a", {}, 3, 0, network=network)]
    assert torch.rand(1) == expected
    assert len(set(drawn)) == 3
    assert list(rounds(tmp_path / "a", {}, 3, 0, network=network)) == []
    with pytest.raises(FileExistsError, match="was made with seed 0"):
        list(rounds(tmp_path / "a", {}, 3, 1, network=network))
