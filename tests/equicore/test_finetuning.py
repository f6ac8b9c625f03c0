"""Methods of fine-tuning towards a symmetry, penalties on feature maps, and cross-validation."""

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from equicore import (
    Image,
    Permutation,
    Trivial,
    assert_equivariant,
    cyclic,
    equitune,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    vector_field,
)
from equicore.capture import Observed
from equicore.continuous import Vectors
from equicore.finetuning import (
    Augmentation,
    Canonicalization,
    Equitune,
    EquivarianceLoss,
    LambdaEquitune,
    Penalty,
    Plain,
    Problem,
    Symmetry,
    by_part,
    cross_validate,
    deviation,
    fit,
    folds,
    kl_divergence,
    relative_error,
    squared_error,
)
from equicore.weights import conv_weight

D4 = image_dihedral()
SAME = Trivial(D4.group)
METHODS = [
    Plain(), Augmentation(), Penalty(1.0), Penalty(1.0, ("features",)),
    Penalty(0.5, ("output", "features"), samples=2, ramp=2), Equitune(), LambdaEquitune(),
    Canonicalization(),
]  # fmt: skip
EXACT = (Equitune, LambdaEquitune, Canonicalization)


def network(seed=0, padding="circular"):
    """Maps images (B, 1, 8, 8) to logits (B, 2), by maps that are called 0 and 2."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode=padding),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=padding),
        nn.Flatten(),
        nn.Linear(256, 2),
    )


def problem(*more, features=("0", "2")):
    turns = Symmetry(D4, SAME, features=dict.fromkeys(features, D4), name="turns")
    look = functools.partial(conv_weight, 1, 4)
    return Problem(nn.functional.cross_entropy, (turns, *more), kl_divergence, look)


def shifts(step=2):
    rep = image_shifts(8, 8, step)
    return Symmetry(rep, Trivial(rep.group), features={"0": rep}, name="shifts")


def data(count=4, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(size, 1, 8, 8, generator=generator), torch.arange(size) % 2)
        for _ in range(count)
    ]


def train(method, model, of=None, steps=4, rate=1e-2, seed=0):
    torch.manual_seed(seed)
    tuned = method.of(model, of or problem())
    optimizer = torch.optim.SGD(tuned.parameters(), rate)
    losses = tuned.fit(data(), optimizer, steps=steps, progress=False)
    return tuned, losses


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("more", [(), (shifts(),)], ids=["turns", "turns and shifts"])
def test_every_method_trains_the_model_in_place(method, more):
    model = network()
    before = copy.deepcopy(model.state_dict())
    tuned, losses = train(method, model, problem(*more))
    assert len(losses) == 4
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    tuned.eval()
    x = data()[0][0]
    assert tuned(x).shape == (6, 2)
    assert isinstance(tuned(x), torch.Tensor)
    if isinstance(method, EXACT):
        assert_equivariant(tuned, D4, SAME, x)
        assert deviation(tuned, problem().symmetries[0], [x]) < 1e-5
    else:
        assert torch.equal(tuned(x), model(x))
        assert deviation(tuned, problem().symmetries[0], [x]) > 1e-3


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_training_goes_on_from_its_state(method):
    """All that a method keeps is in its state_dict: two halves are the whole."""
    whole, _ = train(method, network())
    model = network()
    torch.manual_seed(0)
    first = method.of(model, problem())
    optimizer = torch.optim.SGD(first.parameters(), 1e-2)
    first.fit(data()[:2], optimizer, progress=False)
    random = torch.random.get_rng_state()
    second = method.of(network(seed=5), problem())
    second.load_state_dict(first.state_dict())
    torch.random.set_rng_state(random)
    optimizer = torch.optim.SGD(second.parameters(), 1e-2)
    second.fit(data()[2:], optimizer, progress=False)
    x = data()[0][0]
    assert torch.allclose(second.eval()(x), whole.eval()(x), atol=1e-5)


def test_how_often_a_model_runs():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.samples = network(), 0

        def forward(self, x):
            self.samples += len(x)
            return self.model(x)

    features = {f"model.{name}": D4 for name in "02"}
    turns, moved = Symmetry(D4, SAME, features=features), shifts()
    moved = Symmetry(moved.input, moved.output, features={"model.0": moved.features["0"]})
    look = functools.partial(conv_weight, 1)
    of = Problem(nn.functional.cross_entropy, (turns, moved), look=look)
    for method in METHODS:
        counted = Counted()
        tuned = method.of(counted, of)
        tuned.fit(data(1), torch.optim.SGD(tuned.parameters(), 0.0), progress=False)
        assert counted.samples == 6 * method.trained_views(of), method
        counted.samples = 0
        tuned.eval()(data()[0][0])
        assert counted.samples == 6 * method.views(of), method


def test_the_penalty_by_hand(monkeypatch):
    """The loss of a step: the task's, and the weighted penalties of outputs and maps."""
    turns, model = image_rotations(), network().double()
    x, target = data(1)[0][0].double(), data(1)[0][1]
    elements = torch.tensor([1, 2, 3, 1, 2, 3])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: elements)
    symmetry = Symmetry(turns, Trivial(turns.group), features={"0": turns, "2": turns})
    of = Problem(nn.functional.cross_entropy, (symmetry,), kl_divergence)

    def loss_of(on, ramp=0, steps=1):
        tuned = Penalty(0.7, on, ramp=ramp).of(copy.deepcopy(model), of)
        optimizer = torch.optim.SGD(tuned.parameters(), 0.0)
        return tuned.fit([(x, target)], optimizer, steps=steps, progress=False)

    moved = turns.act_each(elements, x)
    y, y_moved = model(x), model(moved)
    task = nn.functional.cross_entropy(y, target)
    output = nn.functional.kl_div(
        y_moved.log_softmax(-1), y.log_softmax(-1), reduction="batchmean", log_target=True
    )
    maps = 0.0
    for end in (1, 3):
        a, w = model[:end](moved), turns.act_each(elements, model[:end](x))
        maps += (a - w).square().sum() / (a.square().sum() + w.square().sum())
    task, output, maps = (float(part.detach()) for part in (task, output, maps))
    close = functools.partial(pytest.approx, rel=1e-10)
    assert loss_of(("output",)) == close([float(task + 0.7 * output)])
    assert loss_of(("features",)) == close([float(task + 0.7 * maps)])
    assert loss_of(("output", "features")) == close([float(task + 0.7 * (output + maps))])
    parts = (0.25, 0.5, 0.75, 1.0, 1.0)
    ramped = [float(task + part * 0.7 * output) for part in parts]
    assert loss_of(("output",), ramp=4, steps=5) == close(ramped)


