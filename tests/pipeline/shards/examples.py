"""Small tables of every layer, with nothing random in them."""

from __future__ import annotations

import numpy as np

from pipeline.detections import Detections
from pipeline.shards.codec import encode_image, encode_labels
from pipeline.shards.evidence import FrameEvidence, Overlaps
from pipeline.shards.frames import FramesTable, Segment
from pipeline.shards.masks import FrameMasks, Instances, Pairs

SIZE = (48, 32)
K = np.array([[40.0, 0, 23.5], [0, 41.0, 15.5], [0, 0, 1]])


def image(index: int) -> np.ndarray:
    v, u = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([5 * u + index, 7 * v + index, 3 * (u + v)], axis=-1).astype(np.uint8)


def frames_table(count: int = 4, clip: str = "drive/one", codec: str = "jpeg") -> FramesTable:
    return FramesTable(
        segments=(Segment(clip=clip, first=0, count=count, K=K),),
        images=tuple(encode_image(image(i), codec) for i in range(count)),  # type: ignore[arg-type]
        names=tuple(f"{i:06d}" for i in range(count)),
        timestamps_s=np.arange(count) * 0.1,
        motion_px=np.array([np.nan, 3.0, 0.01, 2.0][:count], np.float32),
    )


def detections(count: int, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (count, 2))
    grids = tuple(rng.integers(0, 256, (28, 28), np.uint8) for _ in range(count))
    return Detections(
        boxes=np.concatenate([corner, corner + rng.uniform(2, 12, (count, 2))], axis=1).astype(np.float32),
        scores=np.sort(rng.uniform(0.05, 1, count).astype(np.float32))[::-1],
        classes=rng.integers(0, 8, count).astype(np.uint8),
        masks=grids,
    )


def overlap_table(rows: list[tuple[int, int, int, int, int, int]]) -> Overlaps:
    data = np.array(rows, np.uint32).reshape(-1, 6)
    return Overlaps(prev=data[:, 0].astype(np.uint16), next=data[:, 1].astype(np.uint16), pixels=data[:, 2:])


def evidence_frames() -> list[FrameEvidence]:
    return [
        FrameEvidence(detections=detections(3, 1), overlaps=Overlaps.empty()),
        FrameEvidence(
            detections=detections(2, 2), overlaps=overlap_table([(0, 1, 6, 10, 5, 10), (2, 0, 1, 9, 2, 9)])
        ),
        FrameEvidence(detections=Detections.empty(), overlaps=Overlaps.empty()),
        FrameEvidence(detections=detections(1, 3), overlaps=Overlaps.empty()),
    ]


def masks_frames() -> list[FrameMasks]:
    labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    labels[4:10, 5:15] = 1
    labels[12:20, 20:30] = 2
    return [
        FrameMasks(
            labels=encode_labels(labels),
            label_bytes=1,
            instances=Instances(
                track=np.array([1, 2]),
                class_index=np.array([2, 0]),
                score=np.array([0.9, 0.8]),
                area=np.array([60, 80]),
                box=np.array([[4.5, 3.5, 14.5, 9.5], [19.5, 11.5, 29.5, 19.5]]),
                detection=np.array([0, 1]),
            ),
            pairs=Pairs.empty()
            if frame == 0
            else Pairs(prev=np.array([1, 2]), next=np.array([1, 2]), iou=np.array([[0.9, 0.8], [0.7, 0.6]])),
        )
        for frame in range(4)
    ]
