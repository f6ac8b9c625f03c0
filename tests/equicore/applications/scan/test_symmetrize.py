"""Exact equivariance of every method, and what each of them is, by definition."""

import copy

import pytest
import torch
from torch import nn

from equicore import Best, Mean, Symmetrized, Tree, WeightedMean, max_value
from equicore.applications.scan import InStep, by_branch, symmetry
from equicore.applications.scan import symmetrize as scores
from equicore.applications.scan.finetune import METHODS, Forced, tunable
from equicore.applications.scan.vocabulary import (
    END,
    START,
    decode_actions,
    encode_actions,
    encode_commands,
    shifted,
)
from equicore.applications.scan.weights import LastState, NextToken, Posterior
from equicore.applications.scan.zero_shot import answers

GROUPS = ["jump-run", "left-right", "verb-cycle", "all-verbs", "verb-cycle+left-right"]
COMMANDS = [
    "jump twice",
    "turn left",  # which exchanges of verbs leave as it is
    "run around left and walk",
    "look opposite right after turn left thrice",
    "walk and jump left after run",
]


def unfitted_weights(network):
    """Networks whose log-weights are not all 0, as they are before they are fitted."""
    weights = LastState(network).double(), NextToken(network).double()
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        for parameter in weight.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2
    return weights


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("group", GROUPS)
def test_exchanged_words_exchange_actions_in_every_method(trained, cell, group):
    network, words = trained[cell].double(), symmetry(group)
    # where a command has no direction, left and right tie: no choice between them is equivariant
    some = [c for c in COMMANDS if "+" not in group or "left" in c and not c.startswith("turn")]
    commands = encode_commands(some)
    methods = answers(network, words, *unfitted_weights(network))
    assert len(methods) == 11
    with torch.no_grad():
        for name, answer in methods.items():
            expected = answer(commands)
            for g in range(1, len(words.group), 1 + len(words.group) // 5):
                moved = answer(words.source.act(g, commands))
                assert torch.equal(moved, words.target.act(g, expected)), (name, g)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "reduce",
    [Mean(), Best(scores.mean_max_probability), Best(scores.log_probability)],
    ids=["equitune", "equizero", "likelihood"],
)
def test_probabilities_by_branch_are_equivariant(trained, group, reduce):
    network, words = trained["lstm"].double(), symmetry(group)
    commands = encode_commands(COMMANDS)
    model = by_branch(network, words, reduce)
    with torch.no_grad():
        expected = model(commands)["probabilities"]
        for g in range(len(words.group)):
            moved = model(words.source.act(g, commands))["probabilities"]
            torch.testing.assert_close(
                moved, words.next_token().act(g, expected), rtol=1e-12, atol=1e-12
            )


def test_plain_network_is_not_equivariant(trained):
    network, words = trained["lstm"], symmetry("jump-run")
    moved = network.write(words.source.act(1, encode_commands(COMMANDS))).argmax(-1)
    expected = words.target.act(1, network.write(encode_commands(COMMANDS)).argmax(-1))
    assert decode_actions(moved) != decode_actions(expected)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_fine_tuned_is_equivariant_and_has_gradients(trained, cell, method):
    network, words = copy.deepcopy(trained[cell]).double(), symmetry("verb-cycle")
    commands = encode_commands(COMMANDS)
    actions = encode_actions(["I_JUMP I_JUMP", "I_TURN_LEFT", "I_RUN", "I_LOOK", "I_WALK"])
    model, _ = tunable(method, network, words, unfitted_weights(network)[1])
    expected = model({"commands": commands, "before": shifted(actions)})["probabilities"]
    for g in range(4):
        moved = {
            "commands": words.source.act(g, commands),
            "before": words.target.act(g, shifted(actions)),
        }
        torch.testing.assert_close(
            model(moved)["probabilities"],
            words.next_token().act(g, expected),
            rtol=1e-12,
            atol=1e-12,
        )
    expected.log()[..., 0].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


class Constant(nn.Module):
    """Log-weights that are all the same."""

    def forward(self, seen):
        return seen["so_far"] * 0


@pytest.mark.parametrize("group", ["jump-run", "verb-cycle"])
def test_next_tokens_in_step_are_those_of_symmetrized(trained, group):
    """Of the model that maps a command and the tokens before to the next token."""
    network, words = trained["gru"].double(), symmetry(group)
    batch = {
        "commands": encode_commands(COMMANDS[:3]),
        "before": shifted(encode_actions(["I_JUMP I_RUN", "I_TURN_LEFT I_LOOK I_WALK", "I_RUN"])),
    }
    inputs = Tree({"commands": words.source, "before": words.target})
    expected = Symmetrized(
        lambda b: network(b["commands"], b["before"]).exp(), inputs, words.next_token(), Mean()
    )
    for reduce in (Mean(), WeightedMean(Constant())):
        in_step = InStep(network, words, reduce)
        torch.testing.assert_close(in_step(batch)["probabilities"], expected(batch))


