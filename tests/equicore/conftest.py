"""Random groups and representations, shared by the tests of this folder as fixtures."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from equicore import (
    Best,
    DirectSum,
    Group,
    Image,
    Matrix,
    Mean,
    MLPWeight,
    Permutation,
    Representation,
    Symmetrized,
    Tokens,
    Tree,
    Trivial,
    WeightedMean,
    confidence,
    cyclic,
    dihedral,
    image_dihedral,
    image_flips,
    image_rotations,
    image_shifts,
    product,
    restrict,
    symmetric,
    trivial,
    vector_field,
)
from equicore.groups import semidirect
from equicore.reduce import Reducer
from equicore.representations import Pullback, TensorProduct, image_wallpaper, regular
from equicore.trees import entries, rebuild

QUATERNIONS = Group.from_matrices(
    [
        [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
    ],
    name="quaternions",
)
ALTERNATING = Group.from_permutations([[1, 2, 0, 3], [1, 0, 3, 2]], name="alternating(4)")
# shifts by 2 cells of 4 x 4, and their semidirect product with quarter turns, of order 16
SHIFTS = image_shifts(4, 6, step=2)
WALLPAPER = image_wallpaper(image_rotations(), 4, step=2)
GROUPS = [
    trivial(),
    *(cyclic(n) for n in (2, 3, 4, 6)),
    *(dihedral(n) for n in (1, 2, 3, 4, 6)),
    symmetric(3),
    symmetric(4),
    product(cyclic(2), symmetric(3)),
    product(cyclic(3), cyclic(4)),
    product(dihedral(4), cyclic(3)),
    semidirect(cyclic(7), cyclic(3), [[m * 2**h % 7 for m in range(7)] for h in range(3)]),
    QUATERNIONS,
    ALTERNATING,
    SHIFTS.group,
    WALLPAPER.group,
]


IMAGES = {
    cyclic(2): [image_flips(-1), image_flips(-2)],
    cyclic(4): [image_rotations()],
    dihedral(4): [image_dihedral()],
    SHIFTS.group: [SHIFTS],
    WALLPAPER.group: [WALLPAPER],
}
"""Faithful representations on images."""


@functools.cache
def relabelled(group: Group, seed: int) -> Group:
    """The same group with its elements in another order and its generators unknown."""
    rng = np.random.default_rng(seed)
    place = np.concatenate([[0], 1 + rng.permutation(len(group) - 1)]).astype(int)
    origin = np.argsort(place)
    return Group(place[group.table[np.ix_(origin, origin)]], name=f"relabelled {group.name}")


@functools.cache
def doubled(group: Group) -> Group:
    """The product with C2."""
    return product(group, cyclic(2))


@functools.cache
def coset_action(group: Group, h: int) -> np.ndarray:
    """How the group permutes the left cosets of the subgroup that h generates."""
    subgroup, power = {0}, h
    while power not in subgroup:
        subgroup.add(power)
        power = group.compose(power, h)
    cosets: list[frozenset[int]] = []
    for g in range(len(group)):
        coset = frozenset(group.compose(g, k) for k in subgroup)
        if coset not in cosets:
            cosets.append(coset)
    return np.array(
        [
            [cosets.index(frozenset(group.compose(g, k) for k in coset)) for coset in cosets]
            for g in range(len(group))
        ]
    )


def random_action(group: Group, rng: np.random.Generator, faithful: bool) -> np.ndarray:
    """A permutation action on cosets and a fixed point, with the points shuffled."""
    rows = coset_action(group, int(rng.integers(len(group))))
    if faithful and len(np.unique(rows, axis=0)) < len(group):
        rows = group.table
    points = rows.shape[1] + int(rng.integers(2))
    rows = np.pad(rows, ((0, 0), (0, points - rows.shape[1])), constant_values=points - 1)
    place = rng.permutation(points)
    return place[rows[:, np.argsort(place)]]


def random_matrices(group: Group, rng: np.random.Generator, faithful: bool) -> np.ndarray:
    """A permutation action in a random basis, half of the time with a sign for each element."""
    rows = random_action(group, rng, faithful)
    matrices = np.eye(rows.shape[1])[:, rows].transpose(1, 0, 2)  # column i holds 1 at rows[g][i]
    if rng.integers(2) and not faithful:
        signs = np.array([round(np.linalg.det(matrix)) for matrix in matrices])
        matrices = signs[:, None, None] * matrices
    rotation, _ = np.linalg.qr(rng.normal(size=matrices.shape[1:]))
    basis = rotation * rng.uniform(0.5, 2, size=len(rotation))
    return basis @ matrices @ np.linalg.inv(basis)


@st.composite
def random_groups(draw: st.DrawFn) -> Group:
    """A group of order 1 to 24."""
    group = draw(st.sampled_from(GROUPS))
    seed = draw(st.integers(0, 5))
    return relabelled(group, seed) if seed else group


def normal_closure(group: Group, h: int) -> set[int]:
    """The smallest normal subgroup that holds h."""
    conjugates = [group.compose(group.compose(g, h), group.inverse(g)) for g in range(len(group))]
    return set(group.subgroup(conjugates).embedding.tolist())


@functools.cache
def quotient(group: Group, h: int) -> tuple[Group, list[int]]:
    """The quotient by the normal closure of h, and the coset of each element."""
    normal = normal_closure(group, h)
    first = [min(group.compose(g, k) for k in normal) for g in range(len(group))]
    cosets = sorted(set(first))
    table = [[cosets.index(first[group.compose(a, b)]) for b in cosets] for a in cosets]
    return Group(table, name=f"quotient of {group.name}"), [cosets.index(f) for f in first]


@st.composite
def one_axis(draw: st.DrawFn, group: Group, faithful: bool, dim: int) -> tuple[Representation, int]:
    """A representation that acts on one axis, and the size of the axis."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kinds = ["permutation", "matrix", "regular", "restriction", "conjugation"]
    kind = draw(st.sampled_from(kinds if faithful else [*kinds, "trivial", "quotient"]))
    if kind == "trivial":
        return Trivial(group), 2
    if kind == "regular":
        return regular(group, dim), len(group)
    if kind == "matrix":
        matrices = Matrix(group, random_matrices(group, rng, faithful), dim)
        return matrices, matrices.size
    if kind == "permutation":
        permutations = Permutation(group, random_action(group, rng, faithful), dim)
        return permutations, permutations.size
    if kind == "restriction":
        larger = doubled(group)
        whole = Permutation(larger, random_action(larger, rng, faithful), dim)
        return restrict(whole, larger.subgroup([2 * g for g in group.generators])), whole.size
    if kind == "conjugation":
        a = int(rng.integers(len(group)))
        images = [group[a] @ g @ ~group[a] for g in group.elements]
        inner, size = draw(one_axis(group, faithful, dim))
        return Pullback(group, inner, images), size
    smaller, images = quotient(group, int(rng.integers(len(group))))
    inner, size = draw(one_axis(smaller, faithful, dim))
    return Pullback(group, inner, images), size


