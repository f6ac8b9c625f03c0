"""Where the units of a study run: the processes of this machine, or a cluster."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import joblib

CLUSTERS = {"dask": "distributed", "ray": "ray"}
"""Backends of joblib that connect to a cluster, and the package that each needs."""


def check_backend(backend: str, address: str | None) -> None:
    """Raise ValueError if joblib has no such backend, or it is not installed, or has no address."""
    if backend in CLUSTERS:
        module = CLUSTERS[backend]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"--backend {backend} needs {module}: pip install {module}")
    elif backend not in joblib.parallel.BACKENDS:
        known = ", ".join({**joblib.parallel.BACKENDS, **CLUSTERS})
        raise ValueError(f"joblib has no backend {backend!r}; it has {known}")
    elif address is not None:
        raise ValueError(f"--address is for {' and '.join(CLUSTERS)}; {backend} has none")


@contextlib.contextmanager
def cluster(backend: str, address: str | None, jobs: int) -> Iterator[None]:
    """Connect to the cluster that a backend of joblib needs; without an address, a local one."""
    if backend == "dask":
        from dask.distributed import Client

        local = {} if address else {"n_workers": jobs, "threads_per_worker": 1}
        with Client(address, **local):
            yield
    elif backend == "ray":
        import ray  # type: ignore[import-not-found]
        from ray.util.joblib import register_ray  # type: ignore[import-not-found]

        ray.init(address)
        register_ray()
        try:
            yield
        finally:
            ray.shutdown()
    else:
        yield
