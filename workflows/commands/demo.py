"""Unified visual odometry of any video: what moves, and how, as a video and as numbers.

    instance-motion demo drive.mp4 --checkpoint runs/first --out demo --fov-deg 60

Builds a shard set of the video, predicts, and writes for each clip OUT/<clip>.mp4 (frame with outlined
instances, depth, and the world from above) and its camera trajectory and object motions as text. Running it
again goes on where it was stopped. What it shows is what the run learned: give a run of similar video.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from pipeline.build import BuildConfig
from pipeline.detectors import DetectorConfig
from pipeline.errors import ConfigError
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.sources.scan import SourceConfig


@dataclass(frozen=True)
class Arguments:
    video: tyro.conf.Positional[Path]
    """Video file, or anything else that `build` reads."""
    checkpoint: Path
    """A run's folder (its best checkpoint, else its last), or a checkpoint."""
    out: Path
    """Folder for videos, text, shards and predictions."""
    scale_m: float | None = None
    """Metres a scene unit, where known; else everything is in scene units."""
    size: tuple[int, int] | None = None
    """Width and height of stored frames; none: the run's training size, enlarged."""
    source: SourceConfig = field(default_factory=SourceConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if self.scale_m is not None and not self.scale_m > 0:
            raise ConfigError(f"scale_m must be positive, got {self.scale_m}")


def run(arguments: Arguments) -> int:
    from workflows.demo import make_demo  # torch loads only when needed

    settings = BuildConfig(source=arguments.source, detector=arguments.detector, masks=arguments.masks)
    report, videos = make_demo(
        arguments.video,
        arguments.checkpoint,
        arguments.out,
        settings,
        arguments.graph,
        size=arguments.size,
        scale_m=arguments.scale_m,
        device=arguments.detector.device,
        quiet=arguments.quiet,
    )
    for video in videos:
        print(video)
    for entry in report.quarantine:
        print(f"left out: {entry.clip}: {entry.reason}")
    return 1 if report.quarantine else 0
