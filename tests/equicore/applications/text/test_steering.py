import copy
import math

import pytest
import torch

from equicore.applications.text import (
    BestText,
    EquiLM,
    EquizeroLM,
    Sampling,
    WholeText,
    WordGroup,
    WordTokens,
    Writing,
    joint,
    score,
    steering,
)
from equicore.applications.text.language import encode
from equicore.applications.text.steering import OwnNoise

CONTEXTS = ["The man was known for his", "The woman and he", "The driver met a man. He"]
THREE = ["The Black person", "The driver met a White person and an Asian", "An Asian person was"]
NEUTRAL = ["thief", "driver", "work", "was"]
LONG = WordGroup([("old man", "young lady"), ("grandfather", "grandmother"), ("he", "she")])
LONG_CONTEXTS = ["The grandfather said", "An old man. He", "grandmother and Grandfather"]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def prefers_men(texts):
    """A biased classifier, of what a text says of anyone."""
    return torch.tensor([t.count("man") + 0.1 * len(t) % 1 for t in texts], dtype=torch.float64)


def exchange(words, g, contexts, texts):
    return [words.act(g, t, after=c) for c, t in zip(contexts, texts, strict=True)]


def writers(model, tokenizer, words, joined=True):
    fair = EquiLM(model, tokenizer, words)
    found = {
        "equi_lm": Writing(fair, tokenizer, words),
        "whole": WholeText(model, tokenizer, words),
        "best": BestText(model, tokenizer, words, prefers_men),
        "equizero": EquizeroLM(model, tokenizer, words, prefers_men, tokens=3),
    }
    if joined:
        found["joint"] = WholeText(model, tokenizer, words, joint(model, tokenizer))
    return found


@pytest.mark.parametrize("method", ["equi_lm", "whole", "joint", "best", "equizero"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 20, 0.9)], ids=["all", "warped"])
def test_exchanged_contexts_lead_to_exchanged_texts(
    method, sampling, word_model, word_tokenizer, pairs, races
):
    """Whatever the classifier prefers."""
    for words, contexts in ((pairs, CONTEXTS), (races, THREE)):
        writer = writers(word_model, word_tokenizer, words)[method]
        texts = writer.generate(contexts * 3, 11, seed=5, sampling=sampling)
        assert len(set(texts)) > 3
        for g in range(1, len(words.group)):
            moved = [words.act(g, c) for c in contexts] * 3
            there = writer.generate(moved, 11, seed=5, sampling=sampling)
            assert there == exchange(words, g, contexts * 3, texts)
            assert words is races or there != texts


@pytest.mark.parametrize("method", ["equi_lm", "equizero", "whole", "best"])
def test_a_real_model_writes_exchanged_texts(method, stories, monkeypatch):
    """Models per token exchange tokens, also one that begins another word, as "she" in "shelf"."""
    model, tokenizer = stories
    words = WordGroup([("he", "she"), ("his", "her")])
    contexts = ["Once upon a time, he", "She was", "The doctor and his"] * 4
    writer = writers(model, tokenizer, words)[method]
    if method in ("equi_lm", "equizero"):
        monkeypatch.setattr(steering, "_after", lambda _, batch, new, real: list(new * real))
        tokens = WordTokens(words, tokenizer).tokens

        def exchanged(texts):
            return [tokens.act(1, text).tolist() for text in texts]
    else:

        def exchanged(texts):
            return exchange(words, 1, contexts, texts)

    texts = writer.generate(contexts, 20, seed=1)
    there = writer.generate([words.act(1, c) for c in contexts], 20, seed=1)
    assert [t if isinstance(t, str) else t.tolist() for t in there] == exchanged(texts)
    plain = [t if isinstance(t, str) else t.tolist() for t in texts]
    assert sum(a != b for a, b in zip(plain, exchanged(texts), strict=True)) > 3


