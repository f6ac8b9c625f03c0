"""What is measured, found again, and resumed."""

import copy
import dataclasses
import math

import pandas as pd
import pytest
import torch

from equicore.applications.images import finetune, methods, training
from equicore.applications.images.data import HELD_OUT
from equicore.applications.images.experiment import COLUMNS, Way, advice, measure, right
from equicore.applications.images.finetune import METHODS, Tuning
from equicore.applications.images.networks import Classifier
from equicore.applications.images.study import check_square
from equicore.lab.store import read_tensors
from equicore.reduce import Identity


@pytest.fixture(scope="module")
def measured(study):
    """Of one seed, by method and condition."""
    table = measure(study, 0)
    assert list(table.columns) == COLUMNS
    cost = table[table.condition == "moved"].set_index("method").forwards
    accuracy = table.pivot(index="method", columns="condition", values="accuracy")
    return accuracy.assign(forwards=cost)


def test_what_was_lost_is_regained(measured):
    """Label-free weights, and small networks that choose one view before the model runs."""
    upright, moved = measured.loc["plain", "upright"], measured.moved
    assert upright > 0.85
    assert moved["plain"] < 0.5
    assert moved["lambda_familiar"] > upright - 0.08
    assert moved["lambda_labels"] > upright - 0.12
    assert moved["orientation_4_top1"] > upright - 0.2
    assert moved["orientation_4_all_scored"] != moved["orientation_4_all"]
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


def test_a_new_label_appears_in_the_rows(study):
    other = dataclasses.replace(study, name="other", test=dataclasses.replace(study.test, name="x"))
    table = measure(other, 0)
    assert set(table.model) == {"other"}
    assert set(table.dataset) == {"x"}
    assert set(table.digest) == set(measure(study, 0).digest)


def test_what_is_fitted_and_what_is_chosen_by(study, digits, tmp_path):
    """Networks, probes and weights are fitted on the same part, and nothing on the other."""
    fitted, choice = study.parts
    assert len(choice) == round(HELD_OUT * len(study.train))
    assert len(fitted) + len(choice) == len(study.train)
    seen = []

    class Spy(training.Images):
        def batches(self, *arguments, **options):
            seen.append(self.digest)
            return super().batches(*arguments, **options)

    train = Spy(digits[0].pixels, digits[0].labels, digits[0].classes, "spied")
    training.trained("small", train, tmp_path, epochs=1)
    training.probed(study.model, train, tmp_path)
    assert set(seen) == {fitted.digest}
    way = Way(Identity())
    assert right(study.table(choice), choice.labels, study.rep, way) > 0.8


def test_what_methods_cost(measured):
    cost = measured.forwards
    assert cost["plain"] == 1
    assert cost["equitune"] == cost["lambda_familiar_top1"] == 4
    assert 1 < cost["orientation_4_top1"] < 1.1
    assert cost["orientation_4_all"] - cost["orientation_4_top1"] == pytest.approx(3)
    assert cost["orientation_4_top2_scored"] == cost["orientation_4_top2"]


@pytest.mark.slow
def test_without_orientation_networks_the_rest_is_the_same(study, measured, tmp_path):
    """Also by the digest, so that networks of more widths can join a table later."""
    table = measure(dataclasses.replace(study, looks=(), folder=tmp_path), 0)
    moved = table[table.condition == "moved"].set_index("method").accuracy
    expected = measured.moved.drop(measured.filter(like="orientation", axis=0).index)
    pd.testing.assert_series_equal(moved, expected, check_names=False, check_like=True)
    assert set(table.digest) == set(measure(study, 0).digest)


def test_other_classes_are_other_settings(study, digits):
    before = study.model.digest()
    other = copy.deepcopy(study.model)
    other.reorder([1, 0, *range(2, 10)], [*"1023456789"])
    assert other.digest() != before


def test_advice(study, digits):
    """Upright digits have an orientation, turned ones have none."""
    known = (study.rep, study.features, 100)
    assert "use lambda-equitune" in advice(study.model, digits[0], *known)
    said = advice(study.model, digits[0].moved(study.rep, 0), *known)
    assert "use equitune" in said
    assert f"log 4 = {math.log(4):.2f}" in said


def test_advice_is_of_a_hundred_images(study, digits):
    with pytest.raises(ValueError, match="takes 100 images at least, fewer tell little; got 99"):
        advice(study.model, digits[0][slice(0, 99)], study.rep, study.features, 5)


class Signed(torch.nn.Module):
    """Parameters and text are the same for both signs."""

    def __init__(self, network, sign):
        super().__init__()
        self.network, self.sign = network, sign

    def forward(self, images):
        return self.sign * self.network(images)


def test_what_code_of_ones_own_does_counts(few):
    """Another function with the same parameters is another model."""
    network = few.model.network
    kept = {
        sign: dataclasses.replace(few, features=("network.network.0",), model=Classifier(
            Signed(network, sign), few.model.classes, [0.5], [0.5]
        ))
        for sign in (1, -1, 2)
    }  # fmt: skip
    assert kept[1].model.digest() == kept[-1].model.digest()
    assert kept[1].settings != kept[-1].settings
    assert kept[1].settings != kept[2].settings  # as another temperature
    assert kept[1].settings == dataclasses.replace(kept[1], name="again").settings
    assert kept[1].table(few.test)["logits"].equal(-kept[-1].table(few.test)["logits"])


def test_studies_that_cannot_be(few):
    with pytest.raises(TypeError, match=r"a study is of an images.Classifier.*; got Sequential"):
        dataclasses.replace(few, model=few.model.network)
    with pytest.raises(ValueError, match="no images to test on"):
        dataclasses.replace(few, test=few.test[slice(0, 0)])


def test_images_that_are_not_square(digits):
    oblong = dataclasses.replace(digits[1], pixels=digits[1].pixels[..., :6])
    check_square(oblong, "mirror")
    with pytest.raises(ValueError, match="8 x 6 pixels are not square, and turns has quarter"):
        check_square(oblong, "turns")


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
    lost = next((tmp_path / "b").glob("finetune-*-2.csv"))
    lost.unlink()
    pd.testing.assert_frame_equal(finetune.measure(killed, "augmented", TUNING, 1), expected)


def test_evaluations_before_the_last_are_of_all_classes(few, monkeypatch):
    """Folders are in the order of classes."""
    order = few.test.labels.argsort()
    seen = []
    monkeypatch.setattr(finetune, "fit", lambda *_, **__: [])
    monkeypatch.setattr(type(few.test), "moved", lambda self, *_: seen.append(self) or self)
    finetune.measure(dataclasses.replace(few, test=few.test[order]), "plain", TUNING, 0)
    assert len(seen[0]) == 20
    assert len(seen[0].labels.unique()) > 6


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
    for name, tensor in read_tensors(file)[0].items():
        assert torch.equal(read_tensors(again)[0][name], tensor), name
    assert [path.name for path in (tmp_path / "b").iterdir()] == [file.name]
    with pytest.raises(FileExistsError, match="was made with epochs 2, not 3"):
        training.trained("small", train, tmp_path / "b", epochs=3)
