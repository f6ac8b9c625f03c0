import warnings

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, TextIteratorStreamer

from equicore import MLPWeight
from equicore.applications.text import (
    EquiLM,
    EquizeroLM,
    WholeText,
    WordGroup,
    fit_weight,
    load,
    perplexity,
    score,
)
from equicore.applications.text.language import encode
from equicore.applications.text.models import relaxed

CONTEXTS = ["The man was known for his", "The woman and he", "The driver met a man. He"]
TEXTS = [" work, and she", " worked", " was a man when she was young."]
THREE = ["The Black person", "The driver met a White person and an Asian", "An Asian person was"]
OPTIONS = [
    {},
    {"mean": "logits"},
    {"weight": MLPWeight({"features": (16,)}, (8,), seed=1).double()},
    {"weight": MLPWeight({"features": (16,)}, (8,), seed=1).double(), "mean": "logits"},
]
NEUTRAL = ["thief", "driver", "work", "was"]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def random_weight(weight):
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.copy_(torch.randn_like(parameter))


for one in OPTIONS:
    if "weight" in one:
        torch.manual_seed(3)
        random_weight(one["weight"])


def made(model, tokenizer, words, options):
    return EquiLM(model, tokenizer, words, **options)


def exchanged(words, g, contexts=CONTEXTS, texts=TEXTS):
    moved = [words.act(g, context) for context in contexts]
    return moved, [words.act(g, t, after=c) for c, t in zip(contexts, texts, strict=True)]


@pytest.mark.parametrize("options", OPTIONS, ids=["mean", "logits", "weight", "weight-logits"])
@torch.no_grad()
def test_exchanged_texts_are_equally_likely(options, model, tokenizer, pairs, races):
    for words, contexts in ((pairs, CONTEXTS), (races, THREE)):
        fair = made(model, tokenizer, words, options)
        likely = score(fair, tokenizer, contexts, TEXTS)
        plain = score(model, tokenizer, contexts, TEXTS)
        for g in range(1, len(words.group)):
            moved = exchanged(words, g, contexts)
            close(score(fair, tokenizer, *moved), likely)
            assert (score(model, tokenizer, *moved) - plain).abs().max() > 0.1


@torch.no_grad()
def test_probabilities_by_definition(model, tokenizer, pairs):
    batch = encode(tokenizer, CONTEXTS)
    for options in ({}, {"mean": "logits"}):
        fair = made(model, tokenizer, pairs, options)
        tokens = fair.tokens
        logits = [model(input_ids=tokens.act(g, batch["input_ids"]),
                        attention_mask=batch["attention_mask"]).logits for g in (0, 1)]  # fmt: skip
        there = [tokens.logits().act(g, y) for g, y in enumerate(logits)]
        if options:
            wanted = (sum(there) / 2).log_softmax(-1)
        else:
            wanted = (sum(y.softmax(-1) for y in there) / 2).log()
        close(fair(**batch).logits[:, -1], wanted[:, -1])


@torch.no_grad()
def test_what_a_relaxed_model_keeps(model, tokenizer, pairs, races):
    for words, contexts in ((pairs, CONTEXTS), (races, THREE)):
        fair = EquiLM(model, tokenizer, words, NEUTRAL)
        whole = EquiLM(model, tokenizer, words)
        special = (~fair.general).nonzero().squeeze(1)
        assert len(special) == len(set(fair.words.ids(NEUTRAL))) + int(
            (fair.tokens.permutations[1] != torch.arange(fair.tokens.size)).sum()
        )
        batch = encode(tokenizer, contexts)
        found = fair(**batch).logits[:, -1]
        plain = model(**batch).logits[:, -1].log_softmax(-1)
        close(found.exp().sum(-1), torch.ones(len(contexts), dtype=torch.float64))
        close(found[:, fair.general], plain[:, fair.general])
        close(found[:, special].log_softmax(-1),
              whole(**batch).logits[:, -1][:, special].log_softmax(-1))  # fmt: skip
        for g in range(1, len(words.group)):
            there = fair(**encode(tokenizer, [words.act(g, c) for c in contexts])).logits[:, -1]
            back = fair.tokens.logits().act(words.group.inverse(g), there)
            close(back[:, special].log_softmax(-1), found[:, special].log_softmax(-1))
            assert (back - found)[:, fair.general].abs().max() > 0.1


