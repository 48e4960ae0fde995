"""Names, order and fingerprints that every kind of source shares.

Clip names end up in manifests, file paths and web pages, so they hold nothing but
letters, digits, "." "_" "-" and "/" between levels, whatever the files are called.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO

from pipeline.camera import Camera
from pipeline.errors import SourceError

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_LEVEL_CHARACTERS = 200  # of the 255 that file systems take: endings are put behind
_EDGE_BYTES = 1 << 16


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts frame 2 before frame 10; "007" and "7" stay distinct and ordered."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def safe_clip_name(path: PurePath | str) -> str:
    """A relative path as a clip name: safe characters only, one level per folder.

    Every other byte is percent-encoded, so different paths keep different names.
    "." and ".." levels are encoded too: a clip name never climbs out of a folder.
    A level that gets longer than file names may be is cut and ends in a digest of the whole.
    """
    levels = [level for level in os.fsencode(path).split(b"/") if level]
    return "/".join(_safe_level(level) for level in levels) or "clip"


def unique_names(names: Sequence[str]) -> list[str]:
    """The same names, later repetitions numbered "-2", "-3", ... past any name that is taken."""
    taken, result = set(names), []
    seen: set[str] = set()
    for name in names:
        chosen, number = name, 1
        while chosen in seen or (number > 1 and chosen in taken):
            number += 1
            chosen = f"{name}-{number}"
        seen.add(chosen)
        result.append(chosen)
    return result


def files_below(root: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files with one of the suffixes (lower case, with the dot) anywhere below root, in natural order.

    Whatever bears such a name and is no folder is among them, links to nowhere as well: it is
    for whoever opens it to say what is wrong. Hidden files and folders are left out: they hold
    thumbnails and copies of other systems. Links to folders are followed only once, so that a
    loop of links ends.

    Raises:
        SourceError: a folder may not be looked into.
    """
    visited: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        try:
            entries = [(entry, entry.is_dir()) for entry in folder.iterdir() if not is_hidden(entry.name)]
        except PermissionError as error:
            raise locked(folder, error) from error
        for entry, is_folder in sorted(entries, key=lambda pair: natural_key(pair[0].name)):
            if is_folder:
                yield from walk(entry)
            elif entry.suffix.lower() in suffixes:
                yield entry

    return walk(root)


def fingerprint(
    name: str, camera: Camera, frame_names: Sequence[str], files: Iterable[tuple[str, int, bytes]]
) -> str:
    """Digest of what a clip is made of: SHA-256, 32 hexadecimal digits.

    Args:
        name:        the clip's name in its source
        camera:      calibration and size of the source frames
        frame_names: the frames that were selected
        files:       (relative name, size in bytes, digest of the content or b"") of each file

    Neither times nor absolute paths go in, so a copied data set keeps its fingerprints.
    """
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        for value in values:
            data = value if isinstance(value, bytes) else os.fsencode(str(value))
            digest.update(len(data).to_bytes(8, "little") + data)

    add(name, camera.size, camera.K.tobytes(), camera.distortion, len(frame_names), *frame_names)
    for file, size, content in files:
        add(file, size, content)
    return digest.hexdigest()[:32]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is no part of a data set: thumbnails, copies of other
    systems, and what a disk keeps for itself and lets nobody look into."""
    return name.startswith(".") or name == "lost+found"


def locked(folder: Path, error: PermissionError) -> SourceError:
    """What to say about a folder whose clips would be missing without a word."""
    return SourceError(
        f"{show(folder)}: cannot be looked into ({error.strerror}); make it readable or move it away"
    )


def open_file(path: Path) -> IO[bytes]:
    """Open a file of a data set for reading.

    Raises:
        OSError: there is none, it may not be read, or it is no file: a pipe would be waited for.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return open(path, "rb")


def edge_digest(path: Path) -> bytes:
    """SHA-256 of the first and last 64 KiB of a file: cheap, and sees headers and indices change."""
    with open_file(path) as file:
        digest = hashlib.sha256(file.read(_EDGE_BYTES))
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return digest.digest()


def show(path: Path | str) -> str:
    """A path as one printable line, whatever bytes its name holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


def unreadable(name: str, error: OSError) -> str:
    """Why a clip is left out whose files the system does not give, as one line."""
    where = show(error.filename) if error.filename else name
    return f"{where}: cannot be read ({error.strerror}); copy it again or leave it out"


def _safe_level(level: bytes) -> str:
    if set(level) == {ord(".")}:
        return "%2E" * len(level)
    name = "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in level)
    if len(name) > _LEVEL_CHARACTERS:
        name = f"{name[: _LEVEL_CHARACTERS - 17]}-{hashlib.sha256(level).hexdigest()[:16]}"
    return name
