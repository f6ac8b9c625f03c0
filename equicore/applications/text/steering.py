"""Models that write whole texts: equitune of texts, and the branch of best regard.

Random numbers belong to the text that a branch goes on from, not to the branch: two branches with
one text write the same, and whatever a classifier prefers, exchanged contexts lead to exchanged
texts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process
from transformers.modeling_outputs import CausalLMOutputWithPast

from equicore.applications.text.language import (
    check_length,
    check_pair,
    encode,
    score,
    several,
)
from equicore.applications.text.models import WordModel, kept, relaxed
from equicore.applications.text.words import WordGroup, check_words
from equicore.lab.store import digest
from equicore.reduce import near, wide

TextScore = Callable[[list[str]], Tensor]
"""A number for each text, higher is better, such as its regard."""
Exchange = Callable[[Tensor], Tensor]
AT_ONCE = 128
"""Contexts in a batch."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: as they are probable, or sharper.

    Attributes:
        temperature: Divides logits.
        top_k: Draw among so many; all when omitted.
        top_p: Draw among those that have so much probability together.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def processors(
        self, keys: Sequence[Any], exchange: Exchange | None = None
    ) -> LogitsProcessorList:
        """What makes greedy search draw: the noise of `OwnNoise` is added to its logits."""
        found: list[LogitsProcessor] = []
        if self.temperature != 1:
            found.append(logits_process.TemperatureLogitsWarper(self.temperature))
        if self.top_k is not None:
            found.append(logits_process.TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            found.append(logits_process.TopPLogitsWarper(self.top_p))
        return LogitsProcessorList([*found, OwnNoise(keys, exchange)])


class OwnNoise(LogitsProcessor):
    """Adds Gumbel noise (N, words) to scores, so that the largest one is drawn from their softmax.

    Args:
        keys: Plain values, one for each row: equal keys give equal noise.
        exchange: Carries the noise of the keys' texts to the rows; none is exchanged if omitted.
    """

    def __init__(self, keys: Sequence[Any], exchange: Exchange | None = None) -> None:
        self.generators = [np.random.default_rng(_number(key)) for key in keys]
        self.exchange = exchange or (lambda noise: noise)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores and noise."""
        noise = np.stack([g.gumbel(size=scores.shape[-1]) for g in self.generators])
        return scores + self.exchange(torch.from_numpy(noise).to(scores))


class _Writer:
    """Base: a plain model that goes on from strings."""

    def __init__(self, model: Any, tokenizer: Any, words: WordGroup) -> None:
        check_pair(model, tokenizer)
        check_words(words)
        if model.training:
            warnings.warn(
                "the model is in train mode, where dropout makes nothing exact; call model.eval()",
                stacklevel=3,
            )
        self.model, self.tokenizer, self.words = model, tokenizer, words
        self.order = len(words.group)

    def generate(
        self,
        contexts: Sequence[str],
        max_new_tokens: int = 15,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008
        seed: int | None = None,
        progress: bool = True,
    ) -> list[str]:
        """What follows each context, drawn with a seed, or with torch's random state.

        Raises:
            ValueError: If there is no context, or one is empty and the tokenizer has no BOS.
        """
        contexts = several(contexts)
        if not contexts or max_new_tokens < 1:
            raise ValueError(
                f"generate takes contexts and at least one token; got {len(contexts)} contexts and "
                f"{max_new_tokens} tokens"
            )
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        written: list[str] = []
        starts = range(0, len(contexts), AT_ONCE)
        with torch.no_grad():
            for start in tqdm(starts, disable=None if progress and len(starts) > 1 else True):
                some = list(contexts[start : start + AT_ONCE])
                keys = [[seed, number] for number in range(start, start + len(some))]
                written += self._write(some, keys, max_new_tokens, sampling)
        return written

    def _write(
        self, contexts: list[str], keys: list[Any], limit: int, sampling: Sampling
    ) -> list[str]:
        raise NotImplementedError

    def _plainly(
        self, contexts: list[str], keys: list[Any], limit: int, sampling: Sampling, scored: bool
    ) -> tuple[list[str], Tensor | None]:
        """What the plain model writes, and its log-probability (N,) if it is asked for."""
        batch = encode(self.tokenizer, contexts, self.model.device)
        own = [[*key, text] for key, text in zip(keys, contexts, strict=True)]
        processors = sampling.processors(own)
        found = _continued(self.model, batch, limit, processors, scored=scored)
        return _after(self.tokenizer, batch, found.ids, found.real), found.likely


class Writing(_Writer):
    """A model of tokens, plain or an `EquiLM`, that draws what follows strings.

    Its random numbers are exchanged with the words of a context: for exchanged contexts and one
    seed, texts of an `EquiLM` are exchanges of each other, token for token.
    """

    def _write(
        self, contexts: list[str], keys: list[Any], limit: int, sampling: Sampling
    ) -> list[str]:
        orbits = [self.words.orbit([context]) for context in contexts]
        own = [[*key, min(orbit)] for key, orbit in zip(keys, orbits, strict=True)]
        exchange = None
        if isinstance(self.model, WordModel):
            tokens, group = self.model.next_token, self.words.group
            elements = torch.tensor([group.inverse(o.index(min(o))) for o in orbits])
            exchange = functools.partial(tokens.act_each, elements.to(self.model.device))
        batch = encode(self.tokenizer, contexts, self.model.device)
        found = _continued(self.model, batch, limit, sampling.processors(own, exchange))
        return _after(self.tokenizer, batch, found.ids, found.real)


class WholeText(_Writer):
    """Equitune of whole texts: q(y | c) = sum over g of w(g c) p(g y | g c), g exchanging words.

    Exactly equivariant whatever the number of tokens of a word. A text costs one generation of the
    plain model: one g is drawn, its branch written, and the words put back. With equal weights a
    text loses at most log |G| nats of log-probability.

    Args:
        model: Causal language model of Hugging Face.
        tokenizer: Its tokenizer.
        words: What is exchanged.
        log_weight: Log-weights (N,) of contexts, whose softmax over the orbit are the weights:
            lambda-equitune; equal ones when omitted. With log p(c), see `joint`, q(y | c) is that
            of the equivariant joint mean over g of p(g c, g y).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        words: WordGroup,
        log_weight: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, words)
        self.log_weight = log_weight

    def score(
        self, contexts: Sequence[str], texts: Sequence[str], ended: Sequence[bool] | None = None
    ) -> Tensor:
        """The log q(text | context) of each pair, shape (B,); see `language.score` for p."""
        contexts, texts = several(contexts), several(texts)
        exchanged = [
            self.words.act(g, text, after=context)
            for g in range(self.order)
            for context, text in zip(contexts, texts, strict=True)
        ]
        moved, ends = self.words.orbit(contexts), None
        if ended is not None:
            ends = [end for _ in range(self.order) for end in ended]
        likely = score(self.model, self.tokenizer, moved, exchanged, ends).view(self.order, -1)
        return (self._log_weights(contexts).to(likely) + likely).logsumexp(0)

    @torch.no_grad()
    def most_likely(
        self, contexts: Sequence[str], max_new_tokens: int = 15, num_beams: int = 4
    ) -> list[str]:
        """The text of best `score` among those that beam search finds in all branches."""
        contexts = several(contexts)
        batch = encode(self.tokenizer, self.words.orbit(contexts), self.model.device)
        found = _generated(
            self.model, batch, max_new_tokens, num_beams=num_beams, num_return_sequences=num_beams
        )
        found = found[:, batch["input_ids"].shape[1] :]
        before = {name: t.repeat_interleave(num_beams, 0) for name, t in batch.items()}
        ends = _ends(found, self.model.generation_config)
        texts = _after(self.tokenizer, before, found, ends.cumsum(-1) == 0)
        ended = ends.any(-1).tolist()
        best = []
        for place, context in enumerate(contexts):
            candidates: dict[tuple[str, bool], float] = {}
            for g in range(self.order):
                first = (g * len(contexts) + place) * num_beams
                own, back = self.words.act(g, context), self.words.group.inverse(g)
                for row in range(first, first + num_beams):
                    text = self.words.act(back, texts[row], after=own), ended[row]
                    if text not in candidates:
                        candidates[text] = self._score_or_least(context, *text)
            best.append(max(candidates, key=candidates.__getitem__)[0])
        return best

    def _score_or_least(self, context: str, text: str, ended: bool) -> float:
        """Minus infinity where tokens of a text do not go on from its context's."""
        try:
            return float(self.score([context], [text], [ended]))
        except ValueError:
            return -math.inf

    def _write(
        self, contexts: list[str], keys: list[Any], limit: int, sampling: Sampling
    ) -> list[str]:
        orbits = self.words.orbit(contexts)
        moved = [orbits[place :: len(contexts)] for place in range(len(contexts))]
        weights = self._log_weights(contexts).softmax(0).T.tolist()
        elements = [_drawn(*row) for row in zip(keys, moved, weights, strict=True)]
        own = [texts[g] for texts, g in zip(moved, elements, strict=True)]
        written, _ = self._plainly(own, keys, limit, sampling, scored=False)
        return [
            self.words.act(self.words.group.inverse(g), text, after=context)
            for g, text, context in zip(elements, written, own, strict=True)
        ]

    def _log_weights(self, contexts: Sequence[str]) -> Tensor:
        """Shape (|G|, B), normalised."""
        if self.log_weight is None:
            return torch.zeros(self.order, len(contexts)).double().log_softmax(0)
        found = torch.as_tensor(self.log_weight(self.words.orbit(contexts))).detach().cpu().double()
        if found.shape != (self.order * len(contexts),) or not found.isfinite().all():
            raise ValueError(
                f"log_weight gives a finite number for each of {self.order * len(contexts)} "
                f"contexts; got shape {tuple(found.shape)}"
                + ("" if found.isfinite().all() else ", not all of them finite")
            )
        return found.view(self.order, len(contexts)).log_softmax(0)


