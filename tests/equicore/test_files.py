import os
import stat

import pytest

from equicore.files import replacing


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def umask():
    """Sets the umask, and restores it."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def test_file_appears_at_the_end(tmp_path):
    path = tmp_path / "numbers.txt"
    with replacing(path) as temporary:
        temporary.write_text("1 2")
        assert not path.exists()
    assert path.read_text() == "1 2"
    assert names(tmp_path) == ["numbers.txt"]


def test_old_file_is_there_until_the_end(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("a longer old text")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "a longer old text"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["numbers.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["numbers.txt"]


def test_an_error_where_there_was_no_file_leaves_none(tmp_path):
    with pytest.raises(OSError), replacing(tmp_path / "numbers.txt"):
        raise OSError
    assert names(tmp_path) == []


def test_temporary_file_is_beside_the_other_with_its_suffix(tmp_path):
    path = tmp_path / "picture.png"
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert temporary.exists()


def test_folders_are_made(tmp_path):
    with replacing(str(tmp_path / "a" / "b" / "c.txt")) as temporary:
        temporary.write_text("1")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "1"


@pytest.mark.skipif(os.name != "posix", reason="permission bits are those of POSIX")
@pytest.mark.parametrize(("mask", "bits"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mask, bits):
    umask(mask)
    with replacing(tmp_path / "numbers.txt") as temporary:
        temporary.write_text("1")
    assert stat.S_IMODE((tmp_path / "numbers.txt").stat().st_mode) == bits
    assert umask(mask) == mask  # and the umask is as before


def test_two_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "numbers.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the one that ended last
    assert names(tmp_path) == ["numbers.txt"]


def test_a_folder_in_the_place_is_an_error_that_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "taken") as temporary:
        temporary.write_text("1")
    assert names(tmp_path) == ["taken"]
