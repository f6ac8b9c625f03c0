"""torch.compile, torch.export and ONNX make of a symmetrized model what it is."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from equicore import (
    Best,
    Boxes,
    DirectSum,
    Identity,
    Matrix,
    Maximum,
    Mean,
    Permutation,
    StraightThrough,
    Symmetrized,
    Tokens,
    Tree,
    Trivial,
    assert_equivariant,
    confidence,
    cyclic,
    equitune,
    equizero,
    image_rotations,
    image_shifts,
    lambda_equitune,
    symmetric,
    vector_field,
)
from equicore.representations import Pullback

METHODS = ["equitune", "equizero", "lambda_equitune", "features"]
TOKENS = Tokens.from_cycles(cyclic(3), [[[1, 4, 2]]], size=8)
# of torch.onnx itself, and of torch's compiler, where graphs break
GRAD = "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
PYTREE = r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def images(batch=5):
    return torch.randn(batch, 1, 6, 6)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Words(nn.Module):
    """Ids (B, T) to logits (B, T, 8), sensitive to their order."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 8)

    def forward(self, ids):
        return self.head(self.mix(self.embedding(ids).cumsum(1)).tanh())


class Pooled(nn.Module):
    """Log-weights of sequences."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, 1)

    def forward(self, seen):
        return self.layer(seen.mean(1))


class OfIds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 1)

    def forward(self, ids):
        return (self.embedding(ids).squeeze(-1) * torch.arange(ids.shape[1])).sum(1)


def words(method, randomise, **options):
    model = Words()
    randomise(model, 3)
    rep = TOKENS.logits()
    if method == "equitune":
        return equitune(model, TOKENS, rep, **options)
    if method == "equizero":
        return equizero(model, TOKENS, rep, confidence.along(-1), **options)
    weight, features = (Pooled(6), "mix") if method == "features" else (OfIds(), None)
    return lambda_equitune(model, TOKENS, rep, weight, features, **options)


def ids(batch=4, length=5):
    return torch.randint(8, (batch, length))


# ---------------------------------------------------------- small models, whose graphs take seconds

SLOW = pytest.mark.slow


def slow_but(chosen, of):
    """All of them, of which the one chosen is fast."""
    return [name if name == chosen else pytest.param(name, marks=SLOW) for name in of]


S3 = Permutation.from_generators(symmetric(3), [[1, 0, 2], [1, 2, 0]])
SMALL = {
    "best": lambda f: equizero(f, S3, S3),
    "chunks of features": lambda f: lambda_equitune(f, S3, S3, nn.Linear(4, 1), "1", chunk=4),
}


def small(name):
    return SMALL[name](nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))


def test_a_small_model_compiled():
    model, x = small("chunks of features"), torch.randn(5, 3)
    check_compiled(model, model(x), x, "aot_eager")


@pytest.mark.parametrize("name", SMALL)
def test_small_models_exported_for_any_batch(name, tmp_path):
    model = small(name).eval()
    exported = export(model, (torch.randn(4, 3),), dynamic_shapes=ANY_BATCH)
    torch.export.save(exported, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2")
    for x in (torch.randn(2, 3), torch.randn(9, 3)):
        close(exported.module()(x), model(x), 1e-5)
        close(again.module()(x), model(x), 1e-5)
    assert set(exported.state_dict) >= set(model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings(PYTREE)
def test_a_small_model_through_onnx(tmp_path):
    model, x = small("chunks of features").eval(), torch.randn(9, 3)
    (output,) = through_onnx(model, torch.randn(4, 3), ANY_BATCH, tmp_path / "model.onnx", x)
    close(output, model(x), 1e-5)


# ---------------------------------------------------------------------------------- torch.compile

CHUNKS = pytest.mark.parametrize("chunk", [None, 3], ids=["whole", "chunk"])
MIRRORS = pytest.mark.parametrize("mirrors", [False, True], ids=["C4", "D4"])


def check_compiled(model, expected, x, backend):
    """Outputs and gradients of a graph without breaks."""
    output = torch.compile(model, fullgraph=True, backend=backend)(x)
    close(output, expected, 1e-5)
    assert expected.abs().amax() > 0.1
    parameters = list(model.parameters())
    found = torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, 1e-4)
    assert not any(module._forward_hooks for module in model.modules())


@SLOW
@CHUNKS
@pytest.mark.parametrize("method", METHODS)
def test_compiled_models_and_their_gradients(method, chunk, classifier, by_hand):
    model, x = classifier(method, chunk=chunk, mirrors=chunk is None), images()
    check_compiled(model, by_hand(model, x), x, "aot_eager")


@SLOW
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, g++")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "method, chunk", [*((method, None) for method in METHODS), ("features", 3)]
)
def test_compiled_by_inductor(method, chunk, classifier, by_hand):
    model, x = classifier(method, chunk=chunk, mirrors=False), images()
    check_compiled(model, by_hand(model, x), x, "inductor")


@SLOW
@CHUNKS
@pytest.mark.parametrize("method", METHODS)
def test_compiled_without_gradients(method, chunk, classifier, by_hand):
    model, x = classifier(method, chunk=chunk, mirrors=False).eval(), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(x), by_hand(model, x), 1e-5)


@SLOW
@MIRRORS
def test_compiled_a_chunk_at_a_time(mirrors, classifier, by_hand):
    """In a graph, checkpoints take other ways than outside."""
    model, x = classifier("features", chunk=3, norm=True, mirrors=mirrors), images()
    eager = copy.deepcopy(model)
    for run in (eager, torch.compile(model, fullgraph=True, backend="aot_eager")):
        run(x).square().sum().backward()
    assert model.model.trunk[1].num_batches_tracked == (3 if mirrors else 2)
    for a, b in zip(model.buffers(), eager.buffers(), strict=True):
        close(a, b)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        close(a.grad, b.grad, 1e-4)


@SLOW
@pytest.mark.parametrize("method", METHODS)
def test_compiled_once_for_all_calls_and_sizes(method, randomise):
    model = words(method, randomise)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(ids(3, 4))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((5, 6), (8, 3)):
            randomise(model, size[0])
            x = ids(*size)
            close(compiled(x), model(x), 1e-5)


REDUCERS = {
    "maximum": Maximum(),
    "through mean": StraightThrough(Best(confidence), Mean()),
    "through identity": StraightThrough(Best(confidence), Identity()),
}


@SLOW
@CHUNKS
@pytest.mark.parametrize("reducer", REDUCERS)
def test_compiled_reducers(reducer, chunk, classifier):
    model = classifier("", reduce=REDUCERS[reducer], chunk=chunk, mirrors=False)
    x = images()
    check_compiled(model, model(x), x, "aot_eager")


@SLOW
@pytest.mark.parametrize("method", METHODS)
def test_compiled_sequences(method, randomise):
    model, x = words(method, randomise), ids()
    check_compiled(model, model(x), x, "aot_eager")
    assert_equivariant(model, TOKENS, TOKENS.logits(), x)


@SLOW
@CHUNKS
@pytest.mark.parametrize("method", METHODS)
def test_compiled_batch_norm_is_updated_as_often(method, chunk, classifier):
    eager, compiled = (classifier(method, norm=True, chunk=chunk) for _ in range(2))
    function = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    x = images()
    for model, run in ((eager, eager), (compiled, function)):
        run(x).square().sum().backward()
        assert model.model.trunk[1].num_batches_tracked == (1 if chunk is None else 3)
    for name, buffer in eager.named_buffers():
        close(dict(compiled.named_buffers())[name], buffer)
    for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
        close(a.grad, b.grad, 1e-4)


@pytest.mark.parametrize("method", slow_but("features", METHODS))
def test_models_that_are_compiled_inside(method, classifier, by_hand):
    model = classifier(method).eval()
    x = images()
    expected = by_hand(model, x)
    model.model.compile(backend="aot_eager")
    for _ in range(3):
        close(model(x), expected, 1e-5)
    assert not any(module._forward_hooks for module in model.modules())


@SLOW
@pytest.mark.filterwarnings(GRAD)
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("name", ["top_k", "samples"])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # not yet so in torch 2.8
def test_compiled_where_the_elements_depend_on_data(name, fullgraph, classifier):
    """Those of top_k are a tensor of unknown size; random ones are known outside graphs only."""
    model, x = classifier("lambda_equitune", mirrors=False, **{name: 2}), images()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    if name == "samples" and fullgraph:
        with pytest.raises(torch._dynamo.exc.TorchDynamoException):
            compiled(x)
        return
    for seed in range(2):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        output = compiled(x)
        close(output, expected, 1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    found = torch.autograd.grad(output.square().sum(), list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 1e-4)


TURNS = image_rotations()
QUARTERS = [[[0, -1], [1, 0]]]
REPRESENTATIONS = {
    "matrix": (Matrix.from_generators(cyclic(4), QUARTERS), (2,)),
    "matrix of another axis": (Matrix.from_generators(cyclic(4), QUARTERS, dim=-2), (2, 3)),
    "permutation of another axis": (
        Permutation.from_generators(cyclic(4), [[1, 2, 3, 0]], dim=-2),
        (4, 2),
    ),
    "shifts": (image_shifts(4, 4, step=2), (4, 4)),
    "vector field": (vector_field(TURNS), (2, 4, 4)),
    "boxes": (Boxes(TURNS, "corners"), (3, 4)),
    "sum": (DirectSum([(Boxes(TURNS), 4), (Trivial(TURNS.group), 2)]), (6,)),
    "pullback": (Pullback(cyclic(2), Matrix.from_generators(cyclic(4), QUARTERS), [0, 2]), (2,)),
}


class Lopsided(nn.Module):
    """Leaves the shape as it is, and is equivariant under no group; also of trees."""

    def forward(self, x):
        if isinstance(x, dict):
            return {name: self(entry) for name, entry in x.items()}
        ramp = torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype).view(x.shape[1:])
        return (ramp * x + ramp.flip(0)).tanh()


def all_at_once():
    """Every representation of C4 in one tree, so that there is one graph to make."""
    names = [n for n, (rep, _) in REPRESENTATIONS.items() if rep.group == cyclic(4)]
    assert len(names) == 6
    rep = Tree({name: REPRESENTATIONS[name][0] for name in names})

    def batch(size):
        return {name: torch.rand(size, *REPRESENTATIONS[name][1]) for name in names}

    return rep, batch


@SLOW
@CHUNKS
def test_representations_in_graphs_of_any_batch(chunk):
    rep, batch = all_at_once()
    model = Symmetrized(Lopsided(), rep, rep, Mean(), chunk=chunk)
    x = batch(7)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    shapes = ({name: {0: Dim("batch", min=2)} for name in x},)
    exported = export(model, (batch(5),), dynamic_shapes=shapes).module()(x)
    for name, entry in expected.items():
        close(compiled[name], entry)
        close(exported[name], entry)
        assert not torch.allclose(entry, Lopsided()(x[name]), atol=1e-2)


@pytest.mark.parametrize("name", slow_but("sum", REPRESENTATIONS))
def test_each_representation_in_graphs_of_any_batch(name):
    rep, shape = REPRESENTATIONS[name]
    model = Symmetrized(Lopsided(), rep, rep, Mean())
    x = torch.rand(7, *shape)
    exported = export(model, (torch.rand(5, *shape),), dynamic_shapes=ANY_BATCH)
    close(exported.module()(x), model(x))
    assert not torch.allclose(model(x), Lopsided()(x), atol=1e-2)


# ----------------------------------------------------------------------------------- torch.export

ANY_BATCH = ({0: Dim("batch", min=2)},)
ANY_BATCH_AND_TIME = ({0: Dim("batch", min=2), 1: Dim("time", min=2)},)


@SLOW
@CHUNKS
@pytest.mark.parametrize("method", METHODS)
def test_exported_for_any_batch(method, chunk, classifier, by_hand, tmp_path):
    model = classifier(method, norm=True, chunk=chunk, mirrors=chunk is None).eval()
    exported = export(model, (images(),), dynamic_shapes=ANY_BATCH)
    for batch in (2, 9):
        x = images(batch)
        close(exported.module()(x), by_hand(model, x), 1e-5)
    torch.export.save(exported, tmp_path / "model.pt2")
    close(torch.export.load(tmp_path / "model.pt2").module()(x), by_hand(model, x), 1e-5)
    assert set(exported.state_dict) >= set(model.state_dict())
    assert not any(module._forward_hooks for module in model.modules())


@SLOW
@CHUNKS
@pytest.mark.parametrize("method", METHODS[:3])
def test_exported_strictly(method, chunk, classifier, by_hand):
    model = classifier(method, chunk=chunk, mirrors=False).eval()
    exported = export(model, (images(),), dynamic_shapes=ANY_BATCH, strict=True)
    x = images(9)
    close(exported.module()(x), by_hand(model, x), 1e-5)


@pytest.mark.parametrize("method", slow_but("equizero", METHODS))
def test_exported_sequences_of_any_batch_and_length(method, randomise):
    model = words(method, randomise).eval()
    exported = export(model, (ids(),), dynamic_shapes=ANY_BATCH_AND_TIME).module()
    for size in ((2, 3), (7, 9)):
        x = ids(*size)
        close(exported(x), model(x), 1e-5)
    assert_equivariant(exported, TOKENS, TOKENS.logits(), x)


class Masked(Words):
    def forward(self, ids, mask):
        return {"logits": super().forward(ids * mask)}


class Named(nn.Module):
    """With named arguments: torch.export has no dynamic shapes for those of ``**kwargs``."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        return self.model(ids=ids, mask=mask)


