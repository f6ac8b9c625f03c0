"""Work side by side: order, errors, killed workers and killed parents, devices."""

import functools
import importlib.util
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from equicore.lab.devices import check_device
from equicore.lab.jobs import Workers, one_thread

BACKENDS = pytest.mark.parametrize("backend", ["loky", "threading"])


def wait_for(condition, seconds=120):
    """Wait for something to become true; the limit is for tests that fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def after(file):
    """A task that ends when a file exists, and one that makes the file."""

    def wait():
        import time

        while not file.exists():
            time.sleep(0.01)
        return "waited"

    def make():
        file.touch()
        return "made"

    return [wait, make]


@BACKENDS
def test_results_are_in_the_order_of_the_tasks_and_tasks_run_side_by_side(backend, tmp_path):
    """The first of each pair can only end after the second."""
    tasks = [task for i in range(3) for task in after(tmp_path / str(i))]
    assert Workers(2, backend).map(tasks, "tasks") == ["waited", "made"] * 3


@BACKENDS
def test_each_task_computes_with_one_thread(backend):
    with_two = functools.partial(torch.set_num_threads, 2)
    before = torch.get_num_threads()
    try:
        with_two()
        found = Workers(2, backend).map([torch.get_num_threads] * 4, "tasks")
        assert found == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def refuse(message):
    raise LookupError(message)


@BACKENDS
def test_the_error_of_a_task_is_raised(backend):
    workers, before = Workers(2, backend), threading.active_count()
    tasks = [lambda: 1, lambda: {}["the key"], lambda: 3]
    with pytest.raises(KeyError, match="the key"):
        workers.map(tasks, "tasks")
    assert workers.map([lambda: 4], "tasks") == [4]
    if backend == "threading":
        wait_for(lambda: threading.active_count() == before)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_that_says_so():
    def die():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    workers = Workers(2, "loky")
    with pytest.raises(ChildProcessError, match="a worker was killed, perhaps for want of memory"):
        workers.map([lambda: 1, die, lambda: 3], "tasks")
    assert workers.map([lambda: 4, lambda: 5], "tasks") == [4, 5]


def test_no_tasks():
    assert Workers(3, "threading").map([], "tasks") == []


def test_one_job_runs_one_task_after_the_other():
    running, most = [], []

    def task():
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    Workers(1, "threading").map([task] * 5, "tasks")
    assert max(most) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("known", [False, True])
def test_the_progress_bar_shows_how_far_the_work_is(known, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    steps = iter([0.0, *[7.0] * 1000])
    options = {"done": lambda: next(steps), "total": 8} if known else {}
    Workers(1, "threading").map([lambda: 1] * 3, "training", **options)
    lines = terminal.getvalue().split("\r")
    assert all(line.startswith("training:") for line in lines if line.strip())
    assert ("7.0/8" if known else "3/3") in lines[-1]


def test_without_a_terminal_there_is_no_bar(capsys):
    Workers(1, "threading").map([lambda: 1], "training")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"jobs": 0}, "jobs must be at least 1; got 0"),
        ({"jobs": -2}, "jobs must be at least 1; got -2"),
        ({"backend": "celery"}, "joblib has no backend 'celery'; it has .*loky.*dask.*ray"),
        ({"backend": ""}, "joblib has no backend ''"),
        ({"address": "tcp://host:1"}, "an address is for dask and ray; loky has none"),
        ({"backend": "threading", "address": ""}, "an address is for dask and ray; threading has"),
    ],
)
def test_workers_that_cannot_be_had_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Workers(**options)


@pytest.mark.parametrize("backend, module", [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_needs_its_package(backend, module, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == module else find(name, *a)
    )
    with pytest.raises(ValueError, match=f"{backend} needs {module}: pip install {module}"):
        Workers(backend=backend)


def test_one_thread_is_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x"])
def test_devices_that_this_machine_has_not_are_refused(device):
    with pytest.raises(ValueError, match=f"^there is no device {device} here: [^\n]+$"):
        check_device(device)


def test_devices_that_this_machine_has():
    for device in ("auto", "cpu"):
        check_device(device)


PARENT = """
import os, pathlib, sys, time
from equicore.lab.jobs import Workers

def endless(file):
    def task():
        import os, time
        file.write_text(str(os.getpid()))
        while True:
            time.sleep(0.05)
    return task

folder = pathlib.Path(sys.argv[1])
Workers(2, "loky").map([endless(folder / name) for name in ("a", "b")], "tasks")
"""


def alive(pid):
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def left_by(pid, folder):
    """Semaphores and folders of a process, in memory and among temporary files."""
    places = [Path("/dev/shm"), Path(tempfile.gettempdir()), folder]
    marks = (f"-{pid}-", f"_{pid}_")
    return [
        file.name
        for place in places
        if place.is_dir()
        for file in place.iterdir()
        if any(mark in file.name for mark in marks)
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_of_a_killed_parent_nothing_is_left(kill, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    files = [tmp_path / name for name in ("a", "b")]
    with (tmp_path / "errors.log").open("w") as errors:
        parent = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            stderr=errors,
            env=os.environ
            | {
                "TMPDIR": str(temporary),
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]),
            },
        )
    try:
        wait_for(
            lambda: all(f.exists() and f.read_text() for f in files) or parent.poll() is not None
        )
        assert parent.poll() is None, (tmp_path / "errors.log").read_text()
        workers = [int(file.read_text()) for file in files]
        assert len({*workers, parent.pid}) == 3
        parent.send_signal(kill)
        parent.wait(120)
        wait_for(lambda: not any(alive(worker) for worker in workers))
        wait_for(lambda: not left_by(parent.pid, temporary))
    finally:
        parent.kill()
        parent.wait()