def test_relaxed_of_nothing_to_share():
    mean, plain = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    assert relaxed(mean, plain, torch.tensor([False, True])).tolist() == [[0.0, 1.0]]


@torch.no_grad()
def slowly(fair, tokenizer, context, steps):
    """Greedy, without a cache, a context at a time; stops at the EOS."""
    ids = encode(tokenizer, [context])["input_ids"]
    for _ in range(steps):
        token = fair(input_ids=ids).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, token[:, None]], 1)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("neutral", [None, NEUTRAL], ids=["all", "relaxed"])
def test_generate_with_padding_and_caches(neutral, model, tokenizer, pairs):
    fair = EquiLM(model, tokenizer, pairs, neutral)
    batch = encode(tokenizer, CONTEXTS)
    assert (batch["attention_mask"] == 0).any()
    ids = fair.generate(**batch, max_new_tokens=10, do_sample=False)
    wanted = [slowly(fair, tokenizer, context, 10) for context in CONTEXTS]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == wanted
    for context, text in zip(CONTEXTS, wanted, strict=True):  # alone, without padding
        one = fair.generate(**encode(tokenizer, [context]), max_new_tokens=10, do_sample=False)
        assert tokenizer.decode(one[0], skip_special_tokens=True) == text
    without = fair.generate(**batch, max_new_tokens=10, do_sample=False, use_cache=False)
    assert without.tolist() == ids.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": False, "min_new_tokens": 12},
    ],
    ids=["greedy", "beams", "several", "penalty", "long"],
)
def test_generate_is_equivariant(options, model, tokenizer, pairs, races):
    for words, contexts in ((pairs, CONTEXTS), (races, THREE)):
        fair = EquiLM(model, tokenizer, words)
        ids = fair.generate(**encode(tokenizer, contexts), max_new_tokens=12, **options)
        for g in range(1, len(words.group)):
            moved = encode(tokenizer, [words.act(g, c) for c in contexts])
            there = fair.generate(**moved, max_new_tokens=12, **options)
            assert there.tolist() == fair.tokens.act(g, ids).tolist()


def test_beams_are_those_of_a_slow_search(gpt2, tokenizer, pairs):
    """Beam search of the same width without a cache."""
    fair = EquiLM(gpt2, tokenizer, pairs)
    batch = encode(tokenizer, CONTEXTS)
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    fast = fair.generate(**batch, **options)
    assert fast.tolist() == fair.generate(**batch, **options, use_cache=False).tolist()


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_warped_probabilities_are_equivariant(options, gpt2, tokenizer, pairs):
    """Drawn from what `generate` reports, so no random numbers need to be exchanged."""
    fair = EquiLM(gpt2, tokenizer, pairs)
    scores = []
    for g in (0, 1):
        torch.manual_seed(0)
        batch = encode(tokenizer, [pairs.act(g, c) for c in CONTEXTS])
        scores.append(fair.generate(
            **batch, max_new_tokens=1, do_sample=True, output_scores=True,
            return_dict_in_generate=True, **options,
        ).scores[0])  # fmt: skip
    torch.testing.assert_close(fair.tokens.logits().act(1, scores[0]), scores[1])


