"""The tasks: their functions by hand, their symmetry, and models that have it exactly."""

import math

import pytest
import torch

import equicore
from equicore.applications.so2 import TASKS, Residual, Tensors2, built, losses
from equicore.applications.so2.names import ALONE, MODELS, SAMPLED, TASK_NAMES
from equicore.applications.so2.tasks import SHAPES, extreme_points, inertia, of_two_vectors
from equicore.continuous import Vectors, random_motions
from equicore.trees import leaves, tree_map

EQUIVARIANT = [model for model in MODELS if model not in ALONE]


def doubled(tree):
    return tree_map(lambda t: t.double(), tree)


def poses(task, count=7):
    """The identity and random elements of a task's group."""
    return random_motions(count, task.dimension, reflections=task.reflections, seed=5)


def clear(task, count):
    """Inputs whose axes are clear, so that rounding does not turn them."""
    x, _ = task.draw(4 * count, seed=3)
    kept = (task.axes.gap(x) > 0.1).nonzero().flatten()[:count]
    assert len(kept) == count
    return tree_map(lambda t: t[kept], x)


def some(task, model):
    """A small model with parameters, also of its weights, that are not the initial ones."""
    made = built(task, model, 4 if model in SAMPLED else 1, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def test_the_names_are_those_of_the_tasks():
    assert list(TASKS) == list(TASK_NAMES)


def test_functions_by_hand():
    x = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [-1.0, 0.0]]])
    wanted = torch.tensor([[math.sin(3) - 4], [math.sin(1) - 0.5 - 1]])
    torch.testing.assert_close(of_two_vectors(x), wanted)
    mass, position = torch.tensor([[2.0, 1.0]]), torch.tensor([[[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]])
    wanted = torch.diag(torch.tensor([2.0, 2.0, 0.0]))
    wanted += torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    torch.testing.assert_close(inertia(mass, position), wanted[None])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "points"])
def test_what_is_learned_has_the_symmetry(name):
    task = TASKS[name]
    x, _ = doubled(task.draw(20, seed=0))

    def function(x):
        return inertia(x["mass"], x["position"]) if name == "inertia" else of_two_vectors(x)

    actions = task.input_action, task.output_action
    equicore.assert_equivariant(function, *actions, x, elements=poses(task))


def test_matrices_turn_as_a_group_acts():
    action, g, h = Tensors2(), random_motions(5, 3, seed=0), random_motions(5, 3, seed=1)
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    there = action.act_each(g, action.act_each(h, x))
    torch.testing.assert_close(there, action.act_each(g @ h, x), rtol=0, atol=1e-13)
    torch.testing.assert_close(action.act_each(g.inverse(), action.act_each(g, x)), x)
    wanted = g.rotation[1] @ x[1, 0] @ g.rotation[1].T
    torch.testing.assert_close(action.act_each(g, x)[1, 0], wanted)
    with pytest.raises(ValueError, match="of 3 dimensions act on axis"):
        action.act_each(g, torch.zeros(5, 3, 2))


@pytest.mark.parametrize("model", EQUIVARIANT)
@pytest.mark.parametrize("name", TASKS)
def test_models_are_equivariant(name, model):
    task = TASKS[name]
    made, actions, x = some(task, model), (task.input_action, task.output_action), clear(task, 6)
    one = tree_map(lambda t: t[:1], x)
    for inputs in (x, one):
        equicore.assert_equivariant(made, *actions, inputs, elements=poses(task))
        equicore.assert_equivariant(made.double(), *actions, doubled(inputs), elements=poses(task))
        made.float()


@pytest.mark.parametrize("name", TASKS)
def test_networks_alone_are_not(name):
    task = TASKS[name]
    actions, x = (task.input_action, task.output_action), task.draw(6, seed=3)[0]
    with pytest.raises(AssertionError, match="not equivariant"):
        equicore.assert_equivariant(some(task, "mlp"), *actions, x, elements=poses(task))


def test_the_papers_number_of_parameters():
    assert sum(p.numel() for p in Residual(4, (1,), 200).parameters()) == 162_001
    assert TASKS["so2"].widths[0] == 200


