"""Frames and evidence of all clips: which task comes next, and what its result means.

A clip whose frames cannot be read, or that kills its workers again and again, is
quarantined: the rest goes on. Anything that would fail for every clip (a full disk, a
detector that does not load) ends the build; finished work stays.
"""

from __future__ import annotations

import errno
import sys
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.assembly import FilePair, Layout, remove_piece, written_pieces
from pipeline.earlier import clips_of_files, is_whole_pair, set_aside
from pipeline.errors import BuildError, InstanceMotionError, SourceError
from pipeline.events import Event, event
from pipeline.graph import Failure, Graph, Task
from pipeline.plan import PlannedFile, PlannedPiece
from pipeline.progress import Progress
from pipeline.records import read_record, restore, withdraw, write_record
from pipeline.shards.manifest import Manifest, file_name
from pipeline.sources.clip import Clip
from pipeline.timings import RunTimes, note_piece, read_times
from pipeline.worker import FileJob, PieceJob, PieceReport, run_file, run_piece

if TYPE_CHECKING:
    from pipeline.build import BuildConfig

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class EvidenceResult:
    """files: what was published, by file index; failed: reason by clip name; runs: see RunTimes."""

    files: dict[int, FilePair]
    failed: dict[str, str]
    worked_frames: int
    detections: int
    seconds: dict[str, float]
    runs: tuple[RunTimes, ...]

    @staticmethod
    def nothing() -> EvidenceResult:
        return EvidenceResult(files={}, failed={}, worked_frames=0, detections=0, seconds={}, runs=())


@dataclass
class _FileState:
    """What one planned file still waits for."""

    planned: PlannedFile
    pieces: tuple[PlannedPiece, ...]
    before: PlannedPiece | None
    missing: set[PlannedPiece] = field(default_factory=set)
    published: FilePair | None = None
    is_ready: bool = False