@torch.no_grad()
def test_score_of_whole_texts(stories):
    """Words of several tokens; facts.md: at most log |G| nats are lost."""
    model, tokenizer = stories
    contexts = [*LONG_CONTEXTS, ""]
    texts = [
        " was glad that he came.",
        " saw the grandmother and she",
        " were here.",
        "An old man.",
    ]
    for weight in (None, joint(model, tokenizer)):
        whole = WholeText(model, tokenizer, LONG, weight)
        found = whole.score(contexts, texts)
        moved = [LONG.act(1, c) for c in contexts]
        there = exchange(LONG, 1, contexts, texts)
        close(whole.score(moved, there), found)
        plain = score(model, tokenizer, contexts, texts), score(model, tokenizer, moved, there)
        if weight is None:
            close(found, torch.stack(plain).logsumexp(0) - math.log(2))
            assert (found >= plain[0] - math.log(2)).all()
        else:
            prior = torch.stack([weight(contexts), weight(moved)]).log_softmax(0)
            close(found, (torch.stack(plain) + prior).logsumexp(0))
        assert (plain[0] - plain[1]).abs().max() > 0.1


@torch.no_grad()
def test_the_end_of_a_text_counts_where_it_has_ended(gpt2, tokenizer, pairs):
    whole, context, text = WholeText(gpt2, tokenizer, pairs), "The man was", " a driver"
    batch = encode(tokenizer, [context + text, pairs.act(1, context + text)])
    end = gpt2(**batch).logits[:, -1].log_softmax(-1)[:, tokenizer.eos_token_id]
    branches = score(gpt2, tokenizer, [context, pairs.act(1, context)], [text] * 2) + end
    found = whole.score([context], [text], [True])[0]
    close(found, branches.logsumexp(0) - math.log(2))
    assert found < whole.score([context], [text])[0]


@pytest.mark.parametrize("bos", [True, False], ids=["bos is eos", "no bos"])
def test_tokenizers_like_that_of_gpt2(bos, made, word_tokenizer, pairs):
    """A BOS that is the EOS, and no padding; or neither."""
    model, own = made("gpt2", word_tokenizer), copy.deepcopy(word_tokenizer)
    own.bos_token, own.pad_token = own.eos_token if bos else None, None
    model.generation_config.update(bos_token_id=own.bos_token_id, pad_token_id=None)
    assert encode(own, CONTEXTS)["input_ids"][0, -1] == own.convert_tokens_to_ids("his")
    for name, writer in writers(model, own, pairs, joined=bos).items():
        texts = writer.generate(CONTEXTS, 9, seed=3)
        there = writer.generate([pairs.act(1, c) for c in CONTEXTS], 9, seed=3)
        assert there == exchange(pairs, 1, CONTEXTS, texts), name
    if not bos:
        with pytest.raises(ValueError, match="after a BOS"):
            writers(model, own, pairs)["joint"].generate(CONTEXTS, 1)
        with pytest.raises(ValueError, match="context is empty"):
            WholeText(model, own, pairs).generate([""], 1)


@torch.no_grad()
def test_texts_are_drawn_as_they_score(gpt2, tokenizer, pairs):
    """One token each, 4,000 times: frequencies within 5 standard deviations."""
    context = "The man was"
    for weight in (None, joint(gpt2, tokenizer)):
        whole = WholeText(gpt2, tokenizer, pairs, weight)
        drawn = whole.generate([context] * 4000, 1, seed=0, progress=False)
        for word in (" he", " man", " she", " woman", " driver", " known"):
            p = float(whole.score([context], [word]).exp())
            spread = math.sqrt(p * (1 - p) / 4000) + 1e-4
            assert drawn.count(word) / 4000 == pytest.approx(p, abs=5 * spread)


@torch.no_grad()
def test_noise_draws_by_probability(gpt2, tokenizer):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).double().repeat(8000, 1)
    noisy = OwnNoise([["a", row] for row in range(8000)])(None, logits)
    found = noisy.argmax(-1).bincount(minlength=4) / 8000
    assert found.tolist() == pytest.approx(logits[0].softmax(-1).tolist(), abs=0.02)
    again = OwnNoise([["a", 7], ["a", 7], ["b", 7]])(None, logits[:3])
    assert torch.equal(again[0], noisy[7]) and torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


