"""Tasks whose workers died again and again: bad luck, or their own doing?

Nodes reboot, jobs reach their wall time, a neighbour eats the memory: workers die for many
reasons, and the scheduler counts every one of them against the tasks that were on it. So a
task that it gives up is only a suspect. It is tried once more when everything else is
done; what kills its workers in quiet times too, after it did so before, is guilty. Tasks of
the same group (pieces of one clip) wait for the verdict, so that one bad clip does not
take down workers once for each of its pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.window import Task


class Suspects:
    """Stands between whoever gives tasks and whoever runs them."""

    def __init__(self, next_task: Callable[[], Task | None]) -> None:
        self._next_task = next_task
        self._accused: dict[str, deque[Task]] = {}  # group -> suspects, the first is tried next
        self._held: dict[str, list[Task]] = {}  # group -> tasks that wait for the verdict
        self._freed: deque[Task] = deque()
        self._trials: set[str] = set()  # keys that are being tried

    def next_task(self, *, quiet: bool) -> Task | None:
        """The next task to run. quiet: nothing is under way but trials."""
        while task := self._freed.popleft() if self._freed else self._next_task():
            if _group(task) not in self._accused:
                return task
            self._held.setdefault(_group(task), []).append(task)
        if quiet:
            for suspects in self._accused.values():
                if suspects and not any(task.key in self._trials for task in suspects):
                    self._trials.add(suspects[0].key)
                    return suspects[0]
        return None

    def is_trial(self, task: Task) -> bool:
        return task.key in self._trials

    def killed(self, task: Task) -> list[Task]:
        """Its workers died again and again. Returns the tasks that failed with it: none yet, or its group."""
        group = _group(task)
        if task.key not in self._trials:
            self._accused.setdefault(group, deque()).append(task)
            return []
        suspects = self._accused.pop(group)
        self._trials.discard(task.key)
        return [*suspects, *self._held.pop(group, [])]

    def ended(self, task: Task) -> None:
        """It came to an end by itself; if that was a trial, it is acquitted."""
        if task.key not in self._trials:
            return
        group = _group(task)
        self._trials.discard(task.key)
        self._accused[group].remove(task)
        if not self._accused[group]:
            del self._accused[group]
            self._freed.extend(self._held.pop(group, []))


def _group(task: Task) -> str:
    return task.group or task.key
