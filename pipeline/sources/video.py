"""Video files, read exactly: the frames that the file holds, or an error that names file and frame.

A file is indexed once by `probe`, which demuxes every packet without decoding (but for the
first frame), and read by `VideoReader`, which seeks by timestamp to the last keyframe at or
before the first wanted frame and decodes forward. Frames are found by their presentation
timestamp, never by counting from a seek point. Decoding runs on one thread with
`err_detect=explode` and a bit-exact colour conversion, so a frame has the same bytes
whatever range it is read in.

Files that do not store presentation times (AVI, raw streams) or store one twice are decoded
whole by `probe`. If the times were right after all they are read like any other, else their
frames are counted, spaced evenly, and every range is decoded from the beginning.

What is noticed: a missing index, fewer packets than the container states, packets that
the container knows to be cut, a Matroska file that is cut or whose checksums do not fit
(see `matroska`), everything that the decoder calls an error, frames that change size. What
cannot be: a transport stream or raw stream that lacks whole frames (their times show the
gap), a fragmented MP4 cut between two fragments, an MP4's index changed so that it still is
one, and flipped bits that still decode as valid video (no common video codec carries
checksums of its pixels; of 100-byte holes torn into H.264 MP4 files here, 78 % raised, 18 %
changed no pixel, 4 % did).

Interlaced video is not deinterlaced. Frames before the first keyframe cannot be decoded
and are left out. Display rotation (phones held upright) is applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import SourceError
from pipeline.sources.matroska import require_whole_matroska
from pipeline.sources.naming import open_file, show
from pipeline.sources.orientation import UPRIGHT, Orientation, orientation_of

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
    | {".3gp", ".flv", ".wmv", ".asf", ".h264", ".hevc", ".mjpeg"}
)

# Their demuxers number packets in file order, which is wrong as soon as there are B-frames.
_GUESSED_TIMES = frozenset(["avi", "h264", "hevc", "m4v", "mjpeg", "mpegvideo", "obu", "vvc"])
# Full chroma and exact rounding; BITEXACT keeps vector and scalar code of swscale equal.
_TO_RGB = (
    Interpolation.BILINEAR
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
# What PyAV is seen to raise on damaged files; OSError comes from the disk, through our own file, the
# last two from PyAV's bookkeeping of streams.
_BROKEN = (av.error.FFmpegError, OSError, MemoryError, OverflowError, UnicodeDecodeError, IndexError)
_MAX_PIXELS = 1 << 28
_DURATION_SLACK_S = 0.5
_KEYFRAMES_BEFORE = 64  # that a part of a clip takes along, in case that the last one does not do


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """What a video file holds, in presentation order.

    pts:          (N,) int64, strictly increasing, in units of time_base
    keyframes:    (M,) int64, sorted pts at which decoding can start
    time_base:    seconds per unit of pts
    size:         (width, height) of the frames as displayed, pixels
    pixel_aspect: width of a displayed pixel over its height, 1 for square pixels
    orientation:  display rotation that the reader applies
    sequential:   timestamps cannot be sought; pts is counted while decoding from the beginning
    part_of:      (first, count): pts are those of frames first... of a file of `count` frames;
                  none: of all its frames
    """

    pts: np.ndarray
    keyframes: np.ndarray
    time_base: Fraction
    size: tuple[int, int]
    pixel_aspect: Fraction = Fraction(1)
    orientation: Orientation = UPRIGHT
    sequential: bool = False
    part_of: tuple[int, int] | None = None

    @property
    def timestamps_s(self) -> np.ndarray:
        """(N,) float64, seconds since the first frame."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def part(self, start: int, stop: int) -> VideoIndex:
        """Frames start..stop-1 alone, with the keyframes from which they are decoded."""
        first, count = self.part_of or (0, len(self.pts))
        latest = int(np.searchsorted(self.keyframes, self.pts[start], side="right")) - 1
        after = int(np.searchsorted(self.keyframes, self.pts[stop - 1], side="right"))
        return replace(
            self,
            pts=self.pts[start:stop],
            keyframes=self.keyframes[max(0, latest - _KEYFRAMES_BEFORE) : after],
            part_of=(first + start, count),
        )


