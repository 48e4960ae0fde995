"""One piece of one clip, from video frames to frames and evidence.

    decode -> undistort -> detect (source resolution) -> overlaps (stored frame)
                        -> resize, crop, encode -> flow ---^

Decoding runs ahead of the network, and flow and overlaps behind it, each in a thread of
its own, so that a GPU does not wait for them. Threads change no result: every stage takes
its frames in order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pipeline.camera import Camera, FrameTransform, Undistorter
from pipeline.detections import Detections, Detector, SourceFrame
from pipeline.errors import ConfigError
from pipeline.flow import Flow, FlowConfig, FlowModel, compute_flow, quantise
from pipeline.matching import overlaps
from pipeline.prefetch import prefetch
from pipeline.shards.codec import ImageCodec, decode_image, encode_image
from pipeline.shards.evidence import OVERLAP_PROBABILITY, FrameEvidence, Overlaps
from pipeline.shards.frames import FramesTable, Segment
from pipeline.sources.clip import Clip


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """How frames are stored."""

    size: tuple[int, int] = (832, 256)
    """Width and height of stored frames, pixels. Frames are scaled, keeping their aspect, until
    they cover it, and cropped."""
    crop_anchor: float = 0.5
    """Which rows survive the crop: 0 the top ones, 0.5 the middle, 1 the bottom ones."""
    codec: ImageCodec = "jpeg"
    """jpeg, or png for lossless frames."""
    quality: int = 95
    """JPEG quality."""
    static_below_px: float = 0.25
    """A frame whose median flow from the frame before is below this is flagged static."""

    def __post_init__(self) -> None:
        if not all(32 <= side <= 16384 for side in self.size):
            raise ConfigError(f"size must lie between 32 and 16384 pixels, got {self.size[0]}x{self.size[1]}")
        if not 0 <= self.crop_anchor <= 1:
            raise ConfigError(f"crop_anchor must lie in [0, 1], got {self.crop_anchor}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must lie in [1, 100], got {self.quality}")
        if not self.static_below_px >= 0:
            raise ConfigError(f"static_below_px must not be negative, got {self.static_below_px}")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a worker has loaded. flow_model: None where the flow needs no network."""

    detector: Detector
    flow_model: FlowModel | None
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What became of frames start..stop-1 of a clip.

    The step from the frame before into the first frame stays open (no overlaps, motion NaN)
    unless the piece begins its clip; `pipeline.assembly` closes it.

    seconds: wall time per stage; stages overlap in time
    """

    frames: FramesTable
    evidence: tuple[FrameEvidence, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class _View:
    """A frame as the detector sees it, and as it is stored: encoded, and decoded again."""

    source: SourceFrame
    encoded: bytes
    stored: np.ndarray


def process_piece(
    clip: Clip,
    start: int,
    stop: int,
    frames: FramesConfig,
    flow: FlowConfig,
    networks: Networks,
    *,
    first: int = 0,
) -> Piece:
    """Work on frames start..stop-1 of a clip, or of a part of one whose frames begin at `first`.

    Detections are found at source resolution and kept in pixels of the stored frame. Flow
    is computed between frames as they are stored, so that the shards can give it again.

    Raises:
        SourceError: a frame cannot be read.
    """
    watch = Stopwatch()
    undistorter = Undistorter(clip.camera)
    transform = _transform(undistorter, frames)
    # Kept flow includes the step into the first frame, so it needs the frame before as well.
    keeps_flow = networks.flow_model is not None
    lead = 1 if keeps_flow and start > 0 else 0

    def views() -> Iterator[_View]:
        for offset, image in enumerate(watch.each("decode", clip.reader.frames(start - lead, stop))):
            with watch("encode"):
                upright = undistorter.image(image)
                encoded = encode_image(transform.apply(upright), frames.codec, frames.quality)
                stored = decode_image(encoded, frames.codec, frames.size)
            name = clip.frame_names[start - lead + offset]
            source = SourceFrame(image=upright, clip=clip.name, name=name, rectify=undistorter.labels)
            yield _View(source, encoded, stored)

    def detected() -> Iterator[tuple[_View, Detections]]:
        ahead = prefetch(views(), 2 * networks.batch_size)
        for view in islice(ahead, lead):
            yield view, Detections.empty()
        while batch := list(islice(ahead, networks.batch_size)):
            with watch("detect"):
                found = networks.detector.detect([view.source for view in batch])
            for view, detections in zip(batch, found, strict=True):
                yield view, to_stored(detections, transform)

    images, evidence, motion = [], [], []
    previous: tuple[_View, Detections] | None = None
    for view, detections in prefetch(detected(), 2 * networks.batch_size):
        step, overlap = None, Overlaps.empty()
        if previous is not None:
            with watch("flow"):
                step = compute_flow(previous[0].stored, view.stored, flow, networks.flow_model)
            with watch("overlaps"):
                overlap = overlaps(previous[1], detections, step, frames.size, OVERLAP_PROBABILITY)
        kept = quantise(step) if keeps_flow and step is not None else None
        images.append(view.encoded)
        evidence.append(FrameEvidence(detections=detections, overlaps=overlap, flow=kept))
        motion.append(median_motion_px(step))
        previous = (view, detections)

    K = transform.camera(undistorter.camera).K
    segment = Segment(clip=clip.name, first=first + start, count=stop - start, K=K)
    return Piece(
        frames=FramesTable(
            segments=(segment,),
            images=tuple(images[lead:]),
            names=clip.frame_names[start:stop],
            timestamps_s=np.asarray(clip.timestamps_s[start:stop], np.float64),
            motion_px=np.array(motion[lead:], np.float32),
        ),
        evidence=tuple(evidence[lead:]),
        seconds=dict(watch.seconds),
    )


def stored_camera(camera: Camera, frames: FramesConfig) -> Camera:
    """The camera of stored frames: without distortion, resized and cropped."""
    undistorter = Undistorter(camera)
    return _transform(undistorter, frames).camera(undistorter.camera)


def _transform(undistorter: Undistorter, frames: FramesConfig) -> FrameTransform:
    return FrameTransform.cover(undistorter.camera.size, frames.size, frames.crop_anchor)


def to_stored(detections: Detections, transform: FrameTransform) -> Detections:
    """Detections in source pixels -> in stored pixels, without those that the crop removed."""
    boxes = transform.boxes(detections.boxes).astype(np.float32)
    width, height = transform.stored_size
    inside = (
        (boxes[:, 2] > -0.5)
        & (boxes[:, 3] > -0.5)
        & (boxes[:, 0] < width - 0.5)
        & (boxes[:, 1] < height - 0.5)
    )
    moved = Detections(
        boxes=boxes, scores=detections.scores, classes=detections.classes, masks=detections.masks
    )
    return moved.select(np.flatnonzero(inside))


def median_motion_px(flow: Flow | None) -> float:
    """Median length of the flow from the earlier frame, pixels; NaN where there is none."""
    return (
        float(np.median(np.hypot(flow.forward[..., 0], flow.forward[..., 1]))) if flow is not None else np.nan
    )


class Stopwatch:
    """Wall time per stage of work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin

    def each(self, stage: str, items: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass items on; only the time that they take to come counts."""
        while True:
            with self(stage):
                item = next(items, None)
            if item is None:
                return
            yield item
