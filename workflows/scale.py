"""What a build costs as the data set grows: a table, from real builds on a real dask cluster.

    python -m workflows.scale [FOLDER] [--sets tenth kitti cityscapes drive] [--workers 2]

Frames are tiny (64x48 video, stored at 64x32) and the detector is free: masks that exist already,
three to a frame. Everything else is what a user runs: scheduler and workers are processes of
their own (`dask scheduler`, `dask worker`), the build is the command. Half way the build is
killed with SIGKILL, and run again. All four sets are 296,200 frames: begin with `--sets tenth`.

    tenth        15 clips of 280 frames, a tenth of KITTI raw
    kitti       150 clips of 280 frames, as many frames and clips as KITTI raw
    cityscapes 5000 clips of  30 frames, as Cityscapes' sequences
    drive         1 clip  of 100,000 frames, an hour of video

Columns: tasks, how many of them the scheduler ever knew at once; memory of the scheduler at the
start and at most, of the driver and of one worker at most; the manifest; wall time of the whole build but for the
kill, and a frame; seconds from the second start to its first finished piece (scanning included);
seconds of a third run that finds nothing to do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import tyro

from pipeline.plan import PlanConfig, plan_files
from pipeline.shards.manifest import MANIFEST, read_manifest

FRAME_SIZE, STORED_SIZE = (64, 48), (64, 32)


@dataclass(frozen=True)
class DataSet:
    """Clips of equal length."""

    clips: int
    frames: int


SETS = {
    "tenth": DataSet(15, 280),
    "kitti": DataSet(150, 280),
    "cityscapes": DataSet(5000, 30),
    "drive": DataSet(1, 100_000),
}


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path | None] = None
    """Where to work; a temporary folder unless given. What is made there is deleted."""
    sets: tuple[Literal["tenth", "kitti", "cityscapes", "drive"], ...] = (
        "tenth",
        "kitti",
        "cityscapes",
        "drive",
    )
    """Which data sets, in order."""
    workers: int = 2
    """Worker processes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured on one data set. Memory in MiB, times in seconds."""

    clips: int
    frames: int
    tasks: int
    tasks_at_once: int
    scheduler_start: float
    scheduler_most: float
    driver_most: float
    worker_most: float
    manifest_bytes: int
    build_s: float
    resume_s: float
    nothing_s: float


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{'':12}{'clips':>6} {'frames':>7} {'tasks':>6} {'at once':>7}  {'scheduler MiB':>15} {'driver':>6} "
        f"{'worker':>6}  {'manifest kB':>11}  {'build s':>7} {'ms/frame':>8}  {'resume s':>8} {'nothing s':>9}"
    )
    for name in arguments.sets:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            row = measure(Path(folder), SETS[name], arguments.workers)
        print(
            f"{name:12}{row.clips:6} {row.frames:7} {row.tasks:6} {row.tasks_at_once:7}  "
            f"{row.scheduler_start:6.0f} -> {row.scheduler_most:5.0f} {row.driver_most:6.0f} {row.worker_most:6.0f}  "
            f"{row.manifest_bytes / 1000:11.1f}  {row.build_s:7.1f} {1000 * row.build_s / row.frames:8.2f}  "
            f"{row.resume_s:8.1f} {row.nothing_s:9.1f}",
            flush=True,
        )


def measure(folder: Path, data: DataSet, workers: int) -> Row:
    """Build a data set, kill the build half way, build on, build again."""
    source, masks, out = folder / "videos", folder / "masks", folder / "set"
    make_source(source, masks, data)
    pieces = sum(len(file.pieces(32)) for file in plan_files([data.frames] * data.clips, PlanConfig()))
    with cluster(folder, workers) as running:
        line = [
            *(sys.executable, "-m", "workflows.cli", "build", str(source), str(out), "--quiet"),
            *("--size", *map(str, STORED_SIZE), "--fov-deg", "70", "--detector", f"masks:{masks}"),
            *("--scheduler", running.address),
        ]
        begin, watch = time.monotonic(), Watch(running)
        driver = _start_build(line)
        while pieces_done(out) < pieces // 2:
            watch.look(driver.pid)
            if driver.poll() is not None:
                raise SystemExit("the build ended before it could be killed half way")
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(2)  # tasks under way end on their workers
        killed_after, done = time.monotonic() - begin - 2, pieces_done(out)

        begin, resumed = time.monotonic(), None
        driver = _start_build(line)
        while driver.poll() is None:
            watch.look(driver.pid)
            if resumed is None and pieces_done(out) > done:
                resumed = time.monotonic() - begin
        if driver.returncode:
            raise SystemExit(f"the build failed with exit code {driver.returncode}")
        build_s = killed_after + time.monotonic() - begin

        begin = time.monotonic()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        nothing_s = time.monotonic() - begin
        scheduler_most, worker_most = peak_mib(running.scheduler), max(map(peak_mib, running.workers))
    manifest = read_manifest(out)
    files = len(manifest.frames)
    found = sum(clip.frames for clip in manifest.clips)
    if (len(manifest.clips), found) != (data.clips, data.clips * data.frames):
        raise SystemExit(f"{len(manifest.clips)} clips of {found} frames were built")
    return Row(
        clips=data.clips,
        frames=found,
        tasks=pieces + 2 * files,
        tasks_at_once=watch.tasks,
        scheduler_start=running.scheduler_start,
        scheduler_most=scheduler_most,
        driver_most=watch.driver,
        worker_most=worker_most,
        manifest_bytes=(out / MANIFEST).stat().st_size,
        build_s=build_s,
        resume_s=resumed or float("nan"),
        nothing_s=nothing_s,
    )


def make_source(source: Path, masks: Path, data: DataSet) -> None:
    """Clips that are one file under many names, and a label image for each of its frames."""
    source.mkdir(parents=True)
    first = source / "clip00000.mp4"
    _encode(first, data.frames)
    for number in range(1, data.clips):
        os.link(first, source / f"clip{number:05d}.mp4")
    # Named by frame alone, a mask serves every clip; one with a clip's name says that this is meant.
    masks.mkdir()
    (masks / "classes.json").write_text(json.dumps({str(number): "car" for number in (1, 2, 3)}))
    for frame in range(data.frames):
        labels = np.zeros(FRAME_SIZE[::-1], np.uint8)
        for number in (1, 2, 3):
            left = (20 * number + frame // 4) % (FRAME_SIZE[0] - 12)
            labels[16 + 4 * number : 24 + 4 * number, left : left + 12] = number
        cv2.imwrite(str(masks / f"{frame:06d}.png"), labels)
    (masks / first.stem).mkdir()
    shutil.copy(masks / "000000.png", masks / first.stem)


def _encode(path: Path, frames: int) -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(40, 215, (FRAME_SIZE[1] // 8, 64, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(10), options={"g": "32", "preset": "ultrafast"}
        )
        stream.width, stream.height = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            left = number % (texture.shape[1] - FRAME_SIZE[0])
            image = np.ascontiguousarray(texture[:, left : left + FRAME_SIZE[0]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Process ids of a running cluster, and where it answers."""

    address: str
    counts_url: str
    scheduler: int
    workers: tuple[int, ...]
    scheduler_start: float


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """A scheduler and workers of one thread each, as a user starts them."""
    info = folder / "scheduler.json"
    # By module, in this folder: the workers must run this very code, and the build checks it.
    dask = {kind: [sys.executable, "-m", f"distributed.cli.dask_{kind}"] for kind in ("scheduler", "worker")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    address = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    processes = [
        _start([*dask["scheduler"], *address, "--port", "0", "--scheduler-file", str(info)], environment)
    ]
    try:
        while not info.exists():
            time.sleep(0.1)
        alone = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        worker = [*dask["worker"], "--scheduler-file", str(info), *alone]
        for number in range(workers):
            processes.append(_start([*worker, "--local-directory", str(folder / f"w{number}")], environment))
        described = json.loads(info.read_text())
        url = f"http://127.0.0.1:{described['services']['dashboard']}/json/counts.json"
        while _count(url, "workers") < workers:
            time.sleep(0.2)
        yield Cluster(
            address=described["address"],
            counts_url=url,
            scheduler=processes[0].pid,
            workers=tuple(process.pid for process in processes[1:]),
            scheduler_start=peak_mib(processes[0].pid),
        )
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


class Watch:
    """The most tasks that a scheduler knew, and the most memory that the driver took."""

    def __init__(self, running: Cluster) -> None:
        self._cluster = running
        self.tasks = 0
        self.driver = 0.0

    def look(self, driver: int) -> None:
        self.tasks = max(self.tasks, _count(self._cluster.counts_url, "tasks"))
        self.driver = max(self.driver, peak_mib(driver))
        time.sleep(0.1)


def peak_mib(process: int) -> float:
    """The most memory that a process has held so far."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024


def pieces_done(out: Path) -> int:
    """Pieces that the driver has taken note of, this run's and earlier ones'."""
    try:
        return (out / ".build" / "timings.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _count(url: str, what: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # our own scheduler, on this machine
            return json.load(answer)[what]
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return 0


def _start(line: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _start_build(line: Sequence[str]) -> subprocess.Popen[bytes]:
    """What it complains about is for the user to see."""
    return subprocess.Popen(line, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
