"""Commands end as they should, and so do their workers."""

import os
import threading

import pytest
import torch

from equicore import processes
from equicore.processes import end_with, one_thread, report_errors


def test_worker_that_begins_after_the_kill_ends(monkeypatch):
    """It may have been importing while its parent was killed."""
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    end_with(os.getpid())  # the parent itself
    assert not ended.wait(0.1)
    end_with(2**22 + 1)  # above the highest id of a process
    assert ended.wait(5)


def test_one_thread_is_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, LookupError])
def test_wrong_input_is_a_message_and_status_2(error, capsys, monkeypatch):
    def action():
        raise error("give another")

    monkeypatch.delenv("EQUIRL_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        report_errors(action, LookupError)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: give another\n"
    monkeypatch.setenv("EQUIRL_DEBUG", "1")
    with pytest.raises(error):
        report_errors(action, LookupError)


def test_interrupt_is_status_130():
    def action():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        report_errors(action)
    assert end.value.code == 130


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        processes.report_errors(lambda: 1 // 0)