def test_a_map_is_a_field():
    """The mean of a vector field's neighbours is equivariant as a field, and not as images."""
    field = vector_field(image_rotations())
    model = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Flatten())
    x = torch.randn(4, 2, 6, 6).double()
    for action, least, most in ((field, 0.0, 1e-28), (image_rotations(), 0.1, 2.0)):
        symmetry = Symmetry(field, field, features={"0": action})
        of = Problem(squared_error, (symmetry,))
        tuned = Penalty(1.0, ("features",)).of(model, of)
        off = tuned.penalty(x, Observed(model, ["0"])(x))
        assert least <= float(off) <= most


def test_penalties_on_maps_lower_the_maps_deviation():
    def off(method):
        model = network()
        tuned, _ = train(method, model, steps=60, rate=3e-2)
        x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(9))
        maps = Symmetry(D4, D4)
        return deviation(tuned.model[:3], maps, [x])

    assert off(Penalty(10.0, ("features",))) < 0.6 * off(Plain())


def test_two_symmetries_are_both_learned():
    """A linear map of 8 x 8 maps, zero padded: the penalty makes it turn and shift."""
    model = network(padding="zeros")
    x = [torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(9))]
    both = dataclasses.replace(problem(shifts()), divergence=relative_error)
    found = {}
    for name, method in (("plain", Plain()), ("penalty", Penalty(10.0))):
        tuned, _ = train(method, copy.deepcopy(model), both, steps=60, rate=1e-2)
        found[name] = [deviation(tuned, symmetry, x) for symmetry in both.symmetries]
    assert all(a < 0.7 * b for a, b in zip(found["penalty"], found["plain"], strict=True))


