"""Predictions made by hand, for the tests of this folder."""

from __future__ import annotations

import numpy as np

from evaluation.odometry import inverse, relative_motions
from evaluation.predictions import ClipPrediction, ObjectMotions
from pipeline.classes import CLASS_INDEX
from pipeline.streetworld.truth import Truth

SKY_M = 1000.0


def rigid(
    translation: tuple[float, float, float] = (0, 0, 0), yaw_deg: float = 0.0, pitch_deg: float = 0.0
) -> np.ndarray:
    """(4, 4) motion: about y, then about x, then moved."""
    a, b = np.radians([yaw_deg, pitch_deg])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    motion = np.eye(4)
    motion[:3, :3] = about_x @ about_y
    motion[:3, 3] = translation
    return motion


def object_rows(*rows: tuple[int, int, int, int, np.ndarray, tuple[float, float, float]]) -> ObjectMotions:
    """Rows (frame, label, next label, track, motion, centre); cars."""
    if not rows:
        return ObjectMotions.empty()
    frame, label, next_label, track, motion, centre = zip(*rows, strict=True)
    return ObjectMotions(
        frame=np.array(frame, np.int32),
        slot=np.ones(len(rows), np.int32),
        label=np.array(label, np.uint16),
        next_label=np.array(next_label, np.uint16),
        track=np.array(track, np.uint32),
        class_index=np.full(len(rows), CLASS_INDEX["car"], np.uint8),
        motion=np.stack(motion),
        centre=np.array(centre, np.float64),
    )


def small_prediction(name: str = "drive/a 1") -> ClipPrediction:
    """Three frames of 6 x 4 with one car that moves 1 forward and turns by 90 deg, seen in all of them."""
    labels = np.zeros((3, 4, 6), np.uint8)
    labels[:, 1:3, 2:4] = 3
    forward = rigid((0, 0, -2))
    return ClipPrediction(
        name=name,
        inverse_depth=np.linspace(0.01, 2, 3 * 4 * 6).reshape(3, 4, 6),
        labels=labels,
        later_T_earlier=np.stack([forward, forward @ rigid(yaw_deg=90)]),
        objects=object_rows(
            (0, 3, 3, 7, rigid((0, 0, 1)), (1, 0, 5)), (1, 3, 3, 7, rigid((0, 0, 0), 90), (0, 0, 4))
        ),
        K=np.array([[5.0, 0, 2.5], [0, 5, 1.5], [0, 0, 1]]),
        timestamps_s=np.array([0.0, 0.1, 0.3]),
    )


def truth_as_prediction(truth: Truth, name: str, scale: float = 1.0) -> ClipPrediction:
    """What a perfect network would say, with lengths divided by `scale`."""

    def in_units(motion: np.ndarray) -> np.ndarray:
        scaled = motion.copy()
        scaled[..., :3, 3] /= scale
        return scaled

    rows = []
    for i in range(len(truth) - 1):
        camera = truth.world_T_camera[i]
        now, then = truth.objects.world_T_object[i], truth.objects.world_T_object[i + 1]
        motions = in_units(inverse(camera) @ then @ inverse(now) @ camera)
        for o, k in enumerate(truth.objects.id.tolist()):
            if (truth.ids[i] == k).any() and (truth.ids[i + 1] == k).any():
                rows.append((i, k, k, k, motions[o], (0.0, 0.0, 0.0)))
    depth = np.where(np.isfinite(truth.depth_m), truth.depth_m, SKY_M)
    return ClipPrediction(
        name=name,
        inverse_depth=scale / depth.astype(np.float64),
        labels=truth.ids,
        later_T_earlier=in_units(relative_motions(truth.world_T_camera)),
        objects=object_rows(*rows),
        K=truth.K,
        timestamps_s=truth.timestamps_s,
    )
