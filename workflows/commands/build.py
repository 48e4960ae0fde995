"""Turn raw video or a data set into a shard set, with one masks layer called `default`.

Running the same build again goes on where it was stopped. Clips that cannot be read are
left out, listed at the end, and make the exit code 1.

OUT may be a URL, such as s3://bucket/kitti: the set is then built in the folder --work, and
copied when it is complete.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from pipeline.build import BuildConfig, BuildReport, build
from pipeline.configuration import from_dict, to_dict
from pipeline.copy import copy_set
from pipeline.earlier import is_unfinished
from pipeline.errors import BuildError, ConfigError
from pipeline.estimate import Estimate, estimate
from pipeline.graph import GraphConfig
from workflows.locations import ShardLocation


@dataclass(frozen=True)
class Arguments:
    source: tyro.conf.Positional[Path]
    """Video file, or folder of videos, images, KITTI, Cityscapes or streetworld."""
    out: tyro.conf.Positional[ShardLocation]
    """Folder of the shard set, or a URL to which it is copied from --work."""
    settings: BuildConfig = field(default_factory=BuildConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    work: Path | None = None
    """Folder to build in where OUT is a URL; it stays, and the same command goes on from it."""
    recipe: Path | None = None
    """YAML file with settings; the command line overrides it."""
    dry_run: bool = False
    """Write nothing to OUT: work on a few pieces, and say what the build would take and need."""
    json: bool = False
    """Print the report (or, of a dry run, the estimate) as JSON."""
    quiet: bool = False
    """No progress bars."""


def from_recipe(data: Mapping[str, Any]) -> Arguments:
    """Defaults of the command line under a recipe."""
    return Arguments(tyro.MISSING, tyro.MISSING, from_dict(BuildConfig, data, "recipe"))


def run(arguments: Arguments) -> int:
    folder = _folder(arguments)
    if arguments.dry_run:
        found = estimate(arguments.source, folder, arguments.settings, arguments.graph, quiet=arguments.quiet)
        print(
            json.dumps(to_dict(found) | {"fits": found.fits}, indent=1) if arguments.json else outlook(found)
        )
        return 0
    report = build(arguments.source, folder, arguments.settings, arguments.graph, quiet=arguments.quiet)
    print(json.dumps(to_dict(report), indent=1) if arguments.json else summary(report))
    if not isinstance(arguments.out, Path):
        _copy(folder, arguments.out, quiet=arguments.quiet)
    return 1 if report.quarantine else 0


def _folder(arguments: Arguments) -> Path:
    """Where the set is built."""
    if isinstance(arguments.out, Path):
        if arguments.work is not None:
            raise ConfigError(
                f"--work is for an OUT that is a URL; {arguments.out} is a folder: leave it out"
            )
        return arguments.out
    if arguments.work is None:
        raise ConfigError(f"{arguments.out} is a URL; give a folder to build in with --work FOLDER")
    return arguments.work


def _copy(folder: Path, url: str, *, quiet: bool) -> None:
    """Copy a set that will not change any more: clips that failed may still come in."""
    if is_unfinished(folder):
        raise BuildError(
            f"not copied to {url}, because the clips above may still be mended: run the same command again, or "
            f"`instance-motion copy {folder} {url}` to do without them"
        )
    print(copy_set(folder, url, quiet=quiet).summary(), file=sys.stderr)


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
        lines.append("no frame was left to work on")
    if report.quarantine:
        again = ", or run the same command again if their files were not at fault"
        lines.append(
            f"{len(report.quarantine)} clip(s) failed; build into a new folder once they are repaired"
            f"{again if is_unfinished(Path(report.out)) else ''}:"
        )
        lines += [f"  {entry.clip}: {entry.reason}" for entry in report.quarantine]
    return "\n".join(lines)


def outlook(found: Estimate) -> str:
    """An estimate as a few lines."""
    lines = [
        f"dry run, nothing is written; {found.out} {found.remark}",
        f"clips       {found.clips}, {found.frames} frames; {len(found.unusable)} unusable",
        *(f"              {entry.clip}: {entry.reason}" for entry in found.unusable),
        f"plan        {found.files} files, {found.pieces} pieces",
    ]
    if found.standing == "unfinished":
        lines.append(f"left        {found.frames_left} frames, {found.pieces_left} pieces")
    if found.failing:
        lines.append(
            f"failed      {len(found.failing)} of the clips that were tried; a build would leave them out"
        )
        lines += [f"              {entry.clip}: {entry.reason}" for entry in found.failing]
    if found.sampled_frames:
        stages = ", ".join(f"{stage} {1000 * value:.1f}" for stage, value in found.seconds.items())
        lines += [
            f"measured    {found.sampled_frames} frames in {found.sample_s:.0f} s, {found.workers} worker(s) at a time",
            f"            ms a frame and stage, in a worker: {stages}",
            f"time        {duration(found.wall_s)}: start {duration(found.start_s)}, pieces {duration(found.pieces_s)}, "
            f"files {duration(found.files_s)}, masks {duration(found.masks_s)}",
            f"hours       GPU {found.gpu_hours:.3g}, CPU {found.cpu_hours:.3g}",
        ]
    layers = ", ".join(
        f"{layer} {megabytes(size)} ({found.bytes_a_frame[layer]:,.0f} bytes a frame)"
        for layer, size in found.bytes.items()
    )
    lines.append(f"disk        {megabytes(sum(found.bytes.values()))}: {layers}")
    if found.sampled_frames:
        lines.append(
            f"            to be written {megabytes(found.needed_bytes)} with at most "
            f"{megabytes(found.build_folder_bytes)} in .build; free {megabytes(found.free_bytes)}"
        )
    if not found.fits:
        lines.append(
            f"warning: {megabytes(found.needed_bytes - found.free_bytes)} too little room on that disk"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """4 s, 3:20 min, 5:07 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def megabytes(count: int) -> str:
    """1.2 MB, 34.5 GB, 6.7 TB; powers of ten."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e6:.1f} MB"
