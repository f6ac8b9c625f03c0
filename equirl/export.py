"""Symmetrised policies as files that run without equirl: ONNX, or PyTorch's exported programs.

The file holds what lies between an observation, as the environment emits it, and the action that
``predict(..., deterministic=True)`` returns: normalisation, preprocessing, the orbit, the network,
the choice of a view, the way back, and bounds.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn
from torch.export import Dim

import equicore
from equicore import Symmetrized
from equicore.lab.store import replacing
from equirl.choices import options_of
from equirl.normalization import Normalized
from equirl.preprocessing import moves_channels
from equirl.symmetry import ChannelsFirst

if TYPE_CHECKING:
    from equirl.symmetrized import SymmetrizedPolicy

SUFFIXES = (".onnx", ".pt2")
"""What can be written."""

BATCHES = (1, 64)
"""How many observations the written file is tried on at once."""

CLOSE = 1e-4
"""Relative difference of numbers that two runtimes compute alike."""

Run = Callable[..., NDArray[Any]]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how it compared with the policy.

    Attributes:
        path: The file.
        compared: Observations on which both were run.
        alike: Of these, where the file took another action that the policy values alike up to
            rounding.
    """

    path: Path
    compared: int
    alike: int


def export(policy: SymmetrizedPolicy, path: str | Path) -> Exported:
    """See `SymmetrizedPolicy.export`."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        known = " and ".join(SUFFIXES)
        raise ValueError(f"policies are exported to {known} files; got {str(path)!r}")
    if not isinstance(policy.policy.observation_space, spaces.Box):
        raise TypeError(
            f"policies of arrays can be exported; this one sees {policy.policy.observation_space}"
        )
    onnx = path.suffix == ".onnx"
    if onnx:
        _check_installed()
    samples = _Samples(policy)
    module = Deployed(policy)
    with replacing(path) as temporary:
        with _silence():
            program = _traced(module, samples)
            if onnx:
                _write_onnx(policy, program, temporary)
                run = _run_onnx(temporary)
            else:
                torch.export.save(program, temporary)
                run = _run_program(temporary)
            batches = [samples.draw(size) for size in BATCHES]
            results = [run(*inputs) for inputs in batches]
        alike = sum(_compare(policy, *each) for each in zip(batches, results, strict=True))
    return Exported(path, sum(BATCHES), alike)


class Deployed(nn.Module):
    """From observations as the environment emits them to actions as ``predict`` returns them.

    It is a copy, on the CPU: what the agent learns later, it does not know.

    Args:
        policy: What is exported.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: SymmetrizedPolicy) -> None:
        super().__init__()
        own, model = policy.symmetrized, policy.head
        seen_by: nn.Module = model
        if policy.normalized is not None:
            seen_by = Normalized(model, policy.normalized.statistics)
        whole = Symmetrized(seen_by, own.input_rep, own.output_rep, own.reduce, top_k=own.top_k)
        # distributions, which may hold tensors that cannot be copied, are not run
        found = (vars(module).get("action_dist") for module in whole.modules())
        shared = {id(distribution): distribution for distribution in found}
        self.symmetrized = copy.deepcopy(whole, shared).cpu().eval()
        self.masked = model.masked
        self.channels_last = emits_channels_last(policy)
        space = policy.action_space
        self.options = options_of(space)
        self.shape = space.shape or ()
        self.single = isinstance(space, spaces.Discrete)
        self.as_numbers = isinstance(space, spaces.MultiBinary) and not self.masked
        if isinstance(space, spaces.Box):
            for name in ("low", "high"):
                bound = torch.from_numpy(np.array(getattr(space, name)))
                self.register_buffer(name, bound, persistent=False)

    def forward(self, observation: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Actions (B, ...) for observations (B, ...), and masks (B, options) if it takes them."""
        seen = observation.movedim(-1, 1) if self.channels_last else observation
        inputs = {"observation": seen, "mask": action_masks} if self.masked else seen
        reduced = self.symmetrized(inputs)
        if self.options is None:
            return reduced["action"].clamp(self.low, self.high)
        if self.single:
            return reduced.argmax(-1)
        chosen = torch.stack([part.argmax(-1) for part in reduced.split(self.options, -1)], -1)
        chosen = chosen.float() if self.as_numbers else chosen
        return chosen.unflatten(-1, self.shape)


def emits_channels_last(policy: SymmetrizedPolicy) -> bool:
    """Whether the environment emits images whose channels its agent sees in front."""
    space = policy.policy.observation_space
    if not is_image_space(space):
        return False
    moved = moves_channels(policy.model)
    seen = policy.symmetry.seen_by_agent(space, moved)
    return isinstance(seen.observation, ChannelsFirst) if moved is None else moved


class _Samples:
    """Draws inputs of an exported policy, and group images of them, from its own generator."""

    def __init__(self, policy: SymmetrizedPolicy) -> None:
        self.policy = policy
        self.channels_last = emits_channels_last(policy)
        self.generator = np.random.default_rng(0)

    def draw(self, count: int) -> tuple[NDArray[Any], ...]:
        """Observations as the environment emits them, and masks where the policy takes them."""
        policy, space = self.policy, self.policy.policy.observation_space
        assert isinstance(space, spaces.Box)
        shape = count, *space.shape
        if policy.normalized is not None:
            numbers = self.generator.normal(size=shape).clip(-2, 2)
            statistics = policy.normalized.statistics
            drawn = statistics.mean + statistics.deviation * numbers
        else:
            drawn = _drawn(space, self.generator, shape)
        observations = drawn.astype(space.dtype)
        if self.channels_last:
            observations = np.moveaxis(observations, 1, -1).copy()
        for i in range(1, count, 2):
            g = i % len(policy.symmetry.group)
            moved = policy.symmetry.act_on_observations(g, observations[i : i + 1])
            observations[i] = moved[0]
        if not policy.head.masked:
            return (observations,)
        masks = []
        for options in options_of(policy.action_space) or ():
            allowed = self.generator.random((count, options)) < 0.7
            allowed[np.arange(count), self.generator.integers(options, size=count)] = True
            masks.append(allowed)
        return observations, np.concatenate(masks, 1)


def _drawn(
    space: spaces.Box, generator: np.random.Generator, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Numbers within bounds, where these are no larger than any number of use."""
    if not np.issubdtype(space.dtype, np.floating):
        low, high = (bound.astype(np.int64) for bound in (space.low, space.high))
        return generator.integers(low, high, size=shape, endpoint=True)
    bounded = (abs(space.low) < 1e6) & (abs(space.high) < 1e6)
    low, high = (np.where(bounded, bound, 0) for bound in (space.low, space.high))
    return np.where(bounded, generator.uniform(low, high, shape), generator.normal(size=shape))


def _compare(
    policy: SymmetrizedPolicy, inputs: tuple[NDArray[Any], ...], found: NDArray[Any]
) -> int:
    """How many actions differ only by a choice between what is alike; ValueError for others."""
    plain = copy.copy(policy)
    plain.shown_normalized = False  # as the file is
    seen, *masks = inputs
    if emits_channels_last(policy):
        seen = np.moveaxis(seen, -1, 1).copy()
    with _silence():
        expected, _ = plain.predict(seen, None, None, True, *masks)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"the exported policy returns {found.dtype} {found.shape} and the policy "
            f"{expected.dtype} {expected.shape}"
        )
    size = 1 + abs(expected)
    rows = (abs(found - expected) > CLOSE * size).reshape(len(seen), -1).any(1).nonzero()[0]
    if not len(rows):
        return 0
    batch = plain.inputs(plain.obs_to_tensor(seen)[0], *masks)
    alike = _alike(plain, batch, found) & _alike(plain, batch, expected)
    if wrong := [row for row in rows if not alike[row]]:
        raise ValueError(
            f"the exported policy takes other actions than the policy on {len(wrong)} of "
            f"{len(seen)} observations, as {found[wrong[0]]} in place of {expected[wrong[0]]} for "
            f"{seen[wrong[0]]}; no file is left"
        )
    return len(rows)


