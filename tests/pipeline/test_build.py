"""Whole builds by the real command: both laws, kills, full disks, bad clips, two writers, clusters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.build import BuildConfig
from pipeline.build import build as build_set
from pipeline.clip import FramesConfig
from pipeline.flow import FlowConfig, compute_flow
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig, overlaps
from pipeline.plan import PlanConfig
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from tests.builds import CUT, SIZE, build, contents, run


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    """The reference, to be changed by a test."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))


def test_the_reference_is_whole_and_not_empty(reference: Path) -> None:
    done = run("verify", reference, "--quiet", workers=None)
    assert done.returncode == 0, done.stdout
    assert not (reference / ".build").exists()
    summary = json.loads(run("inspect", reference, "--json", workers=None).stdout)
    assert summary["frames"] == 26
    assert summary["raw_detections"] > 26
    assert summary["masks"]["default"]["instances"] > 10


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(
    streets: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    build(streets, tmp_path / "set", workers=workers)
    assert contents(tmp_path / "set") == contents(reference)


def test_a_finished_build_does_nothing_and_other_settings_are_refused(streets: Path, reference: Path) -> None:
    before = contents(reference)
    again = run("build", streets, reference, *SIZE, *CUT, "--quiet")
    assert again.returncode == 0
    assert "no frame was left to work on" in again.stdout
    other = run("build", streets, reference, "--size", "416", "128", *CUT, "--quiet")
    assert other.returncode == 1
    assert "built from other input or settings" in other.stderr
    masks = run("build", streets, reference, *SIZE, *CUT, "--quiet", "--min-score", "0.7")
    assert masks.returncode == 1
    assert "remask" in masks.stderr
    assert contents(reference) == before


GRID = {
    "score": MaskConfig(min_score=0.3),
    "strict-score": MaskConfig(min_score=0.9),
    "wide-masks": MaskConfig(mask_probability=0.25),
    "narrow-masks": MaskConfig(mask_probability=0.8),
    "people": MaskConfig(classes=("person",)),
    "large": MaskConfig(min_area=200),
    "iou": MaskConfig(min_iou=0.75),
    "few": MaskConfig(max_instances=2, max_gap=0),
    "all-at-once": MaskConfig(
        min_score=0.2,
        mask_probability=0.4,
        min_area=20,
        min_iou=0.3,
        max_hidden=0.9,
        classes=("car",),
        max_gap=5,
    ),
}


@pytest.mark.parametrize("setting", GRID)
def test_remask_gives_the_bytes_of_a_full_build(
    streets: Path, copy: Path, tmp_path: Path, setting: str
) -> None:
    here = GraphConfig(workers=0)
    config = BuildConfig(
        frames=FramesConfig(size=(208, 64)),
        plan=PlanConfig(frames_per_piece=3, frames_per_file=6),
        masks=GRID[setting],
    )
    threads = torch.get_num_threads()
    build_set(streets, tmp_path / "full", config, here, quiet=True)
    torch.set_num_threads(threads)
    remask(copy, setting, GRID[setting], here, quiet=True)
    assert contents(tmp_path / "full", "frames", "evidence") == contents(copy, "frames", "evidence")
    full = contents(tmp_path / "full", "masks/default")
    remasked = contents(copy, f"masks/{setting}")
    assert list(full.values()) == list(remasked.values())
    assert list(remasked.values()) != list(contents(copy, "masks/default").values())


def test_another_mask_probability_counts_the_overlaps_again(copy: Path) -> None:
    remask(copy, "wide", MaskConfig(mask_probability=0.2), GraphConfig(workers=0), quiet=True)
    compared = 0
    with ShardSet(copy) as shards:
        for clip in shards.manifest.clips:
            for frame in range(1, clip.frames):
                before, here = (shards.evidence(clip, each).detections for each in (frame - 1, frame))
                flow = compute_flow(shards.image(clip, frame - 1), shards.image(clip, frame), FlowConfig())
                table = overlaps(before, here, flow, shards.manifest.size, 0.2)
                iou = {
                    (int(a), int(b)): both
                    for a, b, both in zip(table.prev, table.next, table.iou, strict=True)
                }
                pairs = shards.pairs("wide", clip, frame)
                rows = [shards.instances("wide", clip, each).detection for each in (frame - 1, frame)]
                for a, b, found in zip(pairs.prev, pairs.next, pairs.iou, strict=True):
                    expected = iou[int(rows[0][a - 1]), int(rows[1][b - 1])]
                    np.testing.assert_allclose(found, expected, rtol=1e-6)
                    compared += 1
    assert compared > 5


def test_remask_keeps_a_layer_with_the_same_settings_and_guards_one_with_others(copy: Path) -> None:
    same = run("remask", copy, "--name", "default", "--quiet")
    assert same.returncode == 0
    other = run("remask", copy, "--name", "default", "--min-score", "0.6", "--quiet")
    assert other.returncode == 1
    assert "has a masks layer 'default' with other settings" in other.stderr
    outside = run("remask", copy, "--name", "../x", "--quiet")
    assert outside.returncode == 2
    assert not (copy / "masks" / "x").exists()


def test_nothing_usable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("build", tmp_path / "empty", tmp_path / "set", "--quiet")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    missing = run("build", tmp_path / "nowhere", tmp_path / "set", "--quiet")
    assert missing.returncode == 1
    assert "does not exist" in missing.stderr
