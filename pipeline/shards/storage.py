"""Where a shard set lies: in a local folder, or at a URL that fsspec knows (s3://, gs://, http://, memory://).

A location is a `Path`, a local folder, or a `str`, a URL: a Path would collapse its slashes. Text from
people becomes one or the other by `parse_location`.

Both kinds of store read and write whole files under names such as "frames/00000.h5": a reader finds a
file whole or not at all. fsspec is loaded for URLs only; which driver a URL needs, and where its keys and
endpoint come from (environment variables, the driver's own files), is the driver's matter.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError, ShardError
from pipeline.shards.hdf5 import publish

T = TypeVar("T")

Location = str | Path
"""A URL, or a local folder. (In this order: settings in files are text, and a Path would spoil a URL.)"""

PAUSES_S = (0.3, 1.0, 3.0)
"""Before each further attempt at what may pass: a connection cut, a store too busy."""
RETRY_WITHIN_S = 5.0
"""No attempt begins later than this after the first: drivers have attempts of their own."""
UPDATES = 20
"""Attempts at replacing an object that others replace too."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")


class StorageError(ShardError):
    """A file could not be brought from where it lies, or put there."""


class MissingObject(StorageError):
    """There is no object of that name."""


def parse_location(text: str | Path) -> Location:
    """A Path for a local folder, text without a closing slash for a URL. `file://` is a local folder.

    Raises:
        ConfigError: a URL that names no place, or that a Path has spoilt.
    """
    if isinstance(text, Path):
        spoilt = _COLLAPSED.match(str(text))
        if spoilt and not Path(spoilt[0]).is_dir():
            raise ConfigError(f"{text}: a Path cannot hold a URL; give it as text, {spoilt[1]}://...")
        return text
    scheme = _URL.match(text)
    if scheme is None:
        return Path(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if not text[scheme.end() :].strip("/"):
        raise ConfigError(
            f"{text} names no place; give the whole URL, such as {text.rstrip('/')}//bucket/kitti"
        )
    return text.rstrip("/")


def location_name(location: Location) -> str:
    """The last part of a location, without the folders above it."""
    return location.name if isinstance(location, Path) else location.rsplit("/", 1)[-1]


def sha256_of(path: Path) -> str:
    """64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_store(location: Location) -> LocalFolder | ObjectStore:
    """The files at a location. Of a URL, nothing is asked yet.

    Raises:
        StorageError: fsspec lacks the driver for such URLs; says how to get it.
    """
    return LocalFolder(location) if isinstance(location, Path) else ObjectStore(location)


class LocalFolder:
    """Files below a local folder, in the way of an object store."""

    def __init__(self, folder: Path) -> None:
        self.location = folder

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a file, at most limit + 1 of them.

        Raises:
            MissingObject: no regular file of that name.
        """
        path = self.location / name
        if path.is_symlink() or not path.is_file():
            raise MissingObject(f"{path}: missing")
        with open(path, "rb") as file:
            # Python allocates what is asked for, and the limit of a manifest is half a gigabyte.
            return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)

    def write(self, name: str, data: bytes) -> None:
        """Publish a file whole, or raise OSError."""
        publish(self.location / name, data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.location / name).unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every HDF5 file in a folder, by name."""
        paths = sorted((self.location / folder).glob("*.h5"))
        return {path.name: path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()}


class ObjectStore:
    """Whole objects below a URL. For one process: a driver's connections do not survive a fork.

    What may pass is tried again, a bounded number of times in a bounded time. Every method raises
    StorageError, one line that names the object, for whatever the driver raises in the end; but an
    OSError for a local disk that is full.
    """

    def __init__(self, url: str) -> None:
        self.location = url
        self._fs, self._root = _connect(url)

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of an object, at most limit + 1 of them. Raises MissingObject where there is none."""
        return self._try(name, lambda path: self._fs.cat_file(path, start=0, end=limit + 1))[: limit + 1]

    def fetch(self, name: str, target: Path) -> None:
        """Bring an object into a local file, whole, as fast as its driver can."""
        self._try(name, lambda path: self._fs.get_file(path, str(target)))

    def write(self, name: str, data: bytes) -> None:
        """Put an object: readers see the old one or the new one, whole."""
        self._try(name, lambda path: self._fs.pipe_file(path, data))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""

        def remove(path: str) -> None:
            self._fs.invalidate_cache()
            if self._fs.exists(path):
                self._fs.rm_file(path)

        self._try(name, remove)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every HDF5 file in a folder, by name; of none where the store has no listing."""
        self._fs.invalidate_cache()  # others write too
        try:
            found = self._try(folder, lambda path: self._fs.ls(path, detail=True))
        except MissingObject:
            return {}
        names = ((each["name"].rstrip("/").rsplit("/", 1)[-1], each.get("size")) for each in found)
        return {name: size for name, size in names if name.endswith(".h5") and size is not None}

    def update(self, name: str, change: Callable[[bytes | None], bytes], limit: int) -> None:
        """Replace an object by `change` of its bytes, None where there is none yet.

        Where the store has conditional writes (S3 has both, most others have creating), nobody's change
        between reading and writing is lost: it is read and changed again. Elsewhere that time is short,
        not none.

        Raises:
            StorageError: others never left time between reading and writing.
        """
        for attempt in range(UPDATES):
            seen = self._tag(name)  # before reading: if it changes between, writing fails
            try:
                before: bytes | None = self.read(name, limit)
            except MissingObject:
                before = None
            data = change(before)
            if data == before or self._write_if(name, data, before is None, seen):
                return
            time.sleep(0.05 * (attempt + 1))
        raise StorageError(f"{self._url_of(name)}: others keep replacing it; wait for them, then try again")

    def _tag(self, name: str) -> str | None:
        """What an S3 store calls this state of an object; None where there is none, or in other stores."""
        if not _is_s3(self._fs):
            return None
        self._fs.invalidate_cache()
        try:
            return self._try(name, self._fs.info).get("ETag")
        except MissingObject:
            return None

    def _write_if(self, name: str, data: bytes, new: bool, tag: str | None) -> bool:
        """Put an object if it is still as it was read: absent, or in the state `tag`. False: it is not."""
        condition = {"mode": "create"} if new else {"IfMatch": tag} if tag else {}

        def write(path: str) -> bool:
            try:
                self._fs.pipe_file(path, data, **condition)
            except Exception as error:
                code = _s3_code(error)
                if isinstance(error, FileExistsError) or code in (
                    "PreconditionFailed",
                    "ConditionalRequestConflict",
                ):
                    return False
                if not condition or not (code == "NotImplemented" or isinstance(error, TypeError)):
                    raise
                self._fs.pipe_file(path, data)  # the store or its driver has no conditions
            return True

        return self._try(name, write)

    def _try(self, name: str, action: Callable[[str], T]) -> T:
        """`action` of the object's path, again where that may help."""
        begin = time.monotonic()
        for pause_s in (*PAUSES_S, None):
            try:
                return action(f"{self._root}/{name}")
            except ShardError:
                raise
            except FileNotFoundError:
                raise MissingObject(f"{self._url_of(name)}: missing") from None
            except ImportError as error:
                raise _no_driver(self.location, error) from None
            except Exception as error:  # drivers raise what their libraries raise
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                if pause_s is None or _stays(error) or time.monotonic() - begin > RETRY_WITHIN_S:
                    raise self._failed(name, error) from None
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _failed(self, name: str, error: Exception) -> StorageError:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, PermissionError) or "credentials" in text.lower():
            remedy = "check the store's keys and what they allow"
        elif isinstance(error, NotImplementedError):
            remedy = "stores of this kind cannot do that"
        else:
            remedy = "check the URL, the endpoint and the network, then run the same command again"
        return StorageError(f"{self._url_of(name)}: {text[:300]}; {remedy}")

    def _url_of(self, name: str) -> str:
        return f"{self.location}/{name}"