def probe(path: Path) -> VideoIndex:
    """Index a video file without decoding more than its first frame.

    Raises:
        SourceError: not a video, empty, one frame only, truncated or damaged.
    """
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        _require_whole(path, container, stream, packets)
        shown = [packet for packet in packets if not packet.is_discard]
        keyframes = sorted(p.pts for p in shown if p.is_keyframe and p.pts is not None)
        times = sorted(p.pts for p in shown if p.pts is not None)
        time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
        stored = not _GUESSED_TIMES & set(container.format.name.split(","))
    usable = time_base is not None and len(keyframes) > 0 and len(set(times)) == len(shown)
    if usable:
        times = [time for time in times if time >= keyframes[0]]
    decoded = None if usable and stored else _times_by_decoding(path)
    sequential = not usable or decoded not in (None, times)
    if sequential:
        if not rate:
            raise SourceError(
                f"{show(path)}: states neither times nor a frame rate; re-encode it to mp4 or mkv"
            )
        times, keyframes, time_base = list(range(len(decoded or ()))), [0], 1 / Fraction(rate)
    if len(times) < 2:
        raise SourceError(
            f"{show(path)}: {len(times)} frame(s) found, a clip needs at least 2; leave the file out"
        )

    first, pixel_aspect = _first_frame(path)
    orientation = orientation_of(path, first)
    assert time_base is not None
    return VideoIndex(
        pts=np.array(times, np.int64),
        keyframes=np.array(keyframes, np.int64),
        time_base=time_base,
        size=orientation.size(first.width, first.height),
        pixel_aspect=1 / pixel_aspect if orientation.quarter_turns % 2 else pixel_aspect,
        orientation=orientation,
        sequential=sequential,
    )


@dataclass(frozen=True, kw_only=True)
class VideoReader:
    """Reads selected frames of one video file; a `FrameReader`.

    picks: (N,) int64, strictly increasing positions in `index.pts`
    """

    path: Path
    index: VideoIndex
    picks: np.ndarray

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames start..stop-1 of the selection, (H, W, 3) uint8 RGB, in order.

        Raises:
            SourceError: a frame is missing, damaged or of another size; it is named.
        """
        if not 0 <= start <= stop <= len(self.picks):
            raise IndexError(f"frames {start}..{stop} of a clip of {len(self.picks)}")
        if start == stop:
            return
        wanted = self.index.pts[self.picks[start:stop]]
        for keyframe in self._seek_points(int(wanted[0])):
            delivered = False
            try:
                for image in self._decode_from(keyframe, wanted):
                    delivered = True
                    yield image
                return
            except SourceError:
                # Some formats seek past the keyframe asked for, and some streams need more than
                # one keyframe to start from: start earlier, in the end at the beginning.
                if delivered or keyframe is None:
                    raise

    def part(self, start: int, stop: int) -> VideoReader:
        """A reader of frames start..stop-1 of the selection alone."""
        picks = self.picks[start:stop]
        first = int(picks[0])
        return replace(self, index=self.index.part(first, int(picks[-1]) + 1), picks=picks - first)

    def _seek_points(self, first: int) -> Iterator[int | None]:
        """Keyframes to try, latest first in growing steps; None is the beginning of the file."""
        if not self.index.sequential:
            latest = int(np.searchsorted(self.index.keyframes, first, side="right")) - 1
            step = 0
            while latest - step > 0:
                yield int(self.index.keyframes[latest - step])
                step = 2 * step + 1
        yield None

    def _decode_from(self, keyframe: int | None, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """The wanted frames in order, decoding from a keyframe (None: the beginning)."""
        queue = [int(pts) for pts in wanted]
        done = 0
        to_rgb = VideoReformatter()
        with _opened(self.path) as (container, stream):
            if keyframe is not None:
                container.seek(keyframe, stream=stream)
            frames = _decoded(container, stream, ignore_before=keyframe)
            counted = enumerate(frames) if self.index.sequential else ((frame.pts, frame) for frame in frames)
            try:
                for pts, frame in counted:
                    if pts is None or pts > queue[done]:
                        raise SourceError(self._report(queue[done], "is missing"))
                    if pts == queue[done]:
                        yield self._image(frame, pts, to_rgb)
                        done += 1
                        if done == len(queue):
                            return
            except _BROKEN as error:
                raise SourceError(
                    self._report(queue[done], f"cannot be decoded ({_reason(error)})")
                ) from error
        raise SourceError(self._report(queue[done], "is missing"))

    def _image(self, frame: VideoFrame, pts: int, to_rgb: VideoReformatter) -> np.ndarray:
        if frame.is_corrupt:
            raise SourceError(self._report(pts, "is damaged"))
        if self.index.orientation.size(frame.width, frame.height) != self.index.size:
            width, height = self.index.size
            raise SourceError(
                self._report(
                    pts, f"is {frame.width}x{frame.height} before rotation in a clip of {width}x{height}"
                )
            )
        rgb = to_rgb.reformat(frame, format="rgb24", interpolation=int(_TO_RGB), threads=1)
        return self.index.orientation.apply(rgb.to_ndarray())

    def _report(self, pts: int, problem: str) -> str:
        first, count = self.index.part_of or (0, len(self.index.pts))
        frame = first + int(np.searchsorted(self.index.pts, pts))
        return (
            f"{show(self.path)}: frame {frame:06d} of {count} {problem}; "
            f"the file is damaged or cut: copy it again, re-encode it or leave it out"
        )


class _NamelessFile:
    """A file without its name: FFmpeg then judges by content, and no odd name ever reaches it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@contextmanager
