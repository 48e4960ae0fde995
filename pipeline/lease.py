"""One writer per output directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BuildError

LEASE_FILE = ".lease"


@contextmanager
def lease(folder: Path, purpose: str) -> Iterator[None]:
    """Hold `folder` for one writer; the system lets go when the process ends, however it ends.

    Raises:
        BuildError: another process holds it; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LEASE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise BuildError(
                    f"{folder} cannot be locked ({error.strerror}); its file system has no locks: choose another"
                ) from None
            holder = os.read(handle, 300).decode(errors="replace").strip() or "another process"
            raise BuildError(
                f"{folder} is being written by {holder}; wait for it, or choose another folder"
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(handle, 0)
        os.pwrite(
            handle, f"{purpose}, process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0
        )
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)
