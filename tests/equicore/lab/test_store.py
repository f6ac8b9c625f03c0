"""Files that are whole or not there, and results that are kept with what made them."""

import collections
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equicore.lab import store
from equicore.lab.store import (
    check_claim,
    check_same,
    check_writable,
    claim,
    digest,
    load_state_tensors,
    part_of,
    read_settings,
    read_tensors,
    remembered,
    remembered_tensors,
    replacing,
    restore_state,
    state_tensors,
    write_state,
    write_tensors,
    write_text,
)
from equicore.lab.values import from_yaml, to_yaml


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# whole files


@pytest.fixture
def umask():
    """Sets the umask, and restores it."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("old", [None, "a longer old text"])
def test_a_file_is_as_before_until_the_end(tmp_path, old):
    path = tmp_path / "numbers.txt"
    if old is not None:
        path.write_text(old)
    with replacing(path) as temporary:
        temporary.write_text("1 2")
        assert (path.read_text() if path.exists() else None) == old
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".txt")
    assert path.read_text() == "1 2"
    assert names(tmp_path) == ["numbers.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "numbers.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_folders_are_made(tmp_path):
    write_text(str(tmp_path / "a" / "b" / "c.txt"), "1")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "1"


@pytest.mark.skipif(os.name != "posix", reason="permission bits are those of POSIX")
@pytest.mark.parametrize(("mask", "bits"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mask, bits):
    umask(mask)
    write_text(tmp_path / "numbers.txt", "1")
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
    with pytest.raises(OSError):
        write_text(tmp_path / "taken", "1")
    assert names(tmp_path) == ["taken"]


KILLED = """
import pathlib, sys, time
sys.path[:0] = sys.argv[2].split(":")
from equicore.lab.store import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half of a new te")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_a_writer_that_is_killed_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "results" / "table.csv"
    claim(path.parent, {"settings.yaml": {"seed": 1}})
    path.write_text("old")
    roots = [str(Path(__file__).parents[3]), *sys.path]
    command = [sys.executable, "-c", KILLED, str(path), ":".join(roots)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    (rest,) = set(names(path.parent)) - {"settings.yaml", "table.csv"}
    assert rest.startswith(".")
    check_claim(path.parent, {"settings.yaml": {"seed": 1}})
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, exists):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "report.json", tmp_path / "here.json"
    if exists:
        target.write_text("old")
    link.symlink_to(target)
    check_writable(link)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*.json")) == ["here.json", "report.json"]


def test_a_device_is_written_to_and_stays_one():
    master, slave = os.openpty()
    try:
        path = Path(os.ttyname(slave))
        before = path.stat()
        check_writable(path)
        write_text(path, "to the device")
        assert os.read(master, 100) == b"to the device"
        after = path.stat()
        assert stat.S_ISCHR(after.st_mode)
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    finally:
        os.close(master)
        os.close(slave)


def test_a_standard_stream_is_written_to(tmp_path):
    """Through a pipe, and to a file that the shell has opened, after what is there."""
    code = "from equicore.lab.store import *; print('first', flush=True); check_writable({0!r})"
    code = (code + "; write_text({0!r}, 'second')").format("/dev/stdout")
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout == "first\nsecond"
    with (tmp_path / "file").open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "file").read_text() == "first\nsecond"
    assert names(tmp_path) == ["file"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "through it")
        assert os.read(reader, 100) == b"through it"
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


def test_whether_a_file_could_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deep" / "table.csv")
    check_writable(str(tmp_path / "file"))
    assert names(tmp_path) == ["file"]
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder; name a file$"):
        check_writable(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path / 'file'} is a file, not a folder"):
        check_writable(tmp_path / "file" / "deep" / "table.csv")


def test_folders_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ValueError, match=f"no permission in {tmp_path}$"):
        check_writable(tmp_path / "new" / "table.csv")


# settings


def test_settings_that_differ_are_named():
    wanted = {"env": "Acrobot-v1", "seeds": (0, 1), "lr": 1e-3, "net": {"width": [16, 16]}}
    found = json.loads(json.dumps(wanted))
    check_same("the file", found, wanted)
    check_same("the file", found | {"more": 1}, wanted)  # what is not wanted is ignored
    for name, value in (
        ("seeds", (0, 2)),
        ("lr", 2e-3),
        ("env", None),
    ):
        with pytest.raises(FileExistsError) as error:
            check_same("the file", found, wanted | {name: value})
        assert str(error.value) == (
            f"the file was made with {name} {found[name]!r}, not "
            f"{json.loads(json.dumps(value))!r}; delete it, or name another folder"
        )
    with pytest.raises(FileExistsError, match=r"made with width \[16, 16\], not \[16, 8\]; "):
        check_same("the file", found, wanted | {"net": {"width": (16, 8)}})
    with pytest.raises(FileExistsError, match="the file does not say with which steps it was made"):
        check_same("the file", found, wanted | {"steps": 1})


