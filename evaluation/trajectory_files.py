"""Trajectories of any origin, read from files; the format is found by looking inside.

    KITTI   text, 12 numbers a line    the upper three rows of world_T_camera, row by row; line i is frame i
    indexed text, 13 numbers a line    frame number first, then the same; frames may be left out
    TUM     text, 8 numbers a line     time tx ty tz qx qy qz qw of world_T_camera, seconds, w last
    array   .npy or .npz               floating (N, 4, 4) or (N, 3, 4) world_T_camera; in .npz the array
                                       `world_T_camera`, or the only one

Numbers are separated by spaces; lines that begin with # are comments. Units are the file's.

Rotations must be rotations to 1e-3. What is off by more than 1e-6 is replaced by the nearest rotation.
Smaller deviations are the rounding of seven printed digits and stay as they are printed: published
errors were computed from such numbers, and are found again from the same numbers only.

Nothing in a file is run: arrays are taken from their bytes, and pickled objects are refused.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from evaluation.predictions import RIGID_TOLERANCE, PredictionError
from evaluation.trajectories import nearest_rotation
from pipeline.errors import ConfigError

MAX_BYTES = 1 << 26
"""Size of a file, and of the array in it; at 10 frames a second text of this size is eleven hours."""
MAX_LINE = 4096
MAX_NUMBER = 1e100
"""Larger ones are refused like infinite ones: their squares would be."""
ROUNDING = 1e-6
"""How far R^T R may be from the identity for the rounding of printed digits."""
KEY = "world_T_camera"

_FORMATS = {
    12: "12 (KITTI: the upper three rows of world_T_camera)",
    13: "13 (frame number, then the 12)",
    8: "8 (TUM: time tx ty tz qx qy qz qw)",
}
_EXPECTED = "a line a pose of " + ", ".join(_FORMATS.values()) + " numbers, or an .npy or .npz array"
_ARRAY = f"save world_T_camera, floating (N, 4, 4), with numpy.save, or with numpy.savez as {KEY}"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

_Label = Callable[[int], str]
"""Row of the data -> where that stands in the file."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Poses of a camera along its way; N > 0.

    index:          (N,) int64 frame numbers, rising from 0 or later
    times_s:        (N,) float64 rising, where the format has times
    world_T_camera: (N, 4, 4) float64, any world, any unit

    Raises:
        PredictionError: shapes disagree, an order does not rise, or a pose is no rigid motion.
    """

    index: np.ndarray
    times_s: np.ndarray | None
    world_T_camera: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.index)
        if not count or self.world_T_camera.shape != (count, 4, 4):
            raise PredictionError(f"{count} frame numbers for poses {self.world_T_camera.shape}")
        if self.index.shape != (count,) or self.index.dtype != np.int64 or self.index[0] < 0:
            raise PredictionError("frame numbers must be a row of int64 from 0 on")
        _require_rising(self.index, "frame", _pose_label)
        if self.times_s is not None:
            if self.times_s.shape != (count,):
                raise PredictionError(f"{count} poses, but times {self.times_s.shape}")
            _require_numbers(self.times_s, _pose_label)
            _require_rising(self.times_s, "time", _pose_label)
        _require_numbers(self.world_T_camera, _pose_label)
        _require_last_row(self.world_T_camera, _pose_label)
        _deviation(self.world_T_camera, _pose_label)

    def __len__(self) -> int:
        return len(self.index)


def read_trajectory(path: Path) -> Trajectory:
    """Read a trajectory of any of the module's formats.

    Raises:
        PredictionError: missing, too large, of no known format, or a pose, order or number is wrong; one
            line with the file, the line in it, and what to do.
    """
    try:
        if not path.is_file():
            raise PredictionError(f"no such file; expected {_EXPECTED}")
        if path.stat().st_size > MAX_BYTES:
            raise PredictionError(f"larger than {MAX_BYTES >> 20} MiB; give one sequence's trajectory")
        data = path.read_bytes()
        if data.startswith(np.lib.format.MAGIC_PREFIX):
            return _from_array(data)
        if data.startswith(b"PK\x03\x04") or data.startswith(b"PK\x05\x06"):  # the second: an empty one
            return _from_array(_member(data))
        return _from_text(data)
    except OSError as error:
        raise PredictionError(f"{path}: cannot be read ({error.strerror or error}); check it") from None
    except PredictionError as error:
        raise PredictionError(f"{path}: {error}") from None


def associate(a_times: np.ndarray, b_times: np.ndarray, tolerance_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of two trajectories are of one time.

    Two rows belong together if each is the other's nearest in time, and not more than the tolerance
    away: no row is used twice, and pairs never cross. Of two rows equally near, the earlier counts.

    Args:
        a_times, b_times: (N,) and (M,) rising, s, of one clock.
        tolerance_s:      largest difference, s; less than half the time between frames.

    Returns:
        (K,) rows of a and (K,) rows of b, both rising, K > 0.

    Raises:
        PredictionError: no two rows belong together.
        ConfigError: the tolerance is negative or not finite.
        ValueError: times are empty or do not rise.
    """
    if not (math.isfinite(tolerance_s) and tolerance_s >= 0):
        raise ConfigError(f"time tolerance {tolerance_s} s; expected a number from 0 on, 0.02 say")
    for name, times in (("a_times", a_times), ("b_times", b_times)):
        if np.ndim(times) != 1 or not len(times) or not (np.diff(times) > 0).all():
            raise ValueError(f"{name} must be a row of rising times")
    b_of_a, a_of_b = _nearest(a_times, b_times), _nearest(b_times, a_times)
    mutual = a_of_b[b_of_a] == np.arange(len(a_times))
    a_rows = np.flatnonzero(mutual & (np.abs(b_times[b_of_a] - a_times) <= tolerance_s))
    if not len(a_rows):
        raise PredictionError(
            f"times {a_times[0]:.3f} to {a_times[-1]:.3f} s and {b_times[0]:.3f} to {b_times[-1]:.3f} s: none "
            f"are within {tolerance_s:g} s; give trajectories of one clock, or a larger tolerance"
        )
    return a_rows, b_of_a[a_rows]


