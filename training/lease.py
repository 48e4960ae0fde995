"""One training per run folder.

The lock belongs to this process alone and ends with it, however it ends. `pipeline.lease` would not do:
data workers are forks and would hold it for seconds after a killed run, which could not be resumed then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import TrainingError
from training.world import World

NAME = ".lease"


@contextmanager
def run_lease(folder: Path, world: World) -> Iterator[None]:
    """Hold a run's folder for this training; the first of its processes does it for all.

    Raises:
        TrainingError: another training holds it; in all processes, and the first says which.
    """
    handle, refused, was_there = None, None, folder.exists()
    if world.leads:
        try:
            handle = _take(folder)
        except (TrainingError, OSError) as error:
            refused = error
    try:
        if world.any(refused is not None):
            raise refused or TrainingError(f"{folder} cannot be written; the first process says why")
        yield
    finally:
        if handle is not None:
            _give_back(folder, handle, was_there)


def _take(folder: Path) -> int:
    """The open, locked file."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 300).decode(errors="replace").strip() or "another training"
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise OSError(error.errno, error.strerror, str(folder / NAME)) from None
            raise TrainingError(
                f"{folder} is being written by {holder}; wait for it, or choose another folder"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(folder / NAME).st_ino:
                break
        os.close(handle)  # whoever held it removed it in between
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(handle, 0)
    told = f"instance-motion train, process {os.getpid()} on {socket.gethostname()}, since {since}"
    os.pwrite(handle, told.encode(), 0)
    return handle


def _give_back(folder: Path, handle: int, was_there: bool) -> None:
    """Leave no trace: neither the file nor, where the training never began, a folder made for it."""
    with contextlib.suppress(OSError):
        (folder / NAME).unlink()
    os.close(handle)
    if not was_there:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
