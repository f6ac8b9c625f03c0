"""Canonicalized models and canonical-lambda-equitune under continuous groups."""

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equicore import MLPWeight, Tree, Trivial, assert_equivariant, image_rotations
from equicore.continuous import (
    Canonicalized,
    Centred,
    GramSchmidt,
    Motion,
    Points,
    PrincipalAxes,
    Reordering,
    Rows,
    Sorting,
    VectorMix,
    Vectors,
    VectorSum,
    canonical_lambda_equitune,
    random_motions,
    rotations_2d,
    sign_frames,
)

FLOATS = [torch.float32, torch.float64]
ROWS = 4


@dataclass(frozen=True)
class Setting:
    """A group: how to draw from it, how it acts on (B, ROWS, n), and what canonicalizes it."""

    size: int
    draw: Any
    action: Any
    canonicalizer: Any


def motions(size, **options):
    return Setting(
        size,
        lambda count, seed: random_motions(count, size, seed=seed, **options),
        Points() if "shift" in options else Vectors(),
        None,
    )


def reorderings(count, seed):
    """The identity and random permutations."""
    generator = torch.Generator().manual_seed(seed)
    places = [torch.randperm(ROWS, generator=generator) for _ in range(count - 1)]
    return Reordering(torch.stack([torch.arange(ROWS), *places]))


def setting(name):
    body = {"shift": 2.0}
    plain, canonicalizer = {
        "SO(2)": (motions(2), VectorSum()),
        "O(2)": (motions(2, reflections=True), GramSchmidt("O")),
        "SO(3)": (motions(3), GramSchmidt("SO")),
        "SO(3), mixed": (motions(3), GramSchmidt("SO", VectorMix(ROWS, 2).double())),
        "O(3)": (motions(3, reflections=True), GramSchmidt("O")),
        "SO(4)": (motions(4), GramSchmidt("SO")),
        "SE(3)": (motions(3, **body), Centred(GramSchmidt("SO"))),
        "E(2)": (motions(2, reflections=True, **body), Centred(GramSchmidt("O"))),
        "permutations": (Setting(3, reorderings, Rows(), None), Sorting()),
    }[name]
    return Setting(plain.size, plain.draw, plain.action, canonicalizer)


NAMES = ["SO(2)", "O(2)", "SO(3)", "SO(3), mixed", "O(3)", "SO(4)", "SE(3)", "E(2)", "permutations"]


