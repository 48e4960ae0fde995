"""Commands as processes of their own that need not load torch each time: forks of a program that has.

    with Forks(folder) as forks:
        running = forks.start(["train", shards, "--out", out], kill=At(function="_Training._validate"))
        assert running.wait() == -signal.SIGKILL

A fork is a session of its own, with its own standard output and error, and runs the console command's
`main` (or a function of the tests) to Python's ordinary end. It can be told to kill itself at an exact
point: at a call of a function or a change on the disk, some time later if asked to. As a program:

    python -m tests.faults.forks       orders on standard input, answers on standard output, JSON lines
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pytest

ROOT = Path(__file__).parents[2]
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir")


@dataclass(frozen=True, kw_only=True)
class At:
    """When a fork is to be killed; whichever part is given.

    function: qualified name of a function (`_Training._validate`), at its `number`-th call
    file:     end of a path, at the `number`-th time that it is renamed to, cut to `cut` of its length
              first, as if the write had gone so far
    delay_s:  so much later; of the start where neither is given
    victims:  itself and its children (data workers), itself alone, or its children alone
    signal:   what it gets
    """

    function: str = ""
    file: str = ""
    number: int = 1
    cut: float = 1.0
    delay_s: float = 0.0
    victims: Literal["all", "itself", "children"] = "all"
    signal: int = signal.SIGKILL


class Running:
    """A fork at work."""

    def __init__(self, forks: Forks, pid: int, said: Path) -> None:
        self.forks, self.pid, self._said = forks, pid, said
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, -9 where it was killed, None while it runs."""
        if self.code is None:
            self.code = self.forks.ask(poll=self.pid)["code"]
        return self.code

    def wait(self, timeout_s: float = 240) -> int:
        """Its exit code; a deadline that has passed is a test that has failed, and ends it."""
        end = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still running after {timeout_s} s: {self.said}")
            time.sleep(0.01)
        return code

    def kill(self, which: int = signal.SIGKILL) -> None:
        """Send a signal to it and to its children."""
        for pid in (*self.children(), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, which)

    def children(self) -> list[int]:
        """Processes that it has started and that live."""
        return children_of(self.pid)

    @property
    def said(self) -> str:
        """Standard output and error so far."""
        return self._said.read_text()

    @property
    def killed_at(self) -> str | None:
        """The point at which it killed itself."""
        path = self._said.with_suffix(".killed")
        return path.read_text() if path.exists() else None

    @property
    def error(self) -> str:
        """The one line that a command which could not do its work has to say."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.said
        assert "Traceback" not in self.said, self.said
        return lines[0].removeprefix("error: ")


class Forks:
    """The program, and what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._program = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(60)

    def start(
        self,
        arguments: Sequence[object],
        *,
        kill: At | None = None,
        limits: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        function: str = "workflows.cli:main",
    ) -> Running:
        """Run a command.

        Args:
            limits: names of resource limits (RLIMIT_FSIZE) and their values, for the fork alone; memory
                (RLIMIT_AS) beyond what it has at its start. The signal about large files is ignored, as on
                a full disk: writing fails.
            function: what takes the arguments and returns the exit code, as module:name.
        """
        self._count += 1
        said = self.folder / f"fork_{self._count:03d}.txt"
        answer = self.ask(
            function=function,
            arguments=[str(each) for each in arguments],
            said=str(said),
            kill=asdict(kill) if kill else None,
            limits=dict(limits or {}),
            environment=dict(environment or {}),
        )
        return Running(self, answer["pid"], said)

    def run(self, *arguments: object, **options: Any) -> Running:
        """Run a command to its end."""
        running = self.start(arguments, **options)
        running.wait()
        return running

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        return json.loads(self._program.stdout.readline())


_SHARED: list[Forks] = []


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Forks:
    """One program for all tests of a test process."""
    if not _SHARED:
        _SHARED.append(Forks(tmp_path_factory.mktemp("forks")))
        atexit.register(_SHARED[0].__exit__)
    return _SHARED[0]


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that live."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for each in threads for child in (each / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def main() -> int:
    import workflows.commands.evaluate
    import workflows.commands.predict
    import workflows.commands.train  # noqa: F401

    codes: dict[int, int] = {}
    answers = os.dup(1)
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid = order["poll"]
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer: dict[str, Any] = {"code": codes.get(pid)}
        else:
            child = os.fork()
            if not child:
                os.close(answers)
                return _work(order)
            answer = {"pid": child}
        os.write(answers, (json.dumps(answer) + "\n").encode())
    return 0


def _work(order: Mapping[str, Any]) -> int:
    """In the fork."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(said, 1), os.dup2(said, 2)
    sys.stdin = open(0)  # noqa: SIM115  # else Python's end reads orders that are not for us
    os.environ.update(order["environment"])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for name, value in order["limits"].items():
        if name == "RLIMIT_AS":
            value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(getattr(resource, name), (value, value))
    if order["kill"]:
        kill_at(At(**order["kill"]), Path(order["said"]).with_suffix(".killed"))
    module, name = order["function"].split(":")
    return getattr(importlib.import_module(module), name)(order["arguments"])


def kill_at(point: At, told: Path) -> None:
    """Kill this process at a point, once it has written down in `told` that it got there."""
    count = 0

    def now(where: str) -> None:
        children = children_of(os.getpid()) if point.victims != "itself" else []
        told.write_text(f"{where} ({len(children)} children)")
        for child in children[: 1 if point.victims == "children" else None]:
            os.kill(child, point.signal)
        if point.victims != "children":
            os.kill(os.getpid(), point.signal)

    def reached(where: str) -> None:
        if point.delay_s:
            threading.Thread(target=lambda: (time.sleep(point.delay_s), now(where)), daemon=True).start()
        else:
            now(where)

    def on_call(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_qualname == point.function:
            count += 1
            if count == point.number:
                sys.setprofile(None)
                reached(point.function)

    def on_change(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "os.rename" and str(arguments[1]).endswith(point.file):
            count += 1
            if count == point.number:
                partial = Path(str(arguments[0]))
                os.truncate(partial, int(partial.stat().st_size * point.cut))
                reached(f"{point.file}, {point.cut:.0%} written")

    if point.function:
        sys.setprofile(on_call)
    elif point.file:
        sys.addaudithook(on_change)
    else:
        reached(f"{point.delay_s:.2f} s after the start")


if __name__ == "__main__":
    sys.exit(main())
