"""Events: lines that stay whole, values that are plain, and bars that tell where they are."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline import events, progress
from pipeline.events import Event, event, json_log
from pipeline.progress import Bar, Progress
from tests.conftest import ROOT
from tests.faults.table import Fault

WRITER = """
import sys
from pathlib import Path
from pipeline.events import Event, event, json_log
with json_log(sys.argv[1], "test"):
    for number in range(int(sys.argv[2])):
        event(Event.SAID, line="x" * 300, number=number)
"""


def start_writer(log: Path, count: int, **options: Any) -> subprocess.Popen[str]:
    """A process that writes so many events as fast as it can."""
    command = [sys.executable, "-c", WRITER, str(log), str(count)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def read(log: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Events of a log, and lines that are none."""
    found, torn = [], []
    for line in log.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            torn.append(line)
    return found, torn


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_line_has_time_event_command_and_process_first(tmp_path: Path) -> None:
    with json_log(str(tmp_path / "new" / "log"), "build"):
        event(Event.FILE_PUBLISHED, layer="frames", file="00000.h5", frames=3, bytes=7)
    ((found,), torn) = read(tmp_path / "new" / "log")
    assert not torn
    assert list(found) == [*events.ALWAYS, "layer", "file", "frames", "bytes"]
    assert (found["event"], found["command"], found["process"]) == ("file_published", "build", os.getpid())
    assert len(found["time"]) == len("2026-03-01T12:00:00.000Z")
    assert found["time"].endswith("Z")


def test_odd_values_become_plain_json(tmp_path: Path) -> None:
    @dataclass
    class Pair:
        a: Path
        b: tuple[int, ...]

    name = b"caf\xe9\n".decode(errors="surrogateescape")
    with json_log(str(tmp_path / "log"), "test"):
        event(
            Event.SAID,
            line=name,
            numbers=[np.float32(0.5), np.int64(3), float("nan"), np.float64("inf"), True, None],
            pair=Pair(Path("x"), (1, 2)),
            table={1: {"s"}},
            kind=Event.END,
            other=object,
        )
    ((found,), torn) = read(tmp_path / "log")
    assert not torn
    assert found["line"] == name
    assert found["numbers"] == [0.5, 3, None, None, True, None]
    assert found["pair"] == {"a": "x", "b": [1, 2]}
    assert found["table"] == {"1": ["s"]}
    assert found["kind"] == "end"


def test_a_field_cannot_take_the_place_of_one_that_every_event_has() -> None:
    with pytest.raises(ValueError, match="command"):
        event(Event.SAID, command="build")


def test_nothing_is_printed_or_kept_when_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    event(Event.SAID, line="unheard")
    with json_log(None, "test"):
        event(Event.SAID, line="unheard")
    assert capfd.readouterr() == ("", "")


def test_a_librarys_handler_at_the_root_prints_no_events_of_a_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with json_log(str(tmp_path / "log"), "test"):  # caplog's handler is at the root
        event(Event.SAID, line="for the log alone")
    assert not caplog.records
    assert len(read(tmp_path / "log")[0]) == 1


def test_a_programs_own_handler_hears_events(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=events.LOGGER):
        event(Event.CLIP_QUARANTINED, clip="a", reason="b")
    (record,) = caplog.records
    assert record.event == "clip_quarantined"  # type: ignore[attr-defined]
    assert record.fields == {"clip": "a", "reason": "b"}  # type: ignore[attr-defined]


def test_every_event_is_in_the_table_of_the_docstring() -> None:
    words = (events.__doc__ or "").split()
    assert all(name.value in words for name in Event)


def test_events_load_the_standard_library_only() -> None:
    script = "import pipeline.events, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    assert "pipeline" in loaded
    assert not loaded & {"numpy", "torch", "tqdm", "yaml"}


@pytest.mark.fault(Fault.KILLED)
def test_a_torn_last_line_does_not_swallow_the_next_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with json_log(str(log), "first"):
        event(Event.START)
        event(Event.SAID, line="half of this is lost")
    log.write_bytes(log.read_bytes()[:-30])
    assert len(read(log)[1]) == 1
    with json_log(str(log), "second"):
        event(Event.START)
        event(Event.END, exit_code=0)
    found, torn = read(log)
    assert [each["command"] for each in found] == ["first", "second", "second"]
    assert len(torn) == 1