def inputs(batch, size, seed, dtype=torch.float64):
    """Random rows, the first of them close to orthonormal, so that rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, ROWS, size, generator=generator, dtype=torch.float64)
    x[:, :size] = (
        0.2 * x[:, :size].clamp(-1, 1)
        + random_motions(batch + 1, size, reflections=True, seed=seed).rotation[1:, :ROWS]
    )
    return x.to(dtype)


def close(actual, expected, factor=1.0):
    tolerance = factor * (1e-12 if expected.dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def log_weight(shape, randomise, dtype=torch.float64, seed=7):
    weight = MLPWeight(shape, hidden=(8,))
    randomise(weight, seed)  # its last layer is zero at first
    return weight.to(dtype)


def models(case, out, randomise, random_model, dtype, seed):
    """Plain canonicalization, and canonical-lambda-equitune with and without weights."""
    shape = (ROWS, case.size)
    f = random_model(shape, shape if out is case.action else (5,), seed).to(dtype)
    h = copy.deepcopy(case.canonicalizer).to(dtype)
    samples = case.draw(4, seed + 1)[[1, 2, 3]]
    weight = log_weight(shape, randomise, dtype)
    return [
        Canonicalized(f, h, case.action, out),
        canonical_lambda_equitune(f, h, case.action, out, samples),
        canonical_lambda_equitune(f, h, case.action, out, samples, weight),
    ]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 4),
    st.integers(0, 2**16),
    st.sampled_from(FLOATS),
    st.booleans(),
)
def test_random_models_become_equivariant(random_model, randomise, name, batch, seed, dtype, inv):
    case = setting(name)
    out = Trivial() if inv else case.action
    elements = case.draw(5, seed)
    x = inputs(batch, case.size, seed, dtype)
    f = random_model((ROWS, case.size), (5,) if inv else (ROWS, case.size), seed)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(f.to(dtype), case.action, out, x, elements=elements)
    each = case.draw(batch + 1, seed + 5)[list(range(1, batch + 1))]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for model in models(case, out, randomise, random_model, dtype, seed):
        assert_equivariant(model, case.action, out, x, tolerance, elements=elements)
        # and with an element of each sample's own, written out
        with torch.no_grad():
            moved, expected = model(case.action.act_each(each, x)), out.act_each(each, model(x))
        assert (moved - expected).abs().amax() <= tolerance * expected.abs().amax()
        assert moved.dtype == dtype


def definition_1(f, h, action, out, elements, log_weight, x):
    """Written out, one sample and one element at a time."""
    results = []
    for i in range(len(x)):
        one, total, weights = x[i : i + 1], 0.0, 0.0
        for j in range(len(elements)):
            g = elements[[j]]
            canonical = action.act_each(h(one).inverse(), one)
            seen = action.act_each(g, canonical)
            weight = log_weight(seen).exp().reshape(())
            total = total + weight * out.act_each(h(one), out.act_each(g.inverse(), f(seen)))
            weights = weights + weight
        results.append(total / weights)
    return torch.cat(results)


def constant(x):
    return torch.zeros(len(x), dtype=torch.float64)


@pytest.mark.parametrize(
    "name, invariant, weighted", [(name, i % 2 == 0, i % 4 < 2) for i, name in enumerate(NAMES)]
)
def test_it_is_definition_1(name, invariant, weighted, random_model, randomise):
    case = setting(name)
    out, shape = Trivial() if invariant else case.action, (ROWS, case.size)
    f = random_model(shape, (5,) if invariant else shape, 1).double()
    elements = case.draw(4, 11)[[1, 2, 3]]  # no group, and without the identity
    weight = log_weight(shape, randomise) if weighted else None
    x = inputs(3, case.size, 2)
    actual = canonical_lambda_equitune(f, case.canonicalizer, case.action, out, elements, weight)
    expected = definition_1(
        f, case.canonicalizer, case.action, out, elements, weight or constant, x
    )
    close(actual(x), expected)


def test_weights_of_captured_features(random_model, randomise):
    case, f = setting("SO(3)"), random_model((ROWS, 3), (ROWS, 3), 1).double()
    weight = log_weight((16,), randomise)
    elements = case.draw(4, 11)[[1, 2, 3]]
    x = inputs(3, 3, 2)
    actual = canonical_lambda_equitune(
        f, case.canonicalizer, case.action, case.action, elements, weight, "first"
    )
    expected = definition_1(
        f, case.canonicalizer, case.action, case.action, elements,
        lambda x: weight(f.first(x.flatten(1))), x,
    )  # fmt: skip
    close(actual(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_is_plain_canonicalization(name, random_model, randomise):
    case, shape = setting(name), (ROWS, setting(name).size)
    f, x = random_model(shape, shape, 1).double(), inputs(3, case.size, 2)
    h, action = case.canonicalizer, case.action
    plain = Canonicalized(f, h, action, action)(x)
    for weight in (None, log_weight(shape, randomise)):
        one = canonical_lambda_equitune(f, h, action, action, case.draw(1, 0), weight)
        close(one(x), plain)
    # any one element gives canonicalization by another canonicalizer, h g^-1
    g = case.draw(2, 9)[[1]]
    other = Canonicalized(f, lambda x: h(x) @ g[[0] * len(x)].inverse(), action, action)
    close(canonical_lambda_equitune(f, h, action, action, g)(x), other(x))


class Given(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_constant_weight_is_the_mean_and_one_that_dominates_chooses(random_model):
    f, action, h = random_model((ROWS, 2), (ROWS, 2), 1).double(), Vectors(), VectorSum()
    elements, x = random_motions(5, 2, seed=1), inputs(3, 2, 2)

    def made(weight):
        return canonical_lambda_equitune(f, h, action, action, elements, weight)(x)

    close(made(Given(lambda x: torch.full((len(x),), 3.3).double())), made(None))
    seen = action.orbit(action.act_each(h(x).inverse(), x), elements)
    for chosen in range(5):
        wanted = seen[chosen].flatten(1)

        def weight(x, wanted=wanted):
            near = (x.flatten(1)[:, None] - wanted).abs().amax(-1).amin(-1) < 1e-9
            return torch.where(near, 0.0, -torch.inf).double()

        one = canonical_lambda_equitune(f, h, action, action, elements[[chosen]])(x)
        close(made(Given(weight)), one)


@pytest.mark.parametrize(("kind", "size"), [("O", 2), ("SO", 2), ("O", 3), ("SO", 3)])
def test_frame_averaging(kind, size, random_model):
    """Puny et al., ICLR 2022: the mean over the frames of principal axes about the centre."""
    f, x = random_model((ROWS, size), (ROWS, size), 1).double(), inputs(3, size, 2)
    x = x * torch.arange(1.0, size + 1)  # moments are well apart
    h, points = Centred(PrincipalAxes(kind)), Points()
    frames = sign_frames(size, reflections=kind == "O")
    average = canonical_lambda_equitune(f, h, points, points, frames)
    rows = []
    for cloud in x:
        centre = cloud.mean(0)
        _, axes = torch.linalg.eigh((cloud - centre).T @ (cloud - centre))
        outputs = []
        for signs in torch.cartesian_prod(*[torch.tensor([1.0, -1.0]).double()] * size):
            frame = axes.flip(-1) * signs  # largest first
            if kind == "O" or torch.linalg.det(frame) > 0:
                canonical = (cloud - centre) @ frame
                outputs.append(f(canonical[None])[0] @ frame.T + centre)
        rows.append(torch.stack(outputs).mean(0))
    close(average(x), torch.stack(rows))

    elements = random_motions(6, size, reflections=kind == "O", shift=1.0, seed=3)
    assert_equivariant(average, points, points, x, 1e-10, elements=elements)
    with pytest.raises(AssertionError, match="not equivariant"):  # axes have no sign
        plain = Canonicalized(f, h, points, points)
        assert_equivariant(plain, points, points, x, 1e-3, elements=elements)


@pytest.mark.parametrize(
    "name, weighted", [("SO(2)", True), ("SE(3)", False), ("permutations", True)]
)
def test_chunks_give_the_same_output_and_gradient(weighted, name, random_model, randomise):
    case = setting(name)
    shape = (ROWS, case.size)
    f = random_model(shape, shape, 1).double()
    weight = log_weight(shape, randomise) if weighted else None
    x = inputs(3, case.size, 2)
    results = []
    for options in ({}, {"chunk": 1}, {"chunk": 3}):
        model = canonical_lambda_equitune(
            f, case.canonicalizer, case.action, case.action, case.draw(5, 3), weight, **options
        )
        f.zero_grad()
        model(x).square().sum().backward()
        gradients = [p.grad.clone() for p in f.parameters()]
        results.append([model(x).detach(), *gradients])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            close(actual, expected, factor=10)


@pytest.mark.parametrize("name", ["SO(2)", "SE(3)", "permutations"])
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_samples_are_an_unbiased_estimate(weighted, name, random_model, randomise, monkeypatch):
    """The mean over all pairs of elements is the exact output."""
    case = setting(name)
    shape = (ROWS, case.size)
    f, x = random_model(shape, (1,), 1).double(), inputs(1, case.size, 2)
    weight = log_weight(shape, randomise) if weighted else None
    model = canonical_lambda_equitune(
        f, case.canonicalizer, case.action, Trivial(), case.draw(5, 3), weight, samples=2
    )
    exact, draws = model.eval()(x), []
    for pair in itertools.combinations(range(5), 2):
        monkeypatch.setattr(torch, "randperm", lambda n, p=pair: torch.tensor([*p, 0, 0, 0]))
        draws.append(model.train()(x))
    assert torch.stack(draws).std() > 1e-3
    close(torch.stack(draws).mean(0), exact)


@pytest.mark.parametrize("name", ["SO(2)", "SE(3)", "permutations"])
def test_the_heaviest_elements_only(name, random_model, randomise):
    case = setting(name)
    shape, x = (ROWS, case.size), inputs(3, case.size, 2)
    f, weight = random_model(shape, shape, 1).double(), log_weight(shape, randomise)
    h, action, elements = case.canonicalizer, case.action, case.draw(5, 3)

    def made(**options):
        return canonical_lambda_equitune(f, h, action, action, elements, weight, **options)

    close(made(top_k=5)(x), made()(x))
    log_weights = made().model.scores(action.act_each(h(x).inverse(), x))
    for k in (1, 2):
        assert_equivariant(made(top_k=k), action, action, x, 1e-10, elements=case.draw(6, 8))
        for i in range(3):
            best = log_weights[:, i].topk(k).indices.tolist()
            some = canonical_lambda_equitune(f, h, action, action, elements[best], weight)
            close(made(top_k=k)(x)[i], some(x)[i])


class Molecule(nn.Module):
    """Forces, a dipole and an energy from positions, velocities and kinds of atoms."""

    def __init__(self, random_model, seed=1):
        super().__init__()
        self.net = random_model((ROWS, 7), (ROWS * 3 + 4,), seed).double()

    def forward(self, x, scale=1.0):
        kinds = x["kinds"].double().unsqueeze(-1)
        y = scale * self.net(torch.cat([x["positions"], x["velocities"], kinds], -1))
        forces = y[:, :-4].unflatten(1, (ROWS, 3))
        return {"forces": forces, "dipole": y[:, -4:-1], "energy": y[:, -1], "unused": y}


BODY = Tree({"positions": Points(), "velocities": Vectors(), "kinds": Trivial()})
RESULT = Tree({"forces": Vectors(), "dipole": Vectors(), "energy": Trivial()})


MOTIONS = random_motions(5, 3, shift=2.0, seed=6)


def molecules(batch):
    return {
        "positions": inputs(batch, 3, 2),
        "velocities": inputs(batch, 3, 4),
        "kinds": torch.arange(ROWS).expand(batch, ROWS),
    }


@pytest.mark.parametrize(
    ("weighted", "options"),
    [(False, {}), (True, {}), (False, {"chunk": 2}), (True, {"chunk": 3}), (True, {"top_k": 2})],
)
def test_trees_in_and_out(weighted, options, random_model, randomise):
    f, x, elements = Molecule(random_model), molecules(2), random_motions(4, 3, shift=1.0, seed=5)
    h = Centred(GramSchmidt("SO"), lambda x: x["positions"])
    inner = log_weight((ROWS, 3), randomise)
    weight = nn.Sequential(Given(lambda x: x["positions"] + x["velocities"]), inner)
    model = canonical_lambda_equitune(
        f, h, BODY, RESULT, elements, weight if weighted else None, **options
    )
    assert_equivariant(model, BODY, RESULT, x, 1e-10, elements=MOTIONS)
    assert set(model(x)) == {"forces", "dipole", "energy"}
    if not options and not weighted:
        mean = torch.zeros_like(x["positions"])
        for j in range(4):
            g = elements[[j] * 2]
            y = f(BODY.act_each(g @ h(x).inverse(), x))
            mean += Vectors().act_each(h(x) @ g.inverse(), y["forces"]) / 4
        close(model(x)["forces"], mean)


def test_plain_canonicalization_of_trees(random_model):
    f, x = Molecule(random_model), molecules(2)
    result = Tree({**dict(zip(RESULT.names, RESULT.parts, strict=True)), "unused": Trivial()})
    model = Canonicalized(f, Centred(GramSchmidt("SO"), lambda x: x["positions"]), BODY, result)
    assert_equivariant(model, BODY, result, x, 1e-10, elements=MOTIONS)


def test_further_arguments_reach_the_model(random_model):
    f, x = Molecule(random_model), molecules(2)
    h = Centred(GramSchmidt("SO"), lambda x: x["positions"])
    model = canonical_lambda_equitune(f, h, BODY, RESULT, random_motions(2, 3, seed=5))
    for twice in (model(x, 2.0), model(x, scale=2.0)):
        close(twice["energy"], 2 * model(x)["energy"])


def test_gradients_reach_the_input_the_canonicalizer_and_the_weights(random_model, randomise):
    f = random_model((ROWS, 3), (ROWS, 3), 1).double()
    f.first.weight.data *= 0.1  # far from the kinks of its rectifiers
    mix, weight = VectorMix(ROWS, 2).double(), log_weight((ROWS, 3), randomise)
    model = canonical_lambda_equitune(
        f, GramSchmidt("SO", mix), Vectors(), Vectors(), random_motions(3, 3, seed=1), weight
    )
    x = inputs(1, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(model, x)
    model(x).square().sum().backward()
    for parameter in (mix.coefficients, weight.network[0].weight, f.first.weight):
        assert parameter.grad.any()


def test_an_energy_gives_equivariant_forces(random_model):
    """The gradient of an invariant output, through h(x) too."""
    h = Centred(GramSchmidt("SO"))
    f = random_model((ROWS, 3), (1,), 1).double()
    energy = Canonicalized(nn.Sequential(f, nn.Tanh()), h, Points(), Trivial())

    def forces(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(energy(x).sum(), x)[0]

    x = inputs(3, 3, 2)
    assert_equivariant(forces, Points(), Vectors(), x, 1e-10, elements=MOTIONS)
    assert forces(x).abs().amax() > 1e-3
    assert forces(x).sum(1).abs().amax() < 1e-12  # no shift changes the energy


def test_a_canonicalizer_may_be_a_function(random_model):
    f = random_model((ROWS, 2), (3,), 1).double()
    angle = lambda x: torch.atan2(*x.sum(1).flip(-1).unbind(-1))  # noqa: E731

    def h(x):
        c, s = angle(x).cos(), angle(x).sin()
        return Motion.from_matrices(torch.stack([c, -s, s, c], -1).view(-1, 2, 2))

    x = inputs(3, 2, 2)
    close(*(Canonicalized(f, k, Vectors(), Trivial())(x) for k in (h, VectorSum())))


def test_state_and_copies(random_model, randomise):
    def made(seed):
        f = random_model((ROWS, 2), (3,), seed).double()
        h = GramSchmidt("SO", VectorMix(ROWS, 1, seed).double())
        weight = log_weight((ROWS, 2), randomise, seed=seed)
        return canonical_lambda_equitune(f, h, Vectors(), Trivial(), rotations_2d(4), weight)

    x, first, second = inputs(3, 2, 2), made(1), made(2)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))


def test_errors_say_what_is_wrong(random_model):
    f, v = random_model((ROWS, 2), (ROWS, 2), 1).double(), Vectors()
    with pytest.raises(ValueError, match="features are for a weight network"):
        canonical_lambda_equitune(f, VectorSum(), v, v, rotations_2d(4), features="first")
    with pytest.raises(TypeError, match="weights that are known"):
        canonical_lambda_equitune(f, VectorSum(), v, v, rotations_2d(4), top_k=1)
    with pytest.raises(ValueError, match="finitely many elements are given, one at least"):
        canonical_lambda_equitune(f, VectorSum(), v, v, rotations_2d(4)[[]])
    with pytest.raises(ValueError, match="of that size; got shape"):
        canonical_lambda_equitune(f, VectorSum(), v, v, random_motions(2, 3, seed=0))(
            inputs(2, 2, 0)
        )
    with pytest.raises(ValueError, match="empty batch"):
        Canonicalized(f, VectorSum(), v, v)(torch.zeros(0, ROWS, 2))


PLANE = nn.Sequential(nn.Flatten(), nn.Linear(2 * ROWS, 2), nn.Tanh())
SPACE = nn.Sequential(nn.Flatten(), nn.Linear(3 * ROWS, 3), nn.Tanh())
ROBUST = {
    "sum": lambda: canonical_lambda_equitune(
        PLANE, VectorSum(), Vectors(), Vectors(), rotations_2d(4)
    ),
    "frame": lambda: Canonicalized(SPACE, GramSchmidt("SO"), Vectors(), Vectors()),
    "axes": lambda: canonical_lambda_equitune(
        SPACE, PrincipalAxes("O"), Vectors(), Vectors(), sign_frames(3)
    ),
    "centred": lambda: canonical_lambda_equitune(
        SPACE, Centred(PrincipalAxes("SO")), Points(), Points(), sign_frames(3, reflections=False)
    ),
    "sorted": lambda: Canonicalized(PLANE, Sorting(), Rows(), Trivial()),
}


def some_points(name):
    torch.manual_seed(0)
    return torch.randn(5, ROWS, 2 if name in ("sum", "sorted") else 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ROBUST)
def test_one_sample_that_is_no_number_makes_one_row_of_nan(name, bad):
    model, x = ROBUST[name](), some_points(name)
    broken = x.clone()
    broken[1, 0, 0] = bad
    output = model(broken)
    if name != "sorted" or bad is torch.nan:  # a tanh of infinity is a number
        assert output[1].isnan().any()
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(output[rest], model(x)[rest])
    if name == "axes":
        gap = PrincipalAxes("O").gap(broken)
        assert gap.isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("name", ROBUST)
def test_exported_with_a_batch_of_any_size(name):
    model, x = ROBUST[name]().eval(), some_points(name)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    for batch in (2, 5):
        torch.testing.assert_close(exported(x[:batch]), model(x[:batch]))


@pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)
@pytest.mark.parametrize(
    "name",
    [
        n if n == "sum" else pytest.param(n, marks=pytest.mark.slow)
        for n in ROBUST
        if n not in ("axes", "centred")
    ],
)
def test_through_onnx_with_a_batch_of_any_size(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = ROBUST[name]().eval(), some_points(name)
    x[3, 1, 0] = x[3, 2, 0]  # equal keys
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x[1:].numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x[1:]).detach())


class Body(nn.Module):
    """Positions and an optional velocity, to a dict of more than is acted on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, positions, velocities=None, scale=1.0):
        moved = scale * self.layer(positions.flatten(1)).view_as(positions).tanh()
        return {"positions": moved, "energy": moved.sum((1, 2)), "count": len(positions)}


@pytest.mark.parametrize("elements", [None, rotations_2d(3)], ids=["one", "three"])
def test_keywords_and_extra_outputs(elements):
    model = Body()
    vectors = Vectors()
    inputs = Tree({"positions": vectors, "velocities": vectors})
    outputs = Tree({"positions": vectors})
    picked = VectorSum(lambda x: x["positions"])
    if elements is None:
        f = Canonicalized(model, picked, inputs, outputs)
    else:
        f = canonical_lambda_equitune(model, picked, inputs, outputs, elements)
    x = some_points("sum")
    by_keyword = f(positions=x, scale=2.0)
    assert list(by_keyword) == ["positions"]
    for other in (f(x, None, 2.0), f(x, scale=2.0), f(positions=x, velocities=x, scale=2.0)):
        torch.testing.assert_close(other["positions"], by_keyword["positions"])
    with pytest.raises(TypeError, match="no input"):
        f(scale=2.0)
    with pytest.raises(ValueError, match="empty batch"):
        f(positions=x[:0])


def test_actions_of_finite_groups_are_refused():
    with pytest.raises(TypeError, match="actions of a continuous group"):
        Canonicalized(PLANE, VectorSum(), image_rotations(), Vectors())
