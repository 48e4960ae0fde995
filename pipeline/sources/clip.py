"""The one `Clip` that every source gives and the rest of the pipeline reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from pipeline.camera import Camera
from pipeline.errors import SourceError


class FrameReader(Protocol):
    """Reads frames of one clip. Picklable: it travels to workers and opens files there."""

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames start..stop-1 of the clip, (H, W, 3) uint8 RGB, in order.

        Yields exactly stop - start frames of the clip's size or raises SourceError that
        names file and frame: never pads, never skips. Frame n has the same bytes
        whatever range it is read in.
        """
        ...

    def part(self, start: int, stop: int) -> FrameReader:
        """A reader of frames start..stop-1 alone; its size does not grow with the clip."""
        ...


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One uninterrupted piece of video from one camera.

    name:         unique in its source, "/" separates levels, e.g. "2011_09_26_drive_0052_sync/image_02"
    timestamps_s: (N,) float64, strictly increasing, seconds
    frame_names:  N names, unique in the clip: the image's file stem ("0000000052"), for
                  video the decode index in the file with six digits ("000052")
    camera:       intrinsics and distortion at source resolution
    reader:       gives the frames
    fingerprint:  changes when the input changes; made of relative names, sizes and counts,
                  not of times or absolute paths, so that a copied data set has the same
    """

    name: str
    timestamps_s: np.ndarray
    frame_names: tuple[str, ...]
    camera: Camera
    reader: FrameReader = field(repr=False)
    fingerprint: str

    def __post_init__(self) -> None:
        count = len(self.timestamps_s)
        if len(self.frame_names) != count:
            raise SourceError(f"{self.name}: {count} timestamps for {len(self.frame_names)} frames")
        if count < 2:
            raise SourceError(f"{self.name}: {count} frame(s) found, a clip needs at least 2")
        if not np.all(np.isfinite(self.timestamps_s)) or np.any(np.diff(self.timestamps_s) <= 0):
            raise SourceError(
                f"{self.name}: timestamps do not strictly increase; repair or re-encode the clip"
            )

    def __len__(self) -> int:
        return len(self.timestamps_s)

    def part(self, start: int, stop: int) -> Clip:
        """Frames start..stop-1, at least two: what a task takes along, small however long the clip."""
        return replace(
            self,
            timestamps_s=self.timestamps_s[start:stop],
            frame_names=self.frame_names[start:stop],
            reader=self.reader.part(start, stop),
        )


@dataclass(frozen=True, kw_only=True)
class BadClip:
    """A clip that could not be used, and the one-line reason; it goes to quarantine."""

    name: str
    reason: str
