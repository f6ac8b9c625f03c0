"""A symmetry as JSON, and back; equicore's tests do so with every kind of representation."""

import json

import pytest
import torch

from equicore import DirectSum, Permutation, Trivial, dihedral
from equicore.representations import regular
from equirl import Symmetry

POINTS = Permutation.from_generators(dihedral(4), [[1, 2, 3, 0], [0, 3, 2, 1]])
SYMMETRY = Symmetry(DirectSum([(regular(POINTS.group), 8), (Trivial(POINTS.group), 2)]), POINTS)


def test_json_round_trip():
    again = Symmetry.from_dict(json.loads(json.dumps(SYMMETRY.to_dict())))
    assert again.to_dict() == SYMMETRY.to_dict()
    assert again.group == SYMMETRY.group
    assert (again.group.name, again.group.names) == (SYMMETRY.group.name, SYMMETRY.group.names)
    x, values = torch.rand(3, 10), torch.rand(3, 4)
    assert torch.equal(again.observation.orbit(x), SYMMETRY.observation.orbit(x))
    assert torch.equal(again.action.orbit(values), POINTS.orbit(values))


def test_what_is_no_representation_is_refused():
    data = SYMMETRY.to_dict()
    data["observation"]["parts"][0][0]["kind"] = "Group"
    with pytest.raises(ValueError, match="no representation of equicore: 'Group'"):
        Symmetry.from_dict(data)
