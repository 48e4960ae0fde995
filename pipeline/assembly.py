"""Pieces -> one frames file and one evidence file, with the steps between pieces closed.

A finished piece is kept under `.build/pieces` as a small frames file and a small evidence
file, so a kill loses only the pieces that were being worked on. The later piece, and the
later file, owns the step across a border.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.clip import FramesConfig, Piece, median_motion_px
from pipeline.errors import BuildError, ShardError
from pipeline.flow import FlowConfig, compute_flow, dequantise
from pipeline.matching import overlaps
from pipeline.plan import PlannedFile, PlannedPiece
from pipeline.shards.evidence import OVERLAP_PROBABILITY, EvidenceFile, FrameEvidence, encode_evidence
from pipeline.shards.frames import FramesFile, FramesTable, Segment, encode_frames
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import FileEntry, file_name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a set's files are, and what they state about themselves."""

    folder: Path
    set_id: str
    frames: FramesConfig
    flow: FlowConfig

    @property
    def work(self) -> Path:
        """Everything that is gone once the build is complete."""
        return self.folder / ".build"

    def piece_paths(self, piece: PlannedPiece) -> tuple[Path, Path]:
        """Frames and evidence of a piece, in the order in which they are written."""
        pieces = self.work / "pieces"
        return pieces / f"{piece.name}.frames.h5", pieces / f"{piece.name}.evidence.h5"

    def seal_path(self, piece: PlannedPiece) -> Path:
        """Written after both: their SHA-256. Only blobs carry checksums of their own, tables do not."""
        return self.work / "pieces" / f"{piece.name}.seal"


@dataclass(frozen=True, kw_only=True)
class FilePair:
    """What was published for one planned file."""

    frames: FileEntry
    evidence: FileEntry


@dataclass(frozen=True, kw_only=True)
class _StoredPiece:
    """A piece read back, with the two images that border on other pieces."""

    table: FramesTable
    evidence: list[FrameEvidence]
    first_image: np.ndarray
    last_image: np.ndarray


def write_piece(layout: Layout, planned: PlannedPiece, piece: Piece) -> None:
    """Publish a piece; its seal comes last and says that it is whole."""
    contents = _encode(layout, piece.frames, piece.evidence)
    for path, content in zip(layout.piece_paths(planned), contents, strict=True):
        publish(path, content)
    publish(layout.seal_path(planned), seal_of(contents))


def seal_of(contents: Sequence[bytes]) -> bytes:
    """What the seal of a piece says: SHA-256 of its frames and of its evidence, a line each."""
    return "".join(hashlib.sha256(content).hexdigest() + "\n" for content in contents).encode()


def is_written(layout: Layout, planned: PlannedPiece) -> bool:
    return all(path.is_file() for path in (*layout.piece_paths(planned), layout.seal_path(planned)))


def written_pieces(layout: Layout) -> set[str]:
    """Names of all pieces that are whole; one look at the folder, however many there are."""
    try:
        found = {entry.name for entry in os.scandir(layout.work / "pieces")}
    except FileNotFoundError:
        return set()
    sealed = {name.removesuffix(".seal") for name in found if name.endswith(".seal")}
    return {name for name in sealed if {f"{name}.frames.h5", f"{name}.evidence.h5"} <= found}


def remove_piece(layout: Layout, planned: PlannedPiece) -> None:
    for path in (layout.seal_path(planned), *layout.piece_paths(planned)):
        path.unlink(missing_ok=True)


