"""Predict depth, camera motion and object motions of a shard set with a trained run.

Writes one versioned file a clip (evaluation/PREDICTIONS.md), and for each clip the camera's
trajectory as KITTI and TUM text and the objects' motions as CSV and JSON. Networks see frames at the
size that the run was trained at; depth is written at the stored size, and where that is the larger one
motions are aligned there once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from evaluation.predict import predict
from evaluation.predictions import read_clips
from pipeline.mask_layer import DEFAULT_LAYER
from workflows.clip_text import write_clip_text
from workflows.locations import ShardLocation


@dataclass(frozen=True)
class Arguments:
    checkpoint: tyro.conf.Positional[Path]
    """A run's folder (its best checkpoint, else its last), or a checkpoint."""
    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
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
    scale_m: float | None = None
    """Metres a scene unit, for the text files; none: they are in scene units."""
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
        write_clip_text(arguments.out / "text", clip, arguments.scale_m)
        frames += len(clip)
        motions += len(clip.objects)
    print(f"{arguments.out}: {len(index.clips)} clips, {frames} frames, {motions} object motions")
    return 0
