"""Show what is in a shard set: a table, and, where asked for, an overlay video or a contact sheet.

One colour is one track: colours that stay with their objects mean that matching works.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipeline.configuration import to_dict
from pipeline.inspection import summarise
from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.overlay import contact_sheet, overlay_frames, write_picture, write_video
from pipeline.shards.reader import ShardSet
from workflows.locations import ShardLocation


@dataclass(frozen=True)
class Arguments:
    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
    layer: str = DEFAULT_LAYER
    """Masks layer to draw."""
    clip: str | None = None
    """Draw this clip only."""
    video: Path | None = None
    """Write an overlay video (.mp4) here."""
    fps: float = 10.0
    """Frames per second of the overlay video."""
    sheet: Path | None = None
    """Write a contact sheet (.png or .jpg) here."""
    json: bool = False
    """Print the table as JSON."""


def run(arguments: Arguments) -> int:
    with ShardSet(arguments.shards) as shards:
        summary = summarise(shards)
        print(json.dumps(to_dict(summary), indent=1) if arguments.json else summary.table())
        clips = [shards.clip(arguments.clip)] if arguments.clip else list(shards.manifest.clips)
        if arguments.sheet is not None:
            write_picture(arguments.sheet, contact_sheet(shards, arguments.layer, clips))
        if arguments.video is not None:
            write_video(arguments.video, overlay_frames(shards, arguments.layer, clips), arguments.fps)
    return 0
