"""Words as ids, and the groups that permute them."""

import random
import re

import pytest
import torch

import equicore
from equicore.applications.scan import SYMMETRIES, WORDS, WordSymmetry, all_pairs, symmetry
from equicore.applications.scan.vocabulary import (
    END,
    PAD,
    START,
    decode_actions,
    encode_actions,
    encode_commands,
    real_tokens,
    shifted,
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


def test_all_of_scan_is_encoded_and_decoded():
    commands, actions = zip(*all_pairs(), strict=True)
    ids = encode_commands(commands)
    assert ids.shape == (20910, 9)
    assert ids.max() == PAD
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
    ],
)
def test_wrong_commands(commands, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_commands(commands)


def test_wrong_actions():
    with pytest.raises(ValueError, match="unknown word 'I_CRAWL'"):
        encode_actions(["I_CRAWL"])
    with pytest.raises(ValueError, match="at most 49 actions; got 50"):
        encode_actions([" ".join(["I_RUN"] * 50)])


def test_orders():
    assert {name: len(symmetry(name).group) for name in SYMMETRIES} == ORDERS


@pytest.mark.parametrize("name", SYMMETRIES)
def test_exchanged_words_mean_exchanged_actions(name):
    """The declared symmetry is true of SCAN: g x means g y for every pair, by the grammar."""
    meaning = dict(all_pairs())
    commands, actions = zip(*random.Random(0).sample(all_pairs(), 200), strict=True)
    words = symmetry(name)
    ids, outputs = encode_commands(commands), encode_actions(actions)
    vocabulary = equicore.applications.scan.WORDS
    for g in range(len(words.group)):
        moved = [
            " ".join(vocabulary[i] for i in row if i != PAD)
            for row in words.source.act(g, ids).tolist()
        ]
        expected = decode_actions(words.target.act(g, outputs))
        assert [meaning[command] for command in moved] == expected


@pytest.mark.parametrize("name", SYMMETRIES)
def test_group_laws(name):
    words = symmetry(name)
    ids = encode_commands(["jump left and run twice", "look around right"])
    equicore.check_representation(words.source, ids)
    equicore.check_representation(words.target, encode_actions(["I_JUMP I_RUN", "I_TURN_LEFT"]))
    equicore.check_representation(words.next_token(), torch.randn(3, 5, END + 1))


@pytest.mark.parametrize("name", SYMMETRIES)
def test_filling_stays(name):
    words = symmetry(name)
    assert (words.source.orbit(torch.tensor([[PAD]])) == PAD).all()
    assert (words.target.orbit(torch.tensor([[END]])) == END).all()
    assert (words.target.orbit(torch.tensor([[START]])) == START).all()


def test_words_without_an_action_cannot_be_exchanged():
    with pytest.raises(ValueError, match=r"'twice' stands for no action.*words that do are walk"):
        WordSymmetry.of("repeat", equicore.cyclic(2), [[("twice", "thrice")]])


def test_cycles_that_do_not_follow_the_group():
    with pytest.raises(ValueError, match=r"three.*the cycles are"):
        WordSymmetry.of("three", equicore.cyclic(2), [[("jump", "run", "look")]])
    with pytest.raises(ValueError, match="twice-named"):
        WordSymmetry.of("twice-named", equicore.cyclic(2), [[("jump", "run"), ("run", "look")]])


def test_unknown_symmetry():
    with pytest.raises(ValueError, match=r"none, jump-run, .*; got 'jump-crawl'"):
        symmetry("jump-crawl")


def test_one_sentence_is_not_a_list():
    with pytest.raises(ValueError, match="a list of sentences; got the one sentence 'jump twice'"):
        encode_commands("jump twice")
    with pytest.raises(ValueError, match="a list of sentences"):
        encode_actions("I_JUMP")


def test_words_and_actions_go_together():
    run, left = symmetry("jump-run"), symmetry("left-right")
    with pytest.raises(ValueError, match="mixed does not exchange the action of '(run|jump)'"):
        WordSymmetry("mixed", run.source, left.target)
    with pytest.raises(ValueError, match="mixed: source and target are of one group"):
        WordSymmetry("mixed", run.source, symmetry("verb-cycle").target)
    with pytest.raises(ValueError, match="mixed: source and target are of one group"):
        WordSymmetry("mixed", run.source, run.next_token_ids())
    swap = [[WORDS.index("twice"), WORDS.index("thrice")]]
    repeat = equicore.Tokens.from_cycles(equicore.cyclic(2), [swap], PAD + 1)
    fixed = equicore.Tokens.from_cycles(equicore.cyclic(2), [[]], START + 1)
    with pytest.raises(ValueError, match="moves words that stand for no action"):
        WordSymmetry("repeat", repeat, fixed)
    ends = equicore.Tokens.from_cycles(equicore.cyclic(2), [[[END, START]]], START + 1)
    still = equicore.Tokens.from_cycles(equicore.cyclic(2), [[]], PAD + 1)
    with pytest.raises(ValueError, match="moves END or START"):
        WordSymmetry("ends", still, ends)