class EvidenceBuild:
    """The state of a build's first part, in the process that drives it.

    What a finished piece or file costs here does not grow with the data set: who waits for a
    piece is looked up, never searched for.
    """

    def __init__(
        self,
        layout: Layout,
        clips: Sequence[Clip],
        files: Sequence[PlannedFile],
        config: BuildConfig,
        *,
        needs_gpu: bool,
        before: Manifest | None = None,
    ) -> None:
        """See `build`. before: what readers know already; it is taken from them before a file of it changes."""
        self._before = before
        self._listed = clips_of_files(before) if before else {}
        self._layout, self._clips, self._config, self._needs_gpu = layout, clips, config, needs_gpu
        per_piece = config.plan.frames_per_piece
        self._files = [
            _FileState(
                planned=file, pieces=file.pieces(per_piece), before=_piece_before(files, file, per_piece)
            )
            for file in files
        ]
        self._borders = {state.before for state in self._files}
        self._waiting: defaultdict[PlannedPiece, list[_FileState]] = defaultdict(list)
        self._began = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._failed: dict[str, str] = {}
        self._todo: dict[PlannedPiece, None] = {}  # ordered
        self._ready: deque[_FileState] = deque()
        self._done_frames = self._worked_frames = self._detections = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._find_finished_work()

    @property
    def frames_total(self) -> int:
        return sum(len(clip) for clip in self._clips)

    def run(self, graph: Graph, bar: Progress) -> EvidenceResult:
        """Do what is left.

        Raises:
            BuildError, DetectorError, ConfigError: nothing can go on.
        """
        bar.skip(self._done_frames)
        for task, result in graph.run(self._next_task):
            if isinstance(task.argument, PieceJob):
                self._take_piece(task.argument, result, bar)
            else:
                self._take_file(task.argument, result)
        self._drop_failed_files()
        return EvidenceResult(
            files={
                state.planned.index: state.published for state in self._files if state.published is not None
            },
            failed=dict(self._failed),
            worked_frames=self._worked_frames,
            detections=self._detections,
            seconds=dict(self._seconds),
            runs=read_times(self._times_path),
        )

    def placement(self, failed: Mapping[str, str]) -> dict[str, tuple[tuple[int, int, int], ...]]:
        """Per clip: (file, first row, frames) of its segments, without the clips that failed."""
        placed: dict[str, list[tuple[int, int, int]]] = {}
        for state in self._files:
            row = 0
            for segment in state.planned.segments:
                name = self._clips[segment.clip_index].name
                if name in failed:
                    continue
                count = segment.stop - segment.start
                placed.setdefault(name, []).append((state.planned.index, row, count))
                row += count
        return {name: tuple(segments) for name, segments in placed.items()}

    @property
    def _times_path(self) -> Path:
        return self._layout.work / "timings.jsonl"

    def _find_finished_work(self) -> None:
        written = written_pieces(self._layout)
        for state in self._files:
            index = state.planned.index
            state.published = read_record(self._layout, index, self._clip_names(state.pieces))
            if state.published is not None:
                restore(self._layout, index, state.published)
                self._done_frames += sum(piece.stop - piece.start for piece in state.pieces)
                continue
            for piece in (*([state.before] if state.before else []), *state.pieces):
                if piece.name not in written:
                    self._todo[piece] = None
                    state.missing.add(piece)
                    self._waiting[piece].append(state)
                elif piece is not state.before:
                    self._done_frames += piece.stop - piece.start
            self._check_ready(state)

    def _next_task(self) -> Task | None:
        while self._ready:
            if task := self._file_task(self._ready.popleft()):
                return task
        while self._todo:
            piece = next(iter(self._todo))
            del self._todo[piece]
            if self._clips[piece.clip_index].name in self._failed:
                continue
            clip = self._clips[piece.clip_index]
            job = PieceJob.of(self._layout, piece, clip, self._config.detector)
            return Task(
                function=run_piece,
                argument=job,
                key=f"piece-{piece.name}",
                needs_gpu=self._needs_gpu,
                group=clip.name,
            )
        return None

    def _file_task(self, state: _FileState) -> Task | None:
        """None where nothing of a file is left to go in."""
        pieces = tuple(
            piece for piece in state.pieces if self._clips[piece.clip_index].name not in self._failed
        )
        if not pieces:
            return None
        self._before_change(state.planned.index, self._clip_names(pieces))
        job = FileJob(layout=self._layout, file=state.planned, pieces=pieces, before=state.before)
        return Task(function=run_file, argument=job, key=f"file-{state.planned.index:05d}")

    def _take_piece(self, job: PieceJob, result: PieceReport | Failure, bar: Progress) -> None:
        clip = job.clip.name
        if isinstance(result, Failure):
            self._quarantine(clip, _reason(clip, result), bar)
        else:
            self._worked_frames += result.frames
            self._detections += result.detections
            for stage, seconds in result.seconds.items():
                self._seconds[stage] += seconds
            event(
                Event.PIECE_DONE,
                clip=clip,
                piece=job.piece.name,
                frames=result.frames,
                detections=result.detections,
                seconds=result.seconds,
            )
            note_piece(self._times_path, self._began, job.piece.name, result.frames, result.seconds)
            bar.advance(result.frames)
        self._no_longer_missing(job.piece)

    def _quarantine(self, clip: str, reason: str, bar: Progress) -> None:
        if clip in self._failed:
            return
        self._failed[clip] = reason
        event(Event.CLIP_QUARANTINED, clip=clip, reason=reason)
        bar.say(f"quarantined {clip}: {reason}")
        for piece in [each for each in self._waiting if self._clips[each.clip_index].name == clip]:
            self._no_longer_missing(piece)

    def _no_longer_missing(self, piece: PlannedPiece) -> None:
        for state in self._waiting.pop(piece, ()):
            state.missing.discard(piece)
            self._check_ready(state)

    def _check_ready(self, state: _FileState) -> None:
        if not state.missing and not state.is_ready:
            state.is_ready = True
            self._ready.append(state)

    def _take_file(self, job: FileJob, result: FilePair | Failure) -> None:
        if isinstance(result, Failure):
            if result.killed:
                raise BuildError(
                    f"workers died again and again while they assembled file {job.file.index} ({result.error}); "
                    "give them more memory, or build into a new folder with fewer --frames-per-file"
                )
            raise _fatal(result)
        state = self._files[job.file.index]
        state.published = result
        for layer, entry in (("frames", result.frames), ("evidence", result.evidence)):
            name = file_name(job.file.index)
            event(Event.FILE_PUBLISHED, layer=layer, file=name, frames=entry.frames, bytes=entry.bytes)
        clips = self._clip_names(job.pieces)
        write_record(self._layout, job.file.index, clips, result)
        if clips != self._clip_names(state.pieces):
            return  # the others' pieces are needed when the failed clips are tried again
        for piece in state.pieces:
            if piece not in self._borders:
                remove_piece(self._layout, piece)

    def _drop_failed_files(self) -> None:
        """Files of a long clip may have been published before another part of it failed: kept for the next run."""
        for state in self._files:
            names = self._clip_names(state.pieces)
            was_there = state.published is not None or state.planned.index in self._listed
            if was_there and all(name in self._failed for name in names):
                state.published = None
                self._before_change(state.planned.index, [])
                withdraw(self._layout, state.planned.index)

    def _before_change(self, index: int, clips: Sequence[str]) -> None:
        """A file is about to be written with these clips: nobody is to read a listed one that becomes another."""
        if self._before is None or index not in self._listed:
            return
        out = self._layout.folder
        if self._listed[index] != list(clips) or not is_whole_pair(out, index, self._before):
            set_aside(out)

    def _clip_names(self, pieces: Sequence[PlannedPiece]) -> list[str]:
        return list(dict.fromkeys(self._clips[piece.clip_index].name for piece in pieces))


def _piece_before(files: Sequence[PlannedFile], file: PlannedFile, per_piece: int) -> PlannedPiece | None:
    if file.segments[0].start == 0:
        return None
    return files[file.index - 1].pieces(per_piece)[-1]


def _reason(clip: str, failure: Failure) -> str:
    """Why a clip is quarantined; raises what must end the build."""
    if failure.killed:
        return f"its workers died again and again ({failure.error})"
    if isinstance(failure.error, SourceError):
        return str(failure.error)
    if isinstance(failure.error, (InstanceMotionError, OSError)):
        raise _fatal(failure)
    print(f"unexpected error in clip {clip}:\n{failure.details}", file=sys.stderr)
    return f"unexpected {type(failure.error).__name__}: {failure.error}"


def _fatal(failure: Failure) -> BaseException:
    error = failure.error
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return BuildError(f"the disk is full ({error.strerror}); make room and run the same build again")
    return error
