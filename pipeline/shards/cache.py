"""Files of remote shard sets, kept on the local disk: fetched whole on first use, then opened as local ones.

    <folder>/ab/ab12...ef.h5           a whole file, named by its SHA-256
    <folder>/ab/ab12...ef.lock         held by the process that fetches it
    <folder>/ab/ab12...ef.<random>.download   what that process has so far

One folder serves all sets, layers and processes of a machine. A file is checked against the manifest's
size and SHA-256 before it appears under its name, by rename. Then it gets a fixed time of modification:
an entry with another size or time has been written to since, and is checked again before it is used. The
time of access is set at every opening, and the entries opened longest ago go first when room is needed.

Who opens an entry holds a shared lock on it (flock) until it is open, and who removes one an exclusive
lock, so that nothing disappears between being found and being opened. Once open, a file may be removed:
its readers keep it until they close it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, ShardError
from pipeline.shards.manifest import FileEntry
from pipeline.shards.storage import DISK_FULL, ObjectStore, StorageError, sha256_of

FOLDER_VARIABLE = "INSTANCE_MOTION_CACHE"
LIMIT_VARIABLE = "INSTANCE_MOTION_CACHE_GB"
WHOLE_NS = 946_684_800 * 10**9
"""Time of modification of an entry that was found whole: 2000-01-01 00:00:00 UTC."""
ATTEMPTS = 2
"""Fetches of a file that arrives with other bytes than the manifest says."""
ABANDONED_S = 24 * 3600
"""Age of a download that nobody can still be at."""


class DamagedObject(StorageError):
    """An object's bytes are not those of the manifest. problem: what is wrong with them."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"{url}: {problem}; write it again with `instance-motion copy --check`")
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where files of remote sets are kept, and how many bytes of them."""

    folder: Path
    limit_gb: float = 50.0
    """Gigabytes (10^9 bytes) that entries may take; the ones opened longest ago are removed."""

    def __post_init__(self) -> None:
        if not 0 < self.limit_gb < float("inf"):
            raise ConfigError(f"{LIMIT_VARIABLE} must be a positive number, got {self.limit_gb}")

    @staticmethod
    def from_environment() -> CacheConfig:
        """INSTANCE_MOTION_CACHE, or instance-motion/ in the user's cache folder; INSTANCE_MOTION_CACHE_GB.

        Raises:
            ConfigError: a limit that is no positive number.
        """
        folder, limit = os.environ.get(FOLDER_VARIABLE), os.environ.get(LIMIT_VARIABLE)
        if not folder:
            base = os.environ.get("XDG_CACHE_HOME", "")
            above = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
            folder = str(above / "instance-motion")
        if not limit:
            return CacheConfig(folder=Path(folder).absolute())
        try:
            return CacheConfig(folder=Path(folder).absolute(), limit_gb=float(limit))
        except ValueError:
            raise ConfigError(f"{LIMIT_VARIABLE} must be a positive number, got {limit[:40]!r}") from None


class FileCache:
    """The files in a cache folder; see the module. May be used by many threads and processes at once."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config

    @contextlib.contextmanager
    def opened(
        self, store: ObjectStore, name: str, entry: FileEntry, *, anew: bool = False
    ) -> Iterator[Path]:
        """Path of a whole local copy of an object, which stays there until the block ends: open it inside.

        Args:
            anew: fetch it also where there is an entry.

        Raises:
            MissingObject, DamagedObject, StorageError: it cannot be fetched; the disk is full.
        """
        path = self._path(entry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = None if anew else _hold(path, entry)
            if handle is None:
                with _locked(path.with_suffix(".lock")):
                    handle = None if anew else _hold(path, entry)  # another process may have fetched it
                    if handle is None:
                        handle = self._fetch(store, name, entry, path)
        except OSError as error:
            raise self._unusable(store, name, entry, error) from None
        try:
            yield path
        finally:
            _release(handle)

    def discard_damaged(self, entry: FileEntry) -> None:
        """Remove an entry if its bytes are not what they were, whatever its time says."""
        path = self._path(entry)
        try:
            if problem_with(path, entry) is not None:
                path.unlink()
        except FileNotFoundError:  # another process has done so
            return

    def _path(self, entry: FileEntry) -> Path:
        if len(entry.sha256) != 64 or not set(entry.sha256) <= set("0123456789abcdef"):
            raise ShardError(f"{entry.sha256[:80]!r} is no SHA-256; the manifest is damaged: rebuild the set")
        return self.config.folder / entry.sha256[:2] / f"{entry.sha256}.h5"

    def _fetch(self, store: ObjectStore, name: str, entry: FileEntry, path: Path) -> int:
        """Make the entry; the caller holds its lock. Returns the new entry's handle, as `_hold`."""
        self._make_room(entry.bytes)
        for left in path.parent.glob(f"{path.stem}.*.download"):  # of a killed process: the lock is ours
            left.unlink(missing_ok=True)
        download = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.download")
        try:
            for attempt in range(1, ATTEMPTS + 1):
                store.fetch(name, download)
                problem = problem_with(download, entry)
                if problem is None:
                    break
                if attempt == ATTEMPTS:
                    raise DamagedObject(f"{store.location}/{name}", problem)
            handle = os.open(download, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)  # before others can see it
                os.fsync(handle)
                os.utime(download, ns=(time.time_ns(), WHOLE_NS))
                os.replace(download, path)
            except BaseException:
                _release(handle)
                raise
            return handle
        finally:
            download.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Remove entries, the ones opened longest ago first, until so many bytes fit below the limit."""
        entries: list[tuple[int, int, Path]] = []
        for path in self.config.folder.glob("[0-9a-f][0-9a-f]/*.h5"):
            try:
                about = path.lstat()
            except FileNotFoundError:  # another process makes room as well
                continue
            entries.append((about.st_atime_ns, about.st_size, path))
        excess = sum(size for _, size, _ in entries) + needed - round(self.config.limit_gb * 1e9)
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if _remove_unheld(path):
                excess -= size
        for path in self.config.folder.glob("[0-9a-f][0-9a-f]/*.download"):
            try:
                if time.time() - path.lstat().st_mtime > ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _unusable(self, store: ObjectStore, name: str, entry: FileEntry, error: OSError) -> StorageError:
        folder = self.config.folder
        if error.errno in DISK_FULL:
            return StorageError(
                f"{folder}: the disk is full, {entry.bytes} bytes of {store.location}/{name} do not fit; make "
                f"room, or say by {FOLDER_VARIABLE} and {LIMIT_VARIABLE} where the cache is and what it may take"
            )
        reason = error.strerror or str(error)
        return StorageError(
            f"{folder}: cannot keep files there ({reason}); set {FOLDER_VARIABLE} to another folder"
        )


def problem_with(path: Path, entry: FileEntry) -> str | None:
    """What tells a file from the one that the manifest lists; None if nothing does."""
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{size} bytes, the manifest says {entry.bytes}"
    if sha256_of(path) != entry.sha256:
        return "SHA-256 differs from the manifest: the file is damaged"
    return None


def _hold(path: Path, entry: FileEntry) -> int | None:
    """A handle that keeps an entry where it is, until `_release`; None if there is no whole one."""
    while True:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            about = os.fstat(handle)
            if not _is_at(path, about):  # removed or replaced between opening and locking
                _release(handle)
                continue
            whole = stat.S_ISREG(about.st_mode) and about.st_size == entry.bytes
            if whole and about.st_mtime_ns != WHOLE_NS:
                whole = sha256_of(path) == entry.sha256
            if not whole:
                _release(handle)
                return None
            with contextlib.suppress(PermissionError):  # another user's entry
                os.utime(handle, ns=(time.time_ns(), WHOLE_NS))
        except BaseException:
            _release(handle)
            raise
        return handle


def _release(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_UN)  # a process forked meanwhile has the handle too
    os.close(handle)


def _is_at(path: Path, about: os.stat_result) -> bool:
    try:
        here = path.lstat()
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (about.st_dev, about.st_ino)


def _remove_unheld(path: Path) -> bool:
    """Remove an entry, unless somebody is opening it; whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(path, os.fstat(handle)):
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        _release(handle)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which exists only while somebody holds it or waits for it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(path, os.fstat(handle)):
                break
        except BaseException:
            _release(handle)
            raise
        _release(handle)  # whoever held it has removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _release(handle)