def _opened(path: Path, **demuxer_options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its video stream, closed on exit; every failure is a SourceError."""
    # A text file can be a playlist in disguise; without protocols it opens no other file or address.
    options = {"protocol_whitelist": "none", **demuxer_options}
    try:
        file = open_file(path)
    except OSError as error:
        raise SourceError(
            f"{show(path)}: cannot be opened ({error.strerror}); put it back or leave it out"
        ) from error
    with file:
        try:
            container = av.open(
                _NamelessFile(file), "r", container_options=options, metadata_errors="replace"
            )
        except (*_BROKEN, ValueError) as error:
            raise SourceError(
                f"{show(path)}: not a readable video ({_reason(error)}); it is empty, cut or no video"
            ) from error
        with container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.codec_context is None:
                raise SourceError(
                    f"{show(path)}: holds no video that can be decoded; leave it out or re-encode it"
                )
            context = stream.codec_context
            context.options = {"err_detect": "crccheck+explode", "max_pixels": str(_MAX_PIXELS)}
            context.thread_type, context.thread_count = "NONE", 1
            try:
                yield container, stream
            except _BROKEN as error:
                raise SourceError(
                    f"{show(path)}: cannot be read ({_reason(error)}); it is damaged or cut"
                ) from error


def _decoded(
    container: InputContainer, stream: VideoStream, ignore_before: int | None = None
) -> Iterator[VideoFrame]:
    """Decode forward from where the container stands, starting at a keyframe.

    Pictures shown before the keyframe but stored after it (open groups of pictures) need
    pictures from before the seek; nothing later needs them, so their errors say nothing.
    """
    started = False
    for packet in container.demux(stream):
        started = started or bool(packet.is_keyframe)
        if packet.size and not started:
            continue
        leading = ignore_before is not None and packet.pts is not None and packet.pts < ignore_before
        try:
            frames: Iterable[VideoFrame] = packet.decode()
        except av.error.FFmpegError:
            if not leading:
                raise
            frames = ()
        for frame in frames:
            if ignore_before is None or frame.pts is None or frame.pts >= ignore_before:
                yield frame


def _first_frame(path: Path) -> tuple[VideoFrame, Fraction]:
    """The first frame that the decoder gives, and the stream's pixel aspect ratio."""
    with _opened(path) as (container, stream):
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        for frame in _decoded(container, stream):
            return frame, Fraction(aspect) if aspect and aspect > 0 else Fraction(1)
    raise SourceError(f"{show(path)}: no frame could be decoded; the file is empty, damaged or cut")


def _times_by_decoding(path: Path) -> list[int | None]:
    """Presentation times as the decoder gives them, one for each frame of the file."""
    times: list[int | None] = []
    with _opened(path) as (container, stream):
        try:
            for frame in _decoded(container, stream):
                if frame.is_corrupt:
                    raise SourceError(f"{show(path)}: frame {len(times):06d} is damaged; leave the file out")
                times.append(frame.pts)
        except _BROKEN as error:
            raise SourceError(
                f"{show(path)}: frame {len(times):06d} cannot be decoded ({_reason(error)}); "
                f"the file is damaged or cut: copy it again or leave it out"
            ) from error
    return times


def _require_whole(
    path: Path, container: InputContainer, stream: VideoStream, packets: list[av.Packet]
) -> None:
    """Compare the packets found with what the container states."""
    if "matroska" in container.format.name:
        require_whole_matroska(path)
    found, stated = len(packets), stream.frames
    whole = not stated or found == stated or _packets_without_edits(path) == stated
    if not whole or any(packet.is_corrupt for packet in packets):
        raise SourceError(
            f"{show(path)}: truncated or damaged: {found} frames found"
            + (f" where the file states {stated}" if not whole else ", some of them incomplete")
            + "; copy it again or leave it out"
        )
    duration_s = _stated_duration_s(container, stream)
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if duration_s is not None and len(times) > 1 and stream.time_base is not None:
        gap = int(np.diff(times).max())
        end_s = float((times[-1] + gap) * stream.time_base)
        if duration_s - end_s > _DURATION_SLACK_S:
            raise SourceError(
                f"{show(path)}: truncated: frames end at {end_s:.2f} s where the file states "
                f"{duration_s:.2f} s; copy it again or leave it out"
            )


def _packets_without_edits(path: Path) -> int:
    """Packets of an MP4 whose edit list hides some (trimmed on a phone); counts all that are stored."""
    with _opened(path, ignore_editlist="1") as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size)


def _stated_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    """End of the video as a Matroska file states it; others state frames or nothing to rely on."""
    if "matroska" not in container.format.name:
        return None
    stated = stream.metadata.get("DURATION")
    if stated is not None:
        try:
            hours, minutes, seconds = stated.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        except ValueError:
            return None
    if len(container.streams) == 1 and container.duration is not None:
        return container.duration / av.time_base
    return None


def _reason(error: BaseException) -> str:
    """FFmpeg's words without its error number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
