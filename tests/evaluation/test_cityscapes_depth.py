"""Cityscapes' true depth out of disparities, on paper and from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.ground_truth.cityscapes_depth import (
    StereoCamera,
    camera_path,
    cityscapes_depth,
    depth_of_disparity,
    read_stereo_camera,
)
from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.split_lists import CityscapesFrame

FRAME = CityscapesFrame(city="bonn", sequence=3, frame=19)
# As published.
CAMERA: dict[str, Any] = {
    "extrinsic": {
        "baseline": 0.222126,
        "pitch": 0.05,
        "roll": 0.0,
        "x": 1.7,
        "y": 0.026,
        "yaw": 0.0,
        "z": 1.18,
    },
    "intrinsic": {"fx": 2268.36, "fy": 2225.5405988775956, "u0": 1048.64, "v0": 519.277},
}


def stereo(baseline_m: float = 0.25, fx: float = 2048.0) -> StereoCamera:
    return StereoCamera(baseline_m=baseline_m, K=np.array([[fx, 0, 0], [0, fx, 0], [0, 0, 1]]))


def test_depth_is_baseline_times_focal_length_over_disparity() -> None:
    # p = 8193: d = 8192 / 256 = 32 px; 0.25 m * 2048 px / 32 px = 16 m. p = 2: d = 1/256 px.
    depth = depth_of_disparity(np.array([[8193, 2, 257]], np.uint16), stereo())
    assert depth.dtype == np.float32
    assert depth.tolist() == [[16, 512 * 256, 512]]


def test_no_measurement_and_infinitely_far_are_no_truth() -> None:
    with np.errstate(all="raise"):
        assert depth_of_disparity(np.array([[0, 1]], np.uint16), stereo()).tolist() == [[0, 0]]


def write(root: Path, disparity: np.ndarray, camera: object = CAMERA) -> Path:
    path = root / "disparity" / "test" / "bonn" / "bonn_000003_000019_disparity.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", disparity)[1].tobytes())
    file = camera_path(root, FRAME)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(camera))
    return file


def test_each_image_has_a_camera_of_its_own(tmp_path: Path) -> None:
    stored = np.array([[0, 257, 2561]], np.uint16)
    file = write(tmp_path, stored)
    assert file == tmp_path / "camera/test/bonn/bonn_000003_000019_camera.json"
    expected = 0.222126 * 2268.36
    np.testing.assert_allclose(cityscapes_depth(tmp_path, FRAME), [[0, expected, expected / 10]], rtol=1e-6)
    other = {**CAMERA, "extrinsic": {"baseline": 0.111063}}
    write(tmp_path, stored, other)
    np.testing.assert_allclose(cityscapes_depth(tmp_path, FRAME)[0, 1], expected / 2, rtol=1e-6)
    assert read_stereo_camera(file).K.tolist() == [
        [2268.36, 0, 1048.64], [0, 2225.5405988775956, 519.277], [0, 0, 1]
    ]  # fmt: skip


def test_what_is_missing_is_named_with_its_download(tmp_path: Path) -> None:
    with pytest.raises(GroundTruthError, match=r"_camera.json: missing; .*camera_trainvaltest.zip"):
        cityscapes_depth(tmp_path, FRAME)
    write(tmp_path, np.zeros((2, 2), np.uint16))
    with pytest.raises(GroundTruthError, match=r"camera/val/.*: missing"):
        cityscapes_depth(tmp_path, FRAME, "val")
    (tmp_path / "disparity/test/bonn/bonn_000003_000019_disparity.png").unlink()
    with pytest.raises(GroundTruthError, match=r"_disparity.png: missing; .*disparity_trainvaltest.zip"):
        cityscapes_depth(tmp_path, FRAME)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ([], "holds no extrinsic baseline"),
        ({"extrinsic": CAMERA["extrinsic"]}, "holds no extrinsic baseline"),
        ({**CAMERA, "extrinsic": {"baseline": "wide"}}, "holds no extrinsic baseline"),
        ({**CAMERA, "extrinsic": {"baseline": 0}}, "are no camera's"),
        ({**CAMERA, "extrinsic": {"baseline": float("nan")}}, "are no camera's"),
        ({**CAMERA, "intrinsic": {"fx": -1, "fy": 1, "u0": 1, "v0": 1}}, "are no camera's"),
    ],
)
def test_a_camera_file_that_holds_no_camera_is_refused(camera: object, message: str, tmp_path: Path) -> None:
    write(tmp_path, np.zeros((2, 2), np.uint16), camera)
    with pytest.raises(GroundTruthError, match=message) as found:
        cityscapes_depth(tmp_path, FRAME)
    assert "\n" not in str(found.value)


def test_a_disparity_of_eight_bits_is_refused(tmp_path: Path) -> None:
    write(tmp_path, np.zeros((2, 2), np.uint8))
    with pytest.raises(GroundTruthError, match="expected 16-bit grey"):
        cityscapes_depth(tmp_path, FRAME)
