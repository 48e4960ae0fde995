"""A clip's predictions as text files: trajectory (KITTI, TUM) and object motions (CSV, JSON)."""

from __future__ import annotations

from pathlib import Path

from evaluation.object_steps import object_steps
from evaluation.object_tracks import tracks_csv, tracks_json
from evaluation.predictions import ClipPrediction
from evaluation.trajectories import chain, kitti_text, tum_text
from pipeline.shards.hdf5 import publish


def write_clip_text(folder: Path, clip: ClipPrediction, scale_m: float | None) -> None:
    """Write FOLDER/<clip name>.kitti.txt, .tum.txt, .objects.csv and .objects.json.

    Args:
        scale_m: metres a scene unit; None: everything is in scene units.
    """
    poses, steps = chain(clip.later_T_earlier), object_steps(clip, scale_m)
    poses[:, :3, 3] *= scale_m or 1.0
    unit = "scene" if scale_m is None else "m"
    for suffix, text in {
        "kitti.txt": kitti_text(poses),
        "tum.txt": tum_text(poses, clip.timestamps_s),
        "objects.csv": tracks_csv(steps, unit),
        "objects.json": tracks_json(steps, clip.name, unit),
    }.items():
        publish(folder / f"{clip.name}.{suffix}", text.encode())
