"""Predictions on disk, version 1: what a network said about a clip (see PREDICTIONS.md).

A folder holds one HDF5 file a clip, `<clip name>.h5`, and `predictions.json`, written last.
`b_T_a` maps points of frame a to frame b. Depths and translations are in scene units: one
unknown scale, the same for all of a network's predictions as far as the network keeps it.

Imports numpy, and no network: predictions of any origin can be written and scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.classes import CLASSES
from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError, InstanceMotionError, ShardError
from pipeline.shards.blobs import BlobReader, blob_columns, blob_schema
from pipeline.shards.codec import decode_labels, encode_labels
from pipeline.shards.hdf5 import Column, Schema, file_image, open_checked, publish, read_column
from pipeline.shards.plain_hdf5 import PlainFile

FORMAT, VERSION = "instance-motion predictions", 1
INDEX = "predictions.json"
MAX_INDEX_BYTES = 1 << 26
AGAIN = "run `instance-motion predict` again"

RIGID_TOLERANCE = 1e-3
"""How far R^T R may be from the identity: single precision passes, another matrix does not."""


class PredictionError(InstanceMotionError, ValueError):
    """Predictions are missing, damaged, of another version, or contradict themselves."""


@dataclass(frozen=True, kw_only=True)
class ObjectMotions:
    """The object motions of a clip; M rows, by rising frame.

    frame:       (M,) int32, i: the motion is from frame i to frame i + 1
    slot:        (M,) int32, slot of the pair that the network was given, from 1
    label:       (M,) uint16, label of the object in the label map of frame i, from 1
    next_label:  (M,) uint16, its label in frame i + 1
    track:       (M,) uint32, id that stays with it over the clip
    class_index: (M,) uint8, index into `pipeline.classes.CLASSES`
    motion:      (M, 4, 4) float64, O: the object's points from time i to time i + 1, both seen from
                 the camera AT TIME i: X_{i+1} = later_T_earlier[i] @ O @ X_i
    centre:      (M, 3) float64, the point about which the object turns, in the camera at time i
    """

    frame: np.ndarray
    slot: np.ndarray
    label: np.ndarray
    next_label: np.ndarray
    track: np.ndarray
    class_index: np.ndarray
    motion: np.ndarray
    centre: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.frame)
        for name, column in _object_columns().items():
            shape, expected = getattr(self, name).shape, (count, *_row_shape(column))
            if shape != expected:
                raise PredictionError(f"object column {name} has shape {shape}, expected {expected}")
            limits = np.iinfo(column.dtype) if column.dtype[0] in "iu" else None
            values = getattr(self, name)
            if limits and count and not limits.min <= values.min() <= values.max() <= limits.max:
                raise PredictionError(f"object column {name} leaves the range of {np.dtype(column.dtype)}")
        _require_rigid("object motion", self.motion)
        if not np.isfinite(self.centre).all():
            raise PredictionError("object centres must be finite; check the depth that they come from")
        if (self.class_index >= len(CLASSES)).any():
            raise PredictionError(f"class indices must be below {len(CLASSES)} (pipeline.classes)")
        if (np.diff(self.frame.astype(np.int64)) < 0).any():
            raise PredictionError("object rows must stand in the order of their frames; sort them")

    def __len__(self) -> int:
        return len(self.frame)

    @staticmethod
    def join(parts: Sequence[ObjectMotions]) -> ObjectMotions:
        """The rows of all parts, one after the other."""
        names = _object_columns()
        return ObjectMotions(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        )

    @staticmethod
    def empty() -> ObjectMotions:
        """No object at all."""
        columns = _object_columns().items()
        return ObjectMotions(**{name: np.zeros((0, *_row_shape(c)), c.dtype) for name, c in columns})


@dataclass(frozen=True, kw_only=True)
class ClipPrediction:
    """What was predicted for a clip of N frames of W x H pixels.

    name:            clip name, as in its shard set
    inverse_depth:   (N, H, W) floating, 1 / z-depth, > 0, at the stored size
    labels:          (N, H, W) uint8 or uint16 label maps that object rows refer to, 0 = background
    later_T_earlier: (N - 1, 4, 4) float64 camera motion from frame i to i + 1, scene units
    objects:         motions of objects
    K:               (3, 3) float64 intrinsics, pixels of the stored frame
    timestamps_s:    (N,) float64, rising

    Raises:
        PredictionError: shapes disagree, a value is not finite, a matrix is no rigid motion, or an
            object row points to a frame or label that is not there.
    """

    name: str
    inverse_depth: np.ndarray
    labels: np.ndarray
    later_T_earlier: np.ndarray
    objects: ObjectMotions
    K: np.ndarray
    timestamps_s: np.ndarray

    def __post_init__(self) -> None:
        check_clip_name(self.name)
        if self.inverse_depth.ndim != 3 or not len(self.inverse_depth):
            raise PredictionError(
                f"{self.name}: inverse_depth is {self.inverse_depth.shape}, not (N, H, W) with N > 0"
            )
        count = len(self.inverse_depth)
        expected = {
            "labels": self.inverse_depth.shape,
            "later_T_earlier": (count - 1, 4, 4),
            "K": (3, 3),
            "timestamps_s": (count,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise PredictionError(f"{self.name}: {name} is {getattr(self, name).shape}, expected {shape}")
        if not (np.isfinite(self.inverse_depth).all() and (self.inverse_depth > 0).all()):
            raise PredictionError(f"{self.name}: inverse depth must be finite and above 0; check the network")
        if not (np.isfinite(self.K).all() and self.K[0, 0] > 0 and self.K[1, 1] > 0):
            raise PredictionError(f"{self.name}: K is no camera (focal lengths must be above 0)")
        if not (np.isfinite(self.timestamps_s).all() and (np.diff(self.timestamps_s) > 0).all()):
            raise PredictionError(f"{self.name}: timestamps must rise from frame to frame")
        _require_rigid(f"{self.name}: later_T_earlier", self.later_T_earlier)
        self._check_labels()

    def __len__(self) -> int:
        return len(self.inverse_depth)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.inverse_depth.shape[2], self.inverse_depth.shape[1]

    def depth(self, frame: int) -> np.ndarray:
        """(H, W) float64 z-depth of a frame, scene units."""
        return 1.0 / self.inverse_depth[frame].astype(np.float64)

    def _check_labels(self) -> None:
        if self.labels.dtype not in (np.uint8, np.uint16):
            raise PredictionError(f"{self.name}: labels are {self.labels.dtype}, expected uint8 or uint16")
        frames = self.objects.frame
        if len(frames) and not (frames[0] >= 0 and frames[-1] < len(self) - 1):
            raise PredictionError(f"{self.name}: an object row points to a pair of frames that is not there")
        for frame in np.unique(frames):
            rows = frames == frame
            for step, column in ((0, self.objects.label), (1, self.objects.next_label)):
                present = np.bincount(self.labels[frame + step].ravel(), minlength=1 << 16) > 0
                if not (present[column[rows]].all() and column[rows].all()):
                    raise PredictionError(
                        f"{self.name}: an object of pair {frame} has a label that frame {frame + step} lacks"
                    )


@dataclass(frozen=True, kw_only=True)
class PredictionIndex:
    """predictions.json: what all files of a folder have in common, and which clips there are.

    checkpoint: SHA-256 of the checkpoint, or another name of what predicted
    size:       (width, height) of all frames
    depth_type: how inverse depth is stored; float16 is right to 1 part in 2048
    clips:      clip names, in order
    """

    checkpoint: str
    size: tuple[int, int]
    depth_type: Literal["float16", "float32"] = "float16"
    clips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.size[0] <= 16384 and 0 < self.size[1] <= 16384):
            raise ConfigError(f"size {self.size[0]}x{self.size[1]}: expected sides in [1, 16384]")
        for name in self.clips:
            check_clip_name(name)


def write_clip(folder: Path, clip: ClipPrediction, index: PredictionIndex) -> Path:
    """Write the file of one clip whole or not at all; its path. `index.clips` need not list it yet."""
    if clip.size != index.size:
        raise PredictionError(f"{clip.name}: predicted at {clip.size}, the folder's size is {index.size}")
    stored = clip.inverse_depth.astype(index.depth_type)
    if not (np.isfinite(stored).all() and (stored > 0).all()):
        raise PredictionError(f"{clip.name}: inverse depth leaves the range of float16; store float32")
    objects = {f"object_{field.name}": getattr(clip.objects, field.name) for field in fields(ObjectMotions)}
    columns = {
        "inverse_depth": stored,
        "later_T_earlier": clip.later_T_earlier,
        "K": clip.K,
        "timestamps_s": clip.timestamps_s,
        **objects,
        **blob_columns("labels", [encode_labels(each.astype(np.uint16)) for each in clip.labels]),
    }
    path = clip_path(folder, clip.name)
    publish(path, file_image(_attributes(clip.name, index), columns, _schema(index.depth_type)))
    return path


def read_clip(folder: Path, name: str, index: PredictionIndex | None = None) -> ClipPrediction:
    """Read and check the predictions of one clip.

    Args:
        index: what the files must agree with; read from the folder if not given.

    Raises:
        PredictionError: missing, damaged, of another version, checkpoint or size.
    """
    index = index or read_index(folder)
    path = clip_path(folder, name)
    if not path.is_file():
        raise PredictionError(f"{path} is missing; {AGAIN}")
    try:
        with open_checked(path, _attributes(name, index), _schema(index.depth_type)) as file:
            return _read(file, name, index)
    except ShardError as error:
        reason = str(error).removeprefix(f"{path}: ").rsplit(";", 1)[0]
        raise PredictionError(f"{path}: {reason}; {AGAIN}") from None
    except PredictionError as error:
        raise PredictionError(f"{path}: {error}") from None


def read_clips(folder: Path) -> Iterator[ClipPrediction]:
    """All clips of a folder, one after the other, in the index's order."""
    index = read_index(folder)
    for name in index.clips:
        yield read_clip(folder, name, index)


