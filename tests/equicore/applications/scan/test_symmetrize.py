"""Exact equivariance of every method, and what each of them is, by definition."""

import copy

import pytest
import torch

from equicore import Best, Mean, Symmetrized, Tree, WeightedMean, max_value
from equicore.applications.scan import (
    InStep,
    by_branch,
    decode_actions,
    encode_actions,
    encode_commands,
    fit_per_command,
    fit_per_token,
    symmetrize,
    symmetry,
)
from equicore.applications.scan.finetune import METHODS, tunable
from equicore.applications.scan.symmetrize import BranchWeight, Forced, Posterior, Writer
from equicore.applications.scan.vocabulary import END, START, Batches, shifted
from equicore.applications.scan.zero_shot import answers

COMMANDS = [
    "jump twice",
    "turn left",  # which exchanges of verbs leave as it is
    "run around left and walk",
    "look opposite right after turn left thrice",
    "walk and jump left after run",
]
ACTIONS = ["I_JUMP I_JUMP", "I_TURN_LEFT", "I_RUN", "I_LOOK I_RUN", "I_WALK"]


def unfitted_weights(network):
    """Networks whose log-weights are not all 0, as they are before they are fitted."""
    weights = [BranchWeight(network, entry).double() for entry in ("last", "features")]
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        for parameter in weight.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2
    return weights


@pytest.mark.parametrize(
    ("cell", "group"),
    [("rnn", "jump-run"), ("gru", "left-right"), ("lstm", "verb-cycle+left-right")],
)
def test_exchanged_words_exchange_actions_in_every_method(trained, cell, group):
    network, words = trained(cell), symmetry(group)
    commands = encode_commands(COMMANDS)
    # where an element leaves a command as it is, words tie: no choice between them is equivariant
    commands = commands[(words.source.orbit(commands)[1:] != commands).any(-1).all(0)]
    methods = answers(network, words, *unfitted_weights(network))
    assert len(methods) == 11
    g = len(words.group) - 1
    with torch.no_grad():
        for name, answer in methods.items():
            expected = words.target.act(g, answer(commands))
            assert torch.equal(answer(words.source.act(g, commands)), expected), name


@pytest.mark.parametrize(
    "reduce",
    [Mean(), Best(symmetrize.mean_max_probability), Best(symmetrize.log_probability)],
    ids=["equitune", "equizero", "likelihood"],
)
def test_probabilities_by_branch_are_equivariant(trained, reduce):
    words = symmetry("verb-cycle")
    commands = encode_commands(COMMANDS)
    model = by_branch(trained("lstm"), words, reduce)
    with torch.no_grad():
        expected = words.next_token().orbit(model(commands)["probabilities"])
        for g in range(len(words.group)):
            moved = model(words.source.act(g, commands))["probabilities"]
            torch.testing.assert_close(moved, expected[g], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "cell"), [("equitune", "rnn"), ("equizero", "gru"), ("lambda_token", "lstm")]
)
def test_what_is_fine_tuned_is_equivariant_and_has_gradients(trained, method, cell):
    assert {"equitune", "equizero", "lambda_token"} == set(METHODS)
    network, words = copy.deepcopy(trained(cell)), symmetry("verb-cycle")
    model, _ = tunable(method, network, words, unfitted_weights(network)[1])
    batch = {"commands": encode_commands(COMMANDS), "before": shifted(encode_actions(ACTIONS))}
    expected = words.next_token().orbit(model(batch)["probabilities"])
    inputs = Tree({"commands": words.source, "before": words.target})
    for g in range(4):
        moved = model(inputs.act(g, batch))["probabilities"]
        torch.testing.assert_close(moved, expected[g], rtol=1e-12, atol=1e-12)
    expected[0].log()[..., 0].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_next_tokens_in_step_are_those_of_symmetrized(trained):
    """Of the model that maps a command and the tokens before to the next token."""
    network, words = trained("gru"), symmetry("verb-cycle")
    batch = {"commands": encode_commands(COMMANDS), "before": shifted(encode_actions(ACTIONS))}
    inputs = Tree({"commands": words.source, "before": words.target})
    expected = Symmetrized(lambda b: network(**b).exp(), inputs, words.next_token(), Mean())(batch)
    written = InStep(network, words, Mean())(batch)
    torch.testing.assert_close(written["probabilities"], expected)
    torch.testing.assert_close(written["log_probabilities"], expected.log())


