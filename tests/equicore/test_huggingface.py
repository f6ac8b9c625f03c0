"""Models of transformers: keywords in, the model's own output class out. Nothing is downloaded."""

import copy

import pytest
import torch
from torch import nn

from equicore import (
    Permutation,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    confidence,
    cyclic,
    equitune,
    equivariance_error,
    equizero,
    image_rotations,
    lambda_equitune,
    symmetric,
)

transformers = pytest.importorskip("transformers")

METHODS = ["equitune", "equizero", "lambda_equitune", "features"]

# S3 on six words in two groups of three ("he", "she", "they"; "his", "her", "their"), of 12
TOKENS = Tokens.from_cycles(symmetric(3), [[[2, 3], [7, 8]], [[2, 3, 4], [7, 8, 9]]], size=12)
TEXT = Tree({"input_ids": TOKENS, "attention_mask": Trivial(TOKENS.group)})
LOGITS = Tree({"logits": TOKENS.logits()})
TURNS = image_rotations()
PIXELS = Tree({"pixel_values": TURNS})
CORNERS = Permutation.from_generators(TURNS.group, [[1, 2, 3, 0]])
CLASSES = Tree({"logits": CORNERS})


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def score(y):
    return confidence.along(-1)(y.logits) if y.logits.ndim == 4 else confidence(y.logits)


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12,
        n_positions=8,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=4,
        initializer_range=0.5,
    )
    return transformers.ViTForImageClassification(config).double().eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        num_labels=4,
    )
    return transformers.ResNetForImageClassification(config).double().eval()


def text():
    """Each with words that only the identity leaves as they are, so that no scores tie."""
    ids = torch.randint(12, (3, 6))
    ids[:, :2] = torch.tensor([2, 8])
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def pixels(size=8):
    return {"pixel_values": torch.randn(3, 1, size, size, dtype=torch.float64)}


class OfText(nn.Module):
    """Log-weights of a tree of ids and mask."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 1)

    def forward(self, batch):
        found = self.embedding(batch["input_ids"]).squeeze(-1) * batch["attention_mask"]
        return (found * torch.arange(1, found.shape[1] + 1)).sum(1)


class OfStates(nn.Module):
    """Log-weights of hidden states (N, T, 16)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 1)

    def forward(self, states):
        return self.layer(states.mean(1))


class OfImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 1)

    def forward(self, batch):
        return self.layer(batch["pixel_values"].flatten(1))


