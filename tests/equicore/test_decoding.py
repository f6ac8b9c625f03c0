"""Decoding in step, with a cache, is what a recomputation of the whole prefix gives."""

import pytest
import torch
from torch import nn

from equicore import (
    Best,
    Mean,
    Symmetrized,
    Tokens,
    Tree,
    Trivial,
    WeightedMean,
    confidence,
    cyclic,
    max_value,
)
from equicore.decoding import PerToken, write_in_step
from equicore.reduce import StraightThrough

WORDS, END = 13, 12
TOKENS = Tokens.from_cycles(cyclic(3), [[[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]], WORDS)
STILL = Tokens.from_cycles(cyclic(2), [[]], WORDS)
PROMPTS = torch.tensor([[0, 7, 3], [9, 2, 4]])


@pytest.fixture(scope="module")
def gpt2():
    """A model of Hugging Face with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=END,
        eos_token_id=END,
        tie_word_embeddings=False,  # with which it would repeat what it is given
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).double().eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:  # far from uniform
                nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def cached_step(model):
    """A step that gives the model only the new tokens."""
    lengths = []

    def step(ids, past):
        lengths.append(ids.shape[1])
        out = model(ids, past_key_values=past, use_cache=True, output_hidden_states=True)
        seen = {"hidden": out.hidden_states[-1][:, -1]}
        scores = out.logits[:, -1].log_softmax(-1)
        return {"log_probabilities": scores, **seen}, out.past_key_values

    return step, lengths


class Seen(nn.Module):
    """Log-weights by the hidden state and by how likely the tokens so far were."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.direction = torch.randn(16, generator=generator).double()

    def forward(self, seen):
        return seen["hidden"] @ self.direction + seen["so_far"]


REDUCERS = {
    "mean": Mean(),
    "best": Best(lambda seen: max_value(seen["probabilities"])),
    "weighted": WeightedMean(Seen(), of_outputs=True),
}


def recomputed(model, reduce, prompts, limit):
    """The same tokens by `Symmetrized` of the model without a cache, on the whole prefix."""

    def whole(ids):
        out = model(ids, use_cache=False, output_hidden_states=True)
        scores = out.logits.log_softmax(-1)
        start = prompts.shape[1]
        own = scores[:, start - 1 : -1].gather(-1, ids[:, start:, None]).squeeze(-1)
        return {
            "probabilities": scores[:, -1].exp(),
            "so_far": own.sum(1),
            "hidden": out.hidden_states[-1][:, -1],
        }

    same = Trivial(TOKENS.group)
    parts = Tree({"probabilities": TOKENS.logits(), "so_far": same, "hidden": same})
    symmetrized = Symmetrized(whole, TOKENS, parts, reduce)
    ids = prompts
    for _ in range(limit):
        token = symmetrized(ids)["probabilities"].argmax(-1)
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids[:, prompts.shape[1] :]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1, :1]], ids=["two", "one token of one"])
@pytest.mark.parametrize("reduce", REDUCERS.values(), ids=REDUCERS)
def test_cache_gives_what_the_whole_prefix_gives(gpt2, reduce, prompts):
    step, lengths = cached_step(gpt2)
    written = write_in_step(step, TOKENS, reduce, prompts, limit=8, seen=("hidden",))
    assert lengths == [prompts.shape[1], *[1] * 7]
    assert torch.equal(written, recomputed(gpt2, reduce, prompts, 8))


@pytest.mark.parametrize("reduce", REDUCERS.values(), ids=REDUCERS)
def test_probabilities_and_tokens_are_equivariant(gpt2, reduce):
    def write(prompts):
        probabilities = []

        def choose(p):
            probabilities.append(p)
            return p.argmax(-1)

        step, _ = cached_step(gpt2)
        options = {"limit": 6, "seen": ("hidden",), "choose": choose}
        tokens = write_in_step(step, TOKENS, reduce, prompts, **options)
        return tokens, torch.stack(probabilities, dim=1)

    tokens, probabilities = write(PROMPTS)
    assert len(tokens.unique()) > 2
    for g in range(3):
        moved, theirs = write(TOKENS.act(g, PROMPTS))
        assert torch.equal(moved, TOKENS.act(g, tokens))
        expected = TOKENS.logits().act(g, probabilities)
        torch.testing.assert_close(theirs, expected, rtol=1e-12, atol=1e-12)


def test_branches_differ(gpt2):
    """Otherwise nothing would have been tested."""
    plain = gpt2(PROMPTS).logits
    moved = gpt2(TOKENS.act(1, PROMPTS)).logits
    assert not torch.allclose(moved, TOKENS.logits().act(1, plain), atol=0.1)