@pytest.mark.parametrize(
    "reduce",
    [
        Mean(),
        Best(lambda seen: max_value(seen["probabilities"])),
        WeightedMean(Posterior(), of_outputs=True),
    ],
    ids=["mean", "best", "posterior"],
)
def test_what_is_written_in_step_is_the_most_likely_next_token(trained, reduce):
    """The states that are kept are those of the tokens that were written."""
    in_step = InStep(trained("lstm"), symmetry("verb-cycle"), reduce)
    commands = encode_commands(COMMANDS)
    with torch.no_grad():
        tokens = in_step.write(commands)
        forced = in_step({"commands": commands, "before": shifted(tokens)})["probabilities"]
    upto = (tokens == END).cumsum(1) <= 1
    assert torch.equal(forced.argmax(-1)[upto], tokens[upto])
    assert torch.equal(in_step.write(commands, limit=2), tokens[:, :2])


def test_weights_in_step_do_not_see_inputs(trained):
    with pytest.raises(ValueError, match="for each token, its scores must look at outputs"):
        InStep(trained("gru"), symmetry("jump-run"), WeightedMean(Posterior()))


def test_posterior_by_hand(trained):
    """Bayes: each branch weighs as much as the probability that it gave to the tokens so far."""
    network, words = trained("gru"), symmetry("jump-run")
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
    in_step = InStep(network, words, WeightedMean(Posterior(), of_outputs=True))
    found = in_step({"commands": commands, "before": before})["probabilities"][0, 2]
    torch.testing.assert_close(found, expected)


def test_posterior_has_the_prior(trained):
    prior = BranchWeight(trained("gru"), "last").double()
    seen = {"last": torch.randn(3, 16).double(), "so_far": torch.randn(3).double()}
    assert torch.equal(Posterior()(seen), seen["so_far"])
    assert torch.equal(Posterior(prior)(seen), seen["so_far"] + prior(seen))


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
    entropy = torch.special.entr(some["probabilities"]).sum(-1)
    for score, expected in (
        (symmetrize.mean_max_probability, [0.7, 0.9]),
        (symmetrize.padded_max_probability, [(1.4 + 48 / 8) / 50, (2.7 + 47 / 8) / 50]),
        (symmetrize.log_probability, torch.tensor([0.8 * 0.6, 0.9**3]).log().tolist()),
        (
            symmetrize.negative_entropy,
            [-float(e.mean()) for e in (entropy[0, 0, :2], entropy[0, 1])],
        ),
    ):
        torch.testing.assert_close(score(some).float(), torch.tensor([expected]))


def test_writer_ends(trained):
    """After the end there is nothing but the end, whatever the network would have written."""
    model = Writer(trained("lstm"))
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


def test_forced_network_by_hand(trained):
    network = trained("rnn")
    commands, actions = encode_commands(["run", "look"]), encode_actions(["I_RUN", "I_LOOK I_RUN"])
    out = Forced(network)({"commands": commands, "before": shifted(actions)})
    log_p = network(commands, shifted(actions))
    assert torch.equal(out["log_probabilities"], log_p)
    assert out["real"].tolist() == [[1, 1, 0], [1, 1, 1]]
    own = torch.stack([log_p[1, 0, 1], log_p[1, 1, 2], log_p[1, 2, END]])
    torch.testing.assert_close(out["so_far"][1, 1:], own[:2].cumsum(0))
    assert (out["so_far"][:, 0] == 0).all()
    likelihood = torch.stack([(log_p[0, 0, 2] + log_p[0, 1, END]).exp(), own.sum().exp()])
    torch.testing.assert_close(out["likelihood"], likelihood)


def test_under_the_trivial_group_it_is_the_network(trained):
    network, commands = trained("gru"), encode_commands(COMMANDS)
    plain = decode_actions(network.write(commands).argmax(-1))
    words = symmetry("none")
    assert decode_actions(InStep(network, words, Mean()).write(commands)) == plain
    branch = by_branch(network, words, Best(symmetrize.mean_max_probability))
    assert decode_actions(branch(commands)["probabilities"].argmax(-1)) == plain


@pytest.mark.parametrize("fit", [fit_per_command, fit_per_token])
def test_weights_learn_on_the_training_pairs_and_leave_the_network(trained, pairs, fit):
    """Of two branches the identity's is at home, as no pair holds "jump" but alone."""
    network, words = copy.deepcopy(trained("lstm")).float(), symmetry("jump-run")
    before = copy.deepcopy(network.state_dict())
    known = [pair for pair in pairs if "run" in pair[0]]
    options = {"steps": 30, "batch_size": 32, "progress": False, "seed": 1}
    weight = fit(network, words, known, **options)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    again = fit(network, words, known, **options)
    for one, two in zip(weight.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    inputs, _ = next(Batches(known, 100).epoch(0))
    forced = symmetrize.forced(network, words, Mean(), "features", "last")
    with torch.no_grad():
        seen = forced.aligned(inputs)
        log_weights = weight({name: seen[name].flatten(0, 2) for name in ("features", "last")})
    assert log_weights.view(2, -1).softmax(0)[0].mean() > 0.6
