"""What a task takes along is as large for a data set of any size."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.assembly import Layout
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.flow import FlowConfig
from pipeline.mask_layer import jobs, select_file
from pipeline.matching import MaskConfig
from pipeline.plan import PlannedPiece
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, file_name, read_manifest
from pipeline.worker import PieceJob
from tests.faults.table import Fault
from tests.pipeline import poison


@pytest.mark.fault(Fault.MANY_TASKS)
def test_a_piece_of_a_long_clip_is_as_small_as_one_of_a_short_clip() -> None:
    layout = Layout(folder=Path("set"), set_id="e" * 64, frames=FramesConfig(), flow=FlowConfig())
    sizes = []
    for frames in (100, 100_000):
        clip = poison.clip("a", frames=frames)
        piece = PlannedPiece(clip_index=0, start=64, stop=96)
        job = PieceJob.of(layout, piece, clip, DetectorConfig())
        assert job.clip.frame_names == clip.frame_names[63:96]  # and the frame before
        sizes.append(len(pickle.dumps(job)))
    assert sizes[0] == sizes[1]


@pytest.mark.fault(Fault.MANY_TASKS)
def test_masks_of_a_file_need_the_manifest_of_that_file_only() -> None:
    def manifest(clips: int) -> Manifest:
        entry = FileEntry(sha256="0" * 64, bytes=1, frames=30)
        files = {file_name(index): entry for index in range(clips)}
        K = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        entries = tuple(
            ClipEntry(name=f"clip{i:05d}", frames=30, K=K, fingerprint="0" * 32, files=((i, 0, 30),))
            for i in range(clips)
        )
        return Manifest(
            set_id="0" * 64,
            size=(64, 32),
            codec="jpeg",
            classes=(),
            config={},
            clips=entries,
            quarantine=(),
            frames=files,
            evidence=files,
        )

    sizes = [len(pickle.dumps(jobs(Path("set"), manifest(clips), MaskConfig())[4])) for clips in (5, 2000)]
    assert sizes[1] <= sizes[0]  # the fifth file of two sets


def test_masks_of_a_file_come_out_as_with_the_whole_manifest(reference: Path) -> None:
    manifest = read_manifest(reference)
    several = [job for job in jobs(reference, manifest, MaskConfig()) if job.index]
    assert any(len(job.manifest.evidence) == 2 for job in several)  # a clip that goes on from the file before
    for job in several:
        small, whole = select_file(job), select_file(replace(job, manifest=manifest))
        assert len(small) == len(whole) > 0
        for a, b in zip(small, whole, strict=True):
            assert pickle.dumps(a) == pickle.dumps(b)
