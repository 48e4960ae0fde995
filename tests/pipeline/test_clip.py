"""Pieces, files and true masks: how work is cut changes nothing, and what comes out is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

from evaluation.tracks import figures
from pipeline.build import BuildConfig, build
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.errors import ConfigError
from pipeline.flow import FlowConfig
from pipeline.graph import GraphConfig
from pipeline.inspection import compare_layers, summarise
from pipeline.matching import MaskConfig
from pipeline.overlay import contact_sheet, overlay_frames, track_colour, write_picture, write_video
from pipeline.plan import PlanConfig
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from pipeline.sources.scan import SourceConfig
from pipeline.sources.video import VideoReader, probe
from pipeline.streetworld.truth import read_truth, write_label_images
from workflows.scoring_masks import score_masks, score_tracks

HERE = GraphConfig(workers=0)


@pytest.fixture(scope="module")
def true_masks(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    for clip in streets.iterdir():
        write_label_images(clip, folder / clip.name)
    return folder


def build_true(streets: Path, masks: Path, out: Path, plan: PlanConfig, **frames: object) -> ShardSet:
    config = BuildConfig(
        frames=FramesConfig(**{"size": (208, 64), **frames}),  # type: ignore[arg-type]
        detector=DetectorConfig(detector=f"masks:{masks}"),
        plan=plan,
        masks=MaskConfig(min_area=20),
    )
    build(streets, out, config, HERE, quiet=True)
    return ShardSet(out)


@pytest.fixture(scope="module")
def whole(streets: Path, true_masks: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Built in one piece a clip and one file."""
    return build_true(streets, true_masks, tmp_path_factory.mktemp("whole") / "set", PlanConfig())


@pytest.mark.parametrize("plan", [(2, 4), (3, 6), (5, 5)])
def test_how_work_is_cut_changes_no_image_no_match_and_no_track(
    streets: Path, true_masks: Path, whole: ShardSet, tmp_path: Path, plan: tuple[int, int]
) -> None:
    cut = build_true(
        streets, true_masks, tmp_path / "set", PlanConfig(frames_per_piece=plan[0], frames_per_file=plan[1])
    )
    assert len(cut.manifest.frames) > 1
    for a, b in zip(whole.manifest.clips, cut.manifest.clips, strict=True):
        for frame in range(a.frames):
            np.testing.assert_array_equal(whole.image(a, frame), cut.image(b, frame))
            assert whole.is_static(a, frame) == cut.is_static(b, frame)
            np.testing.assert_array_equal(
                whole.evidence(a, frame).overlaps.pixels, cut.evidence(b, frame).overlaps.pixels
            )
            np.testing.assert_array_equal(whole.labels("default", a, frame), cut.labels("default", b, frame))
            np.testing.assert_array_equal(
                whole.instances("default", a, frame).track, cut.instances("default", b, frame).track
            )
            assert (
                whole.pairs("default", a, frame).iou.tolist() == cut.pairs("default", b, frame).iou.tolist()
            )


def test_true_masks_come_out_as_they_went_in(streets: Path, whole: ShardSet) -> None:
    for clip in whole.manifest.clips:
        truth = read_truth(streets / clip.name / "truth.h5")
        np.testing.assert_allclose(clip.intrinsics, truth.K)
        for frame in range(clip.frames):
            labels = whole.labels("default", clip, frame)
            covered = truth.ids[frame][labels > 0]
            assert (covered > 0).all()
            for label in range(1, labels.max() + 1):
                assert len(np.unique(truth.ids[frame][labels == label])) == 1


def test_matches_of_true_masks_are_right(streets: Path, whole: ShardSet) -> None:
    counts = score_tracks(whole, streets, "default", 20)
    found = {each.name: each for each in figures(counts, "true masks")}
    assert counts.pairs > 40
    assert found["pair precision"].value > 0.99
    assert found["pair recall"].value > 0.85
    assert found["identity switches per object"].value < 0.3
    assert found["IDF1"].value > 0.9


def test_the_ap_of_true_masks_is_one(streets: Path, whole: ShardSet) -> None:
    for result in score_masks(whole, streets):
        assert not result.count or result.value > 0.999


