"""Which clips and windows of a shard set are used, and what a data set holds.

A window is `frames` frames of one clip, `stride` apart, in time order. Frames are known by their
number in the clip, never by a file name, and masks stand in the same row of the same file as their
frame: nothing can be paired wrongly, and a clip that lacks frames or masks is refused by the reader.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np

from pipeline.errors import ConfigError
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet

Split = Literal["train", "validation", "all"]


class Window(NamedTuple):
    """Frames first, first + stride, ... of the clip with this index in the set's manifest."""

    clip: int
    first: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class WindowTable:
    """The windows of one shard set.

    rows:   (N, 3) int32, a `Window` each
    clips:  clips chosen, also those too short for a window
    static: windows left out because the camera stood still in them
    """

    rows: np.ndarray
    clips: int
    static: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Window:
        return Window(*self.rows[index].tolist())


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """What one shard set gives to training; `with_instances` is a share of its windows."""

    name: str
    clips: int
    windows: int
    static_windows: int
    with_instances: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.clips} clips, {self.windows} windows "
            f"({self.static_windows} static ones left out), {self.with_instances:.0%} with matched instances"
        )


def choose_clips(
    names: Iterable[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    held_out: Sequence[str] = (),
    validation_share: float = 0.0,
    split: Split = "all",
) -> tuple[str, ...]:
    """The clips of one side of a split, in the order given.

    Args:
        include, exclude: patterns (* ? [abc], where * also passes over /); no include takes all.
        held_out: patterns of validation clips.
        validation_share: share of all other clips that are for validation too, by `held_out_by_hash`.
    """
    chosen = []
    for name in names:
        if (include and not _fits(name, include)) or _fits(name, exclude):
            continue
        validation = _fits(name, held_out) or held_out_by_hash(name, validation_share)
        if split == "all" or validation == (split == "validation"):
            chosen.append(name)
    return tuple(chosen)


def held_out_by_hash(clip: str, share: float) -> bool:
    """Whether a clip is one of the held-out share, by its name alone.

    So a clip stays on its side when others come or go. The cameras of one drive (KITTI's
    `.../image_02` and `.../image_03`) go together: they saw the same streets.
    """
    drive = re.sub(r"/image_\d\d$", "", clip)
    number = int.from_bytes(hashlib.sha256(drive.encode()).digest()[:8], "big")
    return number < share * 2**64


def find_windows(
    shards: ShardSet,
    clips: Sequence[str],
    *,
    frames: int,
    strides: Sequence[int],
    skip_static: bool,
) -> WindowTable:
    """Every window of the chosen clips, by clip, stride and first frame.

    A step of a window is static if nothing moved in any of the steps that it spans; a window with
    a static step teaches nothing about motion and is left out, if `skip_static`.
    """
    wanted = set(clips)
    rows, static = [np.zeros((0, 3), np.int32)], 0
    for index, clip in enumerate(shards.manifest.clips):
        if clip.name not in wanted:
            continue
        still = np.concatenate([[0], np.cumsum(_static_flags(shards, clip))]) if skip_static else None
        for stride in strides:
            first = np.arange(max(0, clip.frames - (frames - 1) * stride))
            if still is not None:
                ends = first[:, None] + np.arange(1, frames) * stride  # later frame of every step
                moved = still[ends + 1] - still[ends - stride + 1] < stride
                kept = moved.all(axis=1)
                static += int((~kept).sum())
                first = first[kept]
            columns = (np.full_like(first, index), first, np.full_like(first, stride))
            rows.append(np.stack(columns, axis=1).astype(np.int32))
    return WindowTable(rows=np.concatenate(rows), clips=len(wanted), static=static)


def summarise(shards: ShardSet, layer: str, table: WindowTable, frames: int) -> SetSummary:
    """Count what a set holds; reads the tables of its masks, no image."""
    matched: dict[tuple[int, int, int], bool] = {}  # clip, later frame, stride: windows share steps
    with_instances = 0
    for row in range(len(table)):
        clip_index, first, stride = table[row]
        clip = shards.manifest.clips[clip_index]
        for later in range(first + stride, first + frames * stride, stride):
            key = (clip_index, later, stride)
            if key not in matched:
                matched[key] = len(matched_labels(shards, layer, clip, later, stride)) > 0
        with_instances += any(
            matched[clip_index, later, stride]
            for later in range(first + stride, first + frames * stride, stride)
        )
    return SetSummary(
        name=shards.name,
        clips=table.clips,
        windows=len(table),
        static_windows=table.static,
        with_instances=with_instances / max(1, len(table)),
    )


def matched_labels(shards: ShardSet, layer: str, clip: ClipEntry, later: int, stride: int) -> np.ndarray:
    """(P, 2) int64 labels of one object in frames `later` - `stride` and `later` of a clip.

    Neighbouring frames have direct matches; frames further apart share track ids.
    """
    if stride == 1:
        pairs = shards.pairs(layer, clip, later)
        return np.stack([pairs.prev, pairs.next], axis=1).astype(np.int64)
    before, after = (shards.instances(layer, clip, frame).track for frame in (later - stride, later))
    _, in_before, in_after = np.intersect1d(before, after, return_indices=True)
    return np.stack([in_before, in_after], axis=1).astype(np.int64) + 1


def require_windows(folders: Sequence[str], tables: Sequence[WindowTable], split: Split) -> None:
    """Refuse a set that adds nothing, saying which setting to look at.

    For validation one set may stand for all: its clips may be the only ones held out.
    """
    if split == "validation" and any(map(len, tables)):
        return
    for folder, table in zip(folders, tables, strict=True):
        if not table.clips:
            raise ConfigError(
                f"{folder}: no clip is left for {split}; look at include, exclude, held_out, validation_share"
            )
        if not len(table):
            raise ConfigError(
                f"{folder}: no window in {table.clips} clips for {split} ({table.static} static ones left "
                "out); look at frames, strides, skip_static"
            )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _static_flags(shards: ShardSet, clip: ClipEntry) -> np.ndarray:
    return np.concatenate(
        [shards.frames_file(index).static[row : row + count] for index, row, count in clip.files]
    )
