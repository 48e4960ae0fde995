"""Which frame goes into which file, and which piece of work, fixed before anything runs.

Files are numbered in clip order. A clip longer than a file gets files of its own; shorter
ones are grouped, whole, in order. A file is worked on in pieces, so that a kill costs at
most one piece of network time per worker. File names and piece names follow from the plan
alone: any number of workers, interrupted or not, agree on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How work is cut."""

    frames_per_file: int = 1024
    """Frames in one file; 1024 frames of 832x256 are some 64 MiB."""
    frames_per_piece: int = 32
    """Frames that a worker takes at a time; a kill loses at most this much work of it."""

    def __post_init__(self) -> None:
        if self.frames_per_piece < 2:
            raise ConfigError(f"frames_per_piece must be at least 2, got {self.frames_per_piece}")
        if self.frames_per_file < self.frames_per_piece:
            raise ConfigError(
                f"frames_per_file ({self.frames_per_file}) must not be below "
                f"frames_per_piece ({self.frames_per_piece})"
            )


@dataclass(frozen=True, kw_only=True)
class PlannedPiece:
    """Frames start..stop-1 of one clip, worked on at once."""

    clip_index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.clip_index:06d}-{self.start:08d}"


@dataclass(frozen=True, kw_only=True)
class PlannedSegment:
    """Frames start..stop-1 of one clip, consecutive rows of one file."""

    clip_index: int
    start: int
    stop: int

    def pieces(self, frames_per_piece: int) -> tuple[PlannedPiece, ...]:
        return tuple(
            PlannedPiece(
                clip_index=self.clip_index, start=start, stop=min(start + frames_per_piece, self.stop)
            )
            for start in range(self.start, self.stop, frames_per_piece)
        )


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of every layer: `index` names it."""

    index: int
    segments: tuple[PlannedSegment, ...]

    def pieces(self, frames_per_piece: int) -> tuple[PlannedPiece, ...]:
        return tuple(piece for segment in self.segments for piece in segment.pieces(frames_per_piece))


def plan_files(lengths: Sequence[int], config: PlanConfig) -> tuple[PlannedFile, ...]:
    """Lay out clips of the given lengths (in frames) into files."""
    groups: list[list[PlannedSegment]] = []
    room = 0  # frames that the last group can still take
    for clip_index, length in enumerate(lengths):
        if length > config.frames_per_file:
            for start in range(0, length, config.frames_per_file):
                stop = min(start + config.frames_per_file, length)
                groups.append([PlannedSegment(clip_index=clip_index, start=start, stop=stop)])
            room = 0
            continue
        if length > room:
            groups.append([])
            room = config.frames_per_file
        groups[-1].append(PlannedSegment(clip_index=clip_index, start=0, stop=length))
        room -= length
    return tuple(PlannedFile(index=index, segments=tuple(group)) for index, group in enumerate(groups))
