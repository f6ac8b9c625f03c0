"""What is measured without further training."""

from unittest import mock

import pandas as pd
import pytest
import torch

from equicore.applications import scan
from equicore.applications.scan import Seq2Seq, encode_actions, encode_commands, symmetry
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.symmetrize import BranchWeight
from equicore.applications.scan.vocabulary import shifted
from equicore.applications.scan.zero_shot import (
    SCORES,
    accuracies,
    answers,
    ceiling,
    measure,
    plain,
    token_oracle,
)


@pytest.mark.parametrize(
    ("split", "group", "expected"),
    [
        ("add_jump", "none", 0.0),
        ("add_jump", "jump-run", 1 - 1764 / 7706),
        ("add_jump", "verb-cycle", 1.0),
        ("around_right", "left-right", 1 - 720 / 4476),
    ],
)
def test_ceilings(split, group, expected):
    assert ceiling(*scan.load_split(split), symmetry(group)) == pytest.approx(expected)


def test_accuracies_by_hand():
    pairs = [("jump", "I_JUMP"), ("run", "I_RUN"), ("walk", "I_WALK"), ("look", "I_LOOK")]
    right = encode_actions([actions for _, actions in pairs])
    wrong = encode_actions(["I_JUMP", "I_JUMP", "I_WALK", "I_LOOK I_LOOK"])

    def answer(tokens):
        known = encode_commands([command for command, _ in pairs])
        return lambda ids: tokens[[known.tolist().index(row) for row in ids.tolist()]]

    found = accuracies({"right": answer(right), "wrong": answer(wrong)}, pairs, batch_size=3)
    assert found == {"right": 1.0, "wrong": 0.5}


@pytest.mark.parametrize("group", ["jump-run", "verb-cycle"])
def test_token_oracle_by_hand(trained, pairs, group):
    network, words = trained("gru"), symmetry(group)
    some = [tuple(t.replace("run", "jump").replace("RUN", "JUMP") for t in p) for p in pairs[:30]]
    right = 0
    for command, actions in some:
        ids, tokens = encode_commands([command]), encode_actions([actions])
        known = torch.zeros(tokens.shape, dtype=torch.bool)
        for g in range(len(words.group)):
            view, output = words.source.act(g, ids), words.target.act(g, tokens)
            known |= network(view, shifted(output)).argmax(-1) == output
        right += known.all().item()
    found = token_oracle(network, words, some, batch_size=7)
    assert found == right / len(some)
    assert token_oracle(network, symmetry("none"), some) <= found


def test_several_reducers_cost_one(trained):
    """Outputs of the branches are remembered, but only for the same commands."""
    network, words = trained("gru"), symmetry("jump-run")
    methods = answers(network, words, *(BranchWeight(network, e) for e in ("last", "features")))
    shared = ["equitune", "equitune_log", *SCORES]
    with mock.patch.object(Seq2Seq, "write", autospec=True, side_effect=Seq2Seq.write) as write:
        for number, command in enumerate(["jump twice", "walk left"], start=1):
            for name in shared:
                methods[name](encode_commands([command]))
            assert write.call_count == number


def test_measured_once(small_scan, tmp_path, monkeypatch):
    run = Run(tmp_path, "add_jump", "gru", 0, epochs=1, fit_steps=2)
    table = measure(run, "none")
    assert run.file.is_file()
    monkeypatch.setattr(Run, "network", lambda run: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(measure(run, "none"), table)
    with pytest.raises(FileExistsError, match="was made with fit_steps 2, not 3"):
        measure(Run(tmp_path, "add_jump", "gru", 0, epochs=1, fit_steps=3), "none")


def test_measured_accuracy_is_that_of_the_network(small_scan, tmp_path):
    run = Run(tmp_path, "around_right", "rnn", 3, epochs=1)
    table = measure(run, "none").set_index("part").accuracy
    parts = run.parts()
    for part in ("validation", "test"):
        expected = accuracies({"plain": plain(run.network())}, parts[part])["plain"]
        assert table[part] == pytest.approx(expected)