def test_augmentation_moves_targets_too():
    """Targets are the inputs: a model that returns its input has no loss under any element."""
    seen = []

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            seen.append(x.detach().clone())
            return self.scale * x

    of = Problem(nn.functional.mse_loss, (Symmetry(D4, D4), Symmetry(*[shifts().input] * 2)))
    tuned = Augmentation().of(Same(), of)
    x = data(1)[0][0]
    losses = tuned.fit([(x, x)], torch.optim.SGD(tuned.parameters(), 0.0), steps=2, progress=False)
    assert losses == [0.0, 0.0]
    assert not torch.equal(seen[0], x) and not torch.equal(seen[0], seen[1])


def test_the_prior_teaches_which_view_is_canonical():
    """Images that are bright at the top, so that one view of four is as in training."""
    turns = image_rotations()
    symmetry = Symmetry(turns, Trivial(turns.group))
    look = functools.partial(conv_weight, 1, 4)
    of = Problem(nn.functional.cross_entropy, (symmetry,), kl_divergence, look)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 8, 8, generator=generator)
    x[:, :, :3] += 1
    torch.manual_seed(0)
    tuned = Canonicalization().of(network(), of)
    adam = torch.optim.Adam(tuned.parameters(), 1e-2)
    tuned.fit([(x, torch.arange(64) % 2)], adam, steps=30, progress=False)
    tuned.eval()
    assert tuned.model.scores(x).argmax(0).eq(0).double().mean() > 0.9
    moved = turns.act(1, x)
    assert tuned.model.scores(moved).argmax(0).eq(3).double().mean() > 0.9


