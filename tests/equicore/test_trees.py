"""Trees of tensors: how they are taken apart, and representations on them."""

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import ModelOutput

from equicore import (
    DirectSum,
    Matrix,
    Permutation,
    Tokens,
    Tree,
    Trivial,
    check_representation,
    cyclic,
    symmetric,
)
from equicore.trees import entries, leaves, rebuild, tree_map

S3 = symmetric(3)
POINTS = Permutation.from_generators(S3, [[1, 0, 2], [1, 2, 0]])
SIGN = Matrix.from_generators(S3, [[[-1.0]], [[1.0]]])
WORDS = Tokens(S3, POINTS.permutations)

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Plain:
    first: Any
    second: Any = None


@dataclass(frozen=True, kw_only=True)
class Frozen:
    first: Any
    second: Any = None
    count: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "count", 7)


@dataclass
class Output(ModelOutput):
    first: Any = None
    second: Any = None
    third: Any = None


def named(first, second):
    return {"first": first, "second": second}


# how a tree of two entries is made, and the names of the entries
CONTAINERS = {
    "dict": (named, "first second"),
    "ordered": (lambda a, b: OrderedDict(named(a, b)), "first second"),
    "proxy": (lambda a, b: MappingProxyType(named(a, b)), "first second"),
    "encoding": (lambda a, b: BatchEncoding(named(a, b)), "first second"),
    "tuple": (lambda a, b: (a, b), (0, 1)),
    "list": (lambda a, b: [a, b], (0, 1)),
    "namedtuple": (Pair, "first second"),
    "dataclass": (Plain, "first second"),
    "model output": (lambda a, b: Output(**named(a, b)), "first second"),
}
EACH = pytest.mark.parametrize(
    "make, names",
    [(make, n.split() if isinstance(n, str) else n) for make, n in CONTAINERS.values()],
    ids=CONTAINERS,
)


def points(batch=2, seed=0):
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed))


def sign(batch=2):
    return torch.randn(batch, 1, generator=torch.Generator().manual_seed(9))


@EACH
def test_trees_are_taken_apart_and_put_together(make, names):
    a, b = points(), sign()
    tree = make(a, b)
    found = entries(tree)
    assert found[names[0]] is a and found[names[1]] is b
    assert [id(t) for t in leaves(tree)] == [id(a), id(b)]
    other = rebuild(tree, {**found, names[1]: a})
    assert type(other) is type(tree)
    assert [id(t) for t in leaves(other)] == [id(a), id(a)]
    doubled = tree_map(lambda t, u, v: t + u * v, tree, tree, make(3, 5))
    assert type(doubled) is type(tree)
    torch.testing.assert_close(leaves(doubled), [4 * a, 6 * b])


def test_fields_that_are_computed_are_computed_again():
    tree = Frozen(first=points())
    other = rebuild(tree, {"first": sign()})
    assert (other.first.shape, other.second, other.count) == ((2, 1), None, 7)


def test_none_is_no_leaf():
    tree = {"a": None, "b": [points(), None]}
    assert len(leaves(tree)) == 1
    assert leaves(None) == []
    assert tree_map(torch.neg, tree)["a"] is None
    assert tree_map(torch.neg, tree)["b"][1] is None


@pytest.mark.parametrize("leaf", [3, "text", {1, 2}, Plain], ids=str)
def test_other_things_are_no_trees(leaf):
    with pytest.raises(TypeError, match=f"expected a tensor, or a dict.*got {type(leaf).__name__}"):
        leaves({"a": leaf})


