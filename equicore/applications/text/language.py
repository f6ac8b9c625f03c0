"""Language models: one's own trained here, or any of Hugging Face; probabilities of given texts."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from equicore.finetuning import fit
from equicore.lab.store import check_same, digest, read_lines, read_settings, rounds, write_text
from equicore.lab.values import to_yaml
from equicore.reduce import wide

BATCH_SIZE = 32
HELD_OUT = "held_out.txt"
LEARNING_RATE = 1e-3


def load(source: str | Path) -> tuple[Any, Any]:
    """A causal language model in eval mode and its tokenizer, from a folder or a hub id.

    Raises:
        TypeError: If it is an encoder-decoder.
        ValueError: If the tokenizer is another model's.
    """
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source).eval()
    check_pair(model, tokenizer)
    return model, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which take no time here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_pair(model: Any, tokenizer: Any) -> None:
    """Raise if this is no causal language model with its tokenizer; errors as of `load`."""
    config = getattr(model, "config", None)
    if not hasattr(model, "generate") or config is None:
        raise TypeError(f"expected a causal language model of Hugging Face; got {type(model)}")
    if config.is_encoder_decoder:
        raise TypeError(
            f"{type(model).__name__} is an encoder-decoder, whose texts do not go on from their "
            "context; take a causal language model, such as GPT-2 or Llama"
        )
    if not model.training and _looks_ahead(model):
        raise TypeError(
            f"{type(model).__name__} looks at tokens that follow: it is no causal language model"
        )
    size = model.get_input_embeddings().weight.shape[0]
    # rows of an embedding are often filled up to a round number, never fewer than tokens
    if not size - max(64, size // 20) <= len(tokenizer) <= size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeddings for {size}: it is "
            "another model's; load both from the same folder"
        )


@torch.no_grad()
def _looks_ahead(model: Any) -> bool:
    ids = torch.arange(3, device=model.device)[None]
    short, long = (
        model(input_ids=some, attention_mask=torch.ones_like(some)).logits[0, :2].double()
        for some in (ids[:, :2], ids)
    )
    return bool((short - long).abs().max() > 0.05 * short.std() + 1e-3)


def check_length(model: Any, length: int) -> None:
    """Raise ValueError if so many tokens are more than a model has positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ValueError(
            f"a context and its text are {length} tokens; the model has {limit} positions"
        )


def several(texts: Sequence[str]) -> list[str]:
    """Texts as a list, or TypeError for one text, which is a sequence of letters."""
    if isinstance(texts, str):
        raise TypeError(f"expected a list of texts; got one, {texts!r}")
    return list(texts)


def encode(tokenizer: Any, texts: Sequence[str], device: Any = None) -> BatchEncoding:
    """Ids and mask of contexts, padded on the left, each beginning with the tokenizer's BOS.

    A tokenizer whose BOS is also its EOS, as GPT-2's, puts none before contexts that are not empty.

    Raises:
        ValueError: If a context is empty, and the tokenizer has no BOS to begin with.
    """
    rows = [_begun(tokenizer, text) for text in texts]
    if not all(rows):
        raise ValueError("a context is empty, and the tokenizer has no BOS to begin with")
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[padding(tokenizer)] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return BatchEncoding({"input_ids": ids.to(device), "attention_mask": mask.to(device)})


def _begun(tokenizer: Any, text: str) -> list[int]:
    """The ids of a context, with a BOS before them where one is due."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    due = bos is not None and (bos != tokenizer.eos_token_id or not ids)
    return [bos, *ids] if due else ids


def padding(tokenizer: Any) -> int:
    """The id that padding has: the tokenizer's own, or its EOS, or 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def score(
    model: nn.Module,
    tokenizer: Any,
    contexts: Sequence[str],
    texts: Sequence[str],
    ended: Sequence[bool] | None = None,
) -> Tensor:
    """The log p(text | context) of each pair, shape (B,), in float64 for a model in float64.

    The context has the tokens that it has alone, and the text those of both together that follow:
    the tokens that the tokenizer makes of it, one of several ways to write a string in tokens, so
    that it is a lower bound of the probability of the string. Where it has ``ended``, so does the
    EOS count.

    Raises:
        ValueError: If a token would reach from a context into its text, there are not as many of
            each, or a text is longer than the model's positions.
    """
    contexts, texts = several(contexts), several(texts)
    ended = [False] * len(texts) if ended is None else list(ended)
    if not len(contexts) == len(texts) == len(ended):
        raise ValueError(
            f"score takes a text for each context, and ended for each; got {len(contexts)} "
            f"contexts, {len(texts)} texts, and {len(ended)} of ended"
        )
    if any(ended) and tokenizer.eos_token_id is None:
        raise ValueError("no text has ended: the tokenizer has no EOS")
    if not texts:
        return torch.zeros(0)
    rows = [tokens(tokenizer, *pair) for pair in zip(contexts, texts, strict=True)]
    for (_, after), end in zip(rows, ended, strict=True):
        after += [tokenizer.eos_token_id] * end
    width = max(len(before) + len(after) for before, after in rows)
    check_length(model, width)
    ids, labels = next_token_batch([[*before, *after] for before, after in rows])
    mask = (labels != -100).long()
    starts = torch.tensor([len(before) for before, _ in rows])
    counted = mask.bool() & (torch.arange(width) >= starts[:, None])
    device = next(model.parameters()).device
    ids, mask, counted = ids.to(device), mask.to(device), counted.to(device)
    logits = wide(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1])
    chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen.where(counted[:, 1:], 0).sum(-1)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """The exp of minus the mean log-probability of a token, of whole texts from their start.

    ``model`` is a model of tokens, or has a ``score`` of its own.
    """
    total, count, texts = 0.0, 0, several(texts)
    for start in range(0, len(texts), BATCH_SIZE):
        some = list(texts[start : start + BATCH_SIZE])
        before = [""] * len(some)
        if hasattr(model, "score"):
            total += float(model.score(before, some).sum())
        else:
            total += float(score(model, tokenizer, before, some).sum())
        count += sum(len(tokens(tokenizer, "", text)[1]) for text in some)
    if not count:
        raise ValueError("there are no texts, whose perplexity could be measured")
    return math.exp(-total / count)


