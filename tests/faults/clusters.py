"""A real dask cluster to be cruel to, and small tasks that say when and where they ran."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.graph import Graph, GraphConfig, Task, open_graph
from pipeline.sources.clip import Clip
from tests.pipeline import poison

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180  # against hanging, on a machine that is busy with other things


class Cluster:
    """A scheduler and workers in processes of their own, as somebody else would have started them."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self._folder, self._started = folder, 0
        info = folder / f"scheduler-{time.monotonic_ns()}.json"
        options = ("--host", "127.0.0.1", "--port", port, "--no-dashboard", "--scheduler-file", info)
        self.scheduler = self._start("scheduler", options, {})
        self.workers: list[subprocess.Popen[bytes]] = []
        wait_until(lambda: info.exists() and info.read_text().endswith("}"))
        self.address: str = json.loads(info.read_text())["address"]

    def add(
        self, *options: object, nanny: bool = False, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """One more worker; its process group is its own."""
        fixed = (
            "--nthreads",
            1,
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--nanny" if nanny else "--no-nanny",
        )
        self._started += 1
        local = ("--local-directory", self._folder / f"w{self._started}")
        worker = self._start("worker", (self.address, *fixed, *local, *options), environment or {})
        self.workers.append(worker)
        return worker

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill -9 of a whole node: a worker with its nanny, or the scheduler."""
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if process in self.workers:
            self.workers.remove(process)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def config(self, **changes: Any) -> GraphConfig:
        return GraphConfig(scheduler=self.address, **{"worker_timeout_s": PATIENCE_S, **changes})

    def client(self) -> Any:
        """What somebody else may do to the cluster."""
        from distributed import Client

        return Client(self.address, set_as_default=False, timeout=PATIENCE_S)

    def _start(
        self, kind: str, options: Sequence[object], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "distributed.cli.dask_" + kind, *map(str, options)]
        with open(self._folder / f"{kind}.log", "ab") as log:
            return subprocess.Popen(
                line,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def wait_until(true: Callable[[], object], *, alive: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        assert alive is None or alive.poll() is None, "ended too early"
        time.sleep(0.02)


def nap(argument: tuple[str, str, float]) -> tuple[str, int]:
    """A task (folder of the log, name, seconds) that says when it begins and ends, and in which process."""
    folder, name, seconds = argument
    _note(folder, "begin", name)
    time.sleep(seconds)
    _note(folder, "end", name)
    return name, os.getpid()


def nap_until_told(argument: tuple[str, str]) -> tuple[str, int]:
    """A task (folder, name) that ends once the folder has a file `go`."""
    folder, name = argument
    _note(folder, "begin", name)
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)
    _note(folder, "end", name)
    return name, os.getpid()


def die(argument: tuple[str, str]) -> None:
    """A task (folder, name) that always kills its process."""
    _note(argument[0], "begin", argument[1])
    os.kill(os.getpid(), signal.SIGKILL)


def identity(argument: int) -> int:
    return argument


@dataclass(frozen=True)
class SlowReader(poison.Reader):
    """Noise, slowly, so that there is time to kill whoever reads it."""

    name: str = ""
    log: str = ""
    pause_s: float = 0.0

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        name = f"{self.name}-{self.first + start}"
        _note(self.log, "begin", name)
        for frame in super().frames(start, stop):
            time.sleep(self.pause_s)
            yield frame
        _note(self.log, "end", name)


def slow_clip(name: str, log: Path, frames: int, pause_s: float) -> Clip:
    reader = SlowReader(fault="", name=name, log=str(log), pause_s=pause_s)
    return dataclasses.replace(poison.clip(name, frames=frames), reader=reader)


def events(folder: Path, what: str = "begin") -> list[tuple[str, int]]:
    """(name, process) of all that began or ended, in order."""
    path = folder / "log"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(name, int(process)) for event, name, process in lines if event == what]


def most_at_once(folder: Path, names: str = "") -> int:
    """How many tasks, of those whose names begin so, ran at a time, at most."""
    count = most = 0
    for line in (folder / "log").read_text().splitlines():
        event, name, _ = line.split()
        if name.startswith(names):
            count += 1 if event == "begin" else -1
            most = max(most, count)
    return most


def under_way(folder: Path) -> set[int]:
    """Processes that began something and have not ended it."""
    begun = [process for _, process in events(folder)]
    ended = [process for _, process in events(folder, "end")]
    return {process for process in begun if begun.count(process) > ended.count(process)}


def tasks_held(dask_scheduler: Any) -> int:
    """Run on the scheduler: tasks that it knows of."""
    return len(dask_scheduler.tasks)


def naps(folder: Path, count: int, seconds: float = 0.3, **options: Any) -> list[Task]:
    return [
        Task(function=nap, argument=(str(folder), f"{i}", seconds), key=f"nap-{i}", **options)
        for i in range(count)
    ]


def run_all(graph: Graph, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
    waiting = iter(tasks)
    return graph.run(lambda: next(waiting, None))


def _note(folder: str, event: str, name: str) -> None:
    handle = os.open(Path(folder) / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, f"{event} {name} {os.getpid()}\n".encode())
    os.close(handle)


def main() -> None:
    """A driver of its own, to be killed: ADDRESS FOLDER COUNT."""
    address, folder, count = sys.argv[1:]
    with open_graph(GraphConfig(scheduler=address, worker_timeout_s=PATIENCE_S)) as graph:
        for task, result in run_all(graph, naps(Path(folder), int(count), 1.0)):
            print(task.key, result, flush=True)


if __name__ == "__main__":
    main()
