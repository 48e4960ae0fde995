"""Evidence layer, version 1: what the networks saw, so that thresholds stay changeable.

Rows are the frames of the frames file of the same number. Blobs: `mask`, one per frame,
the mask grids of its detections one after the other (zstd); `flow`, one per frame, the
stored flow from the frame before (network flow only, else empty). Data sets:

    detection_offsets  int64   (N + 1,)  detections of frame n are rows [n], [n + 1] below
    detection_box      float32 (D, 4)    x0 y0 x1 y1, pixel edges in the stored frame
    detection_score    float32 (D,)
    detection_class    uint8   (D,)      index into the manifest's classes
    detection_grid     uint16  (D, 2)    rows and columns of the mask grid
    overlap_offsets    int64   (N + 1,)  overlaps of frame n with the frame before it
    overlap_prev       uint16  (M,)      detection in the frame before
    overlap_next       uint16  (M,)      detection in this frame
    overlap_pixels     uint32  (M, 4)    intersection and union counted on the pixels of the
                                         frame before, then on the pixels of this frame

The frame before the first frame of a file is the last one of the file before, if the clip
began there. Overlaps are counted at mask probability `OVERLAP_PROBABILITY`, only on pixels
whose flow agrees forward and backward; pairs below `OVERLAP_FLOOR` in IoU are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.detections import Detections
from pipeline.errors import ShardError
from pipeline.shards.blobs import BlobReader, blob_columns, blob_schema
from pipeline.shards.codec import compress, decode_grids, decompress, encode_grids
from pipeline.shards.hdf5 import Column, file_image, open_checked
from pipeline.shards.tables import RowTables, Tables, table_columns

FORMAT, VERSION = "instance-motion evidence", 1
OVERLAP_PROBABILITY = 0.5
OVERLAP_FLOOR = 0.1
SCHEMA = {
    **blob_schema("mask"),
    **blob_schema("flow"),
    "detection_offsets": Column(dtype="i8", shape=(None,)),
    "detection_box": Column(dtype="f4", shape=(None, 4)),
    "detection_score": Column(dtype="f4", shape=(None,)),
    "detection_class": Column(dtype="u1", shape=(None,)),
    "detection_grid": Column(dtype="u2", shape=(None, 2)),
    "overlap_offsets": Column(dtype="i8", shape=(None,)),
    "overlap_prev": Column(dtype="u2", shape=(None,)),
    "overlap_next": Column(dtype="u2", shape=(None,)),
    "overlap_pixels": Column(dtype="u4", shape=(None, 4)),
}
TABLES: Tables = {"detection": ("box", "score", "class", "grid"), "overlap": ("prev", "next", "pixels")}


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Overlapping detections of two neighbouring frames.

    prev, next: (M,) uint16, indices into the detections of the earlier and later frame
    pixels:     (M, 4) uint32, intersection and union on the earlier frame's pixels,
                intersection and union on the later frame's pixels
    """

    prev: np.ndarray
    next: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.prev)

    @property
    def iou(self) -> np.ndarray:
        """(M, 2) float64: IoU on the earlier and on the later frame's pixels."""
        counts = self.pixels.astype(np.float64).reshape(-1, 2, 2)
        return counts[..., 0] / np.maximum(counts[..., 1], 1)

    @staticmethod
    def empty() -> Overlaps:
        return Overlaps(
            prev=np.zeros(0, np.uint16), next=np.zeros(0, np.uint16), pixels=np.zeros((0, 4), np.uint32)
        )


@dataclass(frozen=True, kw_only=True)
class FrameEvidence:
    """What is known about one frame, and about its step from the frame before.

    flow: int16 as `pipeline.flow.quantise` gives it, None where flow is not kept
    """

    detections: Detections
    overlaps: Overlaps
    flow: np.ndarray | None = None


