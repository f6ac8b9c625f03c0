"""What does it cost to write with a language model that is made equivariant?

    python benchmarks/text.py [--rounds 10] [--output results/text_speed]

A token of each method, with caches, beside a token of the plain model, drawn by `generate` of
transformers. Random parameters; GPT-2's architecture with 6 layers of width 384, and Llama's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from equicore.applications.text import EquiLM, EquizeroLM, WholeText, WordGroup, grammar, language
from equicore.lab import command
from equicore.lab.jobs import one_thread

BARS = {"EquiLM, two groups": 2 * 1.15, "EquiLM, three groups": 3 * 1.15, "whole texts": 1.05}
"""Times of a token, at most, beside the plain model's."""


@dataclasses.dataclass
class Arguments:
    """Time of a token that is written, of each method, on one core."""

    rounds: int = 10
    """Rounds; in each, every method is timed once."""
    batches: tuple[int, ...] = (1, 8)
    """Contexts in a batch."""
    tokens: int = 32
    """To write."""
    width: int = 384
    """Of the models, a multiple of 64."""
    layers: int = 6
    """Of the models."""
    output: Path | None = None
    """Folder for text.csv, .md, .png and .svg; nothing is written when omitted."""


def models(tokenizer: Any, width: int, layers: int) -> dict[str, Any]:
    """A language model of each architecture, which never writes its EOS."""
    torch.manual_seed(0)
    heads = width // 64
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer), n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width,
        num_hidden_layers=layers, num_attention_heads=heads,
    )  # fmt: skip
    made = {"gpt2": GPT2LMHeadModel(gpt2).eval(), "llama": LlamaForCausalLM(llama).eval()}
    for model in made.values():
        model.generation_config.update(eos_token_id=None, bos_token_id=None, pad_token_id=2)
    return made


def writers(model: Any, tokenizer: Any, batch: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """Functions that write so many tokens for each context of a batch."""
    two = WordGroup([("he", "she"), ("man", "woman"), ("his", "her")])
    three = WordGroup([("Black", "White", "Asian")])
    contexts = [f"The {who} had a job as" for who in ("man", "woman")] * (batch // 2)
    contexts = contexts or ["The man had a job as"]
    ids = language.encode(tokenizer, contexts)
    draw = {"do_sample": True, "max_new_tokens": tokens, "top_k": 0}
    zero = EquizeroLM(model, tokenizer, two, lambda texts: torch.tensor([*map(len, texts)]))
    return {
        "plain": lambda: model.generate(**ids, **draw),
        "EquiLM, two groups": partial(EquiLM(model, tokenizer, two).generate, **ids, **draw),
        "EquiLM, three groups": partial(EquiLM(model, tokenizer, three).generate, **ids, **draw),
        "whole texts": partial(WholeText(model, tokenizer, two).generate, contexts, tokens, seed=0),
        "EquizeroLM, two groups": partial(zero.generate, contexts, tokens, seed=0),
    }


def main(arguments: Arguments) -> None:
    """Time, print the table, write it."""
    tokenizer = language.tokenizer_of(grammar.sentences(2000).text.tolist(), 4000)
    rows: list[common.Row] = []
    found = models(tokenizer, arguments.width, arguments.layers)
    total = arguments.rounds * len(found) * len(arguments.batches)
    with torch.no_grad(), one_thread(), tqdm(total=total, unit="round") as progress:
        for name, model in found.items():
            for batch in arguments.batches:
                calls = writers(model, tokenizer, batch, arguments.tokens)
                times = common.time_rounds(calls, arguments.rounds, progress, repeats=1)
                for method, seconds in times.items():
                    ratio = common.ratio(seconds, times["plain"])
                    verdict = common.verdict(ratio.median, BARS.get(method))
                    rows.append({"model": name, "batch": batch, "method": method,
                                 "ratio": ratio, "bar": verdict})  # fmt: skip
        machine = common.machine()
    lines = [
        f"- {row['model']}, batch {row['batch']}, {row['method']}: {row['ratio']} ({row['bar']})"
        for row in rows
        if row["bar"]
    ]
    labels = [f"{row['model']}, {row['batch']}: {row['method']}" for row in rows]
    figure = common.ratio_figure(
        labels, {"time": [row["ratio"] for row in rows]}, "time of a token, of plain",
        [BARS.get(row["method"]) for row in rows],
    )  # fmt: skip
    common.write(
        arguments.output, "text", rows, 3, "Fair text: time of a token",
        f"{arguments.tokens} tokens are written for each context of a batch; ratio of times to "
        f"the plain model's: median and quartiles of {arguments.rounds} rounds.",
        "\n".join(lines), f"{machine}.", figure=figure,
    )  # fmt: skip


if __name__ == "__main__":
    command.run({Arguments: main})