@st.composite
def random_images(draw: st.DrawFn, group: Group) -> tuple[Image, tuple[int, int]] | None:
    """A faithful representation on images and their size, where the group has a known one."""
    known = IMAGES.get(group)
    if known is None:
        return None
    image = draw(st.sampled_from(known))
    side = draw(st.integers(2, 4))
    return image, image.size or (side, 3 if len(group) == 2 else side)


@st.composite
def random_representations(
    draw: st.DrawFn, group: Group, faithful: bool = False
) -> tuple[Representation, tuple[int, ...]]:
    """A representation and the shape of one sample for it."""
    extra = draw(st.lists(st.integers(1, 3), max_size=2))
    image = draw(random_images(group))
    kinds = ["one axis", "one axis", "sum", "product"]
    kind = draw(st.sampled_from(kinds if image is None else [*kinds, "image", "field", "features"]))
    if kind == "product":  # the first is faithful, so the product is
        first, rows = draw(one_axis(group, faithful, -2))
        second, columns = draw(one_axis(group, False, -1))
        return TensorProduct(first, second), (*extra[:1], rows, columns)
    if kind == "image":
        return image[0], (*extra, *image[1])
    if kind == "field":
        return vector_field(image[0]), (*extra, 2, *image[1])
    if kind == "features":
        parts = [(image[0], 1), (vector_field(image[0]), 2), (image[0], 2)]
        return DirectSum(parts, dim=-3), (*extra[:1], 5, *image[1])
    dim = -1 - draw(st.integers(0, len(extra)))
    rep, size = draw(one_axis(group, faithful, dim))
    if kind == "sum":
        others = [draw(one_axis(group, False, dim)) for _ in range(draw(st.integers(1, 2)))]
        parts = draw(st.permutations([(rep, size), *others]))
        rep, size = DirectSum(parts, dim), sum(size for _, size in parts)
    place = len(extra) + 1 + dim
    return rep, (*extra[:place], size, *extra[place:])


