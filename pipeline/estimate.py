"""What a build will take, found out before it: plan it, work on a few pieces for real, extrapolate.

The set's folder is only looked at. Pieces are sampled by the build's own workers, from all over the work
that is left (see `pipeline.sample`).
"""

from __future__ import annotations

import heapq
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.assembly import Layout, written_pieces
from pipeline.build import BuildConfig, describe, gpu_count, needs_gpu_for
from pipeline.configuration import canonical_json, digest
from pipeline.detectors import check_detector
from pipeline.earlier import has_other_masks, is_complete, is_unfinished, is_whole_pair, listed_before
from pipeline.errors import ShardError, SourceError
from pipeline.graph import GraphConfig, open_graph
from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.matching import MaskConfig
from pipeline.plan import PlannedFile, PlannedPiece, plan_files
from pipeline.progress import Progress
from pipeline.records import read_record
from pipeline.sample import EVIDENCE, FRAMES, MASKS, PIECES, SAMPLE_FRAMES, Rates, take_samples
from pipeline.shards.manifest import Manifest, QuarantineEntry, read_manifest
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.scan import scan

Standing = Literal["new", "unfinished", "complete", "other"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A planned build, and how much of it is there.

    files:   every planned file with its pieces
    left:    pieces that are neither written nor in a published file
    missing: files that are not published
    """

    files: Mapping[PlannedFile, tuple[PlannedPiece, ...]]
    left: tuple[PlannedPiece, ...]
    missing: tuple[PlannedFile, ...]

    @property
    def pieces(self) -> tuple[PlannedPiece, ...]:
        return tuple(piece for pieces in self.files.values() for piece in pieces)

    def pieces_s(self, rates: Rates) -> float:
        """Wall time of the pieces that are left."""
        return makespan(map(frames_of, self.left), rates.workers) * rates.piece_s

    def files_s(self, rates: Rates) -> float:
        """Wall time to make files of them, and to close the steps between them."""
        return makespan(
            (
                rates.file_s.of(self.frames_in(file))
                + rates.step_s * sum(piece.start > 0 for piece in self.files[file])
                for file in self.missing
            ),
            rates.workers,
        )

    def masks_s(self, rates: Rates) -> float:
        """Wall time to make the masks of all files."""
        return makespan((rates.masks_s.of(self.frames_in(file)) for file in self.files), rates.workers)

    def peak(self, workers: int) -> tuple[int, int]:
        """Frames and pieces that lie in OUT/.build when most are there.

        That is when the largest file is assembled: its own pieces, a piece a worker beyond the first,
        and the last pieces of files whose clip goes on in the next file, which stay until the end.
        """
        largest = max(self.files, key=self.frames_in)
        kept = [
            self.files[before][-1]
            for before, after in zip(self.files, list(self.files)[1:], strict=False)
            if after.segments[0].start > 0
        ]
        most = max(map(frames_of, self.pieces))
        there = [*map(frames_of, self.files[largest]), *map(frames_of, kept), *[most] * (workers - 1)]
        total = sum(map(frames_of, self.pieces))
        return min(total, sum(there)), min(len(self.pieces), len(there))

    def frames_in(self, file: PlannedFile) -> int:
        return sum(map(frames_of, self.files[file]))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build will take. Times and hours are those of what is left to do.

    standing:  what `out` holds: nothing of it, a part of this build, all of it, something else
    remark:    the same in words
    unusable:  clips that cannot be opened; failing: clips that failed when they were worked on
    workers:   that would work at a time; sampled_frames, sample_s: what was tried, and for how long
    seconds:   a frame and stage, in a worker; stages overlap in time
    wall_s:    of all: start_s for scanning, starting workers and loading networks, then pieces_s, files_s,
               masks_s for working on pieces, making files of them, and masks
    gpu_hours: of the networks, 0 without a GPU; cpu_hours: of the workers
    bytes:     of the whole set by layer; bytes_a_frame: the same a frame
    build_folder_bytes: most that OUT/.build holds at a time, beside the layers
    needed_bytes: still to be written, .build included; free_bytes: on the file system of `out`
    """

    out: str
    standing: Standing
    remark: str
    clips: int
    unusable: tuple[QuarantineEntry, ...]
    failing: tuple[QuarantineEntry, ...]
    frames: int
    frames_left: int
    files: int
    pieces: int
    pieces_left: int
    workers: int
    on_gpu: bool
    sampled_frames: int
    sample_s: float
    seconds: dict[str, float]
    wall_s: float
    start_s: float
    pieces_s: float
    files_s: float
    masks_s: float
    gpu_hours: float
    cpu_hours: float
    bytes: dict[str, int]
    bytes_a_frame: dict[str, float]
    build_folder_bytes: int
    needed_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is still to be written."""
        return self.needed_bytes <= self.free_bytes


def estimate(
    source: Path, out: Path, config: BuildConfig, graph: GraphConfig, *, quiet: bool = False
) -> Estimate:
    """Find out what `build` with the same arguments would take, without touching `out`.

    Raises:
        SourceError: nothing usable in `source`, or every clip that was tried failed.
        BuildError: no worker can do the work.
        DetectorError, ConfigError: the networks cannot be loaded.
    """
    begin = time.monotonic()
    source, out = source.absolute(), out.absolute()
    scanned = scan(source, config.source)
    clips = [clip for clip in scanned if isinstance(clip, Clip)]
    bad = [clip for clip in scanned if isinstance(clip, BadClip)]
    if not clips:
        raise SourceError(f"{source}: no usable clip{f': {bad[0].name}: {bad[0].reason}' if bad else ''}")
    description = describe(config, clips, bad)
    check_detector(config.detector, {clip.name: clip.frame_names for clip in clips})
    layout = Layout(folder=out, set_id=digest(description), frames=config.frames, flow=config.flow)
    standing, remark = find_standing(out, description, config.masks)
    work = _work(layout, clips, config, standing)
    scanned_s = time.monotonic() - begin

    rates, failing, opened_s = None, dict[str, str](), 0.0
    if standing != "complete":
        rates, failing, opened_s = _rates(source, layout, clips, work, config, graph, quiet)
    frames = sum(len(clip) for clip in clips)
    left = sum(map(frames_of, work.left))
    parts = [scanned_s, 0.0, 0.0, 0.0]
    if rates:
        start_s = scanned_s + opened_s + rates.load_s
        parts = [start_s, work.pieces_s(rates), work.files_s(rates), work.masks_s(rates)]
    sizes = _sizes(work, rates) if rates else _stored(read_manifest(out))
    peak_bytes = round(rates.bytes[PIECES].of(*work.peak(rates.workers))) if rates else 0
    there = _bytes_in(out) if standing == "unfinished" else 0
    return Estimate(
        out=str(out),
        standing=standing,
        remark=remark,
        clips=len(clips),
        unusable=tuple(QuarantineEntry(clip=clip.name, reason=clip.reason) for clip in bad),
        failing=tuple(QuarantineEntry(clip=name, reason=failing[name]) for name in sorted(failing)),
        frames=frames,
        frames_left=left,
        files=len(work.files),
        pieces=len(work.pieces),
        pieces_left=len(work.left),
        workers=rates.workers if rates else 0,
        on_gpu=rates.on_gpu if rates else False,
        sampled_frames=rates.frames if rates else 0,
        sample_s=round(time.monotonic() - begin - scanned_s, 3) if rates else 0.0,
        seconds={stage: round(value, 6) for stage, value in rates.seconds.items()} if rates else {},
        wall_s=round(sum(parts), 3),
        start_s=round(parts[0], 3),
        pieces_s=round(parts[1], 3),
        files_s=round(parts[2], 3),
        masks_s=round(parts[3], 3),
        gpu_hours=round(left * rates.gpu_s / 3600, 6) if rates else 0.0,
        cpu_hours=round(left * rates.cpu_s / 3600, 6) if rates else 0.0,
        bytes=sizes,
        bytes_a_frame={layer: round(size / frames, 1) for layer, size in sizes.items()},
        build_folder_bytes=peak_bytes,
        needed_bytes=max(0, sum(sizes.values()) + peak_bytes - there) if rates else 0,
        free_bytes=_free_bytes(out),
    )


def makespan(lengths: Iterable[float], workers: int) -> float:
    """When the last job ends if each goes, in order, to the worker that is free first."""
    ends = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def frames_of(piece: PlannedPiece) -> int:
    return piece.stop - piece.start


def find_standing(out: Path, description: Mapping[str, Any], masks: MaskConfig) -> tuple[Standing, str]:
    """What a folder holds, seen from a build with this description (see `pipeline.build.describe`)."""
    if out.exists() and not out.is_dir():
        return "other", "is a file; choose another name"
    try:
        listed = listed_before(out)
    except ShardError as error:
        return "other", str(error)
    if listed is not None:
        if listed.set_id != digest(description):
            return "other", "holds a set that was built from other input or settings; choose another folder"
        if has_other_masks(listed, masks):
            standing: Standing = "other" if is_unfinished(out) else "complete"
            return standing, "is there already, with other mask settings; remask makes another masks layer"
        if is_complete(out, listed):
            return "complete", "complete; nothing is left to do"
        if not is_unfinished(out):
            return "unfinished", "holds this build, but for files that are missing"
    try:
        before = json.loads((out / ".build" / "plan.json").read_text())
    except FileNotFoundError:
        leftovers = [name for name in ("frames", "evidence", "masks") if (out / name).exists()]
        if leftovers:
            return "other", f"is not empty ({leftovers[0]}/ is there); choose another folder"
        return "new", "holds nothing of this build" if out.exists() else "does not exist yet"
    except (OSError, ValueError, RecursionError) as error:
        return "other", f".build/plan.json cannot be read ({' '.join(str(error).split())}); delete the folder"
    if not isinstance(before, dict):
        return "other", ".build/plan.json is damaged; delete the folder"
    for part, value in description.items():
        if canonical_json(before.get(part)) != canonical_json(value):
            return "other", f"holds an unfinished build with other {part}; choose another folder"
    return "unfinished", "holds a part of this build"


def _work(layout: Layout, clips: Sequence[Clip], config: BuildConfig, standing: Standing) -> Work:
    planned = plan_files([len(clip) for clip in clips], config.plan)
    files = {file: file.pieces(config.plan.frames_per_piece) for file in planned}
    if standing == "complete":
        return Work(files=files, left=(), missing=())
    missing, written = planned, set[str]()
    if standing == "unfinished":
        listed = None if is_unfinished(layout.folder) else listed_before(layout.folder)
        missing = tuple(
            file
            for file in planned
            if read_record(layout, file.index, _clips_of(file, clips)) is None
            and (listed is None or not is_whole_pair(layout.folder, file.index, listed))
        )
        written = written_pieces(layout)
    left = tuple(piece for file in missing for piece in files[file] if piece.name not in written)
    return Work(files=files, left=left, missing=missing)


def _clips_of(file: PlannedFile, clips: Sequence[Clip]) -> list[str]:
    return list(dict.fromkeys(clips[segment.clip_index].name for segment in file.segments))


def _rates(
    source: Path,
    layout: Layout,
    clips: Sequence[Clip],
    work: Work,
    config: BuildConfig,
    graph: GraphConfig,
    quiet: bool,
) -> tuple[Rates, dict[str, str], float]:
    """What sampled pieces cost, why clips failed, and how long workers took to start."""
    begin = time.monotonic()
    needs_gpu = needs_gpu_for(config.detector)
    # Workers elsewhere do not see a temporary folder of this machine; here it is gone even if they are killed.
    with (
        tempfile.TemporaryDirectory(prefix="instance-motion-") as folder,
        open_graph(
            graph, gpus=gpu_count() if needs_gpu else 0, needs_gpu=needs_gpu, shared=(source,)
        ) as opened,
        Progress("sample", min(SAMPLE_FRAMES, sum(map(frames_of, work.pieces))), quiet=quiet) as bar,
    ):
        opened_s = time.monotonic() - begin
        samples, failing = take_samples(
            opened,
            layout,
            clips,
            work.left or work.pieces,
            config,
            bar,
            folder=None if graph.scheduler else Path(folder),
            needs_gpu=needs_gpu,
        )
    if not samples:
        name, reason = next(iter(failing.items()))
        raise SourceError(f"every clip that was tried failed; the first: {name}: {reason}")
    stages = ["detect"] * (not config.detector.detector.startswith("masks:"))
    stages += ["flow"] * (config.flow.flow == "raft")
    return Rates.of(samples, stages), failing, opened_s


def _sizes(work: Work, rates: Rates) -> dict[str, int]:
    frames = sum(map(frames_of, work.pieces))
    return {
        layer: round(rates.bytes[layer].of(frames, len(work.files))) for layer in (FRAMES, EVIDENCE, MASKS)
    }


def _stored(manifest: Manifest) -> dict[str, int]:
    """Bytes by layer of a set that is complete."""
    masks = manifest.masks.get(DEFAULT_LAYER)
    entries = {FRAMES: manifest.frames, EVIDENCE: manifest.evidence, MASKS: masks.files if masks else {}}
    return {layer: sum(entry.bytes for entry in files.values()) for layer, files in entries.items()}


def _bytes_in(out: Path) -> int:
    """Of what a build has written so far."""
    folders = [out / FRAMES, out / EVIDENCE, out / MASKS / DEFAULT_LAYER, out / ".build"]
    return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _free_bytes(out: Path) -> int:
    """On the file system on which `out` is, or would be."""
    return shutil.disk_usage(next(each for each in (out, *out.parents) if each.exists())).free
