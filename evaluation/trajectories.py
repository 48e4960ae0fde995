"""Trajectories out of predictions: the camera's path as KITTI or TUM text, objects as CSV or JSON.

The world is the first camera: x right, y down, z forward, scene units. A network's motions are
chained, so errors add up along the way, and the scale is the network's.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from evaluation.predictions import ClipPrediction
from pipeline.classes import CLASSES

TRACKS_FORMAT, TRACKS_VERSION = "instance-motion object tracks", 1
UNITS = "scene units, seconds, degrees; world = camera of the first frame (x right, y down, z forward)"
CSV_COLUMNS = (
    *("frame", "time_s", "track", "class", "label", "next_label"),
    *("x", "y", "z", "world_x", "world_y", "world_z"),
    *("move_x", "move_y", "move_z", "rotation_deg", "speed_per_s"),
)


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


def tracks_csv(clip: ClipPrediction) -> str:
    """One line an object and pair of frames.

    x, y, z: its centre at time i in camera i; world_*: the same in the first camera; move_*: what
    its centre moves from time i to i + 1, in the axes of camera i; rotation_deg: angle of its own
    rotation; speed_per_s: length of the move over the time between the frames.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in _rows(clip):
        numbers = (
            *row["centre"],
            *row["world_centre"],
            *row["move"],
            row["rotation_deg"],
            row["speed_per_s"],
        )
        head = (
            row["frame"],
            f"{row['time_s']:.6f}",
            row["track"],
            row["class"],
            row["label"],
            row["next_label"],
        )
        writer.writerow((*head, *(f"{v:.6g}" for v in numbers)))
    return out.getvalue()


def tracks_json(clip: ClipPrediction) -> str:
    """The same by track, with each motion's matrix O (seen from the camera at time i)."""
    tracks: dict[int, dict[str, Any]] = {}
    for row in _rows(clip):
        track = tracks.setdefault(row["track"], {"track": row["track"], "class": row["class"], "steps": []})
        track["steps"].append({k: v for k, v in row.items() if k not in ("track", "class")})
    data = {
        "format": TRACKS_FORMAT,
        "version": TRACKS_VERSION,
        "clip": clip.name,
        "units": UNITS,
        "tracks": [tracks[key] for key in sorted(tracks)],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _rows(clip: ClipPrediction) -> Iterator[dict[str, Any]]:
    poses, objects = chain(clip.later_T_earlier), clip.objects
    for n, i in enumerate(objects.frame.tolist()):
        motion, centre = objects.motion[n], objects.centre[n]
        move = motion[:3, :3] @ centre + motion[:3, 3] - centre
        angle = Rotation.from_matrix(nearest_rotation(motion[:3, :3])).magnitude()
        yield {
            "frame": i,
            "time_s": float(clip.timestamps_s[i]),
            "track": int(objects.track[n]),
            "class": CLASSES[objects.class_index[n]],
            "label": int(objects.label[n]),
            "next_label": int(objects.next_label[n]),
            "centre": centre.tolist(),
            "world_centre": (poses[i, :3, :3] @ centre + poses[i, :3, 3]).tolist(),
            "move": move.tolist(),
            "rotation_deg": float(np.degrees(angle)),
            "speed_per_s": float(np.linalg.norm(move) / (clip.timestamps_s[i + 1] - clip.timestamps_s[i])),
            "motion": motion.tolist(),
        }