def test_of_several_differences_the_first_is_named():
    with pytest.raises(FileExistsError, match="made with b 2, not 3"):
        check_same("the file", {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 4})


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
SETTINGS = st.dictionaries(st.text(max_size=6), PLAIN, max_size=4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SETTINGS)
def test_settings_are_found_again_in_every_kind_of_file(tmp_path_factory, wanted):
    folder = tmp_path_factory.mktemp("settings")
    claim(folder, {"settings.yaml": wanted})
    claim(folder, {"settings.yaml": wanted})
    check_same("", read_settings(folder / "settings.yaml"), wanted)
    remembered(folder / "table.csv", wanted, lambda: pd.DataFrame({"x": [1]}))
    assert remembered(folder / "table.csv", wanted, not_called).x.tolist() == [1]
    wanted.pop("format", None)  # a name of our own
    write_tensors(folder / "tensors.safetensors", {}, wanted)
    check_same("", read_tensors(folder / "tensors.safetensors")[1], wanted)


def test_a_digest_is_that_of_the_content():
    assert digest(b"1") == digest(b"1") != digest(b"2")
    assert len(digest(b"")) == len(digest({})) == 16
    assert digest({"a": (1, 2), "b": 1.0}) == digest({"b": 1.0, "a": [1, 2]})
    different = [{}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {"a": 1.5}]
    assert len({digest(one) for one in different}) == len(different)
    assert digest(b"abc") == "ba7816bf8f01cfea"  # the beginning of SHA-256


# folders


def test_a_folder_is_claimed_once_and_found_again(tmp_path):
    folder = tmp_path / "new"
    files = {"settings.yaml": {"env": "A", "seeds": (0, 1)}, "more.yaml": {"steps": 3}}
    check_claim(folder, files)
    assert not folder.exists()
    claim(folder, files)
    assert names(folder) == ["more.yaml", "settings.yaml"]
    assert read_settings(folder / "settings.yaml") == {"env": "A", "seeds": [0, 1]}
    assert list(yaml.safe_load((folder / "settings.yaml").read_text())) == ["env", "seeds"]
    (folder / "results.csv").write_text("1")
    before = (folder / "settings.yaml").stat().st_mtime_ns
    claim(folder, files)
    assert (folder / "settings.yaml").stat().st_mtime_ns == before


def test_settings_that_are_no_longer_given_are_another_run(tmp_path):
    claim(tmp_path, {"settings.yaml": {"seed": 1, "rate": 0.1}})
    (tmp_path / "results.csv").write_text("1")
    for act in (claim, check_claim):
        with pytest.raises(
            FileExistsError, match=r"was made with rate 0.1, which is not given now"
        ):
            act(tmp_path, {"settings.yaml": {"seed": 1}})
    assert read_settings(tmp_path / "settings.yaml") == {"seed": 1, "rate": 0.1}


def test_the_first_difference_within_settings_is_named(tmp_path):
    definition = {"panels": {"test": {"seeds": [0, 1], "checkpoints": 5}}, "episodes": 40}
    claim(tmp_path, {"settings.yaml": {"definition": definition}})
    (tmp_path / "results.csv").write_text("1")
    other = {**definition, "panels": {"test": {"seeds": [0, 2], "checkpoints": 5}}}
    with pytest.raises(FileExistsError, match=r"was made with seeds \[0, 1\], not \[0, 2\]; "):
        claim(tmp_path, {"settings.yaml": {"definition": other}})
    less = {**definition, "panels": {"test": {"seeds": [0, 1]}}}
    with pytest.raises(FileExistsError, match="was made with checkpoints 5, which is not given"):
        claim(tmp_path, {"settings.yaml": {"definition": less}})