@EACH
def test_each_entry_is_acted_on_by_its_part(make, names):
    rep = Tree(dict(zip(names, (POINTS, SIGN), strict=True)))
    a, b = points(), sign()
    tree = make(a, b)
    orbit = rep.orbit(tree)
    aligned = rep.align(orbit)
    each = rep.act_each(torch.tensor([4, 2]), tree)
    for g in range(6):
        acted = rep.act(g, tree)
        assert type(acted) is type(orbit) is type(aligned) is type(each) is type(tree)
        assert torch.equal(entries(acted)[names[0]], POINTS.act(g, a))
        assert torch.equal(entries(acted)[names[1]], SIGN.act(g, b))
        assert torch.equal(entries(orbit)[names[0]][g], POINTS.act(g, a))
    for i, g in enumerate((4, 2)):
        assert torch.equal(entries(each)[names[0]][i], POINTS.act(g, a)[i])
        assert torch.equal(entries(each)[names[1]][i], SIGN.act(g, b)[i])
    check_representation(rep, tree)


@EACH
def test_parts_come_in_the_same_containers(make, names):
    try:
        parts = make(POINTS, SIGN)
    except (TypeError, ValueError):
        pytest.skip("holds tensors only")
    if isinstance(parts, Output):
        parts = {n: p for n, p in entries(parts).items() if p is not None}
    rep = Tree(parts)
    assert rep.names == tuple(names)
    x = make(points(), sign())
    assert torch.equal(leaves(rep.act(2, x))[0], POINTS.act(2, points()))


@EACH
def test_nested_parts_are_trees(make, names):
    rep = Tree(make_nested(dict(zip(names, (POINTS, [SIGN, {"deep": WORDS}]), strict=True))))
    ids = torch.tensor([[0, 2], [1, 1]])
    x = {"outer": make(points(), [sign(), {"deep": ids}])}
    acted = rep.act(2, x)
    first, second, third = leaves(acted)
    assert torch.equal(first, POINTS.act(2, points()))
    assert torch.equal(second, SIGN.act(2, sign()))
    assert torch.equal(third, WORDS.act(2, ids))
    check_representation(rep, x)
    assert rep.axes and set(rep.axes) == {-1, 0}


def make_nested(parts):
    return {"outer": parts}


@EACH
def test_entries_that_are_none_stay_none(make, names):
    rep = Tree(dict(zip(names, (POINTS, Tree({"inner": SIGN})), strict=True)))
    x, elements = make(points(6), None), torch.arange(6)
    verbs = (rep.act(2, x), rep.act_each(elements, x), rep.align_each(elements, x), rep.orbit(x))
    for acted in (*verbs, rep.align(rep.orbit(x)), rep.select(x)):
        assert entries(acted)[names[1]] is None
        assert entries(acted)[names[0]] is not None


def test_the_order_of_keys_is_the_inputs():
    rep = Tree({"first": POINTS, "second": SIGN})
    x = {"second": sign(), "first": points()}
    assert list(rep.act(2, x)) == ["second", "first"]
    assert torch.equal(rep.act(2, x)["first"], POINTS.act(2, points()))


def test_selecting_what_is_acted_on():
    rep = Tree({"logits": POINTS})
    kept = rep.select({"logits": points(), "cache": object()})
    assert list(kept) == ["logits"]
    output = CausalLMOutputWithPast(logits=points(), hidden_states=(points(), points()))
    selected = rep.select(output)
    assert isinstance(selected, CausalLMOutputWithPast)
    assert selected.logits is output.logits
    assert selected.hidden_states is None
    states = Tree({"hidden_states": [Trivial(S3), POINTS]}).select(output)
    assert states.logits is None
    assert [id(t) for t in states.hidden_states] == [id(t) for t in output.hidden_states]
    absent = Tree({"logits": POINTS, "hidden_states": [POINTS, POINTS]})
    assert absent.select(CausalLMOutputWithPast(logits=points())).hidden_states is None


@pytest.mark.parametrize("container", [tuple, list])
def test_selected_places_keep_their_place(container):
    a, b, c = points(seed=1), points(seed=2), "cache"
    first = Tree([POINTS]).select(container([a, b, c]))
    assert type(first) is container
    assert len(first) == 1 and first[0] is a
    rep = Tree({1: POINTS})
    second = rep.select(container([a, b, c]))
    assert len(second) == 2 and second[0] is None and second[1] is b
    assert torch.equal(rep.act(2, second)[1], POINTS.act(2, b))
    with pytest.raises(ValueError, match=r"\[1\] are missing; got \['first', 'second'\]"):
        rep.select(Pair(a, b))  # whose entries have names


