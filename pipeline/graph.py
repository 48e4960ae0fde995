"""Many tasks in parallel, on this machine or on a cluster. The one module that knows dask.

Tasks are pulled one at a time, when a worker will soon be free, so that a data set of any
size costs the scheduler the same. A task that fails comes back as a `Failure`; the others
go on. Where a task runs changes nothing about its result.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import BuildError, ConfigError

if TYPE_CHECKING:
    from distributed import Client

LOCAL_HOST = "127.0.0.1"  # a local cluster is nobody else's business
CLOSE_TIMEOUT_S = 10
ALLOWED_DEATHS = 3
"""Workers that a task may take down before it is given up."""
GPU = "GPU"  # the worker resource that a task with `needs_gpu` takes one of


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Where the work runs."""

    workers: int | None = None
    """Worker processes on this machine; none: one per core or, with a GPU, one per GPU for
    the networks and two for the rest. 0: no workers, everything in this process."""
    scheduler: str | None = None
    """Address of a running dask scheduler, such as tcp://node1:8786; its workers must see the
    same files under the same paths."""
    worker_timeout_s: float = 60.0
    """How long to wait for a worker that can do the work."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must not be negative, got {self.workers}")
        if self.scheduler is not None and self.workers is not None:
            raise ConfigError("give either --scheduler or --workers: a running cluster has its own workers")
        if self.worker_timeout_s <= 0:
            raise ConfigError(f"worker_timeout_s must be positive, got {self.worker_timeout_s}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call to make. `key` must be unique within a graph."""

    function: Callable[[Any], Any]
    argument: Any
    key: str
    needs_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a task raised. `killed`: its workers died under it, again and again."""

    error: BaseException
    details: str
    killed: bool = False


class Graph:
    """Runs tasks; see `open_graph`."""

    def __init__(self, client: Client | None, slots: int) -> None:
        self._client, self._slots = client, slots

    def run(self, next_task: Callable[[], Task | None]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result or Failure) in the order of completion.

        Args:
            next_task: gives the next task, or None if there is none for now. It is asked
                again after each result that the caller has taken, so results may lead to
                new tasks. The run ends when there is none and nothing is under way.
        """
        if self._client is None:
            while task := next_task():
                yield task, _call(task)
            return
        yield from self._run_on_cluster(self._client, next_task)

    def _run_on_cluster(
        self, client: Client, next_task: Callable[[], Task | None]
    ) -> Iterator[tuple[Task, Any]]:
        from distributed import as_completed

        running: dict[str, tuple[Task, Any]] = {}
        completed = as_completed(loop=client.loop)

        def submit_more() -> None:
            while len(running) < self._slots and (task := next_task()):
                future = client.submit(
                    task.function,
                    task.argument,
                    key=task.key,
                    pure=False,
                    resources={GPU: 1} if task.needs_gpu else None,
                )
                running[task.key] = (task, future)
                completed.add(future)

        try:
            submit_more()
            while running:
                future = next(completed)
                task, _ = running.pop(future.key)
                yield task, _result_of(future)
                future.release()
                submit_more()
        finally:
            client.cancel([future for _, future in running.values()], force=True)


@contextmanager
def open_graph(config: GraphConfig, *, gpus: int = 0, needs_gpu: bool = False) -> Iterator[Graph]:
    """Workers for the time of a `with` block.

    Args:
        gpus:      GPUs of this machine that local workers may use.
        needs_gpu: some tasks need one; refuse to start where no worker can have it.

    Raises:
        BuildError: the scheduler cannot be reached, or no worker can do the work, within
            `worker_timeout_s`.
    """
    if needs_gpu and not gpus and config.scheduler is None:
        raise BuildError(
            "this machine has no GPU that torch can use; use --device cpu, or --scheduler ADDRESS"
        )
    if config.workers == 0:
        yield Graph(None, 1)
        return
    with ExitStack() as stack:
        client = stack.enter_context(_connect(config) if config.scheduler else _local_cluster(config, gpus))
        slots = _wait_for_workers(client, config, needs_gpu)
        yield Graph(client, slots)


@contextmanager
def _connect(config: GraphConfig) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(config.scheduler, timeout=config.worker_timeout_s, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise BuildError(
            f"no dask scheduler answers at {config.scheduler} ({type(error).__name__}); "
            "start one with `dask scheduler`, or leave --scheduler out"
        ) from None
    with client:
        yield client


@contextmanager
def _local_cluster(config: GraphConfig, gpus: int) -> Iterator[Client]:
    """One process per worker and one task at a time in each: networks are not thread-safe."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    cpus = config.workers or (2 if gpus else len(os.sched_getaffinity(0)))
    # One core each: the same number of threads whatever the number of workers is what makes
    # the networks' results the same.
    env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    spec = {f"cpu-{i}": _worker(Nanny, env, {}) for i in range(cpus)}
    for i in range(gpus):
        spec[f"gpu-{i}"] = _worker(Nanny, {**env, "CUDA_VISIBLE_DEVICES": str(i)}, {GPU: 1})
    scheduler = {
        "cls": Scheduler,
        "options": {"host": LOCAL_HOST, "dashboard": False, "dashboard_address": None},
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
    with dask.config.set(settings), _quiet_dask():
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


def _wait_for_workers(client: Client, config: GraphConfig, needs_gpu: bool) -> int:
    """Tasks to keep under way: one per thread.

    A task that waits behind one that kills its worker would share the blame; the gap
    between two tasks is milliseconds, a task seconds.
    """
    deadline = time.monotonic() + config.worker_timeout_s
    while True:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        able = [worker for worker in workers if not needs_gpu or worker["resources"].get(GPU, 0) >= 1]
        if able:
            return sum(worker["nthreads"] for worker in workers)
        if time.monotonic() > deadline:
            found = f"{len(workers)} worker(s), none with the resource {GPU}" if workers else "no workers"
            remedy = f"start them with `dask worker ADDRESS --resources {GPU}=1`, or use --device cpu"
            where = config.scheduler or "the local cluster"
            raise BuildError(
                f"{where} has {found} after {config.worker_timeout_s:.0f} s; "
                + (remedy if needs_gpu else "start some with `dask worker ADDRESS`")
            )
        time.sleep(0.2)


@contextmanager
def _quiet_dask() -> Iterator[None]:
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


def _call(task: Task) -> Any:
    try:
        return task.function(task.argument)
    except Exception as error:
        return Failure(error=error, details=traceback.format_exc())


def _result_of(future: Any) -> Any:
    """The result, waiting again if a worker died between finishing a task and handing it over."""
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        return Failure(error=error, details=str(error), killed=True)
    except FutureCancelledError as error:
        return Failure(
            error=BuildError(f"a task was cancelled ({error}); is the scheduler still there?"), details=""
        )
    except Exception as error:
        return Failure(error=error, details=traceback.format_exc())
