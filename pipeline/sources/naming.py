"""Names, order and fingerprints that every kind of source shares.

Clip names end up in manifests, file paths and web pages, so they hold nothing but
letters, digits, "." "_" "-" and "/" between levels, whatever the files are called.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from pipeline.camera import Camera

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_EDGE_BYTES = 1 << 16


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts frame 2 before frame 10; "007" and "7" stay distinct and ordered."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def safe_clip_name(path: PurePath | str) -> str:
    """A relative path as a clip name: safe characters only, one level per folder.

    Every other byte is percent-encoded, so different paths keep different names.
    "." and ".." levels are encoded too: a clip name never climbs out of a folder.
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

    Hidden files and folders are left out: they hold thumbnails and copies of other systems.
    Links to folders are followed only once, so that a loop of links ends.
    """
    visited: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        for entry in sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name)):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry)
            elif entry.suffix.lower() in suffixes and entry.is_file():
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


def edge_digest(path: Path) -> bytes:
    """SHA-256 of the first and last 64 KiB of a file: cheap, and sees headers and indices change."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(_EDGE_BYTES))
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return digest.digest()


def show(path: Path | str) -> str:
    """A path as one printable line, whatever bytes its name holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


def _safe_level(level: bytes) -> str:
    if set(level) == {ord(".")}:
        return "%2E" * len(level)
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in level)