@pytest.mark.parametrize("name", TASKS)
def test_parameters_are_as_many_and_the_same(name):
    task = TASKS[name]
    made = {model: built(task, model, 2 if model in SAMPLED else 1, seed=4) for model in MODELS}
    count = {model: sum(p.numel() for p in m.parameters()) for model, m in made.items()}
    assert 0.93 * count["mlp"] < count["canonical_uniform"] == count["canonical"] == count["frames"]
    assert count["canonical"] < count["canonical_lambda"] <= count["mlp"] == count["augmented"]
    assert 0.97 * count["mlp"] < count["canonical_lambda"]
    x, _ = task.draw(8, seed=0)
    with torch.no_grad():
        # weights begin equal, and a single sample is the canonical form
        uniform, weighted = (made[model](x) for model in SAMPLED)
        torch.testing.assert_close(weighted, uniform)
        single = built(task, "canonical_uniform", 1, seed=4)(x)
        torch.testing.assert_close(single, made["canonical"](x))
        assert not torch.allclose(uniform, made["canonical"](x))
        assert torch.equal(made["mlp"](x), made["augmented"](x))
        assert not torch.equal(made["mlp"](x), built(task, "mlp", seed=5)(x))


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    for task in TASKS.values():
        built(task, "canonical_lambda", 2)
        task.draw(3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", TASKS)
def test_data_are_those_of_a_seed(name):
    task = TASKS[name]
    first, again, other = (leaves(task.draw(10, seed)[0]) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))
    with pytest.raises(ValueError, match="draw one input at least; got 0"):
        task.draw(0, seed=0)


def test_clouds_are_of_all_shapes_and_centred():
    x, labels = TASKS["points"].draw(300, seed=0)
    assert set(labels.tolist()) == set(range(len(SHAPES)))
    assert x.mean(1).abs().max() < 1e-6 and 0.5 < x.norm(dim=-1).amax(1).min()
    # in random poses: no axis is longer than another on the mean over clouds
    moments = (x.mT @ x).mean(0)
    assert moments.diagonal().max() < 1.3 * moments.diagonal().min()


def test_extreme_points_turn_with_the_cloud_and_ignore_its_order():
    x = doubled(TASKS["points"].draw(20, seed=0)[0])
    found, turns = extreme_points(x), random_motions(20, 3, seed=0)
    assert torch.equal(extreme_points(x[:, torch.randperm(32)]), found)
    torch.testing.assert_close(
        extreme_points(Vectors().act_each(turns, x)), Vectors().act_each(turns, found)
    )
    by_hand = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 0.0, -2.9], [0.5, 0.0, 1.0]]])
    assert extreme_points(by_hand).tolist() == [[[0.0, 0.0, 3.0], [0.5, 0.0, 1.0]]]


def test_frames_are_degenerate_where_lengths_are_equal_and_perpendicular():
    square = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]])
    gap = TASKS["o2"].axes.gap(square)
    assert gap[0] == 0 and gap[1] == pytest.approx(0.75)


def test_losses_are_those_of_each_input():
    task = TASKS["points"]
    x, labels = task.draw(501, seed=0)  # more than are measured at once
    model = built(task, "mlp")
    found, right = losses(task, model, x, labels)
    logits = model(x).detach()
    torch.testing.assert_close(found, -logits.log_softmax(-1)[torch.arange(501), labels])
    assert right.tolist() == (logits.argmax(-1) == labels).tolist()
    x, targets = TASKS["so2"].draw(3, seed=0)
    found, right = losses(TASKS["so2"], lambda_zero(), x, targets)
    torch.testing.assert_close(found, targets.square().flatten())
    assert right.isnan().all()


def lambda_zero():
    """A model that returns 0."""
    model = Residual(4, (1,), 2)
    with torch.no_grad():
        model.last.weight.zero_()
        model.last.bias.zero_()
    return model


def test_models_that_there_are_not():
    with pytest.raises(ValueError, match="there is no model 'emlp'; there are mlp, augmented"):
        built(TASKS["so2"], "emlp")
    for model, samples in (("canonical", 2), ("mlp", 4), ("canonical_lambda", 0)):
        with pytest.raises(ValueError, match=f"{model} of {samples} samples"):
            built(TASKS["so2"], model, samples)
