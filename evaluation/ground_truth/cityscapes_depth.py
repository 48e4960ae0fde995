"""Cityscapes' true depth, out of its stereo disparities and each image's own camera.

    <root>/disparity/<split>/<city>/<city>_<sequence>_<frame>_disparity.png   uint16, 0 = none
    <root>/camera/<split>/<city>/<city>_<sequence>_<frame>_camera.json        baseline, fx, fy, u0, v0

The disparity is d = (p - 1) / 256 pixels for p > 0, and depth = baseline fx / d. It comes from
semi-global matching: dense, and wrong where such matching is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.kitti_depth import read_uint16_png
from evaluation.ground_truth.split_lists import CityscapesFrame

STEPS_PER_PX = 256
_DISPARITY = "it comes with Cityscapes' disparity_trainvaltest.zip"
_CAMERA = "it comes with Cityscapes' camera_trainvaltest.zip"


@dataclass(frozen=True, kw_only=True)
class StereoCamera:
    """The left camera of a stereo pair.

    baseline_m: distance of the two cameras, metres
    K:          (3, 3) float64 intrinsics, pixels of the full 2048x1024 image
    """

    baseline_m: float
    K: np.ndarray


def cityscapes_depth(root: Path, frame: CityscapesFrame, split: str = "test") -> np.ndarray:
    """(H, W) float32 true depth of an image, metres; 0 = none.

    Args:
        root:  folder that holds disparity/ and camera/.
        split: train, val or test.

    Raises:
        GroundTruthError: disparity or camera is missing (where it comes from) or damaged.
    """
    camera = read_stereo_camera(camera_path(root, frame, split))
    disparity = root / "disparity" / split / frame.city / f"{frame.stem}_disparity.png"
    return depth_of_disparity(read_uint16_png(disparity, _DISPARITY), camera)


def camera_path(root: Path, frame: CityscapesFrame, split: str = "test") -> Path:
    """The camera file of an image."""
    return root / "camera" / split / frame.city / f"{frame.stem}_camera.json"


def depth_of_disparity(stored: np.ndarray, camera: StereoCamera) -> np.ndarray:
    """(H, W) uint16 as stored -> (H, W) float32 depth, metres, 0 = none.

    depth = baseline fx / d with d = (p - 1) / 256. p = 0 is no measurement, and p = 1 (d = 0) is
    infinitely far, which no error can be told of: both are 0.
    """
    disparity_px = (stored.astype(np.float64) - 1) / STEPS_PER_PX
    depth_m = np.zeros(stored.shape)
    np.divide(camera.baseline_m * camera.K[0, 0], disparity_px, out=depth_m, where=disparity_px > 0)
    return depth_m.astype(np.float32)


def read_stereo_camera(path: Path) -> StereoCamera:
    """Baseline and intrinsics of a camera file.

    Raises:
        GroundTruthError: missing (where it comes from), damaged, or a value that no camera has.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        baseline_m = float(data["extrinsic"]["baseline"])
        fx, fy, u0, v0 = (float(data["intrinsic"][key]) for key in ("fx", "fy", "u0", "v0"))
    except FileNotFoundError:
        raise GroundTruthError(f"{path}: missing; {_CAMERA}") from None
    except OSError as error:
        raise GroundTruthError(f"{path}: cannot be read ({error.strerror}); {_CAMERA}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GroundTruthError(
            f"{path}: holds no extrinsic baseline with intrinsic fx, fy, u0, v0; {_CAMERA}"
        ) from None
    K = np.array([[fx, 0, u0], [0, fy, v0], [0, 0, 1]], np.float64)
    if not (np.isfinite(K).all() and min(fx, fy) > 0 and 0 < baseline_m < np.inf):
        raise GroundTruthError(
            f"{path}: baseline {baseline_m:g} m and fx {fx:g}, fy {fy:g} px are no camera's; unpack it again"
        )
    return StereoCamera(baseline_m=baseline_m, K=K)