@pytest.mark.parametrize(
    "reduce",
    [Mean(), Best(max_value), WeightedMean(Posterior())],
    ids=["mean", "best", "posterior"],
)
def test_what_is_written_in_step_is_the_most_likely_next_token(trained, reduce):
    """The states that are kept are those of the tokens that were written."""
    network, words = trained["lstm"].double(), symmetry("verb-cycle")
    in_step = InStep(network, words, reduce)
    commands = encode_commands(COMMANDS)
    with torch.no_grad():
        tokens = in_step.write(commands)
        forced = in_step({"commands": commands, "before": shifted(tokens)})["probabilities"]
    upto = (tokens == END).cumsum(1) <= 1
    assert torch.equal(forced.argmax(-1)[upto], tokens[upto])


def test_posterior_by_hand(trained):
    """Bayes: each branch weighs as much as the probability that it gave to the tokens so far."""
    network, words = trained["gru"].double(), symmetry("jump-run")
    commands = encode_commands(["jump and run left"])
    before = torch.tensor([[START, 3, 2]])
    branches = [
        network(words.source.act(g, commands), words.target.act(g, before)).exp()[0]
        for g in range(2)
    ]
    likelihood = torch.stack(
        [branches[g][0, t0] * branches[g][1, t1] for g, (t0, t1) in enumerate([(3, 2), (2, 3)])]
    )
    weights = likelihood / likelihood.sum()
    last = words.next_token().align(torch.stack(branches)[:, None])[:, 0, 2]
    expected = weights[0] * last[0] + weights[1] * last[1]
    in_step = InStep(network, words, WeightedMean(Posterior()))
    found = in_step({"commands": commands, "before": before})["probabilities"][0, 2]
    torch.testing.assert_close(found, expected)


def written(*rows):
    """Most likely tokens with their probabilities; the rest is spread evenly."""
    steps = max(map(len, rows))
    probabilities = torch.zeros(1, len(rows), steps, END + 1, dtype=torch.double)
    real = torch.zeros(1, len(rows), steps, dtype=torch.double)
    for i, row in enumerate(rows):
        for t in range(steps):
            token, p = row[t] if t < len(row) else (END, 1.0)
            probabilities[0, i, t] = (1 - p) / END
            probabilities[0, i, t, token] = p
            real[0, i, t] = t < len(row)
    return {"probabilities": probabilities, "real": real}


def test_scores_by_hand():
    some = written([(0, 0.8), (END, 0.6)], [(0, 0.9), (1, 0.9), (END, 0.9)])
    close = torch.testing.assert_close
    double = torch.double
    close(scores.mean_max_probability(some), torch.tensor([[0.7, 0.9]], dtype=double))
    padded = torch.tensor([[1.4 + 48 / 8, 2.7 + 47 / 8]], dtype=double) / 50
    close(scores.padded_max_probability(some), padded)
    likelihood = torch.tensor([[0.8 * 0.6, 0.9**3]], dtype=double)
    close(scores.log_probability(some), likelihood.log())
    entropy = torch.special.entr(some["probabilities"]).sum(-1)
    expected = torch.stack([entropy[0, 0, :2].mean(), entropy[0, 1].mean()])[None]
    close(scores.negative_entropy(some), -expected)


def test_writer_ends(trained):
    """After the end there is nothing but the end, whatever the network would have written."""
    model = scores.Writer(trained["lstm"].double())
    out = model(encode_commands(COMMANDS))
    real = out["real"].bool()
    after = out["probabilities"][~real]
    assert len(after)
    assert torch.equal(after.argmax(-1), torch.full((len(after),), END))
    assert after.amax(-1).min() == 1
    alone = model(encode_commands(COMMANDS[:1]))
    length = alone["probabilities"].shape[1]
    torch.testing.assert_close(alone["probabilities"][0], out["probabilities"][0, :length])
    logarithms = out["log_probabilities"]
    torch.testing.assert_close(logarithms[real].exp(), out["probabilities"][real])
    assert logarithms[~real].abs().max() <= 1e-6
    assert (logarithms[~real].argmax(-1) == END).all()


def test_under_the_trivial_group_it_is_the_network(trained):
    network, commands = trained["gru"].double(), encode_commands(COMMANDS)
    plain = decode_actions(network.write(commands).argmax(-1))
    words = symmetry("none")
    assert decode_actions(InStep(network, words, Mean()).write(commands)) == plain
    branch = by_branch(network, words, Best(scores.mean_max_probability))
    assert decode_actions(branch(commands)["probabilities"].argmax(-1)) == plain


def test_forced_network_knows_which_tokens_are_real(trained):
    before = shifted(encode_actions(["I_JUMP", "I_RUN I_RUN"]))
    commands = encode_commands(["jump", "run twice"])
    out = Forced(trained["gru"].double())({"commands": commands, "before": before})
    assert out["real"].tolist() == [[1, 1, 0], [1, 1, 1]]
