"""Random groups and representations, shared by the tests of this folder as fixtures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from equicore import (
    Group,
    Image,
    Matrix,
    Permutation,
    Representation,
    Trivial,
    cyclic,
    dihedral,
    product,
    symmetric,
    trivial,
)

QUATERNIONS = Group.from_matrices(
    [
        [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
    ],
    name="quaternions",
)
ALTERNATING = Group.from_permutations([[1, 2, 0, 3], [1, 0, 3, 2]], name="alternating(4)")
GROUPS = [
    trivial(),
    *(cyclic(n) for n in (2, 3, 4, 6)),
    *(dihedral(n) for n in (1, 2, 3, 4, 6)),
    symmetric(3),
    symmetric(4),
    product(cyclic(2), symmetric(3)),
    product(cyclic(3), cyclic(4)),
    product(dihedral(4), cyclic(3)),
    QUATERNIONS,
    ALTERNATING,
]


def relabelled(group: Group, rng: np.random.Generator) -> Group:
    """The same group with its elements in another order and its generators unknown."""
    place = np.concatenate([[0], 1 + rng.permutation(len(group) - 1)]).astype(int)
    origin = np.argsort(place)
    return Group(place[group.table[np.ix_(origin, origin)]], name=f"relabelled {group.name}")


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
    if draw(st.booleans()):
        group = relabelled(group, np.random.default_rng(draw(st.integers(0, 2**16))))
    return group


@st.composite
def random_representations(
    draw: st.DrawFn, group: Group, faithful: bool = False
) -> tuple[Representation, tuple[int, ...]]:
    """A representation and the shape of one sample for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kinds = ["permutation", "matrix"] if faithful else ["trivial", "permutation", "matrix"]
    flips_and_turns = group in (cyclic(4), cyclic(2), dihedral(4))
    kind = draw(st.sampled_from([*kinds, "image"] if flips_and_turns else kinds))
    extra = draw(st.lists(st.integers(1, 3), max_size=2))
    if kind == "trivial":
        return Trivial(group), (*extra, 3)
    if kind == "image":
        side = draw(st.integers(2, 4))
        if group == cyclic(2):
            axis = draw(st.sampled_from([-1, -2]))
            return Image(group, [0, 2 if axis == -2 else 0], [False, True]), (*extra, side, 3)
        turns = [0, 1, 2, 3] * (len(group) // 4)
        return Image(group, turns, [g >= 4 for g in range(len(group))]), (*extra, side, side)
    dim = -1 - draw(st.integers(0, len(extra)))
    make, tables = {
        "permutation": (Permutation, random_action),
        "matrix": (Matrix, random_matrices),
    }[kind]
    rep = make(group, tables(group, rng, faithful), dim=dim)
    place = len(extra) + 1 + dim
    return rep, (*extra[:place], rep.size, *extra[place:])


def fixed_by(rep: Representation, h: int, x: Tensor) -> Tensor:
    """From a batch, one whose samples h leaves as they are."""
    images, power = [x.double()], h
    while power != 0:
        images.append(rep.act(power, images[0]))
        power = rep.group.compose(power, h)
    stack = torch.stack(images)
    # the maximum is exactly the same in every order, but is no linear operation
    return (stack.mean(0) if isinstance(rep, Matrix) else stack.amax(0)).to(x.dtype)


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
def random_model() -> type[RandomModel]:
    return RandomModel


@pytest.fixture(scope="session")
def stabilised() -> Callable[[Representation, int, Tensor], Tensor]:
    return fixed_by


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], None]:
    return randomize