def test_other_settings_are_refused_where_there_are_results(tmp_path):
    claim(tmp_path, {"settings.yaml": {"seed": 1}})
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "results.csv").write_text("1")
    for act in (claim, check_claim):
        with pytest.raises(
            FileExistsError, match="settings.yaml was made with seed 1, not 2; dele"
        ):
            act(tmp_path, {"settings.yaml": {"seed": 2}})
    assert read_settings(tmp_path / "settings.yaml") == {"seed": 1}


def test_other_settings_are_taken_where_there_are_no_results(tmp_path):
    claim(tmp_path, {"settings.yaml": {"seed": 1}})
    claim(tmp_path, {"settings.yaml": {"seed": 2}})
    assert read_settings(tmp_path / "settings.yaml") == {"seed": 2}


@pytest.mark.parametrize("foreign", ["thesis.tex", "deep/er/numbers.csv", "settings.yml"])
def test_folders_of_other_files_are_refused(tmp_path, foreign):
    (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / foreign).write_text("years of work")
    with pytest.raises(FileExistsError, match=f"holds files, such as {Path(foreign).name}, but no"):
        claim(tmp_path, {"settings.yaml": {"seed": 1}})
    assert not (tmp_path / "settings.yaml").exists()


@pytest.mark.parametrize("ours", [".unfinished-x.csv", ".DS_Store", "run.log", "deep/run.log"])
def test_hidden_files_and_logs_do_not_count(tmp_path, ours):
    (tmp_path / ours).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / ours).write_text("")
    claim(tmp_path, {"settings.yaml": {"seed": 1}})
    claim(tmp_path, {"settings.yaml": {"seed": 2}})
    assert read_settings(tmp_path / "settings.yaml") == {"seed": 2}


