"""Words as ids, batches of them, and the groups that permute them."""

import random
import re

import pytest
import torch

import equicore
from equicore.applications.scan import (
    SYMMETRIES,
    WordSymmetry,
    all_pairs,
    decode_actions,
    encode_actions,
    encode_commands,
    symmetry,
)
from equicore.applications.scan.data import WORDS
from equicore.applications.scan.vocabulary import (
    END,
    PAD,
    START,
    Batches,
    real_tokens,
    shifted,
    token_loss,
)

ORDERS = {
    "none": 1,
    "jump-run": 2,
    "left-right": 2,
    "jump-run+left-right": 4,
    "verb-cycle": 4,
    "verb-cycle+left-right": 8,
    "all-verbs": 24,
    "all-verbs+left-right": 48,
}


def sentences(commands):
    return [" ".join(WORDS[i] for i in row if i != PAD) for row in commands.tolist()]


def test_all_of_scan_is_encoded_and_decoded():
    commands, actions = zip(*all_pairs(), strict=True)
    ids = encode_commands(commands)
    assert ids.shape == (20910, 9)
    assert sentences(ids) == list(commands)
    assert decode_actions(encode_actions(actions)) == list(actions)


def test_ids_by_hand():
    actions = encode_actions(["I_WALK", "I_JUMP I_TURN_LEFT"])
    assert actions.tolist() == [[0, END, END], [3, 4, END]]
    assert shifted(actions).tolist() == [[START, 0, END], [START, 3, 4]]
    assert real_tokens(actions).tolist() == [[True, True, False], [True, True, True]]
    assert decode_actions(torch.tensor([[0, 1, 2]])) == ["I_WALK I_LOOK I_RUN"]  # without END


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([], "no commands given"),
        (["jump", "  "], "an empty command"),
        (["jump", "crawl twice"], "unknown word 'crawl' in 'crawl twice'; SCAN has walk, look"),
        (["walk and " * 5 + "walk"], "at most 9 words; got 11"),
        ("jump twice", "commands are a list of sentences; got the one sentence 'jump twice'"),
    ],
)
def test_wrong_commands(commands, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_commands(commands)


def test_wrong_actions():
    with pytest.raises(ValueError, match="unknown word 'I_CRAWL'"):
        encode_actions(["I_CRAWL"])
    with pytest.raises(ValueError, match="at most 49 words; got 50"):
        encode_actions([" ".join(["I_RUN"] * 50)])


def test_batches_hold_every_pair_once_and_outputs_of_similar_length(pairs):
    batches = Batches(pairs, 32)
    epoch = list(batches.epoch(3))
    assert len(epoch) == len(batches) == 16
    written = [
        pair
        for inputs, actions in epoch
        for pair in zip(sentences(inputs["commands"]), decode_actions(actions), strict=True)
    ]
    assert sorted(written) == sorted(pairs)
    for inputs, actions in epoch:
        lengths = real_tokens(actions).sum(1)
        assert actions.shape[1] == lengths.max() <= lengths.min() + 2
        assert (inputs["commands"] != PAD).any(0).all()
        assert torch.equal(inputs["before"], shifted(actions))


def test_first_batches_go_on_into_further_epochs(pairs):
    batches = Batches(pairs[:40], 32)
    some = [actions for _, actions in batches.first(5, 7)]
    more = [actions for _, actions in batches.first(9, 7)]
    assert len(some) == 5
    assert all(torch.equal(a, b) for a, b in zip(some, more, strict=False))
    assert not torch.equal(some[0], some[2])  # another order


def test_loss_is_of_real_tokens_by_hand():
    actions = encode_actions(["I_WALK", "I_WALK I_LOOK"])
    scores = torch.zeros(2, 3, END + 1)
    scores[0, 2, END] = 5.0  # after the end
    scores[:, 0, 0], scores[0, 1, END], scores[1, 1, 1], scores[1, 2, END] = -1, -2, -3, -4
    expected = (1 + 1 + 2 + 3 + 4) / 5
    assert token_loss({"log_probabilities": scores}, actions) == pytest.approx(expected)
    early = {"log_probabilities": scores[:, :1]}
    assert token_loss(early, actions) == pytest.approx(1)


def test_orders():
    assert {name: len(symmetry(name).group) for name in SYMMETRIES} == ORDERS


@pytest.mark.parametrize("name", ["jump-run+left-right", "verb-cycle", "all-verbs+left-right"])
def test_declared_symmetry_is_true_of_scan(name):
    """Exchanged words mean exchanged actions, by the grammar; filling stays."""
    meaning = dict(all_pairs())
    commands, actions = zip(*random.Random(0).sample(all_pairs(), 100), strict=True)
    words = symmetry(name)
    ids, outputs = encode_commands(commands), encode_actions(actions)
    equicore.check_representation(words.source, ids)
    equicore.check_representation(words.target, shifted(outputs))
    equicore.check_representation(words.next_token(), torch.randn(3, 5, END + 1))
    for g in range(len(words.group)):
        expected = decode_actions(words.target.act(g, outputs))
        assert [meaning[command] for command in sentences(words.source.act(g, ids))] == expected
        assert words.target.act(g, torch.tensor([[END, START]])).tolist() == [[END, START]]


@pytest.mark.parametrize(
    ("cycles", "message"),
    [
        ([("twice", "thrice")], "'thrice' stands for no action.*words that do are walk"),
        ([("jump", "run", "look")], r"mine: .*the cycles are \[\[\('jump'"),
        ([("jump", "run"), ("run", "look")], "mine: .*the cycles are"),
    ],
)
def test_exchanges_that_cannot_be(cycles, message):
    with pytest.raises(ValueError, match=message):
        WordSymmetry("mine", equicore.cyclic(2), [cycles])


def test_unknown_symmetry():
    with pytest.raises(ValueError, match=r"none, jump-run, .*; got 'jump-crawl'"):
        symmetry("jump-crawl")
