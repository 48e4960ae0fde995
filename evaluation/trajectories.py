"""The camera's path out of predicted motions, as KITTI or TUM text.

The world is the first camera: x right, y down, z forward, scene units. A network's motions are
chained, so errors add up along the way, and the scale is the network's.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def chain(later_T_earlier: np.ndarray) -> np.ndarray:
    """(N - 1, 4, 4) motions between neighbouring frames -> (N, 4, 4) world_T_camera, the first = 1.

    world_T_camera[i + 1] = world_T_camera[i] inv(later_T_earlier[i])
    """
    poses = np.tile(np.eye(4), (len(later_T_earlier) + 1, 1, 1))
    for i, motion in enumerate(later_T_earlier):
        # Rotations come from single precision; left alone, their error would grow along the chain.
        R = nearest_rotation(motion[:3, :3])
        poses[i + 1, :3, :3] = poses[i, :3, :3] @ R.T
        poses[i + 1, :3, 3] = poses[i, :3, 3] - poses[i + 1, :3, :3] @ motion[:3, 3]
    return poses


def nearest_rotation(R: np.ndarray) -> np.ndarray:
    """The rotation nearest to a (..., 3, 3) matrix (Frobenius norm), by its singular vectors."""
    U, _, Vt = np.linalg.svd(np.asarray(R, np.float64))
    sign = np.linalg.det(U @ Vt)
    U[..., :, -1] *= sign[..., None]
    return U @ Vt


def kitti_text(world_T_camera: np.ndarray) -> str:
    """KITTI odometry's poses: a line a frame, the 12 numbers of the upper 3x4 rows of world_T_camera."""
    return "".join(" ".join(f"{v:.9e}" for v in pose[:3].ravel()) + "\n" for pose in world_T_camera)


def tum_text(world_T_camera: np.ndarray, timestamps_s: np.ndarray) -> str:
    """TUM's trajectory: `time tx ty tz qx qy qz qw` a line, of world_T_camera."""
    lines = []
    for time_s, pose in zip(timestamps_s, world_T_camera, strict=True):
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True)
        lines.append(f"{time_s:.6f} " + " ".join(f"{v:.9f}" for v in (*pose[:3, 3], *quaternion)))
    return "".join(f"{line}\n" for line in lines)