def tokens(tokenizer: Any, context: str, text: str) -> tuple[list[int], list[int]]:
    """The ids of a context, at least one, and those of the text that follows it.

    Raises:
        ValueError: If a token would reach from the context into the text.
    """
    before = tokenizer(context, add_special_tokens=False)["input_ids"]
    both = tokenizer(context + text, add_special_tokens=False)["input_ids"]
    if both[: len(before)] != before:
        raise ValueError(
            f"a token reaches from the context {context!r} into the text {text!r}: end contexts at "
            "the end of a word, and begin texts with a space"
        )
    begun, after = _begun(tokenizer, context), both[len(before) :]
    # without a BOS the first token has no probability
    return (begun, after) if begun else (after[:1], after[1:])


def read_texts(file: str | Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"no file of texts at {file}")
    return [line.strip() for line in read_lines(file) if line.strip()]


def trained(
    texts: Sequence[str],
    folder: str | Path,
    held_out: Sequence[str] = (),
    *,
    epochs: int = 15,
    width: int = 128,
    layers: int = 4,
    vocabulary: int = 4000,
    seed: int = 0,
) -> Path:
    """A folder with a small language model of GPT-2's architecture trained on texts, a line each.

    It is trained now if it has not been; a killed training goes on with its next epoch. Texts that
    are held out are written beside it, to `HELD_OUT`.

    Raises:
        ValueError: If there are fewer than 2 texts.
        FileExistsError: If the folder holds another one.
    """
    folder = Path(folder)
    settings = {"texts": digest({"texts": list(texts)}), "epochs": epochs, "width": width}
    settings |= {"layers": layers, "vocabulary": vocabulary, "seed": seed}
    note = folder / "trained.yaml"
    if note.is_file():
        check_same(note, read_settings(note), settings)
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds other files; name an empty or a new folder")
    if len(texts) < 2:
        raise ValueError(f"a language model needs texts to learn from; got {len(texts)}")
    tokenizer = tokenizer_of(texts, vocabulary)
    rows = tokenizer(list(texts))["input_ids"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=max(64, max(map(len, rows))), n_embd=width,
            n_layer=layers, n_head=4, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.1)
    resume = folder.with_name(f"{folder.name}.resume.safetensors")
    steps = math.ceil(len(rows) / BATCH_SIZE)
    with tqdm(total=steps * epochs, unit="step", disable=None) as bar:

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(rows)).split(BATCH_SIZE)
            for step, places in enumerate(order, epoch * steps):
                for group in optimizer.param_groups:
                    warm, left = (step + 1) / 100, 1 - step / (steps * epochs)
                    group["lr"] = LEARNING_RATE * min(warm, left)
                yield next_token_batch([rows[i] for i in places.tolist()])
                bar.update()

        for epoch in rounds(resume, settings, epochs, seed, model=model, optimizer=optimizer):
            bar.update(epoch * steps - bar.n)
            losses = fit(model, batches(epoch), next_token_loss, optimizer, progress=False)
            bar.set_postfix(epoch=epoch + 1, loss=f"{sum(losses) / len(losses):.3f}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    with _quiet():
        model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    write_text(unfinished / note.name, to_yaml(settings))
    write_text(unfinished / HELD_OUT, "".join(f"{text}\n" for text in held_out))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.chmod(0o755)
    unfinished.replace(folder)
    resume.unlink(missing_ok=True)
    return folder


def next_token_batch(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B, T) of rows, padded on the right, which no token sees; and their labels."""
    own = [torch.tensor(row) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return pad(own, True), pad(own, True, -100)


def next_token_loss(output: Any, labels: Tensor) -> Tensor:
    """The mean over tokens of minus the log-probability of the next."""
    return functional.cross_entropy(output.logits[:, :-1].transpose(1, 2), labels[:, 1:])


def tokenizer_of(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as GPT-2's, but with a BOS before and an EOS after a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
