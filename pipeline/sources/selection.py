"""Which frames of a clip are kept: a stride, or the frames nearest to the ticks of a slower clock."""

from __future__ import annotations

import numpy as np

from pipeline.errors import ConfigError


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
    # The last tick may lie up to half a period past the last frame's time.
    ticks = np.arange(int(np.floor(times[-1] * target_fps + 0.5)) + 1) / target_fps
    after = np.searchsorted(times, ticks).clip(1, len(times) - 1)
    # A microsecond of slack, or rounding decides between two equally near frames.
    earlier = ticks - times[after - 1] <= times[after] - ticks + 1e-6
    return inside[np.unique(np.where(earlier, after - 1, after))].astype(np.int64)
