"""Which frames and rows of a clip are kept: a stride, a slower clock, a time span, the upper rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import ConfigError
from pipeline.sources.clip import Clip, FrameReader
from pipeline.sources.images import ImageReader
from pipeline.sources.naming import fingerprint
from pipeline.sources.video import VideoReader


def select_frames(
    times_s: np.ndarray,
    *,
    stride: int = 1,
    target_fps: float | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> np.ndarray:
    """Indices of the frames to keep.

    Args:
        times_s:    (N,) strictly increasing, seconds since the first frame
        stride:     keep every stride-th frame
        target_fps: keep the frame nearest in time to each tick of this rate (the earlier of two
                    equally near ones); a rate above the video's keeps every frame once
        start_s, end_s: keep frames with start_s <= time < end_s only

    Returns: (M,) int64, strictly increasing.
    """
    if stride < 1 or (target_fps is not None and not 0 < target_fps < float("inf")):
        raise ConfigError(f"stride must be >= 1 and the frame rate > 0, got {stride} and {target_fps}")
    if target_fps is not None and stride != 1:
        raise ConfigError("give either a stride or a target frame rate, not both")
    inside = np.flatnonzero((times_s >= start_s) & (times_s < (np.inf if end_s is None else end_s)))
    if target_fps is None or len(inside) < 2:
        return inside[::stride].astype(np.int64)
    times = times_s[inside] - times_s[inside[0]]
    # A thousandth of a period of slack: a tick at the very end keeps its frame.
    ticks = np.arange(int(np.floor(times[-1] * target_fps + 1e-3)) + 1) / target_fps
    after = np.searchsorted(times, ticks).clip(1, len(times) - 1)
    # A microsecond of slack, or rounding decides between two equally near frames.
    earlier = ticks - times[after - 1] <= times[after] - ticks + 1e-6
    return inside[np.unique(np.where(earlier, after - 1, after))].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class SelectedReader:
    """Some frames of another reader, and of those the top rows; a `FrameReader`.

    picks: (N,) int64, strictly increasing frame numbers of `reader`
    rows:  rows kept of each frame, from the top
    """

    reader: FrameReader
    picks: np.ndarray
    rows: int

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames start..stop-1 of the selection, (rows, W, 3) uint8 RGB, in order."""
        if not 0 <= start <= stop <= len(self.picks):
            raise IndexError(f"frames {start}..{stop} of a clip of {len(self.picks)}")
        if start == stop:
            return
        wanted = self.picks[start:stop]
        first, last = int(wanted[0]), int(wanted[-1])
        chosen = set(wanted.tolist())
        for number, image in enumerate(self.reader.frames(first, last + 1), first):
            if number in chosen:
                yield image[: self.rows]

    def part(self, start: int, stop: int) -> SelectedReader:
        """A reader of frames start..stop-1 of the selection alone."""
        picks = self.picks[start:stop]
        first = int(picks[0])
        return replace(self, reader=self.reader.part(first, int(picks[-1]) + 1), picks=picks - first)


def select_clip(clip: Clip, picks: np.ndarray, rows: int) -> Clip:
    """The picked frames of a clip, without the rows below `rows`; K holds as it is.

    Video and image readers skip what is not picked without converting or reading it.
    """
    (width, height), every = clip.camera.size, np.array_equal(picks, np.arange(len(clip)))
    if every and rows == height:
        return clip
    reader = clip.reader
    if isinstance(reader, VideoReader):
        reader, kept = replace(reader, picks=reader.picks[picks]), np.arange(len(picks))
    elif isinstance(reader, ImageReader):
        reader, kept = replace(reader, paths=tuple(reader.paths[i] for i in picks)), np.arange(len(picks))
    else:
        kept = picks
    if rows != height or kept is picks:
        reader = SelectedReader(reader=reader, picks=kept, rows=rows)
    names = tuple(clip.frame_names[i] for i in picks)
    camera = replace(clip.camera, size=(width, rows))
    return Clip(
        name=clip.name,
        timestamps_s=clip.timestamps_s[picks],
        frame_names=names,
        camera=camera,
        reader=reader,
        fingerprint=fingerprint(clip.name, camera, names, [(clip.fingerprint, rows, b"")]),
    )