def test_one_of_several_files_of_settings_is_missing(tmp_path):
    """As after a kill between the two, or by hand."""
    claim(tmp_path, {"a.yaml": {"seed": 1}})
    claim(tmp_path, {"a.yaml": {"seed": 1}, "b.yaml": {"seed": 1}})
    (tmp_path / "results.csv").write_text("1")
    (tmp_path / "b.yaml").unlink()
    with pytest.raises(FileExistsError, match="but no b.yaml of ours"):
        claim(tmp_path, {"a.yaml": {"seed": 1}, "b.yaml": {"seed": 1}})


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, not a folder"):
        check_claim(tmp_path / "file", {"settings.yaml": {}})


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "just words", "a: [", "\x00", "a: !!python/object/apply:os.getcwd []", "- a: 1"],
)
def test_what_is_no_mapping_of_plain_data_is_empty(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    assert read_settings(tmp_path / "settings.yaml") == {}
    (tmp_path / "results.csv").write_text("1")
    with pytest.raises(FileExistsError, match="does not say with which seed it was made"):
        claim(tmp_path, {"settings.yaml": {"seed": 1}})


def test_binary_files_and_folders_hold_no_settings(tmp_path):
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe\x00a\x80")
    assert read_settings(tmp_path / "settings.yaml") == {}
    assert read_settings(tmp_path) == read_settings(tmp_path / "absent") == {}


@pytest.mark.parametrize("kind", ["object/apply", "object/new", "name", "module"])
def test_settings_execute_nothing(tmp_path, kind):
    target = tmp_path / "executed"
    call = {"name": "os.mkdir ''", "module": "os ''"}.get(kind, f"os.mkdir ['{target}']")
    for text in (f"a: !!python/{kind}:{call}\n", f"!!python/{kind}:{call}\n"):
        (tmp_path / "settings.yaml").write_text(text)
        assert read_settings(tmp_path / "settings.yaml") == {}
    assert not target.exists()


@pytest.mark.parametrize(
    "value",
    ["1e3", "010", "1:30", "1_000", ".5", "yes", 1e-5, 1e20, 1e300, -2.5, 1000, 1000.0, True, None],
)
def test_values_come_back_from_yaml_as_they_were(value):
    for flow in (True, False):
        found = from_yaml(to_yaml({"a": [value]}, flow))["a"][0]
        assert found == value and type(found) is type(value)


def test_ordered_mappings_of_the_zoo_are_read(tmp_path):
    ordered = collections.OrderedDict(
        [("policy", "MlpPolicy"), ("net_arch", [16]), ("env", collections.OrderedDict(n=4))]
    )
    (tmp_path / "config.yml").write_text(yaml.dump(ordered))
    assert "!!python/object/apply:collections.OrderedDict" in (tmp_path / "config.yml").read_text()
    assert read_settings(tmp_path / "config.yml") == {
        "policy": "MlpPolicy",
        "net_arch": [16],
        "env": {"n": 4},
    }


@pytest.mark.parametrize(
    "pairs",
    ["[]", "", "3", "[3]", "[[3]]", "{a: 1}", "[[[a, b, c]]]"],
)
def test_damaged_ordered_mappings_are_empty(tmp_path, pairs):
    text = f"!!python/object/apply:collections.OrderedDict {pairs}\n"
    (tmp_path / "config.yml").write_text(text)
    assert read_settings(tmp_path / "config.yml") == {}


# tables


def table():
    return pd.DataFrame(
        {"name": ["a", "b,c"], "count": [1, 2], "value": [0.1, 1 / 3], "none": [np.nan, 1e-300]}
    )


def not_called():
    raise AssertionError("made again")


def test_a_table_is_made_once(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    first = remembered(path, {"seed": 1, "sizes": (3, 4)}, table)
    pd.testing.assert_frame_equal(first, table(), check_exact=True)
    again = remembered(path, {"seed": 1, "sizes": [3, 4]}, not_called)
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    assert names(path.parent) == ["table.csv"]
    assert path.read_text().startswith('# {"seed": 1, "sizes": [3, 4]}\nname,count,value,none\n')


def test_a_table_of_other_settings_is_refused_and_left(tmp_path):
    path = tmp_path / "table.csv"
    remembered(path, {"seed": 1}, table)
    before = path.read_bytes()
    for wanted, message in (
        ({"seed": 2}, "table.csv was made with seed 1, not 2"),
        ({"seed": 1, "steps": 3}, "table.csv does not say with which steps it was made"),
    ):
        with pytest.raises(FileExistsError, match=message):
            remembered(path, wanted, not_called)
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_table_that_could_not_be_made_leaves_nothing(tmp_path, error):
    def fail():
        raise error

    with pytest.raises(error):
        remembered(tmp_path / "deep" / "table.csv", {"seed": 1}, fail)
    assert not (tmp_path / "deep").exists()


def test_a_table_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    for text in ("a,b\n1,2\n", "", "# a comment of another kind\na\n1\n#"):
        path.write_text(text)
        with pytest.raises((FileExistsError, ValueError), match="table.csv (does not|is damaged)"):
            remembered(path, {"seed": 1}, not_called)
        assert path.read_text() == text


@pytest.mark.parametrize("rest", ["", "a,b\n1,2,3\n4,5,6,7\n", 'a\n"1\n'])
def test_a_damaged_table_is_named(tmp_path, rest):
    (tmp_path / "table.csv").write_text('# {"seed": 1}\n' + rest)
    with pytest.raises(ValueError, match="(?s)table.csv is damaged: .* Delete it and run again"):
        remembered(tmp_path / "table.csv", {"seed": 1}, not_called)


def test_cells_may_hold_any_text(tmp_path):
    words = pd.DataFrame({"text": ["#1", "a # b", 'a "quote"', "two\nlines", "Ä"], "n": range(5)})
    found = remembered(tmp_path / "table.csv", {"seed": 1}, lambda: words)
    pd.testing.assert_frame_equal(found, words)


@pytest.mark.parametrize("first", [b"# 3", b'# "text"', b"\xff\xfe"])
def test_a_damaged_first_line_is_named(tmp_path, first):
    (tmp_path / "table.csv").write_bytes(first + b"\na\n1\n")
    with pytest.raises(ValueError, match="table.csv is damaged"):
        remembered(tmp_path / "table.csv", {"seed": 1}, not_called)


# tensors


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_tensors_come_back_as_they_are(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "whole": base,
        "view": base[1:, ::2],  # shares memory, and is not contiguous
        "turned": base.T,
        "integers": torch.tensor([[1, -2]]),
        "flags": torch.tensor([True, False]),
        "short": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 2),
        "number": torch.tensor(3.5, requires_grad=True),
    }
    path = tmp_path / "deep" / "tensors.safetensors"
    write_tensors(path, tensors, {"env": "Ä", "sizes": (1, 2)})
    found, header = read_tensors(str(path))
    assert header == {"format": 1, "env": "Ä", "sizes": [1, 2]}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())
    assert names(path.parent) == ["tensors.safetensors"]


