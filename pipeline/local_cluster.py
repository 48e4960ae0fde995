"""A dask scheduler and its workers as processes of this machine, for the time of a `with` block."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

LOCAL_HOST = "127.0.0.1"  # a local cluster is nobody else's business
CLOSE_TIMEOUT_S = 10
ALLOWED_DEATHS = 2
"""Workers of a local cluster that a task may take down before it is a suspect, and again in its
trial. On a running cluster the scheduler's own `allowed-failures` decides."""
GPU = "GPU"  # the worker resource that a task with `needs_gpu` takes one of


@contextmanager
def local_cluster(cpus: int, gpus: int, *, dashboard: bool) -> Iterator[Client]:
    """One process per worker and one task at a time in each: networks are not thread-safe.

    Args:
        cpus:      workers without a GPU.
        gpus:      workers with one GPU each, as the resource `GPU`.
        dashboard: serve dask's dashboard, on this machine only.

    Raises:
        ConfigError: a dashboard without bokeh.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if dashboard and importlib.util.find_spec("bokeh") is None:
        raise ConfigError("--dashboard needs bokeh, which is not installed: pip install bokeh")
    # One core each: the same number of threads whatever the number of workers is what makes
    # the networks' results the same.
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    spec = {f"cpu-{i}": _worker(Nanny, env, {}) for i in range(cpus)}
    for i in range(gpus):
        spec[f"gpu-{i}"] = _worker(Nanny, {**env, "CUDA_VISIBLE_DEVICES": str(i)}, {GPU: 1})
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": LOCAL_HOST,
            "dashboard": dashboard,
            "dashboard_address": f"{LOCAL_HOST}:0" if dashboard else None,
        },
    }
    settings = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.admin.system-monitor.gil.enabled": False,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS - 1,
        "distributed.nanny.pre-spawn-environ": env,
    }
    with dask.config.set(settings), quiet_dask():
        others = set(multiprocessing.active_children())
        cluster = SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.CRITICAL)
        client = Client(cluster, set_as_default=False)
        try:
            yield client
        finally:
            _close(client, cluster, others)


def _close(client: Client, cluster: Any, others: set[Any]) -> None:
    """Stop a local cluster in bounded time: a worker that died just now may never answer.

    others: child processes that are not the cluster's
    """
    try:
        client.close(timeout=CLOSE_TIMEOUT_S)
        cluster.close(timeout=CLOSE_TIMEOUT_S)
    except TimeoutError:
        pass
    for child in set(multiprocessing.active_children()) - others:
        child.kill()


def _worker(cls: type, env: dict[str, str], resources: dict[str, int]) -> dict[str, Any]:
    options = {
        "host": LOCAL_HOST,
        "nthreads": 1,
        "env": env,
        "resources": resources,
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        # A terminal sends Ctrl-C to every process; the driver alone is to answer it.
        "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
    }
    return {"cls": cls, "options": options}


@contextmanager
def quiet_dask() -> Iterator[None]:
    """Dying workers are reported by us; dask's own lines about them would hide the progress bar."""
    loggers = [logging.getLogger(name) for name in ("distributed", "asyncio", "tornado")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