@pytest.mark.fault(Fault.KILLED)
def test_kill_9_while_writing_leaves_whole_lines_and_at_most_one_torn(tmp_path: Path) -> None:
    log = tmp_path / "log"
    writers = [start_writer(log, 10**9) for _ in range(2)]
    for number, writer in enumerate(writers):
        seen = log.stat().st_size if log.exists() else 0
        wait_until(lambda size=seen: log.exists() and log.stat().st_size > size + 200_000)  # type: ignore[misc]
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(60) == -signal.SIGKILL, number
    found, torn = read(log)
    assert {each["process"] for each in found} <= {writer.pid for writer in writers}
    assert len(torn) <= len(writers)
    with json_log(str(log), "after"):
        event(Event.END)
    assert read(log)[0][-1]["command"] == "after"


def test_lines_of_processes_that_share_a_file_stay_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    writers = [start_writer(log, 2000) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    found, torn = read(log)
    assert not torn
    for writer in writers:
        numbers = [each["number"] for each in found if each["process"] == writer.pid]
        assert numbers == list(range(2000))


@pytest.mark.fault(Fault.DISK_FULL)
def test_a_disk_that_fills_is_said_once_and_a_cut_line_stands_alone(tmp_path: Path) -> None:
    import resource

    log, limit = tmp_path / "log", 1000
    writer = start_writer(
        log, 50, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, complaint = writer.communicate(timeout=120)
    assert log.stat().st_size == limit  # it did fill, in the middle of a line
    assert writer.returncode == 0
    assert len(complaint.splitlines()) == 1
    assert "lines are missing from the log (File too large); the command goes on" in complaint
    before, torn = read(log)
    assert (len(before), len(torn)) == (2, 1)
    with json_log(str(log), "after"):
        event(Event.END)
    assert read(log)[0][-1]["command"] == "after"


def test_a_warning_is_shown_and_logged_and_the_handler_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(message: Warning | str, *_: object) -> None:
        shown.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        with json_log(str(tmp_path / "log"), "test"):
            warnings.warn("thin ice", UserWarning, stacklevel=1)
        assert warnings.showwarning is show
    event(Event.SAID, line="unheard")
    assert shown == ["thin ice"]
    ((found,), _) = read(tmp_path / "log")
    assert (found["event"], found["line"], found["category"]) == ("warning", "thin ice", "UserWarning")
    assert __file__ in found["where"]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_tells_its_end_whether_or_not_it_is_shown(
    tmp_path: Path, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with json_log(str(tmp_path / "log"), "test"), Progress("work", 10, quiet=quiet, unit="file") as bar:
        clock.now = 200.0
        bar.skip(4)
        bar.advance(3)
        bar.say("a line")
        clock.now = 206.0
    said, last = read(tmp_path / "log")[0]
    assert (said["event"], said["line"]) == ("said", "a line")
    assert (last["event"], last["title"], last["unit"]) == ("progress", "work", "file")
    assert (last["done"], last["total"]) == (7, 10)
    # Three in six seconds of this run: what an earlier one did is not in the rate.
    assert (last["rate"], last["seconds_left"]) == (0.5, 6.0)
    shown = capsys.readouterr().err
    assert "a line" in shown
    assert ("work:" in shown) is not quiet


def test_a_bar_tells_no_more_than_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with json_log(str(tmp_path / "often"), "test"):
        for _ in Bar(range(50), desc="many", disable=True):
            pass
    assert [each["done"] for each in read(tmp_path / "often")[0]] == [50]
    monkeypatch.setattr(progress, "PROGRESS_S", 0.0)
    with json_log(str(tmp_path / "always"), "test"):
        for _ in Bar(range(3), desc="few", disable=True):
            pass
    assert [each["done"] for each in read(tmp_path / "always")[0]] == [1, 2, 3, 3]
    assert read(tmp_path / "always")[0][0]["total"] == 3


def test_a_bar_without_progress_or_total_has_no_rate_and_no_time_left(tmp_path: Path) -> None:
    with json_log(str(tmp_path / "log"), "test"):
        Bar(total=5, disable=True).close()
        with Bar(disable=True) as bar:
            bar.update(2)
    first, second = read(tmp_path / "log")[0]
    assert (first["rate"], first["seconds_left"]) == (None, None)
    assert second["rate"] > 0
    assert (second["total"], second["seconds_left"]) == (None, None)


def test_no_bar_is_drawn_into_events_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with json_log("-", "test"), Progress("work", 2) as bar:
        bar.advance(2)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["done"] == 2