def test_streaming_and_stop_tokens(gpt2, tokenizer, pairs):
    fair = EquiLM(gpt2, tokenizer, pairs)
    batch = encode(tokenizer, CONTEXTS[:1])
    whole = fair.generate(**batch, max_new_tokens=10, do_sample=False)
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    fair.generate(**batch, max_new_tokens=10, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(whole[0], skip_special_tokens=True)
    stop = int(whole[0, -4])
    short = fair.generate(**batch, max_new_tokens=10, do_sample=False, eos_token_id=stop)
    first = whole[0].tolist().index(stop, batch["input_ids"].shape[1])
    assert short[0].tolist() == whole[0, : first + 1].tolist()


def test_a_pipeline_of_hugging_face(gpt2, tokenizer, pairs, recwarn):
    from transformers import pipeline

    fair = EquiLM(gpt2, tokenizer, pairs)
    write = pipeline("text-generation", model=fair, tokenizer=tokenizer)
    options = {"max_new_tokens": 5, "do_sample": False, "return_tensors": True}
    for context in CONTEXTS:
        ids, other = (
            torch.tensor(write(c, **options)[0]["generated_token_ids"])
            for c in (context, pairs.act(1, context))
        )
        assert fair.tokens.act(1, ids).tolist() == other.tolist()


def test_it_is_one_module_and_can_be_fine_tuned(gpt2, tokenizer, pairs):
    import copy

    model = copy.deepcopy(gpt2).float()
    fair = EquiLM(model, tokenizer, pairs)
    ids = encode(tokenizer, TEXTS[:1])["input_ids"]
    output = fair(input_ids=ids, labels=ids)
    likely = -score(fair, tokenizer, [""], TEXTS[:1])[0] / (ids.shape[1] - 1)
    torch.testing.assert_close(output.loss, likely)
    output.loss.backward()
    assert model.transformer.wte.weight.grad.abs().sum() > 0
    assert fair.get_input_embeddings() is model.transformer.wte
    assert torch.equal(fair(input_ids=ids, return_dict=False)[0], output.logits)
    few = fair(input_ids=ids, labels=ids, num_items_in_batch=2 * (ids.shape[1] - 1)).loss
    torch.testing.assert_close(few, output.loss / 2)
    for ignored in ("output_hidden_states", "nonsense", "token_type_ids"):
        with pytest.raises(TypeError, match=f"takes no {ignored}"):
            fair(input_ids=ids, **{ignored: torch.ones_like(ids)})
    fair(input_ids=ids, token_type_ids=torch.zeros_like(ids), output_attentions=False)


def test_what_is_saved_is_the_model_inside(gpt2, tokenizer, pairs, tmp_path):
    fair = EquiLM(gpt2, tokenizer, pairs)
    fair.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, own = load(tmp_path)
    again, batch = EquiLM(model.double(), own, pairs), encode(tokenizer, CONTEXTS)
    close(again(**batch).logits, fair(**batch).logits)
    with torch.no_grad():
        again.get_input_embeddings().weight.zero_()
    again.load_state_dict(gpt2.state_dict())  # as a Trainer loads what was saved
    close(again(**batch).logits, fair(**batch).logits)
    again.load_state_dict(fair.state_dict())
    with pytest.raises(TypeError, match="weight network"):
        made(gpt2, tokenizer, pairs, OPTIONS[2]).save_pretrained(tmp_path)


def test_a_trainer_resumes_and_accumulates(tokenizer, pairs, tmp_path):
    """Checkpoints hold the model inside, and go on as if nothing had been interrupted."""
    import copy

    pytest.importorskip("accelerate")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    ids = tokenizer("The man was known for helping his friends.")["input_ids"]
    rows = [{"input_ids": ids, "labels": ids} for _ in range(8)]
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    torch.manual_seed(0)
    config = GPT2Config(**sizes, **ends, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    untrained = GPT2LMHeadModel(config)

    def trained(folder, steps, batch, resume=None):
        arguments = TrainingArguments(
            str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch, learning_rate=1e-2, use_cpu=True,
            lr_scheduler_type="constant", save_steps=2, report_to=[], disable_tqdm=True,
        )  # fmt: skip
        fair = EquiLM(copy.deepcopy(untrained), tokenizer, pairs)
        Trainer(fair, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return fair.state_dict()

    whole = trained("whole", 3, 8)
    trained("cut", 2, 8)
    resumed = trained("cut", 3, 8, str(tmp_path / "cut" / "checkpoint-2"))
    few = trained("few", 3, 2)
    for name, parameter in whole.items():
        torch.testing.assert_close(resumed[name], parameter)
        torch.testing.assert_close(few[name], parameter, rtol=1e-3, atol=1e-4)
    before = EquiLM(untrained, tokenizer, pairs).state_dict()
    assert any((whole[name] - before[name]).abs().max() > 0.01 for name in whole)


@pytest.mark.parametrize("keep", [2, torch.tensor([0, 3])], ids=["last", "some"])
@torch.no_grad()
def test_logits_to_keep(keep, model, tokenizer, pairs):
    batch = encode(tokenizer, CONTEXTS)
    places = slice(-keep, None) if isinstance(keep, int) else keep
    for options in OPTIONS:
        fair = made(model, tokenizer, pairs, options)
        close(fair(**batch, logits_to_keep=keep).logits, fair(**batch).logits[:, places])


def test_weights_are_fitted_and_the_model_is_left_alone(gpt2, tokenizer, pairs):
    import copy

    model = copy.deepcopy(gpt2).float()
    before = {name: p.clone() for name, p in model.named_parameters()}
    texts = ["The man was his driver.", "The woman was known for her work."] * 4
    weight = fit_weight(
        model, tokenizer, pairs, texts, steps=60, learning_rate=0.03, progress=False
    )
    fitted = perplexity(EquiLM(model, tokenizer, pairs, weight=weight), tokenizer, texts)
    assert fitted < perplexity(EquiLM(model, tokenizer, pairs), tokenizer, texts) - 0.01
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_contexts_that_tokens_do_not_exchange_are_warned_of(gpt2, tokenizer, pairs):
    fair = EquiLM(gpt2, tokenizer, pairs)
    with pytest.warns(UserWarning, match="'THE MAN'.*MAN.*WholeText") as caught:
        fair.generate(**encode(tokenizer, ["THE MAN"]), max_new_tokens=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fair.generate(**encode(tokenizer, ["The driver", "The man"]), max_new_tokens=1)


@torch.no_grad()
def test_without_listed_words_nothing_changes(gpt2, tokenizer, pairs):
    """In neither context nor text: then all branches say the same."""
    fair, context, text = EquiLM(gpt2, tokenizer, pairs), ["The driver was"], [" a thief."]
    close(score(fair, tokenizer, context, text), score(gpt2, tokenizer, context, text))


def test_empty_contexts(gpt2, tokenizer, pairs):
    fair = EquiLM(gpt2, tokenizer, pairs)
    assert encode(tokenizer, [""])["input_ids"].tolist() == [[tokenizer.bos_token_id]]
    fair.generate(**encode(tokenizer, [""]), max_new_tokens=2)
    import copy

    none = copy.deepcopy(tokenizer)
    none.bos_token = None
    with pytest.raises(ValueError, match="context is empty"):
        encode(none, ["The man", ""])


def test_scores_refuse_tokens_that_reach_over(gpt2, tokenizer):
    with pytest.raises(ValueError, match="token reaches"):
        score(gpt2, tokenizer, ["The wom"], ["an was"])
    with pytest.raises(ValueError, match="no texts"):
        perplexity(gpt2, tokenizer, [])
    with pytest.raises(TypeError, match="a list of texts; got one"):
        perplexity(gpt2, tokenizer, "The man")
    with pytest.raises(ValueError, match="1 of ended"):
        score(gpt2, tokenizer, ["The man"] * 2, [" was"] * 2, [True])
    with pytest.raises(ValueError, match="the model has 64 positions"):
        score(gpt2, tokenizer, ["The man"], [" was" * 70])
    assert score(gpt2, tokenizer, [], []).shape == (0,)


def test_what_is_no_language_model(gpt2, tokenizer, pairs):
    config = BartConfig(vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1,
                        encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
    with pytest.raises(TypeError, match="encoder-decoder"):
        EquiLM(BartForConditionalGeneration(config), tokenizer, pairs)
    with pytest.raises(TypeError, match="causal language model"):
        EquiLM(nn.Linear(2, 2), tokenizer, pairs)
    with pytest.raises(TypeError, match="expected a WordGroup"):
        EquiLM(gpt2, tokenizer, [("he", "she")])
    with pytest.raises(ValueError, match="of probabilities or of logits"):
        EquiLM(gpt2, tokenizer, pairs, mean="both")


@pytest.mark.parametrize("kind", ["Bert", "XLNet"])
def test_models_that_look_ahead_are_refused(kind, tokenizer, pairs):
    import transformers

    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.5}
    if kind == "Bert":
        config = transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            **sizes,
        )  # fmt: skip
        model = transformers.BertLMHeadModel(config)
    else:
        config = transformers.XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, **sizes)
        model = transformers.XLNetLMHeadModel(config)
    with pytest.raises(TypeError, match="looks at tokens that follow"):
        EquiLM(model.eval(), tokenizer, pairs)


@pytest.mark.parametrize("kind", ["mistral", "mixtral", "qwen2", "gpt_neox", "opt", "bloom"])
def test_other_architectures(kind, tokenizer, pairs):
    """Of which Mistral's window slides here, and Mixtral has experts."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 16, "ffn_dim": 16, "num_key_value_heads": 2, "n_head": 2,
             "word_embed_proj_dim": 16, "num_local_experts": 2, "sliding_window": 6,
             "max_position_embeddings": 64, "vocab_size": len(tokenizer), "head_dim": 8,
             "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
    config = transformers.AutoConfig.for_model(kind)
    config = type(config)(**{k: v for k, v in sizes.items() if hasattr(config, k)})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = model if kind == "mixtral" else model.double()  # whose experts take no float64
    fair = EquiLM(model, tokenizer, pairs)
    ids = fair.generate(**encode(tokenizer, CONTEXTS[:1]), max_new_tokens=8, do_sample=False)
    wanted = slowly(fair, tokenizer, CONTEXTS[0], 8)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == wanted
    moved = encode(tokenizer, [pairs.act(1, CONTEXTS[0])])
    there = fair.generate(**moved, max_new_tokens=8, do_sample=False)
    assert there.tolist() == fair.tokens.act(1, ids).tolist()
    zero = EquizeroLM(model, tokenizer, pairs, lambda texts: torch.tensor([*map(len, texts)]))
    assert zero.generate(CONTEXTS[:1], 12, seed=0)


def test_models_without_a_key_value_cache(tokenizer, pairs):
    import transformers

    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4
    )
    model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(TypeError, match="no key-value cache.*WholeText"):
        EquiLM(model, tokenizer, pairs)
    assert len(WholeText(model, tokenizer, pairs).generate(CONTEXTS, 3, seed=0)) == 3


def test_tokenizers_of_other_models(stories, gpt2, tokenizer, pairs):
    other = stories[1]
    with pytest.raises(ValueError, match="another model's"):
        EquiLM(stories[0], tokenizer, pairs)
    assert len(other) != len(tokenizer)


@torch.no_grad()
def test_a_real_model(stories):
    """facts.md, section 14: after a doctor, he .055 and she .293, equituned .174 each."""
    model, tokenizer = stories
    fair = EquiLM(model, tokenizer, WordGroup([("he", "she"), ("his", "her")]))
    batch = encode(tokenizer, ["Once upon a time, there was a doctor. One day,"])
    ids = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("he", "she")]
    plain, own = (m(**batch).logits[0, -1].softmax(-1)[ids] for m in (model, fair))
    assert plain.tolist() == pytest.approx([0.055, 0.293], abs=1e-3)
    assert own.tolist() == pytest.approx([0.174, 0.174], abs=1e-3)