def assemble(
    layout: Layout, planned: PlannedFile, pieces: Sequence[PlannedPiece], before: PlannedPiece | None
) -> FilePair:
    """Write the frames file and the evidence file of one planned file.

    Args:
        pieces: those of the file's pieces that go in, in order; all are written.
        before: the last piece of the file before, where this file begins within a clip.

    Raises:
        BuildError: a piece is damaged; it is removed, so that the next run makes it again.
    """
    previous = _read_piece(layout, before) if before is not None else None
    tables: list[FramesTable] = []
    evidence: list[FrameEvidence] = []
    for planned_piece in pieces:
        piece = _read_piece(layout, planned_piece)
        if planned_piece.start > 0 and previous is not None:
            piece = _close_step(layout, previous, piece)
        tables.append(piece.table)
        evidence += piece.evidence
        previous = piece

    def publish_as(layer: str, content: bytes) -> FileEntry:
        publish(layout.folder / layer / file_name(planned.index), content)
        return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), frames=len(evidence))

    frames_bytes, evidence_bytes = _encode(layout, _join(tables), evidence)
    return FilePair(
        frames=publish_as("frames", frames_bytes), evidence=publish_as("evidence", evidence_bytes)
    )


def _encode(layout: Layout, table: FramesTable, evidence: Sequence[FrameEvidence]) -> tuple[bytes, bytes]:
    config = layout.frames
    flow_shape = next((frame.flow.shape for frame in evidence if frame.flow is not None), None)
    frames = encode_frames(
        table,
        set_id=layout.set_id,
        codec=config.codec,
        size=config.size,
        static_below_px=config.static_below_px,
    )
    return frames, encode_evidence(evidence, set_id=layout.set_id, size=config.size, flow_shape=flow_shape)


def _read_piece(layout: Layout, planned: PlannedPiece) -> _StoredPiece:
    config = layout.frames
    frames_path, evidence_path = layout.piece_paths(planned)
    try:
        contents = [frames_path.read_bytes(), evidence_path.read_bytes()]
        if layout.seal_path(planned).read_bytes() != seal_of(contents):
            raise ShardError(f"{frames_path}: it or its evidence is damaged (SHA-256 differs)")
        frames = FramesFile(frames_path, set_id=layout.set_id, codec=config.codec, size=config.size)
        evidence = EvidenceFile(evidence_path, set_id=layout.set_id, size=config.size)
        rows = range(len(frames))
        piece = _StoredPiece(
            table=FramesTable(
                segments=frames.segments,
                images=tuple(frames.encoded(row) for row in rows),
                names=tuple(frames.name(row) for row in rows),
                timestamps_s=frames.timestamps_s,
                motion_px=frames.motion_px,
            ),
            evidence=[evidence[row] for row in rows],
            first_image=frames.image(0),
            last_image=frames.image(len(frames) - 1),
        )
    except (ShardError, IndexError, FileNotFoundError) as error:
        remove_piece(layout, planned)
        raise BuildError(f"{error}; the piece was removed: run the same build again") from None
    frames.close()
    evidence.close()
    return piece


def _close_step(layout: Layout, previous: _StoredPiece, piece: _StoredPiece) -> _StoredPiece:
    """Fill in overlaps and motion from the last frame of one piece into the first of the next."""
    first, size = piece.evidence[0], layout.frames.size
    if first.flow is not None:
        flow = dequantise(first.flow, size)
    else:
        flow = compute_flow(previous.last_image, piece.first_image, layout.flow)
    found = overlaps(previous.evidence[-1].detections, first.detections, flow, size, OVERLAP_PROBABILITY)
    motion_px = piece.table.motion_px.copy()
    motion_px[0] = median_motion_px(flow)
    return replace(
        piece,
        table=replace(piece.table, motion_px=motion_px),
        evidence=[replace(first, overlaps=found), *piece.evidence[1:]],
    )


def _join(tables: Sequence[FramesTable]) -> FramesTable:
    """One table; segments of one clip that follow each other become one."""
    segments: list[Segment] = []
    for segment in (segment for table in tables for segment in table.segments):
        last = segments[-1] if segments else None
        if last and last.clip == segment.clip and last.first + last.count == segment.first:
            segments[-1] = replace(last, count=last.count + segment.count)
        else:
            segments.append(segment)
    return FramesTable(
        segments=tuple(segments),
        images=tuple(image for table in tables for image in table.images),
        names=tuple(name for table in tables for name in table.names),
        timestamps_s=np.concatenate([table.timestamps_s for table in tables]),
        motion_px=np.concatenate([table.motion_px for table in tables]),
    )
