"""Render synthetic streets with exact truth: OUT/SPLIT/SPLIT_NNNN/ holds video, camera and truth.

Clip n of a split always shows the same seed, so names are a benchmark. Clips that are there
already are kept. The format of the truth is in pipeline/streetworld/TRUTH.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from workflows.streetworld import Split, render


@dataclass(frozen=True)
class Arguments:
    out: tyro.conf.Positional[Path]
    """Folder for the clips."""
    split: Split = "all"
    """Which seeds: train, val, test, or all three."""
    clips: int = 10
    """Clips of each split."""
    frames: int = 24
    """Frames of each clip."""
    size: tuple[int, int] = (416, 128)
    """Width and height in pixels, even numbers."""
    fps: float = 10.0
    """Frames a second."""
    first: int = 0
    """Number of the first clip; each split has 100,000."""
    workers: int = 2
    """Processes, one CPU thread each."""
    device: str = "cpu"
    """Where to render: cpu, cuda."""
    exposure_jitter: float = 0.0
    """Standard deviation of the log brightness from frame to frame."""
    pixel_noise: float = 0.0
    """Standard deviation of pixel noise, of 255."""


def run(arguments: Arguments) -> int:
    render(**vars(arguments))
    print(f"{arguments.out}: {arguments.clips} clips of {arguments.split}, {arguments.frames} frames each")
    return 0
