"""EquiLM and R-EquiLM: any causal language model of Hugging Face, made equivariant token by token.

A group g exchanges words, and so tokens. With p the plain model, c a context and v a token:

- EquiLM: q(v | c) = mean over g of p(g v | g c). Exactly equivariant: q(g v | g c) = q(v | c).
- R-EquiLM is given neutral words N beside the list of words E. The general rest keeps its plain
  probability, q(v | c) = p(v | c); what is left goes to E and N in the ratios of the mean. So
  ratios within E and N are equivariant, and nothing else.
- With a weight for each context in place of 1 / |G|: lambda-EquiLM.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from equicore.applications.text.language import (
    BATCH_SIZE,
    check_pair,
    next_token_batch,
    next_token_loss,
    padding,
    tokens,
)
from equicore.applications.text.words import WordGroup, WordTokens
from equicore.decoding import PerToken
from equicore.finetuning import fit
from equicore.reduce import Mean, Reducer, WeightedMean, wide
from equicore.representations import Tree, Trivial
from equicore.symmetrize import Symmetrized
from equicore.weights import MLPWeight


class WordModel(PreTrainedModel, GenerationMixin):
    """Base: a language model around another one, with its ``generate``; logits are logs.

    Args:
        model: Causal language model of Hugging Face. It is shared, not copied.
        tokenizer: Its tokenizer.
        words: What is exchanged.
        neutral: Neutral words of a relaxed model, in addition to those of ``words``. All other
            tokens are general. Words that are no single token are general too.

    Raises:
        TypeError: If the model is an encoder-decoder, or none of Hugging Face.
        ValueError: If the tokenizer is another model's, or cuts a listed word into several tokens.
    """

    general: Tensor | None
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self, model: Any, tokenizer: Any, words: WordGroup, neutral: Iterable[str] | None = None
    ) -> None:
        check_pair(model, tokenizer)
        if getattr(model, "_is_stateful", False):
            raise TypeError(
                f"{type(model).__name__} keeps a state of its own and no key-value cache, which "
                "branches would share; WholeText and BestText take it"
            )
        super().__init__(copy.deepcopy(model.config))
        self.generation_config = copy.deepcopy(model.generation_config)
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = padding(tokenizer)
        self.tokenizer = tokenizer
        self.words = WordTokens(words, tokenizer, model.get_output_embeddings().weight.shape[0])
        self.tokens = self.words.tokens
        self.next_token = self.tokens.logits()
        general = None
        if neutral is not None:
            general = torch.ones(self.tokens.size, dtype=torch.bool)
            general[self.words.ids(neutral)] = False
            moved = self.tokens.permutations != torch.arange(self.tokens.size)
            general[moved.any(0)] = False
        self.register_buffer("general", general, persistent=False)
        self.train(model.training)
        self.to(device=model.device)  # type: ignore[call-arg]

    def get_input_embeddings(self) -> nn.Module:
        """The model's own."""
        return self._plain().get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The model's own."""
        return self._plain().get_output_embeddings()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the model inside, which is to be wrapped again when it is loaded.

        Raises:
            TypeError: If there is a weight network, which would be lost.
        """
        if len(list(self.parameters())) > len(list(self._plain().parameters())):
            raise TypeError("save the model inside and the weight network, each on its own")
        kwargs.pop("state_dict", None)  # which a Trainer gives, of this one
        self._plain().save_pretrained(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load parameters of this model, or of the one inside, as `save_pretrained` saves them."""
        if state_dict and not state_dict.keys() & self.state_dict().keys():
            return self._plain().load_state_dict(state_dict, *args, **kwargs)
        return super().load_state_dict(state_dict, *args, **kwargs)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:  # of the model inside, in its configuration
        return True

    def _plain(self) -> Any:
        raise NotImplementedError


