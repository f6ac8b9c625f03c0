"""Symmetrization: make any model equivariant under a finite group.

A model f is equivariant when f(g x) = g f(x). Each method here computes, in one batched forward
of |G| B samples, the aligned outputs g^-1 f(g x) of the whole orbit, and reduces them to one:

- `equitune`: their mean (Basu et al., AAAI 2023, eq. 2);
- `equizero`: the one whose f(g x) scores best (Basu et al., NeurIPS 2023, eq. 3);
- `lambda_equitune`: their mean with learned weights (NeurIPS 2023, eq. 4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equicore.batch import BatchAxes, BatchDim, check_batch, check_recurrent
from equicore.calls import Binding, Call, Model, Unchanged, unbound, warn_of_rows
from equicore.capture import check_submodule, frozen_statistics, run_and_capture
from equicore.reduce import INPUTS, Best, Mean, Reducer, StraightThrough, WeightedMean, far
from equicore.representations.base import (
    Action,
    Elements,
    Trivial,
    check_one_group,
    is_traced,
    orbit_size,
)
from equicore.scores import confidence
from equicore.trees import leaves, tree_map

Run = Callable[[Any], Any]
Places = range | list[int]
"""Of some elements among all."""

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""How pictures and volumes may be stored, by their number of axes."""


