"""Faults inside clips: quarantine what is bad, finish the rest, end when nothing can go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.assembly import Layout, is_written
from pipeline.build import BuildConfig
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.evidence_build import EvidenceBuild, EvidenceResult
from pipeline.flow import FlowConfig
from pipeline.graph import GraphConfig, open_graph
from pipeline.plan import PlanConfig, plan_files
from pipeline.progress import Progress
from pipeline.sources.clip import Clip
from tests.faults.table import Fault
from tests.pipeline import poison


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    """A detector without a network: masks that exist already, here none for any frame but one."""
    masks = tmp_path / "masks.json"
    masks.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a/000000.png", "width": 64, "height": 48}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [4, 4, 20, 20], "area": 400,
                     "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}
                ],
                "categories": [{"id": 1, "name": "car"}],
            }
        )
    )  # fmt: skip
    return BuildConfig(
        frames=FramesConfig(size=poison.SIZE),
        detector=DetectorConfig(detector=f"masks:{masks}"),
        plan=PlanConfig(frames_per_piece=2, frames_per_file=4),
    )


def run(
    out: Path, clips: Sequence[Clip], config: BuildConfig, workers: int
) -> tuple[EvidenceBuild, EvidenceResult]:
    layout = Layout(folder=out, set_id="e" * 64, frames=config.frames, flow=FlowConfig())
    files = plan_files([len(clip) for clip in clips], config.plan)
    work = EvidenceBuild(layout, clips, files, config, needs_gpu=False)
    with (
        open_graph(GraphConfig(workers=workers)) as graph,
        Progress("t", work.frames_total, quiet=True) as bar,
    ):
        return work, work.run(graph, bar)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("fault", ["damage", "bug"])
def test_a_bad_clip_is_quarantined_and_the_rest_goes_on(
    tmp_path: Path, config: BuildConfig, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [poison.clip("a"), poison.clip("bad", fault), poison.clip("c")]
    work, result = run(tmp_path / "out", clips, config, workers=0)
    assert list(result.failed) == ["bad"]
    assert set(work.placement(result.failed)) == {"a", "c"}
    # 6 frames in files of 4: two files a clip; none of the bad clip's is left
    assert sorted(result.files) == [0, 1, 4, 5]
    assert len(list((tmp_path / "out" / "frames").iterdir())) == 4
    errors = capsys.readouterr().err
    assert ("Traceback" in errors) == (fault == "bug")  # an unknown error shows where it came from


@pytest.mark.fault(Fault.POISON_CLIP)
def test_a_clip_that_kills_its_workers_is_quarantined(tmp_path: Path, config: BuildConfig) -> None:
    clips = [poison.clip("a"), poison.clip("bad", "kill"), poison.clip("c")]
    _, result = run(tmp_path / "out", clips, config, workers=2)
    assert list(result.failed) == ["bad"]
    assert "workers died" in result.failed["bad"]
    assert sorted(result.files) == [0, 1, 4, 5]


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_short_bad_clip_leaves_its_file_to_the_others_and_is_tried_again(
    tmp_path: Path, config: BuildConfig
) -> None:
    out = tmp_path / "out"
    config = BuildConfig(frames=config.frames, detector=config.detector, plan=PlanConfig(frames_per_piece=2))
    clips = [poison.clip("a"), poison.clip("bad", "damage"), poison.clip("c")]
    work, result = run(out, clips, config, workers=0)
    assert work.placement(result.failed) == {"a": ((0, 0, 6),), "c": ((0, 6, 6),)}
    assert result.files[0].frames.frames == 12

    mended = [poison.clip("a"), poison.clip("bad"), poison.clip("c")]
    work, result = run(out, mended, config, workers=0)
    assert not result.failed
    assert result.worked_frames == 4  # piece 0-1 of the bad clip was fine the first time
    assert work.placement({}) == {"a": ((0, 0, 6),), "bad": ((0, 6, 6),), "c": ((0, 12, 6),)}
    layout = Layout(folder=out, set_id="e" * 64, frames=config.frames, flow=FlowConfig())
    assert not any(is_written(layout, piece) for piece in plan_files([6, 6, 6], config.plan)[0].pieces(2))


@pytest.mark.fault(Fault.BIT_ROT)
def test_a_damaged_piece_is_removed_and_made_again(tmp_path: Path, config: BuildConfig) -> None:
    out = tmp_path / "out"
    config = BuildConfig(frames=config.frames, detector=config.detector, plan=PlanConfig(frames_per_piece=2))
    clips = [poison.clip("a"), poison.clip("bad", "damage")]
    run(out, clips, config, workers=0)
    piece = next((out / ".build" / "pieces").glob("000000-*.evidence.h5"))
    piece.write_bytes(piece.read_bytes()[:-40])
    with pytest.raises(Exception, match="piece was removed: run the same build again"):
        run(out, clips, config, workers=0)
    _, result = run(out, clips, config, workers=0)
    assert result.files[0].frames.frames == 6
