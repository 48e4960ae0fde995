"""Masks layer, version 1: instances under one MaskConfig, matched and tracked.

Rows are the frames of the frames file of the same number. Blob `labels`, one per frame:
the label map (zstd); label 0 is background, label n is row n - 1 of the frame's instances.

    label_bytes       uint8   (N,)       1 or 2 bytes per label
    instance_offsets  int64   (N + 1,)   instances of frame n are rows [n], [n + 1] below
    instance_track    uint32  (I,)       track id, from 1, one object over its whole clip
    instance_class    uint8   (I,)       index into the manifest's classes
    instance_score    float32 (I,)
    instance_area     uint32  (I,)       pixels with this label
    instance_box      float32 (I, 4)     x0 y0 x1 y1, pixel edges, tight around those pixels
    instance_detection uint16 (I,)       row of the frame's detections in the evidence layer
    pair_offsets      int64   (N + 1,)   matches of frame n with the frame before it
    pair_prev         uint16  (P,)       label in the frame before
    pair_next         uint16  (P,)       label in this frame
    pair_iou          float32 (P, 2)     IoU on the pixels of the frame before, of this frame
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.blobs import BlobReader, blob_columns, blob_schema
from pipeline.shards.codec import decode_labels
from pipeline.shards.hdf5 import Column, file_image, open_checked, read_column
from pipeline.shards.tables import RowTables, Tables, table_columns

FORMAT, VERSION = "instance-motion masks", 1
SCHEMA = {
    **blob_schema("labels"),
    "label_bytes": Column(dtype="u1", shape=(None,)),
    "instance_offsets": Column(dtype="i8", shape=(None,)),
    "instance_track": Column(dtype="u4", shape=(None,)),
    "instance_class": Column(dtype="u1", shape=(None,)),
    "instance_score": Column(dtype="f4", shape=(None,)),
    "instance_area": Column(dtype="u4", shape=(None,)),
    "instance_box": Column(dtype="f4", shape=(None, 4)),
    "instance_detection": Column(dtype="u2", shape=(None,)),
    "pair_offsets": Column(dtype="i8", shape=(None,)),
    "pair_prev": Column(dtype="u2", shape=(None,)),
    "pair_next": Column(dtype="u2", shape=(None,)),
    "pair_iou": Column(dtype="f4", shape=(None, 2)),
}
TABLES: Tables = {
    "instance": ("track", "class", "score", "area", "box", "detection"),
    "pair": ("prev", "next", "iou"),
}


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Instances of one frame; row n has label n + 1. Fields as in the module's table."""

    track: np.ndarray
    class_index: np.ndarray
    score: np.ndarray
    area: np.ndarray
    box: np.ndarray
    detection: np.ndarray

    def __len__(self) -> int:
        return len(self.track)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Directly matched instances of a frame and the frame before it.

    prev, next: (P,) uint16 labels; iou: (P, 2) float32, on the earlier and later frame's pixels
    """

    prev: np.ndarray
    next: np.ndarray
    iou: np.ndarray

    def __len__(self) -> int:
        return len(self.prev)

    @staticmethod
    def empty() -> Pairs:
        return Pairs(
            prev=np.zeros(0, np.uint16), next=np.zeros(0, np.uint16), iou=np.zeros((0, 2), np.float32)
        )


@dataclass(frozen=True, kw_only=True)
class FrameMasks:
    """One frame of the masks layer; `labels` is encoded with `label_bytes` bytes a pixel."""

    labels: bytes
    label_bytes: int
    instances: Instances
    pairs: Pairs


def encode_masks(
    frames: Sequence[FrameMasks],
    *,
    set_id: str,
    mask_digest: str,
    evidence_sha256: str,
    size: tuple[int, int],
) -> bytes:
    """The bytes of a masks file."""
    instances, pairs = [frame.instances for frame in frames], [frame.pairs for frame in frames]
    columns = {
        **blob_columns("labels", [frame.labels for frame in frames]),
        "label_bytes": np.array([frame.label_bytes for frame in frames], np.uint8),
        **table_columns(
            "instance",
            {
                "track": [each.track for each in instances],
                "class": [each.class_index for each in instances],
                "score": [each.score for each in instances],
                "area": [each.area for each in instances],
                "box": [each.box for each in instances],
                "detection": [each.detection for each in instances],
            },
        ),
        **table_columns(
            "pair",
            {
                "prev": [each.prev for each in pairs],
                "next": [each.next for each in pairs],
                "iou": [each.iou for each in pairs],
            },
        ),
    }
    attributes: dict[str, str | int] = {
        "format": FORMAT,
        "version": VERSION,
        "set_id": set_id,
        "mask_digest": mask_digest,
        "evidence_sha256": evidence_sha256,
        "width": size[0],
        "height": size[1],
    }
    return file_image(attributes, columns, SCHEMA)


class MasksFile:
    """An open masks file; tables in memory, label maps read on demand."""

    def __init__(self, path: Path, *, set_id: str, mask_digest: str, size: tuple[int, int]) -> None:
        attributes: dict[str, str | int] = {"format": FORMAT, "version": VERSION, "set_id": set_id}
        attributes["mask_digest"] = mask_digest
        self._file = open_checked(path, {**attributes, "width": size[0], "height": size[1]}, SCHEMA)
        self.path, self.size = path, size
        self.evidence_sha256 = str(self._file.attrs.get("evidence_sha256", ""))
        self._label_bytes = read_column(self._file, "label_bytes")
        if not np.isin(self._label_bytes, (1, 2)).all():
            raise ShardError(f"{path}: label_bytes holds something other than 1 and 2; rebuild it")
        self._tables = RowTables.of(self._file, TABLES, len(self._label_bytes))
        self._labels = BlobReader.of(self._file, "labels", len(self._label_bytes))

    def __len__(self) -> int:
        return len(self._labels)

    def encoded(self, row: int) -> bytes:
        """The stored bytes of one label map, checksum verified."""
        return self._labels[row]

    def labels(self, row: int) -> np.ndarray:
        """(H, W) uint8 or uint16 label map of frame `row`."""
        try:
            return decode_labels(self._labels[row], self.size, int(self._label_bytes[row]))
        except ShardError as error:
            raise ShardError(f"{self.path}: row {row}: {error}") from None

    def instances(self, row: int) -> Instances:
        rows = self._tables.rows("instance", row)
        return Instances(class_index=rows.pop("class"), **rows)

    def pairs(self, row: int) -> Pairs:
        """Matches of frame `row` with the frame before it."""
        return Pairs(**self._tables.rows("pair", row))

    def close(self) -> None:
        self._file.close()