class EquiLM(WordModel):
    """A causal language model that treats exchanged contexts alike, token by token.

    It works wherever the model did: ``generate`` with sampling, beams, streaming, padding and stop
    tokens; with ``labels`` for fine-tuning. All branches run as one batch, with one cache.

    Its logits are log-probabilities. Where g leaves a context as it is, tokens that g exchanges are
    equally likely: no greedy choice of one is equivariant there, drawing is.

    Args:
        model, tokenizer, words, neutral: As of `WordModel`; with ``neutral`` it is R-EquiLM.
        mean: Of what: of probabilities, or of log-probabilities, which are then normalised again;
            that is the mean of logits.
        weight: Maps a dict with ``features`` (N, width), the last hidden state of a context that
            ends with each token, to log-weights (N,): lambda-EquiLM. See `fit_weight`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        words: WordGroup,
        neutral: Iterable[str] | None = None,
        *,
        mean: Literal["probabilities", "logits"] = "probabilities",
        weight: nn.Module | None = None,
    ) -> None:
        if mean not in ("probabilities", "logits"):
            raise ValueError(f"mean is of probabilities or of logits; got {mean!r}")
        super().__init__(model, tokenizer, words, neutral)
        self.branches = _Branches(model, mean == "probabilities", weight is not None)
        reduce: Reducer = Mean()
        if weight is not None:
            reduce = PerToken(WeightedMean(weight.to(self.device), of_outputs=True))
        self.reduce = reduce

    def _plain(self) -> Any:
        return self.branches.model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Log-probabilities (B, T, words) of the next token, as ``logits``, for ids (B, T).

        Raises:
            TypeError: For an argument that it would have to ignore.
        """
        _check_arguments(self, kwargs)
        batch = {"input_ids": input_ids}
        for name, rows in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if rows is not None:
                batch[name] = rows.expand(len(input_ids), *rows.shape[1:])
        options = {"past_key_values": past_key_values, "use_cache": use_cache}
        self.branches.options = options | kept(self.branches.model, logits_to_keep)
        mean = self._symmetrized(tuple(batch))(batch)["next"]
        past, plain = self.branches.last
        self.branches.last = None, None
        if not self.branches.of_probabilities:
            mean = mean.softmax(-1)
        if self.general is not None:
            # the identity's branch comes first
            mean = relaxed(mean, plain[: len(mean)].softmax(-1), self.general)
        logits = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        loss = None
        if labels is not None:
            count = {n: v for n, v in kwargs.items() if n == "num_items_in_batch"}
            loss = self.loss_function(logits, labels, logits.shape[-1], **count)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As of the model; warns where exchanging tokens of a context does not exchange words."""
        ids = kwargs.get("input_ids", inputs)
        if isinstance(ids, Tensor):
            self._check_contexts(ids)
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _check_contexts(self, ids: Tensor) -> None:
        for row in ids.unique(dim=0):
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            if self.words.unlike(text, row):
                warnings.warn(
                    f"exchanging tokens of the context {text!r} does not exchange its words "
                    f"({', '.join(self.words.words.found(text)) or 'it has none'}): some are no "
                    "single token in this form for all words of their entry, see words.report, or "
                    "a token goes on to another word; WholeText exchanges words",
                    stacklevel=3,
                )
                return

    def _symmetrized(self, names: Sequence[str]) -> Symmetrized:
        same = Trivial(self.tokens.group)
        inputs = Tree({name: self.tokens if name == "input_ids" else same for name in names})
        outputs: dict[str, Any] = {"next": self.next_token}
        if self.branches.features:
            outputs["features"] = same
        return Symmetrized(self.branches, inputs, Tree(outputs), self.reduce)

    def _reorder_cache(self, past: Any, beams: Tensor) -> Any:
        """The cache when beams change places: in all branches."""
        order = len(self.tokens.group)
        past.reorder_cache(torch.cat([beams + g * len(beams) for g in range(order)]))
        return past


class _Branches(nn.Module):
    """The plain model as a function of a batch of all branches, whose cache and logits it keeps."""

    def __init__(self, model: Any, of_probabilities: bool, features: bool) -> None:
        super().__init__()
        self.model, self.of_probabilities, self.features = model, of_probabilities, features
        self.options: dict[str, Any] = {}
        self.last: tuple[Any, Any] = None, None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What comes ``next``, (N, T, words), and ``features`` (N, T, width)."""
        more = {"output_hidden_states": True} if self.features else {}
        output = self.model(**batch, **self.options, **more)
        logits = wide(output.logits)
        past = getattr(output, "past_key_values", None)
        if past is None and self.options.get("past_key_values") is not None:
            raise TypeError(
                f"{type(self.model).__name__} keeps no key-value cache; generate with "
                "use_cache=False, or take WholeText"
            )
        self.last = past, logits
        found = {"next": logits.softmax(-1) if self.of_probabilities else logits.log_softmax(-1)}
        if self.features:
            keep = self.options.get("logits_to_keep", 0)
            keep = slice(-keep if keep else None, None) if isinstance(keep, int) else keep
            found["features"] = output.hidden_states[-1][:, keep]
        return found


def _check_arguments(model: nn.Module, others: dict[str, Any]) -> None:
    """Raise TypeError for arguments that a model around another one would have to ignore."""
    harmless = {"return_dict", "num_items_in_batch", "cache_position"}
    ignored = [
        name
        for name, value in others.items()
        if name not in harmless and value is not None and value is not False
        if not (name == "token_type_ids" and not value.any())
    ]
    if ignored:
        raise TypeError(f"{type(model).__name__} takes no {', '.join(ignored)}")


def kept(model: Any, logits_to_keep: int | Tensor) -> dict[str, Any]:
    """The argument of a model that leaves out logits nobody asks for, if it has one."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": logits_to_keep} if known else {}


def relaxed(exchanged: Tensor, plain: Tensor, general: Tensor) -> Tensor:
    """Probabilities (..., words): general ones as they are plain, others in the ratios exchanged.

    >>> relaxed(torch.tensor([0.1, 0.3, 0.6]), torch.tensor([0.2, 0.2, 0.6]),
    ...         torch.tensor([False, False, True]))
    tensor([0.1000, 0.3000, 0.6000])
    """
    same = plain.where(general, 0)
    moved = exchanged.where(~general, 0)
    total = moved.sum(-1, keepdim=True)
    left = plain.where(~general, 0).sum(-1, keepdim=True)
    return same + moved * (left / total.clamp(min=torch.finfo(total.dtype).tiny))


def fit_weight(
    model: Any,
    tokenizer: Any,
    words: WordGroup,
    texts: Sequence[str],
    *,
    steps: int = 300,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> MLPWeight:
    """The weight of a lambda-EquiLM that makes texts most likely; the model is frozen."""
    if not texts:
        raise ValueError("there are no texts to fit a weight to")
    width = model.get_input_embeddings().weight.shape[1]
    weight = MLPWeight({"features": (width,)}, (32,), seed=seed).to(model.device, model.dtype)
    fair = EquiLM(model, tokenizer, words, weight=weight)
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            places = torch.randint(len(texts), (BATCH_SIZE,), generator=generator).tolist()
            rows = [itertools.chain(*tokens(tokenizer, "", texts[i])) for i in places]
            ids, labels = next_token_batch([list(row) for row in rows])
            yield ids.to(model.device), labels.to(model.device)

    optimizer = torch.optim.Adam(weight.parameters(), learning_rate)
    fit(fair, batches(), next_token_loss, optimizer, progress=progress)
    return weight.eval()
