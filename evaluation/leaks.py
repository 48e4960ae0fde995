"""Leaks: images of a test list that a network has seen in training, or has seen from right beside.

Image lists and shard sets are compared by recording and image number. A KITTI recording is a drive, whatever
the camera: the right image shows what the left one does. A Cityscapes recording is a sequence. The odometry
sequences 00 to 10 are drives under other names (KITTI odometry's development kit says which), so a network
trained on them has seen part of Eigen's test images. For 11 to 21 nothing is published: each is taken for
a recording of its own.

A clip is placed by its name, as `pipeline` gives it; see `KittiFrame.clip_start` for what it begins with.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.split_lists import (
    CityscapesFrame,
    KittiFrame,
    read_cityscapes_split,
    read_kitti_split,
)
from pipeline.errors import ConfigError
from pipeline.shards.manifest import ClipEntry, read_manifest
from pipeline.shards.storage import Location

NEAR = 10
"""Images further apart than this are not called near; KITTI takes ten a second, Cityscapes seventeen."""

ODOMETRY_DRIVES: dict[str, tuple[str, int, int]] = {
    "00": ("2011_10_03_drive_0027_sync", 0, 4540),
    "01": ("2011_10_03_drive_0042_sync", 0, 1100),
    "02": ("2011_10_03_drive_0034_sync", 0, 4660),
    "03": ("2011_09_26_drive_0067_sync", 0, 800),
    "04": ("2011_09_30_drive_0016_sync", 0, 270),
    "05": ("2011_09_30_drive_0018_sync", 0, 2760),
    "06": ("2011_09_30_drive_0020_sync", 0, 1100),
    "07": ("2011_09_30_drive_0027_sync", 0, 1100),
    "08": ("2011_09_30_drive_0028_sync", 1100, 5170),
    "09": ("2011_09_30_drive_0033_sync", 0, 1590),
    "10": ("2011_09_30_drive_0034_sync", 0, 1200),
}
"""Sequence -> drive, and the numbers there of the sequence's first and last image."""

_LEFT, _RIGHT = 2, 3
_RAW_CLIP = re.compile(r"(?P<drive>\d{4}_\d\d_\d\d_drive_\d{4}_sync)/image_0(?P<camera>[23])", re.ASCII)
_ODOMETRY_CLIP = re.compile(r"(?P<sequence>\d\d)/image_(?P<camera>[23])", re.ASCII)
_CITY_CLIP = re.compile(r"(?:.*/)?[A-Za-z-]+_\d{6}_\d{6}", re.ASCII)
_REPEATED = re.compile(r"-\d+$", re.ASCII)  # as `pipeline` tells clips of one name apart
_ODOMETRY_LINE = re.compile(r"(?P<sequence>\d{1,2})\s+(?P<frame>\d+)\s+(?P<side>[lr])", re.ASCII)
_KITTI_START = re.compile(r"\d{4}_\d\d_\d\d/", re.ASCII)
_CITY_SIGN = re.compile(r"_\d{6}_\d{6}", re.ASCII)
_MOST_LINES = 20


@dataclass(frozen=True, kw_only=True, order=True)
class Image:
    """One image; camera: 2 the left one, 3 the right one."""

    recording: str
    frame: int
    camera: int = _LEFT

    def __str__(self) -> str:
        return f"{self.recording} {self.frame} {'l' if self.camera == _LEFT else 'r'}"


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a list or a shard set holds.

    images:   each once
    loose:    recordings of clips of which it cannot be told which images they hold
    unplaced: names of clips that belong to no recording known here
    """

    images: frozenset[Image] = frozenset()
    loose: frozenset[str] = frozenset()
    unplaced: tuple[str, ...] = ()

    @property
    def recordings(self) -> frozenset[str]:
        return self.loose | {image.recording for image in self.images}


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A recording that is in both, and how many images of it.

    train, test:    its images in each
    same, near:     training images that are test images, or lie near one
    certain:        False: which images one of the two has is not known
    """

    recording: str
    train: int
    test: int
    same: int
    near: int
    certain: bool = True


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What training and test have in common.

    within:     images that are at most so far apart are near
    train, test: images in each, each counted once
    same:       images that are in both
    near:       further training images near a test image, of either camera
    test_near:  test images that have the same or a near one in training
    recordings: that are in both
    unplaced:   clips of either that could not be compared
    """

    within: int
    train: int
    test: int
    same: tuple[Image, ...]
    near: tuple[Image, ...]
    test_near: int
    recordings: tuple[Shared, ...]
    unplaced: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether test images leak into training, as far as can be told."""
        return bool(self.same or self.near)

    @property
    def certain(self) -> bool:
        """Whether everything could be compared."""
        return not self.unplaced and all(shared.certain for shared in self.recordings)