@torch.no_grad()
def by_hand(writer, model, tokenizer, context, key, limit, tokens, neutral):
    """EquizeroLM for one context, without caches, a branch at a time."""
    words, table = writer.words, writer.branches.tokens
    ids = encode(tokenizer, [context])["input_ids"]
    start, ended = ids.shape[1], False
    while ids.shape[1] - start < limit and not ended:
        written, branches = ids.shape[1] - start, []
        for g in range(len(words.group)):
            back, mine, likely = words.group.inverse(g), ids, 0.0
            own = tokenizer.decode(table.act(g, ids)[0], skip_special_tokens=True)
            noise = OwnNoise([[*key, own]])
            for _ in range(min(tokens, limit - written)):
                logits = model(input_ids=table.act(g, mine)).logits[:, -1].log_softmax(-1)
                logits = table.logits().act(back, logits)
                if neutral:
                    general, plain = writer.branches.general, model(input_ids=mine).logits[:, -1]
                    plain, p = plain.softmax(-1), logits.exp()
                    share = plain[:, ~general].sum() / p[:, ~general].sum()
                    logits = plain.where(general, p * share).log()
                zero = torch.zeros_like(logits, dtype=torch.float32)
                drawn = logits.float() + table.logits().act(back, noise(None, zero))
                token = drawn.argmax(-1, keepdim=True)
                likely += float(logits.float().gather(-1, token))
                mine = torch.cat([mine, token], 1)
                if int(token) == tokenizer.eos_token_id:
                    break
            text = tokenizer.decode(table.act(g, mine)[0], skip_special_tokens=True)
            branches.append((float(writer.regard([text])[0]), likely, mine))
        ids = max(branches, key=lambda branch: branch[:2])[2]
        ended = int(ids[0, -1]) == tokenizer.eos_token_id
    whole = tokenizer.decode(ids[0], skip_special_tokens=True)
    return whole[len(tokenizer.decode(ids[0, :start], skip_special_tokens=True)) :]


@pytest.mark.parametrize("neutral", [None, NEUTRAL], ids=["equizero", "relaxed"])
def test_rounds_by_hand(neutral, model, tokenizer, pairs, races):
    for words, contexts in ((pairs, CONTEXTS), (races, THREE)):
        writer = EquizeroLM(model, tokenizer, words, prefers_men, neutral, tokens=3)
        wanted = [
            by_hand(writer, model, tokenizer, context, [7, row], 10, 3, neutral)
            for row, context in enumerate(contexts)
        ]
        assert writer.generate(contexts, 10, seed=7) == wanted


def test_the_branch_of_best_regard_is_taken(stories):
    """With its own words as it reads them, not those that are put back."""
    model, tokenizer = stories
    words = WordGroup([("boy", "girl"), ("he", "she")])
    seen = []

    def regard(texts):
        seen.extend(texts)
        return torch.tensor([float(text.startswith("The girl")) for text in texts])

    written = BestText(model, tokenizer, words, regard).generate(["The boy said"] * 3, 10, seed=0)
    girls = [text for text in seen if text.startswith("The girl")]
    assert [f"The boy said{t}" for t in written] == [words.act(1, text) for text in girls]


def test_a_context_without_listed_words_is_a_tie(stories):
    """All branches write one text: by chance with its words exchanged, each as often."""
    model, tokenizer = stories
    words = WordGroup([("he", "she")])
    best = BestText(model, tokenizer, words, prefers_men)
    contexts = ["Once upon a time, there was a doctor. One day,"] * 200
    found = [words.found(text)[:1] for text in best.generate(contexts, 2, seed=0, progress=False)]
    count = {word: found.count([word]) for word in ("he", "she")}
    total = sum(count.values())  # the plain model writes five times as many "she"
    assert total > 40 and abs(count["he"] - total / 2) < 2 * math.sqrt(total)


