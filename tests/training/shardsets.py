"""Small lossless shard sets whose every pixel and label is known.

Red counts frames, green counts clips, blue is u + 2 v. Each clip shows three objects: track 1, a car,
a 14 x 10 rectangle that moves right by a pixel a frame; track 2, a person, 10 x 8, standing still;
track 3, a car, 6 x 6, seen in even frames only and so never matched with a neighbour. Labels swap
from frame to frame: an equal label is never an equal object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.classes import CLASS_INDEX, CLASSES
from pipeline.shards.codec import encode_image, encode_labels
from pipeline.shards.frames import FramesTable, Segment, encode_frames
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, MasksEntry, write_manifest
from pipeline.shards.masks import FrameMasks, Instances, Pairs, encode_masks

SIZE = (48, 32)
K = np.array([[40.0, 0, 22.25], [0, 41.0, 15.5], [0, 0, 1]])
CAR, PERSON = CLASS_INDEX["car"], CLASS_INDEX["person"]
TRACK_CLASSES = {1: CAR, 2: PERSON, 3: CAR}
_EVIDENCE = "e" * 64


def image_of(clip: int, frame: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8."""
    v, u = np.mgrid[: size[1], : size[0]]
    return np.stack([np.full_like(u, 10 * frame), np.full_like(u, 20 * clip), u + 2 * v], -1).astype(np.uint8)


def tracks_of(frame: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) track id of every pixel, 0 background."""
    tracks = np.zeros(size[::-1], np.uint8)
    tracks[4:14, 4 + frame : 18 + frame] = 1
    tracks[18:26, 30:40] = 2
    if frame % 2 == 0:
        tracks[26:32, 0:6] = 3
    return tracks


def label_table(frame: int, dtype: type = np.uint8) -> tuple[np.ndarray, list[int]]:
    """Label of each track 0..3, and the tracks by label."""
    tracks = [1, 2, 3] if frame % 2 == 0 else [2, 1]
    labels: np.ndarray = np.zeros(4, dtype)
    labels[tracks] = np.arange(1, len(tracks) + 1)
    return labels, tracks


def write_set(
    folder: Path,
    clips: Mapping[str, int],
    *,
    size: tuple[int, int] = SIZE,
    static: Mapping[str, tuple[int, ...]] | None = None,
    file_frames: int = 1000,
    wide_labels: bool = False,
    track_classes: Mapping[int, int] = TRACK_CLASSES,
) -> Path:
    """Write clips (name -> frames); `static` lists frames in which nothing moved since the last one.

    Frame names count without padding, so that their alphabetical order is wrong. A clip longer than
    `file_frames` is spread over several files.
    """
    set_id, digest = "a" * 64, "b" * 64
    entries: list[ClipEntry] = []
    frames_files: dict[str, FileEntry] = {}
    masks_files: dict[str, FileEntry] = {}
    evidence: dict[str, FileEntry] = {}
    number = 0
    for index, (name, count) in enumerate(clips.items()):
        segments = []
        for first in range(0, count, file_frames):
            frames = range(first, min(first + file_frames, count))
            still = (static or {}).get(name, ())
            frames_bytes = encode_frames(
                FramesTable(
                    segments=(Segment(clip=name, first=first, count=len(frames), K=K),),
                    images=tuple(encode_image(image_of(index, frame, size), "png") for frame in frames),
                    names=tuple(str(frame) for frame in frames),
                    timestamps_s=np.array([0.1 * frame + 0.01 * (frame > 3) for frame in frames]),
                    motion_px=np.array([np.nan if f == 0 else 0.0 if f in still else 2.0 for f in frames]),
                ),
                set_id=set_id,
                codec="png",
                size=size,
                static_below_px=0.25,
            )
            masks_bytes = encode_masks(
                [
                    _masks(frame, size, np.uint16 if wide_labels else np.uint8, track_classes)
                    for frame in frames
                ],
                set_id=set_id,
                mask_digest=digest,
                evidence_sha256=_EVIDENCE,
                size=size,
            )
            file = f"{number:05d}.h5"
            for layer, data, files in (
                ("frames", frames_bytes, frames_files),
                ("masks/default", masks_bytes, masks_files),
            ):
                publish(folder / layer / file, data)
                files[file] = FileEntry(
                    sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), frames=len(frames)
                )
            evidence[file] = FileEntry(sha256=_EVIDENCE, bytes=0, frames=len(frames))  # training reads none
            segments.append((number, 0, len(frames)))
            number += 1
        camera = tuple(map(tuple, K.tolist()))
        entries.append(ClipEntry(name=name, frames=count, K=camera, fingerprint="", files=tuple(segments)))
    write_manifest(
        folder,
        Manifest(
            set_id=set_id,
            size=size,
            codec="png",
            classes=CLASSES,
            config={},
            clips=tuple(entries),
            quarantine=(),
            frames=frames_files,
            evidence=evidence,
            masks={"default": MasksEntry(config={}, digest=digest, files=masks_files)},
        ),
    )
    return folder


def _masks(frame: int, size: tuple[int, int], dtype: type, track_classes: Mapping[int, int]) -> FrameMasks:
    labels_of, tracks = label_table(frame, dtype)
    track_map = tracks_of(frame, size)
    pairs = Pairs.empty()
    if frame:
        before, now = label_table(frame - 1)[0], labels_of
        pairs = Pairs(
            prev=before[[2, 1]].astype(np.uint16),
            next=now[[2, 1]].astype(np.uint16),
            iou=np.full((2, 2), 0.9, np.float32),
        )
    return FrameMasks(
        labels=encode_labels(labels_of[track_map]),
        label_bytes=np.dtype(dtype).itemsize,
        instances=Instances(
            track=np.array(tracks),
            class_index=np.array([track_classes[track] for track in tracks]),
            score=np.full(len(tracks), 0.9),
            area=np.array([(track_map == track).sum() for track in tracks]),
            box=np.zeros((len(tracks), 4)),
            detection=np.arange(len(tracks)),
        ),
        pairs=pairs,
    )
