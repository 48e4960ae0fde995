"""Check every checksum and every invariant of a shard set. Exit code 1 if anything is wrong.

Of a URL, every object is fetched again, also where the cache has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import tyro

from pipeline.configuration import to_dict
from pipeline.progress import Progress
from pipeline.shards.reader import ShardSet
from pipeline.shards.verify import Finding, layers, verify_clip, verify_files
from workflows.locations import ShardLocation


@dataclass(frozen=True)
class Arguments:
    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
    files_only: bool = False
    """Sizes and SHA-256 only; do not decode every frame."""
    json: bool = False
    """Print findings as JSON."""
    quiet: bool = False
    """No progress bars."""


def run(arguments: Arguments) -> int:
    findings: list[Finding] = []
    with ShardSet(arguments.shards) as shards:
        files = sum(len(entries) for entries in layers(shards).values())
        with Progress("checksums", files, quiet=arguments.quiet, unit="file") as bar:
            for _, finding in verify_files(shards):
                findings += [finding] if finding else []
                bar.advance(1)
        frames = sum(clip.frames for clip in shards.manifest.clips)
        if not arguments.files_only:
            with Progress("contents", frames, quiet=arguments.quiet) as bar:
                for clip in shards.manifest.clips:
                    findings += verify_clip(shards, clip)
                    bar.advance(clip.frames)
    if arguments.json:
        print(json.dumps([to_dict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.where}: {finding.problem}")
        print(f"{arguments.shards}: {files} files, {frames} frames, {len(findings)} problem(s)")
    return 1 if findings else 0