def scripted(*outputs):
    """A step that writes given tokens, whatever it is given, and counts how often."""
    calls = []

    def step(ids, state):
        calls.append(ids)
        likely = torch.full((len(ids), WORDS), -9.0)
        for row, output in enumerate(outputs):
            likely[row :: len(outputs), output[len(calls) - 1]] = 0.0
        return {"log_probabilities": likely.log_softmax(-1)}, state

    return step, calls


def test_writing_stops_when_all_outputs_have_ended():
    step, calls = scripted([7, END, 8, 8], [8, 8, END, 7])
    written = write_in_step(step, STILL, Mean(), torch.tensor([[6], [6]]), limit=4, end=END)
    assert written.tolist() == [[7, END, 8], [8, 8, END]]
    assert len(calls) == 3


def test_a_limit_of_nothing_writes_nothing():
    step, calls = scripted([7, 8], [7, 7])
    written = write_in_step(step, STILL, Mean(), torch.tensor([[6], [6]]), limit=0)
    assert written.shape == (2, 0) and not calls


def test_writing_stops_at_the_limit():
    for end in (None, END):
        step, calls = scripted([7, 8, END, 9], [7, 7, 7, 7])
        written = write_in_step(step, STILL, Mean(), torch.tensor([[6], [6]]), limit=2, end=end)
        assert written.tolist() == [[7, 8], [7, 7]]
        assert len(calls) == 2


def test_next_token_may_have_fewer_words_than_the_ids():
    fewer = Tokens(TOKENS.group, TOKENS.permutations[:, :6])
    likely = torch.arange(6.0).log_softmax(-1)

    def step(ids, state):
        return {"log_probabilities": likely.expand(len(ids), 6)}, state

    first = torch.tensor([[END]])
    options = {"limit": 1, "next_token": fewer.logits()}
    (token,) = write_in_step(step, TOKENS, Mean(), first, **options).flatten().tolist()
    aligned = fewer.logits().align(likely.exp().expand(3, 1, 6)).mean(0)
    assert token == aligned.argmax()


class Scores(nn.Module):
    """Log-probabilities (N, T, words) of ids (N, T), which no permutation leaves alone."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.table = nn.Embedding(WORDS, WORDS).double()

    def forward(self, ids):
        return self.table(ids).cumsum(1).log_softmax(-1)


class First(nn.Module):
    """Log-weights by the first word's score."""

    def forward(self, scores):
        return 3 * scores[..., 0]


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize(
    "reduce",
    [
        Mean(),
        Best(confidence),
        WeightedMean(First(), of_outputs=True),
        StraightThrough(Best(confidence), Mean()),
    ],
    ids=lambda reduce: type(reduce).__name__,
)
def test_each_token_is_reduced_alone(reduce, chunk):
    model, ids = Scores(), torch.randint(WORDS, (4, 5), generator=torch.Generator().manual_seed(3))
    together = Symmetrized(model, TOKENS, TOKENS.logits(), PerToken(reduce), chunk=chunk)
    outputs = together(ids)
    assert outputs.shape == (4, 5, WORDS)
    outputs[..., 0].square().sum().backward()
    gradient, model.table.weight.grad = model.table.weight.grad, None
    for token in range(5):
        alone = Symmetrized(lambda x, t=token: model(x)[:, t], TOKENS, TOKENS.logits(), reduce)
        expected = alone(ids)
        torch.testing.assert_close(outputs[:, token], expected, rtol=1e-12, atol=1e-12)
        expected[..., 0].square().sum().backward()
    torch.testing.assert_close(gradient, model.table.weight.grad, rtol=1e-10, atol=1e-12)


def test_each_token_of_a_tree():
    model = Scores()
    same = Trivial(TOKENS.group)
    outputs = Tree({"scores": TOKENS.logits(), "sure": same})

    def both(ids):
        scores = model(ids)
        return {"scores": scores, "sure": scores.amax(-1)}

    best = PerToken(Best(lambda seen: seen["sure"]))
    symmetrized = Symmetrized(both, TOKENS, outputs, best)
    found, stack = symmetrized(PROMPTS), symmetrized.aligned(PROMPTS)
    places = stack["sure"].argmax(0)
    expected = stack["scores"].gather(0, places[None, ..., None].expand(1, 2, 3, WORDS))[0]
    torch.testing.assert_close(found["scores"], expected)
    torch.testing.assert_close(found["sure"], stack["sure"].amax(0))


@pytest.mark.parametrize(
    ("reduce", "what"),
    [
        (WeightedMean(First()), "inputs"),
        (WeightedMean(First(), features="table"), "features"),
        (WeightedMean(First(), score=lambda y: y.amax(-1)), "inputs, outputs"),
    ],
)
def test_weights_of_a_whole_sequence_are_none_of_a_token(reduce, what):
    with pytest.raises(ValueError, match=f"WeightedMean weighs by {what} of a whole sequence"):
        PerToken(reduce)
