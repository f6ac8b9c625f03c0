from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
import torch  # noqa: E402

from equicore.applications.text import grammar, language, read_words  # noqa: E402

SHARED = Path(__file__).resolve().parents[5] / "shared" / "text"


@pytest.fixture(scope="session")
def shared_text():
    """Folder of real texts, lists and a language model, on the project's own machines."""
    if not SHARED.is_dir():
        pytest.skip("needs the texts of ../shared/text, which are not here")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    """In which words of the grammar, and those of its lists, are one token each."""
    words = " ".join(f"{w} {w.capitalize()}" for w in ("he", "she", "his", "her", "man", "woman"))
    texts = [*grammar.sentences(2000).text, *[f"The {words} Asian"] * 50]
    return language.tokenizer_of(texts, 4000)


@pytest.fixture(scope="session")
def word_tokenizer():
    """In which every token is a word, so that texts of random models consist of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    text = " ".join(grammar.sentences(2000).text)
    names = {"<s>", "</s>", "<pad>", "<unk>"}
    words = sorted({*text.replace(".", " .").split(), "He", "She", "his", "Asian", "an", "met"})
    ids = {word: i for i, word in enumerate([*sorted(names), *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def random_model(kind, tokenizer):
    """A language model of random parameters, large enough to prefer some tokens, in float64."""
    torch.manual_seed(0)
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.4, **ids}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=2, **sizes)
        return transformers.GPT2LMHeadModel(config).double().eval()
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, **sizes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="session")
def made():
    """Makes a model of random parameters for a tokenizer."""
    return random_model


@pytest.fixture(scope="session")
def gpt2(tokenizer):
    return random_model("gpt2", tokenizer)


@pytest.fixture(scope="session")
def word_model(word_tokenizer):
    return random_model("gpt2", word_tokenizer)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request, tokenizer):
    return random_model(request.param, tokenizer)


@pytest.fixture(scope="session")
def pairs():
    """Two groups, of words that are one token each."""
    return read_words("gender").__class__([("he", "she"), ("his", "her"), ("man", "woman")])


@pytest.fixture(scope="session")
def races():
    """Three groups."""
    return read_words("races")


@pytest.fixture(scope="session")
def stories(shared_text):
    """A real language model, which cuts most words into several tokens, in float64."""
    model, tokenizer = language.load(shared_text / "stories260k")
    return model.double(), tokenizer