def _from_text(data: bytes) -> Trajectory:
    table, lines = _table(data)

    def label(row: int) -> str:
        return f"line {lines[row]}"

    _require_numbers(table, label)
    if table.shape[1] == 8:
        return _from_tum(table, label)
    index = np.arange(len(table))
    if table.shape[1] == 13:
        index = _frame_numbers(table[:, 0], label)
    return Trajectory(
        index=index, times_s=None, world_T_camera=_rigid(table[:, -12:].reshape(-1, 3, 4), label)
    )


def _from_tum(table: np.ndarray, label: _Label) -> Trajectory:
    times, quaternions = table[:, 0], table[:, 4:]
    _require_rising(times, "time", label)
    length = np.linalg.norm(quaternions, axis=-1)
    for row in np.flatnonzero(np.abs(length - 1) > RIGID_TOLERANCE)[:1]:
        raise PredictionError(
            f"{label(row)}: the quaternion has length {length[row]:.6g}, expected 1; "
            "write tx ty tz qx qy qz qw after the time, the quaternion normalised"
        )
    poses = np.tile(np.eye(4), (len(table), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
    poses[:, :3, 3] = table[:, 1:4]
    return Trajectory(index=np.arange(len(table)), times_s=times.copy(), world_T_camera=poses)


def _table(data: bytes) -> tuple[np.ndarray, list[int]]:
    """(N, C) numbers of a text, and the number of each row's line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise PredictionError(f"neither text nor an array of numpy; expected {_EXPECTED}")
    rows: list[np.ndarray] = []
    lines: list[int] = []
    columns, empty = 0, 0
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if len(line) > MAX_LINE:
            raise PredictionError(f"line {number} is longer than {MAX_LINE} characters; expected {_EXPECTED}")
        words = line.split()
        if not words:
            empty = empty or number
        elif not words[0].startswith("#"):
            columns = columns or _known_columns(words, number)
            if len(words) != columns:
                raise PredictionError(
                    f"line {number} has {len(words)} columns, the lines before it {columns}; "
                    "write every pose in one format, and check that the file is complete"
                )
            if empty and rows and columns == 12:
                raise PredictionError(
                    f"line {empty} is empty, but in KITTI's format every line is a frame; where poses are "
                    "missing, write the frame number first (13 columns)"
                )
            rows.append(_numbers(words, number))
            lines.append(number)
    if not rows:
        raise PredictionError(f"holds no pose; expected {_EXPECTED}")
    return np.stack(rows), lines


def _known_columns(words: list[str], number: int) -> int:
    if len(words) not in _FORMATS:
        _numbers(words, number)  # of a heading or a foreign text, say so rather than count its words
        raise PredictionError(f"line {number} has {len(words)} columns; expected {_EXPECTED}")
    return len(words)


def _numbers(words: list[str], number: int) -> np.ndarray:
    values = np.empty(len(words))
    for i, word in enumerate(words):
        try:
            values[i] = float(word)
        except ValueError:
            raise PredictionError(
                f"line {number}: {word[:24]!r} is no number; expected numbers separated by spaces, and "
                "comments after #"
            ) from None
    return values


def _frame_numbers(values: np.ndarray, label: _Label) -> np.ndarray:
    for row in np.flatnonzero((values != np.floor(values)) | (values < 0) | (values >= 2**53))[:1]:
        raise PredictionError(
            f"{label(row)}: frame number {values[row]:g}, expected a whole number from 0 on in the first of "
            "13 columns"
        )
    index = values.astype(np.int64)
    _require_rising(index, "frame", label)
    return index


def _member(data: bytes) -> bytes:
    """The .npy file in the bytes of an .npz file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            name = names[0] if len(names) == 1 else KEY
            if name not in names:
                shown = ", ".join(names[:8]) or "no array"
                raise PredictionError(f"holds {shown[:120]!r} and no {KEY!r}; {_ARRAY}")
            if archive.getinfo(f"{name}.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("packed otherwise than numpy does")
            with archive.open(f"{name}.npy") as file:
                member = file.read(MAX_BYTES + 1)  # not read(): what the archive says of sizes may be wrong
            if len(member) > MAX_BYTES:
                raise PredictionError(
                    f"holds more than {MAX_BYTES >> 20} MiB; give one sequence's trajectory"
                )
            return member
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PredictionError):
            raise
        # RuntimeError: encrypted.
        raise PredictionError(f"damaged ({' '.join(str(error).split())[:120]}); {_ARRAY}") from None


def _from_array(data: bytes) -> Trajectory:
    array = _array(data)
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[1:] not in ((4, 4), (3, 4)):
        raise PredictionError(f"holds {str(array.dtype)[:80]} {array.shape}; {_ARRAY}")
    if not len(array):
        raise PredictionError(f"holds no pose; {_ARRAY}")
    poses = array.astype(np.float64)
    _require_numbers(poses, _pose_label)
    if poses.shape[1] == 4:
        _require_last_row(poses, _pose_label)
    index = np.arange(len(poses))
    return Trajectory(index=index, times_s=None, world_T_camera=_rigid(poses[:, :3], _pose_label))


def _array(data: bytes) -> np.ndarray:
    """The array in the bytes of an .npy file.

    Not by numpy.load, which believes a header and makes room for what it claims. numpy.frombuffer only
    looks at the bytes that are there, and refuses objects.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"npy version {version[0]}.{version[1]}")
        shape, by_columns, dtype = _HEADERS[version](stream)
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError(f"{dtype} {shape} in {len(data) - stream.tell()} bytes")
        array = np.frombuffer(data, dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if by_columns else "C")
    except Exception as error:  # numpy's parser of headers lets errors of many kinds through
        reason = " ".join(str(error).split())[:120]
        raise PredictionError(f"no array of numbers, or damaged ({reason}); {_ARRAY}") from None


def _rigid(rows: np.ndarray, label: _Label) -> np.ndarray:
    """(N, 3, 4) -> (N, 4, 4) rigid motions; see the module for what happens to rotations."""
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows
    off = _deviation(poses, label) > ROUNDING
    poses[off, :3, :3] = nearest_rotation(poses[off, :3, :3])
    return poses


def _deviation(poses: np.ndarray, label: _Label) -> np.ndarray:
    """(N,) how far the rotation of each pose is from one; refuses what is none."""
    R = poses[:, :3, :3]
    off = np.abs(R.swapaxes(-1, -2) @ R - np.eye(3)).max(axis=(-1, -2))
    mirrored = np.linalg.det(R) < 0
    for row in np.flatnonzero((off > RIGID_TOLERANCE) | mirrored)[:1]:
        what = "mirrors" if mirrored[row] and off[row] <= RIGID_TOLERANCE else "is no rotation"
        raise PredictionError(
            f"{label(row)}: the pose's left 3x3 {what} (R^T R is off by {off[row]:.1e}); expected the rows of "
            "world_T_camera, a rotation and a position in the last column"
        )
    return off


def _require_last_row(poses: np.ndarray, label: _Label) -> None:
    for row in np.flatnonzero((poses[:, 3] != (0, 0, 0, 1)).any(axis=-1))[:1]:
        raise PredictionError(
            f"{label(row)}: the last row is {poses[row, 3].tolist()}, expected 0 0 0 1; positions belong "
            "into the last column of world_T_camera"
        )


def _require_numbers(values: np.ndarray, label: _Label) -> None:
    """Refuse what is not finite, or so large that its square is not; values by row."""
    good = np.abs(values) <= MAX_NUMBER  # false for NaN
    for row in np.flatnonzero(~good.reshape(len(values), -1).all(axis=-1))[:1]:
        raise PredictionError(
            f"{label(row)} holds a number that is not finite or above {MAX_NUMBER:g}; leave frames without "
            "a pose out, with the frame number (13 columns) or time (TUM) first"
        )


def _require_rising(values: np.ndarray, what: str, label: _Label) -> None:
    for row in np.flatnonzero(np.diff(values) <= 0)[:1] + 1:
        before, here = values[row - 1].item(), values[row].item()
        if here == before:
            raise PredictionError(f"{label(row)}: {what} {here} a second time; keep one pose of it")
        raise PredictionError(f"{label(row)}: {what} {here} after {before}; sort the poses")


def _nearest(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(N,) which of the rising `among` is nearest to each of `of`; the earlier of two equally near."""
    after = np.clip(np.searchsorted(among, of), 0, len(among) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(np.abs(of - among[before]) <= np.abs(among[after] - of), before, after)


def _pose_label(row: int) -> str:
    return f"pose {row} (from 0)"
