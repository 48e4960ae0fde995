"""The order and number of tasks under way, on a cluster that is scripted; real ones: tests/faults/test_clusters.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.graph import GraphConfig, open_graph
from pipeline.suspects import Suspects
from pipeline.window import NOT_YET, Capacity, Failure, Run, Task
from pipeline.worker_check import LIBRARIES, Site, difference, this_site


class Future:
    """Ends when its cluster says so."""

    def __init__(self, key: str, task: Task) -> None:
        self.key, self.task, self.call = key, task, lambda future: None

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        self.call = call

    def release(self) -> None:
        pass


class Scripted:
    """A cluster whose capacity is given look by look; at every second look, its oldest task ends."""

    def __init__(self, *capacities: tuple[int, int], ends: dict[str, list[Any]] | None = None) -> None:
        self._capacities, self._ends = list(capacities), ends or {}
        self._looks, self.now = 0, Capacity()
        self.under_way: list[Future] = []
        self.seen: list[tuple[int, int]] = []  # tasks under way, and of those on GPUs, after each submission
        self.begun: list[str] = []
        self.keys: list[str] = []

    def capacity(self, *, needs_gpu: bool) -> Capacity:
        self._looks += 1
        if self.under_way and self._looks % 2 == 0:
            future = self.under_way.pop(0)
            future.call(future)
        threads, gpus = self._capacities.pop(0) if len(self._capacities) > 1 else self._capacities[0]
        self.now = Capacity(threads=threads, gpus=gpus)
        return self.now

    def submit(self, task: Task, key: str) -> Future:
        future = Future(key, task)
        self.under_way.append(future)
        self.begun.append(task.key)
        self.keys.append(key)
        self.seen.append((len(self.under_way), sum(each.task.needs_gpu for each in self.under_way)))
        return future

    def result_of(self, future: Future) -> Any:
        ends = self._ends.get(future.task.key)
        result = ends.pop(0) if ends else future.task.key
        if result is NOT_YET:
            self.under_way.append(future)
        return result

    def cancel(self, futures: list[Any]) -> None:
        assert not futures


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.window.POLL_S", 0.01)


KILLED = Failure(error=RuntimeError("killed"), details="", killed=True)


def task(key: str, group: str | None = None) -> Task:
    return Task(function=str, argument=0, key=key, needs_gpu=key.startswith("gpu"), group=group)


def run(cluster: Scripted, tasks: list[Task], backlog: int = 0) -> list[tuple[str, Any]]:
    waiting = iter(tasks)
    results = Run(cluster, Suspects(lambda: next(waiting, None)), backlog).results()
    return [(done.key, result) for done, result in results]


def test_the_number_under_way_follows_the_cluster() -> None:
    cluster = Scripted((1, 0), (1, 0), *[(3, 0)] * 4, (0, 0), (0, 0), (2, 0))
    done = run(cluster, [task(f"{i}") for i in range(12)])
    assert sorted(int(key) for key, _ in done) == list(range(12))
    numbers = [number for number, _ in cluster.seen]
    assert numbers[0] == 1
    assert max(numbers) == 3  # those that joined are used
    assert max(numbers[-4:]) == 2  # those that left are not counted any more


def test_gpu_tasks_wait_for_gpus_and_others_pass_them() -> None:
    cluster = Scripted((3, 1))
    run(cluster, [*(task(f"gpu{i}") for i in range(3)), *(task(f"cpu{i}") for i in range(2))])
    assert max(gpus for _, gpus in cluster.seen) == 1
    assert max(number for number, _ in cluster.seen) == 3
    assert cluster.begun[:3] == ["gpu0", "cpu0", "cpu1"]
    assert cluster.begun[3:] == ["gpu1", "gpu2"]


def test_no_more_tasks_are_taken_ahead_of_a_gpu_than_there_are_threads() -> None:
    taken: list[int] = []

    def next_task() -> Task | None:
        taken.append(len(taken))
        return task(f"gpu{len(taken)}") if len(taken) < 50 else None

    results = Run(Scripted((3, 1)), Suspects(next_task)).results()
    next(results)
    assert len(taken) <= 6


def test_a_result_lost_with_its_worker_is_waited_for() -> None:
    assert run(Scripted((2, 0), ends={"a": [NOT_YET, NOT_YET, "made again"]}), [task("a"), task("b")]) == [
        ("b", "b"),
        ("a", "made again"),
    ]


def test_keys_on_the_scheduler_are_unique_to_a_run_and_keep_their_prefix() -> None:
    first, second = Scripted((1, 0)), Scripted((1, 0))
    run(first, [task("piece-000000-00000000")])
    run(second, [task("piece-000000-00000000")])
    assert first.keys != second.keys
    assert all(key.startswith("piece-000000-00000000-") for key in first.keys)


def test_a_task_given_up_is_tried_once_more_when_all_else_is_done() -> None:
    cluster = Scripted((2, 0), ends={"unlucky": [KILLED, "fine"]})
    assert [key for key, _ in run(cluster, [task("unlucky"), task("a"), task("b")])] == ["a", "b", "unlucky"]
    assert cluster.begun == ["unlucky", "a", "b", "unlucky"]


def test_a_guilty_task_takes_its_group_with_it_and_no_other() -> None:
    cluster = Scripted((1, 0), ends={"p0": [KILLED, KILLED]})
    tasks = [task("p0", "clip"), *(task(f"p{i}", "clip") for i in range(1, 5)), task("other", "c")]
    assert dict(run(cluster, tasks)) == {"other": "other"} | {f"p{i}": KILLED for i in range(5)}
    assert cluster.begun == ["p0", "other", "p0"]  # its brothers were never run


def test_a_group_goes_on_once_its_suspects_are_acquitted() -> None:
    cluster = Scripted((2, 0), ends={"p0": [KILLED, "fine"], "p1": [KILLED, "fine"]})
    done = run(cluster, [task(f"p{i}", "clip") for i in range(4)])
    assert sorted(key for key, _ in done) == ["p0", "p1", "p2", "p3"]
    assert not any(isinstance(result, Failure) for _, result in done)
    assert sorted(cluster.begun) == ["p0", "p0", "p1", "p1", "p2", "p3"]


def test_a_backlog_shows_an_adaptive_cluster_that_there_is_more_to_do() -> None:
    cluster = Scripted((1, 0))
    run(cluster, [task(f"{i}") for i in range(9)], backlog=3)
    assert max(number for number, _ in cluster.seen) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": -1},
        {"scheduler": "tcp://a:1", "workers": 2},
        {"worker_timeout_s": 0},
        {"lost_workers_timeout_s": -1},
        {"backlog": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GraphConfig(**settings)


def test_the_dashboard_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match="--dashboard needs bokeh"),
        open_graph(GraphConfig(workers=1, dashboard=True)),
    ):
        pass


def test_a_process_is_like_itself_and_says_how_it_differs(tmp_path: Any) -> None:
    file = tmp_path / "lease"
    file.write_text("held")
    site = this_site([file, tmp_path])
    assert difference(site) is None
    assert {name for name, _ in site.versions} == {"instance-motion code", *LIBRARIES}
    assert "(none)" not in dict(site.versions).values()
    file.write_text("gone")
    assert difference(site) == (
        f"does not see {file} as it is; a cluster needs a shared file system, under the same path"
    )
    other = Site(versions=(("torch", "1.0"),))
    assert str(difference(other)).endswith("not 1.0; install the same environment everywhere")
