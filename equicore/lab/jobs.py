"""Work side by side: one parallel map over any backend of joblib, each task on one core."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import joblib
import torch
from tqdm import tqdm

from equicore.lab import CORES

T = TypeVar("T")

CLUSTERS = {"dask": "distributed", "ray": "ray"}
"""Backends of joblib that connect to a cluster, and the package that each needs."""

ONE_AT_A_TIME = threading.Lock()
"""For tasks that need all of a process, such as its global generators, where threads share it."""


@dataclass(frozen=True)
class Workers:
    """Where tasks run.

    So many ``jobs`` run side by side, each on one core, by a backend of joblib: ``loky`` (processes
    of this machine), ``threading``, ``dask``, ``ray``. The address is that of a dask or ray
    cluster's scheduler; a local one is started when omitted.

    Raises:
        ValueError: If there is no such backend, it is not installed, or it has no address.
    """

    jobs: int = CORES
    backend: str = "loky"
    address: str | None = None

    def __post_init__(self) -> None:
        """Check them."""
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1; got {self.jobs}")
        if self.backend in CLUSTERS:
            module = CLUSTERS[self.backend]
            if importlib.util.find_spec(module) is None:
                raise ValueError(f"the backend {self.backend} needs {module}: pip install {module}")
        elif self.backend not in joblib.parallel.BACKENDS:
            known = ", ".join({**joblib.parallel.BACKENDS, **CLUSTERS})
            raise ValueError(f"joblib has no backend {self.backend!r}; it has {known}")
        elif self.address is not None:
            raise ValueError(f"an address is for {' and '.join(CLUSTERS)}; {self.backend} has none")

    def map(
        self,
        tasks: Sequence[Callable[[], T]],
        what: str,
        *,
        done: Callable[[], float] | None = None,
        total: float | None = None,
    ) -> list[T]:
        """The results of all tasks, in their order.

        Args:
            tasks: Without arguments; they and their results can be pickled.
            what: The progress bar's label.
            done: How far the work is; the number of finished tasks when omitted.
            total: What ``done`` returns at the end.

        Raises:
            ChildProcessError: If a worker was killed.
        """
        results: dict[int, T] = {}
        jobs = max(1, min(self.jobs, len(tasks)))
        parent = None if self.backend in CLUSTERS else os.getpid()
        calls = (joblib.delayed(_alone)(i, task, parent) for i, task in enumerate(tasks))
        with (
            _progress(what, total or len(tasks), done or (lambda: len(results))),
            self._cluster(),
            joblib.parallel_config(backend=self.backend, n_jobs=jobs),
            warnings.catch_warnings(),
        ):
            # joblib renews a worker whose memory has grown
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            streams = joblib.parallel.get_active_backend()[0].supports_return_generator
            run = joblib.Parallel(
                batch_size=1, return_as="generator_unordered" if streams else "list"
            )
            try:
                for i, result in run(calls):
                    results[i] = result
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    f"a worker was killed, perhaps for want of memory: {error}"
                ) from error
        return [results[i] for i in range(len(tasks))]

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """A connection to the cluster that the backend needs."""
        if self.backend == "dask":
            import dask
            from dask.distributed import Client

            local = {} if self.address else {"n_workers": self.jobs, "threads_per_worker": 1}
            with (
                tempfile.TemporaryDirectory() as scratch,  # dask itself leaves its own behind
                dask.config.set({"temporary-directory": scratch}),
                Client(self.address, **local),
            ):
                yield
        elif self.backend == "ray":
            import ray  # type: ignore[import-not-found]
            from ray.util.joblib import register_ray  # type: ignore[import-not-found]

            ray.init(self.address)
            register_ray()
            try:
                yield
            finally:
                ray.shutdown()
        else:
            yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: more only wait for each other on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _alone(number: int, task: Callable[[], T], parent: int | None) -> tuple[int, T]:
    """Do one task on one core, in a process that ends when its parent is killed."""
    if parent is not None:  # the workers of a cluster are not ours
        _end_with(parent)
    with one_thread():
        return number, task()


def _end_with(parent: int) -> None:
    """Let this worker end when the process that started it is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    watched = any(thread.name == "end_with" for thread in threading.enumerate())
    if os.getpid() != parent and not watched:
        threading.Thread(target=watch, name="end_with", daemon=True).start()


@contextmanager
def _progress(what: str, total: float, done: Callable[[], float]) -> Iterator[None]:
    """A bar that looks up how far the work is."""
    stopped = threading.Event()
    start = done()
    with tqdm(total=total, initial=start, desc=what, unit_scale=total > 1e4, disable=None) as bar:

        def watch() -> None:
            while not stopped.wait(1):
                bar.update(done() - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()
            bar.update(done() - bar.n)
