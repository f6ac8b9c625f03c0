"""How our commands behave as processes: one core each, no orphans, and errors as messages."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: more only wait for each other on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def end_with(parent: int) -> None:
    """Let this worker end when the process that started it is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    watched = any(thread.name == "end_with" for thread in threading.enumerate())
    if os.getpid() != parent and not watched:
        threading.Thread(target=watch, name="end_with", daemon=True).start()


def report_errors(action: Callable[[], None], *errors: type[Exception]) -> None:
    """Do what a command does, and end as one should.

    Wrong input ends with its message and exit status 2, without a traceback; the environment
    variable EQUIRL_DEBUG=1 shows it. Ctrl-C ends with status 130.

    Args:
        action: What it does.
        *errors: What wrong input raises, besides ValueError, TypeError and OSError.
    """
    expected: tuple[type[Exception], ...] = (ValueError, TypeError, OSError, *errors)
    try:
        action()
    except KeyboardInterrupt:
        sys.exit(130)
    except expected as error:
        if os.environ.get("EQUIRL_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