def test_tensors_are_made_once(tmp_path):
    path = tmp_path / "deep" / "kept.safetensors"
    made = {"a": torch.arange(3.0)}
    for make in (lambda: made, not_called):
        found = remembered_tensors(path, {"seed": 1, "sizes": (3, 4)}, make)
        assert list(found) == ["a"]
        assert found["a"].equal(made["a"])
    with pytest.raises(FileExistsError, match="kept.safetensors was made with seed 1, not 2"):
        remembered_tensors(path, {"seed": 2}, not_called)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="kept.safetensors .* Delete it and run again"):
        remembered_tensors(path, {"seed": 1}, not_called)


def test_tensors_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no file at {tmp_path}/absent"):
        read_tensors(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path)


def test_damaged_tensors_are_named(tmp_path):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, {"a": torch.randn(50)}, {"seed": 1})
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[:60], whole[:-1], whole + b"1", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            read_tensors(path)


def test_an_archive_is_told_from_a_damaged_file(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", "1")
    with pytest.raises(ValueError, match="it is a zip archive, see load_agent"):
        read_tensors(tmp_path / "agent.zip")


def test_tensors_of_somebody_else_are_refused(tmp_path):
    path = tmp_path / "tensors.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata)
        with pytest.raises(ValueError, match="was not written by equirl: it has no header of ours"):
            read_tensors(path)


@pytest.mark.parametrize("header", ["", "{", "[1]", "{}", '{"format": "new"}', "3", "null"])
def test_a_damaged_header_is_named(tmp_path, header):
    path = tmp_path / "tensors.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, {"equirl": header})
    with pytest.raises(ValueError, match="tensors.safetensors has a damaged header"):
        read_tensors(path)


def test_newer_formats_say_what_to_do(tmp_path):
    path = tmp_path / "tensors.safetensors"
    safetensors.torch.save_file({}, path, {"equirl": json.dumps({"format": 3})})
    with pytest.raises(ValueError, match="is of format 3; this equirl reads up to 1: upgrade it"):
        read_tensors(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=1e-2),
        lambda p: torch.optim.AdamW([{"params": list(p), "lr": 1e-2}], amsgrad=True),
    ],
    ids=["Adam", "momentum", "SGD", "AdamW"],
)
def test_a_training_goes_on_where_it_was(make, tmp_path):
    """After a kill: written, made anew, restored, and then as if nothing had happened."""
    x, path = torch.randn(8, 3), tmp_path / "state.safetensors"

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    model = network()
    optimizer = make(model.parameters())
    assert restore_state(path, {"seed": 1}, model=model, optimizer=optimizer) == {}
    steps(model, optimizer, 3)
    write_state(path, {"seed": 1, "step": 3}, model=model, optimizer=optimizer)
    steps(model, optimizer, 2)

    other = network(seed=9)
    again = make(other.parameters())
    header = restore_state(path, {"seed": 1}, model=other, optimizer=again)
    assert (header["step"], header["seed"]) == (3, 1)
    steps(other, again, 2)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_other_settings_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "state.safetensors"
    write_state(path, {"seed": 1}, model=network())
    model = network(seed=9)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(FileExistsError, match="was made with seed 1, not 2"):
        restore_state(path, {"seed": 2}, model=model)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        restore_state(path, {"seed": 1}, model=model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_parts_of_a_state_have_names_of_their_own():
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    tensors = state_tensors(one=one, on=two)
    assert set(tensors) == {"one.weight", "one.bias", "on.weight", "on.bias"}
    assert part_of(tensors, "on").keys() == {"weight", "bias"}
    assert torch.equal(part_of(tensors, "on")["weight"], two.weight)
    assert part_of(tensors, "o") == {}
    three = nn.Linear(2, 1)
    load_state_tensors(tensors, one=three)
    assert torch.equal(three.weight, one.weight) and torch.equal(three.bias, one.bias)


def test_the_format_is_the_one_that_is_written(tmp_path):
    write_tensors(tmp_path / "x", {}, {})
    assert read_tensors(tmp_path / "x") == ({}, {"format": store.FORMAT})


def test_rounds_leave_the_random_state_alone(tmp_path):
    network = torch.nn.Linear(2, 2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    drawn = [float(torch.rand(1)) for _ in store.rounds(tmp_path / "a", {}, 3, 0, network=network)]
    assert torch.rand(1) == expected
    assert len(set(drawn)) == 3
    assert list(store.rounds(tmp_path / "a", {}, 3, 0, network=network)) == []
    with pytest.raises(FileExistsError, match="was made with seed 0"):
        list(store.rounds(tmp_path / "a", {}, 3, 1, network=network))