def find_leaks(train: Images, test: Images, near: int = NEAR) -> Leaks:
    """Compare what a network is trained with and what it is tested on.

    Args:
        near: images of a recording that are at most so far apart, in numbers, are near; 0: at the same
              time only.

    Raises:
        ConfigError: near is below 0.
    """
    if near < 0:
        raise ConfigError(f"near is {near}; expected 0 or more images")
    same = train.images & test.images
    besides = _near(train.images, test.images, near) - same
    trained, tested, both, beside = map(_by_recording, (train.images, test.images, same, besides))
    return Leaks(
        within=near,
        train=len(train.images),
        test=len(test.images),
        same=tuple(sorted(same)),
        near=tuple(sorted(besides)),
        test_near=len(_near(test.images, train.images, near)),
        recordings=tuple(
            Shared(
                recording=name,
                train=trained[name],
                test=tested[name],
                same=both[name],
                near=beside[name],
                certain=name not in train.loose | test.loose,
            )
            for name in sorted(train.recordings & test.recordings)
        ),
        unplaced=train.unplaced + test.unplaced,
    )


def leaks_text(leaks: Leaks) -> str:
    """For people: counts, then the recordings in both, those that leak most first."""
    lines = [
        f"# {leaks.train} training images, {leaks.test} test images, each counted once; near: at most "
        f"{leaks.within} apart in a recording, either camera",
        f"in both                      {len(leaks.same):>7}",
        f"training images near a test  {len(leaks.near):>7}",
        f"test images seen or near     {leaks.test_near:>7} (of {leaks.test})",
        f"recordings in both           {len(leaks.recordings):>7}",
    ]
    width = max((len(shared.recording) for shared in leaks.recordings), default=0)
    ordered = sorted(leaks.recordings, key=lambda shared: (-shared.same, -shared.near, shared.recording))
    for shared in ordered[:_MOST_LINES]:
        lines.append(
            f"  {shared.recording:{width}}  train {shared.train:>5}  test {shared.test:>5}  "
            f"in both {shared.same:>5}  near {shared.near:>5}"
            + ("" if shared.certain else "  or more: images of a clip unknown")
        )
    if len(ordered) > _MOST_LINES:
        lines.append(f"  and {len(ordered) - _MOST_LINES} more")
    if leaks.unplaced:
        lines.append(
            f"NOT compared: {len(leaks.unplaced)} clips of no known data set, such as {leaks.unplaced[0]}"
        )
    return "\n".join([*lines, _verdict(leaks)])


def read_images(path: Location) -> Images:
    """The images of a shard set (its folder or URL) or of a list (KITTI raw, KITTI odometry, Cityscapes).

    A list of KITTI odometry has lines "<sequence> <image> <l or r>"; the others are those of
    `split_lists`.

    Raises:
        ShardError: a folder that is no shard set.
        GroundTruthError: no list of one of these kinds, or a line that does not fit (with its number).
    """
    if not isinstance(path, Path) or path.is_dir():
        manifest = read_manifest(path)
        return images_of_clips(manifest.clips, manifest.config.get("source", {}))
    first = _first_line(path)
    if _KITTI_START.match(first):
        return images_of_frames(read_kitti_split(path))
    if _ODOMETRY_LINE.fullmatch(first):
        return Images(images=frozenset(_odometry_list(path)))
    if _CITY_SIGN.search(first):
        return images_of_frames(read_cityscapes_split(path))
    raise GroundTruthError(
        f"{path}: begins with {first[:80]!r}; expected a list of images of KITTI raw, KITTI odometry or "
        "Cityscapes, or the folder of a shard set"
    )


def images_of_frames(frames: Iterable[KittiFrame | CityscapesFrame]) -> Images:
    """The images of a split list."""
    return Images(
        images=frozenset(
            Image(recording=frame.drive, frame=frame.frame, camera=frame.camera)
            if isinstance(frame, KittiFrame)
            else Image(recording=frame.recording, frame=frame.frame)
            for frame in frames
        )
    )