def test_exported_with_keywords_and_trees():
    rep = Tree({"ids": TOKENS, "mask": Trivial(TOKENS.group)})

    def score(y):
        return confidence.along(-1)(y["logits"])

    model = equizero(Masked(), rep, Tree({"logits": TOKENS.logits()}), score).eval()

    def batch(size):
        return {"ids": torch.randint(8, size), "mask": (torch.rand(size) > 0.2).long()}

    same_size, other = batch((4, 5)), batch((7, 5))
    static = export(model, (), batch((4, 5))).module()
    close(static(**same_size)["logits"], model(**same_size)["logits"], 1e-5)
    any_batch = {0: Dim("batch", min=2)}
    shapes = {"ids": any_batch, "mask": any_batch}
    dynamic = export(Named(model), (), batch((4, 5)), dynamic_shapes=shapes).module()
    close(dynamic(**other)["logits"], model(**other)["logits"], 1e-5)


# ------------------------------------------------------------------------------------------- ONNX


def through_onnx(model, example, shapes, path, *inputs):
    """What onnxruntime makes of inputs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    return [torch.from_numpy(session.run(None, {name: x.numpy()})[0]) for x in inputs]


@SLOW
@pytest.mark.filterwarnings(PYTREE)
@pytest.mark.parametrize("method", METHODS)
def test_onnx_of_images_of_any_batch(method, classifier, by_hand, tmp_path):
    model = classifier(method, norm=True, mirrors=False).eval()
    inputs = images(2), images(9)
    outputs = through_onnx(model, images(), ANY_BATCH, tmp_path / "model.onnx", *inputs)
    for x, output in zip(inputs, outputs, strict=True):
        close(output, by_hand(model, x), 1e-4)


@SLOW
@pytest.mark.filterwarnings(PYTREE)
@pytest.mark.parametrize("method", METHODS)
def test_onnx_of_sequences_of_any_batch_and_length(method, randomise, tmp_path):
    model = words(method, randomise).eval()
    inputs = ids(2, 3), ids(7, 9)
    outputs = through_onnx(model, ids(), ANY_BATCH_AND_TIME, tmp_path / "model.onnx", *inputs)
    for x, output in zip(inputs, outputs, strict=True):
        close(output, model(x), 1e-4)


@SLOW
@pytest.mark.filterwarnings(PYTREE)
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_onnx_of_representations(name, tmp_path):
    rep, shape = REPRESENTATIONS[name]
    model = Symmetrized(Lopsided(), rep, rep, Mean(), chunk=3).eval()
    x = torch.rand(7, *shape)
    (output,) = through_onnx(model, torch.rand(5, *shape), ANY_BATCH, tmp_path / "model.onnx", x)
    close(output, model(x), 1e-5)