def write_index(folder: Path, index: PredictionIndex) -> None:
    """Publish predictions.json, after the clips: a folder that has it is complete."""
    data = {"format": FORMAT, "version": VERSION, **to_dict(index)}
    publish(folder / INDEX, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def remove_index(folder: Path) -> None:
    """Take predictions.json away, before clips are replaced: a folder without it is not complete."""
    (folder / INDEX).unlink(missing_ok=True)
    for partial in folder.rglob(".*.partial"):  # a kill in the middle of a file
        partial.unlink(missing_ok=True)


def read_index(folder: Path) -> PredictionIndex:
    """Read and check predictions.json.

    Raises:
        PredictionError: no such file, unfinished predictions, another version, or damaged.
    """
    path = folder / INDEX
    if not path.is_file() or path.is_symlink():
        raise PredictionError(f"{folder}: no finished predictions ({INDEX} is missing); {AGAIN}")
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise PredictionError(f"{path}: larger than {MAX_INDEX_BYTES} bytes; this is no {INDEX}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, found {type(data).__name__}")
        found = data.pop("format", None), data.pop("version", None)
        if found != (FORMAT, VERSION):
            raise PredictionError(
                f"{path}: {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {VERSION}; {AGAIN}"
            )
        return from_dict(PredictionIndex, data, path.name)
    except PredictionError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise PredictionError(f"{path}: damaged ({' '.join(str(error).split())}); {AGAIN}") from None


def check_clip_name(name: str) -> None:
    """A clip name becomes a path below the folder, and must stay below it."""
    levels = name.split("/")
    if not all(level.strip(".") and level.isprintable() and "\\" not in level for level in levels):
        raise PredictionError(f"clip name {name[:60]!r} cannot be a file name; use the shard set's names")


def clip_path(folder: Path, name: str) -> Path:
    """The file of a clip."""
    check_clip_name(name)
    return folder / f"{name}.h5"


def _read(file: PlainFile, name: str, index: PredictionIndex) -> ClipPrediction:
    inverse_depth = read_column(file, "inverse_depth")
    if inverse_depth.shape[1:] != (index.size[1], index.size[0]):
        raise PredictionError(f"inverse depth is {inverse_depth.shape}, the size {index.size}; {AGAIN}")
    blobs = BlobReader.of(file, "labels", len(inverse_depth))
    labels = np.stack([decode_labels(blob, index.size, 2) for blob in blobs]) if len(blobs) else np.zeros(0)
    objects = ObjectMotions(
        **{field.name: read_column(file, f"object_{field.name}") for field in fields(ObjectMotions)}
    )
    return ClipPrediction(
        name=name,
        inverse_depth=inverse_depth,
        labels=labels,
        later_T_earlier=read_column(file, "later_T_earlier"),
        objects=objects,
        K=read_column(file, "K"),
        timestamps_s=read_column(file, "timestamps_s"),
    )


def _attributes(name: str, index: PredictionIndex) -> dict[str, str | int]:
    width, height = index.size
    return {
        "format": FORMAT,
        "version": VERSION,
        "clip": name,
        "checkpoint": index.checkpoint,
        "width": width,
        "height": height,
    }


def _schema(depth_type: str) -> Schema:
    return {
        "inverse_depth": Column(
            dtype={"float16": "f2", "float32": "f4"}[depth_type], shape=(None, None, None)
        ),
        "later_T_earlier": Column(dtype="f8", shape=(None, 4, 4)),
        "K": Column(dtype="f8", shape=(3, 3)),
        "timestamps_s": Column(dtype="f8", shape=(None,)),
        **{f"object_{name}": column for name, column in _object_columns().items()},
        **blob_schema("labels"),
    }


def _object_columns() -> dict[str, Column]:
    return {
        "frame": Column(dtype="i4", shape=(None,)),
        "slot": Column(dtype="i4", shape=(None,)),
        "label": Column(dtype="u2", shape=(None,)),
        "next_label": Column(dtype="u2", shape=(None,)),
        "track": Column(dtype="u4", shape=(None,)),
        "class_index": Column(dtype="u1", shape=(None,)),
        "motion": Column(dtype="f8", shape=(None, 4, 4)),
        "centre": Column(dtype="f8", shape=(None, 3)),
    }


def _row_shape(column: Column) -> tuple[int, ...]:
    """Shape of one row of a column."""
    return tuple(length or 0 for length in column.shape[1:])


def _require_rigid(name: str, motions: Any) -> None:
    """(..., 4, 4) must be rotations and translations."""
    if not np.isfinite(motions).all():
        raise PredictionError(f"{name} holds a value that is not finite; check the network")
    R = np.asarray(motions[..., :3, :3], np.float64)
    off = np.abs(np.swapaxes(R, -1, -2) @ R - np.eye(3)).max(initial=0)
    last_row = np.abs(motions[..., 3, :] - np.array([0, 0, 0, 1])).max(initial=0)
    if off > RIGID_TOLERANCE or last_row > 0 or (np.linalg.det(R) < 0).any():
        raise PredictionError(f"{name} is no rigid motion (R^T R is off by {off:.1e}); normalise it first")
