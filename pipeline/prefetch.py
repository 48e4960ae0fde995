"""Let a generator run ahead in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield `items` in order while a thread computes up to `depth` of them in advance.

    An error in `items` is raised here, after the items before it. When the consumer stops
    early the thread ends after the item that it is working on, and closes `items`.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[Any, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    break
        except BaseException as raised:  # travels to the consumer, whatever it is
            error = raised
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            put((_END, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
