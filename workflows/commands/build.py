"""Turn raw video or a data set into a shard set, with one masks layer called `default`.

Running the same build again goes on where it was stopped. Clips that cannot be read are
left out, listed at the end, and make the exit code 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from pipeline.build import BuildConfig, BuildReport, build
from pipeline.configuration import from_dict, to_dict
from pipeline.graph import GraphConfig


@dataclass(frozen=True)
class Arguments:
    source: tyro.conf.Positional[Path]
    """Video file, or folder of videos, images, KITTI, Cityscapes or streetworld."""
    out: tyro.conf.Positional[Path]
    """Folder of the shard set."""
    settings: BuildConfig = field(default_factory=BuildConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    recipe: Path | None = None
    """YAML file with settings; the command line overrides it."""
    json: bool = False
    """Print the report as JSON."""
    quiet: bool = False
    """No progress bars."""


def from_recipe(data: Mapping[str, Any]) -> Arguments:
    """Defaults of the command line under a recipe."""
    return Arguments(tyro.MISSING, tyro.MISSING, from_dict(BuildConfig, data, "recipe"))


def run(arguments: Arguments) -> int:
    report = build(
        arguments.source, arguments.out, arguments.settings, arguments.graph, quiet=arguments.quiet
    )
    print(json.dumps(to_dict(report), indent=1) if arguments.json else summary(report))
    return 1 if report.quarantine else 0


def summary(report: BuildReport) -> str:
    """The report as a few lines."""
    lines = [f"{report.out}: {report.clips} clips, {report.frames} frames"]
    if report.worked_frames:
        per_frame = ", ".join(
            f"{stage} {1000 * seconds / report.worked_frames:.1f}"
            for stage, seconds in report.seconds.items()
        )
        lines.append(
            f"this run: {report.worked_frames} frames, {report.detections} raw detections in {report.wall_s:.1f} s "
            f"({report.worked_frames / report.wall_s:.2f} frames/s)"
        )
        lines.append(f"ms a frame and stage, in a worker: {per_frame}")
    else:
        lines.append("nothing was left to do")
    if report.quarantine:
        lines.append(f"{len(report.quarantine)} clip(s) failed; the same command tries them again:")
        lines += [f"  {entry.clip}: {entry.reason}" for entry in report.quarantine]
    return "\n".join(lines)
