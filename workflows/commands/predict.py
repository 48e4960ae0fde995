"""Predict depth, camera motion and object motions of a shard set with a trained run.

Writes one versioned file a clip (evaluation/PREDICTIONS.md), and for each clip the camera's
trajectory as KITTI and TUM text and the objects' motions as CSV and JSON. Frames are predicted
at the size that the shard set stores: give a set of the size that the run was trained at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from evaluation.predict import predict
from evaluation.predictions import read_clips
from evaluation.trajectories import chain, kitti_text, tracks_csv, tracks_json, tum_text
from pipeline.build import DEFAULT_LAYER
from pipeline.shards.hdf5 import publish


@dataclass(frozen=True)
class Arguments:
    checkpoint: tyro.conf.Positional[Path]
    """A run's folder (its best checkpoint, else its last), or a checkpoint."""
    shards: tyro.conf.Positional[Path]
    """Folder of the shard set."""
    out: tyro.conf.Positional[Path]
    """Folder for the predictions."""
    layer: str = DEFAULT_LAYER
    """Masks layer whose matched instances get a motion."""
    include: tuple[str, ...] = ()
    """Patterns (* ? [abc]) of clips to predict; none is all."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    depth_type: Literal["float16", "float32"] = "float16"
    """How inverse depth is stored."""
    align: bool = True
    """Move motions until the images agree, if the run was trained so; else as networks propose them."""
    quiet: bool = False
    """No progress bar."""


def run(arguments: Arguments) -> int:
    index = predict(
        arguments.checkpoint,
        arguments.shards,
        arguments.out,
        layer=arguments.layer,
        device=arguments.device,
        include=arguments.include,
        depth_type=arguments.depth_type,
        align=arguments.align,
        quiet=arguments.quiet,
    )
    frames = motions = 0
    for clip in read_clips(arguments.out):
        poses = chain(clip.later_T_earlier)
        for suffix, text in {
            "kitti.txt": kitti_text(poses),
            "tum.txt": tum_text(poses, clip.timestamps_s),
            "objects.csv": tracks_csv(clip),
            "objects.json": tracks_json(clip),
        }.items():
            publish(arguments.out / "text" / f"{clip.name}.{suffix}", text.encode())
        frames += len(clip)
        motions += len(clip.objects)
    print(f"{arguments.out}: {len(index.clips)} clips, {frames} frames, {motions} object motions")
    return 0
