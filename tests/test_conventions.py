"""pipeline/CONVENTIONS.md, line by line."""

from __future__ import annotations

import ast
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline.camera import Camera, FrameTransform, pinhole
from pipeline.detections import Detections
from pipeline.flow import Flow, FlowConfig, compute_flow
from pipeline.masks import paste
from pipeline.matching import MaskConfig, match, select
from pipeline.shards.evidence import Overlaps
from pipeline.streetworld.truth import FLOW_VISIBLE, read_truth
from tests.conftest import ROOT
from training.geometry.camera import pixel_grid
from training.geometry.sampling import sample


def test_convention_the_origin_is_the_centre_of_the_top_left_pixel() -> None:
    # A box from edge to edge of one pixel covers that pixel and no other.
    patch = paste(np.full((1, 1), 255, np.uint8), np.array([-0.5, -0.5, 0.5, 0.5]), (4, 3))
    assert (patch.y0, patch.x0, patch.mask.tolist()) == (0, 0, [[True]])


def test_convention_the_box_of_a_whole_image_goes_from_edge_to_edge() -> None:
    width, height = 6, 4
    box = np.array([-0.5, -0.5, width - 0.5, height - 0.5])
    patch = paste(np.full((height, width), 255, np.uint8), box, (width, height))
    assert patch.mask.shape == (height, width)
    assert patch.mask.all()


def test_convention_resizing_maps_edges_to_edges() -> None:
    half = FrameTransform.cover((40, 20), (20, 10))
    np.testing.assert_allclose(half.points(np.array([-0.5, -0.5])), [-0.5, -0.5])
    np.testing.assert_allclose(half.points(np.array([39.5, 19.5])), [19.5, 9.5])
    np.testing.assert_allclose(half.points(np.array([0.5, 0.5])), [0, 0])  # 2x2 pixels become one


def test_convention_sizes_are_width_height_and_arrays_are_height_width() -> None:
    stored = FrameTransform.cover((40, 20), (20, 10)).apply(np.zeros((20, 40, 3), np.uint8))
    assert stored.shape == (10, 20, 3)


def test_convention_sampling_at_a_pixel_reads_that_pixel() -> None:
    image = torch.rand(1, 1, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(sample(image, pixel_grid(5, 9, like=image)[None]), image)


SAMPLERS = {"grid_sample", "affine_grid", "interpolate", "upsample", "Upsample", "UpsamplingBilinear2d"}


def test_convention_one_module_of_training_samples() -> None:
    users: dict[str, list[ast.Call]] = {}
    for path in sorted((ROOT / "training").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not SAMPLERS & {alias.name for alias in node.names}, f"{path} hides a sampler"
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in SAMPLERS:
                users.setdefault(str(path.relative_to(ROOT)), []).append(node)
    at_home = users.pop("training/geometry/sampling.py")
    corners = {
        keyword.value.value
        for call in at_home
        if getattr(call.func, "attr", "") == "grid_sample"
        for keyword in call.keywords
        if keyword.arg == "align_corners" and isinstance(keyword.value, ast.Constant)
    }
    assert corners == {True}
    # Features, not images, double each pixel inside the networks: no coordinates, nothing to shift.
    for call in users.pop("training/networks/layers.py", []):
        assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} == {
            "scale_factor": "2",
            "mode": "'nearest'",
        }
    assert not users


def test_convention_cameras_look_along_z_with_y_down() -> None:
    camera = Camera(K=pinhole(100, 100, 49.5, 24.5), size=(100, 50))
    u, v, w = camera.K @ np.array([1.0, 0.5, 10.0])
    assert (u / w, v / w) == (59.5, 29.5)  # right of and below the centre


def test_convention_flow_leads_from_a_to_b() -> None:
    rng = np.random.default_rng(0)
    a = cv2.GaussianBlur(rng.integers(0, 255, (96, 160, 3), np.uint8), (0, 0), 2)
    b = np.roll(a, (2, 5), axis=(0, 1))  # right by 5, down by 2
    flow = compute_flow(a, b, FlowConfig())
    np.testing.assert_allclose(np.median(flow.forward, axis=(0, 1)), [5, 2], atol=0.3)
    np.testing.assert_allclose(np.median(flow.backward, axis=(0, 1)), [-5, -2], atol=0.3)
    assert isinstance(flow, Flow)


def test_convention_poses_depth_and_flow_of_streetworld_agree(streets: Path) -> None:
    # X_world = world_T_camera X_camera; depth is z: so background pixels flow as they must.
    truth = read_truth(streets / "test_0000" / "truth.h5")
    height, width = truth.ids.shape[1:]
    v, u = np.mgrid[:height, :width]
    still = (truth.ids[0] == 0) & np.isfinite(truth.depth_m[0]) & ((truth.flow_state[0] & FLOW_VISIBLE) > 0)
    rays = np.linalg.inv(truth.K) @ np.stack([u, v, np.ones_like(u)]).reshape(3, -1)
    X = np.vstack([rays * truth.depth_m[0].reshape(1, -1), np.ones((1, height * width))])
    X = np.where(np.isfinite(X), X, 0)
    camera1_T_camera0 = np.linalg.inv(truth.world_T_camera[1]) @ truth.world_T_camera[0]
    x, y, z = truth.K @ (camera1_T_camera0 @ X)[:3]
    with np.errstate(divide="ignore", invalid="ignore"):
        flow = np.stack([x / z - u.ravel(), y / z - v.ravel()], axis=-1).reshape(height, width, 2)
    assert still.sum() > 1000
    assert np.abs(flow - truth.flow_px[0])[still].max() < 0.05


def test_convention_a_score_equal_to_its_threshold_is_kept_an_iou_is_not() -> None:
    one = Detections(
        boxes=np.array([[-0.5, -0.5, 9.5, 9.5]], np.float32),
        scores=np.array([0.5], np.float32),
        classes=np.array([2], np.uint8),
        masks=(np.full((10, 10), 255, np.uint8),),
    )
    assert len(select(one, (32, 32), MaskConfig(min_score=0.5))) == 1
    half = Overlaps(
        prev=np.zeros(1, np.uint16), next=np.zeros(1, np.uint16), pixels=np.array([[5, 10, 5, 10]], np.uint32)
    )
    assert len(match(np.array([0]), np.array([0]), half, 0.5).prev) == 0
    assert len(match(np.array([0]), np.array([0]), half, 0.499).prev) == 1


def test_convention_labels_begin_at_one_and_name_rows() -> None:
    two = Detections(
        boxes=np.array([[-0.5, -0.5, 9.5, 9.5], [19.5, -0.5, 29.5, 9.5]], np.float32),
        scores=np.array([0.6, 0.9], np.float32)[::-1],
        classes=np.array([2, 2], np.uint8),
        masks=(np.full((10, 10), 255, np.uint8),) * 2,
    )
    chosen = select(two, (32, 32), MaskConfig())
    assert np.unique(chosen.labels).tolist() == [0, 1, 2]
    for row in range(2):
        assert (chosen.labels == row + 1).sum() == chosen.area[row]
