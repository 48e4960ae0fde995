"""Evidence -> one masks layer, under one MaskConfig. The last step of `build`, and all of `remask`.

Both run this code on the published evidence, so a layer is the same bytes whichever made it.

1. per file, in parallel: choose instances, paint label maps, match neighbours;
2. per clip: link matches into tracks;
3. per file: write.

Overlaps of raw detections come from the evidence. Under another mask probability they are
counted again, from the kept flow, or from DIS flow computed again on the stored frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.configuration import digest, from_dict, to_dict
from pipeline.events import Event, event
from pipeline.flow import FlowConfig, compute_flow, dequantise
from pipeline.matching import MaskConfig, Match, Selection, match, overlaps, select
from pipeline.shards.codec import encode_labels
from pipeline.shards.evidence import OVERLAP_PROBABILITY, FrameEvidence, Overlaps
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, MasksEntry, file_name
from pipeline.shards.masks import FrameMasks, Instances, Pairs, encode_masks
from pipeline.shards.reader import ShardSet, locate
from pipeline.shards.storage import Location, open_store
from pipeline.tracks import TrackFrame, link

DEFAULT_LAYER = "default"
"""The layer that a build makes."""


@dataclass(frozen=True, kw_only=True)
class MaskedFrame:
    """One frame after step 1: everything but its track ids."""

    labels: bytes
    label_bytes: int
    class_index: np.ndarray
    score: np.ndarray
    area: np.ndarray
    track: TrackFrame


@dataclass(frozen=True, kw_only=True)
class SelectJob:
    """Step 1 for one file of a published set; small, so that it can travel to a worker."""

    folder: Location
    manifest: Manifest
    config: MaskConfig
    index: int


def masks_entry(config: MaskConfig) -> MasksEntry:
    """A layer without files yet."""
    return MasksEntry(config=to_dict(config), digest=digest(to_dict(config)))


def jobs(folder: Location, manifest: Manifest, config: MaskConfig) -> list[SelectJob]:
    """Step 1 for every file of the set."""
    indices = sorted(int(name.removesuffix(".h5")) for name in manifest.evidence)
    clips_of_file = _clips_by_file(manifest)
    return [
        SelectJob(
            folder=folder,
            manifest=_manifest_of_file(manifest, index, [manifest.clips[i] for i in clips_of_file[index]]),
            config=config,
            index=index,
        )
        for index in indices
    ]


def select_file(job: SelectJob) -> list[MaskedFrame]:
    """Step 1: instances, label maps and direct matches of the frames of one file, in row order."""
    with ShardSet(job.folder, job.manifest) as shards:
        flow_config = from_dict(FlowConfig, job.manifest.config["flow"], "shardset.json: flow")
        masked: list[MaskedFrame] = []
        for clip in job.manifest.clips:
            first = 0
            for index, _, count in clip.files:
                if index == job.index:
                    rows = (locate(clip, frame) for frame in range(max(first - 1, 0), first + count))
                    frames = list(_masked_segment(shards, rows, job.config, flow_config))
                    masked += frames[1:] if first > 0 else frames
                first += count
        return masked


def write_layer(
    folder: Location,
    manifest: Manifest,
    name: str,
    config: MaskConfig,
    selected: Iterable[tuple[int, list[MaskedFrame]]],
    progress: Callable[[int], None] = lambda frames: None,
    before_write: Callable[[], None] = lambda: None,
) -> MasksEntry:
    """Steps 2 and 3: link each clip as soon as all its files are there, and write the files.

    Args:
        selected: (file index, result of `select_file`), in any order.
        progress: called with the number of frames of each file that is written.
        before_write: called once, when the first file is about to be.

    Returns:
        The layer's manifest entry, its files listed by name whatever the order.
    """
    entry, store = masks_entry(config), open_store(folder)
    waiting: dict[int, list[MaskedFrame]] = {}
    tracks: dict[int, dict[int, np.ndarray]] = {}  # file -> row -> track ids
    clips_of_file = _clips_by_file(manifest)
    files: dict[str, FileEntry] = {}
    for index, masked in selected:
        waiting[index] = masked
        for clip_index in clips_of_file[index]:
            clip = manifest.clips[clip_index]
            if all(file in waiting for file, _, _ in clip.files):
                _link_clip(clip.files, waiting, config, tracks)
        for ready in [file for file in waiting if len(tracks.get(file, ())) == len(waiting[file])]:
            data = _encode(manifest, entry.digest, ready, waiting[ready], tracks[ready])
            if not files:
                before_write()
            store.write(f"masks/{name}/{file_name(ready)}", data)
            sha256 = hashlib.sha256(data).hexdigest()
            files[file_name(ready)] = FileEntry(sha256=sha256, bytes=len(data), frames=len(waiting[ready]))
            event(
                Event.FILE_PUBLISHED,
                layer=f"masks/{name}",
                file=file_name(ready),
                frames=len(waiting[ready]),
                bytes=len(data),
            )
            progress(len(waiting[ready]))
            del waiting[ready], tracks[ready]
    return MasksEntry(config=entry.config, digest=entry.digest, files=dict(sorted(files.items())))


def _masked_segment(
    shards: ShardSet, rows: Iterable[tuple[int, int]], config: MaskConfig, flow: FlowConfig
) -> Iterator[MaskedFrame]:
    """Consecutive frames of one clip, given as (file, row); the first one gets no matches."""
    size = shards.manifest.size
    previous: tuple[FrameEvidence, Selection, tuple[int, int]] | None = None
    for at in rows:
        evidence = _evidence(shards, at)
        selection = select(evidence.detections, size, config)
        table, direct = Overlaps.empty(), _no_match()
        if previous is not None:
            table = evidence.overlaps
            if config.mask_probability != OVERLAP_PROBABILITY:
                table = _overlaps_again(shards, previous[2], at, previous[0], evidence, config, flow)
            direct = match(previous[1].detection, selection.detection, table, config.min_iou)
        previous = (evidence, selection, at)
        yield _masked_frame(evidence, selection, table, direct)


def _evidence(shards: ShardSet, at: tuple[int, int]) -> FrameEvidence:
    """Of the frame at (file, row), without its flow."""

    def read() -> FrameEvidence:
        file = shards.evidence_file(at[0])
        return FrameEvidence(detections=file.detections(at[1]), overlaps=file.overlaps(at[1]))

    return shards.reading("evidence", at[0], read)


def _overlaps_again(
    shards: ShardSet,
    before: tuple[int, int],
    here: tuple[int, int],
    prev: FrameEvidence,
    next_: FrameEvidence,
    config: MaskConfig,
    flow_config: FlowConfig,
) -> Overlaps:
    """Overlaps at a mask probability other than the one that the evidence was counted at."""
    size = shards.manifest.size
    kept = shards.reading("evidence", here[0], lambda: shards.evidence_file(here[0]).flow(here[1]))
    if kept is not None:
        flow = dequantise(kept, size)
    else:
        images = [_image(shards, index, row) for index, row in (before, here)]
        flow = compute_flow(images[0], images[1], flow_config)
    return overlaps(prev.detections, next_.detections, flow, size, config.mask_probability)


def _image(shards: ShardSet, index: int, row: int) -> np.ndarray:
    return shards.reading("frames", index, lambda: shards.frames_file(index).image(row))


def _masked_frame(
    evidence: FrameEvidence, selection: Selection, table: Overlaps, direct: Match
) -> MaskedFrame:
    chosen = selection.detection
    return MaskedFrame(
        labels=encode_labels(selection.labels),
        label_bytes=selection.labels.dtype.itemsize,
        class_index=evidence.detections.classes[chosen],
        score=evidence.detections.scores[chosen],
        area=selection.area,
        track=TrackFrame(
            detection=chosen,
            class_index=evidence.detections.classes[chosen],
            box=selection.box,
            match=direct,
            overlaps=table,
            detections=len(evidence.detections),
        ),
    )


def _link_clip(
    files: Sequence[tuple[int, int, int]],
    waiting: Mapping[int, list[MaskedFrame]],
    config: MaskConfig,
    tracks: dict[int, dict[int, np.ndarray]],
) -> None:
    """Step 2: put the track ids of every frame of a clip into `tracks`."""
    rows = [(index, row) for index, first, count in files for row in range(first, first + count)]
    ids = link([waiting[index][row].track for index, row in rows], config.min_iou, config.max_gap)
    for (index, row), frame_ids in zip(rows, ids, strict=True):
        tracks.setdefault(index, {})[row] = frame_ids


def _encode(
    manifest: Manifest,
    mask_digest: str,
    index: int,
    masked: Sequence[MaskedFrame],
    tracks: Mapping[int, np.ndarray],
) -> bytes:
    frames = [
        FrameMasks(
            labels=frame.labels,
            label_bytes=frame.label_bytes,
            instances=Instances(
                track=tracks[row],
                class_index=frame.class_index,
                score=frame.score,
                area=frame.area,
                box=frame.track.box,
                detection=frame.track.detection,
            ),
            pairs=Pairs(
                prev=frame.track.match.prev + 1,
                next=frame.track.match.next + 1,
                iou=frame.track.match.iou,
            ),
        )
        for row, frame in enumerate(masked)
    ]
    return encode_masks(
        frames,
        set_id=manifest.set_id,
        mask_digest=mask_digest,
        evidence_sha256=manifest.evidence[file_name(index)].sha256,
        size=manifest.size,
    )


def _clips_by_file(manifest: Manifest) -> dict[int, list[int]]:
    table: dict[int, list[int]] = {}
    for clip_index, clip in enumerate(manifest.clips):
        for index, _, _ in clip.files:
            table.setdefault(index, []).append(clip_index)
    return table


def _manifest_of_file(manifest: Manifest, index: int, clips: Sequence[ClipEntry]) -> Manifest:
    """What a worker must know to work on one file: as large for a set of any size."""
    # A clip's step into its first frame here needs the last frame of the file before.
    names = {file_name(index), file_name(index - 1)} & manifest.evidence.keys()
    return replace(
        manifest,
        clips=tuple(
            replace(clip, files=tuple(each for each in clip.files if each[0] in (index - 1, index)))
            for clip in clips
        ),
        quarantine=(),
        frames={name: manifest.frames[name] for name in names},
        evidence={name: manifest.evidence[name] for name in names},
        masks={},
    )


def _no_match() -> Match:
    return Match(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
