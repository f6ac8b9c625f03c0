"""Ids that a permutation of the vocabulary maps, and scores of the vocabulary."""

import pytest
import torch

from equicore import (
    Permutation,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    check_representation,
    cyclic,
    equitune,
    symmetric,
    trivial,
)
from equicore.representations.plain import from_dict, to_dict

INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
# of the ids 0..8, S3 moves 1, 4, 6, and with them 2, 5, 8
WORDS = Tokens.from_cycles(symmetric(3), [[[1, 4], [2, 5]], [[1, 4, 6], [2, 5, 8]]], size=9)
SHAPES = [(4,), (4, 3), (4, 3, 2), (1, 5), (4, 0)]


def ids(*shape, dtype=torch.int64):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def mapped_by_hand(g, x):
    """One id at a time, by the definition: the id i becomes permutations[g][i]."""
    row = WORDS.permutations[g].tolist()
    return torch.tensor([row[i] for i in x.flatten().tolist()], dtype=x.dtype).view(x.shape)


def test_cycles_become_rows():
    exchange, cycle = WORDS.group.generators
    rows = WORDS.permutations.tolist()
    assert rows[0] == list(range(9))
    assert rows[exchange] == [0, 4, 5, 3, 1, 2, 6, 7, 8]
    assert rows[cycle] == [0, 4, 5, 3, 6, 8, 1, 7, 2]
    assert len({tuple(row) for row in rows}) == 6


@pytest.mark.parametrize("shape, dtype", list(zip(SHAPES, INTEGERS, strict=True)), ids=str)
def test_ids_of_any_shape_and_type(shape, dtype):
    x = ids(*shape, dtype=dtype)
    expected = torch.stack([mapped_by_hand(g, x) for g in range(6)])
    orbit = WORDS.orbit(x)
    assert orbit.dtype == dtype
    assert torch.equal(orbit, expected)
    assert all(torch.equal(WORDS.act(g, x), expected[g]) for g in range(6))
    assert torch.equal(WORDS.align(orbit), x.expand(6, *shape))
    y = ids(6, *shape, dtype=dtype)
    undone = [mapped_by_hand(WORDS.group.inverse(g), y[g]) for g in range(6)]
    assert torch.equal(WORDS.align(y), torch.stack(undone))
    check_representation(WORDS, x)


@pytest.mark.parametrize("shape, dtype", list(zip(SHAPES, INTEGERS, strict=True)), ids=str)
def test_each_sample_by_an_element_of_its_own(shape, dtype):
    x = ids(*shape, dtype=dtype)
    elements = torch.tensor([3, 0, 5, 3])[: shape[0]]
    expected = torch.stack([mapped_by_hand(int(g), x[i]) for i, g in enumerate(elements)])
    assert torch.equal(WORDS.act_each(elements, x), expected)
    assert torch.equal(WORDS.align_each(elements, expected), x)
    assert WORDS.act_each(elements, x).dtype == dtype


@pytest.mark.parametrize("dim", [-1, -2])
def test_scores_of_the_vocabulary_move_with_the_ids(dim):
    x = ids(4, 3)
    scores = WORDS.logits(dim)
    assert isinstance(scores, Permutation)
    one_hot = torch.nn.functional.one_hot(x, 9).movedim(-1, dim)
    for g in range(6):
        assert torch.equal(scores.act(g, one_hot).argmax(dim), WORDS.act(g, x))


def test_generators_are_those_of_permutations():
    rows = [[1, 0, 2, 3], [1, 2, 0, 3]]
    tokens = Tokens.from_generators(symmetric(3), rows)
    expected = Permutation.from_generators(symmetric(3), rows)
    assert torch.equal(tokens.permutations, expected.permutations)


def test_a_language_model_over_a_vocabulary():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Tanh(), torch.nn.Linear(8, 9))
    x = ids(5, 4)
    logits = WORDS.logits()
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model, WORDS, logits, x)
    assert_equivariant(equitune(model, WORDS, logits), WORDS, logits, x)
    invariant = Trivial(WORDS.group)
    assert_equivariant(equitune(model, WORDS, invariant), WORDS, invariant, x)


def test_ids_and_masks_together():
    batch = Tree({"input_ids": WORDS, "attention_mask": Trivial(WORDS.group)})
    x = {"input_ids": ids(3, 4), "attention_mask": torch.tensor([[1, 1, 0, 0]] * 3)}
    for g in range(6):
        acted = batch.act(g, x)
        assert torch.equal(acted["input_ids"], mapped_by_hand(g, x["input_ids"]))
        assert torch.equal(acted["attention_mask"], x["attention_mask"])


CALLS = {
    "act": lambda rep, x: rep.act(1, x),
    "orbit": lambda rep, x: rep.orbit(x),
    "align": lambda rep, x: rep.align(x.expand(len(rep.group), *x.shape)),
    "act_each": lambda rep, x: rep.act_each(torch.tensor([1]), x),
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@EACH_CALL
def test_unknown_ids_are_shown(call):
    for wrong in (9, 200, -1):
        with pytest.raises(ValueError, match=f"labels are 0..8; got {wrong}$"):
            call(WORDS, torch.tensor([[0, wrong, 8]]))


@EACH_CALL
def test_ids_are_integers(call):
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"labels are integers; got {dtype}"):
            call(WORDS, torch.zeros(1, 3, dtype=dtype))


