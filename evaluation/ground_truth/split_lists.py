"""Split lists: which images a benchmark scores, in the order in which predictions are stored.

    KITTI raw     2011_09_26/2011_09_26_drive_0002_sync 0000000069 l           (zeros may be left out)
                  2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png [right image]
    Cityscapes    leverkusen leverkusen_000039_000019
                  leftImg8bit/test/leverkusen/leverkusen_000039_000019_leftImg8bit.png

Of both data sets the first spelling is that of recent lists and the second that of older ones. Empty
lines are skipped; every other line is an image, or an error with its number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from evaluation.ground_truth.errors import GroundTruthError

_Frame = TypeVar("_Frame")

_SIDES = {"l": 2, "r": 3}
_DRIVE = r"(?P<date>\d{4}_\d\d_\d\d)/(?P<drive>(?P=date)_drive_\d{4}_sync)"
_KITTI_LINE = re.compile(rf"{_DRIVE}\s+(?P<frame>\d+)\s+(?P<side>[lr])", re.ASCII)
_KITTI_PATH = re.compile(
    rf"{_DRIVE}/image_0(?P<camera>[23])/data/(?P<frame>\d+)\.(png|jpg)(\s+\S+)?", re.ASCII
)
_CITY_NAME = r"(?P<city>[A-Za-z-]+)"
_CITY_STEM = r"(?P=city)_(?P<sequence>\d{6})_(?P<frame>\d{6})"
_CITY_LINE = re.compile(rf"{_CITY_NAME}\s+{_CITY_STEM}", re.ASCII)
_CITY_PATH = re.compile(rf"\S+/{_CITY_NAME}/{_CITY_STEM}_leftImg8bit\.(png|jpg)(\s+\S+)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class KittiFrame:
    """One image of KITTI raw.

    date:   2011_09_26;  drive: 2011_09_26_drive_0002_sync
    camera: 2, the left colour camera, or 3, the right one
    frame:  number of the image in its drive
    """

    date: str
    drive: str
    camera: int
    frame: int

    @property
    def file_names(self) -> tuple[str, ...]:
        """How prediction files for this image are called, without suffix: all spellings that are read.

        As the image itself, as in KITTI's depth benchmark, and all in one name.
        """
        camera, frame = f"image_{self.camera:02d}", f"{self.frame:010d}"
        return (
            f"{self.date}/{self.drive}/{camera}/data/{frame}",
            f"{self.drive}_image_{frame}_{camera}",
            f"{self.drive}_{camera}_{frame}",
        )

    @property
    def recording(self) -> str:
        """What `clip_start` says of the clips of this drive and camera."""
        return f"{self.drive}/image_{self.camera:02d}"

    @staticmethod
    def clip_start(clip: str) -> tuple[str, int]:
        """(recording, number of the first frame) of a clip of KITTI raw, by its name.

        "<drive>/image_02", which begins with image 0 as published, or, where image numbers have gaps,
        "<drive>/image_02/<number of the first image>".
        """
        head, _, first = clip.rpartition("/")
        return (head, int(first)) if first.isdecimal() else (clip, 0)


@dataclass(frozen=True, kw_only=True)
class CityscapesFrame:
    """One left image of Cityscapes: <city>_<sequence>_<frame>, the numbers with six digits."""

    city: str
    sequence: int
    frame: int

    @property
    def stem(self) -> str:
        """What the names of all files of this image begin with."""
        return f"{self.city}_{self.sequence:06d}_{self.frame:06d}"

    @property
    def file_names(self) -> tuple[str, ...]:
        """How prediction files for this image are called, without suffix: all spellings that are read."""
        return (
            self.stem,
            f"{self.city}/{self.stem}",
            f"{self.stem}_leftImg8bit",
            f"{self.city}/{self.stem}_leftImg8bit",
        )

    @property
    def recording(self) -> str:
        """What `clip_start` says of the clips of this sequence."""
        return f"{self.city}_{self.sequence:06d}"

    @staticmethod
    def clip_start(clip: str) -> tuple[str, int]:
        """(recording, number of the first frame) of a clip of Cityscapes, by its name.

        "<split>/<city>/<city>_<sequence>_<number of the first frame>"
        """
        head, _, first = clip.rpartition("/")[2].rpartition("_")
        return (head, int(first)) if first.isdecimal() else (clip, 0)


def read_kitti_split(path: Path) -> tuple[KittiFrame, ...]:
    """The images of a KITTI raw list (Eigen 697, Eigen improved 652, ...), in its order.

    Raises:
        GroundTruthError: no such file, no image in it, or a line that is none (with its number).
    """
    return _read(path, _kitti_frame, "<date>/<drive> <frame number> <l or r>")


def read_cityscapes_split(path: Path) -> tuple[CityscapesFrame, ...]:
    """The images of a Cityscapes list (test 1525, ...), in its order.

    Raises:
        GroundTruthError: no such file, no image in it, or a line that is none (with its number).
    """
    return _read(path, _cityscapes_frame, "<city> <city>_<sequence>_<frame>")


def _read(path: Path, parse: Callable[[str], _Frame | None], expected: str) -> tuple[_Frame, ...]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise GroundTruthError(
            f"{path}: missing; give the benchmark's list of test images, one a line: {expected}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise GroundTruthError(f"{path}: cannot be read ({reason}); expected {expected} a line") from None
    frames = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        frame = parse(line.strip())
        if frame is None:
            raise GroundTruthError(f"{path}: line {number} is {line.strip()[:80]!r}, expected {expected}")
        frames.append(frame)
    if not frames:
        raise GroundTruthError(f"{path}: lists no image; expected {expected} a line")
    return tuple(frames)


def _kitti_frame(line: str) -> KittiFrame | None:
    if match := _KITTI_LINE.fullmatch(line):
        camera = _SIDES[match["side"]]
    elif match := _KITTI_PATH.fullmatch(line):
        camera = int(match["camera"])
    else:
        return None
    return KittiFrame(date=match["date"], drive=match["drive"], camera=camera, frame=int(match["frame"]))


def _cityscapes_frame(line: str) -> CityscapesFrame | None:
    match = _CITY_LINE.fullmatch(line) or _CITY_PATH.fullmatch(line)
    if match is None:
        return None
    return CityscapesFrame(city=match["city"], sequence=int(match["sequence"]), frame=int(match["frame"]))
