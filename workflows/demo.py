"""From any video and a trained run to a video that shows what was understood, and to numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluation.object_steps import object_steps
from evaluation.predict import predict
from evaluation.predictions import ClipPrediction, read_clips
from pipeline.build import BuildConfig, BuildReport, build
from pipeline.clip import FramesConfig
from pipeline.graph import GraphConfig
from pipeline.overlay import write_video
from pipeline.progress import Bar
from pipeline.shards.reader import ShardSet
from training.checkpoint import checkpoint_in, load
from workflows.clip_text import write_clip_text
from workflows.demo_picture import demo_frames

STORED_WIDTH = 832
"""Frames are stored about so wide, however small the run was trained: motions are aligned there."""


def make_demo(
    video: Path,
    checkpoint: Path,
    out: Path,
    settings: BuildConfig,
    graph: GraphConfig,
    *,
    size: tuple[int, int] | None = None,
    scale_m: float | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> tuple[BuildReport, list[Path]]:
    """Shards, predictions, text and a video of every clip, into OUT; what is built already is kept.

    Args:
        settings: of the shard set; its frame size is `size`, else the run's training size enlarged.
        scale_m:  metres a scene unit, None where it is unknown.

    Returns:
        what `build` did, and the videos.
    """
    stored = size or stored_size(load(checkpoint_in(checkpoint)).config.data.size)
    settings = replace(settings, frames=replace(settings.frames, size=stored))
    report = build(video, out / "shards", settings, graph, quiet=quiet)
    predict(checkpoint, out / "shards", out / "predictions", device=device, quiet=quiet)
    return report, show(out / "shards", out / "predictions", out, scale_m=scale_m, quiet=quiet)


def show(
    shards: Path, predictions: Path, out: Path, *, scale_m: float | None = None, quiet: bool = False
) -> list[Path]:
    """Write OUT/<clip name>.mp4 and the clip's text, of every clip; the videos' paths."""
    videos = []
    for clip in read_clips(predictions):
        write_clip_text(out, clip, scale_m)
        with (
            ShardSet(shards) as opened,
            Bar(total=len(clip), unit="frame", desc="draw", disable=quiet) as bar,
        ):
            frames = _drawn(opened, clip, scale_m, bar)
            videos.append(out / f"{clip.name}.mp4")
            write_video(videos[-1], frames, frames_per_second(clip))
    return videos


def stored_size(trained: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) at which a demo stores frames: the training size, enlarged a whole number of times."""
    if trained is None:
        return FramesConfig().size
    factor = max(1, round(STORED_WIDTH / trained[0]))
    return trained[0] * factor, trained[1] * factor


def frames_per_second(clip: ClipPrediction) -> float:
    """The clip's own rate; 1 where it is a single frame."""
    steps = np.diff(clip.timestamps_s)
    return float(np.clip(1 / np.median(steps), 0.1, 120)) if len(steps) else 1.0


def _drawn(shards: ShardSet, clip: ClipPrediction, scale_m: float | None, bar: Bar) -> Iterator[np.ndarray]:
    entry = shards.clip(clip.name)
    steps = object_steps(clip, scale_m)
    for picture in demo_frames(clip, steps, lambda frame: shards.image(entry, frame), scale_m):
        yield picture
        bar.update()