def test_deviation_by_hand():
    turns, model = image_rotations(), network().double()
    symmetry = Symmetry(turns, Trivial(turns.group))
    x = data(1)[0][0].double()
    y = model(x)
    moved = torch.cat([model(turns.act(g, x)) for g in (1, 2, 3)])
    off = (moved - y.repeat(3, 1)).square().sum()
    whole = off / (moved.square().sum() + 3 * y.square().sum())
    assert deviation(model, symmetry, [x]) == pytest.approx(float(whole.sqrt().detach()), rel=1e-12)
    torch.manual_seed(0)
    some = deviation(model, symmetry, [x] * 40, samples=1)
    assert some == pytest.approx(float(whole.sqrt().detach()), rel=0.05)
    robust = equitune(model, turns, Trivial(turns.group))
    assert deviation(robust, symmetry, [x]) < 1e-12
    with pytest.raises(ValueError, match="no batch"):
        deviation(model, symmetry, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_relative_error(dtype):
    a, w = torch.randn(2, 4, 3, 5, 5, dtype=dtype)
    expected = (a - w).abs().square().sum() / (a.abs().square().sum() + w.abs().square().sum())
    assert torch.allclose(relative_error(a, w), expected)
    assert relative_error(a, a) == 0
    assert relative_error(a, torch.zeros_like(a)) == pytest.approx(1)
    assert relative_error(a, -a) == pytest.approx(2)
    assert relative_error(0 * a, 0 * a) == 0  # and not NaN
    assert torch.allclose(relative_error(7 * a, 7 * w), expected)
    both = relative_error({"x": a, "y": w}, {"x": w, "y": w})
    assert torch.allclose(both, expected / 2)


def test_neither_larger_nor_smaller_outputs_lower_the_relative_error():
    x = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    relative_error(x, torch.roll(x, 1, -1)).backward()
    assert x.grad.norm() > 0.01 and (x.grad * x.detach()).sum().abs() < 1e-15


def test_divergences_by_part():
    a, w = torch.randn(2, 4, 3)
    both = by_part({"logits": kl_divergence, "map": squared_error})
    total = both({"logits": a, "map": a}, {"map": w, "logits": w})
    assert torch.allclose(total, kl_divergence(a, w) + squared_error(a, w))


def test_fit_adds_the_penalty():
    model = nn.Linear(2, 1)
    x, y = torch.randn(5, 2), torch.randn(5, 1)
    sgd = torch.optim.SGD(model.parameters(), 0.0)
    mse = nn.functional.mse_loss
    plain = fit(model, [(x, y)], mse, sgd, progress=False)
    more = fit(
        model, [(x, y)], mse, sgd, penalty=lambda x, out: out.sum() + x.sum(), progress=False
    )
    extra = float((model(x).sum() + x.sum()).detach())
    assert more[0] == pytest.approx(plain[0] + extra, rel=1e-5)
    with pytest.raises(ValueError, match="loss is nan in step 0"):
        fit(model, [(x, y)], mse, sgd, penalty=lambda x, out: out.sum() * torch.nan, progress=False)


def test_observed():
    model = network()
    x = data(1)[0][0]
    seen = Observed(model, ["0", "2"])(x)
    assert list(seen) == ["output", "0", "2"]
    assert torch.equal(seen["output"], model(x)) and torch.equal(seen["2"], model[:3](x))
    assert not model[0]._forward_hooks
    with pytest.raises(ValueError, match="did you mean '0'|is none of"):
        Observed(model, ["00"])
    with pytest.raises(TypeError, match="one string"):
        Observed(model, "0")
    named = nn.ModuleDict({"output": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="cannot be called 'output'"):
        Observed(named, ["output"])


def test_maps_that_are_changed_in_place_afterwards():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    x = torch.randn(4, 1, 5, 5)
    seen = Observed(model, ["0", "1"])(x)
    assert torch.equal(seen["0"], model[0](x)) and seen["0"].min() < 0
    assert torch.equal(seen["1"], model[0](x).relu())


class ChannelsLast(nn.Module):
    """Maps (B, rows, columns, channels), as Swin has them."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, channels, 3, padding=1), nn.Identity()

    def forward(self, x):
        return self.last(self.conv(x).movedim(1, -1)).mean((1, 2))


def test_maps_with_channels_last():
    model, flips = ChannelsLast(16), image_flips()
    wrong = Symmetry(flips, Trivial(flips.group), features={"last": flips})
    of = Problem(nn.functional.cross_entropy, (wrong,))
    with pytest.raises(ValueError, match=r"'last' returns the shape \(6, 8, 8, 16\).*axes=\(-3"):
        train(Penalty(1.0, ("features",)), model, of)
    last = Image(flips.group, [0, 0], [False, True], axes=(-3, -2))
    right = Symmetry(flips, Trivial(flips.group), features={"last": last})
    x = data(1)[0][0]
    tuned = Penalty(1.0, ("features",)).of(model, Problem(squared_error, (right,)))
    by_hand = relative_error(model.conv(x.flip(-1)), model.conv(x).flip(-1))
    assert torch.allclose(tuned.penalty(x, Observed(model, ["last"])(x)), by_hand)


def test_a_symmetry_without_features_beside_one_with_them():
    rep = image_shifts(8, 8, 2)
    of = problem(Symmetry(rep, Trivial(rep.group)))
    for on, count in ((("features",), 1), (("output",), 2), (("output", "features"), 2)):
        method = Penalty(1.0, on)
        tuned, _ = train(method, network(), of)
        assert len(tuned.penalty.penalties) == count
        assert method.trained_views(of) == 1 + count


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_models_in_float64(method):
    tuned = method.of(network().double(), problem())
    batches = [(x.double(), y) for x, y in data(1)]
    tuned.fit(batches, torch.optim.SGD(tuned.parameters(), 1e-2), progress=False)
    assert tuned.eval()(batches[0][0]).dtype == torch.float64


def test_what_is_kept_of_a_training():
    assert list(Plain().of(network(), problem()).parts) == ["model"]
    parts = Penalty(1.0, ramp=3).of(network(), problem()).parts
    assert list(parts) == ["model", "ramp"] and list(parts["ramp"].state_dict()) == ["done"]


def test_the_ramp_counts_steps_of_training_alone():
    tuned = Penalty(1.0, ramp=4).of(network(), problem())
    x, y = data(1)[0]
    with torch.no_grad():
        for _ in range(3):
            tuned.penalty(x, {"output": tuned(x)})
    tuned.fit([(x, y)], torch.optim.SGD(tuned.parameters(), 0.0), steps=2, progress=False)
    assert int(tuned.penalty.ramp.done) == 2


def test_batchnorm_sees_moved_inputs():
    """As the docstring of the penalty says."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2))
    train(Penalty(0.0), model, steps=3)
    assert model[0].num_batches_tracked == 6


def test_kl_divergence_of_maps_needs_its_axis():
    a, w = torch.randn(2, 4, 3, 5, 5)
    with pytest.raises(ValueError, match=r"\(4, 3, 5, 5\).*dim=1"):
        kl_divergence(a, w)
    words = kl_divergence(a.movedim(1, -1).flatten(1, 2), w.movedim(1, -1).flatten(1, 2))
    assert torch.allclose(kl_divergence(a, w, dim=1), words)


class Words(nn.Module):
    """Patches as words (B, 16, 4), of which a grid of 4 x 4 cannot be told by the shape."""

    def __init__(self, width):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.words = nn.Identity()
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        words = self.words(self.patches(x).flatten(2).mT)
        return self.head(words.mean(1))


@pytest.mark.parametrize(
    ("model", "features", "message"),
    [
        (network(), {"7": D4}, "'7' is none of"),
        (network(), {"conv": D4}, "'conv' is none of"),
        (network(), {"3": D4}, r"submodule '3' returns the shape \(6, 256\)"),
        (Words(4), {"words": D4}, r"'words' returns the shape \(6, 16, 4\).*maps \(B, channels"),
        (Words(16), {"words": D4}, r"'words' returns the shape \(6, 16, 16\).*maps \(B, channels"),
        (nn.Sequential(nn.AvgPool2d((2, 1)), nn.Flatten(), nn.Linear(32, 2)), {"0": D4},
         r"'0' returns the shape \(6, 1, 4, 8\).*maps \(B, channels"),
        (network(), {}, "names some"),
    ],
)  # fmt: skip
def test_maps_that_a_group_cannot_act_on(model, features, message):
    of = Problem(nn.functional.cross_entropy, (Symmetry(D4, SAME, features=features),))
    with pytest.raises(ValueError, match=message):
        train(Penalty(1.0, ("features",)), model, of)


def test_shifts_that_are_not_those_of_the_map():
    rep = image_shifts(8, 8, 2)
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    symmetry = Symmetry(rep, Trivial(rep.group), features={"0": rep})
    of = Problem(nn.functional.cross_entropy, (symmetry,))
    with pytest.raises(ValueError, match=r"'0' returns the shape .*grid.*\(8, 8\)"):
        train(Penalty(1.0, ("features",)), pooled, of)
    good = Symmetry(rep, Trivial(rep.group), features={"0": image_shifts(4, 4, 1)})
    of = Problem(nn.functional.cross_entropy, (good,))
    tuned, _ = train(Penalty(1.0, ("features",)), pooled, of)
    x = data(1)[0][0]
    assert tuned.penalty(x, Observed(pooled, ["0"])(x)) < 1e-10  # pooling commutes with them


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="of one group"):
        Symmetry(D4, Trivial(cyclic(2)))
    with pytest.raises(ValueError, match="of one group"):
        Symmetry(D4, SAME, features={"0": image_rotations()})
    with pytest.raises(ValueError, match="finite group"):
        Symmetry(Vectors(), Vectors())
    with pytest.raises(ValueError, match="one symmetry at least"):
        Problem(squared_error, ())
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"from 0 on; got {weight}"):
            Penalty(weight)
    for on in ((), ("logits",), ("output", "maps")):
        with pytest.raises(ValueError, match="one or both"):
            Penalty(1.0, on)
    with pytest.raises(ValueError, match="samples from 1 on"):
        Penalty(1.0, samples=0)
    for prior in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="prior's factor is positive"):
            Canonicalization(prior)
    for method in (LambdaEquitune(), Canonicalization()):
        with pytest.raises(ValueError, match="conv_weight"):
            method.of(network(), Problem(squared_error, problem().symmetries))