class Triple(NamedTuple):
    first: Any
    second: Any
    third: Any


@dataclass
class Record:
    first: Any = None
    second: Any = None
    third: Any = None
    unused: Any = None


NAMES = ("first", "second", "third")
CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": lambda children: dict(zip(NAMES, children, strict=True)),
    "tuple": tuple,
    "list": list,
    "namedtuple": lambda children: Triple(*children),
    "dataclass": lambda children: Record(*children),
}


@st.composite
def random_tokens(draw: st.DrawFn, group: Group) -> tuple[Representation, tuple[int, ...], int]:
    """A representation on ids, of which some are fixed, a sample's shape, and how many ids."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows = random_action(group, rng, faithful=True)
    fixed = np.arange(rows.shape[1], rows.shape[1] + 2)
    tokens = Tokens(group, np.hstack([rows, np.tile(fixed, (len(rows), 1))]))
    size = tokens.size
    if draw(st.booleans()):
        tokens = Pullback(group, tokens, range(len(group)))
    return tokens, draw(st.sampled_from([(), (3,), (2, 2)])), size


@st.composite
def random_trees(
    draw: st.DrawFn, group: Group, floating: bool = False, depth: int = 2
) -> tuple[Tree, Callable[..., Any]]:
    """A representation on a tree, and a function of (batch, dtype, seed) that makes one.

    The first entry is faithful. The tree has ids in it, unless it is ``floating``, and None.
    """
    makers: list[Callable[..., Any]] = []
    parts: list[Any] = []
    for place in range(3):
        kind = draw(st.sampled_from(["tensor", "tokens", "tree", "none"])) if place else "tensor"
        if kind == "tree" and depth > 1:
            part, maker = draw(random_trees(group, floating, depth - 1))
        elif kind == "tokens" and not floating:
            part, shape, size = draw(random_tokens(group))

            def maker(batch, dtype, seed, shape=shape, size=size):  # type: ignore[no-untyped-def]
                generator = torch.Generator().manual_seed(seed)
                return torch.randint(size, (batch, *shape), generator=generator)
        else:
            part, shape = draw(random_representations(group, faithful=place == 0))

            def maker(batch, dtype, seed, shape=shape, absent=kind == "none"):  # type: ignore[no-untyped-def]
                generator = torch.Generator().manual_seed(seed)
                x = torch.randn(batch, *shape, dtype=dtype, generator=generator)
                return None if absent else x

        parts.append(part)
        makers.append(maker)
    container = draw(st.sampled_from(list(CONTAINERS)))
    shown = "dict" if container == "dataclass" else container  # a field without part is None

    def make(batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        return CONTAINERS[container](
            [maker(batch, dtype, 10 * seed + i) for i, maker in enumerate(makers)]
        )

    return Tree(CONTAINERS[shown](parts)), make


def fixed_by(rep: Representation, h: int, x: Any) -> Any:
    """From a batch, one whose samples h leaves as they are."""
    if isinstance(rep, Tree):
        parts = dict(zip(rep.names, rep.parts, strict=True))
        kept = {n: None if e is None else fixed_by(parts[n], h, e) for n, e in entries(x).items()}
        return rebuild(x, kept)
    ids = [module.size for module in rep.modules() if isinstance(module, Tokens)]
    if ids:
        all_ids = torch.arange(ids[0])
        fixed = all_ids[rep.act(h, all_ids) == all_ids]
        return fixed[x % len(fixed)]
    images, power = [x.double()], h
    while power != 0:
        images.append(rep.act(power, images[0]))
        power = rep.group.compose(power, h)
    stack = torch.stack(images)
    # the maximum is exactly the same in every order, but is no linear operation: it is fixed only
    # where all that happens to the entries is that they move
    moves_only = not any(isinstance(module, Matrix) for module in rep.modules())
    return (stack.amax(0) if moves_only else stack.mean(0)).to(x.dtype)


class RandomModel(nn.Module):
    """A random multilayer perceptron between samples of any two shapes."""

    def __init__(self, shape_in: tuple[int, ...], shape_out: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.shape_out = shape_out
        self.first = nn.Linear(int(np.prod(shape_in)), 16)
        self.second = nn.Linear(16, int(np.prod(shape_out)))
        randomize(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).relu()).unflatten(1, self.shape_out)


def randomize(model: nn.Module, seed: int) -> None:
    """Draw all parameters anew, so that layers keep the size of what they see."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.normal_(std=1.5 / fan_in**0.5, generator=generator)


