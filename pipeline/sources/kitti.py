"""KITTI, as it unpacks: raw recordings (rectified, "sync") and the odometry sequences.

    raw       [<root>/]<date>/calib_cam_to_cam.txt                     P_rect_02, P_rect_03, S_rect_..
              [<root>/]<date>/<date>_drive_NNNN_sync/image_02/data/NNNNNNNNNN.png, image_03 alike
              [<root>/]<date>/<date>_drive_NNNN_sync/image_02/timestamps.txt     (optional, else 10 Hz)
    odometry  [<root>/sequences/]NN/calib.txt                          P2, P3
              [<root>/sequences/]NN/image_2/NNNNNN.png, image_3 alike
              [<root>/sequences/]NN/times.txt                          (optional, else 10 Hz)

Images may be PNG or JPEG. Where frame numbers have a gap, the drive falls into several clips,
each named after its first frame as well: neighbours in a clip are neighbours in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.camera import Camera, check_source, pinhole
from pipeline.errors import SourceError
from pipeline.sources.candidate import Candidate, image_clip, read_text, read_timestamps
from pipeline.sources.clip import Clip
from pipeline.sources.images import IMAGE_SUFFIXES
from pipeline.sources.intrinsics import Intrinsics
from pipeline.sources.naming import is_hidden, locked, natural_key, safe_clip_name, show

RAW_CALIBRATION, ODOMETRY_CALIBRATION = "calib_cam_to_cam.txt", "calib.txt"
_RAW_CAMERAS, _ODOMETRY_CAMERAS = ("image_02", "image_03"), ("image_2", "image_3")
_HZ = 10.0


def raw_drives(root: Path) -> list[Path]:
    """Drive folders (those that hold image_02/data or image_03/data) at or up to two levels below root."""
    return _folders_with(root, [f"{camera}/data" for camera in _RAW_CAMERAS])


def odometry_sequences(root: Path) -> list[Path]:
    """Sequence folders (those that hold image_2 or image_3) at or up to two levels below root."""
    return _folders_with(root, list(_ODOMETRY_CAMERAS))


def kitti_raw_clips(root: Path, given: Intrinsics | None) -> list[Candidate]:
    """Clips "<drive>/image_02" and "<drive>/image_03" of all drives."""
    found = []
    for drive in raw_drives(root):
        for camera in _RAW_CAMERAS:
            for run, suffix in _runs(drive / camera / "data"):
                name = safe_clip_name(f"{drive.absolute().name}/{camera}{suffix}")
                found.append(Candidate(name=name, open=partial(_open_raw, paths=run, given=given)))
    return found


def kitti_odometry_clips(root: Path, given: Intrinsics | None) -> list[Candidate]:
    """Clips "<sequence>/image_2" and "<sequence>/image_3" of all sequences."""
    found = []
    for sequence in odometry_sequences(root):
        for camera in _ODOMETRY_CAMERAS:
            for run, suffix in _runs(sequence / camera):
                name = safe_clip_name(f"{sequence.absolute().name}/{camera}{suffix}")
                found.append(Candidate(name=name, open=partial(_open_odometry, paths=run, given=given)))
    return found


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """KITTI's "KEY: numbers" lines; lines without numbers (the date) are left out.

    Raises:
        SourceError: the file is missing or no text; it says where the file comes from.
    """
    if not path.is_file():
        raise SourceError(
            f"{show(path)}: missing; it comes with KITTI's calibration archive of the same date or sequence"
        )
    values = {}
    for line in read_text(path).splitlines():
        key, colon, numbers = line.partition(":")
        try:
            array = np.array([float(number) for number in numbers.split()], np.float64)
        except ValueError:
            continue
        if colon and len(array):
            values[key.strip()] = array
    return values


def raw_camera(calibration: Path, number: str, size: tuple[int, int], name: str) -> Camera:
    """The rectified camera `number` ("02") of a calib_cam_to_cam.txt.

    Args:
        size: width and height of the frames of the clip `name`.

    Raises:
        SourceError: the file is missing, holds no such camera, or was made for other frames.
    """
    values = read_calibration(calibration)
    rectified = _entry(calibration, values, f"S_rect_{number}", 2)
    if tuple(rectified) != size:
        raise SourceError(
            f"{show(calibration)}: made for {rectified[0]:.0f}x{rectified[1]:.0f} frames, {name} has "
            f"{size[0]}x{size[1]}; use the rectified ('sync') images of the same date"
        )
    return _camera(_entry(calibration, values, f"P_rect_{number}", 12), size)


def _open_raw(name: str, paths: list[Path], given: Intrinsics | None) -> Clip:
    camera_folder = paths[0].parent.parent
    number = camera_folder.name[-2:]
    calibration = camera_folder.absolute().parent.parent / RAW_CALIBRATION

    def camera(size: tuple[int, int]) -> Camera:
        if given is not None:
            return given.camera(size)
        return raw_camera(calibration, number, size, name)

    times_file = camera_folder / "timestamps.txt"
    return image_clip(name, paths, camera, _times(times_file, paths))


def _open_odometry(name: str, paths: list[Path], given: Intrinsics | None) -> Clip:
    folder = paths[0].parent
    calibration = folder.parent / ODOMETRY_CALIBRATION

    def camera(size: tuple[int, int]) -> Camera:
        if given is not None:
            return given.camera(size)
        return _camera(_entry(calibration, read_calibration(calibration), f"P{folder.name[-1]}", 12), size)

    return image_clip(name, paths, camera, _times(folder.parent / "times.txt", paths))


def _camera(projection: np.ndarray, size: tuple[int, int]) -> Camera:
    """K of a rectified 3x4 projection; its fourth column is the stereo baseline."""
    P = projection.reshape(3, 4)
    camera = Camera(K=pinhole(P[0, 0], P[1, 1], P[0, 2], P[1, 2]), size=size)
    check_source(camera)
    return camera


def _entry(path: Path, values: dict[str, np.ndarray], key: str, count: int) -> np.ndarray:
    if key not in values or len(values[key]) != count:
        raise SourceError(
            f"{show(path)}: holds no {key} with {count} numbers; unpack KITTI's calibration again"
        )
    return values[key]


def _times(path: Path, paths: list[Path]) -> np.ndarray:
    """Times of the frames by their numbers: line n of the file is frame n."""
    numbers = np.array([int(path.stem) for path in paths])
    if not path.is_file():
        return numbers / _HZ
    lines = sum(1 for line in read_text(path).split("\n") if line.strip())
    if lines <= numbers[-1]:
        raise SourceError(
            f"{show(path)}: {lines} times, but there is a frame {paths[-1].name}; unpack both again"
        )
    return read_timestamps(path, lines)[numbers]


def _runs(folder: Path) -> Iterator[tuple[list[Path], str]]:
    """Runs of consecutive frame numbers, with what to add to the clip's name if there are several."""
    if not folder.is_dir():
        return
    images = [
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.isdecimal()
    ]
    runs = consecutive_runs(sorted(images, key=lambda path: (int(path.stem), path.name)))
    for run in runs:
        yield run, f"/{run[0].stem}" if len(runs) > 1 else ""


def consecutive_runs(paths: list[Path], number_at: int = 0) -> list[list[Path]]:
    """Split sorted paths where the number in their names jumps.

    Args:
        number_at: which "_"-separated part of the stem is the frame number
    """
    runs: list[list[Path]] = []
    for path in paths:
        number = int(path.stem.split("_")[number_at])
        if runs and number - int(runs[-1][-1].stem.split("_")[number_at]) <= 1:
            runs[-1].append(path)
        else:
            runs.append([path])
    return runs


def _folders_with(root: Path, inner: list[str]) -> list[Path]:
    below = [path for pattern in ("*", "*/*") for path in root.glob(pattern) if not is_hidden(path.name)]
    found = set()
    for folder in (root, *below):
        try:
            found |= {folder} if any((folder / name).is_dir() for name in inner) else set()
        except PermissionError as error:
            raise locked(folder, error) from error
    return sorted(found, key=lambda folder: natural_key(str(folder)))