def joint(model: Any, tokenizer: Any) -> Callable[[list[str]], Tensor]:
    """The log p(c) of contexts, as weights of `WholeText`: likely contexts know best.

    Raises:
        ValueError: If the tokenizer has no BOS, after which contexts would be probable.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError("contexts are as probable as after a BOS, of which the tokenizer has none")

    def log_probability(contexts: list[str]) -> Tensor:
        return score(model, tokenizer, [""] * len(contexts), contexts)

    return log_probability


class BestText(_Writer):
    """Equizero of whole texts: all branches write, and that of best regard is taken.

    Ties are decided by the log-probability, and then at random. It is no mixture: texts have no
    score. Regard is that of a branch's own text, with the words as that branch reads them.

    Args:
        model: Causal language model of Hugging Face.
        tokenizer: Its tokenizer.
        words: What is exchanged.
        regard: Maps a list of whole texts to numbers (N,).

    Raises:
        TypeError: If there is no regard.
    """

    def __init__(self, model: Any, tokenizer: Any, words: WordGroup, regard: TextScore) -> None:
        super().__init__(model, tokenizer, words)
        self.regard = _check_regard(regard)

    def _write(
        self, contexts: list[str], keys: list[Any], limit: int, sampling: Sampling
    ) -> list[str]:
        own = self.words.orbit(contexts)
        keys_of_all = keys * self.order
        written, likely = self._plainly(own, keys_of_all, limit, sampling, scored=True)
        assert likely is not None
        regards = _regards(self.regard, [c + t for c, t in zip(own, written, strict=True)])
        shape = (self.order, len(contexts))
        best = _best(regards.view(shape), likely.view(shape), keys)
        places = best * len(contexts) + torch.arange(len(contexts))
        return [
            self.words.act(self.words.group.inverse(g), written[place], after=own[place])
            for g, place in zip(best.tolist(), places.tolist(), strict=True)
        ]


class EquizeroLM(_Writer):
    """Equizero in rounds: branches write some tokens, and all go on from that of best regard.

    Basu et al. (NeurIPS 2023, section 4.1), with rounds of m = 5 tokens, their "beam length".
    Ties are decided by the sum of log-probabilities of tokens, and then at random.

    With neutral words it is R-EquizeroLM: each branch draws general tokens as the plain model does
    for the context as it is, and only the others from its own, in their ratios.

    Args:
        model, tokenizer, words, neutral: As of `WordModel`, with the same errors.
        regard: Maps a list of whole texts, a branch's own, to numbers (N,).
        tokens: In a round.

    Raises:
        TypeError: If there is no regard.
        ValueError: If a round has no tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        words: WordGroup,
        regard: TextScore,
        neutral: Iterable[str] | None = None,
        *,
        tokens: int = 5,
    ) -> None:
        super().__init__(model, tokenizer, words)
        self.regard = _check_regard(regard)
        if tokens < 1:
            raise ValueError(f"a round has at least one token; got {tokens}")
        self.branches = _Branches(model, tokenizer, words, neutral)
        self.round = tokens

    def _write(
        self, contexts: list[str], keys: list[Any], limit: int, sampling: Sampling
    ) -> list[str]:
        branches, count = self.branches, len(contexts)
        batch = encode(self.tokenizer, contexts, self.model.device)
        ids, mask, past = batch["input_ids"], batch["attention_mask"], None
        start, shape, shown = ids.shape[1], (self.order, count), mask
        ended = torch.zeros(count, dtype=torch.bool, device=ids.device)
        while (written := ids.shape[1] - start) < limit and not ended.all():
            rows, seen = ids.repeat(self.order, 1), shown.repeat(self.order, 1)
            texts = _read(self.tokenizer, branches.own(rows), seen)
            own = [[*key, text] for key, text in zip(keys * self.order, texts, strict=True)]
            new = _continued(
                branches, {"input_ids": rows, "attention_mask": mask.repeat(self.order, 1)},
                min(self.round, limit - written), sampling.processors(own, branches.back), past,
                scored=True,
            )  # fmt: skip
            whole = branches.own(torch.cat([rows, new.ids], 1))
            regards = _regards(
                self.regard, _read(self.tokenizer, whole, torch.cat([seen, new.real], 1))
            )
            assert new.likely is not None
            turn = [[*key, written] for key in keys]
            best = _best(regards.view(shape), new.likely.view(shape), turn).to(ids.device)
            chosen = best * count + torch.arange(count, device=ids.device)
            past = _shortened(new.past, ids.shape[1])
            ids = torch.cat([ids, new.ids[chosen]], 1)
            # what has ended is written on, as `generate` wants, but not shown
            mask = torch.cat([mask, torch.ones_like(new.ids[chosen])], 1)
            shown = torch.cat([shown, (new.real[chosen] & ~ended[:, None]).to(shown)], 1)
            ended |= new.ended[chosen]
        return _after(self.tokenizer, batch, ids[:, start:], shown[:, start:].bool())


