"""Tracks and masks of a shard set of streetworld clips against their exact truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evaluation.masks import FrameMasks, MaskAP, mask_ap
from evaluation.tracks import TrackCounts, TrackedFrame, count_tracks, resample_ids
from pipeline.errors import ShardError
from pipeline.masks import paste
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet
from pipeline.streetworld.truth import TRUTH_FILE, Truth, read_truth


def score_tracks(shards: ShardSet, truth: Path, layer: str, min_area: int) -> TrackCounts:
    """Sums over all clips of the set."""
    total = TrackCounts()
    for clip, exact in _clips_with_truth(shards, truth):
        frames = []
        for frame in range(clip.frames):
            pairs = shards.pairs(layer, clip, frame)
            frames.append(
                TrackedFrame(
                    labels=shards.labels(layer, clip, frame),
                    track=shards.instances(layer, clip, frame).track,
                    pairs=np.stack([pairs.prev, pairs.next], axis=-1),
                    true_ids=_stored_ids(shards, clip, exact, frame),
                )
            )
        total += count_tracks(frames, min_area)
    return total


def score_masks(shards: ShardSet, truth: Path) -> list[MaskAP]:
    """AP of the raw detections, pasted at 0.5, of every frame."""
    true_frames, predicted = [], []
    for clip, exact in _clips_with_truth(shards, truth):
        label_of = dict(zip(exact.objects.id.tolist(), exact.objects.label, strict=True))
        for frame in range(clip.frames):
            ids = _stored_ids(shards, clip, exact, frame)
            present = [int(i) for i in np.unique(ids) if i]
            true_frames.append(
                FrameMasks(
                    masks=_stack([ids == i for i in present], ids.shape),
                    classes=[label_of[i] for i in present],
                )
            )
            predicted.append(_predicted(shards, clip, frame))
    return mask_ap(true_frames, predicted)


def _predicted(shards: ShardSet, clip: ClipEntry, frame: int) -> FrameMasks:
    found = shards.evidence(clip, frame).detections
    width, height = size = shards.manifest.size
    masks = []
    for grid, box in zip(found.masks, found.boxes, strict=True):
        patch = paste(grid, box, size)
        mask = np.zeros((height, width), bool)
        mask[patch.slices] = patch.mask
        masks.append(mask)
    names = [shards.manifest.classes[index] for index in found.classes]
    return FrameMasks(masks=_stack(masks, (height, width)), classes=names, scores=found.scores)


def _clips_with_truth(shards: ShardSet, folder: Path) -> Iterator[tuple[ClipEntry, Truth]]:
    for clip in shards.manifest.clips:
        path = folder / clip.name / TRUTH_FILE
        if not path.is_file():
            raise ShardError(
                f"{path} is missing; give the streetworld folder that {shards.folder} was built from"
            )
        exact = read_truth(path)
        if len(exact.ids) != clip.frames:
            raise ShardError(
                f"{path} has {len(exact.ids)} frames, clip {clip.name} {clip.frames}; build without stride"
            )
        yield clip, exact


def _stored_ids(shards: ShardSet, clip: ClipEntry, exact: Truth, frame: int) -> np.ndarray:
    return resample_ids(exact.ids[frame], exact.K, clip.intrinsics, shards.manifest.size)


def _stack(masks: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(masks) if masks else np.zeros((0, *shape), bool)