@EACH_CALL
def test_a_type_without_room_for_the_vocabulary_is_refused(call):
    # 1 would become 299, which is 43 in uint8
    tokens = Tokens.from_cycles(cyclic(2), [[[1, 299]]], size=300)
    x = torch.ones(1, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"torch.uint8 has no room for the ids 0..299"):
        call(tokens, x)
    assert tokens.act(1, x.short()).unique().tolist() == [299]
    assert Tokens.from_cycles(cyclic(2), [[[1, 255]]], size=256).act(1, x).unique().tolist() == [
        255
    ]


@pytest.mark.parametrize("make", [Tokens.from_cycles, Permutation.from_cycles])
@pytest.mark.parametrize("cycles", [[[0, 1], [1, 2]], [[0, 1, 0]], [[0, 5]], [[-1, 0]]], ids=str)
def test_cycles_are_disjoint_and_within_the_size(make, cycles):
    with pytest.raises(ValueError, match=r"not disjoint cycles of numbers 0..4: \[\[") as error:
        make(cyclic(2), [cycles], 5)
    assert str(cycles) in str(error.value)


@pytest.mark.parametrize("make", [Tokens.from_cycles, Permutation.from_cycles])
def test_cycles_extend_to_the_group(make):
    with pytest.raises(ValueError, match=r"permutations do not follow cyclic\(2\)"):
        make(cyclic(2), [[[0, 1, 2]]], 5)
    with pytest.raises(ValueError, match="generated by 2 elements .* got 1 images"):
        make(symmetric(3), [[[0, 1]]], 5)


def test_cycles_may_be_empty_and_of_one_point():
    rep = Permutation.from_cycles(cyclic(2), [[[2], [], [1, 3]]], 4, dim=-2)
    assert rep.permutations.tolist() == [[0, 1, 2, 3], [0, 3, 2, 1]]
    assert rep.dim == -2


def test_without_generators_the_size_is_known_all_the_same():
    x = torch.tensor([[0, 5]])
    assert Tokens.from_cycles(trivial(), [], size=6).orbit(x).tolist() == [[[0, 5]]]
    assert Permutation.from_cycles(trivial(), [], size=6).permutations.tolist() == [[*range(6)]]


def test_rows_are_permutations():
    with pytest.raises(ValueError, match=r"not a permutation of 0..1: \[1, 1\]"):
        Tokens(cyclic(2), [[0, 1], [1, 1]])
    with pytest.raises(ValueError, match=r"cyclic\(2\) has 2 elements; got 1 permutations"):
        Tokens(cyclic(2), [[0, 1]])


def test_slices_and_elements_must_be_as_many():
    with pytest.raises(ValueError, match=r"each of 6 elements .* got \(5, 1, 3\)"):
        WORDS.align(ids(5, 1, 3))
    with pytest.raises(ValueError, match=r"each of 2 elements .* got \(3, 1, 3\)"):
        WORDS.align(ids(3, 1, 3), [1, 2])
    with pytest.raises(ValueError, match=r"shape \(2,\); got shape \(3,\)"):
        WORDS.act_each(torch.tensor([0, 1, 2]), ids(2, 3))


LABELS = torch.tensor([[1, -100, 4], [-100, 0, 5]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8])
def test_what_losses_ignore_stays(dtype):
    rep = Tokens.from_cycles(cyclic(2), [[[1, 4]]], size=6)
    labels = LABELS.to(dtype)
    check_representation(rep, labels)
    assert rep.act(1, labels).tolist() == [[4, -100, 1], [-100, 0, 5]]
    traced = torch.func.vmap(lambda x: rep.act(1, x))(labels)
    assert torch.equal(traced, rep.act(1, labels))
    with pytest.raises(ValueError, match=r"labels are 0\.\.5; got -1"):
        rep.act(1, torch.tensor([[-1, -100]], dtype=dtype))


def test_another_number_or_none_is_ignored():
    cycles = {"group": cyclic(2), "permutations": [[0, 1, 2], [1, 0, 2]]}
    assert Tokens(**cycles, ignore_index=-1).act(1, torch.tensor([[-1, 0]])).tolist() == [[-1, 1]]
    with pytest.raises(ValueError, match="got -100"):
        Tokens(**cycles, ignore_index=None).act(1, torch.tensor([[-100, 0]]))
    with pytest.raises(ValueError, match="ignore_index stands for no id, but 2 is one of"):
        Tokens(**cycles, ignore_index=2)
    other = from_dict(cyclic(2), to_dict(Tokens(**cycles, ignore_index=-1)))
    assert other.ignore_index == -1


def test_a_long_id_in_a_short_type_is_not_what_is_ignored():
    """156 is -100 in 8 bits."""
    rep = Tokens(cyclic(2), [range(200), [1, 0, *range(2, 200)]])
    assert rep.act(1, torch.tensor([[156, 0]], dtype=torch.uint8)).tolist() == [[156, 1]]
