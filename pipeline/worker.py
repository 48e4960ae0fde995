"""What a worker process runs: one piece, or one file. Networks are loaded once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2

from pipeline.assembly import FilePair, Layout, assemble, write_piece
from pipeline.clip import Networks, process_piece
from pipeline.detectors import DetectorConfig, make_detector
from pipeline.flow import FlowConfig, load_flow_model
from pipeline.plan import PlannedFile, PlannedPiece
from pipeline.sources.clip import Clip


@dataclass(frozen=True, kw_only=True)
class PieceJob:
    """clip: the piece's frames, and the one before them where there is one."""

    layout: Layout
    piece: PlannedPiece
    clip: Clip
    detector: DetectorConfig

    @staticmethod
    def of(layout: Layout, piece: PlannedPiece, clip: Clip, detector: DetectorConfig) -> PieceJob:
        """The job for one piece of a whole clip; it is as large for a clip of any length."""
        part = clip.part(max(piece.start - 1, 0), piece.stop)
        return PieceJob(layout=layout, piece=piece, clip=part, detector=detector)


@dataclass(frozen=True, kw_only=True)
class PieceReport:
    """detections: raw ones; seconds: wall time per stage."""

    frames: int
    detections: int
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """pieces: those that go in; before: last piece of the file before, where the clip began there."""

    layout: Layout
    file: PlannedFile
    pieces: tuple[PlannedPiece, ...]
    before: PlannedPiece | None


def run_piece(job: PieceJob) -> PieceReport:
    """Work on one piece and publish it. Running it twice does no harm."""
    use_one_thread()
    networks = _networks(job.detector, job.layout.flow)
    layout, planned = job.layout, job.piece
    first = planned.stop - len(job.clip)
    piece = process_piece(
        job.clip,
        planned.start - first,
        planned.stop - first,
        layout.frames,
        layout.flow,
        networks,
        first=first,
    )
    write_piece(layout, planned, piece)
    detections = sum(len(frame.detections) for frame in piece.evidence)
    return PieceReport(frames=planned.stop - planned.start, detections=detections, seconds=piece.seconds)


def run_file(job: FileJob) -> FilePair:
    """Assemble one file and publish it."""
    use_one_thread()
    return assemble(job.layout, job.file, job.pieces, job.before)


def use_one_thread() -> None:
    """Results must not depend on how many workers share the cores, so each uses one thread."""
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@lru_cache(maxsize=1)
def _networks(detector: DetectorConfig, flow: FlowConfig) -> Networks:
    return Networks(
        detector=make_detector(detector),
        flow_model=load_flow_model(flow, _device(detector.device)),
        batch_size=detector.batch_size,
    )


def _device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
