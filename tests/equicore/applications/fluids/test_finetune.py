"""The task of fine-tuning: its metrics, its symmetries, and what it refuses."""

import functools
import pickle

import pytest
import torch
from torch import nn

import equicore
from equicore.applications.finetuning import experiment
from equicore.applications.fluids import finetune, flows, network
from equicore.applications.fluids.finetune import Prediction, rmse, rollout
from equicore.applications.fluids.network import FlowNet, Trajectories, pretrained
from equicore.finetuning import Augmentation, Equitune, Penalty


@functools.cache
def small_flows():
    generator = torch.Generator().manual_seed(0)
    fields = flows.velocity(flows.jets(18, 8, generator)).float().view(6, 3, 2, 8, 8)
    return flows.Flows("small", fields[:4], fields[4:])


def task(padding="circular", **options):
    torch.manual_seed(0)
    return Prediction(FlowNet(padding, 8), small_flows(), "small", **options)


class Constant(nn.Module):
    """Predicts what comes in, plus a number for the component along the rows."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number))

    def forward(self, x):
        return x + self.number * torch.tensor([1.0, 0.0]).view(2, 1, 1)


def test_errors_are_those_of_the_definition():
    fields = small_flows()
    still = torch.cat([fields.test[:, :1]] * 3, 1)  # nothing changes
    one = Prediction(Constant(0.3), flows.Flows("still", still, still), "still")
    found = one.evaluate(Constant(0.3))
    assert {*found} == {*one.metrics}
    assert found["rmse"] == found["rmse_moved"] == pytest.approx(0.3 / 2**0.5)
    assert found["rollout"] == pytest.approx((0.3**2 * (1 + 4) / 2 / 2) ** 0.5)
    assert one.validate(Constant(0.3), Trajectories(still)) == pytest.approx(found["rmse"])
    assert one.evaluate(Constant(float("nan")))["rollout"] == float("inf")
    assert found["spectrum"] < 1e-5  # a constant number is in shell 0, which does not count
    assert finetune.spectral_error(10 * still[:, 0], still[:, 0]) == pytest.approx(2)


def test_moved_trajectories_are_moved_as_wholes():
    """Each by one element at all times; an equivariant model has the same errors on both."""
    own = task()
    as_they_are, moved = own.conditions().values()
    field = equicore.vector_field(equicore.image_dihedral())
    found = [
        [g for g in range(8) if torch.equal(field.act(g, before), after)]
        for before, after in zip(as_they_are, moved, strict=True)
    ]
    assert all(len(g) == 1 for g in found)
    errors = own.evaluate(Equitune().of(own.model(0), own.problem).eval())
    assert errors["rmse"] == pytest.approx(errors["rmse_moved"], rel=1e-4)
    assert errors["rollout"] == pytest.approx(errors["rollout_moved"], rel=1e-4)
    plain = own.evaluate(own.model(0))
    assert abs(plain["rmse"] - plain["rmse_moved"]) > 1e-4 * plain["rmse"]


def test_a_rollout_goes_on_from_what_was_predicted():
    start = torch.ones(2, 2, 8, 8)
    path = rollout(Constant(1.0), start, 3)
    assert path.shape == (2, 3, 2, 8, 8)
    assert path[0, :, 0, 0, 0].tolist() == [2, 3, 4] and (path[:, :, 1] == 1).all()
    assert rmse(path[:, 0], path[:, 2]) == pytest.approx(2**0.5)


def test_batches_are_all_pairs_of_successive_velocities():
    data = Trajectories(torch.arange(24.0).view(2, 3, 2, 1, 2))[torch.tensor([1, 0])]
    pairs = list(data.batches(3, seed=1))
    assert [len(before) for before, _ in pairs] == [3, 1]
    before, after = (torch.cat(part) for part in zip(*pairs, strict=True))
    assert torch.equal(after, before + 4)
    assert before[:, 0, 0, 0].sort().values.tolist() == [0, 4, 12, 16]
    again = next(iter(data.batches(3, seed=1)))
    assert torch.equal(again[0], pairs[0][0])
    assert not torch.equal(next(iter(data.batches(3, seed=3)))[0], pairs[0][0])


def test_shifts_are_a_second_symmetry_of_what_is_padded_with_zeros():
    own = task("zeros", features=("inner.3",), shifts=True)
    names = [symmetry.name for symmetry in own.problem.symmetries]
    assert names == ["mirrors and turns", "shifts"]
    penalty = Penalty(1.0, ("output", "features"))
    assert penalty.trained_views(own.problem) == 3
    for method in (penalty, Augmentation()):
        tuned = method.of(own.model(0), own.problem)
        adam = torch.optim.Adam(tuned.parameters(), 1e-3)
        losses = tuned.fit(own.training.batches(4, 0), adam, steps=1, progress=False)
        assert losses[0] > 0
    assert len(finetune.all_shifts(12).group) == 144
    assert finetune.all_shifts(40).moves[1] == (0, False, (0, 2))  # of at most 32 x 32


def test_the_task_can_be_sent_to_processes():
    own = pickle.loads(pickle.dumps(task(features=("inner.3",))))
    assert own.settings == task(features=("inner.3",)).settings
    assert own.settings != task().settings
    (probes,) = own.probes()
    assert probes.shape[1:] == (2, 8, 8) and len(probes) <= finetune.PROBES


class Flattening(FlowNet):
    """With a submodule whose output has no spatial axes, and one on a coarser grid."""

    def __init__(self):
        super().__init__("circular", 8)
        self.flat = nn.Flatten()
        self.coarse = nn.AvgPool2d((1, 2))

    def forward(self, x):
        self.coarse(x)
        return super().forward(self.flat(x).view_as(x))


@pytest.mark.parametrize(
    "features, message",
    [
        (("inner.7",), "'inner.7' is none of .* did you mean"),
        (("flat",), r"'flat' returns the shape \(\d, 128\), and its action is on maps"),
        (("coarse",), r"'coarse' returns the shape \(\d, 2, 8, 4\)"),
    ],
)
def test_features_that_cannot_be_are_refused_before_any_training(features, message, tmp_path):
    own = Prediction(Flattening(), small_flows(), "wrong", features)
    tuning = experiment.Tuning(steps=40, views=16, learning_rate=3e-3)
    with pytest.raises(ValueError, match=message):
        experiment.check(own, ("penalty_features",), (1.0,), tuning, tmp_path / "none.csv")


def test_grids_that_are_not_square_are_refused():
    wide = torch.zeros(4, 3, 2, 8, 6)
    with pytest.raises(ValueError, match="square"):
        Prediction(FlowNet(), flows.Flows("wide", wide, wide), "wide", ("first",))


def test_pretraining_lowers_the_error_and_goes_on_when_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "ROUND", 20)
    fields = small_flows()
    whole = pretrained("small", fields.train, tmp_path / "whole", steps=60)
    before = finetune.one_step(FlowNet(), fields.train)
    assert finetune.one_step(whole, fields.train) < 0.7 * before
    rounds = network.rounds

    def killed(*args, **kwargs):
        for number in rounds(*args, **kwargs):
            if number == 1:
                raise KeyboardInterrupt
            yield number

    monkeypatch.setattr(network, "rounds", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrained("small", fields.train, tmp_path / "cut", steps=60)
    monkeypatch.setattr(network, "rounds", rounds)
    again = pretrained("small", fields.train, tmp_path / "cut", steps=60)
    pairs = zip(whole.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ValueError, match="multiple of 20"):
        pretrained("small", fields.train, tmp_path / "cut", steps=50)
    with pytest.raises(FileExistsError, match="rounds 3, not 2"):
        pretrained("small", fields.train, tmp_path / "cut", steps=40)


def test_penalties_and_equitune_reduce_the_deviation():
    own = task(features=("inner.3",))
    tuning = experiment.Tuning(steps=40, views=16, learning_rate=3e-3)
    before = experiment.deviation(own.model(0), own.problem.symmetries[0], own.probes())
    found = {}
    for name, method in {"penalty": Penalty(10.0), "equitune": Equitune()}.items():
        torch.manual_seed(0)
        tuned = method.of(own.model(0), own.problem)
        adam = torch.optim.Adam(tuned.parameters(), tuning.learning_rate)
        for epoch in range(5):
            tuned.fit(own.training.batches(4, epoch), adam, progress=False)
        found[name] = experiment.deviation(tuned.eval(), own.problem.symmetries[0], own.probes())
    assert found["penalty"] < 0.7 * before and found["equitune"] < 1e-6 < before