def test_beams_of_whole_texts(stories):
    model, tokenizer = stories
    whole = WholeText(model, tokenizer, LONG)
    texts = whole.most_likely(LONG_CONTEXTS, 6, num_beams=3)
    there = whole.most_likely([LONG.act(1, c) for c in LONG_CONTEXTS], 6, num_beams=3)
    assert there == exchange(LONG, 1, LONG_CONTEXTS, texts)
    drawn = whole.generate(LONG_CONTEXTS, 6, seed=0)
    likely = [whole.score(LONG_CONTEXTS, some) for some in (texts, drawn)]
    assert (likely[0] >= likely[1]).all()


def test_batches_do_not_change_texts(gpt2, tokenizer, pairs, monkeypatch):
    for name, writer in writers(gpt2, tokenizer, pairs).items():
        whole = writer.generate(CONTEXTS, 6, seed=2)
        monkeypatch.setattr(steering, "AT_ONCE", 2)
        assert writer.generate(CONTEXTS, 6, seed=2) == whole, name
        monkeypatch.undo()


def test_the_random_state_of_torch_is_the_seed(gpt2, tokenizer, pairs):
    writer = WholeText(gpt2, tokenizer, pairs)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(writer.generate(CONTEXTS * 3, 8))
    assert texts[0] == texts[1] != texts[2]


def test_bad_input(gpt2, tokenizer, pairs, stories):
    with pytest.raises(TypeError, match="fit one with"):
        BestText(gpt2, tokenizer, pairs, None)
    with pytest.raises(TypeError, match="fit one with"):
        EquizeroLM(gpt2, tokenizer, pairs, None)
    with pytest.raises(ValueError, match="at least one token"):
        EquizeroLM(gpt2, tokenizer, pairs, prefers_men, tokens=0)
    with pytest.raises(ValueError, match="a number for each of 6 texts"):
        BestText(gpt2, tokenizer, pairs, lambda texts: [0.0]).generate(CONTEXTS)
    with pytest.raises(ValueError, match="takes contexts"):
        WholeText(gpt2, tokenizer, pairs).generate([])
    with pytest.raises(ValueError, match="no single token"):
        EquizeroLM(gpt2, tokenizer, LONG, prefers_men)
    with pytest.raises(ValueError, match="another model's"):
        WholeText(gpt2, stories[1], pairs)
    with pytest.raises(TypeError, match="got one"):
        WholeText(gpt2, tokenizer, pairs).generate("The man was")
    for weight in (lambda texts: [0.0], lambda texts: torch.full((len(texts),), -math.inf)):
        with pytest.raises(ValueError, match="a finite number for each of 6"):
            WholeText(gpt2, tokenizer, pairs, weight).generate(CONTEXTS)
    with pytest.raises(ValueError, match="64 positions"):
        WholeText(gpt2, tokenizer, pairs).generate(CONTEXTS, 100)
    with pytest.warns(UserWarning, match="train mode"):
        WholeText(copy.deepcopy(gpt2).train(), tokenizer, pairs)


def test_habits_of_a_model_do_not_change_its_law(gpt2, tokenizer, pairs):
    """A penalty of repetitions in its own configuration, as some models of the hub have."""
    odd = copy.deepcopy(gpt2)
    odd.generation_config.update(repetition_penalty=1.5, no_repeat_ngram_size=1, num_beams=2)
    for name, writer in writers(gpt2, tokenizer, pairs).items():
        texts = writer.generate(CONTEXTS, 8, seed=0)
        assert writers(odd, tokenizer, pairs)[name].generate(CONTEXTS, 8, seed=0) == texts, name


def test_beams_whose_tokens_do_not_go_on_are_left_out(gpt2, tokenizer, pairs):
    assert WholeText(gpt2, tokenizer, pairs).most_likely(["The man was "], 4) != [""]