class _Branches(WordModel):
    """All branches in the frame of the context: rows of each element together, (|G| B, T)."""

    def __init__(self, model: Any, *args: Any) -> None:
        super().__init__(model, *args)
        self.model = model

    def _plain(self) -> Any:
        return self.model

    def _elements(self, rows: Tensor) -> Tensor:
        order = len(self.tokens.group)
        return torch.arange(order, device=rows.device).repeat_interleave(len(rows) // order)

    def own(self, ids: Tensor) -> Tensor:
        """The ids that each branch reads."""
        return self.tokens.act_each(self._elements(ids), ids)

    def back(self, scores: Tensor) -> Tensor:
        """Scores (N, ..., words) of what each branch reads, for the context's frame."""
        return self.next_token.align_each(self._elements(scores), scores)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities (N, T, words) that each branch has, as ``logits``."""
        count, twice = len(input_ids), self.general is not None
        rows = self.own(input_ids)
        rows = torch.cat([rows, input_ids]) if twice else rows
        given: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        for name, value in given.items():
            if value is not None and twice:
                given[name] = value.expand(count, -1).repeat(2, 1)
        options = given | kept(self.model, logits_to_keep)
        output = self.model(
            input_ids=rows, past_key_values=past_key_values, use_cache=True, **options
        )
        likely = wide(output.logits).log_softmax(-1)
        own = self.back(likely[:count])
        if self.general is not None:
            own = relaxed(own.exp(), likely[count:].exp(), self.general)
            own = own.clamp(min=torch.finfo(own.dtype).tiny).log()
        return CausalLMOutputWithPast(logits=own, past_key_values=output.past_key_values)


@dataclasses.dataclass
class _Written:
    """What rows went on with."""

    ids: Tensor
    """(N, T); where a row has ended, padding."""
    real: Tensor
    """(N, T), whether it is no padding."""
    ended: Tensor
    """(N,), whether it ends with an EOS."""
    likely: Tensor | None
    """(N,), its log-probability, if it was asked for."""
    past: Any
    """The cache."""


def _continued(
    model: Any,
    batch: Any,
    limit: int,
    processors: LogitsProcessorList,
    past: Any = None,
    *,
    scored: bool = False,
) -> _Written:
    """Go on from contexts with some tokens, of the largest scores that the processors give."""
    more = {} if past is None else {"past_key_values": past}
    output = _generated(
        model, batch, limit, logits_processor=processors, output_logits=scored,
        return_dict_in_generate=True, **more,
    )  # fmt: skip
    new = output.sequences[:, batch["input_ids"].shape[1] :]
    ends = _ends(new, model.generation_config)
    real = ends.cumsum(-1) - ends.long() == 0
    likely = None
    if scored:
        steps = [
            logits.log_softmax(-1).gather(-1, token[:, None])
            for logits, token in zip(output.logits, new.T, strict=True)
        ]
        likely = (torch.cat(steps, 1) * real).sum(-1)
    return _Written(new, real, (ends & real).any(-1), likely, output.past_key_values)


def _generated(model: Any, batch: Any, limit: int, **options: Any) -> Any:
    """What `generate` writes of the most likely tokens, whatever the model's own config wants.

    Penalties of repetitions, say, would make texts others than are scored.
    """
    check_length(model, batch["input_ids"].shape[1] + limit)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id or 0,
    )
    try:
        return model.generate(**batch, max_new_tokens=limit, do_sample=False, **options)
    finally:
        model.generation_config = own


def _ends(ids: Tensor, config: Any) -> Tensor:
    """Which ids end a text."""
    end = [] if config.eos_token_id is None else config.eos_token_id
    return torch.isin(ids, torch.tensor(end, dtype=ids.dtype, device=ids.device))


def _shortened(past: Any, length: int) -> Any:
    """The cache of the first tokens, or None if it cannot be cut."""
    if past is None or not past.is_croppable:
        return None
    try:
        past.crop(length - past.get_seq_length())
    except RuntimeError:  # of a window that has slid on
        return None
    return past


def _read(tokenizer: Any, ids: Tensor, mask: Tensor) -> list[str]:
    """Rows of ids (N, T) as texts, of the tokens in the mask."""
    pairs = zip(ids.cpu(), mask.bool().cpu(), strict=True)
    return [tokenizer.decode(row[real], skip_special_tokens=True) for row, real in pairs]


def _after(tokenizer: Any, batch: Any, new: Tensor, real: Tensor) -> list[str]:
    """What new tokens (N, T) add to the texts of a batch."""
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    whole = _read(tokenizer, torch.cat([ids, new], 1), torch.cat([mask, real], 1))
    return [t[len(c) :] for c, t in zip(_read(tokenizer, ids, mask), whole, strict=True)]


def _check_regard(regard: Any) -> TextScore:
    if not callable(regard):
        raise TypeError(
            "regard maps a list of texts to a number each; fit one with "
            f"equicore.applications.text.Regard, or load one with load_regard; got {regard!r}"
        )
    return regard


def _regards(regard: TextScore, texts: list[str]) -> Tensor:
    """Shape (N,)."""
    found = torch.as_tensor(regard(texts)).detach().cpu().double()
    if found.shape != (len(texts),) or found.isnan().any():
        raise ValueError(
            f"regard gives a number for each of {len(texts)} texts; got shape {tuple(found.shape)}"
            + (", with NaN" if found.isnan().any() else "")
        )
    return found


def _best(regards: Tensor, likely: Tensor, keys: Sequence[Any]) -> Tensor:
    """The branch (B,) of best regard; ties by the log-probability, then at random."""
    tied = near(regards, regards.amax(0))
    likely = likely.cpu().where(tied, -torch.inf)
    tied &= near(likely, likely.amax(0))
    drawn = [np.random.default_rng(_number([*key, "tie"])).random(len(regards)) for key in keys]
    return torch.from_numpy(np.stack(drawn, 1)).where(tied, -1).argmax(0)


def _drawn(key: Any, texts: Sequence[str], weights: Sequence[float]) -> int:
    """An element by its weight; which text it leads to depends only on the orbit of texts."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    reached = np.cumsum([weights[g] for g in order])
    place = np.searchsorted(reached, np.random.default_rng(_number(key)).random() * reached[-1])
    return order[min(int(place), len(order) - 1)]


def _number(key: Any) -> int:
    return int(digest({"key": key}), 16)
