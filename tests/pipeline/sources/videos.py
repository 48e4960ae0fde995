"""Small videos made by the tests: frames that tell their own number, and an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream


def numbered_frames(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frames whose number stands in the top row of 8 black or white blocks, over a moving texture."""
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 200, (height // 8 + 1, width // 8 + count, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    frames = []
    for number in range(count):
        frame = texture[:height, 2 * number : 2 * number + width].copy()
        for bit in range(8):
            frame[:16, bit * width // 8 : (bit + 1) * width // 8] = 255 * (number >> bit & 1)
        frames.append(frame)
    return frames


def number_of(frame: np.ndarray) -> int:
    """Read the number back from a decoded frame."""
    blocks = frame[4:12].mean(axis=(0, 2)).reshape(8, -1)[:, 3:-3].mean(axis=1)
    return sum(1 << bit for bit, value in enumerate(blocks) if value > 127)


def encode(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    pts: Sequence[int] | None = None,
    container: str | None = None,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    set_up: Callable[[VideoStream], None] | None = None,
) -> Path:
    """Encode RGB frames; pts counts in units of 1/1000 s when given, else frames are evenly spaced."""
    time_base = Fraction(1, 1000) if pts is not None else Fraction(1, rate)
    with (
        open(path, "wb") as file,
        av.open(file, "w", format=container or path.suffix[1:], options=container_options or {}) as output,
    ):
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.options = {"threads": "1", **(codec_options or {})}
        if set_up is not None:
            set_up(stream)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = time_base
            frame.pts = number if pts is None else pts[number]
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path
