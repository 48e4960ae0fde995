"""Reading all of a shard set, for tests with several readers; loads no torch, so that children start fast."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.shards.reader import ShardSet


def every_frame(shards: ShardSet) -> list[tuple[int, int]]:
    return [
        (clip, frame) for clip, entry in enumerate(shards.manifest.clips) for frame in range(entry.frames)
    ]


def read(shards: ShardSet, clip: int, frame: int) -> tuple[bytes, ...]:
    """All that there is to read of a frame, as bytes."""
    entry = shards.manifest.clips[clip]
    instances, pairs = shards.instances("default", entry, frame), shards.pairs("default", entry, frame)
    parts = [shards.image(entry, frame), shards.labels("default", entry, frame)]
    parts += [instances.track, instances.box, pairs.prev, pairs.iou, shards.timestamps_s(entry)]
    return tuple(np.ascontiguousarray(part).tobytes() for part in parts)


def read_all(shards: ShardSet, shift: int = 0) -> dict[tuple[int, int], tuple[bytes, ...]]:
    """Every frame, beginning somewhere else for each `shift`, so that readers do not move in step."""
    frames = every_frame(shards)
    shift = shift * 7 % len(frames)
    return {each: read(shards, *each) for each in frames[shift:] + frames[:shift]}


def in_child(shards: ShardSet, number: int, answers: Any) -> None:
    """In a child: its number, the files that it began with, and all frames."""
    answers.put((number, len(shards._open), read_all(shards, number)))
