"""Training of a part of a model or all of it: `fit`, and weights fitted on a task."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from equicore import (
    MLPWeight,
    Permutation,
    Trivial,
    equitune,
    fit_familiarity,
    image_rotations,
    lambda_equitune,
    symmetric,
)
from equicore.continuous import (
    GramSchmidt,
    VectorMix,
    Vectors,
    canonical_lambda_equitune,
    random_motions,
)
from equicore.finetuning import fit

S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
mse = nn.functional.mse_loss


def batches(count=4, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, size, generator=generator), torch.randn(8, size, generator=generator))
        for _ in range(count)
    ]


def weighted(seed=0):
    """Lambda-equitune of a model with everything that training could change by the way."""
    torch.manual_seed(seed)
    f = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
    )
    return lambda_equitune(f, S3, S3, MLPWeight((3,), hidden=(8,)))


def run(model, data=None, parameters=None, **options):
    parameters = model.reduce.parameters() if parameters is None else parameters
    options = {"progress": False} | options
    adam = torch.optim.Adam(parameters, lr=1e-2)
    return fit(model, batches() if data is None else data, mse, adam, **options)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return {name for name in first if torch.equal(first[name], second[name])}


def flags(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("training", [True, False])
def test_the_frozen_model_does_not_change_at_all(training):
    model = weighted().train(training)
    model.model[0].bias.requires_grad_(False)
    model.model[4].bias.grad = torch.full((3,), 7.0)
    model.model[1].eval()
    before, weights, as_before = state(model.model), state(model.reduce), flags(model)
    losses = run(model, steps=20)
    assert same(before, state(model.model)) == set(before)  # statistics of BatchNorm too
    learned = {name for name in weights if "network" in name}
    assert same(weights, state(model.reduce)) == set(weights) - learned
    assert flags(model) == as_before
    assert [p.grad is None for p in model.model.parameters()] == [True] * 5 + [False]
    assert (model.model[4].bias.grad == 7).all()
    assert len(losses) == 20 and sum(losses[-4:]) < sum(losses[:4])


def test_the_frozen_model_runs_in_eval_mode_and_what_learns_in_train_mode():
    model, seen = weighted().eval(), []

    def look(module, *_):
        seen.append((module.training, all(p.requires_grad for p in module.parameters())))

    for module in (*model.model, model.reduce.weight, model):
        module.register_forward_pre_hook(look)
    run(model, steps=1)
    frozen, dropout_and_relu = (False, False), (False, True)
    assert sorted(seen) == sorted(
        [frozen] * 3 + [dropout_and_relu] * 2 + [(True, True), (True, False)]
    )


def test_the_dropout_of_a_frozen_model_is_off():
    """Two trainings from different random states are the same."""
    states = []
    for seed in (1, 2):
        model = weighted()
        torch.manual_seed(seed)
        run(model, steps=5)
        states.append(state(model))
    assert same(*states) == set(states[0])


def test_all_parameters_learn_jointly():
    model = weighted().eval()
    before = state(model)
    run(model, parameters=model.parameters(), steps=20)
    fixed = {name for name in before if name.endswith((".shift", ".scale"))}
    assert same(before, state(model)) == fixed  # not the statistics of BatchNorm


def test_a_part_of_the_model_learns():
    model = weighted()
    before = state(model)
    run(model, parameters=model.model[4].parameters(), steps=3)
    changed = set(before) - same(before, state(model))
    assert changed == {"model.4.weight", "model.4.bias"}  # and no statistics of BatchNorm


def test_parameters_that_were_frozen_learn_if_the_optimiser_holds_them():
    model = weighted().requires_grad_(False)
    before = state(model)
    run(model, steps=3)
    assert not same(before, state(model)) & {n for n in before if "weight.network.2" in n}
    assert not any(p.requires_grad for p in model.parameters())


def test_a_canonicalizer_learns():
    mix = VectorMix(3, 2)
    f = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Unflatten(1, (3, 3)))
    vectors = Vectors()
    model = canonical_lambda_equitune(
        f, GramSchmidt("SO", mix), vectors, vectors, random_motions(3, 3, seed=0)
    )
    data = [(torch.randn(8, 3, 3), torch.randn(8, 3, 3))]
    before, frozen = mix.coefficients.clone(), state(f)
    losses = run(model, data, mix.parameters(), steps=20)
    assert losses[-1] < losses[0] and not torch.equal(before, mix.coefficients)
    assert same(frozen, state(f)) == set(frozen)


def by_hand(model, data, optimizer, steps):
    """The loop that `fit` is, for a model without frozen parts."""
    losses = []
    for i in range(steps):
        x, y = data[i % len(data)]
        optimizer.zero_grad()
        loss = mse(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW([{"params": list(p), "lr": 0.02}]),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_any_optimiser_takes_the_steps_of_a_loop_by_hand(make, random_model):
    models = [equitune(random_model((3,), (3,), 1), S3, S3) for _ in range(2)]
    actual = fit(models[0], batches(), mse, make(models[0].parameters()), steps=7, progress=False)
    expected = by_hand(models[1], batches(), make(models[1].parameters()), 7)
    assert actual == expected
    assert same(state(models[0]), state(models[1])) == set(state(models[0]))


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_an_optimiser_that_evaluates_the_loss_several_times(line_search):
    torch.manual_seed(0)
    data = [(x := torch.randn(50, 3), x @ torch.randn(3, 2) + 1)]
    model = nn.Linear(3, 2)
    lbfgs = torch.optim.LBFGS(model.parameters(), line_search_fn=line_search)
    losses = fit(model, data, mse, lbfgs, steps=5, progress=False)
    assert len(losses) == 5 and losses[0] > 0.1
    assert mse(model(x), data[0][1]) < 1e-6


def test_a_schedule_steps_after_each_step():
    model = nn.Linear(3, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(sgd, step_size=2, gamma=0.1)
    rates = []
    data = ((x, y) for x, y in batches(5) if rates.append(sgd.param_groups[0]["lr"]) is None)
    fit(model, data, lambda a, b: mse(a, b) * 0.01, sgd, schedule=schedule, progress=False)
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.01)


class Seen(nn.Linear):
    """A model that remembers the first number of each batch."""

    def __init__(self):
        super().__init__(3, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(float(x[0, 0]))
        return super().forward(x)


class Stream(IterableDataset):
    """Three samples, of no length known before."""

    def __iter__(self):
        return iter([(torch.full((3,), float(i)), torch.zeros(3)) for i in range(3)])


def numbered(count):
    return [(torch.full((2, 3), float(i)), torch.zeros(2, 3)) for i in range(count)]


def seen_by(data, **options):
    model = Seen()
    losses = run(model, data, model.parameters(), **options)
    assert len(losses) == len(model.seen)
    return model.seen


@pytest.mark.parametrize("steps", [None, 0, 1, 2, 3, 4, 7])
def test_batches_are_taken_in_order_and_again(steps):
    expected = [0, 1, 2] if steps is None else ([0, 1, 2] * 3)[:steps]
    assert seen_by(numbered(3), steps=steps) == expected
    assert seen_by(tuple(numbered(3)), steps=steps) == expected
    assert seen_by(DataLoader(Stream(), batch_size=1), steps=steps) == expected
    dataset = TensorDataset(torch.arange(3.0).view(3, 1).expand(3, 3), torch.zeros(3, 3))
    assert seen_by(DataLoader(dataset, batch_size=1), steps=steps) == expected


@pytest.mark.parametrize("progress", [True, False])
def test_a_stream_of_unknown_length(progress, capsys):
    """A DataLoader of an IterableDataset has a length that raises."""
    with pytest.raises(TypeError):
        len(DataLoader(Stream()))
    assert seen_by(DataLoader(Stream(), batch_size=1), progress=progress) == [0, 1, 2]
    assert ("3step" in capsys.readouterr().err) is progress


def test_a_shuffling_loader_is_shuffled_anew():
    dataset = TensorDataset(torch.arange(20.0).view(20, 1).expand(20, 3), torch.zeros(20, 3))
    seen = seen_by(DataLoader(dataset, batch_size=1, shuffle=True), steps=40)
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]


def test_a_generator_is_used_up_step_by_step():
    data = iter(numbered(5))
    assert seen_by(data, steps=2) == [0, 1]
    assert seen_by(data, steps=1) == [2]  # none was lost
    assert seen_by(data) == [3, 4]


def test_a_generator_that_is_too_short_is_an_error():
    model = Seen()
    with pytest.raises(ValueError, match="no batch after 3 steps: .* started again"):
        run(model, iter(numbered(3)), model.parameters(), steps=4)
    assert len(model.seen) == 3
    for steps in (None, 5):
        with pytest.raises(ValueError, match="no batch after 0 steps"):
            seen_by([], steps=steps)


def test_trees_as_inputs_and_targets():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return {"y": self.layer(x["a"] + x["b"])}

    model, ones = Sum(), torch.ones(4, 2)
    data = [({"a": ones, "b": ones}, {"y": 3 * ones})]
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = fit(model, data, lambda a, w: mse(a["y"], w["y"]), adam, steps=60, progress=False)
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_that_is_not_finite_names_the_step(bad):
    model = weighted()
    as_before = flags(model)
    data = batches(5)
    data[3][1][2, 1] = bad
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in step 3"):
        run(model, data)
    assert flags(model) == as_before
    assert all(p.isfinite().all() for p in model.parameters())  # no step was made with it


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_interruption_all_is_as_before_but_what_was_learned(error):
    model = weighted().eval()
    model.model[0].requires_grad_(False)
    as_before, before = flags(model), state(model)

    def interrupted():
        yield from batches(3)
        raise error

    with pytest.raises(error):
        run(model, interrupted())
    assert flags(model) == as_before
    changed = set(before) - same(before, state(model))
    assert changed and all(name.startswith("reduce.weight") for name in changed)


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_is_optional(progress, steps, capsys):
    run(weighted(), steps=steps, progress=progress)
    out, err = capsys.readouterr()
    total = 4 if steps is None else steps
    assert out == ""
    assert (f"{total}/{total}" in err and "loss=" in err) if progress else err == ""


def test_an_optimiser_of_another_model_is_refused():
    model, other = weighted(), weighted()
    as_before = flags(model)
    with pytest.raises(ValueError, match="none of the model's parameters"):
        run(model, parameters=other.parameters())
    assert flags(model) == as_before
    with pytest.raises(ValueError, match="none of the model's parameters"):
        run(equitune(lambda x: x, S3, S3), parameters=other.parameters())


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="number of optimiser steps; got -1"):
        run(weighted(), steps=-1)


# a model that knows images upright only
TURNS = image_rotations()
SAME = Trivial(TURNS.group)


def upright(count, seed):
    """Images whose top left is marked; the class is the side of the middle that is bright."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    x[:, :, :3, :3] += 2
    x[labels == 0, :, 3:5, 5:7] += 2
    x[labels == 1, :, 3:5, 1:3] += 2
    return x, labels


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 2)
    )
    data = list(zip(*(t.split(64) for t in upright(512, 1)), strict=True))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    fit(model, data, nn.functional.cross_entropy, adam, steps=60, progress=False)
    return model


