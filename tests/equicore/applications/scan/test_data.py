"""The generated data set is the published one."""

import hashlib

import pytest

from equicore.applications import scan
from equicore.applications.scan.data import DEVELOPMENT_SPLIT, SPLITS

DIGESTS = {  # of the published files' sorted lines
    "all": "345bff3c25864652f326ba1960aa515d156b63f45067ea57268f71d7362a2440",
    "add_jump train": "1e5ab3357dc958267480a6012d3970953f35bb098a115b1754a1ad36d371b7cb",
    "add_jump test": "48956239771e67ded4d090164919ab79d21756218a3e94f9abc2cbe346c0cd1c",
    "around_right train": "aaf218dfd82a8b6a88e32deeb096cf498ee58e56a3808b17f715182f0ca90130",
    "around_right test": "f5f94bb13ea393fbac7d963a13f5eb9831e51090b2e7210831674c4f77a1fa7b",
}


def line(pair):
    return f"IN: {pair[0]} OUT: {pair[1]}"


def digest(pairs):
    return hashlib.sha256("\n".join(sorted(map(line, pairs))).encode()).hexdigest()


def test_all_commands():
    pairs = scan.all_pairs()
    assert len(dict(pairs)) == len(pairs) == 20_910
    assert digest(pairs) == DIGESTS["all"]


@pytest.mark.parametrize("split", SPLITS)
def test_splits(split):
    train, test = scan.load_split(split)
    assert digest(train) == DIGESTS[f"{split} train"]
    assert digest(test) == DIGESTS[f"{split} test"]


def test_split_to_choose_methods_on_is_made_of_training_pairs():
    train, test = scan.load_split(DEVELOPMENT_SPLIT)
    known, _ = scan.load_split("around_right")
    assert {*train, *test} < set(known)
    assert all("opposite right" not in command for command, _ in train)
    assert all("opposite right" in command for command, _ in test)
    assert not any("turn opposite right" in command for command, _ in test)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"add_jump, around_right.*'length'"):
        scan.load_split("length")


def test_published_file(tmp_path):
    train, _ = scan.load_split("around_right")
    file = tmp_path / "tasks.txt"
    file.write_text("\n".join(map(line, train)) + "\n")
    assert scan.read_pairs(file) == train
    file.write_text("\n\n".join(map(line, train[:9])) + "\n\n", "utf-8-sig")
    assert scan.read_pairs(file) == train[:9]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("jump twice I_JUMP I_JUMP", "IN: ... OUT: ..."),
        ("IN: jump", "IN: ... OUT: ..."),
        ("IN:  OUT: I_JUMP", "IN: ... OUT: ..."),
        ("IN: hop OUT: I_JUMP", "hop"),
        ("IN: jump OUT: I_HOP", "I_HOP"),
    ],
)
def test_damaged_file(tmp_path, wrong, message):
    file = tmp_path / "tasks.txt"
    file.write_text(f"IN: jump OUT: I_JUMP\n{wrong}\n")
    with pytest.raises(ValueError, match=f"tasks.txt:2.*{message}"):
        scan.read_pairs(file)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        scan.read_pairs(tmp_path / "none.txt")
