"""One progress bar: frames done, rate, time left, and lines printed above it."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """A bar on standard error for the time of a `with` block."""

    def __init__(self, title: str, total: int, *, quiet: bool = False, unit: str = "frame") -> None:
        self._bar = tqdm(
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
        self._bar.initial = count
        self._bar.n = count
        self._bar.refresh()

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def say(self, line: str) -> None:
        """Print a line, whether or not the bar is shown."""
        tqdm.write(line, file=sys.stderr)
