"""Check every byte and every invariant of a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.cache import DamagedObject, problem_with
from pipeline.shards.codec import decode_image
from pipeline.shards.manifest import ClipEntry, FileEntry, file_name
from pipeline.shards.masks import Instances
from pipeline.shards.reader import ShardSet, locate
from pipeline.shards.storage import MissingObject, ObjectStore

Check = Callable[[str, bool, str], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong: where, and what."""

    where: str
    problem: str


def layers(shards: ShardSet) -> dict[str, dict[str, FileEntry]]:
    """Every layer's folder and the files that the manifest lists in it."""
    manifest = shards.manifest
    masks = {f"masks/{name}": entry.files for name, entry in manifest.masks.items()}
    return {"frames": manifest.frames, "evidence": manifest.evidence, **masks}


def verify_files(shards: ShardSet) -> Iterator[tuple[str, Finding | None]]:
    """Every listed file against its size and SHA-256, and every folder for files not listed.

    Of a URL, every object is fetched again, also where the cache has it.

    Raises:
        ShardError: the store cannot be asked.
    """
    for layer, files in layers(shards).items():
        for name, entry in sorted(files.items()):
            where = f"{layer}/{name}"
            problem = _problem(shards, where, entry)
            yield where, Finding(where=where, problem=problem) if problem else None
        for name in sorted(_names(shards, layer) - files.keys()):
            where = f"{layer}/{name}"
            yield where, Finding(where=where, problem="not in the manifest")
    for name in sorted(_layer_folders(shards) - shards.manifest.masks.keys()):
        where = f"masks/{name}"
        yield (
            where,
            Finding(
                where=where,
                problem="not in the manifest: a layer that is being made, or was left by a remask that was stopped",
            ),
        )


def _problem(shards: ShardSet, name: str, entry: FileEntry) -> str | None:
    if isinstance(shards.folder, Path):
        path = shards.folder / name
        return "missing" if path.is_symlink() or not path.is_file() else problem_with(path, entry)
    assert shards.cache is not None
    try:
        with shards.cache.opened(ObjectStore(shards.folder), name, entry, anew=True):
            return None
    except MissingObject:
        return "missing"
    except DamagedObject as error:
        return error.problem


def _names(shards: ShardSet, layer: str) -> set[str]:
    """HDF5 files in a layer's folder, listed or not; none where a store cannot say."""
    if isinstance(shards.folder, Path):
        return {path.name for path in (shards.folder / layer).glob("*.h5")}
    try:
        return set(ObjectStore(shards.folder).sizes(layer))
    except ShardError:
        return set()


def _layer_folders(shards: ShardSet) -> set[str]:
    """Names of local folders with masks, listed or not."""
    if not isinstance(shards.folder, Path):
        return set()
    return {path.parent.name for path in (shards.folder / "masks").glob("*/*.h5")}


def verify_clip(shards: ShardSet, clip: ClipEntry) -> list[Finding]:
    """Every frame of one clip: decodes, and all tables agree with each other."""
    findings: list[Finding] = []

    def check(where: str, holds: bool, problem: str) -> None:
        if not holds:
            findings.append(Finding(where=where, problem=problem))

    try:
        times = shards.timestamps_s(clip)
        check(clip.name, bool(np.all(np.diff(times) > 0)), "timestamps do not increase")
        _verify_segments(shards, clip, check)
        for frame in range(clip.frames):
            _verify_frame(shards, clip, frame, check)
        for layer in shards.manifest.masks:
            for frame in range(clip.frames):
                _verify_masks(shards, layer, clip, frame, check)
    except ShardError as error:
        findings.append(Finding(where=clip.name, problem=str(error)))
    return findings


def _verify_segments(shards: ShardSet, clip: ClipEntry, check: Check) -> None:
    """The files' own account of the clip against the manifest's."""
    first = 0
    for index, row, count in clip.files:
        start, found = 0, None
        for segment in shards.frames_file(index).segments:
            if start == row:
                found = segment
            start += segment.count
        same = (
            found is not None
            and (found.clip, found.first, found.count) == (clip.name, first, count)
            and np.array_equal(found.K, clip.intrinsics)
        )
        check(clip.name, same, f"frames/{file_name(index)} says otherwise whose frames are at row {row}")
        first += count


def _verify_frame(shards: ShardSet, clip: ClipEntry, frame: int, check: Check) -> None:
    where = f"{clip.name} frame {frame}"
    index, row = locate(clip, frame)
    file = shards.frames_file(index)
    decode_image(file.encoded(row), file.codec, file.size)
    evidence = shards.evidence(clip, frame)
    detections, overlaps = evidence.detections, evidence.overlaps
    scores = detections.scores
    check(where, bool(np.isfinite(detections.boxes).all()), "a detection's box is not finite")
    check(where, bool(((scores >= 0) & (scores <= 1)).all()), "a score is outside [0, 1]")
    check(where, bool((np.diff(scores) <= 0).all()), "detections are not ordered by score")
    check(where, bool((detections.classes < len(shards.manifest.classes)).all()), "a class is unknown")
    before = len(shards.evidence(clip, frame - 1).detections) if frame else 0
    check(where, bool((overlaps.prev < before).all()), "an overlap names a detection that is not there")
    check(
        where, bool((overlaps.next < len(detections)).all()), "an overlap names a detection that is not there"
    )
    check(
        where,
        bool((overlaps.pixels[:, ::2] <= overlaps.pixels[:, 1::2]).all()),
        "an intersection exceeds its union",
    )


def _verify_masks(shards: ShardSet, layer: str, clip: ClipEntry, frame: int, check: Check) -> None:
    where = f"{clip.name} frame {frame}, masks {layer}"
    labels, instances = shards.labels(layer, clip, frame), shards.instances(layer, clip, frame)
    counts = np.bincount(labels.ravel(), minlength=len(instances) + 1)
    check(where, len(counts) == len(instances) + 1, "the label map has a label without an instance")
    check(
        where,
        bool((counts[1 : len(instances) + 1] == instances.area).all()),
        "an area differs from its label",
    )
    check(where, len(set(instances.track.tolist())) == len(instances), "a track occurs twice in the frame")
    check(where, bool((instances.track > 0).all()), "an instance has no track")
    detections = shards.evidence(clip, frame).detections
    exist = bool((instances.detection < len(detections)).all())
    check(where, exist, "an instance names a detection that is not there")
    if exist:
        rows = instances.detection.astype(int)
        alike = np.array_equal(instances.score, detections.scores[rows]) and np.array_equal(
            instances.class_index, detections.classes[rows]
        )
        check(where, alike, "an instance has another score or class than its detection")
    check(where, bool(np.isfinite(instances.box).all()), "an instance's box is not finite")
    pairs = shards.pairs(layer, clip, frame)
    if not len(pairs):
        return
    before = shards.instances(layer, clip, frame - 1) if frame else None
    fits = before is not None and _labels_exist(pairs.prev, before) and _labels_exist(pairs.next, instances)
    check(where, fits, "a pair names a label that is not there")
    if fits and before is not None:
        same = before.track[pairs.prev.astype(int) - 1] == instances.track[pairs.next.astype(int) - 1]
        check(where, bool(same.all()), "matched instances have different tracks")


def _labels_exist(labels: np.ndarray, instances: Instances) -> bool:
    return bool(((labels >= 1) & (labels <= len(instances))).all())