def _connect(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path of the URL in it."""
    try:
        from fsspec.core import url_to_fs  # loads only for URLs

        fs, path = url_to_fs(url)
    except ImportError as error:
        raise _no_driver(url, error) from None
    except ValueError as error:
        raise StorageError(
            f"{url}: {' '.join(str(error).split())}; expected a folder, s3://, gs:// or http://"
        ) from None
    return fs, path.rstrip("/")


def _no_driver(url: str, error: ImportError) -> StorageError:
    scheme = url.split(":", 1)[0]
    package = {
        "s3": "s3fs",
        "s3a": "s3fs",
        "gs": "gcsfs",
        "gcs": "gcsfs",
        "http": "aiohttp",
        "https": "aiohttp",
    }
    package |= dict.fromkeys(("az", "abfs", "abfss"), "adlfs")
    name = package.get(scheme) or error.name
    remedy = f"`pip install {name}`" if name else " ".join(str(error).split())
    return StorageError(f"{url}: the driver for {scheme}:// is not installed; {remedy}")


def _stays(error: Exception) -> bool:
    """Whether an attempt at the same would end the same."""
    if isinstance(
        error, (PermissionError, NotImplementedError, IsADirectoryError, NotADirectoryError, ValueError)
    ):
        return True
    code = _s3_code(error)
    status = getattr(error, "status", None)  # of HTTP
    return code in ("NoSuchBucket", "InvalidRange") or (
        isinstance(status, int) and 400 <= status < 500 and status != 429
    )


def _s3_code(error: Exception) -> str | None:
    """S3's own name of an error, where it is one."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _is_s3(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "s3" in protocols