class Classifier(nn.Module):
    """A small convolutional network for images (1, 6, 6), with one output for each corner."""

    def __init__(self, norm: bool, dropout: float, seed: int) -> None:
        super().__init__()
        batch_norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), batch_norm, nn.Tanh())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(16, 4)
        randomize(self, seed)

    def features(self, x: Tensor) -> Tensor:
        return self.pool(self.trunk(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def symmetrized_classifier(
    method: str,
    *,
    norm: bool = False,
    dropout: float = 0.0,
    seed: int = 1,
    reduce: Reducer | None = None,
    mirrors: bool = True,
    **options: Any,
) -> Symmetrized:
    """A classifier under D4, or C4 without mirrors, which permutes the corners with the image.

    With the method "features", the weight network sees what the submodule "pool" returns.
    """
    model = Classifier(norm, dropout, seed)
    images = image_dihedral() if mirrors else image_rotations()
    generators = [[1, 2, 3, 0], [0, 3, 2, 1]]
    corners = Permutation.from_generators(images.group, generators if mirrors else generators[:1])
    if reduce is None:
        shape, features = ((16,), "pool") if method == "features" else ((1, 6, 6), None)
        weight = MLPWeight(shape, hidden=(8,))
        randomize(weight, seed + 1)  # its last layer is zero at first
        reduce = {
            "equitune": Mean(),
            "equizero": Best(confidence),
            "lambda_equitune": WeightedMean(weight),
            "features": WeightedMean(weight, features),
        }[method]
    return Symmetrized(model, images, corners, reduce, **options)


def definition(symmetrized: Symmetrized, x: Tensor) -> Tensor:
    """What the papers define, with `act` alone, one element after the other.

    For models that have a method ``features``, if the weight network sees features.
    """
    group, model, reduce = symmetrized.group, symmetrized.model, symmetrized.reduce
    moved = [symmetrized.input_rep.act(g, x) for g in range(len(group))]
    raw = [model(m) for m in moved]
    aligned = torch.stack(
        [symmetrized.output_rep.act(group.inverse(g), y) for g, y in enumerate(raw)]
    )
    if isinstance(reduce, Mean):
        return aligned.mean(0)
    if isinstance(reduce, Best):
        best = torch.cat([reduce.score(y.unsqueeze(0)) for y in raw]).argmax(0)
        return aligned[best, torch.arange(len(best))]
    seen = [model.features(m) for m in moved] if reduce.features else moved
    weights = torch.stack([reduce.weight(s).flatten() for s in seen]).softmax(0)
    return torch.einsum("gb,gb...->b...", weights, aligned)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def groups() -> st.SearchStrategy[Group]:
    return random_groups()


@pytest.fixture(scope="session")
def representations() -> Callable[..., st.SearchStrategy[tuple[Representation, tuple[int, ...]]]]:
    return random_representations


@pytest.fixture(scope="session")
def trees() -> Callable[..., st.SearchStrategy[tuple[Tree, Callable[..., Any]]]]:
    return random_trees


@pytest.fixture(scope="session")
def random_model() -> type[RandomModel]:
    return RandomModel


@pytest.fixture(scope="session")
def stabilised() -> Callable[[Representation, int, Any], Any]:
    return fixed_by


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], None]:
    return randomize


@pytest.fixture(scope="session")
def classifier() -> Callable[..., Symmetrized]:
    return symmetrized_classifier


@pytest.fixture(scope="session")
def by_hand() -> Callable[[Symmetrized, Tensor], Tensor]:
    return definition
