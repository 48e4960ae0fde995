"""A clip that a scan has found but not opened yet, and what image-based clips have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from pipeline.camera import Camera
from pipeline.errors import SourceError
from pipeline.sources.clip import Clip
from pipeline.sources.images import ImageReader, common_size
from pipeline.sources.naming import fingerprint, show


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A clip by name.

    name: as the source has it, safe characters only
    open: makes the clip under the name that it finally gets, or raises SourceError
    """

    name: str
    open: Callable[[str], Clip]


def image_clip(
    name: str,
    paths: Sequence[Path],
    camera: Callable[[tuple[int, int]], Camera],
    timestamps_s: np.ndarray,
) -> Clip:
    """A clip of one image file per frame.

    Args:
        camera:       gives the camera for the frames' size
        timestamps_s: (N,) seconds, one per image
    """
    size = common_size(paths)
    view = camera(size)
    # Frame names are text: bytes that are none are written out.
    names = tuple(os.fsencode(path.stem).decode("utf-8", "backslashreplace") for path in paths)
    if len(set(names)) < len(names):
        odd = next(path for path, stem in zip(paths, names, strict=True) if names.count(stem) > 1)
        raise SourceError(
            f"{show(odd)}: another image beside it has the same name but for its suffix; keep one"
        )
    files = [(path.name, path.stat().st_size, b"") for path in paths]
    return Clip(
        name=name,
        timestamps_s=timestamps_s - timestamps_s[0],
        frame_names=names,
        camera=view,
        reader=ImageReader(paths=tuple(paths), size=size),
        fingerprint=fingerprint(name, view, names, files),
    )


def read_timestamps(path: Path, count: int) -> np.ndarray:
    """One time per line, in seconds or as KITTI's "2011-09-26 13:02:25.594360375", -> (count,) seconds.

    Raises:
        SourceError: unreadable, another number of lines than frames, or a line that is no time.
    """
    lines = read_text(path).split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != count:
        raise SourceError(f"{show(path)}: {len(lines)} times for {count} frames; expected one line per frame")
    return np.array([_seconds(path, line) for line in lines], np.float64)


def read_text(path: Path) -> str:
    """The text of a small file of the data set; a SourceError if there is none."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SourceError(f"{show(path)}: cannot be read ({reason})") from error


def _seconds(path: Path, line: str) -> float:
    try:
        return float(line)
    except ValueError:
        pass
    whole, _, fraction = line.partition(".")
    try:
        # Python's datetime holds microseconds, KITTI writes nanoseconds; no time zone is involved.
        moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S")
        return (moment - datetime(2000, 1, 1)).total_seconds() + float(f"0.{fraction or 0}")
    except ValueError as error:
        raise SourceError(
            f"{show(path)}: {line[:40]!r} is no time; expected seconds or a date and time"
        ) from error
