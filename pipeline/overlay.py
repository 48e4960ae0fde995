"""Pictures of a masks layer: one colour per track, so that matching can be judged by eye."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from pipeline.errors import ShardError
from pipeline.inspection import class_names
from pipeline.shards.hdf5 import publish, publishing
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet

# The index goes to the front, so that a browser plays before it has all.
MP4 = {"movflags": "+faststart"}


def track_colour(track: int) -> tuple[int, int, int]:
    """RGB of a track: neighbouring ids look different, one id looks the same everywhere."""
    hue = (track * 0.61803398875) % 1.0
    value = 1.0 if track % 2 else 0.8
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(shards: ShardSet, layer: str, clip: ClipEntry, frame: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the frame, instances tinted by track, outlined, with class and id."""
    picture = shards.image(clip, frame).copy()
    labels, instances = shards.labels(layer, clip, frame), shards.instances(layer, clip, frame)
    for row, name in enumerate(class_names(shards, layer, clip, frame)):
        mask = labels == row + 1
        colour = np.array(track_colour(int(instances.track[row])))
        picture[mask] = (0.55 * picture[mask] + 0.45 * colour).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, tuple(map(int, colour)), 1, cv2.LINE_AA)
        _write(picture, f"{name} {instances.track[row]}", instances.box[row], colour)
    return picture


def contact_sheet(
    shards: ShardSet, layer: str, clips: Sequence[ClipEntry], columns: int = 3, rows: int = 8
) -> np.ndarray:
    """(H, W, 3) uint8 RGB: each row a clip, `columns` frames of it from begin to end."""
    strips = []
    for clip in list(clips)[:: max(1, len(clips) // rows)][:rows]:
        picked = np.unique(np.linspace(0, clip.frames - 1, columns).round().astype(int))
        pictures = [
            _titled(draw(shards, layer, clip, int(frame)), f"{clip.name} {frame}") for frame in picked
        ]
        pictures += [np.zeros_like(pictures[0])] * (columns - len(pictures))
        strips.append(np.concatenate(pictures, axis=1))
    if not strips:
        raise ShardError(f"{shards.folder}: no clip to draw")
    return np.concatenate(strips, axis=0)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """(H, W, 3) uint8 RGB -> PNG or JPEG, by suffix."""
    suffix = path.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise ShardError(f"{path}: pictures are written as .png or .jpg")
    publish(path, cv2.imencode(suffix, picture[..., ::-1])[1].tobytes())


def overlay_frames(shards: ShardSet, layer: str, clips: Sequence[ClipEntry]) -> Iterator[np.ndarray]:
    """Every frame of the clips, drawn, with its name."""
    for clip in clips:
        for frame in range(clip.frames):
            yield _titled(draw(shards, layer, clip, frame), f"{clip.name} {frame}")


def write_video(path: Path, pictures: Iterator[np.ndarray], fps: float) -> int:
    """H.264 in yuv420p, which every player opens; returns the number of frames.

    The file appears when it is complete. Odd sizes are padded by one pixel.
    """
    count = 0
    with publishing(path) as partial, av.open(str(partial), "w", format="mp4", options=MP4) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "veryfast"}
        for picture in pictures:
            height, width = picture.shape[:2]
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))
            if not count:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
            count += 1
        container.mux(stream.encode())
    return count


def put_text(
    picture: np.ndarray,
    text: str,
    place: tuple[int, int],
    colour: tuple[int, int, int] = (255, 255, 255),
    size: float = 0.4,
) -> None:
    """Write text into a picture, black around it so that it is read on any ground.

    Args:
        place: (u, v) of its lower left corner.
    """
    shown = text.encode("ascii", "replace").decode()
    # A thicker stroke would do as well, were it not set wider by newer versions of OpenCV.
    around = [(du, dv) for du in (-1, 0, 1) for dv in (-1, 0, 1)]
    for (du, dv), ink in [(offset, (0, 0, 0)) for offset in around] + [((0, 0), colour)]:
        at = (place[0] + du, place[1] + dv)
        cv2.putText(picture, shown, at, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)


def _write(picture: np.ndarray, text: str, box: np.ndarray, colour: np.ndarray) -> None:
    """A small label above a box, inside the picture."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 1)
    x = int(np.clip(box[0], 0, max(picture.shape[1] - width, 0)))
    y = int(np.clip(box[1] - 2, height + 1, picture.shape[0] - 1))
    red, green, blue = map(int, colour)
    put_text(picture, text, (x, y), (red, green, blue), 0.35)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    put_text(picture, title, (6, 14))
    return picture
