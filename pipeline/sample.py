"""A few pieces of a build worked on for real, in temporary folders, to see what they cost.

Every sample is the beginning of a piece, made into a piece, a file and masks twice: with two frames, which
also loads the networks and tells how fast they are, and with more. Times are those of a worker
while the others work as well. Bytes of files, and the time to make files and masks, follow a line through
both sizes: so much a frame, so much a file.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.assembly import Layout
from pipeline.build import BuildConfig
from pipeline.classes import CLASSES
from pipeline.clip import stored_camera
from pipeline.errors import InstanceMotionError, SourceError
from pipeline.flow import flow_identity
from pipeline.graph import Failure, Graph, Task
from pipeline.mask_layer import DEFAULT_LAYER, jobs, select_file, write_layer
from pipeline.plan import PlannedFile, PlannedPiece, PlannedSegment
from pipeline.progress import Progress
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, file_name
from pipeline.sources.clip import Clip
from pipeline.worker import FileJob, PieceJob, run_file, run_piece

SAMPLE_S = 20.0
"""No sample begins later than this after the first one, seconds."""
SAMPLE_FRAMES = 128
"""Nor after so many frames."""
TASK_S = 6.0
"""About how long one sample may take once networks are loaded, unless its fewest frames take longer."""
SMALL, LEAST = 2, 4
"""Frames of a sample: at first, and at least after that, where its piece has as many."""
FRAMES, EVIDENCE, MASKS, PIECES = LAYERS = ("frames", "evidence", "masks", "pieces")
"""What bytes are counted of; pieces are gone when a build is done."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What files take, bytes or seconds: so much a frame, and so much a file."""

    per_frame: float
    per_file: float

    def of(self, frames: int, files: int = 1) -> float:
        return frames * self.per_frame + files * self.per_file

    @staticmethod
    def through(pairs: Sequence[tuple[tuple[int, float], tuple[int, float]]]) -> Line:
        """The line through pairs of (frames, value) of a small file and a larger one, summed up."""
        more = sum(large[0] - small[0] for small, large in pairs)
        if not more:  # every piece is as short as can be
            per_frame = sum(large[1] for _, large in pairs) / sum(large[0] for _, large in pairs)
            return Line(per_frame=per_frame, per_file=0.0)
        slope = max(0.0, sum(large[1] - small[1] for small, large in pairs) / more)
        rest = sum(small[1] - slope * small[0] for small, _ in pairs) / len(pairs)
        return Line(per_frame=slope, per_file=max(0.0, rest))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some first frames of a piece took.

    seconds: wall time per stage; piece_s, file_s, masks_s: of the whole piece, file, masks
    cpu_s:   of all threads of the worker
    bytes:   by LAYERS
    """

    frames: int
    seconds: dict[str, float]
    piece_s: float
    file_s: float
    masks_s: float
    cpu_s: float
    bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A piece's beginning, small and large; worker: host and process that it ran in."""

    worker: str
    on_gpu: bool
    small: Cost
    large: Cost


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """clip: the piece's frames and the one before, as a PieceJob has it; folder: None for the worker's own."""

    layout: Layout
    piece: PlannedPiece
    clip: Clip
    config: BuildConfig
    folder: Path | None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a frame needs, seconds, and what its files weigh.

    workers: that took part
    frames:  that were measured
    seconds: wall time per stage in a worker; stages overlap
    piece_s: wall time up to the written piece
    step_s:  to close the step between two pieces
    cpu_s, gpu_s: of all threads of a worker; of stages with a network, where they run on a GPU
    load_s:  to load the networks, once
    file_s, masks_s: wall time to make a file of pieces, and its masks
    bytes:   by LAYERS
    """

    workers: int
    on_gpu: bool
    frames: int
    seconds: dict[str, float]
    piece_s: float
    step_s: float
    cpu_s: float
    gpu_s: float
    load_s: float
    file_s: Line
    masks_s: Line
    bytes: dict[str, Line]

    @staticmethod
    def of(samples: Sequence[Sample], network_stages: Sequence[str]) -> Rates:
        """Means over at least one sample."""
        costs = [sample.large for sample in samples]
        frames = sum(cost.frames for cost in costs)
        seconds: defaultdict[str, float] = defaultdict(float)
        for cost in costs:
            for stage, value in cost.seconds.items():
                seconds[stage] += value / frames
        piece_s = sum(cost.piece_s for cost in costs) / frames
        on_gpu = any(sample.on_gpu for sample in samples)

        def line(value: Callable[[Cost], float]) -> Line:
            return Line.through(
                [((s.small.frames, value(s.small)), (s.large.frames, value(s.large))) for s in samples]
            )

        return Rates(
            workers=len({sample.worker for sample in samples}),
            on_gpu=on_gpu,
            frames=frames,
            seconds=dict(sorted(seconds.items())),
            piece_s=piece_s,
            # A network's flow is kept with the piece.
            step_s=seconds["overlaps"] + (0.0 if "flow" in network_stages else seconds["flow"]),
            cpu_s=sum(cost.cpu_s for cost in costs) / frames,
            gpu_s=sum(seconds[stage] for stage in network_stages) if on_gpu else 0.0,
            load_s=max(max(0.0, s.small.piece_s - s.small.frames * piece_s) for s in samples),
            file_s=line(lambda cost: cost.file_s),
            masks_s=line(lambda cost: cost.masks_s),
            bytes={layer: line(lambda cost, layer=layer: cost.bytes[layer]) for layer in LAYERS},  # type: ignore[misc]
        )


def take_samples(
    graph: Graph,
    layout: Layout,
    clips: Sequence[Clip],
    pieces: Sequence[PlannedPiece],
    config: BuildConfig,
    bar: Progress,
    *,
    folder: Path | None,
    needs_gpu: bool,
) -> tuple[list[Sample], dict[str, str]]:
    """Samples of pieces from all over the list, and why clips failed, by name.

    Raises:
        DetectorError, ConfigError, OSError: what would end a build as well.
    """
    order = spread(len(pieces))
    samples: list[Sample] = []
    failing: dict[str, str] = {}
    begin = time.monotonic()

    def next_task() -> Task | None:
        late = time.monotonic() - begin > SAMPLE_S
        if late or sum(sample.large.frames for sample in samples) >= SAMPLE_FRAMES:
            return None
        for index in order:
            piece = pieces[index]
            clip = clips[piece.clip_index]
            if clip.name not in failing:
                job = PieceJob.of(layout, piece, clip, config.detector)
                return Task(
                    function=run_sample,
                    argument=SampleJob(
                        layout=layout, piece=piece, clip=job.clip, config=config, folder=folder
                    ),
                    key=f"sample-{piece.name}",
                    needs_gpu=needs_gpu,
                )
        return None

    for task, result in graph.run(next_task):
        if isinstance(result, Failure):
            failing[task.argument.clip.name] = _reason(result)
        else:
            samples.append(result)
            bar.advance(result.large.frames)
    return samples, failing


def run_sample(job: SampleJob) -> Sample:
    """What a worker runs."""
    whole = job.piece.stop - job.piece.start
    small = _work(job, min(SMALL, whole))
    a_frame = sum(small.seconds.values()) / small.frames
    large = _work(job, min(whole, max(LEAST, int(TASK_S / max(a_frame, 1e-6)))))
    return Sample(
        worker=f"{socket.gethostname()}:{os.getpid()}",
        on_gpu=_on_gpu(job.config.detector.device),
        small=small,
        large=large,
    )


def spread(count: int) -> Iterator[int]:
    """0..count-1, each once, so that however many are taken first lie all over the range."""
    bits = max(1, (count - 1).bit_length())
    for number in range(1 << bits):
        index = int(f"{number:0{bits}b}"[::-1], 2)
        if index < count:
            yield index


def _work(job: SampleJob, count: int) -> Cost:
    """The first `count` frames of the piece, as a build would work on them, in a folder that is gone then."""
    start = job.piece.start
    piece = replace(job.piece, clip_index=0, stop=start + count)
    lead = job.piece.start - (job.piece.stop - len(job.clip))
    clip = job.clip.part(0, lead + count)
    with tempfile.TemporaryDirectory(prefix="instance-motion-", dir=job.folder) as folder:
        layout = replace(job.layout, folder=Path(folder))
        cpu, times = time.process_time(), [time.perf_counter()]
        report = run_piece(PieceJob(layout=layout, piece=piece, clip=clip, detector=job.config.detector))
        times.append(time.perf_counter())
        file = PlannedFile(index=0, segments=(PlannedSegment(clip_index=0, start=start, stop=start + count),))
        pair = run_file(FileJob(layout=layout, file=file, pieces=(piece,), before=None))
        times.append(time.perf_counter())
        manifest = _manifest(layout, clip, count, pair.frames, pair.evidence)
        (task,) = jobs(layout.folder, manifest, job.config.masks)
        masks = write_layer(
            layout.folder, manifest, DEFAULT_LAYER, job.config.masks, [(0, select_file(task))]
        )
        times.append(time.perf_counter())
        return Cost(
            frames=count,
            seconds=report.seconds,
            piece_s=times[1] - times[0],
            file_s=times[2] - times[1],
            masks_s=times[3] - times[2],
            cpu_s=time.process_time() - cpu,
            bytes={
                FRAMES: pair.frames.bytes,
                EVIDENCE: pair.evidence.bytes,
                MASKS: sum(entry.bytes for entry in masks.files.values()),
                PIECES: sum(path.stat().st_size for path in layout.piece_paths(piece)),
            },
        )


def _manifest(layout: Layout, clip: Clip, count: int, frames: FileEntry, evidence: FileEntry) -> Manifest:
    """Of a set that has this one file."""
    K = stored_camera(clip.camera, layout.frames).K
    return Manifest(
        set_id=layout.set_id,
        size=layout.frames.size,
        codec=layout.frames.codec,
        classes=CLASSES,
        config={"flow": flow_identity(layout.flow)},
        clips=(
            ClipEntry(
                name=clip.name,
                frames=count,
                K=tuple(map(tuple, K.tolist())),
                fingerprint=clip.fingerprint,
                files=((0, 0, count),),
            ),
        ),
        quarantine=(),
        frames={file_name(0): frames},
        evidence={file_name(0): evidence},
    )


def _reason(failure: Failure) -> str:
    """Why a clip would be quarantined; raises what would end the build."""
    if failure.killed:
        return f"its workers died again and again ({failure.error})"
    if isinstance(failure.error, SourceError):
        return str(failure.error)
    if isinstance(failure.error, (InstanceMotionError, OSError)):
        raise failure.error
    return f"unexpected {type(failure.error).__name__}: {failure.error}"


def _on_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
