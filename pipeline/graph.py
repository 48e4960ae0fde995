"""Many tasks in parallel, on this machine or on a cluster.

This module and local_cluster.py are all of the pipeline that knows dask. Tasks are pulled one
at a time, when a worker will soon be free, so that a data set of any size costs the scheduler
the same. The number under way follows the cluster: workers may join, leave and die at any
time. A task that fails comes back as a `Failure`; the others go on. Where a task runs, and how
often, changes nothing about its result.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.errors import BuildError, ConfigError
from pipeline.events import Event, event
from pipeline.local_cluster import CLOSE_TIMEOUT_S, GPU, local_cluster, quiet_dask
from pipeline.suspects import Suspects
from pipeline.window import NOT_YET, POLL_S, Capacity, Failure, Run, Task
from pipeline.worker_check import Site, checked_call, difference, this_site

if TYPE_CHECKING:
    from distributed import Client

ANSWER_TIMEOUT_S = 30
"""For one answer of the scheduler or of a worker; a result that takes longer is asked for again."""
_NO_ANSWER = (OSError, UnboundLocalError)
"""What dask raises where an answer did not come in time (TimeoutError is an OSError) or its connection broke; the
second where it notices so late that it has neither an answer nor an error."""
CHECK_TIMEOUT_S = 120
"""For all workers' answer at the start; the first look at a shared file system may be slow."""


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Where the work runs."""

    workers: int | None = None
    """Worker processes on this machine; none: one per core or, with a GPU, one per GPU for
    the networks and two for the rest. 0: no workers, everything in this process."""
    scheduler: str | None = None
    """Address of a running dask scheduler, such as tcp://node1:8786; its workers must see the
    same files under the same paths. Recipes: workflows/clusters/CLUSTERS.md."""
    worker_timeout_s: float = 60.0
    """How long to wait at the start for a worker that can do the work."""
    lost_workers_timeout_s: float = 3600.0
    """How long to wait for new workers when all have left a running cluster; those of a batch
    system come back when the next job starts."""
    backlog: int = 0
    """Tasks to queue on a running cluster beyond one per thread: a reason to grow, for a cluster
    that adapts to its load."""
    dashboard: bool = False
    """Serve dask's dashboard for the local cluster, on this machine only (needs bokeh; starting
    it takes 1 to 2 s)."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must not be negative, got {self.workers}")
        if self.scheduler is not None and self.workers is not None:
            raise ConfigError("give either --scheduler or --workers: a running cluster has its own workers")
        if self.backlog < 0:
            raise ConfigError(f"backlog must not be negative, got {self.backlog}")
        for name in ("worker_timeout_s", "lost_workers_timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")


