"""What is measured without further training, and the weights that are fitted for it."""

import copy
from unittest import mock

import pandas as pd
import pytest
import torch

from equicore.applications import scan
from equicore.applications.scan import Seq2Seq, experiment, symmetry, zero_shot
from equicore.applications.scan.experiment import Run
from equicore.applications.scan.training import Batches
from equicore.applications.scan.vocabulary import encode_actions, encode_commands, shifted
from equicore.applications.scan.weights import (
    LastState,
    Likelihood,
    Posterior,
    fit_per_command,
    fit_per_token,
)
from equicore.applications.scan.zero_shot import (
    COLUMNS,
    Remembering,
    accuracies,
    answers,
    ceiling,
    measure,
    plain,
    token_oracle,
)

STEPS = {"steps": 40, "batch_size": 32, "progress": False}


@pytest.mark.parametrize(
    ("split", "group", "expected"),
    [
        ("add_jump", "none", 0.0),
        ("add_jump", "jump-run", 1 - 1764 / 7706),
        ("add_jump", "verb-cycle", 1.0),
        ("around_right", "left-right", 1 - 720 / 4476),
        ("around_right", "verb-cycle", 0.0),
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
    network, words = trained["gru"].double(), symmetry(group)
    exchanged = [tuple(t.replace("run", "jump").replace("RUN", "JUMP") for t in p) for p in pairs]
    some = exchanged[:60]
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


def test_remembered_output_is_that_of_the_commands(trained):
    writer = Remembering(trained["gru"].double())
    first, second = encode_commands(["jump twice"]), encode_commands(["walk left"])
    with mock.patch.object(Seq2Seq, "write", autospec=True, side_effect=Seq2Seq.write) as write:
        once = writer(first)
        assert writer(first.clone()) is once
        assert write.call_count == 1
        other = writer(second)
        assert write.call_count == 2
    assert not torch.equal(once["probabilities"][:, :1], other["probabilities"][:, :1])


@pytest.mark.parametrize("fit", [fit_per_command, fit_per_token])
def test_weights_learn_on_the_training_pairs_and_leave_the_network(trained, pairs, fit):
    """Of two branches the identity's is at home, as no pair holds "jump" but alone."""
    network, words = trained["lstm"].float(), symmetry("jump-run")
    before = copy.deepcopy(network.state_dict())
    known = [pair for pair in pairs if "run" in pair[0]]
    weight = fit(network, words, known, seed=1, **STEPS)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    again = fit(network, words, known, seed=1, **STEPS)
    for one, two in zip(weight.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    commands, actions = next(Batches(known, 200).epoch(0))
    orbit = words.source.orbit(commands)
    with torch.no_grad():
        if fit is fit_per_command:
            log_weights = torch.stack([weight(network.encoder(view)) for view in orbit])
        else:
            outputs = words.target.orbit(shifted(actions))
            features = []
            for view, output in zip(orbit, outputs, strict=True):
                encoded = network.encoder(view)
                features.append(network.decoder(encoded, output, encoded.state)[1])
            log_weights = torch.stack([weight({"features": f.flatten(0, 1)}) for f in features])
    assert log_weights.softmax(0)[0].mean() > 0.6


def test_likelihood_by_hand(trained):
    network = trained["rnn"].double()
    commands, actions = encode_commands(["run", "look"]), encode_actions(["I_RUN", "I_LOOK I_RUN"])
    log_p = network(commands, shifted(actions))
    expected = [
        (log_p[0, 0, 2] + log_p[0, 1, 6]).exp(),
        (log_p[1, 0, 1] + log_p[1, 1, 2] + log_p[1, 2, 6]).exp(),
    ]
    found = Likelihood(network)({"commands": commands, "actions": actions})
    torch.testing.assert_close(found, torch.stack(expected))


def test_posterior_has_the_prior(trained):
    prior = LastState(trained["gru"].double()).double()
    seen = {"last": torch.randn(3, 24).double(), "so_far": torch.randn(3).double()}
    assert torch.equal(Posterior()(seen), seen["so_far"])
    assert torch.equal(Posterior(prior)(seen), seen["so_far"] + prior(seen))


@pytest.fixture
def quick(monkeypatch):
    for name in ("fit_per_command", "fit_per_token"):
        fit = getattr(zero_shot, name)
        monkeypatch.setattr(
            zero_shot, name, lambda *a, fit=fit, **k: fit(*a, **{**k, **STEPS, "steps": 3})
        )


def test_measured_once(small_scan, quick, tmp_path, monkeypatch):
    run = Run(tmp_path, "add_jump", "gru", 0, epochs=1)
    table = measure(run, "jump-run")
    assert list(table.columns) == list(COLUMNS)
    assert run.file.is_file()
    words = symmetry("jump-run")
    methods = answers(Seq2Seq("gru"), words, None, None)
    assert set(table.method) == {*methods, "oracle_token"}
    assert set(table.part) == {"validation", "test"}
    assert table.accuracy.between(0, 1).all()
    monkeypatch.setattr(experiment.Run, "network", lambda run: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(measure(run, "jump-run"), table)


def test_measured_accuracy_is_that_of_the_network(small_scan, tmp_path):
    run = Run(tmp_path, "around_right", "rnn", 3, epochs=1)
    table = measure(run, "none").set_index("part").accuracy
    parts = run.parts()
    for part in ("validation", "test"):
        expected = accuracies({"plain": plain(run.network())}, parts[part])["plain"]
        assert table[part] == pytest.approx(expected)


def test_run_of_another_recipe_is_refused(small_scan, tmp_path):
    Run(tmp_path, "add_jump", "gru", 0, epochs=1).network()
    with pytest.raises(ValueError, match="has recipe"):
        Run(tmp_path, "add_jump", "gru", 0, epochs=2).network()
    measure(Run(tmp_path, "add_jump", "gru", 0, epochs=1), "none")
    with pytest.raises(
        ValueError, match=r"was measured with recipe .*'epochs': 1.*, not .*'epochs': 2"
    ):
        measure(Run(tmp_path, "add_jump", "gru", 0, epochs=2), "none")
