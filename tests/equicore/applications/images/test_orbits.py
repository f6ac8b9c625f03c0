"""Tables of outputs stand for images, and what is made invariant is so exactly."""

import dataclasses

import pytest
import torch
from torch import nn

import equicore
from equicore import Best, Identity, Mean, WeightedMean
from equicore.applications.images import methods
from equicore.applications.images import study as study_module
from equicore.applications.images.methods import GROUPS, on_tables
from equicore.applications.images.orbits import (
    First,
    Seen,
    invariant,
    pooled,
    regular_on,
    rows_under,
    tabulate,
)
from equicore.symmetrize import Symmetrized

NAMES = ("logits", "features")
EXACT = [name for name in GROUPS if name != "eighths"]


@pytest.mark.parametrize("group", EXACT)
def test_a_table_moves_as_its_image_does(group, model, digits):
    rep = GROUPS[group]()
    images = digits[1][slice(0, 20)]
    seen = Seen(model, ("network.0",))
    elements = torch.arange(20) % len(rep.group)
    moved = images.__class__(rep.act_each(elements, images.pixels), images.labels, images.classes)
    expected = tabulate(seen, rep, moved, NAMES)
    table = regular_on(rep.group, NAMES).act_each(elements, tabulate(seen, rep, images, NAMES))
    for name in NAMES:
        torch.testing.assert_close(table[name], expected[name])
    torch.testing.assert_close(table["logits"][:, 0], model(moved.inputs()))


def reducers(known, labels, features):
    torch.manual_seed(0)
    weight = methods.weight_of(features, (100,), 0)
    with torch.no_grad():
        weight.standardize(known)
        for parameter in weight.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    scores = methods.scores(known, labels).values()
    return [Mean(), *map(Best, scores), WeightedMean(weight)]


def on_images(model, rep, reduce):
    """The method of a reducer on tables, as users build it on images."""
    if isinstance(reduce, WeightedMean):
        weight = equicore.MLPWeight({"features": reduce.weight.shape["features"]}, (100,))
        weight.load_state_dict(reduce.weight.state_dict())
        reduce = WeightedMean(weight.to(reduce.weight.shift.dtype), of_outputs=True)
    return Symmetrized(Seen(model, ("network.0",)), rep, invariant(rep.group, NAMES), reduce)


def test_methods_on_tables_are_those_on_images(study):
    rep, images = study.rep, study.test[slice(0, 30)]
    known = study.table(study.parts[0])
    labels = study.parts[0].labels
    table = tabulate(Seen(study.model, study.features), rep, images, NAMES)
    for reduce in reducers(known, labels, known["features"].shape[-1]):
        expected = on_images(study.model, rep, reduce)(images.inputs())["logits"]
        found = on_tables(table, rep.group, reduce)(table)["logits"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", EXACT)
def test_exactly_invariant_in_float64(group, trained64, study):
    """Under all elements, for even and odd sizes, one image and many."""
    model, images, odd = trained64
    known = {name: t.double() for name, t in study.table(study.parts[0]).items()}
    rep = GROUPS[group]()
    for reduce in reducers(known, study.parts[0].labels, known["features"].shape[-1]):
        method = on_images(model, rep, reduce.double())
        for x in (images, odd, images[:1]):
            expected = method(x)["logits"]
            for g in range(len(rep.group)):
                torch.testing.assert_close(
                    method(rep.act(g, x))["logits"], expected, rtol=1e-12, atol=1e-12
                )


def test_a_plain_network_is_not_invariant(trained64):
    """Without which the test above could not fail."""
    model, images, _ = trained64
    rep = GROUPS["turns"]()
    with pytest.raises(AssertionError):
        equicore.assert_equivariant(model, rep, equicore.Trivial(rep.group), images)


def test_symmetric_images_are_ties(trained64):
    """An image that all turns leave as it is has the same output under every score."""
    model, images, _ = trained64
    rep = GROUPS["turns"]()
    symmetric = rep.orbit(images).mean(0)
    best = equicore.equizero(model, rep, equicore.Trivial(rep.group))
    torch.testing.assert_close(best(symmetric), model(symmetric), rtol=1e-10, atol=1e-10)


def test_features_are_captured_in_one_run(model, digits):
    images = digits[1][slice(0, 3)].inputs()
    runs = []
    model.network[0].register_forward_hook(lambda *_: runs.append(1))
    seen = Seen(model, ("network.0", "network.0.1"))(images)
    assert len(runs) == 1
    normal = (images - model.mean) / model.std
    inner = model.network[0][:2](normal)
    expected = torch.cat([pooled(model.network[0](normal)), pooled(inner)], dim=1)
    torch.testing.assert_close(seen["features"].sort(1).values, expected.sort(1).values)


def test_pooling():
    assert pooled(torch.rand(3, 5, 7, 7)).shape == (3, 20)
    assert pooled(torch.rand(3, 9, 5)).shape == (3, 5)
    assert pooled(torch.rand(3, 5)).shape == (3, 5)


def test_a_wrong_submodule_is_refused_with_a_similar_one(model):
    with pytest.raises(ValueError, match=r"'netwrk.0' is none of .*; did you mean 'network.0'"):
        Seen(model, ("netwrk.0",))


@pytest.mark.parametrize("group", ["turns", "mirror", "flip"])
def test_views_under_a_larger_group_are_not_computed_again(group, few, monkeypatch):
    small = dataclasses.replace(few, group=group)
    expected = tabulate(Seen(small.model, small.features), small.rep, small.test, NAMES)
    dataclasses.replace(few, group="turns+mirror").table(small.test)
    monkeypatch.setattr(study_module, "tabulate", lambda *_: pytest.fail("computed again"))
    found = small.table(small.test)
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_a_group_that_is_not_larger_has_not_all_views():
    assert rows_under(GROUPS["turns"](), GROUPS["flip"]()) is None
    assert rows_under(GROUPS["flip"](), GROUPS["turns"]()) is None


def test_plain_is_the_first_row(study):
    table = study.table(study.test)
    found = on_tables(table, study.rep.group, Identity())(table)
    assert torch.equal(found["logits"], table["logits"][:, 0])
    assert isinstance(First(), nn.Module)


@pytest.mark.parametrize("group", GROUPS)
def test_tables_of_moved_images_are_what_moved_images_give(group, study):
    """Also where the group acts approximately, so that views of moved images are others."""
    under = dataclasses.replace(study, group=group, test=study.test[slice(0, 40)])
    moved = under.test.moved(under.rep, seed=3)
    expected = tabulate(Seen(under.model, under.features), under.rep, moved, NAMES)
    found = under.shown(under.test, seed=3, moved=True)
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    look = under.orientation(4, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(found["orientation_4"][:, 0, 0], look(moved.inputs()))
