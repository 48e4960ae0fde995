"""evaluate scene-flow: a made scene in KITTI 2015's files, scored from our predictions and from images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.predictions import ClipPrediction, PredictionIndex, write_clip, write_index
from evaluation.scene_flow import move
from tests.evaluation.made import object_rows, rigid
from tests.workflows.test_cli import run

Capture = pytest.CaptureFixture[str]
W, H, F, BASELINE = 120, 40, 80.0, 0.5
K = np.array([[F, 0, 59.5], [0, F, 19.5], [0, 0, 1]])
CAMERA, CAR = rigid((0, 0, -0.5)), rigid((0.4, 0, 0.6))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """(H, W) depth of a slanted road with a car on it, metres, and the car's mask."""
    depth = np.tile(np.linspace(30, 6, H)[:, None], (1, W))
    car = np.zeros((H, W), bool)
    car[10:30, 30:70] = True
    return np.where(car, 8.0, depth), car


def png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def disparity(depth: np.ndarray) -> np.ndarray:
    return np.round(256 * F * BASELINE / depth).astype(np.uint16)


def flow_png(flow: np.ndarray) -> np.ndarray:
    u, v = (np.round(64 * flow[..., k] + 2**15).astype(np.uint16) for k in (0, 1))
    return np.stack([np.ones_like(u), v, u], axis=-1)  # OpenCV writes B, G, R


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """Pairs 0 and 1 of the same made scene, in the benchmark's own files."""
    depth, car = scene()
    moved = move(depth, K, CAMERA, car.astype(np.int64), {1: CAR})
    root = tmp_path / "kitti" / "training"
    for pair in (0, 1):
        name = f"{pair:06d}_10.png"
        png(root / "image_2" / name, np.zeros((H, W, 3), np.uint8))
        png(root / "disp_occ_0" / name, disparity(depth))
        png(root / "disp_occ_1" / name, disparity(moved.depth))
        png(root / "flow_occ" / name, flow_png(moved.flow_px))
        png(root / "obj_map" / name, car.astype(np.uint8))
        rows = [" ".join(map(str, np.c_[K, [x, 0, 0]].ravel())) for x in (0.0, -F * BASELINE)]
        calibration = root / "calib_cam_to_cam" / f"{pair:06d}.txt"
        calibration.parent.mkdir(exist_ok=True)
        calibration.write_text(f"P_rect_02: {rows[0]}\nP_rect_03: {rows[1]}\n")
    return root.parent


def predictions(
    folder: Path, scale: float = 1.0, car: np.ndarray = CAR, columns: slice = slice(None)
) -> Path:
    """What a perfect network says of both pairs, in units of `scale` metres; `car` is the car's motion."""
    depth, mask = scene()
    inverse = (scale / depth)[:, columns]
    labels = mask.astype(np.uint16)[:, columns]

    def in_units(motion: np.ndarray) -> np.ndarray:
        motion = motion.copy()
        motion[:3, 3] /= scale
        return motion

    own_K = K.copy()
    own_K[0, 2] -= columns.start or 0
    index = PredictionIndex(
        checkpoint="made", size=(labels.shape[1], H), depth_type="float32", clips=("000000", "set/000001")
    )
    for name in index.clips:
        clip = ClipPrediction(
            name=name,
            inverse_depth=np.stack([inverse, inverse]),
            labels=np.stack([labels, labels]),
            later_T_earlier=in_units(CAMERA)[None],
            objects=object_rows((0, 1, 1, 1, in_units(car), (0.0, 0.0, 8.0))),
            K=own_K,
            timestamps_s=np.array([0.0, 0.1]),
        )
        write_clip(folder, clip, index)
    write_index(folder, index)
    return folder


def score(capsys: Capture, source: Path, kitti: Path, *options: str) -> dict[str, float | None]:
    command = ("evaluate", "scene-flow", str(source), str(kitti), "--json", "--pairs", "0", "1", "--quiet")
    code, printed, error = run(capsys, *command, *options)
    assert code == 0, error
    return {row["name"]: row["value"] for row in json.loads(printed)}


def test_a_perfect_prediction_has_no_outlier_at_any_scale(
    kitti: Path, tmp_path: Path, capsys: Capture
) -> None:
    own = predictions(tmp_path / "p", scale=10.0)
    for rule in ("median", "constant"):
        found = score(capsys, own, kitti, "--scale", rule)
        assert set(found.values()) == {0.0}, rule
    metric = score(capsys, own, kitti, "--scale", "metric")
    assert metric["D1, all"] == 100.0  # ten times every disparity
    assert metric["Fl, all"] == 0.0  # flow knows no scale


def test_a_car_without_its_own_motion_is_wrong_in_d2_and_flow_and_the_road_is_not(
    kitti: Path, tmp_path: Path, capsys: Capture
) -> None:
    found = score(capsys, predictions(tmp_path / "p", car=np.eye(4)), kitti)
    assert found["D1, fg"] == 0
    assert found["Fl, fg"] == 100.0
    assert found["SF, fg"] == 100.0
    assert found["Fl, bg"] == found["SF, bg"] == 0


def test_frames_that_were_cut_at_the_sides_are_put_where_they_belong(
    kitti: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Eight columns are missing on each side; the road's depth does not change along rows."""
    found = score(capsys, predictions(tmp_path / "p", columns=slice(8, W - 8)), kitti)
    assert found["D1, all"] == found["D1, fg"] == found["Fl, fg"] == 0


@pytest.mark.parametrize(("columns", "said"), [(slice(8, W - 8), True), (slice(None), False)])
def test_borders_that_were_not_predicted_are_in_the_protocol(
    columns: slice, said: bool, kitti: Path, tmp_path: Path, capsys: Capture
) -> None:
    own = predictions(tmp_path / "p", columns=columns)
    command = ("evaluate", "scene-flow", str(own), str(kitti), "--json", "--pairs", "0", "--quiet")
    rows = json.loads(run(capsys, *command)[1])
    assert all(("stored frames were cut" in row["protocol"]) == said for row in rows)


def test_images_as_for_a_submission(kitti: Path, tmp_path: Path, capsys: Capture) -> None:
    depth, car = scene()
    moved = move(depth, K, CAMERA, car.astype(np.int64), {1: CAR})
    given = tmp_path / "given"
    for pair in (0, 1):
        name = f"{pair:06d}_10.png"
        png(given / "disp_0" / name, disparity(depth))
        png(given / "disp_1" / name, np.where(car, 0, disparity(moved.depth)))
        png(given / "flow" / name, flow_png(moved.flow_px))
    found = score(capsys, given, kitti)
    assert found["D1, all"] == found["Fl, all"] == found["D2, bg"] == 0
    assert found["D2, fg"] == found["SF, fg"] == 100.0  # where nothing is given


def test_what_is_missing_is_one_line(kitti: Path, tmp_path: Path, capsys: Capture) -> None:
    own = predictions(tmp_path / "p")
    for arguments, code, message in (
        ((str(own), str(kitti)), 1, "no clip is pair 000002 (198 are missing)"),
        (
            (str(own), str(tmp_path), "--pairs", "0"),
            1,
            "holds no folder image_2; it comes with data_scene_flow.zip",
        ),
        ((str(tmp_path / "none"), str(kitti), "--pairs", "0"), 1, "write one for every pair"),
    ):
        found, _, error = run(capsys, "evaluate", "scene-flow", *arguments, "--quiet")
        assert (found, error.count("\n")) == (code, 1), error
        assert message in error