def images_of_clips(clips: Sequence[ClipEntry], source: Mapping[str, Any] | None = None) -> Images:
    """The images of a shard set's clips, by their names and lengths.

    Args:
        source: how the set's images were chosen, `config["source"]` of its manifest. A stride is followed; by
                a frame rate or a start time it cannot be told which images were taken.

    Raises:
        ConfigError: a stride that is none.
    """
    source = source or {}
    step = source.get("stride", 1)
    if not isinstance(step, int) or step < 1:
        raise ConfigError(f"a stride of {step!r} in the shard set's record; expected a whole number from 1")
    known = source.get("target_fps") is None and not source.get("start_s")
    images: set[Image] = set()
    loose: set[str] = set()
    unplaced = []
    for clip in clips:
        first = _first_image(clip.name)
        if first is None:
            unplaced.append(clip.name)
            continue
        last = first.frame + step * (clip.frames - 1)
        if _beyond(clip.name, last):
            unplaced.append(clip.name)  # another data set in the layout of KITTI odometry
        elif known:
            images |= {
                Image(recording=first.recording, frame=frame, camera=first.camera)
                for frame in range(first.frame, last + 1, step)
            }
        else:
            loose.add(first.recording)
    return Images(images=frozenset(images), loose=frozenset(loose), unplaced=tuple(unplaced))


def _first_image(clip: str) -> Image | None:
    """What a clip begins with, by its name; None if it is of no data set known here."""
    clip = _REPEATED.sub("", clip)
    head, number = KittiFrame.clip_start(clip)
    if match := _RAW_CLIP.fullmatch(head):
        return Image(recording=match["drive"], frame=number, camera=int(match["camera"]))
    if match := _ODOMETRY_CLIP.fullmatch(head):
        return _odometry_image(match["sequence"], number, int(match["camera"]))
    if _CITY_CLIP.fullmatch(clip):
        recording, number = CityscapesFrame.clip_start(clip)
        return Image(recording=recording, frame=number)
    return None


def _odometry_image(sequence: str, frame: int, camera: int) -> Image:
    drive, first, _ = ODOMETRY_DRIVES.get(sequence, (f"odometry {sequence}", 0, 0))
    return Image(recording=drive, frame=first + frame, camera=camera)


def _beyond(clip: str, last: int) -> bool:
    """Whether a clip goes on where the odometry sequence of its name has ended."""
    match = _ODOMETRY_CLIP.match(clip)
    return bool(
        match and match["sequence"] in ODOMETRY_DRIVES and last > ODOMETRY_DRIVES[match["sequence"]][2]
    )


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise GroundTruthError(
            f"{path}: cannot be read ({reason}); give a list of images or the folder of a shard set"
        ) from None
    return next((line.strip() for line in lines if line.strip()), "")


def _odometry_list(path: Path) -> Iterable[Image]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = _ODOMETRY_LINE.fullmatch(line.strip())
        if match is None:
            raise GroundTruthError(
                f"{path}: line {number} is {line.strip()[:80]!r}, expected <sequence> <image> <l or r>"
            )
        sequence = match["sequence"].zfill(2)
        image = _odometry_image(sequence, int(match["frame"]), _LEFT if match["side"] == "l" else _RIGHT)
        if sequence in ODOMETRY_DRIVES and image.frame > ODOMETRY_DRIVES[sequence][2]:
            raise GroundTruthError(
                f"{path}: line {number} asks for image {match['frame']}, past the end of sequence {sequence}"
            )
        yield image


def _near(images: Iterable[Image], others: Iterable[Image], within: int) -> frozenset[Image]:
    """Those images that lie at most `within` from one of the others, of any camera."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for other in others:
        numbers[other.recording].add(other.frame)
    rising = {name: np.array(sorted(frames)) for name, frames in numbers.items()}
    found = []
    for image in images:
        if image.recording in rising:
            frames = rising[image.recording]
            # The first one that is not too far before is the one to ask.
            at = int(np.searchsorted(frames, image.frame - within))
            if at < len(frames) and frames[at] <= image.frame + within:
                found.append(image)
    return frozenset(found)


def _by_recording(images: Iterable[Image]) -> Counter[str]:
    return Counter(image.recording for image in images)


def _verdict(leaks: Leaks) -> str:
    if leaks.found:
        return "LEAKS: leave these recordings out of training (data.exclude), or test on others"
    if not leaks.certain:
        return "no leak among what could be compared; the rest is not known"
    if leaks.recordings:
        return f"no leak: nothing within {leaks.within} images, but recordings in common"
    return "no leak: no recording in common"