class Graph:
    """Runs tasks; see `open_graph`."""

    def __init__(self, cluster: _Cluster | None, backlog: int = 0) -> None:
        self._cluster, self._backlog = cluster, backlog

    def run(self, next_task: Callable[[], Task | None]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result or Failure) in the order of completion.

        Args:
            next_task: gives the next task, or None if there is none for now. It is asked
                again after each result that the caller has taken, so results may lead to
                new tasks. The run ends when there is none and nothing is under way.

        Raises:
            BuildError: the scheduler is gone, or all workers are and none came back in time.
        """
        if self._cluster is None:
            while task := next_task():
                yield task, _call(task)
            return
        yield from Run(self._cluster, Suspects(next_task), self._backlog).results()


@contextmanager
def open_graph(
    config: GraphConfig,
    *,
    gpus: int = 0,
    needs_gpu: bool = False,
    shared: Sequence[Path] = (),
    say: Callable[[str], None] | None = None,
) -> Iterator[Graph]:
    """Workers for the time of a `with` block.

    Args:
        gpus:      GPUs of this machine that local workers may use.
        needs_gpu: some tasks need one; refuse to start where no worker can have it.
        shared:    files and folders that every worker must see as this process does.
        say:       takes the line with the dashboard's address, if there is a dashboard.

    Raises:
        BuildError: the scheduler cannot be reached, or no worker can do the work, within
            `worker_timeout_s`; or a worker has other versions, or does not see `shared`.
    """
    if needs_gpu and not gpus and config.scheduler is None:
        raise BuildError(
            "this machine has no GPU that torch can use; use --device cpu, or --scheduler ADDRESS"
        )
    if config.workers == 0:
        yield Graph(None)
        return
    with ExitStack() as stack:
        client = stack.enter_context(_connect(config) if config.scheduler else _own_cluster(config, gpus))
        cluster = _Cluster(client, config, this_site(shared) if config.scheduler else None)
        cluster.wait_for_workers(needs_gpu)
        cluster.check_workers()
        link = cluster.dashboard_link()
        if link and say:
            say(f"dashboard: {link}")
        yield Graph(cluster, config.backlog)


class _Cluster:
    """A scheduler and whatever workers it has, seen through a client that never waits for ever.

    site: what its workers must be like; none: they are processes of this machine
    """

    def __init__(self, client: Client, config: GraphConfig, site: Site | None) -> None:
        self._client, self._config, self._site = client, config, site
        self._where = config.scheduler or "the local cluster"
        self._capacity = Capacity()
        self._heard = time.monotonic()  # last answer of the scheduler
        self._asked = -POLL_S
        self._lost_since: float | None = None
        self._patience_s: dict[str, float] = {}  # by key: for a result that did not come at first

    def capacity(self, *, needs_gpu: bool) -> Capacity:
        """What the cluster can do now, at most POLL_S old.

        Raises:
            BuildError: the scheduler is gone; or no worker could do what is needed
                for `lost_workers_timeout_s`.
        """
        now = time.monotonic()
        if now - self._asked >= POLL_S:
            self._look()
            self._asked = time.monotonic()
        timeout_s = (
            self._config.lost_workers_timeout_s if self._config.scheduler else self._config.worker_timeout_s
        )
        if self._capacity.can(needs_gpu=needs_gpu):
            if self._lost_since is not None:
                _say(f"{self._where} has workers again after {now - self._lost_since:.0f} s")
            self._lost_since = None
            return self._capacity
        kind = f"workers with the resource {GPU}" if needs_gpu else "workers"
        if self._lost_since is None:
            self._lost_since = now
            _say(f"{self._where} has no {kind} any more; waiting {timeout_s:.0f} s for new ones")
        if now - self._lost_since > timeout_s:
            raise BuildError(
                f"{self._where} has had no {kind} for {timeout_s:.0f} s; finished work is kept: "
                "start some, then run the same command again"
            )
        return self._capacity

    def _look(self) -> None:
        """Ask the scheduler for its workers."""
        try:
            scheduler: Any = self._client.scheduler  # None once the client has closed itself
            info = self._client.sync(scheduler.identity, n_workers=-1, callback_timeout=ANSWER_TIMEOUT_S)
        except (*_NO_ANSWER, AttributeError):
            if self._client.status != "running" or time.monotonic() - self._heard > ANSWER_TIMEOUT_S:
                raise self._gone() from None
            return
        self._heard = time.monotonic()
        workers = [worker for worker in info["workers"].values() if worker["status"] == "running"]
        gpus = [min(int(worker["resources"].get(GPU, 0)), worker["nthreads"]) for worker in workers]
        self._capacity = Capacity(threads=sum(worker["nthreads"] for worker in workers), gpus=sum(gpus))

    def _gone(self) -> BuildError:
        return BuildError(
            f"the dask scheduler at {self._where} is gone, or dropped the work; finished work is kept: "
            "start a scheduler and run the same command again"
        )

    def wait_for_workers(self, needs_gpu: bool) -> None:
        """Return once a worker can do the work, or raise BuildError after `worker_timeout_s`."""
        deadline = time.monotonic() + self._config.worker_timeout_s
        while True:
            self._look()
            if self._capacity.can(needs_gpu=needs_gpu):
                return
            if time.monotonic() > deadline:
                threads = self._capacity.threads
                found = (
                    f"{threads} worker thread(s), none with the resource {GPU}" if threads else "no workers"
                )
                remedy = f"start them with `dask worker ADDRESS --resources {GPU}=1`, or use --device cpu"
                raise BuildError(
                    f"{self._where} has {found} after {self._config.worker_timeout_s:.0f} s; "
                    + (remedy if needs_gpu else "start some with `dask worker ADDRESS`")
                )
            time.sleep(0.2)

    def check_workers(self) -> None:
        """One line about the first process of the cluster that is not like this one.

        Workers that join later are checked by their first task.
        """
        site = self._site
        if site is None:
            return
        deadline = time.monotonic() + min(self._config.worker_timeout_s, ANSWER_TIMEOUT_S)
        code_only = Site(versions=site.versions[:1])
        self._refuse({"the scheduler": self._ask(lambda: _on_scheduler(self._client, code_only))})
        while True:
            problems = self._ask(lambda: self._client.run(difference, site, on_error="return"))
            missing = [problem for problem in problems.values() if "does not see" in str(problem)]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(1)  # a shared file system may be slow to show a new file
        self._refuse({f"worker {address}": problem for address, problem in problems.items()})

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer, or BuildError if there is none in time: a file system may hang."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer, error = answers.get(timeout=CHECK_TIMEOUT_S)
        except queue.Empty:
            raise BuildError(
                f"a worker of {self._where} does not answer; is one stopped, or a file system hanging there?"
            ) from None
        if error is not None:
            raise BuildError(
                f"{self._where} cannot be asked ({_one_line(error)}); is it still there?"
            ) from error
        return answer

    def _refuse(self, problems: dict[str, Any]) -> None:
        for who, problem in problems.items():
            if isinstance(problem, OSError):
                continue  # it left just now; if it comes back, its first task checks it
            if isinstance(problem, BaseException):
                problem = (
                    f"cannot run our code ({_one_line(problem)}); install the same environment everywhere"
                )
            if problem:
                raise BuildError(f"{who} of {self._where} {problem}")

    def dashboard_link(self) -> str | None:
        if self._config.scheduler is None and not self._config.dashboard:
            return None
        try:
            return self._client.dashboard_link
        except KeyError:  # started with --no-dashboard
            return None

    def submit(self, task: Task, key: str) -> Any:
        call: tuple[Any, ...] = (task.function, task.argument)
        if self._site is not None:
            call = (checked_call, self._site, *call)
        try:
            return self._client.submit(
                *call, key=key, pure=False, resources={GPU: 1} if task.needs_gpu else None
            )
        except Exception as error:  # a client that has closed itself raises many kinds
            if self._client.status == "running":
                raise
            raise self._gone() from error

    def cancel(self, futures: list[Any]) -> None:
        if futures and self._client.status == "running":
            self._client.cancel(futures, force=True)

    def result_of(self, future: Any) -> Any:
        """The result, a Failure, or NOT_YET if a worker died between finishing and handing over.

        A result that got lost is waited for briefly, or the cluster would not be looked at meanwhile; each time
        twice as long, or one that takes long to travel would never arrive.
        """
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        patience_s = self._patience_s.pop(future.key, POLL_S)
        try:
            return future.result(timeout=patience_s)
        except KilledWorker as error:
            return Failure(error=error, details=str(error), killed=True)
        except FutureCancelledError:
            raise self._gone() from None
        except Exception as error:
            if isinstance(error, _NO_ANSWER) and future.status != "error":
                if not isinstance(error, TimeoutError):  # a connection broke; whether the scheduler is gone
                    time.sleep(0.1)  # is found out by looking at it
                self._patience_s[future.key] = min(2 * patience_s, ANSWER_TIMEOUT_S)
                return NOT_YET
            if self._site is not None and _is_missing_code(error):
                error = BuildError(
                    f"a process of {self._where} cannot run our code ({_one_line(error)}); "
                    "install the same environment everywhere"
                )
            return Failure(error=error, details=traceback.format_exc())


def _on_scheduler(client: Client, site: Site) -> Any:
    try:
        return client.run_on_scheduler(difference, site)
    except ImportError as error:
        return error


def _is_missing_code(error: BaseException) -> bool:
    """Whether a worker or the scheduler could not even read the task."""
    return isinstance(error, ModuleNotFoundError) or "deserializ" in str(error)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _say(line: str) -> None:
    """Print a line above whatever progress bar there is, and log it."""
    tqdm.write(line, file=sys.stderr)
    event(Event.SAID, line=line)


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
    with quiet_dask():
        try:
            yield client
        finally:
            with suppress(TimeoutError):
                client.close(timeout=CLOSE_TIMEOUT_S)


def _own_cluster(config: GraphConfig, gpus: int) -> AbstractContextManager[Client]:
    cpus = config.workers or (2 if gpus else len(os.sched_getaffinity(0)))
    return local_cluster(cpus, gpus, dashboard=config.dashboard)


def _call(task: Task) -> Any:
    try:
        return task.function(task.argument)
    except Exception as error:
        return Failure(error=error, details=traceback.format_exc())