def test_selecting_from_nested_trees():
    rep = Tree({"out": {"logits": POINTS}, "value": SIGN})
    y = {"out": {"logits": points(), "aux": points()}, "value": sign(), "loss": 3.0}
    kept = rep.select(y)
    assert list(kept) == ["out", "value"] and list(kept["out"]) == ["logits"]


def test_missing_entries_are_named():
    rep = Tree({"first": POINTS, "second": SIGN})
    for call in (lambda x: rep.act(1, x), rep.orbit, rep.align, rep.select):
        with pytest.raises(ValueError) as error:
            call({"first": points(), "third": sign()})
        message = str(error.value)
        assert "entries ['first', 'second'], of which ['second'] are missing" in message
        assert "got ['first', 'third']" in message
    with pytest.raises(ValueError, match=r"\[1\] are missing; got \[0\]"):
        Tree([POINTS, SIGN]).act(1, (points(),))


def test_unknown_entries_are_named():
    rep = Tree({"first": POINTS, "second": SIGN})
    x = {"first": points(), "second": sign(), "third": sign(), "fourth": None}
    for call in (
        lambda x: rep.act(1, x),
        lambda x: rep.act_each(torch.tensor([0, 1]), x),
        rep.orbit,
        rep.align,
    ):
        with pytest.raises(ValueError) as error:
            call(x)
        assert "no representation is given for the entries ['third']" in str(error.value)
        assert "['first', 'second']" in str(error.value)
        assert "Trivial(group)" in str(error.value)
    assert rep.act(1, {**x, "third": None})["third"] is None


def test_tensors_are_no_trees():
    with pytest.raises(TypeError, match=r"got one tensor of shape \(2, 3\)"):
        Tree([POINTS]).act(1, points())
    with pytest.raises(ValueError, match=r"axis -1 of size 3 .* got shape \(2, 4\)"):
        Tree([POINTS]).act(1, [torch.zeros(2, 4)])


@pytest.mark.parametrize("parts", [{"a": None}, {"a": "text"}, [POINTS, 3], POINTS, None, "text"])
def test_parts_must_be_representations(parts):
    with pytest.raises(TypeError, match="a tree is made of representations, and of dicts"):
        Tree(parts)


def test_parts_are_of_one_group():
    with pytest.raises(ValueError, match="a tree needs at least one representation"):
        Tree({})
    with pytest.raises(ValueError, match=r"a tree must be of one group; got .*3.* and .*cyclic"):
        Tree({"a": POINTS, "b": {"c": Trivial(cyclic(3))}})


@pytest.mark.parametrize("elements", [torch.tensor([1]), torch.tensor([0, 1, 2])])
def test_there_is_one_element_for_each_sample(elements):
    rep = Tree({"a": POINTS, "b": [SIGN]})
    with pytest.raises(ValueError, match=r"integers of shape \(2,\); got shape"):
        rep.act_each(elements, {"a": points(), "b": [sign()]})


def test_slices_must_be_as_many_as_elements():
    with pytest.raises(ValueError, match=r"each of 6 elements .* got \(2, 3\)"):
        Tree([POINTS]).align([points()])
    rep = Tree([DirectSum([(POINTS, 3)])])
    with pytest.raises(ValueError, match=r"each of 1 elements .* got \(2, 1, 3\)"):
        rep.align([torch.zeros(2, 1, 3)], [0])


def test_parts_move_with_the_tree():
    rep = copy.deepcopy(Tree({"a": POINTS, "b": {"c": SIGN}})).to("meta")
    assert {"permutations", "matrices"} <= {n.split(".")[-1] for n, _ in rep.named_buffers()}
    assert all(buffer.device.type == "meta" for buffer in rep.buffers())
    assert rep.state_dict() == {}
