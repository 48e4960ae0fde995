"""What happens while a command runs, as events for machines: `instance-motion COMMAND --log-json FILE`.

Modules say what happened by `event(Event.PIECE_DONE, clip=..., frames=...)`. It goes through the logger
`instance_motion` of the standard library, which costs next to nothing until somebody listens: the command
line with --log-json, or a program's own handler (`record.event` is the name, `record.fields` the rest).

The log holds one JSON object a line. It is appended to; every line is written at once, so that runs and
processes can share a file and a kill tears at most the line in hand, which the next run leaves standing
alone: skip lines that are not JSON. A start without an end was killed. Every object has

    time      UTC, ISO 8601 with milliseconds: "2026-03-01T12:00:00.000Z"
    event     a name of `Event`
    command   the subcommand: "build"
    process   process id

and, by event,

    start             arguments (a list), version, host, folder (where it runs)
    end               exit_code, seconds, error (the line that was printed, or null)
    progress          title, unit, done, total (or null), rate (a second, of this run; or null),
                      seconds_left (or null); at most one in PROGRESS_S seconds a bar, and at its end
    said              line (printed above the bar)
    warning           line, category (of Python), where
    piece_done        clip, piece, frames, detections, seconds (a mapping: stage -> seconds in the worker)
    file_published    layer, file, frames, bytes
    clip_quarantined  clip, reason

Names and fields are only added to. Numbers that are none (NaN, infinity) are null.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

LOGGER = "instance_motion"
PROGRESS_S = 5.0
"""Least time between two progress events of one bar, seconds."""
STANDARD_ERROR = "-"
ALWAYS = ("time", "event", "command", "process")
"""Fields of every event; `event` refuses them among its own."""

_log = logging.getLogger(LOGGER)
_log.addHandler(logging.NullHandler())  # else Python prints what nobody listens to


class Event(StrEnum):
    """Names of events; the fields of each are listed above."""

    START = "start"
    END = "end"
    PROGRESS = "progress"
    SAID = "said"
    WARNING = "warning"
    PIECE_DONE = "piece_done"
    FILE_PUBLISHED = "file_published"
    CLIP_QUARANTINED = "clip_quarantined"


def event(name: Event, /, **fields: object) -> None:
    """Tell who listens that something happened. Never fails for a full disk or an odd value.

    Args:
        fields: as listed above; dataclasses, mappings, sequences, paths and numbers of numpy are
            made plain, anything else becomes its text.
    """
    if taken := set(fields) & set(ALWAYS):
        raise ValueError(f"{', '.join(sorted(taken))} belong to every event; name the field otherwise")
    if _log.isEnabledFor(logging.INFO):
        _log.info(name.value, extra={"event": name.value, "fields": fields})


def on_standard_error() -> bool:
    """Whether events go to standard error, where a bar would run into them."""
    return any(isinstance(handler, _OnStandardError) for handler in _log.handlers)


@contextmanager
def json_log(target: str | None, command: str) -> Iterator[None]:
    """Write events, and Python's warnings, as JSON lines for the time of a `with` block.

    Args:
        target: file to append to; - for standard error; None for no log.

    Raises:
        OSError: the file cannot be opened. A disk that is full, now or later, is said once, and the
            command goes on.
    """
    if target is None:
        yield
        return
    handler = _OnStandardError(command) if target == STANDARD_ERROR else _InFile(command, Path(target))
    before = _log.level, _log.propagate, warnings.showwarning
    show = warnings.showwarning

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(message, category, filename, lineno, file, line)
        event(Event.WARNING, line=str(message), category=category.__name__, where=f"{filename}:{lineno}")

    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False  # a library's handler at the root must not print events among other lines
    warnings.showwarning = shown
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.level, _log.propagate, warnings.showwarning = before
        handler.close()


class _JsonLines(logging.Handler):
    """Turns records into lines; where they go, and what may fail there, is the subclass's."""

    def __init__(self, command: str, name: str) -> None:
        super().__init__()
        self._command, self._name, self._complained = command, name, False

    def emit(self, record: logging.LogRecord) -> None:
        now = datetime.fromtimestamp(record.created, UTC)
        always = {
            "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": getattr(record, "event", record.getMessage()),
            "command": self._command,
            "process": os.getpid(),
        }
        data = {**always, **_plain(getattr(record, "fields", {}))}
        try:
            self._write(json.dumps(data, allow_nan=False).encode() + b"\n")
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            print(
                f"warning: {self._name}: lines are missing from the log ({error.strerror or error}); "
                "the command goes on",
                file=sys.stderr,
            )

    def _write(self, line: bytes) -> None:
        raise NotImplementedError


class _OnStandardError(_JsonLines):
    def __init__(self, command: str) -> None:
        super().__init__(command, "standard error")

    def _write(self, line: bytes) -> None:
        sys.stderr.write(line.decode())
        sys.stderr.flush()


class _InFile(_JsonLines):
    """Appends; a line that was torn off, before or now, never swallows the next one."""

    def __init__(self, command: str, path: Path) -> None:
        super().__init__(command, str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._torn = not _ends_whole(path)

    def _write(self, line: bytes) -> None:
        data = b"\n" + line if self._torn else line
        written = os.write(self._file, data)  # at once: several processes may append
        if written:
            self._torn = written < len(data)
        while written < len(data):  # the rest, or the reason why it does not fit
            written += os.write(self._file, data[written:])
        self._torn = False

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def _ends_whole(path: Path) -> bool:
    """Whether a file is empty or ends with its line; devices and pipes are taken as they are."""
    if not path.is_file() or not path.stat().st_size:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