def test_methods_are_compared_by_value():
    assert Penalty(1.0) == Penalty(1.0) != Penalty(2.0)
    assert len({Plain(), Plain(), Equitune(), LambdaEquitune()}) == 3
    assert repr(Penalty(0.1, ("features",))) == (
        "Penalty(weight=0.1, on=('features',), samples=1, ramp=0)"
    )


def test_symmetries_have_names():
    assert Symmetry(D4, SAME).name == D4.group.name
    assert shifts().name == "shifts"


@pytest.mark.parametrize("samples, count", [(10, 2), (7, 3), (3, 3), (50, 5)])
def test_folds(samples, count):
    parts = folds(samples, count, seed=1)
    held = torch.cat([validation for _, validation in parts])
    assert sorted(held.tolist()) == list(range(samples))
    for fitted, validation in parts:
        assert sorted([*fitted.tolist(), *validation.tolist()]) == list(range(samples))
    first, again, other = (folds(samples, count, seed)[0][1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert samples < 10 or first != other


@pytest.mark.parametrize("samples, count", [(10, 1), (1, 2), (0, 2), (3, 4)])
def test_no_validation_data(samples, count):
    with pytest.raises(ValueError, match=f"got {count} folds of {samples} samples"):
        folds(samples, count, seed=0)


def test_cross_validation():
    losses = {0.0: (3.0, 1.0), 0.1: (1.0, 1.0), 1.0: (0.0, 2.0), 10.0: (5.0, 0.0)}
    parts, calls = folds(6, 2, seed=0), []

    def loss(weight, fitted, held_out):
        fold = [torch.equal(held_out, part[1]) for part in parts].index(True)
        assert torch.equal(fitted, parts[fold][0])
        calls.append((weight, fold))
        return losses[weight][fold]

    found = cross_validate(loss, [10.0, 1.0, 0.1, 0.0], parts, progress=False)
    assert found.weight == 0.1  # as good as 1, and smaller
    assert found.trials == [(0.0, 2.0), (0.1, 1.0), (1.0, 1.0), (10.0, 2.5)]
    assert sorted(calls) == [(w, f) for w in sorted(losses) for f in (0, 1)]
    some = cross_validate(lambda w, *_: torch.tensor(w or torch.nan), [0, 2], parts, progress=False)
    assert some.weight == 2
    with pytest.raises(ValueError, match="no weight has a finite"):
        cross_validate(lambda *_: float("inf"), [1.0], parts, progress=False)
    for weights, some in (([], 2), ([-1.0], 2), ([float("nan")], 2), ([1.0], 1)):
        with pytest.raises(ValueError, match="cross_validate chooses"):
            cross_validate(loss, weights, parts[:some], progress=False)


def test_the_docstring_of_the_penalty_holds_for_permutations():
    """Outputs that the group permutes: targets are moved with them, labels by `target`."""
    swap = Permutation.from_generators(cyclic(2), [[1, 0]])
    model = nn.Linear(2, 2)
    of = Problem(squared_error, (Symmetry(swap, swap),))
    tuned = Penalty(1.0).of(model, of)
    x = torch.randn(3, 2)
    expected = EquivarianceLoss(model, swap, swap)(x)
    assert torch.allclose(tuned.penalty(x, {"output": model(x)}), expected)