class Symmetrized(nn.Module):
    """A model made equivariant: orbit -> model -> align -> reduce.

    Works wherever the model did: it has the model's arguments, moves with ``.to``, and is saved by
    ``state_dict``. BatchNorm in training mode takes its statistics over the whole orbit, and
    dropout draws anew for each element: as for any model, equivariance is exact in ``eval`` mode.

    Args:
        model: Maps a batch (B, ...) to a batch (B, ...), sample by sample; tensors or trees.
        input_rep: How the group acts on the model's input.
        output_rep: How the group acts on the model's output.
        reduce: Reducer of the aligned outputs, see `equicore.reduce`.
        chunk: Run the model on this many elements at a time, so that memory does not grow with
            the group. With gradients, chunks are checkpointed: computed again in the backward
            pass. The result is the same up to rounding, but for BatchNorm in training mode, whose
            statistics are then those of a chunk.
        samples: In training mode, run the model on so many elements, drawn anew in each call from
            torch's random state: an unbiased estimate of the output. Exact in ``eval`` mode. For
            `Mean`, and for `WeightedMean` of the inputs alone, without a score.
        top_k: Run the model, for each sample, only on the elements of the k largest weights, and
            on those that tie with the last of them. For `WeightedMean` whose network sees the
            inputs. A score, which is then given the outputs (1, n, ...) of the chosen elements, is
            added to their log-weights; it does not decide which elements are chosen.
        batch_dim: The axis of the batch in the tensors that the model takes and returns. Where
            they differ a pair, of the input and of the output: (1, 0) for a classifier of
            (time, batch, features), (0, [0, [1, 1]]) for an LSTM that has the batch first, but
            not in its state. Representations count axes from the end with the batch on axis 0.
        elements: Finitely many elements of a continuous group, the identity first. What comes out
            is equivariant only inside `equicore.continuous.Canonicalized`.

    Raises:
        ValueError: If the representations are of different groups, or an option does not fit.
        TypeError: If ``reduce`` is no `Reducer`, or has no estimate from samples, or no weights
            for top_k.
    """

    _modules: dict[str, Any]  # faster to look up in than attributes
    accepts_loss_kwargs = False
    """Tells the Trainer of Hugging Face to keep arguments of the loss from the model."""

    def __init__(
        self,
        model: Model,
        input_rep: Action,
        output_rep: Action,
        reduce: Reducer,
        *,
        chunk: int | None = None,
        samples: int | None = None,
        top_k: int | None = None,
        batch_dim: BatchDim = 0,
        elements: Elements | None = None,
    ) -> None:
        super().__init__()
        for name, rep in (("input_rep", input_rep), ("output_rep", output_rep)):
            if not isinstance(rep, Action):
                raise TypeError(
                    f"{name} is a Representation, which says how a group acts; got {rep!r}"
                )
        group = check_one_group((input_rep, output_rep), "input and output representation")
        if not isinstance(reduce, Reducer):
            raise TypeError(f"reduce must be a Reducer; got {type(reduce).__name__}")
        scores = type(reduce).scores is not Reducer.scores
        if scores and not reduce.needs and "needs" not in vars(reduce):
            raise TypeError(f"{type(reduce).__name__} has scores; its needs say what they look at")
        order = orbit_size(group, elements)
        chunk, samples, top_k = (
            None if number is None else _count(name, number)
            for name, number in (("chunk", chunk), ("samples", samples), ("top_k", top_k))
        )
        if top_k is not None:
            if not isinstance(reduce, WeightedMean) or not reduce.looks_first:
                raise TypeError(
                    "top_k chooses elements by weights that are known before the model runs: it is "
                    "for lambda_equitune whose weight network sees the inputs"
                )
            if reduce.score is not None and type(reduce).scores is not WeightedMean.scores:
                raise TypeError(
                    f"top_k does not know how the scores of {type(reduce).__name__} depend on its "
                    "score; leave the score out, or override log_weights instead of scores"
                )
            if reduce.score is not None and top_k == 1:
                raise ValueError(
                    "with top_k=1 the weight network alone chooses, and a score changes nothing; "
                    "leave it out, or take top_k=2"
                )
        if top_k is not None and (chunk is not None or samples is not None):
            raise ValueError(
                "top_k already limits how often the model runs; it excludes chunk and samples"
            )
        if samples is not None and not reduce.estimates:
            raise TypeError(
                f"{type(reduce).__name__} has no unbiased estimate from a subset of the group; "
                "samples is for equitune, and for lambda_equitune without a score whose weight "
                "network sees the inputs"
            )
        if reduce.features is not None:
            check_submodule(unbound(model)[0], reduce.features)
        self._binding = Binding(model, input_rep.names)
        self._axes = BatchAxes(batch_dim)
        self.model, self._rebound = unbound(model)
        check_recurrent(self.model, output_rep, self._axes)
        self.group = group
        self.elements = elements
        self.order = order
        self.input_rep = input_rep
        self.output_rep = output_rep
        self.reduce = reduce
        self.chunk = chunk
        self.samples = samples
        self.top_k = top_k
        # plain attributes, which are looked up faster than those of a submodule
        self._needs = reduce.needs
        self._features = reduce.features
        self._averages = reduce.averages
        # DistributedDataParallel would send the tables of the representations in each forward pass
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, _ in self.named_buffers()
            if name.startswith(("input_rep.", "output_rep."))
        ]

    @property
    def batch_dim(self) -> BatchDim:
        """The axis of the batch, as it was given."""
        return self._axes.given

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """The equivariant output for a batch.

        Args:
            x: The input, a batch (B, ...) or a tree of batches, B >= 1. Where ``input_rep`` is a
                `Tree` that names arguments of the model, the input is all of these, given by
                keyword or by place; one that is left out is not given to the model.
            *args: Passed to the model as they are, and so are other keywords. A tensor in them
                with a row for each sample is warned of, as the model is given |G| B samples.

        Raises:
            ValueError: If the batch is empty, the model returns another number of samples than it
                was given, or it runs on a part of the group at a time and changes an argument,
                such as a cache.
        """
        x, run, others = self._bind(x, args, kwargs)
        order = self.order
        if self.samples is not None and self.training and self.samples < order:
            with Unchanged(others, "samples"):
                output = self._estimate(x, run, self.samples)
        elif self.top_k is not None and self.top_k < order:
            with Unchanged(others, "top_k"):
                output = self._heaviest(x, run, self.top_k)
        elif self.chunk is not None and self.chunk < order:
            output = self.reduce.finish(self._stream(x, run, others, self.chunk))
        else:
            output = self._modules["reduce"].whole(*self._branches(x, run))
        return self._axes.output_back(output)

    def aligned(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """What is reduced for an input of `forward`: g^-1 f(g x) of all elements, (|G|, B, ...)."""
        x, run, _ = self._bind(x, args, kwargs)
        return self._branches(x, run)[0]

    def views(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """What the reducer's scores see of an input of `forward`, each (|G|, B, ...).

        The orbit g x, or the model's features of it.
        """
        x, run, _ = self._bind(x, args, kwargs)
        orbit = self._orbit(x)
        return orbit if self._features is None else self._run(orbit, run)[1]

    def scores(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Tensor:
        """Log-weights or proxy scores of each element for an input of `forward`, shape (|G|, B).

        The model runs only if they depend on its features or outputs. With ``top_k`` and a score
        they are of all elements, also of those that `forward` does not choose.

        Raises:
            TypeError: If the reducer treats all elements alike.
        """
        x, run, _ = self._bind(x, args, kwargs)
        orbit = self._orbit(x)
        known = self._needs == INPUTS
        scores = self.reduce.scores(orbit, None) if known else self._scored(orbit, run)[1]
        if scores is None:
            raise TypeError(f"{type(self.reduce).__name__} treats all elements alike")
        return scores

    def _bind(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The input with its batch on axis 0, and the model as a function of it alone."""
        model = self._modules.get("model")  # of which some have a length, and may be false
        model = self._rebound(self.model if model is None else model)
        call = self._binding(model, x, args, kwargs)
        if not isinstance(call.x, Tensor) and self.input_rep.one_tensor:
            raise TypeError(
                f"input_rep acts on one tensor, and the input is a {type(call.x).__name__}; make "
                "input_rep a Tree of its entries"
            )
        x = self._axes.input_first(call.x)
        batch = check_batch(x)
        if call.others and not torch.compiler.is_compiling():
            warn_of_rows(call.others, batch, self._axes.inputs, self.order)
        return Call(x, call.run, call.others)

    def _branches(self, x: Any, run: Run, places: Places | None = None) -> Any:
        """Aligned outputs (n, B, ...) of all elements, or those at some places; scores (n, B)."""
        raw, scores = self._scored(self._orbit(x, places), run)
        return self._align(raw, places), scores

    def _orbit(self, x: Any, places: Places | None = None) -> Any:
        elements = self.elements if places is None else self._at(places)
        orbit = self._modules["input_rep"].orbit(x, elements)
        return _stored_as(orbit, x) if isinstance(x, Tensor) else tree_map(_stored_as, orbit, x)

    def _align(self, raw: Any, places: Places | None = None) -> Any:
        elements = self.elements if places is None else self._at(places)
        return self._modules["output_rep"].align(raw, elements)

    def _at(self, places: Places | Tensor) -> Elements:
        """The elements at some places: of a finite group the places themselves."""
        if self.elements is None:
            return places
        return self.elements[places.cpu() if isinstance(places, Tensor) else list(places)]

    def _scored(self, orbit: Any, run: Run) -> tuple[Any, Tensor | None]:
        """Raw outputs (n, B, ...), and their scores (n, B)."""
        if not self._needs:
            return self._run(orbit, run)[0], None
        if self._needs == INPUTS:  # before the model runs, which may change its inputs in place
            scores = self.reduce.scores(orbit, None)
            return self._run(orbit, run)[0], scores
        inputs = tree_map(torch.clone, orbit) if "inputs" in self._needs else None
        raw, seen = self._run(orbit, run)
        return raw, self.reduce.scores(seen if inputs is None else inputs, raw)

    def _run(self, orbit: Any, run: Run) -> tuple[Any, Any]:
        """Raw outputs (n, B, ...), and what the reducer's scores see."""
        if isinstance(orbit, Tensor):
            (order, batch), flat = orbit.shape[:2], orbit.flatten(0, 1)
        else:
            order, batch = leaves(orbit)[0].shape[:2]
            flat = tree_map(lambda x: x.flatten(0, 1), orbit)
        name = self._features
        if name is None:
            return _unflatten(self._call(run, flat, order * batch), order, batch), orbit
        assert isinstance(self.model, nn.Module)
        submodule = self.model.get_submodule(name)
        samples = order * batch
        raw, features = run_and_capture(submodule, name, lambda: self._call(run, flat, samples))
        features = self._axes.features_first(features, samples)
        seen = _unflatten(features, order, batch, f"its submodule {name}")
        return _unflatten(raw, order, batch), seen

    def _call(self, run: Run, flat: Any, samples: int) -> Any:
        """The model's selected outputs for samples on axis 0, with samples on axis 0."""
        raw = run(self._axes.input_back(flat))
        raw = self._modules["output_rep"].select(raw)
        if self._averages:
            for leaf in (raw,) if isinstance(raw, Tensor) else leaves(raw):
                if not (leaf.is_floating_point() or leaf.is_complex()):
                    raise TypeError(
                        f"outputs of {leaf.dtype} have no mean; symmetrise the scores that they "
                        "are made of, and leave them out of output_rep"
                    )
        return self._axes.output_first(raw, samples)

    def _partial(self, x: Any, run: Run, places: Places) -> Any:
        """The reducer's state after some elements."""
        stack, scores = self._branches(x, run, places)
        return self.reduce.partial(stack, scores, places)

    def _stream(self, x: Any, run: Run, others: dict[Any, Any], chunk: int) -> Any:
        """The reducer's state after all elements, ``chunk`` at a time."""
        state: Any = None
        for start in range(0, self.order, chunk):
            with Unchanged(others, "chunk"):
                part = self._part(x, run, range(start, min(start + chunk, self.order)))
            state = part if start == 0 else self.reduce.merge(state, part)
        return state

    def _part(self, x: Any, run: Run, places: Places) -> Any:
        """The reducer's state after some elements, checkpointed if there are gradients."""
        refused = torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
        if refused or not torch.is_grad_enabled():
            return self._partial(x, run, places)
        options: dict[str, Any] = {"use_reentrant": False}
        if not torch.compiler.is_compiling():  # which by itself updates statistics only once
            options["context_fn"] = functools.partial(frozen_statistics, self)
        return checkpoint(self._partial, x, run, places, **options)

    def _estimate(self, x: Any, run: Run, samples: int) -> Any:
        """An unbiased estimate of the output from a random subset of the group."""
        places = torch.randperm(self.order)[:samples].tolist()
        scores = self.reduce.scores(self._orbit(x), None) if self._needs else None
        raw, _ = self._run(self._orbit(x, places), run)
        return self.reduce.estimate(self._align(raw, places), scores, places)

    def _heaviest(self, x: Any, run: Run, top_k: int) -> Any:
        """The weighted mean over the elements of the largest weights, of each sample its own."""
        assert isinstance(self.reduce, WeightedMean)
        orbit = self._orbit(x)
        score = self.reduce.score
        scores = (
            self.reduce.scores(orbit, None) if score is None else self.reduce.log_weights(orbit)
        )
        order, batch = scores.shape
        # relative to the largest, as a constant added to all log-weights changes nothing
        known = scores.detach()
        largest, places = known.max(0)
        below = known - largest
        last = 0.0 if top_k == 1 else below.topk(top_k, dim=0).values[-1]
        lost = far(below, last)  # which a NaN is not
        # one for each sample, with all the weight; a graph cannot ask
        alone = not is_traced() and int(lost.sum()) == (order - 1) * batch
        if alone:
            rows = torch.arange(batch, device=places.device)
        else:
            rows, places = (~lost).T.nonzero().unbind(1)
        samples = rows.shape[0]
        raw = self._call(run, tree_map(lambda t: t[places, rows], orbit), samples)
        for leaf in (raw,) if isinstance(raw, Tensor) else leaves(raw):
            _check_samples(leaf, 1, samples)
        invariant = isinstance(self.output_rep, Trivial)
        aligned = raw if invariant else self.output_rep.align_each(self._at(places), raw)
        if alone and not scores.requires_grad:
            return aligned
        of_chosen = self.reduce.scored(scores[places, rows][None], tree_map(lambda y: y[None], raw))
        nothing = of_chosen.new_full(scores.shape, -torch.inf)
        weights = nothing.index_put((places, rows), of_chosen[0]).softmax(0)[places, rows]

        def add(y: Tensor) -> Tensor:
            weighted = weights.to(y.dtype).view(-1, *(1,) * (y.ndim - 1)) * y
            return y.new_zeros(batch, *y.shape[1:]).index_add(0, rows, weighted)

        return tree_map(add, aligned)


def equitune(
    model: Model,
    input_rep: Action,
    output_rep: Action,
    *,
    chunk: int | None = None,
    samples: int | None = None,
    batch_dim: BatchDim = 0,
) -> Symmetrized:
    """The mean of g^-1 f(g x) over the group (Basu et al., AAAI 2023, eq. 2).

    Arguments are those of `Symmetrized`.

    >>> import torch
    >>> from equicore import Trivial, image_rotations
    >>> f = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    >>> rotations = image_rotations()
    >>> invariant = equitune(f, rotations, Trivial(rotations.group))
    >>> x = torch.rand(5, 3, 3)
    >>> torch.allclose(invariant(x), invariant(x.rot90(1, (-2, -1))), atol=1e-6)
    True
    """
    return Symmetrized(
        model, input_rep, output_rep, Mean(), chunk=chunk, samples=samples, batch_dim=batch_dim
    )


def equizero(
    model: Model,
    input_rep: Action,
    output_rep: Action,
    score: Callable[[Any], Tensor] = confidence,
    gradient: Reducer | None = None,
    *,
    chunk: int | None = None,
    batch_dim: BatchDim = 0,
) -> Symmetrized:
    """The g^-1 f(g x) whose f(g x) scores best (Basu et al., NeurIPS 2023, eq. 3).

    Needs no training. Ties are averaged, see `equicore.reduce.Best`. Arguments are those of
    `Symmetrized`, and:

    Args:
        score: Proxy score, higher is better, see `equicore.scores`.
        gradient: For fine-tuning, take the gradient of this reducer instead of that of the chosen
            element, see `equicore.reduce.StraightThrough`.
    """
    reduce: Reducer = Best(score)
    if gradient is not None:
        reduce = StraightThrough(reduce, gradient)
    return Symmetrized(model, input_rep, output_rep, reduce, chunk=chunk, batch_dim=batch_dim)


def lambda_equitune(
    model: Model,
    input_rep: Action,
    output_rep: Action,
    weight: nn.Module,
    features: str | None = None,
    score: Callable[[Any], Tensor] | None = None,
    *,
    chunk: int | None = None,
    samples: int | None = None,
    top_k: int | None = None,
    batch_dim: BatchDim = 0,
) -> Symmetrized:
    """The mean of g^-1 f(g x) with learned weights (Basu et al., NeurIPS 2023, eq. 4).

    Arguments are those of `Symmetrized`, of which ``samples`` and ``top_k`` need a weight network
    that sees the inputs, and ``samples`` no score, and:

    Args:
        weight: Network that maps inputs (N, ...) to log-weights (N,); the weights are their
            softmax over the orbit. See `equicore.weights`.
        features: Name of a submodule of the model whose output the weight network sees instead
            of the inputs; it is captured from the model's own forward, not computed again.
        score: Added to the log-weights: a proxy score of the model's outputs, as of `equizero`,
            times how much it counts. A multiple that grows without bound gives equizero.
    """
    return Symmetrized(
        model,
        input_rep,
        output_rep,
        WeightedMean(weight, features, score),
        chunk=chunk,
        samples=samples,
        top_k=top_k,
        batch_dim=batch_dim,
    )


def _count(name: str, number: Any) -> int:
    """A number of elements, or ValueError."""
    if isinstance(number, bool) or not hasattr(number, "__index__") or int(number) < 1:
        raise ValueError(f"{name} is a number of elements, an integer from 1; got {number!r}")
    return int(number)


def _stored_as(orbit: Tensor, x: Tensor) -> Tensor:
    """The orbit, with its channels last where those of x are, by which some models are faster."""
    kind = CHANNELS_LAST.get(x.ndim)
    if kind is None or torch._C._are_functorch_transforms_active() or x.is_contiguous():
        return orbit
    if not x.is_contiguous(memory_format=kind):
        return orbit
    return orbit.flatten(0, 1).contiguous(memory_format=kind).unflatten(0, orbit.shape[:2])


def _check_samples(t: Tensor, order: int, batch: int, who: str = "the model") -> None:
    if t.ndim == 0 or t.shape[0] != order * batch:
        raise ValueError(
            f"the model was given {order} x {batch} = {order * batch} samples and {who} returned "
            f"shape {tuple(t.shape)}; the output must keep the samples on the batch's axis, which "
            "batch_dim says where it is not 0"
        )


def _unflatten(tree: Any, order: int, batch: int, who: str = "the model") -> Any:
    """Axis 0 of |G| B samples as two axes, or ValueError."""

    def split(t: Tensor) -> Tensor:
        _check_samples(t, order, batch, who)
        return t.reshape(order, batch, *t.shape[1:])

    return split(tree) if isinstance(tree, Tensor) else tree_map(split, tree)