class OfFeatures(nn.Module):
    """Log-weights of feature maps (N, 8, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, maps):
        return self.layer(maps.flatten(1))


def symmetrized(method, model, input_rep, output_rep, of_inputs, of_features, features, **options):
    if method == "equitune":
        return equitune(model, input_rep, output_rep, **options)
    if method == "equizero":
        return equizero(model, input_rep, output_rep, score, **options)
    if method == "features":
        weight = of_features().double()
        return lambda_equitune(model, input_rep, output_rep, weight, features, **options)
    return lambda_equitune(model, input_rep, output_rep, of_inputs().double(), **options)


def by_hand(method, f, batch, logits_rep, features):
    """Logits by definition; ``features`` gives what the weight network sees."""
    group = logits_rep.group
    moved = [f.input_rep.act(g, batch) for g in range(len(group))]
    raw = [f.model(**m).logits for m in moved]
    aligned = torch.stack([logits_rep.act(group.inverse(g), y) for g, y in enumerate(raw)])
    if method == "equitune":
        return aligned.mean(0)
    if method == "equizero":
        best = torch.cat([confidence.along(-1)(y.unsqueeze(0)) for y in raw]).argmax(0)
        return aligned[best, torch.arange(len(best))]
    seen = [features(m) for m in moved] if method == "features" else moved
    weights = torch.stack([f.reduce.weight(s).flatten() for s in seen]).softmax(0)
    return torch.einsum("gb,gb...->b...", weights, aligned)


def check(method, f, batch, input_rep, output_rep, logits_rep, features):
    """The output is the model's own class with the definition's logits, and equivariant."""
    output = f(**batch)
    assert type(output) is type(f.model(**batch))
    assert output.loss is None and list(output) == ["logits"]
    assert output["logits"] is output.logits is output[0]
    close(output.logits, by_hand(method, f, batch, logits_rep, features))
    assert_equivariant(lambda b: f(**b), input_rep, output_rep, batch, 1e-10)
    error = equivariance_error(lambda b: f.model(**b), input_rep, output_rep, batch)
    assert float(error.relative.amax()) > 0.05


@pytest.mark.parametrize(
    "method, chunk",
    [("equitune", 4), ("equizero", None), ("lambda_equitune", None), ("features", 4)],
)
def test_causal_language_model(method, chunk, gpt2):
    f = symmetrized(method, gpt2, TEXT, LOGITS, OfText, OfStates, "transformer.ln_f", chunk=chunk)

    def states(batch):
        return gpt2.transformer(**batch).last_hidden_state

    check(method, f, text(), TEXT, LOGITS, TOKENS.logits(), states)


@pytest.mark.parametrize("method", METHODS)
def test_vision_transformer(method, vit):
    f = symmetrized(method, vit, PIXELS, CLASSES, OfImages, OfStates, "vit.layernorm")

    def states(batch):
        return vit.vit(**batch).last_hidden_state

    check(method, f, pixels(), PIXELS, CLASSES, CORNERS, states)


@pytest.mark.parametrize("method", METHODS)
def test_residual_network(method, resnet):
    f = symmetrized(method, resnet, PIXELS, CLASSES, OfImages, OfFeatures, "resnet.pooler")

    def pooled(batch):
        return resnet.resnet(**batch).pooler_output

    check(method, f, pixels(), PIXELS, CLASSES, CORNERS, pooled)


def test_texts_that_some_elements_leave_as_they_are(gpt2):
    f = equizero(gpt2, TEXT, LOGITS, score)
    ids = torch.tensor([[0, 1, 5, 6, 10, 11], [0, 2, 7, 1, 2, 0], [2, 3, 4, 7, 8, 9]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert_equivariant(lambda b: f(**b), TEXT, LOGITS, batch, 1e-10)
    raw = gpt2(**batch).logits[0]  # every element scores alike: the mean of all
    expected = torch.stack([TOKENS.logits().act(g, raw) for g in range(6)]).mean(0)
    close(f(**batch).logits[0], expected)


def test_other_keywords_reach_the_model(gpt2):
    f = equizero(gpt2, TEXT, LOGITS, score)
    batch = text()
    output = f(**batch, output_hidden_states=True, use_cache=False)
    close(output.logits, f(**batch).logits)
    assert output.hidden_states is None  # no representation is given for them
    states = [TOKENS.logits(), *[Trivial(TOKENS.group)] * 3]
    whole = Tree({"logits": states[0], "hidden_states": states[1:]})
    hidden = equitune(gpt2, TEXT, whole)(**batch, output_hidden_states=True).hidden_states
    raw = [gpt2(**TEXT.act(g, batch), output_hidden_states=True).hidden_states for g in range(6)]
    assert isinstance(hidden, tuple) and len(hidden) == 3
    for i in range(3):
        close(hidden[i], torch.stack([r[i] for r in raw]).mean(0))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_cache_that_the_model_fills_is_refused_in_chunks(gpt2, gradients):
    batch = text()
    with torch.set_grad_enabled(gradients):
        expected = equitune(gpt2, TEXT, LOGITS)(**batch).logits
        whole = equitune(gpt2, TEXT, LOGITS)(**batch, past_key_values=transformers.DynamicCache())
        close(whole.logits, expected)
        f = equitune(gpt2, TEXT, LOGITS, chunk=2)
        with pytest.raises(ValueError, match=r"changes an argument .* past_key_values\.layers"):
            f(**batch, past_key_values=transformers.DynamicCache())
        close(f(**batch, use_cache=True).logits, expected)


def test_positional_ids_and_a_mask_that_may_be_absent(gpt2):
    batch = text()
    f = equitune(gpt2, TEXT, LOGITS)
    close(f(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, f(**batch).logits)
    only = equitune(gpt2, Tree({"input_ids": TOKENS}), LOGITS)
    close(f(batch["input_ids"]).logits, only(input_ids=batch["input_ids"]).logits)
    named = equizero(gpt2, TEXT, LOGITS, confidence.of("logits").along(-1))
    close(named(**batch).logits, equizero(gpt2, TEXT, LOGITS, score)(**batch).logits)


def test_tuples_instead_of_model_outputs(gpt2):
    batch = text()
    f = equitune(gpt2, TEXT, Tree([TOKENS.logits()]))
    (logits,) = f(**batch, return_dict=False)
    close(logits, equitune(gpt2, TEXT, LOGITS)(**batch).logits)


def test_the_first_argument_instead_of_a_keyword(gpt2):
    ids = text()["input_ids"]
    f = equizero(gpt2, TOKENS, LOGITS, score)
    close(
        f(ids).logits, by_hand("equizero", _keyword(f), {"input_ids": ids}, TOKENS.logits(), None)
    )
    assert_equivariant(f, TOKENS, LOGITS, ids, 1e-10)


def _keyword(f):
    return equizero(f.model, Tree({"input_ids": TOKENS}), LOGITS, score)


def test_fine_tuning_changes_what_is_saved(gpt2, tmp_path):
    """save_pretrained of the inner model, from_pretrained inside another symmetrized one."""
    model = copy.deepcopy(gpt2)
    f = equitune(model, TEXT, LOGITS).train()
    batch = text()
    optimizer = torch.optim.SGD(f.parameters(), lr=0.1)
    logits = f(**batch).logits
    nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    ).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    f.eval()
    assert not torch.allclose(f(**batch).logits, equitune(gpt2, TEXT, LOGITS)(**batch).logits)
    f.model.save_pretrained(tmp_path / "tuned")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "tuned", dtype=torch.float64
    )
    assert torch.equal(equitune(again, TEXT, LOGITS)(**batch).logits, f(**batch).logits)
    other = equitune(copy.deepcopy(gpt2), TEXT, LOGITS)
    other.load_state_dict(f.state_dict())
    assert torch.equal(other(**batch).logits, f(**batch).logits)
    assert_equivariant(lambda b: f(**b), TEXT, LOGITS, batch, 1e-10)


def test_training_mode_of_a_model_with_checkpoints_of_its_own(gpt2):
    """Chunks are checkpointed around the model's own checkpoints."""
    gradients = []
    batch = text()
    for options in ({}, {"chunk": 4}):
        model = copy.deepcopy(gpt2)
        model.activation_checkpointing_enable()
        f = equitune(model, TEXT, LOGITS, **options)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        f(**batch, use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["equitune", "equizero"])
def test_language_model_in_a_graph(method, gpt2):
    f = symmetrized(method, gpt2, TEXT, LOGITS, None, None, None)
    batch = text()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(**batch, use_cache=False).logits, f(**batch).logits)
    torch.compiler.reset()


def test_cyclic_words():
    """Another group: days of the week, of which the model knows only the order of ids."""
    days = Tokens.from_cycles(cyclic(7), [[list(range(1, 8))]], size=9)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1, initializer_range=0.5
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    f = equizero(model, Tree({"input_ids": days}), Tree({"logits": days.logits()}), score)
    batch = {"input_ids": torch.tensor([[0, 1, 2, 3], [8, 4, 6, 1]])}
    next_day = f(**batch).logits[:, -1].argmax(-1)
    tomorrow = f(input_ids=days.act(1, batch["input_ids"])).logits[:, -1].argmax(-1)
    assert torch.equal(days.act(1, next_day), tomorrow)
