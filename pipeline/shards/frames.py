"""Frames layer, version 1: images, cameras and times of the frames of one file.

A file holds segments: runs of consecutive frames of one clip. Rows are frames, segments
one after the other. Blobs: `image` and `name`, one per frame, and `clip`, the clip's name, one
per segment. Data sets:

    timestamps_s   float64 (N,)       strictly increasing within a segment, seconds
    motion_px      float32 (N,)       median optical flow from the frame before, stored pixels;
                                      NaN at the first frame of a clip
    static         uint8   (N,)       1: nothing moved since the frame before (motion_px below
                                      the threshold of the build)
    segment_first  int64   (S,)       index in its clip of the segment's first frame
    segment_count  int64   (S,)       number of frames
    segment_K      float64 (S, 3, 3)  intrinsics for the stored size, pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.blobs import BlobReader, blob_columns, blob_schema
from pipeline.shards.codec import ImageCodec, decode_image
from pipeline.shards.hdf5 import Column, file_image, open_checked, read_column

FORMAT, VERSION = "instance-motion frames", 1
SCHEMA = {
    **blob_schema("image"),
    **blob_schema("name"),
    **blob_schema("clip"),
    "timestamps_s": Column(dtype="f8", shape=(None,)),
    "motion_px": Column(dtype="f4", shape=(None,)),
    "static": Column(dtype="u1", shape=(None,)),
    "segment_first": Column(dtype="i8", shape=(None,)),
    "segment_count": Column(dtype="i8", shape=(None,)),
    "segment_K": Column(dtype="f8", shape=(None, 3, 3)),
}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Frames first..first+count-1 of one clip, which stand together in one file."""

    clip: str
    first: int
    count: int
    K: np.ndarray


@dataclass(frozen=True, kw_only=True)
class FramesTable:
    """Content of one frames file.

    images:       N encoded images
    names:        N frame names
    timestamps_s: (N,) float64
    motion_px:    (N,) float32
    """

    segments: tuple[Segment, ...]
    images: tuple[bytes, ...]
    names: tuple[str, ...]
    timestamps_s: np.ndarray
    motion_px: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def encode_frames(
    table: FramesTable, *, set_id: str, codec: ImageCodec, size: tuple[int, int], static_below_px: float
) -> bytes:
    """The bytes of a frames file."""
    motion_px = table.motion_px.astype(np.float32)
    columns = {
        **blob_columns("image", table.images),
        **blob_columns("name", [name.encode() for name in table.names]),
        **blob_columns("clip", [segment.clip.encode() for segment in table.segments]),
        "timestamps_s": table.timestamps_s,
        "motion_px": motion_px,
        "static": (motion_px < static_below_px).astype(np.uint8),  # NaN compares false
        "segment_first": np.array([segment.first for segment in table.segments], np.int64),
        "segment_count": np.array([segment.count for segment in table.segments], np.int64),
        "segment_K": np.array([segment.K for segment in table.segments], np.float64).reshape(-1, 3, 3),
    }
    attributes: dict[str, str | int] = {
        "format": FORMAT,
        "version": VERSION,
        "set_id": set_id,
        "codec": codec,
        "width": size[0],
        "height": size[1],
    }
    return file_image(attributes, columns, SCHEMA)


class FramesFile:
    """An open frames file. Open one per process; handles must not cross a fork."""

    def __init__(self, path: Path, *, set_id: str, codec: ImageCodec, size: tuple[int, int]) -> None:
        expected: dict[str, str | int] = {
            "format": FORMAT,
            "version": VERSION,
            "set_id": set_id,
            "codec": codec,
        }
        self._file = open_checked(path, {**expected, "width": size[0], "height": size[1]}, SCHEMA)
        self.path, self.codec, self.size = path, codec, size
        self.timestamps_s: np.ndarray = read_column(self._file, "timestamps_s")
        self.motion_px: np.ndarray = read_column(self._file, "motion_px")
        self.static: np.ndarray = read_column(self._file, "static").astype(bool)
        self._images = BlobReader.of(self._file, "image", len(self))
        self._names = BlobReader.of(self._file, "name", len(self))
        if not len(self.motion_px) == len(self.static) == len(self) == sum(s.count for s in self.segments):
            raise ShardError(f"{path}: columns and segments disagree about the number of frames; rebuild it")

    def __len__(self) -> int:
        return len(self.timestamps_s)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        columns = [read_column(self._file, f"segment_{name}") for name in ("first", "count", "K")]
        if len({len(column) for column in columns}) != 1:
            raise ShardError(f"{self.path}: segment columns differ in length; rebuild it")
        first, count, K = columns
        if (first < 0).any() or (count < 1).any() or not np.isfinite(K).all():
            raise ShardError(f"{self.path}: a segment's first frame, count or K cannot be; rebuild it")
        names = BlobReader.of(self._file, "clip", len(columns[0]))
        return tuple(
            Segment(clip=_text(name), first=int(first), count=int(count), K=K)
            for name, first, count, K in zip(names, *columns, strict=True)
        )

    def encoded(self, row: int) -> bytes:
        """The stored bytes of one image, checksum verified."""
        return self._images[row]

    def image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        try:
            return decode_image(self._images[row], self.codec, self.size)
        except ShardError as error:
            raise ShardError(f"{self.path}: row {row}: {error}") from None

    def name(self, row: int) -> str:
        return _text(self._names[row])

    def close(self) -> None:
        self._file.close()


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
