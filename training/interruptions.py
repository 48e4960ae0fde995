"""What ends a training from outside: signals, and processes that were killed beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import TrainingError
from training.world import World

_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
)
"""What torch says in the process that is left, by one way of exchange or another."""


@contextmanager
def one_line_of_lost_processes(world: World) -> Iterator[None]:
    """Processes that were killed beside this one, in one line: torch tells of them wherever we are.

    Raises:
        TrainingError: a data worker has ended, or another process of a distributed training.
    """
    go_on = "--resume goes on from the last checkpoint"
    try:
        yield
    except TrainingError:
        raise
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "DataLoader worker" in text:
            raise TrainingError(
                f"a data worker ended: {text[:120]}; the system may have run out of memory (fewer "
                f"data.workers, a smaller batch); {go_on}"
            ) from None
        if world.size > 1 and any(sign in text for sign in _LOST_PEER):
            said = text.split("] ", 1)[-1][:120]  # not from which line of torch's sources
            raise TrainingError(f"another process of this training ended ({said}); {go_on}") from None
        raise


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop after the step in hand; a second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller's handlers stay
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
