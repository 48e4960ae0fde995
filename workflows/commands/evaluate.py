"""Score a shard set of streetworld clips against their exact truth.

evaluate tracks   matched pairs and tracks against true object ids
evaluate masks    average precision of raw detections, or of a masks layer
evaluate motion   depth, camera motion and object motion of predictions
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from evaluation.figure import figures_json, figures_table
from evaluation.masks import FrameMasks, MaskAP, ap_table, mask_ap
from evaluation.streetworld import score_streetworld
from evaluation.tracks import TrackCounts, TrackedFrame, count_tracks, figures, resample_ids
from pipeline.build import DEFAULT_LAYER
from pipeline.configuration import to_dict
from pipeline.errors import ShardError
from pipeline.masks import paste
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet
from pipeline.streetworld.truth import TRUTH_FILE, Truth, read_truth


@dataclass(frozen=True)
class Tracks:
    """Matched pairs and tracks against true object ids."""

    shards: tyro.conf.Positional[Path]
    """Folder of the shard set."""
    truth: tyro.conf.Positional[Path]
    """Folder of the streetworld clips that it was built from."""
    layer: str = DEFAULT_LAYER
    """Masks layer."""
    min_area: int = 64
    """True objects with fewer visible pixels in a frame are not asked for there."""
    json: bool = False
    """Print the figures as JSON."""


@dataclass(frozen=True)
class Masks:
    """Average precision of the raw detections by class and size, by COCO's protocol."""

    shards: tyro.conf.Positional[Path]
    """Folder of the shard set."""
    truth: tyro.conf.Positional[Path]
    """Folder of the streetworld clips that it was built from."""
    json: bool = False
    """Print the figures as JSON."""


@dataclass(frozen=True)
class Motion:
    """Depth, camera motion and object motion of predictions against exact truth."""

    predictions: tyro.conf.Positional[Path]
    """Folder that `predict` wrote."""
    truth: tyro.conf.Positional[Path]
    """Folder of the streetworld clips that the shard set was built from."""
    json: bool = False
    """Print the figures as JSON."""


Arguments = (
    Annotated[Tracks, tyro.conf.subcommand("tracks")]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[Motion, tyro.conf.subcommand("motion")]
)


def run(arguments: Tracks | Masks | Motion) -> int:
    if isinstance(arguments, Motion):
        found = score_streetworld(arguments.predictions, arguments.truth)
        print(figures_json(found) if arguments.json else figures_table(found))
        return 0
    with ShardSet(arguments.shards) as shards:
        if isinstance(arguments, Tracks):
            counts = score_tracks(shards, arguments.truth, arguments.layer, arguments.min_area)
            protocol = f"streetworld, masks {arguments.layer}, objects from {arguments.min_area} px"
            found = figures(counts, protocol)
            if arguments.json:
                print(figures_json(found))
            else:
                print(
                    f"{protocol}; {counts.frames} frames, {counts.objects} objects, {counts.switches} switches"
                )
                print(figures_table(found))
        else:
            results = score_masks(shards, arguments.truth)
            print(
                json.dumps([to_dict(each) for each in results], indent=1)
                if arguments.json
                else ap_table(results)
            )
    return 0


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