def encode_evidence(
    frames: Sequence[FrameEvidence], *, set_id: str, size: tuple[int, int], flow_shape: tuple[int, ...] | None
) -> bytes:
    """The bytes of an evidence file. `flow_shape`: shape of each kept flow, None if none is kept."""
    detections = [frame.detections for frame in frames]
    overlaps = [frame.overlaps for frame in frames]
    grids = [np.array([grid.shape for grid in each.masks], np.uint16).reshape(-1, 2) for each in detections]
    columns = {
        **blob_columns("mask", [encode_grids(each.masks) for each in detections]),
        **blob_columns("flow", [_encode_flow(frame.flow, flow_shape) for frame in frames]),
        **table_columns(
            "detection",
            {
                "box": [each.boxes for each in detections],
                "score": [each.scores for each in detections],
                "class": [each.classes for each in detections],
                "grid": grids,
            },
        ),
        **table_columns(
            "overlap",
            {
                "prev": [each.prev for each in overlaps],
                "next": [each.next for each in overlaps],
                "pixels": [each.pixels for each in overlaps],
            },
        ),
    }
    attributes: dict[str, str | int] = {
        "format": FORMAT,
        "version": VERSION,
        "set_id": set_id,
        "width": size[0],
        "height": size[1],
        "flow_shape": "x".join(map(str, flow_shape)) if flow_shape else "",
    }
    return file_image(attributes, columns, SCHEMA)


class EvidenceFile:
    """An open evidence file; small columns in memory, masks and flow read on demand."""

    def __init__(self, path: Path, *, set_id: str, size: tuple[int, int]) -> None:
        attributes: dict[str, str | int] = {
            "format": FORMAT,
            "version": VERSION,
            "set_id": set_id,
            "width": size[0],
            "height": size[1],
        }
        self._file = open_checked(path, attributes, SCHEMA)
        self.path, self.size = path, size
        count = self._file["detection_offsets"].shape[0] - 1
        self._tables = RowTables.of(self._file, TABLES, count)
        self._masks = BlobReader.of(self._file, "mask", count)
        self._flows = BlobReader.of(self._file, "flow", count)
        self.flow_shape = _flow_shape(path, str(self._file.attrs.get("flow_shape", "")), size)

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, row: int) -> FrameEvidence:
        return FrameEvidence(
            detections=self.detections(row), overlaps=self.overlaps(row), flow=self.flow(row)
        )

    @property
    def detection_count(self) -> int:
        """Raw detections of all frames."""
        return self._tables.count("detection")

    def detections(self, row: int) -> Detections:
        rows = self._tables.rows("detection", row)
        try:
            masks = decode_grids(self._masks[row], rows["grid"])
        except ShardError as error:
            raise ShardError(f"{self.path}: row {row}: {error}") from None
        return Detections(boxes=rows["box"], scores=rows["score"], classes=rows["class"], masks=masks)

    def overlaps(self, row: int) -> Overlaps:
        """Overlaps of frame `row` with the frame before it."""
        return Overlaps(**self._tables.rows("overlap", row))

    def flow(self, row: int) -> np.ndarray | None:
        """Kept flow from the frame before to frame `row`, int16, or None."""
        data = self._flows[row]
        if not data or self.flow_shape is None:
            return None
        raw = decompress(data, int(np.prod(self.flow_shape)) * 2)
        return np.frombuffer(raw, "<i2").reshape(self.flow_shape)

    def close(self) -> None:
        self._file.close()


def _encode_flow(flow: np.ndarray | None, shape: tuple[int, ...] | None) -> bytes:
    if flow is None:
        return b""
    if flow.shape != shape:
        raise ValueError(f"flow has shape {flow.shape}, expected {shape}")
    return compress(flow.astype("<i2").tobytes())


def _flow_shape(path: Path, text: str, size: tuple[int, int]) -> tuple[int, ...] | None:
    if not text:
        return None
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ShardError(f"{path}: flow_shape {text[:40]!r} is not four numbers; rebuild it")
    shape = tuple(int(part) for part in parts)
    if shape[0] != 2 or shape[3] != 2 or not (0 < shape[1] <= size[1] and 0 < shape[2] <= size[0]):
        raise ShardError(f"{path}: flow_shape {text} does not fit frames of {size[0]}x{size[1]}; rebuild it")
    return shape