def _alike(policy: SymmetrizedPolicy, batch: Any, found: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether actions are among those that a policy values as its own, up to rounding."""
    symmetrized, space = policy.symmetrized, policy.action_space
    with torch.inference_mode():
        options = options_of(space)
        if options is not None:
            values = symmetrized(batch).cpu()
            chosen = torch.from_numpy(found).long().reshape(len(found), -1)
            good = []
            for place, part in enumerate(values.split(options, -1)):
                own = part.gather(-1, chosen[:, place : place + 1]).squeeze(-1)
                good.append(_near(own, part.amax(-1)))
            return torch.stack(good).all(0).numpy()
        if not symmetrized.reduce.needs:
            return np.zeros(len(found), bool)
        scores = symmetrized.scores(batch)
        near = _near(scores, scores.amax(0)).cpu().numpy()  # (|G|, B)
        actions = symmetrized.aligned(batch)["action"].cpu().numpy()
    assert isinstance(space, spaces.Box)
    actions = np.clip(actions, space.low, space.high)
    near = near.reshape(*near.shape, *(1,) * (actions.ndim - 2))
    # the mean of some of them lies between all
    least = np.where(near, actions, np.inf).min(0)
    most = np.where(near, actions, -np.inf).max(0)
    rounding = CLOSE * (1 + abs(found))
    inside = (found >= least - rounding) & (found <= most + rounding)
    return inside.reshape(len(found), -1).all(1)


def _near(values: Tensor, best: Tensor) -> Tensor:
    return (values >= best - CLOSE * (1 + best.abs())) | (values == best)


def _traced(module: Deployed, samples: _Samples) -> torch.export.ExportedProgram:
    """The module as a graph for batches of any size."""
    examples = tuple(torch.from_numpy(array) for array in samples.draw(3))
    batch = Dim("batch", min=1)
    names = ("observation", "action_masks")
    shapes = {name: {0: batch} for name, _ in zip(names, examples, strict=False)}
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=shapes)


def _write_onnx(
    policy: SymmetrizedPolicy, program: torch.export.ExportedProgram, path: Path
) -> None:
    written = torch.onnx.export(program, dynamo=True, output_names=["action"], verbose=False)
    assert written is not None
    written.model.metadata_props.update(
        policy=repr(policy),
        symmetry=repr(policy.symmetry.group),
        equirl=equicore.__version__,
        observation_space=str(policy.observation_space),
        action_space=str(policy.action_space),
    )
    written.save(path)


def _run_program(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            return module(*(torch.from_numpy(array) for array in inputs)).numpy()

    return run


def _run_onnx(path: Path) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    return run


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs {error.name}: pip install 'equirl[export]'; .pt2 needs none"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What torch tells of its own steps, which no user can change."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