def accuracy(model, x, labels):
    with torch.no_grad():
        return float((model(x).argmax(-1) == labels).double().mean())


def recovered(make, classifier, train):
    """Accuracy on turned images after ``train``, which must not change the classifier."""
    x, labels = upright(300, 2)
    elements = torch.randint(4, (300,), generator=torch.Generator().manual_seed(3))
    turned = TURNS.act_each(elements, x)
    assert accuracy(classifier, x, labels) > 0.98
    assert accuracy(classifier, turned, labels) < 0.6
    assert accuracy(equitune(classifier, TURNS, SAME), turned, labels) < 0.6
    before = state(classifier)
    model = make()
    train(model)
    assert same(before, state(classifier)) == set(before)
    return accuracy(model, turned, labels)


SEES = {
    "inputs": lambda: {"weight": MLPWeight((1, 8, 8), (16,))},
    "pooled": lambda: {"weight": MLPWeight((1, 4, 4), (16,), pool=nn.AdaptiveAvgPool2d(4))},
    "features": lambda: {"weight": MLPWeight((6, 3, 3), (16,)), "features": "2"},
    "pooled features": lambda: {
        "weight": MLPWeight((6, 2, 2), (16,), pool=nn.AdaptiveAvgPool2d(2)),
        "features": "1",
    },
}


@pytest.mark.parametrize("sees", ["pooled", "features"])
def test_weights_fitted_on_the_task_recover_what_equitune_lacks(sees, classifier):
    def train(model):
        data = list(zip(*(t.split(64) for t in upright(256, 4)), strict=True))
        adam = torch.optim.Adam(model.reduce.parameters(), lr=1e-2)
        fit(model, data, nn.functional.cross_entropy, adam, steps=60, progress=False)

    def make():
        return lambda_equitune(classifier, TURNS, SAME, **SEES[sees]())

    assert recovered(make, classifier, train) > 0.95


@pytest.mark.parametrize("sees", list(SEES))
def test_familiarity_recovers_what_equitune_lacks(sees, classifier):
    def train(model):
        options = {"steps": 60, "batch_size": 64, "learning_rate": 1e-2}
        assert fit_familiarity(model, upright(256, 4)[0], **options) < 0.1

    def make():
        return lambda_equitune(classifier, TURNS, SAME, **SEES[sees]())

    assert recovered(make, classifier, train) > 0.95