def test_another_stored_size_moves_masks_and_intrinsics_together(
    streets: Path, true_masks: Path, tmp_path: Path
) -> None:
    shards = build_true(streets, true_masks, tmp_path / "set", PlanConfig(), size=(160, 64))
    clip = shards.manifest.clips[0]
    truth = read_truth(streets / clip.name / "truth.h5")
    assert clip.intrinsics[0, 2] == pytest.approx(truth.K[0, 2] - 24)  # 208 wide, cropped to 160
    expected = truth.ids[0][:, 24:184] > 0
    assert (
        expected != (shards.labels("default", clip, 0) > 0)
    ).sum() <= 60  # tiny and half hidden ones are dropped


def test_summary_and_comparison_count_what_is_there(whole: ShardSet) -> None:
    summary = summarise(whole)
    frames = [(clip, frame) for clip in whole.manifest.clips for frame in range(clip.frames)]
    instances = sum(len(whole.instances("default", clip, frame)) for clip, frame in frames)
    assert (summary.clips, summary.frames) == (3, 26)
    assert summary.masks["default"].instances == instances
    assert f"{instances} instances" in summary.table()
    remask(whole.folder, "large", MaskConfig(min_area=200), HERE, quiet=True)
    with ShardSet(whole.folder) as shards:
        same = compare_layers(shards, "default", "default")
        assert (same.changed_frames, same.settings) == (0, {})
        other = compare_layers(shards, "default", "large")
        assert other.settings == {"min_area": ("20", "200")}
        assert other.instances[1] < other.instances[0]
        assert 0 < other.changed_frames <= 26
        assert json.loads(json.dumps(other.settings))
        assert "instances" in other.table()


def test_pictures_and_videos_open_and_have_every_frame(whole: ShardSet, tmp_path: Path) -> None:
    clips = list(whole.manifest.clips)
    sheet = contact_sheet(whole, "default", clips)
    assert sheet.shape == (3 * 64, 3 * 208, 3)
    write_picture(tmp_path / "s.png", sheet)
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert write_video(tmp_path / "v.mp4", overlay_frames(whole, "default", clips), fps=10) == 26
    index = probe(tmp_path / "v.mp4")
    assert index.size == (208, 64)
    reader = VideoReader(path=tmp_path / "v.mp4", index=index, picks=np.arange(len(index.pts)))
    assert len(list(reader.frames(0, 26))) == 26


def test_neighbouring_tracks_have_colours_that_differ() -> None:
    colours = [np.array(track_colour(track)) for track in range(1, 30)]
    assert min(np.abs(a - b).max() for a, b in zip(colours, colours[1:], strict=False)) > 80


def test_network_flow_is_kept_and_remask_needs_no_network(
    streets: Path, true_masks: Path, tmp_path: Path
) -> None:
    # Random weights: nonsense flow, but kept flow is what matters here, also across pieces.
    weights = tmp_path / "raft.pth"
    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), weights)
    config = BuildConfig(
        source=SourceConfig(include=("test_0001",)),
        frames=FramesConfig(size=(208, 64)),
        detector=DetectorConfig(detector=f"masks:{true_masks}", device="cpu"),
        flow=FlowConfig(flow="raft", raft_weights=weights, raft_updates=1),
        plan=PlanConfig(frames_per_piece=2, frames_per_file=4),
        masks=MaskConfig(mask_probability=0.3, min_iou=0.2),
    )
    build(streets, tmp_path / "full", config, HERE, quiet=True)
    build(streets, tmp_path / "set", replace(config, masks=MaskConfig()), HERE, quiet=True)
    weights.unlink()
    remask(tmp_path / "set", "again", config.masks, HERE, quiet=True)
    for number in range(2):
        again = tmp_path / "set" / "masks" / "again" / f"{number:05d}.h5"
        assert (
            again.read_bytes() == (tmp_path / "full" / "masks" / "default" / f"{number:05d}.h5").read_bytes()
        )
    with ShardSet(tmp_path / "set") as shards:
        clip = shards.manifest.clips[0]
        assert [shards.evidence(clip, frame).flow is not None for frame in range(6)] == [False, *[True] * 5]


def test_impossible_frame_settings_are_refused() -> None:
    for wrong in ({"size": (8, 64)}, {"crop_anchor": 2.0}, {"quality": 0}, {"static_below_px": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FramesConfig(**wrong)  # type: ignore[arg-type]
