"""Progress of long work: a bar with rate and time left, lines above it, and events for the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from pipeline.events import PROGRESS_S, Event, event, on_standard_error


class Bar(tqdm):
    """tqdm's bar, which tells its progress as events as well, whether or not it is shown.

    No bar is drawn while events go to standard error: the two would run into each other.
    """

    _title, _unit = "", "it"
    _done = _initial = 0.0
    _began = _told = 0.0
    _open = False  # until it is made: tqdm closes also what could not be made

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        desc: str = "",
        total: int | None = None,
        unit: str = "it",
        initial: int = 0,
        disable: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            iterable,
            desc=desc,
            total=total,
            unit=unit,
            initial=initial,
            disable=disable or on_standard_error(),
            **options,
        )
        self._title, self._unit, self._open = desc, unit, True
        self._begin(initial)

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def skip(self, count: int) -> None:
        """Count work of an earlier run, without letting it into the rate."""
        self.initial = self.n = count
        self._begin(count)
        self.refresh()

    def update(self, n: float | None = 1) -> bool | None:
        self._done += n or 0  # tqdm does not count what it does not show
        if time.monotonic() - self._told >= PROGRESS_S:
            self._tell()
        return super().update(n)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._tell()
        super().close()

    def _begin(self, count: int) -> None:
        self._done = self._initial = count
        self._began = self._told = time.monotonic()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._began
        rate = (self._done - self._initial) / seconds if seconds > 0 and self._done > self._initial else None
        left = (self.total - self._done) / rate if rate is not None and self.total is not None else None
        event(
            Event.PROGRESS,
            title=self._title,
            unit=self._unit,
            done=self._done,
            total=self.total,
            rate=None if rate is None else round(rate, 4),
            seconds_left=None if left is None else round(left, 1),
        )


class Progress:
    """A bar on standard error for the time of a `with` block."""

    def __init__(self, title: str, total: int, *, quiet: bool = False, unit: str = "frame") -> None:
        self._bar = Bar(
            total=total,
            desc=title,
            unit=unit,
            disable=quiet,
            file=sys.stderr,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def skip(self, count: int) -> None:
        """Count work of an earlier run, without letting it into the rate."""
        self._bar.skip(count)

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def say(self, line: str) -> None:
        """Print a line, whether or not the bar is shown."""
        tqdm.write(line, file=sys.stderr)
        event(Event.SAID, line=line)
