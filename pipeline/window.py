"""How many tasks are under way: as many as the cluster has threads for, at any time.

Knows the cluster as something with a capacity that changes; nothing of dask.
"""

from __future__ import annotations

import queue
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.suspects import Suspects

POLL_S = 1.0
"""How often the cluster is looked at."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call to make. `key` must be unique within a graph; `group`: tasks that share a fate,
    such as the pieces of one clip."""

    function: Callable[[Any], Any]
    argument: Any
    key: str
    needs_gpu: bool = False
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a task raised. `killed`: its workers died under it, again and
    again, and once more when it was tried by itself."""

    error: BaseException
    details: str
    killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Tasks that can run at a time, and those among them that need a GPU."""

    threads: int = 0
    gpus: int = 0

    def can(self, *, needs_gpu: bool) -> bool:
        return (self.gpus if needs_gpu else self.threads) > 0


NOT_YET = object()  # in place of a result that got lost with its worker and is made again


class Cluster(Protocol):
    """What `Run` needs of a cluster. A future has `key`, `release` and `add_done_callback`."""

    def capacity(self, *, needs_gpu: bool) -> Capacity:
        """What it can do now; raises BuildError once it has been unable for too long."""

    def submit(self, task: Task, key: str) -> Any:
        """The future of a task that is now under way."""

    def result_of(self, future: Any) -> Any:
        """The result of an ended future, a Failure, or NOT_YET."""

    def cancel(self, futures: list[Any]) -> None:
        """Give up what is under way."""


class Run:
    """Tasks under way on a cluster: at most one per thread, and one GPU task per GPU.

    A task that waits behind one that kills its worker would share the blame; the gap
    between two tasks is milliseconds, a task seconds.

    backlog: tasks beyond that, for a cluster that starts workers when tasks are waiting
    """

    def __init__(self, cluster: Cluster, suspects: Suspects, backlog: int = 0) -> None:
        self._cluster, self._suspects, self._backlog = cluster, suspects, backlog
        self._running: dict[str, tuple[Task, Any]] = {}  # by the scheduler's key
        self._waiting: deque[Task] = deque()  # for a GPU, while other tasks go ahead
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Other drivers may use the scheduler, or have died and left tasks of these names there.
        self._name = uuid.uuid4().hex
        self._submitted = 0

    def results(self) -> Iterator[tuple[Task, Any]]:
        try:
            while self._submit():
                try:
                    future = self._done.get(timeout=POLL_S)
                except queue.Empty:
                    continue  # time to look at the cluster again
                result = self._cluster.result_of(future)
                if result is NOT_YET:
                    future.add_done_callback(self._done.put)
                    continue
                task, _ = self._running.pop(future.key)
                future.release()
                yield from self._judged(task, result)
        finally:
            self._cluster.cancel([future for _, future in self._running.values()])

    def _judged(self, task: Task, result: Any) -> Iterator[tuple[Task, Any]]:
        if isinstance(result, Failure) and result.killed:
            for failed in self._suspects.killed(task):
                yield failed, result
        else:
            self._suspects.ended(task)
            yield task, result

    def _submit(self) -> bool:
        """Fill the free threads. False: nothing is under way and nothing is left."""
        if not self._running and not self._waiting:
            first = self._suspects.next_task(quiet=True)
            if first is None:
                return False
            self._waiting.append(first)
        capacity = self._cluster.capacity(needs_gpu=self._needs_gpu())
        if self._backlog:
            capacity = Capacity(
                threads=capacity.threads + self._backlog, gpus=capacity.gpus and capacity.gpus + self._backlog
            )
        while len(self._running) < capacity.threads and (task := self._next_task(capacity)):
            self._submitted += 1
            key = f"{task.key}-{self._name}-{self._submitted}"
            future = self._cluster.submit(task, key)
            self._running[key] = (task, future)
            future.add_done_callback(self._done.put)
        return True

    def _next_task(self, capacity: Capacity) -> Task | None:
        """In the order given, but what can run passes what must wait for a GPU."""
        gpu_is_free = sum(task.needs_gpu for task, _ in self._running.values()) < capacity.gpus
        if self._waiting and (gpu_is_free or not self._waiting[0].needs_gpu):
            return self._waiting.popleft()
        while len(self._waiting) < capacity.threads:
            trials_only = all(self._suspects.is_trial(task) for task, _ in self._running.values())
            task = self._suspects.next_task(quiet=trials_only and not self._waiting)
            if task is None or gpu_is_free or not task.needs_gpu:
                return task
            self._waiting.append(task)
        return None

    def _needs_gpu(self) -> bool:
        """Whether nothing can go on without a GPU."""
        return all(task.needs_gpu for task in (*self._waiting, *(task for task, _ in self._running.values())))
