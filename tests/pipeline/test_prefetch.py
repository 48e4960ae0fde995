"""Running ahead: order, errors, and an end to the thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.prefetch import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_items_come_in_order_and_none_is_lost() -> None:
    assert list(prefetch(iter(range(1000)), 3)) == list(range(1000))
    assert not threads()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    seen = []
    with pytest.raises(OSError, match="gone"):
        for item in prefetch(items(), 8):
            seen.append(item)
    assert seen == [1, 2]
    assert not threads()


def test_stopping_early_ends_the_thread_and_closes_the_items() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    ahead = prefetch(items(), 2)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert not threads()


def test_no_more_than_depth_items_wait() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    ahead = prefetch(items(), 4)
    next(ahead)
    time.sleep(0.3)
    assert len(made) <= 1 + 4 + 1  # taken, waiting, in hand
    ahead.close()  # type: ignore[attr-defined]
