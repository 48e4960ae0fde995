"""The benchmark of the evaluators runs every case, and its inputs are what they claim to be."""

from __future__ import annotations

import pytest

from evaluation.benchmark import Setting, depth_maps, main, odometry_sequence, scene_flow_pairs
from evaluation.depth_protocols import DepthScore
from evaluation.scene_flow import SceneFlowScore
from evaluation.sequence_errors import SequenceSums

SMALL = Setting(depth_maps=3, poses=300, pairs=2, size=(124, 37), predicted=(83, 25), objects=2)


def test_every_case_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    main(SMALL)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert [int(line.split()[-3]) for line in lines[1:]] == [3, 300, 300, 2, 2]
    assert all(float(line.split()[-2]) >= 0 for line in lines[1:])


def test_all_images_poses_and_pairs_are_scored() -> None:
    depth, poses, flow = depth_maps(SMALL)(), odometry_sequence(SMALL)(), scene_flow_pairs(SMALL, "moved")()
    assert isinstance(depth, DepthScore)
    assert isinstance(poses, SequenceSums)
    assert isinstance(flow, SceneFlowScore)
    assert len(depth.scales) == 3
    assert poses.frames == 300
    assert poses.segments > 10
    assert flow.pairs == 2
    assert flow.d1.all.whole == 2 * 124 * 37
    assert flow.d1.foreground.whole > 0
